"""By what mappings are compared: the objective, then the other objectives, then what a search adds.

order = objectives("latency", latency, energy, offchip)     # columns: latency, energy, edp, offchip
first_row(order)                                            # the index of the best row
rank_before(order, row(order, 3))                           # which rows are better than row 3
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

Objective = Literal["latency", "energy", "edp", "offchip"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "energy", "edp", "offchip")

Ranking = tuple[float, ...]
"""The numbers of one mapping, the most important first; less is better."""


@cache
def objective_order(objective: Objective) -> tuple[Objective, ...]:
    """What a ranking begins with: the objective, then the others."""
    return (objective, *(other for other in OBJECTIVES if other != objective))


def objectives(objective: Objective, latency: Any, energy: Any, offchip: Any) -> list[Any]:
    """The objective and the others in order, from three of them: numbers or columns."""
    keys = {"latency": latency, "energy": energy, "edp": latency * energy, "offchip": offchip}
    return [keys[name] for name in objective_order(objective)]


def in_turn(rankings: Sequence[Ranking], objective: Objective) -> Ranking:
    """The objectives, in order, of kernels that run one after the other: sums, and products of sums."""
    order = objective_order(objective)
    latency, energy, offchip = (
        sum(ranking[order.index(name)] for ranking in rankings) for name in ("latency", "energy", "offchip")
    )
    return tuple(objectives(objective, latency, energy, offchip))


def first_row(keys: Sequence[Any]) -> int:
    """The index of the first of the rows by several keys in turn, the earliest of equals."""
    import numpy as np

    first = np.flatnonzero(keys[0] == keys[0].min())
    for key in keys[1:]:
        at = key[first]
        first = first[at == at.min()]
    return int(first[0])


def row(columns: Sequence[Any], index: int) -> Ranking:
    """One row of several columns."""
    (found,) = rows(columns, [index])
    return found


def rows(columns: Sequence[Any], indices: Sequence[int]) -> list[Ranking]:
    """Some rows of several columns."""
    import numpy as np

    return list(zip(*(np.asarray(column[indices], dtype=float).tolist() for column in columns), strict=True))


def rank_before(columns: Sequence[Any], ranking: Ranking, *, or_equal: bool = False) -> Any:
    """Which rows of numbers come before a ranking, number by number; as far as there are columns."""
    before: Any = False
    equal: Any = True
    for column, number in zip(columns, ranking, strict=False):
        before = before | (equal & (column < number))
        equal = equal & (column == number)
    return before | equal if or_equal else before


CLOSE_ENOUGH = 1.001
"""A mapping that cannot be faster than the best one by this factor is not worth a closer look."""


def latency_of(ranking: Ranking, objective: Objective) -> float:
    """The latency in a ranking."""
    return ranking[objective_order(objective).index("latency")]


def with_latency(ranking: Ranking, objective: Objective, cycles: float) -> Ranking:
    """A ranking (objective, then the others in order, then footprint) with another latency."""
    latency, edp = (objective_order(objective).index(name) for name in ("latency", "edp"))
    found = list(ranking)
    found[edp] *= cycles / ranking[latency] if ranking[latency] else 1.0
    found[latency] = cycles
    return tuple(found)


def with_latencies(columns: Sequence[Any], objective: Objective, cycles: Any) -> list[Any]:
    """Columns of rankings with other latencies."""
    latency, edp = (objective_order(objective).index(name) for name in ("latency", "edp"))
    found = list(columns)
    found[edp] = found[edp] * (cycles / columns[latency])
    found[latency] = cycles
    return found
