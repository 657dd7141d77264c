"""Stalls of whole scripts are those of the plain simulation, to the tick and to the cause, on random schedules."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, window
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation import stall_scripts
from flatc.passes.simulation.simulator import simulate_kernel
from flatc.passes.simulation.stalls import kernel_time
from tests.random_nests import random_machine, random_nest
from tests.support import Shape, attention, random_case, schedule

SEEDS = st.integers(0, 1 << 32)


def check(seed: int) -> None:
    rng = random.Random(seed)
    machine = random_machine(rng)
    for kernel in (random_case(rng).kernel, random_nest(rng, machine)):
        assert kernel_time(kernel, machine) == kernel_time(kernel, machine, skip_ahead=False)


@given(SEEDS)
@settings(max_examples=4, deadline=None)
def test_any_schedule(seed: int):
    check(seed)


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=800, deadline=None)
def test_many_schedules(seed: int):
    check(seed)


@pytest.mark.parametrize("seed", range(4))
def test_courses_that_are_too_long_to_remember(seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stall_scripts, "LONGEST_COURSE", 1)
    check(seed)


@pytest.mark.parametrize("mask", [None, causal(), causal() & window(4096)], ids=["full", "causal", "window"])
def test_a_long_layer_takes_about_as_much_effort_as_a_short_one(mask: MaskExpr | None):
    mapping = Mapping(
        Tiles(1, 1, 1, 256, 256, 64, 64),
        Keep(2, 2, 2, 2, 2),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("online", "late"),
        Stages(0, 0, 1, 1, 2),
    )
    tokens = 1 << 16
    shape = Shape(batch=8, heads=12, kv_heads=12, queries=tokens, keys=tokens, d_qk=64, d_v=64)
    machine = load("cloud")
    kernel = schedule(attention(shape, mask, "bf16", "f32"), mapping, machine).kernels()[0]
    scripts = stall_scripts.StallScripts(kernel, CostModel(machine), 50_000)
    simulated = simulate_kernel(kernel, machine)
    assert scripts.end == simulated.latency_cycles * scripts.model.ticks_per_cycle
    assert simulated.events > 1_000_000
