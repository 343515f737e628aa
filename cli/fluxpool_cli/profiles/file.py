"""The file of profiles, `$XDG_CONFIG_HOME/fluxpool/config.toml`, by default below `~/.config`.

Owns its form, its mode (0600: it has API keys) and what is refused in it. Never shows a key.
"""

import os
import re
import stat
import tempfile
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from fluxpool_cli.exit_codes import CommandError, ExitCode

PROFILE_VARIABLE: Final = "FLUXPOOL_PROFILE"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_FIELDS: Final = frozenset({"url", "api_key"})


def config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the profiles of this user are."""
    base = environment.get("XDG_CONFIG_HOME", "")
    # The standard has relative values ignored.
    folder = Path(base) if base.startswith("/") else Path(environment.get("HOME", "~")).expanduser() / ".config"
    return folder / "fluxpool" / "config.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A gateway, and the key for it."""

    name: str
    url: str | None
    api_key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """All profiles of a file; one that is missing has none."""

    file: Path
    current: str | None
    """Used where neither an option nor the environment says otherwise."""
    profiles: Mapping[str, Profile]

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read the file; raises `CommandError` (2) with the file and what is wrong in it."""
        try:
            with file.open("rb") as opened:
                mode = os.fstat(opened.fileno()).st_mode
                document = tomllib.load(opened)
        except FileNotFoundError:
            return cls(file=file, current=None, profiles={})
        except OSError as error:
            raise _refusal(file, f"cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise _refusal(file, f"is not TOML ({error}); correct or remove it") from None
        tables = document.get("profiles", {})
        current = document.get("profile")
        unknown = sorted(document.keys() - {"profile", "profiles"})
        if unknown:
            raise _refusal(file, f"{unknown[0]}: is not known; use profile and [profiles.NAME]")
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise _refusal(file, 'profiles: must be tables such as [profiles.prod] with url = "https://..."')
        profiles = {name: _profile(file, name, table) for name, table in tables.items()}
        if current is not None and (not isinstance(current, str) or current not in profiles):
            raise _refusal(file, f"profile: {current!r} must be one of {', '.join(profiles) or 'its profiles'}")
        if any(profile.api_key for profile in profiles.values()) and mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise _refusal(file, f"has API keys and may be used by others; run `chmod 600 {file}`")
        return cls(file=file, current=current, profiles=profiles)

    def named(self, name: str, *, source: str) -> Profile:
        """The profile with a name that an option or a variable has; raises `CommandError` (2)."""
        if name not in self.profiles:
            there = ", ".join(self.profiles) or "none"
            raise CommandError(
                ExitCode.USAGE,
                f"{source}: {self.file} has no profile {name!r} (it has: {there}); "
                "create it with `fluxpool profile set NAME --url URL`",
            )
        return self.profiles[name]


def _profile(file: Path, name: str, table: Mapping[str, Any]) -> Profile:
    for field, value in table.items():
        if field not in _FIELDS:
            raise _refusal(file, f"profiles.{name}.{field}: is not known; a profile has url and api_key")
        if not isinstance(value, str) or not value:
            raise _refusal(file, f"profiles.{name}.{field}: must be text that is not empty")
    return Profile(name=name, url=table.get("url"), api_key=table.get("api_key"))


def check_name(name: str) -> str:
    """The name of a new profile; raises `ValueError`."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} must have letters, digits, dots, dashes and underscores, at most 63")
    return name


def set_profile(file: Path, name: str, fields: Mapping[str, str]) -> None:
    """Add a profile, or replace these fields of it."""
    document = _parsed(file)
    profiles = document.setdefault("profiles", {})
    profiles.setdefault(name, {}).update(fields)
    _write(file, document)


def remove_profile(file: Path, name: str) -> None:
    """Remove a profile; it is no longer the current one either."""
    document = _parsed(file)
    document["profiles"].pop(name)
    if document.get("profile") == name:
        document.pop("profile")
    _write(file, document)


def use_profile(file: Path, name: str) -> None:
    """Make a profile the current one."""
    document = _parsed(file)
    # A value after a table would belong to it: that of the file has to come first.
    if "profile" in document:
        document["profile"] = name
        _write(file, document)
        return
    import tomlkit  # noqa: PLC0415

    _write_text(file, f"profile = {tomlkit.string(name).as_string()}\n{tomlkit.dumps(document)}")


def _parsed(file: Path) -> Any:
    # Only commands that change the file need it; others read with the standard library.
    import tomlkit  # noqa: PLC0415

    Profiles.load(file)
    return tomlkit.parse(file.read_text(encoding="utf-8")) if file.exists() else tomlkit.document()


def _write(file: Path, document: Any) -> None:
    import tomlkit  # noqa: PLC0415

    _write_text(file, tomlkit.dumps(document))


def _write_text(file: Path, text: str) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Made with mode 0600, and replaced at once: a reader never sees half a file, nor anyone else a key.
        descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as written:
                written.write(text)
            Path(partial).replace(file)
        finally:
            with suppress(FileNotFoundError):
                Path(partial).unlink()
    except OSError as error:
        raise CommandError(ExitCode.FAILED, f"{file} cannot be written: {error.strerror}") from None


def _refusal(file: Path, reason: str) -> CommandError:
    return CommandError(ExitCode.USAGE, f"{file}: {reason}")
