"""Which rooms of the product this installation can run: the packages of each come with an extra of `fluxpool`.

Imports none of them: a room that is whole may take seconds.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from typing import Final

from fluxpool_cli.exit_codes import CommandError, ExitCode

_DISTRIBUTION: Final = "fluxpool"
_REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)(\[(?P<extras>[^]]*)\])?.*extra == ['\"](?P<of>[^'\"]+)['\"]"
)


def require_room(extra: str, *, purpose: str) -> None:
    """Raise `CommandError` (2), with the packages that are missing and the remedy, unless all of an extra are there."""
    missing = sorted(name for name in set(_packages(extra)) if not _is_installed(name))
    if missing:
        named = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
        raise CommandError(
            ExitCode.USAGE,
            f"{purpose} needs packages that are missing here ({named}); install '{_DISTRIBUTION}[{extra}]'",
        )


def _packages(extra: str) -> Iterator[str]:
    """The packages of an extra, and of the extras that it includes."""
    for text in importlib.metadata.requires(_DISTRIBUTION) or ():
        found = _REQUIREMENT.match(text)
        if found is None or found["of"] != extra:
            continue
        if found["name"] == _DISTRIBUTION:
            for included in found["extras"].split(","):
                yield from _packages(included.strip())
        else:
            yield found["name"]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
