"""Profiles: gateways with their API keys by name, in a file of the user; and `fluxpool profile`, which changes it."""
