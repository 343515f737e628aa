"""The routes of API keys, for holders of the scope admin: create, list, rotate, revoke.

A key itself is in the response that creates it, and nowhere else. There are none of these without authentication.
"""

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Final, Self

import structlog
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fluxpool_contract.messages import DEFAULT_TENANT, LORA_NAME_PATTERN, PRESET_PATTERN, Quality, check_tenant
from fluxpool_gateway.http.generation_request import Priority
from fluxpool_gateway.http.problem import BODY_PROBLEMS, ProblemCode, ProblemError, problems, unavailable
from fluxpool_gateway.http.routes import RequestModel, json_response
from fluxpool_gateway.http.scopes import SECURITY_PROBLEMS, WithCaller, requires
from fluxpool_gateway.identity.api_key import KeyScope, PresentedKey, new_key, parse_key
from fluxpool_gateway.identity.gate import KeyGate
from fluxpool_gateway.identity.key_record import KeyRecord, KeyState
from fluxpool_gateway.identity.key_store import KeyStoreUnavailableError
from fluxpool_gateway.identity.rights import Rights
from fluxpool_gateway.presets.preset import MAX_PRESETS
from fluxpool_gateway.settings import SubmitLimit

PATH: Final = "/v1/keys"
DAY_SECONDS: Final = 24 * 3600
DEFAULT_OVERLAP_SECONDS: Final = DAY_SECONDS
MAX_OVERLAP_SECONDS: Final = 30 * DAY_SECONDS
"""An overlap without an end would be a second key for ever."""
MAX_LIFETIME_SECONDS: Final = 10 * 365 * DAY_SECONDS
MAX_PAGE: Final = 1000
MAX_LORA_RIGHTS: Final = 100
MAX_MODEL_RIGHTS: Final = 100
_NAME_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9 ._@/-]{0,63}$"
"""What any terminal and log shows as it is."""
_KEY_PROBLEMS: Final = {
    **SECURITY_PROBLEMS,
    404: "There is no such key, or the gateway runs without keys.",
    503: "The keys cannot be read or written at the moment; retry.",
}
_CHANGE_PROBLEMS: Final = {409: "The key was revoked, has expired or was rotated.", **_KEY_PROBLEMS}

LoraName = Annotated[str, Field(pattern=LORA_NAME_PATTERN)]
PresetName = Annotated[str, Field(pattern=PRESET_PATTERN)]
ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]{1,200}$")]
"""A family, or the id or folder of a checkpoint, without blanks."""

logger = structlog.stdlib.get_logger(__name__)
router = APIRouter()


class KeyRequest(RequestModel):
    """A key to create."""

    name: Annotated[str, Field(pattern=_NAME_PATTERN)]
    """For people: who uses it, and for what."""
    tenant: Annotated[str, AfterValidator(check_tenant)] = DEFAULT_TENANT
    scopes: Annotated[frozenset[KeyScope], Field(min_length=1)]
    expires_in_seconds: Annotated[int, Field(strict=True, ge=1, le=MAX_LIFETIME_SECONDS)] | None = None
    """Absent: it does not expire."""
    priorities: Annotated[frozenset[Priority], Field(min_length=1)] = frozenset({Priority.STANDARD})
    """Priorities that its tasks may have."""
    qualities: Annotated[frozenset[Quality], Field(min_length=1)] | None = None
    """Qualities that its tasks may have, and have to name. Absent: all."""
    loras: Annotated[frozenset[LoraName], Field(max_length=MAX_LORA_RIGHTS)] | None = None
    """LoRAs that its tasks may use. Absent: all."""
    presets: Annotated[frozenset[PresetName], Field(min_length=1, max_length=MAX_PRESETS)] | None = None
    """Presets that its tasks may have, and have to name; `auto` chooses among them. Absent: all, and none."""
    models: Annotated[frozenset[ModelName], Field(min_length=1, max_length=MAX_MODEL_RIGHTS)] | None = None
    """Models that may make its images: families as `GET /v1/models` lists them, or checkpoints as `GET /v1/pools` does.
    The pool behind the task's priority decides. Absent: all."""
    submit_limit: SubmitLimit | None = None
    """Tasks that may be submitted with it in a time, as 5/second, within the limits of its tenant. Keys that rotations
    make of it count together with it. Absent: as many as the tenant may."""


