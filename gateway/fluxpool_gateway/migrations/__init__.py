"""Alembic's migrations of the task store; run by the projector when it starts."""
