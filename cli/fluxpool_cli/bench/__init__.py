"""`fluxpool bench`: how fast a gateway accepts tasks, by an open loop of real ones that are canceled again."""
