"""The limits of tenants: over the real application, and over several processes on one file."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxpool_gateway.http.problem import ProblemCode, ProblemError
from fluxpool_gateway.identity.quotas import Quotas
from fluxpool_gateway.settings import EVERY_TENANT, GatewaySettings, TenantLimits
from fluxpool_gateway.store.quota_file import quota_file
from fluxpool_gateway.store.task_state import ResultSeen, TaskSeen, TaskStatus
from kit.gateways.keyed_gateway import Gateway, key_id, keyed_gateway, keyed_settings
from kit.gateways.quota_users import NothingStored, count_admitted
from kit.waiting import wait_until

LIMITS = {
    "hourly": TenantLimits(submit="3/hour"),
    "few": TenantLimits(outstanding=2),
    EVERY_TENANT: TenantLimits(submit="100/minute", outstanding=50),
}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    settings = keyed_settings(tmp_path).model_copy(update={"tenant_limits": LIMITS})
    async with keyed_gateway(settings) as running:
        yield running


def seen(request_id: str, tenant: str) -> TaskSeen:
    return TaskSeen(request_id=request_id, body="{}", priority="standard", tenant=tenant, created_at_ms=1)


def finished(request_id: str, tenant: str) -> ResultSeen:
    return ResultSeen(request_id=request_id, status=TaskStatus.FAILED, body="{}", completed_at_ms=1, tenant=tenant)


# Submissions in a time


async def test_submissions_past_the_limit_are_refused_by_both_replicas(gateway: Gateway) -> None:
    key, other = await gateway.create(tenant="hourly"), await gateway.create(tenant="free")
    answers = [await replica.submit(key) for replica in (gateway.one, gateway.two, gateway.one, gateway.two)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert [answer.headers["ratelimit"].split(";")[:2] for answer in answers] == [
        ['"submit"', f"r={left}"] for left in (2, 1, 0, 0)
    ]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"submit";q=3;w=3600'}
    refused = answers[-1]
    assert 0 < int(refused.headers["retry-after"]) <= 120
    problem = refused.json()
    assert (problem["error"]["code"], problem["status"]) == ("rate_limit_exceeded", 429)
    assert "tenant hourly may submit 3 per 1 hour" in problem["detail"]
    assert len(gateway.records.headers) == 3
    # The tenants are apart, and reading is not limited.
    assert (await gateway.one.submit(other)).status_code == 202
    path = f"/v1/generations/{answers[0].json()['request_id']}"
    assert {(await gateway.one.ask("GET", path, key)).status_code for _ in range(5)} == {200}


async def test_what_is_no_request_uses_up_nothing(gateway: Gateway) -> None:
    key = await gateway.create(tenant="hourly")
    for _ in range(5):
        assert (await gateway.one.ask("POST", "/v1/generations", key, json={"prompt": ""})).status_code == 422
    assert (await gateway.one.submit(key)).headers["ratelimit"].startswith('"submit";r=2;')


async def test_tasks_fit_again_when_their_window_is_over(tmp_path: Path) -> None:
    quotas = Quotas({"a": TenantLimits(submit="2/second")}, quota_file(tmp_path / "f"), NothingStored())

    async def refusal() -> ProblemError | None:
        (outcome,) = await asyncio.gather(quotas.admit("a", ["r"]), return_exceptions=True)
        return outcome if isinstance(outcome, ProblemError) else None

    async def is_admitted() -> bool:
        return await refusal() is None

    refused = await wait_until(refusal, deadline_seconds=30, what="a refusal")
    assert refused is not None
    assert (refused.code, dict(refused.headers)["retry-after"]) == (ProblemCode.RATE_LIMIT_EXCEEDED, "1")
    await wait_until(is_admitted, deadline_seconds=30, what="another admission")
    await quotas.close()


# Submissions of a key


async def test_a_key_has_a_limit_of_its_own_in_both_replicas_beside_the_other_keys_of_its_tenant(
    gateway: Gateway,
) -> None:
    slow = await gateway.create(tenant="free", submit_limit="2/hour")
    other = await gateway.create(tenant="free")
    answers = [await replica.submit(slow) for replica in (gateway.one, gateway.two, gateway.one)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    refused = answers[-1]
    assert '"key-submit";q=2;w=3600' in refused.headers["ratelimit-policy"].split(", ")
    assert [left.split(";")[:2] for left in refused.headers["ratelimit"].split(", ")] == [
        ['"submit"', "r=98"], ['"key-submit"', "r=0"], ['"outstanding"', "r=48"],
    ]  # fmt: skip
    assert 0 < int(refused.headers["retry-after"]) <= 120
    problem = refused.json()
    assert problem["error"]["code"] == "rate_limit_exceeded"
    assert "this API key may submit 2 per 1 hour" in problem["detail"]
    assert len(gateway.records.headers) == 2
    # What was refused used up nothing of the tenant.
    assert (await gateway.two.submit(other)).headers["ratelimit"].startswith('"submit";r=97;')


async def test_the_limit_of_the_tenant_holds_for_a_key_with_a_higher_one(gateway: Gateway) -> None:
    key = await gateway.create(tenant="hourly", submit_limit="50/hour")
    answers = [await gateway.one.submit(key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
    assert "tenant hourly may submit 3 per 1 hour" in answers[-1].json()["detail"]
    assert answers[-1].headers["ratelimit"].split(", ")[1].startswith('"key-submit";r=47;')


async def test_rotated_keys_share_one_limit_where_no_tenant_has_one(tmp_path: Path) -> None:
    async with keyed_gateway(keyed_settings(tmp_path)) as gateway:
        keys = [await gateway.create(submit_limit="3/hour")]
        for _ in range(2):
            path = f"/v1/keys/{key_id(keys[-1])}/rotate"
            made = (await gateway.one.ask("POST", path, gateway.admin, json={})).json()
            assert made["submit_limit"] == "3/hour"
            keys.append(made["key"])
        assert [(await gateway.two.submit(key)).status_code for key in (*keys, *keys)] == [202] * 3 + [429] * 3
        assert (await gateway.one.submit(gateway.admin)).status_code == 202


@pytest.mark.parametrize("limit", ["fast", "0/second", "5/s", 5])
async def test_a_key_limit_that_means_nothing_is_refused(gateway: Gateway, limit: object) -> None:
    body = {"name": "n", "scopes": ["submit"], "submit_limit": limit}
    answer = await gateway.one.ask("POST", "/v1/keys", gateway.admin, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "submit_limit")


# Unfinished tasks


async def test_a_tenant_has_no_more_unfinished_tasks_than_it_may(gateway: Gateway) -> None:
    key = await gateway.create(tenant="few")
    first, second = [(await gateway.one.submit(key)).json()["request_id"] for _ in range(2)]
    refused = await gateway.two.submit(key)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
    assert refused.headers["ratelimit-policy"] == '"outstanding";q=2;qu="tasks"'
    assert refused.headers["ratelimit"] == '"outstanding";r=0'
    assert refused.json()["error"]["code"] == "outstanding_limit_exceeded"
    assert "may have 2 unfinished tasks" in refused.json()["detail"]
    # That the task store has them now changes nothing; that they end does.
    gateway.project(seen(first, "few"), seen(second, "few"), seen("other", "acme"))
    assert (await gateway.two.submit(key)).status_code == 429
    gateway.project(finished(first, "few"))

    async def is_accepted() -> bool:
        return (await gateway.two.submit(key)).status_code == 202

    await wait_until(is_accepted, deadline_seconds=30, what="room for one more task")
    assert (await gateway.two.submit(key)).status_code == 429


async def test_a_repeat_with_its_idempotency_key_is_no_other_task(gateway: Gateway) -> None:
    key = await gateway.create(tenant="few")
    answers = [await gateway.one.submit(key, headers={"idempotency-key": name}) for name in ("a", "a", "b")]
    assert [answer.status_code for answer in answers] == [202, 202, 202]


async def test_a_task_that_was_not_written_counts_no_longer(tmp_path: Path) -> None:
    quotas = Quotas({EVERY_TENANT: TenantLimits(outstanding=1)}, quota_file(tmp_path / "f"), NothingStored())
    for number in range(3):
        await quotas.admit("a", [f"r-{number}"])
        quotas.release("a", [f"r-{number}"])
    await quotas.close()


async def test_more_at_once_than_the_limit_is_refused_without_a_wait(tmp_path: Path) -> None:
    for limits in (TenantLimits(submit="2/hour"), TenantLimits(outstanding=2)):
        quotas = Quotas({"a": limits}, quota_file(tmp_path / "f"), NothingStored())
        with pytest.raises(ProblemError, match="not 3 at once; send fewer") as refused:
            await quotas.admit("a", ["r-1", "r-2", "r-3"])
        assert "retry-after" not in dict(refused.value.headers)
        assert await quotas.admit("a", ["r-1", "r-2"])
        await quotas.close()


async def test_an_unusable_file_refuses_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    quotas = Quotas({"a": TenantLimits(submit="1/hour")}, quota_file(tmp_path / "file" / "f"), NothingStored())
    for _ in range(3):
        assert await quotas.admit("a", ["r"]) == ()
    await quotas.close()


async def test_a_tenant_without_limits_needs_no_file(tmp_path: Path) -> None:
    file = tmp_path / "f"
    quotas = Quotas({"a": TenantLimits(submit="1/hour")}, quota_file(file), NothingStored())
    assert await quotas.admit("b", ["r"]) == ()
    await quotas.close()
    assert not file.exists()


# Processes


@pytest.mark.parametrize("limits", [TenantLimits(submit="50/hour"), TenantLimits(outstanding=50)])
def test_a_limit_holds_over_all_processes_exactly(tmp_path: Path, limits: TenantLimits) -> None:
    assert count_admitted(tmp_path / "f", limits, processes=3, tasks=40) == 50


# Settings


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        ({"*": {"submit": "fast"}}, "tenant_limits"),
        ({"*": {"submit": "0/second"}}, "tenant_limits"),
        ({"*": {"outstanding": 0}}, "tenant_limits"),
        ({"*": {"requests": "1/second"}}, "requests"),
        ({"../up": {"outstanding": 1}}, "tenant_limits"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(tmp_path: Path, limits: object, named: str) -> None:
    values = keyed_settings(tmp_path).model_dump() | {"tenant_limits": limits}
    with pytest.raises(ValueError, match=named):
        GatewaySettings.model_validate(values)


names = st.one_of(st.just(EVERY_TENANT), st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True))
rates = st.from_regex(r"[1-9][0-9]{0,5}/(second|minute|hour|day)", fullmatch=True)
limits_of_tenants = st.dictionaries(
    names,
    st.builds(TenantLimits, submit=st.none() | rates, outstanding=st.none() | st.integers(1, 30_000)),
    max_size=3,
)


@given(limits_of_tenants)
def test_limits_survive_the_environment(limits: dict[str, TenantLimits]) -> None:
    environment = {
        "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS": "localhost:9092",
        "FLUXPOOL_STORAGE_URL": "file:///images/",
        "FLUXPOOL_DATABASE_FILE": "/data/tasks.db",
    }
    settings = GatewaySettings.from_environment(environment).model_copy(update={"tenant_limits": limits})
    assert GatewaySettings.from_environment(settings.to_environment()) == settings
