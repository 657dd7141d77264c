"""How many key tiles each query tile visits, counted over all query tiles of a mapping.

Without a mask every query tile visits every key tile. A mask makes the number vary from row to row; what the
costs need is only how often each kind of (query tile, key tile) pair occurs, full or ragged, and on how many
of them the mask's edge lies (`visited_keys` has the bounds).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from flatc.dialects.frozen import frozen
from flatc.passes.cost.arrays import Ints, occurs
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.cost.visited_keys import Sight, bounds_of, clean_trips, sight_of, trips_of
from flatc.passes.kernels.live_keys import LiveKeys
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class KeyGeometry:
    """Counts for a column of mappings; pairs are (full, ragged), indexed [query kind][key kind].

    `visits` and `edges` count key tiles visited and masked, `nonempty` query tiles that visit any, `strip_keys` the
    keys of all row strips, `width` the longest strip, `constant_width` its length where all are as long. `strips` are
    the tiles, or strips of several, that an online softmax works on at a time. `most_visits` is how many key tiles a
    query tile visits at most, `first` and `last` are the (full, ragged) ones of the first and of the last query tile.
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
    most_visits: Ints
    first: tuple[Ints, Ints]
    last: tuple[Ints, Ints]


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
        most_visits=full_keys + ragged_keys,
        first=(full_keys, ragged_keys),
        last=(full_keys, ragged_keys),
    )


def _masked(
    problem: AttentionProblem,
    tiles: tuple[Ints, Ints, Ints],
    q_counts: tuple[Ints, Ints],
    q_extents: tuple[Ints, Ints],
    k_extents: tuple[Ints, Ints],
) -> KeyGeometry:
    import numpy as np

    question = sight_of(problem)
    query, key, every = tiles
    if isinstance(query, int):  # numbers, not columns
        alone = _count_one(question, *cast("tuple[int, int, int]", tiles))
        return _of_counts(problem, alone, q_counts, q_extents, k_extents)
    strip = key * (problem.keys + 1) + every  # both in one number
    counts = np.empty((len(query), 20), dtype=np.int64)
    for rows in np.unique(query):
        here = np.flatnonzero(query == rows)
        _, first, inverse = np.unique(strip[here], return_index=True, return_inverse=True)
        kinds = here[first]
        counts[here] = _count(question, int(rows), tuple(key[kinds].tolist()), tuple(every[kinds].tolist()))[inverse]
    return _of_counts(problem, counts.T, q_counts, q_extents, k_extents)


def widest_rows(problem: AttentionProblem, query: Ints, key: Ints) -> Ints:
    """Keys of the longest row that tiles of `query` rows by `key` keys visit, in a column: `KeyGeometry.width` alone.

    It decides what fits on chip, and is found much sooner than all the counts.
    """
    import numpy as np

    if problem.mask is None or not problem.skips_hidden:
        return query * 0 + problem.keys
    question = sight_of(problem)
    width = np.empty(len(query), dtype=np.int64)
    for rows in np.unique(query):
        here = np.flatnonzero(query == rows)
        kinds, inverse = np.unique(key[here], return_inverse=True)
        width[here] = _widest(question, int(rows), tuple(kinds.tolist()))[inverse]
    return width


@lru_cache(maxsize=1 << 12)
def _widest(problem: Sight, rows: int, tiles: tuple[int, ...]) -> Ints:
    """The longest row of one height of query tiles, for each width of key tiles."""
    import numpy as np

    live, _ = bounds_of(problem)
    tile, at = np.array(tiles, dtype=np.int64), query_tiles_at(problem, rows)
    if live.gap is None:
        # A query tile that visits nothing that the next one does not visit is no longer than that one.
        lower, upper = ((at["start"] * 0 + bound.evaluate(at))[:, 0] for bound in (live.lower, live.upper))
        longer = np.append(np.flatnonzero((lower[1:] > lower[:-1]) | (upper[1:] < upper[:-1])), len(lower) - 1)
        at = {name: place[longer] for name, place in at.items()}
    lower, upper = trips_of(live, at, tile)
    return np.maximum(_strip_keys(problem, tile, lower, upper).max(axis=0), 1)


