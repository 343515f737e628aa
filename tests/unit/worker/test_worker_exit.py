"""The exit codes of a worker."""

import pytest

from fluxpool_contract.settings.worker import EXIT_MODEL_LOAD_FAILED
from fluxpool_worker import __main__ as worker
from fluxpool_worker.agent.engine.client import EngineLoadError, EngineUnstableError
from fluxpool_worker.agent.service import WorkerAgent


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineLoadError("no such folder"), EXIT_MODEL_LOAD_FAILED), (EngineUnstableError("died 5 times"), 1)],
    ids=["a model that cannot be loaded", "engines that die"],
)
def test_a_model_that_cannot_be_loaded_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    async def ends(agent: WorkerAgent) -> None:
        del agent
        raise error

    monkeypatch.setattr(WorkerAgent, "run", ends)
    monkeypatch.setattr(worker, "configure_logging", lambda **_: None)
    monkeypatch.setenv("FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9")
    monkeypatch.setenv("FLUXPOOL_STORAGE_URL", "file:///tmp/images/")
    assert worker.main() == code
