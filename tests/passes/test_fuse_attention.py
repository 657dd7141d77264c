"""`fuse-attention`, by example: which operators share a kernel, what a kernel sees, and where a kernel must end.

Every module that the pass changes must still verify, read back from its own text, and give the very same
numbers: fusion moves operators, it computes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.passes import PassPipeline

from flatc.builder import Graph, alibi, causal, same, valid, window
from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.flat import FusedOp
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs, run_module
from flatc.passes import get_all_passes
from flatc.passes.fuse_attention import PARTS, FuseAttentionPass

UNFUSED = ("logit", "mask+softmax", "attend")

ATTENTION = """
func.func @f(%q: tensor<1x4x5x8xf32>, %k: tensor<1x2x7x8xf32>, %v: tensor<1x2x7x3xf32>) -> tensor<1x4x5x3xf32> {
  %s = attn.logit %q, %k scale 0.5 accumulate f32
       : (tensor<1x4x5x8xf32>, tensor<1x2x7x8xf32>) -> tensor<1x4x5x7xf32>
  %m = attn.mask %s by <causal(offset = 2)> : tensor<1x4x5x7xf32>
  %p = attn.softmax %m : tensor<1x4x5x7xf32> -> tensor<1x4x5x7xf32>
  %o = attn.attend %p, %v accumulate f32
       : (tensor<1x4x5x7xf32>, tensor<1x2x7x3xf32>) -> tensor<1x4x5x3xf32>
  func.return %o : tensor<1x4x5x3xf32>
}
"""


def parse(text: str) -> ModuleOp:
    return parse_mlir(text, "g.mlir")


def fuse(module: ModuleOp, groups: Sequence[str] | None = None) -> list[FusedOp]:
    """The kernels that the pass makes, after checking that the module means what it meant."""
    inputs = random_inputs(module, seed=1)
    before = run_module(module, inputs)
    FuseAttentionPass(*([tuple(groups)] if groups else [])).apply(Context(), module)
    module.verify()
    assert str(parse(str(module))) == str(module)
    for expected, got in zip(before, run_module(module, inputs), strict=True):
        assert expected.dtype == got.dtype
        np.testing.assert_array_equal(expected, got)
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def contents(kernels: Sequence[FusedOp]) -> dict[str, list[str]]:
    """The operators of each kernel, by its name."""
    return {kernel.kernel.data: [op.name.removeprefix("attn.") for op in kernel.body_ops()] for kernel in kernels}


# --- Which operators share a kernel -----------------------------------------------------------------------


def test_an_attention_is_one_kernel():
    module = parse(ATTENTION)
    assert contents(fuse(module)) == {"attention": ["logit", "mask", "softmax", "attend"]}
    (function,) = (op for op in module.ops if isinstance(op, FuncOp))
    assert [op.name for op in function.body.block.ops] == ["flat.fused", "func.return"]


def test_groups_say_which_parts_share_a_kernel():
    kernels = fuse(parse(ATTENTION), UNFUSED)
    assert contents(kernels) == {"logit": ["logit"], "softmax": ["mask", "softmax"], "attend": ["attend"]}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (["logit+mask", "softmax+attend"], {"logit": ["logit", "mask"], "softmax_attend": ["softmax", "attend"]}),
        (["logit+mask+softmax", "attend"], {"logit_softmax": ["logit", "mask", "softmax"], "attend": ["attend"]}),
        (["mask", "attend"], {"mask": ["mask"], "attend": ["attend"]}),
        (["attend", "softmax", "mask", "logit"], {part: [part] for part in PARTS}),
        ([" logit + mask "], {"logit": ["logit", "mask"]}),
    ],
)
def test_kernels_are_named_by_their_parts(groups: list[str], expected: dict[str, list[str]]):
    """In any order of the groups; parts that no group names stay outside."""
    assert contents(fuse(parse(ATTENTION), groups)) == expected


def test_a_chain_without_mask_leaves_it_out_of_the_group():
    text = ATTENTION.replace("%m = attn.mask %s by <causal(offset = 2)> : tensor<1x4x5x7xf32>", "")
    text = text.replace("softmax %m", "softmax %s")
    assert contents(fuse(parse(text))) == {"attention": ["logit", "softmax", "attend"]}
    assert contents(fuse(parse(text), UNFUSED))["softmax"] == ["softmax"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            """func.func @f(%q: tensor<1x4x5x8xf32>, %k: tensor<1x1x7x8xf32>) -> tensor<1x4x5x7xf32> {
              %s = attn.logit %q, %k scale 1.0 accumulate f32
                   : (tensor<1x4x5x8xf32>, tensor<1x1x7x8xf32>) -> tensor<1x4x5x7xf32>
              func.return %s : tensor<1x4x5x7xf32>
            }""",
            {"logit": ["logit"]},
        ),
        (
            """func.func @f(%s: tensor<1x4x5x7xf32>) -> tensor<1x4x5x7xf16> {
              %p = attn.softmax %s : tensor<1x4x5x7xf32> -> tensor<1x4x5x7xf16>
              func.return %p : tensor<1x4x5x7xf16>
            }""",
            {"softmax": ["softmax"]},
        ),
        (
            """func.func @f(%s: tensor<1x4x5x7xf32>) -> tensor<1x4x5x7xf32> {
              %c = attn.softcap %s cap 30.0 : tensor<1x4x5x7xf32>
              %m = attn.mask %c by <first(count = 3)> : tensor<1x4x5x7xf32>
              %p = attn.softmax %m : tensor<1x4x5x7xf32> -> tensor<1x4x5x7xf32>
              func.return %p : tensor<1x4x5x7xf32>
            }""",
            {"softmax": ["softcap", "mask", "softmax"]},
        ),
        (
            """func.func @f(%p: tensor<1x4x5x7xf32>, %v: tensor<1x4x7x3xf32>) -> tensor<1x4x5x3xf32> {
              %o = attn.attend %p, %v accumulate f32
                   : (tensor<1x4x5x7xf32>, tensor<1x4x7x3xf32>) -> tensor<1x4x5x3xf32>
              func.return %o : tensor<1x4x5x3xf32>
            }""",
            {"attend": ["attend"]},
        ),
        (
            """func.func @f(%q: tensor<1x4x5x8xf32>, %k: tensor<1x1x7x8xf32>) -> tensor<1x4x5x8xf32> {
              %s = attn.logit %q, %k scale 1.0 accumulate f32
                   : (tensor<1x4x5x8xf32>, tensor<1x1x7x8xf32>) -> tensor<1x4x5x7xf32>
              %o = attn.attend %s, %k accumulate f32
                   : (tensor<1x4x5x7xf32>, tensor<1x1x7x8xf32>) -> tensor<1x4x5x8xf32>
              func.return %o : tensor<1x4x5x8xf32>
            }""",
            {"logit_attend": ["logit", "attend"]},
        ),
        (
            """func.func @f(%s: tensor<1x4x5x7xf32>) -> tensor<1x4x5x7xf32> {
              %m = attn.mask %s by <first(count = 3)> : tensor<1x4x5x7xf32>
              func.return %m : tensor<1x4x5x7xf32>
            }""",
            {"mask": ["mask"]},
        ),
    ],
    ids=["logit", "softmax", "scores on", "attend", "logit and attend", "a mask alone"],
)
def test_parts_of_an_attention_are_kernels_too(text: str, expected: dict[str, list[str]]):
    assert contents(fuse(parse(text))) == expected


def test_softcap_and_biases_go_with_the_logit():
    g = Graph("g")
    q, k, v = g.input("q", [1, 4, 5, 8]), g.input("k", [1, 4, 7, 8]), g.input("v", [1, 4, 7, 8])
    bias = g.input("bias", [4, 5, 7])
    g.output(g.attention(q, k, v, softcap=20.0, bias=alibi() + bias, mask=causal()))
    assert contents(fuse(g.module(), UNFUSED)) == {
        "logit": ["logit", "softcap", "alibi", "bias"],
        "softmax": ["mask", "softmax"],
        "attend": ["attend"],
    }


def test_a_bias_behind_a_mask_stays_behind_it():
    text = ATTENTION.replace("softmax %m", "softmax %b").replace(
        "%p =", "%b = attn.alibi %m offset 2 : tensor<1x4x5x7xf32>\n%p ="
    )
    assert contents(fuse(parse(text), UNFUSED))["softmax"] == ["mask", "alibi", "softmax"]


# --- What a kernel sees ---------------------------------------------------------------------------------------


def test_tensors_of_masks_and_sinks_become_inputs():
    g = Graph("g", dtype="bf16", softmax="f32")
    q, k, v = g.input("q", [2, 4, 5, 8]), g.input("k", [2, 1, 7, 8]), g.input("v", [2, 1, 7, 3])
    pad, doc, sink = g.input("pad", [2, 7], "bool"), g.input("doc", [2, 7], "i32"), g.weight("sink", [4])
    g.output(g.attention(q, k, v, mask=causal() & window(3) & valid(pad) & same(doc), sink=sink))
    (kernel,) = fuse(g.module())
    assert list(kernel.inputs) == [t.value for t in (q, k, pad, doc, sink, v)]
    assert [argument.name_hint for argument in kernel.body.block.args] == ["q", "k", "pad", "doc", "sink", "v"]


def test_a_tensor_that_is_read_twice_is_one_input():
    g = Graph("g")
    x = g.input("x", [1, 2, 5, 8])
    g.output(g.attention(x, x, x))
    (kernel,) = fuse(g.module())
    assert list(kernel.inputs) == [x.value]


def test_the_layer_around_an_attention_is_left_alone():
    g = Graph("g")
    x, w, o = g.input("x", [2, 5, 12]), g.weight("w", [12, 12]), g.weight("o", [12, 6])
    q = g.heads(x @ w, 3)
    g.output(g.merge(g.attention(q, q, q)) @ o)
    module = g.module()
    fuse(module)
    (function,) = (op for op in module.ops if isinstance(op, FuncOp))
    assert [op.name.split(".")[1] for op in function.body.block.ops] == [
        "linear", "split_heads", "fused", "merge_heads", "linear", "return",
    ]  # fmt: skip


def test_locations_survive():
    g = Graph("g")
    q = g.input("q", [1, 2, 5, 8])
    s = g.logit(q, q, at=Position("g.flat", 3, 5))
    g.output(g.attend(s, q, at=Position("g.flat", 4, 5)))
    (kernel,) = fuse(g.module())
    assert kernel.location == Position("g.flat", 4, 5).to_location(), "a kernel is where its last operator is"
    assert [op.location for op in kernel.body_ops()] == [Position("g.flat", line, 5).to_location() for line in (3, 4)]


def test_several_attentions_are_numbered_in_program_order():
    """Also where one feeds the next, and each keeps its own number in all its kernels."""
    g = Graph("g")
    x, k = g.input("x", [1, 2, 5, 8]), g.input("k", [1, 1, 7, 8])
    g.output(g.attention(g.attention(x, x, x, mask=causal()), k, k))
    module = g.module()
    assert list(contents(fuse(module.clone()))) == ["attention_0", "attention_1"]
    assert list(contents(fuse(module, UNFUSED))) == [
        "logit_0", "softmax_0", "attend_0", "logit_1", "softmax_1", "attend_1",
    ]  # fmt: skip


def test_interleaved_attentions_do_not_mix():
    g = Graph("g")
    x, k = g.input("x", [1, 2, 5, 8]), g.input("k", [1, 2, 5, 8])
    first, second = g.logit(x, k), g.logit(k, x)
    g.output(g.attend(second, x), g.attend(first, k))
    by_name = {kernel.kernel.data: list(kernel.inputs) for kernel in fuse(g.module())}
    assert by_name == {"logit_attend_0": [x.value, k.value], "logit_attend_1": [k.value, x.value]}


def test_fusing_twice_changes_nothing():
    module = parse(ATTENTION)
    fuse(module)
    once = str(module)
    fuse(module)
    assert str(module) == once


# --- Where a kernel must end ----------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["returned", "read by an operator"])
def test_scores_that_are_needed_elsewhere_end_the_kernel(other: str):
    g = Graph("g")
    q = g.input("q", [1, 2, 5, 8])
    s = g.logit(q, q)
    g.output(g.attend(s, q), s if other == "returned" else g.gelu(s), names=["y", "scores"])
    assert contents(fuse(g.module())) == {"logit": ["logit"], "attend": ["attend"]}


STAGES = {
    "raw": {"logit": ["logit"], "softmax_attend": ["softcap", "alibi", "mask", "softmax", "attend"]},
    "capped": {"logit": ["logit", "softcap"], "softmax_attend": ["alibi", "mask", "softmax", "attend"]},
    "masked": {"logit": ["logit", "softcap", "alibi", "mask"], "softmax_attend": ["softmax", "attend"]},
    "probabilities": {"logit_softmax": ["logit", "softcap", "alibi", "mask", "softmax"], "attend": ["attend"]},
}
"""The four `qk_matmul_output_mode`s of ONNX."""


@pytest.mark.parametrize("stage", STAGES)
def test_scores_are_an_output_at_any_stage(stage: str):
    g = Graph("g")
    q = g.input("q", [1, 2, 5, 8])
    found = {"raw": g.logit(q, q)}
    found["capped"] = g.adjust(found["raw"], softcap=2)
    found["masked"] = g.adjust(found["capped"], bias=alibi(), mask=causal())
    found["probabilities"] = g.probabilities(found["masked"])
    g.output(g.attend(found["probabilities"], q), found[stage], names=["y", stage])
    assert contents(fuse(g.module())) == STAGES[stage]


def test_scores_that_are_needed_at_every_stage_are_a_kernel_each():
    g = Graph("g")
    q = g.input("q", [1, 2, 5, 8])
    raw = g.logit(q, q)
    capped = g.adjust(raw, softcap=2)
    masked = g.adjust(capped, mask=causal())
    g.output(raw, capped, masked, names=["raw", "capped", "masked"])
    assert contents(fuse(g.module())) == {"logit": ["logit"], "mask": ["softcap"], "mask_1": ["mask"]}


def test_scores_that_are_a_bias_of_themselves_go_off_chip_first():
    g = Graph("g")
    q = g.input("q", [1, 2, 5, 8])
    s = g.logit(q, q)
    g.output(g.attend(g.probabilities(g.adjust(s, bias=s)), q))
    assert contents(fuse(g.module())) == {"logit": ["logit"], "softmax_attend": ["bias", "softmax", "attend"]}


def test_two_softmaxes_of_the_same_scores_read_them_off_chip():
    g = Graph("g")
    q = g.input("q", [1, 2, 5, 8])
    s = g.logit(q, q)
    g.output(g.probabilities(s), g.probabilities(g.adjust(s, mask=causal())), names=["a", "b"])
    kernels = {"logit_0": ["logit"], "softmax_0": ["softmax"], "softmax_1": ["mask", "softmax"]}
    assert contents(fuse(g.module())) == kernels


@pytest.mark.parametrize(
    "line",
    [
        "%x = attn.scale %s by 2.0 : tensor<1x4x5x7xf32>",
        "%x = attn.activation relu %s : tensor<1x4x5x7xf32>",
        "%x = attn.add %s, %s : (tensor<1x4x5x7xf32>, tensor<1x4x5x7xf32>) -> tensor<1x4x5x7xf32>",
    ],
)
def test_an_operator_of_no_attention_stands_between_two_kernels(line: str):
    module = parse(ATTENTION.replace("%m =", f"{line}\n%m =").replace("mask %s", "mask %x"))
    assert contents(fuse(module)) == {"logit_0": ["logit"], "softmax_attend_1": ["mask", "softmax", "attend"]}


def test_a_mask_behind_the_softmax_is_no_part_of_it():
    line = "%x = attn.mask %p by <first(count = 2)> : tensor<1x4x5x7xf32>"
    module = parse(ATTENTION.replace("%o =", f"{line}\n%o =").replace("attend %p", "attend %x"))
    assert contents(fuse(module)) == {"logit_softmax_0": ["logit", "mask", "softmax"], "attend_1": ["mask", "attend"]}


# --- What is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "message", "help"),
    [
        ([], "no groups are given", "logit+mask+softmax+attend"),
        (["logit", "sofmax"], "unknown part 'sofmax'", "did you mean 'softmax'?"),
        (["everything"], "unknown part 'everything'", "logit, mask, softmax, attend"),
        (["logit+"], "unknown part ''", "logit, mask, softmax, attend"),
        (["mask+logit"], "'mask+logit' is not a run", "'logit+mask'"),
        (["logit+softmax"], "'logit+softmax' is not a run", "'logit+mask+softmax'"),
        (["logit+logit"], "'logit+logit' is not a run", "'logit'"),
        (["logit+mask", "mask+softmax"], "'mask' is in two groups", "once"),
    ],
)
def test_groups_must_be_runs_of_the_chain(groups: list[str], message: str, help: str):
    with pytest.raises(FlatcError) as caught:
        FuseAttentionPass(tuple(groups))
    assert message in caught.value.message
    assert caught.value.help is not None
    assert help in caught.value.help


# --- In a pipeline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipeline", "kernels"),
    [
        ("fuse-attention", 1),
        ('fuse-attention{groups="logit","mask+softmax","attend"}', 3),
        ("fuse-attention{groups=attend}", 1),
    ],
)
def test_the_pipeline_text_reads_back(pipeline: str, kernels: int):
    (fuse_pass,) = PassPipeline.parse_spec(get_all_passes(), pipeline).passes
    (again,) = PassPipeline.parse_spec(get_all_passes(), str(fuse_pass.spec())).passes
    assert again == fuse_pass
    module = parse(ATTENTION)
    fuse_pass.apply(Context(), module)
    assert sum(isinstance(op, FusedOp) for op in module.walk()) == kernels
