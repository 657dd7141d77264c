"""Products without a softmax over whole rows of scores: tiles of d_qk, interleaved query tiles, numbers and costs.

Hostile sizes on purpose: tiles that divide nothing, ragged parts in ragged tiles, several heads.
"""

from __future__ import annotations

import random
from dataclasses import fields, replace
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import MappingAttr
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.dialects.spatial import LoadOp, StoreOp, TimedOp, timed_ops
from flatc.interpreter import random_inputs, run_module
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.schedule_problem import kernel_attention
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import Shape, fused, lower_mapped, only, run_checked

RTL = Mapping(
    Tiles(1, 1, 1, query=16, key=32, d_qk=16, d_v=64),
    Keep(4, 4, 4, 1, 2, "query", "key"),
    ArrayUse("input"),
    ArrayUse("input"),
    Softmax("rows"),
    Stages(0, 0, 0, 0, 0),
    interleave=4,
)


def products(sizes: Shape, *, attend: bool, dtype: str = "f64") -> ModuleOp:
    """The graph of logit, or of logit and attend."""
    s, graph = sizes, Graph("products", dtype=dtype, softmax=dtype)
    q = graph.input("q", [s.batch, s.heads, s.queries, s.d_qk])
    k = graph.input("k", [s.batch, s.kv_heads, s.keys, s.d_qk])
    result = graph.logit(q, k)
    if attend:
        result = graph.attend(result, graph.input("v", [s.batch, s.kv_heads, s.keys, s.d_v]))
    graph.output(result, names=["o"])
    return graph.module()


def machine(rng: random.Random) -> Accelerator:
    """A machine that charges what the RTL shows: transfers, starts of the array, copies between products."""
    edge = load("edge")
    array = replace(edge.array, overhead_cycles=rng.choice([0, 9]), chaining=rng.choice(["direct", "copied"]))
    offchip = replace(edge.offchip, overhead_cycles=rng.choice([0, 5]), channels=rng.choice(["shared", "separate"]))
    return replace(edge, array=array, offchip=offchip, buffer=replace(edge.buffer, capacity_bytes=1 << 30))


