"""Writing a compilation to a folder, all of it or nothing.

    out/schedule.mlir    the schedule, which flatc reads back
    out/mapping.txt      the mapping of each kernel, for --mapping
    out/report.txt       the report for people
    out/report.json      the report for programs

Every file is first written beside its place and then renamed, the whole set only after all are written.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from flatc.compiler import Compilation
from flatc.dialects.diagnostics import FlatcError


def write_compilation(result: Compilation, folder: str | os.PathLike[str]) -> None:
    """Writes schedule, mapping and reports into `folder`, which is made if need be."""
    from flatc.report import to_json, to_text

    write_files(
        folder,
        {
            "schedule.mlir": str(result.schedule) + "\n",
            "mapping.txt": result.mapping_text,
            "report.txt": to_text(result.report),
            "report.json": to_json(result.report),
        },
    )


def write_files(folder: str | os.PathLike[str], texts: Mapping[str, str]) -> None:
    """Writes files into a folder; if one of them cannot be written, none is changed."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".flatc-", dir=target) as waiting:
            for name, text in texts.items():
                if (target / name).is_dir():
                    raise FlatcError(f"cannot write '{target / name}': it is a directory")
                (Path(waiting) / name).write_text(text, encoding="utf-8")
            for name in texts:
                os.replace(Path(waiting) / name, target / name)
    except OSError as error:
        raise FlatcError(f"cannot write to '{target}': {error.strerror or error}") from None
