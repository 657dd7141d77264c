"""How far the closed form's latency lies below the simulator's: over examples, machines, strategies, lengths, masks.

    python benchmarks/closed_form_gap.py [--graphs WORD] [--machines edge,cloud] [--strategies auto] [--samples 20]

For each kernel of each case: the mapping that the search chooses, and a deterministic sample of the other mappings of
its space, each simulated and priced. Prints the worst first. Of chosen mappings,

    closed form <= simulated <= 1.01 x closed form
"""

from __future__ import annotations

import argparse
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from flatc.accelerators import load
from flatc.compiler import UNFUSED_GROUPS, apply, load_module
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.bounds import AnyProblem
from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass
from flatc.passes.fuse_layers import FuseLayersPass
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kinds.registry import kind_of
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.priced_space import PricedSpace
from flatc.passes.simulation.simulator import try_simulate
from flatc.passes.tile_attention import tile_module

EXAMPLES = Path(__file__).parents[1] / "examples"
MACHINES = ("edge", "cloud", "fusemax", "rtl16")
STRATEGIES = ("unfused", "flat-b", "flat-r", "online", "auto")
MOST_RATIO = 1.01
"""No chosen mapping takes longer than its closed form by more than this factor."""

MOST_EFFORT = 100_000
"""A mapping that takes longer to simulate is left out, and counted."""


@dataclass(frozen=True)
class Graph:
    """A graph of the corpus: a file of the examples, or text."""

    name: str
    source: str
    bindings: dict[str, int] = field(default_factory=dict[str, int])
    phase: str | None = None


def _attention(mask: str) -> str:
    return f"""
graph attention
dim B = 2, H = 4, KV = 2, S = 1024, T = 1024, D = 64
dtype bf16, softmax f32
input q : [B, H, S, D]
input k, v : [B, KV, T, D]
a = attention(q, k, v{mask})
output a
"""


def corpus() -> Iterator[Graph]:
    """Every graph at several lengths, some that no tile divides, and one attention under many masks."""
    for length in (64, 100, 512, 1000, 4096, 65536):
        yield Graph(f"bert_base S={length}", "bert_base.flat", {"S": length})
    for length in (509, 2048, 16384):
        yield Graph(f"llama3_8b_gqa S={length}", "llama3_8b_gqa.flat", {"S": length}, "prefill")
    for past in (1000, 8192):
        yield Graph(f"llama3_8b_gqa P={past}", "llama3_8b_gqa.flat", {"P": past}, "decode")
    for phase in ("prefill", "decode"):
        for name in ("whisper_cross_attention", "llama3_8b_layer", "mistral_7b_layer", "gemma2_9b_layers"):
            yield Graph(f"{name} {phase}", f"{name}.flat", {}, phase)
        for name in ("deepseek_v3_mla", "deepseek_v3_mla_plain"):
            yield Graph(f"{name} {phase}", f"{name}.flat", {}, phase)
    yield Graph("llama3_8b_paged_decode", "llama3_8b_paged_decode.flat")
    for name in ("bert_base_layer", "t5_small_layer", "variants"):
        yield Graph(name, f"{name}.flat")
    masks = ("causal", "window(100, 50)", "causal & window(256)", "causal | prefix(128)", "causal & chunk(256)")
    for mask in (*masks, "causal & (window(128) | first(4))"):
        for sizes in ({"S": 1024, "T": 1024}, {"S": 300, "T": 1000}):
            label = " ".join(f"{name}={size}" for name, size in sizes.items())
            yield Graph(f"{mask} {label}", _attention(f", mask = {mask}"), sizes)


@dataclass(frozen=True)
class Gap:
    """One mapping of one kernel, priced and simulated."""

    case: str
    kernel: str
    chosen: bool
    mapping: KernelMapping
    closed_cycles: float
    simulated_cycles: Fraction

    @property
    def ratio(self) -> float:
        """Simulated over closed form."""
        return float(self.simulated_cycles) / self.closed_cycles if self.closed_cycles else 1.0


