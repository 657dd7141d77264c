"""Scores as outputs of a graph (ONNX's `qk_matmul_output`): kernels end there, and what is stored is right."""

from __future__ import annotations

import numpy as np
import pytest

import flatc
from flatc.interpreter import random_inputs, run_schedule
from flatc.report import to_dict
from tests.float64_attention import Variant

GRAPH = """graph scores
dim B = 2, H = 4, KV = 2, S = 7, T = 13, D = 8
dtype bf16, softmax f32
input q : [B, H, S, D]
input k, v : [B, KV, T, D]
weight z : [H]
raw = logit(q, k)
capped = adjust(raw, softcap = 2)
masked = adjust(capped, mask = causal)
p = probabilities(masked, sink = z)
a = attend(p, v)
"""
STAGES = {"raw": "raw", "capped": "softcap", "masked": "mask", "p": "p"}
"""Names of the graph, and of the reference."""


@pytest.mark.parametrize(
    ("output", "accelerator", "strategy"),
    [
        ("p", "edge", "flat-r"),
        pytest.param("raw", "edge", "auto", marks=pytest.mark.slow),
        pytest.param("capped", "cloud", "auto", marks=pytest.mark.slow),
        pytest.param("masked", "edge", "unfused", marks=pytest.mark.slow),
    ],
)
def test_any_stage_is_an_output(output: str, accelerator: str, strategy: str):
    result = flatc.compile(f"{GRAPH}output a, {output}\n", accelerator, strategy=strategy)
    assert len(result.report.kernels) == (4 if strategy == "unfused" else 2)
    inputs = random_inputs(result.schedule, 0)
    q, k, v, sink = (inputs[name].astype(np.float64) for name in ("q", "k", "v", "z"))
    variant = Variant(softcap=2, sees=lambda row, key, offset: key <= row + offset, sink=sink)
    expected = variant.stages(q, k, v)
    found = dict(zip(("a", output), run_schedule(result.schedule, inputs, exact=True).outputs, strict=True))
    np.testing.assert_allclose(found["a"], expected["a"], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found[output], expected[STAGES[output]], rtol=1e-9, atol=1e-11)
    assert result.run(inputs).passed
    again = flatc.compile(f"{GRAPH}output a, {output}\n", accelerator, mapping=result.mapping_text)
    assert to_dict(again.report)["kernels"] == to_dict(result.report)["kernels"]


@pytest.mark.slow
def test_every_stage_at_once_is_a_kernel_each():
    result = flatc.compile(f"{GRAPH}output a, raw, capped, masked, p\n", "edge")
    assert [kernel.name for kernel in result.report.kernels] == ["logit", "mask", "mask_1", "softmax", "attend"]
    run = result.run()
    assert run.passed
    assert np.isneginf(run.outputs["masked"]).any()


def test_scores_that_leave_must_be_written_and_need_not_be_read_back():
    """They are read back, since no kernel stores two results; the bound knows that another compiler might not."""
    result = flatc.compile(f"{GRAPH}output a, raw\n", "edge", objective="offchip")
    (raw, *_) = (tensor for tensor in result.report.kernels[0].tensors if tensor.name == "raw")
    size = 2 * 4 * 7 * 13 * 4
    assert (raw.read_bytes, raw.written_bytes, raw.compulsory_bytes) == (0, size, size)
    (raw, *_) = (tensor for tensor in result.report.kernels[1].tensors if tensor.name == "raw")
    assert 0 < raw.read_bytes <= size  # tiles that the causal mask hides are not read
    least = (2 * 4 * 7 * 8 * 2 + 2 * 2 * 13 * 8 * 2) * 2 + 4 * 2 + size
    assert result.report.bounds is not None
    assert result.report.bounds.offchip_cycles == least * result.report.accelerator.cycles_per_byte_read


@pytest.mark.slow
def test_the_softmax_of_long_scores_streams_over_them():
    """A row of 2^20 scores fits no buffer of 512 KiB; the kernel behind the stored scores is online."""
    graph = GRAPH.replace("S = 7, T = 13", "S = 16, T = 1048576") + "output a, raw\n"
    result = flatc.compile(graph, "edge", simulate="never")
    assert "softmax(online" in result.mappings["softmax_attend"].to_text()


def test_a_softcap_behind_a_mask_caps_what_is_hidden():
    """Minus the cap is a score like others, so hidden keys come back: the mask ends a kernel."""
    text = f"{GRAPH}last = attend(probabilities(adjust(masked, softcap = 3)), v)\noutput last\n"
    result = flatc.compile(text, "edge")
    assert list(result.mappings) == ["logit", "softmax_attend"]
    run = result.run()
    assert run.passed
    assert np.isfinite(run.outputs["last"]).all()
