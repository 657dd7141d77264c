"""What array and vector unit wait for at both ends of a kernel: all there is, where it has one query tile."""

from __future__ import annotations

from dataclasses import replace

import pytest
from xdsl.context import Context

from flatc.accelerators import load
from flatc.builder import Graph, causal
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.flat import FusedOp
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.closed_form import busy_cycles
from flatc.passes.cost.idle_ends import idle_ends
from flatc.passes.cost.key_geometry import key_geometry
from flatc.passes.cost.least_times import Case
from flatc.passes.cost.mapping_columns import columns_of, structure_of
from flatc.passes.cost.shared_counts import count_all
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.lower_to_spatial import lower_kernel_alone
from flatc.passes.mapping.mapping_text import parse_mappings
from flatc.passes.simulation.simulator import simulate_kernel

MAPPING = """#flat.mapping<
  tiles(batch 1, kv_head 1, group 2, query {query}, key 32, d_qk 32, d_v 32)
  keep(Q x2, K x1 at kv_head, V x1 at kv_head, scores x2, output x2)
  logit(output stationary, fold 1 x 1) attend(output stationary, fold 1 x 1)
  softmax(rows, divide late) stages(load 0, logit 0, softmax 1, attend 1, store 2)>"""


def mapping(query: int) -> Mapping:
    (found,) = parse_mappings(MAPPING.format(query=query)).values()
    assert isinstance(found, Mapping)
    return found


def kernel(keys: int, *, masked: bool) -> FusedOp:
    """64 query rows of a head."""
    graph = Graph("attention", dtype="f32", softmax="f32")
    q = graph.input("q", [1, 2, 64, 32])
    k, v = (graph.input(name, [1, 1, keys, 32]) for name in "kv")
    graph.output(graph.attention(q, k, v, mask=causal(offset=keys - 64) if masked else None), names=["o"])
    module = graph.module()
    FuseAttentionPass().apply(Context(), module)
    (found,) = (op for op in module.walk() if isinstance(op, FusedOp))
    return found


def bounds(kernel: FusedOp, mapping: Mapping, accelerator: Accelerator) -> dict[str, float]:
    """For array and vector unit: busy and idle cycles together."""
    problem, structure, columns = match_kernel(kernel).problem, structure_of(mapping), columns_of(mapping)
    geometry = key_geometry(problem, columns.query, columns.key, columns.rescaled_every)
    counts = count_all(problem, accelerator, structure, columns, geometry)
    idle = idle_ends(Case(problem, accelerator, structure, columns, counts))
    busy = busy_cycles(TransferPrices(accelerator, problem.on_chip), counts)
    return {name: float((busy[name] + idle[name])[0]) for name in idle}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("keys", [64, 96, 100])
@pytest.mark.parametrize("machine", ["edge", "cloud"])
def test_with_one_query_tile_the_vector_unit_waits_for_everything_else(machine: str, keys: int, masked: bool):
    """Loads, logits, softmax, attends, division and store come one after the other."""
    accelerator, one = load(machine), kernel(keys, masked=masked)
    simulated = simulate_kernel(lower_kernel_alone(one, mapping(64)), accelerator).latency_cycles
    assert bounds(one, mapping(64), accelerator)["vector"] == pytest.approx(float(simulated))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("query", [1, 8, 24, 32, 64])
def test_with_several_it_is_a_bound(query: int, masked: bool):
    """Also where the last query tile is ragged."""
    for accelerator in (load("edge"), replace(load("cloud"), offchip=replace(load("cloud").offchip, latency_cycles=9))):
        for keys in (64, 100):
            one = kernel(keys, masked=masked)
            simulated = float(simulate_kernel(lower_kernel_alone(one, mapping(query)), accelerator).latency_cycles)
            found = bounds(one, mapping(query), accelerator)
            assert max(found.values()) <= simulated * (1 + 1e-12)
