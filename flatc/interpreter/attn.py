"""The NumPy meaning of the attn dialect, as plain as the formulas.

Each function computes in the type that `Precision.compute` gives and rounds once, to the element type of
the result. In float64 that is the exact reference; in narrow types it is what an accelerator computes, up
to the order of its sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from xdsl.dialects.builtin import AnyFloat, TensorType
from xdsl.ir import Attribute, SSAValue

from flatc.dialects import attn
from flatc.dialects.attn import element_type_of, shape_of
from flatc.dialects.masks import allows
from flatc.dialects.score_functions import t5_buckets
from flatc.interpreter.dtypes import Array, Precision
from flatc.interpreter.engine import meaning
from flatc.interpreter.functions import activated, normalised, rotary_table, rotated
from flatc.interpreter.memory import gather_pages


def _widen(op: attn.AttnOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    """The operands in the type that the op computes in."""
    elements = [element_type_of(value) for value in (*op.operands, *op.results)]
    compute = precision.compute(*elements)
    return [operand.astype(compute, copy=False) for operand in operands]


def _store(precision: Precision, value: Array, result: SSAValue) -> list[Array]:
    return [precision.store(value, element_type_of(result))]


def _product(
    left: Array, right: Array, accumulator: Attribute, precision: Precision, bias: Array | None = None
) -> Array:
    """A matrix product as the accumulator sees it, not yet rounded to the result."""
    compute = precision.compute(accumulator)
    total = np.matmul(left.astype(compute, copy=False), right.astype(compute, copy=False))
    if bias is not None:
        total = total + bias.astype(compute, copy=False)
    return precision.store(total, accumulator).astype(compute, copy=False)


def _grouped(heads: Array, kv_heads: int) -> Array:
    """[B, H, ...] as [B, KV, H / KV, ...], so that a group shares the kv head beside it."""
    batch, count, *rest = heads.shape
    return heads.reshape(batch, kv_heads, count // kv_heads, *rest)


@meaning(attn.LogitOp)
def _logit(op: attn.LogitOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    q, k = operands
    grouped = _grouped(q, k.shape[1])
    keys = np.swapaxes(k, -1, -2)[:, :, np.newaxis]
    total = _product(grouped, keys, op.accumulator, precision)
    scaled = total * total.dtype.type(op.scale.value.data)
    return _store(precision, scaled.reshape(shape_of(op.scores)), op.scores)


@meaning(attn.AttendOp)
def _attend(op: attn.AttendOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    p, v = operands
    grouped = _grouped(p, v.shape[1])
    total = _product(grouped, v[:, :, np.newaxis], op.accumulator, precision)
    return _store(precision, total.reshape(shape_of(op.output)), op.output)


@meaning(attn.LinearOp)
def _linear(op: attn.LinearOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    x, w, *bias = operands
    total = _product(x, w, op.accumulator, precision, bias[0] if bias else None)
    return _store(precision, total, op.output)


@meaning(attn.ScaleColumnsOp)
def _scale_columns(op: attn.ScaleColumnsOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    scores, scale = _widen(op, operands, precision)
    scaled = _grouped(scores, scale.shape[1]) * scale[:, :, np.newaxis, np.newaxis, :]
    return _store(precision, scaled.reshape(scores.shape), op.result)


@meaning(attn.SoftcapOp)
def _softcap(op: attn.SoftcapOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    (scores,) = _widen(op, operands, precision)
    cap = scores.dtype.type(op.cap.value.data)
    return _store(precision, cap * np.tanh(scores / cap), op.result)


@meaning(attn.BiasOp)
def _bias(op: attn.BiasOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    scores, bias = _widen(op, operands, precision)
    return _store(precision, scores + bias, op.result)


def alibi_slopes(heads: int) -> Array:
    """The slope of each head: a geometric sequence, filled up from the next one if heads is no power of 2."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / power) for i in range(power)]
    slopes += [2.0 ** (-8 * (2 * i + 1) / (2 * power)) for i in range(heads - power)]
    return np.array(slopes)


def _column(count: int) -> Array:
    return np.arange(count)[:, np.newaxis]


def _distances(scores: attn.ScoreOp, offset: int) -> Array:
    """Key minus position of the row, [S, T]."""
    queries, keys = shape_of(scores.scores)[2:]
    return _column(keys).T - (_column(queries) + offset)


