"""Chains read off regions of operators: their values, and the buffers that these share on chip."""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.parser import Parser

from flatc.accelerators import load
from flatc.builder import Graph
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp
from flatc.frontend.mlir import context
from flatc.passes.cost.bounds import problem_bounds
from flatc.passes.fuse_layers import FuseLayersPass
from flatc.passes.kernels.vector_problem import RopeTable, VectorProblem, WorkBuffer
from flatc.passes.kernels.vector_region import match_chain
from tests.chains import problem_of


def norm_of_sum(dtype: str = "f16") -> VectorProblem:
    graph = Graph("norm", dtype=dtype)
    x, h, g = graph.input("x", [2, 7, 64]), graph.input("h", [2, 7, 64]), graph.weight("g", [64])
    graph.output(graph.gelu(graph.layernorm(x + h, g)))
    return problem_of(graph.module())


def test_operands_are_numbered_by_first_use_and_repeat_in_dims_of_1():
    problem = norm_of_sum()
    assert problem.dims == (2, 7, 64)
    assert [operand.dims for operand in problem.operands] == [(2, 7, 64), (2, 7, 64), (1, 1, 64)]
    assert [(step.kind, step.reads) for step in problem.steps] == [
        ("add", (0, 1)), ("layernorm", (3, 2)), ("gelu", (4,)),
    ]  # fmt: skip
    assert problem.results == (5,)


def test_steps_write_over_what_nobody_needs_any_more():
    buffers, place = norm_of_sum().buffers
    assert buffers == (WorkBuffer("f16", 2, stored=False), WorkBuffer("f16", 2, stored=True))
    assert place == {3: 0, 4: 0, 5: 1}, "the sum and its norm share a buffer, the result has its own"


def test_a_value_that_is_still_needed_keeps_its_buffer():
    graph = Graph("gate", dtype="f16")
    scaled = graph.input("x", [4, 8]) * 2.0
    graph.output(graph.multiply(graph.tanh(graph.tanh(scaled)), scaled))
    # The chain forks at `scaled`, whose second use is the last operator.
    buffers, place = problem_of(graph.module()).buffers
    assert place[2] == place[3] != place[1]
    assert [buffer.stored for buffer in buffers] == [False, False, True]


def test_types_do_not_share_buffers():
    graph = Graph("cast", dtype="f16")
    graph.output(graph.cast(graph.tanh(graph.cast(graph.relu(graph.input("x", [4, 8])), "f32")), "f16"))
    buffers, _ = problem_of(graph.module()).buffers
    assert [(buffer.element, buffer.stored) for buffer in buffers] == [("f16", False), ("f32", False), ("f16", True)]


def test_rope_of_some_features_copies_the_others():
    graph = Graph("rope", dtype="bf16")
    graph.output(graph.rope(graph.input("x", [1, 2, 5, 12]), start=3, base=100.0, dims=8))
    problem = problem_of(graph.module())
    assert [(step.kind, step.columns) for step in problem.steps] == [("rope", (0, 8)), ("cast", (8, 4))]
    assert problem.written == (2, 2), "both write one value"
    assert problem.operands[1].table == RopeTable(3, 100.0)
    assert problem.operands[1].dims == (1, 1, 5, 8)


def test_what_bounds_ask_for():
    problem = norm_of_sum()
    size = 2 * 7 * 64 * 2
    assert problem.compulsory_bytes() == {"operand0": size, "operand1": size, "operand2": 128, "result": size}
    assert problem.least_macs() == 0
    assert problem.longest_sum() == 64
    counts = problem.least_vector_counts()
    assert counts["exp"] == 2 * 7 * 64, "of gelu"
    assert counts["multiply"] == 2 * 7 * 64 * (2 + 1 + 9) + 2 * 7 * 12
    assert problem_bounds([problem], load("edge")).binding == "vector"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("%r = attn.activation relu %a : tensor<4x8xf32>\nflat.yield %a : tensor<4x8xf32>", "must give what it comp"),
        (
            "%r = attn.activation relu %a : tensor<4x8xf32>\n%s = attn.activation tanh %a : tensor<4x8xf32>\n"
            "flat.yield %s : tensor<4x8xf32>",
            "does not use its relu",
        ),
    ],
)
def test_regions_that_are_no_chain_are_refused(body: str, message: str):
    module = Parser(
        context(),
        f"""func.func @f(%x: tensor<4x8xf32>) -> tensor<4x8xf32> {{
          %y = flat.fused "chain" (%a = %x) {{
            {body}
          }} : (tensor<4x8xf32>) -> tensor<4x8xf32>
          func.return %y : tensor<4x8xf32>
        }}""",
    ).parse_module()
    module.verify()
    (fused,) = (op for op in module.walk() if isinstance(op, FusedOp))
    with pytest.raises(FlatcError, match=message):
        match_chain(fused)


def test_what_two_operators_in_a_chain_share_is_one_operand():
    graph = Graph("twice", dtype="f32")
    x = graph.input("x", [3, 4])
    graph.output(graph.multiply(graph.relu(x), x))
    module = graph.module()
    FuseLayersPass().apply(Context(), module)
    (fused,) = (op for op in module.walk() if isinstance(op, FusedOp))
    assert [step.reads for step in match_chain(fused).problem.steps] == [(0,), (1, 0)]
