"""The task store: the state of every task in SQLite, a projection of Kafka's topics; and the reservations."""
