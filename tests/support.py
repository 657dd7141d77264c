"""What tests share: attentions of any shape, mapped by choice or at random, and their way down to a schedule.

module = attention(Shape(queries=7, keys=130, d_qk=80), causal())
lowered = lower(module, Choice("online", tiles=Tiles(1, 1, 1, 4, 48, 80, 80)))   # a module; `module` stays as it is
run_checked(lowered, random_inputs(module, 0))       # and the bytes it moved are those the simulator charges

schedule(module, mapping, "edge")                    # a schedule, made in place with one given mapping
case = random_case(random.Random(0))
case.problem, case.mapping, case.kernel              # hostile sizes, tiles that divide nothing
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Mapping as Named
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations, product
from typing import Any, cast, get_args

from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.builder import Graph, MaskExpr, causal, chunk, first, prefix, window
from flatc.dialects.accelerator import Accelerator, accelerator_of, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import (
    Algorithm,
    ArrayUse,
    Divide,
    Keep,
    Level,
    Mapping,
    RowSum,
    Softmax,
    Stages,
    Stationarity,
    Tiles,
    Unit,
)
from flatc.dialects.spatial import KernelOp, ScheduleOp
from flatc.frontend.mlir import context
from flatc.interpreter import ScheduleRun, run_schedule
from flatc.passes.allocate_buffers import AllocateBuffersPass
from flatc.passes.fuse_attention import WHOLE, FuseAttentionPass
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.lower_to_spatial import LowerToSpatialPass
from flatc.passes.simulation.simulator import simulate_kernel

UNFUSED = ("logit", "mask+softmax", "attend")

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

# --- Attentions -------------------------------------------------------------------------------------------------------


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


# --- Mappings by choice -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """How to map a kernel: tiles larger than the problem are cut to it, the rest is as in `Mapping`."""

    algorithm: Algorithm = "online"
    divide: Divide = "late"
    tiles: Tiles = field(default_factory=lambda: Tiles(1, 1, 2, 5, 6, 1 << 30, 1 << 30))
    stages: tuple[int, int, int, int, int] = (0, 0, 0, 1, 2)
    slots: tuple[int, int, int, int, int] = (3, 3, 3, 3, 3)
    levels: tuple[Level, Level] = ("key", "key")
    rescaled_every: int = 1

    def __str__(self) -> str:
        tiles = "x".join(str(n) for n in vars(self.tiles).values() if n < 1 << 30)
        stages, slots = ("".join(map(str, numbers)) for numbers in (self.stages, self.slots))
        algorithm = f"{self.algorithm} {self.divide}" if self.algorithm == "rows" else self.algorithm
        every = f" every {self.rescaled_every}" * (self.rescaled_every > 1)
        return f"{algorithm}{every} tiles {tiles} stages {stages} slots {slots} {'/'.join(self.levels)}"

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
        every = min(self.rescaled_every, -(-p.keys // tiles.key)) if algorithm == "online" else 1
        softmax = Softmax(algorithm, divide, rescaled_every=every)
        return Mapping(tiles, keep, use, use, softmax, Stages(*self.stages))


@cache
def strict_machine() -> Accelerator:
    """A machine that forgives least: loads and stores pass each other, transfers and products arrive late."""
    cloud = load("cloud")
    return replace(cloud, offchip=replace(cloud.offchip, channels="separate", latency_cycles=100))


# --- Schedules --------------------------------------------------------------------------------------------------------


def fused(module: ModuleOp, groups: Sequence[str] = (WHOLE,)) -> list[FusedOp]:
    """Fuses the attention of a module in place; gives its kernels."""
    FuseAttentionPass(tuple(groups)).apply(Context(), module)
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def lower(
    module: ModuleOp, choice: Choice, groups: Sequence[str] = (WHOLE,), machine: Accelerator | None = None
) -> ModuleOp:
    """A copy of a graph, as a verified schedule."""
    copy = module.clone()
    for kernel in fused(copy, groups):
        kernel.mapping = MappingAttr(choice.mapping(match_kernel(kernel).problem))
    lower_mapped(copy, machine or strict_machine())
    return copy


def lower_mapped(module: ModuleOp, accelerator: Accelerator) -> ScheduleOp:
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
    return lower_mapped(module, load(accelerator) if isinstance(accelerator, str) else accelerator)


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


def every_pair(*kinds: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Rows of one thing of each kind, far fewer than `product` gives, in which any two things of two kinds meet.

    What goes wrong takes two things most of the time (Kuhn, Wallace, Gallo: Software fault interactions, 2004).
    """
    things = [list(kind) for kind in kinds]
    rows = [frozenset(combinations(enumerate(row), 2)) for row in product(*(range(len(kind)) for kind in things))]
    missing, found = set[Any]().union(*rows), list[tuple[Any, ...]]()
    while missing:
        best = max(rows, key=lambda row: len(row & missing))
        missing -= best
        places = dict(place for pair in best for place in pair)
        found.append(tuple(kind[places[i]] for i, kind in enumerate(things)))
    return found


def only(column: Any) -> Any:
    """The single entry of a column, or the number itself."""
    return column.item() if hasattr(column, "item") else column


