"""The keys that gateways and workers share: the form of their file, its rotation, and who owns a record meanwhile."""

import os
from pathlib import Path

import pytest

from fluxpool_contract.messages.headers import Envelope
from fluxpool_contract.settings.environment import SettingsError
from fluxpool_contract.tenants import NO_TENANT, KeySource, TenantKeys, TenantTrust
from fluxpool_transport.tenant_secret import TenantSecretFile, tenant_keys_of

OLD, NEW = "a" * 64, "b" * 64


def test_a_file_has_a_key_a_line() -> None:
    text = f"# of spring\r\n\n  {NEW}\t\n{OLD}"
    assert TenantKeys.parse(text).values == (NEW.encode(), OLD.encode())


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no key"),
        ("# a comment\n\n", "holds no key"),
        ("a" * 31, "key 1 must have at least 32"),
        (f"{OLD}\n{'ä' * 40}", "key 2 must have at least 32 ASCII"),
        ("secret " * 10 + OLD, "without blanks"),
        ("\n".join([OLD] * 9), "holds 9 keys, and 8 are the most"),
    ],
)
def test_what_is_no_key_is_refused_without_showing_it(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        TenantKeys.parse(text)
    assert OLD not in str(refused.value)


class Files:
    """A file of keys, and the time at which it is looked at."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "keys"
        self.now = 0.0

    def write(self, *keys: str) -> None:
        """As the kubelet does: another file under the name."""
        fresh = self.file.with_name("fresh")
        fresh.write_text("\n".join(keys))
        fresh.replace(self.file)

    def open(self) -> TenantSecretFile:
        return TenantSecretFile(self.file, clock=lambda: self.now)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def owner(envelope: Envelope, shared: KeySource) -> str:
    return TenantTrust(shared=shared).owner(envelope, topics=["tasks"], request_id="r-1")


def test_a_rotation_with_overlap_changes_no_owner_whoever_reads_the_file_first(files: Files) -> None:
    files.write(OLD)
    gateway, worker = files.open(), files.open()
    proofs = []
    for keys in ([OLD], [OLD, NEW], [NEW, OLD], [NEW]):
        files.write(*keys)
        for readers in ((gateway,), (gateway, worker)):
            files.now += 2
            for reader in readers:
                reader.keys()
            proofs.append(TenantTrust(shared=gateway.keys).prove(tenant="acme", request_id="r-1"))
            task = Envelope(tenant="acme", tenant_proof=proofs[-1])
            # The worker's first look is the last file's in the first round, and this one's in the second.
            assert owner(task, worker.keys) == "acme"
    assert len(set(proofs)) == 2
    # What was signed by the former key has no tenant once that is gone, neither this one nor another.
    assert owner(Envelope(tenant="acme", tenant_proof=proofs[0]), worker.keys) == NO_TENANT


def test_a_proof_by_a_key_that_another_process_read_first_is_known_at_once(files: Files) -> None:
    files.write(OLD)
    late = files.open()
    files.write(NEW)
    proof = TenantTrust(shared=files.open().keys).prove(tenant="acme", request_id="r-1")
    assert owner(Envelope(tenant="acme", tenant_proof=proof), late.keys) == "acme"


def test_a_file_that_cannot_be_read_leaves_the_former_keys(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.write(OLD)
    opened = files.open()
    for _ in range(3):
        files.file.unlink(missing_ok=True)
        files.now += 2
        assert opened.keys().values == (OLD.encode(),)
    files.write("short")
    files.now += 2
    assert opened.keys().values == (OLD.encode(),)
    files.write(NEW)
    files.now += 2
    assert opened.keys().values == (NEW.encode(),)
    # Once for each reason, and without a key.
    said = capsys.readouterr().out
    assert said.count("tenant_secret_unreadable") == 2
    assert OLD not in said


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "cannot be read"), (b"\xff" * 40, "ASCII"), (b"a" * 5000, "larger than 4096 bytes"), (b"\n", "no key")],
)
def test_a_part_does_not_start_with_a_file_it_cannot_use(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=rf"FLUXPOOL_TENANT_SECRET_FILE: {file} .*{why}"):
        tenant_keys_of(file)


def test_a_change_in_place_that_leaves_size_and_times_is_read(files: Files) -> None:
    files.write(OLD)
    opened = files.open()
    before = files.file.stat()
    with files.file.open("r+") as file:
        file.write(NEW)
    os.utime(files.file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert opened.keys().values == (OLD.encode(),), "it is not read at each look"
    files.now += 2
    assert opened.keys().values == (NEW.encode(),)


def test_a_mounted_secret_is_followed_through_its_links(files: Files) -> None:
    folder = files.file.parent
    for number, key in enumerate((OLD, NEW)):
        (folder / f"..{number}").mkdir()
        (folder / f"..{number}" / "keys").write_text(key)
    (folder / "..data").symlink_to("..0")
    files.file.symlink_to(Path("..data") / "keys")
    opened = files.open()
    (folder / "..data_tmp").symlink_to("..1")
    (folder / "..data_tmp").replace(folder / "..data")
    files.now += 2
    assert opened.keys().values == (NEW.encode(),)
