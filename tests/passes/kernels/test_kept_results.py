"""Where tensors that stay on chip lie: no two at one place at one time, and as low as can be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flatc.passes.kernels.kept_results import heights, places

TENSORS = st.lists(
    st.tuples(st.integers(1, 9), st.integers(0, 7), st.integers(0, 7)).map(
        lambda drawn: (drawn[0], min(drawn[1:]), max(drawn[1:]))
    ),
    max_size=12,
)


def test_places_are_used_again_when_a_tensor_is_done():
    """The third takes the place of the first; the one that lives longest lies lowest."""
    assert places([(4, 0, 1), (2, 0, 4), (3, 2, 3)]) == [2, 0, 2]
    assert heights([(4, 0, 1), (2, 0, 4), (3, 2, 3)], 6) == [6, 6, 5, 5, 2, 0]


@given(TENSORS)
def test_no_two_that_live_together_overlap(tensors: list[tuple[int, int, int]]):
    found = places(tensors)
    for i, (size, first, last) in enumerate(tensors):
        for j, (other, start, end) in enumerate(tensors[:i]):
            together = first <= end and start <= last
            assert not together or found[i] + size <= found[j] or found[j] + other <= found[i]


@given(TENSORS)
def test_heights_are_the_ends_of_what_lives(tensors: list[tuple[int, int, int]]):
    tops = heights(tensors, 8)
    for kernel, top in enumerate(tops):
        alive = [place + size for place, (size, a, b) in zip(places(tensors), tensors, strict=True) if a <= kernel <= b]
        assert top == max(alive, default=0)
        assert top >= sum(size for size, a, b in tensors if a <= kernel <= b)
