"""What one tile costs, by hand, and against counting every piece and every lane one by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple, fields, replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatc.accelerators import load
from flatc.dialects.accelerator import STATIONARITIES, Array
from flatc.passes.cost.primitive_costs import (
    VECTOR_WORK,
    MatmulTile,
    OperandTraffic,
    ScoreTile,
    VectorWork,
    Work,
    array_cycles,
    energy_pj,
    fold_limits,
    kind_prices,
    operand_traffic,
    pe_cycles,
    spatial_extents,
    vector_cycles,
    vector_energy_pj,
    vector_work,
)

EDGE = load("edge")
Skew = Literal["none", "overlapped", "exposed"]


def array(skew: Skew = "none", foldings: tuple[str, ...] = ()) -> Array:
    """4 rows and 8 columns."""
    return replace(EDGE.array, rows=4, columns=8, skew=skew, foldings=foldings)


UNEVEN = MatmulTile(batch=1, m=10, n=20, k=7)


# --- Cycles of the array ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stationarity", "cycles"),
    [
        ("output", 3 * 3 * 7),  # c [10, 20] in pieces of 4 x 8; k = 7 passes in time
        ("weight", 2 * 3 * 10),  # b [7, 20] in pieces of 4 x 8; m = 10 passes in time
        ("input", 2 * 2 * 20),  # a, turned to [7, 10], in pieces of 4 x 8; n = 20 passes in time
    ],
)
def test_the_stationary_operand_is_cut_into_pieces_and_the_third_dimension_is_time(stationarity: str, cycles: int):
    found = array_cycles(array(), stationarity, (1, 1), UNEVEN)
    assert (found.busy, found.latency) == (cycles, cycles)


@pytest.mark.parametrize(
    ("skew", "busy", "latency"),
    [
        ("none", 9 * 7, 9 * 7),
        ("overlapped", 9 * 7, 9 * 7 + 4 + 8 - 2),
        ("exposed", 9 * (7 + 4 + 8 - 2), 9 * (7 + 4 + 8 - 2)),
    ],
)
def test_skew_is_free_or_delays_the_result_or_takes_the_array_at_every_pass(skew: Skew, busy: int, latency: int):
    found = array_cycles(array(skew), "output", (1, 1), UNEVEN)
    assert (found.busy, found.latency) == (busy, latency)


def test_a_small_piece_has_a_small_skew():
    """2 x 3 of the PEs are used: the last operand enters 1 + 2 cycles after the first."""
    assert array_cycles(array("exposed"), "output", (1, 1), MatmulTile(1, 2, 3, 5)).busy == 5 + 1 + 2


def test_folded_pieces_share_a_pass():
    """6 heads of 2 x 4 scores: four of them fill a 4 x 8 array."""
    heads = MatmulTile(batch=6, m=2, n=4, k=5)
    foldable = array("overlapped", ("rows", "columns"))
    assert fold_limits(foldable, "output", 2, 4) == (2, 2)
    assert [array_cycles(foldable, "output", fold, heads).busy for fold in ((1, 1), (1, 2), (2, 2))] == [30, 15, 10]
    assert array_cycles(foldable, "output", (2, 2), heads).latency == 10 + 4 + 8 - 2


@pytest.mark.parametrize(
    ("foldings", "output", "weight"),
    [
        ((), (1, 1), (1, 1)),
        (("columns",), (1, 2), (1, 2)),
        (("rows", "columns"), (2, 2), (1, 2)),  # down the rows of a weight-stationary array runs the sum
        (("rows", "columns", "contraction"), (2, 2), (2, 2)),
    ],
)
def test_pieces_lie_side_by_side_where_the_machine_permits(
    foldings: tuple[str, ...], output: tuple[int, int], weight: tuple[int, int]
):
    assert fold_limits(array(foldings=foldings), "output", 2, 4) == output
    assert fold_limits(array(foldings=foldings), "weight", 2, 4) == weight
    assert fold_limits(array(foldings=foldings), "weight", 5, 9) == (1, 1)


@pytest.mark.parametrize(("skew", "busy", "latency"), [("none", 27, 27), ("overlapped", 27, 33), ("exposed", 45, 45)])
def test_pes_work_on_every_piece_of_a_score_tile(skew: Skew, busy: int, latency: int):
    """10 keys down 4 rows of PEs are 3 pieces of 7 + 2 cycles; a wave through 4 rows and 4 columns has a skew of 6."""
    machine = replace(array(skew), pe_cycles=(("mac", 1), ("exp", 7), ("add", 2)))
    found = pe_cycles(machine, ("exp", "add"), (1, 1), ScoreTile(batch=1, queries=4, keys=10))
    assert (found.busy, found.latency) == (busy, latency)
    folded = pe_cycles(machine, ("exp",), (2, 1), ScoreTile(batch=4, queries=8, keys=2))
    assert folded.busy == 2 * (7 + (4 + 8 - 2) * (skew == "exposed"))


def test_a_product_of_nothing_takes_no_time():
    for skew in ("none", "overlapped", "exposed"):
        assert astuple(array_cycles(array(skew), "output", (1, 1), MatmulTile(0, 4, 4, 4))) == (0, 0)


# --- Traffic between buffer and array -----------------------------------------------------------------


def strips(size: int, length: int) -> Iterator[int]:
    """The lengths of the strips that a dimension is cut into."""
    return (min(length, size - start) for start in range(0, size, length))


def counted_traffic(stationarity: str, tile: MatmulTile, accumulate: bool) -> OperandTraffic:
    """Piece by piece: the streamed operands of each are read, a sum that was begun before comes back."""
    rows, columns = array().rows, array().columns
    a = b = c_in = c_out = 0
    if stationarity == "output":
        for i in strips(tile.m, rows):
            for j in strips(tile.n, columns):
                a, b, c_in, c_out = a + i * tile.k, b + tile.k * j, c_in + i * j * accumulate, c_out + i * j
    else:
        for nth, k in enumerate(strips(tile.k, rows)):
            other, passing = (tile.n, tile.m) if stationarity == "weight" else (tile.m, tile.n)
            for j in strips(other, columns):
                stationary, streamed, sums = k * j, passing * k, passing * j
                a, b = (a + streamed, b + stationary) if stationarity == "weight" else (a + stationary, b + streamed)
                c_in, c_out = c_in + sums * (accumulate or nth > 0), c_out + sums
    return OperandTraffic(*(tile.batch * count for count in (a, b, c_in, c_out)))


sizes = st.integers(1, 20)
tiles = st.builds(MatmulTile, st.integers(1, 4), sizes, sizes, sizes)


@given(st.sampled_from(STATIONARITIES), tiles, st.booleans())
def test_operands_are_read_again_for_every_strip_that_does_not_hold_them(
    stationarity: str, tile: MatmulTile, accumulate: bool
):
    found = operand_traffic(array(), stationarity, tile, accumulate=accumulate)
    assert found == counted_traffic(stationarity, tile, accumulate)


@given(st.sampled_from(STATIONARITIES), tiles)
def test_the_array_does_no_more_than_one_product_a_pe_and_cycle(stationarity: str, tile: MatmulTile):
    foldable = array(foldings=("rows", "columns", "contraction"))
    fold = fold_limits(foldable, stationarity, *spatial_extents(stationarity, tile)[:2])
    cycles = array_cycles(foldable, stationarity, fold, tile)
    assert cycles.busy * foldable.pes >= tile.batch * tile.m * tile.n * tile.k
    assert cycles.busy <= array_cycles(foldable, stationarity, (1, 1), tile).busy


# --- The vector unit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reads", "writes", "per_element", "per_row"),
    [
        ("mask", 1, 1, "select", ""),
        ("row_max", 1, 1, "max", ""),
        ("row_max", 2, 2, "max", "max exp"),  # online: joins the running maximum, makes the correction
        ("exp", 2, 1, "exp", ""),
        ("exp", 2, 2, "exp add", ""),  # also sums the row
        ("exp", 4, 2, "exp add", "multiply add"),  # online: corrects the running sum first
        ("rescale", 2, 1, "multiply", ""),
        ("divide", 2, 1, "divide", ""),
        ("cast", 1, 1, "cast", ""),
    ],
)
@pytest.mark.parametrize("converts", [False, True])
def test_the_work_of_each_vector_operation(
    kind: str, reads: int, writes: int, per_element: str, per_row: str, converts: bool
):
    extra = ("cast",) if converts and per_element != "cast" else ()
    expected = VectorWork((*per_element.split(), *extra), tuple(per_row.split()))
    assert vector_work(kind, reads=reads, writes=writes, converts=converts) == expected


def test_vectors_are_filled_lane_by_lane():
    """70 elements in 10 rows on 32 lanes: three vectors of elements, one of rows; each has every price."""
    prices = replace(EDGE.vector.prices, exp=7, add=2, multiply=3)
    unit = replace(EDGE.vector, lanes=32, prices=prices)
    assert vector_cycles(unit, VECTOR_WORK["exp_sum_online"], 70, 10) == 3 * (7 + 2) + 1 * (3 + 2)
    assert vector_cycles(unit, VECTOR_WORK["exp_sum_online"], 64, 0) == 2 * (7 + 2)
    energies = replace(EDGE.vector.energies_pj, exp=4.0, add=1.0, multiply=2.0)
    unit = replace(unit, energies_pj=energies)
    assert vector_energy_pj(unit, VECTOR_WORK["exp_sum_online"], 70, 10) == 70 * (4 + 1) + 10 * (2 + 1)


@pytest.mark.parametrize("kind", VECTOR_WORK)
def test_a_price_looked_up_once_is_that_of_every_tile(kind: str):
    """Of what is free there is one 0 for a whole column."""
    prices = replace(EDGE.vector.prices, exp=7, add=2, multiply=0)
    unit = replace(EDGE.vector, lanes=32, prices=prices)
    for converts in (False, True):
        price, work = kind_prices(unit)[kind, converts], vector_work(kind, reads=1, writes=1, converts=converts)
        for elements, rows in ((0, 0), (64, 0), (70, 10), (np.array([1, 999]), np.array([1, 33]))):
            assert np.array_equal(price.cycles(elements, rows) + 0 * rows, vector_cycles(unit, work, elements, rows))
            assert np.array_equal(price.energy_pj(elements, rows), vector_energy_pj(unit, work, elements, rows))
        assert price.element_operations == len(work.per_element)


# --- Numbers and columns of numbers -------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.sampled_from(STATIONARITIES),
    st.sampled_from(["none", "overlapped", "exposed"]),
    st.lists(tiles, min_size=1, max_size=5),
)
def test_columns_of_tiles_cost_what_the_tiles_cost_one_by_one(stationarity: str, skew: Skew, rows: list[MatmulTile]):
    machine = array(skew, ("rows", "columns", "contraction"))

    def costs(tile: MatmulTile) -> list[Any]:
        fold = fold_limits(machine, stationarity, *spatial_extents(stationarity, tile)[:2])
        cycles = array_cycles(machine, stationarity, fold, tile)
        traffic = operand_traffic(machine, stationarity, tile, accumulate=True)
        online = VECTOR_WORK["row_max_online"]
        vector = vector_cycles(EDGE.vector, online, tile.m * tile.n, tile.m)
        energy = vector_energy_pj(EDGE.vector, online, tile.m * tile.n, tile.m)
        return [*fold, *astuple(cycles), *astuple(traffic), vector, energy]

    column = MatmulTile(*(np.array([getattr(tile, f.name) for tile in rows]) for f in fields(MatmulTile)))
    assert np.array_equal(np.stack(costs(column)), np.array([costs(tile) for tile in rows]).T)


# --- Energy -------------------------------------------------------------------------------------------

COUNTS = Work(
    macs=1000,
    vector_energy_pj=12.5,
    vector_elements=25,
    offchip_read_bytes=300,
    offchip_write_bytes=100,
    buffer_read_bytes=700,
    buffer_write_bytes=500,
)


def test_energy_is_the_sum_of_counts_times_prices():
    buffer = replace(EDGE.buffer, read_energy_pj_per_byte=2.0, write_energy_pj_per_byte=3.0)
    machine = replace(EDGE, buffer=buffer)
    assert energy_pj(machine, COUNTS) == {
        "array": 1000 * 0.5,
        "vector": 12.5,
        "buffer read": 700 * 2.0,
        "buffer write": 500 * 3.0,
        "off-chip": (300 + 100) * 37.5,
    }


def test_work_adds_up():
    twice, again = COUNTS + COUNTS, COUNTS * 2
    assert twice == again
    assert sum(energy_pj(EDGE, twice).values()) == 2 * sum(energy_pj(EDGE, COUNTS).values())
    assert COUNTS + Work() == COUNTS
