"""Quasi-affine expressions: one meaning in integers, in NumPy arrays and as compiled Python.

`expressions()` draws an expression together with an ordinary Python function of the same meaning, built
beside it, so that no test judges the module by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError

from flatc.dialects.quasi_affine import Expr, Range, as_expr, ceildiv, const, maximum, minimum, parse_expr, var

NAMES = ("query", "key")
QUERY, KEY = var("query"), var("key")
Values = Mapping[str, int]


@dataclass(frozen=True)
class Sample:
    """An expression, and what it should mean."""

    expr: Expr
    meaning: Callable[[Values], int]


def _variable(name: str) -> Sample:
    return Sample(var(name), lambda values: values[name])


def _constant(value: int) -> Sample:
    return Sample(const(value), lambda _: value)


@st.composite
def _combined(draw: st.DrawFn, children: st.SearchStrategy[Sample]) -> Sample:
    a, b = draw(children), draw(children)
    factor, divisor = draw(st.integers(-130, 130)), draw(st.integers(1, 130))
    return draw(
        st.sampled_from(
            [
                Sample(a.expr + b.expr, lambda v: a.meaning(v) + b.meaning(v)),
                Sample(a.expr - b.expr, lambda v: a.meaning(v) - b.meaning(v)),
                Sample(a.expr * factor, lambda v: a.meaning(v) * factor),
                Sample(a.expr // divisor, lambda v: a.meaning(v) // divisor),
                Sample(ceildiv(a.expr, divisor), lambda v: -(-a.meaning(v) // divisor)),
                Sample(minimum(a.expr, b.expr, 64), lambda v: min(a.meaning(v), b.meaning(v), 64)),
                Sample(maximum(a.expr, b.expr), lambda v: max(a.meaning(v), b.meaning(v))),
            ]
        )
    )


def expressions() -> st.SearchStrategy[Sample]:
    """Expressions of two indices, a few operations deep."""
    leaves = st.sampled_from(NAMES).map(_variable) | st.integers(-600, 600).map(_constant)
    return st.recursive(leaves, _combined, max_leaves=6)


def indices() -> st.SearchStrategy[dict[str, int]]:
    return st.fixed_dictionaries({name: st.integers(-50, 50) for name in NAMES})


@st.composite
def ranges(draw: st.DrawFn) -> dict[str, Range]:
    """A small interval for each index."""
    lows = draw(indices())
    return {name: (low, low + draw(st.integers(0, 6))) for name, low in lows.items()}


def grid(intervals: Mapping[str, Range]) -> list[dict[str, int]]:
    """Every value of both indices inside of the intervals."""
    (a, b), (c, d) = (intervals[name] for name in NAMES)
    return [dict(zip(NAMES, (x, y), strict=True)) for x in range(a, b + 1) for y in range(c, d + 1)]


def parse(text: str) -> Expr:
    parser = Parser(Context(), text)
    return parse_expr(parser, lambda: var(parser.parse_identifier("an index")))


# --- Meaning ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(expressions(), indices())
def test_evaluation_has_the_meaning_of_the_operators(sample: Sample, values: dict[str, int]):
    assert sample.expr.evaluate(values) == sample.meaning(values)


@settings(deadline=None)
@given(expressions(), ranges())
def test_arrays_evaluate_element_by_element(sample: Sample, intervals: dict[str, Range]):
    points = grid(intervals)
    arrays = {name: np.array([point[name] for point in points]) for name in NAMES}
    found: Any = np.broadcast_to(sample.expr.evaluate(arrays), len(points))
    assert found.tolist() == [sample.meaning(point) for point in points]


@settings(deadline=None)
@given(expressions(), indices())
def test_compiled_python_gives_the_same_numbers(sample: Sample, values: dict[str, int]):
    source = sample.expr.to_python(lambda name: f"d[{NAMES.index(name)}]")
    code = eval(f"lambda d: {source}", {"__builtins__": {}, "min": min, "max": max})
    assert code([values[name] for name in NAMES]) == sample.meaning(values)


@settings(deadline=None)
@given(expressions(), expressions(), indices())
def test_substitution_is_composition(outer: Sample, inner: Sample, values: dict[str, int]):
    replaced = outer.expr.substitute({"key": inner.expr})
    assert replaced.evaluate(values) == outer.meaning({**values, "key": inner.meaning(values)})


@settings(deadline=None)
@given(expressions(), indices())
def test_substituting_numbers_for_all_indices_leaves_a_constant(sample: Sample, values: dict[str, int]):
    assert sample.expr.substitute(values) == const(sample.meaning(values))


@settings(deadline=None)
@given(expressions(), indices())
def test_only_the_indices_it_names_matter(sample: Sample, values: dict[str, int]):
    named = {name: values[name] for name in sample.expr.variables()}
    assert sample.expr.evaluate(named) == sample.meaning(values)
    assert sample.expr.is_constant() <= (not named)


# --- Ranges and simplification ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(expressions(), ranges())
def test_no_value_leaves_the_range(sample: Sample, intervals: dict[str, Range]):
    low, high = sample.expr.range(intervals)
    assert all(low <= sample.meaning(point) <= high for point in grid(intervals))


@settings(deadline=None)
@given(expressions(), ranges())
def test_simplifying_changes_no_value_within_the_ranges(sample: Sample, intervals: dict[str, Range]):
    simple = sample.expr.simplify(intervals)
    assert all(simple.evaluate(point) == sample.meaning(point) for point in grid(intervals))


@pytest.mark.parametrize(
    ("expr", "intervals", "expected"),
    [
        (minimum(64, 509 - QUERY * 64), {"query": (0, 6)}, const(64)),
        (minimum(64, 509 - QUERY * 64), {"query": (7, 7)}, const(61)),
        (minimum(64, 509 - QUERY * 64), {"query": (0, 7)}, minimum(64, 509 - QUERY * 64)),
        (maximum(QUERY, KEY, 0), {"query": (5, 9), "key": (0, 3)}, QUERY),
        (KEY // 4 + QUERY, {"query": (0, 9), "key": (0, 3)}, QUERY),
        (QUERY + KEY, {"query": (2, 2), "key": (0, 3)}, KEY + 2),
    ],
)
def test_simplifying_drops_what_the_ranges_decide(expr: Expr, intervals: dict[str, Range], expected: Expr):
    assert expr.simplify(intervals) == expected


# --- Canonical form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        (const(3) + 4, "7"),
        (QUERY - QUERY, "0"),
        (QUERY * 0 - 2, "-2"),
        (QUERY + KEY - QUERY, "key"),
        (5 - QUERY, "5 - query"),
        (-QUERY * 3 - 5, "-query * 3 - 5"),
        (const(7) // 2, "3"),
        (const(-7) // 2, "-4"),
        (ceildiv(const(7), 2), "4"),
        ((QUERY * 128 + 64) // 64, "query * 2 + 1"),
        (ceildiv(QUERY * 64 + 65, 128), "ceildiv(query * 64 + 65, 128)"),
        (ceildiv(QUERY * 64 + 129, 128), "ceildiv(query * 64 + 1, 128) + 1"),
        (QUERY // 1, "query"),
        (minimum(QUERY, QUERY), "query"),
        (minimum(QUERY + 3, QUERY), "query"),
        (maximum(QUERY + 3, QUERY), "query + 3"),
        (minimum(3, 5, QUERY), "min(3, query)"),
        (minimum(minimum(QUERY, KEY), 4), "min(query, key, 4)"),
        (minimum(maximum(QUERY, KEY), 4), "min(max(query, key), 4)"),
    ],
)
def test_constants_fold_and_like_terms_join(expr: Expr, text: str):
    assert str(expr) == text


@settings(deadline=None)
@given(expressions())
def test_what_cancels_is_zero(sample: Sample):
    assert sample.expr - sample.expr == const(0)
    assert sample.expr + sample.expr == sample.expr * 2


def test_what_is_subtracted_stands_last():
    assert KEY - QUERY == -QUERY + KEY
    assert str(-QUERY + KEY) == "key - query"


def test_a_divisor_must_be_positive():
    for divisor in (0, -4):
        with pytest.raises(ValueError, match=f"divisor must be positive, got {divisor}"):
            _ = QUERY // divisor
        with pytest.raises(ValueError, match=f"divisor must be positive, got {divisor}"):
            ceildiv(QUERY, divisor)


def test_expressions_are_values():
    """They are equal, and hash alike, when they are built alike; integers convert."""
    assert {minimum(64, QUERY * 2), minimum(64, QUERY + QUERY)} == {minimum(as_expr(64), 2 * QUERY)}


# --- Text ---------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(expressions())
def test_the_text_reads_back(sample: Sample):
    assert parse(str(sample.expr)) == sample.expr


@settings(deadline=None)
@given(expressions(), indices())
def test_indices_print_under_any_name(sample: Sample, values: dict[str, int]):
    renamed = parse(sample.expr.to_text(lambda name: f"{name}_index"))
    assert renamed.evaluate({f"{name}_index": value for name, value in values.items()}) == sample.meaning(values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64*query", QUERY * 64),
        ("query * -64", QUERY * -64),
        ("2 * 3", const(6)),
        ("(query + 1) * 2 - (key - 3)", QUERY * 2 - KEY + 5),
        ("- query + 4", 4 - QUERY),
        ("floordiv(query + 3, 4)", (QUERY + 3) // 4),
        ("max(0, min(query, 7))", maximum(0, minimum(QUERY, 7))),
    ],
)
def test_people_may_write_it_their_way(text: str, expected: Expr):
    assert parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query * key", "the product of two indices is not quasi-affine"),
        ("floordiv(query, 0)", "floordiv takes an expression and a positive constant"),
        ("ceildiv(query, -2)", "ceildiv takes an expression and a positive constant"),
        ("ceildiv(query, key)", "ceildiv takes an expression and a positive constant"),
        ("floordiv(query)", "floordiv takes an expression and a positive constant"),
        ("floordiv(query, 2, 3)", "floordiv takes an expression and a positive constant"),
        ("min()", "an index"),
        ("query +", "an index"),
        ("(query", "Expected '\\)'"),
    ],
)
def test_what_is_no_expression_is_an_error_of_the_parser(text: str, message: str):
    with pytest.raises(ParseError, match=message):
        parse(text)
