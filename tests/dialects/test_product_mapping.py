"""The text of a product's mapping: printed, read back, and wrong in one clear way."""

from __future__ import annotations

import random

import pytest

from flatc.dialects.diagnostics import FlatcError
from flatc.passes.mapping.mapping_text import format_mappings, parse_mappings
from tests.products import Product, problem_of, random_product_mapping

TEXT = (
    "product tiles(m 5, n 8, k 4) order(m, n) keep(x x2 at m, w x2 at k, sums x2, y x2) "
    "array(output stationary, fold 1 x 1) stages(load 0, multiply 0, store 1)"
)


def parse(text: str) -> str:
    (mapping,) = parse_mappings(f"#flat.mapping<{text}>").values()
    return mapping.to_text()


def test_a_mapping_reads_back():
    assert parse(TEXT) == TEXT
    rng, problem = random.Random(0), problem_of(Product())
    mappings = {f"kernel {i}": random_product_mapping(rng, problem) for i in range(30)}
    assert parse_mappings(format_mappings(mappings)) == mappings


@pytest.mark.parametrize(
    ("word", "instead", "message"),
    [
        ("order(m, n)", "order(m, m)", "unknown second loop 'm': expected one of n"),
        ("order(m, n)", "order(k, n)", "unknown loop 'k': expected one of m, n"),
        ("x x2 at m", "x x2 at n", "unknown level 'n': expected one of k, m"),
        ("w x2 at k", "w x0 at k", "w must have x1, x2"),
        ("m 5", "m 0", "tiles: m must be at least 1, got 0"),
        ("store 1", "store -1", "stages: store must be at least 0, got -1"),
        ("output stationary", "row stationary", "unknown stationarity 'row'"),
    ],
)
def test_mistakes_are_named(word: str, instead: str, message: str):
    with pytest.raises(FlatcError) as caught:
        parse(TEXT.replace(word, instead))
    assert message in str(caught.value)
