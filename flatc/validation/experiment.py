"""One recorded run repeated with flatc: a graph, a machine file, a mapping file, and what flatc makes of them.

    sizes = Sizes(batch=64, heads=12, length=1024, depth=64)
    result = run(attention(sizes), machine("study_cloud"), mappings("study_flat", rows=1024, ...))
    result.latency_s, result.offchip_bytes, result.fits

Machines are the YAML files in `machines/`, mappings the files in `mappings/`, whose `{words}` are filled in for each
row. A mapping that fits its machine is compiled, verified and simulated as any other; one that does not fit is priced
by the closed form all the same, and `fits` says so.
"""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import replace
from functools import cache
from importlib import resources

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators.loader import parse
from flatc.builder import Graph, Tensor
from flatc.compiler import UNFUSED_GROUPS, compile
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.flat import FusedOp
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.bounds import NO_BOUNDS, Bounds, least_macs, mapping_bounds
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.kinds.attention import ATTENTION
from flatc.passes.mapping.mapping_text import parse_mappings
from flatc.report.model import Report
from flatc.validation.records import Record

_HERE = resources.files("flatc.validation")

FUSED = {"attention", "logit_attend"}
"""Kernels that keep scores on chip."""

PICOJOULES = 1e12
"""In a joule."""


@frozen
class Sizes:
    """An attention without a mask, as many queries as keys, one width for Q, K and V; two-byte words."""

    batch: int
    heads: int
    length: int
    depth: int

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of Q, of K, of V or of the output."""
        return self.length * self.depth * 2


def sizes_of(record: Record) -> Sizes:
    """The sizes of a row. They stay in the range that counts of 64 bits are exact in."""
    names = ("batch", "heads", "seq_len_tokens", "head_dim")
    sizes = Sizes(*(record.integer(name) for name in names))
    if sizes.batch * sizes.heads * sizes.length**2 * sizes.depth * 8 >= 1 << 63:
        record.fail("seq_len_tokens", "batch, heads, tokens and width together are too large")
    return sizes


@cache
def machine(name: str) -> Accelerator:
    """One of the machine files of validation."""
    file = f"{name}.yaml"
    return parse((_HERE / "machines" / file).read_text(encoding="utf-8"), file)


def mappings(name: str, **words: int | str) -> dict[str, Mapping]:
    """The mappings of one of the mapping files, by kernel, with its words filled in."""
    found = parse_mappings(mapping_text(name, **words), f"{name}.txt")
    return {kernel: ATTENTION.own(mapping, kernel) for kernel, mapping in found.items()}


def mapping_text(name: str, **words: int | str) -> str:
    """A mapping file with its words filled in: what `flatc compile --mapping` takes."""
    return (_HERE / "mappings" / f"{name}.txt").read_text(encoding="utf-8").format(**words)


# --- Graphs ---------------------------------------------------------------------------------------------------


def attention(sizes: Sizes) -> ModuleOp:
    """Attention with its softmax."""
    graph, query, key = _start(sizes)
    graph.output(graph.attention(query, key, _values(graph, "v", sizes, sizes.depth)), names=["o"])
    return graph.module()


def products(sizes: Sizes, strip: int) -> ModuleOp:
    """The two products of attention without a softmax; V is cut into strips of columns, one attend each."""
    graph, query, key = _start(sizes)
    scores = graph.logit(query, key)
    outputs: list[Tensor] = []
    for first in range(0, sizes.depth, strip):
        width = min(strip, sizes.depth - first)
        outputs.append(graph.attend(scores, _values(graph, f"v{first}", sizes, width)))
    graph.output(*outputs, names=[f"o{i}" for i in range(len(outputs))])
    return graph.module()


def elementwise(sizes: Sizes) -> ModuleOp:
    """The two products of attention with one function of each score between them, in one kernel."""
    graph, query, key = _start(sizes)
    scores = graph.adjust(graph.logit(query, key), softcap=1.0)
    graph.output(graph.attend(scores, _values(graph, "v", sizes, sizes.depth)), names=["o"])
    return graph.module()


def elementwise_apart(sizes: Sizes) -> ModuleOp:
    """The same in three kernels: a function that is no part of attention stands between the products."""
    graph, query, key = _start(sizes)
    scores = graph.sigmoid(graph.logit(query, key))
    graph.output(graph.attend(scores, _values(graph, "v", sizes, sizes.depth)), names=["o"])
    return graph.module()


def _start(sizes: Sizes) -> tuple[Graph, Tensor, Tensor]:
    graph = Graph("validation", dtype="bf16", softmax="bf16")
    shape = [sizes.batch, sizes.heads, sizes.length, sizes.depth]
    return graph, graph.input("q", shape), graph.input("k", shape)


def _values(graph: Graph, name: str, sizes: Sizes, width: int) -> Tensor:
    return graph.input(name, [sizes.batch, sizes.heads, sizes.length, width])


# --- Results --------------------------------------------------------------------------------------------------


@frozen
class Result:
    """What flatc makes of one run.

    `latency_s` of the schedule, kernel after kernel; `overlapped_s` is how long the busiest resource works, which is
    the latency if everything overlapped; `ideal_s` is every MAC on a fully used array. `fits` is whether the
    buffer holds the mapping.
    """

    latency_s: float
    overlapped_s: float
    ideal_s: float
    offchip_bytes: int
    peak_bytes: int
    fits: bool
    energy_j: float


def run(module: ModuleOp, accelerator: Accelerator, given: Named[str, Mapping]) -> Result:
    """Schedules a graph under the given mappings, by kernel, or by the role of kernels: logit, softmax, attend."""
    kernels = _kernels(module, not given.keys() & FUSED)
    named = {name: _cut(given.get(name) or given[name.split("_")[0]], found.d_v) for name, found in kernels.items()}
    forms = [evaluate_mapping(problem, accelerator, named[name]) for name, problem in kernels.items()]
    peak = max(int(form.peak_buffer_bytes[0]) for form in forms)
    if peak <= accelerator.buffer.capacity_bytes:
        return _result(compile(module, accelerator, mapping=named).report)
    clock = accelerator.clock_hz
    bounds: Bounds = sum((mapping_bounds(form, accelerator) for form in forms), NO_BOUNDS)
    macs = sum(least_macs(problem) for problem in kernels.values())
    return Result(
        latency_s=sum(float(form.latency_cycles[0]) for form in forms) / clock,
        overlapped_s=float(bounds.cycles) / clock,
        ideal_s=macs / (accelerator.array.pes * clock),
        offchip_bytes=sum(int(form.offchip_bytes[0]) for form in forms),
        peak_bytes=peak,
        fits=False,
        energy_j=sum(float(form.energy_pj[0]) for form in forms) / PICOJOULES,
    )


def best(module: ModuleOp, accelerator: Accelerator) -> Result:
    """Schedules a graph under the mappings that the search finds best by energy times latency."""
    return _result(compile(module, accelerator, objective="edp").report)


def _result(report: Report) -> Result:
    """The result of a schedule that fits."""
    machine = report.accelerator
    clock = machine.clock_hz
    return Result(
        latency_s=float(report.latency_cycles) / clock,
        overlapped_s=float(report.mapping_bounds.cycles) / clock,
        ideal_s=report.work.macs / (machine.array.pes * clock),
        offchip_bytes=report.offchip_bytes,
        peak_bytes=report.peak_buffer_bytes,
        fits=True,
        energy_j=float(report.energy_pj) / PICOJOULES,
    )


def _cut(mapping: Mapping, width: int) -> Mapping:
    """The mapping of a strip of V, the last of which may be narrower."""
    return replace(mapping, tiles=replace(mapping.tiles, d_v=min(mapping.tiles.d_v, width)))


def _kernels(module: ModuleOp, unfused: bool) -> dict[str, AttentionProblem]:
    """The problem of each kernel, by name."""
    copy = module.clone()
    FuseAttentionPass(UNFUSED_GROUPS if unfused else (WHOLE,)).apply(Context(), copy)
    return {op.kernel.data: match_kernel(op).problem for op in copy.walk() if isinstance(op, FusedOp)}
