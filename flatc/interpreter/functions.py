"""Norms, activations and rotary positions on arrays: what both the graph and its schedule mean by them.

Each function computes in the type of its argument, NumPy float32 or float64.

    >>> normalised("rmsnorm", np.array([[3.0, 4.0]]), 0.0) * 12.5 ** 0.5
    array([[3., 4.]])
"""

from __future__ import annotations

import math

import numpy as np

from flatc.interpreter.dtypes import Array


def normalised(kind: str, x: Array, epsilon: float) -> Array:
    """Each row of x over its root mean square (`rmsnorm`), or over its deviation once its mean is off (`layernorm`)."""
    if kind == "layernorm":
        x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + x.dtype.type(epsilon))


def activated(kind: str, x: Array) -> Array:
    """A pointwise function by the name that `attn.activation` gives it."""
    match kind:
        case "gelu":
            return x * (1 + _erf(x / math.sqrt(2))) / 2
        case "gelu_tanh":
            return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2
        case "silu":
            return x * _sigmoid(x)
        case "relu":
            return np.maximum(x, 0)
        case "sigmoid":
            return _sigmoid(x)
        case "tanh":
            return np.tanh(x)
        case _:
            raise ValueError(f"unknown activation '{kind}'")


def _erf(x: Array) -> Array:
    values = [math.erf(value) for value in x.ravel().tolist()]
    return np.array(values, dtype=x.dtype).reshape(x.shape)


def _sigmoid(x: Array) -> Array:
    return (1 + np.tanh(x / 2)) / 2


def rotary_table(rows: int, dims: int, start: int, base: float) -> Array:
    """[rows, dims] in float64: cosines of the angles of positions `start`.. in the left half, sines in the right.

    Pair i of position p turns by `p * base ** (-2 i / dims)`.
    """
    positions = start + np.arange(rows)[:, np.newaxis]
    angles = positions * base ** (-2 * np.arange(dims // 2) / dims)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)


def rotated(x: Array, table: Array, *, interleaved: bool) -> Array:
    """Pairs of features of x turned by `table` (see `rotary_table`), which repeats over leading dims.

    Feature i pairs with i + dims / 2 or, if `interleaved`, feature 2 i with 2 i + 1.
    """
    cos, sin = np.split(table, 2, axis=-1)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
