"""What each call sends, repeats and makes of the responses; without I/O, so that both clients share it.

An operation is a generator. It yields a request, and is sent its response or why there is none; or it yields a pause.
Its return value is the call's. Every request is idempotent, hence each may be repeated: a submission always has a key
or an id of its own, and the gateway takes cancellations and retries as often as they come.
"""

import hashlib
import json
import math
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar
from urllib.parse import urlencode
from uuid import uuid4

import httpx
from pydantic import BaseModel, ValidationError

from fluxpool_client.errors import (
    CorruptImageError,
    FluxpoolError,
    RefusedError,
    UnexpectedResponseError,
    UnreachableError,
    WaitTimeoutError,
    refusal,
)
from fluxpool_client.models import (
    AcceptedTask,
    ApiKey,
    ApiKeyPage,
    BatchItem,
    BatchOutcome,
    CanceledTask,
    CanceledTasks,
    Comparison,
    FeedbackSummary,
    Group,
    Image,
    ImagePair,
    NewApiKey,
    Rating,
    Task,
    TaskPage,
)
from fluxpool_client.request_fields import (
    BatchFields,
    CancelFields,
    ComparisonFields,
    ExportFields,
    KeyFields,
    ListFields,
    OptionalFields,
    RatingFields,
)
from fluxpool_client.service_models import Model, ModelList, Pools, Queue, UsageReport
from fluxpool_contract.messages import REQUEST_ID, check_request_id

MAX_WAIT_SECONDS: Final = 60
"""The longest wait that a gateway grants to one request."""
MAX_RESPONSE_BYTES: Final = 16 * 1024 * 1024
"""A page of 200 tasks with eight images each is below 2 MB."""
MAX_IMAGE_BYTES: Final = 512 * 1024 * 1024
"""More than an uncompressed image of the largest size."""
MAX_PAUSE_SECONDS: Final = 60.0
"""A longer `Retry-After` is left to the caller."""
FIRST_PAUSE_SECONDS: Final = 0.5
LONGEST_PAUSE_SECONDS: Final = 8.0
_SHORTEST_WAIT_SECONDS: Final = 1.0
"""Between two looks at a task, where a proxy takes the `Prefer` header away or the gateway is stopping."""
_MAX_KEY_CHARACTERS: Final = 255
_LAST_PORT: Final = 65_535
TASKS: Final = "/v1/generations"
_KEYS: Final = "/v1/keys"
_PAGE: Final = 1000
_REPEATED: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
_IN_PROGRESS: Final = "idempotency_in_progress"

T = TypeVar("T")
Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One HTTP request."""

    method: str
    path: str
    """Of the gateway, or a whole URL with `is_signed`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    max_bytes: int = MAX_RESPONSE_BYTES
    """Of the response."""
    wait_seconds: int = 0
    """The gateway may take that much longer to respond."""
    timeout_seconds: float = math.inf
    """A shorter timeout than the client's."""
    is_repeatable: bool = True
    may_redirect: bool = False
    is_signed: bool = False
    """The URL has its own permission: the API key is not for this server."""


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP response."""

    status: int
    headers: httpx.Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Time to let pass."""

    seconds: float


Steps = Generator[Outgoing | Pause, Response | httpx.RequestError | None, T]


