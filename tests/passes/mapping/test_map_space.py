"""The stated finite sets that mappings are made from: "best" means best of these."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatc.accelerators import load
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.mapping.map_space import (
    IN_REGISTERS,
    MOST_BALANCED,
    MOST_HEADS_IN_A_TILE,
    MULTIPLES,
    ON_ARRAY,
    ON_VECTOR,
    ONE_HEAD,
    ONES_COLUMN,
    OVERLAPPED,
    WITH_A_SPARE,
    Family,
    columns,
    families,
    head_tiles,
    pipelinings,
    tile_sizes,
    tiles,
)
from tests.support import UNFUSED, Shape, attention, fused

EDGE = load("edge")
SHAPE = Shape(batch=6, heads=12, kv_heads=4, queries=100, keys=130, d_qk=16, d_v=8)
FLAT = ("flat-m", "flat-b", "flat-h", "flat-r")


def problem(shape: Shape = SHAPE) -> AttentionProblem:
    (kernel,) = fused(attention(shape, None, "bf16", "f32"))
    return match_kernel(kernel).problem


def parts(shape: Shape = SHAPE) -> list[AttentionProblem]:
    """Logit, softmax and attend as kernels of their own."""
    return [match_kernel(kernel).problem for kernel in fused(attention(shape, None, "bf16", "f32"), UNFUSED)]


# --- Tiles of queries and keys ------------------------------------------------------------------------


def test_tile_sizes_by_hand():
    """Of 20 with a side of 4: powers of two, multiples 4 8 12 16, and 20 cut into 1 to 16 equal parts."""
    powers, multiples, balanced = {1, 2, 4, 8, 16}, {4, 8, 12, 16}, {20, 10, 7, 5, 4, 3, 2}
    assert tile_sizes(20, 4) == sorted(powers | multiples | balanced)


@given(st.integers(1, 5000), st.sampled_from([1, 16, 32, 256]))
def test_tile_sizes_hold_what_is_stated_and_nothing_else(size: int, side: int):
    found = tile_sizes(size, side)
    assert found == sorted(set(found))
    assert {1, size} <= set(found)

    def stated(tile: int) -> bool:
        balanced = any(tile == -(-size // parts) for parts in range(1, MOST_BALANCED + 1))
        return tile.bit_count() == 1 or (tile % side == 0 and tile // side in MULTIPLES) or balanced

    assert [tile for tile in range(1, size + 1) if stated(tile)] == found


@given(st.integers(1, 5000), st.integers(1, MOST_BALANCED))
def test_no_tile_makes_as_few_tiles_with_less(size: int, count: int):
    """A dimension can be cut into any small number of tiles, each no larger than it must be."""
    needed = -(-size // count)
    assert needed in tile_sizes(size, 32)


# --- Heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "online", "unfused"])
def test_head_tiles_divide_and_grow_from_the_inside(strategy: str):
    """The query heads of a kv head first, then whole kv heads, then whole batches: what shares K and V stays near."""
    p = problem()
    found = head_tiles(p, strategy)
    assert len(set(found)) == len(found)
    for batch, kv_head, group in found:
        assert (p.batch % batch, p.kv_heads % kv_head, p.group % group) == (0, 0, 0)
        assert kv_head == 1 or group == p.group
        assert batch == 1 or (kv_head, group) == (p.kv_heads, p.group)
    assert found[: len({t for t in found if t[:2] == (1, 1)})] == [(1, 1, 1), (1, 1, 3)]


@pytest.mark.parametrize(
    ("strategy", "tile"), [("flat-m", (6, 4, 3)), ("flat-b", (1, 4, 3)), ("flat-h", (1, 1, 1)), ("flat-r", (1, 1, 1))]
)
def test_flats_granularities_are_corners(strategy: str, tile: tuple[int, int, int]):
    assert head_tiles(problem(), strategy) == [tile]
    (family, *_) = families(problem(), strategy)
    column = columns(tiles(problem(), EDGE, strategy), family)
    whole = set(column.query.tolist()) == {100}
    assert whole if strategy != "flat-r" else {1, 100} < set(column.query.tolist())


def test_auto_holds_every_mapping_of_flat():
    """Also where a corner has more heads than other tiles may have."""
    for shape in (SHAPE, replace(SHAPE, batch=64, heads=16, kv_heads=16), replace(SHAPE, heads=128, kv_heads=128)):
        p = problem(shape)
        everything, online = set(head_tiles(p, "auto")), list(families(p, "online"))
        for strategy in FLAT:
            assert set(head_tiles(p, strategy)) <= everything
            assert set(families(p, strategy)) <= set(families(p, "auto"))
        assert set(online) <= set(families(p, "auto"))
        corners = {(1, p.kv_heads, p.group), (p.batch, p.kv_heads, p.group)}
        assert all(b * kv * g <= MOST_HEADS_IN_A_TILE for b, kv, g in everything - corners)


# --- Families -----------------------------------------------------------------------------------------


def test_a_family_is_an_algorithm_a_place_for_k_and_v_and_a_pipelining():
    p = problem()
    for strategy, algorithms in (("online", ["online"]), ("flat-r", ["rows"]), ("auto", ["online", "rows"])):
        usual = [f for f in families(p, strategy) if f.placement == ON_VECTOR]
        found = {(f.algorithm, f.k_level, f.v_level, f.pipelining) for f in usual}
        levels = ("key", "kv_head")
        single = {family for family in found if family[3] == ONE_HEAD}
        assert found - single == set(product(algorithms, levels, levels, pipelinings(p)))
        heads = [(k, v) for k, v in product(levels, levels) if strategy == "auto" and "kv_head" in (k, v)]
        assert single == {(algorithm, k, v, ONE_HEAD) for algorithm in algorithms for k, v in heads}
        assert {f.divide for f in families(p, strategy)} == {"late"}


def test_auto_may_sum_rows_by_a_column_of_ones():
    ones = {(f.algorithm, f.pipelining) for f in families(problem(), "auto") if f.placement == ONES_COLUMN}
    assert ones == set(product(("online", "rows"), (OVERLAPPED, ONE_HEAD)))
    assert all(f.placement == ON_VECTOR for strategy in (*FLAT, "online") for f in families(problem(), strategy))


def test_a_spare_set_of_scores_is_of_use_where_probabilities_take_their_place():
    converted, in_place = problem(), replace(problem(), converts_probabilities=False)
    assert converted.converts_probabilities
    assert WITH_A_SPARE not in pipelinings(converted)
    assert WITH_A_SPARE in pipelinings(in_place)
    ones = {f.pipelining for f in families(in_place, "auto") if f.placement == ONES_COLUMN}
    assert ones == {OVERLAPPED, WITH_A_SPARE, ONE_HEAD}


def test_auto_may_leave_softmax_work_to_pes_that_can_do_it():
    """FuseMax's array: square, output and input stationary, and its PEs do max, exp and add."""
    fusemax = load("fusemax")
    held = [f for f in families(problem(), "auto", fusemax) if f.held]
    assert {f.pipelining for f in held} == set(IN_REGISTERS)
    for array in ({"columns": 128}, {"pe_cycles": (("mac", 1), ("max", 1))}, {"stationarities": ("output",)}):
        machine = replace(fusemax, array=replace(fusemax.array, **array))
        assert not any(f.held for f in families(problem(), "auto", machine))
    assert not any(f.held for f in families(problem(), "online", fusemax))


