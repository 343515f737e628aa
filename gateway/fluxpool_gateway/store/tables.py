"""The tables of the task store, as the newest migration leaves them."""

from typing import Final

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text, UniqueConstraint, text

metadata = MetaData()

LISTED_AT: Final = "coalesce(created_at_ms, completed_at_ms, 0)"
"""The time that a list is ordered by. Without its task a row has no other than that of its result.

A database uses an index on an expression, or with a condition, only where a statement has the same one.
"""
NOT_ENDED: Final = "status IN ('queued', 'running')"
JSON_ELEMENTS: Final = {"sqlite": "json_each", "postgresql": "json_array_elements_text"}
"""The function of each dialect whose column `value` has the elements of a JSON array of strings."""
STAR_RATER: Final = "stars"
"""What stars have for the pseudonym of a rater (`feedback.stars`); those of people are hexadecimal."""
STARS: Final = f"rater_hash = '{STAR_RATER}'"
UNSUCCESSFUL: Final = "status IN ('failed', 'expired', 'canceled')"


def _ordered(length: int) -> String:
    """Text in the order of its bytes, as cursors expect; PostgreSQL's databases sort as a language does."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


tasks = Table(
    "task",
    metadata,
    Column("request_id", _ordered(128), primary_key=True),
    Column("tenant", _ordered(63), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("step", Integer),
    Column("total_steps", Integer),
    Column("body", Text),
    Column("priority", String(16)),
    Column("created_at_ms", BigInteger),
    Column("started_at_ms", BigInteger),
    Column("completed_at_ms", BigInteger),
    Column("result", Text),
    Column("group_id", String(64)),
    Column("source_rank", BigInteger),
    Column("source_topic", String(249)),
    Column("source_partition", Integer),
    Column("source_offset", BigInteger),
    Column("change_number", BigInteger),
    sqlite_with_rowid=False,
)
_LISTED: Final = (tasks.c.tenant, text(LISTED_AT), tasks.c.request_id)
Index("task_by_time", *_LISTED)
Index("task_not_ended", *_LISTED, sqlite_where=text(NOT_ENDED), postgresql_where=text(NOT_ENDED))
Index("task_unsuccessful", *_LISTED, sqlite_where=text(UNSUCCESSFUL), postgresql_where=text(UNSUCCESSFUL))
Index(
    "task_by_group",
    tasks.c.tenant,
    tasks.c.group_id,
    *_LISTED[1:],
    tasks.c.status,
    sqlite_where=text("group_id IS NOT NULL"),
    postgresql_where=text("group_id IS NOT NULL"),
)

Index("task_by_change", tasks.c.tenant, tasks.c.change_number)

change_counter = Table(
    "change_counter",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("first_number", BigInteger, nullable=False),
    Column("last_number", BigInteger, nullable=False),
)

projected_offsets = Table(
    "projected_offset",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True),
    Column("next_offset", BigInteger, nullable=False),
    Column("topic_id", String(64)),
)

quarantined_records = Table(
    "quarantined_record",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("topic", String(249), nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    UniqueConstraint("topic", "partition", "offset"),
)

usage_hours = Table(
    "usage_hour",
    metadata,
    Column("tenant", _ordered(63), primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("outcome", String(16), primary_key=True),
    Column("tasks", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("pixels", BigInteger, nullable=False),
    Column("gpu_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

ratings = Table(
    "rating",
    metadata,
    Column("tenant", _ordered(63), primary_key=True),
    Column("rating_id", _ordered(128), primary_key=True),
    Column("request_id", _ordered(128), nullable=False),
    Column("image_index", Integer, nullable=False),
    Column("rater_hash", String(128), nullable=False),
    Column("score", Integer),
    Column("reward_quarters", Integer),
    Column("model", Text),
    Column("pool", Text),
    Column("preset", Text),
    Column("steps", Integer),
    Column("prompt_key", String(32)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("rating_by_task", ratings.c.tenant, ratings.c.request_id)
Index(
    "star_by_time",
    ratings.c.tenant,
    ratings.c.created_at_ms,
    sqlite_where=text(STARS),
    postgresql_where=text(STARS),
)

comparisons = Table(
    "comparison",
    metadata,
    Column("tenant", _ordered(63), primary_key=True),
    Column("rating_id", _ordered(128), primary_key=True),
    Column("a_request_id", _ordered(128), nullable=False),
    Column("a_index", Integer, nullable=False),
    Column("b_request_id", _ordered(128), nullable=False),
    Column("b_index", Integer, nullable=False),
    Column("rater_hash", String(128), nullable=False),
    Column("preferred", String(16), nullable=False),
    *(Column(f"{side}_{name}", Text) for side in "ab" for name in ("model", "pool", "preset")),
    *(Column(f"{side}_steps", Integer) for side in "ab"),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("partition", Integer, nullable=False),
    Column("offset", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("comparison_by_a", comparisons.c.tenant, comparisons.c.a_request_id)
Index("comparison_by_b", comparisons.c.tenant, comparisons.c.b_request_id)

dead_letters = Table(
    "dead_letter",
    metadata,
    Column("topic", String(249), primary_key=True),
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("offset", BigInteger, primary_key=True, autoincrement=False),
    Column("failure", String(32), nullable=False),
    Column("tenant", String(63), nullable=False),
    Column("failed_at_ms", BigInteger, nullable=False),
    Column("stored_at_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("error_class", Text, nullable=False),
    Column("error_code", Text),
    Column("disposition", Text),
    Column("origin_topic", Text),
    Column("pool", Text),
    Column("model", Text),
    Column("worker", Text),
    Column("request_id", Text),
    Column("epoch", BigInteger, nullable=False),
    Column("value_bytes", BigInteger, nullable=False),
    Column("body", Text),
    Column("problem", Text, nullable=False),
    Column("resolution", Text),
    Column("resolved_at_ms", BigInteger),
)
Index("dead_letter_by_time", dead_letters.c.topic, dead_letters.c.failed_at_ms)
Index(
    "dead_letter_by_failure",
    dead_letters.c.topic,
    dead_letters.c.failure,
    dead_letters.c.partition,
    dead_letters.c.offset,
)
Index("dead_letter_by_task", dead_letters.c.request_id)

projector_heartbeat = Table(
    "projector_heartbeat",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("beat_at_ms", BigInteger, nullable=False),
    Column("caught_up_at_ms", BigInteger),
    Column("lag_records", BigInteger),
    Column("rebuilt_because", Text),
)
