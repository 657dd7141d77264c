"""Skipping ahead changes nothing: equal to plain simulation, to the tick, on random schedules.

Attention of all masks and mappings on machines of all kinds, and loop nests that no mapping makes; each also with
every way of skipping forced upon it (matrices for all, maps for all scripts, clocks that run over early).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flatc.accelerators import load
from flatc.builder import causal, first, window
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.cost.kernel_costs import count_events
from flatc.passes.simulation import skip_ahead
from flatc.passes.simulation.simulator import KernelSimulation, simulate_kernel, try_simulate
from flatc.passes.simulation.skip_ahead import FastSimulation
from flatc.passes.simulation.trip_plan import CannotSkip
from tests.random_nests import random_machine, random_nest
from tests.support import Shape, attention, kernels_of, random_case, schedule, schedule_of

SEEDS = st.integers(0, 1 << 32)
MOST_EVENTS = 100_000


def check(kernel: KernelOp, machine: Accelerator) -> None:
    plain = simulate_kernel(kernel, machine, skip_ahead=False)
    assert simulate_kernel(kernel, machine) == plain
    assert try_simulate(kernel, machine, 1 << 40) in (plain, None)


def check_attention(seed: int) -> None:
    rng = random.Random(seed)
    machine = random_machine(rng)
    check(random_case(rng).kernel, machine)


def check_nest(seed: int) -> None:
    rng = random.Random(seed)
    machine = random_machine(rng)
    check(random_nest(rng, machine), machine)


@given(SEEDS)
@settings(max_examples=12, deadline=None)
def test_attention(seed: int):
    check_attention(seed)


@given(SEEDS)
@settings(max_examples=10, deadline=None)
def test_attention_can_always_be_skipped(seed: int):
    rng = random.Random(seed)
    FastSimulation(random_case(rng).kernel, CostModel(random_machine(rng)))


@given(SEEDS)
@settings(max_examples=12, deadline=None)
def test_loop_nests(seed: int):
    check_nest(seed)


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=1500, deadline=None)
def test_much_attention(seed: int):
    check_attention(seed)


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=1000, deadline=None)
def test_many_loop_nests(seed: int):
    """Of nests that take no more than a second or two event by event; one in a hundred takes half a minute."""
    rng = random.Random(seed)
    machine = random_machine(rng)
    kernel = random_nest(rng, machine)
    assume(simulate_kernel(kernel, machine).events <= MOST_EVENTS)
    check(kernel, machine)


# --- Each way of skipping, forced ---------------------------------------------------------------------------

WAYS = {
    "events only": {"WORTH_A_MATRIX": 1 << 60, "LONGEST_PERIOD": 2, "WORTH_A_MAP": 1 << 60},
    "matrices": {"WORTH_A_MATRIX": 0},
    "maps": {"WORTH_A_MATRIX": 0, "LONGEST_PERIOD": 2, "WORTH_A_MAP": 1},
    "clocks that run over": {"LARGEST": 1 << 42},
}


@pytest.fixture(params=WAYS)
def forced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in WAYS[request.param].items():
        monkeypatch.setattr(skip_ahead, name, value)


_MAKERS: list[Callable[[random.Random, Accelerator], KernelOp]] = [
    lambda rng, machine: random_case(rng).kernel,
    random_nest,
]


@cache
def with_plain_simulations(seed: int) -> list[tuple[KernelOp, Accelerator, KernelSimulation]]:
    """An attention and a loop nest, and what both are without skipping: the same whatever is forced."""
    found: list[tuple[KernelOp, Accelerator, KernelSimulation]] = []
    for make in _MAKERS:
        rng = random.Random(seed)
        machine = random_machine(rng)
        kernel = make(rng, machine)
        found.append((kernel, machine, simulate_kernel(kernel, machine, skip_ahead=False)))
    return found


@pytest.mark.usefixtures("forced")
@pytest.mark.parametrize("seed", range(10))
def test_every_way_gives_the_same(seed: int):
    for kernel, machine, plain in with_plain_simulations(seed):
        assert simulate_kernel(kernel, machine) == plain
        assert try_simulate(kernel, machine, 1 << 40) in (plain, None)


# --- Long kernels -------------------------------------------------------------------------------------------


def drifting(trips: int) -> KernelOp:
    """Loads take 4.5 cycles and products 5: the channel gains half a cycle in each trip, for 60 slots."""
    module = schedule_of(f"""
