"""Build the syntax tree while the text is parsed: one method per rule of `flat.lark`.

Lark calls these during the parse, so no intermediate tree exists, nothing recurses, and a deep or long input
costs no more than a short one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, cast

from flatc.dialects.diagnostics import Position
from flatc.frontend.source import Source, quoted
from flatc.frontend.syntax import (
    Assignment,
    Binding,
    Call,
    Chain,
    Declaration,
    Dims,
    Dtype,
    Expression,
    GraphHeader,
    Name,
    Negated,
    Number,
    Option,
    Output,
    Phase,
    Statement,
    TensorType,
)

if TYPE_CHECKING:
    from lark import Token

LONGEST_NAME = 100
LARGEST_NUMBER = 2**63 - 1


def position_of_token(token: Token, file: str) -> Position:
    """Where a token stands."""
    return Position(file, token.line or 1, token.column or 1, max(1, len(token)))


class Assembler:
    """The actions of the grammar's rules; each gets the parts of its rule and returns a node."""

    def __init__(self, source: Source):
        self._source = source

    def _at(self, token: Token) -> Position:
        return position_of_token(token, self._source.file)

    # Words and numbers

    def name(self, items: list[Token]) -> Name:
        """A word; letters outside a-z are refused because names end up in MLIR text."""
        text = str(items[0])
        if not text.isascii():
            raise self._source.error(
                f"{quoted(text)} cannot be a name",
                self._at(items[0]),
                help="names are made of the letters a-z and A-Z, digits and '_'",
            )
        if len(text) > LONGEST_NAME:
            raise self._source.error(
                f"a name of {len(text)} characters; at most {LONGEST_NAME} are allowed", self._at(items[0])
            )
        return Name(self._at(items[0]), text)

    def number(self, items: list[Token]) -> Number:
        """A literal within the range of a 64-bit integer, or a finite float."""
        text = str(items[0]).replace("_", "")
        whole = re.fullmatch("[0-9]+", text) is not None
        value = int(text) if whole and len(text) < LONGEST_NAME else float(text)
        if value > LARGEST_NUMBER:
            raise self._source.error(
                f"the number {quoted(text)} is too large",
                self._at(items[0]),
                help=f"at most {LARGEST_NUMBER}",
            )
        return Number(self._at(items[0]), value)

    # Expressions

    def chain(self, items: list[Expression | Token]) -> Chain:
        """`a + b - c`: operands and operator tokens alternate."""
        operands = cast("list[Expression]", items[0::2])
        operators = [str(token) for token in items[1::2]]
        at = self._source.span(operands[0].at, operands[-1].at)
        return Chain(at, operands[0], tuple(zip(operators, operands[1:], strict=True)))

    def negated(self, items: list[Expression | Token]) -> Negated:
        """One or more minus signs before an operand."""
        operand = cast("Expression", items[-1])
        at = self._source.span(self._at(cast("Token", items[0])), operand.at)
        return Negated(at, len(items) - 1, operand)

    def group(self, items: list[Expression | Token]) -> Expression:
        """A bracketed expression: the same node, underlined with its brackets."""
        left, inner, right = cast("tuple[Token, Expression, Token]", tuple(items))
        return replace(inner, at=self._source.span(self._at(left), self._at(right)))

    def option(self, items: list[Expression]) -> Option:
        """`name = value` in a call."""
        return Option(cast("Name", items[0]), items[1])

    def call(self, items: list[Expression | Option | Token]) -> Call:
        """A function with its arguments and options; an option ends the plain arguments."""
        function, inside, right = cast("Name", items[0]), items[2:-1], cast("Token", items[-1])
        arguments = [item for item in inside if not isinstance(item, Option)]
        options = [item for item in inside if isinstance(item, Option)]
        for earlier, item in pairwise(inside):
            if isinstance(earlier, Option) and not isinstance(item, Option):
                raise self._source.error(
                    "an argument follows an option",
                    cast("Expression", item).at,
                    help="options such as 'name = value' come last",
                )
        at = self._source.span(function.at, self._at(right))
        return Call(at, function, tuple(cast("list[Expression]", arguments)), tuple(options))

    # Statements

    def graph(self, items: list[Name]) -> GraphHeader:
        """`graph NAME`"""
        return GraphHeader(items[0])

    def binding(self, items: list[Expression]) -> Binding:
        """`NAME = expression`"""
        return Binding(cast("Name", items[0]), items[1])

    def dims(self, items: list[Binding]) -> Dims:
        """`dim NAME = expression, ...`"""
        return Dims(tuple(items))

    def phase(self, items: list[Name | Binding]) -> Phase:
        """`phase NAME : NAME = expression, ...`"""
        return Phase(cast("Name", items[0]), tuple(cast("list[Binding]", items[1:])))

    def dtype(self, items: list[Name]) -> Dtype:
        """`dtype TYPE, softmax TYPE`"""
        return Dtype(items[0], tuple(zip(items[1::2], items[2::2], strict=True)))

    def type(self, items: list[Expression | Token]) -> TensorType:
        """`TYPE[expression, ...]`"""
        dtype = items[0] if isinstance(items[0], Name) else None
        dims = [item for item in items[1 if dtype else 0 :] if not isinstance(item, str)]
        at = self._source.span(
            dtype.at if dtype else self._at(cast("Token", items[0])), self._at(cast("Token", items[-1]))
        )
        return TensorType(at, dtype, tuple(dims))

    def declaration(self, items: list[Token | Name | TensorType]) -> Declaration:
        """`input NAME, ... : TYPE[expression, ...]`"""
        names = tuple(item for item in items if isinstance(item, Name))
        return Declaration(str(items[0]), names, cast("TensorType", items[-1]))

    def assignment(self, items: list[Expression]) -> Assignment:
        """`NAME = expression`"""
        return Assignment(cast("Name", items[0]), items[1])

    def output(self, items: list[Name]) -> Output:
        """`output NAME, ...`"""
        return Output(tuple(items))


def finished(result: object) -> Statement:
    """The node of a whole statement, as the parser returns it."""
    return cast("Statement", result)