def query_tiles_at(problem: Sight, rows: int) -> dict[str, Ints]:
    """The first and last row of each query tile, downwards."""
    import numpy as np

    start = np.arange(0, problem.queries, rows, dtype=np.int64)[:, None]
    return {"start": start, "last": np.minimum(start + rows, problem.queries) - 1}


def _strip_keys(problem: Sight, tile: Ints, lower: Ints, upper: Ints) -> Ints:
    """How many keys there are in trips from `lower` to `upper`."""
    import numpy as np

    return np.where(upper > lower, np.minimum(upper * tile, problem.keys) - lower * tile, 0)


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
        most_visits=columns[15],
        first=(columns[16], columns[17]),
        last=(columns[18], columns[19]),
    )


@lru_cache(maxsize=1 << 12)
def _count(problem: Sight, rows: int, tiles: tuple[int, ...], every: tuple[int, ...]) -> Ints:
    """The counts of one height of query tiles, a row for each width of key tiles and number of them in a strip.

    Remembered, because the kernels and strategies of a search ask for the same ones.
    """
    import numpy as np

    # Query tiles go down, widths of key tiles across.
    at, (tile, strip) = query_tiles_at(problem, rows), (np.array(numbers, dtype=np.int64) for numbers in (tiles, every))
    return np.stack(_totals(problem, rows, at, tile, strip), axis=1)


@lru_cache(maxsize=1 << 12)
def _count_one(problem: Sight, rows: int, tile: int, every: int) -> tuple[int, ...]:
    """The counts of one mapping, as numbers."""
    at = {name: place[:, 0] for name, place in query_tiles_at(problem, rows).items()}
    return tuple(int(total) for total in _totals(problem, rows, at, tile, every))


def _totals(problem: Sight, rows: int, at: dict[str, Ints], tile: Any, every: Any) -> list[Any]:
    """Counts over all query tiles, which lie along the first axis: seven of the full ones, seven of the ragged one.

    Behind them are the longest row, the most visits of a query tile, the full and ragged ones of the first and of the
    last. `tile` and `every` are numbers, or arrays along a second axis.
    """
    import numpy as np

    whole, last_is_ragged, *masked = visits_of(problem, at, tile)
    trips = whole + last_is_ragged
    strip = whole * tile + last_is_ragged * (problem.keys % tile)
    strips = ceil_divide(trips, every) if occurs(every != 1) else trips
    table = [whole, last_is_ragged, *masked, trips > 0, strip, strips]
    sums = [np.add.reduce(column) for column in table]
    ragged = [column[-1] * (problem.queries % rows > 0) for column in table]
    full = [total - of_last for total, of_last in zip(sums, ragged, strict=True)]
    most = np.maximum(np.maximum.reduce(strip), 1), np.maximum.reduce(trips)
    return [*full, *ragged, *most, *(column[place] for place in (0, -1) for column in table[:2])]


def visits_of(problem: Sight, at: dict[str, Ints], tile: Any) -> tuple[Ints, Ints, Ints, Ints]:
    """For each query tile: (full, ragged) key tiles that it visits, and how many of these are masked."""
    import numpy as np

    live, edge = bounds_of(problem)
    lower, upper = trips_of(live, at, tile)
    trips, ragged_keys = np.maximum(upper - lower, 0), problem.keys % tile
    last_is_ragged = (trips > 0) & (ragged_keys > 0)
    if occurs(ragged_keys):
        last_is_ragged = last_is_ragged & (upper == ceil_divide(problem.keys, tile))
    masked, masked_ragged = _edges(problem, edge, at, lower, upper, tile, last_is_ragged)
    return trips - last_is_ragged, last_is_ragged, masked - masked_ragged, masked_ragged


def _edges(
    problem: Sight, edge: LiveKeys, at: dict[str, Ints], lower: Ints, upper: Ints, tile: Any, last_is_ragged: Ints
) -> tuple[Ints, Ints]:
    """For each query tile: how many visited key tiles are masked, and whether the ragged one is among them."""
    import numpy as np

    clean_from, clean_to = clean_trips(problem, edge, at, lower, upper, tile)
    masked = np.maximum(upper - lower, 0) - (clean_to - clean_from)
    ragged_clean = (clean_to == ceil_divide(problem.keys, tile)) & (clean_to > clean_from)
    return masked, (last_is_ragged & ~ragged_clean) * 1
