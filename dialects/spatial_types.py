"""Types and attributes of the spatial dialect, and how operations write expressions of their loop indices.

    !spatial.token                      the completion of an operation
    !spatial.tensor<64x12x512x64xbf16>  a tensor off chip
    !spatial.buffer<64x128xf32>         one slot of a buffer on chip
    #spatial.expr<min(64, 509 - d0 * 64)>

An operation that uses loop indices has them as operands; its expressions call them d0, d1, ... and print them by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from typing_extensions import override
from xdsl.dialects.builtin import (
    ArrayAttr,
    IndexType,
    IntAttr,
)
from xdsl.ir import (
    Attribute,
    Data,
    ParametrizedAttribute,
    SSAValue,
    TypeAttribute,
)
from xdsl.irdl import (
    irdl_attr_definition,
    param_def,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.quasi_affine import Expr, as_expr, parse_expr, var


@irdl_attr_definition
class ExprAttr(Data[Expr]):
    """A quasi-affine expression of an operation's index operands, which it calls d0, d1, ...

    Operations print it with the operands' own names; alone it is `#spatial.expr<min(64, 509 - d0 * 64)>`.
    """

    name = "spatial.expr"

    @classmethod
    @override
    def parse_parameter(cls, parser: AttrParser) -> Expr:
        with parser.in_angle_brackets():
            return parse_expr(parser, lambda: var(parser.parse_identifier()))

    @override
    def print_parameter(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(str(self.data))


@irdl_attr_definition
class TokenType(ParametrizedAttribute, TypeAttribute):
    """The completion of one operation: `!spatial.token`."""

    name = "spatial.token"


class _ShapedType(ParametrizedAttribute, TypeAttribute):
    """Shared by tensors and buffers: `<64x128xbf16>`.

    The parameters are declared by the types themselves: equality compares what a class itself declares.
    """

    shape: ArrayAttr[IntAttr]
    element_type: Attribute

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as integers."""
        return tuple(n.data for n in self.shape)

    @property
    def element_bytes(self) -> int:
        """Size of one element in bytes; the dtypes of attention are whole bytes (bool is one)."""
        return max(1, int(getattr(self.element_type, "bitwidth", 8)) // 8)

    @property
    def bytes(self) -> int:
        """Size of the whole in bytes."""
        total = self.element_bytes
        for n in self.dims:
            total *= n
        return total

    @classmethod
    @override
    def parse_parameters(cls, parser: AttrParser) -> Sequence[Attribute]:
        with parser.in_angle_brackets():
            shape, element_type = parser.parse_ranked_shape()
        return (ArrayAttr([IntAttr(n) for n in shape]), element_type)

    @override
    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string("".join(f"{n}x" for n in self.dims))
            printer.print_attribute(self.element_type)


@irdl_attr_definition
class TensorRefType(_ShapedType):
    """A tensor in off-chip memory: `!spatial.tensor<64x12x512x64xbf16>`."""

    name = "spatial.tensor"

    shape: ArrayAttr[IntAttr] = param_def()
    element_type: Attribute = param_def()

    def __init__(self, shape: Sequence[int], element_type: Attribute):
        super().__init__(ArrayAttr([IntAttr(n) for n in shape]), element_type)

    @override
    def verify(self) -> None:
        if any(n < 0 for n in self.dims):
            raise VerifyException("a tensor of a schedule has a dim of unknown size: give every dim a number")


@irdl_attr_definition
class BufferType(_ShapedType):
    """One slot of an on-chip buffer: `!spatial.buffer<64x128xf32>`."""

    name = "spatial.buffer"

    shape: ArrayAttr[IntAttr] = param_def()
    element_type: Attribute = param_def()

    def __init__(self, shape: Sequence[int], element_type: Attribute):
        super().__init__(ArrayAttr([IntAttr(n) for n in shape]), element_type)

    @override
    def verify(self) -> None:
        if any(n <= 0 for n in self.dims):
            raise VerifyException("a buffer has a dim that is 0 or unknown: give every dim a positive number")


@dataclass
class Indices:
    """The index operands of an operation being parsed or built; each is `d<position>` in its expressions."""

    values: list[SSAValue] = field(default_factory=list[SSAValue])

    def name(self, value: SSAValue) -> str:
        if value not in self.values:
            self.values.append(value)
        return f"d{self.values.index(value)}"

    def parse(self, parser: Parser) -> ExprAttr:
        return ExprAttr(parse_expr(parser, lambda: var(self.name(parser.parse_operand(IndexType())))))

    def parse_list(self, parser: Parser) -> ArrayAttr[ExprAttr]:
        return ArrayAttr(parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: self.parse(parser)))

    def bind(self, expr: Expr | int, loops: dict[str, SSAValue]) -> ExprAttr:
        """The attribute of an expression whose variables are names of loops."""
        expr = as_expr(expr)
        names = {name: var(self.name(loops[name])) for name in expr.variables()}
        return ExprAttr(expr.substitute(names))


def print_expr(printer: Printer, attribute: ExprAttr, indices: Sequence[SSAValue]) -> None:
    """Prints an expression with the names of its operation's index operands."""
    # Index names are made by the printer, which only knows how to print: collect through a placeholder.
    text = attribute.data.to_text(lambda name: f"\0{name[1:]}\0")
    for i, piece in enumerate(text.split("\0")):
        if i % 2:
            printer.print_ssa_value(indices[int(piece)])
        else:
            printer.print_string(piece)


def print_exprs(printer: Printer, exprs: Sequence[ExprAttr], indices: Sequence[SSAValue]) -> None:
    """Prints several, as `[a, b]`."""
    printer.print_string("[")
    for i, expr in enumerate(exprs):
        printer.print_string(", " if i else "")
        print_expr(printer, expr, indices)
    printer.print_string("]")


def exprs_of(attributes: ArrayAttr[ExprAttr]) -> tuple[Expr, ...]:
    """The expressions in an array attribute."""
    return tuple(a.data for a in attributes)
