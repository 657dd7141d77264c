"""A scale for each quantised key and value: columns of scores and probabilities are scaled in the attention kernel."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import flatc
from flatc.builder import Graph, causal
from flatc.compiler import Compilation
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import Mapping, Softmax, Tiles
from flatc.frontend import parse_flat
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs, run_schedule
from flatc.interpreter.reference import attention
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.kinds.registry import parts
from flatc.report import to_text
from flatc.report.build import schedule_of
from tests.support import Choice, fused

DIMS = "B = 2, H = 6, KV = 2, S = 5, T = 11, D = 8, E = 6"
GRAPH = f"""graph quantised
dim {DIMS}
dtype bf16, softmax f32
input q : [B, H, S, D]
input k : i8[B, KV, T, D]
input v : i8[B, KV, T, E]
input ks : f32[B, KV, T]
input vs : f32[B, 1, T]
a = attention(q, k, v, mask = causal, key_scale = ks, value_scale = vs)
output a
"""


def mapping(softmax: Softmax, **changes: object) -> Mapping:
    """Tiles of one kv head, two of its query heads, three rows and four keys."""
    (kernel,) = fused(parse_flat(GRAPH, "quantised.flat"))
    problem = match_kernel(kernel).problem
    choice = Choice(softmax.algorithm, softmax.divide, Tiles(1, 1, 2, 3, 4, 8, 6), (0, 0, 1, 1, 2), (5, 5, 5, 5, 5))
    return replace(choice.mapping(problem), softmax=softmax, **changes)  # pyright: ignore[reportArgumentType]


def moved(result: Compilation) -> dict[str, tuple[int, int]]:
    (kernel,) = result.report.kernels
    return {tensor.name: (tensor.read_bytes, tensor.written_bytes) for tensor in kernel.tensors}


ALGORITHMS = [
    Softmax("online"),
    Softmax("online", rescaled_every=2),
    Softmax("rows"),
    Softmax("rows", "early"),
    Softmax("streamed", "early"),
]


@pytest.mark.parametrize("softmax", ALGORITHMS, ids=lambda softmax: f"{softmax.algorithm} {softmax.divide}")
def test_one_kernel_scales_scores_before_the_softmax_and_probabilities_behind_their_sums(softmax: Softmax):
    chosen = mapping(softmax)
    result, priced = (flatc.compile(GRAPH, "edge", mapping=chosen, simulate=how) for how in ("always", "never"))
    inputs = random_inputs(result.schedule, 0)
    run = run_schedule(result.schedule, inputs, exact=True)
    q, k, v, ks, vs = (inputs[name].astype(np.float64) for name in ("q", "k", "v", "ks", "vs"))
    expected = attention(q, k * ks[..., None], v * vs[..., None], keep=np.tri(5, 11, 6, dtype=bool))
    np.testing.assert_allclose(run.outputs[0], expected, rtol=1e-9, atol=1e-11)
    assert run.offchip_bytes == moved(result) == moved(priced)
    assert result.report.peak_buffer_bytes == priced.report.peak_buffer_bytes
    assert result.report.energy_pj == pytest.approx(priced.report.energy_pj)
    walked, simulated = priced.report.latency_cycles, result.report.latency_cycles
    assert walked <= simulated <= walked * Fraction(101, 100)
    assert result.run(inputs).passed


def test_scales_come_with_the_tiles_of_keys_that_they_belong_to():
    result = flatc.compile(GRAPH, "edge", mapping=mapping(Softmax("online")))
    read = {name: bytes for name, (bytes, _) in moved(result).items()}
    assert read["k"] == 2 * read["ks"]  # 8 features of a byte beside a scale of 4 bytes, for each key and kv head
    assert read["vs"] == read["ks"]  # one for both kv heads, loaded with each of them
    least = {tensor.name: tensor.compulsory_bytes for tensor in result.report.kernels[0].tensors}
    assert (least["ks"], least["vs"]) == (2 * 2 * 11 * 4, 2 * 11 * 4)


@pytest.mark.parametrize("strategy", ["online", pytest.param("unfused", marks=pytest.mark.slow)])
def test_a_schedule_alone_says_what_it_scales(strategy: str):
    result = flatc.compile(GRAPH, "edge", strategy=strategy)
    alone = flatc.compile(parse_mlir(str(result.schedule), "quantised"))
    assert to_text(alone.report) == to_text(result.report)
    assert alone.run().passed
    (kernel,) = fused(parse_flat(GRAPH, "quantised.flat"))
    assert [part.problem for part in parts(schedule_of(alone.schedule)) or ()] == [match_kernel(kernel).problem]


def test_a_column_of_ones_would_sum_scaled_probabilities():
    with pytest.raises(FlatcError, match="a sum in attend is a sum of scaled probabilities"):
        flatc.compile(GRAPH, "edge", mapping=mapping(Softmax("online", total="attend")))


def graph_with(shape: list[int]) -> Graph:
    graph = Graph("scaled")
    q, k = graph.input("q", [1, 6, 3, 4]), graph.input("k", [1, 2, 5, 4])
    graph.output(graph.attention(q, k, k, mask=causal(), key_scale=graph.input("s", shape)))
    return graph


@pytest.mark.parametrize(
    ("shape", "error"),
    [
        ([1, 3, 5], r"its scales are for 3 kv heads, and there are 2"),
        ([1, 4, 5], r"scale \[1, 4, 5\] does not fit scores \[1, 6, 3, 5\]"),
        ([2, 2, 5], r"scale \[2, 2, 5\] does not fit"),
        ([1, 2, 4], "differ in the number of keys"),
        ([2, 5], "expected 3 dims"),
    ],
)
def test_scales_are_those_of_kv_heads(shape: list[int], error: str):
    with pytest.raises(FlatcError, match=error):
        flatc.compile(graph_with(shape), "edge")


@pytest.mark.slow
def test_decode_reads_scales_beside_quantised_keys_and_stays_bound_by_their_bytes():
    """Scores stay on chip: 2 bytes of scales beside each 128 of K and V."""
    text = GRAPH.replace(DIMS, "B = 1, H = 32, KV = 8, S = 1, T = 8192, D = 128, E = 128")
    text = text.replace("f32[B, KV, T]", "f16[B, KV, T]").replace("f32[B, 1, T]", "f16[B, KV, T]")
    report = flatc.compile(text, "edge").report
    assert [kernel.name for kernel in report.kernels] == ["attention"]
    assert report.binding == "off-chip"
    keyed = 2 * 8 * 8192 * (128 + 2)
    assert keyed < report.offchip_bytes < keyed * 1.01
