"""`fluxpool trace`."""
