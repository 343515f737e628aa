"""`fluxpool submit --image`: a file is stored in the local stack's store, under the prefix that its workers read."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
import typer

from fluxpool_cli.local.data_dir import DataDir
from fluxpool_cli.local.state_file import Phase, ProcessRecord, StackState
from fluxpool_cli.submit.input_images import image_address

PNG = b"\x89PNG\r\n\x1a\n and the rest, which workers read"
JPEG = b"\xff\xd8\xff\xe0 and the rest"
WEBP = b"RIFF\x00\x00\x00\x00WEBP and the rest"


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    """The folder of a stack that runs: this process counts as its supervisor."""
    folder = DataDir(tmp_path / "stack")
    folder.create()
    supervisor = ProcessRecord.of("supervisor", os.getpid())
    StackState(phase=Phase.READY, data_dir=folder.path, supervisor=supervisor).save(folder.state)
    return folder


def written(folder: Path, content: bytes, name: str = "cat.png") -> str:
    file = folder / name
    file.write_bytes(content)
    return str(file)


@pytest.mark.parametrize(("content", "kind"), [(PNG, "png"), (JPEG, "jpeg"), (WEBP, "webp")])
def test_a_file_is_stored_by_its_content_once_and_for_its_user_alone(
    data_dir: DataDir, tmp_path: Path, content: bytes, kind: str
) -> None:
    file = written(tmp_path, content)
    address = image_address(file, data_dir=data_dir.path, is_local=True)
    assert address == f"_inputs/default/{hashlib.sha256(content).hexdigest()}.{kind}"
    stored = data_dir.images / address
    assert stored.read_bytes() == content
    assert stat.S_IMODE(stored.stat().st_mode) & 0o077 == 0
    assert image_address(file, data_dir=data_dir.path, is_local=True) == address


def test_an_address_is_left_as_it_is(tmp_path: Path) -> None:
    address = "s3://bucket/_inputs/default/cat.png"
    assert image_address(address, data_dir=tmp_path, is_local=False) == address


@pytest.mark.parametrize(
    ("content", "message"), [(b"GIF89a", "no PNG, JPEG or WebP"), (b"", "no PNG"), (PNG + bytes(2**25), "33,554,432")]
)
def test_a_file_that_workers_would_refuse_is_refused(
    data_dir: DataDir, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        image_address(written(tmp_path, content), data_dir=data_dir.path, is_local=True)


def test_a_missing_file_is_named(data_dir: DataDir) -> None:
    with pytest.raises(typer.BadParameter, match=r"/no/cat.png cannot be read \(No such file or directory\)"):
        image_address("/no/cat.png", data_dir=data_dir.path, is_local=True)


@pytest.mark.parametrize("is_local", [True, False])
def test_without_a_local_stack_the_remedy_is_named(tmp_path: Path, *, is_local: bool) -> None:
    with pytest.raises(typer.BadParameter, match=r"give its address, such as s3://bucket/_inputs/default/cat\.png"):
        image_address(written(tmp_path, PNG), data_dir=tmp_path / "none", is_local=is_local)
