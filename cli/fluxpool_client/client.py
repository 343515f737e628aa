"""The blocking client: runs the operations over httpx. Owns connections and pauses; `operations` has the calls."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from http import HTTPStatus
from types import TracebackType
from typing import Literal, Self, TypeVar, Unpack, assert_never, cast

import httpx

from fluxpool_client.connection import LIMITS, connection_of
from fluxpool_client.dead_letters import DeadLetterOperations, DeadLetters
from fluxpool_client.event_stream import EventStream, TaskEvents, TenantEvents
from fluxpool_client.models import (
    AcceptedTask,
    ApiKey,
    BatchItem,
    CanceledTask,
    Comparison,
    FeedbackSummary,
    Group,
    ImagePair,
    NewApiKey,
    Rating,
    Task,
    TaskPage,
)
from fluxpool_client.operations import Operations, export_request
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
from fluxpool_client.service_models import Model, Pools, Queue, UsageReport
from fluxpool_client.steps import Outgoing, Pause, Response, Steps, append, failure_of
from fluxpool_client.webhooks import Webhooks

T = TypeVar("T")


class Client:
    """Client of one gateway. Threads may share it. Use it as a context manager, or close it.

    Without arguments the gateway and the key are those of the variables FLUXPOOL_URL and FLUXPOOL_API_KEY. Requests
    are idempotent: one that gets no response, or 408, 429, 502, 503 or 504, is sent `max_attempts` times in all,
    after the response's `Retry-After` where it has one. `timeout_seconds` is that of httpx for each of them. `http`
    replaces the connection pool, for certificates, proxies and tests; it stays open. Calls raise `FluxpoolError`, and
    `ValueError` for arguments that no gateway takes.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        max_attempts: int = 5,
        http: httpx.Client | None = None,
    ) -> None:
        self._connection = connection_of(url, api_key, timeout_seconds=timeout_seconds)
        self._operations = Operations(max_attempts=max_attempts, clock=time.monotonic)
        self.dead_letters = DeadLetters(
            DeadLetterOperations(max_attempts=max_attempts, clock=time.monotonic), self._run, self._pieces
        )
        self._owns_http = http is None
        self._http = httpx.Client(limits=LIMITS, trust_env=self._connection.uses_proxies) if http is None else http

    def __enter__(self) -> Self:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._owns_http:
            self._http.close()

    def submit(
        self,
        prompt: str,
        *,
        idempotency_key: str | None = None,
        request_id: str | None = None,
        **fields: Unpack[OptionalFields],
    ) -> AcceptedTask:
        """Queue a task; returns once it is durable.

        A repeat with the same key is the same task. With `request_id`, a new UUID, the task has this id, which is its
        key as well. Without both, the client makes a key for its own repeats of this call.
        """
        steps = self._operations.submit(prompt, fields, idempotency_key=idempotency_key, request_id=request_id)
        return self._run(steps)

    def submit_many(self, requests: Sequence[BatchFields]) -> tuple[BatchItem, ...]:
        """Queue at most 256 tasks; returns what became of each, in order: some may be queued, and others refused."""
        return self._run(self._operations.submit_many(requests))

    def get(self, request_id: str, *, timeout_seconds: float | None = None) -> Task:
        """The task as it is now; also a failed one. `timeout_seconds` of this request, where it is the shorter one."""
        return self._run(self._operations.get(request_id, timeout_seconds=timeout_seconds))

    def wait(self, request_id: str, *, timeout_seconds: float = 600.0) -> Task:
        """The task once it has ended, however it did; raises `WaitTimeoutError`, and the task goes on.

        Meanwhile the gateway may be away: a failure that may pass is raised only after `timeout_seconds`.
        """
        return self._run(self._operations.wait(request_id, timeout_seconds=timeout_seconds))

    def events(self, request_id: str) -> Iterator[Task]:
        """The state of the task now, then each later one as it comes, until it has ended.

        A connection that is lost is opened again and continues after the last state; states that a later one has
        replaced meanwhile are left out. A preview, of a task that asks for previews, is a `PreviewedTask` with the
        last state. After `max_attempts` connections in sequence without a sign of life the error is raised.
        """
        return self._follow(TaskEvents.of(request_id, max_attempts=self._operations.max_attempts))

    def changes(self, **fields: Unpack[ListFields]) -> Iterator[Task]:
        """The tasks of the list with these filters, the newest last, then each task that passes them as it changes.

        It has no end. A connection that is lost is opened again as that of `events`; where the gateway cannot continue
        after the last change, the list comes again.
        """
        return self._follow(TenantEvents.of(fields, max_attempts=self._operations.max_attempts))

    def _follow(self, events: EventStream) -> Iterator[Task]:
        while not events.has_ended():
            outgoing = events.outgoing()
            outcome: Response | httpx.RequestError | None = None
            try:
                response = self._http.send(self._connection.request(self._http, outgoing), stream=True)
                try:
                    if not events.begins(response.status_code, response.headers):
                        outcome = self._received(response, outgoing)
                    elif events.has_ended():
                        return
                    else:
                        for chunk in response.iter_bytes():
                            yield from events.states(chunk)
                            if events.has_ended():
                                return
                finally:
                    response.close()
            except httpx.RequestError as error:
                outcome = error
            time.sleep(events.pause(outcome))

    def page(self, *, cursor: str | None = None, **fields: Unpack[ListFields]) -> TaskPage:
        """One page of the tenant's tasks, the newest first; `cursor` is the `next_cursor` of the page before."""
        return self._run(self._operations.page(fields, cursor=cursor))

    def tasks(self, **fields: Unpack[ListFields]) -> Iterator[Task]:
        """Every task of the list, page by page; `limit` is the size of a page."""
        cursor: str | None = None
        has_more = True
        while has_more:
            page = self.page(cursor=cursor, **fields)
            yield from page.data
            cursor, has_more = page.next_cursor, page.has_more and page.next_cursor is not None

    def group(self, group_id: str) -> Group:
        """How far the tasks of a group are."""
        return self._run(self._operations.group(group_id))

    def cancel(self, request_id: str, *, waiting_only: bool = False, reason: str | None = None) -> CanceledTask:
        """Cancel a task, whatever its state; with `waiting_only` leave it alone once an engine has begun it."""
        return self._run(self._operations.cancel(request_id, waiting_only=waiting_only, reason=reason))

    def cancel_many(self, **fields: Unpack[CancelFields]) -> tuple[CanceledTask, ...]:
        """Cancel the tasks with these ids, or all that have not ended and pass a filter, or with `all` every one."""
        return self._run(self._operations.cancel_many(fields))

    def retry(self, request_id: str) -> AcceptedTask:
        """A new task with the inputs of one that has ended; a second retry of the same end is the same task."""
        return self._run(self._operations.retry(request_id))

    def delete(self, request_id: str) -> None:
        """Delete a task that has ended, its images, prompt and result; as often as you like."""
        self._run(self._operations.delete(request_id))

    def image(self, request_id: str, index: int = 0, *, thumb: int | None = None) -> bytes:
        """The file of one image, or with `thumb`, 256 or 512 pixels, its thumbnail as WebP."""
        return self._run(self._operations.image(request_id, index, thumb=thumb))

    def download(self, task: Task) -> tuple[bytes, ...]:
        """The files of all images of a task, in order; raises `CorruptImageError` for one with another SHA-256."""
        return self._run(self._operations.download(task))

    def queue(self) -> Queue:
        """How many tasks wait on each lane, how long the oldest has waited, and how long a new one would take."""
        return self._run(self._operations.queue())

    def pools(self) -> Pools:
        """The workers that serve the tasks, with those that start and the plan where an operator publishes them."""
        return self._run(self._operations.pools())

    def models(self) -> tuple[Model, ...]:
        """The families of models that workers can run, with licences, defaults and limits."""
        return self._run(self._operations.models())

    def usage(
        self, *, since: datetime | None = None, to: datetime | None = None, by: Literal["hour", "day"] = "hour"
    ) -> UsageReport:
        """What the tasks of the tenant used; without times in the last 24 hours. A time without a zone is UTC."""
        return self._run(self._operations.usage(since=since, to=to, by=by))

    @property
    def webhooks(self) -> Webhooks:
        """The calls about endpoints of webhooks."""
        return Webhooks(self._operations, self._run)

    def rate(self, request_id: str, **fields: Unpack[RatingFields]) -> Rating:
        """Rate an image; a second rating by the same rater replaces the first."""
        return self._run(self._operations.rate(request_id, fields))

    def rating(self, request_id: str, *, index: int = 0, rater: str | None = None) -> Rating:
        """The rating of an image by one rater; raises `NotFoundError` when there is none."""
        return self._run(self._operations.rating(request_id, index=index, rater=rater))

    def delete_rating(self, request_id: str, *, index: int = 0, rater: str | None = None) -> None:
        """Take a rating back, as often as you like."""
        self._run(self._operations.delete_rating(request_id, index=index, rater=rater))

    def star(self, request_id: str) -> None:
        """Star a task that succeeded, for its whole tenant: `tasks(starred=True)` lists it; as often as you like."""
        self._run(self._operations.star(request_id, starred=True))

    def unstar(self, request_id: str) -> None:
        """Take a star back, as often as you like."""
        self._run(self._operations.star(request_id, starred=False))

    def compare(
        self, a: tuple[str, int], b: tuple[str, int], preferred: str, **fields: Unpack[ComparisonFields]
    ) -> Comparison:
        """Say which of two images of a prompt is better: a, b, tie or both_bad; each is a request id and a number."""
        return self._run(self._operations.compare(a, b, preferred, fields))

    def next_pair(self, *, rater: str | None = None) -> ImagePair | None:
        """Two images of a prompt that the rater has not judged; None when there are none."""
        return self._run(self._operations.next_pair(rater=rater))

    def feedback_summary(self) -> FeedbackSummary:
        """Mean scores and win rates of the tenant's images, by model, steps, preset and pool."""
        return self._run(self._operations.feedback_summary())

    def export_feedback(self, **fields: Unpack[ExportFields]) -> Iterator[bytes]:
        """The bytes of an export as they come; needs the scope admin. Sent once: parts of it may be in use."""
        return self._pieces(export_request(fields))

    def _pieces(self, outgoing: Outgoing) -> Iterator[bytes]:
        try:
            response = self._http.send(self._connection.request(self._http, outgoing), stream=True)
            try:
                if response.status_code != HTTPStatus.OK:
                    raise failure_of(outgoing, self._received(response, outgoing))
                yield from response.iter_bytes()
            finally:
                response.close()
        except httpx.RequestError as error:
            raise failure_of(outgoing, error) from error

    def create_key(self, name: str, scopes: Sequence[str], **fields: Unpack[KeyFields]) -> NewApiKey:
        """Create an API key; needs one with the scope admin, as do all calls about keys. Sent once."""
        return self._run(self._operations.create_key(name, scopes, fields))

    def keys(self) -> tuple[ApiKey, ...]:
        """The API keys of all tenants, also expired and revoked ones."""
        return self._run(self._operations.keys())

    def rotate_key(self, key_id: str, *, overlap_seconds: int = 86_400) -> NewApiKey:
        """Replace an API key by one like it; the old one is accepted for so long. Sent once."""
        return self._run(self._operations.rotate_key(key_id, overlap_seconds=overlap_seconds))

    def revoke_key(self, key_id: str) -> ApiKey:
        """Revoke an API key, which cannot be undone."""
        return self._run(self._operations.revoke_key(key_id))

    def _run(self, steps: Steps[T]) -> T:
        outcome: Response | httpx.RequestError | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as end:
                return cast("T", end.value)
            match step:
                case Pause(seconds):
                    time.sleep(seconds)
                    outcome = None
                case Outgoing():
                    outcome = self._send(step)
                case _:
                    assert_never(step)

    def _send(self, outgoing: Outgoing) -> Response | httpx.RequestError:
        try:
            response = self._http.send(self._connection.request(self._http, outgoing), stream=True)
            try:
                return self._received(response, outgoing)
            finally:
                response.close()
        except httpx.RequestError as error:
            return error

    def _received(self, response: httpx.Response, outgoing: Outgoing) -> Response:
        until = time.monotonic() + self._connection.response_seconds(outgoing)
        body = bytearray()
        for chunk in response.iter_bytes():
            append(body, chunk, outgoing=outgoing, is_late=time.monotonic() > until)
        return Response(response.status_code, response.headers, bytes(body))
