"""Due retries in the retry topics."""
