"""Multi-head latent attention: values that are features of the keys are loaded with them, and what absorbing saves."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

import flatc
from flatc.builder import Graph, causal
from flatc.compiler import Compilation
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles, ValueLevel
from flatc.frontend import parse_flat
from flatc.interpreter import random_inputs, run_module, run_schedule
from flatc.interpreter.reference import attention
from flatc.passes.kinds.registry import parts
from flatc.report import to_text
from flatc.report.build import schedule_of
from tests.support import Shape, random_mapping, simulated_bytes

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def latent(heads: int, queries: int, keys: int, d_qk: int, first: int, d_v: int, kv_heads: int = 1) -> Graph:
    """Causal attention whose values are features `first` .. of the latent rows `c`."""
    graph = Graph("latent", dtype="bf16", softmax="f32")
    q, c = graph.input("q", [1, heads, queries, d_qk]), graph.input("c", [1, kv_heads, keys, d_qk])
    graph.output(graph.attention(q, c, graph.features(c, first, first + d_v), mask=causal()), names=["a"])
    return graph


def traffic(result: Compilation) -> dict[str, tuple[int, int]]:
    """Bytes of the attention by tensor."""
    tensors = result.report.kernels[-1].tensors
    return {tensor.name: (tensor.read_bytes, tensor.written_bytes) for tensor in tensors}


# --- One load for keys and values -----------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 1), (6, 2)]),
    queries=st.sampled_from([1, 5, 9]),
    first=st.integers(0, 6),
    v_level=st.sampled_from(["k", "key", "kv_head"]),
    accelerator=st.sampled_from(["edge", "cloud"]),
    seed=st.integers(0, 1000),
)
def test_three_readings_agree_wherever_values_are_read(
    heads: tuple[int, int], queries: int, first: int, v_level: ValueLevel, accelerator: str, seed: int
):
    shape = Shape(1, heads[0], heads[1], queries, 11, 24, 17)
    mapping = random_mapping(random.Random(seed), shape)
    mapping = replace(mapping, keep=replace(mapping.keep, k_slots=mapping.keep.k_slots + 2, v_level=v_level))
    graph = latent(heads[0], queries, 11, 24, first, 17, heads[1]).module()
    try:
        result = flatc.compile(graph, accelerator, mapping=mapping, simulate="always")
    except FlatcError as error:
        if " need" not in error.message:
            raise
        reject()
    priced = flatc.compile(graph, accelerator, mapping=mapping, simulate="never")
    run = result.run()
    assert run.passed
    assert run.offchip_bytes == traffic(result) == traffic(priced)
    assert result.report.peak_buffer_bytes == priced.report.peak_buffer_bytes
    assert float(result.report.latency_cycles) >= float(priced.report.latency_cycles) * (1 - 1e-9)
    inputs = random_inputs(result.schedule, 0)
    values = inputs["c"][..., first : first + 17]
    expected = attention(inputs["q"], inputs["c"], values, keep=np.tri(queries, 11, 11 - queries, dtype=bool))
    np.testing.assert_allclose(run.reference["a"], expected, rtol=1e-9, atol=1e-12)


def once(keep: Keep) -> Mapping:
    """All rows and heads in one tile, keys in three."""
    use = ArrayUse("output")
    return Mapping(Tiles(1, 1, 4, 5, 4, 24, 16), keep, use, use, Softmax("online"), Stages(0, 0, 1, 1, 2))


def test_values_in_keys_are_loaded_once_and_take_no_buffer():
    graph = latent(4, 5, 12, 24, 0, 16).module()
    shared = flatc.compile(graph, "edge", mapping=once(Keep(2, 3, 1, 2, 2, "key", "k")))
    apart = flatc.compile(graph, "edge", mapping=once(Keep(2, 2, 2, 2, 2, "key", "key")))
    assert traffic(shared)["c"] == (12 * 24 * 2, 0)
    assert traffic(apart)["c"] == (12 * (24 + 16) * 2, 0)
    compulsory = {t.name: t.compulsory_bytes for t in apart.report.kernels[0].tensors}
    assert compulsory["c"] == 12 * 24 * 2
    assert "V" not in [buffer.label for buffer in shared.report.kernels[0].buffers]
    problems = [part.problem for result in (shared, apart) for part in parts(schedule_of(result.schedule)) or ()]
    assert problems[0] == problems[1]


def test_a_schedule_alone_says_what_its_values_are():
    """Compared without its graph, as a file of a schedule is."""
    for keep in (Keep(2, 3, 1, 2, 2, "key", "k"), Keep(2, 2, 2, 2, 2, "key", "key")):
        result = flatc.compile(latent(4, 5, 12, 24, 3, 16), "edge", mapping=once(keep))
        alone = flatc.compile(result.schedule)
        assert to_text(alone.report) == to_text(result.report)
        assert alone.run().passed


def test_where_keys_and_values_are_one_tensor_it_is_loaded_once():
    graph = Graph("one", dtype="bf16")
    q, x = graph.input("q", [1, 2, 3, 8]), graph.input("x", [1, 2, 40, 8])
    graph.output(graph.attention(q, x, x), names=["a"])
    result = flatc.compile(graph, "edge", objective="offchip")
    assert traffic(result)["x"] == (2 * 40 * 8 * 2, 0)
    assert result.run().passed


@pytest.mark.parametrize(
    ("mapping", "error"),
    [
        (once(Keep(2, 1, 1, 2, 2, "key", "k")), 'buffer "K" .* needs 2'),
        (
            Mapping(
                Tiles(1, 1, 4, 5, 4, 24, 16),
                Keep(2, 3, 1, 2, 2, "key", "k"),
                ArrayUse("output"),
                ArrayUse("output"),
                Softmax("rows"),
                Stages(0, 0, 0, 0, 1),
            ),
            r"softmax\(rows\) is done with a tile of K before it needs V",
        ),
    ],
)
def test_a_tile_of_keys_must_stay_until_its_values_were_used(mapping: Mapping, error: str):
    with pytest.raises(FlatcError, match=error):
        flatc.compile(latent(4, 5, 12, 24, 0, 16), "edge", mapping=mapping)


def test_values_that_are_not_in_the_keys_cannot_be_read_there():
    graph = Graph("apart")
    q, k, v = (graph.input(name, [1, 1, 3, 8]) for name in "qkv")
    graph.output(graph.attention(q, k, v))
    mapping = Mapping(
        Tiles(1, 1, 1, 3, 3, 8, 8),
        Keep(2, 3, 1, 2, 2, "key", "k"),
        ArrayUse("output"),
        ArrayUse("output"),
        Softmax("online"),
        Stages(0, 0, 0, 0, 1),
    )
    with pytest.raises(FlatcError, match="V is no part of K here"):
        flatc.compile(graph, "edge", mapping=mapping)


# --- DeepSeek-V3 ----------------------------------------------------------------------------------------------


@cache
def deepseek(name: str, accelerator: str, phase: str) -> Compilation:
    """One of the examples, at its real size."""
    return flatc.compile(EXAMPLES / f"{name}.flat", accelerator, phase=phase)


@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_absorbed_decode_moves_far_fewer_bytes_for_more_products(accelerator: str):
    absorbed, plain = (deepseek(n, accelerator, "decode") for n in ("deepseek_v3_mla", "deepseek_v3_mla_plain"))
    keys = 8193
    rows = {tensor.name: tensor for tensor in absorbed.report.kernels[-1].tensors}["c"]
    assert rows.compulsory_bytes == keys * 576 * 2  # one latent row a token, read or appended, for all 128 heads
    whole = [tensor.compulsory_bytes or 0 for tensor in plain.report.kernels[0].tensors if tensor.name in ("k", "v")]
    assert sum(whole) == keys * 128 * (192 + 128) * 2
    macs = [result.report.kernels[-1].least_macs for result in (absorbed, plain)]
    assert macs == [128 * keys * (576 + 512), 128 * keys * (192 + 128)]
    assert plain.report.binding == "off-chip"
    assert absorbed.report.latency_cycles * 9 < plain.report.latency_cycles


def test_absorbed_decode_is_bound_by_the_small_array_and_by_the_memory_of_the_large_one():
    for accelerator, bound in (("edge", "array"), ("cloud", "off-chip")):
        report = deepseek("deepseek_v3_mla", accelerator, "decode").report
        assert report.bounds is not None
        assert report.bounds.binding == report.binding == bound
        assert report.latency_cycles < report.bounds.cycles * 1.4


def test_a_small_one_of_the_same_shape_runs():
    bindings = {"H": 4, "L": 32, "R": 8, "P": 21}
    result = flatc.compile(EXAMPLES / "deepseek_v3_mla.flat", "edge", phase="decode", bindings=bindings)
    assert result.run().passed


# --- Its whole layer ------------------------------------------------------------------------------------------

LAYER = {"B": 2, "E": 20, "H": 3, "LQ": 12, "L": 8, "D": 6, "R": 4, "DV": 5, "F": 14}
"""Sizes that no tile divides."""


def layer(name: str, **bindings: int) -> ModuleOp:
    """The graph of a layer at small sizes, in f64; it gives the cache too."""
    text = (EXAMPLES / f"{name}.flat").read_text().replace("output y", f"output y, {'row' if 'plain' in name else 'k'}")
    text = text.replace("dtype bf16, softmax f32", "dtype f64")
    return parse_flat(text, name, phase="decode" if "P" in bindings else "prefill", bindings=LAYER | bindings)


def check_absorbed_decode(run: Callable[[ModuleOp, dict[str, np.ndarray]], list[np.ndarray]]) -> None:
    """The last token of a plain prefill is what absorbed decode gives on the rows that the prefill caches.

    Weights of the plain form are those of the absorbed one, head by head.
    """
    tokens = 7
    plain, step = layer("deepseek_v3_layer_plain", S=tokens), layer("deepseek_v3_layer", P=tokens - 1)
    inputs = random_inputs(plain, 3)
    expected, rows = run(plain, inputs)
    by_head = inputs.pop("wkb").reshape(LAYER["L"], LAYER["H"], LAYER["D"] + LAYER["DV"]).transpose(1, 0, 2)
    inputs["wuk"], inputs["wuv"] = by_head[..., : LAYER["D"]].swapaxes(1, 2), by_head[..., LAYER["D"] :]
    inputs |= {"x": inputs["x"][:, -1:], "c": rows[:, :, :-1]}
    found, grown = run(step, inputs)
    np.testing.assert_allclose(found, expected[:, -1:], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(grown, rows, rtol=1e-9, atol=1e-11)


def test_the_absorbed_layer_decodes_what_the_plain_one_computes():
    check_absorbed_decode(run_module)


@pytest.mark.slow
def test_the_schedules_of_both_layers_compute_the_same():
    def run(graph: ModuleOp, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        result = flatc.compile(graph, "edge")
        found = run_schedule(result.schedule, inputs)
        assert found.offchip_bytes == simulated_bytes(result.schedule)
        return found.outputs

    check_absorbed_decode(run)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deepseek_v3_layer", "deepseek_v3_layer_plain"])
@pytest.mark.parametrize("seed", range(3))
def test_three_readings_of_a_layer_agree_at_any_size(name: str, seed: int):
    rng = random.Random(seed)
    sizes = {"B": (1, 2, 3), "E": (5, 20), "H": (1, 2, 5), "LQ": (3, 12), "L": (2, 7, 16), "D": (1, 3, 8), "R": (2, 4)}
    bindings = {
        dim: rng.choice(choices) for dim, choices in (sizes | {"DV": (1, 5), "F": (7,), "S": (1, 2, 6)}).items()
    }
    bindings |= {"P": rng.choice([0, 3])} if name == "deepseek_v3_layer" else {}
    path, accelerator = EXAMPLES / f"{name}.flat", rng.choice(["edge", "cloud", "fusemax"])
    result = flatc.compile(path, accelerator, phase="prefill", bindings=bindings, simulate="always")
    mapping = result.mapping_text
    priced = flatc.compile(path, accelerator, phase="prefill", bindings=bindings, mapping=mapping, simulate="never")
    run = result.run()
    assert run.passed
    for kernel, form in zip(result.report.kernels, priced.report.kernels, strict=True):
        assert (kernel.tensors, kernel.peak_buffer_bytes) == (form.tensors, form.peak_buffer_bytes)
        assert kernel.latency_cycles >= form.latency_cycles * (1 - 1e-12)
    assert run.offchip_bytes == simulated_bytes(result.schedule)
    assert result.report.bounds is not None
    assert result.report.bounds.cycles <= result.report.latency_cycles


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_decode_of_the_layer_is_bound_by_the_bytes_of_its_weights(accelerator: str):
    result = deepseek("deepseek_v3_layer", accelerator, "decode")
    report = result.report
    weights = 7168 * 1536 + 1536 * 24576 + 7168 * 576 + 128 * 128 * 1024 + 16384 * 7168 + 3 * 7168 * 18432
    assert report.bounds is not None
    assert report.binding == "off-chip"
    assert report.latency_cycles < report.bounds.cycles * 1.06
    assert 2 * weights < report.offchip_bytes < 2 * weights * 1.04  # 8192 latent rows are 9.4 MB
    assert not [kernel.name for kernel in report.kernels if kernel.name.startswith(("copy", "append"))]
