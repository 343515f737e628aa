"""Replay jobs: a dry run, outcomes of every dead letter, a process that is killed, and one that takes over."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from fluxpool_contract.messages.resolution import ResolutionAction
from fluxpool_gateway.dead_letters.jobs import LEASE_SECONDS, Item, ItemOutcome, Job, ReplayJobs, replay_file
from fluxpool_gateway.dead_letters.replaying import ReplayPlan
from fluxpool_gateway.dead_letters.service import DeadLetters
from fluxpool_transport.dlq.prepare import PreparedReplay, prepare_replay
from fluxpool_transport.dlq.reading import entry_of
from kit.gateways.dead_letter_topic import letter_at
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings
from kit.waiting import wait_until

LETTERS = 5_000
SENT_BEFORE_THE_KILL = 1_700


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


@asynccontextmanager
async def working(dead_letters: DeadLetters) -> AsyncIterator[None]:
    """A server process that works on jobs."""
    task = asyncio.create_task(dead_letters.runner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def replay(gateway: Gateway, expected: int = 202, **body: Any) -> Any:
    answer = await gateway.one.ask("POST", "/v1/dlq/replay", gateway.admin, json={"rate_per_second": 10_000, **body})
    assert answer.status_code == expected, answer.text
    return answer.json()


async def job(gateway: Gateway, job_id: str, query: str = "") -> Any:
    # Any process tells of it.
    answer = await gateway.two.ask("GET", f"/v1/dlq/replays/{job_id}{query}", gateway.admin)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def ended(gateway: Gateway, job_id: str) -> Any:
    async def has_ended() -> bool:
        return bool((await job(gateway, job_id, "?limit=1"))["state"] == "ended")

    await wait_until(has_ended, deadline_seconds=60, what="the job to end")
    return await job(gateway, job_id)


async def states(gateway: Gateway) -> dict[str, str]:
    answer = await gateway.one.ask("GET", "/v1/dlq?order=asc", gateway.admin)
    return {item["id"]: item["state"] for item in answer.json()["data"]}


WIDE_ENOUGH = {"width": 96}


async def test_a_dry_run_counts_what_would_be_sent_and_why_the_rest_would_be_refused(gateway: Gateway) -> None:
    gateway.dead_letters.add(
        letter_at(0),
        letter_at(1, b'{"request_id": "r", "prompt": "a fox"}', error_code="out-of-memory"),
        letter_at(2, b"\xff", error_code="undecodable"),
        letter_at(3),
    )
    told = await replay(gateway, 200, filter={}, dry_run=True)
    assert (told["matching"], told["to_send"], told["refused"]) == (4, 1, 3)
    assert told["by_topic"] == {"flux-generation-tasks": 1}
    assert told["by_error_code"] == {"invalid-field": 2, "out-of-memory": 1, "undecodable": 1}
    assert [(problem["field"], problem["count"], problem["example"]) for problem in told["problems"]] == [
        ("width", 2, "0/0"),
        ("", 1, "0/2"),
    ]
    assert [task["id"] for task in told["tasks"]] == ["0/1"]
    some = await replay(gateway, 200, filter={"error_code": ["invalid-field"]}, max=1, dry_run=True, patch=WIDE_ENOUGH)
    assert (some["matching"], some["to_send"], some["refused"]) == (2, 1, 0)
    assert gateway.dead_letters.sent == []
    assert set((await states(gateway)).values()) == {"open"}


async def test_a_job_tells_what_became_of_each_dead_letter(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1), letter_at(2, b"\xff"), letter_at(3))
    gateway.dead_letters.resolve(entry_of(gateway.dead_letters.records[3]), ResolutionAction.DISCARDED)
    created = await replay(gateway, filter={}, patch=WIDE_ENOUGH, priority="vip")
    assert (created["state"], created["total"]) == ("waiting", 3)
    async with working(gateway.one.dead_letters):
        told = await ended(gateway, created["job_id"])
    assert (told["sent"], told["refused"], told["skipped"]) == (2, 1, 0)
    assert [(item["id"], item["outcome"]) for item in told["items"]] == [
        ("0/0", "sent"),
        ("0/1", "sent"),
        ("0/2", "refused"),
    ]
    assert told["items"][0]["detail"]["topic"] == "flux-generation-tasks-vip"
    assert told["items"][0]["detail"]["request_id"] == "wide-0"
    assert told["items"][2]["detail"]["problems"][0]["message"]
    assert [sent.request_id for sent in gateway.dead_letters.sent] == ["wide-0", "wide-1"]
    assert await states(gateway) == {"0/0": "replayed", "0/1": "replayed", "0/2": "open", "0/3": "discarded"}
    resolved = gateway.dead_letters.resolutions()[-1]
    assert (resolved.job_id, resolved.patch) == (created["job_id"], WIDE_ENOUGH)
    assert resolved.by
    metrics = (await gateway.one.ask("GET", "/metrics")).text
    assert 'fluxpool_gateway_dead_letters_total{outcome="replayed"} 2.0' in metrics
    assert 'fluxpool_gateway_dead_letters_total{outcome="refused"} 1.0' in metrics


async def test_a_task_that_was_replayed_too_often_is_refused_unless_it_is_forced(gateway: Gateway) -> None:
    value = b'{"request_id": "r", "prompt": "a fox"}'
    gateway.dead_letters.add(letter_at(0, value, original=[("fluxpool-epoch", b"3")]))
    async with working(gateway.one.dead_letters):
        refused = await ended(gateway, (await replay(gateway, ids=["0/0"]))["job_id"])
        assert refused["items"][0]["detail"]["problems"][0]["field"] == "fluxpool-epoch"
        assert gateway.dead_letters.sent == []
        forced = await ended(gateway, (await replay(gateway, ids=["0/0"], force=True))["job_id"])
    assert forced["sent"] == 1
    assert [sent.epoch for sent in gateway.dead_letters.sent] == [4]


async def test_bodies_that_choose_nothing_or_cannot_be_applied_are_refused(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1))
    deep: Any = {}
    for _ in range(30):
        deep = {"a": deep}
    bodies: list[Any] = [
        {}, {"ids": []}, {"ids": ["0/0"], "filter": {}}, {"ids": ["0-0"]}, {"filter": {"state": ["open"]}},
        {"filter": {}, "max": 0}, {"filter": {}, "max": 10_001}, {"filter": {}, "rate_per_second": 0},
        {"filter": {}, "patch": {"request_id": "same"}}, {"filter": {}, "patch": deep}, {"filter": {}, "patch": []},
        {"filter": {}, "patch": {"prompt": "x" * 70_000}}, {"filter": {}, "drop_headers": ["fluxpool-dlq-stack"]},
        {"filter": {}, "priority": "low"}, {"filter": {}, "per_s": 1},
    ]  # fmt: skip
    for body in bodies:
        answer = await gateway.one.ask("POST", "/v1/dlq/replay", gateway.admin, json=body)
        assert answer.status_code == 422, (body, answer.text)
        assert answer.json()["errors"], body
    half = b'{"filter": {}, "patch": {"prompt": "\\ud800"}}'
    headers = {"content-type": "application/json"}
    answer = await gateway.one.ask("POST", "/v1/dlq/replay", gateway.admin, content=half, headers=headers)
    assert answer.status_code == 422, answer.text
    assert gateway.dead_letters.sent == []


def test_half_a_character_in_a_patched_task_is_refused_by_its_decoding() -> None:
    record = letter_at(0, b'{"request_id": "r", "prompt": "\\ud800"}')
    choices = ReplayPlan(patch=WIDE_ENOUGH, rate_per_second=1).choices(frozenset())
    outcome = prepare_replay(entry_of(record), record, choices, topic="flux-dlq", now=entry_of(record).stored_at)
    assert not isinstance(outcome, PreparedReplay)


async def test_a_job_goes_on_after_kafka_was_away(gateway: Gateway) -> None:
    gateway.dead_letters.add(*map(letter_at, range(3)))
    failing = iter((False, True))

    def fail_once(_prepared: PreparedReplay) -> None:
        if next(failing, False):
            raise KafkaConnectionError

    gateway.dead_letters.before_resolution = fail_once
    created = await replay(gateway, filter={}, patch=WIDE_ENOUGH)
    async with working(gateway.one.dead_letters):
        told = await ended(gateway, created["job_id"])
    assert told["sent"] == 3
    requests = [sent.request_id for sent in gateway.dead_letters.sent]
    assert requests == ["wide-0", "wide-1", "wide-1", "wide-2"]
    twice = [sent for sent in gateway.dead_letters.sent if sent.request_id == "wide-1"]
    assert twice[0] == twice[1], "the second copy is the same record"


async def test_jobs_that_nothing_is_left_of_end_at_once(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0))
    async with working(gateway.one.dead_letters):
        created = await replay(gateway, filter={"pool": ["none"]})
        assert (await ended(gateway, created["job_id"]))["total"] == 0
    assert (await gateway.one.ask("GET", "/v1/dlq/replays/none", gateway.admin)).status_code == 404


async def test_jobs_are_listed_by_any_process_the_newest_first_with_their_counts(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1))

    async def listed(query: str) -> Any:
        return (await gateway.two.ask("GET", f"/v1/dlq/replays{query}", gateway.admin)).json()

    assert await listed("") == {"data": [], "next_cursor": None}
    created = [(await replay(gateway, ids=[name], patch=WIDE_ENOUGH))["job_id"] for name in ("0/0", "0/1", "0/0")]
    await cancel(gateway, created[0], 200)
    first = await listed("?limit=2")
    assert [job["job_id"] for job in first["data"]] == created[:0:-1]
    assert [(job["state"], job["items"], job["next"]) for job in first["data"]] == [("waiting", [], None)] * 2
    second = await listed(f"?limit=2&cursor={first['next_cursor']}")
    assert [(job["job_id"], job["state"], job["canceled"]) for job in second["data"]] == [(created[0], "ended", 1)]
    assert second["next_cursor"] is None
    reader = await gateway.create("read")
    assert (await gateway.one.ask("GET", "/v1/dlq/replays", reader)).status_code == 403


# A process that is killed


@dataclass
class Clock:
    now_ms: int = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


async def test_a_job_belongs_to_one_process_until_its_lease_has_run_out(tmp_path: Path) -> None:
    clock = Clock()
    jobs = ReplayJobs(replay_file(tmp_path / "replays"), now_ms=clock)
    first = Job(job_id="a", created_at_ms=1, created_by=None, plan="{}", total=2)
    await jobs.create(first, ["0/0", "0/1"])
    await jobs.create(Job(job_id="b", created_at_ms=2, created_by=None, plan="{}", total=0), [])
    claimed = await jobs.claim("one")
    assert claimed is not None
    assert [item.record for item in claimed.items] == ["0/0", "0/1"]
    assert await jobs.claim("two") is None, "nor the next job: one at a time"
    clock.now_ms += int(LEASE_SECONDS * 1000) - 1
    assert await jobs.claim("two") is None
    assert await jobs.save("a", "one", [Item(0, "0/0", ItemOutcome.SENT)]), "which renews the lease"
    clock.now_ms += int(LEASE_SECONDS * 1000)
    taken = await jobs.claim("two")
    assert taken is not None
    assert [item.record for item in taken.items] == ["0/1"]
    assert not await jobs.save("a", "one", [Item(1, "0/1", ItemOutcome.SKIPPED)]), "it is another process's now"
    assert await jobs.save("a", "two", [Item(1, "0/1", ItemOutcome.SENT)], end=True)
    read = await jobs.read("a", limit=10)
    assert read is not None
    assert read.counts == {ItemOutcome.SENT: 2}
    following = await jobs.claim("one")
    assert following is not None
    assert following.job_id == "b"
    await jobs.close()


async def cancel(gateway: Gateway, job_id: str, expected: int) -> Any:
    answer = await gateway.two.ask("POST", f"/v1/dlq/replays/{job_id}/cancel", gateway.admin)
    assert answer.status_code == expected, answer.text
    return answer.json()


def outcomes(told: Any) -> list[str]:
    return [item["outcome"] for item in told["items"]]


async def test_a_job_that_waits_is_canceled_at_once_and_its_dead_letters_stay_open(gateway: Gateway) -> None:
    gateway.dead_letters.add(letter_at(0), letter_at(1))
    created = await replay(gateway, filter={}, patch=WIDE_ENOUGH)
    told = await cancel(gateway, created["job_id"], 200)
    assert (told["state"], told["canceled"], outcomes(told)) == ("ended", 2, ["canceled"] * 2)
    assert told["items"][0]["detail"]["reason"] == f"the job was canceled by {told['canceled_by']}"
    assert await cancel(gateway, created["job_id"], 200) == told
    async with working(gateway.one.dead_letters):
        following = await replay(gateway, ids=["0/1"], patch=WIDE_ENOUGH)
        await ended(gateway, following["job_id"])
    assert await states(gateway) == {"0/0": "open", "0/1": "replayed"}
    await cancel(gateway, "unknown", 404)


async def test_a_job_that_runs_is_canceled_between_two_tasks(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxpool_gateway.dead_letters.replaying.SAVE_SECONDS", 0.0)
    topic, jobs = gateway.dead_letters, gateway.one.dead_letters.jobs
    topic.add(*map(letter_at, range(4)))
    created = await replay(gateway, filter={}, patch=WIDE_ENOUGH)

    async def canceled_before_the_second() -> None:
        if len(topic.sent) == 1:
            await cancel(gateway, created["job_id"], 202)
            # The notes of the job stand in the same queue as these reads, and are made one after the other.
            for _ in range(6):
                await jobs.read(created["job_id"], limit=0)

    topic.before_task = canceled_before_the_second
    async with working(gateway.one.dead_letters):
        told = await ended(gateway, created["job_id"])
    assert outcomes(told) == ["sent", "sent", "canceled", "canceled"], "what is being sent gets its resolution"
    assert (told["sent"], told["canceled"], told["skipped"]) == (2, 2, 0)


async def test_a_canceled_job_of_a_killed_process_tells_what_that_has_sent(gateway: Gateway, tmp_path: Path) -> None:
    topic = gateway.dead_letters
    topic.add(*map(letter_at, range(3)))
    created = await replay(gateway, filter={}, patch=WIDE_ENOUGH)
    # Its lease has run out, and it has saved nothing.
    killed = ReplayJobs(replay_file(tmp_path / "tasks.sqlite.replays"), now_ms=lambda: 1)
    claimed = await killed.claim("killed")
    await killed.close()
    assert claimed is not None
    choices = ReplayPlan.model_validate_json(claimed.plan).choices(frozenset())
    async with topic.replayer(by="ops", job_id=claimed.job_id) as replayer:
        entries = (await topic.entries(since=None))[:1]
        assert [outcome async for outcome in replayer.replay(entries, choices, per_second=1e9)]
    assert (await cancel(gateway, created["job_id"], 202))["state"] == "waiting"
    async with working(gateway.two.dead_letters):
        told = await ended(gateway, created["job_id"])
    assert outcomes(told) == ["sent", "canceled", "canceled"]
    assert len(topic.sent) == 1


async def test_five_thousand_are_replayed_although_a_process_is_killed_in_the_midst(
    gateway: Gateway, tmp_path: Path
) -> None:
    topic = gateway.dead_letters
    topic.add(*map(letter_at, range(LETTERS)))
    topic.waiting = []
    told = await replay(gateway, 200, filter={}, dry_run=True, patch=WIDE_ENOUGH)
    assert (told["to_send"], told["refused"]) == (LETTERS, 0)
    created = await replay(gateway, filter={}, patch=WIDE_ENOUGH)

    # Its lease has run out; it had sent one task more than it could resolve, and saved nothing.
    killed = ReplayJobs(replay_file(tmp_path / "tasks.sqlite.replays"), now_ms=lambda: 1)
    claimed = await killed.claim("killed")
    await killed.close()
    assert claimed is not None
    choices = ReplayPlan.model_validate_json(claimed.plan).choices(frozenset())
    async with topic.replayer(by="ops", job_id=claimed.job_id) as replayer:
        entries = (await topic.entries(since=None))[:SENT_BEFORE_THE_KILL]
        assert len([outcome async for outcome in replayer.replay(entries, choices, per_second=1e9)]) == len(entries)
        unresolved = (await topic.entries(since=None))[SENT_BEFORE_THE_KILL]
        topic.sent += [
            outcome async for outcome in replayer.plan([unresolved], choices) if isinstance(outcome, PreparedReplay)
        ]

    async with working(gateway.two.dead_letters):
        told = await ended(gateway, created["job_id"])
        while told["next"] is not None:
            last, told = told, await job(gateway, created["job_id"], f"?after={told['next']}")
            assert last["sent"] == LETTERS
    topic.project_waiting()
    answer = await gateway.one.ask("GET", "/v1/dlq?state=open", gateway.admin)
    assert answer.json()["matching"] == 0
    requests = [sent.request_id for sent in topic.sent]
    assert len(set(requests)) == LETTERS, "none is lost"
    twice = [sent for sent in topic.sent if sent.entry.ref == unresolved.ref]
    assert len(requests) == LETTERS + 1
    assert twice[0].headers == twice[1].headers
    assert twice[0].value == twice[1].value
