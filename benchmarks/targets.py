"""What auto's schedules reach beside what they are to reach: FLAT's machines and FuseMax's, short and long sequences.

    python benchmarks/targets.py [cloud] [fusemax] [edge] [--quick]

    cloud    speed-up over FLAT as the FuseMax study reckons it (four lane-cycles a score); bytes beside those of `flat`
    fusemax  time beside the study's FuseMax, and beside the floor of its algorithm: d_qk + d_v + 9 cycles of the array
             for 256 x 256 scores; the same with fill and drain of the array charged
    edge     time beside what the multiply-accumulates alone take, and whether the least vector work takes longer

Recorded figures are read from `flatc/validation/reference`, all others are compiled and simulated here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import resources

from flatc import compile
from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator
from flatc.report.model import Report
from flatc.validation.records import Record, read

BATCH, HEADS = 64, 12
LENGTHS = tuple(1 << power for power in range(9, 21))
OTHER_WIDTHS = (32, 80, 96, 128, 256)


@dataclass(frozen=True)
class Shape:
    """An attention of 64 sequences of two-byte words."""

    tokens: int
    depth: int = 64
    heads: int = HEADS

    @property
    def scores(self) -> int:
        """How many scores it has."""
        return BATCH * self.heads * self.tokens**2

    def __str__(self) -> str:
        return f"{self.tokens:>7} tokens, {self.heads:2} heads of {self.depth:3}"


def compiled(shape: Shape, machine: Accelerator, strategy: str = "auto") -> Report:
    """The report of a schedule."""
    graph = Graph("attention", dtype="bf16", softmax="bf16")
    size = [BATCH, shape.heads, shape.tokens, shape.depth]
    graph.output(graph.attention(*(graph.input(name, size) for name in "qkv")), names=["a"])
    return compile(graph, machine, strategy=strategy).report


def show(shape: Shape, what: str, reached: float, wanted: str, met: bool, found: Report) -> None:
    """Prints one figure beside its target."""
    (kernel,) = found.kernels
    verdict = "met" if met else "MISSED"
    print(f"{shape}  {what} {reached:7.4f}  {wanted:14} {verdict:7}{kernel.latency_source}", flush=True)
    if not met:
        print(f"    {' '.join(kernel.mapping.to_text().split()) if kernel.mapping else 'no mapping'}", flush=True)


# --- The machines ---------------------------------------------------------------------------------------------


def recorded() -> list[Record]:
    """The study's rows that have latencies."""
    file = "fusemax_flat.csv"
    text = (resources.files("flatc.validation") / "reference" / file).read_text(encoding="utf-8")
    return [row for row in read(text, file) if row.measured("fusemax_latency_s") is not None]


def shape_of(row: Record) -> Shape:
    """The sizes of a row."""
    return Shape(row.integer("seq_len_tokens"), row.integer("head_dim"), row.integer("heads"))


def cloud(quick: bool) -> None:
    """Speed-up over the study's FLAT, and bytes beside `flat`."""
    machine = load("cloud")
    for row in recorded()[: 2 if quick else None]:
        shape, theirs = shape_of(row), row.measured("flat_latency_s")
        assert theirs is not None
        found = compiled(shape, machine)
        goal = 1.9 if shape.tokens <= 1 << 16 else 2.2
        speed = theirs / found.latency_seconds
        show(shape, "speed-up over the study's FLAT", speed, f"at least {goal}", speed >= goal, found)
        most = compiled(shape, machine, "flat").offchip_bytes
        moved = found.offchip_bytes / most
        show(shape, "bytes off chip beside flat    ", moved, "at most 1", found.offchip_bytes <= most, found)
    lanes = machine.vector.lanes * machine.clock_hz
    for shape in [Shape(n, d) for d in OTHER_WIDTHS[: 1 if quick else None] for n in (1024, 4096, 16384, 65536)]:
        found = compiled(shape, machine)
        speed = float(4 * shape.scores / lanes) / found.latency_seconds
        goal = 0.97 * 4 / (2 + shape.depth / shape.tokens)
        show(shape, "speed-up over 4 cycles a score", speed, f"at least {goal:.3f}", speed >= goal, found)


def fusemax(quick: bool) -> None:
    """Time beside the study's FuseMax; beside the floor; both with skew charged, for what it is worth."""
    machine = load("fusemax")
    exposed = replace(machine, name="fusemax, skew exposed", array=replace(machine.array, skew="exposed"))
    for row in recorded()[: 2 if quick else None]:
        shape, theirs = shape_of(row), row.measured("fusemax_latency_s")
        assert theirs is not None
        found = compiled(shape, machine)
        ratio = found.latency_seconds / theirs
        show(shape, "time beside the study's FuseMax", ratio, "at most 1", ratio <= 1, found)
        floor = Fraction(shape.scores, machine.array.pes) * (2 * shape.depth + 9)
        ratio = float(found.latency_cycles / floor)
        show(shape, "time beside the floor          ", ratio, "close to 1", ratio < 1.03, found)
        charged = compiled(shape, exposed)
        ratio = charged.latency_seconds / theirs
        show(shape, "the same with skew charged     ", ratio, "", True, charged)


def edge(quick: bool) -> None:
    """Time beside what the multiply-accumulates alone take."""
    machine = load("edge")
    for shape in shapes_of_edge(quick):
        found = compiled(shape, machine)
        array = Fraction(2 * shape.scores * shape.depth, machine.array.pes)
        ratio = float(found.latency_cycles / array)
        show(shape, "time beside the 2D bound", ratio, "at most 1.03", ratio <= 1.03, found)
        assert found.bounds is not None
        least = float(found.bounds.cycles / array)
        if least > 1.03:
            print(f"    no schedule is below {least:.5f}, for the {found.bounds.binding} unit's least work", flush=True)


def shapes_of_edge(quick: bool) -> Iterator[Shape]:
    """Lengths for each head dim that is a multiple of 32."""
    for depth in (64,) if quick else (32, 64, 96, 128, 256):
        yield from (Shape(tokens, depth) for tokens in (LENGTHS[::5] if quick else LENGTHS))


SECTIONS: dict[str, Callable[[bool], None]] = {"cloud": cloud, "fusemax": fusemax, "edge": edge}


def main(arguments: list[str]) -> None:
    """Prints the sections that are named, or all."""
    quick = "--quick" in arguments
    for name in [word for word in arguments if word != "--quick"] or SECTIONS:
        before = time.process_time()
        print(f"{name}:")
        SECTIONS[name](quick)
        print(f"{time.process_time() - before:.0f} s of processor time\n")


if __name__ == "__main__":
    main(sys.argv[1:])
