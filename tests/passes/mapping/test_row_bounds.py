"""Bounds of what may still win, by walking through it: only mappings that cannot win are left out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.attention_trips import trip_cycles
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.mapping import row_bounds
from flatc.passes.mapping.priced_space import PricedSpace
from flatc.passes.mapping.ranking import Objective
from flatc.passes.mapping.row_bounds import MOST_TRIPS, RowBounds
from tests.support import Shape, attention, fused


def space(mask: MaskExpr | None, objective: Objective = "latency") -> PricedSpace:
    shape = Shape(batch=1, heads=8, kv_heads=4, queries=64, keys=64, d_qk=16, d_v=16)
    (kernel,) = fused(attention(shape, mask, "bf16", "f32"))
    return PricedSpace(match_kernel(kernel).problem, load("cloud"), "auto", objective)


def walked(whole: PricedSpace, mapping: Mapping) -> float:
    return trip_cycles(whole.problem, whole.accelerator, mapping) or math.inf


def test_what_is_left_out_is_no_faster_than_the_best_known():
    whole = space(causal())
    bounds, left_out, tighter = RowBounds(whole), 0, 0
    families = [candidates for candidates in whole.families if candidates.any]
    known = min(walked(whole, candidates.first_look().mapping) for candidates in families)
    for candidates in families:
        before = candidates.before((known,))
        found = bounds.tighten(candidates, before, (known,))
        closed = dict(zip(before.pairs.tolist(), before.order[0].tolist(), strict=True))
        for pair, cycles in zip(found.pairs.tolist(), found.order[0].tolist(), strict=True):
            assert closed[pair] <= cycles < known
            tighter += cycles > closed[pair]
        for pair in np.setdiff1d(before.pairs, found.pairs)[:3].tolist():
            assert walked(whole, candidates.mapping(pair)) >= known * (1 - 1e-12)
            left_out += 1
    assert left_out
    assert tighter
    assert 0 <= bounds.left < MOST_TRIPS


@pytest.mark.parametrize(("masked", "objective"), [(False, "latency"), (True, "energy")])
def test_where_latencies_of_rows_do_not_differ_or_count_nothing_changes(masked: bool, objective: Objective):
    whole = space(causal() if masked else None, objective)
    for candidates in whole.families[::7]:
        before = candidates.before((math.inf,))
        assert RowBounds(whole).tighten(candidates, before, (math.inf,)) is before


def test_no_more_trips_are_walked_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_bounds, "MOST_TRIPS", 3)
    whole = space(causal())
    bounds = RowBounds(whole)
    for candidates in whole.families:
        if candidates.any:
            bounds.tighten(candidates, candidates.before((math.inf,)), (math.inf,))
    assert 0 <= bounds.left <= 3