# --- At random --------------------------------------------------------------------------------------------------------


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


@cache
def any_case(seed: int) -> Case:
    """A random case, which many tests look at and none changes; every other one leaves parts of the softmax to PEs or
    to the attend product."""
    rng = random.Random(seed)
    return random_placed_case(rng) if seed % 2 else random_case(rng)


def random_case(rng: random.Random, accelerators: Sequence[str] = ("edge", "cloud")) -> Case:
    """One attention and one legal mapping, tried until the verifier of schedules accepts it."""
    return _random_case(rng, lambda: load(rng.choice(accelerators)), lambda mapping, problem: mapping)


def random_placed_case(rng: random.Random) -> Case:
    """A random case whose softmax and sums run on units at random, some on the PEs of a small array."""
    return _random_case(rng, lambda: pe_machine(rng.choice(["exposed", "overlapped", "none"])), _placer(rng))


def _random_case(
    rng: random.Random, machine: Callable[[], Accelerator], change: Callable[[Mapping, AttentionProblem], Mapping]
) -> Case:
    while True:
        shape, accelerator = random_shape(rng), machine()
        mask = rng.choice(MASKS)
        dtypes = rng.choice([("bf16", "f32"), ("f64", "f64"), ("bf16", "bf16")])
        module = attention(shape, mask() if mask else None, *dtypes)
        (kernel,) = fused(module)
        problem = match_kernel(kernel).problem
        mapping = change(random_mapping(rng, shape), problem)
        kernel.mapping = MappingAttr(mapping)
        try:
            return Case(problem, mapping, accelerator, lower_mapped(module, accelerator))
        except (VerifyException, FlatcError) as error:
            if " need" not in str(error):
                raise


def pe_machine(skew: str) -> Accelerator:
    """FuseMax's machine with 16 x 16 PEs and 16 lanes, so that small tiles fill them."""
    found = load("fusemax")
    array = replace(found.array, rows=16, columns=16, skew=skew, foldings=("rows", "columns", "contraction"))  # pyright: ignore[reportArgumentType]
    registers = replace(found.registers, bytes_per_pe=0)
    return replace(found, array=array, vector=replace(found.vector, lanes=16), registers=registers)


def _placer(rng: random.Random) -> Callable[[Mapping, AttentionProblem], Mapping]:
    def place(mapping: Mapping, problem: AttentionProblem) -> Mapping:
        units = get_args(Unit)
        softmax = Softmax(
            "online", "late", rng.choice(units), rng.choice(units), rng.choice(get_args(RowSum)), rng.random() < 0.3
        )
        attend = replace(mapping.attend, add=rng.choice(units))
        logit = mapping.logit
        if softmax.on_array:
            rows, columns = rng.choice([(1, 1), (1, 1), (2, 1), (1, 2)])
            tile = mapping.tiles
            fits = max(tile.group * tile.query, tile.key) <= 8 and tile.batch * tile.kv_head > 1
            rows, columns = (rows, columns) if fits else (1, 1)
            logit, attend = ArrayUse("output", rows, columns), ArrayUse("input", columns, rows, attend.add)
        parts = 1 if problem.mask else rng.randint(1, -(-problem.queries // mapping.tiles.query))
        if rng.random() < 0.2 and softmax.on_array is False and parts == 1:
            softmax = Softmax("rows", "late", total="attend")
            attend = replace(attend, add="array")
        tiles = -(-problem.keys // mapping.tiles.key)
        if tiles > 1 and parts == 1 and not softmax.on_array and softmax.algorithm == "online":
            softmax = replace(softmax, rescaled_every=rng.randint(1, tiles))
            attend = replace(attend, add="array")
        return replace(mapping, softmax=softmax, logit=logit, attend=attend, interleave=parts)

    return place


def random_shape(rng: random.Random) -> Shape:
    """Shape that no tile divides, primes, single rows, more queries than keys, d_qk other than d_v."""
    kv_heads = rng.choice([1, 2, 3])
    return Shape(
        batch=rng.choice([1, 2, 3]),
        heads=kv_heads * rng.choice([1, 2, 4]),
        kv_heads=kv_heads,
        queries=rng.choice([1, 7, 40, 70, 129]),
        keys=rng.choice([3, 33, 64, 130]),
        d_qk=rng.choice([16, 80]),
        d_v=rng.choice([16, 24]),
    )


def random_mapping(rng: random.Random, shape: Shape) -> Mapping:
    """A mapping that may need more slots than it has."""
    algorithm = rng.choice(["online", "rows", "streamed"])
    divide = {"online": "late", "streamed": "early"}.get(algorithm) or rng.choice(["early", "late"])
    stages = [Stages(0, 0, 0, 0, 0), Stages(0, 0, 0, 1, 2), Stages(0, 0, 1, 2, 3), Stages(0, 1, 2, 3, 4)]
    group = shape.heads // shape.kv_heads
    tiled = (shape.batch, shape.kv_heads, group, shape.queries, shape.keys)
    batch, kv_head, group, query, key = (rng.randint(1, size) for size in tiled)
    return Mapping(
        Tiles(batch, kv_head, group, query, key, shape.d_qk, shape.d_v),
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
