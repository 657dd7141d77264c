"""Which mappings have no meaning as a schedule: each row breaks one rule and reads what it says.

Slots, stages and capacity are judged on the schedule itself (`test_schedule_rules`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.primitive_costs import MatmulTile
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.legal_mapping import check_mapping, product_tile

WHOLE = ("logit", "softmax", "attend")

PROBLEM = AttentionProblem(
    stages=WHOLE,
    batch=2,
    kv_heads=2,
    group=4,
    queries=100,
    keys=200,
    d_qk=16,
    d_v=8,
    q_bytes=2,
    k_bytes=2,
    v_bytes=2,
    score_bytes=4,
    probability_bytes=2,
    accumulator_bytes=4,
    output_bytes=2,
)

MAPPING = Mapping(
    Tiles(batch=1, kv_head=1, group=2, query=32, key=48, d_qk=16, d_v=8),
    Keep(2, 2, 2, 2, 2),
    ArrayUse("output"),
    ArrayUse("output"),
    Softmax("online", "late"),
    Stages(0, 0, 0, 1, 2),
)


def message(mapping: Mapping, stages: tuple[str, ...] = WHOLE, machine: Accelerator | None = None) -> str:
    with pytest.raises(FlatcError) as caught:
        check_mapping(replace(PROBLEM, stages=stages), mapping, machine or load("edge"), "kernel")
    assert caught.value.message.startswith("kernel: ")
    return str(caught.value)


def edited(field: str, **changes: Any) -> Mapping:
    return replace(MAPPING, **{field: replace(getattr(MAPPING, field), **changes)})


def test_a_legal_mapping_passes():
    check_mapping(PROBLEM, MAPPING, load("edge"), "kernel")


@pytest.mark.parametrize("dim", ["batch", "kv_head", "group", "query", "key", "d_qk", "d_v"])
def test_tiles_are_no_larger_than_the_problem(dim: str):
    assert f"the tile of {dim} is 999, and there are only" in message(edited("tiles", **{dim: 999}))


@pytest.mark.parametrize(("dim", "size"), [("d_qk", 16), ("d_v", 8)])
def test_depths_are_not_tiled(dim: str, size: int):
    assert f"help: set it to {size}" in message(edited("tiles", **{dim: 4}))


@pytest.mark.parametrize(
    ("algorithm", "divide", "stages", "expected"),
    [
        ("none", "late", WHOLE, "the kernel has a softmax and the mapping says softmax(none)"),
        ("streamed", "early", ("logit",), "the kernel has no softmax and the mapping says softmax(streamed)"),
        ("online", "late", ("logit", "softmax"), "help: use rows, or streamed where rows do not fit"),
        ("rows", "late", ("softmax",), "without attend there is nothing to divide later"),
        ("online", "early", WHOLE, "online softmax knows the sum only at the end"),
        ("streamed", "late", WHOLE, "streamed softmax divides in its second pass"),
    ],
)
def test_the_algorithm_fits_the_kernel(algorithm: Any, divide: Any, stages: tuple[str, ...], expected: str):
    assert expected in message(edited("softmax", algorithm=algorithm, divide=divide), stages)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"load": 1}, "stage 1 of load comes after stage 0 of logit"),
        ({"logit": 1}, "stage 1 of logit comes after stage 0 of softmax"),
        ({"softmax": 2}, "stage 2 of softmax comes after stage 1 of attend"),
        ({"attend": 3}, "stage 3 of attend comes after stage 2 of store"),
    ],
)
def test_stages_follow_the_flow_of_data(changes: dict[str, int], expected: str):
    assert expected in message(edited("stages", **changes))


def test_the_array_must_offer_the_stationarity():
    edge = load("edge")
    rigid = replace(edge, array=replace(edge.array, stationarities=("weight",)))
    assert "edge has no output-stationary array" in message(MAPPING, machine=rigid)


def test_folded_pieces_must_fit_side_by_side():
    """d_v = 8 of attend leaves room for 4 pieces on 32 columns; 64 rows leave none for a second."""
    check_mapping(PROBLEM, edited("attend", fold_columns=4), load("edge"), "kernel")
    for fold in ({"fold_columns": 5}, {"fold_rows": 2}):
        assert "attend: fold" in message(edited("attend", **fold))
        assert "takes at most 1 x 4" in message(edited("attend", **fold))


HELD = replace(
    MAPPING,
    attend=ArrayUse("input"),
    softmax=Softmax("online", "late", maximum="array", exponential="array", total="array"),
)
"""Softmax work on PEs, on score tiles that stay in their registers."""


def test_pes_that_can_may_do_softmax_work():
    check_mapping(PROBLEM, HELD, load("fusemax"), "kernel")


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (HELD, "'max on array', and edge's PEs cannot do max"),
        (replace(HELD, softmax=Softmax("online", exponential="array")), "help: use 'exp on vector', or price exp"),
    ],
)
def test_pes_do_what_their_machine_prices(mapping: Mapping, expected: str):
    assert expected in message(mapping)


def folded(rows: int, columns: int) -> Mapping:
    """Logits of two heads side by side, and attends as given."""
    return replace(HELD, logit=ArrayUse("output", 2, 1), attend=ArrayUse("input", rows, columns))


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (replace(HELD, attend=ArrayUse("output")), "so logit is output stationary and attend input stationary"),
        (folded(1, 1), "so fold 2 x 1 of logit is fold 1 x 2 of attend"),
        (replace(HELD, softmax=replace(HELD.softmax, algorithm="rows")), "registers from logit to attend"),
        (edited("softmax", algorithm="rows", total="attend", divide="early"), "known when the outputs are"),
        (edited("softmax", algorithm="rows", rescales_first=True), "only an online softmax rescales outputs"),
        (edited("logit", add="vector"), "only attend products are added up"),
        (replace(edited("attend", add="vector"), softmax=Softmax("rows")), "of an online softmax are added on"),
        (replace(MAPPING, interleave=5), "are interleaved, and there are only 100 rows"),
    ],
)
def test_work_is_placed_where_it_makes_sense(mapping: Mapping, expected: str):
    assert expected in message(mapping, machine=load("fusemax"))


IN_STRIPS = edited("softmax", rescaled_every=5)


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        (edited("softmax", rescaled_every=6), "rescaled every 6 tiles of keys, and there are only 5"),
        (edited("softmax", algorithm="rows", rescaled_every=2), "only an online softmax rescales outputs"),
        (replace(IN_STRIPS, interleave=2), "outputs are rescaled at every tile of keys"),
        (replace(IN_STRIPS, attend=ArrayUse("output", add="vector")), "outputs are rescaled at every tile of keys"),
        (replace(HELD, softmax=replace(HELD.softmax, rescaled_every=2)), "outputs are rescaled at every tile of keys"),
    ],
)
def test_an_online_softmax_may_rescale_every_few_tiles(mapping: Mapping, expected: str):
    """200 keys are five tiles of 48."""
    check_mapping(PROBLEM, IN_STRIPS, load("edge"), "kernel")
    assert expected in message(mapping, machine=load("fusemax"))


def test_values_in_keys_are_gone_when_a_strip_needs_them():
    """Unless K stays on chip for all of the strips."""
    problem, keep = replace(PROBLEM, v_in_k=0), replace(MAPPING.keep, v_level="k")
    with pytest.raises(FlatcError, match="is done with a tile of K before it needs V"):
        check_mapping(problem, replace(IN_STRIPS, keep=keep), load("edge"), "kernel")
    check_mapping(problem, replace(IN_STRIPS, keep=replace(keep, k_level="kv_head")), load("edge"), "kernel")


def test_query_tiles_of_a_masked_softmax_are_not_interleaved():
    assert "without a mask" in message(replace(MAPPING, interleave=2), ("logit", "mask", "softmax", "attend"))
    check_mapping(PROBLEM, replace(MAPPING, interleave=2), load("edge"), "kernel")


def test_held_tiles_need_a_square_array():
    fusemax = load("fusemax")
    oblong = replace(fusemax, array=replace(fusemax.array, columns=128))
    assert "a square array only" in message(HELD, machine=oblong)


def test_rules_of_products_that_a_kernel_lacks_do_not_apply():
    check_mapping(
        replace(PROBLEM, stages=("logit",)),
        replace(edited("attend", fold_columns=99), softmax=Softmax("none")),
        load("edge"),
        "kernel",
    )


def test_the_tile_of_each_product():
    """Heads are the batch; the query heads of a group share their keys, so they are rows."""
    assert product_tile(PROBLEM, MAPPING, "logit") == MatmulTile(batch=1, m=64, n=48, k=16)
    assert product_tile(PROBLEM, MAPPING, "attend") == MatmulTile(batch=1, m=64, n=8, k=48)
