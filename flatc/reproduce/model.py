"""What a study says, as records: tables with named columns and units, plots, and the assumptions under them.

    Table("points", "Every point", (Column("tokens"), Column("latency", "s")), ((512, 0.027),))

Cells are numbers or words; None is a point that has no figure (nothing fits the machine, say), never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum

from flatc.dialects.frozen import frozen

Cell = str | int | float | None


@frozen
class Column:
    """A column: its name, the unit of its numbers, the digits after the point that text shows."""

    name: str
    unit: str = ""
    digits: int = 2

    @property
    def heading(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit}]" if self.unit else self.name


@frozen
class Table:
    """Rows of cells. A table that is not `shown` is too long for text and goes to its file alone."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: bool = True

    def column(self, name: str) -> list[Cell]:
        """The cells of one column."""
        index = [column.name for column in self.columns].index(name)
        return [row[index] for row in self.rows]


@frozen
class Line:
    """One line of a plot; points without a figure are left out."""

    label: str
    points: tuple[tuple[float, float], ...]


@frozen
class Plot:
    """One picture: lines over a common axis."""

    name: str
    title: str
    x: str
    y: str
    lines: tuple[Line, ...]
    log_x: bool = True
    log_y: bool = False


@frozen
class Study:
    """One study: what it compares, under which assumptions, and what came out."""

    name: str
    title: str
    assumptions: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()


def mean(values: Iterable[float]) -> float | None:
    """The arithmetic mean, which the papers use; None of nothing."""
    found = list(values)
    return fsum(found) / len(found) if found else None


def line(label: str, xs: Sequence[float], ys: Sequence[float | None]) -> Line:
    """A line through the points that have a figure."""
    return Line(label, tuple((x, y) for x, y in zip(xs, ys, strict=True) if y is not None))
