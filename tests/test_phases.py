"""Phases, shared heads and storage types, from the language to the numbers: what decode and chunks cost and give."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import flatc
from flatc.builder import Graph, causal
from flatc.compiler import Compilation
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.interpreter import random_inputs, run_schedule
from flatc.interpreter.reference import attention
from flatc.passes.cost.explanation import explain
from flatc.report import to_json, to_text
from flatc.report.build import schedule_of
from tests.support import Shape, random_mapping

LLAMA = Path(__file__).resolve().parent.parent / "examples" / "llama3_8b_gqa.flat"

PHASES = {"prefill": (7, 0), "chunked": (5, 8), "decode": (1, 12)}
"""New tokens and tokens in the cache."""

FLOATS = ("f32", "bf16", "f16", "f8E4M3FN", "f8E5M2")
USE = ArrayUse("output")
BYTES = {"f32": 4, "bf16": 2, "f16": 2, "f8E4M3FN": 1, "f8E5M2": 1, "i8": 1}


def gqa(
    heads: int = 8, kv_heads: int = 2, new: int = 1, old: int = 12, q: str = "bf16", k: str = "bf16", v: str = "bf16"
) -> Graph:
    """Causal attention of `new` queries over `old + new` keys, each tensor stored as it says."""
    graph = Graph("gqa", dtype="bf16", softmax="f32")
    queries = graph.input("q", [2, heads, new, 16], q)
    keys, values = (graph.input(n, [2, kv_heads, old + new, 16], t) for n, t in (("k", k), ("v", v)))
    graph.output(graph.attention(queries, keys, values, mask=causal()), names=["a"])
    return graph


def moved(result: Compilation) -> dict[str, tuple[int, int]]:
    """Bytes read and written by tensor, as the report has them."""
    tensors = (tensor for kernel in result.report.kernels for tensor in kernel.tensors)
    return {tensor.name: (tensor.read_bytes, tensor.written_bytes) for tensor in tensors}


def once(keys: int) -> Mapping:
    """Every tensor once off chip: all heads and keys in a tile, one query row at a time."""
    tiles = Tiles(1, 2, 4, 1, keys, 16, 16)
    return Mapping(tiles, Keep(2, 2, 2, 1, 2, "kv_head", "kv_head"), USE, USE, Softmax("online"), Stages(0, 0, 0, 0, 1))


@cache
def llama_decode(accelerator: str) -> Compilation:
    """Decode of Llama-3-8B's attention: 8192 tokens in the cache, and one more."""
    return flatc.compile(LLAMA, accelerator, phase="decode")


# --- Phases ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_decode_is_bound_by_the_bytes_of_keys_and_values(accelerator: str):
    report = llama_decode(accelerator).report
    keys = 8 * 8193 * 128 * 2
    traffic = {tensor.name: tensor for tensor in report.tensors}
    assert [traffic[name].read_bytes for name in ("k", "v")] == [keys, keys]
    assert [traffic[name].compulsory_bytes for name in ("k", "v")] == [keys, keys]
    assert report.bounds is not None
    assert report.bounds.binding == report.binding == "off-chip"
    assert report.bounds.offchip_cycles >= 2 * keys * report.accelerator.cycles_per_byte_read
    assert report.latency_cycles < report.bounds.cycles * 1.1


def test_the_only_row_of_decode_is_not_masked():
    """Causal order hides nothing from the newest token, so its scores are as cheap as without a mask."""
    result = flatc.compile(gqa(), "edge", mapping=once(13))
    assert "mask" not in str(result.schedule)
    assert result.run().passed


def test_grouped_heads_are_rows_of_the_array():
    """A query row of each of the heads that share keys: together the rows of one product, so keys are read once."""
    result = llama_decode("edge")
    (mapping,) = result.mappings.values()
    assert isinstance(mapping, Mapping)
    assert (mapping.tiles.group, mapping.tiles.query) == (4, 1)


def test_the_phase_is_part_of_schedule_and_report():
    result = llama_decode("edge")
    assert result.report.phase == "decode"
    assert to_text(result.report).startswith("llama3_8b_gqa (decode) on edge")
    assert '"phase": "decode"' in to_json(result.report)
    assert 'spatial.schedule @llama3_8b_gqa phase "decode" inputs' in str(result.schedule)
    assert flatc.compile(gqa(), "edge", mapping=once(13)).report.phase is None


