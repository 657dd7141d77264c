"""Laws that every cost obeys, whatever the graph, the mapping and the machine.

No cost is below its bound; more of a resource is never slower; twice the clock and bandwidth take half the seconds;
batch and heads have no order; three readings of a schedule count the same bytes; energy is a sum.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatc.accelerators import load
from flatc.builder import causal
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.interpreter import random_inputs, run_schedule
from flatc.passes.cost.bounds import RESOURCES, mapping_bounds, problem_bounds
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.cost.primitive_costs import energy_pj
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.mapping.search import find_mapping
from flatc.passes.simulation.simulator import simulate_kernel
from flatc.passes.simulation.stalls import kernel_time
from tests.random_nests import random_machine
from tests.support import MASKS, Case, Choice, Shape, attention, fused, lower, random_case, strict_machine

SEEDS = st.integers(0, 1 << 32)


def case_and_machine(seed: int) -> tuple[Case, Accelerator]:
    """A random attention with a random mapping, and a machine with one or two channels and latencies of all kinds."""
    rng = random.Random(seed)
    return random_case(rng), random_machine(rng)


def small_machine(rng: random.Random) -> Accelerator:
    """A machine whose array, lanes, buffer and bandwidth are odd, and may each be what is short."""
    machine, written = load(rng.choice(["edge", "fusemax"])), rng.choice([1, 3, 8]) * 10**9
    read = written * rng.choice([1, 7])
    offchip = replace(machine.offchip, channels="separate", read_bytes_per_second=read, write_bytes_per_second=written)
    return replace(
        machine,
        array=replace(machine.array, rows=rng.choice([3, 8, 32]), columns=rng.choice([5, 8, 32])),
        vector=replace(machine.vector, lanes=rng.choice([2, 3, 32])),
        buffer=replace(machine.buffer, capacity_bytes=rng.choice([3000, 6000, 50_000])),
        offchip=offchip,
    )


def faster(machine: Accelerator) -> Iterator[Accelerator]:
    """The machine with more lanes, or more bandwidth one way or both."""
    memory = machine.offchip
    read, written = memory.read_bytes_per_second, memory.write_bytes_per_second
    yield replace(machine, vector=replace(machine.vector, lanes=machine.vector.lanes + 1))
    yield replace(machine, vector=replace(machine.vector, lanes=machine.vector.lanes * 4))
    yield replace(machine, offchip=replace(memory, read_bytes_per_second=read * 3, write_bytes_per_second=written * 3))
    if memory.channels == "separate":
        yield replace(machine, offchip=replace(memory, write_bytes_per_second=written * 2))


# --- Time ---------------------------------------------------------------------------------------------------


@given(SEEDS)
@settings(max_examples=12, deadline=None)
def test_no_schedule_is_faster_than_its_bounds(seed: int):
    case, machine = case_and_machine(seed)
    simulated = simulate_kernel(case.kernel, machine)
    least, busy = problem_bounds([case.problem], machine), mapping_bounds(simulated, machine)
    assert busy.cycles <= simulated.latency_cycles
    assert all(least.of(resource) <= busy.of(resource) for resource in RESOURCES)
    closed = evaluate_mapping(case.problem, machine, case.mapping).latency_cycles.item()
    assert closed <= simulated.latency_cycles * (1 + Fraction(1, 10**12))


@given(SEEDS)
@settings(max_examples=6, deadline=None)
def test_a_schedule_is_never_slower_with_more_lanes_or_bandwidth(seed: int):
    case, machine = case_and_machine(seed)
    before = simulate_kernel(case.kernel, machine).latency_cycles
    for better in faster(machine):
        assert simulate_kernel(case.kernel, better).latency_cycles <= before


@given(SEEDS)
@settings(max_examples=6, deadline=None)
def test_a_schedule_is_never_slower_on_a_larger_array_whose_skew_is_hidden(seed: int):
    case, machine = case_and_machine(seed)
    array = replace(machine.array, skew="none")
    before = simulate_kernel(case.kernel, replace(machine, array=array)).latency_cycles
    for rows, columns in ((array.rows + 1, array.columns), (array.rows, 2 * array.columns)):
        larger = replace(machine, array=replace(array, rows=rows, columns=columns))
        assert simulate_kernel(case.kernel, larger).latency_cycles <= before


@given(SEEDS)
@settings(max_examples=4, deadline=None)
def test_the_best_mapping_is_never_worse_with_more_lanes_bandwidth_or_capacity(seed: int):
    rng = random.Random(seed)
    kv_heads, machine, mask = rng.choice([1, 2]), small_machine(rng), rng.choice(MASKS)
    shape = Shape(2, kv_heads * 2, kv_heads, rng.choice([1, 7, 40]), rng.choice([3, 33, 64]), 20, rng.choice([4, 16]))
    (kernel,) = fused(attention(shape, mask() if mask else None, "bf16", "f32"))
    problem, strategy = match_kernel(kernel).problem, rng.choice(["auto", "online", "flat-r"])
    roomier = replace(machine.buffer, capacity_bytes=machine.buffer.capacity_bytes + 500)
    try:
        before = find_mapping(problem, machine, strategy).ranking[0]
    except FlatcError:
        return
    for better in (replace(machine, buffer=roomier), *faster(machine)):
        assert find_mapping(problem, better, strategy).ranking[0] <= before


@given(SEEDS)
@settings(max_examples=6, deadline=None)
def test_twice_the_clock_and_bandwidth_take_half_the_seconds(seed: int):
    case, machine = case_and_machine(seed)
    memory = machine.offchip
    read, written = memory.read_bytes_per_second, memory.write_bytes_per_second
    offchip = replace(memory, read_bytes_per_second=2 * read, write_bytes_per_second=2 * written)
    twice = replace(machine, clock_hz=2 * machine.clock_hz, offchip=offchip)
    before, after = kernel_time(case.kernel, machine), kernel_time(case.kernel, twice)
    assert after == before  # in cycles, stalls and all
    assert twice.seconds(after.latency_cycles) == machine.seconds(before.latency_cycles) / 2


def test_a_mask_that_hides_everything_leaves_mappings_to_choose_from():
    (kernel,) = fused(attention(Shape(heads=2, kv_heads=2, queries=1, keys=3), causal(-5), "bf16", "f32"))
    assert find_mapping(match_kernel(kernel).problem, load("edge")).ranking[0] > 0  # zeros are written


# --- Bytes and energy -----------------------------------------------------------------------------------------


@given(SEEDS)
@settings(max_examples=6, deadline=None)
def test_interpreter_simulator_and_closed_form_move_the_same_bytes(seed: int):
    case = random_case(random.Random(seed))
    module = case.schedule.parent_op()
    assert module is not None
    simulated = simulate_kernel(case.kernel, case.accelerator).tensor_bytes
    run = run_schedule(module, random_inputs(module, seed % 100))  # pyright: ignore[reportArgumentType]
    assert {name: moved for name, moved in run.offchip_bytes.items() if any(moved)} == simulated
    closed = evaluate_mapping(case.problem, case.accelerator, case.mapping).tensor_bytes
    names = {"q": "q", "k": "k", "v": "v", "result": "o"}
    assert {names[role]: size.item() for role, size in closed.items()} == {
        name: sum(simulated.get(name, (0, 0))) for name in names.values()
    }


@given(SEEDS)
@settings(max_examples=12, deadline=None)
def test_energy_is_the_sum_over_all_operations_and_components(seed: int):
    case, machine = case_and_machine(seed)
    model, simulated = CostModel(machine), simulate_kernel(case.kernel, machine)
    parts = energy_pj(machine, simulated.work)
    executed = kernel_time(case.kernel, machine).executed
    for name, total in parts.items():
        one_by_one = sum(energy_pj(machine, model.price(*key).work)[name] * times for key, times in executed.items())
        assert total == pytest.approx(one_by_one, rel=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_permuting_batch_and_heads_changes_nothing_but_the_order(seed: int):
    rng = np.random.default_rng(seed)
    mask, shape = MASKS[seed], Shape(batch=3, heads=6, kv_heads=3, queries=7, keys=13, d_qk=5, d_v=4)
    graph = attention(shape, mask() if mask else None)
    schedule = lower(graph, Choice("online" if seed % 2 else "rows"), machine=strict_machine())
    inputs = random_inputs(graph, seed)
    batch, kv_heads = rng.permutation(3), rng.permutation(3)
    heads = (2 * kv_heads[:, None] + np.arange(2)).ravel()
    order = {"q": heads, "k": kv_heads, "v": kv_heads}
    mixed = {name: array[batch][:, order[name]] for name, array in inputs.items()}
    (plain,), (output,) = run_schedule(schedule, inputs).outputs, run_schedule(schedule, mixed).outputs
    np.testing.assert_allclose(output, plain[batch][:, heads], rtol=1e-12)