spatial.schedule @drift inputs ["x"] (%t: !spatial.tensor<8x8xf32>) outputs ["x"] {{
  spatial.kernel "drift" {{
    spatial.for %i = 0 to {trips} {{
      %x = spatial.buffer "x" slots 60 : !spatial.buffer<8x8xf32>
      %y = spatial.buffer "y" slots 60 : !spatial.buffer<8x8xf32>
      spatial.for %j = 0 to 2 stream {{
        %load = spatial.load %t[0, 0] into %x extent [8, 8]
        %mul = spatial.matmul output (%x, %x) into %y extent [8, 8, 5] after(%load)
      }}
    }}
  }}
  spatial.return %t
}}""")
    attach_accelerator(module, load("edge"))
    module.verify()
    return kernels_of(module)[0]


def test_what_does_not_recur_is_a_power_all_the_same():
    machine = load("edge")
    check(drifting(200), machine)
    check(drifting(700), machine)
    found = try_simulate(drifting(1 << 40), machine, 20_000)
    assert found is not None
    assert found.events == 4 << 40


def long_causal(tokens: int, tile: int = 64, mask: bool = True) -> KernelOp:
    mapping = Mapping(
        Tiles(1, 1, 1, tile, tile, 8, 8),
        Keep(2, 2, 2, 2, 2),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("online", "late"),
        Stages(0, 0, 0, 1, 2),
    )
    sizes = Shape(batch=4, heads=3, queries=tokens, keys=tokens, d_qk=8, d_v=8)
    return schedule(attention(sizes, causal() if mask else None, "bf16", "f32"), mapping).kernels()[0]


def test_effort_does_not_grow_with_the_number_of_trips():
    """A million tokens, 3 * 10^9 key tiles: in a budget for a few thousand events."""
    kernel = long_causal(1 << 20, mask=False)
    assert count_events(kernel) > 10**9
    assert try_simulate(kernel, load("edge"), 3000) is not None
    assert try_simulate(kernel, load("edge"), 30) is None


def test_effort_of_triangles_grows_with_their_side():
    found = try_simulate(long_causal(1 << 16), load("edge"), 60_000)
    assert found is not None
    assert found.events > 10_000_000


@pytest.mark.parametrize("tokens", [512, 700])
def test_triangles_of_many_tiles(tokens: int):
    machine = replace(load("edge"), offchip=replace(load("edge").offchip, latency_cycles=100))
    check(long_causal(tokens, tile=16), machine)


def test_a_band_and_the_first_keys():
    """Two intervals of keys, in one loop over all of them."""
    mapping = Mapping(
        Tiles(1, 1, 1, 24, 8, 8, 8),
        Keep(2, 2, 2, 2, 2),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("rows", "early"),
        Stages(0, 0, 1, 2, 3),
    )
    graph = attention(
        Shape(batch=5, queries=300, keys=300, d_qk=8, d_v=8), causal() & (window(40) | first(9)), "bf16", "f32"
    )
    check(schedule(graph, mapping).kernels()[0], load("edge"))


# --- What cannot be skipped ---------------------------------------------------------------------------------


def test_a_token_that_left_the_pipeline_is_found_by_walking():
    """What the inner loop of the frame before ended with is asked for, long after its last trip."""
    module = schedule_of("""
spatial.schedule @old inputs ["x"] (%x: !spatial.tensor<8x8xf32>) outputs ["x"] {
  spatial.kernel "old" {
    %b = spatial.buffer "b" slots 1 : !spatial.buffer<8x8xf32>
    %s = spatial.start
    %d = spatial.for %i = 0 to 9 carry(%c = %s) {
      %e = spatial.for %j = 0 to 7 stream carry(%f = %c) {
        %l = spatial.load %x[0, 0] into %b extent [8, 8]
        %m = spatial.vector cast (%b) into (%b) extent [8, 8] after(%c)
        spatial.yield %l
      }
      spatial.yield %e
    }
  }
  spatial.return %x
}""")
    attach_accelerator(module, load("edge"))
    module.verify()
    (kernel,) = kernels_of(module)
    with pytest.raises(CannotSkip, match="token"):
        FastSimulation(kernel, CostModel(load("edge")))
    check(kernel, load("edge"))


def test_too_many_different_trips_are_not_planned(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flatc.passes.simulation.trip_plan.MOST_ROWS", 10)
    kernel = long_causal(512, tile=16)
    with pytest.raises(CannotSkip):
        FastSimulation(kernel, CostModel(load("edge")))
    assert try_simulate(kernel, load("edge"), 1 << 40) is None
    assert simulate_kernel(kernel, load("edge")).events > 0
