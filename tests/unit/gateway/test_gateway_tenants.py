"""Whose a record from Kafka is: a tenant in a header is a claim, unless a gateway has proven it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fluxpool_contract.header_names import TENANT, TENANT_PROOF
from fluxpool_contract.kafka.topics import TopicNames
from fluxpool_contract.messages.headers import parse_envelope
from fluxpool_contract.messages.result import GenerationResult, ResultStatus
from fluxpool_contract.problems import InvalidTaskError
from fluxpool_contract.tenants import NO_TENANT, TenantKeys, TenantTrust, prove_tenant
from fluxpool_gateway.identity.bootstrap import prepare_secret
from fluxpool_gateway.projection.projected_records import read_change
from fluxpool_gateway.settings import GatewaySettings
from fluxpool_worker.agent.task.outgoing_records import outgoing_headers
from kit.gateways.keyed_gateway import NOW_MS, Gateway, keyed_gateway, keyed_settings

TOPICS = TopicNames()
SECRET = b"s" * 32
PROVEN = prove_tenant(SECRET, tenant="acme", request_id="r-1")
OF_ANOTHER_TASK = prove_tenant(SECRET, tenant="acme", request_id="r-2")
OF_ANOTHER_TENANT = prove_tenant(SECRET, tenant="other", request_id="r-1")
OF_ANOTHER_SECRET = prove_tenant(b"x" * 32, tenant="acme", request_id="r-1")
TASK = b'{"request_id":"r-1","prompt":"a fox"}'
RESULT = GenerationResult(request_id="r-1", image_url=None, status=ResultStatus.FAILED).model_dump_json().encode()
PROGRESS = b'{"request_id":"r-1","type":"started","at":"2026-04-05T10:00:00Z","attempt":1}'

KEYS = TenantTrust(secret=SECRET)
NO_KEYS = TenantTrust()
SHARED = TenantTrust(shared=TenantKeys((b"n" * 32, SECRET)))
OF_A_LATER_KEY = prove_tenant(b"n" * 32, tenant="acme", request_id="r-1")


def trusting(*topics: str) -> TenantTrust:
    return TenantTrust(secret=SECRET, foreign_topics=frozenset(topics))


def owner(topic: str, value: bytes, *, tenant: str | None, proof: str | None, trust: TenantTrust) -> str:
    given = [(TENANT, tenant), (TENANT_PROOF, proof)]
    headers = [(name, text.encode()) for name, text in given if text is not None]
    change = read_change(TOPICS, topic=topic, value=value, headers=headers, timestamp_ms=1, trust=trust)
    assert change is not None
    return change.tenant


@pytest.mark.parametrize(
    ("tenant", "proof", "trust", "of_task", "of_result"),
    [
        ("acme", PROVEN, KEYS, "acme", "acme"),
        ("acme", None, KEYS, "default", "default"),
        ("acme", OF_ANOTHER_TASK, KEYS, NO_TENANT, NO_TENANT),
        ("acme", OF_ANOTHER_TENANT, KEYS, NO_TENANT, NO_TENANT),
        ("acme", OF_ANOTHER_SECRET, KEYS, NO_TENANT, NO_TENANT),
        (None, None, KEYS, "default", "default"),
        ("default", OF_ANOTHER_TASK, KEYS, "default", "default"),
        ("acme", None, NO_KEYS, "default", "default"),
        # Without a key it cannot be told from another.
        ("acme", PROVEN, NO_KEYS, "default", "default"),
        ("acme", PROVEN, SHARED, "acme", "acme"),
        ("acme", OF_A_LATER_KEY, SHARED, "acme", "acme"),
        ("acme", OF_ANOTHER_SECRET, SHARED, NO_TENANT, NO_TENANT),
        ("acme", None, trusting(TOPICS.tasks), "acme", "acme"),
        ("acme", None, trusting(TOPICS.tasks_vip), "default", "acme"),
        ("acme", None, trusting(TOPICS.results, TOPICS.progress), "default", "acme"),
    ],
)
def test_a_tenant_counts_with_proof_or_in_a_trusted_topic(
    tenant: str | None, proof: str | None, trust: TenantTrust, of_task: str, of_result: str
) -> None:
    assert owner(TOPICS.tasks, TASK, tenant=tenant, proof=proof, trust=trust) == of_task
    assert owner(TOPICS.results, RESULT, tenant=tenant, proof=proof, trust=trust) == of_result
    assert owner(TOPICS.progress, PROGRESS, tenant=tenant, proof=proof, trust=trust) == of_result


@pytest.mark.parametrize("proof", [b"", b"0" * 31, b"0" * 33, b"G" * 32, b"A" * 32, b"\xff" * 32])
def test_what_is_no_proof_refuses_the_task_with_the_form(proof: bytes) -> None:
    with pytest.raises(InvalidTaskError, match=r"fluxpool-tenant-proof.*32 characters"):
        parse_envelope([(TENANT_PROOF, proof)])


def test_a_worker_passes_the_proof_on() -> None:
    task = parse_envelope([(TENANT, b"acme"), (TENANT_PROOF, PROVEN.encode())])
    assert parse_envelope(outgoing_headers(task)) == task


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    async with keyed_gateway(keyed_settings(tmp_path)) as running:
        yield running


async def test_a_gateway_proves_the_tenant_of_what_it_accepts(gateway: Gateway) -> None:
    accepted = []
    for tenant in ("acme", "default"):
        key = await gateway.create(tenant=tenant)
        accepted.append((await gateway.one.submit(key)).json()["request_id"])
    settings = gateway.settings
    # As the projector, a process of its own, gets it.
    secret = prepare_secret(settings.key_store_file(), bootstrap_key_file=settings.bootstrap_key_file, now_ms=NOW_MS)
    trust = TenantTrust(secret=secret)
    of_acme, of_default = gateway.records.headers
    assert TENANT_PROOF not in of_default
    envelope = parse_envelope(list(of_acme.items()))
    assert trust.owner(envelope, topics=[TOPICS.tasks], request_id=accepted[0]) == "acme"


@pytest.mark.parametrize(("tenant", "status"), [("acme", 202), ("default", 422)])
async def test_a_picture_counts_as_the_callers_in_a_folder_of_its_tenant_alone(
    gateway: Gateway, tenant: str, status: int
) -> None:
    body = {"prompt": "a fox", "image": f"_inputs/{tenant}/cat.png"}
    key = await gateway.create(tenant="acme")
    answer = await gateway.one.ask("POST", "/v1/generations", key, json=body)
    assert answer.status_code == status
    assert ("such as _inputs/acme/cat.png" in answer.text) == (status == 422)
    assert len(gateway.records.headers) == (status == 202)


def test_the_secret_outlives_the_file_of_a_gateway_with_the_same_first_key(tmp_path: Path) -> None:
    settings = keyed_settings(tmp_path)
    key_file = settings.bootstrap_key_file
    secrets = [
        prepare_secret(tmp_path / name, bootstrap_key_file=key_file, now_ms=NOW_MS) for name in ("a.db", "b.db", "a.db")
    ]
    assert len(set(secrets)) == 1
    # Another first key does not change one that is stored, and a gateway without a first key has one of its own.
    assert prepare_secret(tmp_path / "a.db", bootstrap_key_file=None, now_ms=NOW_MS) == secrets[0]
    assert prepare_secret(tmp_path / "c.db", bootstrap_key_file=None, now_ms=NOW_MS) != secrets[0]


def test_a_trusted_topic_is_one_that_is_read(tmp_path: Path) -> None:
    values = keyed_settings(tmp_path).model_dump() | {"foreign_tenant_topics": ["somewhere"]}
    with pytest.raises(ValueError, match="foreign_tenant_topics: somewhere is not read here"):
        GatewaySettings.model_validate(values)
