"""`fluxpool store`: the databases of a gateway, with the settings of its environment."""
