"""Files of recorded figures: comma-separated values, comments after `#`, every mistake reported at its place.

    mine/fusemax_flat.csv:7:11: error: seq_len_tokens: expected a positive whole number, got '1k'

`read` gives the rows of one file; a `Record` gives a cell as what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NoReturn

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean
from flatc.dialects.frozen import frozen


@frozen
class Record:
    """One row: its cells by column name, each with the column of its first character."""

    file: str
    line: int
    source: str
    header_line: int
    cells: Mapping[str, tuple[str, int]]

    def text(self, name: str, choices: Sequence[str] = ()) -> str:
        """A cell as it stands; one of `choices`, if given."""
        if name not in self.cells:
            raise FlatcError(
                f"there is no column '{name}'",
                position=Position(self.file, self.header_line, 1),
                help=did_you_mean(name, self.cells) or "the columns are those of the files that flatc ships",
            )
        cell = self.cells[name][0]
        if choices and cell not in choices:
            self.fail(name, f"expected one of {', '.join(choices)}, got '{cell}'")
        return cell

    def integer(self, name: str) -> int:
        """A cell that counts something."""
        cell = self.text(name)
        if not (cell.isascii() and cell.isdigit() and len(cell) < 16 and int(cell) > 0):
            self.fail(name, f"expected a positive whole number, got '{cell}'")
        return int(cell)

    def number(self, name: str) -> float:
        """A cell that measures something."""
        cell = self.text(name)
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            self.fail(name, f"expected a positive number, got '{cell}'")
        return value

    def measured(self, name: str) -> float | None:
        """A cell that may be empty: not measured."""
        return self.number(name) if self.text(name) else None

    def fail(self, name: str, message: str) -> NoReturn:
        """Raises the error of one cell."""
        cell, column = self.cells[name]
        position = Position(self.file, self.line, column, max(1, len(cell)))
        raise FlatcError(f"{name}: {message}", position=position, source_line=self.source)


def read(text: str, file: str) -> list[Record]:
    """The rows of a file."""
    lines = [(number, line.rstrip()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not lines:
        raise FlatcError(f"'{file}' has no header", help="its first line names the columns")
    header_line, header = lines[0]
    names = [name.strip() for name in header.split(",")]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise FlatcError(f"two columns are named '{twice}'", position=Position(file, header_line, 1))
    return [_record(file, number, line, header_line, names) for number, line in lines[1:]]


def _record(file: str, number: int, line: str, header_line: int, names: list[str]) -> Record:
    parts, column = line.split(","), 1
    if len(parts) != len(names):
        raise FlatcError(
            f"expected {len(names)} cells, as the header has, got {len(parts)}",
            position=Position(file, number, 1, len(line)),
            source_line=line,
        )
    cells: dict[str, tuple[str, int]] = {}
    for name, part in zip(names, parts, strict=True):
        stripped = part.strip()
        cells[name] = stripped, column + len(part) - len(part.lstrip())
        column += len(part) + 1
    return Record(file, number, line, header_line, cells)
