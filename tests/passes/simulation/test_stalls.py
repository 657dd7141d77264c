"""Where time goes: every resource's busy time, stalls and remainder add up to the latency, to the tick."""

import random
from dataclasses import replace

import pytest

from flatc.accelerators import load
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.simulation.simulator import simulate_kernel
from flatc.passes.simulation.stalls import KernelTime, Stall, kernel_time
from tests.support import Case, Shape, attention, random_case, schedule

ONLINE = Mapping(
    Tiles(1, 1, 1, 16, 16, 8, 8),
    Keep(2, 2, 2, 2, 2),
    ArrayUse("output"),
    ArrayUse("output"),
    Softmax("online", "late"),
    Stages(0, 0, 1, 1, 2),
)


def times(case: Case) -> KernelTime:
    return kernel_time(case.kernel, case.accelerator)


@pytest.mark.parametrize("seed", range(30))
def test_busy_time_stalls_and_the_rest_are_the_latency(seed: int) -> None:
    case = random_case(random.Random(seed))
    time, simulated = times(case), simulate_kernel(case.kernel, case.accelerator, skip_ahead=False)
    assert time.latency_cycles == simulated.latency_cycles
    assert {name: use.busy for name, use in time.resources.items()} == simulated.busy_cycles
    for use in time.resources.values():
        assert use.busy + sum(use.stalls.values()) + use.after == time.latency_cycles
        assert all(cycles > 0 for cycles in use.stalls.values())


def test_the_first_product_waits_for_the_load_before_it() -> None:
    kernel = schedule(attention(Shape(queries=32, keys=32, d_qk=8, d_v=8), None, "bf16", "f32"), ONLINE).kernels()[0]
    array = kernel_time(kernel, load("edge")).resources["array"]
    assert Stall("array", "offchip", "load k") in array.stalls


def test_a_single_slot_makes_the_channel_wait_for_it() -> None:
    single = replace(ONLINE, keep=replace(ONLINE.keep, k_slots=1))
    kernel = schedule(attention(Shape(queries=32, keys=64, d_qk=8, d_v=8), None, "bf16", "f32"), single).kernels()[0]
    channel = kernel_time(kernel, load("edge")).resources["offchip"]
    assert Stall("offchip", "slots", "K") in channel.stalls
