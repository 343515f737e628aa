"""`fluxpool keys`: the API keys of a gateway."""