class RotationRequest(RequestModel):
    """How to replace a key."""

    overlap_seconds: Annotated[int, Field(strict=True, ge=0, le=MAX_OVERLAP_SECONDS)] = DEFAULT_OVERLAP_SECONDS
    """How long the replaced key is still accepted."""


class KeyView(BaseModel):
    """What is known of a key; not the key."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    name: str
    tenant: str
    scopes: tuple[KeyScope, ...]
    priorities: tuple[Priority, ...]
    qualities: tuple[Quality, ...] | None
    """Null: all."""
    loras: tuple[str, ...] | None
    """Null: all."""
    presets: tuple[str, ...] | None
    """Null: all."""
    models: tuple[str, ...] | None
    """Null: all."""
    submit_limit: str | None
    """Null: as many as the tenant may."""
    state: KeyState
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To some minutes."""
    replaced_by: str | None
    """Id of the key that a rotation made."""

    @classmethod
    def of(cls, record: KeyRecord, *, now_ms: int, **more: object) -> Self:
        """The view of a record."""
        return cls.model_validate(
            {
                "id": record.key_id,
                "name": record.name,
                "tenant": record.tenant,
                "scopes": tuple(scope for scope in KeyScope if scope in record.scopes),
                "priorities": sorted(record.rights.priorities),
                "qualities": None if record.rights.qualities is None else sorted(record.rights.qualities),
                "loras": None if record.rights.loras is None else sorted(record.rights.loras),
                "presets": None if record.rights.presets is None else sorted(record.rights.presets),
                "models": None if record.rights.models is None else sorted(record.rights.models),
                "submit_limit": record.submit_limit,
                "state": record.state(now_ms),
                "created_at": _moment(record.created_at_ms),
                "expires_at": _moment(record.expires_at_ms),
                "revoked_at": _moment(record.revoked_at_ms),
                "last_used_at": _moment(record.last_used_at_ms),
                "replaced_by": record.replaced_by,
                **more,
            }
        )


class NewKeyView(KeyView):
    """A key that was just created, with the key itself."""

    key: str
    """Shown in this response alone."""


