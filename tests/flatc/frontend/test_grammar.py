"""The automaton is kept between processes, and nothing depends on whether that works."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatc.frontend import grammar
from flatc.frontend.parser import parse
from flatc.frontend.source import Source

GRAPH = Source.of("graph g\ninput x : [2, 3]\noutput x\n", "g.flat")


@pytest.fixture(autouse=True)
def _anew():  # pyright: ignore[reportUnusedFunction]
    """Every test builds the automaton itself, and leaves none behind."""
    grammar._grammar.cache_clear()  # pyright: ignore[reportPrivateUsage]
    yield
    grammar._grammar.cache_clear()  # pyright: ignore[reportPrivateUsage]


def read_again() -> object:
    grammar._grammar.cache_clear()  # pyright: ignore[reportPrivateUsage]
    return parse(GRAPH)


def test_an_automaton_that_was_kept_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = parse(GRAPH)
    kept = tmp_path / "flatc" / "flat.lark.automaton"
    size = kept.stat().st_size
    assert read_again() == first
    kept.write_bytes(kept.read_bytes()[: size // 2])  # as after a full disk
    assert read_again() == first
    assert kept.stat().st_size > size // 2 + 1


def test_without_a_folder_the_automaton_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "file"
    file.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert grammar.cache_file() is None
    assert read_again() == parse(GRAPH)
