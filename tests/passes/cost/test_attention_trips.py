"""The walk through a few trips of an attention against the simulator, which executes its schedule."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.builder import causal
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import MappingAttr
from flatc.passes.cost import attention_steps, attention_trips, trip_steps
from flatc.passes.cost.attention_trips import trip_cycles, walk
from flatc.passes.cost.query_tiles import GrowingTiles, query_tiles
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Case, Shape, any_case, attention, fused, lower_mapped, random_mapping


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
    quick = walk(case.problem, machine, case.mapping, rng.choice([1, 2, 3]))
    assert quick is not None
    assert quick.cycles <= simulated * (1 + 1e-12)


def triangle(rng: random.Random) -> Case:
    """A causal attention of many query tiles, and a legal mapping."""
    while True:
        tokens, machine = rng.randint(80, 200), load(rng.choice(["edge", "cloud"]))
        machine = replace(machine, offchip=replace(machine.offchip, channels=rng.choice(["shared", "separate"])))
        shape = Shape(rng.choice([1, 2]), 2, rng.choice([1, 2]), tokens, tokens, 8, 5)
        module = attention(shape, causal(), "bf16", "f32")
        (kernel,) = fused(module)
        drawn = random_mapping(rng, shape)
        tiles = replace(drawn.tiles, query=rng.choice([1, 2, 3, 4]), key=rng.choice([1, 2, 4, 8]))
        mapping = replace(drawn, tiles=tiles, interleave=1)
        kernel.mapping = MappingAttr(mapping)
        try:
            return Case(match_kernel(kernel).problem, mapping, machine, lower_mapped(module, machine))
        except (VerifyException, FlatcError) as error:
            if " need" not in str(error):
                raise


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 200))])
def test_query_tiles_that_grow_evenly_are_passed_over_and_nothing_is_lost(seed: int, monkeypatch: pytest.MonkeyPatch):
    """A triangle's walk takes as long as that through all its query tiles, and no longer than the simulation."""
    case = triangle(random.Random(seed))
    walked = trip_cycles(case.problem, case.accelerator, case.mapping)
    assert walked is not None
    monkeypatch.setattr(attention_trips, "_steady_growth", lambda times: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert walked == trip_cycles(case.problem, case.accelerator, case.mapping)
    simulated = float(simulate_kernel(case.kernel, case.accelerator).latency_cycles)
    assert walked <= simulated * (1 + 1e-12)
    assert simulated <= 1.01 * walked


@pytest.mark.parametrize("seed", range(12))
def test_loops_of_one_step_take_as_long_as_part_of_the_trip(seed: int, monkeypatch: pytest.MonkeyPatch):
    """Whole rows of scores, of keys and values that stay on chip for all rows: each product is alone in its loop."""
    case = triangle(random.Random(seed))
    softmax = replace(case.mapping.softmax, algorithm="rows", rescaled_every=1)
    keep = replace(case.mapping.keep, k_level="kv_head", v_level="kv_head")
    mapping = replace(case.mapping, keep=keep, softmax=softmax)
    folded = trip_cycles(case.problem, case.accelerator, mapping)
    uncached = attention_steps._pipeline.__wrapped__  # pyright: ignore[reportPrivateUsage]
    assert any(
        step.folded for step in attention_steps.attention_pipeline(case.problem, case.accelerator, mapping).steps
    )
    monkeypatch.setattr(attention_steps, "_pipeline", uncached)
    monkeypatch.setattr(trip_steps, "_folded", lambda steps: steps)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    assert not any(
        step.folded for step in attention_steps.attention_pipeline(case.problem, case.accelerator, mapping).steps
    )
    assert folded == trip_cycles(case.problem, case.accelerator, mapping)


def test_most_query_tiles_of_a_long_triangle_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    """Of 4096 kinds, a few dozen are walked through."""
    rng = random.Random(1)
    case = triangle(rng)
    problem = replace(case.problem, queries=1 << 14, keys=1 << 14)
    mapping = replace(case.mapping, tiles=replace(case.mapping.tiles, query=4, key=4))
    (*_, tiles) = (part for part in query_tiles(problem, 4, 4).parts if isinstance(part, GrowingTiles))
    taken = 0
    alike = attention_trips._Walk._alike  # pyright: ignore[reportPrivateUsage]

    def counted(walk: attention_trips._Walk, *arguments: object) -> None:  # pyright: ignore[reportPrivateUsage]
        nonlocal taken
        taken += 1
        alike(walk, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(attention_trips._Walk, "_alike", counted)  # pyright: ignore[reportPrivateUsage]
    assert trip_cycles(problem, case.accelerator, mapping) is not None
    assert tiles.count > 4000
    assert taken < 400
