"""The closed form against the simulator: what it counts is exact (`test_least_times` has latency). A kernel by hand."""

from __future__ import annotations

from dataclasses import fields

import pytest

from flatc.accelerators import load
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.attention_trips import walk
from flatc.passes.cost.closed_form import evaluate_mapping, tight_form
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.kernels.schedule_problem import kernel_attention
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Shape, any_case, attention, only, schedule


@pytest.mark.parametrize("seed", range(80))
def test_the_closed_form_counts_what_the_simulator_executes(seed: int):
    case = any_case(seed)
    form = evaluate_mapping(case.problem, case.accelerator, case.mapping)
    simulation = simulate_kernel(case.kernel, case.accelerator)

    found = kernel_attention(case.kernel)
    assert found is not None
    for role, size in form.tensor_bytes.items():
        assert only(size) == sum(simulation.tensor_bytes.get(found.tensors[role], (0, 0))), role
    assert only(form.peak_buffer_bytes) == simulation.peak_buffer_bytes
    assert only(form.busy_cycles["array"]) == simulation.busy_cycles.get("array", 0)
    for field in fields(Work):
        counted, executed = only(getattr(form.work, field.name)), getattr(simulation.work, field.name)
        assert counted == pytest.approx(executed, rel=1e-12), field.name


def test_a_kernel_by_hand():
    """4 rows of 8 keys on edge, in one tile, every number from the definitions."""
    sizes = Shape(queries=4, keys=8, d_qk=16, d_v=16)
    mapping = Mapping(
        Tiles(1, 1, 1, 4, 8, 16, 16),
        Keep(1, 1, 1, 1, 1),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("online", "late"),
        Stages(0, 0, 0, 0, 0),
    )
    made = schedule(attention(sizes, None, "bf16", "f32"), mapping)
    found = kernel_attention(made.kernels()[0])
    assert found is not None
    form = evaluate_mapping(found.problem, load("edge"), mapping)
    assert {role: only(size) for role, size in form.tensor_bytes.items()} == {
        "q": 4 * 16 * 2,
        "k": 8 * 16 * 2,
        "v": 8 * 16 * 2,
        "result": 4 * 16 * 2,
    }
    assert only(form.work.macs) == 4 * 8 * 16 + 4 * 16 * 8
    # Output stationary: the logit passes 16 in time, the attend 8; skews overlap and delay results only.
    assert only(form.busy_cycles["array"]) == 16 + 8
    # 32 scores fill the 32 lanes once: max, and exp and add; 4 rows: max, exp, multiply, add; 64 outputs: divide.
    assert only(form.busy_cycles["vector"]) == (1 + 2) + (2 + 2) + 2


@pytest.mark.parametrize("seed", range(40))
def test_numbers_are_priced_as_columns_are(seed: int):
    case = any_case(seed)
    column = evaluate_mapping(case.problem, case.accelerator, case.mapping)
    alone = tight_form(case.problem, case.accelerator, case.mapping)
    assert {role: only(size) for role, size in alone.tensor_bytes.items()} == {
        role: only(size) for role, size in column.tensor_bytes.items()
    }
    assert {name: only(cycles) for name, cycles in alone.busy_cycles.items()} == {
        name: only(cycles) for name, cycles in column.busy_cycles.items()
    }
    for name, count in vars(column.work).items():
        assert only(getattr(alone.work, name)) == only(count), name
    assert only(alone.energy_pj) == only(column.energy_pj)
    assert only(alone.peak_buffer_bytes) == only(column.peak_buffer_bytes)
    assert only(alone.latency_cycles) >= only(column.latency_cycles)


@pytest.mark.parametrize("seed", range(40))
def test_where_a_walk_lost_nothing_no_bound_of_the_search_is_above_it(seed: int):
    """The closed form of one mapping asks for these bounds only where the walk did lose something."""
    case = any_case(seed)
    walked = walk(case.problem, case.accelerator, case.mapping)
    searched = float(evaluate_mapping(case.problem, case.accelerator, case.mapping).latency_cycles[0])
    tight = float(tight_form(case.problem, case.accelerator, case.mapping).latency_cycles[0])
    assert tight >= searched * (1 - 1e-12)
    if walked is not None and walked.evenly:
        assert tight == walked.cycles
