"""What a mask leaves, counted exactly in time proportional to the number of rows, not to the number of scores.

visible(Causal(0), 4, 4)                   # Visible(pairs=10, keys=4, queries=4)
visible_distances(Causal(0), 4, 4)         # [-3, -2, -1, 0]
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from flatc.dialects.frozen import frozen
from flatc.dialects.masks import Mask, intervals
from flatc.passes.cost.arrays import Ints


@frozen
class Visible:
    """What the queries of one head see: (query, key) pairs, keys that some query sees, queries that see some key."""

    pairs: int
    keys: int
    queries: int


@lru_cache(maxsize=256)
def visible(mask: Mask | None, queries: int, keys: int) -> Visible:
    """What a mask leaves of the scores of one head; without a mask, everything."""
    if mask is None:
        return Visible(queries * keys, keys, queries)
    import numpy as np

    per_row, change = np.zeros(queries, dtype=np.int64), np.zeros(keys + 1, dtype=np.int64)
    for lower, upper in _ranges(mask, queries, keys):
        per_row += upper - lower
        change += np.bincount(lower, minlength=keys + 1) - np.bincount(upper, minlength=keys + 1)
    seen = int(np.count_nonzero(np.cumsum(change)[:keys]))
    return Visible(int(per_row.sum()), seen, int(np.count_nonzero(per_row)))


def visible_distances(mask: Mask | None, queries: int, keys: int) -> Ints:
    """The differences key - query that occur among the visible pairs, each once."""
    import numpy as np

    if mask is None:
        return np.arange(1 - queries, keys, dtype=np.int64)
    rows, change = np.arange(queries, dtype=np.int64), np.zeros(queries + keys + 1, dtype=np.int64)
    for lower, upper in _ranges(mask, queries, keys):
        for ends, sign in ((lower, 1), (upper, -1)):
            change += sign * np.bincount(ends - rows + queries, minlength=len(change))
    return np.flatnonzero(np.cumsum(change)) - queries


def _ranges(mask: Mask, queries: int, keys: int) -> list[tuple[Ints, Ints]]:
    """The visible keys of each row, as disjoint half-open ranges."""
    import numpy as np

    rows, found = np.arange(queries, dtype=np.int64), list[tuple[Ints, Ints]]()
    for interval in intervals(mask):
        lower = np.clip(interval.lo.evaluate({"q": rows}) + 0 * rows, 0, keys)
        upper = np.maximum(np.clip(interval.hi.evaluate({"q": rows}) + 0 * rows, 0, keys), lower)
        found.append((lower, upper))
    return _disjoint(found, keys) if len(found) > 1 else found


def _disjoint(ranges: Sequence[tuple[Ints, Ints]], keys: int) -> list[tuple[Ints, Ints]]:
    """The same ranges without what they have in common, row by row; empty ones lie behind all others."""
    import numpy as np

    starts, ends = (np.stack(sides) for sides in zip(*ranges, strict=True))
    order = np.argsort(np.where(starts < ends, starts, keys), axis=0, kind="stable")
    starts, ends = (np.take_along_axis(sides, order, axis=0) for sides in (starts, ends))
    reached = np.zeros_like(starts[0])
    found: list[tuple[Ints, Ints]] = []
    for lower, upper in zip(starts, ends, strict=True):
        begin = np.minimum(np.maximum(lower, reached), np.maximum(upper, reached))
        reached = np.maximum(upper, reached)
        found.append((begin, reached))
    return found
