"""Which keys a tile of query rows sees, as expressions: masks become loop bounds.

The same expressions bound the key loops of a schedule (`kernel_schedule`) and are counted by the closed form
(`key_geometry`), so that counting and executing cannot disagree.

    live_keys(Causal(0), keys=512)      lower 0, upper min(512, last + 1), full (0, start + 1)

Where a mask leaves two ranges, such as `first(4) | window(64)`, tiles in the gap between them are not visited either.
The loop over key tiles counts on: it begins so far before the second range that its trips up to there are the tiles of
the first one, and `tile_of_trip` says which tile a trip is at.

    first(4) | window(64), tiles of 16, row 200:   trips 7, 8, .. 12 are tiles 0, 8, .. 12
"""

from __future__ import annotations

from flatc.dialects.frozen import frozen
from flatc.dialects.masks import Mask, intervals, leaves_gap
from flatc.dialects.quasi_affine import Expr, ceildiv, const, maximum, minimum, var
from flatc.passes.cost.primitive_costs import ceil_divide


@frozen
class LiveKeys:
    """Which keys a tile of query rows sees, as expressions of its first row `start` and last row `last`.

    `lower` to `upper` (half open) is what any row sees, but for the `gap` (from, to), which no row sees. `full` is a
    range that every row sees, or None where every tile must be masked.
    """

    lower: Expr
    upper: Expr
    full: tuple[Expr, Expr] | None
    gap: tuple[Expr, Expr] | None = None

    def trips(self, tile: int) -> tuple[Expr, Expr]:
        """First trip and one past the last of a loop over tiles of `tile` keys."""
        lower, upper = self.lower // tile, ceildiv(self.upper, tile)
        if self.gap is None:
            return lower, upper
        end, again = self._gap_tiles(tile)
        return again - maximum(0, end - lower), maximum(upper, again)

    def tile_of_trip(self, trip: Expr, tile: int, keys: int) -> Expr:
        """The tile that a trip is at: in the first range from its first tile on, and then the trip itself."""
        if self.gap is None:
            return trip
        end, again = self._gap_tiles(tile)
        beyond = maximum(0, trip - again + 1) * ceil_divide(keys, tile)
        return maximum(0, minimum(trip, trip - again + end + beyond))

    def _gap_tiles(self, tile: int) -> tuple[Expr, Expr]:
        """One past the last tile of the first range, and the first tile of the second one that is not in the first."""
        assert self.gap is not None
        end = ceildiv(self.gap[0], tile)
        return end, maximum(end, self.gap[1] // tile)


def live_keys(mask: Mask | None, keys: int) -> LiveKeys:
    """The visible keys of a query tile. Bounds of a mask never decrease with the row, so ends decide."""
    if mask is None:
        return LiveKeys(const(0), const(keys), (const(0), const(keys)))
    parts = intervals(mask)
    first, last = {"q": var("start")}, {"q": var("last")}
    lower = maximum(0, minimum(*(part.lo.substitute(first) for part in parts)))
    upper = minimum(keys, maximum(*(part.hi.substitute(last) for part in parts)))
    gap = None
    if leaves_gap(mask):
        end = minimum(keys, maximum(0, parts[0].hi.substitute(last)))
        gap = end, minimum(keys, parts[1].lo.substitute(first))
    elif len(parts) != 1:
        return LiveKeys(lower, upper, None)
    seen = parts[-1]
    return LiveKeys(lower, upper, (seen.lo.substitute(last), seen.hi.substitute(first)), gap)
