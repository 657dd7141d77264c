"""Fronts of two objectives: their ends are what a search for one finds, and every mapping on them compiles."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

import flatc
from flatc.builder import Graph
from flatc.cli import main
from flatc.dialects.diagnostics import FlatcError
from flatc.pareto import pareto, to_json, to_text


def graph(heads: int = 2) -> Graph:
    found = Graph("small", dtype="bf16", softmax="f32")
    found.output(found.attention(*(found.input(name, [1, heads, 96, 32]) for name in "qkv")), names=["o"])
    return found


def test_points_trade_one_objective_for_the_other():
    (front,) = pareto(graph(), ("latency", "energy"), "edge").fronts
    assert len(front.points) > 1
    assert all(a.latency_cycles < b.latency_cycles and a.energy_pj > b.energy_pj for a, b in pairwise(front.points))


def test_the_ends_are_what_a_search_finds():
    (front,) = pareto(graph(), ("offchip", "energy"), "edge").fronts
    assert front.points[0].offchip_bytes == flatc.compile(graph(), "edge", objective="offchip").report.offchip_bytes
    best = flatc.compile(graph(), "edge", objective="energy").report.energy_pj
    assert front.points[-1].energy_pj == pytest.approx(best, rel=1e-12)


def test_simulated_points_are_those_of_a_compilation():
    found = pareto(graph(), ("latency", "offchip"), "edge", simulate=True)
    (front,) = found.fronts
    bounds = pareto(graph(), ("latency", "offchip"), "edge").fronts[0]
    assert front.points[0].latency_cycles >= bounds.points[0].latency_cycles
    for point, read in zip(front.points, json.loads(to_json(found))["kernels"][0]["points"], strict=True):
        report = flatc.compile(graph(), "edge", mapping=read["mapping"]).report
        assert report.latency_cycles == pytest.approx(point.latency_cycles) == read["latency_cycles"]
        assert report.offchip_bytes == point.offchip_bytes == read["offchip_bytes"]
        assert read["latency_source"] == "simulated"


def test_the_text_says_where_figures_are_from():
    text = to_text(pareto(graph(), ("latency", "energy"), "edge", strategy="unfused"))
    assert text.startswith("small on edge, strategy unfused: latency against energy\n")
    kernels = [line.split('"')[1] for line in text.splitlines() if line.startswith("kernel")]
    assert kernels == ["logit", "softmax", "attend"]
    assert text.count("latency: closed form, a lower bound") == 3


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        (("latency",), "two different objectives"),
        (("energy", "energy"), "two different objectives"),
        (("latency", "speed"), "unknown objective 'speed'"),
    ],
)
def test_what_is_no_pair_is_refused(objectives: tuple[str, ...], message: str):
    with pytest.raises(FlatcError, match=message):
        pareto(graph(), objectives)


def test_a_graph_without_attention_is_refused():
    found = Graph("layer", dtype="bf16")
    found.output(found.gelu(found.input("x", [2, 3])), names=["y"])
    with pytest.raises(FlatcError, match="no attention"):
        pareto(found, ("latency", "energy"))


def test_the_command_prints_a_front(capsys: pytest.CaptureFixture[str]):
    command = ["pareto", "examples/bert_base.flat", "--bind", "B=1,S=64", "--objectives", "energy,offchip", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["graph"], found["objectives"]) == ("bert_base", ["energy", "offchip"])
    assert main([*command[:-2], "energy"]) == 1
    assert "two different objectives" in capsys.readouterr().err
