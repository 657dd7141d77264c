"""The work of trips: given again for the same tiles, and what a step takes in all rounds of a loop that it was."""

from __future__ import annotations

from dataclasses import replace

from flatc.accelerators import load
from flatc.dialects.mapping import Softmax
from flatc.dialects.masks import Causal
from flatc.passes.cost.attention_prices import AttentionPrices, Tile
from flatc.passes.cost.attention_steps import attention_pipeline
from flatc.passes.cost.attention_work import AttentionWork
from flatc.passes.cost.query_tiles import KeyTiles
from flatc.passes.cost.trip_steps import EDGE
from tests.passes.cost.test_key_geometry import problem
from tests.support import any_case

ROWS = (1, 1, 1), 16
PARTS = KeyTiles(5, 8, masked=False), KeyTiles(2, 8, masked=True), KeyTiles(1, 3, masked=True)
"""Seven key tiles of 8 and a ragged one, the last three of which a mask's edge crosses."""


def whole_rows() -> tuple[AttentionWork, AttentionPrices, list[str]]:
    """Rows on chip, with all keys and values of the head: what it does, its prices, and its steps."""
    case, machine = any_case(0), load("edge")
    keep = replace(case.mapping.keep, k_level="kv_head", v_level="kv_head")
    mapping = replace(case.mapping, softmax=Softmax("rows"), keep=keep)
    attention = problem(59, 59, Causal(0))
    pipeline = attention_pipeline(attention, machine, mapping)
    prices = AttentionPrices(attention, machine, mapping)
    return AttentionWork(attention, mapping, pipeline, prices), prices, [step.name for step in pipeline.steps]


def test_the_same_tiles_have_the_same_work():
    work, _, _ = whole_rows()
    assert work.with_loops(ROWS, PARTS) is work.with_loops(ROWS, PARTS)
    assert work.with_loops(ROWS, PARTS) is not work.with_loops(ROWS, PARTS[:2])
    (first, *_), (again, *_) = work.key_tiles(ROWS, PARTS), work.key_tiles(ROWS, PARTS[:1])
    assert first.work is again.work


def test_a_product_over_all_key_tiles_takes_what_its_rounds_take():
    """The mask's step takes part in the tiles that its edge crosses, and so does a trip that has any."""
    work, prices, steps = whole_rows()
    trip = work.with_loops(ROWS, PARTS)
    full, ragged = (Tile(1, 1, 1, 16, key) for key in (8, 3))
    for name, count in (("L", 7), ("A", 7), ("M", 2)):
        busy = count * prices.of(name, full)[0] + prices.of(name, ragged)[0]
        assert trip.ticks[steps.index(name)][0] == busy
    assert trip.ticks[steps.index("X")] == prices.of_softmax("X", 16, 59)
    assert trip.kind == EDGE
    assert work.with_loops(ROWS, PARTS[:1]).kind == 0
