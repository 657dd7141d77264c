"""What a fused kernel has to do, read off its region: which part of attention it is, its sizes, what is refused."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import causal, chunk
from flatc.dialects.attn import AttnOp
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.masks import Causal
from flatc.frontend.mlir import parse_mlir
from flatc.passes.kernels.fused_region import fuse_operators
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


def test_a_softcap_behind_a_mask_is_refused_in_one_kernel():
    """cap * tanh(-inf / cap) is -cap: what was hidden would be seen again. `fuse-attention` makes two kernels of it."""
    module = parse_mlir(
        """
        func.func @f(%s: tensor<1x2x3x4xf32>, %v: tensor<1x2x4x5xf32>) -> tensor<1x2x3x5xf32> {
          %m = attn.mask %s by <causal(offset = 1)> : tensor<1x2x3x4xf32>
          %c = attn.softcap %m cap 5.0 : tensor<1x2x3x4xf32>
          %p = attn.softmax %c : tensor<1x2x3x4xf32> -> tensor<1x2x3x4xf32>
          %o = attn.attend %p, %v accumulate f32 : (tensor<1x2x3x4xf32>, tensor<1x2x4x5xf32>) -> tensor<1x2x3x5xf32>
          return %o : tensor<1x2x3x5xf32>
        }
    """,
        "behind.mlir",
    )
    assert len(fused(module.clone())) == 2
    kernel = fuse_operators("both", [op for op in module.walk() if isinstance(op, AttnOp)])
    with pytest.raises(FlatcError, match=r"attn\.softcap cannot be compiled behind a mask") as caught:
        match_kernel(kernel)
    assert caught.value.help == "cap the scores first, then mask them"
