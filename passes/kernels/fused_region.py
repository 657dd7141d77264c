"""Making a region of operators: what the passes that fuse have in common.

%s = attn.add %x, %y ...                   %n = flat.fused "add_norm" (%a = %x, %b = %y) {
%n = attn.norm layernorm %s ...    -->       %s = attn.add %a, %b ...
                                             %t = attn.norm layernorm %s ...
                                             flat.yield %t
                                           }
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Block, Operation, Region, SSAValue

from flatc.dialects.flat import FusedOp, YieldOp


def fuse_operators(name: str, ops: Sequence[Operation]) -> FusedOp:
    """Moves operators into a `flat.fused` where the last of them stands, whose result is the region's."""
    result = ops[-1].results[0]
    inside = {value for op in ops for value in op.results}
    inputs = list(dict.fromkeys(value for op in ops for value in op.operands if value not in inside))
    block = Block(arg_types=[value.type for value in inputs])
    fused = FusedOp(name, inputs, [result.type], Region(block))
    fused.location = ops[-1].location
    parent = ops[-1].parent_block()
    assert parent is not None
    parent.insert_op_after(fused, ops[-1])
    fused.outputs[0].name_hint = result.name_hint
    result.replace_all_uses_with(fused.outputs[0])
    arguments = dict[SSAValue, SSAValue](zip(inputs, block.args, strict=True))
    for value, argument in arguments.items():
        argument.name_hint = value.name_hint
    for op in ops:
        op.detach()
        op.operands = [arguments.get(operand, operand) for operand in op.operands]
        block.add_op(op)
    block.add_op(YieldOp([result]))
    return fused
