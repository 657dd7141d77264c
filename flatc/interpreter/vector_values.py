"""The NumPy meaning of the vector operations on values (`dialects.vector_kinds`): add, norms, activations, rope.

`access` gives operands in the type that an operation computes in, dims of 1 repeated, and rounds what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from flatc.dialects.spatial import VectorOp
from flatc.interpreter.dtypes import Array
from flatc.interpreter.functions import activated, normalised, rotated


class Access(Protocol):
    """What an operation on values needs of the schedule interpreter: its operands, and a place for its result."""

    @property
    def extents(self) -> tuple[int, ...]: ...
    def repeated(self, index: int) -> Array: ...
    def write(self, index: int, extents: Sequence[int], value: Array) -> None: ...


Function = Callable[[VectorOp, Sequence[Array]], Array]
"""The result of an operation on operands in the type that it computes in."""


def value_operation(op: VectorOp, access: Access) -> None:
    """Executes an operation of one of `VALUE_KINDS`."""
    operands = [access.repeated(index) for index in range(len(op.reads))]
    access.write(0, access.extents, _FUNCTIONS[op.kind.data](op, operands))


def _add(op: VectorOp, operands: Sequence[Array]) -> Array:
    return operands[0] + operands[1]


def _multiply(op: VectorOp, operands: Sequence[Array]) -> Array:
    return operands[0] * operands[1]


def _scale(op: VectorOp, operands: Sequence[Array]) -> Array:
    (x,) = operands
    return x * x.dtype.type(_number(op))


def _activation(op: VectorOp, operands: Sequence[Array]) -> Array:
    return activated(op.kind.data, operands[0])


def _norm(op: VectorOp, operands: Sequence[Array]) -> Array:
    x, *rest = operands
    y = normalised(op.kind.data, x, _number(op))
    if rest:
        y = y * rest[0]
    return y + rest[1] if len(rest) > 1 else y


def _rope(op: VectorOp, operands: Sequence[Array]) -> Array:
    return rotated(operands[0], operands[1], interleaved=op.kind.data == "rope_interleaved")


def _number(op: VectorOp) -> float:
    assert op.number is not None
    return op.number.value.data


_FUNCTIONS: dict[str, Function] = {
    "add": _add,
    "multiply": _multiply,
    "scale": _scale,
    "gelu": _activation,
    "gelu_tanh": _activation,
    "silu": _activation,
    "relu": _activation,
    "sigmoid": _activation,
    "tanh": _activation,
    "layernorm": _norm,
    "rmsnorm": _norm,
    "rope": _rope,
    "rope_interleaved": _rope,
}
