"""One GPU pod: an agent that speaks Kafka and an engine that owns the model, in two processes."""
