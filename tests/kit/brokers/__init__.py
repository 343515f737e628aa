"""Real Kafka brokers, and readers and writers of their records that are independent of the product."""
