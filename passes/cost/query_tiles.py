"""Query tiles in order, alike ones in a row together: what a walk through a kernel's trips goes by.

    query_tiles(problem, query=64, key=128).parts      # causal: a few alone, then GrowingTiles, then a few alone

Without a mask all query tiles visit the same key tiles. Under one they visit different ones, but under the usual masks
kinds of query tiles come again with so many key tiles more (`GrowingTiles`), or as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import product

from flatc.dialects.frozen import frozen
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.visited_keys import Sight, bounds_of, clean_trips, sight_of, trips_of
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class KeyTiles:
    """So many key tiles in a row, as wide as each other, all crossed by the mask's edge or none."""

    trips: int
    extent: int
    masked: bool


@frozen
class QueryTiles:
    """So many query tiles in a row that visit alike key tiles."""

    count: int
    extent: int
    parts: tuple[KeyTiles, ...]

    @property
    def trips(self) -> int:
        """How many key tiles one of them visits."""
        return sum(part.trips for part in self.parts)


def strips_of(parts: Sequence[KeyTiles], tiles: int) -> list[tuple[int, tuple[KeyTiles, ...]]]:
    """The key tiles of a query tile in strips of so many: (how many strips in a row are alike, their key tiles)."""
    found: list[tuple[int, tuple[KeyTiles, ...]]] = []
    strip: list[KeyTiles] = []
    room = tiles
    for part in parts:
        left = part.trips
        while left:
            whole = left // tiles if not strip else 0
            if whole:
                found.append((whole, (KeyTiles(tiles, part.extent, part.masked),)))
                left -= whole * tiles
                continue
            some = min(left, room)
            strip.append(KeyTiles(some, part.extent, part.masked))
            left, room = left - some, room - some
            if not room:
                found.append((1, tuple(strip)))
                strip, room = [], tiles
    return [*found, (1, tuple(strip))] if strip else found


MOST_QUERY_TILES = 128
"""So many kinds of query tiles are told apart. A triangle of more of them loses less than a 128th of its key tiles."""


@frozen
class GrowingTiles:
    """Kinds of query tiles that come again and again, each time with `growth` more key tiles that no mask crosses.

    `first` are the numbers of the kinds until they come again, as `_key_tiles_of` gives them; `count` are all of them.
    """

    first: tuple[tuple[int, ...], ...]
    count: int
    growth: int
    key: int
    ragged: int

    @cached_property
    def _made(self) -> dict[int, QueryTiles]:
        return {}

    def __getitem__(self, index: int) -> QueryTiles:
        found = self._made.get(index)
        if found is None:
            again, place = divmod(index, len(self.first))
            numbers = list(self.first[place])
            numbers[_CLEAN] += again * self.growth
            found = self._made[index] = _query_tiles_of(numbers, self.key, self.ragged)
        return found

    def __iter__(self) -> Iterator[QueryTiles]:
        return (self[index] for index in range(self.count))


@frozen
class TilesInOrder:
    """All query tiles in order; `merged` if some are taken to visit less key tiles than they do."""

    parts: tuple[QueryTiles | GrowingTiles, ...]
    merged: bool = False


_PARTS = tuple(product((True, False, True), (False, True)))
"""Key tiles in order, (masked, ragged): before the range that every row sees, in it, and behind it."""

_CLEAN = _PARTS.index((False, False))


def query_tiles(problem: AttentionProblem, query: int, key: int, most: int = MOST_QUERY_TILES) -> TilesInOrder:
    """The query tiles of one mapping in order, alike ones in a row together, for a bound from below.

    Where they are of more than `most` kinds, some in a row are taken to visit the least of what they visit. Kinds that
    come again with more key tiles count once.
    """
    return _query_tiles(sight_of(problem), query, key, most)


