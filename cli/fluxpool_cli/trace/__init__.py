"""`fluxpool trace`: the timeline of one task, from all topics."""
