"""Arrays for modules that import NumPy only when they compute: their types, and what numbers and arrays can both do.

def tiles(columns: Ints) -> Ints: ...

NumPy takes as long to import as a small graph to compile, so at run time the names stand for anything.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
else:
    Ints = Any


NUMBER = (int, float)
"""What is no column. A tuple: `int | float` would be made anew each time it is asked for."""


def larger(one: Any, other: Any) -> Any:
    """The larger of two numbers, or of each pair of two columns."""
    if isinstance(one, NUMBER) and isinstance(other, NUMBER):
        return one if one >= other else other
    import numpy as np

    return np.maximum(one, other)


def largest(values: Iterable[Any], least: Any) -> Any:
    """The largest of some numbers, or of each row of some columns; `least` is one of them, and is overwritten."""
    if isinstance(least, NUMBER):
        return max(least, *values)
    import numpy as np

    for value in values:
        np.maximum(least, value, out=least)
    return least


def smaller(one: Any, other: Any) -> Any:
    """The smaller of two numbers, or of each pair of two columns."""
    if isinstance(one, NUMBER) and isinstance(other, NUMBER):
        return one if one <= other else other
    import numpy as np

    return np.minimum(one, other)


def occurs(times: Any) -> bool:
    """Whether a number, or any of a column, is not 0."""
    return bool(times) if isinstance(times, NUMBER) else bool(times.any())