# --- Heads and storage types ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_compulsory_bytes_of_keys_and_values_are_divided_by_the_group(kv_heads: int):
    mapping = replace(once(13), tiles=Tiles(1, 1, 1, 1, 13, 16, 16))
    graphs = (gqa(kv_heads=n) for n in (8, kv_heads))
    full, shared = (flatc.compile(graph, "edge", mapping=mapping).report.kernels[0] for graph in graphs)
    least = {t.name: t.compulsory_bytes or 0 for t in full.tensors}
    for tensor in shared.tensors:
        group = 8 // kv_heads if tensor.name in ("k", "v") else 1
        assert tensor.compulsory_bytes == tensor.read_bytes + tensor.written_bytes == least[tensor.name] // group


@pytest.mark.parametrize(
    ("q", "kv"),
    [(t, t) for t in FLOATS] + [("bf16", "f8E4M3FN"), ("f16", "f8E5M2"), ("f8E4M3FN", "bf16"), ("f32", "f16")],
)
def test_bytes_energy_and_numbers_follow_the_storage_types(q: str, kv: str):
    result = flatc.compile(gqa(new=3, old=6, q=q, k=kv, v=kv), "edge", mapping=once(9))
    wider = max((q, kv), key=lambda t: BYTES[t])
    assert moved(result) == {
        "q": (2 * 8 * 3 * 16 * BYTES[q], 0),
        "k": (2 * 2 * 9 * 16 * BYTES[kv], 0),
        "v": (2 * 2 * 9 * 16 * BYTES[kv], 0),
        "a": (0, 2 * 8 * 3 * 16 * BYTES[wider]),
    }
    offchip = result.report.energy_by_component["off-chip"]
    assert offchip == result.report.offchip_bytes * result.report.accelerator.offchip.energy_pj_per_byte
    run = result.run()
    assert run.passed
    assert run.offchip_bytes == moved(result)


@pytest.mark.parametrize("scales", [[8, 1, 1], [1]], ids=["a scale for each head", "one scale"])
def test_scales_of_keys_and_values_in_i8_fold_into_queries_and_outputs(scales: list[int]):
    """K and V move as they are stored, a byte each; scales are priced where they are applied, on the vector unit."""
    graph = Graph("quantised", dtype="bf16", softmax="f32")
    q, ks, vs = graph.input("q", [1, 8, 1, 16]), graph.input("ks", scales), graph.input("vs", scales)
    k, v = (graph.input(name, [1, 2, 33, 16], "i8") for name in ("k8", "v8"))
    graph.output(graph.attention(q * ks, k, v, mask=causal()) * vs, names=["a"])
    result = flatc.compile(graph, "edge", strategy="online", objective="offchip")
    assert [kernel.name for kernel in result.report.kernels] == ["multiply", "attention", "multiply_1"]
    assert [totals(result)[name] for name in ("k8", "v8")] == [(2 * 33 * 16, 0)] * 2
    inputs = random_inputs(result.schedule, 0)
    per_head = scales if len(scales) == 3 else [1, 1, 1]
    by_key = [np.broadcast_to(inputs[n].astype(np.float64).reshape(per_head), (8, 1, 1)) for n in ("ks", "vs")]
    for name, scale in zip(("ks", "vs"), by_key, strict=True):  # heads that share keys share scales
        inputs[name] = np.repeat(scale[::4], 4, axis=0)[: per_head[0]].reshape(scales).astype(inputs[name].dtype)
    shared = [np.broadcast_to(inputs[n].astype(np.float64).reshape(per_head), (8, 1, 1))[::4] for n in ("ks", "vs")]
    run = result.run(inputs)
    assert run.passed
    assert run.offchip_bytes == totals(result)
    expected = attention(inputs["q"], inputs["k8"] * shared[0], inputs["v8"] * shared[1])
    np.testing.assert_allclose(run.reference["a"], expected, rtol=1e-9, atol=1e-12)


