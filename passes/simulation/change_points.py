"""Where a quasi-affine expression changes as an index runs: found by bisection, for many loops at once.

Nearly every expression of a schedule only rises, or only falls, with each index (`direction` proves it from the text).
Then its value, or its sign, changes where a bisection says, and nobody needs to evaluate it everywhere. A condition
that is positive where any (or all) of several expressions are, as the two edges of a band, changes where they do.

    direction(minimum(64, 509 - var("q") * 64), "q")                      # -1: it never rises

`rows` are loops that stand side by side: their bounds are arrays, and the results are pairs of a row and an index at
which a new stretch begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flatc.dialects.quasi_affine import Expr, Extremum, Quotient, Var, maximum, minimum
from flatc.passes.cost.arrays import Ints

Direction = int | None
"""1 if it never falls, -1 if it never rises, 0 if it does not change, None if that is not known."""

Evaluate = Callable[[Ints, Ints], Ints]
"""The values of an expression, given rows and the index in each."""

MOST_STRETCHES = 8
"""An expression that takes more values in one loop changes so often that the loop is taken apart trip by trip."""


def direction(expr: Expr, name: str) -> Direction:
    """How `expr` changes as the index `name` rises."""
    found = _together([_scaled(_direction_of(atom, name), coefficient) for atom, coefficient in expr.terms])
    if found is None and (parts := _distributed(expr)):
        return _together([direction(part, name) for part in parts])
    return found


def monotone_parts(expr: Expr, name: str) -> list[Expr] | None:
    """Expressions that each go one way, such that `expr` only changes where one of them does; None if none are known.

    The trips of a loop over the masked tiles of a strip first become more and then fewer, for instance:

        max(0, min(a, b)) = min(max(0, min(a, b)), ...)    for any parts of the minimum, each of which is cut off
    """
    match expr.terms:
        case ((Extremum(parts, True), 1),) if not expr.constant:
            outer = parts
        case _:
            outer = (expr,)
    floors = [part for part in outer if direction(part, name) == 0]
    found: list[Expr] = []
    for part in outer:
        lows = _lows(part)
        ceilings = [low for low in lows if direction(low, name) == 0]
        found += [maximum(minimum(low, *ceilings), *floors) for low in lows if direction(low, name) != 0]
    return found if all(direction(part, name) is not None for part in found) else None


def _lows(expr: Expr) -> list[Expr]:
    """Parts whose least is `expr`, from minima that are added and maxima that are subtracted."""
    for atom, coefficient in expr.terms:
        if isinstance(atom, Extremum) and atom.largest == (coefficient < 0):
            rest = expr - Expr(((atom, coefficient),), 0)
            return [low for part in atom.parts for low in _lows(rest + part * coefficient)]
    return [expr]


def _distributed(expr: Expr) -> list[Expr]:
    """With x + min(a, b) = min(x + a, x + b): the parts of one extremum that equals `expr`; none without one."""
    for atom, coefficient in expr.terms:
        if isinstance(atom, Extremum):
            rest = expr - Expr(((atom, coefficient),), 0)
            return [rest + part * coefficient for part in atom.parts]
    return []


def _direction_of(atom: Var | Quotient | Extremum, name: str) -> Direction:
    match atom:
        case Var(variable):
            return 1 if variable == name else 0
        case Quotient(numerator):
            return direction(numerator, name)
        case Extremum(parts):
            return _together([direction(part, name) for part in parts])


def _scaled(found: Direction, coefficient: int) -> Direction:
    return found if found is None or coefficient > 0 else -found


def _together(parts: list[Direction]) -> Direction:
    """A sum, minimum or maximum of parts that all go one way goes that way."""
    found = {part for part in parts if part != 0}
    if not found:
        return 0
    return found.pop() if len(found) == 1 else None


def conditions(expr: Expr) -> Iterator[Expr]:
    """Expressions such that the sign of `expr` only changes where the sign of one of them does."""
    parts = _distributed(expr)
    for part in parts:
        yield from conditions(part)
    if not parts:
        yield expr


def value_changes(evaluate: Evaluate, lower: Ints, upper: Ints) -> tuple[Ints, Ints] | None:
    """Where a monotone expression takes another value; None if that happens too often in some row.

    Every row has a trip: `lower < upper`.
    """
    import numpy as np

    rows, start = np.arange(len(lower)), lower
    found_rows, found = [rows[:0]], [lower[:0]]
    for _ in range(MOST_STRETCHES):
        value, last = evaluate(rows, start), evaluate(rows, upper[rows] - 1)
        going = value != last
        rows, start, value = rows[going], start[going], value[going]
        if not len(rows):
            return np.concatenate(found_rows), np.concatenate(found)
        start = _first_other(evaluate, rows, start, upper[rows] - 1, value)
        found_rows.append(rows)
        found.append(start)
    return None


def sign_changes(evaluate: Evaluate, lower: Ints, upper: Ints) -> tuple[Ints, Ints]:
    """Where a monotone expression becomes positive, or ceases to be."""
    import numpy as np

    def positive(rows: Ints, index: Ints) -> Ints:
        return (evaluate(rows, index) > 0).astype(np.int64)

    rows = np.arange(len(lower))
    first = positive(rows, lower)
    going = first != positive(rows, upper - 1)
    rows = rows[going]
    return rows, _first_other(positive, rows, lower[rows], upper[rows] - 1, first[going])


def _first_other(evaluate: Evaluate, rows: Ints, low: Ints, high: Ints, value: Ints) -> Ints:
    """The first index in (low, high] with another value than `value`, which `low` has and `high` has not."""
    import numpy as np

    while np.any(high - low > 1):
        middle = (low + high) // 2
        same = evaluate(rows, middle) == value
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return high
