"""Everything that attention does to scores, alone and together, through the whole compiler and back.

One property holds all of it: a random attention, with random tiles, lowered to a schedule, gives what attention by its
definition gives; and interpreter, simulator and closed form count the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import (
    BiasExpr,
    Graph,
    MaskExpr,
    Tensor,
    alibi,
    as_bias,
    as_mask,
    causal,
    chunk,
    first,
    prefix,
    same,
    t5_relative,
    valid,
    window,
)
from flatc.dialects.mapping import Algorithm, Divide, Tiles
from flatc.dialects.spatial import ScheduleOp
from flatc.execution import run
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs
from flatc.passes.cost.attention_trips import trip_cycles
from flatc.passes.cost.bounds import compulsory_bytes
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.kernels.schedule_problem import Attention, kernel_attention
from flatc.passes.kinds.registry import parts
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import UNFUSED, WHOLE, Choice, Shape, fused, kernels_of, lower, only, run_checked, strict_machine

# --- Variants -------------------------------------------------------------------------------------------------------

MASKS: dict[str, Callable[[], MaskExpr]] = {
    "causal": causal,
    "causal that hides the first rows": lambda: causal(offset=-4),
    "window": lambda: window(3, 2),
    "prefix": lambda: causal() | prefix(5),
    "first and window": lambda: causal() & (window(4) | first(2)),
    "chunk": lambda: causal() & chunk(4),
}
RUNTIME_MASKS = ("padding", "documents", "[S,T]", "[H,S,T]", "[B,1,1,T]", "[B,1,S,T]")
BIASES = ("[S,T]", "[H,S,T]", "[B,1,S,T]", "[B,H,S,T]", "[B,1,1,T]", "[H,1,T]", "[S,1]", "[H,1,1]", "alibi", "t5")


@dataclass(frozen=True)
class Variant:
    """What an attention does to its scores."""

    mask: str | None = None
    runtime: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    softcap: float | None = None
    sink: bool = False
    scale: float | None = None


def tensor_shape(text: str, shape: Shape) -> list[int]:
    sizes = {"B": shape.batch, "H": shape.heads, "S": shape.queries, "T": shape.keys}
    return [sizes.get(name, 1) for name in text.strip("[]").split(",")]


def bias_of(graph: Graph, name: str, shape: Shape, place: int) -> BiasExpr:
    if name == "alibi":
        return alibi()
    if name == "t5":
        table = graph.input("table", [8, shape.heads])
        return t5_relative(table, buckets=8, max_distance=9, bidirectional=place % 2 == 0)
    return as_bias(graph.input(f"bias{place}", tensor_shape(name, shape)))


def mask_of(graph: Graph, name: str, shape: Shape, place: int) -> MaskExpr:
    if name == "padding":
        return valid(graph.input("pad", [shape.batch, shape.keys], "bool"))
    if name == "documents":
        return same(graph.input("doc", [shape.batch, shape.keys], "i32"))
    return as_mask(graph.input(f"keep{place}", tensor_shape(name, shape), "bool"))


def attention_of(shape: Shape, variant: Variant, dtype: str = "f64", softmax: str = "f64") -> ModuleOp:
    graph, s = Graph("variant", dtype=dtype, softmax=softmax), shape
    q = graph.input("q", [s.batch, s.heads, s.queries, s.d_qk])
    k = graph.input("k", [s.batch, s.kv_heads, s.keys, s.d_qk])
    v = graph.input("v", [s.batch, s.kv_heads, s.keys, s.d_v])
    masks = [MASKS[variant.mask]()] if variant.mask else []
    masks += [mask_of(graph, name, shape, place) for place, name in enumerate(variant.runtime)]
    biases = [bias_of(graph, name, shape, place) for place, name in enumerate(variant.biases)]
    sink: Tensor | None = graph.input("sink", [s.heads]) if variant.sink else None
    mask = None
    for part in masks:
        mask = part if mask is None else mask & part
    bias = None
    for term in biases:
        bias = term if bias is None else bias + term
    a = graph.attention(q, k, v, mask=mask, bias=bias, softcap=variant.softcap, sink=sink, scale=variant.scale)
    graph.output(a, names=["o"])
    return graph.module()


def random_variant(rng: random.Random, shape: Shape) -> Variant:
    runtime = [name for name in rng.sample(RUNTIME_MASKS, 3) if rng.random() < 0.4]
    if shape.queries > shape.keys:
        runtime = [name for name in runtime if name != "documents"]
    return Variant(
        rng.choice([None, *MASKS]),
        tuple(runtime),
        tuple(name for name in rng.sample(BIASES, 3) if rng.random() < 0.5),
        rng.choice([None, 2.0]),
        rng.random() < 0.4,
        rng.choice([None, 1.0]),
    )


def random_choice(rng: random.Random) -> Choice:
    algorithms: list[tuple[Algorithm, Divide]] = [
        ("online", "late"),
        ("rows", "late"),
        ("rows", "early"),
        ("streamed", "early"),
    ]
    algorithm, divide = rng.choice(algorithms)
    full = 1 << 30
    tiles = Tiles(
        rng.randint(1, 2), rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 5), rng.randint(1, 6), full, full
    )
    stages = rng.choice([(0, 0, 0, 0, 0), (0, 0, 0, 1, 2), (0, 0, 1, 1, 2), (0, 1, 2, 3, 4)])
    levels = rng.choice([("key", "key"), ("kv_head", "key"), ("kv_head", "kv_head")])
    every = rng.choice([1, 1, 2, 3])
    return Choice(algorithm, divide, tiles, stages, (5, 5, 5, 5, 5), levels, every)  # pyright: ignore[reportArgumentType]


def random_shape(rng: random.Random) -> Shape:
    kv_heads = rng.choice([1, 1, 2])
    return Shape(
        rng.choice([1, 2]),
        kv_heads * rng.choice([1, 3]),
        kv_heads,
        rng.choice([1, 5, 9]),
        rng.choice([3, 8, 11]),
        4,
        rng.choice([3, 4]),
    )


# --- What must agree ------------------------------------------------------------------------------------------------


def check_numbers(module: ModuleOp, schedule: ModuleOp) -> None:
    """The schedule gives what the graph gives, and what attention by its definition gives."""
    inputs = random_inputs(module, 0)
    assert run(schedule, module, inputs).passed
    assert run(schedule, None, inputs).passed
    run_checked(schedule, inputs)


MOST_RATIO = 1.01
"""So much longer than the closed form, at most, the simulator takes."""


def check_counts(schedule: ModuleOp) -> None:
    """Closed form and simulator agree on bytes, footprint, busy time and counts, and nearly on latency."""
    machine = strict_machine()
    for kernel in kernels_of(schedule):
        attention = kernel_attention(kernel)
        assert attention is not None
        assert kernel.mapping is not None
        form = evaluate_mapping(attention.problem, machine, kernel.mapping.data)  # pyright: ignore[reportArgumentType]
        simulation = simulate_kernel(kernel, machine)
        walked = trip_cycles(attention.problem, machine, kernel.mapping.data)  # pyright: ignore[reportArgumentType]
        if walked is not None:
            assert walked * (1 - 1e-12) <= simulation.latency_cycles <= walked * MOST_RATIO
        moved: dict[str, int] = {}
        for role, size in form.tensor_bytes.items():
            name = attention.tensors[role]
            moved[name] = moved.get(name, 0) + only(size)
        simulated = {name: read + written for name, (read, written) in simulation.tensor_bytes.items()}
        assert {name: size for name, size in moved.items() if size} == simulated
        assert only(form.peak_buffer_bytes) == simulation.peak_buffer_bytes
        for field in fields(Work):
            counted, executed = only(getattr(form.work, field.name)), getattr(simulation.work, field.name)
            assert counted == pytest.approx(executed, rel=1e-12), field.name
        assert only(form.latency_cycles) <= simulation.latency_cycles * (1 + 1e-12)
        for role, least in compulsory_bytes(attention.problem).items():
            assert least <= only(form.tensor_bytes[role]), role


def problems(module: ModuleOp, groups: tuple[str, ...] = (WHOLE,)) -> list[AttentionProblem]:
    return [match_kernel(kernel).problem for kernel in fused(module.clone(), groups)]


def read_back(schedule: ModuleOp) -> list[Attention]:
    """The attentions of a schedule, from its text."""
    (op,) = (o for o in parse_mlir(str(schedule), "schedule.mlir").ops if isinstance(o, ScheduleOp))
    found = parts(op) or []
    return [part for part in found if isinstance(part, Attention)]


def check_any(seed: int) -> None:
    rng = random.Random(seed)
    groups = rng.choice([(WHOLE,), (WHOLE,), UNFUSED, ("logit", "mask+softmax+attend")])
    shape = random_shape(rng)
    variant = random_variant(rng, shape)
    module = attention_of(shape, variant)
    schedule = lower(module, random_choice(rng), groups)
    check_numbers(module, schedule)
    check_counts(schedule)
    assert [part.problem for part in read_back(schedule)] == problems(module)


@pytest.mark.parametrize("seed", range(8))
def test_any_combination_with_any_mapping(seed: int):
    check_any(seed)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.integers(8, 1 << 32))
def test_many_combinations_with_many_mappings(seed: int):
    check_any(seed)


SHAPE = Shape(batch=2, heads=6, kv_heads=2, queries=7, keys=11)
ALONE = (
    *(Variant(biases=(name,)) for name in BIASES),
    *(Variant(runtime=(name,)) for name in RUNTIME_MASKS),
    Variant(softcap=2.0),
    Variant(sink=True),
    Variant(scale=0.3),
)


@pytest.mark.parametrize("variant", ALONE, ids=lambda v: " ".join(map(str, (*v.biases, *v.runtime))) or "other")
def test_each_alone(variant: Variant):
    module = attention_of(Shape(batch=2, heads=4, kv_heads=2, queries=5, keys=7), variant)
    for choice in (Choice("online"), Choice("rows", "early"), Choice("streamed", "early", levels=("kv_head", "key"))):
        schedule = lower(module, choice)
        check_numbers(module, schedule)
        check_counts(schedule)


@pytest.mark.parametrize("algorithm", ["online", "rows", "streamed"])
@pytest.mark.parametrize("more", [Variant(), Variant(sink=True), Variant(biases=("[S,T]", "alibi"), sink=True)])
def test_rows_that_see_nothing_give_zeros(algorithm: Algorithm, more: Variant):
    """Rows hidden by the symbolic mask, whose loops are empty, and rows hidden by data, whose are not."""
    variant = Variant("causal that hides the first rows", ("[S,T]",), more.biases, sink=more.sink)
    module = attention_of(Shape(queries=7, keys=7), variant)
    inputs = random_inputs(module, 0)
    inputs["keep0"] = np.ones((7, 7), dtype=np.bool_)
    inputs["keep0"][6] = False
    run = run_checked(lower(module, Choice(algorithm, "early" if algorithm == "streamed" else "late")), inputs)
    (output,) = run.outputs
    assert not output[:, :, :4].any()
    assert not output[:, :, 6].any()
    assert output[:, :, 4:6].all()


# --- What operands cost ---------------------------------------------------------------------------------------------


def moved(variant: Variant, choice: Choice, name: str) -> int:
    module = attention_of(SHAPE, variant, "bf16", "f32")
    return run_checked(lower(module, choice), random_inputs(module, 0)).offchip_bytes[name][0]


TILED = Choice("online", tiles=Tiles(1, 1, 3, 4, 4, 1 << 30, 1 << 30))
HEAD_TILES = 2 * 2
"""Of the batch and of the kv heads; a group is a tile."""


@pytest.mark.parametrize(
    ("bias", "elements"),
    [
        ("[S,T]", HEAD_TILES * 7 * 11),
        ("[H,S,T]", 2 * 6 * 7 * 11),
        ("[B,1,S,T]", 2 * 2 * 7 * 11),
        ("[B,H,S,T]", 2 * 6 * 7 * 11),
        ("[B,1,1,T]", 2 * HEAD_TILES * 11),
        ("[S,1]", HEAD_TILES * 7),
        ("[H,1,1]", 2 * 6),
    ],
)
def test_a_bias_is_loaded_as_it_is_stored(bias: str, elements: int):
    """For every tile of scores its own part; along what it lacks it is loaded again for each tile."""
    assert moved(Variant(biases=(bias,)), TILED, "bias0") == 2 * elements


def test_what_has_keys_only_stays_with_k():
    streamed = moved(Variant(runtime=("padding",)), TILED, "pad")
    kept = moved(Variant(runtime=("padding",)), Choice("online", tiles=TILED.tiles, levels=("kv_head", "key")), "pad")
    assert (streamed, kept) == (2 * HEAD_TILES * 11, HEAD_TILES * 11)


def test_tables_and_sinks_are_loaded_once_for_each_tile_of_heads():
    assert moved(Variant(biases=("t5",)), TILED, "table") == 2 * (2 * 8 * 6)
    assert moved(Variant(sink=True), TILED, "sink") == 2 * (2 * 6)


def test_dead_tiles_load_no_bias_and_cost_no_vector_work():
    """Causal, 8 x 8 tiles of 4: 36 of 64 are visited, with softcap and bias as without."""
    shape = Shape(queries=32, keys=32)
    plain, changed = (
        simulate_kernel(kernels_of(lower(attention_of(shape, v), TILED))[0], strict_machine())
        for v in (Variant("causal"), Variant("causal", biases=("[S,T]",), softcap=2.0))
    )
    assert changed.tensor_bytes["bias0"] == (36 * 16 * 8, 0)
    steps = 36 * 16 * (1 + 4)
    assert changed.work.vector_elements - plain.work.vector_elements == steps


def test_masks_known_at_run_time_skip_nothing():
    macs = [
        simulate_kernel(kernels_of(lower(attention_of(SHAPE, v), TILED))[0], strict_machine()).work.macs
        for v in (Variant(), Variant(runtime=("padding", "documents")))
    ]
    assert macs[0] == macs[1]
