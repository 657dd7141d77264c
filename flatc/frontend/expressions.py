"""Expressions of a `.flat` file -> tensors, masks, biases and numbers, by calls of `flatc.builder`.

The place of an expression says what kind it must have, so a wrong kind is named at once:

    g.flat:7:17: error: 'causal' is a mask, not a tensor
     7 | a = attention(q, causal, v)
       |                  ^~~~~~

A tensor of rank one that is added right after a product is its bias: `x @ w + b` is one `attn.linear`.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from flatc import builder
from flatc.builder import DTYPES, BiasExpr, Graph, MaskExpr, Tensor
from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean
from flatc.frontend.arithmetic import Arithmetic
from flatc.frontend.dims import DimTable
from flatc.frontend.functions import (
    BIASES,
    CONSTANTS,
    FUNCTIONS,
    MASKS,
    NOT_ATTENTION,
    NUMERIC,
    RESERVED,
    Kind,
    Signature,
)
from flatc.frontend.source import Source
from flatc.frontend.syntax import Call, Chain, Expression, Name, Negated, Number

Value = Tensor | MaskExpr | BiasExpr
_TENSOR_OPERATORS = "tensors take + * @ with tensors, and * / with numbers"
CALLABLE = (*FUNCTIONS, *MASKS, *BIASES, *NUMERIC)


@contextmanager
def reposition(source: Source, at: Position) -> Generator[None]:
    """Give errors that have no position yet the place `at`, and show the source line of all."""
    try:
        yield
    except FlatcError as error:
        if error.position is None:
            raise source.error(error.message, at, notes=error.notes, help=error.help) from None
        raise source.pointed(error) from None


class Expressions:
    """Evaluates expressions against the values known so far."""

    def __init__(
        self,
        source: Source,
        graph: Graph,
        table: DimTable,
        values: Mapping[str, Value],
        later: Mapping[str, Position],
    ):
        self._source, self._graph, self._table = source, graph, table
        self._values, self._later = values, later
        self.numbers = Arithmetic(source, self._dim)

    # One method per kind

    def any(self, expression: Expression) -> Value:
        """A tensor, a mask or a bias, whichever the expression is."""
        match self.kind(expression):
            case "mask":
                return self.mask(expression)
            case "bias":
                return self.bias(expression)
            case "number":
                raise self._source.error(
                    "a number cannot be assigned",
                    expression.at,
                    help="name it with 'dim', or write it where it is used",
                )
            case _:
                return self.tensor(expression)

    def tensor(self, expression: Expression) -> Tensor:
        """The value as a tensor."""
        match expression:
            case Name():
                value = self._named(expression)
                return value if isinstance(value, Tensor) else self._wrong_kind(expression, "a tensor")
            case Call() if expression.function.text in FUNCTIONS:
                return self._call(self._graph, FUNCTIONS, expression)
            case Chain() if expression.rest[0][0] not in "|&":
                return self._tensor_chain(expression)
            case Negated():
                raise self._source.error("'-' does not apply to tensors", expression.at, help=_TENSOR_OPERATORS)
            case _:
                return self._wrong_kind(expression, "a tensor")

    def mask(self, expression: Expression) -> MaskExpr:
        """The value as a mask; a bool tensor is one."""
        match expression:
            case Name() if expression.text in MASKS:
                return self._call(builder, MASKS, Call(expression.at, expression, (), ()))
            case Name() if expression.text in self._values:
                value = self._named(expression)
                return self._wrong_kind(expression, "a mask") if isinstance(value, BiasExpr) else builder.as_mask(value)
            case Call() if expression.function.text in MASKS:
                return self._call(builder, MASKS, expression)
            case Chain() if expression.rest[0][0] in "|&":
                return self._mask_chain(expression)
            case _:
                return self._wrong_kind(expression, "a mask")

    def bias(self, expression: Expression) -> BiasExpr:
        """The value as a bias; a tensor that broadcasts to the scores is one, and biases add up."""
        match expression:
            case Name() if expression.text in BIASES:
                return self._call(builder, BIASES, Call(expression.at, expression, (), ()))
            case Call() if expression.function.text in BIASES:
                return self._call(builder, BIASES, expression)
            case Chain() if self.kind(expression) == "bias":
                return self._bias_chain(expression)
            case Name() if isinstance(value := self._named(expression), BiasExpr):
                return value
            case _:
                return builder.as_bias(self.tensor(expression))

    def kind(self, expression: Expression) -> str:
        """What an expression is by its form: mask, bias, number or tensor."""
        match expression:
            case Number():
                return "number"
            case Negated():
                return self.kind(expression.operand)
            case Name():
                return self._kind_of_word(expression.text)
            case Call():
                return self._kind_of_word(expression.function.text)
            case Chain() if expression.rest[0][0] in "|&":
                return "mask"
            case Chain():
                kinds = {self.kind(expression.first), *(self.kind(operand) for _, operand in expression.rest)}
                return "number" if kinds == {"number"} else "bias" if "bias" in kinds else "tensor"

    def _kind_of_word(self, word: str) -> str:
        value = self._values.get(word)
        if word in MASKS or isinstance(value, MaskExpr):
            return "mask"
        if word in BIASES or isinstance(value, BiasExpr):
            return "bias"
        return "number" if word in self._table.defined or word in NUMERIC else "tensor"

    # Chains of operators

    def _tensor_chain(self, chain: Chain) -> Tensor:
        operands = [chain.first, *(operand for _, operand in chain.rest)]
        operators = ["+", *(operator for operator, _ in chain.rest)]
        if all(self.kind(operand) == "number" for operand in operands):
            return self._wrong_kind(chain, "a tensor")
        value, index = self._operand(operators, operands, 0)
        while index < len(operands):
            operator, at = operators[index], self._source.span(chain.first.at, operands[index].at)
            right, index = self._operand(operators, operands, index)
            with reposition(self._source, at):
                value = self._combine(value, operator, right, at)
        assert isinstance(value, Tensor)
        return value

    def _operand(self, operators: list[str], operands: list[Expression], index: int) -> tuple[Tensor | float, int]:
        """One operand of a chain and the index after it; a product takes the bias that follows it."""
        operand = operands[index]
        if self.kind(operand) == "number":
            return self.numbers.real(operand), index + 1
        added = operators[index : index + 2] == ["+", "+"]
        follower = operands[index + 1] if added and isinstance(operands[index + 1], Name) else None
        bias = self._values.get(follower.text) if isinstance(follower, Name) else None
        if isinstance(operand, Chain) and operand.rest[-1][0] == "@" and isinstance(bias, Tensor):
            *before, (_, w) = operand.rest
            x = self.tensor(Chain(operand.at, operand.first, tuple(before)) if before else operand.first)
            weight = self.tensor(w)
            fits = bias.shape == weight.shape[-1:] and len(weight.shape) == 2
            with reposition(self._source, operand.at):
                product = self._graph.linear(x, weight, bias if fits else None, at=operand.at)
            return product, index + (2 if fits else 1)
        return self.tensor(operand), index + 1

    def _combine(self, left: Tensor | float, operator: str, right: Tensor | float, at: Position) -> Tensor | float:
        match left, operator, right:
            case Tensor(), "+", Tensor():
                return self._graph.add(left, right, at=at)
            case Tensor(), "@", Tensor():
                return self._graph.linear(left, right, at=at)
            case Tensor(), "*", _:
                return self._graph.multiply(left, right, at=at)
            case float(), "*", Tensor():
                return self._graph.multiply(right, left, at=at)
            case float(), "*", float():
                return left * right
            case Tensor(), "/", float() if right:
                return self._graph.multiply(left, 1 / right, at=at)
            case Tensor(), "/", float():
                raise self._source.error("division by zero", at)
            case _:
                sides = ["a tensor" if isinstance(side, Tensor) else "a number" for side in (left, right)]
                both = "two tensors" if sides == ["a tensor"] * 2 else " and ".join(sides)
                raise self._source.error(f"'{operator}' does not combine {both}", at, help=_TENSOR_OPERATORS)

    def _mask_chain(self, chain: Chain) -> MaskExpr:
        value = self.mask(chain.first)
        for operator, operand in chain.rest:
            with reposition(self._source, self._source.span(chain.first.at, operand.at)):
                right = self.mask(operand)
                value = value & right if operator == "&" else value | right
        return value

    def _bias_chain(self, chain: Chain) -> BiasExpr:
        value = self.bias(chain.first)
        for operator, operand in chain.rest:
            if operator != "+":
                at = self._source.span(chain.first.at, operand.at)
                raise self._source.error(f"'{operator}' does not combine biases", at, help="biases take +")
            value = value + self.bias(operand)
        return value

    # Calls

    def _call(self, owner: object, table: Mapping[str, Signature], call: Call) -> Any:
        """Call the method of `owner` with evaluated arguments."""
        name, signature = call.function.text, table[call.function.text]
        given = len(call.arguments)
        if not signature.fewest <= given <= len(signature.arguments):
            raise self._source.error(f"'{name}' takes {signature.takes()}, not {given}", call.at)
        kinds = list(signature.arguments.values())[:given]
        arguments = [self._argument(kind, e) for kind, e in zip(kinds, call.arguments, strict=True)]
        options = self._options(call, signature)
        if table is not BIASES or name == "t5_relative":
            options["at"] = call.at
        with reposition(self._source, call.at):
            return getattr(owner, name)(*arguments, **options)

    def _options(self, call: Call, signature: Signature) -> dict[str, Any]:
        name, values = call.function.text, dict[str, Any]()
        for option in call.options:
            word = option.name.text
            if word not in signature.options:
                if "dropout" in word and isinstance(option.value, Number) and option.value.value == 0:
                    continue
                if word in NOT_ATTENTION:
                    raise self._source.error(f"'{word}' is not supported: {NOT_ATTENTION[word]}", option.name.at)
                known = ", ".join(signature.options)
                raise self._source.error(
                    f"'{name}' has no option '{word}'",
                    option.name.at,
                    help=did_you_mean(word, signature.options)
                    or (f"its options are {known}" if known else "it takes no options"),
                )
            if word in values:
                raise self._source.error(f"option '{word}' is given twice", option.name.at)
            values[word] = self._argument(signature.options[word], option.value)
        return values

    def _argument(self, kind: Kind, expression: Expression) -> Any:
        match kind:
            case "tensor":
                return self.tensor(expression)
            case "mask":
                return self.mask(expression)
            case "bias":
                return self.bias(expression)
            case "whole":
                return self.numbers.whole(expression)
            case "real":
                return self.numbers.real(expression)
            case "flag" | "type":
                return self._word(kind, expression)

    def _word(self, kind: Kind, expression: Expression) -> bool | str:
        known = CONSTANTS if kind == "flag" else tuple(DTYPES)
        if isinstance(expression, Name) and expression.text in known:
            return expression.text == "true" if kind == "flag" else expression.text
        found = expression.text if isinstance(expression, Name) else "this expression"
        near = did_you_mean(found, known) if isinstance(expression, Name) else None
        what = "true or false" if kind == "flag" else "a type"
        raise self._source.error(
            f"'{found}' is not {what}" if isinstance(expression, Name) else f"{what} is needed here",
            expression.at,
            help=near or f"write one of {', '.join(known)}",
        )

    # Names

    def _named(self, name: Name) -> Value:
        if name.text in self._values:
            return self._values[name.text]
        if name.text in RESERVED or name.text in self._table.defined:
            return self._wrong_kind(name, "a tensor")
        if name.text in self._later:
            raise self._source.error(
                f"'{name.text}' is used before it is defined",
                name.at,
                notes=(f"it is defined at {self._later[name.text]}",),
            )
        raise self._source.error(
            f"unknown name '{name.text}'", name.at, help=did_you_mean(name.text, (*self._values, *RESERVED))
        )

    def _dim(self, name: Name) -> int:
        """The value of a dim; a tensor or a word of the language in its place is named as such."""
        if name.text in self._values or name.text in RESERVED:
            self._wrong_kind(name, "a number")
        return self._table.value(name)

    def _wrong_kind(self, expression: Expression, wanted: str) -> NoReturn:
        """Say what an expression is, and that something else is needed."""
        source, at = self._source, expression.at
        match expression:
            case Name(where, word) | Call(_, Name(where, word)) if wanted == "a mask" and word not in self._known():
                help = did_you_mean(word, MASKS) or f"the masks are {', '.join(MASKS)}"
                raise source.error(f"unknown mask '{word}'", where, help=help)
            case Chain(_, _, ((operator, _), *_)) if wanted == "a mask":
                raise source.error(f"'{operator}' does not give a mask", at, help="masks take & and |")
            case Name(_, word):
                raise source.error(f"'{word}' is {self._what(word)}, not {wanted}", at, help=_usage(word, wanted))
            case Call(_, Name(where, word)) if word in self._known() - {*CALLABLE}:
                raise source.error(f"'{word}' is {self._what(word)}, not a function", where)
            case Call(_, Name(where, word)) if word in NOT_ATTENTION:
                raise source.error(f"'{word}' is not supported: {NOT_ATTENTION[word]}", where)
            case Call(_, Name(where, word)) if word not in CALLABLE:
                near = did_you_mean(word, CALLABLE) or f"the functions are {', '.join(FUNCTIONS)}"
                raise source.error(f"unknown function '{word}'", where, help=near)
            case Call(_, Name(_, word)):
                raise source.error(f"'{word}(...)' is {self._what(word)}, not {wanted}", at)
            case _:
                raise source.error(f"this is a {self.kind(expression)}, not {wanted}", at)

    def _known(self) -> set[str]:
        return {*self._values, *RESERVED, *self._table.defined}

    def _what(self, word: str) -> str:
        if word in self._values:
            return {"mask": "a mask", "bias": "a bias"}.get(self._kind_of_word(word), "a tensor")
        if word in self._table.defined:
            return "a dim"
        return RESERVED[word]


def _usage(word: str, wanted: str) -> str | None:
    """How a word of the language is meant to be used."""
    if word in MASKS:
        return "pass it to attention as 'mask = ...'"
    if word in BIASES:
        return "pass it to attention as 'bias = ...'"
    return f"call it: {word}(...)" if word in FUNCTIONS and wanted == "a tensor" else None
