"""Sums of what people say, by tenant and preset.

A rating's reward is its score, 1 to 5, or else its thumb. A comparison of two presets is a reward for both: 1 for the
winner, 0 for the loser, a half each for a tie, 0 for both when both are bad.
"""

from collections import defaultdict
from collections.abc import Sequence

from sqlalchemy import Connection, case, func, select

from fluxpool_contract.messages import Preference
from fluxpool_gateway.presets.bandit import Evidence
from fluxpool_gateway.store.tables import comparisons, ratings


def read_evidence(connection: Connection, names: Sequence[str]) -> dict[str, dict[str, Evidence]]:
    """What every tenant is known to prefer among these presets."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    reward = ratings.c.reward_quarters
    statements = [
        select(ratings.c.tenant, ratings.c.preset, func.sum(reward), func.count())
        .where(ratings.c.preset.in_(names), reward.is_not(None))
        .group_by(ratings.c.tenant, ratings.c.preset)
    ]
    a, b = comparisons.c.a_preset, comparisons.c.b_preset
    for side, preset in ((Preference.A, a), (Preference.B, b)):
        won = case(
            (comparisons.c.preferred == side.value, 4), (comparisons.c.preferred == Preference.TIE.value, 2), else_=0
        )
        statements.append(
            select(comparisons.c.tenant, preset, func.sum(won), func.count())
            .where(a.in_(names), b.in_(names), a != b)
            .group_by(comparisons.c.tenant, preset)
        )
    for statement in statements:
        for tenant, preset, quarters, count in connection.execute(statement):
            known = sums[tenant, preset]
            known[0] += int(quarters)
            known[1] += count
    found: dict[str, dict[str, Evidence]] = defaultdict(dict)
    for (tenant, name), (quarters, count) in sums.items():
        found[tenant][name] = Evidence(quarters, count)
    return dict(found)
