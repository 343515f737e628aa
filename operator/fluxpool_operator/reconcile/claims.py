"""Which pool owns which consumer group: of two pools that name the same one, the older.

Pure. `pool_reconciler` puts the claims and reports the conflicts.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupClaim:
    """The consumer groups of one pool."""

    uid: str
    name: str
    """Namespace and name, for messages."""
    created: str
    """The pool's creation time as Kubernetes writes it, which sorts by time."""
    groups: frozenset[tuple[str, str]]
    """Each bootstrap server with each group: pools conflict when they share a server and a group."""


class GroupClaims:
    """The claims of all pools."""

    def __init__(self) -> None:
        self._claims: dict[str, GroupClaim] = {}
        self._holders: dict[tuple[str, str], set[str]] = {}

    def put(self, claim: GroupClaim) -> frozenset[str]:
        """Add or change a pool's claim; returns the uids of the pools that this may affect."""
        known = self._claims.get(claim.uid)
        if known == claim:
            return frozenset()
        affected = self.remove(claim.uid)
        self._claims[claim.uid] = claim
        for group in claim.groups:
            self._holders.setdefault(group, set()).add(claim.uid)
        return affected | self._conflicting(claim)

    def remove(self, uid: str) -> frozenset[str]:
        """Remove a pool's claim; returns the uids of the pools that this may affect."""
        claim = self._claims.pop(uid, None)
        if claim is None:
            return frozenset()
        conflicting = self._conflicting(claim)
        for group in claim.groups:
            self._holders[group].discard(uid)
            if not self._holders[group]:
                del self._holders[group]
        return conflicting

    def conflict(self, uid: str) -> tuple[str, GroupClaim] | None:
        """The first of the pool's groups that an older pool owns, with the claim of that; None without a conflict."""
        claim = self._claims.get(uid)
        if claim is None:
            return None
        for server, group in sorted(claim.groups):
            # The oldest pool owns it; of two of one second either, but always the same.
            first = min(
                (self._claims[other] for other in self._holders[server, group]), key=lambda it: (it.created, it.uid)
            )
            if first.uid != uid:
                return group, first
        return None

    def _conflicting(self, claim: GroupClaim) -> frozenset[str]:
        held = (self._holders.get(group, ()) for group in claim.groups)
        return frozenset(uid for holders in held for uid in holders if uid != claim.uid)
