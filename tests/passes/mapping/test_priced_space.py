"""The rules that leave mappings out, held against everything they leave out."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from flatc.builder import MaskExpr, causal
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.mapping_columns import mapping_at
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.priced_space import Candidates, PricedSpace
from flatc.passes.mapping.ranking import OBJECTIVES, Objective, Ranking
from flatc.passes.simulation.simulator import simulate_kernel
from tests.passes.mapping.test_search import kernels, machine, rankings, whole
from tests.support import Shape

SHAPES: list[tuple[Shape, MaskExpr | None]] = [
    (Shape(heads=2, queries=3, keys=4, d_qk=3, d_v=6), None),
    (Shape(batch=2, heads=2, queries=5, keys=7, d_qk=9, d_v=2), causal()),
]


def exposed() -> Accelerator:
    """Every stationarity, and a skew that each pass pays."""
    small = machine(2_000)
    return replace(small, array=replace(small.array, stationarities=("output", "weight", "input"), skew="exposed"))


def uses(space: PricedSpace, candidates: Candidates) -> Iterator[tuple[int, bool, Mapping]]:
    """(tile, whether it is kept, mapping) for every use of the array of every mapping that fits."""
    for structure in candidates.structures:
        column = space.array.with_folds(candidates.columns(np.arange(len(candidates.fits))), structure)
        kept = space.array.undominated(structure)
        for tile in np.flatnonzero(candidates.fits).tolist():
            yield tile, bool(kept[tile]), mapping_at(space.problem, structure, column, tile)


@pytest.mark.parametrize("accelerator", [machine(2_000), exposed()], ids=["overlapped", "exposed"])
@pytest.mark.parametrize(("shape", "mask"), SHAPES, ids=["full", "causal"])
def test_a_dominated_use_of_the_array_never_ranks_first(shape: Shape, mask: MaskExpr | None, accelerator: Accelerator):
    space = PricedSpace(whole(shape, mask), accelerator, "online", "latency")
    left_out = 0
    for candidates in space.families[:1]:
        fitting = np.flatnonzero(candidates.fits).tolist()
        chosen = set(random.Random(1).sample(fitting, min(40, len(fitting))))
        best: dict[int, Ranking] = {}
        dominated: dict[int, list[Ranking]] = {}
        for index, kept, mapping in uses(space, candidates):
            if index not in chosen:
                continue
            ranking = rankings(space.problem, accelerator, mapping)["latency"]
            if kept:
                best[index] = min(best.get(index, ranking), ranking)
            else:
                dominated.setdefault(index, []).append(ranking)
        assert set(best) == chosen, "some use of each is kept"
        left_out += sum(map(len, dominated.values()))
        assert all(best[index] <= ranking for index, others in dominated.items() for ranking in others)
    assert left_out


@pytest.mark.parametrize(("shape", "mask"), SHAPES, ids=["full", "causal"])
def test_a_dominated_use_of_the_array_is_not_faster_when_simulated(shape: Shape, mask: MaskExpr | None):
    accelerator = exposed()
    (kernel,) = kernels(shape, mask)
    space = PricedSpace(whole(shape, mask), accelerator, "online", "latency")
    candidates = space.families[0]
    every = list(uses(space, candidates))

    def cycles(mapping: Mapping) -> float:
        return float(simulate_kernel(lower_kernel_alone(kernel, mapping), accelerator).latency_cycles)

    for index in random.Random(3).sample(np.flatnonzero(candidates.fits).tolist(), 2):
        kept = [cycles(mapping) for i, keep, mapping in every if i == index and keep]
        dominated = [cycles(mapping) for i, keep, mapping in every if i == index and not keep]
        assert min(kept) <= min(dominated)


def test_a_slot_that_is_never_filled_makes_nothing_faster():
    """Where one tile has all heads, two slots for all their K and V are one slot in more room."""
    accelerator, (kernel,) = machine(20_000), kernels(*SHAPES[1])
    space = PricedSpace(whole(*SHAPES[1]), accelerator, "auto", "latency")
    alike = {candidates.family: candidates for candidates in space.families}
    seen = 0
    for candidates in space.families:
        family = candidates.family
        single = alike.get(replace(family, pipelining=replace(family.pipelining, head_slots=1)), candidates)
        left_out = np.setdiff1d(np.flatnonzero(candidates.fits), candidates.uses.tile[candidates.pairs])
        for tile in random.Random(7).sample(left_out.tolist(), min(2, len(left_out))):
            double, one = (mapping_of(each, tile) for each in (candidates, single))
            assert single.fits[tile]
            assert single.peak[tile] < candidates.peak[tile]
            assert replace(double, keep=one.keep) == one
            found = [simulate_kernel(lower_kernel_alone(kernel, each), accelerator) for each in (double, one)]
            assert found[0].latency_cycles == found[1].latency_cycles
            assert found[0].work == found[1].work
            seen += 1
    assert seen


def mapping_of(candidates: Candidates, tile: int) -> Mapping:
    """The mapping of a tile with the first use of the array, whether it may win or not."""
    return candidates.mapping(int(np.flatnonzero(candidates.uses.tile == tile)[0]))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_ranks_before_a_mapping_is_counted_exactly(objective: Objective):
    """Counting prices few mappings; here they are all priced."""
    accelerator = machine(2_000)
    problem = whole(*SHAPES[0])
    space = PricedSpace(problem, accelerator, "flat-r", objective)
    candidates = space.families[0]
    every = sorted(
        rankings(problem, accelerator, mapping)[objective] for _, kept, mapping in uses(space, candidates) if kept
    )
    for place in (0, len(every) // 3, len(every) - 1):
        before = candidates.before(every[place])
        assert before.total == sum(ranking < every[place] for ranking in every)
        assert all(one.ranking < every[place] for one in before.first(3))
        assert min((one.ranking for one in before.first(3)), default=every[0]) == every[0]
    assert candidates.before(every[-1]).best().ranking == every[0]


def test_bounds_lie_below_every_ranking():
    accelerator = machine(2_000)
    problem = whole(*SHAPES[1])
    for objective in OBJECTIVES:
        space = PricedSpace(problem, accelerator, "auto", objective)
        for candidates in space.families[::5]:
            pairs: list[int] = candidates.pairs.tolist()
            for place, pair in random.Random(5).sample(list(enumerate(pairs)), 20):
                form = evaluate_mapping(problem, accelerator, candidates.mapping(pair))
                latency, energy = float(form.latency_cycles[0]), float(form.energy_pj[0])
                costs = {"latency": latency, "energy": energy, "edp": latency * energy}
                costs["offchip"] = float(form.offchip_bytes[0])
                order = [objective, *(other for other in OBJECTIVES if other != objective)]
                for bound, name in zip(candidates.bounds, order, strict=True):
                    assert bound[place] <= costs[name] * (1 + 1e-12)
            assert candidates.least_bound <= candidates.first_look().ranking


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_prices_of_pairs_are_those_of_their_mappings(objective: Objective):
    """Uses of the array are counted together, for all tiles; here each mapping is priced on its own."""
    problem, accelerator = whole(*SHAPES[1]), exposed()
    for candidates in PricedSpace(problem, accelerator, "auto", objective).families[::3]:
        for one in candidates.before((math.inf,)).first(10):
            assert rankings(problem, accelerator, one.mapping)[objective] == pytest.approx(one.ranking, rel=1e-12)
