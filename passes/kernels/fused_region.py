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


def fuse_operators(name: str, ops: Sequence[Operation], beside: Sequence[SSAValue] = ()) -> FusedOp:
    """Moves operators into a `flat.fused` where the last of them stands.

    Its results are that of the last operator and, in front of it, what else is used outside. `beside` are
    values that the kernel needs and no operator reads.
    """
    inside = {value for op in ops for value in op.results}
    last = ops[-1].results[0]
    results = [value for op in ops for value in op.results if value is last or _outside_users(value, ops)]
    read = [value for op in ops for value in op.operands if value not in inside]
    inputs = list(dict.fromkeys([*read, *beside]))
    block = Block(arg_types=[value.type for value in inputs])
    fused = FusedOp(name, inputs, [result.type for result in results], Region(block))
    fused.location = ops[-1].location
    parent = ops[-1].parent_block()
    assert parent is not None
    parent.insert_op_after(fused, ops[-1])
    for result, output in zip(results, fused.outputs, strict=True):
        output.name_hint = result.name_hint
        result.replace_uses_with_if(output, lambda use: use.operation not in ops)
    arguments = dict[SSAValue, SSAValue](zip(inputs, block.args, strict=True))
    for value, argument in arguments.items():
        argument.name_hint = value.name_hint
    for op in ops:
        op.detach()
        op.operands = [arguments.get(operand, operand) for operand in op.operands]
        block.add_op(op)
    block.add_op(YieldOp(results))
    return fused


def _outside_users(value: SSAValue, ops: Sequence[Operation]) -> bool:
    return any(use.operation not in ops for use in value.uses)


def unused_name(name: str, used: set[str]) -> str:
    """`name`, or `name_1`, `name_2`, ... if it is used; it is used from now on."""
    found, number = name, 0
    while found in used:
        number += 1
        found = f"{name}_{number}"
    used.add(found)
    return found
