"""Alembic's entry: runs the migrations on the connection that the caller opened."""

from alembic import context

from fluxpool_gateway.webhooks.tables import metadata

attributes = context.config.attributes
context.configure(
    connection=attributes["connection"], target_metadata=metadata, version_table=attributes["version_table"]
)
with context.begin_transaction():
    context.run_migrations()
