"""Every task ends with one result, a dead letter if it failed, and its offset, for every content of the store."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxpool_contract.header_names import EPOCH
from fluxpool_contract.messages import derived
from fluxpool_contract.messages.dead_letter import Disposition
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_contract.problems import ErrorClass
from fluxpool_transport.storage.task_objects import Claim, Claimed, Manifest, delete_task_objects
from fluxpool_worker.agent.task import ending_writer
from fluxpool_worker.agent.task.holds import HoldExpiredError
from fluxpool_worker.agent.task.outgoing_records import Failure
from fluxpool_worker.agent.task.publisher import OutgoingRecord
from fluxpool_worker.agent.task.task_records import TaskRecord
from fluxpool_worker.agent.task.task_store import TaskStore
from fluxpool_worker.engine.protocol import EncodedImage, GenerationInputs
from kit.workers.task_flow import (
    MAX_ATTEMPTS,
    REQUEST_ID,
    TASK,
    FlowBench,
    ScriptedEngine,
    attempt,
    claim_key,
    deadline_passed,
    prefix_of,
    task_record,
)

MANIFESTS = ("absent", "good", "corrupt")
CLAIMS = ("absent", "own", "other", "corrupt")
ENDS = {
    "deadline": ("expired", "deadline-exceeded"),
    "attempts used up": ("failed", "generation-failed"),
    "retry refused": ("failed", "generation-failed"),
    "canceled": ("canceled", "canceled"),
}
VALUE = json.dumps(TASK).encode()


@pytest.fixture
def bench(tmp_path: Path) -> FlowBench:
    return FlowBench(tmp_path)


def own_claim(**changed: Any) -> bytes:
    claim = Claim(
        request_id=REQUEST_ID,
        tenant="default",
        epoch=0,
        digest=derived.task_digest(VALUE),
        prefix=prefix_of(task_record()),
    )
    return claim.model_copy(update=changed).to_json()


def good_manifest(**changed: Any) -> bytes:
    manifest = Manifest(
        request_id=REQUEST_ID,
        tenant="default",
        epoch=0,
        digest=derived.task_digest(VALUE),
        event_id=derived.result_event_id("default", REQUEST_ID),
        result=GenerationResult(request_id=REQUEST_ID, image_url="http://images/0.png", status=ResultStatus.SUCCESS),
    )
    return manifest.model_copy(update=changed).to_json()


def lay_out(bench: FlowBench, *, manifest: str, claim: str) -> None:
    contents = {"own": own_claim(), "other": own_claim(digest="another body's"), "corrupt": b"{garbage"}
    if claim in contents:
        bench.store(claim_key(), contents[claim])
    manifests = {"good": good_manifest(), "corrupt": b"{garbage"}
    if manifest in manifests:
        bench.store(derived.manifest_key(prefix_of(task_record())), manifests[manifest])


async def run_to_its_end(bench: FlowBench, end: str) -> None:
    headers = []
    match end:
        case "deadline":
            headers = [deadline_passed()]
        case "attempts used up":
            headers = [attempt(MAX_ATTEMPTS)]
        case "retry refused":
            bench.topics.refuses = lambda record: record.topic in bench.settings.topics.retry
        case "canceled":
            bench.cancel()
    await bench.run(task_record(headers=headers))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("claim", CLAIMS)
@pytest.mark.parametrize("manifest", MANIFESTS)
async def test_every_task_ends_with_one_result(bench: FlowBench, manifest: str, claim: str, end: str) -> None:
    lay_out(bench, manifest=manifest, claim=claim)
    await run_to_its_end(bench, end)

    assert bench.lane.ends[-1] == "finished"
    assert bench.lane.ends.count("finished") == 1
    assert bench.retries == []
    if claim == "other":
        # The id belongs to another task, and the result with this id is that task's.
        assert bench.results == []
        assert [dead_letter.error_code for dead_letter in bench.dead_letters] == ["id-conflict"]
        return
    [result] = bench.results
    assert result["request_id"] == REQUEST_ID
    if manifest == "good" and claim != "corrupt":
        assert result["status"] == "success"
        assert bench.dead_letters == []
        return
    status, code = ENDS[end]
    is_corrupt = "corrupt" in (manifest, claim)
    if status == "failed" and (claim == "corrupt" or (claim, manifest) == ("own", "corrupt")):
        code = "corrupt-object"
    assert (result["status"], result["error"]["code"]) == (status, code)
    if is_corrupt or status == "failed":
        [dead_letter] = bench.dead_letters
        assert dead_letter.error_code == code
        assert dead_letter.request_id == REQUEST_ID
        assert not is_corrupt or "move it away" in dead_letter.message
    else:
        assert bench.dead_letters == []


@pytest.mark.parametrize("claim", ["absent", "own", "corrupt"])
async def test_a_task_that_may_be_tried_again_has_no_result_yet(bench: FlowBench, claim: str) -> None:
    lay_out(bench, manifest="absent", claim=claim)
    await bench.run(task_record())
    assert len(bench.retries) == 1
    assert (bench.results, bench.dead_letters) == ([], [])
    assert bench.lane.ends[-1] == "finished"


@pytest.mark.parametrize(
    ("claim", "code"), [("absent", "invalid-field"), ("corrupt", "invalid-field"), ("other", "id-conflict")]
)
async def test_an_invalid_task_ends_with_a_result_unless_its_id_belongs_to_another_task(
    bench: FlowBench, claim: str, code: str
) -> None:
    lay_out(bench, manifest="absent", claim=claim)
    await bench.run(task_record(json.dumps(TASK | {"steps": -1}).encode()))
    assert [dead_letter.error_code for dead_letter in bench.dead_letters] == [code]
    assert [result["error"]["code"] for result in bench.results] == ([] if claim == "other" else [code])
    assert bench.lane.ends == ["finished"]


@pytest.mark.parametrize(
    ("key", "request_id"), [(b"task-1", "task-1"), (b"no id!", None), (b"\xff", None), (None, None)]
)
async def test_a_record_without_a_value_is_answered_by_its_key(
    bench: FlowBench, key: bytes | None, request_id: str | None
) -> None:
    await bench.run(task_record(None, key=key))
    assert [result["request_id"] for result in bench.results] == [request_id]
    assert [dead_letter.request_id for dead_letter in bench.dead_letters] == [request_id]


async def test_a_tombstone_does_not_change_the_result_of_a_claimed_task(bench: FlowBench) -> None:
    lay_out(bench, manifest="good", claim="own")
    await bench.run(task_record(None, key=REQUEST_ID.encode()))
    assert bench.results == []
    assert bench.outcomes == ["id-conflict"]


async def test_a_deleted_task_that_is_delivered_again_is_neither_drawn_nor_answered(bench: FlowBench) -> None:
    bench.engine.fails = False
    await bench.run(task_record())
    await delete_task_objects(bench.objects, tenant="default", request_id=REQUEST_ID, epoch=0)
    kept = bench.files()
    await bench.run(task_record())
    assert (bench.outcomes, bench.lane.ends[-1]) == (["success", "deleted"], "finished")
    assert (bench.engine.jobs, len(bench.results), bench.files()) == (1, 1, kept)


async def test_a_run_that_ends_after_its_task_was_deleted_leaves_no_image_and_no_result(bench: FlowBench) -> None:
    bench.engine.fails = False
    encode = bench.engine.encode

    def delete_meanwhile(inputs: GenerationInputs) -> EncodedImage:
        # Another worker has ended the task, and its objects are gone: this one lost its membership, and knows nothing.
        bench.store(derived.deletion_key("default", REQUEST_ID), b"{}")
        return encode(inputs)

    bench.engine.encode = delete_meanwhile
    await bench.run(task_record())
    assert (bench.outcomes, bench.lane.ends[-1], bench.results) == (["deleted"], "finished", [])
    assert bench.files() == {claim_key(), derived.deletion_key("default", REQUEST_ID)}


@pytest.mark.parametrize("end", ENDS)
async def test_a_deleted_task_ends_as_deleted_whatever_else_would_end_it(bench: FlowBench, end: str) -> None:
    lay_out(bench, manifest="absent", claim="own")
    await delete_task_objects(bench.objects, tenant="default", request_id=REQUEST_ID, epoch=0)
    await run_to_its_end(bench, end)
    assert (bench.outcomes, bench.engine.jobs, bench.results) == (["deleted"], 0, [])


async def test_a_replay_of_a_deleted_task_is_a_task_of_its_own(bench: FlowBench) -> None:
    bench.engine.fails = False
    await bench.run(task_record())
    await delete_task_objects(bench.objects, tenant="default", request_id=REQUEST_ID, epoch=0)
    await bench.run(task_record(headers=[(EPOCH, b"1")]))
    assert bench.outcomes == ["success", "success"]


async def test_a_task_whose_deletion_was_cut_short_is_answered_by_its_manifest(bench: FlowBench) -> None:
    lay_out(bench, manifest="good", claim="own")
    bench.store(derived.deletion_key("default", REQUEST_ID), b"{}")
    await bench.run(task_record())
    assert (bench.outcomes, bench.engine.jobs) == (["success"], 0)


@pytest.mark.parametrize(
    "changed",
    [
        {"prefix": "../../etc"},
        {"prefix": "default/2026/04/05/another-task"},
        {"prefix": "another/2026/04/05/task-1"},
        {"prefix": "default/./04/05/task-1"},
        {"prefix": ""},
        {"request_id": "another-task"},
        {"tenant": "another"},
    ],
)
async def test_a_claim_with_the_folder_of_another_task_is_not_used(bench: FlowBench, changed: dict[str, str]) -> None:
    bench.store(claim_key(), own_claim(**changed))
    await bench.run(task_record(headers=[attempt(MAX_ATTEMPTS)]))
    assert [result["error"]["code"] for result in bench.results] == ["corrupt-object"]


@pytest.mark.parametrize(
    "changed",
    [
        {"request_id": "another-task"},
        {"result": GenerationResult(request_id="another-task", image_url="x", status=ResultStatus.SUCCESS)},
    ],
)
async def test_a_manifest_of_another_task_is_not_used(bench: FlowBench, changed: dict[str, Any]) -> None:
    lay_out(bench, manifest="absent", claim="own")
    bench.store(derived.manifest_key(prefix_of(task_record())), good_manifest(**changed))
    await bench.run(task_record(headers=[attempt(MAX_ATTEMPTS)]))
    assert [result["error"]["code"] for result in bench.results] == ["corrupt-object"]


@pytest.mark.parametrize("part", [ScriptedEngine, TaskStore])
async def test_an_unforeseen_error_costs_the_task_an_attempt_and_not_the_worker(
    bench: FlowBench, monkeypatch: pytest.MonkeyPatch, part: type
) -> None:
    async def fail(*_arguments: object, **_named: object) -> None:
        raise RuntimeError("unexpected")

    monkeypatch.setattr(part, "submit" if part is ScriptedEngine else "claim", fail)
    await bench.run(task_record())
    assert (len(bench.retries), bench.results, bench.dead_letters) == (1, [], [])

    await bench.run(task_record(headers=[attempt(MAX_ATTEMPTS)]))
    assert [(result["status"], result["error"]["code"]) for result in bench.results] == [
        ("failed", "generation-failed")
    ]
    assert [dead_letter.message for dead_letter in bench.dead_letters] == ["the worker met an error: RuntimeError"]
    assert bench.lane.ends.count("finished") == 2


@pytest.fixture
def quick_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending_writer, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(ending_writer, "MAX_RETRY_SECONDS", 0.01)


@pytest.mark.usefixtures("quick_tries")
@pytest.mark.parametrize("topic", ["retry", "dead_letters", "results"])
@pytest.mark.parametrize("value", [VALUE, b"no json"])
async def test_an_unexpected_error_while_an_ending_is_written_repeats_that_write_alone(
    bench: FlowBench, topic: str, value: bytes
) -> None:
    name = bench.settings.topics.retry[0] if topic == "retry" else getattr(bench.settings.topics, topic)
    errors = [RuntimeError("unexpected"), RuntimeError("unexpected again")]

    def fail_twice(record: OutgoingRecord) -> bool:
        if record.topic == name and errors:
            raise errors.pop()
        return False

    bench.topics.refuses = fail_twice
    headers = [] if topic == "retry" else [attempt(MAX_ATTEMPTS)]
    await bench.run(task_record(value, headers=headers))
    is_retried = topic == "retry" and value == VALUE
    assert errors == [] or (topic == "retry" and not is_retried)
    assert len(bench.retries) == is_retried
    assert len(bench.results) == len(bench.dead_letters) == (not is_retried)
    assert bench.lane.ends[-1] == "finished"


@pytest.mark.usefixtures("quick_tries")
async def test_an_unexpected_error_of_the_store_does_not_end_a_refused_record_without_it(
    bench: FlowBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [RuntimeError("unexpected")]
    claim = TaskStore.claim

    async def fail_once(store: TaskStore, task: TaskRecord, **named: Any) -> Claimed:
        if errors:
            raise errors.pop()
        return await claim(store, task, **named)

    monkeypatch.setattr(TaskStore, "claim", fail_once)
    lay_out(bench, manifest="good", claim="own")
    await bench.run(task_record(json.dumps(TASK | {"steps": -1}).encode()))
    assert bench.results == []
    assert bench.outcomes == ["id-conflict"]


async def test_an_ending_that_can_never_be_written_releases_its_record_at_the_limit_of_holds(tmp_path: Path) -> None:
    bench = FlowBench(tmp_path, hold_limit_seconds=0)

    def fail(_record: OutgoingRecord) -> bool:
        raise RuntimeError("unexpected")

    bench.topics.refuses = fail
    with pytest.raises(HoldExpiredError, match="an ending could not be written: RuntimeError"):
        await bench.run(task_record(b"no json"))
    assert bench.lane.ends == ["released"]


async def test_a_stored_failure_without_a_reason_has_a_result(bench: FlowBench) -> None:
    lay_out(bench, manifest="absent", claim="own")
    failed = GenerationResult(request_id=REQUEST_ID, image_url=None, status=ResultStatus.FAILED)
    bench.store(derived.manifest_key(prefix_of(task_record())), good_manifest(result=failed))
    await bench.run(task_record())
    assert len(bench.results) == 1
    assert len(bench.dead_letters) == 1


# Records that topics refuse


def size_limit(limit_bytes: int, topic: str) -> Any:
    def is_refused(record: OutgoingRecord) -> bool:
        return record.topic == topic and len(record.value or b"") + sum(len(v) for _, v in record.headers) > limit_bytes

    return is_refused


async def test_a_task_with_thousands_of_problems_is_refused_in_a_result_that_fits(bench: FlowBench) -> None:
    bench.topics.refuses = size_limit(16 * 1024, bench.settings.topics.results)
    body = TASK | {"metadata": {"": 1, **{str(number): number for number in range(6000)}}}
    await bench.run(task_record(json.dumps(body).encode()))
    assert [result["status"] for result in bench.results] == ["failed"]
    assert bench.lane.ends == ["finished"]


@pytest.mark.parametrize("limit_bytes", [1_500, 1_000, 700])
async def test_a_result_that_its_topic_refuses_is_sent_shorter(bench: FlowBench, limit_bytes: int) -> None:
    bench.engine.fails = False
    bench.topics.refuses = size_limit(limit_bytes, bench.settings.topics.results)
    labels = {f"label-{number}": "x" * 500 for number in range(10)}
    await bench.run(task_record(json.dumps(TASK | {"metadata": labels}).encode()))
    [result] = bench.results
    assert (result["request_id"], result["status"]) == (REQUEST_ID, "success")
    assert result["image_url"]
    assert bench.refused_topics == []


@pytest.mark.parametrize("topic", ["results", "dead_letters"])
async def test_a_topic_that_refuses_the_shortest_record_blocks_no_other_task(bench: FlowBench, topic: str) -> None:
    name = getattr(bench.settings.topics, topic)
    bench.topics.refuses = lambda record: record.topic == name
    await bench.run(task_record(b"no json"))
    assert bench.lane.ends == ["finished"]
    assert bench.refused_topics == [name]
    assert len(bench.results) + len(bench.dead_letters) == 1


async def test_a_dead_letter_whose_original_is_refused_points_to_the_store(bench: FlowBench) -> None:
    bench.topics.refuses = size_limit(2_000, bench.settings.topics.dead_letters)
    await bench.run(task_record(b"x" * 5_000))
    [dead_letter] = bench.dead_letters
    assert dead_letter.object is not None
    assert (bench.folder / dead_letter.object).read_bytes() == b"x" * 5_000


@pytest.mark.parametrize("value", [VALUE, b"no json"])
async def test_a_record_that_cannot_leave_its_retry_topic_ends_with_a_result(bench: FlowBench, value: bytes) -> None:
    failure = Failure(
        error_class=ErrorClass.INFRA, code="refused-by-topic", disposition=Disposition.EXHAUSTED, message="no topic"
    )
    await bench.fail(task_record(value), failure)
    assert [result["status"] for result in bench.results] == ["failed"]
    assert len(bench.dead_letters) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    value=st.none()
    | st.binary()
    | st.fixed_dictionaries({"request_id": st.text()}).map(lambda v: json.dumps(v).encode()),
    key=st.none() | st.binary(),
    headers=st.lists(st.tuples(st.text(), st.none() | st.binary()), max_size=4),
    timestamp=st.integers(-(2**63), 2**63 - 1),
)
async def test_any_record_has_one_result(
    tmp_path: Path, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], timestamp: int
) -> None:
    bench = FlowBench(tmp_path / hashlib.sha256(repr((value, key, headers, timestamp)).encode()).hexdigest())
    await bench.run(task_record(value, key=key, headers=headers, timestamp=timestamp))
    assert len(bench.results) == 1
    assert len(bench.dead_letters) == 1
    assert bench.lane.ends == ["finished"]
