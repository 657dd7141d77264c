"""Attention by its definition on what a schedule says that it computes, for a schedule without its graph.

(attention,) = attentions(schedule)
attention_of(attention, {"q": ..., "k": ..., "v": ..., "table": ...})          # [B, H, S, E] in float64
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from xdsl.ir import SSAValue

from flatc.dialects.masks import allows
from flatc.dialects.score_functions import Alibi, Softcap, T5Relative
from flatc.dialects.spatial import PagedOp, SliceOp
from flatc.interpreter.dtypes import Array
from flatc.interpreter.memory import gather_pages
from flatc.interpreter.reference import alibi_bias, attention, t5_bias
from flatc.passes.kernels.schedule_problem import Attention
from flatc.passes.kernels.score_ops import Operand, ScoreOp
from flatc.passes.simulation.simulator import tensor_name


@dataclass
class _Scores:
    """What happens to scores, as `reference.attention` takes it."""

    softcap: float | None = None
    bias: list[Array] = field(default_factory=list[Array])
    keep: list[Array] = field(default_factory=list[Array])


def attention_of(part: Attention, values: Mapping[str, Array]) -> Array | None:
    """The output of an attention in float64; None if its scores are capped behind a bias, or twice, or scaled late."""
    problem = part.problem
    q, k = values[part.tensors["q"]], _keyed(part.values["k"], values)
    in_k = problem.v_in_k
    v = _keyed(part.values["v"], values) if in_k is None else k[..., in_k : in_k + problem.d_v]
    if problem.value_scale is not None:
        v = v * _columns(part, problem.value_scale, values)
    scores = _Scores()
    for place, step in enumerate(problem.score_ops):
        if step.kind == "scale_columns":
            if place:
                return None
            k = k * _columns(part, step.operands[0], values)
        elif isinstance(step.function, Softcap):
            if scores.bias or scores.softcap is not None:
                return None
            scores.softcap = step.function.cap
        elif step.kind in ("keep", "same"):
            scores.keep.append(_keep(part, step, values))
        else:
            scores.bias.append(_bias(part, step, values))
    mask, queries, keys = problem.mask, problem.queries, problem.keys
    if mask is not None:
        seen = allows(mask, np.arange(queries)[:, None], np.arange(keys)[None, :])
        scores.keep.append(np.broadcast_to(seen, (queries, keys)))
    sink = None if problem.sink is None else values[part.tensors[problem.sink.role]]
    shape = (*q.shape[:3], keys)
    return attention(
        q,
        k,
        v,
        keep=np.logical_and.reduce([np.broadcast_to(keep, shape) for keep in scores.keep]) if scores.keep else None,
        scale=part.scale,
        softcap=scores.softcap,
        bias=np.sum([np.broadcast_to(bias, shape) for bias in scores.bias], axis=0) if scores.bias else None,
        sink=sink,
    )


def _keyed(tensor: SSAValue, values: Mapping[str, Array]) -> Array:
    """The keys or values behind a tensor off chip, which may be a window, or lie in pages."""
    owner = tensor.owner
    if isinstance(owner, SliceOp):
        box = tuple(slice(a, a + size) for a, size in zip(owner.offsets, owner.tensor.type.dims, strict=True))
        return _keyed(owner.source, values)[box]
    if isinstance(owner, PagedOp):
        return gather_pages(_keyed(owner.source, values), _keyed(owner.table, values), owner.tensor.type.dims[2])
    return values[tensor_name(tensor)]


def _bias(part: Attention, step: ScoreOp, values: Mapping[str, Array]) -> Array:
    queries, keys = part.problem.queries, part.problem.keys
    match step.function:
        case Alibi(heads, _, offset):
            return alibi_bias(heads, queries, keys, offset)
        case T5Relative(max_distance, offset, bidirectional):
            table = values[part.tensors[step.operands[0].role]]
            return t5_bias(table, queries, keys, offset, max_distance=max_distance, bidirectional=bidirectional)
        case _:
            return _on_scores(part, step.operands[0], values).astype(np.float64)


def _keep(part: Attention, step: ScoreOp, values: Mapping[str, Array]) -> Array:
    if step.kind == "keep":
        return _on_scores(part, step.operands[0], values)
    documents = values[part.tensors[step.operands[0].role]]
    rows = documents[:, part.problem.keys - part.problem.queries :]
    return rows[:, None, :, None] == documents[:, None, None, :]


def _columns(part: Attention, operand: Operand, values: Mapping[str, Array]) -> Array:
    """Scales of keys or values as they multiply K or V [B, KV, T, D]."""
    batch, kv_heads, _, _, keys = part.problem.operand_shape(operand)
    return values[part.tensors[operand.role]].reshape(batch, kv_heads, keys, 1).astype(np.float64)


def _on_scores(part: Attention, operand: Operand, values: Mapping[str, Array]) -> Array:
    """An operand as it broadcasts to the scores [B, H, S, T]."""
    batch, kv_heads, group, rows, keys = part.problem.operand_shape(operand)
    return values[part.tensors[operand.role]].reshape(batch, kv_heads * group, rows, keys)
