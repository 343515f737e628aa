"""Prometheus metrics of the gateway: of its requests, one sum over all server processes, and of its projection."""
