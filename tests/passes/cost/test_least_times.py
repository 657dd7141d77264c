"""Latency of the closed form: never more than the simulator's."""

from __future__ import annotations

from fractions import Fraction

import pytest

from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Case, any_case, only


@pytest.mark.parametrize("seed", range(80))
def test_no_latency_lies_below_the_least_times(seed: int):
    case = any_case(seed)
    form = evaluate_mapping(case.problem, case.accelerator, case.mapping)
    simulation = simulate_kernel(case.kernel, case.accelerator)
    assert Fraction(only(form.latency_cycles)) <= simulation.latency_cycles * (1 + Fraction(1, 10**12))
    closed, busy = only(form.busy_cycles["vector"]), simulation.busy_cycles.get("vector", 0)
    assert closed <= busy if varying_strips(case) else closed == busy


def varying_strips(case: Case) -> bool:
    """Row strips of a masked kernel differ in length; their last partly filled vectors are not rounded up."""
    return case.mapping.softmax.algorithm == "rows" and case.problem.mask is not None
