"""Record headers: CloudEvents 1.0 in binary mode plus Fluxpool's own, all optional on input, all values strings.

A record without any header is a complete task: the defaults of `Envelope` are what a foreign producer means. Only
headers that begin with `fluxpool-` can refuse a task. All others are information: one that is no UTF-8 text, is longer
than `MAX_INFORMATION_BYTES` or has another form counts as absent.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final

from fluxpool_contract import header_names as names
from fluxpool_contract.bounds import MAX_COUNT
from fluxpool_contract.problems import ErrorCode, FieldProblem, InvalidTaskError

RawHeaders = Sequence[tuple[str, bytes | None]]
"""Headers as Kafka clients hand them out."""

DEFAULT_TENANT: Final = "default"
_TENANT_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
MAX_TENANT_CHARACTERS: Final = 63
PROOF_CHARACTERS: Final = 32
_HEXADECIMAL: Final = frozenset(b"0123456789abcdef")
MAX_NUMBER_DIGITS: Final = 18
"""Any Kafka offset that will ever be reached, and well below what Python refuses to parse."""
MAX_HEADER_COUNT: Final = 1_000_000
"""Attempts, crashes and replays of one task: no task comes near it, and sums stay below `bounds.MAX_COUNT`."""
MAX_TEXT_BYTES: Final = 512
"""Of a text in a `fluxpool-*` header; names of topics, codes and ids are shorter."""
MAX_INFORMATION_BYTES: Final = 1024
"""Of a header that is only passed on. W3C asks for 512 bytes of `tracestate`."""


def check_tenant(value: str) -> str:
    """The tenant itself; raises `ValueError` when it cannot be the first segment of an object key."""
    if not (0 < len(value) <= MAX_TENANT_CHARACTERS and value[0] != "-" and set(value) <= _TENANT_CHARACTERS):
        raise ValueError(
            f"must be 1 to {MAX_TENANT_CHARACTERS} characters out of a-z 0-9 - and begin with a letter or digit"
        )
    return value


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-04-05T10:00:00.000Z`. Naive times are refused with `ValueError`."""
    if moment.tzinfo is None:
        raise ValueError("a time without a zone cannot be written into a header")
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(text: str) -> datetime:
    """The UTC moment of an RFC 3339 text; raises `ValueError` when it is malformed or has no zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("must end in Z or an offset such as +02:00")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What travels beside a task's body."""

    attempt: int = 1
    crashes: int = 0
    epoch: int = 0
    """Raised by a replay from the dead-letter topic; part of object keys and event ids."""
    tenant: str = DEFAULT_TENANT
    tenant_proof: str | None = None
    """A gateway's proof that the tenant is the task's; others pass it on."""
    priority: str | None = None
    first_seen: datetime | None = None
    deadline: datetime | None = None
    not_before: datetime | None = None
    replay_of: str | None = None
    origin_topic: str | None = None
    origin_partition: int | None = None
    origin_offset: int | None = None
    error_class: str | None = None
    error_code: str | None = None
    ce_id: str | None = None
    ce_source: str | None = None
    ce_time: datetime | None = None
    traceparent: str | None = None
    tracestate: str | None = None


def parse_envelope(headers: RawHeaders, *, request_id: str | None = None) -> Envelope:
    """The envelope of a record; unknown headers are ignored, a repeated header counts once, the last.

    Raises `InvalidTaskError` (`invalid-header`) naming the `fluxpool-*` header and the form it must have.
    """
    values: dict[str, object] = {}
    problems: list[FieldProblem] = []
    for name, raw in headers:
        # One look-up each: every record of every topic passes here, with ten headers.
        field, parse = _FIELDS.get(name, _UNKNOWN)
        if parse is None or raw is None:
            continue
        is_own = name.startswith(names.HEADER_PREFIX)
        if not is_own and len(raw) > MAX_INFORMATION_BYTES:
            continue
        try:
            values[field] = parse(raw)
        except ValueError as error:
            # A foreign header must never cost its task, whatever is in it.
            if is_own:
                problems.append(FieldProblem(field=name, message=f"{error}; correct the header or leave it out"))
    if problems:
        raise InvalidTaskError(ErrorCode.INVALID_HEADER, problems, request_id=request_id)
    return Envelope(**values)  # type: ignore[arg-type]  # _FIELDS yields each field with its own type


