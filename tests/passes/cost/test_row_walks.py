"""Walks through many mappings at once, held against the walk through each and the simulator."""

from __future__ import annotations

import random

import numpy as np
import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, window
from flatc.dialects.accelerator import Accelerator
from flatc.passes.cost.attention_trips import trip_cycles
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.row_walks import MOST_HEAD_TILES, is_covered, row_walks, trips_to_walk
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.priced_space import Candidates, PricedSpace
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Shape, attention, fused

CASES = [
    (Shape(batch=1, heads=8, kv_heads=4, queries=64, keys=64, d_qk=16, d_v=16), causal(), "cloud"),
    (Shape(batch=3, heads=10, kv_heads=5, queries=50, keys=70, d_qk=8, d_v=12), causal(offset=20), "edge"),
    (Shape(batch=1, heads=2, kv_heads=1, queries=96, keys=96, d_qk=8, d_v=8), causal() & window(20), "cloud"),
    (Shape(batch=2, heads=2, kv_heads=2, queries=40, keys=33, d_qk=8, d_v=8), None, "edge"),
]


def space_of(problem: AttentionProblem, machine: Accelerator) -> PricedSpace:
    return PricedSpace(problem, machine, "auto", "latency")


def alike(candidates: Candidates, pair: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """All pairs of a family that share tiles of heads and query tiles with one of them."""
    tiles, at = candidates.space.tiles, candidates.uses.tile
    same = [
        getattr(tiles, name)[at] == getattr(tiles, name)[at[pair]] for name in ("batch", "kv_head", "group", "query")
    ]
    return np.intersect1d(candidates.pairs, np.flatnonzero(np.logical_and.reduce(same)))


def groups_of(
    candidates: Candidates, pairs: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> list[tuple[Structure, Columns]]:
    """Each pair alone, as a group of one mapping."""
    found: list[tuple[Structure, Columns]] = []
    for pair in pairs.tolist():
        structure = candidates.structures[int(candidates.uses.which[pair])]
        columns = candidates.columns(candidates.uses.tile[[pair]])
        found.append((structure, candidates.space.array.with_folds(columns, structure)))
    return found


@pytest.mark.parametrize(("shape", "mask", "machine"), CASES, ids=["triangle", "chunk", "window", "no mask"])
def test_each_mapping_takes_what_its_own_walk_says(shape: Shape, mask: MaskExpr | None, machine: str):
    """Exactly, where all tiles of heads are walked through, and no more elsewhere."""
    (kernel,) = fused(attention(shape, mask, "bf16", "f32"))
    problem, accelerator, rng = match_kernel(kernel).problem, load(machine), random.Random(1)
    exact = 0
    for candidates in space_of(problem, accelerator).families:
        if not candidates.any or not is_covered(problem, candidates.structures[0]):
            continue
        pairs = alike(candidates, rng.choice(candidates.pairs.tolist()))[:12]
        cycles = np.concatenate(row_walks(problem, accelerator, groups_of(candidates, pairs)))
        for pair, found in rng.sample(list(zip(pairs.tolist(), cycles.tolist(), strict=True)), min(3, len(pairs))):
            mapping = candidates.mapping(pair)
            walked, tiles = trip_cycles(problem, accelerator, mapping), mapping.tiles
            assert walked is not None
            heads = (problem.batch // tiles.batch) * (problem.kv_heads // tiles.kv_head)
            if heads <= MOST_HEAD_TILES:
                assert found == pytest.approx(walked, rel=1e-12)
                exact += 1
            simulated = float(simulate_kernel(lower_kernel_alone(kernel, mapping), accelerator).latency_cycles)
            assert found <= simulated * (1 + 1e-12)
    assert exact


def test_mappings_that_share_all_but_key_tiles_are_walked_through_together():
    """A group of many columns is the same as many groups of one."""
    (kernel,) = fused(attention(*CASES[0][:2], "bf16", "f32"))
    problem, accelerator = match_kernel(kernel).problem, load("cloud")
    families = space_of(problem, accelerator).families
    candidates = next(one for one in families if one.any and is_covered(problem, one.structures[0]))
    pairs = max((alike(candidates, pair) for pair in candidates.pairs[::50].tolist()), key=len)
    which = candidates.uses.which[pairs]
    common = int(np.argmax(np.bincount(which)))
    pairs, structure = pairs[which == common], candidates.structures[common]
    columns = candidates.space.array.with_folds(candidates.columns(candidates.uses.tile[pairs]), structure)
    (together,) = row_walks(problem, accelerator, [(structure, columns)])
    assert len(pairs) > 3
    assert together.tolist() == np.concatenate(row_walks(problem, accelerator, groups_of(candidates, pairs))).tolist()
    assert (trips_to_walk(problem, columns) == trips_to_walk(problem, columns)[0]).all()