@meaning(attn.AlibiOp)
def _alibi(op: attn.AlibiOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    (scores,) = _widen(op, operands, precision)
    slopes = alibi_slopes(scores.shape[1])[:, np.newaxis, np.newaxis]
    bias = -slopes * np.abs(_distances(op, op.offset.value.data))
    return _store(precision, scores + bias.astype(scores.dtype), op.result)


@meaning(attn.T5RelativeOp)
def _t5_relative(op: attn.T5RelativeOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    scores, table = _widen(op, operands, precision)
    distances = _distances(op, op.offset.value.data)
    bidirectional = op.bidirectional is not None
    buckets = t5_buckets(distances, len(table), op.max_distance.value.data, bidirectional)
    return _store(precision, scores + np.moveaxis(table[buckets], -1, 0), op.result)


def visible(op: attn.MaskOp, operands: Sequence[Array]) -> Array:
    """Which keys a mask leaves visible, broadcastable to the scores; operands without the scores."""
    queries, keys = shape_of(op.scores)[2:]
    seen: Array = np.ones((queries, keys), dtype=np.bool_)
    if op.symbolic is not None:
        seen = allows(op.symbolic.data, _column(queries), _column(keys).T)
    remaining = iter(operands)
    if op.keep is not None:
        seen = seen & next(remaining)
    if op.valid is not None:
        seen = seen & next(remaining)[:, np.newaxis, np.newaxis, :]
    if op.same is not None:
        documents = next(remaining)
        rows = documents[:, keys - queries :]
        seen = seen & (rows[:, np.newaxis, :, np.newaxis] == documents[:, np.newaxis, np.newaxis, :])
    return seen


@meaning(attn.MaskOp)
def _mask(op: attn.MaskOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    scores, *rest = operands
    masked = np.full_like(scores, -np.inf)
    np.copyto(masked, scores, where=visible(op, rest))
    return _store(precision, masked, op.result)


@meaning(attn.SoftmaxOp)
def _softmax(op: attn.SoftmaxOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    scores, *rest = _widen(op, operands, precision)
    largest = scores.max(axis=-1, keepdims=True)
    sink = rest[0][:, np.newaxis, np.newaxis] if rest else None
    if sink is not None:
        largest = np.maximum(largest, sink)
    largest[largest == -np.inf] = 0
    weights = np.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink - largest)
    total[total == 0] = 1
    return _store(precision, weights / total, op.probabilities)


@meaning(attn.AddOp)
def _add(op: attn.AddOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    left, right = _widen(op, operands, precision)
    return _store(precision, left + right, op.result)


@meaning(attn.MultiplyOp)
def _multiply(op: attn.MultiplyOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    left, right = _widen(op, operands, precision)
    return _store(precision, left * right, op.result)


@meaning(attn.ScaleOp)
def _scale(op: attn.ScaleOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    (x,) = _widen(op, operands, precision)
    return _store(precision, x * x.dtype.type(op.factor.value.data), op.result)


@meaning(attn.CastOp)
def _cast(op: attn.CastOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    (x,) = operands
    assert isinstance(op.result.type, TensorType)
    target = element_type_of(op.result)
    if not isinstance(target, AnyFloat) and isinstance(element_type_of(op.x), AnyFloat):
        limits = np.iinfo(precision.stored(target))
        x = np.clip(np.rint(x.astype(np.float64)), limits.min, limits.max)
    return _store(precision, x, op.result)


@meaning(attn.NormOp)
def _norm(op: attn.NormOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    x, *rest = _widen(op, operands, precision)
    y = normalised(op.kind.data, x, op.epsilon.value.data)
    remaining = iter(rest)
    if op.weight is not None:
        y = y * next(remaining)
    if op.bias is not None:
        y = y + next(remaining)
    return _store(precision, y, op.result)


@meaning(attn.ActivationOp)
def _activation(op: attn.ActivationOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    (x,) = _widen(op, operands, precision)
    return _store(precision, activated(op.kind.data, x), op.result)


@meaning(attn.RopeOp)
def _rope(op: attn.RopeOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    (x,) = _widen(op, operands, precision)
    dims = op.dims.value.data
    table = rotary_table(shape_of(op.x)[2], dims, op.start.value.data, op.wavelength.value.data)
    turned = rotated(x[..., :dims], table.astype(x.dtype), interleaved=op.interleaved is not None)
    return _store(precision, np.concatenate([turned, x[..., dims:]], axis=-1), op.result)


@meaning(attn.SplitHeadsOp)
def _split_heads(op: attn.SplitHeadsOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    batch, heads, sequence, features = shape_of(op.result)
    return [operands[0].reshape(batch, sequence, heads, features).swapaxes(1, 2)]


@meaning(attn.MergeHeadsOp)
def _merge_heads(op: attn.MergeHeadsOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    return [operands[0].swapaxes(1, 2).reshape(shape_of(op.result))]


@meaning(attn.FeaturesOp)
def _features(op: attn.FeaturesOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    start = op.start.value.data
    return [operands[0][..., start : start + shape_of(op.result)[-1]]]


@meaning(attn.ConcatOp)
def _concat(op: attn.ConcatOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    return [np.concatenate(operands, axis=-1)]


@meaning(attn.CopyOp)
def _copy(op: attn.CopyOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    return [np.broadcast_to(operands[0], shape_of(op.result)).copy()]


@meaning(attn.PagedOp)
def _paged(op: attn.PagedOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    pool, table = operands
    return [gather_pages(pool, table, shape_of(op.result)[2])]


@meaning(attn.AppendOp)
def _append(op: attn.AppendOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    return [np.concatenate(operands, axis=2)]