def _own_text(raw: bytes) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("must be UTF-8 text") from None
    if len(raw) > MAX_TEXT_BYTES:
        raise ValueError(f"must be at most {MAX_TEXT_BYTES} bytes long")
    return text


def _own_number(raw: bytes, *, minimum: int, maximum: int) -> int:
    # bytes.isdigit() knows ASCII digits alone.
    if not raw.isdigit() or len(raw) > MAX_NUMBER_DIGITS or not minimum <= int(raw) <= maximum:
        raise ValueError(f"must be a whole number from {minimum} to {maximum}, as text")
    return int(raw)


def _own_time(raw: bytes) -> datetime:
    try:
        return parse_time(raw.decode())
    except ValueError:
        raise ValueError("must be an RFC 3339 time such as 2026-04-05T10:00:00Z") from None


def _own_tenant(raw: bytes) -> str:
    # What is no ASCII is no tenant either, and check_tenant says what one is.
    return check_tenant(raw.decode("ascii", errors="replace"))


def _own_proof(raw: bytes) -> str:
    if not (len(raw) == PROOF_CHARACTERS and set(raw) <= _HEXADECIMAL):
        raise ValueError(f"must be {PROOF_CHARACTERS} characters out of 0-9 a-f")
    return raw.decode()


_Parser = Callable[[bytes], object]
_UNKNOWN: Final[tuple[str, _Parser | None]] = ("", None)
_FIELDS: Final[dict[str, tuple[str, _Parser | None]]] = {
    names.PRIORITY: ("priority", _own_text),
    names.REPLAY_OF: ("replay_of", _own_text),
    names.ORIGIN_TOPIC: ("origin_topic", _own_text),
    names.ERROR_CLASS: ("error_class", _own_text),
    names.ERROR_CODE: ("error_code", _own_text),
    names.CE_ID: ("ce_id", bytes.decode),
    names.CE_SOURCE: ("ce_source", bytes.decode),
    names.TRACEPARENT: ("traceparent", bytes.decode),
    names.TRACESTATE: ("tracestate", bytes.decode),
    names.ATTEMPT: ("attempt", partial(_own_number, minimum=1, maximum=MAX_HEADER_COUNT)),
    names.CRASHES: ("crashes", partial(_own_number, minimum=0, maximum=MAX_HEADER_COUNT)),
    names.EPOCH: ("epoch", partial(_own_number, minimum=0, maximum=MAX_HEADER_COUNT)),
    names.ORIGIN_PARTITION: ("origin_partition", partial(_own_number, minimum=0, maximum=MAX_COUNT)),
    names.ORIGIN_OFFSET: ("origin_offset", partial(_own_number, minimum=0, maximum=10**MAX_NUMBER_DIGITS - 1)),
    names.FIRST_SEEN: ("first_seen", _own_time),
    names.DEADLINE: ("deadline", _own_time),
    names.NOT_BEFORE: ("not_before", _own_time),
    names.CE_TIME: ("ce_time", lambda raw: parse_time(raw.decode())),
    names.TENANT: ("tenant", _own_tenant),
    names.TENANT_PROOF: ("tenant_proof", _own_proof),
}
"""Field of `Envelope` and parser of every header that is read; a parser raises `ValueError` with the rule."""


def render_envelope(envelope: Envelope) -> list[tuple[str, bytes]]:
    """The headers of an envelope; fields at their defaults are left out."""
    defaults = Envelope()
    rendered = []
    for header, (field, _) in _FIELDS.items():
        value = getattr(envelope, field)
        if value != getattr(defaults, field):
            rendered.append((header, format_time(value) if isinstance(value, datetime) else str(value)))
    return encode_headers(rendered)


def cloud_event_headers(
    *, event_id: str, event_type: str, source: str, subject: str | None, time: datetime
) -> list[tuple[str, bytes]]:
    """The attributes of CloudEvents 1.0 (Kafka protocol binding, binary content mode) for a JSON value."""
    headers = [
        (names.CE_SPECVERSION, "1.0"),
        (names.CE_ID, event_id),
        (names.CE_TYPE, event_type),
        (names.CE_SOURCE, source),
        (names.CE_TIME, format_time(time)),
        (names.CONTENT_TYPE, "application/json"),
    ]
    if subject is not None:
        headers.append((names.CE_SUBJECT, subject))
    return encode_headers(headers)


def encode_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Header values as Kafka wants them."""
    return [(name, value.encode()) for name, value in headers]
