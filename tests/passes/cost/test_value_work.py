"""The table of `value_work` against the formulas that it names: computed with numbers that count operations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from flatc.interpreter.functions import activated
from flatc.passes.cost.value_work import VALUE_WORK, value_work


class Counted:
    """A number that notes each operation of the price table it takes part in."""

    def __init__(self, value: float, done: Counter[str]):
        self.value, self.done = value, done

    def did(self, operation: str, value: float) -> Counted:
        self.done[operation] += 1
        return Counted(value, self.done)

    def __add__(self, other: Counted | float) -> Counted:
        return self.did("add", self.value + _plain(other))

    def __rsub__(self, other: float) -> Counted:
        return self.did("add", other - self.value)

    def __mul__(self, other: Counted | float) -> Counted:
        return self.did("multiply", self.value * _plain(other))

    def over(self, other: Counted) -> Counted:
        return self.did("divide", self.value / other.value)

    def exp(self, scale: float = 1.0) -> Counted:
        return self.did("exp", math.exp(scale * self.value))


def _plain(number: Counted | float) -> float:
    return number.value if isinstance(number, Counted) else number


def one_over(x: Counted) -> Counted:
    return Counted(1.0, x.done).over(x)


def silu(x: Counted) -> Counted:
    return x.over(x.exp(-1) + 1)


def sigmoid(x: Counted) -> Counted:
    return one_over(x.exp(-1) + 1)


def tanh(x: Counted) -> Counted:
    return 1 - Counted(2.0, x.done).over(x.exp(2) + 1)


def gelu_tanh(x: Counted) -> Counted:
    u = x * ((x * x) * 0.044715 + 1)
    return x.over(u.exp(-2 * math.sqrt(2 / math.pi)) + 1)


def gelu(x: Counted) -> Counted:
    """Abramowitz and Stegun, 7.1.26, of x / sqrt(2)."""
    positive = x.did("max", abs(x.value))
    t = one_over(positive * (0.3275911 / math.sqrt(2)) + 1)
    a1, a2, a3, a4, a5 = (a / 2 for a in (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))
    p = ((((t * a5 + a4) * t + a3) * t + a2) * t + a1) * t
    complement = p * (x * x).exp(-0.5)
    phi = 1 - complement
    return x.did("select", phi.value if x.value >= 0 else complement.value) * x


def relu(x: Counted) -> Counted:
    return x.did("max", max(x.value, 0.0))


FORMULAS: dict[str, Callable[[Counted], Counted]] = {
    "silu": silu, "sigmoid": sigmoid, "tanh": tanh, "gelu_tanh": gelu_tanh, "gelu": gelu, "relu": relu,
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMULAS)
@pytest.mark.parametrize("x", [-7.5, -1.0, -0.1, 0.0, 0.3, 2.0, 9.0])
def test_activations_take_the_operations_of_their_formulas(kind: str, x: float):
    done: Counter[str] = Counter()
    value = FORMULAS[kind](Counted(x, done)).value
    assert value == pytest.approx(float(activated(kind, np.array(x))), abs=1.5e-6)
    assert done == Counter(VALUE_WORK[kind].per_element)


def test_the_reciprocal_root_reaches_a_rounding_of_float32_in_three_newton_steps():
    for v in (1e-6, 0.3, 1.0, 7.0, 1e5):
        bits = 0x5F3759DF - (int(np.array(v, np.float32).view(np.int32)) >> 1)
        done: Counter[str] = Counter({"add": 2})  # the shift and the subtraction above
        half, y = Counted(v, done) * 0.5, Counted(float(np.array(bits, np.int32).view(np.float32)), done)
        for _ in range(3):
            y = (1.5 - half * y * y) * y
        assert y.value == pytest.approx(v**-0.5, rel=6e-8)
        rms = Counter(VALUE_WORK["rmsnorm"].per_row)
        rms.subtract(done)
        assert rms == Counter({"multiply": 1, "add": 1}), "besides: times 1 / N, plus epsilon"


def test_weights_and_biases_of_norms_are_a_multiply_and_an_add():
    plain, weighted, shifted = (Counter(value_work("layernorm", reads).per_element) for reads in (1, 2, 3))
    assert weighted - plain == Counter({"multiply": 1})
    assert shifted - weighted == Counter({"add": 1})
    assert value_work("add", 2) == VALUE_WORK["add"]
