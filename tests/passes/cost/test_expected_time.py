"""The estimate that says what is simulated first: above the closed form, and nearer to the simulator."""

from __future__ import annotations

import pytest
from xdsl.context import Context

import flatc
from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.flat import FusedOp
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.expected_time import expected_cycles
from flatc.passes.cost.key_geometry import key_geometry
from flatc.passes.cost.least_times import Case
from flatc.passes.cost.mapping_columns import columns_of, structure_of
from flatc.passes.cost.shared_counts import count_all
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.mapping.mapping_text import parse_mappings
from tests.support import any_case

EDGE = load("edge")
MAPPING = """#flat.mapping<
  tiles(batch 1, kv_head 1, group 1, query 64, key 128, d_qk 64, d_v 64)
  keep(Q x2, K x2 at key, V x2 at key, scores x{slots}, output x2)
  logit(output stationary, fold 1 x 1) attend(output stationary, fold 1 x 1)
  softmax({algorithm}, divide late) stages(load 0, logit 0, softmax 1, attend 1, store 2)>"""


def attention(queries: int = 512) -> Graph:
    graph = Graph("attention", dtype="bf16", softmax="bf16")
    q, k, v = (graph.input(name, [2, 2, rows, 64]) for name, rows in zip("qkv", (queries, 512, 512), strict=True))
    graph.output(graph.attention(q, k, v), names=["o"])
    return graph


def problem_of(graph: Graph) -> AttentionProblem:
    module = graph.module()
    FuseAttentionPass().apply(Context(), module)
    (fused,) = (op for op in module.walk() if isinstance(op, FusedOp))
    return match_kernel(fused).problem


def expected(problem: AttentionProblem, mapping: Mapping, accelerator: Accelerator = EDGE) -> float:
    structure, columns = structure_of(mapping), columns_of(mapping)
    geometry = key_geometry(problem, columns.query, columns.key, columns.rescaled_every)
    counts = count_all(problem, accelerator, structure, columns, geometry)
    form = evaluate_mapping(problem, accelerator, mapping)
    case = Case(problem, accelerator, structure, columns, counts)
    return float(expected_cycles(case, form.busy_cycles, form.least_times)[0])


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_expected_to_beat_the_closed_form(seed: int):
    case = any_case(seed)
    closed = evaluate_mapping(case.problem, case.accelerator, case.mapping).latency_cycles[0]
    assert expected(case.problem, case.mapping, case.accelerator) >= closed * (1 - 1e-12)


@pytest.mark.parametrize("algorithm", ["online", "rows"])
@pytest.mark.parametrize("slots", [2, 3])
def test_it_is_nearer_to_the_simulator(algorithm: str, slots: int):
    """Skew that a logit waits for, and phases that wait for loads: the closed form sees neither."""
    graph = attention()
    problem = problem_of(graph)
    (mapping,) = parse_mappings(MAPPING.format(algorithm=algorithm, slots=slots)).values()
    assert isinstance(mapping, Mapping)
    closed = float(evaluate_mapping(problem, EDGE, mapping).latency_cycles[0])
    simulated = float(flatc.compile(graph, EDGE, mapping=mapping).report.latency_cycles)
    assert abs(expected(problem, mapping) - simulated) <= simulated - closed


def test_what_is_left_when_the_last_tile_is_loaded_counts():
    """One query row: every mapping moves the same bytes, and small tiles leave little to do after the last of them."""
    report = flatc.compile(attention(queries=1), EDGE).report
    assert report.bounds is not None
    assert report.bounds.binding == "off-chip"
    assert report.latency_cycles < 1.02 * report.bounds.cycles
