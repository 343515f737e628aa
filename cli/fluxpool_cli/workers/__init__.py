"""`fluxpool workers`: who works on what, from Kafka; and as `kubectl fluxpool workers` the pods of a cluster."""
