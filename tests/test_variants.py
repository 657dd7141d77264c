"""Every variant of attention, drawn at random as a user would write it, by three levels and two tilings.

What is drawn: masks of every kind and their combinations, with offsets and without; biases; softcap, sink, scale;
scales of keys and values; shared heads; d_v other than d_qk; prefill, chunks and decode on a cache, also in pages;
storage types; scores as outputs at any stage.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

import flatc
from flatc.compiler import Compilation
from flatc.dialects.flat import FusedOp
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import Mapping, Tiles
from flatc.frontend import parse_flat
from flatc.interpreter import random_inputs, run_module, run_schedule
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.fuse_layers import FuseLayersPass
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kinds.registry import kind_of
from tests.drawn_attention import Drawn, attentions
from tests.float64_attention import Floats
from tests.support import Choice


def fused(graph: ModuleOp) -> ModuleOp:
    """The graph at the level of kernels."""
    module = graph.clone()
    FuseAttentionPass().apply(Context(), module)
    FuseLayersPass().apply(Context(), module)
    return module


def tiny(graph: ModuleOp, chosen: Compilation, rng: random.Random) -> dict[str, KernelMapping]:
    """Mappings of tiles that divide nothing, for attention in one kernel; the other kernels keep what was chosen."""
    found = {name: mapping for name, mapping in chosen.mappings.items() if not isinstance(mapping, Mapping)}
    for kernel in (op for op in fused(graph).walk() if isinstance(op, FusedOp)):
        problem = kind_of(kernel).match(kernel).problem
        if isinstance(problem, AttentionProblem):
            found[kernel.kernel.data] = keeping_to_pages(tiny_choice(rng).mapping(problem), problem.block)
    return found


def keeping_to_pages(mapping: Mapping, block: int | None) -> Mapping:
    """Key tiles that begin with a page or lie within one."""
    if block is None:
        return mapping
    key = mapping.tiles.key // block * block or 1
    return replace(mapping, tiles=replace(mapping.tiles, key=key))


def tiny_choice(rng: random.Random) -> Choice:
    algorithm, divide = rng.choice([("online", "late"), ("rows", "late"), ("rows", "early"), ("streamed", "early")])
    whole = 1 << 30
    batch, kv_head, group, query, key = (rng.randint(1, most) for most in (2, 2, 3, 3, 5))
    tiles = Tiles(batch, kv_head, group, query, key, whole, whole)
    stages = rng.choice([(0, 0, 0, 0, 0), (0, 0, 0, 1, 2), (0, 0, 1, 1, 2), (0, 1, 2, 3, 4)])
    levels = rng.choice([("key", "key"), ("kv_head", "key"), ("kv_head", "kv_head")])
    every = rng.choice([1, 1, 2, 3])
    return Choice(algorithm, divide, tiles, stages, (5, 5, 5, 5, 5), levels, every)  # pyright: ignore[reportArgumentType]


def assert_equal(found: list[np.ndarray], expected: dict[str, Floats]) -> None:
    for output, (name, right) in zip(found, expected.items(), strict=True):
        np.testing.assert_allclose(output, right, err_msg=name, rtol=1e-9, atol=1e-11)


def traffic(result: Compilation) -> dict[str, tuple[int, int]]:
    """Bytes by tensor, summed over kernels."""
    found: dict[str, tuple[int, int]] = {}
    for kernel in result.report.kernels:
        for tensor in kernel.tensors:
            read, written = found.get(tensor.name, (0, 0))
            found[tensor.name] = (read + tensor.read_bytes, written + tensor.written_bytes)
    return {name: moved for name, moved in sorted(found.items()) if moved != (0, 0)}


def check(drawn: Drawn, accelerator: str, strategy: str, seed: int) -> None:
    """Three levels give the numbers of the definition; interpreter, simulator and closed form the same bytes."""
    note(drawn.text)
    graph = parse_flat(drawn.text, "drawn.flat")
    inputs = random_inputs(graph, seed)
    expected = drawn.expected(inputs)
    assert_equal(run_module(graph, inputs, exact=True), expected)
    assert_equal(run_module(fused(graph), inputs, exact=True), expected)
    chosen = flatc.compile(graph, accelerator, strategy=strategy, simulate="always")
    forced = flatc.compile(graph, accelerator, mapping=tiny(graph, chosen, random.Random(seed)), simulate="always")
    for result in (chosen, forced):
        assert_equal(run_schedule(result.schedule, inputs, exact=True).outputs, expected)
        run = result.run(inputs)
        assert run.passed
        moved = {name: bytes for name, bytes in run.offchip_bytes.items() if bytes != (0, 0)}
        priced = flatc.compile(graph, accelerator, mapping=result.mappings, simulate="never")
        assert moved == traffic(result) == traffic(priced)
        assert result.report.peak_buffer_bytes == priced.report.peak_buffer_bytes
        assert result.report.bounds is not None
        assert result.report.latency_cycles >= result.report.bounds.cycles


MACHINES, SEEDS = st.sampled_from(["edge", "cloud", "fusemax"]), st.integers(0, 1000)
STRATEGIES = st.sampled_from(["auto", "auto", "online", "flat-r"])


SETTINGS = settings(deadline=None, phases=[Phase.generate], suppress_health_check=[HealthCheck.too_slow])
"""An example takes half a second: shrinking one would take minutes."""


@settings(SETTINGS, max_examples=2, derandomize=True)
@given(attentions(), MACHINES, SEEDS)
def test_any_variant(drawn: Drawn, accelerator: str, seed: int):
    check(drawn, accelerator, "online", seed)


@pytest.mark.slow
@settings(SETTINGS, max_examples=20)
@given(attentions(), MACHINES, STRATEGIES, SEEDS)
def test_many_variants(drawn: Drawn, accelerator: str, strategy: str, seed: int):
    check(drawn, accelerator, strategy, seed)


# --- Phases -----------------------------------------------------------------------------------------------------------

STEPS = ((5, 0), (3, 5), (1, 8))
"""New tokens and tokens in the cache: a prefill, a chunk behind it, and one token."""


def phased(mask: str, options: str) -> str:
    """A graph of nine tokens, whose phases take them together and in steps."""
    phases = "\n".join(f"phase p{old} : S = {new}, P = {old}" for new, old in STEPS)
    return f"""graph phased
