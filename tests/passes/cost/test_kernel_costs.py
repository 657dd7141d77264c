"""Where costs come from: both sources agree on everything but latency, and events are counted without walking."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from flatc.accelerators import load
from flatc.builder import causal
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.kernel_costs import count_events, kernel_costs
from flatc.passes.simulation.program_order import walk
from tests.support import Shape, any_case, attention, random_case, random_mapping, schedule

SMALL = Shape(queries=8, keys=8, d_qk=8, d_v=8)


@pytest.mark.parametrize("seed", range(30))
def test_simulation_and_closed_form_agree_on_all_but_latency(seed: int):
    case = any_case(seed)
    simulated = kernel_costs(case.kernel, case.accelerator, "always")
    counted = kernel_costs(case.kernel, case.accelerator, "never")
    assert (simulated.source, counted.source) == ("simulated", "closed form")
    assert counted.tensor_bytes == simulated.tensor_bytes
    assert counted.peak_buffer_bytes == simulated.peak_buffer_bytes
    assert counted.work.macs == simulated.work.macs
    assert counted.latency_cycles <= simulated.latency_cycles


@pytest.mark.parametrize("seed", range(30))
def test_events_are_counted_as_the_walk_meets_them(seed: int):
    kernel = any_case(seed).kernel
    walked = 0
    for event in walk(kernel):
        event.complete(0)
        walked += 1
    assert count_events(kernel) == walked


def test_counting_takes_no_time_that_grows_with_the_number_of_events():
    sizes = replace(SMALL, batch=1000, queries=10_000, keys=10_000)
    tiny = random_mapping(random.Random(0), SMALL)
    tiles = replace(tiny.tiles, batch=1, query=1, key=1, d_qk=8, d_v=8)
    mapping = replace(tiny, tiles=tiles, softmax=Softmax("online", "late"), keep=Keep(2, 4, 4, 4, 4))
    kernel = schedule(attention(sizes, None, "bf16", "f32"), mapping).kernels()[0]
    assert count_events(kernel) > 1000 * 10_000 * 10_000


def causal_kernel(tile: int) -> KernelOp:
    """16 heads of 64K tokens, 2^33 key tiles of 64 and more of smaller ones."""
    mapping = Mapping(
        Tiles(1, 1, 1, tile, 64, 8, 8),
        Keep(2, 2, 2, 2, 2),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("rows", "late"),
        Stages(0, 0, 0, 1, 2),
    )
    sizes = Shape(batch=16, queries=1 << 16, keys=1 << 16, d_qk=8, d_v=8)
    big = replace(load("cloud"), buffer=replace(load("cloud").buffer, capacity_bytes=1 << 40))
    return schedule(attention(sizes, causal(), "bf16", "f32"), mapping, big).kernels()[0]


def test_long_kernels_are_simulated():
    kernel = causal_kernel(64)
    assert count_events(kernel) > 10_000_000
    assert kernel_costs(kernel, load("cloud")).source == "simulated"


def test_what_takes_too_long_is_priced_by_its_closed_form():
    """Every row of its own: 64K tiles of queries of which no two are alike."""
    kernel = causal_kernel(1)
    assert kernel_costs(kernel, load("cloud")).source == "closed form"
    kernel.mapping = None
    with pytest.raises(FlatcError, match="without a mapping it has no closed form"):
        kernel_costs(kernel, load("cloud"))


def test_the_source_can_be_asked_for():
    case = random_case(random.Random(1))
    assert kernel_costs(case.kernel, case.accelerator).source == "simulated"
    assert kernel_costs(case.kernel, case.accelerator, "never").source == "closed form"