def test_a_scale_for_each_key_multiplies_scores_and_probabilities():
    """In kernels of their own, between which scores go off chip."""
    graph = Graph("by_key", dtype="bf16", softmax="f32")
    q, ks, vs = graph.input("q", [1, 4, 3, 16]), graph.input("ks", [1, 1, 1, 9], "f32"), graph.input("vs", [1, 1, 1, 9])
    k, v = (graph.input(name, [1, 2, 9, 16], "i8") for name in ("k8", "v8"))
    scores = graph.adjust(graph.logit(q, k) * ks, mask=causal())
    graph.output(graph.attend(graph.probabilities(scores) * vs, v), names=["a"])
    result = flatc.compile(graph, "edge", strategy="online")
    assert [k.name for k in result.report.kernels] == ["logit_0", "multiply", "softmax_1", "multiply_1", "attend_2"]
    inputs = random_inputs(result.schedule, 0)
    run = result.run(inputs)
    assert run.passed
    by_key = [np.moveaxis(inputs[name].astype(np.float64), 3, 2) for name in ("ks", "vs")]
    expected = attention(
        inputs["q"], inputs["k8"] * by_key[0], inputs["v8"] * by_key[1], keep=np.tri(3, 9, 6, dtype=bool)
    )
    np.testing.assert_allclose(run.reference["a"], expected, rtol=1e-9, atol=1e-12)


def test_products_of_integers_accumulate_in_i32():
    """Exactly: a sum of 2048 products of 127 and -128 needs 25 bits."""
    graph = Graph("whole", dtype="bf16", softmax="f32")
    q, k = (graph.input(name, [1, 1, 2, 2048], "i8") for name in ("q", "k"))
    graph.output(graph.logit(q, k, scale=1), names=["s"])
    module = graph.module()
    assert "accumulate i32" in str(module)
    low, high = np.full((1, 1, 2, 2048), -128, np.int8), np.full((1, 1, 2, 2048), 127, np.int8)
    low[0, 0, 0, 0] = -127
    run = flatc.compile(module, "edge").run({"q": low, "k": high})
    assert run.max_abs_error == 1  # -33,292,161 and the f32 beside it: the sum is exact, its rounding to f32 is not
    assert run.passed


# --- The cache ------------------------------------------------------------------------------------------------


def cached(new: int, old: int) -> Graph:
    """Causal attention of `new` tokens, whose keys and values are appended to a cache of `old` first."""
    graph = Graph("cached", dtype="bf16", softmax="f32")
    q, k, v = (graph.input(name, [2, heads, new, 16]) for name, heads in (("q", 6), ("k", 2), ("v", 2)))
    ck, cv = (graph.cache(name, [2, 2, old, 16]) for name in ("ck", "cv"))
    graph.output(graph.attention(q, graph.append(ck, k), graph.append(cv, v), mask=causal()), names=["a"])
    return graph


