"""Every example does what it is there for: graphs compile or are refused by name, the demo shows what it says."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flatc
from flatc.accelerators import load

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
SLOW = ("deepseek_v3_layer.flat", "deepseek_v3_layer_plain.flat")
"""Graphs of many kernels."""
GRAPHS = [
    pytest.param(path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
    for path in sorted(EXAMPLES.glob("*.flat"))
]


@cache
def script(name: str) -> Any:
    """An example script as a module."""
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@cache
def demo() -> Any:
    """The demo; a row that several tests look at is compiled once."""
    module = script("demo")
    module.compile_row = cache(module.compile_row)
    return module


def check_compiles(name: str, accelerator: str, strategy: str = "auto"):
    report = flatc.compile(EXAMPLES / name, accelerator, strategy=strategy).report
    assert report.bounds is not None
    assert report.latency_cycles >= report.bounds.cycles


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_compiles(name: str):
    # Eight attentions with eight masks, each to be searched: the smallest space shows as much.
    check_compiles(name, "edge", "online" if name == "variants.flat" else "auto")


@pytest.mark.slow
@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
def test_a_graph_compiles_at_its_own_sizes(name: str, accelerator: str):
    check_compiles(name, accelerator)


def test_the_table_of_layers_tells_what_was_compiled_and_what_was_refused(capsys: pytest.CaptureFixture[str]):
    script("layers").main([("llama3_8b_layer", ["decode", "training"])])
    printed = capsys.readouterr()
    assert "has no phase 'training'" in printed.err
    rows = [line.split() for line in printed.out.splitlines() if line.startswith("  llama")]
    assert [row[:2] for row in rows] == [["llama3_8b_layer", "decode"], ["llama3_8b_layer", "training"]] * 2
    assert ["off-chip" in row for row in rows] == ["refused" not in row for row in rows] == [True, False] * 2


# --- The demo -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accelerator", ["edge", "cloud"])
@pytest.mark.parametrize("tokens", [512, 65536])
def test_fused_beats_unfused_in_bytes_and_latency_and_fits_the_buffer(accelerator: str, tokens: int):
    unfused, auto = (
        demo().compile_row(accelerator, tokens, strategy).result.report for strategy in ("unfused", "auto")
    )
    assert auto.offchip_bytes < unfused.offchip_bytes
    assert auto.latency_cycles < unfused.latency_cycles
    for report in (unfused, auto):
        assert report.peak_buffer_bytes <= load(accelerator).buffer.capacity_bytes


def test_the_size_of_a_schedule_is_bounded_by_a_constant_up_to_a_million_tokens():
    for strategy, most in (("online", 45), ("auto", 45), ("unfused", 80)):
        assert all(demo().compile_row("cloud", n, strategy).operations <= most for n in (512, 65536, 1048576))


def test_live_footprints_grow_with_the_square_with_the_length_and_not_at_all():
    lengths = (512, 1024, 2048, 4096)
    _, flat_h, flat_r, online = zip(*demo().growth("edge", lengths), strict=True)
    assert len(set(online)) == 1
    first, second, third = (b - a for a, b in pairwise(flat_r))
    assert (second, third) == (2 * first, 4 * first)  # linear: as the lengths themselves
    squares = [n * n for n in lengths]
    rest = [live - square for live, square in zip(flat_h, squares, strict=True)]
    assert [value / n for value, n in zip(rest, lengths, strict=True)] == [rest[0] / lengths[0]] * 4  # N*N + c*N


def test_the_demo_prints_both_reports_and_a_row_for_each_strategy(capsys: pytest.CaptureFixture[str]):
    demo().main(lengths=(512,), far=())
    shown = capsys.readouterr().out
    for accelerator in ("edge", "cloud"):
        assert f"bert_base on {accelerator}, strategy auto" in shown
        assert f"{accelerator}, {'512.00 KiB' if accelerator == 'edge' else '32.00 MiB'} on chip" in shown
    assert "flat-h    does not fit" in shown
