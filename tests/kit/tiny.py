"""The tiny FLUX checkpoint for tests: written once a session, loaded by the real engine."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoint of seed 0; tests must not write into it."""
    # torch and diffusers take seconds to import, which tests without a model should not pay.
    from fluxpool_worker.engine.tiny_checkpoint import write_tiny_checkpoint  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("models") / "flux-tiny"
    write_tiny_checkpoint(folder)
    return folder
