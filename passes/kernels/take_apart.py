"""Take a fused attention apart again: one kernel becomes several, in the groups that `fuse-attention` would have made.

    %o = flat.fused "attention" (%a = %q, ...)  -->  %s = flat.fused "logit_softmax" (%a = %q, %b = %k) { ... }
                                                     %o = flat.fused "attend" (%p = %s, %c = %v) { ... }

What the kernels hand on goes through off-chip memory. Kernels of `attention_2` are called `logit_2` and so on.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import SSAValue

from flatc.dialects.attn import AttnOp
from flatc.dialects.flat import FusedOp, YieldOp
from flatc.passes.fuse_attention import find_chains, fuse, kernel_name, parse_groups, plan_kernels
from flatc.passes.kernels.fused_region import unused_name

PARTITIONS: tuple[tuple[str, ...], ...] = (
    ("logit+mask+softmax", "attend"),
    ("logit", "mask+softmax+attend"),
    ("logit", "mask+softmax", "attend"),
)
"""The ways to run one attention as several kernels; a mask belongs to the softmax."""


def part_names(fused: FusedOp, partition: Sequence[str]) -> list[str]:
    """What the kernels would be called."""
    suffix = fused.kernel.data.removeprefix("attention")
    return [kernel_name(group) + suffix for group in parse_groups(partition)]


def take_apart(fused: FusedOp, partition: Sequence[str], used: set[str]) -> list[FusedOp]:
    """Replaces a kernel of a whole attention by the kernels of a partition, in order. `used` are names of kernels."""
    ops = _unwrap(fused)
    parent = ops[0].parent_block()
    assert parent is not None
    (chain,) = (chain for chain in find_chains(parent) if chain.links[0].op in ops)
    suffix = fused.kernel.data.removeprefix("attention")
    plan = plan_kernels([chain], parse_groups(partition))
    return [fuse(kernel, unused_name(kernel.name + suffix, used)) for kernel in plan]


def _unwrap(fused: FusedOp) -> list[AttnOp]:
    """Moves the operators of a kernel out of it, and erases it."""
    parent, block = fused.parent_block(), fused.body.block
    assert parent is not None
    outer = dict[SSAValue, SSAValue](zip(block.args, fused.inputs, strict=True))
    ops = [op for op in block.ops if isinstance(op, AttnOp)]
    results = next(op for op in block.ops if isinstance(op, YieldOp)).operands
    for result, output in zip(list(results), fused.outputs, strict=True):
        result.name_hint = output.name_hint or result.name_hint
        output.replace_all_uses_with(result)
    for op in ops:
        op.detach()
        op.operands = [outer.get(operand, operand) for operand in op.operands]
        parent.insert_op_before(op, fused)
    fused.detach()
    fused.erase()
    return ops
