"""The control plane is built once and atomically, and tests without it name the remedy."""

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kit.cluster.control_plane_binaries import BUILD_SCRIPT, PROGRAMS, BinariesMissingError, control_plane_binaries

pytestmark = pytest.mark.on_change

# Replaces Go, whose real build takes minutes: records each call and writes the requested files.
GO = """\
#!/bin/sh
echo "$PWD" >> "$GO_CALLS"
[ "${PWD##*/}" != "$GO_FAILS_IN" ] || exit 3
while [ "$1" != -o ]; do shift; done
output=$2; shift 2
case $output in
  */) for package in "$@"; do install -m 755 /bin/true "$output${package##*/}"; done ;;
  *) install -m 755 /bin/true "$output" ;;
esac
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A temporary cache, and a stand-in for Go."""
    go = tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(GO)
    go.chmod(0o755)
    return {
        "PATH": f"{go.parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "GO_CALLS": str(tmp_path / "calls"),
        "GO_FAILS_IN": "nowhere",
    }


async def build(environment: dict[str, str]) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(BUILD_SCRIPT, env=environment, stderr=subprocess.PIPE)
    _, complaints = await process.communicate()
    return process.returncode, complaints.decode()


async def test_two_builds_at_once_build_once_and_a_third_does_nothing(
    environment: dict[str, str], tmp_path: Path
) -> None:
    outcomes = await asyncio.gather(build(environment), build(environment))
    assert [status for status, _ in outcomes] == [0, 0]
    assert await build(environment) == (0, "")
    modules = [Path(line).name for line in (tmp_path / "calls").read_text().splitlines()]
    assert modules == ["etcd", "kubernetes", "helm"]
    folder = control_plane_binaries(environment=environment)
    assert sorted(path.name for path in folder.iterdir()) == sorted(PROGRAMS)


async def test_a_failed_build_leaves_nothing_and_names_what_to_check(
    environment: dict[str, str], tmp_path: Path
) -> None:
    status, complaints = await build(environment | {"GO_FAILS_IN": "kubernetes"})
    assert status == 3
    assert "hack/control-plane/kubernetes (see above). Check the network" in complaints
    assert [path.name for path in (tmp_path / "cache" / "fluxpool").iterdir() if path.is_dir()] == []
    assert (await build(environment))[0] == 0


async def test_a_missing_go_is_named(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "path" / "go").unlink()
    (tmp_path / "path" / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    for program in ("env", "bash"):
        (tmp_path / "path" / program).symlink_to(shutil.which(program) or program)
    status, complaints = await build(environment | {"PATH": str(tmp_path / "path")})
    assert (status, complaints.splitlines()[0].startswith("go is missing")) == (1, True)


def test_binaries_that_are_not_built_are_named_with_the_remedy(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(BinariesMissingError, match="run `make control-plane`"):
        control_plane_binaries(environment=environment)


def test_a_folder_of_assets_is_used_and_missing_programs_are_named(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "KUBEBUILDER_ASSETS": str(tmp_path)}
    for program in PROGRAMS[:-1]:
        (tmp_path / program).touch(mode=0o755)
    with pytest.raises(BinariesMissingError, match=r"KUBEBUILDER_ASSETS=.* lacks helm: "):
        control_plane_binaries(environment=environment)
    built = subprocess.run([BUILD_SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (built.returncode, "lacks helm: put them there" in built.stderr) == (1, True)
    (tmp_path / PROGRAMS[-1]).touch(mode=0o755)
    assert control_plane_binaries(environment=environment) == tmp_path
    assert subprocess.run([BUILD_SCRIPT], env=environment, check=False).returncode == 0


@pytest.mark.parametrize(
    ("required", "outcome"), [("0", "1 skipped"), ("1", "TEST_REQUIRE_CLUSTER=1, but the Kubernetes control plane")]
)
def test_tests_without_the_programs_are_skipped_unless_they_are_required(
    tmp_path: Path, required: str, outcome: str
) -> None:
    test = f"{Path(__file__).with_name('test_control_plane.py')}::test_kubectl_errors_are_raised_with_their_message"
    environment = {name: value for name, value in os.environ.items() if name != "KUBEBUILDER_ASSETS"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "TEST_REQUIRE_CLUSTER": required}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    root = Path(__file__).parents[2]
    finished = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == int(required)
    assert outcome in finished.stdout
    assert "run `make control-plane`" in finished.stdout
