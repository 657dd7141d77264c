"""Whether two kernels of a schedule are the same but for the tensors they work on.

The projections of a layer, and the layers of a stack, have kernels that differ in their tensors only. What was found
out about one of them holds for the others, under the other names:

    likeness(linear_wk, linear_wv).tensors           # {"x": "x", "wk": "wv", "linear_wk": "linear_wv"}
"""

from __future__ import annotations

from xdsl.ir import Attribute, Operation, SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import BufferOp, KernelOp, TensorRefType, TimedOp, stays_on_chip, timed_ops
from flatc.passes.simulation.simulator import tensor_name


@frozen
class Likeness:
    """How one kernel is like another: which tensor, by name, and which operation of one is which of the other."""

    tensors: dict[str, str]
    ops: dict[TimedOp, TimedOp]


def likeness(first: KernelOp, second: KernelOp) -> Likeness | None:
    """What in `second` corresponds to each tensor and operation of `first`; None if the kernels are not the same."""
    known: dict[SSAValue, SSAValue] = {}
    ops, others = list(first.body.walk()), list(second.body.walk())
    if len(ops) != len(others) or not all(_same(*pair, known) for pair in zip(ops, others, strict=True)):
        return None
    names: dict[str, str] = {}
    for value, other in known.items():
        if isinstance(value.type, TensorRefType):
            if stays_on_chip(value) != stays_on_chip(other):
                return None
            name = tensor_name(other)
            if names.setdefault(tensor_name(value), name) != name:
                return None
    if len(set(names.values())) < len(names):
        return None
    pairs = zip(timed_ops(first), timed_ops(second), strict=True)
    return Likeness(names, dict(pairs))


def _same(op: Operation, other: Operation, known: dict[SSAValue, SSAValue]) -> bool:
    """Whether two operations are the same, given which values correspond; notes what corresponds from here on."""
    if type(op) is not type(other) or op.attributes != other.attributes:
        return False
    if op.properties != other.properties and _placeless(op) != _placeless(other):
        return False
    if list(op.operand_types) != list(other.operand_types) or list(op.result_types) != list(other.result_types):
        return False
    for value, its in zip(op.operands, other.operands, strict=True):
        if known.setdefault(value, its) is not its:
            return False
    known.update(zip(op.results, other.results, strict=True))
    for region, its in zip(op.regions, other.regions, strict=True):
        known.update(zip(region.block.args, its.block.args, strict=True))
    return True


def _placeless(op: Operation) -> dict[str, Attribute]:
    """The properties of an operation without the address of a buffer, which no cost depends on."""
    return {name: value for name, value in op.properties.items() if name != "address" or not isinstance(op, BufferOp)}