def test_slots_of_k_and_v_follow_where_they_stay():
    """Tiles are under way from the load to the end of the attend; a head waits only for its first use."""
    p = problem(SHAPE)
    pipelining = IN_REGISTERS[1]
    for level, slots in (("key", pipelining.key_slots), ("kv_head", pipelining.head_slots)):
        family = Family("online", "late", level, level, pipelining, ON_ARRAY)
        column = columns(tiles(p, EDGE, "auto"), family)
        assert {*column.k_slots.tolist(), *column.v_slots.tolist()} == {slots}


def test_whole_rows_are_divided_where_there_is_less_to_divide():
    """Probabilities of 5 keys are fewer than outputs of depth 8."""
    found = {f.algorithm: f.divide for f in families(problem(replace(SHAPE, keys=5)), "auto")}
    assert found == {"online": "late", "rows": "early"}


def test_kernels_of_one_operator_have_only_what_they_need():
    logit, softmax, attend = parts()
    assert {(f.algorithm, f.v_level) for f in families(logit, "unfused")} == {("none", "key")}
    assert {(f.algorithm, f.divide) for f in families(softmax, "unfused")} == {("rows", "early"), ("streamed", "early")}
    assert {(f.algorithm, f.k_level) for f in families(attend, "unfused")} == {("none", "key")}


def test_a_column_is_every_combination_once():
    p = problem(Shape(batch=2, heads=2, kv_heads=1, queries=3, keys=5))
    (family, *_) = families(p, "auto")
    column = columns(tiles(p, EDGE, "auto"), family)
    found = zip(column.batch, column.kv_head, column.group, column.query, column.key, strict=True)
    assert [tuple(map(int, tile)) for tile in found] == [
        (*heads, query, key)
        for heads in [(1, 1, 1), (1, 1, 2), (2, 1, 2)]
        for query in (1, 2, 3)
        for key in (1, 2, 3, 4, 5)
    ]
    assert set(column.score_slots.tolist()) == {family.pipelining.score_slots}
