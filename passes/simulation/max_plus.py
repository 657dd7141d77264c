"""The algebra of waiting: numbers under maximum (for addition) and addition (for multiplication).

An operation starts when the last of several things is ready and ends a fixed time later, so the times after a stretch
of a schedule are maxima of times before it plus constants. That is a linear map of this algebra:

    after[i] = max over j of (matrix[i, j] + before[j])

A matrix entry is a time from j to i along the longest chain of waiting, or `NEVER` where i does not wait for j. Maps
compose by `multiply`, which is associative; a stretch that repeats is a power of its map; and a shift of all times
before shifts all times after.

    >>> work = matrix_of([[3, NEVER], [5, 2]])
    >>> apply(work, times_of([10, 20]))
    array([13, 22])
    >>> Powers(work).apply(1000, times_of([10, 20]))
    array([3010, 3012])

Everything is exact: integers of 64 bits, and `Overflow` before one could wrap around. Times are durations or lie near
each other (the caller keeps the clock itself in Python integers), so there is room for 10^18 ticks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Times = NDArray[np.int64]
    Matrix = NDArray[np.int64]
else:
    Times = Matrix = Any

NEVER = -(1 << 62)
"""The zero of the algebra. All other entries of a matrix are durations and not negative, so a sum that is negative
came from a `NEVER`; two of them still fit into 64 bits."""

LARGEST = 1 << 60
"""No time that is computed with lies further from 0: sums of two do not come near `NEVER` or the end of 64 bits."""

DIGIT_BITS = 4
"""Powers are put together from one matrix for each digit of the exponent, in base 2^4: few products with a vector,
and no more than fifteen matrices for each digit."""


class Overflow(ArithmeticError):
    """A time would not fit."""


def matrix_of(rows: Sequence[Sequence[int]]) -> Matrix:
    """A matrix from its entries."""
    import numpy as np

    return np.array(rows, dtype=np.int64)


def times_of(values: Sequence[int]) -> Times:
    """A vector of times."""
    import numpy as np

    return np.array(values, dtype=np.int64)


def identity(size: int) -> Matrix:
    """The map that changes nothing."""
    import numpy as np

    result = np.full((size, size), NEVER, dtype=np.int64)
    np.fill_diagonal(result, 0)
    return result


def apply(matrix: Matrix, times: Times) -> Times:
    """The times after a map. Every row must have an entry: what waits for nothing has no time."""
    import numpy as np

    return np.maximum.reduce(matrix + times, axis=1)


def multiply(later: Matrix, earlier: Matrix) -> Matrix:
    """The map `earlier`, then `later`."""
    import numpy as np

    if largest(later) + largest(earlier) > LARGEST:
        raise Overflow
    result = (later[:, :, None] + earlier[None, :, :]).max(axis=1)
    return np.where(result < 0, NEVER, result)


def largest(matrix: Matrix) -> int:
    """The longest wait in a map; no time moves by more."""
    return max(0, int(matrix.max(initial=0)))


class Powers:
    """The powers of a square matrix, kept as they are asked for."""

    def __init__(self, matrix: Matrix):
        self._known = {1: matrix}
        self._digits: dict[int, tuple[int, ...]] = {}

    def matrix(self, exponent: int) -> Matrix:
        """`matrix` to the power of `exponent`, which is at least 0."""
        result: Matrix | None = None
        for power in self._parts(exponent):
            factor = self._power(power)
            result = factor if result is None else multiply(factor, result)
        return identity(len(self._known[1])) if result is None else result

    def apply(self, exponent: int, times: Times) -> Times:
        """The times after `exponent` trips."""
        for power in self._parts(exponent):
            times = apply(self._power(power), times)
        return times

    def largest(self, exponent: int) -> int:
        """A bound of how far a time moves in `exponent` trips."""
        return largest(self._known[1]) * exponent

    def _parts(self, exponent: int) -> tuple[int, ...]:
        known = self._digits.get(exponent)
        if known is None:
            mask, shifts = (1 << DIGIT_BITS) - 1, range(0, exponent.bit_length(), DIGIT_BITS)
            known = tuple(digit << s for s in shifts if (digit := exponent >> s & mask))
            self._digits[exponent] = known
        return known

    def _power(self, exponent: int) -> Matrix:
        known = self._known.get(exponent)
        if known is None:
            half = exponent // 2
            known = self._known[exponent] = multiply(self._power(exponent - half), self._power(half))
        return known
