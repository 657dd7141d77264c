"""FLAT's sweeps: what the buffer's size buys, how much off-chip bandwidth is needed, how the live footprint grows.

Kao et al., ASPLOS 2023: utilisation against buffer size from 20 KB to 2 GB, the off-chip bandwidth that reaches 95 %
of the array, and the footprint of the granularities M, B, H and R."""

from __future__ import annotations

from dataclasses import replace

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.live_footprint import live_elements
from flatc.reproduce.model import Cell, Column, Plot, Study, Table, line
from flatc.reproduce.workloads import BATCH, MODELS, Measured, Workload, free_softmax, lengths, measure

KB, GIB = 1000, 1 << 30
BUFFERS = tuple(size * KB for size in (20, 50, 100, 200, 500, 1000, 2000, 5000, 20000, 100000, 500000, 2000000))
"""Bytes of the buffer, from 20 KB to 2 GB."""
GRANULARITIES = ("unfused", "flat-m", "flat-b", "flat-h", "flat-r", "auto")
BERT, XLM = MODELS[0], MODELS[2]
CASES = (
    ("edge", Workload(BERT, 512)),
    ("edge", Workload(BERT, 65536)),
    ("cloud", Workload(XLM, 4096)),
    ("cloud", Workload(XLM, 65536)),
)

FREE = "softmax is free, as in FLAT; elsewhere the machines are those of the library"