def gaps(graph: Graph, machine: str, strategy: str, samples: int = 0) -> Iterator[Gap]:
    """The chosen mapping of every kernel, each kernel once, and `samples` others of the spaces of its attentions."""
    module, accelerator = load_module(_source(graph), graph.bindings, graph.phase), load(machine)
    attach_accelerator(module, accelerator)
    apply(FuseAttentionPass(UNFUSED_GROUPS if strategy == "unfused" else (WHOLE,)), module)
    apply(FuseLayersPass(), module)
    tile_module(module, strategy, "latency")
    seen: set[tuple[str, AnyProblem]] = set()
    for fused in [op for op in module.walk() if isinstance(op, FusedOp)]:
        kind = kind_of(fused)
        problem: AnyProblem = kind.match(fused).problem
        if (kind.name, problem) in seen or fused.mapping is None:
            continue
        seen.add((kind.name, problem))
        chosen = fused.mapping.data
        others = sampled(problem, accelerator, strategy, samples) if isinstance(problem, AttentionProblem) else []
        for mapping in [chosen, *(other for other in others if other != chosen)]:
            simulated = try_simulate(lower_kernel_alone(fused, mapping), accelerator, MOST_EFFORT)
            if simulated is not None:
                closed = float(kind.price(problem, accelerator, mapping).latency_cycles[0])
                label = f"{graph.name} on {machine}, {strategy}"
                name = fused.kernel.data
                yield Gap(label, name, mapping is chosen, mapping, closed, simulated.latency_cycles)


def _source(graph: Graph) -> str:
    return graph.source if "\n" in graph.source else str(EXAMPLES / graph.source)


def sampled(problem: AttentionProblem, accelerator: Accelerator, strategy: str, samples: int) -> list[Mapping]:
    """Some mappings of a space, drawn evenly from all of its families and uses of the array, always the same ones."""
    whole = problem.has("logit") and problem.has("softmax") and problem.has("attend")
    space = PricedSpace(problem, accelerator, strategy if whole else "unfused", "latency")
    families = [candidates for candidates in space.families if len(candidates.pairs)]
    rng = random.Random(zlib.crc32(f"{problem} {accelerator.name} {strategy}".encode()))
    found: list[Mapping] = []
    for i in range(samples):
        candidates = families[i % len(families)]
        found.append(candidates.mapping(int(rng.choice(candidates.pairs))))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the worst mappings, and a line for each strategy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", default="", help="only graphs with this word in their names")
    parser.add_argument("--machines", default=",".join(MACHINES))
    parser.add_argument("--strategies", default=",".join(STRATEGIES))
    parser.add_argument("--samples", type=int, default=0, help="other mappings of each attention")
    parser.add_argument("--worst", type=int, default=30, help="how many to print")
    options = parser.parse_args(arguments)
    found: list[Gap] = []
    for graph in corpus():
        if options.graphs not in graph.name:
            continue
        for machine in options.machines.split(","):
            for strategy in options.strategies.split(","):
                try:
                    found += gaps(graph, machine, strategy, options.samples)
                except FlatcError as error:
                    print(f"{graph.name} on {machine}, {strategy}: {str(error).splitlines()[0]}", flush=True)
    for gap in sorted(found, key=lambda gap: -gap.ratio)[: options.worst]:
        print(f"{gap.ratio:8.4f} {'chosen' if gap.chosen else ''} {gap.case}, {gap.kernel}")
        print(f"    {gap.closed_cycles:,.0f} {float(gap.simulated_cycles):,.0f}   {gap.mapping.to_text()}")
    for chosen in (True, False):
        for strategy in options.strategies.split(","):
            ratios = sorted(gap.ratio for gap in found if gap.chosen == chosen and gap.case.endswith(strategy))
            if ratios:
                at = " ".join(f"{ratios[int(share * (len(ratios) - 1))]:.4f}" for share in (0.5, 0.9, 0.99, 1))
                label = "chosen" if chosen else "others"
                beyond = sum(ratio > MOST_RATIO for ratio in ratios)
                print(f"{strategy:8} {label} {len(ratios):6} {beyond:6} beyond {MOST_RATIO}; {at}")


if __name__ == "__main__":
    main()
