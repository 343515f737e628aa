"""Both clients of the HTTP API with a real gateway over a real task store, without Kafka."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from fluxpool_client import (
    AuthenticationError,
    BadRequestError,
    CancelOutcome,
    ConflictError,
    CorruptImageError,
    GoneError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    TaskStatus,
    UnavailableError,
    UnexpectedResponseError,
    UnreachableError,
    WaitTimeoutError,
)
from fluxpool_gateway.store import task_state
from fluxpool_gateway.tasks.producer import DeliveryError, DeliveryFailure
from kit.gateways.client_world import CLIENTS, ID, World, client_world, queued
from kit.gateways.keyed_gateway import IMAGE, NOW_MS
from kit.scaling.lag_readings import teach_speed


@pytest.fixture(params=CLIENTS)
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with client_world(request.param, tmp_path) as world:
        yield world


async def test_a_task_is_submitted_waited_for_and_downloaded(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox", width=64, height=64, loras=[{"name": "ink", "scale": 0.5}], n=1)
    assert accepted.status is TaskStatus.QUEUED
    (value,) = world.gateway.records.values
    assert value == {
        "request_id": accepted.request_id,
        "prompt": "a fox",
        "width": 64,
        "height": 64,
        "loras": [{"name": "ink", "scale": 0.5}],
        "n": 1,
    }
    assert not (await call("get", accepted.request_id)).ended

    waiting = asyncio.ensure_future(call("wait", accepted.request_id, timeout_seconds=30))
    world.project_accepted()
    world.succeed(accepted.request_id)
    task = await waiting
    assert (task.status, task.succeeded, len(task.images)) == (TaskStatus.SUCCEEDED, True, 1)
    assert await call("download", task) == (IMAGE,)
    assert await call("image", accepted.request_id) == IMAGE
    # `IMAGE` is no picture.
    with pytest.raises(ConflictError, match="image_unreadable"):
        await call("image", accepted.request_id, thumb=256)
    assert call.wire.asked[2].headers["prefer"] == "wait=29"


async def test_a_repeat_with_the_same_key_or_id_is_the_same_task(world: World) -> None:
    call = world.caller()
    first = await call("submit", "a fox", idempotency_key="k")
    assert (await call("submit", "a fox", idempotency_key="k")).request_id == first.request_id
    assert [await call("submit", "a fox", request_id=ID) for _ in range(2)][1].request_id == ID
    assert (await call("submit", "a fox")).request_id != (await call("submit", "a fox")).request_id
    assert len(world.gateway.records.values) == 4
    with pytest.raises(ConflictError) as conflict:
        await call("submit", "another fox", request_id=ID)
    assert conflict.value.code == "idempotency_conflict"
    with pytest.raises(ValueError, match="either idempotency_key or request_id"):
        await call("submit", "a fox", request_id=ID, idempotency_key="k")


async def test_each_request_of_a_batch_has_an_outcome(world: World) -> None:
    call = world.caller()
    queued, refused, again = await call(
        "submit_many",
        [{"prompt": "a fox", "idempotency_key": "k"}, {"prompt": "a", "steps": 0}, {"prompt": "a fox"}],
    )
    assert queued.code == again.code == 202
    assert queued.request_id != again.request_id
    assert (refused.code, refused.error.code, refused.errors[0].pointer) == (422, "invalid_request", "#/steps")
    assert (await call("submit", "a fox", idempotency_key="k")).request_id == queued.request_id


async def test_lists_are_read_page_by_page_and_groups_are_counted(world: World) -> None:
    call = world.caller()
    ids = [(await call("submit", f"fox {number}", group_id="foxes")).request_id for number in range(5)]
    await call("submit", "a bear")
    world.project_accepted()
    assert await call.tasks(group_id="foxes", order="asc", limit=2) == ids
    assert await call.tasks(group_id="foxes", status=["failed", "expired"]) == []
    page = await call("page", group_id="foxes", limit=2)
    assert [task.request_id for task in page.data] == ids[:2:-1]
    assert (page.has_more, (await call("page", group_id="foxes", limit=9)).has_more) == (True, False)
    first = (await call("get", ids[0])).created_at
    assert isinstance(first, datetime)
    assert await call.tasks(created_after=first, created_before=first + timedelta(milliseconds=2)) == ids[1::-1]
    group = await call("group", "foxes")
    assert (group.total, group.counts["queued"], group.ended) == (5, 5, False)


async def test_tasks_are_canceled_and_retried(world: World) -> None:
    call = world.caller()
    ids = [(await call("submit", f"fox {number}", group_id="foxes")).request_id for number in range(3)]
    world.project_accepted()
    canceled = await call("cancel", ids[0], reason="wrong prompt")
    assert (canceled.request_id, canceled.outcome) == (ids[0], CancelOutcome.REQUESTED)
    assert world.gateway.records.commands[0][2]["reason"] == "wrong prompt"
    everyone = await call("cancel_many", group_id="foxes", waiting_only=True)
    assert {task.request_id for task in everyone} == set(ids)
    (unknown,) = await call("cancel_many", request_ids=["nobody"])
    assert unknown.outcome is None

    with pytest.raises(ConflictError) as early:
        await call("retry", ids[0])
    assert (early.value.code, early.value.retry_after_seconds) == ("not_finished", 1)
    world.succeed(ids[0])
    retried = await call("retry", ids[0])
    assert (await call("retry", ids[0])).request_id == retried.request_id != ids[0]


async def test_many_are_canceled_page_by_page(world: World) -> None:
    call = world.caller()
    world.gateway.project(*(queued(f"fox-{number}", NOW_MS + number, group_id="foxes") for number in range(510)))
    assert len({task.request_id for task in await call("cancel_many", group_id="foxes")}) == 510
    assert len(call.wire.asked) == 2


async def test_a_refusal_names_each_field(world: World) -> None:
    call = world.caller()
    with pytest.raises(BadRequestError) as refused:
        await call("submit", "a fox", width=100, steps=0)
    assert (refused.value.status, refused.value.code) == (422, "invalid_size")
    assert [one.pointer for one in refused.value.fields] == ["#/width", "#/steps"]
    assert refused.value.correlation_id
    assert "nearest legal sizes are 96 or 112" in str(refused.value)
    assert len(call.wire.asked) == 1


async def test_refusals_have_a_class_by_their_status(world: World) -> None:
    call = world.caller()
    with pytest.raises(NotFoundError):
        await call("get", "nobody")
    with pytest.raises(NotFoundError):
        await call("group", "nobody")
    reader = world.caller(await world.gateway.create("read"))
    with pytest.raises(PermissionDeniedError) as denied:
        await reader("submit", "a fox")
    assert denied.value.code == "insufficient_scope"
    stranger = world.caller("fp_nobody")
    with pytest.raises(AuthenticationError):
        await stranger("get", ID)


async def test_a_submission_is_repeated_with_its_key_while_the_queue_is_away(world: World) -> None:
    call = world.caller()
    world.gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no broker")

    def come_back(_response: httpx.Response) -> None:
        if len(call.wire.asked) == 2:
            world.gateway.records.failure = None

    call.wire.on_response = come_back
    call.wire.instead = [httpx.ConnectError("refused")]
    accepted = await call("submit", "a fox")
    assert [request.method for request in call.wire.asked] == ["POST"] * 3
    assert len({request.headers["idempotency-key"] for request in call.wire.asked}) == 1
    assert [value["request_id"] for value in world.gateway.records.values] == [accepted.request_id]


async def test_a_failure_that_does_not_pass_is_raised_after_all_attempts(world: World) -> None:
    call = world.caller(max_attempts=2)
    world.gateway.records.failure = DeliveryError(DeliveryFailure.TIMED_OUT, "no broker")
    with pytest.raises(UnavailableError) as away:
        await call("submit", "a fox")
    assert (away.value.status, away.value.code, len(call.wire.asked)) == (503, "queue_unavailable", 2)
    call.wire.instead = [httpx.ReadTimeout("late"), httpx.RemoteProtocolError("cut")]
    with pytest.raises(UnreachableError, match=r"no response to GET .*: RemoteProtocolError cut"):
        await call("get", ID)


@pytest.mark.parametrize("retry_after", ["0", "Wed, 21 Oct 2099 07:28:00 GMT", "-1", "x"])
async def test_any_form_of_retry_after_is_waited_for_or_ignored(world: World, retry_after: str) -> None:
    call = world.caller()
    call.wire.instead = [httpx.Response(429, headers={"retry-after": retry_after}, content=b"<html>")]
    await call("page")
    assert len(call.wire.asked) == 2


@pytest.mark.parametrize(
    ("retry_after", "seconds"), [("3600", 3600), ("9" * 10, 9_999_999_999), ("1" * 99, 1_111_111_111)]
)
async def test_a_long_retry_after_is_left_to_the_caller(world: World, retry_after: str, seconds: int) -> None:
    call = world.caller()
    call.wire.instead = [httpx.Response(429, headers={"retry-after": retry_after}, content=b"{}")]
    with pytest.raises(RateLimitedError) as limited:
        await call("page")
    assert (limited.value.retry_after_seconds, limited.value.code, len(call.wire.asked)) == (seconds, "", 1)


async def test_a_request_that_would_wait_too_long_is_refused_at_once_with_the_estimate(world: World) -> None:
    lanes, now = world.gateway.one.app.state.services.lanes, world.gateway.clock.monotonic()
    teach_speed(lanes, seconds_per_task=4, until=now)
    call = world.caller()
    with pytest.raises(RateLimitedError) as refused:
        await call("submit", "a fox", max_queue_position=3)
    wait = refused.value.wait
    assert wait is not None
    assert (refused.value.code, wait.limit, wait.position) == ("queue_too_long", "max_queue_position", 11)
    assert len(call.wire.asked) == 1
    (item,) = await call("submit_many", [{"prompt": "a fox", "start_within_s": 3600}])
    assert item.queue_position == 11


async def test_a_wait_outlasts_a_gateway_that_is_away(world: World) -> None:
    call = world.caller(max_attempts=1)
    accepted = await call("submit", "a fox")
    world.project_accepted()
    world.succeed(accepted.request_id)
    call.wire.instead = [httpx.Response(503, headers={"retry-after": "0"}), httpx.ConnectError("refused")]
    assert (await call("wait", accepted.request_id, timeout_seconds=30)).succeeded


async def test_a_wait_that_ends_before_the_task_has_its_state(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    # As from a proxy that takes the Prefer header away.
    early = (await world.gateway.one.ask("GET", f"/v1/generations/{accepted.request_id}", world.gateway.admin)).content
    call.wire.instead = [httpx.Response(200, content=early) for _ in range(20)]
    with pytest.raises(WaitTimeoutError) as late:
        await call("wait", accepted.request_id, timeout_seconds=1.5)
    assert late.value.task.status == "queued"
    assert len(call.wire.asked) <= 5


@pytest.mark.parametrize(
    ("response", "match"),
    [
        (httpx.Response(200, content=b"<html>welcome</html>"), "not a gateway's"),
        (httpx.Response(200, json={"request_id": "another", "status": "queued", "status_url": "/"}), "about another"),
        (httpx.Response(200, json=[]), "not a gateway's"),
        (httpx.Response(302, headers={"location": "https://elsewhere/"}), "HTTP 302 to https://elsewhere/"),
        (httpx.Response(200, content=b" " * (16 * 1024 * 1024 + 1)), "longer than"),
    ],
)
async def test_a_response_that_is_not_a_gateways_is_one_error(
    world: World, response: httpx.Response, match: str
) -> None:
    call = world.caller()
    call.wire.instead = [response]
    with pytest.raises(UnexpectedResponseError, match=match):
        await call("get", ID)
    assert len(call.wire.asked) == 1


async def test_a_file_that_is_not_the_stored_one_is_an_error(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    world.project_accepted()
    world.succeed(accepted.request_id)
    task = await call("get", accepted.request_id)
    call.wire.instead = [httpx.Response(200, content=IMAGE[:-1])]
    with pytest.raises(CorruptImageError, match="another SHA-256"):
        await call("download", task)


async def test_a_task_is_deleted_as_often_as_asked(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    world.project_accepted()
    with pytest.raises(ConflictError, match="not_finished"):
        await call("delete", accepted.request_id)
    world.succeed(accepted.request_id)
    world.gateway.records.on_deletion = lambda key, _: world.gateway.project(
        task_state.DeletionSeen(request_id=key.decode(), tenant="default")
    )
    for _ in range(2):
        assert await call("delete", accepted.request_id) is None
    with pytest.raises(GoneError):
        await call("get", accepted.request_id)


async def test_an_image_is_fetched_from_the_object_store_without_the_api_key(world: World) -> None:
    call = world.caller()
    url = "https://images.example/0.png?signature=secret"
    call.wire.instead = [httpx.Response(302, headers={"location": url}), httpx.Response(200, content=IMAGE)]
    assert await call("image", ID) == IMAGE
    asked, followed = call.wire.asked
    assert (str(followed.url), "authorization" in asked.headers) == (url, True)
    assert "authorization" not in followed.headers
    call.wire.instead = [httpx.Response(302, headers={"location": url}), *[httpx.ReadTimeout("late")] * 5]
    with pytest.raises(UnreachableError) as late:
        await call("image", ID)
    assert "secret" not in str(late.value)


@pytest.mark.parametrize("location", ["", "/elsewhere", "file:///etc/passwd", "http://a:99999999/"])
async def test_an_image_at_no_url_of_http_is_one_error(world: World, location: str) -> None:
    call = world.caller()
    call.wire.instead = [httpx.Response(302, headers={"location": location})]
    with pytest.raises(UnexpectedResponseError, match="no URL of HTTP"):
        await call("image", ID)


@pytest.mark.parametrize("name", ["a/b", "../healthz", "", "a b", "a?b", "é", "a\n"])
async def test_an_id_that_no_task_has_is_not_sent(world: World, name: str) -> None:
    call = world.caller()
    for method in ("get", "wait", "group", "cancel", "retry", "image"):
        with pytest.raises(ValueError, match=r"must be 1 to 128|none that a task"):
            await call(method, name)
    with pytest.raises(ValueError, match="idempotency_key"):
        await call("submit", "a fox", idempotency_key="a b")
    assert call.wire.asked == []


async def test_a_field_and_a_status_of_a_later_release_are_kept(world: World) -> None:
    call = world.caller()
    later = {"request_id": ID, "status": "paused", "status_url": "/", "priority_class": "gold"}
    call.wire.instead = [httpx.Response(200, json=later)]
    task = await call("get", ID)
    assert (task.status, task.ended, task.model_extra) == ("paused", False, {"priority_class": "gold"})


async def test_a_prompt_of_any_characters_arrives(world: World) -> None:
    call = world.caller()
    await call("submit", '狐\u2028\U0001f98a"\\')
    assert world.gateway.records.values[0]["prompt"] == '狐\u2028\U0001f98a"\\'
    with pytest.raises(BadRequestError):
        await call("submit", "\ud800")


async def test_the_service_is_described(world: World) -> None:
    lanes, now = world.gateway.one.app.state.services.lanes, world.gateway.clock.monotonic()
    teach_speed(lanes, seconds_per_task=4, until=now)
    call = world.caller()
    queue = await call("queue")
    assert [(lane.name, lane.waiting, lane.workers) for lane in queue.lanes] == [
        ("standard", 11, 1),
        ("vip", None, None),
    ]
    assert queue.seconds_per_task == pytest.approx(4, rel=0.05)
    pools = await call("pools")
    assert [(pool.consumer_group, pool.lanes, pool.desired) for pool in pools.data] == [
        ("flux-worker-group", ("standard", "vip"), None)
    ]
    assert pools.left_out is not None
    models = {model.id: model for model in await call("models")}
    assert models["FLUX.1-schnell"].license.commercial
    assert models["FLUX.1-dev"].defaults.steps == 28


async def test_usage_is_asked_for_a_time_and_a_period(world: World) -> None:
    call = world.caller()
    accepted = await call("submit", "a fox")
    world.project_accepted()
    world.succeed(accepted.request_id)
    end = datetime.fromtimestamp(NOW_MS / 1000, UTC)
    report = await call("usage", since=end - timedelta(days=3), to=end + timedelta(seconds=1), by="day")
    assert (report.by, len(report.data)) == ("day", 4)
    assert report.total.tasks.succeeded == sum(period.usage.tasks.succeeded for period in report.data)
    assert len((await call("usage")).data) == 24
    with pytest.raises(BadRequestError) as refused:
        await call("usage", since=end, to=end - timedelta(days=1))
    assert refused.value.fields[0].pointer == "#/from"


async def test_keys_are_created_listed_rotated_and_revoked(world: World) -> None:
    call = world.caller()
    created = await call("create_key", "ci", ["submit", "read"], tenant="acme", expires_in_seconds=60)
    assert (created.tenant, created.scopes, created.state) == ("acme", ("submit", "read"), "active")
    assert (await world.caller(created.key)("submit", "a fox")).request_id
    replaced = await call("rotate_key", created.id, overlap_seconds=0)
    assert (await call("revoke_key", replaced.id)).state == "revoked"
    keys = {key.id: key for key in await call("keys")}
    assert keys[created.id].replaced_by == replaced.id
    assert not hasattr(keys[created.id], "key")
    with pytest.raises(AuthenticationError):
        await world.caller(replaced.key)("submit", "a fox")
    with pytest.raises(ValueError, match="key_id: must be the id of a key"):
        await call("revoke_key", "../keys")
    # A repeat would be another key.
    call.wire.asked.clear()
    call.wire.instead = [httpx.ConnectError("refused")]
    with pytest.raises(UnreachableError):
        await call("create_key", "ci", ["read"])
    assert len(call.wire.asked) == 1


async def test_threads_share_a_client(tmp_path: Path) -> None:
    async with client_world("blocking", tmp_path) as world:
        call = world.caller()
        accepted = await asyncio.gather(*(call("submit", f"fox {number}") for number in range(20)))
        assert len({task.request_id for task in accepted}) == 20
        assert threading.active_count() > 1
