"""Reports: parts add up to totals, bounds are the graph's, and both forms say the same."""

from __future__ import annotations

import doctest
import json
import re
from dataclasses import replace
from fractions import Fraction
from functools import cache

import pytest

import flatc
from flatc.accelerators import load
from flatc.dialects.diagnostics import FlatcError
from flatc.passes.cost.bounds import RESOURCES
from flatc.passes.kernels.schedule_problem import kernel_attention
from flatc.passes.kinds.attention import ATTENTION
from flatc.passes.mapping.live_footprint import live_elements
from flatc.report import Report, build_report, tables, to_dict, to_json, to_text
from tests.support import Shape, attention

TEXT = """graph small
dim B = 2, H = 4, KV = 2, S = 96, D = 16
dtype bf16, softmax f32
input q : [B, H, S, D]
input k, v : [B, KV, S, D]
o = attention(q, k, v, mask = causal)
output o
"""
STRATEGIES = ("auto", "unfused", "flat-h", "flat-r", "online")


@cache
def compiled(strategy: str, accelerator: str) -> Report:
    return flatc.compile(TEXT, accelerator, strategy=strategy).report


def report(strategy: str = "auto", accelerator: str = "edge") -> Report:
    """The report of a compilation, which is done once, however its arguments are spelled."""
    return compiled(strategy, accelerator)


# --- The records --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("accelerator", ["edge", "fusemax"])
def test_parts_add_up_and_nothing_is_below_its_bound(strategy: str, accelerator: str):
    whole = report(strategy, accelerator)
    assert whole.bounds is not None
    assert whole.gap is not None
    assert whole.latency_cycles == sum(kernel.latency_cycles for kernel in whole.kernels)
    assert whole.offchip_bytes == sum(tensor.bytes for tensor in whole.tensors)
    assert whole.energy_pj == pytest.approx(sum(whole.energy_by_component.values()))
    assert whole.gap.cycles == whole.latency_cycles - whole.bounds.cycles
    assert whole.explanation is not None
    assert sum(cause.cycles for cause in whole.explanation.causes) == whole.gap.cycles
    assert min(whole.gap.extra_work, whole.gap.in_sequence, whole.gap.waiting) >= 0
    for resource in RESOURCES:
        assert whole.bounds.of(resource) <= whole.mapping_bounds.of(resource)
        assert 0 <= whole.utilisation[resource] <= 1
    for kernel in whole.kernels:
        assert kernel.bounds is not None
        assert kernel.bounds.cycles <= kernel.mapping_bounds.cycles <= kernel.latency_cycles
        assert kernel.peak_buffer_bytes == sum(buffer.bytes for buffer in kernel.buffers)
        assert kernel.peak_buffer_bytes <= whole.accelerator.buffer.capacity_bytes
        assert kernel.time is not None
        for time in kernel.time.resources.values():
            assert time.busy + sum(time.stalls.values()) + time.after == kernel.latency_cycles


def test_bounds_belong_to_the_graph_and_not_to_its_kernels():
    assert len({report(strategy).bounds for strategy in STRATEGIES}) == 1


def test_tensors_between_kernels_have_no_compulsory_bytes():
    least = {tensor.name: tensor.compulsory_bytes for tensor in report("unfused").tensors}
    assert least["logit"] == least["softmax"] == 0
    assert least["q"] == least["o"] == 2 * 4 * 96 * 16 * 2
    assert least["k"] == least["v"] == 2 * 2 * 96 * 16 * 2


def test_kernels_name_their_corner_of_the_map_space():
    assert [kernel.strategy for kernel in report("unfused").kernels] == ["unfused"] * 3
    for strategy in ("flat-h", "online"):
        assert [kernel.strategy for kernel in report(strategy).kernels] == [strategy]
        assert report(strategy).strategy == strategy


def test_the_live_footprint_is_flats_formula():
    compilation = flatc.compile(
        attention(Shape(queries=64, keys=64, d_qk=16, d_v=16), None, "bf16", "f32"), strategy="flat-r"
    )
    (kernel,) = compilation.report.kernels
    mapping = ATTENTION.own(compilation.mappings["attention"], "attention")
    resident = replace(mapping, keep=replace(mapping.keep, k_level="kv_head", v_level="kv_head"))
    from flatc.report.build import schedule_of

    found = kernel_attention(schedule_of(compilation.schedule).kernels()[0])
    assert found is not None
    rows, keys, d = mapping.tiles.query, 64, 16
    assert live_elements(found.problem, resident) == 4 * rows * d + 4 * keys * d + rows * keys
    assert kernel.live_elements == live_elements(found.problem, mapping)
    assert all(kernel.live_elements is None for kernel in report("unfused").kernels)


def test_twice_the_clock_and_bandwidth_halves_the_seconds_exactly():
    edge = load("edge")
    memory = replace(
        edge.offchip,
        read_bytes_per_second=2 * edge.offchip.read_bytes_per_second,
        write_bytes_per_second=2 * edge.offchip.write_bytes_per_second,
    )
    once = report("online")
    twice = flatc.compile(TEXT, replace(edge, clock_hz=2 * edge.clock_hz, offchip=memory), strategy="online").report
    assert twice.latency_seconds == once.latency_seconds / 2
    assert twice.latency_cycles == once.latency_cycles


# --- JSON ---------------------------------------------------------------------------------------------------


