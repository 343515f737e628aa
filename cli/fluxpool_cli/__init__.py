"""The `fluxpool` command: a whole Fluxpool on one machine, and a client of any other."""
