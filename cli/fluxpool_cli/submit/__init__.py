"""`fluxpool submit` and the client of a gateway."""
