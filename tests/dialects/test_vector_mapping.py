"""Mappings of chains: their text reads back, and what is no mapping is refused with its place."""

from __future__ import annotations

import pytest

from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.vector_mapping import VectorMapping, VectorStages, loops
from flatc.passes.mapping.mapping_text import format_mappings, parse_mappings

MAPPING = VectorMapping((1, 48, 768), (1, 0, 2), 2, 3, VectorStages(0, 1, 2))


def test_the_text_reads_back():
    text = format_mappings({"add_norm": MAPPING})
    assert parse_mappings(text) == {"add_norm": MAPPING}
    assert MAPPING.to_text() == (
        "vector tiles(1 x 48 x 768) order(1, 0, 2) keep(input x2, output x3) stages(load 0, compute 1, store 2)"
    )


def test_dims_of_one_tile_have_no_loop():
    assert loops((8, 384, 768), MAPPING) == [1, 0]
    assert loops((1, 48, 768), MAPPING) == []


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("tiles(1 x 48", "tiles(0 x 48", "a tile must be at least 1, got 0"),
        ("order(1, 0, 2)", "order(1, 0)", "order must list the dims 0 to 2, each once"),
        ("order(1, 0, 2)", "order(1, 1, 2)", "order must list the dims 0 to 2, each once"),
        ("input x2", "input 2", "keep: input must have x1, x2, ... or x4096 slots"),
        ("output x3", "output x0", "keep: output must have x1"),
        ("store 2", "store -2", "a stages: store must be at least 0, got -2"),
        ("vector tiles", "vektor tiles", "tiles"),
    ],
)
def test_errors(right: str, wrong: str, message: str):
    text = format_mappings({"k": MAPPING})
    assert right in text
    with pytest.raises(FlatcError, match=message):
        parse_mappings(text.replace(right, wrong))
