"""Masks: predicates against loops over every row and key, text that reads back, intervals that are exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.masks import (
    And,
    Causal,
    Chunk,
    FirstN,
    Mask,
    Or,
    Prefix,
    Window,
    allows,
    intervals,
    leaves,
    parse_mask,
    shows_all,
)

offsets = st.integers(-20, 20)
positive = st.integers(1, 12)
leaf_masks: st.SearchStrategy[Mask] = st.one_of(
    st.builds(Causal, offsets),
    st.builds(Window, positive, st.integers(0, 6), offsets),
    st.builds(Prefix, positive),
    st.builds(FirstN, positive),
    st.builds(Chunk, positive, offsets),
)


def join(a: Mask, b: Mask, both: bool) -> Mask:
    return a & b if both else a | b


any_mask: st.SearchStrategy[Mask] = st.recursive(
    leaf_masks,
    lambda inner: st.builds(join, inner, inner, st.booleans()),
    max_leaves=5,
)


def dense(mask: Mask, queries: int, keys: int) -> NDArray[np.bool_]:
    return allows(mask, np.arange(queries)[:, None], np.arange(keys)[None, :])


@pytest.mark.parametrize(
    ("mask", "rows"),
    [
        (Causal(1), ["11000", "11100", "11110"]),
        (Causal(-2), ["00000", "00000", "10000"]),
        (Window(2, 0, 1), ["11000", "01100", "00110"]),
        (Window(1, 2, 0), ["11100", "01110", "00111"]),
        (Prefix(2), ["11000"] * 3),
        (FirstN(1), ["10000"] * 3),
        (Chunk(2, 1), ["11000", "00110", "00110"]),
        (Causal(0) | Prefix(2), ["11000", "11000", "11100"]),
        (Causal(2) & (Window(2, 0, 2) | FirstN(1)), ["11100"[:1] + "1100", "10110", "10011"]),
    ],
    ids=str,
)
def test_examples(mask: Mask, rows: list[str]) -> None:
    assert ["".join("01"[int(x)] for x in row) for row in dense(mask, 3, 5)] == rows


@settings(deadline=None)
@given(any_mask, st.integers(0, 30), st.integers(0, 30))
def test_integers_and_arrays_agree(mask: Mask, q: int, k: int) -> None:
    assert bool(allows(mask, q, k)) == bool(dense(mask, 31, 31)[q, k])


def brute(mask: Mask, q: int, k: int) -> bool:
    match mask:
        case Causal(offset):
            return k in range(q + offset + 1)
        case Window(left, right, offset):
            return k in range(q + offset - left + 1, q + offset + right + 1)
        case Prefix(n) | FirstN(n):
            return k in range(n)
        case Chunk(size, offset):
            return any(q + offset in range(s, s + size) and k in range(s, s + size) for s in range(-240, 240, size))
        case And(parts):
            return all(brute(part, q, k) for part in parts)
        case Or(parts):
            return any(brute(part, q, k) for part in parts)
        case _:
            raise AssertionError


@settings(deadline=None)
@given(any_mask)
def test_allows_against_loops(mask: Mask) -> None:
    if any(isinstance(leaf, Chunk) and 240 % leaf.size for leaf in leaves(mask)):
        return
    assert dense(mask, 9, 13).tolist() == [[brute(mask, q, k) for k in range(13)] for q in range(9)]


@settings(deadline=None)
@given(any_mask)
def test_text_reads_back(mask: Mask) -> None:
    assert parse_mask(str(mask)) == mask
    assert parse_mask(str(mask).replace("and", "&").replace("or", "|")) == mask


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("casual(offset = 1)", "did you mean 'causal'"),
        ("causal(offset = 1) x", "something after its end"),
        ("causal(of = 1)", "Expected 'offset'"),
        ("window(left = 0, right = 0, offset = 0)", "shows no key"),
        ("", "identifier expected"),
        ("causal(offset = 1) and $", "Unexpected character"),
    ],
)
def test_bad_text_is_explained(text: str, message: str) -> None:
    with pytest.raises(FlatcError) as caught:
        parse_mask(text)
    assert message in str(caught.value)


def from_intervals(mask: Mask, queries: int, keys: int) -> NDArray[np.int64]:
    """How many intervals hold each key of each row."""
    q: dict[str, Any] = {"q": np.arange(queries)[:, None]}
    k = np.arange(keys)[None, :]
    held = np.zeros((queries, keys), dtype=np.int64)
    for interval in intervals(mask):
        held += (interval.lo.evaluate(q) <= k) & (k < interval.hi.evaluate(q))
    return held


@settings(max_examples=600, deadline=None)
@given(any_mask)
def test_intervals_hold_each_visible_key(mask: Mask) -> None:
    found = intervals(mask)
    np.testing.assert_array_equal(from_intervals(mask, 70, 90) > 0, dense(mask, 70, 90))
    for interval in found:
        for end in (interval.lo, interval.hi):
            values = [end.evaluate({"q": q}) for q in range(70)]
            assert values == sorted(values)


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (Causal(0), [("0", "q + 1")]),
        (Causal(0) & Window(256, 0, 0), [("max(q - 255, 0)", "q + 1")]),
        (Causal(0) | Prefix(128), [("0", "max(q + 1, 128)")]),
        (Causal(0) & Chunk(256, 0), [("floordiv(q, 256) * 256", "q + 1")]),
        (Window(3, 0, 0) | Chunk(5, 0), None),
        (Causal(-3) & (Window(3, 0, -3) | Chunk(5, -3)), None),
        (
            Causal(0) & (Window(8, 0, 0) | FirstN(4)),
            [("0", "min(q + 1, 4)"), ("max(q - 7, min(q + 1, 4))", "q + 1")],
        ),
    ],
    ids=str,
)
def test_masks_of_real_models_are_representable(mask: Mask, expected: list[tuple[str, str]] | None) -> None:
    found = intervals(mask)
    if expected is not None:
        assert [(str(i.lo), str(i.hi)) for i in found] == expected
    np.testing.assert_array_equal(from_intervals(mask, 600, 700), dense(mask, 600, 700))


def test_three_ranges_may_overlap() -> None:
    mask = FirstN(1) | Window(2, 0, 10) | Window(2, 0, 30)
    assert len(intervals(mask)) == 3
    np.testing.assert_array_equal(from_intervals(mask, 40, 90) > 0, dense(mask, 40, 90))


@settings(deadline=None)
@given(any_mask, st.integers(1, 12), st.integers(1, 12))
def test_a_mask_that_shows_all_hides_nothing(mask: Mask, queries: int, keys: int) -> None:
    found = shows_all(mask, queries, keys)
    everything = bool(dense(mask, queries, keys).all())
    assert everything or not found
    assert found == everything or len(intervals(mask)) > 1