def test_prefill_then_chunks_then_decode_equal_one_long_prefill():
    """Seven tokens: at once, and as four, two and one with what was appended before."""
    whole = flatc.compile(cached(7, 0), "edge", strategy="online")
    inputs = random_inputs(whole.schedule, 0)
    (expected,) = run_schedule(whole.schedule, inputs, exact=True).outputs
    for new, old in ((4, 0), (2, 4), (1, 6)):
        part = flatc.compile(cached(new, old), "edge", strategy="online")
        fed = {name: inputs[name][:, :, old : old + new] for name in "qkv"}
        fed |= {f"c{name}": inputs[name][:, :, :old] for name in "kv"}
        (found,) = run_schedule(part.schedule, fed, exact=True).outputs
        np.testing.assert_allclose(found, expected[:, :, old : old + new], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("phase", PHASES)
def test_appending_writes_new_rows_and_copies_no_old_ones(phase: str):
    new, old = PHASES[phase]
    result = flatc.compile(cached(new, old), "edge", strategy="online", objective="offchip")
    row = 2 * 2 * 16 * 2
    traffic = totals(result)
    assert [traffic[name] for name in ("k", "ck")] == [(new * row, 0), ((old + new) * row, new * row)]
    assert traffic["cv"] == traffic["ck"]
    least = {t.name: t.compulsory_bytes for kernel in result.report.kernels for t in kernel.tensors}
    assert least["ck"] == (old + new) * row  # old rows read, new ones written: those need not come back
    assert result.report.bounds is not None
    assert result.report.latency_cycles >= result.report.bounds.cycles
    run = result.run()
    assert run.passed
    assert run.offchip_bytes == traffic == totals(flatc.compile(cached(new, old), mapping=result.mapping_text))


def test_a_cache_of_integers_grows_too():
    graph = Graph("whole", dtype="bf16", softmax="f32")
    q, k = graph.input("q", [1, 2, 1, 16]), graph.input("k", [1, 2, 1, 16], "i8")
    rows = graph.append(graph.cache("c", [1, 2, 7, 16], "i8"), k)
    graph.output(graph.attention(q, rows, rows), names=["a"])
    assert flatc.compile(graph, "edge", strategy="online").run().passed


def test_a_cache_does_not_grow_in_two_ways():
    """Both would write the same rows; the interpreter alone could keep them apart."""
    graph = Graph("twice", dtype="f32")
    q, m, cache = graph.input("q", [1, 2, 1, 8]), graph.input("m", [1, 2, 1, 8]), graph.cache("c", [1, 2, 3, 8])
    for rows in (graph.append(cache, q), graph.append(cache, m)):
        graph.output(graph.attention(q, rows, rows))
    with pytest.raises(FlatcError, match="a cache grows in place, and other rows were appended to this one"):
        flatc.compile(graph, "edge", strategy="online")


def test_explaining_tells_rows_that_are_read_from_rows_that_are_appended():
    """Both are in the cache; a row that is appended and read back is read once more than it must be."""
    result = flatc.compile(cached(4, 4), "edge", strategy="online", objective="offchip")
    found = explain(schedule_of(result.schedule), result.report.accelerator)
    moved = {cause.name for cause in found.causes if cause.name.endswith("times")}
    assert moved == {"reads ck 2.00 times", "reads cv 2.00 times"}
    assert sum(cause.cycles for cause in found.causes) == found.gap_cycles


def test_a_kernel_whose_result_is_appended_stores_into_the_cache():
    """The rows an attention computes are written once, behind the old ones: no kernel copies them there."""
    graph = Graph("direct", dtype="f32")
    q, cache = graph.input("q", [1, 4, 3, 8]), graph.cache("c", [1, 4, 5, 8])
    rows = graph.append(cache, graph.attention(q, q, q))
    graph.output(graph.attention(q, rows, rows), rows, names=["a", "rows"])
    result = flatc.compile(graph, "edge", strategy="online", objective="offchip")
    assert [kernel.name for kernel in result.report.kernels] == ["attention_0", "attention_1"]
    assert [(t.read_bytes, t.written_bytes) for t in result.report.kernels[0].tensors if t.name == "c"] == [(0, 384)]
    run = result.run()
    assert run.passed
    assert run.outputs["rows"].shape == (1, 4, 8, 8)


def totals(result: Compilation) -> dict[str, tuple[int, int]]:
    """Bytes by tensor, summed over kernels."""
    found: dict[str, tuple[int, int]] = {}
    for kernel in result.report.kernels:
        for tensor in kernel.tensors:
            read, written = found.get(tensor.name, (0, 0))
            found[tensor.name] = (read + tensor.read_bytes, written + tensor.written_bytes)
    return dict(sorted(found.items()))


# --- Laws -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    phase=st.sampled_from(sorted(PHASES)),
    heads=st.sampled_from([(1, 1), (4, 1), (6, 2), (4, 4)]),
    types=st.tuples(*[st.sampled_from([*FLOATS, "i8"])] * 3),
    accelerator=st.sampled_from(["edge", "cloud", "fusemax"]),
    seed=st.integers(0, 1000),
)
def test_three_readings_agree_on_bytes_and_numbers(
    phase: str, heads: tuple[int, int], types: tuple[str, str, str], accelerator: str, seed: int
):
    new, old = PHASES[phase]
    sizes = Shape(batch=2, heads=heads[0], kv_heads=heads[1], queries=new, keys=old + new, d_qk=16, d_v=16)
    mapping = random_mapping(random.Random(seed), sizes)
    graph = gqa(*heads, new, old, *types).module()
    try:
        result = flatc.compile(graph, accelerator, mapping=mapping, simulate="always")
    except FlatcError as error:
        if " need" not in error.message:
            raise
        reject()  # more slots than the mapping has
    run = result.run()
    assert run.passed
    assert run.offchip_bytes == moved(result)
    assert moved(result) == moved(flatc.compile(graph, accelerator, mapping=mapping, simulate="never"))
    keep = np.tri(new, old + new, old, dtype=bool)
    inputs = random_inputs(result.schedule, 0)
    expected = attention(inputs["q"], inputs["k"], inputs["v"], keep=keep)
    np.testing.assert_allclose(run.reference["a"], expected, rtol=1e-9, atol=1e-12)
