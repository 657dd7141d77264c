"""What a fused kernel has to do, read off its region: which part of attention it is, its sizes, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import Graph, MaskExpr, Tensor, alibi, as_mask, causal, chunk, valid
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.masks import Causal
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from tests.support import UNFUSED, Shape, attention, fused

SHAPE = Shape(batch=2, heads=6, kv_heads=2, queries=5, keys=7, d_qk=3, d_v=4)


def problems(module: ModuleOp, groups: tuple[str, ...] = ("logit+mask+softmax+attend",)) -> list[AttentionProblem]:
    return [match_kernel(kernel).problem for kernel in fused(module, groups)]


def test_the_whole_attention():
    (problem,) = problems(attention(SHAPE, causal(), "bf16", "f32"))
    assert problem == AttentionProblem(
        stages=("logit", "mask", "softmax", "attend"),
        batch=2,
        kv_heads=2,
        group=3,
        queries=5,
        keys=7,
        d_qk=3,
        d_v=4,
        q_bytes=2,
        k_bytes=2,
        v_bytes=2,
        score_bytes=4,
        probability_bytes=2,
        accumulator_bytes=4,
        output_bytes=2,
        converts_probabilities=True,
        converts_output=True,
        mask=Causal(2),
    )
    assert problem.heads == 12
    assert problem.has("mask")
    assert not problem.has("softcap")


def test_a_mask_that_hides_nothing_is_no_part_of_the_problem():
    """Causal order in decode: the only row sees every key."""
    decode = Shape(batch=2, heads=6, kv_heads=2, queries=1, keys=7, d_qk=3, d_v=4)
    (problem,) = problems(attention(decode, causal()))
    assert (problem.stages, problem.mask) == (("logit", "softmax", "attend"), None)
    (problem,) = problems(attention(decode, causal(offset=5)))
    assert (problem.stages, problem.mask) == (("logit", "mask", "softmax", "attend"), Causal(5))


def test_each_part_sees_what_it_reads_and_writes():
    """Scores between kernels lie off chip in the softmax type, probabilities in the storage type."""
    logit, softmax, attend = problems(attention(SHAPE, causal(), "bf16", "f32"), UNFUSED)
    assert [p.stages for p in (logit, softmax, attend)] == [("logit",), ("mask", "softmax"), ("attend",)]
    assert [p.score_bytes for p in (logit, softmax, attend)] == [4, 4, 2]
    assert [p.output_bytes for p in (logit, softmax, attend)] == [4, 2, 2]
    assert [(p.kv_heads, p.group) for p in (logit, softmax, attend)] == [(2, 3), (6, 1), (2, 3)]
    assert (softmax.d_qk, softmax.d_v, softmax.k_bytes, attend.d_qk, logit.d_v) == (1, 1, 0, 1, 1)


def test_nothing_is_converted_where_types_agree():
    (problem,) = problems(attention(SHAPE, None, "f32"))
    assert not problem.converts_probabilities
    assert not problem.converts_output


@pytest.mark.parametrize(
    ("groups", "skips"),
    [
        (("logit+mask+softmax+attend",), [True]),
        (("mask+softmax+attend",), [True]),
        (("logit+mask+softmax", "attend"), [False, False]),
        (("logit+mask", "softmax+attend"), [False, False]),
    ],
)
def test_hidden_tiles_are_skipped_only_where_their_zeros_stay_inside(groups: tuple[str, ...], skips: list[bool]):
    """A kernel that gives scores or probabilities must write every element of them."""
    assert [p.skips_hidden for p in problems(attention(SHAPE, chunk(2)), groups)] == skips


def test_the_values_of_a_kernel():
    (fused_op,) = fused(attention(SHAPE, causal()))
    kernel = match_kernel(fused_op)
    assert [kernel.q, kernel.k, kernel.v] == list(fused_op.body.block.args)
    assert kernel.scores is None
    assert kernel.attend is not None
    assert kernel.result is kernel.attend.output


# --- What is refused ----------------------------------------------------------------------------------

Build = Callable[[Graph, Tensor, Tensor, Tensor], Tensor]


def tensor_mask(graph: Graph) -> MaskExpr:
    return as_mask(graph.input("keep", [1, 1, 5, 7], "bool"))


def padding(graph: Graph) -> MaskExpr:
    return causal() & valid(graph.input("pad", [2, 7], "bool"))


REFUSED: dict[str, tuple[Build, str]] = {
    "softcap": (lambda g, q, k, v: g.attention(q, k, v, softcap=3.0), "attn.softcap cannot be compiled yet"),
    "alibi": (lambda g, q, k, v: g.attention(q, k, v, bias=alibi()), "attn.alibi cannot be compiled yet"),
    "tensor mask": (lambda g, q, k, v: g.attention(q, k, v, mask=tensor_mask(g)), "masks given by tensors"),
    "padding": (lambda g, q, k, v: g.attention(q, k, v, mask=padding(g)), "masks given by tensors"),
    "sink": (lambda g, q, k, v: g.attention(q, k, v, sink=g.input("sink", [6])), "a sink is not scheduled"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_schedules_do_not_cover_is_named(name: str):
    build, expected = REFUSED[name]
    graph = Graph("g", dtype="f32")
    q, k, v = graph.input("q", [2, 6, 5, 3]), graph.input("k", [2, 2, 7, 3]), graph.input("v", [2, 2, 7, 4])
    graph.output(build(graph, q, k, v))
    with pytest.raises(FlatcError) as caught:
        problems(graph.module())
    assert expected in caught.value.message
