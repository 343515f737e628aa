"""Profiles: what chooses the gateway and its key, what is refused with its name, and that no key is ever shown."""

import io
import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fluxpool_cli.exit_codes import CommandError, ExitCode
from fluxpool_cli.gateway import GatewayOptions
from fluxpool_cli.main import run
from fluxpool_cli.profiles.file import Profiles

KEY = "fp_secretsecret"
FILE = f"""
# The gateway of all teams.
profile = "prod"
[profiles.prod]
url = "https://prod.example.com"
api_key = "{KEY}"
[profiles.dev]
url = "http://dev.example.com"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("FLUXPOOL_URL", "FLUXPOOL_API_KEY", "FLUXPOOL_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "config" / "fluxpool" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(FILE)
    file.chmod(0o600)
    return file


PROD = ("https://prod.example.com", "profile prod")
DEV = ("http://dev.example.com", "profile dev")
OF_PROD = (KEY, "profile prod")


@dataclass(frozen=True)
class Case:
    """What is given, and the gateway and key that it means, each with what set it."""

    address: tuple[str, str]
    key: tuple[str, str] | None
    url: str | None = None
    profile: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    "case",
    [
        Case(PROD, OF_PROD),
        Case(DEV, None, profile="dev"),
        Case(DEV, None, environment={"FLUXPOOL_PROFILE": "dev"}),
        Case(PROD, OF_PROD, profile="prod", environment={"FLUXPOOL_PROFILE": "dev"}),
        Case(("http://b", "FLUXPOOL_URL"), None, environment={"FLUXPOOL_URL": "http://b"}),
        Case(PROD, OF_PROD, profile="prod", environment={"FLUXPOOL_URL": "http://b"}),
        Case(("http://c", "--url"), None, url="http://c", profile="prod", environment={"FLUXPOOL_URL": "http://b"}),
        Case(("https://prod.example.com/", "--url"), OF_PROD, url="https://prod.example.com/"),
        Case(PROD, ("k", "FLUXPOOL_API_KEY"), environment={"FLUXPOOL_API_KEY": "k"}),
        Case(PROD, OF_PROD, profile="prod", environment={"FLUXPOOL_API_KEY": "k"}),
    ],
)
def test_an_option_wins_over_the_environment_and_that_over_the_profile(case: Case, file: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(file.parent.parent), **case.environment}
    place = GatewayOptions(url=case.url, profile=case.profile).place(environment=environment)
    assert (place.url, place.url_source) == case.address
    # The key of a profile is never sent to another gateway.
    assert ((place.api_key, place.key_source) if place.api_key else None) == case.key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("profile = [", "is not TOML"),
        ("url = 'x'", "url: is not known"),
        ("profiles = 3", "profiles: must be tables"),
        ("[profiles.a]\nurl = 3", "profiles.a.url: must be text"),
        (f"[profiles.a]\napi_kye = '{KEY}'", "profiles.a.api_kye: is not known"),
        ("profile = 'b'\n[profiles.a]\nurl = 'http://a'", "profile: 'b' must be one of a"),
        ("profile = 'a'\n[profiles.a]\nurl = 'nonsense'", "profile a: 'nonsense' must begin with http://"),
        ("profile = 'a'\n[profiles.a]\nurl = 'http://a'\napi_key = 'a b'", "profile a: must be printable ASCII"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_and_the_field(
    text: str, words: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    assert run(["keys", "list"]) == ExitCode.USAGE
    shown = capsys.readouterr().err
    assert words in shown
    assert words.startswith("profile a:") or str(file) in shown
    assert KEY not in shown


def test_keys_that_others_may_read_are_refused_with_the_command_that_helps(file: Path) -> None:
    file.chmod(0o640)
    with pytest.raises(CommandError, match=f"chmod 600 {file}"):
        Profiles.load(file)


def test_profiles_are_set_used_and_removed_and_comments_stay(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("fp_other\n"))
    assert run(["profile", "set", "lab", "--url", "http://lab.example.com", "--key"]) == ExitCode.OK
    assert run(["profile", "use", "lab", "-o", "json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["current"] is True
    assert GatewayOptions().place().api_key == "fp_other"
    assert run(["profile", "delete", "lab"]) == ExitCode.OK
    assert (Profiles.load(file).current, [*Profiles.load(file).profiles]) == (None, ["prod", "dev"])
    assert run(["profile", "use", "dev"]) == ExitCode.OK
    assert (Profiles.load(file).current, "# The gateway of all teams." in file.read_text()) == ("dev", True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [entry.name for entry in file.parent.iterdir()] == ["config.toml"]

    for form in ("table", "json", "yaml", "name"):
        assert run(["profile", "list", "-o", form]) == run(["profile", "show", "prod", "-o", form]) == ExitCode.OK
    shown = capsys.readouterr()
    assert (KEY in shown.out + shown.err, "fp_other" in shown.out + shown.err) == (False, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profile", "set", "new"], "--url: is needed for a new profile"),
        (["profile", "set", "a b", "--url", "http://a"], "NAME: 'a b' must have letters"),
        (["profile", "set", "new", "--url", "nonsense"], "--url: 'nonsense' must begin with http://"),
        (["profile", "set", "dev"], "add --url or --key"),
        (["profile", "set", "dev", "--key"], "--key: standard input has no key"),
        (["profile", "use", "nope"], "has no profile 'nope' (it has: prod, dev)"),
        (["keys", "list", "--profile", "nope"], "--profile: "),
    ],
)
def test_a_wrong_profile_is_refused_with_the_remedy(
    arguments: list[str], words: str, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert run(arguments) == ExitCode.USAGE
    assert words in " ".join(capsys.readouterr().err.split())
    assert file.read_text() == FILE
