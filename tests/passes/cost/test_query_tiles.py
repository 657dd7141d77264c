"""Query tiles in order: strips of their key tiles, kinds that come again, and kinds that are told apart only so far."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flatc.dialects.masks import Causal
from flatc.passes.cost.query_tiles import GrowingTiles, KeyTiles, QueryTiles, query_tiles, strips_of
from tests.passes.cost.test_key_geometry import problem


def test_strips_are_cut_from_the_first_tile_on():
    """Nine tiles, the first of them at a mask's edge and the last ragged, in strips of three."""
    edge, inside, ragged = KeyTiles(1, 4, masked=True), KeyTiles(7, 4, masked=False), KeyTiles(1, 2, masked=False)
    some = {trips: replace(inside, trips=trips) for trips in (1, 2, 3)}
    strips = [(1, (edge, some[2])), (1, (some[3],)), (1, (some[2], ragged))]
    assert list(strips_of((edge, inside, ragged), 3)) == strips
    assert list(strips_of((inside,), 3)) == [(2, (some[3],)), (1, (some[1],))]


@pytest.mark.parametrize(("rows", "tile"), [(2, 2), (4, 8), (3, 2), (6, 4), (5, 7)])
def test_query_tiles_of_a_triangle_grow_evenly(rows: int, tile: int):
    """A query tile from `start` visits the key tiles up to its last row, and its first row sees whole ones of these."""
    tokens = 35 * rows
    found: list[QueryTiles] = []
    parts = query_tiles(problem(tokens, tokens, Causal(0)), rows, tile).parts
    assert sum(isinstance(part, GrowingTiles) for part in parts) == 1
    for part in parts:
        found += part if isinstance(part, GrowingTiles) else [part]
    every = [kind for kind in found for _ in range(kind.count)]
    assert len(every) == tokens // rows
    for start, kind in zip(range(0, tokens, rows), every, strict=True):
        assert kind.trips == -(-(start + rows) // tile)
        assert sum(part.trips for part in kind.parts if not part.masked) == (start + 1) // tile


def test_query_tiles_that_never_come_again_are_told_apart_only_so_far():
    """13 rows by 32 keys come again after 32 query tiles: eight in a row are taken to visit what the least does."""
    found = query_tiles(problem(13 * 1024, 13 * 1024, Causal(0)), 13, 32)
    parts = found.parts
    assert found.merged
    assert len(parts) <= 130
    assert sum(part.count for part in parts) == 1024
    exact = sum(-(-13 * (tile + 1) // 32) for tile in range(1024))
    least = sum(part.count * part.trips for part in parts if isinstance(part, QueryTiles))
    assert exact * 0.98 < least < exact
