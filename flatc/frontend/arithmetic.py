"""Numbers in a `.flat` file: whole numbers for dims and counts, real numbers for scales.

D = E / H           whole: E = 768, H = 12 gives 64; H = 7 is an error that names both numbers
scale = 1 / 16      real: 0.0625
"""

from __future__ import annotations

import math
from collections.abc import Callable

from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.frozen import frozen
from flatc.frontend.source import Source
from flatc.frontend.syntax import Call, Chain, Expression, Name, Negated, Number

LARGEST = 2**63 - 1


@frozen
class Arithmetic:
    """Evaluates expressions; `lookup` gives the value of a dim, or raises the error that fits."""

    source: Source
    lookup: Callable[[Name], int]

    def whole(self, expression: Expression) -> int:
        """The value as a whole number; every division must be exact."""
        value = self._value(expression, exact=True)
        assert isinstance(value, int)
        return value

    def count(self, expression: Expression, what: str) -> int:
        """The value as a whole number that is not negative; `what` names it in the error."""
        value = self.whole(expression)
        if value < 0:
            raise self.source.error(f"{what} is {value}", expression.at, help="it cannot be negative")
        return value

    def real(self, expression: Expression) -> float:
        """The value as a finite float."""
        return float(self._value(expression, exact=False))

    def _value(self, expression: Expression, *, exact: bool) -> int | float:
        match expression:
            case Number(at, value):
                if exact and isinstance(value, float):
                    raise self.source.error(f"{value} is not a whole number", at)
                return value
            case Name():
                return self.lookup(expression)
            case Negated(_, signs, operand):
                value = self._value(operand, exact=exact)
                return -value if signs % 2 else value
            case Chain():
                return self._chain(expression, exact=exact)
            case Call():
                return self._call(expression, exact=exact)

    def _chain(self, chain: Chain, *, exact: bool) -> int | float:
        value = self._value(chain.first, exact=exact)
        for operator, operand in chain.rest:
            at = self.source.span(chain.first.at, operand.at)
            value = self._combine(value, operator, self._value(operand, exact=exact), at, exact=exact)
            if not math.isfinite(value) or abs(value) > LARGEST:
                raise self.source.error("the result is too large", at, help=f"at most {LARGEST}")
        return value

    def _combine(
        self, left: int | float, operator: str, right: int | float, at: Position, *, exact: bool
    ) -> int | float:
        match operator:
            case "+":
                return left + right
            case "-":
                return left - right
            case "*":
                return left * right
            case "/":
                return self._divide(left, right, at, exact=exact)
            case _:
                raise self.source.error(f"'{operator}' does not combine numbers", at, help="numbers take + - * and /")

    def _divide(self, left: int | float, right: int | float, at: Position, *, exact: bool) -> int | float:
        if right == 0:
            raise self.source.error(f"division of {left} by zero", at)
        if not exact:
            return left / right
        if left % right:
            raise self.source.error(
                f"{left} is not divisible by {right}",
                at,
                notes=(f"the remainder is {left % right}; a whole number is needed here",),
            )
        return left // right

    def _call(self, call: Call, *, exact: bool) -> float:
        if call.function.text != "sqrt" or exact:
            raise not_a_number(self.source, call)
        if len(call.arguments) != 1 or call.options:
            raise self.source.error("'sqrt' takes one number", call.at)
        value = self._value(call.arguments[0], exact=False)
        if value < 0:
            raise self.source.error(f"the square root of {value} is not a real number", call.at)
        return math.sqrt(value)


def not_a_number(source: Source, call: Call) -> FlatcError:
    """A call stands where a number is needed."""
    help = "'sqrt' is for scales, not for whole numbers" if call.function.text == "sqrt" else None
    return source.error(f"'{call.function.text}(...)' is not a number", call.at, help=help)
