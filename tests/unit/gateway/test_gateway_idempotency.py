"""One record for one idempotency key: several processes of a gateway on one reservation file."""

import asyncio
import sqlite3
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxpool_contract.messages.derived import new_request_id, task_digest
from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.projection.barrier import BarrierNotReachedError
from fluxpool_gateway.store.reading import StoreUnavailableError
from fluxpool_gateway.store.reservations import (
    Outcome,
    Purge,
    RecordState,
    ReservationOperation,
    Reserve,
    Settle,
    Verdict,
    reservation_file,
)
from fluxpool_gateway.store.shared_file import SharedFile, SharedFileError
from fluxpool_gateway.store.task_state import TaskKey, TaskState, TaskStatus
from fluxpool_gateway.store.task_store import Heartbeat
from fluxpool_gateway.tasks.idempotency import FRESH_SECONDS, KEPT_SECONDS, Idempotency, Reservations, UnwrittenError
from kit.waiting import wait_until

ONE, TWO = ('{"prompt":"one"}', '{"prompt":"two"}')
KEY = TaskKey("key", "acme")


@dataclass(slots=True)
class Kafka:
    """The records, and the store, which projects them when the test calls `project`."""

    records: list[tuple[str, str]] = field(default_factory=list)
    projected: dict[str, str | None] = field(default_factory=dict)
    readable: bool = True
    complete: bool = True
    reached: bool = True
    may_acknowledge: asyncio.Event = field(default_factory=asyncio.Event)

    async def find(self, request_id: str, *, tenant: str) -> TaskState | None:
        if not self.readable:
            raise StoreUnavailableError("it is locked")
        if tenant != KEY.tenant or request_id not in self.projected:
            return None
        body = self.projected[request_id]
        return TaskState(
            request_id=request_id, tenant=tenant, version=1, status=TaskStatus.QUEUED, attempts=1, body=body
        )

    async def heartbeat(self) -> Heartbeat | None:
        return Heartbeat(pid=1, beat_at_ms=1, caught_up_at_ms=1 if self.complete else None, lag_records=0)

    async def passed(self) -> None:
        """The barrier."""
        if not self.reached:
            raise BarrierNotReachedError("timed out")
        self.project()

    def project(self) -> None:
        """Project all records into the store."""
        for request_id, body in self.records:
            self.projected.setdefault(request_id, body)


@dataclass(slots=True)
class Process:
    """One server process."""

    kafka: Kafka
    idempotency: Idempotency
    reservations: Reservations
    fault: Exception | None = None
    writing: asyncio.Event = field(default_factory=asyncio.Event)

    async def submit(self, body: str, *, key: str = KEY.request_id, tenant: str = KEY.tenant) -> int | str:
        """202, or the code of the refusal."""

        async def write() -> None:
            self.writing.set()
            await self.kafka.may_acknowledge.wait()
            if self.fault is not None:
                raise self.fault
            self.kafka.records.append((key, body))

        try:
            await self.idempotency.once(TaskKey(key, tenant), task_digest(body.encode()), write)
        except ProblemError as error:
            return error.code.value
        return 202


@pytest.fixture
async def kafka() -> Kafka:
    made = Kafka()
    made.may_acknowledge.set()
    return made


@pytest.fixture
async def start(kafka: Kafka, tmp_path: Path) -> AsyncIterator[Callable[[], Process]]:
    started: list[Process] = []

    def start_one() -> Process:
        reservations = Reservations(reservation_file(tmp_path / "tasks.reservations"))
        idempotency = Idempotency(reservations=reservations, store=kafka, barrier=kafka.passed, deadline_seconds=0.5)
        started.append(Process(kafka, idempotency, reservations))
        return started[-1]

    yield start_one
    for process in started:
        await process.reservations.close()


