"""Files of mappings: what is printed is read back, and a slip is pointed at with line and column."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.mapping.mapping_text import format_mappings, parse_mappings

MAPPING = Mapping(
    Tiles(batch=1, kv_head=1, group=2, query=32, key=48, d_qk=16, d_v=8),
    Keep(2, 2, 2, 2, 2, "key", "kv_head"),
    ArrayUse("output"),
    ArrayUse("weight", 1, 4),
    Softmax("online", "late"),
    Stages(0, 0, 0, 1, 2),
)
TEXT = """"attention" #flat.mapping<
  tiles(batch 1, kv_head 1, group 2, query 32, key 48, d_qk 16, d_v 8)
  keep(Q x2, K x2 at key, V x2 at kv_head, scores x2, output x2)
  logit(output stationary, fold 1 x 1)
  attend(weight stationary, fold 1 x 4)
  softmax(online, divide late)
  stages(load 0, logit 0, softmax 0, attend 1, store 2)>
"""
ONE = TEXT.removeprefix('"attention" ')


def test_the_text_of_a_file():
    assert format_mappings({"attention": MAPPING}) == TEXT
    assert parse_mappings(TEXT) == {"attention": MAPPING}


def test_a_mapping_without_a_name_is_for_any_kernel():
    assert parse_mappings(ONE) == {"": MAPPING}
    assert parse_mappings(" ".join(ONE.split())) == {"": MAPPING}


def test_comments_and_empty_lines_may_stand_anywhere():
    assert parse_mappings(f"// the best of edge\n\n{TEXT}\n// the end") == {"attention": MAPPING}


names = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1, max_size=8)


@given(st.dictionaries(names, st.integers(1, 9), min_size=1, max_size=4))
def test_what_is_printed_is_read_back_by_name_and_in_order(slots: dict[str, int]):
    """Whatever a kernel is called: quotes and backslashes are part of a name."""
    mappings = {name: replace(MAPPING, keep=replace(MAPPING.keep, q_slots=n)) for name, n in slots.items()}
    read = parse_mappings(format_mappings(mappings))
    assert list(read.items()) == list(mappings.items())


@pytest.mark.parametrize(
    ("wrong", "place", "message"),
    [
        (TEXT.replace("query 32", "query zero"), "best.txt:2:44", "integer"),
        (TEXT.replace("query 32", "query 0"), "best.txt:2:44", "tiles: query must be at least 1, got 0"),
        (TEXT.replace("tiles(", "tile("), "best.txt:2:3", "tiles"),
        (TEXT.replace("output stationary", "inward stationary"), "best.txt:4:9", "stationarity"),
        (TEXT.replace("V x2", "V twice"), "best.txt:3:", "keep: V must have x1, x2, ... or x4096 slots, got 'twice'"),
        (TEXT.removesuffix(">\n"), "best.txt:7:", ">"),
        (TEXT + "\n" + TEXT, "best.txt:", 'two mappings for kernel "attention"'),
        (ONE + ONE, "best.txt:", "two mappings without a name"),
        ('"attention"\n  "online"', "best.txt:", "expected #flat.mapping<...>"),
        ('"attention"', "best.txt:1:", ""),
        ('"atten', "best.txt:1:1", ""),
        ("#flat.maping<>", "best.txt:1:", "maping"),
        ("tiles(batch 1)", "best.txt:1:1", ""),
        ("42 : i32", "best.txt:1:", "expected #flat.mapping<...>"),
    ],
)
def test_a_slip_is_pointed_at(wrong: str, place: str, message: str):
    with pytest.raises(FlatcError) as caught:
        parse_mappings(wrong, "best.txt")
    assert str(caught.value).startswith(place)
    assert message in caught.value.message
    assert caught.value.source_line is not None


@pytest.mark.parametrize("text", ["", "  \n\n", "// nothing here\n"])
def test_a_file_without_mappings_is_refused(text: str):
    with pytest.raises(FlatcError, match=r"best.txt holds no mapping") as caught:
        parse_mappings(text, "best.txt")
    assert caught.value.help == "write one as #flat.mapping<...>"
