"""Strips of several key tiles: what the two rules leave of them, and that it is worth having."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import get_args

import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Stationarity, Tiles
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.legal_mapping import check_mapping
from flatc.passes.mapping.map_space import strip_families, strip_lengths, strips
from flatc.passes.mapping.priced_space import PricedSpace
from flatc.passes.mapping.search import find_mapping
from flatc.passes.mapping.strip_space import strip_spaces
from flatc.passes.simulation.simulator import simulate_kernel
from tests.pipeline_fill import fill_cycles
from tests.support import Shape, attention, fused

EDGE = load("edge")
SHAPE = Shape(heads=2, queries=24, keys=90, d_qk=4, d_v=6)


def machine(capacity: int = 1400) -> Accelerator:
    """Edge with an array of 4 x 4 and 4 lanes, whose buffer holds few tiles."""
    array = replace(EDGE.array, rows=4, columns=4)
    buffer, vector = replace(EDGE.buffer, capacity_bytes=capacity), replace(EDGE.vector, lanes=4)
    return replace(EDGE, array=array, buffer=buffer, vector=vector)


def problem(shape: Shape = SHAPE, mask: MaskExpr | None = None) -> AttentionProblem:
    (kernel,) = fused(attention(shape, mask, "bf16", "f32"))
    return match_kernel(kernel).problem


def cycles(asked: AttentionProblem, shape: Shape, mapping: Mapping, accelerator: Accelerator) -> float:
    """What a mapping takes when simulated."""
    (kernel,) = fused(attention(shape, None, "bf16", "f32"))
    check_mapping(asked, mapping, accelerator, "kernel")
    return float(simulate_kernel(lower_kernel_alone(kernel, mapping, asked), accelerator).latency_cycles)


def test_lengths_of_strips_are_powers_of_two_and_three_times_these():
    assert strip_lengths(13) == [1, 2, 3, 4, 6, 8, 12]
    assert strip_lengths(1) == [1]
    assert strip_lengths(0) == []


def test_tiles_of_strips_are_wider_than_the_array_and_strips_shorter_than_rows():
    found = strips(problem(), machine(), "auto")
    assert set(zip(found.key.tolist(), found.rescaled_every.tolist(), strict=True)) == {
        (key, every) for key in (8, 16, 32) for every in strip_lengths(89 // key)
    }
    assert {*found.batch.tolist(), *found.kv_head.tolist()} == {1}


def test_only_an_online_softmax_between_two_products_has_strips():
    whole = problem()
    assert [len(list(strip_families(whole, strategy))) for strategy in ("flat-r", "online", "auto")] == [0, 1, 2]
    assert not list(strip_families(replace(whole, stages=("softmax", "attend")), "auto"))
    assert not strip_spaces(replace(whole, keys=16), machine(), "auto", "latency")


# --- What the rules rest on ----------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[AttentionProblem, Shape, Mapping, Accelerator]:
    """A random strip without a mask, of tiles as wide as the array or twice that."""
    rng = random.Random(seed)
    accelerator = replace(machine(1 << 20), array=replace(machine().array, skew=rng.choice(["exposed", "overlapped"])))
    shape = Shape(1, 2, 1, rng.choice([1, 9, 16]), rng.choice([64, 90, 97]), rng.choice([4, 9]), rng.choice([4, 6]))
    key, asked = rng.choice([4, 8]), problem(shape)
    every = rng.randint(2, min(8, shape.keys // key))
    mapping = Mapping(
        Tiles(1, 1, rng.randint(1, 2), min(shape.queries, rng.choice([4, 8])), key, shape.d_qk, shape.d_v),
        Keep(2, 2, 2, rng.choice([2, 3]), 2),
        ArrayUse(rng.choice(get_args(Stationarity))),
        ArrayUse(rng.choice(get_args(Stationarity))),
        Softmax("online", total=rng.choice(["vector", "attend"]), rescaled_every=every),
        Stages(0, 0, 0, 1, 2),
    )
    return asked, shape, mapping, accelerator


@pytest.mark.parametrize("seed", range(20))
def test_one_tile_is_no_slower_than_a_strip_of_as_many_keys(seed: int):
    """But for the begin and the end of the pipeline, where it waits for larger tiles."""
    asked, shape, strip, accelerator = drawn(seed)
    tile = replace(strip.tiles, key=strip.tiles.key * strip.softmax.rescaled_every)
    piece = replace(strip, tiles=tile, softmax=replace(strip.softmax, rescaled_every=1))
    ours, theirs = (cycles(asked, shape, one, accelerator) for one in (piece, strip))
    assert ours <= theirs + fill_cycles(asked, accelerator, piece)


@pytest.mark.parametrize("seed", range(10))
def test_longer_strips_take_from_the_vector_unit_only(seed: int):
    asked, _, strip, accelerator = drawn(seed)
    lengths = range(1, -(-asked.keys // strip.tiles.key) + 1)
    forms = [
        evaluate_mapping(asked, accelerator, replace(strip, softmax=replace(strip.softmax, rescaled_every=every)))
        for every in lengths
    ]
    vector = [form.busy_cycles["vector"][0] for form in forms]
    assert vector == sorted(vector, reverse=True)
    for name in ("array", "offchip"):
        assert len({form.busy_cycles[name][0] for form in forms}) == 1
    assert len({form.offchip_bytes[0] for form in forms}) == 1


# --- What they are good for ----------------------------------------------------------------------------------


def test_strips_are_chosen_where_rescaling_binds_and_large_tiles_do_not_fit():
    """4 lanes rescale 6 outputs for each tile of a row, beside an array of 4 x 4."""
    asked, small, large = problem(), machine(), machine(1 << 20)
    chosen = find_mapping(asked, small, "online").mapping
    assert chosen.softmax.rescaled_every > 1
    usual = [one for one in PricedSpace(asked, small, "online", "latency").families if one.size]
    best = min((one.before((1e9,)).best() for one in usual), key=lambda one: one.ranking).mapping
    assert cycles(asked, SHAPE, chosen, small) < cycles(asked, SHAPE, best, small)
    (nothing,) = strip_spaces(asked, large, "online", "latency")
    assert not any(one.size for one in nothing.families)


def test_under_a_mask_strips_skip_what_tiles_skip():
    """One tile of as many keys computes more hidden scores; small tiles rescale more often."""
    asked, large = problem(replace(SHAPE, queries=90), causal()), machine(1 << 20)
    use, stages = ArrayUse("output"), Stages(0, 0, 0, 1, 2)
    forms = {
        (key, every): evaluate_mapping(
            asked,
            large,
            Mapping(
                Tiles(1, 1, 1, 6, key, 4, 6),
                Keep(2, 2, 2, 2, 2),
                use,
                use,
                Softmax("online", rescaled_every=every),
                stages,
            ),
        )
        for key, every in ((4, 1), (4, 4), (16, 1))
    }
    macs = {kind: form.work.macs[0] for kind, form in forms.items()}
    vector = {kind: form.busy_cycles["vector"][0] for kind, form in forms.items()}
    assert macs[4, 1] == macs[4, 4] < macs[16, 1]
    assert vector[4, 4] < min(vector[4, 1], vector[16, 1])