def append(body: bytearray, chunk: bytes, *, outgoing: Outgoing, is_late: bool) -> None:
    """Add to the body of a response; raises `UnexpectedResponseError` past its limit, and `ReadTimeout`."""
    body += chunk
    if is_late:
        raise httpx.ReadTimeout("the response takes too long")
    if len(body) > outgoing.max_bytes:
        raise UnexpectedResponseError(f"the response to {_shown(outgoing)} is longer than {outgoing.max_bytes} bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The calls; raises `FluxpoolError`, and `ValueError` for ids and keys that no gateway takes."""

    max_attempts: int
    clock: Callable[[], float]
    """Monotonic, in seconds."""

    def submit(
        self, prompt: str, fields: OptionalFields, *, idempotency_key: str | None, request_id: str | None
    ) -> Steps[AcceptedTask]:
        """Queue a task; with `request_id` under an id of the caller's own, which then is the key."""
        body = {"prompt": prompt, **fields}
        if request_id is not None:
            if idempotency_key is not None:
                raise ValueError("give either idempotency_key or request_id: an id does what a key does")
            path = f"{TASKS}/{check_request_id(request_id)}"
            return self._ask(AcceptedTask, _json("PUT", path, body))
        key = str(uuid4()) if idempotency_key is None else _checked_key(idempotency_key)
        return self._ask(AcceptedTask, _json("POST", TASKS, body, {"idempotency-key": key}))

    def submit_many(self, requests: Sequence[BatchFields]) -> Steps[tuple[BatchItem, ...]]:
        """Queue at most 256 tasks; each has an outcome of its own."""
        keyed = [{"idempotency_key": str(uuid4()), **request} for request in requests]
        outcome = yield from self._ask(BatchOutcome, _json("POST", f"{TASKS}/batch", {"requests": keyed}))
        if len(outcome.items) != len(requests):
            raise UnexpectedResponseError(f"the batch has {len(outcome.items)} outcomes of {len(requests)} requests")
        return outcome.items

    def get(
        self,
        request_id: str,
        *,
        wait_seconds: int = 0,
        until: float | None = None,
        timeout_seconds: float | None = None,
    ) -> Steps[Task]:
        """The task now or, with `wait_seconds`, at its end if that comes within them."""
        path = f"{TASKS}/{check_request_id(request_id)}"
        headers = {"prefer": f"wait={wait_seconds}"} if wait_seconds else {}
        outgoing = Outgoing(
            method="GET",
            path=path,
            headers=headers,
            wait_seconds=wait_seconds,
            timeout_seconds=math.inf if timeout_seconds is None else timeout_seconds,
        )
        task = yield from self._ask(Task, outgoing, until=until)
        if task.request_id != request_id:
            raise UnexpectedResponseError(f"asked about {request_id}, the response is about {task.request_id}")
        return task

    def wait(self, request_id: str, *, timeout_seconds: float) -> Steps[Task]:
        """The task once it has ended, however; failures that may pass are waited out. Raises `WaitTimeoutError`."""
        until = self.clock() + timeout_seconds
        while True:
            asked_at = self.clock()
            wait_seconds = max(0, min(MAX_WAIT_SECONDS, math.floor(until - asked_at)))
            task = yield from self.get(request_id, wait_seconds=wait_seconds, until=until)
            now = self.clock()
            if task.ended:
                return task
            if now >= until:
                raise WaitTimeoutError(task, timeout_seconds)
            if (early := asked_at + _SHORTEST_WAIT_SECONDS - now) > 0:
                yield Pause(min(early, until - now))

    def page(self, fields: ListFields, *, cursor: str | None) -> Steps[TaskPage]:
        """One page of a list."""
        path = f"{TASKS}{list_query({**fields, **({} if cursor is None else {'cursor': cursor})})}"
        return self._ask(TaskPage, Outgoing(method="GET", path=path))

    def group(self, group_id: str) -> Steps[Group]:
        """How far the tasks of a group are."""
        if not REQUEST_ID.fullmatch(group_id):
            raise ValueError(f"group_id: {group_id!r} is none that a task can have")
        return self._ask(Group, Outgoing(method="GET", path=f"/v1/groups/{group_id}"))

    def cancel(self, request_id: str, *, waiting_only: bool, reason: str | None) -> Steps[CanceledTask]:
        """Cancel one task."""
        path = f"{TASKS}/{check_request_id(request_id)}/cancel"
        return self._ask(CanceledTask, _json("POST", path, {"waiting_only": waiting_only, "reason": reason}))

    def cancel_many(self, fields: CancelFields) -> Steps[tuple[CanceledTask, ...]]:
        """Cancel many tasks, page by page."""
        canceled: list[CanceledTask] = []
        cursor: str | None = None
        while True:
            body = {**fields, **({"cursor": cursor} if cursor is not None else {})}
            page = yield from self._ask(CanceledTasks, _json("POST", f"{TASKS}/cancel", body))
            canceled += page.data
            cursor = page.next_cursor
            if not page.has_more or cursor is None:
                return tuple(canceled)

    def retry(self, request_id: str) -> Steps[AcceptedTask]:
        """A new task with the inputs of one that has ended."""
        path = f"{TASKS}/{check_request_id(request_id)}/retry"
        return self._ask(AcceptedTask, Outgoing(method="POST", path=path))

    def delete(self, request_id: str) -> Steps[None]:
        """Delete a task that has ended, and its images."""
        yield from self._exchange(Outgoing(method="DELETE", path=f"{TASKS}/{check_request_id(request_id)}"))

    def image(self, request_id: str, index: int, *, thumb: int | None = None) -> Steps[bytes]:
        """The file of one image; from the object store where the gateway says so."""
        path = f"{TASKS}/{check_request_id(request_id)}/images/{index}"
        path += "" if thumb is None else f"?thumb={thumb}"
        outgoing = Outgoing(method="GET", path=path, max_bytes=MAX_IMAGE_BYTES, may_redirect=True)
        response = yield from self._exchange(outgoing)
        if response.status == HTTPStatus.FOUND:
            location = response.headers.get("location", "")
            if not is_http_url(location):
                raise UnexpectedResponseError(f"the image is at {location!r}, which is no URL of HTTP")
            signed = Outgoing(method="GET", path=location, max_bytes=MAX_IMAGE_BYTES, is_signed=True)
            response = yield from self._exchange(signed)
        return response.body

    def download(self, task: Task) -> Steps[tuple[bytes, ...]]:
        """The files of all its images, in order, compared with what its worker stored."""
        files = []
        for image in task.images:
            file = yield from self.image(task.request_id, image.index)
            _check_file(file, image, task.request_id)
            files.append(file)
        return tuple(files)

    def queue(self) -> Steps[Queue]:
        """How many tasks wait on each lane."""
        return self._ask(Queue, Outgoing(method="GET", path="/v1/queue"))

    def pools(self) -> Steps[Pools]:
        """The workers that serve the tasks."""
        return self._ask(Pools, Outgoing(method="GET", path="/v1/pools"))

    def models(self) -> Steps[tuple[Model, ...]]:
        """The families of models that workers can run."""
        found = yield from self._ask(ModelList, Outgoing(method="GET", path="/v1/models"))
        return found.data

    def usage(self, *, since: datetime | None, to: datetime | None, by: str) -> Steps[UsageReport]:
        """What the tasks of the tenant used."""
        given = {"from": since, "to": to, "by": by}
        query = urlencode({name: _text(value) for name, value in given.items() if value is not None})
        return self._ask(UsageReport, Outgoing(method="GET", path=f"/v1/usage?{query}"))

    def rate(self, request_id: str, fields: RatingFields) -> Steps[Rating]:
        """Rate an image."""
        return self._ask(Rating, _json("PUT", _rating_path(request_id), fields))

    def rating(self, request_id: str, *, index: int, rater: str | None) -> Steps[Rating]:
        """A rating of an image."""
        return self._ask(Rating, Outgoing(method="GET", path=_rating_path(request_id, index=index, rater=rater)))

    def delete_rating(self, request_id: str, *, index: int, rater: str | None) -> Steps[None]:
        """Take a rating back."""
        yield from self._exchange(Outgoing(method="DELETE", path=_rating_path(request_id, index=index, rater=rater)))

    def star(self, request_id: str, *, starred: bool) -> Steps[None]:
        """Star a task, or take its star back."""
        path = f"{TASKS}/{check_request_id(request_id)}/star"
        yield from self._exchange(Outgoing(method="PUT" if starred else "DELETE", path=path))

    def compare(
        self, a: tuple[str, int], b: tuple[str, int], preferred: str, fields: ComparisonFields
    ) -> Steps[Comparison]:
        """Compare two images."""
        sides = {
            side: {"request_id": check_request_id(name), "index": index} for side, (name, index) in (("a", a), ("b", b))
        }
        return self._ask(Comparison, _json("POST", "/v1/comparisons", {**sides, "preferred": preferred, **fields}))

    def next_pair(self, *, rater: str | None) -> Steps[ImagePair | None]:
        """A pair to judge; None when there is none."""
        outgoing = Outgoing(method="GET", path=_with_query("/v1/comparisons/next", {"rater": rater}))
        response = yield from self._exchange(outgoing)
        return None if response.status == HTTPStatus.NO_CONTENT else _read(ImagePair, response, outgoing)

    def feedback_summary(self) -> Steps[FeedbackSummary]:
        """Mean scores and win rates."""
        return self._ask(FeedbackSummary, Outgoing(method="GET", path="/v1/feedback/summary"))

    def create_key(self, name: str, scopes: Sequence[str], fields: KeyFields) -> Steps[NewApiKey]:
        """Create an API key; not repeated, as each request makes one."""
        outgoing = _json("POST", _KEYS, {"name": name, "scopes": scopes, **fields})
        return self._ask(NewApiKey, replace(outgoing, is_repeatable=False))

    def keys(self) -> Steps[tuple[ApiKey, ...]]:
        """All API keys, page by page."""
        keys: list[ApiKey] = []
        after: str | None = ""
        while after is not None:
            query = urlencode({"after": after, "limit": _PAGE})
            page = yield from self._ask(ApiKeyPage, Outgoing(method="GET", path=f"{_KEYS}?{query}"))
            keys += page.keys
            # Ids rise from page to page; a server that is no gateway must not keep this in a loop.
            after = page.next if page.next is not None and page.next > after else None
        return tuple(keys)

    def rotate_key(self, key_id: str, *, overlap_seconds: int) -> Steps[NewApiKey]:
        """Replace an API key; not repeated, as a key is replaced once."""
        outgoing = _json("POST", f"{_KEYS}/{_checked_key_id(key_id)}/rotate", {"overlap_seconds": overlap_seconds})
        return self._ask(NewApiKey, replace(outgoing, is_repeatable=False))

    def revoke_key(self, key_id: str) -> Steps[ApiKey]:
        """Revoke an API key."""
        return self._ask(ApiKey, Outgoing(method="DELETE", path=f"{_KEYS}/{_checked_key_id(key_id)}"))

    def call(
        self, model: type[Answer], method: str, path: str, body: Mapping[str, Any] | None = None, *, repeatable: bool
    ) -> Steps[Answer]:
        """One request without more to it; a `repeatable` one changes nothing that a second one would change again."""
        outgoing = Outgoing(method=method, path=path) if body is None else _json(method, path, body)
        return self._ask(model, replace(outgoing, is_repeatable=repeatable))

    def remove(self, path: str) -> Steps[None]:
        """Delete what is at a path."""
        yield from self._exchange(Outgoing(method="DELETE", path=path))

    def _ask(self, model: type[Answer], outgoing: Outgoing, *, until: float | None = None) -> Steps[Answer]:
        response = yield from self._exchange(outgoing, until=until)
        return _read(model, response, outgoing)

    def _exchange(self, outgoing: Outgoing, *, until: float | None = None) -> Steps[Response]:
        """The response; failures that may pass are repeated `max_attempts` times, with `until` as long as that."""
        pause_seconds = FIRST_PAUSE_SECONDS
        attempt = 1
        while True:
            outcome = yield outgoing
            if isinstance(outcome, Response) and _is_expected(outcome.status, outgoing):
                return outcome
            failure = failure_of(outgoing, outcome)
            now = self.clock()
            is_last = attempt >= self.max_attempts if until is None else now >= until
            is_last = is_last or not outgoing.is_repeatable
            wanted_seconds = wanted_pause(failure, otherwise=random.uniform(pause_seconds / 2, pause_seconds))  # noqa: S311
            if is_last or wanted_seconds is None or wanted_seconds > MAX_PAUSE_SECONDS:
                raise failure
            yield Pause(wanted_seconds if until is None else min(wanted_seconds, until - now))
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
            attempt += 1


def _read(model: type[Answer], response: Response, outgoing: Outgoing) -> Answer:
    try:
        return model.model_validate_json(response.body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UnexpectedResponseError(
            f"the response to {outgoing.method} {outgoing.path} is not a gateway's: {where} {problem['msg']}"
        ) from None


def export_request(fields: ExportFields) -> Outgoing:
    """The request for an export, whose response is read as it comes."""
    given = {name: str(value).lower() for name, value in fields.items()}
    return Outgoing(method="GET", path=_with_query("/v1/feedback/export", given))


def _rating_path(request_id: str, **query: Any) -> str:
    return _with_query(f"{TASKS}/{check_request_id(request_id)}/rating", query)


def _with_query(path: str, query: Mapping[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def list_query(fields: Mapping[str, Any]) -> str:
    """The query of a list with these filters, with its question mark; empty without any."""
    query = [
        (name, _text(item))
        for name, value in fields.items()
        if value is not None
        for item in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return f"?{urlencode(query)}" if query else ""


def is_http_url(text: str) -> bool:
    """Whether httpx can send a request there."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in {"http", "https"} and bool(url.host) and (url.port or 1) <= _LAST_PORT


def _is_expected(status: int, outgoing: Outgoing) -> bool:
    is_success = HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES
    return is_success or (outgoing.may_redirect and status == HTTPStatus.FOUND)


def failure_of(outgoing: Outgoing, outcome: Response | httpx.RequestError | None) -> FluxpoolError:
    """The error of a request without the expected response."""
    if isinstance(outcome, Response):
        return refusal(outcome.status, outcome.headers, outcome.body)
    reason = f"{type(outcome).__name__} {outcome}".rstrip()
    error = UnreachableError(f"no response to {outgoing.method} {_shown(outgoing)}: {reason}")
    error.__cause__ = outcome
    return error


def _shown(outgoing: Outgoing) -> str:
    """Its path, without the signature, which is as good as a key."""
    return outgoing.path.partition("?")[0] if outgoing.is_signed else outgoing.path


def wanted_pause(failure: FluxpoolError, *, otherwise: float) -> float | None:
    """Seconds before the same request may succeed, `otherwise` where the response has none; None when it will not."""
    if isinstance(failure, UnreachableError):
        return otherwise
    if isinstance(failure, RefusedError) and failure.wait is not None:
        # The caller has said that it would rather know than wait.
        return None
    if isinstance(failure, RefusedError) and (failure.status in _REPEATED or failure.code == _IN_PROGRESS):
        # Not at once after a 0 either: a wait would ask without end.
        return failure.retry_after_seconds or otherwise
    return None


def _json(method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Outgoing:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"), default=_text)
    return Outgoing(
        method=method,
        path=path,
        headers={"content-type": "application/json", **(headers or {})},
        # A lone surrogate is no character; the gateway's refusal names the field.
        body=text.encode(errors="surrogatepass"),
    )


def _text(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _checked_key(key: str) -> str:
    if not (0 < len(key) <= _MAX_KEY_CHARACTERS and all("\x21" <= character <= "\x7e" for character in key)):
        raise ValueError(
            f"idempotency_key: must be 1 to {_MAX_KEY_CHARACTERS} printable ASCII characters without blanks"
        )
    return key


def _checked_key_id(key_id: str) -> str:
    if not (key_id.isascii() and key_id.isalnum()):
        raise ValueError("key_id: must be the id of a key: what its text has between `fp_` and the next `_`")
    return key_id


def _check_file(file: bytes, image: Image, request_id: str) -> None:
    """Raises `CorruptImageError`. Results of other programs may have no digest."""
    if image.sha256 and hashlib.sha256(file).hexdigest() != image.sha256:
        raise CorruptImageError(f"image {image.index} of task {request_id} has {len(file)} bytes with another SHA-256")
