"""Studies as text and as comma-separated values.

FLAT's evaluation: live footprint against length
  assumes: FLAT's formula, ...

Elements on chip; flat-r and online hold 64 rows
  tokens  flat-m [elements]  ...
     512     ...
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from textwrap import wrap

from flatc.report.tables import table as lines_of
from flatc.reproduce.model import Cell, Column, Study, Table

WIDTH = 110


def render(study: Study) -> str:
    """One study, ending with a newline: its assumptions and the tables that text shows."""
    return "\n".join(_lines(study)) + "\n"


def _lines(study: Study) -> Iterator[str]:
    yield study.title
    for assumption in study.assumptions:
        yield from wrap(f"  assumes: {assumption}", WIDTH, subsequent_indent=" " * 11)
    for table in study.tables:
        yield ""
        yield from render_table(table) if table.shown else (f"{table.title}: {len(table.rows)} rows in its .csv file",)


def render_table(table: Table) -> Iterator[str]:
    """The lines of one table."""
    yield table.title
    heading = [column.heading for column in table.columns]
    rows = [[_shown(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]
    kinds = ["<" if any(isinstance(cell, str) for cell in cells) else ">" for cells in _columns(table)]
    yield from lines_of([heading, *rows], "".join(kinds), "  ")


def _columns(table: Table) -> list[list[Cell]]:
    return [[row[index] for row in table.rows] for index in range(len(table.columns))]


def _shown(cell: Cell, column: Column) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if cell and abs(cell) < 10.0**-column.digits:
        return f"{cell:.3g}"
    return f"{cell:,.{column.digits}f}" if isinstance(cell, float) else f"{cell:,}"


def to_csv(table: Table) -> str:
    """All rows of a table; numbers as they are, nothing for a point without a figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.heading for column in table.columns])
    writer.writerows([["" if cell is None else cell for cell in row] for row in table.rows])
    return text.getvalue()


def files(study: Study) -> dict[str, str]:
    """The text files of a study by name."""
    texts = {f"{study.name}.txt": render(study)}
    return texts | {f"{study.name}-{table.name}.csv": to_csv(table) for table in study.tables}
