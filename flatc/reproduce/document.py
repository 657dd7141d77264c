"""Writes the results of every study into one document.

    python -m flatc.reproduce.document docs/results.md

The whole file is made; what stands in it is what `flatc reproduce` prints.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from flatc.reproduce import reproduce
from flatc.reproduce.model import Study
from flatc.reproduce.text import render

HEAD = """\
# Results

What `flatc reproduce` prints: the evaluations of FLAT (Kao et al., ASPLOS 2023) and of FuseMax (Nayak et al., MICRO
2024), made with schedules that flatc chose, beside the papers' figures. `flatc reproduce -o DIR` writes the same with
every point as `.csv` and plots as `.svg`. This file is written by `python -m flatc.reproduce.document
docs/results.md`."""


def document(studies: Iterable[Study]) -> str:
    """The document, ending with a newline."""
    return "\n\n".join(_sections(studies)) + "\n"


def _sections(studies: Iterable[Study]) -> Iterator[str]:
    yield HEAD
    for study in studies:
        yield f"## {study.name}"
        yield f"```text\n{render(study)}```"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(reproduce()), encoding="utf-8")
