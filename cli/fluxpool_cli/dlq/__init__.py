"""`fluxpool dlq`."""
