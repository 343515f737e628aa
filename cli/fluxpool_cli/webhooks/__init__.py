"""`fluxpool webhooks`."""
