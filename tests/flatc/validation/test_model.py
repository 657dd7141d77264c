"""Statistics of tables, what counts as unexplained, and how tables are written."""

from __future__ import annotations

import json
from dataclasses import replace

from flatc.validation import Row, Table, render_table, to_json
from flatc.validation.text import MOST_ROWS

ROWS = (
    Row("good", 100.0, 100.6),
    Row("low", 200.0, 190.0),
    Row("known", 100.0, 300.0, ("needs more",)),
    Row("nothing", 100.0, None, ("needs all", "needs more")),
)
TABLE = Table("t", "A table", "s", 0.01, "file.csv", ROWS, ("a note",))


def test_errors_are_shares_of_the_recorded_figure():
    assert [row.error for row in ROWS] == [100.6 / 100 - 1, 190 / 200 - 1, 2.0, None]


def test_statistics_are_over_rows_with_a_figure():
    found = TABLE.statistics
    assert found is not None
    assert (found.rows, found.within, found.worst.label) == (3, 1, "known")
    assert abs(found.mean_error - (0.006 + 0.05 + 2) / 3) < 1e-12


def test_rows_with_and_without_reasons_are_told_apart():
    assert TABLE.expressed is not None
    assert TABLE.approximated is not None
    assert (TABLE.expressed.rows, TABLE.expressed.share_within, TABLE.approximated.rows) == (2, 0.5, 1)


def test_a_miss_without_reason_is_unexplained():
    assert [row.label for row in TABLE.unexplained] == ["low"]


def test_a_table_without_rows_has_no_statistics():
    empty = Table("t", "Nothing", "s", 0.01, "file.csv", ())
    assert empty.statistics is None
    assert render_table(empty) == "Nothing\nno rows"


def test_text():
    assert render_table(TABLE) == "\n".join(
        [
            "A table",
            "4 rows of file.csv, tolerance 1 %",
            "  as recorded   2 rows  1 within  mean error 2.8 %  worst -5.0000 % (low)",
            "  approximated  1 rows  0 within  mean error 200 %  worst +200.0 % (known)",
            "  together      3 rows  1 within  mean error 69 %   worst +200.0 % (known)",
            "",
            "           recorded    flatc      error",
            "  good        100 s  100.6 s  +0.6000 %",
            "  low         200 s    190 s  -5.0000 %  MISS, unexplained",
            "  known       100 s    300 s   +200.0 %  [1]",
            "  nothing     100 s        -          -  [1][2]",
            "[1] needs more",
            "[2] needs all",
            "note: a note",
        ]
    )


def test_a_long_table_shows_its_largest_errors():
    rows = tuple(Row(f"row {i}", 100.0, 100.0 + i, ()) for i in range(MOST_ROWS + 5))
    text = render_table(replace(TABLE, rows=rows))
    assert f"row {MOST_ROWS + 4} " in text
    assert "row 0 " not in text
    assert text.count("\n  row ") == MOST_ROWS
    assert "and 5 rows that are as near or nearer" in text


def test_a_long_table_without_errors_shows_no_rows():
    rows = tuple(Row(f"row {i}", 100.0, 100.0, ()) for i in range(MOST_ROWS + 5))
    text = render_table(replace(TABLE, rows=rows))
    assert text.endswith("  every row is exact\nnote: a note")


def test_json_holds_every_number():
    (data,) = json.loads(to_json([TABLE]))["tables"]
    assert data["unexplained"] == ["low"]
    assert data["as_recorded"]["worst"] == {"row": "low", "error": 190 / 200 - 1}
    assert data["rows"][3] == {
        "row": "nothing", "recorded": 100.0, "flatc": None, "error": None, "within": False, "reasons": [0, 1]
    }  # fmt: skip
