"""The calls about tasks, images, feedback and keys: what each sends and makes of the responses; without I/O.

`steps` repeats requests. Nearly every one is idempotent, hence may be repeated: a submission always has a key or an id
of its own, and the gateway takes cancellations and retries as often as they come.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlencode
from uuid import uuid4

from fluxpool_client.errors import (
    CorruptImageError,
    UnexpectedResponseError,
    WaitTimeoutError,
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
from fluxpool_client.steps import (
    MAX_IMAGE_BYTES,
    Calls,
    Outgoing,
    Pause,
    Steps,
    is_http_url,
    json_request,
    query_of,
    read_response,
)
from fluxpool_contract.messages import REQUEST_ID, check_request_id

MAX_WAIT_SECONDS: Final = 60
"""The longest wait that a gateway grants to one request."""
_SHORTEST_WAIT_SECONDS: Final = 1.0
"""Between two looks at a task, where a proxy takes the `Prefer` header away or the gateway is stopping."""
_MAX_KEY_CHARACTERS: Final = 255
TASKS: Final = "/v1/generations"
_KEYS: Final = "/v1/keys"
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations(Calls):
    """The calls; raises `FluxpoolError`, and `ValueError` for ids and keys that no gateway takes."""

    def submit(
        self, prompt: str, fields: OptionalFields, *, idempotency_key: str | None, request_id: str | None
    ) -> Steps[AcceptedTask]:
        """Queue a task; with `request_id` under an id of the caller's own, which then is the key."""
        body = {"prompt": prompt, **fields}
        if request_id is not None:
            if idempotency_key is not None:
                raise ValueError("give either idempotency_key or request_id: an id does what a key does")
            path = f"{TASKS}/{check_request_id(request_id)}"
            return self.ask(AcceptedTask, json_request("PUT", path, body))
        key = str(uuid4()) if idempotency_key is None else _checked_key(idempotency_key)
        return self.ask(AcceptedTask, json_request("POST", TASKS, body, {"idempotency-key": key}))

    def submit_many(self, requests: Sequence[BatchFields]) -> Steps[tuple[BatchItem, ...]]:
        """Queue at most 256 tasks; each has an outcome of its own."""
        keyed = [{"idempotency_key": str(uuid4()), **request} for request in requests]
        outcome = yield from self.ask(BatchOutcome, json_request("POST", f"{TASKS}/batch", {"requests": keyed}))
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
        task = yield from self.ask(Task, outgoing, until=until)
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
        path = f"{TASKS}{query_of({**fields, **({} if cursor is None else {'cursor': cursor})})}"
        return self.ask(TaskPage, Outgoing(method="GET", path=path))

    def group(self, group_id: str) -> Steps[Group]:
        """How far the tasks of a group are."""
        if not REQUEST_ID.fullmatch(group_id):
            raise ValueError(f"group_id: {group_id!r} is none that a task can have")
        return self.ask(Group, Outgoing(method="GET", path=f"/v1/groups/{group_id}"))

    def cancel(self, request_id: str, *, waiting_only: bool, reason: str | None) -> Steps[CanceledTask]:
        """Cancel one task."""
        path = f"{TASKS}/{check_request_id(request_id)}/cancel"
        return self.ask(CanceledTask, json_request("POST", path, {"waiting_only": waiting_only, "reason": reason}))

    def cancel_many(self, fields: CancelFields) -> Steps[tuple[CanceledTask, ...]]:
        """Cancel many tasks, page by page."""
        canceled: list[CanceledTask] = []
        cursor: str | None = None
        while True:
            body = {**fields, **({"cursor": cursor} if cursor is not None else {})}
            page = yield from self.ask(CanceledTasks, json_request("POST", f"{TASKS}/cancel", body))
            canceled += page.data
            cursor = page.next_cursor
            if not page.has_more or cursor is None:
                return tuple(canceled)

    def retry(self, request_id: str) -> Steps[AcceptedTask]:
        """A new task with the inputs of one that has ended."""
        path = f"{TASKS}/{check_request_id(request_id)}/retry"
        return self.ask(AcceptedTask, Outgoing(method="POST", path=path))

    def delete(self, request_id: str) -> Steps[None]:
        """Delete a task that has ended, and its images."""
        yield from self.exchange(Outgoing(method="DELETE", path=f"{TASKS}/{check_request_id(request_id)}"))

    def image(self, request_id: str, index: int, *, thumb: int | None = None) -> Steps[bytes]:
        """The file of one image; from the object store where the gateway says so."""
        path = f"{TASKS}/{check_request_id(request_id)}/images/{index}"
        path += "" if thumb is None else f"?thumb={thumb}"
        outgoing = Outgoing(method="GET", path=path, max_bytes=MAX_IMAGE_BYTES, may_redirect=True)
        response = yield from self.exchange(outgoing)
        if response.status == HTTPStatus.FOUND:
            location = response.headers.get("location", "")
            if not is_http_url(location):
                raise UnexpectedResponseError(f"the image is at {location!r}, which is no URL of HTTP")
            signed = Outgoing(method="GET", path=location, max_bytes=MAX_IMAGE_BYTES, is_signed=True)
            response = yield from self.exchange(signed)
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
        return self.ask(Queue, Outgoing(method="GET", path="/v1/queue"))

    def pools(self) -> Steps[Pools]:
        """The workers that serve the tasks."""
        return self.ask(Pools, Outgoing(method="GET", path="/v1/pools"))

    def models(self) -> Steps[tuple[Model, ...]]:
        """The families of models that workers can run."""
        found = yield from self.ask(ModelList, Outgoing(method="GET", path="/v1/models"))
        return found.data

    def usage(self, *, since: datetime | None, to: datetime | None, by: str) -> Steps[UsageReport]:
        """What the tasks of the tenant used."""
        given = {"from": since, "to": to, "by": by}
        return self.ask(UsageReport, Outgoing(method="GET", path=f"/v1/usage{query_of(given)}"))

    def rate(self, request_id: str, fields: RatingFields) -> Steps[Rating]:
        """Rate an image."""
        return self.ask(Rating, json_request("PUT", _rating_path(request_id), fields))

    def rating(self, request_id: str, *, index: int, rater: str | None) -> Steps[Rating]:
        """A rating of an image."""
        return self.ask(Rating, Outgoing(method="GET", path=_rating_path(request_id, index=index, rater=rater)))

    def delete_rating(self, request_id: str, *, index: int, rater: str | None) -> Steps[None]:
        """Take a rating back."""
        yield from self.exchange(Outgoing(method="DELETE", path=_rating_path(request_id, index=index, rater=rater)))

    def star(self, request_id: str, *, starred: bool) -> Steps[None]:
        """Star a task, or take its star back."""
        path = f"{TASKS}/{check_request_id(request_id)}/star"
        yield from self.exchange(Outgoing(method="PUT" if starred else "DELETE", path=path))

    def compare(
        self, a: tuple[str, int], b: tuple[str, int], preferred: str, fields: ComparisonFields
    ) -> Steps[Comparison]:
        """Compare two images."""
        sides = {
            side: {"request_id": check_request_id(name), "index": index} for side, (name, index) in (("a", a), ("b", b))
        }
        return self.ask(
            Comparison, json_request("POST", "/v1/comparisons", {**sides, "preferred": preferred, **fields})
        )

    def next_pair(self, *, rater: str | None) -> Steps[ImagePair | None]:
        """A pair to judge; None when there is none."""
        outgoing = Outgoing(method="GET", path=f"/v1/comparisons/next{query_of({'rater': rater})}")
        response = yield from self.exchange(outgoing)
        return None if response.status == HTTPStatus.NO_CONTENT else read_response(ImagePair, response, outgoing)

    def feedback_summary(self) -> Steps[FeedbackSummary]:
        """Mean scores and win rates."""
        return self.ask(FeedbackSummary, Outgoing(method="GET", path="/v1/feedback/summary"))

    def create_key(self, name: str, scopes: Sequence[str], fields: KeyFields) -> Steps[NewApiKey]:
        """Create an API key; not repeated, as each request makes one."""
        outgoing = json_request("POST", _KEYS, {"name": name, "scopes": scopes, **fields})
        return self.ask(NewApiKey, replace(outgoing, is_repeatable=False))

    def keys(self) -> Steps[tuple[ApiKey, ...]]:
        """All API keys, page by page."""
        keys: list[ApiKey] = []
        after: str | None = ""
        while after is not None:
            query = urlencode({"after": after, "limit": _PAGE})
            page = yield from self.ask(ApiKeyPage, Outgoing(method="GET", path=f"{_KEYS}?{query}"))
            keys += page.keys
            # Ids rise from page to page; a server that is no gateway must not keep this in a loop.
            after = page.next if page.next is not None and page.next > after else None
        return tuple(keys)

    def rotate_key(self, key_id: str, *, overlap_seconds: int) -> Steps[NewApiKey]:
        """Replace an API key; not repeated, as a key is replaced once."""
        outgoing = json_request(
            "POST", f"{_KEYS}/{_checked_key_id(key_id)}/rotate", {"overlap_seconds": overlap_seconds}
        )
        return self.ask(NewApiKey, replace(outgoing, is_repeatable=False))

    def revoke_key(self, key_id: str) -> Steps[ApiKey]:
        """Revoke an API key."""
        return self.ask(ApiKey, Outgoing(method="DELETE", path=f"{_KEYS}/{_checked_key_id(key_id)}"))


def export_request(fields: ExportFields) -> Outgoing:
    """The request for an export, whose response is read as it comes."""
    given = {name: str(value).lower() for name, value in fields.items()}
    return Outgoing(method="GET", path=f"/v1/feedback/export{query_of(given)}")


def _rating_path(request_id: str, **query: Any) -> str:
    return f"{TASKS}/{check_request_id(request_id)}/rating{query_of(query)}"


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