dim B = 2, H = 6, KV = 2, D = 8, E = 4
phase whole : S = 9, P = 0
{phases}
input q : [B, H, S, D]
input k : [B, KV, S, D]
input v : [B, KV, S, E]
cache ck : [B, KV, P, D]
cache cv : [B, KV, P, E]
weight sink : [H]
weight table : [8, H]
a = attention(q, append(ck, k), append(cv, v), mask = {mask}, {options})
output a
"""


def check_phases(mask: str, options: str, strategy: str) -> None:
    """Prefill, a chunk and decode give the rows of one long prefill."""
    text = phased(mask, options)
    whole = flatc.compile(text, "edge", strategy=strategy)
    inputs = random_inputs(whole.schedule, 0)
    (expected,) = run_schedule(whole.schedule, inputs, exact=True).outputs
    for new, old in STEPS:
        part = flatc.compile(text, "edge", strategy=strategy, phase=f"p{old}")
        fed = {name: inputs[name][:, :, old : old + new] for name in "qkv"}
        fed |= {f"c{name}": inputs[name][:, :, :old] for name in "kv"}
        fed |= {name: inputs[name] for name in inputs if name in ("sink", "table")}
        (found,) = run_schedule(part.schedule, fed, exact=True).outputs
        np.testing.assert_allclose(found, expected[:, :, old : old + new], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("mask", "options", "strategy"),
    [
        ("causal & (window(2) | first(2))", "sink = sink", "online"),
        pytest.param("causal & window(3)", "bias = alibi, softcap = 2", "auto", marks=pytest.mark.slow),
        pytest.param(
            "causal & chunk(4)", "bias = t5_relative(table, bidirectional = false)", "flat", marks=pytest.mark.slow
        ),
        pytest.param("causal & (chunk(3) | prefix(2))", "bias = alibi, scale = 1", "unfused", marks=pytest.mark.slow),
    ],
)
def test_prefill_then_decode_equals_one_long_prefill(mask: str, options: str, strategy: str):
    check_phases(mask, options, strategy)
