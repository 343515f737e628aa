"""One Apache Kafka broker on this machine, from its jars."""
