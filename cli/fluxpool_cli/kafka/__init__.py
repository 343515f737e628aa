"""Kafka as commands read it."""
