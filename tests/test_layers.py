"""Whole layers, from their graphs to the numbers: every reading of one schedule agrees with every other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import flatc
from flatc.compiler import Compilation
from flatc.dialects.accelerator import accelerator_of
from flatc.dialects.spatial import OffchipOp
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs, run_module, run_schedule
from flatc.passes.cost.explanation import explain
from flatc.report import to_text
from flatc.report.build import schedule_of
from flatc.report.model import KernelReport
from tests.support import simulated_bytes

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@dataclass(frozen=True)
class Layer:
    """A layer of a published model at sizes that no tile divides and NumPy can take."""

    file: str
    phase: str | None
    sizes: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        return f"{self.file}-{self.phase}"


LLAMA = (("B", 2), ("E", 36), ("H", 6), ("KV", 2), ("D", 6), ("F", 50))
WHISPER = (("B", 2), ("E", 39), ("H", 3), ("A", 23))
LAYERS = [
    Layer("llama3_8b_layer.flat", "prefill", (*LLAMA, ("S", 13))),
    Layer("llama3_8b_layer.flat", "decode", (*LLAMA, ("P", 17))),
    Layer("whisper_cross_attention.flat", "prefill", (*WHISPER, ("T", 5))),
    Layer("whisper_cross_attention.flat", "decode", (*WHISPER, ("P", 7))),
    Layer("bert_base_layer.flat", None, (("B", 2), ("S", 7), ("E", 20), ("H", 2))),
    Layer("llama3_8b_attention.flat", "prefill", (*LLAMA[:5], ("S", 5))),
    Layer("llama3_8b_attention.flat", "decode", (*LLAMA[:5], ("P", 7))),
    Layer("mistral_7b_layer.flat", "decode", (*LLAMA, ("P", 7))),
]

QUICK = LAYERS[:3]
QUICK_AND_SLOW = [layer if layer in QUICK else pytest.param(layer, marks=pytest.mark.slow) for layer in LAYERS]
"""The others have nothing but sizes of their own; an encoder layer like BERT's is below."""

ENCODER = """graph encoder
dim B = 2, S = 7, E = 20, H = 2, F = 28
dtype f16, softmax f32
input x : [B, S, E]
weight wq, wk, wv, wo : [E, E]
weight bq, bk, bv, bo, g1, s1, g2, s2 : [E]
weight w1 : [E, F]
weight b1 : [F]
weight w2 : [F, E]
q = heads(x @ wq + bq, H)
k = heads(x @ wk + bk, H)
v = heads(x @ wv + bv, H)
h = layernorm(x + merge(attention(q, k, v)) @ wo + bo, g1, s1)
y = layernorm(h + gelu(h @ w1 + b1) @ w2, g2, s2)
output y
"""


@cache
def compiled(layer: Layer, accelerator: str) -> Compilation:
    return flatc.compile(EXAMPLES / layer.file, accelerator, phase=layer.phase, bindings=dict(layer.sizes))


@pytest.mark.parametrize("layer", QUICK_AND_SLOW, ids=str)
def test_a_layer_computes_what_its_graph_says(layer: Layer):
    check_numbers(compiled(layer, "edge"))


def check_numbers(result: Compilation) -> None:
    assert result.graph is not None
    inputs = random_inputs(result.graph, 1)
    expected = run_module(result.graph, inputs, exact=True)
    run = run_schedule(result.schedule, inputs, exact=True)
    for output, wanted in zip(run.outputs, expected, strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-9, atol=1e-9)
    assert run.offchip_bytes == simulated_bytes(result.schedule)
    assert result.run().passed


@pytest.mark.parametrize("layer", QUICK_AND_SLOW, ids=str)
@pytest.mark.parametrize("accelerator", ["edge", pytest.param("cloud", marks=pytest.mark.slow)])
def test_totals_are_sums_over_kernels(layer: Layer, accelerator: str):
    report = compiled(layer, accelerator).report
    assert len({kernel.name for kernel in report.kernels}) == len(report.kernels)
    assert report.latency_cycles == sum(kernel.latency_cycles for kernel in report.kernels)
    assert report.offchip_bytes == sum(kernel.offchip_bytes for kernel in report.kernels)
    assert report.bounds is not None
    assert report.bounds.cycles <= report.latency_cycles
    assert report.gap is not None
    assert report.gap.cycles == report.latency_cycles - report.bounds.cycles
    for kernel in report.kernels:
        assert kernel.bounds is not None, kernel.name
        assert kernel.bounds.cycles <= kernel.latency_cycles


@pytest.mark.parametrize("layer", [*LAYERS[:2], pytest.param(LAYERS[3], marks=pytest.mark.slow)], ids=str)
def test_mappings_and_schedules_of_a_layer_read_back(layer: Layer):
    """Whisper's second kernel of a sum and a norm has the name that the second result of the first one would have."""
    result = compiled(layer, "edge")
    tensors = [op.label.data for op in result.schedule.walk() if isinstance(op, OffchipOp)]
    assert len(set(tensors)) == len(tensors)
    assert result.graph is not None
    again = flatc.compile(result.graph, "edge", mapping=result.mapping_text)
    assert to_text(again.report) == to_text(result.report)
    back = flatc.compile(parse_mlir(str(result.schedule), "layer"))
    assert to_text(back.report) == to_text(result.report)


@pytest.mark.parametrize("layer", LAYERS[:2], ids=str)
def test_the_gap_of_a_layer_is_explained_without_remainder(layer: Layer):
    module = compiled(layer, "edge").schedule
    explanation = explain(schedule_of(module), accelerator_of(module))
    assert sum(cause.cycles for cause in explanation.causes) == explanation.gap_cycles
    assert explanation.latency_cycles == compiled(layer, "edge").report.latency_cycles


def test_the_kernels_of_an_encoder_layer():
    """Biases are part of their products, and a norm takes the residual connection before it along."""
    result = flatc.compile(ENCODER, "edge")
    assert [kernel.name for kernel in result.report.kernels] == [
        "linear_wq", "linear_wk", "linear_wv", "attention", "linear_wo", "add_layernorm",
        "linear_w1", "gelu", "linear_w2", "add_layernorm_1",
    ]  # fmt: skip
    check_numbers(result)


def test_products_of_one_shape_cost_the_same():
    """The projections of keys and of values differ in their tensors only."""
    kernels = {kernel.name: kernel for kernel in compiled(LAYERS[2], "edge").report.kernels}
    wq, wk = kernels["linear_wq"], kernels["linear_wk"]
    assert (wq.mapping, wq.latency_cycles, wq.work) == (wk.mapping, wk.latency_cycles, wk.work)
    assert tensor_bytes(wq, "wq") == tensor_bytes(wk, "wk") > 0


def tensor_bytes(kernel: KernelReport, name: str) -> int:
    return next(tensor.bytes for tensor in kernel.tensors if tensor.name == name)
