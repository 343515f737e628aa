"""Alembic's environment and versions of the key store's schema."""
