"""Whole layers of published models on FLAT's edge and cloud accelerators: one schedule each, kernel by kernel.

    python examples/layers.py            # what `make layers` runs

A layer is compiled for prefill and for decode where its graph has phases. The table says what the schedule costs, how
much of that is attention, how far it is from what no schedule can beat, and how long compiling took on this computer
(the only number that depends on it).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import flatc
from flatc.dialects.mapping import Mapping
from flatc.report.tables import duration, energy, percent, size, table

HERE = Path(__file__).parent
ACCELERATORS = ("edge", "cloud")
LAYERS: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    ("bert_base_layer", (None,)),
    ("t5_small_layer", (None,)),
    ("whisper_cross_attention", ("prefill", "decode")),
    ("llama3_8b_layer", ("prefill", "decode")),
    ("mistral_7b_layer", ("prefill", "decode")),
    ("gemma2_9b_layers", ("prefill", "decode")),
    ("deepseek_v3_layer_plain", ("prefill",)),
    ("deepseek_v3_layer", ("prefill", "decode")),
)
"""Graphs, and their phases. Gemma-2 is two layers, a local and a global one; DeepSeek-V3's is absorbed and plain."""


@dataclass(frozen=True)
class Row:
    """One layer in one phase; `result` is None where it was refused."""

    layer: str
    phase: str | None
    result: flatc.Compilation | None
    compile_seconds: float

    def cells(self) -> list[str]:
        """The row of the table."""
        names = [self.layer, self.phase or ""]
        if self.result is None:
            return [*names, "refused", *[""] * 7]
        report = self.result.report
        return [
            *names,
            f"{len(report.kernels)}",
            duration(report.latency_seconds),
            percent(attention_share(report)),
            f"{float(report.latency_cycles / report.bounds.cycles):.2f}x" if report.bounds is not None else "?",
            report.binding,
            size(report.offchip_bytes),
            energy(report.energy_pj),
            f"{self.compile_seconds:.2f} s",
        ]


def attention_share(report: flatc.Report) -> float:
    """How much of the time attention takes; the rest is products, norms and the like."""
    own = [kernel.latency_cycles for kernel in report.kernels if isinstance(kernel.mapping, Mapping)]
    return float(sum(own, Fraction(0)) / report.latency_cycles)


def compile_row(layer: str, phase: str | None, accelerator: str) -> Row:
    """Compiles one row of the table; says on standard error what is refused."""
    start = time.perf_counter()
    try:
        result = flatc.compile(HERE / f"{layer}.flat", accelerator, phase=phase)
    except flatc.FlatcError as error:
        print(error, file=sys.stderr)
        result = None
    return Row(layer, phase, result, time.perf_counter() - start)


HEADER = ["layer", "phase", "kernels", "latency", "attention", "bound", "binds", "off chip", "energy", "compiled in"]


def rows(accelerator: str, layers: Sequence[tuple[str, Sequence[str | None]]] = LAYERS) -> Iterator[Row]:
    """All rows of an accelerator."""
    for layer, phases in layers:
        for phase in phases:
            yield compile_row(layer, phase, accelerator)


def main(layers: Sequence[tuple[str, Sequence[str | None]]] = LAYERS) -> None:
    """Prints a table for each accelerator."""
    for accelerator in ACCELERATORS:
        print(f"\n{accelerator}\n")
        cells = [row.cells() for row in rows(accelerator, layers)]
        print("\n".join(table([HEADER, *cells], "<<>>>><>>>", "  ")))


if __name__ == "__main__":
    main()
