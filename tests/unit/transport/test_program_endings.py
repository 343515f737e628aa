"""The exit code of every program is its own, whatever its threads and native libraries do at its end."""

import gc
import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from fluxpool_contract.kafka import KafkaConnection
from fluxpool_transport.kafka.admin import KafkaAdmin
from kit.programs.fork_server import Imports
from kit.programs.warm_start import start_program
from kit.waiting import PATIENCE, wait_until


def ended(module: str, *arguments: str, imported: Imports = Imports.PROGRAMS, **environment: str) -> tuple[int, str]:
    """The exit code and the output of a program in a process whose finalization aborts."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLUXPOOL_")}
    with tempfile.TemporaryFile("w+") as output:
        program = start_program(
            "kit.programs.aborting_end",
            module,
            *arguments,
            environment={**kept, **environment},
            output=output,
            imported=imported,
        )
        try:
            code = program.wait(60 * PATIENCE)
        finally:
            program.kill()
            program.wait()
        output.seek(0)
        return code, output.read()


@pytest.mark.parametrize(
    ("module", "imported"),
    [
        ("fluxpool_gateway", Imports.PROGRAMS),
        ("fluxpool_gateway.projector", Imports.PROGRAMS),
        ("fluxpool_gateway.dispatcher", Imports.PROGRAMS),
        ("fluxpool_worker", Imports.PODS),
        ("fluxpool_operator", Imports.PODS),
    ],
)
def test_a_program_that_refuses_its_settings_ends_with_2(module: str, imported: Imports) -> None:
    code, output = ended(module, imported=imported, FLUXPOOL_PROCESES="2", FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS="nonsense")
    assert code == 2, output
    assert "FLUXPOOL_" in output


def test_a_command_ends_with_its_own_code_and_all_of_its_output() -> None:
    code, output = ended("kit.programs.console_script", "version")
    assert (code, output.startswith("fluxpool ")) == (0, True), output
    code, output = ended("kit.programs.console_script", "trace", "a", "--bootstrap-servers", "nonsense")
    assert (code, "--bootstrap-servers" in output) == (2, True), output


async def test_an_admin_client_ends_its_threads_with_its_last_reference() -> None:
    def native_threads() -> set[int]:
        found = set()
        for task in Path("/proc/self/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                if (task / "comm").read_text().startswith("rdk:"):
                    found.add(int(task.name))
        return found

    before = native_threads()
    # The collector would end a client in a cycle, too, some time later.
    gc.disable()
    try:
        admin = await KafkaAdmin.open(KafkaConnection(bootstrap_servers=("127.0.0.1:9",)), client_id="test")
        assert native_threads() - before
        del admin
        await wait_until(lambda: not native_threads() - before, deadline_seconds=10, what="the end of its threads")
    finally:
        gc.enable()
