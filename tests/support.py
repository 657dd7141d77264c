"""What several tests share: random attentions with random mappings, lowered to schedules.

case = random_case(random.Random(0))
case.problem, case.mapping, case.kernel          # hostile sizes, tiles that divide nothing
schedule(graph, mapping, "edge")                 # a graph lowered with a given mapping
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.builder import Graph, MaskExpr, causal, chunk, first, prefix, window
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import ArrayUse, Divide, Keep, Mapping, Softmax, Stages, Stationarity, Tiles
from flatc.dialects.spatial import KernelOp, ScheduleOp
from flatc.passes.allocate_buffers import AllocateBuffersPass
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.lower_to_spatial import LowerToSpatialPass

MASKS: tuple[Callable[[], MaskExpr] | None, ...] = (
    None,
    causal,
    lambda: causal(offset=-5),
    lambda: causal() & window(20),
    lambda: window(10, 7),
    lambda: causal() & (window(9) | first(4)),
    lambda: causal() | prefix(13),
    lambda: causal() & chunk(16),
)
"""Masks that leave triangles, bands, two intervals, and rows that see nothing."""

UNFUSED = ("logit", "mask+softmax", "attend")


@dataclass(frozen=True)
class Sizes:
    """An attention by its numbers; `heads` counts query heads."""

    batch: int = 1
    heads: int = 1
    kv_heads: int = 1
    queries: int = 16
    keys: int = 16
    d_qk: int = 8
    d_v: int = 8


def attention_graph(
    sizes: Sizes, mask: MaskExpr | None = None, dtype: str = "bf16", softmax: str = "f32", name: str = "test"
) -> ModuleOp:
    """The module of `output attention(q, k, v)`."""
    graph = Graph(name, dtype=dtype, softmax=softmax)
    q = graph.input("q", [sizes.batch, sizes.heads, sizes.queries, sizes.d_qk])
    k = graph.input("k", [sizes.batch, sizes.kv_heads, sizes.keys, sizes.d_qk])
    v = graph.input("v", [sizes.batch, sizes.kv_heads, sizes.keys, sizes.d_v])
    graph.output(graph.attention(q, k, v, mask=mask), names=["o"])
    return graph.module()


def fused(module: ModuleOp, groups: Sequence[str] | None = None) -> list[FusedOp]:
    """Fuses in place, and gives the kernels."""
    FuseAttentionPass(*([tuple(groups)] if groups else [])).apply(Context(), module)
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def lower(module: ModuleOp, accelerator: Accelerator) -> ScheduleOp:
    """Lowers fused kernels that have mappings, in place; everything is verified."""
    attach_accelerator(module, accelerator)
    LowerToSpatialPass().apply(Context(), module)
    AllocateBuffersPass().apply(Context(), module)
    module.verify()
    (schedule,) = (op for op in module.ops if isinstance(op, ScheduleOp))
    return schedule


def schedule(module: ModuleOp, mapping: Mapping, accelerator: str | Accelerator = "edge") -> ScheduleOp:
    """A graph of one attention as a schedule with a given mapping; the module is changed in place."""
    (kernel,) = fused(module)
    kernel.mapping = MappingAttr(mapping)
    return lower(module, load(accelerator) if isinstance(accelerator, str) else accelerator)


@dataclass(frozen=True)
class Case:
    """A random attention, its mapping, and the schedule of both."""

    problem: AttentionProblem
    mapping: Mapping
    accelerator: Accelerator
    schedule: ScheduleOp

    @property
    def kernel(self) -> KernelOp:
        """The only kernel."""
        (kernel,) = self.schedule.kernels()
        return kernel


def random_case(rng: random.Random, accelerators: Sequence[str] = ("edge", "cloud")) -> Case:
    """One attention and one legal mapping, tried until the verifier of schedules accepts it."""
    while True:
        sizes, accelerator = random_sizes(rng), load(rng.choice(accelerators))
        mask = rng.choice(MASKS)
        dtypes = rng.choice([("bf16", "f32"), ("f64", "f64"), ("bf16", "bf16")])
        module = attention_graph(sizes, mask() if mask else None, *dtypes)
        (kernel,) = fused(module)
        problem, mapping = match_kernel(kernel).problem, random_mapping(rng, sizes)
        kernel.mapping = MappingAttr(mapping)
        try:
            return Case(problem, mapping, accelerator, lower(module, accelerator))
        except (VerifyException, FlatcError) as error:
            if " need" not in str(error):
                raise


def random_sizes(rng: random.Random) -> Sizes:
    """Sizes that no tile divides, primes, single rows, more queries than keys, d_qk other than d_v."""
    kv_heads = rng.choice([1, 2, 3])
    return Sizes(
        batch=rng.choice([1, 2, 3]),
        heads=kv_heads * rng.choice([1, 2, 4]),
        kv_heads=kv_heads,
        queries=rng.choice([1, 7, 40, 70, 129]),
        keys=rng.choice([3, 33, 64, 130]),
        d_qk=rng.choice([16, 80]),
        d_v=rng.choice([16, 24]),
    )


def random_mapping(rng: random.Random, sizes: Sizes) -> Mapping:
    """A mapping that may need more slots than it has."""
    algorithm = rng.choice(["online", "rows", "streamed"])
    divide = {"online": "late", "streamed": "early"}.get(algorithm) or rng.choice(["early", "late"])
    stages = [Stages(0, 0, 0, 0, 0), Stages(0, 0, 0, 1, 2), Stages(0, 0, 1, 2, 3), Stages(0, 1, 2, 3, 4)]
    group = sizes.heads // sizes.kv_heads
    tiled = (sizes.batch, sizes.kv_heads, group, sizes.queries, sizes.keys)
    batch, kv_head, group, query, key = (rng.randint(1, size) for size in tiled)
    return Mapping(
        Tiles(batch, kv_head, group, query, key, sizes.d_qk, sizes.d_v),
        Keep(
            rng.randint(2, 3),
            rng.randint(2, 4),
            rng.randint(2, 4),
            rng.randint(1, 4),
            rng.randint(1, 4),
            rng.choice(["key", "kv_head"]),
            rng.choice(["key", "kv_head"]),
        ),
        ArrayUse(_stationarity(rng)),
        ArrayUse(_stationarity(rng)),
        Softmax(algorithm, cast(Divide, divide)),  # pyright: ignore[reportArgumentType]
        rng.choice(stages),
    )


def _stationarity(rng: random.Random) -> Stationarity:
    return rng.choice(["output", "weight", "input"])
