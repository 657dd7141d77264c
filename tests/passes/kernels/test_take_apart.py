"""Taking a fused attention apart leaves what `fuse-attention` would have made of it with the same groups."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import Graph, MaskExpr, causal
from flatc.dialects.flat import FusedOp
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.kernels.take_apart import PARTITIONS, part_names, take_apart


def module_of(mask: MaskExpr | None, attentions: int) -> ModuleOp:
    graph = Graph("graph", dtype="bf16", softmax="f32")
    q, k, v = (graph.input(name, [2, 3, 7, 16]) for name in "qkv")
    for number in range(attentions):
        q = graph.attention(q, k, v, mask=mask, softcap=30.0 if number else None)
    graph.output(q, names=["o"])
    return graph.module()


def fused(module: ModuleOp, groups: Sequence[str] | None = None) -> ModuleOp:
    (FuseAttentionPass(tuple(groups)) if groups else FuseAttentionPass()).apply(Context(), module)
    return module


@pytest.mark.parametrize("partition", PARTITIONS, ids=" ".join)
@pytest.mark.parametrize("mask", [None, causal()], ids=["full", "causal"])
@pytest.mark.parametrize("attentions", [1, 2])
def test_it_undoes_fusion(partition: Sequence[str], mask: MaskExpr | None, attentions: int) -> None:
    module = fused(module_of(mask, attentions))
    kernels = [op for op in module.walk() if isinstance(op, FusedOp)]
    names = {op.kernel.data for op in kernels}
    for kernel in kernels:
        expected = part_names(kernel, partition)
        assert [part.kernel.data for part in take_apart(kernel, partition, names)] == expected
    module.verify()
    assert module.is_structurally_equivalent(fused(module_of(mask, attentions), partition))