@cache
def random_schedule(seed: int) -> tuple[ModuleOp, ModuleOp, Mapping]:
    """A graph, its schedule, the mapping."""
    rng = random.Random(seed)
    kv_heads, group = rng.choice([1, 2]), rng.choice([1, 3])
    sizes = Shape(rng.choice([1, 2]), kv_heads * group, kv_heads, rng.choice([1, 7, 40]), rng.choice([3, 33]), 20, 6)
    query, attend = rng.randint(1, sizes.queries), rng.random() < 0.6
    tiles = Tiles(
        rng.randint(1, sizes.batch),
        rng.randint(1, kv_heads),
        rng.randint(1, group),
        query,
        rng.randint(1, sizes.keys),
        rng.randint(1, sizes.d_qk),
        sizes.d_v if attend else 1,
    )
    q, k, v, scores, output = (rng.randint(1, 4) for _ in range(5))
    uses = [ArrayUse(rng.choice(["output", "weight", "input"])) for _ in range(2)]
    keep, interleave = (
        Keep(q, k, v, scores, output, rng.choice(["key", "query"])),
        rng.randint(1, -(-sizes.queries // query)),
    )
    mapping = Mapping(tiles, keep, uses[0], uses[1], Softmax("rows"), Stages(0, 0, 0, 0, 0), interleave)
    graph = products(sizes, attend=attend)
    module = graph.clone()
    (kernel,) = fused(module)
    kernel.mapping = MappingAttr(mapping)
    lower_mapped(module, machine(rng))
    return graph, module, mapping


def kernel_of(module: ModuleOp) -> Any:
    (schedule,) = module.ops
    return schedule.kernels()[0]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


@pytest.mark.parametrize("seed", range(40))
def test_schedules_compute_the_products(seed: int):
    graph, module, _ = random_schedule(seed)
    inputs = random_inputs(graph, seed)
    (made,), (expected,) = run_checked(module, inputs).outputs, run_module(graph, list(inputs.values()))
    np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(40))
def test_the_closed_form_counts_what_the_simulator_executes(seed: int):
    _, module, mapping = random_schedule(seed)
    kernel, accelerator = kernel_of(module), accelerator_of(module)
    attention = kernel_attention(kernel)
    assert attention is not None
    form, simulation = evaluate_mapping(attention.problem, accelerator, mapping), simulate_kernel(kernel, accelerator)

    for role, size in form.tensor_bytes.items():
        assert only(size) == sum(simulation.tensor_bytes.get(attention.tensors[role], (0, 0))), role
    assert only(form.peak_buffer_bytes) == simulation.peak_buffer_bytes
    for resource, cycles in simulation.busy_cycles.items():
        assert only(form.busy_cycles[resource]) == pytest.approx(float(cycles), rel=1e-12), resource
    for field in fields(Work):
        assert only(getattr(form.work, field.name)) == getattr(simulation.work, field.name), field.name
    assert Fraction(only(form.latency_cycles)) <= simulation.latency_cycles * (1 + Fraction(1, 10**12))


def test_the_nest_is_query_depth_key_part():
    """Every part loads its own tiles; it is stored in the last trip over d_qk."""
    module = products(Shape(1, 1, 1, 80, 40, 20, 6), attend=False)
    (kernel,) = fused(module)
    tiles = Tiles(1, 1, 1, query=16, key=32, d_qk=16, d_v=1)
    kernel.mapping = MappingAttr(replace(RTL, tiles=tiles, keep=replace(RTL.keep, k_level="key")))
    schedule = lower_mapped(module, load("rtl16"))
    loops = [line.strip().split(" carry")[0] for line in str(schedule).splitlines() if "spatial.for" in line]
    assert [loop.removeprefix("%1 = ").split(" = ")[-2].split("%")[-1] for loop in loops] == [
        "query",
        "d_qk",
        "key",
        "part",
    ]
    ops: list[TimedOp] = list(timed_ops(schedule))
    assert [type(op) for op in ops if isinstance(op, LoadOp | StoreOp)] == [LoadOp, LoadOp, StoreOp]
    assert ops[-1].when is not None


def test_overheads_by_hand():
    """One product of 16 x 16 x 16 on the RTL's machine: two loads, the array, a store."""
    module = products(Shape(1, 1, 1, 16, 16, 16, 1), attend=False, dtype="bf16")
    (kernel,) = fused(module)
    tiles = Tiles(1, 1, 1, query=16, key=16, d_qk=16, d_v=1)
    kernel.mapping = MappingAttr(replace(RTL, tiles=tiles, interleave=1))
    simulation = simulate_kernel(lower_mapped(module, load("rtl16")).kernels()[0], load("rtl16"))
    assert simulation.latency_cycles == 2 * (64 + 6) + (16 + 56) + (64 + 6)


PROBLEM = AttentionProblem(("logit", "attend"), 1, 1, 1, 100, 200, 20, 8, 2, 2, 2, 2, 2, 2, 2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"interleave": 8}, "8 tiles of 16 query rows are interleaved, and there are only 100 rows"),
        ({"keep": replace(RTL.keep, k_level="kv_head")}, "keep K at key or at query, and V at key"),
        ({"softmax": Softmax("none")}, "query tiles are interleaved in rows without a softmax, and in an online"),
        ({"softmax": Softmax("none"), "interleave": 1}, "only rows without a softmax keep K at query"),
    ],
)
def test_what_cannot_be_scheduled(changes: dict[str, Any], expected: str):
    from flatc.passes.mapping.legal_mapping import check_mapping

    tiles = Tiles(1, 1, 1, query=16, key=32, d_qk=20, d_v=8)
    with pytest.raises(FlatcError) as caught:
        check_mapping(PROBLEM, replace(RTL, tiles=tiles, **changes), load("rtl16"), "kernel")
    assert expected in str(caught.value)


def test_depth_is_tiled_in_rows_only():
    from flatc.passes.mapping.legal_mapping import check_mapping

    mapping = Mapping(
        Tiles(1, 1, 1, 16, 32, 16, 8), Keep(2, 2, 2, 1, 1), RTL.logit, RTL.attend, Softmax("none"), RTL.stages
    )
    with pytest.raises(FlatcError) as caught:
        check_mapping(PROBLEM, mapping, load("rtl16"), "kernel")
    assert "without a softmax and with softmax(rows) only" in str(caught.value)
