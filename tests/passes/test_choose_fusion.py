"""Do not fuse where several kernels cost less: with a buffer too small for everything at once, or for anything."""

from __future__ import annotations

from dataclasses import replace

import pytest

import flatc
from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.passes.mapping.ranking import OBJECTIVES, Objective
from flatc.report.model import Report


def edge(capacity_bytes: int) -> Accelerator:
    machine = load("edge")
    return replace(machine, buffer=replace(machine.buffer, capacity_bytes=capacity_bytes))


def graph(attentions: int = 1) -> Graph:
    """With one query row, scores are few, and a kernel of one product alone can fold heads better."""
    found = Graph("graph", dtype="bf16", softmax="f32")
    q, k, v = (found.input(name, [1, 2, tokens, 64]) for name, tokens in (("q", 1), ("k", 96), ("v", 96)))
    for _ in range(attentions):
        q = found.attention(q, k, v)
    found.output(q, names=["o"])
    return found


def names(report: Report) -> list[str]:
    return [kernel.name for kernel in report.kernels]


def cost(report: Report, objective: Objective) -> float:
    latency, energy, offchip = float(report.latency_cycles), float(report.energy_pj), report.offchip_bytes
    return {"latency": latency, "energy": energy, "edp": latency * energy, "offchip": float(offchip)}[objective]


def test_an_attention_stays_one_kernel_where_there_is_room():
    assert names(flatc.compile(graph(), edge(16_384)).report) == ["attention"]


def test_an_attention_is_taken_apart_where_that_costs_less():
    result = flatc.compile(graph(), edge(2_500))
    fused = flatc.compile(graph(), edge(2_500), strategy="online")
    assert len(names(result.report)) > 1
    assert result.report.latency_cycles < fused.report.latency_cycles
    assert result.run().passed
    again = flatc.compile(graph(), edge(2_500), mapping=result.mapping_text)
    assert again.report.latency_cycles == result.report.latency_cycles
    assert again.mapping_text == result.mapping_text


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_way_to_fuse_costs_less_than_the_one_that_is_chosen(objective: Objective):
    machine = edge(2_500)
    chosen = flatc.compile(graph(), machine, objective=objective).report
    for strategy in ("unfused", "online"):
        other = flatc.compile(graph(), machine, strategy=strategy, objective=objective).report
        assert cost(chosen, objective) <= cost(other, objective)


def test_what_fits_in_parts_only_is_compiled_in_parts():
    machine = edge(600)
    with pytest.raises(FlatcError, match="fits the 600 bytes"):
        flatc.compile(graph(), machine, strategy="online")
    result = flatc.compile(graph(attentions=2), machine)
    assert names(result.report) == ["logit_0", "softmax_0", "attend_0", "logit_1", "softmax_1", "attend_1"]
    assert result.run().passed
    with pytest.raises(FlatcError, match="no 'auto' mapping fits the 100 bytes"):
        flatc.compile(graph(), edge(100))
