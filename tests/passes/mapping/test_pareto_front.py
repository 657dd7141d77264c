"""The front against brute force: every mapping of a small space, priced one by one."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from flatc.accelerators import load
from flatc.passes.cost.closed_form import evaluate
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.pareto_front import Pair, pareto_front
from flatc.passes.mapping.priced_space import PricedSpace
from flatc.passes.mapping.ranking import OBJECTIVES, objective_order, objectives
from flatc.passes.mapping.search import spaces

EDGE = load("edge")
SMALL = replace(EDGE, buffer=replace(EDGE.buffer, capacity_bytes=1500))
WORDS = {"q": 2, "k": 2, "v": 2, "score": 4, "probability": 2, "accumulator": 4, "output": 2}
PROBLEM = AttentionProblem(
    ("logit", "softmax", "attend"),
    *(1, 2, 1, 5, 6, 16, 16),
    *WORDS.values(),
    converts_probabilities=True,
    converts_output=True,
)
"""Two heads, 5 queries and 6 keys of 16."""


def everything(space: PricedSpace, pair: Pair) -> set[tuple[float, float]]:
    """What every mapping costs in the two objectives, also under uses of the array that a rule leaves out."""
    places = [objective_order(space.objective).index(name) for name in pair]
    found: set[tuple[float, float]] = set()
    for candidates in space.families:
        for structure in candidates.structures:
            column = space.array.with_folds(candidates.columns(np.flatnonzero(candidates.fits)), structure)
            cost = evaluate(space.problem, space.accelerator, structure, column)
            order = objectives(space.objective, cost.latency_cycles, cost.energy_pj, cost.offchip_bytes)
            found |= set(zip(*(order[place].tolist() for place in places), strict=True))
    return found


@pytest.mark.parametrize("pair", [*combinations(OBJECTIVES, 2), ("energy", "latency")], ids="-".join)
def test_it_is_what_nothing_beats(pair: Pair) -> None:
    found = spaces(PROBLEM, SMALL, "auto", pair[0])
    points = pareto_front(found, pair)
    second = objective_order(pair[0]).index(pair[1])
    front = [(point.ranking[0], point.ranking[second]) for point in points]
    every = {cost for space in found for cost in everything(space, pair)}
    beaten = {one for one in every for other in every if other != one and other[0] <= one[0] and other[1] <= one[1]}
    assert front == sorted(every - beaten)
    assert len({point.mapping() for point in points}) == len(points)
