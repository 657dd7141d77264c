"""Build attention graphs in Python, in the words of the `.flat` format.

Each function of the format is a method of `Graph`; masks and biases are small values that combine with
`&`, `|` and `+`. The parser of the format calls the same methods, so both agree on every rule.

    >>> g = Graph("block", dtype="bf16", softmax="f32")
    >>> x = g.input("x", [1, 7, 64])
    >>> w = g.weight("w", [64, 64])
    >>> q = g.heads(x @ w, 4)
    >>> a = g.attention(q, q, q, mask=causal() & window(3))
    >>> g.output(x + g.merge(a) @ w, names=["y"])
    >>> module = g.module()

Sizes that do not fit raise `FlatcError` at once, with the position that was passed as `at`. Element
types: the graph has a storage type (`dtype`), a type for scores (`softmax`) and one for accumulators (`accumulate`,
as scores unless given). Probabilities and outputs return to the wider of the storage types of q and v: q may be bf16
beside keys and values in fp8. Products of integers accumulate in i32.
"""

from flatc.builder.element_types import DTYPES, dtype_help
from flatc.builder.graph import Graph
from flatc.builder.scores import (
    BiasExpr,
    MaskExpr,
    alibi,
    as_bias,
    as_mask,
    causal,
    chunk,
    first,
    prefix,
    same,
    t5_relative,
    valid,
    window,
)
from flatc.builder.tensor import Tensor

__all__ = [
    "DTYPES",
    "BiasExpr",
    "Graph",
    "MaskExpr",
    "Tensor",
    "alibi",
    "as_bias",
    "as_mask",
    "causal",
    "chunk",
    "dtype_help",
    "first",
    "prefix",
    "same",
    "t5_relative",
    "valid",
    "window",
]
