"""Whose folder a worker uses: a tenant in a header is a claim until a proof or the topic's setting makes it one."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fluxpool_contract import header_names as names
from fluxpool_contract.messages.control import CancelCommand
from fluxpool_contract.messages.headers import parse_envelope
from fluxpool_contract.tenants import TenantKeys, TenantTrust, prove_tenant
from kit.workers.task_flow import MAX_ATTEMPTS, REQUEST_ID, TASK, FlowBench, attempt, task_record

KEY = b"k" * 32
KEYS = TenantTrust(shared=TenantKeys((b"n" * 32, KEY)))
CLAIM = (names.TENANT, b"acme")
PROOF = (names.TENANT_PROOF, prove_tenant(KEY, tenant="acme", request_id=REQUEST_ID).encode())
FALSE_PROOF = (names.TENANT_PROOF, prove_tenant(b"x" * 32, tenant="acme", request_id=REQUEST_ID).encode())


def folders(bench: FlowBench) -> set[str]:
    """The tenants whose objects there are: of claims, deletions and images alike."""
    parts = [file.split("/") for file in bench.files()]
    return {part[1] if part[0].startswith("_") else part[0] for part in parts}


@pytest.mark.parametrize(
    ("headers", "trust", "folder"),
    [
        ([CLAIM, PROOF], KEYS, "acme"),
        ([CLAIM], KEYS, "default"),
        ([CLAIM], TenantTrust(), "default"),
        ([CLAIM, FALSE_PROOF], TenantTrust(), "default"),
        ([CLAIM], TenantTrust(foreign_topics=frozenset({"flux-generation-tasks"})), "acme"),
        ([CLAIM], TenantTrust(foreign_topics=frozenset({"another"})), "default"),
    ],
)
async def test_objects_are_in_the_folder_of_the_proven_tenant(
    tmp_path: Path, headers: list[tuple[str, bytes]], trust: TenantTrust, folder: str
) -> None:
    bench = FlowBench(tmp_path, trust=trust)
    bench.engine.fails = False
    await bench.run(task_record(headers=headers))
    assert (bench.outcomes, folders(bench)) == (["success"], {folder})
    # The gateway decides for itself: it has the claim with its proof.
    (result,) = (record for record in bench.topics.records if record.topic == bench.settings.topics.results)
    sent = parse_envelope(result.headers)
    given = parse_envelope(headers)
    assert (sent.tenant, sent.tenant_proof) == (given.tenant, given.tenant_proof)


async def test_a_false_proof_is_tried_again_and_touches_no_object(tmp_path: Path) -> None:
    bench = FlowBench(tmp_path, trust=KEYS)
    await bench.run(task_record(headers=[CLAIM, FALSE_PROOF]))
    assert (bench.outcomes, bench.engine.jobs, bench.files()) == (["retry"], 0, set())

    await bench.run(task_record(headers=[CLAIM, FALSE_PROOF, attempt(MAX_ATTEMPTS)]))
    (letter,) = bench.dead_letters
    assert (letter.error_code, bench.engine.jobs, bench.files()) == ("tenant-unproven", 0, set())
    assert "fluxpool-tenant-proof: does not prove the tenant acme with any key of this worker" in letter.message


async def test_a_refused_record_with_a_false_proof_touches_no_object(tmp_path: Path) -> None:
    bench = FlowBench(tmp_path, trust=KEYS)
    odd = json.dumps({**TASK, "steps": -1}).encode()
    await bench.run(task_record(odd, headers=[CLAIM, FALSE_PROOF]))
    assert (bench.outcomes, bench.files(), len(bench.dead_letters)) == (["invalid"], set(), 1)
    # Without a proof it is the default tenant's, as its result is.
    await bench.run(task_record(odd, headers=[CLAIM]))
    assert folders(bench) == {"default"}


@pytest.mark.parametrize("named", ["acme", "default"])
async def test_a_task_is_canceled_by_its_owner_and_by_the_tenant_that_it_claims(tmp_path: Path, named: str) -> None:
    bench = FlowBench(tmp_path)
    command = CancelCommand(request_id=REQUEST_ID, at=datetime.now(UTC)).model_dump_json().encode()
    bench.cancellations.learn(task_record(command, headers=[(names.TENANT, named.encode())]))
    await bench.run(task_record(headers=[CLAIM, PROOF]))
    assert bench.outcomes == ["canceled"]
