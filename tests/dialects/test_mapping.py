"""Mappings: every field value prints and reads back, and a slip in the text is pointed at."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError

from flatc.dialects.mapping import (
    Algorithm,
    ArrayUse,
    Divide,
    Keep,
    Level,
    Mapping,
    RowSum,
    Softmax,
    Stages,
    Stationarity,
    Tiles,
    Unit,
    parse_mapping,
)

MAPPING = Mapping(
    Tiles(batch=1, kv_head=2, group=3, query=4, key=5, d_qk=6, d_v=7),
    Keep(q_slots=2, k_slots=3, v_slots=4, score_slots=5, output_slots=6, k_level="key", v_level="kv_head"),
    ArrayUse("output"),
    ArrayUse("weight", fold_rows=2, fold_columns=4),
    Softmax("online", "late"),
    Stages(load=0, logit=1, softmax=2, attend=3, store=4),
)

TEXT = """
    tiles(batch 1, kv_head 2, group 3, query 4, key 5, d_qk 6, d_v 7)
    keep(Q x2, K x3 at key, V x4 at kv_head, scores x5, output x6)
    logit(output stationary, fold 1 x 1)
    attend(weight stationary, fold 2 x 4)
    softmax(online, divide late)
    stages(load 0, logit 1, softmax 2, attend 3, store 4)
"""


def parse(text: str) -> Mapping:
    return parse_mapping(Parser(Context(), text))


def mappings() -> st.SearchStrategy[Mapping]:
    """Any mapping at all; most would fit no machine."""
    counts, slots, stages = st.integers(1, 2**40), st.integers(1, 4096), st.integers(0, 9)
    levels = st.sampled_from(get_args(Level))
    unit = st.sampled_from(get_args(Unit))
    use = st.builds(ArrayUse, st.sampled_from(get_args(Stationarity)), counts, counts, unit)
    algorithm, divide = st.sampled_from(get_args(Algorithm)), st.sampled_from(get_args(Divide))
    return st.builds(
        Mapping,
        st.builds(Tiles, *[counts] * 7),
        st.builds(Keep, *[slots] * 5, levels, levels),
        use,
        use,
        st.builds(Softmax, algorithm, divide, unit, unit, st.sampled_from(get_args(RowSum)), st.booleans(), counts),
        st.builds(Stages, *[stages] * 5),
        counts,
    )


def test_the_text_form():
    assert MAPPING.to_text(separator="\n    ").split() == TEXT.split()
    assert parse(TEXT) == MAPPING


def test_interleaving_is_said_where_it_is_more_than_one_tile():
    """Most mappings have one tile at a time, and their text does not mention it."""
    assert "interleave" not in MAPPING.to_text()
    assert MAPPING.to_text() + " interleave(4)" == replace(MAPPING, interleave=4).to_text()
    assert parse(TEXT + "interleave(4)") == replace(MAPPING, interleave=4)
    with pytest.raises(ParseError, match="interleave must be at least 1, got 0"):
        parse(TEXT + "interleave(0)")


def test_units_are_said_where_a_machine_leaves_the_choice():
    """What the vector unit does and the array adds, as on most machines, goes without saying."""
    softmax = Softmax("online", "late", "array", "array", "attend", rescales_first=True)
    text = MAPPING.to_text().replace("fold 2 x 4", "fold 2 x 4, add on vector")
    text = text.replace("divide late", "divide late, max on array, exp on array, sum in attend, first rescaled")
    assert parse(text) == replace(MAPPING, softmax=softmax, attend=ArrayUse("weight", 2, 4, "vector"))
    with pytest.raises(ParseError, match="softmax: 'max' is said twice"):
        parse(TEXT.replace("divide late", "divide late, max on array, max on vector"))
    with pytest.raises(ParseError, match="unknown unit 'attend': expected one of vector, array"):
        parse(TEXT.replace("divide late", "divide late, max on attend"))


def test_how_seldom_outputs_are_rescaled_is_said_where_it_is_not_at_every_tile():
    assert "rescaled" not in MAPPING.to_text()
    text = TEXT.replace("divide late", "divide late, rescaled every 8")
    assert parse(text) == replace(MAPPING, softmax=Softmax("online", "late", rescaled_every=8))
    assert parse(text.replace("every 8", "every 1")) == MAPPING
    with pytest.raises(ParseError, match="softmax: rescaled every must be at least 1, got 0"):
        parse(text.replace("every 8", "every 0"))


@settings(deadline=None)
@given(mappings())
def test_every_mapping_reads_back(mapping: Mapping):
    assert parse(mapping.to_text()) == mapping
    assert parse(mapping.to_text("\n")) == mapping


PARTS = {part.name: getattr(MAPPING, part.name) for part in fields(MAPPING) if part.name != "interleave"}
FIELDS = [(name, inner.name) for name, record in PARTS.items() for inner in fields(record)]


@pytest.mark.parametrize(("part", "field"), FIELDS)
def test_every_field_is_in_the_text(part: str, field: str):
    """Changing any one field changes the text, and the text tells the two apart."""
    record: Any = PARTS[part]
    hint = get_type_hints(record.__class__)[field]
    choices = (True, False) if hint is bool else get_args(hint)
    changes: Any = {field: next(c for c in choices if c != getattr(record, field)) if choices else 99}
    changed: Any = {part: replace(record, **changes)}
    other = replace(MAPPING, **changed)
    assert other.to_text() != MAPPING.to_text()
    assert parse(other.to_text()) == other


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("tiles(", "tile(", "Expected 'tiles'"),
        ("batch 1", "batches 1", "Expected 'batch'"),
        ("batch 1", "batch 0", "tiles: batch must be at least 1, got 0"),
        ("query 4", "query -4", "tiles: query must be at least 1, got -4"),
        ("query 4", "query true", "integer literal"),
        ("d_v 7", "d_v 9999999999999", "tiles: d_v must be at most 1099511627776, got 9999999999999"),
        ("d_qk 6, ", "", "Expected 'd_qk'"),
        ("Q x2", "Q 2", "keep: Q must have x1, x2, ... or x4096 slots"),
        ("V x4", "V x0", "keep: V must have x1, x2, ... or x4096 slots, got 'x0'"),
        ("scores x5", "scores x4097", "keep: scores must have x1, x2, ... or x4096 slots, got 'x4097'"),
        ("at kv_head", "at group", "unknown level 'group': expected one of key, query, kv_head"),
        ("K x3 at key", "K x3", "Expected 'at'"),
        ("output stationary", "row stationary", "unknown stationarity 'row': expected one of output, weight, input"),
        ("fold 1 x 1", "fold 0 x 1", "logit: fold of rows must be at least 1, got 0"),
        ("fold 2 x 4", "fold 2 x 0", "attend: fold of columns must be at least 1, got 0"),
        ("online", "safe", "unknown softmax algorithm 'safe': expected one of none, rows, streamed, online"),
        ("late", "never", "unknown place of the division 'never': expected one of early, late"),
        ("store 4", "store -1", "stages: store must be at least 0, got -1"),
    ],
)
def test_a_slip_is_pointed_at(right: str, wrong: str, message: str):
    """The error names the field and what is expected, and points into the word that is wrong."""
    text = TEXT.replace(right, wrong, 1)
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert message in caught.value.msg
    changed = next(i for i, (a, b) in enumerate(zip(TEXT, text, strict=False)) if a != b)
    start = TEXT.index(right)
    at = caught.value.span.start
    assert start <= at <= max(start + len(wrong), changed) + 1
