"""Which keys a tile of query rows sees, as expressions: masks become loop bounds.

The same expressions bound the key loops of a schedule (`kernel_schedule`) and are counted by the closed form
(`key_geometry`), so that counting and executing cannot disagree.

    live_keys(Causal(0), keys=512)      lower 0, upper min(512, last + 1), full (0, start + 1)

A mask with a hole (`first(4) | window(64)`) leaves two ranges, whose tiles are one sequence to a loop (`tile_ranges`).
"""

from __future__ import annotations

from dataclasses import dataclass

from flatc.dialects.masks import Mask, intervals
from flatc.dialects.quasi_affine import Expr, ceildiv, const, maximum, minimum, var

Bounds = tuple[Expr, Expr]
"""First key, and one past the last."""


@dataclass(frozen=True)
class LiveKeys:
    """Which keys a tile of query rows sees, as expressions of its first row `start` and last row `last`.

    `ranges` hold what any row sees: one range, or two where the mask leaves a hole between them, the first before the
    second. `full` is of each the part that every row sees.
    """

    ranges: tuple[Bounds, ...]
    full: tuple[Bounds, ...]

    @property
    def lower(self) -> Expr:
        """The first key of the first range."""
        return self.ranges[0][0]

    @property
    def upper(self) -> Expr:
        """One past the last key of the last range."""
        return self.ranges[-1][1]


def live_keys(mask: Mask | None, keys: int) -> LiveKeys:
    """The visible keys of a query tile. Bounds of a mask never decrease with the row, so ends decide."""
    if mask is None:
        everything = (const(0), const(keys))
        return LiveKeys((everything,), (everything,))
    parts = intervals(mask)
    first, last = {"q": var("start")}, {"q": var("last")}
    return LiveKeys(
        tuple((maximum(0, part.lo.substitute(first)), minimum(keys, part.hi.substitute(last))) for part in parts),
        tuple((part.lo.substitute(last), part.hi.substitute(first)) for part in parts),
    )


@dataclass(frozen=True)
class TileRanges:
    """The tiles of two ranges as one sequence: `counts[0]` from `starts[0]` on, then `counts[1]` from `starts[1]` on.

    A tile that both ranges touch belongs to the first.
    """

    starts: Bounds
    counts: Bounds

    def tile(self, place: Expr, most: int) -> Expr:
        """The tile at a place of the sequence; there are at most `most` tiles.

        The hole between the ranges is added as soon as the place is beyond the first: `most` times one is enough.
        """
        hole = self.starts[1] - self.starts[0] - self.counts[0]
        beyond = maximum(0, place - self.counts[0] + 1)
        return self.starts[0] + place + minimum(hole, beyond * most)


def tile_ranges(live: LiveKeys, tile: int) -> TileRanges:
    """The key tiles of two ranges, as expressions of `start` and `last` too."""
    (lower, upper), (second_lower, second_upper) = live.ranges
    start, end = lower // tile, ceildiv(upper, tile)
    second = maximum(second_lower // tile, start, end)
    counts = maximum(0, end - start), maximum(0, ceildiv(second_upper, tile) - second)
    return TileRanges((start, second), counts)