def test_json_holds_plain_numbers_that_are_the_reports():
    whole = report("unfused")
    found = json.loads(to_json(whole))
    assert found == json.loads(json.dumps(to_dict(whole)))
    totals = found["totals"]
    assert totals["latency_cycles"] == float(whole.latency_cycles)
    assert totals["offchip_bytes"] == sum(kernel["offchip_bytes"] for kernel in found["kernels"])
    assert totals["peak_buffer_bytes"] == max(kernel["peak_buffer_bytes"] for kernel in found["kernels"])
    assert totals["energy_pj"] == pytest.approx(sum(totals["energy_by_component_pj"].values()))
    assert totals["gap"]["cycles"] == pytest.approx(totals["latency_cycles"] - max(totals["bounds"].values()))
    causes = totals["explanation"]["causes"]
    assert sum(cause["cycles"] for cause in causes) == pytest.approx(totals["gap"]["cycles"])
    assert found["free_vector_operations"] == ["cast"]
    (logit, *_) = found["kernels"]
    array = logit["time"]["array"]
    idle = sum(stall["cycles"] for stall in array["stalls"]) + array["after"]
    assert array["busy"] + idle == pytest.approx(logit["latency_cycles"])
    assert logit["mapping_fields"]["tiles"]["d_qk"] == 16
    assert set(logit["buffers"][0]) == {"label", "address", "slots", "slot_bytes", "shape", "element", "bytes"}


# --- Text ---------------------------------------------------------------------------------------------------


def test_text_shows_what_the_records_hold():
    whole = report()
    text = to_text(whole)
    (kernel,) = whole.kernels
    assert text.startswith(f"small on edge, strategy auto: {tables.duration(whole.latency_seconds)}\n")
    assert f"{whole.offchip_bytes:,} B" in text
    assert f"peak {kernel.peak_buffer_bytes:,} B" in text
    assert f"{kernel.live_elements:,} elements" in text
    assert "free by the accelerator file: cast" in text
    for row in kernel.buffers:
        assert f"  {row.label} " in text
    for line in kernel.loops:
        assert line in text
    assert whole.explanation is not None
    assert whole.explanation.causes[0].name in text
    assert re.search(r"array: busy [\d.]+ %, [\d.]+ % waiting for ", text)


def test_a_report_that_was_not_simulated_has_no_explanation():
    whole = flatc.compile(TEXT, "edge", strategy="online", simulate="never").report
    assert whole.explanation is None
    assert "cycles above the bound:" in to_text(whole)
    assert json.loads(to_json(whole))["totals"]["explanation"] is None


def test_a_buffer_that_could_not_keep_up_is_told_of_and_not_charged():
    slow = load("edge")
    slow = replace(slow, buffer=replace(slow.buffer, bandwidth_bytes_per_second=10**9, ports=2))
    found = flatc.compile(TEXT, slow, strategy="online").report
    moved = found.work.buffer_read_bytes + found.work.buffer_write_bytes
    assert found.buffer_cycles == Fraction(moved * slow.clock_hz, 2 * 10**9)
    assert found.latency_cycles == report("online").latency_cycles < found.buffer_cycles
    assert "not charged: the buffer's ports need" in to_text(found)
    assert report("auto", "fusemax").buffer_cycles == 0
    assert "not charged" not in to_text(report("auto", "fusemax"))


def test_lines_of_a_text_have_no_blanks_at_their_ends():
    text = to_text(report())
    assert all(line == line.rstrip() for line in text.splitlines())


def test_loops_show_triangles_as_their_widest_trip():
    lines = "\n".join(report("online").kernels[0].loops)
    assert "for key ~" in lines or "for key" not in lines
    assert "at the mask's edge" in lines
    assert "matmul  Q, K -> scores" in lines
    assert "store   result -> o" in lines


def test_numbers_have_units():
    assert doctest.testmod(tables).failed == 0
    assert tables.size(1023) == "1023 B"
    assert tables.size(1024) == "1.00 KiB"
    assert tables.size(2**60) == "1024.00 PiB"
    assert tables.duration(5e-7) == "500.00 ns"
    assert tables.energy(12) == "12.00 pJ"
    assert tables.cycles(Fraction(1)) == "1"
    assert tables.times(Fraction(1), Fraction(0)) == "-"


# --- Schedules that flatc did not make ------------------------------------------------------------------------

COPY = """builtin.module {
  spatial.schedule @copy inputs ["x"] (%x: !spatial.tensor<4xf32>) outputs ["y"] {
    %y = spatial.offchip "y" : !spatial.tensor<4xf32>
    spatial.kernel "copy" {
      %b = spatial.buffer "b" slots 1 : !spatial.buffer<4xf32>
      %t = spatial.load %x[0] into %b extent [4]
      %u = spatial.store %b into %y[0] extent [4] after(%t)
    }
    spatial.return %y
  }
}
"""


def test_a_hand_written_schedule_is_simulated_and_has_no_bounds():
    from flatc.frontend.mlir import parse_mlir

    compilation = flatc.compile(parse_mlir(COPY, "copy.mlir"), "edge")
    found = to_dict(compilation.report)
    assert found["totals"]["bounds"] is None
    assert found["totals"]["offchip_bytes"] == 32
    assert found["kernels"][0]["mapping"] is None
    assert "bounds: none, flatc does not recognise what every kernel computes" in to_text(compilation.report)
    with pytest.raises(FlatcError, match="nothing to compare this schedule with"):
        compilation.run()


def test_a_report_needs_a_schedule():
    with pytest.raises(FlatcError, match="the module has 0 schedules"):
        build_report(attention(Shape()))
