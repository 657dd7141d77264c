"""The walk through a few trips of an attention against the simulator, which executes its schedule."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from flatc.passes.cost.attention_trips import trip_cycles
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import any_case


@pytest.mark.parametrize("seed", range(60))
def test_the_walk_is_a_bound_from_both_sides(seed: int):
    """On machines that load and store apart or not, and whose transfers come late and take time to begin."""
    case, rng = any_case(seed), random.Random(seed)
    offchip = replace(
        case.accelerator.offchip,
        channels=rng.choice(["shared", "separate"]),
        latency_cycles=rng.choice([0, 0, 40]),
        overhead_cycles=rng.choice([0, 0, 9]),
    )
    machine = replace(case.accelerator, offchip=offchip)
    walked = trip_cycles(case.problem, machine, case.mapping)
    if walked is None:
        return
    simulated = float(simulate_kernel(case.kernel, machine).latency_cycles)
    assert walked <= simulated * (1 + 1e-12)
    assert simulated <= 1.01 * walked
    quick = trip_cycles(case.problem, machine, case.mapping, rng.choice([1, 2, 3]))
    assert quick is not None
    assert quick <= simulated * (1 + 1e-12)
