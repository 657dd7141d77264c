"""What all ops of the attn dialect share: the base class, readable numbers, and checks with clear words.

An op of the dialect is pure and has one result whose shape follows from its operands. It states its
rules by raising `FlatcError`; the verifier and the graph builder both report them:

    class CopyOp(AttnOp):
        def shape(self) -> Shape:
            return shape_of(self.x)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from typing_extensions import override
from xdsl.dialects.builtin import I64, AnyFloat, FloatAttr, IntegerAttr, TensorType, f64, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import IRDLOperation, traits_def
from xdsl.irdl.declarative_assembly_format import (
    AttributeVariable,
    CustomDirective,
    ParsingState,
    PrintingState,
    irdl_custom_directive,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException
from xdsl.utils.hints import isa

from flatc.dialects import attn_shapes as shapes
from flatc.dialects.attn_shapes import Shape
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.parsing import float_text

Tensor = TensorType[Attribute]


def _tensor_type(value: SSAValue) -> Tensor:
    assert isa(value.type, Tensor)
    return value.type


def shape_of(value: SSAValue) -> Shape:
    """The static sizes of a tensor value."""
    tensor = _tensor_type(value)
    sizes = tensor.get_shape()
    if not tensor.has_static_shape():
        raise FlatcError(f"{tensor} has a dim of unknown size", help="give every dim a number")
    return sizes


def element_type_of(value: SSAValue) -> Attribute:
    """The element type of a tensor value."""
    return _tensor_type(value).get_element_type()


@irdl_custom_directive
class Number(CustomDirective):
    """A float64 property written as a plain number: `0.125`."""

    value: AttributeVariable

    @override
    def parse(self, parser: Parser, state: ParsingState) -> None:
        self.value.set(state, FloatAttr(float(parser.parse_number()), f64))

    @override
    def print(self, printer: Printer, state: PrintingState, op: IRDLOperation) -> None:
        attribute = self.value.get(op)
        assert isinstance(attribute, FloatAttr)
        state.print_whitespace(printer)
        printer.print_string(float_text(attribute.value.data))


class AttnOp(IRDLOperation, ABC):
    """Shared by all ops: pure, with one result whose shape follows from the operands."""

    traits = traits_def(Pure())
    custom_directives = (Number,)

    @abstractmethod
    def shape(self) -> Shape:
        """The shape that the result must have; raises `FlatcError` when the operands do not fit."""

    def check(self) -> None:
        """Further requirements; raises `FlatcError`."""

    def may_be_empty(self) -> bool:
        """Whether an operand may have a dim of 0, as a cache does that nobody has filled yet."""
        return False

    def require(self) -> None:
        """Everything that must hold; raises `FlatcError`."""
        for value in (*self.operands, *self.results):
            shapes.check_sizes(shape_of(value), may_be_empty=self.may_be_empty())
        expected, found = self.shape(), shape_of(self.results[0])
        if expected != found:
            raise FlatcError(f"the result has shape {shapes.text(found)}, the operands give {shapes.text(expected)}")
        self.check()

    @override
    def verify_(self) -> None:
        try:
            self.require()
        except FlatcError as error:
            lines = [error.message, *error.notes, *([error.help] if error.help else [])]
            raise VerifyException(f"{self.name}: " + "; ".join(lines)) from None


def require_float(what: str, element: Attribute) -> None:
    """Require a floating-point element type."""
    if not isinstance(element, AnyFloat):
        raise FlatcError(f"{what} has element type {element}", help="use a floating-point type, or attn.cast")


def require_same_element(op: str, left: SSAValue, right: SSAValue) -> None:
    """Require two tensors to have one element type."""
    a, b = element_type_of(left), element_type_of(right)
    if a != b:
        raise FlatcError(f"{op} mixes element types {a} and {b}", help="cast one side to the type of the other")


def require_finite(what: str, number: FloatAttr) -> float:
    """The value of a number that must be finite."""
    value = number.value.data
    if not math.isfinite(value):
        raise FlatcError(f"{what} is {value}", help="give a finite number")
    return value


def require_positive(what: str, number: FloatAttr) -> None:
    """Require a number above 0."""
    if require_finite(what, number) <= 0:
        raise FlatcError(f"{what} is {number.value.data}", help="give a number above 0")


def real_attr(value: float) -> FloatAttr:
    """A number as a property."""
    return FloatAttr(float(value), f64)


def integer_attr(value: int) -> IntegerAttr[I64]:
    """An integer as a property."""
    return IntegerAttr(value, i64)
