"""Prices of the operations of one small schedule, in whole ticks."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.builder import causal
from flatc.dialects.accelerator import NO_VECTOR_UNIT, Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import Tiles
from flatc.dialects.spatial import LoadOp, MatmulOp, StoreOp, TimedOp, VectorOp
from flatc.passes.cost.cost_model import CostModel, OpCost, matmul_tile
from flatc.passes.cost.primitive_costs import MatmulTile, Work
from tests.support import Choice, Shape, attention, lower

EDGE = load("edge")
SLOW = replace(
    EDGE,
    clock_hz=1000,
    offchip=replace(
        EDGE.offchip,
        channels="separate",
        read_bytes_per_second=3000,
        write_bytes_per_second=7000,
        latency_cycles=5,
    ),
    array=replace(EDGE.array, rows=4, columns=4),
    vector=replace(EDGE.vector, lanes=4),
)
"""A byte takes 1/3 of a cycle to read and 1/7 to write."""

TILE = (1, 1, 2, 4, 8)
"""Of scores: one batch and kv head, 2 query heads, 4 queries, 8 keys."""


def schedule() -> ModuleOp:
    """Two query heads that share keys; bf16 in memory, f32 for scores and sums."""
    module = attention(Shape(heads=2, queries=8, keys=16, d_qk=6, d_v=5), causal(), "bf16", "f32")
    return lower(module, Choice("online", tiles=Tiles(1, 1, 2, 4, 8, 6, 5)), machine=EDGE)


def timed(kind: type[TimedOp], word: str) -> TimedOp:
    """The first operation of a kind whose text holds a word."""
    return next(op for op in schedule().walk() if isinstance(op, kind) and word in str(op))


def price(kind: type[TimedOp], word: str, extents: tuple[int, ...], machine: Accelerator = SLOW) -> OpCost:
    return CostModel(machine).price(timed(kind, word), extents)


def test_ticks_divide_cycles_so_that_a_byte_takes_whole_ticks_on_every_channel():
    assert CostModel(SLOW).ticks_per_cycle == 21
    for machine in map(load, ("edge", "cloud", "fusemax", "rtl16")):
        model = CostModel(machine)
        for per_byte in (machine.cycles_per_byte_read, machine.cycles_per_byte_written):
            assert (per_byte * model.ticks_per_cycle).denominator == 1


def test_a_load_takes_its_bytes_and_arrives_later():
    """4 x 6 queries of 2 heads, 2 bytes each, at 7 ticks a byte; 5 cycles more until they are there."""
    size = 2 * 4 * 6 * 2
    cost = price(LoadOp, "%Q", (1, 1, 2, 4, 6))
    assert cost == OpCost(size * 7, size * 7 + 5 * 21, Work(offchip_read_bytes=size, buffer_write_bytes=size))


def test_a_store_takes_the_other_channel():
    size = 2 * 4 * 5 * 2
    cost = price(StoreOp, "", (1, 1, 2, 4, 5))
    assert cost == OpCost(size * 3, size * 3 + 5 * 21, Work(offchip_write_bytes=size, buffer_read_bytes=size))


def test_an_empty_transfer_is_free():
    assert price(LoadOp, "%Q", (1, 1, 2, 0, 6)) == OpCost(0, 0, Work(offchip_read_bytes=0, buffer_write_bytes=0))


def test_each_transfer_may_hold_its_channel_for_some_cycles_more():
    slower = replace(SLOW, offchip=replace(SLOW.offchip, overhead_cycles=2))
    plain, held = price(LoadOp, "%Q", (1, 1, 2, 4, 6)), price(LoadOp, "%Q", (1, 1, 2, 4, 6), slower)
    assert (held.busy - plain.busy, held.latency - plain.latency) == (2 * 21, 2 * 21)
    assert held.work == plain.work


def test_the_logit_is_a_product_of_all_rows_that_share_keys():
    op = timed(MatmulOp, "transposed")
    assert isinstance(op, MatmulOp)
    assert matmul_tile(op, (*TILE, 6)) == MatmulTile(batch=1, m=2 * 4, n=8, k=6)
    cost = CostModel(SLOW).price(op, (*TILE, 6))
    # Output stationary on 4 x 4: 2 x 2 pieces of 6 cycles; the skew of edge delays the result by 4 + 4 - 2.
    assert (cost.busy, cost.latency) == (2 * 2 * 6 * 21, (2 * 2 * 6 + 6) * 21)
    assert cost.work.macs == 8 * 8 * 6
    assert cost.work.buffer_read_bytes == 2 * (8 * 6) * 2 + 2 * (8 * 6) * 2  # Q and K, both for two strips
    assert cost.work.buffer_write_bytes == 8 * 8 * 4


def test_the_attend_reads_its_sums_back():
    cost = price(MatmulOp, "accumulate", (1, 1, 2, 4, 5, 8))
    scores, values, sums = 2 * (8 * 8) * 2, 2 * (8 * 5) * 2, 8 * 5 * 4
    assert cost.work.macs == 8 * 5 * 8
    assert (cost.work.buffer_read_bytes, cost.work.buffer_write_bytes) == (scores + values + sums, sums)


def test_vector_operations_take_their_lanes_and_their_rows():
    """64 scores and 8 rows on 4 lanes, each price of edge 1: max; then exp and the sum, whose rows are corrected."""
    maximum, exp = price(VectorOp, "row_max", TILE), price(VectorOp, "exp", TILE)
    assert maximum.busy == maximum.latency == (16 * 1 + 2 * (1 + 1)) * 21
    assert exp.busy == (16 * (1 + 1) + 2 * (1 + 1)) * 21  # the change to bf16 is free on edge
    assert exp.work.vector_elements == 64 * 3  # and counted
    assert maximum.work.buffer_write_bytes == 8 * 4 + 8 * 4  # maximum and correction, a number a row


def test_ragged_tiles_cost_what_is_left_of_them():
    whole, clipped = price(LoadOp, "%K", (1, 1, 8, 6)), price(LoadOp, "%K", (1, 1, 3, 6))
    assert Fraction(clipped.busy, whole.busy) == Fraction(3, 8)


@pytest.mark.parametrize(("channels", "names"), [("shared", {"offchip"}), ("separate", {"read", "write"})])
def test_transfers_queue_for_their_channel(channels: str, names: set[str]):
    bandwidth = {"read_bytes_per_second": 3000, "write_bytes_per_second": 3000}
    model = CostModel(replace(SLOW, offchip=replace(SLOW.offchip, channels=channels, **bandwidth)))
    transfers = [op for op in schedule().walk() if isinstance(op, LoadOp | StoreOp)]
    assert {model.resource(op) for op in transfers} == names
    assert {model.resource(timed(kind, "")) for kind in (MatmulOp, VectorOp)} == {"array", "vector"}


def test_a_vector_operation_needs_a_vector_unit():
    with pytest.raises(FlatcError, match="accelerator 'edge' has no vector unit and the schedule needs one"):
        price(VectorOp, "row_max", TILE, replace(SLOW, vector=NO_VECTOR_UNIT))
