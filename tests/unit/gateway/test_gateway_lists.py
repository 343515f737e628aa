"""Lists of tasks and counts of groups, over a real task store."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fluxpool_gateway.store.task_list import MAX_SCANNED_ROWS, ListCursor
from fluxpool_gateway.store.task_state import SHOWN_STATUSES, Change, ProgressSeen, ResultSeen, TaskSeen, TaskStatus
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings

LIST = "/v1/generations"
TIME_MS = 1_775_000_000_000
"""2026-03-31T23:33:20Z."""


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def task(request_id: str, at_ms: int = TIME_MS, *, tenant: str = "default", group_id: str | None = None) -> TaskSeen:
    return TaskSeen(
        request_id=request_id, body="{}", priority="standard", tenant=tenant, created_at_ms=at_ms, group_id=group_id
    )


def ended(request_id: str, status: TaskStatus, *, tenant: str = "default", body: str = "{}") -> ResultSeen:
    return ResultSeen(request_id=request_id, status=status, body=body, completed_at_ms=TIME_MS, tenant=tenant)


async def page_of(gateway: Gateway, **parameters: Any) -> dict[str, Any]:
    answer = await gateway.one.ask("GET", LIST, gateway.admin, params=parameters)
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = answer.json()
    assert page["has_more"] == (page["next_cursor"] is not None)
    return page


def ids(page: dict[str, Any]) -> list[str]:
    return [entry["request_id"] for entry in page["data"]]


async def pages_of(gateway: Gateway, **parameters: Any) -> list[str]:
    """The ids on all pages."""
    page = await page_of(gateway, **parameters)
    found = ids(page)
    while page["has_more"]:
        page = await page_of(gateway, cursor=page["next_cursor"], **parameters)
        found += ids(page)
    return found


async def test_the_newest_task_comes_first_and_order_turns_that_round(gateway: Gateway) -> None:
    gateway.project(*(task(f"r-{number}", TIME_MS + number) for number in range(5)))
    assert ids(await page_of(gateway)) == [f"r-{number}" for number in reversed(range(5))]
    assert ids(await page_of(gateway, order="asc")) == [f"r-{number}" for number in range(5)]


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 200])
async def test_every_task_is_on_one_page_also_when_many_have_one_time(gateway: Gateway, order: str, limit: int) -> None:
    expected = [(TIME_MS + number // 4, f"r-{number:02}") for number in range(14)]
    gateway.project(*(task(request_id, at_ms) for at_ms, request_id in expected))
    found = await pages_of(gateway, order=order, limit=limit)
    assert found == [request_id for _, request_id in sorted(expected, reverse=order == "desc")]


async def test_tasks_that_arrive_between_two_pages_neither_repeat_nor_hide_others(gateway: Gateway) -> None:
    gateway.project(*(task(f"r-{number}", TIME_MS + number) for number in range(4)))
    first = await page_of(gateway, limit=2)
    gateway.project(task("r-9", TIME_MS + 9), ended("r-1", TaskStatus.SUCCEEDED))
    second = await page_of(gateway, limit=2, cursor=first["next_cursor"])
    assert ids(first) + ids(second) == ["r-3", "r-2", "r-1", "r-0"]
    assert not second["has_more"]


async def test_status_may_be_repeated(gateway: Gateway) -> None:
    gateway.project(*(task(f"r-{status}") for status in SHOWN_STATUSES))
    gateway.project(*(ended(f"r-{status}", status) for status in SHOWN_STATUSES if status.terminal))
    gateway.project(
        ProgressSeen(tenant="default", request_id="r-running", status=TaskStatus.RUNNING, at_ms=TIME_MS, started=True)
    )
    for status in SHOWN_STATUSES:
        assert ids(await page_of(gateway, status=status.value)) == [f"r-{status}"]
    some = await page_of(gateway, status=["queued", "running"])
    assert ids(some) == ["r-running", "r-queued"]
    assert [entry["status"] for entry in some["data"]] == ["running", "queued"]
    assert ids(await page_of(gateway, status=["failed", "succeeded"])) == ["r-succeeded", "r-failed"]


async def test_the_range_of_time_holds_its_beginning_and_not_its_end(gateway: Gateway) -> None:
    gateway.project(*(task(f"r-{number}", TIME_MS + 1000 * number) for number in range(4)))
    found = await page_of(gateway, created_after="2026-03-31T23:33:21Z", created_before="2026-03-31T23:33:23Z")
    assert ids(found) == ["r-2", "r-1"]


@pytest.mark.parametrize(
    "moment",
    ["2026-03-31T23:33:21", "2026-04-01T01:33:21%2B02:00", "2026-04-01T01:33:21+02:00", "2026-03-31T23:33:21Z"],
)
async def test_a_time_may_have_any_zone_also_with_a_plus_that_was_not_encoded(gateway: Gateway, moment: str) -> None:
    gateway.project(task("r-0", TIME_MS), task("r-1", TIME_MS + 1000))
    answer = await gateway.one.ask("GET", f"{LIST}?created_after={moment}", gateway.admin)
    assert ids(answer.json()) == ["r-1"]


async def test_a_result_without_its_task_is_listed_at_its_own_time(gateway: Gateway) -> None:
    gateway.project(task("r-0", TIME_MS - 1), ended("r-1", TaskStatus.FAILED), task("r-2", TIME_MS + 1))
    assert await pages_of(gateway, limit=1) == ["r-2", "r-1", "r-0"]


async def test_a_list_has_tasks_of_the_callers_tenant_alone(gateway: Gateway) -> None:
    gateway.project(
        task("r-1", tenant="acme"), task("r-2", tenant="other"), ended("r-3", TaskStatus.FAILED, tenant="acme")
    )
    acme = await gateway.create(tenant="acme")
    assert ids((await gateway.one.ask("GET", LIST, acme)).json()) == ["r-3", "r-1"]
    assert ids(await page_of(gateway)) == []


async def test_a_page_is_bounded_by_size_and_the_next_one_continues(gateway: Gateway) -> None:
    large = '{"request_id": "r", "padding": "%s"}' % ("x" * 1_000_000)
    gateway.project(*(ended(f"r-{number}", TaskStatus.FAILED, body=large) for number in range(9)))
    page = await page_of(gateway)
    assert 1 < len(page["data"]) < 9
    assert await pages_of(gateway) == [f"r-{number}" for number in reversed(range(9))]


async def test_a_page_looks_at_a_bounded_number_of_tasks_and_says_where_to_go_on(gateway: Gateway) -> None:
    names = [f"r-{number:06}" for number in range(MAX_SCANNED_ROWS + 10)]
    gateway.project(*(task(name) for name in names))
    gateway.project(*(ended(name, TaskStatus.SUCCEEDED) for name in names[:5]))
    first = await page_of(gateway, status="succeeded")
    assert first["data"] == []
    assert ids(await page_of(gateway, status="succeeded", cursor=first["next_cursor"])) == names[4::-1]


@pytest.mark.parametrize(
    ("parameters", "field", "detail"),
    [
        ({"stauts": "failed"}, "stauts", "is not a known field; check its spelling"),
        ({"status": "done"}, "status.0", "must be 'queued', 'running', 'succeeded', 'failed', 'expired' or 'canceled'"),
        ({"limit": "0"}, "limit", "must be at least 1"),
        ({"limit": "201"}, "limit", "must be at most 200"),
        ({"order": "up"}, "order", "must be 'desc' or 'asc'"),
        ({"created_after": "yesterday"}, "created_after", "must be a time such as 2026-04-05T10:00:00Z"),
        ({"created_before": "0.5"}, "created_before", "must be a time such as 2026-04-05T10:00:00Z"),
        (
            {"cursor": "r-1"},
            "cursor",
            "is not a cursor; take next_cursor of the page before as it is, or leave it out",
        ),
    ],
)
async def test_a_wrong_parameter_is_named_with_the_remedy(
    gateway: Gateway, parameters: dict[str, str], field: str, detail: str
) -> None:
    answer = await gateway.one.ask("GET", LIST, gateway.admin, params=parameters)
    problem = answer.json()
    assert (answer.status_code, problem["error"]["code"], problem["error"]["param"]) == (422, "invalid_request", field)
    assert problem["errors"][0]["detail"] == detail


async def test_the_methods_of_all_routes_with_one_address_are_named(gateway: Gateway) -> None:
    answer = await gateway.one.ask("PATCH", LIST, gateway.admin)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


@given(at_ms=st.integers(0, 10**16 - 1), request_id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True))
def test_a_cursor_is_read_as_it_was_written(at_ms: int, request_id: str) -> None:
    cursor = ListCursor(at_ms, request_id)
    assert ListCursor.parse(str(cursor)) == cursor


@given(st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_a_text_is_a_cursor_or_is_refused(text: str) -> None:
    try:
        cursor = ListCursor.parse(text)
    except ValueError as error:
        reason = str(error)
    else:
        reason = ""
        assert ListCursor.parse(str(cursor)) == cursor
    assert reason == "" or reason.startswith("is not a cursor")


# Groups


async def test_a_group_counts_its_tasks_by_status(gateway: Gateway) -> None:
    changes: list[Change] = [task(f"r-{number}", TIME_MS + number, group_id="g-1") for number in range(4)]
    gateway.project(*changes, task("r-9", group_id="g-2"), ended("r-0", TaskStatus.SUCCEEDED), task("r-8"))
    answer = await gateway.one.ask("GET", "/v1/groups/g-1", gateway.admin)
    group = answer.json()
    assert answer.status_code == 200
    assert group["counts"] == dict.fromkeys(SHOWN_STATUSES, 0) | {"queued": 3, "succeeded": 1}
    assert (group["total"], group["ended"]) == (4, False)
    assert group["first_created_at"] == "2026-03-31T23:33:20Z"
    gateway.project(*(ended(f"r-{number}", TaskStatus.CANCELED) for number in range(1, 4)))
    assert (await gateway.one.ask("GET", "/v1/groups/g-1", gateway.admin)).json()["ended"] is True
    listed = await gateway.one.ask("GET", group["tasks_url"], gateway.admin)
    assert ids(listed.json()) == ["r-3", "r-2", "r-1", "r-0"]
    assert {entry["group_id"] for entry in listed.json()["data"]} == {"g-1"}


@pytest.mark.parametrize("name", ["g-2", "..", "x" * 65, "%00"])
async def test_an_unknown_group_is_not_found(gateway: Gateway, name: str) -> None:
    gateway.project(task("r-1", group_id="g-1"))
    answer = await gateway.one.ask("GET", f"/v1/groups/{name}", gateway.admin)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


async def test_groups_of_two_tenants_with_one_name_are_two(gateway: Gateway) -> None:
    gateway.project(task("r-1", tenant="acme", group_id="g"), task("r-2", tenant="other", group_id="g"))
    for tenant, request_id in (("acme", "r-1"), ("other", "r-2")):
        key = await gateway.create(tenant=tenant)
        assert (await gateway.one.ask("GET", "/v1/groups/g", key)).json()["total"] == 1
        assert ids((await gateway.one.ask("GET", f"{LIST}?group_id=g", key)).json()) == [request_id]
    assert (await gateway.one.ask("GET", "/v1/groups/g", gateway.admin)).status_code == 404


async def test_the_group_of_a_request_is_in_its_state_at_once(gateway: Gateway) -> None:
    answer = await gateway.one.ask("POST", LIST, gateway.admin, json={"prompt": "a fox", "group_id": "g-1"})
    state = await gateway.one.ask("GET", answer.json()["status_url"], gateway.admin)
    assert state.json()["group_id"] == "g-1"


@pytest.mark.parametrize("group_id", ["", "a b", "-x", "x" * 65])
async def test_a_group_id_of_another_form_is_refused(gateway: Gateway, group_id: str) -> None:
    answer = await gateway.one.ask("POST", LIST, gateway.admin, json={"prompt": "a fox", "group_id": group_id})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "group_id")
