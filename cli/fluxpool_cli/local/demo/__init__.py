"""`fluxpool local demo`."""
