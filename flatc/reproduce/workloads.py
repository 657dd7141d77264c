"""The models of the papers, at the three levels that FLAT evaluates, and their cost under one strategy.

FLAT (Kao et al., ASPLOS 2023, section 6.1) names its models and a batch of 64, but not all of their sizes; these are
the published configurations of the models named. FlauBERT-base has the sizes of BERT-base, and counts in the means
all the same.

    attention   logit, softmax, attend alone (FLAT: L-A)
    block       with the projections around it
    layer       with the feed-forward network, norms and residuals too
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import cache, reduce
from typing import Literal

from flatc.builder import Graph, Tensor
from flatc.compiler import compile
from flatc.dialects.accelerator import Accelerator, VectorPrices
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.primitive_costs import Work, energy_pj
from flatc.passes.mapping.search import NothingFits
from flatc.report.model import KernelReport

Level = Literal["attention", "block", "layer"]
LEVELS: tuple[Level, ...] = ("attention", "block", "layer")
BATCH = 64
"""Sequences at a time, in both papers."""


@frozen
class Model:
    """Sizes of one encoder layer. `source` is the published configuration."""

    name: str
    heads: int
    head_dim: int
    feed_forward: int
    source: str

    @property
    def width(self) -> int:
        """Features of a token."""
        return self.heads * self.head_dim


MODELS = (
    Model("BERT", 12, 64, 3072, "bert-base-uncased"),
    Model("FlauBERT", 12, 64, 3072, "flaubert_base_cased"),
    Model("XLM", 16, 128, 8192, "xlm-mlm-en-2048"),
    Model("TransformerXL", 16, 64, 4096, "transfo-xl-wt103"),
    Model("T5", 8, 64, 2048, "t5-small"),
)


@frozen
class Workload:
    """One level of one model at one length, all words of two bytes as in both papers."""

    model: Model
    tokens: int
    level: Level = "attention"

    def graph(self) -> Graph:
        """The graph to compile."""
        graph = Graph(f"{self.model.name.lower()}_{self.level}", dtype="bf16", softmax="bf16")
        if self.level == "attention":
            shape = [BATCH, self.model.heads, self.tokens, self.model.head_dim]
            graph.output(graph.attention(*(graph.input(name, shape) for name in "qkv")), names=["a"])
        else:
            graph.output(self._around(graph), names=["y"])
        return graph

    def _around(self, graph: Graph) -> Tensor:
        """Attention between its projections; for a layer, what follows too."""
        width, hidden = self.model.width, self.model.feed_forward
        x = graph.input("x", [BATCH, self.tokens, width])
        q, k, v, o = (graph.weight(f"w{name}", [width, width]) for name in "qkvo")
        heads = [graph.heads(x @ w, self.model.heads) for w in (q, k, v)]
        out = graph.merge(graph.attention(*heads)) @ o
        if self.level == "block":
            return out
        between = graph.layernorm(x + out)
        up, down = graph.weight("w1", [width, hidden]), graph.weight("w2", [hidden, width])
        return graph.layernorm(between + graph.gelu(between @ up) @ down)


@frozen
class Measured:
    """What a schedule costs. `utilisation` is MACs over what the whole array could do in the time.

    `live_elements` is FLAT's live footprint of the attention in it; `simulated` says where the latency is from.
    """

    latency_seconds: float
    energy_pj: float
    offchip_bytes: int
    peak_buffer_bytes: int
    macs: int
    macs_per_second: float
    live_elements: int | None
    simulated: bool

    @property
    def utilisation(self) -> float:
        """Share of the array's multiply-accumulates that are used."""
        return self.macs / (self.macs_per_second * self.latency_seconds)

    def __add__(self, other: Measured) -> Measured:
        """One after the other on the same machine."""
        return Measured(
            self.latency_seconds + other.latency_seconds,
            self.energy_pj + other.energy_pj,
            self.offchip_bytes + other.offchip_bytes,
            max(self.peak_buffer_bytes, other.peak_buffer_bytes),
            self.macs + other.macs,
            self.macs_per_second,
            max((n for n in (self.live_elements, other.live_elements) if n is not None), default=None),
            self.simulated and other.simulated,
        )


def measure(workload: Workload, accelerator: Accelerator, strategy: str) -> Measured | None:
    """The cost of the best schedule of a strategy; None where no mapping of it fits the buffer.

    Kernels run one after the other, and a strategy says how attention runs: the kernels around it are compiled once
    for all strategies and added to each.
    """
    model = replace(workload.model, name="any", source="")  # equal sizes are measured once
    found = _attention(replace(workload, model=model, level="attention"), accelerator, strategy)
    if found is None or workload.level == "attention":
        return found
    return found + _around(replace(workload, model=model), accelerator)


@cache
def _attention(workload: Workload, accelerator: Accelerator, strategy: str) -> Measured | None:
    try:
        report = compile(workload.graph(), accelerator, strategy=strategy).report
    except NothingFits:
        return None
    return _measured(report.kernels, accelerator)


@cache
def _around(workload: Workload, accelerator: Accelerator) -> Measured:
    """The kernels that are no attention."""
    kernels = compile(workload.graph(), accelerator, strategy="online").report.kernels
    return _measured([kernel for kernel in kernels if not isinstance(kernel.mapping, Mapping)], accelerator)


def _measured(kernels: Sequence[KernelReport], accelerator: Accelerator) -> Measured:
    work = reduce(Work.__add__, (kernel.work for kernel in kernels))
    live = [kernel.live_elements for kernel in kernels if kernel.live_elements is not None]
    return Measured(
        latency_seconds=accelerator.seconds(sum((kernel.latency_cycles for kernel in kernels), Fraction(0))),
        energy_pj=float(sum(energy_pj(accelerator, work).values())),
        offchip_bytes=work.offchip_read_bytes + work.offchip_write_bytes,
        peak_buffer_bytes=max(kernel.peak_buffer_bytes for kernel in kernels),
        macs=work.macs,
        macs_per_second=float(accelerator.array.pes * accelerator.clock_hz),
        live_elements=max(live, default=None),
        simulated=all(kernel.latency_source == "simulated" for kernel in kernels),
    )


def free_softmax(accelerator: Accelerator) -> Accelerator:
    """The same machine where every vector operation is free, as FLAT's evaluation has it."""
    free = VectorPrices(**dict.fromkeys(vars(accelerator.vector.prices), 0))
    return replace(
        accelerator, name=f"{accelerator.name}, vector free", vector=replace(accelerator.vector, prices=free)
    )


def lengths(shortest: int, longest: int, *, quick: bool) -> Sequence[int]:
    """Powers of two from one length to another; a quick study takes the ends and the middle."""
    every = [1 << power for power in range(shortest.bit_length() - 1, longest.bit_length())]
    return (every[0], every[len(every) // 2], every[-1]) if quick else every
