"""Which Kafka a command uses, and the results topic read without a consumer group."""
