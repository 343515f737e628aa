"""The task store: what is known of every task, as a projection of Kafka's topics in SQLite."""
