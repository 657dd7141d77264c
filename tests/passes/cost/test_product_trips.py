"""The walk through a few turns of a product against the simulator, which executes its schedule."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from flatc.passes.cost.product_trips import product_cycles
from flatc.passes.simulation.simulator import simulate_kernel
from tests.products import random_product_case


@pytest.mark.parametrize("seed", range(60))
def test_the_walk_is_as_long_as_the_simulation(seed: int):
    """On machines that load and store apart or not, and whose transfers come late and take time to begin."""
    rng = random.Random(seed)
    case = random_product_case(rng, ("edge", "cloud", "fusemax"))
    offchip = replace(
        case.accelerator.offchip,
        channels=rng.choice(["shared", "separate"]),
        latency_cycles=rng.choice([0, 40]),
        overhead_cycles=rng.choice([0, 9]),
    )
    machine = replace(case.accelerator, offchip=offchip)
    simulated = float(simulate_kernel(case.kernel, machine).latency_cycles)
    assert product_cycles(case.problem, machine, case.mapping) == pytest.approx(simulated, rel=1e-12)
