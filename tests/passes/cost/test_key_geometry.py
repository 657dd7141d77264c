"""How many key tiles a mapping visits and masks: the counts against looking at every query and key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flatc.dialects.masks import Causal, Chunk, FirstN, Mask, Prefix, Window, allows
from flatc.passes.cost.key_geometry import KeyGeometry, key_geometry, widest_rows
from flatc.passes.cost.visited_keys import every_row_sees_keys
from flatc.passes.kernels.problem import AttentionProblem

WHOLE = ("logit", "mask", "softmax", "attend")


def problem(queries: int, keys: int, mask: Mask | None, stages: tuple[str, ...] = WHOLE) -> AttentionProblem:
    return AttentionProblem(
        stages=tuple(stage for stage in stages if stage != "mask" or mask is not None),
        batch=1,
        kv_heads=1,
        group=1,
        queries=queries,
        keys=keys,
        d_qk=1,
        d_v=1,
        q_bytes=1,
        k_bytes=1,
        v_bytes=1,
        score_bytes=1,
        probability_bytes=1,
        accumulator_bytes=1,
        output_bytes=1,
        mask=mask,
    )


def geometry(problem: AttentionProblem, rows: int, tile: int, every: int = 1) -> KeyGeometry:
    """The geometry of one mapping."""
    return key_geometry(problem, np.array([rows]), np.array([tile]), np.array([every]))


def pairs(table: tuple[tuple[Any, Any], tuple[Any, Any]]) -> dict[tuple[bool, bool], int]:
    """Counts by (query tile is ragged, key tile is ragged)."""
    return {(q == 1, k == 1): int(np.sum(table[q][k])) for q in (0, 1) for k in (0, 1)}


@dataclass
class Counts:
    """What one sees by looking: tiles from the first to the last with a visible key, and those with a hidden one."""

    visits: dict[tuple[bool, bool], int]
    edges: dict[tuple[bool, bool], int]
    live: int
    nonempty: int
    strip_keys: int
    width: int
    strips: int = 0


def visibility(queries: int, keys: int, mask: Mask | None) -> NDArray[np.bool_]:
    """Which query sees which key, one by one."""
    if mask is None:
        return np.ones((queries, keys), dtype=bool)
    return np.ones((queries, keys), dtype=bool) & allows(mask, np.arange(queries)[:, None], np.arange(keys)[None, :])


def wholly_visible(queries: int, keys: int, mask: Mask, rows: int, tile: int) -> int:
    """How many tiles hide nothing."""
    visible = visibility(queries, keys, mask)
    starts = ((q, k) for q in range(0, queries, rows) for k in range(0, keys, tile))
    return sum(bool(visible[q : q + rows, k : k + tile].all()) for q, k in starts)


def looked_at(problem: AttentionProblem, rows: int, tile: int, every: int = 1) -> Counts:
    """Goes through every query tile and every key tile of it, `every` so many of which are a strip."""
    visible = visibility(problem.queries, problem.keys, problem.mask)
    kinds = [(q, k) for q in (False, True) for k in (False, True)]
    counts = Counts(dict.fromkeys(kinds, 0), dict.fromkeys(kinds, 0), 0, 0, 0, 1)
    for start in range(0, problem.queries, rows):
        band = visible[start : start + rows]
        tiles = [band[:, at : at + tile] for at in range(0, problem.keys, tile)]
        seen = [i for i, part in enumerate(tiles) if part.any()]
        counts.live += len(seen)
        visited = range(seen[0], seen[-1] + 1) if seen else range(0)
        strip = sum(tiles[i].shape[1] for i in visited)
        counts.nonempty += len(visited) > 0
        counts.strip_keys += strip
        counts.strips += len(visited[::every])
        counts.width = max(counts.width, strip)
        for i in visited:
            kind = (len(band) < rows, tiles[i].shape[1] < tile)
            counts.visits[kind] += 1
            counts.edges[kind] += not tiles[i].all()
    return counts


sizes = st.integers(1, 26)
extents = st.integers(1, 9)
lengths = st.integers(1, 20)
shifts = st.integers(0, 12)


@st.composite
def cases(draw: st.DrawFn, *, sinks: bool = False) -> tuple[int, int, Mask]:
    """(queries, keys, mask); the last row sits at the last key or before it, the first row perhaps before them all."""
    queries, keys = draw(sizes), draw(sizes)
    offset = keys - queries - draw(shifts)
    causal, window = Causal(offset), Window(draw(lengths), draw(st.integers(0, 6)), offset)
    if sinks:
        return queries, keys, causal & (window | FirstN(draw(lengths)))
    chunk, prefix = Chunk(draw(lengths), offset), Prefix(draw(lengths))
    masks = [causal, window, prefix, chunk, FirstN(draw(lengths)), causal & window, causal | prefix, causal & chunk]
    return queries, keys, draw(st.sampled_from(masks))


@given(sizes, sizes, extents, extents, st.integers(1, 5))
def test_without_a_mask_every_pair_of_tiles_is_visited_and_none_is_masked(
    queries: int, keys: int, rows: int, tile: int, every: int
):
    asked = problem(queries, keys, None)
    found, expected = geometry(asked, rows, tile, every), looked_at(asked, rows, tile, every)
    assert sum(int(np.sum(n)) for n in found.strips) == expected.strips
    assert pairs(found.visits) == expected.visits
    assert not any(pairs(found.edges).values())
    assert sum(int(np.sum(n)) for n in found.strip_keys) == expected.strip_keys
    assert found.constant_width == keys


@settings(max_examples=200)
@given(cases(), extents, extents, st.integers(1, 5))
def test_a_masked_row_tile_visits_the_tiles_it_sees_and_masks_those_with_hidden_keys(
    case: tuple[int, int, Mask], rows: int, tile: int, every: int
):
    queries, keys, mask = case
    asked = problem(queries, keys, mask)
    found, expected = geometry(asked, rows, tile, every), looked_at(asked, rows, tile, every)
    assert sum(int(np.sum(n)) for n in found.strips) == expected.strips
    assert pairs(found.visits) == expected.visits
    assert pairs(found.edges) == expected.edges
    assert sum(int(np.sum(n)) for n in found.nonempty) == expected.nonempty
    assert sum(int(np.sum(n)) for n in found.strip_keys) == expected.strip_keys
    assert found.width.item() == expected.width


@settings(max_examples=200)
@given(cases(sinks=True), extents, extents)
def test_the_gap_between_two_ranges_of_keys_is_not_visited(case: tuple[int, int, Mask], rows: int, tile: int):
    """Every live tile is, every tile with a hidden key is masked, and empty ranges are rounded to at most a tile."""
    queries, keys, mask = case
    asked = problem(queries, keys, mask)
    found, expected = geometry(asked, rows, tile), looked_at(asked, rows, tile)
    visits, edges = sum(pairs(found.visits).values()), sum(pairs(found.edges).values())
    assert expected.live <= visits <= expected.live + 2 * -(-queries // rows)
    assert visits - wholly_visible(queries, keys, mask, rows, tile) <= edges <= visits


@settings(max_examples=200)
@given(st.booleans().flatmap(lambda sinks: cases(sinks=sinks)), st.lists(st.tuples(extents, extents), min_size=1))
def test_the_longest_rows_need_no_other_counts(case: tuple[int, int, Mask], tiles: list[tuple[int, int]]):
    asked = problem(*case)
    rows, keys = np.array(tiles).T
    assert widest_rows(asked, rows, keys).tolist() == key_geometry(asked, rows, keys, rows * 0 + 1).width.tolist()


def test_the_first_keys_and_a_window_by_hand():
    """Rows 28 to 31 of 32 see key 0 and the last 4: tile 0, and with tiles of 4 keys the last two."""
    mask = Causal(0) & (Window(4, 0, 0) | FirstN(1))
    found = geometry(problem(32, 32, mask), 4, 4)
    assert sum(pairs(found.visits).values()) == 1 + 2 + 6 * 3
    assert sum(pairs(found.edges).values()) == sum(pairs(found.visits).values())
    assert int(found.strip_keys[0].item()) == 4 * (1 + 2 + 6 * 3)


@given(cases(), extents, extents)
def test_kernels_that_hand_on_hidden_scores_visit_everything_and_still_mask(
    case: tuple[int, int, Mask], rows: int, tile: int
):
    """A softmax on its own writes zeros for hidden keys: nothing is skipped, and whole tiles are edges."""
    queries, keys, mask = case
    found = geometry(problem(queries, keys, mask, ("mask", "softmax")), rows, tile)
    visits = pairs(found.visits)
    assert sum(visits.values()) == -(-queries // rows) * -(-keys // tile)
    hidden = sum(visits.values()) - wholly_visible(queries, keys, mask, rows, tile)
    assert sum(pairs(found.edges).values()) == hidden
    assert found.constant_width == keys


@pytest.mark.parametrize("sinks", [False, True])
@given(data=st.data())
def test_rows_that_see_no_key_are_noticed(data: st.DataObject, sinks: bool):
    """Also where the mask is the same for every row, as a prefix."""
    queries, keys, mask = data.draw(cases(sinks=sinks))
    expected = bool(visibility(queries, keys, mask).any(axis=1).all())
    assert every_row_sees_keys(problem(queries, keys, mask)) == expected


def test_a_triangle_by_hand():
    """10 rows in tiles of 4, keys in tiles of 4: 1 + 2 + 3 visits, the diagonal masked, the last tiles ragged."""
    found = geometry(problem(10, 10, Causal(0)), 4, 4)
    assert pairs(found.visits) == {(False, False): 3, (False, True): 0, (True, False): 2, (True, True): 1}
    assert pairs(found.edges) == {(False, False): 2, (False, True): 0, (True, False): 0, (True, True): 1}
    assert (int(found.strip_keys[0].item()), int(found.strip_keys[1].item())) == (4 + 8, 10)


def test_rows_before_the_first_key_visit_nothing():
    found = geometry(problem(8, 8, Causal(-5)), 4, 2)
    assert pairs(found.visits) == {(False, False): 2, (False, True): 0, (True, False): 0, (True, True): 0}
    assert [int(np.sum(n)) for n in found.nonempty] == [1, 0]


def test_rows_behind_the_last_key_may_visit_the_tile_that_holds_it():
    """Bounds are rounded to tiles: an empty interval inside of a tile still holds that tile, never more."""
    queries, keys, mask = 12, 5, Window(1, 0, 0)
    for rows, tile in ((1, 1), (1, 4), (4, 2)):
        row_tiles = -(-queries // rows)
        found, live = (
            geometry(problem(queries, keys, mask), rows, tile),
            looked_at(problem(queries, keys, mask), rows, tile),
        )
        assert 0 <= sum(pairs(found.visits).values()) - live.live <= row_tiles - live.nonempty


@pytest.mark.parametrize("mask", [None, Causal(3), Window(5, 1, 3)], ids=str)
def test_a_column_of_mappings_is_counted_row_by_row(mask: Mask | None):
    """Mappings share their counts when their tiles are the same, in any order."""
    asked = problem(23, 26, mask)
    rows, tiles = np.array([5, 23, 1, 5, 8]), np.array([7, 26, 1, 7, 13])
    every = np.array([2, 1, 3, 1, 2])
    together = key_geometry(asked, rows, tiles, every)
    for i, (r, t) in enumerate(zip(rows, tiles, strict=True)):
        alone = geometry(asked, int(r), int(t), int(every[i]))
        for q in (0, 1):
            assert [int(n[i]) for n in together.visits[q]] == [int(n.item()) for n in alone.visits[q]]
            assert [int(n[i]) for n in together.edges[q]] == [int(n.item()) for n in alone.edges[q]]
            assert int(together.strip_keys[q][i]) == int(alone.strip_keys[q].item())
            assert int(together.strips[q][i]) == int(alone.strips[q].item())
