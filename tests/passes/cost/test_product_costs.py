"""The closed form of a product: exact in everything that is counted, and a bound on what takes time."""

from __future__ import annotations

import random
from functools import cache

import pytest

from flatc.passes.cost.bounds import mapping_bounds, problem_bounds
from flatc.passes.cost.primitive_costs import energy_pj
from flatc.passes.cost.product_costs import evaluate_product
from flatc.passes.kinds.product import PRODUCT
from flatc.passes.simulation.simulator import simulate_kernel
from tests.products import ProductCase, random_product_case


@cache
def case_of(seed: int) -> ProductCase:
    return random_product_case(random.Random(seed), ("edge", "cloud", "fusemax"))


@pytest.mark.parametrize("seed", range(60))
def test_counts_are_those_of_the_simulator(seed: int):
    case = case_of(seed)
    form = evaluate_product(case.problem, case.accelerator, case.mapping)
    simulated = simulate_kernel(case.kernel, case.accelerator)
    part = PRODUCT.read_back(case.kernel)
    assert part is not None
    for role, name in part.tensors.items():
        assert sum(simulated.tensor_bytes[name]) == form.tensor_bytes[role].item(), role
    assert form.peak_buffer_bytes.item() == simulated.peak_buffer_bytes
    for count in ("macs", "offchip_read_bytes", "offchip_write_bytes", "buffer_read_bytes", "buffer_write_bytes"):
        assert getattr(form.work, count) == getattr(simulated.work, count), count
    assert form.energy_pj.item() == pytest.approx(sum(energy_pj(case.accelerator, simulated.work).values()))
    for name, busy in simulated.busy_cycles.items():
        assert form.busy_cycles[name].item() == pytest.approx(float(busy), rel=1e-12), name


@pytest.mark.parametrize("seed", range(60))
def test_latency_is_a_bound(seed: int):
    case = case_of(seed)
    form = evaluate_product(case.problem, case.accelerator, case.mapping)
    simulated = simulate_kernel(case.kernel, case.accelerator)
    assert form.latency_cycles.item() <= float(simulated.latency_cycles) * (1 + 1e-12)
    least = problem_bounds([case.problem], case.accelerator)
    busy = mapping_bounds(simulated, case.accelerator)
    assert least.array_cycles <= busy.array_cycles
    assert least.offchip_cycles <= busy.offchip_cycles
    assert least.vector_cycles <= busy.vector_cycles
