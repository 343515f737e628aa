"""The Dockerfiles: they copy existing and sufficient files, their steps work, and the images run as any user.

No container engine is needed: the steps of the build stage run in a temporary folder and virtual environment.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOYABLES = ("operator", "gateway", "worker")
INSTALLED = "/opt/fluxpool"
OWN_PACKAGES = Path(sysconfig.get_path("purelib"))
COMPILE_KERNELS = "-m fluxpool_worker.engine.kernel_cache"
# An image is built from files alone; those that every image has, beside its own folder.
ON_CHANGE = {
    name: pytest.mark.on_change(name, "contract", "transport", "README.md", "LICENSE", "NOTICE") for name in DEPLOYABLES
}
HEAVY = ("torch", "diffusers", "transformers", "accelerate")
# Options of speed and source only: with them the test would download and compile gigabytes that this disk has already.
BUILD_SPEED_VARIABLES = {"UV_COMPILE_BYTECODE", "UV_LINK_MODE", "UV_NO_CACHE"}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile."""

    word: str
    argument: str


def stages_of(deployable: str) -> list[list[Instruction]]:
    """The stages of a Dockerfile, each from its FROM."""
    text = (ROOT / deployable / "Dockerfile").read_text()
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    stages: list[list[Instruction]] = []
    for line in filter(str.strip, lines):
        word, _, argument = line.partition(" ")
        if word == "FROM":
            stages.append([])
        stages[-1].append(Instruction(word, argument.strip()))
    return stages


def arguments_of(stage: list[Instruction], word: str) -> list[str]:
    return [instruction.argument for instruction in stage if instruction.word == word]


def environment_of(stage: list[Instruction]) -> dict[str, str]:
    pairs = [part.partition("=") for argument in arguments_of(stage, "ENV") for part in shlex.split(argument)]
    return {name: value for name, _, value in pairs}


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """The result of a Dockerfile for this tree, with `root` as the image's root."""

    deployable: str
    root: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the image's python in the environment of the last stage, without the tree and the test's packages."""
        declared = environment_of(stages_of(self.deployable)[-1])
        # Without the byte code that the image is built with, every run would compile all modules again.
        del declared["PYTHONDONTWRITEBYTECODE"]
        path = declared.pop("PATH").replace(INSTALLED, f"{self.root}{INSTALLED}").replace("$PATH", os.defpath)
        python = shutil.which("python", path=path)
        assert python == f"{self.root}{INSTALLED}/bin/python"
        return subprocess.run(
            [python, *arguments],
            cwd=self.root,
            env={**declared, "PATH": path, "HOME": str(self.root)},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean Python with pip, like that of the base image; the steps of all images share it."""
    folder = tmp_path_factory.mktemp("base-image")
    venv.create(folder)
    # The pip of the tests, not another copy that is unpacked and compiled first.
    for source in (OWN_PACKAGES / "pip", *OWN_PACKAGES.glob("pip-*.dist-info")):
        shutil.copytree(source, packages_of(folder) / source.name)
    program = folder / "bin" / "pip"
    program.write_text(f"#!{folder}/bin/python\nfrom pip._internal.cli.main import main\nraise SystemExit(main())\n")
    program.chmod(0o755)
    return folder


@pytest.fixture(scope="module", params=[pytest.param(name, marks=ON_CHANGE[name]) for name in DEPLOYABLES])
def image(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BuiltImage]:
    """The image of a component, built by the steps of its Dockerfile."""
    root = tmp_path_factory.mktemp(f"{request.param}-image")
    build, _ = stages_of(request.param)
    declared = {name: value for name, value in environment_of(build).items() if name not in BUILD_SPEED_VARIABLES}
    ours = {"VIRTUAL_ENV", "PYTHONPATH", "TRITON_INTERPRET"}  # an image is built without what these tests set
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    environment = {**kept, **declared, "PATH": f"{base}/bin:{os.environ['PATH']}"}
    folder = root
    for step in build:
        match step.word:
            case "WORKDIR":
                folder = root / step.argument.lstrip("/")
                folder.mkdir(parents=True)
            case "COPY":
                _copy(step.argument, folder)
            case "RUN":
                command = step.argument.replace(INSTALLED, f"{root}{INSTALLED}")
                # Of the six kinds of GPU, each of which takes half a minute, one is enough here.
                command = command.replace(COMPILE_KERNELS, f"{COMPILE_KERNELS} --capability 90")
                finished = subprocess.run(
                    ["/bin/sh", "-euc", command],
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=600,
                )
                assert finished.returncode == 0, f"RUN {step.argument}\n{finished.stdout}{finished.stderr}"
                if "uv pip sync" in command:
                    _lend_byte_code(packages_of(root / INSTALLED.lstrip("/")))
    yield BuiltImage(request.param, root)
    # Gigabytes where files are not hard links to the cache.
    shutil.rmtree(root)


def packages_of(environment: Path) -> Path:
    """Where a virtual environment has its packages."""
    (folder,) = (environment / "lib").glob("python*/site-packages")
    return folder


