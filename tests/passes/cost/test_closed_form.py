"""The closed form against the simulator: what it counts is exact, and its latency is a bound that comes near."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from fractions import Fraction
from typing import Any

import pytest

from flatc.accelerators import load
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.dialects.masks import Causal
from flatc.passes.cost.closed_form import (
    SharedCounts,
    Structure,
    columns_of,
    evaluate,
    evaluate_mapping,
    mapping_at,
    peak_buffer_bytes,
    structure_of,
)
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.kernels.schedule_problem import kernel_attention
from flatc.passes.mapping.map_space import columns, families, tiles
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Case, Shape, attention, random_case, random_placed_case, schedule


def only(column: Any) -> Any:
    """The single entry of a column, or the number itself."""
    return column.item() if hasattr(column, "item") else column


def case_of(seed: int) -> Case:
    """A random case; every other one leaves parts of the softmax to PEs or to the attend product."""
    rng = random.Random(seed)
    return random_placed_case(rng) if seed % 2 else random_case(rng)


@pytest.mark.parametrize("seed", range(80))
def test_the_closed_form_counts_what_the_simulator_executes(seed: int):
    case = case_of(seed)
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


@pytest.mark.parametrize("seed", range(80))
def test_the_closed_form_never_takes_longer_than_the_simulator(seed: int):
    case = case_of(seed)
    form = evaluate_mapping(case.problem, case.accelerator, case.mapping)
    simulation = simulate_kernel(case.kernel, case.accelerator)
    assert Fraction(only(form.latency_cycles)) <= simulation.latency_cycles * (1 + Fraction(1, 10**12))
    closed, busy = only(form.busy_cycles["vector"]), simulation.busy_cycles.get("vector", 0)
    assert closed <= busy if varying_strips(case) else closed == busy


def varying_strips(case: Case) -> bool:
    """Row strips of a masked kernel differ in length; their last partly filled vectors are not rounded up."""
    return case.mapping.softmax.algorithm == "rows" and case.problem.mask is not None


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


def test_columns_hold_mappings_and_give_them_back():
    case = random_case(random.Random(5))
    columns = columns_of(case.mapping)
    assert columns.size == 1
    assert mapping_at(case.problem, structure_of(case.mapping), columns, 0) == case.mapping


def test_shared_counts_are_those_of_each_mapping_alone():
    """A whole space priced from what its tiles share, against its mappings one by one."""
    stages = ("logit", "mask", "softmax", "attend")
    problem = replace(random_case(random.Random(7)).problem, stages=stages, queries=7, keys=10, mask=Causal(2))
    accelerator = load("edge")
    space = tiles(problem, accelerator, "auto")
    one = space.query * 0 + 1
    shared = SharedCounts(problem, accelerator, space, lambda product, structure: (one, one))
    for family in families(problem, "auto", load("fusemax")):
        for uses in (("output", "weight"), ("input", "output")):
            places = (family.k_level, family.v_level, *uses)
            structure = Structure(family.algorithm, family.divide, *places, **vars(family.placement))
            column = columns(space, family)
            peak = peak_buffer_bytes(problem, structure, column, shared.geometry)
            together = evaluate(problem, accelerator, structure, column, shared.counts(structure), peak)
            for i in random.Random(1).sample(range(space.size), 5):
                alone = evaluate_mapping(problem, accelerator, mapping_at(problem, structure, column, i))
                assert together.latency_cycles[i] == only(alone.latency_cycles)
                assert together.energy_pj[i] == only(alone.energy_pj)
                assert together.offchip_bytes[i] == only(alone.offchip_bytes)
                assert together.peak_buffer_bytes[i] == only(alone.peak_buffer_bytes)
