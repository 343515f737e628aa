"""One task from its record to its end: claim, images, retries, dead letter and result."""