@lru_cache(maxsize=1 << 8)
def _query_tiles(problem: Sight, query: int, key: int, most: int) -> TilesInOrder:
    if problem.mask is None:
        extents = [(problem.queries // query, query), (int(problem.queries % query > 0), problem.queries % query)]
        parts = tuple(
            KeyTiles(int(trips), extent, masked=False)
            for trips, extent in ((problem.keys // key, key), (problem.keys % key > 0, problem.keys % key))
            if trips
        )
        return TilesInOrder(tuple(QueryTiles(count, extent, parts) for count, extent in extents if count))
    ragged = problem.keys % key
    rows = _key_tiles_of(problem, query, key)
    begin, end, period = _longest_growth(rows)
    if len(rows) - (end - begin) > most:
        rows = _merged(rows, most)
        # Of tiles that are told apart no longer, one may visit no keys that all the others visit.
        kinds = [_query_tiles_of(numbers, key, ragged) for numbers in rows.tolist()]
        return TilesInOrder(tuple(tiles for tiles in kinds if tiles.trips), merged=True)
    alone = [_query_tiles_of(numbers, key, ragged) for numbers in (*rows[:begin].tolist(), *rows[end:].tolist())]
    if begin >= end:
        return TilesInOrder(tuple(alone))
    first = tuple(tuple(numbers) for numbers in rows[begin : begin + period].tolist())
    growth = int(rows[begin + period, _CLEAN] - rows[begin, _CLEAN])
    return TilesInOrder((*alone[:begin], GrowingTiles(first, end - begin, growth, key, ragged), *alone[begin:]))


def _query_tiles_of(numbers: Sequence[int], key: int, ragged: int) -> QueryTiles:
    *trips, extent, count = numbers
    parts = tuple(
        [
            KeyTiles(some, ragged if is_ragged else key, masked)
            for some, (masked, is_ragged) in zip(trips, _PARTS, strict=True)
            if some
        ]
    )
    return QueryTiles(count, extent, parts)


LONGEST_GROWTH_PERIOD = 8
"""Kinds of query tiles that come again after more than so many are not recognised."""

FEWEST_GROWING = 16
"""Fewer kinds are as well taken one by one."""


def _longest_growth(rows: Ints) -> tuple[int, int, int]:
    """(begin, end, period) of kinds that come again with more key tiles inside what every row sees; (n, n, 1) if none.

    Of several periods, the first one that most of the kinds follow.
    """
    import numpy as np

    best = len(rows), len(rows), 1
    for period in range(1, LONGEST_GROWTH_PERIOD + 1):
        if len(rows) < FEWEST_GROWING + period:
            break
        more = rows[period:] - rows[:-period]
        others = np.delete(more, _CLEAN, axis=1)
        follows = ~others.any(axis=1) & (more[:, _CLEAN] > 0)
        breaks = np.flatnonzero(~(follows[1:] & follows[:-1] & (more[1:, _CLEAN] == more[:-1, _CLEAN])))
        ends = np.concatenate([[-1], breaks, [len(more) - 1]])
        longest = int(np.argmax(np.diff(ends)))
        begin, end = int(ends[longest]) + 1, int(ends[longest + 1]) + 1 + period
        if end - begin >= FEWEST_GROWING and end - begin > best[1] - best[0] and follows[begin]:
            best = begin, end, period
        if best[1] - best[0] > len(rows) // 2:
            break
    return best


def _merged(rows: Ints, most: int) -> Ints:
    """Kinds in a row as one, which visits the least of what they visit, so that no more than `most` are left."""
    import numpy as np

    if len(rows) <= most:
        return rows
    begins = np.unique(np.append(np.arange(0, len(rows), -(-len(rows) // most)), len(rows) - 1))
    counts = np.add.reduceat(rows[:, -1], begins)
    return np.concatenate([np.minimum.reduceat(rows[:, :-1], begins), counts[:, None]], axis=1)


def _key_tiles_of(problem: Sight, query: int, key: int) -> Ints:
    """A row for each run of alike query tiles: its key tiles, their rows, and how many they are.

    Key tiles lie before the range that every row sees, in it, and behind it; of each there are full and ragged ones.
    """
    import numpy as np

    live, edge = bounds_of(problem)
    start = np.arange(0, problem.queries, query, dtype=np.int64)
    last = np.minimum(start + query, problem.queries) - 1
    at, tile = {"start": start, "last": last}, np.ones(1, dtype=np.int64) * key
    lower, upper = trips_of(live, at, tile)
    clean_from, clean_to = clean_trips(problem, edge, at, lower, upper, tile)
    ends = [lower, clean_from, clean_to, upper]
    full = [np.minimum(end, problem.keys // key) for end in ends]
    columns = [last - start + 1]
    for i in (2, 1, 0):
        whole = np.maximum(full[i + 1] - full[i], 0)
        columns = [whole, np.maximum(ends[i + 1] - ends[i], 0) - whole, *columns]
    rows = np.stack(columns, axis=1)
    begins = np.flatnonzero(np.concatenate([[True], (rows[1:] != rows[:-1]).any(axis=1)]))
    counts = np.diff(np.append(begins, len(rows)))
    return np.concatenate([rows[begins], counts[:, None]], axis=1)
