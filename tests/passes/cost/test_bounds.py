"""Bounds: exact counts of what a mask shows, the three numbers by hand, and no cost below them, ever."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from flatc.accelerators import load
from flatc.builder import causal
from flatc.dialects.accelerator import NO_VECTOR_UNIT
from flatc.dialects.masks import Causal, Chunk, FirstN, Mask, Window, allows
from flatc.passes.cost.bounds import (
    RESOURCES,
    Bounds,
    compulsory_bytes,
    least_macs,
    mapping_bounds,
    problem_bounds,
)
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.visible import visible
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import UNFUSED, Shape, attention, fused, random_case

EDGE = load("edge")


def problem(sizes: Shape | None = None, **changes: object) -> AttentionProblem:
    (kernel,) = fused(attention(sizes or Shape(queries=4, keys=8, d_qk=16, d_v=32), None, "bf16", "f32"))
    return replace(match_kernel(kernel).problem, **changes)  # pyright: ignore[reportArgumentType]


# --- What a mask shows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    [
        Causal(0),
        Causal(-3),
        Causal(200),
        Window(3, 0, 2),
        Causal(1) & (Window(4, 0, 1) | FirstN(2)),
        Window(2, 1, -9),
        Causal(-50),
        Window(3, 0, 2) | Chunk(4, 0),
        FirstN(1) | Window(2, 0, 4) | Window(2, 0, 7) | Chunk(3, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 13), (13, 7)])
def test_visible_pairs_are_counted_as_the_mask_defines_them(mask: Mask, queries: int, keys: int):
    shown = allows(mask, np.arange(queries)[:, None], np.arange(keys)[None, :]) & np.ones((queries, keys), bool)
    found = visible(mask, queries, keys)
    assert (found.pairs, found.keys, found.queries) == (shown.sum(), shown.any(0).sum(), shown.any(1).sum())


def test_without_a_mask_everything_is_visible():
    assert visible(None, 10**6, 10**6).pairs == 10**12


# --- The numbers, by hand -----------------------------------------------------------------------------------


def test_the_three_bounds_by_hand():
    """4 queries, 8 keys, d_qk 16, d_v 32 in bf16 on 1024 PEs, 32 lanes, and 50 GiB/s at 940 MHz."""
    bounds = problem_bounds([problem()], EDGE)
    assert bounds.array_cycles == Fraction(4 * 8 * (16 + 32), 1024)
    assert bounds.offchip_cycles == (4 * 16 + 8 * 16 + 8 * 32 + 4 * 32) * 2 * Fraction(940, 50 * 2**30) * 10**6
    assert bounds.vector_cycles == Fraction(32 + 32 + 32, 32)  # max, exp, and dividing 32 probabilities early
    assert bounds.cycles == bounds.offchip_cycles
    assert bounds.binding == "off-chip"


def test_late_division_counts_where_it_is_the_smaller_one():
    late = problem_bounds([problem(Shape(queries=2, keys=100, d_qk=8, d_v=4))], EDGE)
    assert late.vector_cycles == Fraction(200 + 200 + 2 * 4, 32)


def test_narrow_heads_are_bound_by_their_softmax():
    """32 lanes do two operations for each of 512 scores of a row and divide 32 outputs, beside 32 x 32 PEs."""
    found = problem_bounds([problem(Shape(queries=512, keys=512, d_qk=32, d_v=32))], EDGE)
    assert (found.binding, found.vector_cycles / found.array_cycles) == ("vector", Fraction(2 * 512 + 32, 2 * 512))


def test_a_mask_needs_work_for_visible_pairs_only():
    masked = problem(
        Shape(queries=4, keys=8, d_qk=16, d_v=16), mask=Causal(0), stages=("logit", "mask", "softmax", "attend")
    )
    assert least_macs(masked) == (1 + 2 + 3 + 4) * 32
    assert compulsory_bytes(masked) == {"q": 4 * 16 * 2, "k": 4 * 16 * 2, "v": 4 * 16 * 2, "result": 4 * 16 * 2}


def test_keys_and_values_count_once_for_all_query_heads_of_a_group():
    grouped = compulsory_bytes(problem(Shape(heads=8, kv_heads=2, queries=4, keys=8, d_qk=16, d_v=32)))
    assert grouped["k"] == 2 * 8 * 16 * 2
    assert grouped["q"] == 8 * 4 * 16 * 2


def test_separate_channels_work_side_by_side():
    separate = replace(EDGE, offchip=replace(EDGE.offchip, channels="separate"))
    read, written = (4 * 16 + 8 * 16 + 8 * 32) * 2, 4 * 32 * 2
    assert read > written
    assert problem_bounds([problem()], separate).offchip_cycles == read * separate.cycles_per_byte_read


def test_pes_that_do_max_and_exp_relieve_the_vector_unit():
    fusemax = load("fusemax")
    assert problem_bounds([problem()], fusemax).vector_cycles == Fraction(4 * 8, 256)  # only the division is left


def test_what_a_machine_does_for_free_bounds_nothing():
    prices = replace(EDGE.vector.prices, exp=0, max=0, divide=0)
    assert problem_bounds([problem()], replace(EDGE, vector=replace(EDGE.vector, prices=prices))).vector_cycles == 0
    assert problem_bounds([problem()], replace(EDGE, vector=NO_VECTOR_UNIT)).vector_cycles == 0


def test_tensors_that_are_shared_or_stay_inside_count_once_or_not():
    one = problem()
    shared = {"q": "q", "k": "k", "v": "v"}
    alone = problem_bounds([one], EDGE)
    both = problem_bounds([one, one], EDGE, [shared | {"result": None}, shared | {"result": "o"}])
    assert both.offchip_cycles == alone.offchip_cycles
    assert both.array_cycles == 2 * alone.array_cycles


def test_parts_of_attention_have_bounds_of_their_own():
    logit, softmax, attend = (
        match_kernel(kernel).problem
        for kernel in fused(attention(Shape(queries=4, keys=8, d_qk=16, d_v=32), causal(), "bf16", "f32"), UNFUSED)
    )
    scores = 4 * 8
    assert compulsory_bytes(logit) == {"q": 4 * 16 * 2, "k": 8 * 16 * 2, "result": scores * 4}
    # Offset 4 shows 5 + 6 + 7 + 8 of the 32 scores; all probabilities are written, hidden ones as zeros.
    assert compulsory_bytes(softmax) == {"scores": 26 * 4, "result": scores * 2}
    assert compulsory_bytes(attend) == {"scores": scores * 2, "v": 8 * 32 * 2, "result": 4 * 32 * 2}


def test_bounds_add_up_and_name_what_binds():
    total = Bounds(Fraction(1), Fraction(2), Fraction(3)) + Bounds(Fraction(4), Fraction(1), Fraction(0))
    assert total == Bounds(Fraction(5), Fraction(3), Fraction(3))
    assert (total.cycles, total.binding) == (5, "array")


# --- No cost is below its bound -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_no_cost_is_below_its_bound(seed: int):
    case = random_case(random.Random(seed))
    least = problem_bounds([case.problem], case.accelerator)
    simulation = simulate_kernel(case.kernel, case.accelerator)
    form = evaluate_mapping(case.problem, case.accelerator, case.mapping)
    executed, counted = (mapping_bounds(costs, case.accelerator) for costs in (simulation, form))
    for resource in RESOURCES:
        assert least.of(resource) <= counted.of(resource) <= executed.of(resource)
    assert executed.cycles <= simulation.latency_cycles
    assert least.cycles <= Fraction(form.latency_cycles[0].item()) * (1 + Fraction(1, 10**12))
