"""The search over mappings of chains: the closed form comes near the simulator on sizes of real layers."""

from __future__ import annotations

import pytest

from flatc.accelerators import load
from flatc.builder import Graph
from flatc.compiler import compile
from flatc.dialects.spatial import KernelOp
from flatc.passes.kinds.vector import VECTOR
from flatc.passes.mapping.vector_search import MOST_TILES, find_chain_mappings
from flatc.passes.simulation.simulator import simulate_kernel
from tests.chains import lower_chain, problem_of


def add_norm() -> Graph:
    graph = Graph("add_norm", dtype="f16")
    x, h = graph.input("x", [8, 384, 768]), graph.input("h", [8, 384, 768])
    graph.output(graph.layernorm(x + h, graph.weight("g", [768]), graph.weight("b", [768])))
    return graph


def gate() -> Graph:
    graph = Graph("gate", dtype="bf16")
    graph.output(graph.multiply(graph.silu(graph.input("g", [1, 8192, 14336])), graph.input("u", [1, 8192, 14336])))
    return graph


def positions() -> Graph:
    graph = Graph("positions", dtype="bf16")
    graph.output(graph.layernorm(graph.input("x", [8, 509, 768]) + graph.input("p", [509, 768])))
    return graph


def decoded() -> Graph:
    graph = Graph("decoded", dtype="bf16")
    graph.output(graph.rope(graph.input("x", [4, 32, 1, 128]), start=8192))
    return graph


GRAPHS = {"add_norm": add_norm, "gate": gate, "positions": positions, "decoded": decoded}


@pytest.mark.parametrize("machine", ["edge", "cloud"])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_chosen_mapping_takes_as_long_as_its_closed_form_says(name: str, machine: str):
    module, accelerator = GRAPHS[name]().module(), load(machine)
    best = find_chain_mappings(problem_of(module), accelerator, "auto", "latency", "k")[0]
    lowered = lower_chain(module, best.mapping, accelerator)
    (kernel,) = (op for op in lowered.walk() if isinstance(op, KernelOp))
    assert best.ranking[0] == pytest.approx(float(simulate_kernel(kernel, accelerator).latency_cycles), rel=1e-3)


def test_a_table_between_trips_is_worth_one_tile_more_under_way():
    """The rope table is loaded once for all heads, in between; with the stores two stages behind, nothing waits."""
    graph = Graph("rope", dtype="bf16")
    graph.output(graph.rope(graph.input("x", [1, 32, 4096, 128])))
    result = compile(graph, "cloud")
    (mapping,) = result.mappings.values()
    assert "stages(load 0, compute 0, store 2)" in mapping.to_text()


@pytest.mark.parametrize("objective", ["latency", "energy", "edp", "offchip"])
def test_the_best_is_first_and_moves_the_least(objective: str):
    problem, machine = problem_of(positions().module()), load("edge")
    choices = find_chain_mappings(problem, machine, "auto", objective, "k")  # pyright: ignore[reportArgumentType]
    assert [choice.ranking for choice in choices] == sorted(choice.ranking for choice in choices)
    form = VECTOR.price(problem, machine, choices[0].mapping)
    assert int(form.offchip_bytes[0]) == sum(problem.compulsory_bytes().values()), "positions once for the whole batch"
    assert all(choice.covered >= choice.legal > 0 for choice in choices)


def test_tiles_are_no_smaller_than_pays():
    for graph in GRAPHS.values():
        problem = problem_of(graph().module())
        best = find_chain_mappings(problem, load("cloud"), "auto", "latency", "k")[0]
        trips = 1
        for size, tile in zip(problem.dims, best.mapping.tiles, strict=True):
            trips *= -(-size // tile)
        assert trips <= MOST_TILES
