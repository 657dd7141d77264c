"""`keep-on-chip`, by example and by law: what stays, what it costs, and that every reading of a schedule agrees."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

import flatc
from flatc.accelerators import load
from flatc.compiler import Compilation, load_module, lower
from flatc.dialects.accelerator import Accelerator, accelerator_of, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs, run_module
from flatc.passes.cost.explanation import explain
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.fuse_layers import FuseLayersPass
from flatc.passes.keep_on_chip import KeepOnChipPass
from flatc.passes.kernels.kept_results import users_of
from flatc.passes.kinds.registry import kernel_part, kind_with
from flatc.passes.simulation.simulator import simulate_kernel
from flatc.passes.tile_attention import TileAttentionPass
from flatc.report import to_json, to_text
from flatc.report.build import build_report, schedule_of
from flatc.report.json import to_dict
from tests.support import only, run_checked

SEEDS = st.integers(0, 1 << 32)

FEED_FORWARD = """graph feed_forward
dim S = 13, E = 40, F = 90
dtype bf16, softmax f32
input x : [S, E]
weight up : [E, F]
weight down : [F, E]
y = gelu(x @ up) @ down
output y
"""

LAYER = """graph layer
dim B = 1, S = 5, E = 12, H = 2, KV = 1, D = 6, P = 3, F = 9
dtype f32, softmax f32
input x : [B, S, E]
cache ck, cv : [B, KV, P, D]
weight wq : [E, H * D]
weight wk, wv : [E, KV * D]
weight wo : [H * D, E]
weight up : [E, F]
weight down : [F, E]
n = rmsnorm(x)
q = rope(heads(n @ wq, H), start = P)
k = append(ck, rope(heads(n @ wk, KV), start = P))
v = append(cv, heads(n @ wv, KV))
h = x + merge(attention(q, k, v, mask = causal)) @ wo
y = h + silu(h @ up) @ down
output y
"""


def machine(capacity_bytes: int = 1 << 16, *, channels: str = "shared", latency_cycles: int = 0) -> Accelerator:
    """The edge with another buffer and another memory."""
    edge = load("edge")
    buffer = replace(edge.buffer, capacity_bytes=capacity_bytes)
    return replace(edge, buffer=buffer, offchip=replace(edge.offchip, channels=channels, latency_cycles=latency_cycles))


ROOMY = machine(1 << 40)


def tiled(text: str, accelerator: Accelerator, **sizes: int) -> ModuleOp:
    """The kernels of a graph with mappings."""
    return _tiled(text, accelerator, tuple(sizes.items())).clone()


@cache
def _tiled(text: str, accelerator: Accelerator, sizes: tuple[tuple[str, int], ...]) -> ModuleOp:
    module = load_module(text, dict(sizes))
    attach_accelerator(module, accelerator)
    for step in (FuseAttentionPass(), FuseLayersPass(), TileAttentionPass("online")):
        step.apply(Context(), module)
        module.verify()
    return module


def staying(module: ModuleOp) -> dict[str, list[int]]:
    """By kernel, the numbers of the results that stay."""
    return {op.kernel.data: [number.data for number in op.on_chip or ()] for op in kernels(module)}


def kernels(module: ModuleOp) -> list[FusedOp]:
    return [op for op in module.walk() if isinstance(op, FusedOp)]


# --- What stays ---------------------------------------------------------------------------------------------


def test_what_only_kernels_read_stays():
    """The result of the last product is an output."""
    module = tiled(FEED_FORWARD, machine())
    KeepOnChipPass().apply(Context(), module)
    assert staying(module) == {"linear_up": [0], "gelu": [0], "linear_down": []}
    assert 'flat.fused "linear_up" (%x_1 = %x, %up_1 = %up) on_chip [0] strategy' in str(module)
    assert str(parse_mlir(str(module), "tiled")) == str(module)


def test_outputs_and_rows_of_caches_go_off_chip():
    module = tiled(LAYER, ROOMY)
    KeepOnChipPass().apply(Context(), module)
    assert [name for name, numbers in staying(module).items() if not numbers] == ["rope_1", "append_cv", "add_1"]


def test_what_cannot_stay_is_refused_where_it_was_asked_for_by_hand():
    module = tiled(LAYER, ROOMY)
    (rope,) = (op for op in kernels(module) if op.kernel.data == "rope_1")
    rope.keep(rope.results)
    with pytest.raises(FlatcError, match="'rope_1' cannot stay on chip: it is a part of another tensor"):
        lower(module)
    returned = tiled(FEED_FORWARD, machine())
    last = kernels(returned)[-1]
    last.keep(last.results)
    with pytest.raises(FlatcError, match=r'tensor "y" stays on chip, and spatial.return needs it off chip'):
        lower(returned)


def test_what_does_not_fit_is_not_kept():
    """The tiles leave room for one of the two hidden tensors while the activation runs, or for none."""
    found = {size: staying(kept_in(size)) for size in (12_000, 8_000, 5_000)}
    assert found[12_000] == {"linear_up": [0], "gelu": [0], "linear_down": []}
    assert sorted(found[8_000].values()) == [[], [], [0]]
    assert sorted(found[5_000].values()) == [[], [], []]


def kept_in(capacity_bytes: int) -> ModuleOp:
    """What stays where tiles were chosen for a buffer of 4000 bytes, and this one has other sizes."""
    module = tiled(FEED_FORWARD, machine(4_000))
    attach_accelerator(module, machine(capacity_bytes))
    KeepOnChipPass().apply(Context(), module)
    return module


def test_nothing_stays_where_the_buffer_is_no_faster_than_the_memory():
    slow = machine()
    buffer = replace(slow.buffer, bandwidth_bytes_per_second=slow.offchip.read_bytes_per_second)
    module = tiled(FEED_FORWARD, replace(slow, buffer=buffer))
    KeepOnChipPass().apply(Context(), module)
    assert not any(staying(module).values())


# --- Every reading agrees, whatever stays ----------------------------------------------------------------------

EXAMPLES = [
    (LAYER, ROOMY, ()),
    (FEED_FORWARD, machine(2_000), (("S", 37),)),
    (FEED_FORWARD, machine(1 << 40, latency_cycles=500), ()),
    (LAYER, machine(1 << 40, channels="separate", latency_cycles=13), (("B", 2), ("S", 1), ("KV", 2), ("P", 7))),
]
"""Hostile sizes, prefill and decode, one channel and two, transfers that take time to arrive."""


def some_kept(rng: random.Random, examples: int) -> tuple[ModuleOp, ModuleOp]:
    """The schedules of one of so many graphs, with some of its results on chip, and with none."""
    text, accelerator, sizes = rng.choice(EXAMPLES[:examples])
    module = tiled(text, accelerator, **dict(sizes))
    attach_accelerator(module, replace(accelerator, buffer=ROOMY.buffer))
    plain = module.clone()
    for kernel in kernels(module):
        could = [result for result in kernel.results if users_of(result)]
        kernel.keep([result for result in could if rng.random() < 0.7])
    for one in (module, plain):
        lower(one)
    return module, plain


@given(SEEDS)
@settings(max_examples=3, deadline=None)
def test_any_choice_computes_the_same_in_no_more_time(seed: int):
    module, plain = some_kept(random.Random(seed), 2)
    check_against(module, plain, seed)
    check_costs(module)


@pytest.mark.slow
@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_any_choice_computes_the_same_in_no_more_time_on_any_machine(seed: int):
    module, plain = some_kept(random.Random(seed), len(EXAMPLES))
    check_against(module, plain, seed)
    check_costs(module)


def check_against(module: ModuleOp, plain: ModuleOp, seed: int) -> None:
    """The same numbers as without tensors on chip, no more time, and bytes off chip less those of what stays."""
    inputs = random_inputs(module, seed)
    run, expected = run_checked(module, inputs), run_checked(plain, inputs)
    for output, wanted in zip(run.outputs, expected.outputs, strict=True):
        np.testing.assert_array_equal(output, wanted)
    report, before = build_report(module), build_report(plain)
    assert report.latency_cycles <= before.latency_cycles
    assert report.bounds == before.bounds
    kept = {tensor.name for tensor in report.kept}
    assert {tensor.name: tensor.bytes for tensor in report.tensors} == {
        tensor.name: 0 if tensor.name in kept else tensor.bytes for tensor in before.tensors
    }
    assert to_json(build_report(parse_mlir(str(module), "schedule"))) == to_json(report)


def check_costs(module: ModuleOp) -> None:
    """Closed form and simulator agree on bytes, counts and footprint; the explanation leaves no remainder."""
    accelerator = accelerator_of(module)
    for kernel in schedule_of(module).kernels():
        part, simulated = kernel_part(kernel), simulate_kernel(kernel, accelerator)
        assert part is not None
        plainly = simulate_kernel(kernel, accelerator, skip_ahead=False)
        assert (simulated.latency_cycles, simulated.busy_cycles) == (plainly.latency_cycles, plainly.busy_cycles)
        kind = kind_with(part.problem)
        form = kind.price(part.problem, accelerator, kind.mapping_of(kernel))
        moved = {role: only(size) for role, size in form.tensor_bytes.items()}
        assert sum(moved.values()) == simulated.work.offchip_read_bytes + simulated.work.offchip_write_bytes
        assert not any(moved[role] for role in part.problem.on_chip)
        for name, count in vars(simulated.work).items():
            assert only(getattr(form.work, name)) == pytest.approx(count), (kernel.label.data, name)
        assert only(form.peak_buffer_bytes) == sum(buffer.total_bytes for buffer in kernel.buffers())
        for resource, cycles in form.busy_cycles.items():
            # The simulator rounds copies up to ticks.
            assert only(cycles) == pytest.approx(float(simulated.busy_cycles.get(resource, 0)), rel=1e-4)
        assert only(form.latency_cycles) <= float(simulated.latency_cycles) * (1 + 1e-9)
    explanation = explain(schedule_of(module), accelerator)
    assert sum(cause.cycles for cause in explanation.causes) == explanation.gap_cycles


# --- The whole compiler ----------------------------------------------------------------------------------------


@cache
def compiled(text: str, capacity_bytes: int, *, keep_on_chip: bool = True) -> Compilation:
    return flatc.compile(text, machine(capacity_bytes), strategy="online", keep_on_chip=keep_on_chip)


def test_mappings_bring_back_what_stays():
    result = compiled(FEED_FORWARD, 8_000)
    assert result.graph is not None
    again = flatc.compile(
        result.graph, machine(8_000), mapping=result.mapping_text, strategy="online", keep_on_chip=True
    )
    assert str(again.schedule).replace('"given"', '"online"') == str(result.schedule)
    assert result.run().passed


@pytest.mark.parametrize("capacity_bytes", [1_500, 20_000])
def test_more_room_is_never_slower_and_keeping_neither(capacity_bytes: int):
    kept, off = (compiled(FEED_FORWARD, capacity_bytes, keep_on_chip=keep).report for keep in (True, False))
    assert kept.latency_cycles <= off.latency_cycles
    assert kept.peak_buffer_bytes <= capacity_bytes
    assert compiled(FEED_FORWARD, 2 * capacity_bytes).report.latency_cycles <= kept.latency_cycles


def test_mappings_are_chosen_for_what_stays():
    """In 20000 bytes the hidden tensors stay, and what is left is enough for weights to be loaded once."""
    kept, off = compiled(FEED_FORWARD, 20_000).report, compiled(FEED_FORWARD, 20_000, keep_on_chip=False).report
    assert [tensor.name for tensor in kept.kept] == ["linear_up", "gelu"]
    assert kept.bounds is not None
    assert off.offchip_bytes - kept.offchip_bytes >= 4 * 13 * 90 * 2
    assert kept.latency_cycles < off.latency_cycles


@pytest.mark.slow
def test_a_layer_is_what_its_graph_says():
    result = compiled(LAYER, 1 << 14)
    assert result.graph is not None
    inputs = random_inputs(result.graph, 1)
    (expected,) = run_module(result.graph, inputs, exact=True)
    (output,) = run_checked(result.schedule, inputs, exact=True).outputs
    np.testing.assert_allclose(output, expected, rtol=1e-9, atol=1e-9)
    assert "linear_up" in {tensor.name for tensor in result.report.kept}


def test_a_report_says_what_stays_where():
    result = compiled(FEED_FORWARD, 20_000)
    report, written = result.report, to_dict(result.report)
    text = to_text(report)
    assert "2 tensors stay on chip between kernels, at most 4,680 B of them at once" in text
    assert text.count("stays on chip") == 2 + 4  # by tensor, and by kernel
    assert "copy    linear_up -> linear_up" in text
    up, gelu, down = ([(one["name"], one["bytes"]) for one in kernel["on_chip"]] for kernel in written["kernels"])
    assert (up, gelu) == ([("linear_up", 2340)], [("linear_up", 2340), ("gelu", 2340)])
    assert down == [("gelu", 2340)]
    assert written["totals"]["peak_buffer_bytes"] == max(kernel["peak_buffer_bytes"] for kernel in written["kernels"])
    assert written["totals"]["tensors"]["gelu"] == {"read_bytes": 0, "written_bytes": 0, "compulsory_bytes": 0}


def test_one_attention_keeps_nothing_and_its_search_is_not_repeated():
    text = "graph one\ndtype f32, softmax f32\ninput q, k, v : [1, 2, 9, 8]\na = attention(q, k, v)\noutput a\n"
    with_it, without = compiled(text, 1 << 14), compiled(text, 1 << 14, keep_on_chip=False)
    assert str(with_it.schedule) == str(without.schedule)
    assert with_it.search == without.search
