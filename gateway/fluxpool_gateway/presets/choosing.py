"""Gives tasks the parameters of their preset, and chooses one for `auto`; what is known is read in the background.

A choice follows from the id of the task and what was known then. A repeat of a request may be chosen for otherwise, but
the first record counts: its digest leaves out what was chosen (`task_digest`).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

import structlog
from sqlalchemy import Connection

from fluxpool_contract.messages import AUTO_PRESET, PresetChoice
from fluxpool_contract.problems import FieldProblem, summarize
from fluxpool_gateway.http.generation_request import GenerationRequest
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.presets.bandit import Evidence, Shares, divide, divide_evenly
from fluxpool_gateway.presets.evidence import read_evidence
from fluxpool_gateway.presets.preset import Preset
from fluxpool_gateway.store.reading import StoreUnavailableError

REFRESH_SECONDS: Final = 5.0
_PAUSES_OF_A_READ: Final = 20
"""A read of millions of judgements takes a second: it must not be all that the store does."""

OfTenants = dict[str, dict[str, Evidence]]
Read = Callable[[Callable[[Connection], OfTenants]], Awaitable[OfTenants]]
Check = Callable[[GenerationRequest], None]

logger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Presets:
    """The presets of a gateway, and what tenants are known to prefer; one instance serves one process."""

    presets: Mapping[str, Preset] = field(default_factory=dict)
    exploration: float = 0.05
    """Of the traffic, that every preset gets at least."""
    seed: int = 0
    _known: OfTenants = field(default_factory=dict, init=False)
    _shares: dict[str, Shares] = field(default_factory=dict, init=False)

    def apply(
        self, request: GenerationRequest, request_id: str, *, tenant: str, check: Check
    ) -> tuple[GenerationRequest, PresetChoice]:
        """The request with the parameters of its preset, which `check` allows, and how that was chosen.

        Raises `ProblemError`: 422 for a preset that does not exist, or whose parameters the request has itself.
        """
        name = request.preset or AUTO_PRESET
        if name != AUTO_PRESET:
            if name not in self.presets:
                known = ", ".join(sorted(self.presets)) or "none: the gateway has no presets"
                raise _refused([FieldProblem("preset", f"{name} is not known; there are {known}")])
            changed = self._with(request, name)
            check(_named(changed, name))
            return changed, PresetChoice(name=name, reason="asked for", sets=tuple(self.presets[name].fields()))
        allowed = self._allowed(request, check)
        shares = (self._shares.get(tenant) or divide_evenly(self.presets)).only(allowed)
        name = shares.pick(f"{self.seed}/{tenant}/{request_id}")
        choice = PresetChoice(
            name=name,
            reason=shares.reason(name),
            probability=round(shares.shares[name], 4),
            sets=tuple(self.presets[name].fields()),
        )
        return allowed[name], choice

    async def run(self, read: Read) -> None:
        """Read what is known again and again, until cancelled; nothing where there is no choice."""
        if len(self.presets) < 2:
            await asyncio.Event().wait()
        while True:
            begun = time.monotonic()
            try:
                await self.refresh(read)
            except StoreUnavailableError as error:
                logger.warning("preferences_unreadable", reason=str(error))
            await asyncio.sleep(max(REFRESH_SECONDS, _PAUSES_OF_A_READ * (time.monotonic() - begun)))

    async def refresh(self, read: Read) -> None:
        """Read what is known; raises `StoreUnavailableError`."""
        names = list(self.presets)
        known = await read(lambda connection: read_evidence(connection, names))
        changed = {tenant: found for tenant, found in known.items() if found != self._known.get(tenant)}
        # In a thread: the draws for hundreds of tenants take a second.
        divided = await asyncio.to_thread(self._divide, changed)
        self._shares = {tenant: shares for tenant, shares in (self._shares | divided).items() if tenant in known}
        self._known = known

    def _divide(self, changed: OfTenants) -> dict[str, Shares]:
        return {
            tenant: divide(
                {name: found.get(name, Evidence()) for name in self.presets},
                exploration=self.exploration,
                seed=self.seed,
            )
            for tenant, found in changed.items()
        }

    def _allowed(self, request: GenerationRequest, check: Check) -> dict[str, GenerationRequest]:
        """The request with each preset that may be chosen; raises `ProblemError` where there is none."""
        if not self.presets:
            raise _refused([FieldProblem("preset", "auto needs presets, and the gateway has none; leave it out")])
        # Whichever is chosen, so that a request is not refused by chance.
        candidates = {name: self._with(request, name) for name in self.presets}
        allowed: dict[str, GenerationRequest] = {}
        refusal: ProblemError | None = None
        for name, changed in candidates.items():
            try:
                check(_named(changed, name))
            except ProblemError as error:
                refusal = error
            else:
                allowed[name] = changed
        if not allowed and refusal is not None:
            raise refusal
        return allowed

    def _with(self, request: GenerationRequest, name: str) -> GenerationRequest:
        fields = self.presets[name].fields()
        if twice := sorted(fields.keys() & request.model_fields_set):
            raise _refused(
                [FieldProblem(one, f"is set by the preset {name}; leave it out, or leave out preset") for one in twice]
            )
        return request.model_copy(update=fields)


def _named(request: GenerationRequest, name: str) -> GenerationRequest:
    """What the request comes to, by the name of its preset."""
    return request.model_copy(update={"preset": name})


def _refused(problems: list[FieldProblem]) -> ProblemError:
    return ProblemError(
        ProblemCode.INVALID_REQUEST, summarize(problems), fields=problems, status=HTTPStatus.UNPROCESSABLE_ENTITY
    )
