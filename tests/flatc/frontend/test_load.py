"""Reading graph files: every way in which a file can be wrong gives one `FlatcError`."""

from __future__ import annotations

from pathlib import Path

import pytest

from flatc.dialects.diagnostics import FlatcError
from flatc.frontend import load_graph

GRAPH = "graph g\ninput x : [2]\noutput x\n"


def message(path: Path | str, **options: object) -> str:
    with pytest.raises(FlatcError) as caught:
        load_graph(path, **options)  # pyright: ignore[reportArgumentType]
    return str(caught.value)


def test_missing_file_names_its_neighbour(tmp_path: Path):
    (tmp_path / "layer.flat").write_text(GRAPH)
    text = message(tmp_path / "layr.flat")
    assert text == f"error: there is no file '{tmp_path / 'layr.flat'}'\n  = help: did you mean 'layer.flat'?"


def test_directory(tmp_path: Path):
    (tmp_path / "g.flat").mkdir()
    assert "is a directory" in message(tmp_path)
    assert "is a directory" in message(tmp_path / "g.flat")


@pytest.mark.parametrize(
    ("name", "expected"), [("g.docx", "no reader for '.docx' files"), ("g", "its name has no extension")]
)
def test_unknown_extension(tmp_path: Path, name: str, expected: str):
    (tmp_path / name).write_text(GRAPH)
    text = message(tmp_path / name)
    assert expected in text
    assert "= help: graphs are read from .flat and .mlir files" in text


def test_the_extension_may_be_in_capitals(tmp_path: Path):
    (tmp_path / "G.FLAT").write_text(GRAPH)
    load_graph(tmp_path / "G.FLAT").verify()


@pytest.mark.parametrize("extension", ["flat", "mlir"])
def test_undecodable_file_names_the_byte(tmp_path: Path, extension: str):
    path = tmp_path / f"g.{extension}"
    path.write_bytes(b"graph g\n\n ab\xff\xfe")
    assert message(path).startswith(f"{path}:3:4: error: byte 0xff is not UTF-8 text")


def test_byte_order_mark_is_fine(tmp_path: Path):
    (tmp_path / "g.flat").write_bytes(b"\xef\xbb\xbf" + GRAPH.encode())
    load_graph(tmp_path / "g.flat").verify()


@pytest.mark.parametrize("name", ["a\0b.flat", "x" * 5000 + ".flat", ""])
def test_impossible_names(name: str):
    assert message(name).startswith("error: ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"bindings": {"S": 1}}, "'--bind S=...' does not apply"), ({"phase": "p"}, "'--phase p' does not apply")],
)
def test_sizes_in_mlir_are_final(tmp_path: Path, options: dict[str, object], expected: str):
    (tmp_path / "g.mlir").write_text("builtin.module {}")
    text = message(tmp_path / "g.mlir", **options)
    assert expected in text
    assert "the sizes in an .mlir file are final" in text
