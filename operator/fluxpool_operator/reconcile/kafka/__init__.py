"""One pool's Kafka: addresses, Secrets, the connection, and when its lag is read."""
