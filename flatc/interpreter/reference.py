"""Attention by its definition, one query row at a time, in float64.

This is the other opinion: it shares no code with the interpreter and takes its mask as a matrix of
booleans, so that both can only agree by being right.

    output = attention(q, k, v, keep=np.tri(7, 9, 2, dtype=bool))
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def attention(
    q: NDArray[Any],
    k: NDArray[Any],
    v: NDArray[Any],
    *,
    keep: NDArray[Any] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    bias: NDArray[Any] | None = None,
    sink: NDArray[Any] | None = None,
) -> Floats:
    """q [B, H, S, D], k [B, KV, T, D], v [B, KV, T, E] give [B, H, S, E].

    Scores are scaled, capped, biased and then masked. `keep` (true is visible) and `bias` broadcast to [B, H, S, T];
    `sink` is [H].
    """
    batch, heads, queries, depth = q.shape
    kv_heads, keys = k.shape[1], k.shape[2]
    group = heads // kv_heads
    scale = 1 / math.sqrt(depth) if scale is None else scale
    all_keep = np.broadcast_to(True if keep is None else keep, (batch, heads, queries, keys))
    all_bias = np.broadcast_to(0.0 if bias is None else bias.astype(np.float64), all_keep.shape)
    output = np.zeros((batch, heads, queries, v.shape[3]))
    for b, h, row in np.ndindex(batch, heads, queries):
        seen = np.flatnonzero(all_keep[b, h, row])
        if seen.size == 0:
            continue
        chosen_k = k[b, h // group, seen].astype(np.float64)
        scores = scale * (chosen_k @ q[b, h, row].astype(np.float64))
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + all_bias[b, h, row, seen]
        extra = [] if sink is None else [float(sink[h])]
        weights = _softmax(np.array([*scores, *extra]))[: seen.size]
        output[b, h, row] = weights @ v[b, h // group, seen].astype(np.float64)
    return output


def alibi_bias(heads: int, queries: int, keys: int, offset: int) -> Floats:
    """[H, S, T]: -slope * |key - (query + offset)|, slopes as the code of Press et al. makes them."""
    bias = np.zeros((heads, queries, keys))
    for h, slope in enumerate(_alibi_slopes(heads)):
        for row in range(queries):
            bias[h, row] = -slope * np.abs(np.arange(keys) - (row + offset))
    return bias


def _alibi_slopes(heads: int) -> list[float]:
    if heads & (heads - 1):
        below = 1 << (heads.bit_length() - 1)
        return _alibi_slopes(below) + _alibi_slopes(2 * below)[::2][: heads - below]
    start = 2 ** -(2 ** -(math.log2(heads) - 3))
    return [start ** (h + 1) for h in range(heads)]


def t5_bias(
    table: NDArray[Any], queries: int, keys: int, offset: int, *, max_distance: int, bidirectional: bool
) -> Floats:
    """[H, S, T]: the entry of the table [buckets, H] that the distance of key and query falls into."""
    bias = np.zeros((table.shape[1], queries, keys))
    for row, key in np.ndindex(queries, keys):
        bucket = _t5_bucket(key - (row + offset), len(table), max_distance, bidirectional)
        bias[:, row, key] = table[bucket].astype(np.float64)
    return bias


def _t5_bucket(distance: int, buckets: int, max_distance: int, bidirectional: bool) -> int:
    """The bucket of one distance; far ones share buckets whose width grows by a constant factor."""
    if bidirectional:
        half = buckets // 2
        return (half if distance > 0 else 0) + _t5_bucket(-abs(distance), half, max_distance, False)
    reach, exact = max(-distance, 0), buckets // 2
    if reach < exact:
        return reach
    far = math.log(reach / exact) / math.log(max_distance / exact) * (buckets - exact)
    return min(exact + int(far), buckets - 1)


def _softmax(logits: Floats) -> Floats:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()
