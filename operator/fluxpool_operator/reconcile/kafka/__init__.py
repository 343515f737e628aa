"""One pool's connection to Kafka: addresses, Secrets, and its lag."""
