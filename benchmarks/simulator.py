"""How long simulating a layer takes: events, processor time, and where it is feasible the ratio to plain simulation.

    python benchmarks/simulator.py [rounds]

The goal is 0.2 seconds for a layer of 64K tokens, whatever its mask, and well under a second for a million. Plain
simulation takes each event by itself; where a layer has too many, its time is reckoned from a shorter one's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.builder import Graph, MaskExpr, causal, first, window
from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.spatial import KernelOp
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.lower_to_spatial import LowerToSpatialPass
from flatc.passes.mapping.search import find_mapping
from flatc.passes.simulation.simulator import KernelSimulation, simulate_kernel


@dataclass(frozen=True)
class Layer:
    """An attention layer, and how it is mapped."""

    name: str
    tokens: int
    mask: Callable[[], MaskExpr] | None = None
    strategy: str = "online"
    batch: int = 64
    heads: int = 12
    kv_heads: int = 12
    depth: int = 64


LAYERS = (
    Layer("512", 512),
    Layer("512, causal", 512, causal),
    Layer("64K", 1 << 16),
    Layer("64K, causal", 1 << 16, causal),
    Layer("64K, causal, 32/8 heads of 128", 1 << 16, causal, batch=16, heads=32, kv_heads=8, depth=128),
    Layer("64K, window of 4K", 1 << 16, lambda: causal() & window(4096)),
    Layer("64K, window of 4K and first 64", 1 << 16, lambda: causal() & (window(4096) | first(64))),
    Layer("64K, causal, whole rows", 1 << 16, causal, "flat-r"),
    Layer("1M", 1 << 20),
    Layer("1M, causal", 1 << 20, causal),
    Layer("1M, window of 4K", 1 << 20, lambda: causal() & window(4096)),
)


def kernel_of(layer: Layer, accelerator: str) -> KernelOp:
    """The layer's kernel, with the best mapping of its strategy."""
    graph = Graph("layer", dtype="bf16", softmax="f32")
    q = graph.input("q", [layer.batch, layer.heads, layer.tokens, layer.depth])
    k, v = (graph.input(name, [layer.batch, layer.kv_heads, layer.tokens, layer.depth]) for name in "kv")
    graph.output(graph.attention(q, k, v, mask=layer.mask() if layer.mask else None), names=["o"])
    module: ModuleOp = graph.module()
    FuseAttentionPass().apply(Context(), module)
    (fused,) = (op for op in module.walk() if isinstance(op, FusedOp))
    machine = load(accelerator)
    choice = find_mapping(match_kernel(fused).problem, machine, layer.strategy, "latency")
    fused.mapping = MappingAttr(choice.mapping)
    attach_accelerator(module, machine)
    LowerToSpatialPass().apply(Context(), module)
    (kernel,) = (op for op in module.walk() if isinstance(op, KernelOp))
    return kernel


def measured(kernel: KernelOp, accelerator: str, rounds: int, *, skip_ahead: bool) -> tuple[float, KernelSimulation]:
    """The least processor time of several rounds, and what was found."""
    machine, best = load(accelerator), float("inf")
    found: KernelSimulation | None = None
    for _ in range(rounds):
        before = time.process_time()
        found = simulate_kernel(kernel, machine, skip_ahead=skip_ahead)
        best = min(best, time.process_time() - before)
    assert found is not None
    return best, found


def main(rounds: int = 3) -> None:
    """Prints a line for each layer and accelerator."""
    short = kernel_of(Layer("short", 1024, causal, batch=1, heads=1, kv_heads=1), "edge")
    seconds, found = measured(short, "edge", 1, skip_ahead=False)
    an_event = seconds / found.events
    print(f"plain simulation: {an_event * 1e6:.1f} us an event\n")
    print(f"{'layer':32}{'machine':9}{'events':>10}{'seconds':>9}{'times as fast as plain':>24}")
    for accelerator in ("edge", "cloud"):
        for layer in LAYERS:
            try:
                kernel = kernel_of(layer, accelerator)
            except FlatcError:
                continue
            seconds, found = measured(kernel, accelerator, rounds, skip_ahead=True)
            ratio = found.events * an_event / seconds
            print(f"{layer.name:32}{accelerator:9}{found.events:10.3g}{seconds:9.3f}{ratio:24,.0f}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
