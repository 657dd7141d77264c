"""What the steps of an attention take: the softmax of whole rows is the operations that it consists of."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flatc.accelerators import load
from flatc.dialects.mapping import Algorithm, Softmax
from flatc.passes.cost.attention_prices import AttentionPrices, Tile
from tests.support import any_case

OPERATIONS: list[tuple[Softmax, list[str]]] = [
    (Softmax("rows"), ["row_max", "exp_sum"]),
    (Softmax("rows", total="attend"), ["row_max", "exp"]),
    (Softmax("rows", divide="early"), ["row_max", "exp_sum", "divide"]),
    (Softmax("online"), ["row_max_online", "exp_sum_online"]),
    (Softmax("online", total="attend"), ["row_max_online", "exp"]),
]


@pytest.mark.parametrize(("softmax", "operations"), OPERATIONS)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (7, 33), (64, 4097)])
def test_a_softmax_takes_as_long_as_its_operations(softmax: Softmax, operations: list[str], rows: int, width: int):
    """Those that do not round come before the one that writes probabilities, which may have a buffer of their own."""
    case, machine = any_case(0), load("edge")
    mapping = replace(case.mapping, softmax=softmax)
    for converts in (False, True):
        problem = replace(case.problem, sink=None, converts_probabilities=converts)
        prices = AttentionPrices(problem, machine, mapping)
        before = sum(prices.on_vector(kind, rows, width)[0] for kind in operations[:-1])
        last, _ = prices.on_vector(operations[-1], rows, width, converts=converts)
        assert prices.of_softmax("X", rows, width)[0] == (last if converts else before + last)
        if converts:
            assert prices.of_softmax("Y", rows, width)[0] == before


@pytest.mark.parametrize("algorithm", ["rows", "online", "streamed"])
def test_the_softmax_of_a_tile_is_that_of_its_rows(algorithm: Algorithm):
    """A tile of 2 sequences, 3 kv heads, 2 query heads and 5 queries has 60 rows."""
    case = any_case(0)
    prices = AttentionPrices(case.problem, load("cloud"), replace(case.mapping, softmax=Softmax(algorithm)))
    tile = Tile(batch=2, kv_head=3, group=2, query=5, key=100)
    assert prices.of("X", tile) == prices.of_softmax("X", 60, 100)
