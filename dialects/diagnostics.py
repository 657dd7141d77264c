"""User-facing errors: what is wrong, where, and what to do about it.

Everything a user can get wrong (a graph, an accelerator file, a mapping, an option) is reported by
raising `FlatcError`. The command line prints it and exits with status 1; Python callers catch it.
A defect of flatc itself is never a `FlatcError`.

The printed form, with the source line when the position is known:

    bad.flat:6:24: error: 'attention' has no option 'msk'
     6 | a = attention(q, q, q, msk = causal)
       |                        ^~~
       = help: did you mean 'mask'?
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from xdsl.dialects.builtin import FileLineColLoc, IntAttr, StringAttr
from xdsl.ir import Operation

from flatc.dialects.frozen import frozen


@frozen
class Position:
    """A place in a source text: 1-based line and column, and how many characters are meant."""

    file: str
    line: int
    column: int
    length: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def to_location(self) -> FileLineColLoc:
        """The same place as an MLIR location, to be set on an operation."""
        return FileLineColLoc(StringAttr(self.file), IntAttr(self.line), IntAttr(self.column))


class FlatcError(Exception):
    """One clear error for the user: message, optional position, notes and help."""

    def __init__(
        self,
        message: str,
        *,
        position: Position | None = None,
        source_line: str | None = None,
        notes: Iterable[str] = (),
        help: str | None = None,
    ):
        self.message = message
        self.position = position
        self.source_line = source_line
        self.notes = tuple(notes)
        self.help = help
        super().__init__(message)

    def __str__(self) -> str:
        return self.render()

    def render(self) -> str:
        """The whole message, as the command line prints it."""
        lines = [f"{self.position}: error: {self.message}" if self.position else f"error: {self.message}"]
        if self.position and self.source_line is not None:
            margin = len(str(self.position.line))
            lines.append(f" {self.position.line} | {self.source_line}")
            underline = "^" + "~" * (self.position.length - 1)
            lines.append(f" {' ' * margin} | {' ' * (self.position.column - 1)}{underline}")
        pad = " " * (len(str(self.position.line)) + 2) if self.position else "  "
        lines += [f"{pad}= note: {note}" for note in self.notes]
        if self.help:
            lines.append(f"{pad}= help: {self.help}")
        return "\n".join(lines)


def did_you_mean(word: str, candidates: Iterable[str]) -> str | None:
    """A help line that suggests the nearest known spelling, or None when nothing is near."""
    near = difflib.get_close_matches(word, sorted(candidates), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


def position_of(op: Operation) -> Position | None:
    """Where the user wrote `op`, or None when no location was recorded."""
    location = op.location
    if isinstance(location, FileLineColLoc):
        return Position(location.filename.data, location.line.data, location.column.data)
    return None
