"""The tables of API keys, as the newest migration leaves them."""

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, String, Table, Text

metadata = MetaData()

secrets = Table(
    "secret", metadata, Column("name", String(32), primary_key=True), Column("value", LargeBinary(32), nullable=False)
)

api_keys = Table(
    "api_key",
    metadata,
    Column("key_id", String(12), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False),
    Column("name", String(64), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("scopes", String(128), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger),
    Column("revoked_at_ms", BigInteger),
    Column("last_used_at_ms", BigInteger),
    Column("replaced_by", String(12)),
    Column("priorities", String(64), nullable=False),
    Column("qualities", String(64)),
    Column("loras", Text),
    Column("presets", Text),
    Column("models", Text),
    Column("submit_limit", String(16)),
    Column("bucket", String(12)),
)
