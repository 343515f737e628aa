"""The text beside a committed offset of a retry topic: what a pool's relay tells the next one, and the operator. Pure.

Records are relayed when they are due, whatever their order: the offsets that were relayed ahead of the committed one
are listed. The topic's id tells a topic from another one that was made again under its name.
"""

import json
from collections.abc import Iterable
from typing import Any, Final

MAX_RELAYED_AHEAD: Final = 256
"""Offsets in one text; a broker takes 4 KiB (`offset.metadata.max.bytes`)."""


def retry_offset_text(*, commit_offset: int, relayed: Iterable[int], topic_id: str | None) -> str:
    """The text beside `commit_offset`; of very many relayed offsets only the first are told."""
    ahead = sorted(offset - commit_offset for offset in relayed if offset > commit_offset)[:MAX_RELAYED_AHEAD]
    fields = {"topic": topic_id, **({"relayed": ahead} if ahead else {})}
    return json.dumps(fields, separators=(",", ":"), sort_keys=True)


def relayed_ahead(text: str, commit_offset: int) -> frozenset[int]:
    """Offsets that were relayed ahead of the committed one; none when the text is another client's."""
    ahead = _fields(text).get("relayed")
    if not isinstance(ahead, list):
        return frozenset()
    return frozenset(commit_offset + item for item in ahead[:MAX_RELAYED_AHEAD] if isinstance(item, int) and item >= 0)


def retry_topic_id(text: str) -> str | None:
    """The id of the topic that the committed offset is about; None when the text does not say."""
    topic = _fields(text).get("topic")
    return topic if isinstance(topic, str) else None


def _fields(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
