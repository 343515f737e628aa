"""Fixtures of the chart tests. Without Helm, tests that render are skipped, because building it takes minutes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.cluster.control_plane_binaries import BinariesMissingError
from kit.cluster.helm_chart import CI_VALUES, Helm, helm_program
from kit.cluster.kubernetes_api import Body


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """A Helm client without a cluster."""
    try:
        return Helm(helm_program(), tmp_path_factory.mktemp("helm"))
    except BinariesMissingError as error:
        if os.environ.get("TEST_REQUIRE_CLUSTER") == "1":
            pytest.fail(f"TEST_REQUIRE_CLUSTER=1, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=[None, *CI_VALUES], ids=lambda path: path.stem if path else "defaults")
def values_file(request: pytest.FixtureRequest) -> Path | None:
    """Each supported kind of installation: the defaults, and the values files of `ci/`."""
    path: Path | None = request.param
    return path


@pytest.fixture(scope="session")
def rendered(helm: Helm, values_file: Path | None) -> list[Body]:
    """All objects of that installation."""
    return helm.render(*([values_file] if values_file else []))


@pytest.fixture(scope="session")
def rendered_from(helm: Helm) -> Callable[[str], list[Body]]:
    """Render with one of the files of `ci/`, named without its extension."""

    def render(name: str) -> list[Body]:
        (path,) = [path for path in CI_VALUES if path.stem == f"{name}-values"]
        return helm.render(path)

    return render
