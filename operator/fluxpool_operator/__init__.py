"""Keeps every pool of workers at the size its backlog asks for: observes Kafka, plans, applies."""
