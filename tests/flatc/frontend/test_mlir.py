"""Reading .mlir: what was printed comes back, and damage is reported where it is."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatc.dialects.diagnostics import FlatcError
from flatc.frontend import load_graph, parse_flat
from flatc.frontend.mlir import parse_mlir

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SMALL = """graph g
input q : [1, 4, 3, 8]
input k, v : [1, 2, 5, 8]
a = attention(q, k, v, mask = causal & window(3))
output a
"""
TEXT = str(parse_flat(SMALL, "g.flat"))


def message(text: str) -> str:
    with pytest.raises(FlatcError) as caught:
        parse_mlir(text, "g.mlir")
    return str(caught.value)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.flat")), ids=lambda path: path.stem)
def test_printed_modules_come_back(path: Path, tmp_path: Path):
    module = load_graph(path)
    (tmp_path / "g.mlir").write_text(str(module))
    assert load_graph(tmp_path / "g.mlir").is_structurally_equivalent(module)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "error: g.mlir is empty\n"),
        (" \n\n", "error: g.mlir is empty\n"),
        ("builtin.module {}", "error: g.mlir holds no operations\n"),
        ("builtin.module {", "g.mlir:1:17: error: "),
        ("{", "g.mlir:1:1: error: "),
        ("builtin.module {" * 5000, "error: g.mlir is nested too deeply"),
        (TEXT.replace("attn.logit", "attn.logitt"), "g.mlir:3:10: error: unknown operation 'attn.logitt'\n"),
        (TEXT.replace("causal(", "casual("), "g.mlir:4:27: error: unknown mask 'casual'\n"),
        (TEXT[: TEXT.index('"q"') + 2], "g.mlir:2:53: error: this string is never closed"),
        (TEXT.replace('"q"', '"q\\z"'), "g.mlir:2:53: error: this string is never closed, or has an unknown escape"),
        (TEXT.replace("%q, %k", "%q, %z"), "g.mlir:3:25: error: %z is used but never defined\n"),
        ("graph g\ninput x : [1]\noutput x", "g.mlir:1:1: error: "),
    ],
)
def test_messages(text: str, expected: str):
    assert message(text).startswith(expected)


def test_an_op_that_does_not_verify_is_found_in_the_text():
    wrong = TEXT.replace("5x8xf32", "5x9xf32")
    lines = message(wrong).splitlines()
    assert lines[0].startswith("g.mlir:3:10: error: attn.logit: q [1, 4, 3, 8] and k [1, 2, 5, 9] differ in d_qk")
    assert lines[1].startswith(" 3 |     %0 = attn.logit %q, %k")


def test_a_misspelt_operation_has_a_suggestion():
    assert "did you mean 'attn.logit'?" in message(TEXT.replace("attn.logit", "attn.logitt"))


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_a_truncated_file_is_reported_in_the_file(part: float):
    cut = TEXT[: int(len(TEXT) * part)]
    assert message(cut).startswith("g.mlir:")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject):
    start = data.draw(st.integers(0, len(TEXT)))
    length = data.draw(st.integers(0, 20))
    patch = data.draw(st.text('(){}<>%@#!"=:,.-x019 \n', max_size=6))
    with suppress(FlatcError):
        parse_mlir(TEXT[:start] + patch + TEXT[start + length :], "g.mlir")
