"""Writes what people say of images to the feedback topic, under keys that make a second judgement replace the first.

Knows nothing of HTTP. What is written continues in the projector.
"""

import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from fluxpool_contract import header_names
from fluxpool_contract.messages import Comparison, Rating
from fluxpool_contract.tenants import TenantTrust
from fluxpool_gateway.feedback.records import PROOF_PREFIX
from fluxpool_gateway.metrics.gateway_metrics import GatewayMetrics
from fluxpool_gateway.tasks.canceling import ANY_PARTITION
from fluxpool_gateway.tasks.producer import RecordSink

_RATER_BYTES: Final = 16
_MAX_RECENT: Final = 10_000
_SHOWN_SECONDS: Final = 5.0
"""The projection shows a record within milliseconds, unless it is behind."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackWriter:
    """One process's writer."""

    producer: RecordSink
    topic: str
    trust: TenantTrust
    rater_secret: bytes | None
    """Keeps the names of raters from being guessed, and never changes; None without authentication."""
    metrics: GatewayMetrics
    clock: Callable[[], float] = time.monotonic
    _recent: OrderedDict[str, tuple[float, Rating | Comparison | None]] = field(default_factory=OrderedDict, init=False)
    """What was written or taken back lately, and when: the projection shows it a moment later."""

    def rater_hash(self, tenant: str, rater: str) -> str:
        """The pseudonym of a person: the same for every judgement, and not traceable."""
        text = f"rater/{tenant}/{rater}".encode(errors="replace")
        return hmac.digest(self.rater_secret or b"none", text, hashlib.sha256)[:_RATER_BYTES].hex()

    async def write(self, judgement: Rating | Comparison) -> None:
        """Return once the broker has it; raises `DeliveryError`."""
        await self._send(judgement.rating_id, judgement.tenant, judgement.model_dump_json(exclude_none=True).encode())
        self.metrics.count_feedback("rating" if isinstance(judgement, Rating) else "comparison")
        self._note(judgement.rating_id, judgement)

    async def withdraw(self, rating_ids: Iterable[str], *, tenant: str) -> None:
        """Take back the judgements under these keys, if there are any; raises `DeliveryError`."""
        for rating_id in rating_ids:
            await self._send(rating_id, tenant, None)
            self._note(rating_id, None)
            self.metrics.count_feedback("withdrawal")

    def wrote_lately(self, rating_id: str) -> bool:
        """Whether this process wrote it, and may know it before the store does."""
        return self._recent.get(rating_id, (0.0, None))[1] is not None

    def latest(self, rating_id: str, stored: T | None) -> Rating | Comparison | T | None:
        """What counts now, where the store has `stored`: a judgement that this process just wrote or took back."""
        if rating_id not in self._recent:
            return stored
        at_seconds, judgement = self._recent[rating_id]
        # Later the store has it, and what other processes wrote since.
        return judgement if self.clock() - at_seconds < _SHOWN_SECONDS else stored

    def _note(self, rating_id: str, judgement: Rating | Comparison | None) -> None:
        self._recent[rating_id] = (self.clock(), judgement)
        self._recent.move_to_end(rating_id)
        if len(self._recent) > _MAX_RECENT:
            self._recent.popitem(last=False)

    async def _send(self, rating_id: str, tenant: str, value: bytes | None) -> None:
        headers = [(header_names.CONTENT_TYPE, b"application/json"), (header_names.TENANT, tenant.encode())]
        proof = self.trust.prove(tenant=tenant, request_id=PROOF_PREFIX + rating_id)
        if proof is not None:
            headers.append((header_names.TENANT_PROOF, proof.encode()))
        await self.producer.send(
            topic=self.topic, partition=ANY_PARTITION, key=rating_id.encode(), value=value, headers=headers
        )
