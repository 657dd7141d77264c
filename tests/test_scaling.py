"""Costs at 64K tokens follow what an attention leaves out: `examples/scaling.py`, with shares worked out by hand."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import flatc
from flatc.dialects.mapping import Mapping

SOURCE = Path(__file__).resolve().parent.parent / "examples" / "scaling.py"
TOKENS = 65536
MACHINES = pytest.mark.parametrize("accelerator", ["edge", pytest.param("cloud", marks=pytest.mark.slow)])


@cache
def scaling() -> Any:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("examples_scaling", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def masked(mask: str) -> str:
    """The graph of the first table under a mask."""
    return scaling().HEADS.format(name="masked", kv_heads=8, queries=TOKENS, keys=TOKENS, mask=mask)


def visited(mapping: Mapping, window: int) -> int:
    """Scores of one head in tiles that some row sees, if every row sees the last `window` keys up to its own."""
    rows, keys = mapping.tiles.query, mapping.tiles.key
    found = 0
    for start in range(0, TOKENS, rows):
        stop = min(start + rows, TOKENS)
        first, last = max(start - window + 1, 0) // keys * keys, min(-(-stop // keys) * keys, TOKENS)
        found += (stop - start) * (last - first)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_a_causal_mask_costs_half_the_tiles_and_the_diagonal(accelerator: str):
    """Work exactly; time and bytes within 2 % of the same share of what the same mapping takes without a mask.

    But where rows are rescaled once a strip of key tiles, a strip whose last tiles no row sees takes up to the time of
    a whole one: time lies between the share of tiles and that of strips. It is near the former without strips.
    """
    found = flatc.compile(masked(", mask = causal"), accelerator)
    plain = flatc.compile(masked(""), accelerator, mapping=found.mapping_text).report
    ((name, mapping),) = found.mappings.items()
    assert isinstance(mapping, Mapping)
    share = visited(mapping, TOKENS) / TOKENS**2
    assert 1 / 2 < share <= 1 / 2 + (mapping.tiles.query + mapping.tiles.key) / TOKENS
    assert found.report.work.macs == plain.work.macs * share
    assert found.report.offchip_bytes / plain.offchip_bytes == pytest.approx(share, rel=0.02)

    strip_keys = mapping.tiles.key * mapping.softmax.rescaled_every
    strips = visited(replace(mapping, tiles=replace(mapping.tiles, key=strip_keys)), TOKENS) / TOKENS**2
    assert share * 0.98 < found.report.latency_cycles / plain.latency_cycles < max(share * 1.02, strips)
    tile_by_tile = {name: replace(mapping, softmax=replace(mapping.softmax, rescaled_every=1))}
    causal, whole = (
        flatc.compile(masked(mask), accelerator, mapping=tile_by_tile).report for mask in (", mask = causal", "")
    )
    assert float(causal.latency_cycles / whole.latency_cycles) == pytest.approx(share, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_a_window_of_4k_costs_a_sixteenth(accelerator: str):
    """Work exactly, by tiles; time within 10 % of the same share of the best attention without a mask."""
    found = flatc.compile(masked(", mask = causal & window(4096)"), accelerator)
    plain = flatc.compile(masked(""), accelerator).report
    (mapping,) = found.mappings.values()
    assert isinstance(mapping, Mapping)
    share = visited(mapping, 4096) / TOKENS**2
    assert share == pytest.approx(4096 / TOKENS, rel=0.05)
    assert found.report.work.macs == plain.work.macs * share
    assert float(found.report.latency_cycles / plain.latency_cycles) == pytest.approx(share, rel=0.1)


@pytest.mark.slow
def test_attention_sinks_beside_a_window_cost_a_tile_more():
    """The first four keys and the last 4096: one tile of keys, and nothing in between."""
    window, sinks = (
        flatc.compile(masked(f", mask = causal & {mask}"), "edge")
        for mask in ("window(4096)", "(window(4096) | first(4))")
    )
    (mapping,) = sinks.mappings.values()
    assert isinstance(mapping, Mapping)
    more = visited(mapping, 4096) / TOKENS + mapping.tiles.key
    assert sinks.report.work.macs / 32 / TOKENS / 256 == pytest.approx(more, rel=0.01)
    assert sinks.report.latency_cycles < window.report.latency_cycles * 1.03


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["causal", "causal & window(4096)", "chunk(8192)"])
def test_at_64k_closed_form_and_simulator_count_the_same(mask: str):
    graph = masked(f", mask = {mask}")
    priced = flatc.compile(graph, "edge", simulate="never")
    simulated = flatc.compile(graph, "edge", mapping=priced.mapping_text, simulate="always")
    assert simulated.report.kernels[0].tensors == priced.report.kernels[0].tensors
    assert simulated.report.work == priced.report.work
    assert simulated.report.peak_buffer_bytes == priced.report.peak_buffer_bytes


@pytest.mark.slow
@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_keys_and_values_are_the_bytes_of_decode_divided_by_the_group(accelerator: str):
    rows = scaling().groups(accelerator)
    assert [row.key_bytes for row in rows] == [2 * TOKENS * 128 * 2 * kv_heads for kv_heads in (32, 8, 1)]
    for row in rows:
        assert row.report.bounds is not None
        assert row.report.bounds.binding == row.report.binding == "off-chip"
        assert row.report.latency_cycles < row.report.bounds.cycles * 1.02
        assert row.key_bytes <= row.report.offchip_bytes < row.key_bytes * 1.001


@MACHINES
def test_latent_rows_are_read_once_for_all_heads_and_take_more_products(accelerator: str):
    plain, absorbed = scaling().latent(accelerator)
    assert plain.key_bytes == TOKENS * 128 * (192 + 128) * 2
    assert absorbed.key_bytes == TOKENS * 576 * 2
    assert absorbed.work_share == (576 + 512) / (192 + 128)
    assert absorbed.latency_share < 0.1


@pytest.mark.slow
def test_a_table_has_a_row_for_each_attention():
    """At 128 tokens the window is as wide as a causal mask."""
    rows = scaling().masks("edge", tokens=128)
    assert [row.cells()[0] for row in rows] == ["no mask", "causal", "window of 4K", "chunks of 8K"]
    assert rows[0].cells()[1] == rows[3].cells()[1] == "100.0 %"
    assert rows[1].cells()[1:] == rows[2].cells()[1:]
    assert rows[1].work_share < 1
