"""The NumPy meaning of the vector operations on scores (`dialects.score_functions`): softcap, biases, masks, sinks.

`access` gives operands in the type that an operation computes in, dims of 1 repeated, and rounds what it writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from flatc.dialects.score_functions import Alibi, ScoreFunction, Softcap, T5Relative, t5_buckets
from flatc.dialects.spatial import BufferType, VectorOp
from flatc.interpreter.attn import alibi_slopes
from flatc.interpreter.dtypes import Array


class Access(Protocol):
    """What an operation on scores needs of the schedule interpreter: its operands, its place, its results."""

    @property
    def extents(self) -> tuple[int, ...]: ...
    @property
    def compute(self) -> np.dtype[Any]: ...
    def operand(self, index: int, extents: Sequence[int]) -> Array: ...
    def stored(self, index: int) -> Array: ...
    def repeated(self, index: int) -> Array: ...
    def position(self) -> tuple[int, ...]: ...
    def write(self, index: int, extents: Sequence[int], value: Array) -> None: ...


Function = TypeVar("Function", Softcap, Alibi, T5Relative)


def score_operation(op: VectorOp, access: Access) -> None:
    """Executes an operation of one of `SCORE_KINDS`."""
    if op.kind.data == "sink":
        _sink(access)
        return
    scores = access.operand(0, access.extents)
    access.write(0, access.extents, _CHANGES[op.kind.data](op, access, scores))


def _told(op: VectorOp, kind: type[Function]) -> Function:
    function: ScoreFunction | None = None if op.function is None else op.function.data
    assert isinstance(function, kind)
    return function


def _softcap(op: VectorOp, access: Access, scores: Array) -> Array:
    cap = access.compute.type(_told(op, Softcap).cap)
    return cap * np.tanh(scores / cap)


def _bias(op: VectorOp, access: Access, scores: Array) -> Array:
    return scores + access.repeated(1)


def _scale_columns(op: VectorOp, access: Access, scores: Array) -> Array:
    return scores * access.repeated(1)


def _distances(access: Access, offset: int) -> Array:
    """Key minus position of the row, for a tile."""
    *_, query, key = access.position()
    rows, keys = access.extents[-2:]
    return key + np.arange(keys) - (query + offset + np.arange(rows))[:, np.newaxis]


def _alibi(op: VectorOp, access: Access, scores: Array) -> Array:
    alibi = _told(op, Alibi)
    kv_head, place = access.position()[:2]
    heads = (kv_head + np.arange(access.extents[1]))[:, np.newaxis] * alibi.group
    heads = heads + place + np.arange(access.extents[2])
    slopes = alibi_slopes(alibi.heads)[heads][:, :, np.newaxis, np.newaxis]
    return scores + (-slopes * np.abs(_distances(access, alibi.offset))).astype(access.compute)


def _t5_relative(op: VectorOp, access: Access, scores: Array) -> Array:
    t5 = _told(op, T5Relative)
    assert isinstance(op.reads[1].type, BufferType)
    buckets = op.reads[1].type.dims[0]
    table = access.operand(1, [buckets, *access.extents[1:3]])
    found = t5_buckets(_distances(access, t5.offset), buckets, t5.max_distance, t5.bidirectional)
    return scores + np.moveaxis(table[found], (0, 1), (2, 3))


def _keep(op: VectorOp, access: Access, scores: Array) -> Array:
    return np.where(access.stored(1), scores, -np.inf)


def _same(op: VectorOp, access: Access, scores: Array) -> Array:
    return np.where(access.stored(1) == access.stored(2), scores, -np.inf)


def _sink(access: Access) -> None:
    rows = access.extents[:-1]
    sink = access.repeated(0)[..., 0]
    maximum = np.maximum(access.operand(1, rows), sink)
    access.write(0, rows, maximum)
    access.write(1, rows, np.exp(sink - np.where(maximum == -np.inf, 0, maximum)))


_CHANGES: dict[str, Callable[[VectorOp, Access, Array], Array]] = {
    "softcap": _softcap,
    "scale_columns": _scale_columns,
    "bias": _bias,
    "alibi": _alibi,
    "t5_relative": _t5_relative,
    "keep": _keep,
    "same": _same,
}
