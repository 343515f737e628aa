"""Cancel commands of the control topic; every worker reads the whole topic, without a group.

Owns the commands and the tasks that watch for them; `attempts` cancels. A command may precede its task: it is kept
until it is withdrawn or `KEPT_FOR` old. A worker that is still reading the topic learns of a command late, but in time
for a task that it works on.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord
from pydantic import ValidationError

from fluxpool_contract.messages import CancelCommand, Envelope, parse_envelope, peek_request_id
from fluxpool_contract.problems import InvalidTaskError
from fluxpool_transport.kafka import UndecodableRecord, stop_consumer
from fluxpool_transport.process import Backoff

KEPT_FOR: Final = timedelta(days=8)
"""A day longer than the task topics keep a task."""
MAX_COMMANDS: Final = 100_000
"""Some tens of megabytes; the oldest are dropped first."""
POLL_SECONDS: Final = 1.0
MAX_REBUILD_SECONDS: Final = 30.0
"""The topic may not exist; nothing but canceling needs it."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskName:
    """One task among all tenants' and replays'."""

    tenant: str
    request_id: str
    epoch: int


@dataclass(slots=True, eq=False)
class CancelWatch:
    """Watches for one task's cancel command."""

    command: CancelCommand | None = None
    on_cancel: Callable[[], None] = field(default=lambda: None)
    """Called once, from the event loop, when the command comes later."""
    begun: bool = False
    """Whether an engine has begun the task: a command for waiting tasks alone comes too late then."""


class Cancellations:
    """All commands, by task."""

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._commands: OrderedDict[TaskName, CancelCommand] = OrderedDict()
        self._watches: dict[TaskName, set[CancelWatch]] = {}

    def __len__(self) -> int:
        """How many commands are known."""
        return len(self._commands)

    def learn(self, record: ConsumerRecord) -> None:
        """Take in one record of the control topic; what is no command is ignored."""
        if isinstance(record, UndecodableRecord) and not record.has_contents:
            log.warning("control_record_ignored", offset=record.offset, error=record.problem)
            return
        try:
            envelope = parse_envelope(record.headers)
        except InvalidTaskError as error:
            log.warning("control_record_ignored", offset=record.offset, error=str(error))
            return
        if not record.value:
            self._withdraw(record.key, envelope)
            return
        try:
            command = CancelCommand.model_validate_json(record.value)
        except ValidationError as error:
            log.warning(
                "control_record_ignored",
                offset=record.offset,
                request_id=peek_request_id(record.value),
                problems=error.error_count(),
            )
            return
        self._add(TaskName(tenant=envelope.tenant, request_id=command.request_id, epoch=envelope.epoch), command)

    @contextlib.contextmanager
    def watch(self, *names: TaskName) -> Iterator[CancelWatch]:
        """The command of a task by any of its names, known already or yet to come."""
        watch = CancelWatch(command=next(filter(None, map(self._commands.get, names)), None))
        # No await since the lookup: a command that arrives in between would be in neither.
        for name in names:
            self._watches.setdefault(name, set()).add(watch)
        try:
            yield watch
        finally:
            for name in names:
                watches = self._watches[name]
                watches.discard(watch)
                if not watches:
                    del self._watches[name]

    def _add(self, task: TaskName, command: CancelCommand) -> None:
        now = self._clock()
        if _moment(command) < now - KEPT_FOR:
            return
        self._commands[task] = command
        # A repeated command counts from its last arrival: the loop below drops from the front.
        self._commands.move_to_end(task)
        while len(self._commands) > MAX_COMMANDS or _moment(next(iter(self._commands.values()))) < now - KEPT_FOR:
            self._commands.popitem(last=False)
        for watch in list(self._watches.get(task, ())):
            if watch.command is None and not (command.waiting_only and watch.begun):
                watch.command = command
                watch.on_cancel()

    def _withdraw(self, key: bytes | None, envelope: Envelope) -> None:
        """Tasks that have not begun run after all; what was canceled stays canceled."""
        request_id = (key or b"").decode(errors="replace")
        self._commands.pop(TaskName(tenant=envelope.tenant, request_id=request_id, epoch=envelope.epoch), None)


@dataclass(frozen=True, slots=True)
class ControlListener:
    """Reads the control topic from its beginning on."""

    topic: str
    build_consumer: Callable[[], AIOKafkaConsumer]
    cancellations: Cancellations

    async def run(self) -> None:
        """Listen until cancelled, through outages; without the topic nothing can be canceled, and all else works."""
        backoff = Backoff(initial_seconds=1, maximum_seconds=MAX_REBUILD_SECONDS)
        while True:
            consumer = self.build_consumer()
            try:
                await consumer.start()
                backoff.reset()
                await self._listen(consumer)
            except KafkaError as error:
                log.warning("control_topic_away", topic=self.topic, error=repr(error))
            except Exception:
                # To raise would end an agent with tasks in flight, and canceling is not worth that.
                log.exception("control_reader_failed", topic=self.topic)
            finally:
                await stop_consumer(consumer)
            await backoff.sleep()

    async def _listen(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=int(POLL_SECONDS * 1000))).values():
                for record in records:
                    try:
                        self.cancellations.learn(record)
                    except Exception:
                        # The reader would start over, meet the record again and never read what follows it.
                        log.exception("control_record_failed", offset=record.offset)


def _moment(command: CancelCommand) -> datetime:
    return command.at if command.at.tzinfo is not None else command.at.replace(tzinfo=UTC)
