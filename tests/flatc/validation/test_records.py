"""Reference files: cells come out typed, and every mistake is one error at its line and column."""

from __future__ import annotations

import pytest

from flatc.dialects.diagnostics import FlatcError
from flatc.validation.records import read

TEXT = "# from somewhere\n\nname,size, share\nfirst,12,0.5\nsecond, 7 ,\n"


def test_cells_are_read_by_name_and_type():
    first, second = read(TEXT, "file.csv")
    assert (first.text("name"), first.integer("size"), first.number("share")) == ("first", 12, 0.5)
    assert (second.integer("size"), second.measured("share")) == (7, None)


@pytest.mark.parametrize("cell", ["", "x", "0", "-1", "1.5", "nan", "1_0", "٣", "9" * 20])
def test_a_count_that_is_none_is_shown_where_it_stands(cell: str):
    (record,) = read(f"name,size\na,{cell}", "file.csv")
    with pytest.raises(FlatcError, match=r"size: expected a positive whole number") as caught:
        record.integer("size")
    assert str(caught.value.position) == "file.csv:2:3"


@pytest.mark.parametrize("cell", ["", "x", "0", "-1", "nan", "inf", "1e999"])
def test_a_measure_that_is_none_is_shown_where_it_stands(cell: str):
    (record,) = read(f"name,size\na,{cell}", "file.csv")
    with pytest.raises(FlatcError, match=r"file.csv:2:3: error: size: expected a positive number"):
        record.number("size")


def test_a_missing_column_is_an_error_at_the_header():
    record = read(TEXT, "file.csv")[0]
    with pytest.raises(FlatcError, match=r"file.csv:3:1: error: there is no column 'sise'(.|\n)*did you mean 'size'"):
        record.integer("sise")


def test_one_of_some_words():
    record = read(TEXT, "file.csv")[0]
    assert record.text("name", ("first", "second")) == "first"
    with pytest.raises(FlatcError, match="expected one of a, b, got 'first'"):
        record.text("name", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no header"),
        ("# only a comment\n", "has no header"),
        ("a,b\n1\n", "file.csv:2:1: error: expected 2 cells, as the header has, got 1"),
        ("a,b\n1,2,3\n", "expected 2 cells, as the header has, got 3"),
        ("a,a\n1,2\n", "two columns are named 'a'"),
    ],
)
def test_files_that_are_no_tables(text: str, message: str):
    with pytest.raises(FlatcError, match=message):
        read(text, "file.csv")
