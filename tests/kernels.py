"""What tests of schedules share: attention graphs of any shape, and their way down to a schedule.

    module = attention(Shape(queries=7, keys=130, d_qk=80), causal())
    lowered = lower(module, Choice("online", tiles=Tiles(1, 1, 1, 4, 48, 80, 80)))
    run = run_checked(lowered, random_inputs(module, 0))

`run_checked` also holds the bytes that the interpreter moved against the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping as Named
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser

from flatc.accelerators import load
from flatc.builder import Graph, MaskExpr
from flatc.dialects.accelerator import Accelerator, accelerator_of, attach_accelerator
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import Algorithm, ArrayUse, Divide, Keep, Level, Mapping, Softmax, Stages, Tiles
from flatc.dialects.spatial import KernelOp
from flatc.frontend.mlir import context
from flatc.interpreter import ScheduleRun, run_schedule
from flatc.passes.allocate_buffers import AllocateBuffersPass
from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.lower_to_spatial import LowerToSpatialPass
from flatc.passes.simulation.simulator import simulate_kernel

UNFUSED = ("logit", "mask+softmax", "attend")


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention."""

    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    queries: int = 7
    keys: int = 11
    d_qk: int = 4
    d_v: int = 4

    def __str__(self) -> str:
        heads = f"{self.batch}x{self.heads}/{self.kv_heads}"
        return f"{heads}h {self.queries}q {self.keys}k d{self.d_qk},{self.d_v}"


def attention(shape: Shape, mask: MaskExpr | None = None, dtype: str = "f64", softmax: str | None = None) -> ModuleOp:
    """The graph of one attention; the softmax is in the storage type unless given."""
    s = shape
    graph = Graph("attention", dtype=dtype, softmax=softmax or dtype)
    q = graph.input("q", [s.batch, s.heads, s.queries, s.d_qk])
    k = graph.input("k", [s.batch, s.kv_heads, s.keys, s.d_qk])
    v = graph.input("v", [s.batch, s.kv_heads, s.keys, s.d_v])
    graph.output(graph.attention(q, k, v, mask=mask), names=["o"])
    return graph.module()


@dataclass(frozen=True)
class Choice:
    """How to map a kernel: tiles larger than the problem are cut to it, the rest is as in `Mapping`."""

    algorithm: Algorithm = "online"
    divide: Divide = "late"
    tiles: Tiles = field(default_factory=lambda: Tiles(1, 1, 2, 5, 6, 1 << 30, 1 << 30))
    stages: tuple[int, int, int, int, int] = (0, 0, 0, 1, 2)
    slots: tuple[int, int, int, int, int] = (3, 3, 3, 3, 3)
    levels: tuple[Level, Level] = ("key", "key")

    def __str__(self) -> str:
        tiles = "x".join(str(n) for n in vars(self.tiles).values() if n < 1 << 30)
        stages, slots = ("".join(map(str, numbers)) for numbers in (self.stages, self.slots))
        algorithm = f"{self.algorithm} {self.divide}" if self.algorithm == "rows" else self.algorithm
        return f"{algorithm} tiles {tiles} stages {stages} slots {slots} {'/'.join(self.levels)}"

    def mapping(self, problem: AttentionProblem) -> Mapping:
        """The mapping of one kernel; what this kernel does not have or cannot do is left out."""
        p = problem
        sizes = (p.batch, p.kv_heads, p.group, p.queries, p.keys, p.d_qk, p.d_v)
        tiles = Tiles(*(min(tile, size) for tile, size in zip(vars(self.tiles).values(), sizes, strict=True)))
        algorithm, divide = self.algorithm, self.divide
        if not p.has("softmax"):
            algorithm, divide = "none", "late"
        elif not p.has("attend"):
            algorithm, divide = "rows" if algorithm == "online" else algorithm, "early"
        keep = Keep(*self.slots, *self.levels)
        use = ArrayUse("output")
        return Mapping(tiles, keep, use, use, Softmax(algorithm, divide), Stages(*self.stages))


@cache
def strict_machine() -> Accelerator:
    """A machine that forgives least: loads and stores pass each other, transfers and products arrive late."""
    cloud = load("cloud")
    return replace(cloud, offchip=replace(cloud.offchip, channels="separate", latency_cycles=100))


def fused(module: ModuleOp, groups: tuple[str, ...] = (WHOLE,)) -> list[FusedOp]:
    """Fuses the attention of a module in place; gives its kernels."""
    FuseAttentionPass(groups).apply(Context(), module)
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def lower(
    module: ModuleOp, choice: Choice, groups: tuple[str, ...] = (WHOLE,), machine: Accelerator | None = None
) -> ModuleOp:
    """The schedule of a graph; verified, and read back from its own text."""
    copy = module.clone()
    for kernel in fused(copy, groups):
        kernel.mapping = MappingAttr(choice.mapping(match_kernel(kernel).problem))
    attach_accelerator(copy, machine or strict_machine())
    LowerToSpatialPass().apply(Context(), copy)
    AllocateBuffersPass().apply(Context(), copy)
    copy.verify()
    return copy


def kernels_of(module: Operation) -> list[KernelOp]:
    """The kernels of a schedule."""
    return [op for op in module.walk() if isinstance(op, KernelOp)]


def schedule_of(text: str) -> ModuleOp:
    """The module of a schedule written by hand, not verified: tests of what the verifier would refuse."""
    return Parser(context(), text).parse_module()


def simulated_bytes(module: ModuleOp) -> dict[str, tuple[int, int]]:
    """Bytes of all kernels as the simulator counts them."""
    total: dict[str, tuple[int, int]] = {}
    for kernel in kernels_of(module):
        for name, (read, written) in simulate_kernel(kernel, accelerator_of(module)).tensor_bytes.items():
            before = total.get(name, (0, 0))
            total[name] = (before[0] + read, before[1] + written)
    return dict(sorted(total.items()))


def run_checked(module: ModuleOp, inputs: Named[str, NDArray[Any]], *, exact: bool = False) -> ScheduleRun:
    """Runs a schedule; the bytes it moves are those that the simulator charges."""
    run = run_schedule(module, inputs, exact=exact)
    assert run.offchip_bytes == simulated_bytes(module)
    return run
