"""The syntax tree of a `.flat` file: frozen dataclasses, each with the place where it was written.

    y = x + merge(a) @ wo

    Assignment(Name("y"), Chain(Name("x"), (("+", Chain(Call(Name("merge"), ...), (("@", Name("wo")),))),)))

Operators of one precedence level form one flat `Chain`, so the depth of a tree is bounded by the depth of its
brackets, however long an expression is.
"""

from __future__ import annotations

from collections.abc import Iterator

from flatc.dialects.diagnostics import Position
from flatc.dialects.frozen import frozen


@frozen
class Name:
    """A word that names a dim, a tensor, a mask or a function."""

    at: Position
    text: str


@frozen
class Number:
    """A literal; an integer unless it was written with a point or an exponent."""

    at: Position
    value: int | float


@frozen
class Negated:
    """`-x`, or several minus signs in a row."""

    at: Position
    signs: int
    operand: Expression


@frozen
class Chain:
    """Operands of one precedence level, combined from left to right: `a + b - c`."""

    at: Position
    first: Expression
    rest: tuple[tuple[str, Expression], ...]


@frozen
class Option:
    """`name = value` among the arguments of a call."""

    name: Name
    value: Expression


@frozen
class Call:
    """`function(a, b, option = c)`."""

    at: Position
    function: Name
    arguments: tuple[Expression, ...]
    options: tuple[Option, ...]


Expression = Name | Number | Negated | Chain | Call


@frozen
class Binding:
    """`S = 4096` in a `dim` or `phase` statement."""

    name: Name
    value: Expression


@frozen
class GraphHeader:
    """`graph NAME`"""

    name: Name


@frozen
class Dims:
    """`dim B = 8, D = E / H`"""

    bindings: tuple[Binding, ...]


@frozen
class Phase:
    """`phase decode : S = 1, P = 8192`"""

    name: Name
    bindings: tuple[Binding, ...]


@frozen
class Dtype:
    """`dtype bf16, softmax f32`; a role is the first word of each further pair."""

    storage: Name
    roles: tuple[tuple[Name, Name], ...]


@frozen
class TensorType:
    """`bool[B, S]`; without a word in front the graph's storage type is meant."""

    at: Position
    dtype: Name | None
    dims: tuple[Expression, ...]


@frozen
class Declaration:
    """`weight wk, wv : [E, KV * D]`; the kind is input, weight or cache."""

    kind: str
    names: tuple[Name, ...]
    type: TensorType


@frozen
class Assignment:
    """`name = expression`"""

    name: Name
    value: Expression


@frozen
class Output:
    """`output y, z`"""

    names: tuple[Name, ...]


Statement = GraphHeader | Dims | Phase | Dtype | Declaration | Assignment | Output


def names_in(expression: Expression) -> Iterator[Name]:
    """Every name an expression reads, left to right; functions are not among them."""
    match expression:
        case Name():
            yield expression
        case Number():
            pass
        case Negated():
            yield from names_in(expression.operand)
        case Chain():
            for operand in (expression.first, *(operand for _, operand in expression.rest)):
                yield from names_in(operand)
        case Call():
            for operand in (*expression.arguments, *(option.value for option in expression.options)):
                yield from names_in(operand)
