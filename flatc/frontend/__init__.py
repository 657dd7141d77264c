"""Front ends: every form in which a graph comes in, and the one call that reads them all.

    module = load_graph("llama.flat", bindings={"S": 4096}, phase="decode")
    module = parse_flat("graph g\\ninput q : [1, 8, 64, 64]\\n...", "g.flat")

A file is read by the reader of its extension. Whatever is wrong with it, from a missing file to a cut-off
one, raises one `FlatcError` that says where and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from flatc.frontend.summary import GraphSummary

Reader = Callable[[str, str, Mapping[str, int], str | None], "ModuleOp"]
"""Reads (text, file name, bindings, phase) into a verified module."""


def parse_flat(
    text: str, file: str, *, bindings: Mapping[str, int] | None = None, phase: str | None = None
) -> ModuleOp:
    """A verified attn module from `.flat` text; `file` is the name shown in messages."""
    from flatc.frontend.elaborate import elaborate
    from flatc.frontend.source import Source

    return elaborate(Source.of(text, file), bindings or {}, phase)


def load_graph(
    path: str | PathLike[str], *, bindings: Mapping[str, int] | None = None, phase: str | None = None
) -> ModuleOp:
    """A verified module from a file, read by its extension."""
    file = str(path)
    reader = _reader(file)
    return reader(read_text(file), file, bindings or {}, phase)


def summarize(path: str | PathLike[str]) -> GraphSummary | None:
    """The dims and phases that a file lets its user choose; None for formats that have neither."""
    from flatc.frontend.summary import summary

    file = str(path)
    return summary(read_text(file), file) if _reader(file) is _read_flat else None


def read_text(file: str) -> str:
    """The text of a UTF-8 file; every way in which reading can fail is a `FlatcError`."""
    try:
        data = Path(file).read_bytes()
    except FileNotFoundError:
        raise FlatcError(f"there is no file '{file}'", help=_neighbour(Path(file))) from None
    except IsADirectoryError:
        raise FlatcError(f"'{file}' is a directory", help="name one graph file in it") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FlatcError(f"cannot read '{file}': {reason}") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        good = data[: error.start]
        at = Position(file, good.count(b"\n") + 1, error.start - good.rfind(b"\n"))
        message = f"byte 0x{data[error.start]:02x} is not UTF-8 text"
        raise FlatcError(message, position=at, help="save the file as UTF-8; a binary file is no graph") from None


def _reader(file: str) -> Reader:
    extension = Path(file).suffix.lower()
    if extension in _READERS:
        return _READERS[extension]
    if not Path(file).exists() or Path(file).is_dir():
        read_text(file)
    known = " and ".join(_READERS)
    reason = f"no reader for '{extension}' files" if extension else "its name has no extension"
    raise FlatcError(f"cannot read '{file}': {reason}", help=f"graphs are read from {known} files")


def _read_flat(text: str, file: str, bindings: Mapping[str, int], phase: str | None) -> ModuleOp:
    return parse_flat(text, file, bindings=bindings, phase=phase)


def _read_mlir(text: str, file: str, bindings: Mapping[str, int], phase: str | None) -> ModuleOp:
    from flatc.frontend.mlir import parse_mlir

    if bindings or phase is not None:
        option = f"--bind {next(iter(bindings))}=..." if bindings else f"--phase {phase}"
        raise FlatcError(
            f"'{option}' does not apply to '{file}': the sizes in an .mlir file are final",
            help="bind dims when the .mlir is made from its .flat graph",
        )
    return parse_mlir(text, file)


_READERS: dict[str, Reader] = {".flat": _read_flat, ".mlir": _read_mlir}


def _neighbour(path: Path) -> str | None:
    """The file of the same folder that was probably meant."""
    try:
        return did_you_mean(path.name, [p.name for p in path.parent.iterdir()])
    except (OSError, ValueError):
        return None
