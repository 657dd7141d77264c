"""Whole layers end to end: products, norms, rope, attention, caches, activations and residuals as one schedule."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from flatc.compiler import Compilation, compile
from flatc.interpreter import random_inputs, run_module
from flatc.passes.kinds.registry import parts
from flatc.report.build import schedule_of
from tests.support import run_checked

EXAMPLES = Path(__file__).parents[2] / "examples"

SMALL = {"B": 2, "E": 24, "H": 4, "KV": 2, "D": 6}
"""Sizes that no tile divides; five tokens after none, or one after seven."""

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
def layer(name: str, phase: str, machine: str) -> Compilation:
    if name == "encoder":
        return compile(ENCODER, machine)
    lengths = {"S": 5, "P": 0} if phase == "prefill" else {"S": 1, "P": 7}
    sizes = SMALL | lengths | ({} if name == "llama3_8b_attention" else {"F": 34})
    return compile(EXAMPLES / f"{name}.flat", machine, bindings=sizes, phase=phase)


LAYERS = [
    ("encoder", "prefill"),
    ("llama3_8b_attention", "prefill"),
    ("llama3_8b_attention", "decode"),
    ("llama3_8b_layer", "prefill"),
    ("llama3_8b_layer", "decode"),
    ("mistral_7b_layer", "decode"),
]


MACHINES = ["edge", pytest.param("cloud", marks=pytest.mark.slow)]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(("name", "phase"), LAYERS)
def test_a_layer_computes_its_graph_at_a_cost_above_its_bounds(name: str, phase: str, machine: str):
    """Without rounding the schedule gives the graph's numbers; it moves what the simulator charges, says what it
    does, and no kernel is faster than can be."""
    result = layer(name, phase, machine)
    assert result.graph is not None
    inputs = random_inputs(result.graph, 0)
    run = run_checked(result.schedule, inputs, exact=True)
    for output, expected in zip(run.outputs, run_module(result.graph, inputs, exact=True), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-9, atol=1e-9)
    assert result.run().passed
    found, report = parts(schedule_of(result.schedule)), result.report
    assert found is not None
    assert len(found) == len(report.kernels)
    assert report.bounds is not None
    assert report.latency_cycles >= report.bounds.cycles
    assert all(kernel.bounds and kernel.latency_cycles >= kernel.bounds.cycles for kernel in report.kernels)


def test_the_kernels_of_an_encoder_layer():
    """Biases are part of their products, and a norm takes the residual connection before it along."""
    assert [kernel.name for kernel in layer("encoder", "prefill", "edge").report.kernels] == [
        "linear_wq", "linear_wk", "linear_wv", "attention", "linear_wo", "add_layernorm",
        "linear_w1", "gelu", "linear_w2", "add_layernorm_1",
    ]  # fmt: skip
