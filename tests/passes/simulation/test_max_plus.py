"""The laws of the algebra of waiting, on random maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flatc.passes.simulation.max_plus import (
    LARGEST,
    NEVER,
    Overflow,
    Powers,
    apply,
    identity,
    largest,
    matrix_of,
    multiply,
    times_of,
)

Array = NDArray[np.int64]
ENTRY = st.one_of(st.just(NEVER), st.integers(0, 10), st.integers(0, 1 << 40))


@st.composite
def maps(draw: st.DrawFn, count: int = 1) -> list[Array]:
    """Square maps of one size; every row has an entry."""
    size = draw(st.integers(1, 5))
    found: list[Array] = []
    for _ in range(count):
        rows = [draw(st.lists(ENTRY, min_size=size, max_size=size)) for _ in range(size)]
        for i, row in enumerate(rows):
            row[i] = max(row[i], draw(st.integers(0, 100)))
        found.append(matrix_of(rows))
    return found


def some_times(data: st.DataObject, size: int) -> Array:
    return times_of(data.draw(st.lists(st.integers(0, 1 << 45), min_size=size, max_size=size)))


def equal(a: Any, b: Any) -> bool:
    return a.dtype == b.dtype == np.int64 and bool((a == b).all())


@given(maps(3))
def test_composition_is_associative(three: list[Array]):
    a, b, c = three
    assert equal(multiply(multiply(a, b), c), multiply(a, multiply(b, c)))


@given(maps())
def test_the_identity_changes_nothing(one: list[Array]):
    (a,) = one
    same = identity(len(a))
    assert equal(multiply(a, same), a)
    assert equal(multiply(same, a), a)


@given(maps(2), st.data())
def test_a_product_is_one_map_after_the_other(two: list[Array], data: st.DataObject):
    later, earlier = two
    times = some_times(data, len(later))
    assert equal(apply(multiply(later, earlier), times), apply(later, apply(earlier, times)))


@given(maps(), st.integers(0, 70), st.data())
@settings(max_examples=50)
def test_a_power_is_a_repeated_product(one: list[Array], exponent: int, data: st.DataObject):
    (a,) = one
    repeated, times = identity(len(a)), some_times(data, len(a))
    after = times
    for _ in range(exponent):
        repeated, after = multiply(a, repeated), apply(a, after)
    assert equal(Powers(a).matrix(exponent), repeated)
    assert equal(Powers(a).apply(exponent, times), after)


@given(maps(), st.integers(0, 1 << 40), st.data())
def test_a_map_commutes_with_a_shift_of_all_times(one: list[Array], shift: int, data: st.DataObject):
    (a,) = one
    times = some_times(data, len(a))
    assert equal(apply(a, times + shift), apply(a, times) + shift)


@given(maps(), st.data())
def test_no_time_moves_further_than_the_largest_entry(one: list[Array], data: st.DataObject):
    (a,) = one
    times = some_times(data, len(a))
    assert int(apply(a, times).max()) <= int(times.max()) + largest(a)


def test_what_never_waits_never_waits_after_any_product():
    apart = matrix_of([[1 << 50, NEVER], [NEVER, 0]])
    assert equal(Powers(apart).matrix(1000), matrix_of([[1000 << 50, NEVER], [NEVER, 0]]))


def test_a_time_that_would_not_fit_is_an_error():
    with pytest.raises(Overflow):
        multiply(matrix_of([[LARGEST]]), matrix_of([[1]]))
    assert int(multiply(matrix_of([[LARGEST]]), matrix_of([[0]]))[0, 0]) == LARGEST