def _lend_byte_code(packages: Path) -> None:
    """Take the byte code of the same packages from the environment of the tests, instead of compiling for minutes.

    Python compiles what it does not find, and what is not of the very source beside it (PEP 3147).
    """
    for package in packages.iterdir():
        for compiled in (OWN_PACKAGES / package.name).rglob("__pycache__"):
            place = packages / compiled.relative_to(OWN_PACKAGES)
            if place.parent.is_dir():
                # Not across file systems.
                with suppress(OSError):
                    shutil.copytree(compiled, place, copy_function=os.link)


def _copy(argument: str, folder: Path) -> None:
    """`COPY source... target` from the tree, without untracked files."""
    *sources, target = argument.split()
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            place = folder / target
            place = place / Path(source).name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, place)


@pytest.mark.timeout(900)
def test_the_image_has_its_own_packages_and_the_pinned_ones_only(image: BuiltImage) -> None:
    program = (
        "import importlib.metadata as m, importlib.util as u, json, sys\n"
        "print(json.dumps([{d.name.lower().replace('_', '-').replace('.', '-'): d.version for d in m.distributions()},"
        " [n for n in sys.argv[1:] if u.find_spec(n)]]))"
    )
    rooms = [f"fluxpool_{room}" for room in ("contract", "transport", "gateway", "worker", "operator", "cli", "client")]
    finished = image.run("-c", program, *rooms, *HEAVY)
    assert finished.returncode == 0, finished.stderr
    installed, found = json.loads(finished.stdout)
    own = ["fluxpool_contract", "fluxpool_transport", f"fluxpool_{image.deployable}"]
    assert sorted(found) == sorted([*own, *(HEAVY if image.deployable == "worker" else ())])
    requirements = (ROOT / "requirements" / f"{image.deployable}.txt").read_text()
    pins = dict(re.findall(r"^([a-z0-9][a-z0-9._-]*)(?:\[[^]]*\])?==([^\s;\\]+)", requirements, re.MULTILINE))
    del installed["fluxpool"]
    # A universal lock also has pins for other platforms and Pythons.
    assert installed.keys() <= pins.keys()
    assert len(installed) > 30


@pytest.mark.timeout(900)
def test_every_module_of_the_image_can_be_imported(image: BuiltImage) -> None:
    program = (
        "import importlib, pkgutil, sys\n"
        "for name in sys.argv[1:]:\n"
        "    package = importlib.import_module(name)\n"
        "    for module in pkgutil.walk_packages(package.__path__, name + '.'):\n"
        "        if not module.name.endswith(('__main__', 'migrations.env')):\n"
        "            importlib.import_module(module.name)\n"
    )
    # Of transport, whose modules have their packages in different extras, only what the component imports.
    finished = image.run("-c", program, "fluxpool_contract", f"fluxpool_{image.deployable}")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.timeout(900)
def test_without_settings_the_entrypoint_names_what_is_missing(image: BuiltImage) -> None:
    (entrypoint,) = arguments_of(stages_of(image.deployable)[-1], "ENTRYPOINT")
    program, *arguments = json.loads(entrypoint)
    assert program == "python"
    finished = image.run(*arguments)
    if image.deployable == "operator":
        # It has no required setting; only a cluster is missing here.
        assert (finished.returncode, "run in a pod, or set KUBECONFIG" in finished.stderr) == (1, True)
    else:
        assert finished.returncode == 2
        assert "FLUXPOOL_KAFKA_BOOTSTRAP_SERVERS: is required" in finished.stdout + finished.stderr


@pytest.mark.parametrize("deployable", DEPLOYABLES)
def test_the_last_stage_runs_unprivileged_and_writes_nothing(deployable: str) -> None:
    build, last = stages_of(deployable)
    assert [stage[0].argument for stage in (build, last)] == ["python:3.11-slim AS build", "python:3.11-slim"]
    assert arguments_of(last, "USER") == ["65532:65532"]
    assert arguments_of(last, "COPY") == [f"--from=build {INSTALLED} {INSTALLED}"]
    # The only step installs packages, so nothing in it is writable by that user.
    assert all(step.startswith("apt-get update && apt-get install ") for step in arguments_of(last, "RUN"))
    declared = environment_of(last)
    # torch needs a user name that passwd does not have, and byte code cannot be written.
    assert {"USER", "HOME"} <= declared.keys()
    assert declared["PYTHONDONTWRITEBYTECODE"] == "1"
    assert environment_of(build)["UV_COMPILE_BYTECODE"] == "1"


@pytest.mark.parametrize("deployable", DEPLOYABLES)
def test_what_the_dockerfile_copies_is_not_ignored(deployable: str) -> None:
    first, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert first == "*"
    allowed = {rule.removeprefix("!").rstrip("/") for rule in rules if rule.startswith("!")}
    for argument in arguments_of(stages_of(deployable)[0], "COPY"):
        *sources, _ = argument.split()
        assert {source.split("/")[0] for source in sources} <= allowed
        assert all((ROOT / source).exists() for source in sources)
