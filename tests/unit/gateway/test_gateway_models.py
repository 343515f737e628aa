"""The list of models, over a real task store, and as the `openai` package reads it."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Model

from fluxpool_contract.families import FAMILIES, PUBLISHED
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_gateway.store.task_state import ResultSeen, TaskStatus
from kit.gateways.keyed_gateway import Gateway, keyed_gateway, keyed_settings

TIME_MS = 1_775_000_000_000


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


def made(request_id: str, family: str | None, *, at_ms: int = TIME_MS, tenant: str = "default") -> ResultSeen:
    result = GenerationResult(
        request_id=request_id, image_url=None, status=ResultStatus.SUCCESS, model="mine/fine-tune", model_family=family
    )
    return ResultSeen(
        request_id=request_id,
        status=TaskStatus.SUCCEEDED,
        body=result.model_dump_json(),
        completed_at_ms=at_ms,
        tenant=tenant,
    )


async def models_of(gateway: Gateway, key: str) -> dict[str, dict[str, Any]]:
    answer = await gateway.one.ask("GET", "/v1/models", key)
    assert answer.status_code == 200, answer.text
    assert answer.json()["object"] == "list"
    return {model["id"]: model for model in answer.json()["data"]}


async def test_every_published_family_is_listed_as_openai_clients_read_it(gateway: Gateway) -> None:
    models = await models_of(gateway, gateway.admin)
    assert list(models) == [family.name for family in PUBLISHED]
    for shown in models.values():
        read = Model.model_validate(shown)
        assert (read.object, read.owned_by) == ("model", "black-forest-labs")
        assert 1_700_000_000 < read.created < 1_800_000_000
        family = FAMILIES[shown["family"]]
        assert shown["defaults"] == {"steps": family.default_steps, "guidance": family.default_guidance}
        assert shown["limits"]["max_steps"] == family.max_steps
        assert shown["license"] == {
            "name": family.licence.name,
            "url": family.licence.url,
            "commercial": family.licence.commercial,
        }


async def test_one_model_is_as_in_the_list_and_an_unknown_one_is_named(gateway: Gateway) -> None:
    models = await models_of(gateway, gateway.admin)
    for name, shown in models.items():
        assert (await gateway.one.ask("GET", f"/v1/models/{name}", gateway.admin)).json() == shown
    missing = await gateway.one.ask("GET", "/v1/models/dall-e-3", gateway.admin)
    assert missing.status_code == 404
    assert "FLUX.1-schnell" in missing.json()["detail"]


async def test_the_latest_result_of_the_tenant_is_shown_and_no_other_tenants(gateway: Gateway) -> None:
    gateway.project(
        made("r-1", "FLUX.1-dev"),
        made("r-2", "FLUX.1-dev", at_ms=TIME_MS + 5000),
        made("r-3", "tiny"),
        made("r-4", None),
        made("r-5", "FLUX.1-schnell", tenant="acme"),
    )
    mine = await models_of(gateway, gateway.admin)
    assert mine["FLUX.1-dev"]["last_result_at"] == "2026-03-31T23:33:25Z"
    assert mine["FLUX.1-schnell"]["last_result_at"] is None
    theirs = await models_of(gateway, await gateway.create(tenant="acme"))
    assert theirs["FLUX.1-dev"]["last_result_at"] is None
    assert theirs["FLUX.1-schnell"]["last_result_at"] == "2026-03-31T23:33:20Z"


async def test_the_rights_of_the_key_limit_what_is_shown(gateway: Gateway) -> None:
    assert (await models_of(gateway, gateway.admin))["FLUX.1-dev"]["limits"]["qualities"] == ["exact", "fast"]
    limited = await gateway.create("read", qualities=["exact"])
    assert (await models_of(gateway, limited))["FLUX.1-dev"]["limits"]["qualities"] == ["exact"]


async def test_a_key_needs_the_scope_read(gateway: Gateway) -> None:
    key = await gateway.create("submit")
    for path in ("/v1/models", "/v1/models/FLUX.1-dev", "/v1/queue"):
        answer = await gateway.one.ask("GET", path, key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "insufficient_scope")
