"""Validation: recorded figures beside flatc's, *their* mapping on *their* machine under *their* assumptions.

    from flatc.validation import render, validate
    print(render(validate()))                       # the files that flatc ships
    print(render(validate(Path("mine"))))           # files of the same names and columns

The files lie in `reference/` (its README says where they are from), machines and mappings as files in `machines/` and
`mappings/`. Nothing is fitted: a row that flatc cannot express says what is missing, any other is held to a tolerance.

`SOURCES` lists which file makes which tables. More tables are one more entry: a file name and a function from the
rows of that file to tables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.frozen import frozen
from flatc.validation.model import Row, Statistics, Table
from flatc.validation.text import render, render_table, to_json

if TYPE_CHECKING:
    from flatc.validation.records import Record

__all__ = ["SOURCES", "Row", "Source", "Statistics", "Table", "render", "render_table", "to_json", "validate"]


@frozen
class Source:
    """A file of recorded figures, and the tables that are made of its rows."""

    file: str
    title: str
    tables: Callable[[Sequence[Record]], list[Table]]


def _accelforge(records: Sequence[Record]) -> list[Table]:
    from flatc.validation.accelforge import tables

    return tables(records)


def _flat_paper(records: Sequence[Record]) -> list[Table]:
    from flatc.validation.flat_paper import tables

    return tables(records)


def _fusemax_study(records: Sequence[Record]) -> list[Table]:
    from flatc.validation.fusemax_study import tables

    return tables(records)


def _rtl_products(records: Sequence[Record]) -> list[Table]:
    from flatc.validation.rtl import product_tables

    return product_tables(records)


def _rtl_fused(records: Sequence[Record]) -> list[Table]:
    from flatc.validation.rtl import fused_tables

    return fused_tables(records)


SOURCES = (
    Source("rtl_gemm.csv", "RTL, one product", _rtl_products),
    Source("rtl_fused_gemm.csv", "RTL, two fused products", _rtl_fused),
    Source("fusemax_flat.csv", "FLAT's own code", _flat_paper),
    Source("fusemax_flat.csv", "FuseMax study", _fusemax_study),
    Source("accelforge_bert.csv", "AccelForge", _accelforge),
)


def validate(reference: Path | None = None) -> list[Table]:
    """Every table, over the files of a folder or those that flatc ships.

    A file that the folder lacks gives a table without rows that says so. Raises `FlatcError` with file, line and
    column for a cell that is not what it should be, and where the folder has none of the files.
    """
    from flatc.validation.records import read

    texts = _texts(reference)
    records = {file: read(*found) for file, found in texts.items()}
    tables: list[Table] = []
    for source in SOURCES:
        if source.file in records:
            tables += source.tables(records[source.file])
        else:
            note = f"skipped, there is no {source.file} in {reference}"
            tables.append(Table(source.file, source.title, "", 0.0, source.file, (), (note,)))
    return tables


def _texts(reference: Path | None) -> dict[str, tuple[str, str]]:
    """(text, name for errors) of each file that is there."""
    files = tuple(dict.fromkeys(source.file for source in SOURCES))
    if reference is None:
        shipped = resources.files("flatc.validation") / "reference"
        return {file: ((shipped / file).read_text(encoding="utf-8"), file) for file in files}
    if not reference.is_dir():
        raise FlatcError(f"'{reference}' is no folder", help="give a folder of reference files")
    found = {file: (_read(reference / file), str(reference / file)) for file in files if (reference / file).exists()}
    if not found:
        raise FlatcError(f"'{reference}' holds no reference file", help=f"flatc reads {', '.join(files)}")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlatcError(f"'{path}' is no reference file: it is not UTF-8 text") from error
    except OSError as error:
        raise FlatcError(f"cannot read the reference file '{path}': {error.strerror}") from error
