"""Which brokers and token endpoints the operator may connect to, where those who write pools are not trusted.

Pure. `*` in a host or a port stands for letters, digits, `.`, `_` and `-`: never for what would move the end of a
host's name. In the path of an endpoint it stands for anything.
"""

import re
from collections.abc import Sequence

_HOST_STAR = "[A-Za-z0-9._-]*"
_PATH_STAR = r"[^\s?#]*"


def refused_brokers(servers: Sequence[str], *, allowed: Sequence[str]) -> tuple[str, ...]:
    """The `host:port` addresses that match no pattern; none when there are no patterns."""
    patterns = [_expression(pattern, star=_HOST_STAR) for pattern in allowed]
    return tuple(server for server in servers if patterns and not _matches(server, patterns))


def is_endpoint_refused(endpoint: str, *, allowed: Sequence[str]) -> bool:
    """Whether a token endpoint's address matches no pattern; never when there are no patterns."""
    patterns = []
    for pattern in allowed:
        scheme, _, rest = pattern.partition("://")
        host, slash, path = rest.partition("/")
        patterns.append(_expression(f"{scheme}://{host}", star=_HOST_STAR) + _expression(slash + path, star=_PATH_STAR))
    return bool(patterns) and not _matches(endpoint, patterns)


def _expression(pattern: str, *, star: str) -> str:
    return star.join(map(re.escape, pattern.split("*")))


def _matches(address: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, address, re.IGNORECASE) for pattern in patterns)
