"""How many key tiles each query tile visits, counted over all query tiles of a mapping.

Without a mask every query tile visits every key tile. A mask makes the number vary from row to row; what the
costs need is only how often each kind of (query tile, key tile) pair occurs, full or ragged, and on how many
of them the mask's edge lies. The bounds come from `live_keys`, the same expressions that become
loop bounds, so that counting and executing cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, cast

from flatc.dialects.frozen import frozen
from flatc.dialects.masks import Mask
from flatc.passes.cost.arrays import Ints
from flatc.passes.kernels.live_keys import LiveKeys, live_keys
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class KeyGeometry:
    """Counts for a column of mappings; pairs are (full, ragged), indexed [query kind][key kind].

    `visits` and `edges` count key tiles visited and masked, `nonempty` query tiles that visit any, `strip_keys` the
    keys of all row strips, `width` the longest strip, `constant_width` its length where all are as long. `strips` are
    the tiles, or strips of several, that an online softmax works on at a time.
    """

    q_counts: tuple[Ints, Ints]
    q_extents: tuple[Ints, Ints]
    k_extents: tuple[Ints, Ints]
    visits: tuple[tuple[Ints, Ints], tuple[Ints, Ints]]
    edges: tuple[tuple[Ints, Ints], tuple[Ints, Ints]]
    nonempty: tuple[Ints, Ints]
    strip_keys: tuple[Ints, Ints]
    width: Ints
    constant_width: int | None
    strips: tuple[Ints, Ints]


def key_geometry(problem: AttentionProblem, query: Ints, key: Ints, rescaled_every: Ints) -> KeyGeometry:
    """The geometry of mappings whose tiles are `query` rows by `key` keys, `rescaled_every` so many of these."""
    q_counts = (problem.queries // query, (problem.queries % query > 0) * 1)
    q_extents = (query, problem.queries % query)
    k_extents = (key, problem.keys % key)
    if problem.mask is None:
        return _unmasked(problem, rescaled_every, q_counts, q_extents, k_extents)
    return _masked(problem, (query, key, rescaled_every), q_counts, q_extents, k_extents)


def _unmasked(
    problem: AttentionProblem,
    rescaled_every: Ints,
    q_counts: tuple[Ints, Ints],
    q_extents: tuple[Ints, Ints],
    k_extents: tuple[Ints, Ints],
) -> KeyGeometry:
    full_keys, ragged_keys = problem.keys // k_extents[0], (k_extents[1] > 0) * 1
    zero = full_keys * 0
    none = ((zero, zero), (zero, zero))
    full, ragged = ((n * full_keys, n * ragged_keys) for n in q_counts)
    strips = -(-(full_keys + ragged_keys) // rescaled_every)
    return KeyGeometry(
        q_counts,
        q_extents,
        k_extents,
        visits=(full, ragged),
        edges=none,
        nonempty=q_counts,
        strip_keys=(q_counts[0] * problem.keys, q_counts[1] * problem.keys),
        width=zero + problem.keys,
        constant_width=problem.keys,
        strips=(q_counts[0] * strips, q_counts[1] * strips),
    )


def _masked(
    problem: AttentionProblem,
    tiles: tuple[Ints, Ints, Ints],
    q_counts: tuple[Ints, Ints],
    q_extents: tuple[Ints, Ints],
    k_extents: tuple[Ints, Ints],
) -> KeyGeometry:
    import numpy as np

    # Only these facts of the problem matter, so that kernels and strategies share what was counted.
    question = _Question(problem.mask, problem.skips_hidden, problem.queries, problem.keys)
    query, key, every = tiles
    if isinstance(query, int):  # numbers, not columns
        rows, width, strip_tiles = cast("tuple[int, int, int]", tiles)
        (alone,) = _count(question, rows, (width,), (strip_tiles,)).tolist()
        return _of_counts(problem, alone, q_counts, q_extents, k_extents)
    strip = key * (problem.keys + 1) + every  # both in one number
    counts = np.empty((len(query), 15), dtype=np.int64)
    for rows in np.unique(query):
        here = np.flatnonzero(query == rows)
        _, first, inverse = np.unique(strip[here], return_index=True, return_inverse=True)
        kinds = here[first]
        counts[here] = _count(question, int(rows), tuple(key[kinds].tolist()), tuple(every[kinds].tolist()))[inverse]
    return _of_counts(problem, counts.T, q_counts, q_extents, k_extents)


def _of_counts(
    problem: AttentionProblem,
    columns: Any,
    q_counts: tuple[Ints, Ints],
    q_extents: tuple[Ints, Ints],
    k_extents: tuple[Ints, Ints],
) -> KeyGeometry:
    """The geometry from what `_count` counts, each a number or a column."""
    (ff, fr, eff, efr, nf, sf, tf), (rf, rr, erf, err, nr, sr, tr) = columns[0:7], columns[7:14]
    return KeyGeometry(
        q_counts,
        q_extents,
        k_extents,
        visits=((ff, fr), (rf, rr)),
        edges=((eff, efr), (erf, err)),
        nonempty=(nf, nr),
        strip_keys=(sf, sr),
        width=columns[14],
        constant_width=None if problem.skips_hidden else problem.keys,
        strips=(tf, tr),
    )


@frozen
class _Question:
    """What the counts depend on, beside the tile."""

    mask: Mask | None
    skips_hidden: bool
    queries: int
    keys: int


@lru_cache(maxsize=64)
def _bounds(problem: _Question) -> tuple[LiveKeys, LiveKeys]:
    """The keys that are visited, and the keys that are visible."""
    visited = problem.mask if problem.skips_hidden else None
    return live_keys(visited, problem.keys), live_keys(problem.mask, problem.keys)


def every_row_sees_keys(problem: AttentionProblem) -> bool:
    """Whether each query row visits keys, so that no query tile of any size is without a key tile."""
    if problem.mask is None or not problem.skips_hidden:
        return True
    return _every_row_sees_keys(_Question(problem.mask, problem.skips_hidden, problem.queries, problem.keys))


@lru_cache(maxsize=64)
def _every_row_sees_keys(problem: _Question) -> bool:
    import numpy as np

    live, _ = _bounds(problem)
    row = np.arange(problem.queries, dtype=np.int64)
    lower, upper = _trips(live, {"start": row, "last": row}, np.ones(1, dtype=np.int64))
    return bool((lower < upper).all())


@lru_cache(maxsize=1 << 12)
def _count(problem: _Question, rows: int, tiles: tuple[int, ...], every: tuple[int, ...]) -> Ints:
    """The counts of one height of query tiles, a row for each width of key tiles and number of them in a strip.

    A row has seven counts for full query tiles, seven for the ragged one, and the longest row. Remembered, because the
    kernels and strategies of a search ask for the same ones.
    """
    import numpy as np

    live, edge = _bounds(problem)
    # Query tiles go down, widths of key tiles across.
    tile = np.array(tiles, dtype=np.int64)
    start = np.arange(0, problem.queries, rows, dtype=np.int64)[:, None]
    last = np.minimum(start + rows, problem.queries) - 1
    at = {"start": start, "last": last}
    lower, upper = _trips(live, at, tile)
    trips = np.maximum(upper - lower, 0)
    last_is_ragged = (trips > 0) & (upper == -(-problem.keys // tile)) & (problem.keys % tile > 0)
    strip = np.where(trips > 0, np.minimum(upper * tile, problem.keys) - lower * tile, 0)
    masked, masked_ragged = _edges(problem, edge, at, lower, upper, tile, last_is_ragged)
    strips = -(-trips // np.array(every, dtype=np.int64))
    table = [trips - last_is_ragged, last_is_ragged, masked - masked_ragged, masked_ragged, trips > 0, strip, strips]
    sums = [column.sum(axis=0) for column in table]
    ragged = [column[-1] * (problem.queries % rows > 0) for column in table]
    full = [total - of_last for total, of_last in zip(sums, ragged, strict=True)]
    return np.stack([*full, *ragged, np.maximum(strip.max(axis=0), 1)], axis=1)


def _trips(live: LiveKeys, at: dict[str, Ints], tile: Ints) -> tuple[Ints, Ints]:
    """`LiveKeys.trips` of many tiles at once."""
    import numpy as np

    lower, upper = (
        at["start"] * 0 + bound for bound in (live.lower.evaluate(at) // tile, -(-live.upper.evaluate(at) // tile))
    )
    if live.gap is None:
        return lower, upper
    end = -(-live.gap[0].evaluate(at) // tile)
    again = np.maximum(end, live.gap[1].evaluate(at) // tile)
    return again - np.maximum(0, end - lower), np.maximum(upper, again)


def _edges(
    problem: _Question, edge: LiveKeys, at: dict[str, Ints], lower: Ints, upper: Ints, tile: Ints, last_is_ragged: Ints
) -> tuple[Ints, Ints]:
    """For each query tile: how many visited key tiles are masked, and whether the ragged one is among them."""
    import numpy as np

    key_tiles = -(-problem.keys // tile)
    trips = np.maximum(upper - lower, 0)
    clean_from, clean_to = _clean(problem, edge, at, lower, upper, tile)
    masked = trips - np.minimum(np.maximum(clean_to - clean_from, 0), trips)
    ragged_clean = (clean_to == key_tiles) & (clean_to > clean_from)
    return masked, (last_is_ragged & ~ragged_clean) * 1


def _clean(
    problem: _Question, edge: LiveKeys, at: dict[str, Ints], lower: Ints, upper: Ints, tile: Ints
) -> tuple[Ints, Ints]:
    """For each query tile: its first trip to a key tile inside what every row sees, and one past the last.

    Where a mask leaves two ranges of keys, `edge` has the second, and a trip before it is to a tile before it.
    """
    import numpy as np

    if edge.full is None:
        return lower, lower
    full_lower, full_upper = (bound.evaluate(at) for bound in edge.full)
    clean_from = np.clip(-(-full_lower // tile), lower, upper)
    ends_inside = np.where(full_upper >= problem.keys, -(-problem.keys // tile), full_upper // tile)
    return clean_from, np.clip(ends_inside, clean_from, np.maximum(upper, clean_from))


# --- Query tiles in order -------------------------------------------------------------------------------------


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

    def __getitem__(self, index: int) -> QueryTiles:
        again, place = divmod(index, len(self.first))
        numbers = list(self.first[place])
        numbers[_CLEAN] += again * self.growth
        return _query_tiles_of(numbers, self.key, self.ragged)

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


def query_tiles(
    problem: AttentionProblem, query: int, key: int, most: int = MOST_QUERY_TILES, *, grows: bool = True
) -> TilesInOrder:
    """The query tiles of one mapping in order, alike ones in a row together, for a bound from below.

    Where they are of more than `most` kinds, some in a row are taken to visit the least of what they visit. If `grows`,
    kinds that come again with more key tiles count once.
    """
    question = _Question(problem.mask, problem.skips_hidden, problem.queries, problem.keys)
    return _query_tiles(question, query, key, most, grows)


@lru_cache(maxsize=1 << 8)
def _query_tiles(problem: _Question, query: int, key: int, most: int, grows: bool) -> TilesInOrder:
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
    begin, end, period = _longest_growth(rows) if grows else (len(rows), len(rows), 1)
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
        KeyTiles(some, ragged if is_ragged else key, masked)
        for some, (masked, is_ragged) in zip(trips, _PARTS, strict=True)
        if some
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


def _key_tiles_of(problem: _Question, query: int, key: int) -> Ints:
    """A row for each run of alike query tiles: its key tiles, their rows, and how many they are.

    Key tiles lie before the range that every row sees, in it, and behind it; of each there are full and ragged ones.
    """
    import numpy as np

    live, edge = _bounds(problem)
    start = np.arange(0, problem.queries, query, dtype=np.int64)
    last = np.minimum(start + query, problem.queries) - 1
    at, tile = {"start": start, "last": last}, np.ones(1, dtype=np.int64) * key
    lower, upper = _trips(live, at, tile)
    clean_from, clean_to = _clean(problem, edge, at, lower, upper, tile)
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
