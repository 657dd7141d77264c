"""BERT-base attention on FLAT's edge and cloud accelerators: two reports, and what happens as sequences grow.

    python examples/demo.py              # what `make demo` runs

For each length, one compiler makes all the rivals: `unfused` sends scores through off-chip memory, `flat-h` keeps
one head's scores on chip, `flat-r` some rows of them, `online` a tile of them; `auto` takes the best of everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import flatc
from flatc.accelerators import load
from flatc.passes.kernels.schedule_problem import kernel_attention
from flatc.passes.kinds.attention import ATTENTION
from flatc.passes.mapping.live_footprint import live_elements
from flatc.report import to_text
from flatc.report.build import schedule_of
from flatc.report.tables import duration, percent, size, table

GRAPH = Path(__file__).with_name("bert_base.flat")
ACCELERATORS = ("edge", "cloud")
STRATEGIES = ("unfused", "flat-h", "flat-r", "online", "auto")
LENGTHS = (512, 2048, 8192, 65536)
FAR_LENGTHS = (1048576,)


@dataclass(frozen=True)
class Row:
    """One strategy at one length; `result` is None where no mapping fits."""

    tokens: int
    strategy: str
    result: flatc.Compilation | None

    @property
    def operations(self) -> int:
        """Operations in the schedule's IR, loops counted once: the size of the program, not of the work."""
        assert self.result is not None
        return sum(1 for _ in self.result.schedule.walk())

    def cells(self) -> list[str]:
        """The row of the table."""
        names = [f"{self.tokens:,}", self.strategy]
        if self.result is None:
            return [*names, "does not fit", "", "", "", "", ""]
        report = self.result.report
        peak, capacity = report.peak_buffer_bytes, report.accelerator.buffer.capacity_bytes
        live = report.kernels[0].live_elements
        return [
            *names,
            size(report.offchip_bytes),
            duration(report.latency_seconds),
            size(peak),
            percent(peak / capacity),
            f"{live:,}" if live is not None else "-",
            f"{self.operations}",
        ]


def compile_row(accelerator: str, tokens: int, strategy: str) -> Row:
    """Compiles one row of the table."""
    try:
        result = flatc.compile(GRAPH, accelerator, strategy=strategy, bindings={"S": tokens})
    except flatc.FlatcError:
        result = None
    return Row(tokens, strategy, result)


def rows(accelerator: str, lengths: Sequence[int], strategies: Sequence[str] = STRATEGIES) -> Iterator[Row]:
    """All rows of an accelerator."""
    for tokens in lengths:
        for strategy in strategies:
            yield compile_row(accelerator, tokens, strategy)


HEADER = ["tokens", "strategy", "off chip", "latency", "on chip", "of buffer", "live elements", "operations"]


def growth(accelerator: str, lengths: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(tokens, live elements of flat-h, flat-r, online) for rows as many as the array has, by FLAT's formula."""
    array = load(accelerator).array
    small = flatc.compile(GRAPH, accelerator, strategy="online", bindings={"S": lengths[0]})
    (kernel,) = schedule_of(small.schedule).kernels()
    attention, mapping = kernel_attention(kernel), ATTENTION.mapping_of(kernel)
    assert attention is not None
    resident = replace(mapping.keep, k_level="kv_head", v_level="kv_head")
    streamed = replace(mapping.keep, k_level="key", v_level="key")
    rows_on_chip = replace(mapping.softmax, algorithm="rows")
    found: list[tuple[int, int, int, int]] = []
    for tokens in lengths:
        problem = replace(attention.problem, queries=tokens, keys=tokens)
        tile = replace(mapping.tiles, batch=1, kv_head=1, group=1, query=array.rows, key=array.columns)
        rivals = [
            replace(mapping, tiles=replace(tile, query=tokens), keep=resident, softmax=rows_on_chip),
            replace(mapping, tiles=tile, keep=resident, softmax=rows_on_chip),
            replace(mapping, tiles=tile, keep=streamed),
        ]
        flat_h, flat_r, online = (live_elements(problem, rival) or 0 for rival in rivals)
        found.append((tokens, flat_h, flat_r, online))
    return found


def show(accelerator: str, lengths: Sequence[int], far: Sequence[int]) -> None:
    """Prints the tables of an accelerator."""
    capacity = size(load(accelerator).buffer.capacity_bytes)
    print(f"\n{accelerator}, {capacity} on chip: strategies as sequences grow\n")
    found = [*rows(accelerator, lengths), *rows(accelerator, far, ["online", "auto"])]
    print("\n".join(table([HEADER, *(row.cells() for row in found)], "><>>>>>>", "  ")))
    grown = [[f"{n:,}" for n in line] for line in growth(accelerator, (*lengths, *far))]
    side = load(accelerator).array.rows
    print(f"\n  live elements of one head: all rows (flat-h), {side} rows (flat-r), {side} x {side} scores (online)\n")
    print("\n".join(table([["tokens", "flat-h", "flat-r", "online"], *grown], ">>>>", "  ")))


def main(lengths: Sequence[int] = LENGTHS, far: Sequence[int] = FAR_LENGTHS) -> None:
    """Prints everything."""
    for accelerator in ACCELERATORS:
        print(to_text(flatc.compile(GRAPH, accelerator).report))
    for accelerator in ACCELERATORS:
        show(accelerator, lengths, far)


if __name__ == "__main__":
    main()
