"""The search of products: the best of a stated space, found without pricing all of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import product as combinations

import numpy as np
import pytest

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.passes.cost.primitive_costs import MatmulTile, largest_folds
from flatc.passes.cost.product_costs import (
    ProductColumns,
    ProductCounts,
    ProductStructure,
    evaluate,
    evaluate_product,
    quick_bounds,
)
from flatc.passes.kernels.product_problem import ProductProblem
from flatc.passes.mapping.product_legality import check_product_mapping
from flatc.passes.mapping.product_search import LOOPS, coarse_tiles, find_products, slot_choices, tile_columns
from flatc.passes.mapping.ranking import OBJECTIVES, Objective, objectives

PROBLEMS = [
    ProductProblem(100, 64, 96, 2, 2, 2, 4, 2, converts_output=True),
    ProductProblem(1, 300, 77, 2, 2, None, 4, 2, converts_output=True),
    ProductProblem(37, 5, 400, 4, 4, None, 4, 4),
]


def machine(capacity: int = 40_000) -> Accelerator:
    edge = load("edge")
    return replace(edge, buffer=replace(edge.buffer, capacity_bytes=capacity))


def everything(problem: ProductProblem, accelerator: Accelerator, objective: Objective) -> float:
    """The best number of the objective, by pricing every mapping of the space in full."""
    m, n, k = tile_columns(problem, accelerator)
    one, best = np.ones_like(m), np.inf
    for loops, stationarity in combinations(LOOPS, accelerator.array.stationarities):
        structure = ProductStructure(*loops, stationarity)
        rows, cols = largest_folds(accelerator.array, stationarity, MatmulTile(1, m, n, k))
        for x, w, sums, y, store in slot_choices(problem, structure):
            columns = ProductColumns(
                m, n, k, one * x, one * w, one * sums, one * y, rows, cols, one * 0, one * 0, one * store
            )
            cost = evaluate(problem, accelerator, structure, columns)
            fits = cost.peak_buffer_bytes <= accelerator.buffer.capacity_bytes
            numbers = objectives(objective, cost.latency_cycles, cost.energy_pj, cost.offchip_bytes)[0]
            best = min(best, float(numbers[fits].astype(np.float64).min(initial=np.inf)))
    return best


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.m}x{p.n}x{p.k}")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_nothing_in_the_space_is_better(problem: ProductProblem, objective: Objective):
    """The search prices few mappings in full, and loses none by it."""
    accelerator = machine()
    best = find_products(problem, accelerator, objective)[0]
    assert best.ranking[0] <= everything(problem, accelerator, objective)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.m}x{p.n}x{p.k}")
def test_what_is_found_can_be_scheduled_and_costs_what_was_said(problem: ProductProblem):
    for choice in find_products(problem, machine()):
        check_product_mapping(problem, choice.mapping, machine(), "product")
        form = evaluate_product(problem, machine(), choice.mapping)
        assert form.latency_cycles.item() == choice.ranking[0]
        assert form.peak_buffer_bytes.item() <= 40_000
        assert 0 < choice.legal <= choice.covered


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.m}x{p.n}x{p.k}")
def test_quick_bounds_are_bounds(problem: ProductProblem):
    m, n, k = tile_columns(problem, machine())
    one = np.ones_like(m)
    columns = ProductColumns(m, n, k, one, one, one, one, one, one, one * 0, one * 0, one * 0)
    for loops in LOOPS:
        structure = ProductStructure(*loops, "weight")
        cost = evaluate(problem, machine(), structure, columns)
        latency, energy, moved = quick_bounds(ProductCounts(problem, machine(), "weight", columns), structure, 0)
        assert (latency <= cost.latency_cycles).all()
        assert (energy <= cost.energy_pj).all()
        assert (moved == cost.offchip_bytes).all()


def test_more_buffer_is_never_slower():
    for problem in PROBLEMS:
        times = [find_products(problem, machine(capacity))[0].ranking[0] for capacity in (5_000, 20_000, 80_000)]
        assert times == sorted(times, reverse=True)


def test_a_buffer_too_small_is_refused_with_what_is_needed():
    with pytest.raises(FlatcError, match="no mapping fits the 10 bytes of edge's buffer; the smallest needs "):
        find_products(PROBLEMS[0], machine(10), kernel="linear")


def test_a_machine_without_vector_unit_cannot_convert():
    with pytest.raises(FlatcError, match="has no vector unit, and the product needs one to add the bias"):
        find_products(PROBLEMS[0], load("rtl16"))
    assert find_products(PROBLEMS[2], load("rtl16"))


def test_coarse_tiles_are_sides_times_powers_of_two_and_balanced_parts():
    assert coarse_tiles(100, 32) == [17, 25, 32, 34, 50, 64, 100]
