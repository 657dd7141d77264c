"""Attention by its formulas in float64, written for the tests alone: it shares no code with flatc.

A mask is a predicate of row, key and the default offset; a variant gives every stage of the scores:

    Variant(sees=lambda row, key, offset: key <= row + offset, softcap=50.0).stages(q, k, v)["a"]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sees = Callable[[int, int, int], bool]
"""Whether a row sees a key, given keys - queries."""


@dataclass(frozen=True)
class Variant:
    """What an attention does to its scores: steps in order, each "key_scale", "softcap", "bias" or "mask"."""

    steps: Sequence[str] = ("softcap", "bias", "mask")
    scale: float | None = None
    softcap: float | None = None
    bias: Floats | float = 0.0
    sees: Sees | None = None
    seen: Sequence[NDArray[np.bool_]] = field(default=())
    """Masks that are data, each broadcast to [B, H, S, T]."""
    sink: Floats | None = None
    key_scale: NDArray[Any] | None = None
    """[B, KV, T], where a dim of 1 is repeated."""
    value_scale: NDArray[Any] | None = None
    """Likewise."""

    def stages(self, q: NDArray[Any], k: NDArray[Any], v: NDArray[Any]) -> dict[str, Floats]:
        """Raw scores, the scores behind each step, probabilities "p" and output "a" of q [B, H, S, D] on k and v."""
        q, k, v = (tensor.astype(np.float64) for tensor in (q, k, v))
        group = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
        scale = 1 / math.sqrt(q.shape[3]) if self.scale is None else self.scale
        scores = np.einsum("bhsd,bhtd->bhst", q, k) * scale
        found = {"raw": scores}
        for step in self.steps:
            scores = self._changed(step, scores)
            found[step] = scores
        found["p"] = self._probabilities(scores)
        weights = found["p"] if self.value_scale is None else found["p"] * on_heads(self.value_scale, q.shape[1])
        found["a"] = np.einsum("bhst,bhte->bhse", weights, v)
        return found

    def _changed(self, step: str, scores: Floats) -> Floats:
        if step == "key_scale":
            return scores * on_heads(self.key_scale, scores.shape[1])
        if step == "softcap":
            return scores if self.softcap is None else self.softcap * np.tanh(scores / self.softcap)
        if step == "bias":
            return scores + self.bias
        return np.where(self._visible(*scores.shape[2:]), scores, -np.inf)

    def _visible(self, queries: int, keys: int) -> NDArray[np.bool_]:
        visible = np.ones((1, 1, queries, keys), dtype=np.bool_)
        for row, key in np.ndindex(queries, keys):
            visible[..., row, key] = self.sees is None or self.sees(row, key, keys - queries)
        for mask in self.seen:
            visible = visible & mask
        return visible

    def _probabilities(self, scores: Floats) -> Floats:
        found = np.zeros_like(scores)
        for batch, head, row in np.ndindex(*scores.shape[:3]):
            logits = [*scores[batch, head, row], *([] if self.sink is None else [self.sink[head]])]
            largest = max(logits)
            if largest > -math.inf:
                weights = np.array([math.exp(logit - largest) for logit in logits])
                found[batch, head, row] = (weights / weights.sum())[: scores.shape[3]]
        return found


def on_heads(scale: NDArray[Any] | None, heads: int) -> Floats:
    """Scales [B, KV, T] as [B, H, 1, T]: query heads that share a kv head share its scales."""
    assert scale is not None
    return np.repeat(scale.astype(np.float64), heads // scale.shape[1], axis=1)[:, :, None, :]


def alibi(heads: int, queries: int, keys: int, offset: int) -> Floats:
    """[H, S, T]: minus slope times distance (Press et al., ICLR 2022, and their code).

    2^n heads have slopes 2^(-8/2^n), its square, and so on; further heads have every other slope of twice as many.
    """
    power = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / power) for h in range(power)]
    slopes += [2 ** (-8 * (2 * h + 1) / (2 * power)) for h in range(heads - power)]
    distance = np.abs(np.arange(keys) - (np.arange(queries)[:, None] + offset))
    return -np.array(slopes)[:, None, None] * distance


def t5_relative(
    table: NDArray[Any], queries: int, keys: int, offset: int, largest: int, *, bidirectional: bool
) -> Floats:
    """[H, S, T]: entries of a table [buckets, H] by bucket of key - position, as transformers computes buckets."""
    relative = np.arange(keys) - (np.arange(queries)[:, None] + offset)
    buckets = np.zeros_like(relative)
    count = len(table)
    if bidirectional:
        count //= 2
        buckets += (relative > 0) * count
        back = np.abs(relative)
    else:
        back = -np.minimum(relative, 0)
    exact = count // 2
    far = np.log(np.maximum(back, 1) / exact) / np.log(largest / exact) * (count - exact)
    buckets += np.where(back < exact, back, np.minimum(exact + far.astype(int), count - 1))
    return np.moveaxis(table.astype(np.float64)[buckets], -1, 0)
