"""Which pool reads which consumer group: of two that name the same one, the older pool keeps it.

Pure: claims in, claims out. Must not know how pools are seen or what the later one is told.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupClaim:
    """The groups that one pool reads."""

    uid: str
    name: str
    """Namespace and name, for messages."""
    created: str
    """The pool's creation time as Kubernetes writes it, which sorts by time."""
    groups: frozenset[tuple[str, str]]
    """Each bootstrap server with each group: two addresses of one cluster that never meet in a list look like two."""

    @property
    def precedence(self) -> tuple[str, str]:
        """Sorts claims: the oldest pool first, any fixed order among equals."""
        return (self.created, self.uid)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupConflict:
    """Another pool that reads one of the same groups and came first."""

    group: str
    holder: str
    """Namespace and name of the other pool."""


class GroupClaims:
    """The claims of all pools that are looked after."""

    def __init__(self) -> None:
        self._claims: dict[str, GroupClaim] = {}
        self._holders: dict[tuple[str, str], set[str]] = {}

    def put(self, claim: GroupClaim) -> frozenset[str]:
        """Add or change a pool's claim; returns the uids of other pools that this may concern."""
        known = self._claims.get(claim.uid)
        if known == claim:
            return frozenset()
        concerned = self.remove(claim.uid)
        self._claims[claim.uid] = claim
        for group in claim.groups:
            self._holders.setdefault(group, set()).add(claim.uid)
        return concerned | self._conflicting(claim)

    def remove(self, uid: str) -> frozenset[str]:
        """Forget a pool's claim; returns the uids of other pools that this may concern."""
        claim = self._claims.pop(uid, None)
        if claim is None:
            return frozenset()
        conflicting = self._conflicting(claim)
        for group in claim.groups:
            self._holders[group].discard(uid)
            if not self._holders[group]:
                del self._holders[group]
        return conflicting

    def conflict(self, uid: str) -> GroupConflict | None:
        """The pool that keeps this one from its groups; None when there is none."""
        claim = self._claims.get(uid)
        if claim is None:
            return None
        for server, group in sorted(claim.groups):
            first = min((self._claims[other] for other in self._holders[server, group]), key=lambda it: it.precedence)
            if first.uid != uid:
                return GroupConflict(group=group, holder=first.name)
        return None

    def _conflicting(self, claim: GroupClaim) -> frozenset[str]:
        held = (self._holders.get(group, ()) for group in claim.groups)
        return frozenset(uid for holders in held for uid in holders if uid != claim.uid)