class KeyPage(BaseModel):
    """Some keys, by their ids."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    keys: tuple[KeyView, ...]
    next: str | None
    """`after` of the next page; null on the last one."""


async def _key_gate(request: Request) -> KeyGate:
    gate = request.app.gate
    if not isinstance(gate, KeyGate):
        raise ProblemError(
            ProblemCode.NOT_FOUND, "this gateway runs without API keys; start it with FLUXPOOL_AUTHENTICATION=keys"
        )
    return gate


WithGate = Annotated[KeyGate, Depends(_key_gate)]
KeyIdInPath = Annotated[str, Path(description="Id of the key: what its text has between `fp_` and the next `_`.")]


@router.post(
    PATH,
    status_code=HTTPStatus.CREATED,
    response_model=NewKeyView,
    responses=problems({**BODY_PROBLEMS, **_KEY_PROBLEMS}),
    summary="Create an API key",
    **requires(KeyScope.ADMIN),
)
async def create_key(wanted: KeyRequest, gate: WithGate, caller: WithCaller) -> Response:
    """The response holds the key; nothing shows it again."""
    now_ms = gate.now_ms()
    text, presented = _made()
    lifetime_seconds = wanted.expires_in_seconds
    record = KeyRecord(
        key_id=presented.key_id,
        digest=presented.digest,
        name=wanted.name,
        tenant=wanted.tenant,
        scopes=wanted.scopes,
        rights=Rights(
            priorities=wanted.priorities,
            qualities=wanted.qualities,
            loras=wanted.loras,
            presets=wanted.presets,
            models=wanted.models,
        ),
        created_at_ms=now_ms,
        expires_at_ms=None if lifetime_seconds is None else now_ms + 1000 * lifetime_seconds,
        submit_limit=wanted.submit_limit,
    )
    try:
        await gate.store.add(record)
    except KeyStoreUnavailableError as error:
        raise _unusable(error) from error
    logger.info("api_key_created", key_id=record.key_id, tenant=record.tenant, by=caller.name)
    return _created(record, text, now_ms=now_ms)


@router.get(
    PATH,
    response_model=KeyPage,
    responses=problems({422: BODY_PROBLEMS[422], **_KEY_PROBLEMS}),
    summary="The API keys of all tenants",
    **requires(KeyScope.ADMIN),
)
async def list_keys(
    gate: WithGate,
    after: Annotated[str, Query(description="`next` of the page before.", max_length=64)] = "",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> Response:
    """Also those that were revoked or have expired."""
    try:
        records = await gate.store.page(after=after, limit=limit + 1)
    except KeyStoreUnavailableError as error:
        raise _unusable(error) from error
    now_ms = gate.now_ms()
    shown = records[:limit]
    page = KeyPage(
        keys=tuple(KeyView.of(record, now_ms=now_ms) for record in shown),
        next=shown[-1].key_id if len(records) > limit else None,
    )
    return json_response(page)


@router.post(
    PATH + "/{key_id}/rotate",
    status_code=HTTPStatus.CREATED,
    response_model=NewKeyView,
    responses=problems({**BODY_PROBLEMS, **_CHANGE_PROBLEMS}),
    summary="Replace an API key",
    **requires(KeyScope.ADMIN),
)
async def rotate_key(wanted: RotationRequest, key_id: KeyIdInPath, gate: WithGate, caller: WithCaller) -> Response:
    """The new key has the same name, tenant, rights, limit and lifetime; the old one works until the overlap ends."""
    now_ms = gate.now_ms()
    text, presented = _made()
    successors: list[KeyRecord] = []

    def rotate(found: KeyRecord) -> tuple[KeyRecord, KeyRecord]:
        if found.replaced_by is not None:
            raise _not_active(f"key {key_id} was replaced by {found.replaced_by}; rotate that one")
        if found.state(now_ms) is not KeyState.ACTIVE:
            raise _not_active(f"key {key_id} is {found.state(now_ms)}; create a new one")
        replaced, successor = found.rotated(presented, now_ms=now_ms, overlap_ms=1000 * wanted.overlap_seconds)
        successors.append(successor)
        return replaced, successor

    try:
        if await gate.store.change(key_id, rotate) is None:
            raise _no_such_key(key_id)
    except KeyStoreUnavailableError as error:
        raise _unusable(error) from error
    gate.evict(key_id)
    logger.info("api_key_rotated", key_id=key_id, new_key_id=presented.key_id, by=caller.name)
    return _created(successors[0], text, now_ms=now_ms)


@router.delete(
    PATH + "/{key_id}",
    response_model=KeyView,
    responses=problems(_KEY_PROBLEMS),
    summary="Revoke an API key",
    **requires(KeyScope.ADMIN),
)
async def revoke_key(key_id: KeyIdInPath, gate: WithGate, caller: WithCaller) -> Response:
    """Other server processes and replicas refuse it within two seconds. A second call changes nothing."""
    now_ms = gate.now_ms()
    try:
        revoked = await gate.store.change(key_id, lambda found: (found.revoked(now_ms=now_ms), None))
    except KeyStoreUnavailableError as error:
        raise _unusable(error) from error
    if revoked is None:
        raise _no_such_key(key_id)
    gate.evict(key_id)
    logger.info("api_key_revoked", key_id=key_id, tenant=revoked.tenant, by=caller.name)
    return json_response(KeyView.of(revoked, now_ms=now_ms))


async def find_key(key_id: str, gate: KeyGate) -> KeyView:
    """One key; raises `ProblemError` (404, 503)."""
    try:
        record = await gate.store.find(key_id)
    except KeyStoreUnavailableError as error:
        raise _unusable(error) from error
    if record is None:
        raise _no_such_key(key_id)
    return KeyView.of(record, now_ms=gate.now_ms())


def _made() -> tuple[str, PresentedKey]:
    text = new_key()
    presented = parse_key(text)
    assert presented is not None  # noqa: S101 - it was just made
    return text, presented


def _created(record: KeyRecord, text: str, *, now_ms: int) -> Response:
    return json_response(NewKeyView.of(record, now_ms=now_ms, key=text), HTTPStatus.CREATED)


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)


def _no_such_key(key_id: str) -> ProblemError:
    return ProblemError(ProblemCode.NOT_FOUND, f"there is no key {key_id[:64]!r}; list them with GET {PATH}")


def _not_active(reason: str) -> ProblemError:
    return ProblemError(ProblemCode.KEY_NOT_ACTIVE, reason)


def _unusable(error: KeyStoreUnavailableError) -> ProblemError:
    logger.warning("key_store_unusable", reason=str(error))
    return unavailable(ProblemCode.IDENTITY_UNAVAILABLE, "the API keys cannot be read or written at the moment; retry")
