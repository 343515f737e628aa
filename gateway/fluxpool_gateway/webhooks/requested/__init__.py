"""Webhooks that requests name: on their way in, and their endpoints."""
