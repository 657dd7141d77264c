"""Which key tiles query tiles visit: the bounds of many query tiles at once.

They come from `live_keys`, the same expressions that become loop bounds, so that counting and executing cannot
disagree. `key_geometry` counts with them, `query_tiles` tells query tiles apart.
"""

from __future__ import annotations

from functools import lru_cache

from flatc.dialects.frozen import frozen
from flatc.dialects.masks import Mask
from flatc.passes.cost.arrays import Ints
from flatc.passes.kernels.live_keys import LiveKeys, live_keys
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class Sight:
    """All that decides which keys are visited, beside the tiles: problems that agree on it share what is counted."""

    mask: Mask | None
    skips_hidden: bool
    queries: int
    keys: int


def sight_of(problem: AttentionProblem) -> Sight:
    """Only these facts of a problem matter, so that kernels and strategies share what was counted."""
    return Sight(problem.mask, problem.skips_hidden, problem.queries, problem.keys)


@lru_cache(maxsize=64)
def bounds_of(problem: Sight) -> tuple[LiveKeys, LiveKeys]:
    """The keys that are visited, and the keys that are visible."""
    visited = problem.mask if problem.skips_hidden else None
    return live_keys(visited, problem.keys), live_keys(problem.mask, problem.keys)


def every_row_sees_keys(problem: AttentionProblem) -> bool:
    """Whether each query row visits keys, so that no query tile of any size is without a key tile."""
    if problem.mask is None or not problem.skips_hidden:
        return True
    return _every_row_sees_keys(sight_of(problem))


@lru_cache(maxsize=64)
def _every_row_sees_keys(problem: Sight) -> bool:
    import numpy as np

    live, _ = bounds_of(problem)
    row = np.arange(problem.queries, dtype=np.int64)
    lower, upper = trips_of(live, {"start": row, "last": row}, np.ones(1, dtype=np.int64))
    return bool((lower < upper).all())


def trips_of(live: LiveKeys, at: dict[str, Ints], tile: Ints) -> tuple[Ints, Ints]:
    """`LiveKeys.trips` of many tiles at once."""
    import numpy as np

    zero = at["start"] * 0
    lower, upper = zero + live.lower.evaluate(at) // tile, zero - (-live.upper.evaluate(at) // tile)
    if live.gap is None:
        return lower, upper
    end = -(-live.gap[0].evaluate(at) // tile)
    again = np.maximum(end, live.gap[1].evaluate(at) // tile)
    return again - np.maximum(0, end - lower), np.maximum(upper, again)


def clean_trips(
    problem: Sight, edge: LiveKeys, at: dict[str, Ints], lower: Ints, upper: Ints, tile: Ints
) -> tuple[Ints, Ints]:
    """For each query tile: its first trip to a key tile inside what every row sees, and one past the last.

    Where a mask leaves two ranges of keys, `edge` has the second, and a trip before it is to a tile before it.
    """
    import numpy as np

    if edge.full is None:
        return lower, lower
    full_lower, full_upper = (bound.evaluate(at) for bound in edge.full)
    clean_from = np.minimum(np.maximum(-(-full_lower // tile), lower), upper)
    ends_inside = np.where(full_upper >= problem.keys, -(-problem.keys // tile), full_upper // tile)
    return clean_from, np.minimum(np.maximum(ends_inside, clean_from), upper)
