"""Where expressions change: found by bisection, held against evaluating them everywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flatc.dialects.quasi_affine import Expr, ceildiv, const, maximum, minimum, var
from flatc.passes.simulation.change_points import (
    Ints,
    conditions,
    direction,
    monotone_parts,
    sign_changes,
    value_changes,
)

X, ROW = var("x"), var("row")


def total(one: Expr, other: Expr, factor: int) -> Expr:
    return one + other * factor


def quotient(one: Expr, divisor: int) -> Expr:
    return one // divisor


def exprs(depth: int = 2) -> st.SearchStrategy[Expr]:
    """Expressions of an index and of the row it runs in."""
    leaf = st.one_of(st.integers(-20, 20).map(const), st.just(X), st.just(X), st.just(ROW))
    if not depth:
        return leaf
    inner, divisor = exprs(depth - 1), st.integers(1, 7)
    return st.one_of(
        leaf,
        st.builds(total, inner, inner, st.integers(-4, 4)),
        st.builds(quotient, inner, divisor),
        st.builds(ceildiv, inner, divisor),
        st.builds(minimum, inner, inner),
        st.builds(maximum, inner, inner),
    )


@given(exprs(), st.integers(-5, 5))
def test_what_is_said_to_rise_or_fall_does(expr: Expr, row: int):
    values = [expr.evaluate({"x": x, "row": row}) for x in range(-30, 31)]
    match direction(expr, "x"):
        case 1:
            assert values == sorted(values)
        case -1:
            assert values == sorted(values, reverse=True)
        case 0:
            assert len(set(values)) == 1
        case _:
            pass


def test_ragged_edges_have_a_direction():
    """The last key of a tile: start + min(tile, size - start)."""
    assert direction(X * 64 + minimum(64, 500 - X * 64) - ROW * 32, "x") == 1
    assert direction(X - minimum(64, X * 2), "x") is None


@given(exprs(), st.integers(-5, 5))
def test_the_sign_changes_only_where_a_condition_does(expr: Expr, row: int):
    parts = list(conditions(expr))
    for x in range(-30, 30):
        here, there = ({"x": v, "row": row} for v in (x, x + 1))
        if (expr.evaluate(here) > 0) != (expr.evaluate(there) > 0):
            assert any((part.evaluate(here) > 0) != (part.evaluate(there) > 0) for part in parts)


@given(exprs(), exprs(), st.integers(-5, 5))
def test_the_number_of_trips_changes_only_where_a_part_does(lower: Expr, upper: Expr, row: int):
    """And the parts go one way."""
    count = maximum(0, upper - lower)
    parts = monotone_parts(count, "x")
    for x in range(-30, 30) if parts is not None else ():
        here, there = ({"x": v, "row": row} for v in (x, x + 1))
        if count.evaluate(here) != count.evaluate(there):
            assert any(part.evaluate(here) != part.evaluate(there) for part in parts or ())
    assert all(direction(part, "x") is not None for part in parts or ())


def test_the_number_of_masked_tiles_of_a_strip_has_parts():
    count = maximum(0, minimum(X * 8 + 8, ROW * 3 + 4) - maximum(X * 8, ROW * 2))
    assert direction(count, "x") is None
    parts = monotone_parts(count, "x")
    assert parts is not None
    assert [direction(part, "x") for part in parts] == [1, -1]


BOUNDS = st.lists(st.tuples(st.integers(-30, 30), st.integers(1, 40)), min_size=1, max_size=4)


@given(exprs(), BOUNDS)
def test_changes_are_all_found(expr: Expr, bounds: list[tuple[int, int]]):
    if direction(expr, "x") is None:
        return
    lower = np.array([low for low, _ in bounds], dtype=np.int64)
    upper = lower + np.array([trips for _, trips in bounds], dtype=np.int64)

    def evaluate(rows: Ints, x: Ints) -> Ints:
        return np.broadcast_to(np.asarray(expr.evaluate({"x": x, "row": rows})), len(rows))

    signs = sign_changes(evaluate, lower, upper)
    values = value_changes(evaluate, lower, upper)
    for row, (low, trips) in enumerate(bounds):
        found = [expr.evaluate({"x": x, "row": row}) for x in range(low, low + trips)]
        changed = [low + i for i in range(1, trips) if found[i] != found[i - 1]]
        signed = [low + i for i in range(1, trips) if (found[i] > 0) != (found[i - 1] > 0)]
        assert signs[1][signs[0] == row].tolist() == signed
        if values is not None:
            assert values[1][values[0] == row].tolist() == changed
