"""Tables of a validation as text and as JSON.

FLAT's own code: off-chip traffic
48 rows of fusemax_flat.csv, tolerance 1 %
  as recorded    24 rows  24 within  mean error 0.00 %  worst -0.02 % (edge T5 512)
  approximated   24 rows   0 within  mean error 56 %    worst -92.0 % (cloud BERT 4096)

                    recorded         flatc     error
  cloud BERT 512   3.525e+08 B   2.013e+08 B   -42.9 %   [1]
...
[1] streaming for each pass of the array: ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from flatc.report.tables import table as lines_of
from flatc.validation.model import Row, Statistics, Table

WIDTH = 110

MOST_ROWS = 60
"""A longer table shows as many of its rows, those with the largest errors; statistics are over all. JSON has all."""


def render(tables: Sequence[Table]) -> str:
    """All tables, ending with a newline."""
    return "\n\n".join(render_table(table) for table in tables) + "\n"


def render_table(table: Table) -> str:
    """One table, without a newline at its end."""
    return "\n".join(line.rstrip() for line in _lines(table))


def _lines(table: Table) -> Iterator[str]:
    yield table.title
    if table.rows:
        yield f"{len(table.rows)} rows of {table.file}, tolerance {_percent(table.tolerance)}"
        yield from lines_of([*_summary(table)], "<>><<", "  ")
        shown = _shown(table)
        if not shown:
            yield "  every row is exact"
        else:
            yield ""
            heading = ["", "recorded", "flatc", "error", ""]
            yield from lines_of([heading, *(_row(table, row) for row in shown)], "<>>><", "  ")
        if 0 < len(shown) < len(table.rows):
            yield f"  and {len(table.rows) - len(shown)} rows that are as near or nearer"
    elif not table.notes:
        yield "no rows"
    for number, reason in enumerate(table.reasons, 1):
        mark = f"[{number}] "
        yield from wrap(mark + reason, WIDTH, subsequent_indent=" " * len(mark))
    for note in table.notes:
        yield from wrap("note: " + note, WIDTH, subsequent_indent="      ")


def _shown(table: Table) -> Sequence[Row]:
    if len(table.rows) <= MOST_ROWS:
        return table.rows
    if all(row.error == 0 for row in table.rows):
        return ()
    return sorted(table.rows, key=lambda row: -abs(row.error or 0.0))[:MOST_ROWS]


def _summary(table: Table) -> Iterator[list[str]]:
    together = table.statistics if table.expressed and table.approximated else None
    parts = (("as recorded", table.expressed), ("approximated", table.approximated), ("together", together))
    for name, found in parts:
        if found is not None:
            yield [
                name,
                f"{found.rows} rows",
                f"{found.within} within",
                f"mean error {_percent(found.mean_error)}",
                _worst(found),
            ]


def _worst(found: Statistics) -> str:
    assert found.worst.error is not None
    return f"worst {_signed(found.worst.error)} ({found.worst.label})"


def _row(table: Table, row: Row) -> list[str]:
    figure = f"{row.flatc:.6g} {table.unit}" if row.flatc is not None else "-"
    error = _signed(row.error) if row.error is not None else "-"
    marks = "".join(f"[{number}]" for number in sorted(table.reasons.index(r) + 1 for r in row.reasons))
    miss = " MISS, unexplained" if row in table.unexplained else ""
    return [row.label, f"{row.recorded:.6g} {table.unit}", figure, error, (marks + miss).strip()]


def _percent(share: float) -> str:
    """Two digits that matter, but never more than four places."""
    value = 100 * share
    return (
        f"{value:.0f} %"
        if value >= 10 or value == round(value)
        else f"{value:.1f} %"
        if value >= 1
        else f"{value:.4f} %"
    )


def _signed(share: float) -> str:
    value = 100 * share
    shown = f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.1f}" if abs(value) >= 10 else f"{value:+.4f}"
    return "0 %" if float(shown.replace(",", "")) == 0 else f"{shown} %"


# --- JSON -----------------------------------------------------------------------------------------------------


def to_json(tables: Sequence[Table]) -> str:
    """All tables, ending with a newline."""
    return json.dumps({"tables": [_table_data(table) for table in tables]}, indent=2) + "\n"


def _table_data(table: Table) -> dict[str, Any]:
    return {
        "name": table.name,
        "title": table.title,
        "unit": table.unit,
        "tolerance": table.tolerance,
        "file": table.file,
        "as_recorded": _statistics_data(table.expressed),
        "approximated": _statistics_data(table.approximated),
        "unexplained": [row.label for row in table.unexplained],
        "notes": list(table.notes),
        "reasons": list(table.reasons),
        "rows": [_row_data(table, row) for row in table.rows],
    }


def _statistics_data(found: Statistics | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "rows": found.rows,
        "within": found.within,
        "share_within": found.share_within,
        "mean_error": found.mean_error,
        "worst": {"row": found.worst.label, "error": found.worst.error},
    }


def _row_data(table: Table, row: Row) -> dict[str, Any]:
    return {
        "row": row.label,
        "recorded": row.recorded,
        "flatc": row.flatc,
        "error": row.error,
        "within": table.within(row),
        "reasons": sorted(table.reasons.index(reason) for reason in row.reasons),
    }
