"""docs/language.md says what is true: its graphs and examples elaborate, and it leaves no word out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flatc.frontend import parse_flat
from flatc.frontend.functions import BIASES, FUNCTIONS, MASKS

TEXT = (Path(__file__).resolve().parents[3] / "docs" / "language.md").read_text()
BLOCKS = [block[1] for block in re.finditer(r"```flat\n(.*?)```", TEXT, re.DOTALL)]
REFERENCE = next(block for block in BLOCKS if block.startswith("graph reference"))


def rows(section: str) -> list[str]:
    """The code in the example column of a table."""
    table = TEXT.split(f"## {section}\n")[1].split("\n## ")[0]
    lines = [line.replace(r"\|", "¦").split("|") for line in table.splitlines() if line.startswith("| ")]
    column = lines[0].index(" Example ")
    return [code.replace("¦", "|") for line in lines[1:] for code in re.findall(r"`([^`]+)`", line[column])]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.splitlines()[0])
def test_blocks(block: str):
    parse_flat(block if block.startswith("graph") else REFERENCE + block, "language.md").verify()


@pytest.mark.parametrize("mask", rows("Masks"))
def test_masks(mask: str):
    parse_flat(f"{REFERENCE}a = attention(q, k, v, mask = {mask})", "language.md").verify()


@pytest.mark.parametrize("bias", rows("Biases"))
def test_biases(bias: str):
    parse_flat(f"{REFERENCE}a = attention(q, k, v, {bias})", "language.md").verify()


@pytest.mark.parametrize("call", rows("The layer around attention"))
def test_functions(call: str):
    parse_flat(f"{REFERENCE}a = {call}", "language.md").verify()


def test_every_word_and_option_is_described():
    for table in (FUNCTIONS, MASKS, BIASES):
        for word, signature in table.items():
            assert f"`{word}" in TEXT
            for option in signature.options:
                assert re.search(rf"\b{option}\b", TEXT), f"{word} {option}"
