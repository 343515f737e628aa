"""Alembic's environment and versions of the webhooks' schema."""
