"""What norms, activations, rope and residuals cost: how many operations of the price table, per element and per row.

    operation        per element                                          per row
    add, bias add    add
    multiply, scale  multiply                                                                (a gate: silu, multiply)
    relu             max
    sigmoid          exp, add, divide                                                        1 / (1 + exp(-x))
    silu             exp, add, divide                                                        x / (1 + exp(-x))
    tanh             exp, add, divide, add                                                   1 - 2 / (1 + exp(2 x))
    gelu_tanh        3 multiply, 2 add, exp, divide                                          [1]
    gelu             9 multiply, 6 add, max, exp, divide, select                             [2]
    rmsnorm          2 multiply, add                                      [3]
    layernorm        2 multiply, 3 add                                    [3], multiply
      with weight    + multiply
      with bias      + add
    rope             2 multiply, add                                                         [4]
    cast             cast

`exp` is of scale * (x - m), fused, so a sign or a factor inside of it is free. Rows lie across lanes: sums over a row
are adds, within a lane.

[1] (1 + tanh(u)) / 2 = 1 / (1 + exp(-2 u)), so gelu by tanh is x / (1 + exp(-2 u)) with u = c x (1 + a x x): two
    multiplies and an add for 1 + a x x, a multiply with x, and c in the scale of exp.
[2] x Phi(x) with Phi(|x|) = 1 - p(t) exp(-x x / 2) / 2 and t = 1 / (1 + b |x|), p of degree 5 without constant
    (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26; error below 1.5e-7, a float32's rounding).
    Max for |x|; multiply, add, divide for t; 5 multiplies and 4 adds for p (Horner, the half folded into its
    coefficients); multiply and exp for exp(-x x / 2); multiply and add for Phi(|x|); select between that and its
    complement, which was there before the add; multiply with x.
[3] Multiply by 1 / N, add epsilon, and the reciprocal root of that sum v: a first guess by an integer shift and
    subtraction (two adds), v / 2 (a multiply), and three Newton steps y (1.5 - v / 2 y y) of three multiplies and an
    add each (C. Lomont, Fast inverse square root, 2003). The row is read once for its sum of squares and once for the
    result, and before that, by layernorm, for its mean.
[4] a cos - b sin and b cos + a sin. Cosines and sines come from a table off chip, whose loads are charged.
"""

from __future__ import annotations

from dataclasses import replace

from flatc.dialects.frozen import frozen


@frozen
class VectorWork:
    """Operations of one kind of vector operation: per element of the tile, and per row of it.

    Its first operand is read `passes` times: a norm needs the mean before it can take the deviation.
    """

    per_element: tuple[str, ...]
    per_row: tuple[str, ...] = ()
    passes: int = 1


_SIGMOID = VectorWork(("exp", "add", "divide"))
_ROTATE = VectorWork(("multiply", "multiply", "add"))
_RECIPROCAL_ROOT = ("add", "add", "multiply", *("multiply", "multiply", "multiply", "add") * 3)
_ROOT_MEAN_SQUARE = ("multiply", "add", *_RECIPROCAL_ROOT)

VALUE_WORK: dict[str, VectorWork] = {
    "add": VectorWork(("add",)),
    "multiply": VectorWork(("multiply",)),
    "scale": VectorWork(("multiply",)),
    "relu": VectorWork(("max",)),
    "sigmoid": _SIGMOID,
    "silu": _SIGMOID,
    "tanh": VectorWork(("exp", "add", "divide", "add")),
    "gelu_tanh": VectorWork((*("multiply",) * 3, *("add",) * 2, "exp", "divide")),
    "gelu": VectorWork((*("multiply",) * 9, *("add",) * 6, "max", "exp", "divide", "select")),
    "rmsnorm": VectorWork(("multiply", "multiply", "add"), _ROOT_MEAN_SQUARE, passes=2),
    "layernorm": VectorWork(("multiply", "multiply", "add", "add", "add"), (*_ROOT_MEAN_SQUARE, "multiply"), passes=3),
    "rope": _ROTATE,
    "rope_interleaved": _ROTATE,
}
"""The table of the module docstring; weights and biases of norms are added by `value_work`."""


def value_work(kind: str, reads: int) -> VectorWork:
    """The work of an operation of `VALUE_KINDS` that reads so many operands."""
    work = VALUE_WORK[kind]
    if kind in ("layernorm", "rmsnorm"):
        return replace(work, per_element=(*work.per_element, *("multiply", "add")[: reads - 1]))
    return work
