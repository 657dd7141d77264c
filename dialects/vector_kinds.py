"""The kinds of `spatial.vector` that work on values, not on scores: what norms, activations, rope and residuals are
made of.

    %t1 = spatial.vector add (%x, %h) into (%s) extent [128, 768] after(%t0)
    %t2 = spatial.vector layernorm (%s, %g, %b) into (%y) extent [128, 768] epsilon 1e-05 after(%t1)

All operands have as many dims as the extents; a dim of 1 is repeated, so a weight of 768 features is a buffer of
1x768. An operation computes in one go and rounds once, to the type of the buffer that it writes. Columns are the last
dim; the rows of norms and rope are all other dims. `passes/cost/primitive_costs.py` says what each kind costs.
"""

from __future__ import annotations

from flatc.dialects.frozen import frozen


@frozen
class VectorKind:
    """What one kind of vector operation reads and writes. `?` marks operands that may be absent.

    `number` is the keyword of the number that the kind takes. The operands of a kind that `repeats` have the rank of
    the extents, and dims of 1 are repeated. The extents of a kind `of_rows` are those of rows alone, and so are its
    buffers.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    meaning: str
    number: str | None = None
    repeats: bool = False
    of_rows: bool = False


def _kind(reads: str, meaning: str, number: str | None = None) -> VectorKind:
    return VectorKind(tuple(reads.split()), ("y",), meaning, number, repeats=True)


VALUE_KINDS: dict[str, VectorKind] = {
    "add": _kind("a b", "y = a + b"),
    "multiply": _kind("a b", "y = a * b"),
    "scale": _kind("x", "y = x * the number", "by"),
    "gelu": _kind("x", "y = x * (1 + erf(x / sqrt(2))) / 2"),
    "gelu_tanh": _kind("x", "gelu by tanh: y = x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2"),
    "silu": _kind("x", "y = x * sigmoid(x)"),
    "relu": _kind("x", "y = max(x, 0)"),
    "sigmoid": _kind("x", "y = 1 / (1 + exp(-x))"),
    "tanh": _kind("x", "y = tanh(x)"),
    "layernorm": _kind(
        "x weight? bias?", "z = x - mean(x); y = z / sqrt(mean(z^2) + the number) * weight + bias", "epsilon"
    ),
    "rmsnorm": _kind("x weight? bias?", "y = x / sqrt(mean(x^2) + the number) * weight + bias", "epsilon"),
    "rope": _kind("x table", "turns feature i with i + columns / 2 by cos (left half of table) and sin (right half)"),
    "rope_interleaved": _kind("x table", "rope that turns feature 2 i with 2 i + 1"),
}
"""The vector operations of the layer around attention; `cast`, of attention's own kinds, copies and converts too."""
