"""The metadata of a committed offset of a retry topic: what a pool's relay tells the next one, and the operator. Pure.

Records are relayed when they are due, whatever their order: the offsets that were relayed ahead of the committed one
are listed. The topic id tells a topic from one that was created again with its name.
"""

import json
from collections.abc import Iterable
from typing import Final

from fluxpool_contract.kafka.ledger import offset_metadata

MAX_RELAYED_AHEAD: Final = 256
"""Offsets in one text; a broker takes 4 KiB (`offset.metadata.max.bytes`)."""


def retry_offset_text(*, commit_offset: int, relayed: Iterable[int], topic_id: str | None) -> str:
    """The metadata for `commit_offset`; at most the first `MAX_RELAYED_AHEAD` relayed offsets."""
    ahead = sorted(offset - commit_offset for offset in relayed if offset > commit_offset)[:MAX_RELAYED_AHEAD]
    fields = {"topic": topic_id, **({"relayed": ahead} if ahead else {})}
    return json.dumps(fields, separators=(",", ":"), sort_keys=True)


def relayed_ahead(text: str, commit_offset: int) -> frozenset[int]:
    """Offsets that were relayed ahead of the committed one; none when the text is another client's."""
    ahead = offset_metadata(text).get("relayed")
    if not isinstance(ahead, list):
        return frozenset()
    return frozenset(commit_offset + item for item in ahead[:MAX_RELAYED_AHEAD] if isinstance(item, int) and item >= 0)
