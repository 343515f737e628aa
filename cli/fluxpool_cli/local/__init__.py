"""Fluxpool on one machine: real Apache Kafka, worker processes, and what starts and stops them."""
