"""Which keys a tile of query rows sees, as expressions: masks become loop bounds.

The same expressions bound the key loops of a schedule (`kernel_schedule`) and are counted by the closed form
(`key_geometry`), so that counting and executing cannot disagree.

    live_keys(Causal(0), keys=512)      lower 0, upper min(512, last + 1), full (0, start + 1)
"""

from __future__ import annotations

from dataclasses import dataclass

from flatc.dialects.masks import Mask, intervals
from flatc.dialects.quasi_affine import Expr, const, maximum, minimum, var


@dataclass(frozen=True)
class LiveKeys:
    """Which keys a tile of query rows sees, as expressions of its first row `start` and last row `last`.

    `lower` to `upper` (half open) is what any row sees; `full_lower` to `full_upper` what every row sees, or None
    where the mask has holes and every tile must be masked.
    """

    lower: Expr
    upper: Expr
    full: tuple[Expr, Expr] | None


def live_keys(mask: Mask | None, keys: int) -> LiveKeys:
    """The visible keys of a query tile. Bounds of a mask never decrease with the row, so ends decide."""
    if mask is None:
        return LiveKeys(const(0), const(keys), (const(0), const(keys)))
    parts = intervals(mask)
    first, last = {"q": var("start")}, {"q": var("last")}
    lower = maximum(0, minimum(*(part.lo.substitute(first) for part in parts)))
    upper = minimum(keys, maximum(*(part.hi.substitute(last) for part in parts)))
    if len(parts) != 1:
        return LiveKeys(lower, upper, None)
    (part,) = parts
    return LiveKeys(lower, upper, (part.lo.substitute(last), part.hi.substitute(first)))