def buffer(quick: bool) -> Study:
    """The study `flat-buffer`: utilisation against the size of the buffer."""
    sizes = BUFFERS[::5] if quick else BUFFERS
    rows: list[tuple[Cell, ...]] = []
    plots: list[Plot] = []
    for name, work in CASES[:1] if quick else CASES:
        machine = free_softmax(load(name))
        used = {s: [_used(measure(work, _with_buffer(machine, size), s)) for size in sizes] for s in GRANULARITIES}
        label = f"{work.model.name} {work.tokens}"
        rows += [(name, label, size // KB, *(used[s][i] for s in GRANULARITIES)) for i, size in enumerate(sizes)]
        lines = tuple(line(s, [size / KB for size in sizes], used[s]) for s in GRANULARITIES)
        title = f"{work.model.name}, {work.tokens} tokens, on {name}"
        plots.append(Plot(f"{name}-{work.tokens}", title, "buffer [KB]", "array used [%]", lines))
    columns = (Column("machine"), Column("workload"), Column("buffer", "KB", 0))
    columns += tuple(Column(s, "%", 1) for s in GRANULARITIES)
    table = Table("utilisation", "Share of the array that is used, by size of the buffer", columns, tuple(rows))
    title = "FLAT's evaluation: utilisation against the size of the buffer"
    return Study("flat-buffer", title, (FREE, "'-': no mapping of this granularity fits"), (table,), tuple(plots))


def _with_buffer(machine: Accelerator, capacity: int) -> Accelerator:
    return replace(machine, buffer=replace(machine.buffer, capacity_bytes=capacity))


def _used(found: Measured | None) -> float | None:
    return None if found is None else 100 * found.utilisation


# --- Bandwidth ------------------------------------------------------------------------------------------------

TARGET = 0.95
STEPS_PER_DOUBLING = 4
MOST_DOUBLINGS = 14
"""The scale of bandwidths: from 1 GiB/s in steps of the fourth root of two, up to 16 TiB/s."""


def bandwidth(quick: bool) -> Study:
    """The study `flat-bandwidth`: the off-chip bandwidth that reaches 95 % of the array."""
    rows: list[tuple[Cell, ...]] = []
    plots: list[Plot] = []
    strategies = ("unfused", "flat", "auto")
    for name in ("edge",) if quick else ("edge", "cloud"):
        machine = free_softmax(load(name))
        tokens = lengths(512, 65536, quick=quick)
        needed = {s: [_needed(Workload(BERT, n), machine, s) for n in tokens] for s in strategies}
        rows += [(name, n, *(needed[s][i] for s in strategies)) for i, n in enumerate(tokens)]
        lines = tuple(line(s, tokens, needed[s]) for s in strategies)
        plots.append(Plot(name, f"BERT on {name}", "tokens", "bandwidth for 95 % [GiB/s]", lines, log_y=True))
    columns = (Column("machine"), Column("tokens", digits=0), *(Column(s, "GiB/s", 1) for s in strategies))
    table = Table("bandwidth", "Least off-chip bandwidth that uses 95 % of the array, BERT", columns, tuple(rows))
    assumptions = (FREE, "the mapping is the best for each bandwidth; bandwidths are a quarter of a doubling apart")
    assumptions += (f"'-': not reached with {1 << MOST_DOUBLINGS} GiB/s",)
    return Study("flat-bandwidth", "FLAT's evaluation: bandwidth needed", assumptions, (table,), tuple(plots))


def _needed(work: Workload, machine: Accelerator, strategy: str) -> float | None:
    """GiB/s, by bisection: more bandwidth never makes the best schedule slower."""
    low, high = -1, MOST_DOUBLINGS * STEPS_PER_DOUBLING
    if not _reaches(work, machine, strategy, high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _reaches(work, machine, strategy, middle) else (middle, high)
    return _bytes_per_second(high) / GIB


def _reaches(work: Workload, machine: Accelerator, strategy: str, step: int) -> bool:
    rate = _bytes_per_second(step)
    memory = replace(machine.offchip, read_bytes_per_second=rate, write_bytes_per_second=rate)
    found = measure(work, replace(machine, offchip=memory), strategy)
    return found is not None and found.utilisation >= TARGET


def _bytes_per_second(step: int) -> int:
    return round(GIB * 2 ** (step / STEPS_PER_DOUBLING))


# --- Footprint ------------------------------------------------------------------------------------------------


def footprint(quick: bool) -> Study:
    """The study `flat-footprint`: live elements against length."""
    tokens = lengths(512, 65536, quick=quick)
    problems = [_problem(n) for n in tokens]
    names = ("flat-m", "flat-b", "flat-h", "flat-r", "online")
    live = {name: [_live(problem, name) for problem in problems] for name in names}
    rows = tuple((n, *(live[name][i] for name in names)) for i, n in enumerate(tokens))
    columns = (Column("tokens", digits=0), *(Column(name, "elements", 0) for name in names))
    table = Table("footprint", f"Elements on chip; flat-r and online hold {ROWS} rows", columns, rows)
    lines = tuple(line(name, tokens, [float(count) for count in live[name]]) for name in names)
    plot = Plot("footprint", "Live footprint of BERT's attention", "tokens", "elements", lines, log_y=True)
    formula = "FLAT's formula for R rows: double buffers of Q, K, V and the output, one slice of scores: 4Rd + 4Nd + RN"
    return Study("flat-footprint", "FLAT's evaluation: live footprint against length", (formula,), (table,), (plot,))


ROWS = 64
"""Query rows at a time for the granularities that cut them."""


def _problem(tokens: int) -> AttentionProblem:
    stages = ("logit", "softmax", "attend")
    return AttentionProblem(
        stages, BATCH, BERT.heads, 1, tokens, tokens, BERT.head_dim, BERT.head_dim, 2, 2, 2, 2, 2, 2, 2
    )


def _live(problem: AttentionProblem, name: str) -> int:
    cut = name in ("flat-r", "online")
    batch = problem.batch if name == "flat-m" else 1
    heads = problem.kv_heads if name in ("flat-m", "flat-b") else 1
    rows, keys = (ROWS if cut else problem.queries), (ROWS if name == "online" else problem.keys)
    mapping = Mapping(
        Tiles(batch, heads, 1, rows, keys, problem.d_qk, problem.d_v),
        Keep(2, 2, 2, 1, 2),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("online" if name == "online" else "rows"),
        Stages(0, 0, 0, 0, 0),
    )
    found = live_elements(problem, mapping)
    assert found is not None
    return found
