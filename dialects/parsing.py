"""Helpers for text that the dialects share.

Types of operands that were defined above need not be written again: `parse_known_operand` reads `%x` and
finds its type, as `spatial.load %q into %qb` needs. `float_text` writes numbers that the parser reads back.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.ir import Attribute, SSAValue
from xdsl.parser import Parser, UnresolvedOperand
from xdsl.printer import Printer


def known_type(parser: Parser, operand: UnresolvedOperand) -> Attribute:
    """The type of an operand that was defined above. Raises a parse error where it was not."""
    values = parser.ssa_values.get(operand.operand_name)
    if values is None or operand.index >= len(values):
        parser.raise_error(f"%{operand.operand_name} must be defined above its use", operand.span)
    return values[operand.index].type


def parse_known_operand(parser: Parser) -> SSAValue:
    """An operand whose type follows from its definition above."""
    operand = parser.parse_unresolved_operand()
    return parser.resolve_operand(operand, known_type(parser, operand))


def parse_known_operands(parser: Parser) -> list[SSAValue]:
    """Zero or more operands, separated by commas, to the end of the operation."""
    first = parser.parse_optional_unresolved_operand()
    if first is None:
        return []
    values = [parser.resolve_operand(first, known_type(parser, first))]
    while parser.parse_optional_punctuation(",") is not None:
        values.append(parse_known_operand(parser))
    return values


def print_operands(printer: Printer, values: Sequence[SSAValue]) -> None:
    """What `parse_known_operands` reads, behind the name of an operation."""
    if values:
        printer.print_string(" ")
        printer.print_list(values, printer.print_ssa_value)


def float_text(value: float) -> str:
    """The shortest text that reads back as `value`, with the point that MLIR wants: `1.0e-05`."""
    mantissa, e, exponent = repr(float(value)).partition("e")
    return mantissa + (".0" if e and "." not in mantissa else "") + e + exponent
