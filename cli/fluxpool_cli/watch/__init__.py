"""`fluxpool watch`."""
