"""Latency of the closed form: never more than the simulator's, and little less for what a search chooses."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flatc.accelerators import load
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.closed_form import evaluate_mapping, tight_form
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.search import NothingFits
from flatc.passes.simulation.simulator import simulate_kernel
from tests.support import UNFUSED, Shape, any_case, attention, fused, only


def _tool() -> ModuleType:
    """The corpus, and what measures it: a script, so it is loaded by its path."""
    path = Path(__file__).parents[3] / "benchmarks" / "closed_form_gap.py"
    spec = importlib.util.spec_from_file_location("closed_form_gap", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["closed_form_gap"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = _tool()
CORPUS = {graph.name: graph for graph in TOOL.corpus()}
FEW = (
    ("bert_base S=64", "cloud", "flat-b"),
    ("bert_base S=512", "edge", "unfused"),
    ("bert_base S=4096", "edge", "flat-r"),
    ("llama3_8b_gqa S=2048", "edge", "auto"),
    ("causal & window(256) S=1024 T=1024", "edge", "online"),
    ("deepseek_v3_mla decode", "fusemax", "auto"),
)


@pytest.mark.parametrize("seed", range(80))
def test_no_latency_lies_below_the_least_times(seed: int):
    case = any_case(seed)
    loose = evaluate_mapping(case.problem, case.accelerator, case.mapping)
    tight = tight_form(case.problem, case.accelerator, case.mapping)
    simulation = simulate_kernel(case.kernel, case.accelerator)
    assert only(loose.latency_cycles) <= only(tight.latency_cycles)
    assert Fraction(only(tight.latency_cycles)) <= simulation.latency_cycles * (1 + Fraction(1, 10**12))


@pytest.mark.parametrize(("graph", "machine", "strategy"), FEW)
def test_the_closed_form_of_a_chosen_mapping_is_a_bound_from_both_sides(graph: str, machine: str, strategy: str):
    found = list(TOOL.gaps(CORPUS[graph], machine, strategy))
    assert found
    for gap in found:
        _assert_near(gap)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["unfused", "flat-b", "flat-r", "online", "auto"])
@pytest.mark.parametrize("machine", ["edge", "cloud", "fusemax"])
@pytest.mark.parametrize("graph", CORPUS)
def test_over_the_whole_corpus_the_closed_form_is_a_bound_from_both_sides(graph: str, machine: str, strategy: str):
    try:
        found = list(TOOL.gaps(CORPUS[graph], machine, strategy, samples=4))
    except NothingFits:
        return
    for gap in found:
        _assert_near(gap)


def _assert_near(gap: Any) -> None:
    """For mappings that nobody chose, only the lower bound."""
    assert gap.closed_cycles <= gap.simulated_cycles * (1 + 1e-12), (gap.kernel, gap.mapping.to_text())
    assert gap.ratio <= TOOL.MOST_RATIO or not gap.chosen, (gap.kernel, gap.ratio, gap.mapping.to_text())


def test_an_output_that_is_converted_is_stored_while_the_next_is_summed_up():
    """The store waits for one slot of the result, the next attend for the slot of the sums, which is free by then."""
    cloud = load("cloud")
    array = replace(cloud.array, rows=16, columns=16, skew="none")
    offchip = replace(cloud.offchip, channels="separate")
    separate = replace(cloud, array=array, offchip=offchip)
    sizes = Shape(batch=2, heads=12, kv_heads=3, queries=7, keys=3, d_v=24)
    *_, attend = fused(attention(sizes, None, "bf16", "f32"), UNFUSED)
    problem = match_kernel(attend).problem
    assert problem.converts_output
    mapping = Mapping(
        Tiles(2, 3, 4, 2, 3, problem.d_qk, 24),
        Keep(1, 1, 1, 1, 1),
        ArrayUse("output"),
        ArrayUse("output", fold_rows=2),
        Softmax("none"),
        Stages(0, 0, 0, 0, 0),
    )
    closed = only(evaluate_mapping(problem, separate, mapping).latency_cycles)
    assert closed <= simulate_kernel(lower_kernel_alone(attend, mapping), separate).latency_cycles * (1 + 1e-12)
