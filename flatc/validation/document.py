"""Keeps the tables of a document equal to what `flatc validate` prints.

    python -m flatc.validation.document docs/validation.md

The document has a place for each table, everything else is prose:

    <!-- table: flat-traffic -->
    <!-- end -->
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.validation import render_table, validate
from flatc.validation.model import Table

_PLACE = re.compile(r"<!-- table: (?P<name>\S+) -->\n.*?<!-- end -->", re.DOTALL)


def fill(document: str, tables: Sequence[Table]) -> str:
    """The document with its tables brought up to date. Every table must have its place."""
    by_name = {table.name: table for table in tables}
    missing = by_name.keys() - {found["name"] for found in _PLACE.finditer(document)}
    if missing:
        raise FlatcError(f"the document has no place for {', '.join(sorted(missing))}", help="add <!-- table: NAME -->")

    def place(found: re.Match[str]) -> str:
        name = found["name"]
        if name not in by_name:
            raise FlatcError(f"there is no table '{name}'", help=did_you_mean(name, by_name))
        return f"<!-- table: {name} -->\n```text\n{render_table(by_name[name])}\n```\n<!-- end -->"

    return _PLACE.sub(place, document)


def main(path: Path) -> None:
    """Brings a document up to date."""
    path.write_text(fill(path.read_text(encoding="utf-8"), validate()), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
