"""Keys and values in pages: the numbers of contiguous ones, a transfer for each page, a table that is loaded too."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import flatc
from flatc.accelerators import load
from flatc.builder import Graph, causal
from flatc.compiler import Compilation
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.append_mapping import AppendMapping
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs
from flatc.interpreter.reference import attention
from flatc.passes.cost.kernel_costs import kernel_costs
from flatc.report import to_text
from tests.support import Shape, kernels_of, random_mapping

BLOCKS = 7


def paged(shape: Shape, block: int) -> Graph:
    """Causal attention over keys and values that lie in a pool of seven blocks; sequences may share some."""
    graph = Graph("paged", dtype="bf16", softmax="f32")
    s, pages = shape, -(-shape.keys // block)
    q = graph.input("q", [s.batch, s.heads, s.queries, s.d_qk])
    keys, values = (graph.input(n, [BLOCKS, s.kv_heads, block, d]) for n, d in (("kp", s.d_qk), ("vp", s.d_v)))
    table = graph.input("t", [s.batch, pages], "i32")
    k, v = (graph.paged(pool, table, keys=shape.keys) for pool in (keys, values))
    graph.output(graph.attention(q, k, v, mask=causal()), names=["a"])
    return graph


def contiguous(pool: NDArray[Any], table: NDArray[Any], keys: int) -> NDArray[Any]:
    """Row by row, with no code of flatc's: row r of sequence b is row r % block of block table[b, r // block]."""
    block = pool.shape[2]
    rows = [[pool[pages[r // block], :, r % block] for r in range(keys)] for pages in table]
    return np.swapaxes(np.array(rows), 1, 2)


def machine(name: str, overhead: int = 0, latency: int = 0) -> Accelerator:
    found = load(name)
    return replace(found, offchip=replace(found.offchip, overhead_cycles=overhead, latency_cycles=latency))


def traffic(result: Compilation) -> dict[str, tuple[int, int]]:
    return {t.name: (t.read_bytes, t.written_bytes) for t in result.report.kernels[-1].tensors}


def whole(key: int, batch: int = 1) -> Mapping:
    """A mapping with key tiles of one size and all heads in a tile."""
    use = ArrayUse("output")
    tiles = Tiles(batch, 2, 2, 3, key, 8, 8)
    return Mapping(tiles, Keep(2, 2, 2, 2, 2), use, use, Softmax("online"), Stages(0, 0, 1, 1, 2))


SMALL = Shape(batch=2, heads=4, kv_heads=2, queries=3, keys=22, d_qk=8, d_v=8)


@settings(max_examples=8, deadline=None)
@given(
    heads=st.sampled_from([(1, 1), (4, 1), (4, 2)]),
    queries=st.sampled_from([1, 5]),
    keys=st.integers(5, 24),
    block=st.sampled_from([1, 3, 4, 8]),
    overhead=st.sampled_from([0, 9]),
    accelerator=st.sampled_from(["edge", "cloud"]),
    seed=st.integers(0, 1000),
)
def test_three_readings_agree_and_numbers_are_those_of_contiguous_keys(
    heads: tuple[int, int], queries: int, keys: int, block: int, overhead: int, accelerator: str, seed: int
):
    shape = Shape(2, heads[0], heads[1], queries, keys, 16, 8)
    mapping = random_mapping(random.Random(seed), shape)
    tile = mapping.tiles.key
    mapping = replace(mapping, tiles=replace(mapping.tiles, key=max(tile // block * block, 1) if tile < keys else tile))
    graph, target = paged(shape, block).module(), machine(accelerator, overhead, 5 * overhead)
    try:
        result = flatc.compile(graph, target, mapping=mapping, simulate="always")
    except FlatcError as error:
        if " need" not in error.message:
            raise
        reject()
    priced = flatc.compile(graph, target, mapping=mapping, simulate="never")
    inputs = random_inputs(result.schedule, seed)
    run = result.run(inputs)
    assert run.passed
    k, v = (contiguous(inputs[name], inputs["t"], keys) for name in ("kp", "vp"))
    expected = attention(inputs["q"], k, v, keep=np.tri(queries, keys, keys - queries, dtype=bool))
    np.testing.assert_allclose(run.reference["a"], expected, rtol=1e-9, atol=1e-12)
    assert run.offchip_bytes == traffic(result) == traffic(priced)
    assert result.report.work == priced.report.work
    (kernel,) = kernels_of(result.schedule)
    busy, form = (kernel_costs(kernel, target, how).busy_cycles["offchip"] for how in ("always", "never"))
    assert float(busy) == pytest.approx(float(form), rel=1e-12)
    assert result.report.peak_buffer_bytes == priced.report.peak_buffer_bytes
    assert result.report.kernels[0].bounds == priced.report.kernels[0].bounds


def test_each_page_of_each_sequence_is_a_transfer_that_pays_its_overhead():
    """22 keys in pages of 4 by tiles of 8: 2 + 2 + 2 pages, of K and of V, for two sequences; tables, Q, outputs."""
    results = [flatc.compile(paged(SMALL, 4), machine("edge", overhead), mapping=whole(8)) for overhead in (0, 100)]
    free, charged = (
        kernel_costs(kernels_of(result.schedule)[0], machine("edge", overhead)).busy_cycles["offchip"]
        for result, overhead in zip(results, (0, 100), strict=True)
    )
    assert charged - free == 100 * (2 * 2 * 6 + 2 + 2 + 2)


def test_smaller_pages_take_longer_and_have_longer_tables():
    reports = [flatc.compile(paged(SMALL, block), machine("edge", 100), mapping=whole(8)).report for block in (1, 4, 8)]
    cycles = [float(report.latency_cycles) for report in reports]
    assert cycles == sorted(cycles, reverse=True)
    tables = [next(t for t in report.kernels[0].tensors if t.name == "t") for report in reports]
    assert [(t.read_bytes, t.compulsory_bytes) for t in tables] == [(2 * n * 4, 2 * n * 4) for n in (22, 6, 3)]


def test_sequences_that_share_blocks_and_a_last_page_used_in_part():
    result = flatc.compile(paged(SMALL, 8), "edge", mapping=whole(8))
    inputs = random_inputs(result.schedule, 0) | {"t": np.array([[5, 0, 5], [0, 0, 6]], np.int32)}
    run = result.run(inputs)
    assert run.passed
    k, v = (contiguous(inputs[name], inputs["t"], 22) for name in ("kp", "vp"))
    expected = attention(inputs["q"], k, v, keep=np.tri(3, 22, 19, dtype=bool))
    np.testing.assert_allclose(run.reference["a"], expected, rtol=1e-9, atol=1e-12)


def test_a_schedule_alone_knows_its_pages():
    result = flatc.compile(paged(SMALL, 4), "edge", mapping=whole(8))
    alone = flatc.compile(result.schedule)
    assert to_text(alone.report) == to_text(result.report)
    assert alone.run().passed


def test_latent_rows_in_pages_are_loaded_once():
    graph = Graph("latent", dtype="bf16", softmax="f32")
    q, pool, table = graph.input("q", [2, 4, 1, 24]), graph.input("c", [9, 1, 4, 24]), graph.input("t", [2, 4], "i32")
    c = graph.paged(pool, table)
    graph.output(graph.attention(q, c, graph.features(c, 0, 16)), names=["a"])
    result = flatc.compile(graph, "edge", objective="offchip")
    assert traffic(result)["c"] == (2 * 16 * 24 * 2, 0)
    assert result.run().passed


def test_tiles_of_keys_do_not_cut_through_pages():
    with pytest.raises(FlatcError, match="tiles of 6 keys cut through pages of 4"):
        flatc.compile(paged(SMALL, 4), "edge", mapping=whole(6))


def test_keys_and_values_lie_in_the_same_pages():
    graph = Graph("mixed")
    q, v = graph.input("q", [1, 1, 2, 8]), graph.input("v", [1, 1, 8, 8])
    k = graph.paged(graph.input("kp", [3, 1, 4, 8]), graph.input("t", [1, 2], "i32"))
    graph.output(graph.attention(q, k, v))
    with pytest.raises(FlatcError, match="do not lie in the same pages"):
        flatc.compile(graph, "edge")


# --- Appending ------------------------------------------------------------------------------------------------------


def growing(batch: int, heads: int, new: int, old: int, block: int, pages: int) -> Graph:
    """Attention whose new keys go to pages behind `old` ones; keys are computed, values an input."""
    graph = Graph("growing", dtype="bf16", softmax="f32")
    q, nk, nv = (graph.input(name, [batch, heads, new, 8]) for name in ("q", "nk", "nv"))
    kp, vp = (graph.cache(name, [batch * pages + 1, heads, block, 8]) for name in ("kp", "vp"))
    table = graph.input("t", [batch, pages], "i32")
    k = graph.append(graph.paged(kp, table, keys=old), graph.rope(nk, start=old))
    v = graph.append(graph.paged(vp, table, keys=old), nv)
    graph.output(graph.attention(q, k, v, mask=causal()), names=["a"])
    return graph


def totals(result: Compilation) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for tensor in (tensor for kernel in result.report.kernels for tensor in kernel.tensors):
        read, written = found.get(tensor.name, (0, 0))
        found[tensor.name] = read + tensor.read_bytes, written + tensor.written_bytes
    return found


@pytest.mark.parametrize(
    ("batch", "new", "old", "block"), [(2, 1, 7, 4), (1, 5, 6, 4), (3, 9, 8, 4), (2, 3, 1, 8), (1, 7, 5, 3)]
)
def test_new_rows_go_to_the_pages_that_the_table_names(batch: int, new: int, old: int, block: int):
    """One transfer for each page of each sequence, whichever tiles append them; the simulator counts the same."""
    pages, target = -(-(old + new) // block), machine("edge", 7, 50)
    graph = growing(batch, 2, new, old, block, pages).module()
    result = flatc.compile(graph, target, strategy="online", simulate="always")
    assert [kernel.name for kernel in result.report.kernels] == ["rope", "append_kp", "append_vp", "attention"]
    priced = flatc.compile(graph, target, mapping=result.mappings, simulate="never")
    run = result.run()
    assert run.passed
    assert run.offchip_bytes == totals(result) == totals(priced)
    rows = batch * 2 * new * 8 * 2
    assert [totals(result)[name][1] for name in ("kp", "vp")] == [rows, rows]
    for kernel, form in zip(result.report.kernels, priced.report.kernels, strict=True):
        assert (kernel.work, kernel.peak_buffer_bytes) == (form.work, form.peak_buffer_bytes)
        assert kernel.latency_cycles >= form.latency_cycles * (1 - 1e-12)
    alone = flatc.compile(parse_mlir(str(result.schedule), "growing"))
    assert to_text(alone.report) == to_text(result.report)


def test_what_follows_in_a_page_is_appended_to_what_was_appended():
    graph = Graph("twice", dtype="bf16")
    pool, table = graph.cache("kp", [9, 2, 4, 8]), graph.input("t", [2, 3], "i32")
    k = graph.append(graph.paged(pool, table, keys=5), graph.input("m", [2, 2, 2, 8]))
    k = graph.append(k, graph.input("n", [2, 2, 3, 8]))
    graph.output(graph.attention(graph.input("q", [2, 2, 1, 8]), k, k), names=["a"])
    result = flatc.compile(graph, "edge", strategy="online")
    assert totals(result)["kp"][1] == 2 * 2 * 5 * 8 * 2
    assert result.run().passed


def test_blocks_that_get_new_rows_belong_to_one_page():
    result = flatc.compile(growing(2, 1, 1, 5, 4, 2), "edge", strategy="online")
    inputs = random_inputs(result.schedule, 0)
    assert result.run(inputs | {"t": np.array([[3, 0], [3, 1]], np.int32)}).passed  # full blocks may be shared
    with pytest.raises(FlatcError, match="the table gives block 1 to two pages, and new rows are appended to it"):
        result.run(inputs | {"t": np.array([[0, 1], [3, 1]], np.int32)})


def test_pages_must_have_room_and_tiles_of_rows_keep_to_them():
    with pytest.raises(FlatcError, match="the pages of a sequence hold 8 rows, and these make it 9"):
        flatc.compile(growing(1, 1, 3, 6, 4, 2), "edge", strategy="flat-r")
    result = flatc.compile(growing(1, 1, 5, 6, 4, 3), "edge", strategy="online")
    with pytest.raises(FlatcError, match="append_kp: tiles of 4 rows behind 6 cut through pages of 4"):
        flatc.compile(
            growing(1, 1, 5, 6, 4, 3), "edge", mapping={**result.mappings, "append_kp": AppendMapping(1, 1, 4, 1)}
        )


def test_a_table_that_names_a_block_the_pool_lacks_is_refused():
    result = flatc.compile(paged(SMALL, 8), "edge", mapping=whole(8))
    inputs = random_inputs(result.schedule, 0) | {"t": np.full((2, 3), 7, np.int32)}
    with pytest.raises(FlatcError, match="the table names block 7, and the pool has 7"):
        result.run(inputs)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("paged(kp, t, keys = 9)", "2 pages of 4 rows do not hold 9 keys"),
        ("paged(kp, m)", "use i32"),
        ("paged(kp)", "'paged' takes 2 arguments"),
    ],
)
def test_the_language_checks_pools_and_tables(call: str, error: str):
    declared = "input kp : [5, 2, 4, 8]\ninput t : i32[1, 2]\ninput m : [1, 2]"
    with pytest.raises(FlatcError) as refused:
        flatc.compile(f"graph g\n{declared}\nk = {call}\noutput k\n")
    assert error in refused.value.render()