async def test_the_id_of_a_request_without_a_key_is_known_before_it_is_projected(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    process, made = start(), new_request_id()
    kafka.records.append((made, ONE))
    assert await process.submit(TWO, key=made) == "idempotency_conflict"
    assert await process.submit(ONE, key=made) == 202
    assert kafka.records == [(made, ONE)]


@pytest.mark.parametrize(
    ("make_id", "status"),
    [
        (new_request_id, "store_unavailable"),
        (lambda: str(uuid.uuid4()), 202),
        (lambda: "01890a5d-ac96-774b-bcce-b302099a8057", 202),
        (lambda: "fffffffff-fff-7fff-bfff-ffffffffffff", 202),
    ],
    ids=["just made", "random", "of 2023", "of the far future"],
)
async def test_only_an_id_that_a_gateway_may_just_have_made_waits_for_the_projection(
    kafka: Kafka, start: Callable[[], Process], make_id: Callable[[], str], status: int | str
) -> None:
    kafka.reached = False
    assert await start().submit(ONE, key=make_id()) == status


async def both(*answers: Awaitable[int | str]) -> list[int | str]:
    return list(await asyncio.gather(*answers))


async def test_equal_requests_at_once_write_one_record_and_are_all_accepted(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    processes = [start(), start(), start()]
    answers = await both(*(processes[number % 3].submit(ONE) for number in range(60)))
    assert answers == [202] * 60
    assert kafka.records == [("key", ONE)]


async def test_of_two_bodies_at_once_one_wins_and_the_other_is_refused_before_it_is_written(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    processes = [start(), start()]
    answers = await both(*(processes[number // 2 % 2].submit((ONE, TWO)[number % 2]) for number in range(60)))
    assert len(kafka.records) == 1
    winner = kafka.records[0][1]
    for number, answer in enumerate(answers):
        assert (answer == 202) == ((ONE, TWO)[number % 2] == winner)
    assert set(answers) <= {202, "idempotency_in_progress", "idempotency_conflict"}


async def test_another_body_is_refused_at_once_while_the_first_waits_for_kafka(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    first, second = start(), start()
    kafka.may_acknowledge.clear()
    waiting = asyncio.create_task(first.submit(ONE))
    await first.writing.wait()
    equal = asyncio.create_task(second.submit(ONE))
    assert await second.submit(TWO) == "idempotency_in_progress"
    assert (await first.submit(TWO), await second.submit(TWO)) == ("idempotency_in_progress",) * 2
    assert not waiting.done()
    assert not equal.done()
    kafka.may_acknowledge.set()
    assert (await waiting, await equal) == (202, 202)
    assert kafka.records == [("key", ONE)]
    assert (await first.submit(TWO), await second.submit(TWO)) == ("idempotency_conflict",) * 2


async def test_two_tenants_may_have_one_id(kafka: Kafka, start: Callable[[], Process]) -> None:
    processes = [start(), start()]
    own = [process.submit(ONE) for process in processes]
    others = [process.submit(TWO, tenant="other") for process in processes]
    assert await both(*own, *others) == [202] * 4
    assert sorted(kafka.records) == [("key", ONE), ("key", TWO)]
    # Nor is the task in the store another tenant's.
    kafka.projected["key"] = ONE
    assert await start().submit(TWO, tenant="third") == 202


async def test_a_key_is_known_after_a_restart_before_the_projection(kafka: Kafka, start: Callable[[], Process]) -> None:
    before = start()
    assert await before.submit(ONE) == 202
    # Applied in order, so the settlement of the request is in the file.
    await before.reservations.apply(Purge(accepted_before_ms=0))
    after = start()
    assert await both(after.submit(TWO), after.submit(ONE)) == ["idempotency_conflict", 202]
    assert kafka.records == [("key", ONE)]


async def test_an_unknown_outcome_may_be_repeated_with_the_same_body_alone(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    process = start()
    unknown = ProblemError(ProblemCode.QUEUE_UNAVAILABLE, "not confirmed")
    process.fault = unknown
    assert await process.submit(ONE) == "queue_unavailable"
    process.fault = None

    async def refused_for_good() -> bool:
        # The outcome is written after the response; until then the key is in use.
        return await start().submit(TWO) == "idempotency_conflict"

    await wait_until(refused_for_good, deadline_seconds=5, what="the unknown outcome to be written down")
    assert await start().submit(ONE) == 202
    assert kafka.records == [("key", ONE)]


async def test_a_record_that_was_certainly_not_written_frees_the_key(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    process = start()
    full = ProblemError(ProblemCode.QUEUE_UNAVAILABLE, "full")
    process.fault = UnwrittenError(full)
    assert await process.submit(ONE) == "queue_unavailable"
    process.fault = None
    assert await process.submit(TWO) == 202
    assert kafka.records == [("key", TWO)]


async def test_a_certain_refusal_does_not_make_an_earlier_unknown_outcome_known(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    process = start()
    problem = ProblemError(ProblemCode.QUEUE_UNAVAILABLE, "")
    for fault in (problem, UnwrittenError(problem)):
        process.fault = fault
        assert await process.submit(ONE) == "queue_unavailable"
    process.fault = None
    assert await process.submit(TWO) == "idempotency_conflict"
    assert kafka.records == []


@pytest.mark.parametrize("fault", [ValueError("never thought of"), asyncio.CancelledError()])
async def test_requests_that_wait_for_one_that_fails_get_its_error(
    kafka: Kafka, start: Callable[[], Process], fault: BaseException
) -> None:
    process = start()
    kafka.may_acknowledge.clear()
    failing = asyncio.create_task(process.submit(ONE))
    waiting = asyncio.create_task(process.submit(ONE))
    await asyncio.sleep(0)
    if isinstance(fault, Exception):
        process.fault = fault
        kafka.may_acknowledge.set()
    else:
        failing.cancel()
    with pytest.raises(type(fault)):
        await failing
    assert await waiting == "store_unavailable"


async def test_a_reservation_of_a_dead_process_is_granted_to_the_same_body(
    kafka: Kafka, start: Callable[[], Process], tmp_path: Path
) -> None:
    file = reservation_file(tmp_path / "tasks.reservations")
    digest = task_digest(ONE.encode())
    file.apply([Reserve(key=KEY, digest=digest, patience_ms=1)], now_ms=0)
    file.close()
    process = start()
    assert await process.submit(TWO) == "idempotency_conflict"
    assert await process.submit(ONE) == 202
    assert kafka.records == [("key", ONE)]


async def test_the_store_decides_where_another_gateway_wrote_first(kafka: Kafka, start: Callable[[], Process]) -> None:
    process = start()
    kafka.records.append(("key", TWO))
    kafka.project()
    assert await process.submit(ONE) == "idempotency_conflict"
    assert await process.submit(TWO) == 202
    assert kafka.records == [("key", TWO)]


async def test_while_the_store_is_being_built_a_key_is_taken_only_once_kafka_is_read_to_its_end(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    kafka.complete = kafka.reached = False
    kafka.records.append(("key", TWO))
    process = start()
    assert await process.submit(ONE) == "store_unavailable"
    kafka.reached = True
    assert await process.submit(ONE) == "idempotency_conflict"
    assert await process.submit(TWO) == 202
    assert await process.submit(ONE, key="another") == 202
    assert kafka.records == [("key", TWO), ("another", ONE)]


async def test_a_key_whose_task_is_known_by_its_result_alone_is_refused(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    kafka.projected["key"] = None
    assert await start().submit(ONE) == "idempotency_conflict"


async def test_a_result_before_its_task_does_not_change_the_response_to_the_sender(
    kafka: Kafka, start: Callable[[], Process]
) -> None:
    process = start()
    assert await process.submit(ONE) == 202
    kafka.projected["key"] = None
    assert await both(process.submit(TWO), process.submit(ONE)) == ["idempotency_conflict", 202]
    assert len(kafka.records) == 1


async def test_while_the_store_or_the_reservations_cannot_be_read_nothing_is_accepted(
    kafka: Kafka, start: Callable[[], Process], tmp_path: Path
) -> None:
    kafka.readable = False
    assert await start().submit(ONE) == "store_unavailable"
    kafka.readable = True
    (tmp_path / "tasks.reservations").mkdir()
    assert await start().submit(ONE) == "store_unavailable"
    assert kafka.records == []


async def test_a_record_that_is_lost_with_its_topic_is_written_again(
    kafka: Kafka, start: Callable[[], Process], tmp_path: Path
) -> None:
    file = reservation_file(tmp_path / "tasks.reservations")
    digest = task_digest(ONE.encode())
    operations: list[ReservationOperation] = [
        Reserve(key=KEY, digest=digest, patience_ms=0),
        Settle(key=KEY, digest=digest, standing=RecordState.ACCEPTED),
    ]
    file.apply(operations, now_ms=1)
    file.close()
    kafka.reached = False
    assert await start().submit(ONE) == 202
    assert kafka.records == [], "the store may only be behind"
    kafka.reached = True
    assert await start().submit(ONE) == 202
    assert kafka.records == [("key", ONE)]


# The file


def verdicts(file: SharedFile, *operations: ReservationOperation, now_ms: int = 1000) -> list[Verdict]:
    return [outcome.verdict for outcome in file.apply(operations, now_ms=now_ms)]


def reserve(digest: str, *, patience_ms: int = 9000, again: bool = False) -> Reserve:
    return Reserve(key=KEY, digest=digest, patience_ms=patience_ms, again=again)


def settle(digest: str, standing: RecordState | None) -> Settle:
    return Settle(key=KEY, digest=digest, standing=standing)


@pytest.mark.parametrize(
    ("before", "wanted", "verdict"),
    [
        ([], "a", Verdict.GRANTED),
        ([reserve("a")], "a", Verdict.SAME_IN_PROGRESS),
        ([reserve("a")], "b", Verdict.OTHER_IN_PROGRESS),
        ([reserve("a", patience_ms=-1)], "a", Verdict.GRANTED_AGAIN),
        ([reserve("a", patience_ms=-1)], "b", Verdict.OTHER),
        ([reserve("a"), settle("a", RecordState.ACCEPTED)], "a", Verdict.ACCEPTED),
        ([reserve("a"), settle("a", RecordState.ACCEPTED)], "b", Verdict.OTHER),
        ([reserve("a"), settle("a", RecordState.UNKNOWN)], "a", Verdict.GRANTED_AGAIN),
        ([reserve("a"), settle("a", RecordState.UNKNOWN)], "b", Verdict.OTHER),
        ([reserve("a"), settle("a", None)], "b", Verdict.GRANTED),
        ([reserve("a"), settle("b", None)], "b", Verdict.OTHER_IN_PROGRESS),
        ([reserve("a"), settle("b", RecordState.ACCEPTED)], "b", Verdict.OTHER_IN_PROGRESS),
        ([reserve("a"), settle("a", RecordState.ACCEPTED), settle("a", RecordState.UNKNOWN)], "a", Verdict.ACCEPTED),
        ([reserve("a"), settle("a", RecordState.ACCEPTED), settle("a", None)], "a", Verdict.ACCEPTED),
    ],
)  # fmt: skip
def test_the_verdict_of_a_reservation(
    tmp_path: Path, before: list[ReservationOperation], wanted: str, verdict: Verdict
) -> None:
    file = reservation_file(tmp_path / "f")
    file.apply(before, now_ms=1000)
    assert verdicts(file, reserve(wanted)) == [verdict]
    file.close()


def test_rows_are_purged_when_the_store_has_them_or_they_expire(tmp_path: Path) -> None:
    file = reservation_file(tmp_path / "f")
    operations: list[ReservationOperation] = [reserve("a"), settle("a", RecordState.ACCEPTED)]
    file.apply(operations, now_ms=1000)
    assert verdicts(file, Purge(accepted_before_ms=1000), reserve("a"))[-1] is Verdict.ACCEPTED
    assert verdicts(file, Purge(accepted_before_ms=1001), reserve("b"))[-1] is Verdict.GRANTED
    file.apply([settle("b", RecordState.UNKNOWN)], now_ms=1000)
    assert verdicts(file, Purge(accepted_before_ms=0), reserve("a"), now_ms=86_401_000)[-1] is Verdict.OTHER
    assert verdicts(file, Purge(accepted_before_ms=0), reserve("a"), now_ms=86_401_001)[-1] is Verdict.GRANTED
    file.close()


@pytest.mark.parametrize(
    "damage", [b"these are notes, and long ones at that; no database begins like this", b"\x00" * 9000]
)
def test_a_damaged_file_is_recreated_while_processes_use_it(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "f"
    files = [reservation_file(path), reservation_file(path)]
    for file in files:
        file.apply([], now_ms=1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"f{suffix}").unlink(missing_ok=True)
    path.unlink()
    path.write_bytes(damage)
    assert verdicts(files[0], reserve("a")) == [Verdict.GRANTED]
    assert verdicts(files[1], reserve("a")) == [Verdict.SAME_IN_PROGRESS]
    for file in files:
        file.close()


def test_a_deleted_file_is_recreated_and_used_by_all_processes(tmp_path: Path) -> None:
    files = [reservation_file(tmp_path / "f"), reservation_file(tmp_path / "f")]
    for file in files:
        file.apply([], now_ms=1000)
    (tmp_path / "f").unlink()
    assert [verdicts(file, reserve("a")) for file in files] == [[Verdict.GRANTED], [Verdict.SAME_IN_PROGRESS]]
    for file in files:
        file.close()


def test_a_file_that_cannot_be_used_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(SharedFileError, match="cannot be used"):
        reservation_file(tmp_path / "f").apply([reserve("a")], now_ms=1000)


def test_a_file_of_another_release_is_recreated(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "f") as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    file = reservation_file(tmp_path / "f")
    assert verdicts(file, reserve("a")) == [Verdict.GRANTED]
    file.close()


SETTLED = st.sampled_from([RecordState.ACCEPTED, RecordState.UNKNOWN, None])


@given(st.lists(st.tuples(st.sampled_from("ab"), SETTLED), max_size=30))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_id_is_never_granted_to_two_bodies_of_which_one_may_be_written(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, RecordState | None]]
) -> None:
    file = reservation_file(tmp_path_factory.mktemp("reservations") / "f")
    perhaps_written: set[str] = set()
    for digest, standing in steps:
        (verdict,) = verdicts(file, reserve(digest))
        if verdict in {Verdict.GRANTED, Verdict.GRANTED_AGAIN}:
            assert perhaps_written <= {digest}
            known = standing if verdict is Verdict.GRANTED else standing or RecordState.UNKNOWN
            file.apply([settle(digest, known)], now_ms=1000)
            if known is not None:
                perhaps_written.add(digest)
    file.close()


def test_threads_of_many_processes_agree(tmp_path: Path) -> None:
    granted: list[Outcome] = []

    def run(digest: str) -> None:
        file = reservation_file(tmp_path / "f")
        for number in range(50):
            wanted = Reserve(key=TaskKey(str(number), "acme"), digest=digest, patience_ms=9000)
            granted.extend(out for out in file.apply([wanted], now_ms=1000) if out.verdict is Verdict.GRANTED)
        file.close()

    threads = [threading.Thread(target=run, args=(digest,)) for digest in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(granted) == 50


def test_a_reservation_is_kept_until_the_store_must_have_its_task() -> None:
    assert KEPT_SECONDS > 2 * FRESH_SECONDS
