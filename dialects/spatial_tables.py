"""Tensors off chip whose values are known when a schedule is made: nobody passes them in, and loading them is charged.

%t = spatial.rope_table "rope" start 8192 base 500000.0 : !spatial.tensor<1x128xf32>
"""

from __future__ import annotations

from typing import Self

from typing_extensions import override
from xdsl.dialects.builtin import FloatAttr, IntAttr, StringAttr, f64
from xdsl.irdl import IRDLOperation, irdl_op_definition, prop_def, result_def, traits_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import Pure
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.parsing import float_text
from flatc.dialects.spatial_types import TensorRefType


@irdl_op_definition
class RopeTableOp(IRDLOperation):
    """Cosines and sines of rotary positions, [positions, dims] behind dims of 1, in off-chip memory from the start.

        %t = spatial.rope_table "rope" start 0 base 10000.0 : !spatial.tensor<512x64xf32>

    Row r, column i < dims / 2 holds the cosine of `(start + r) * base ** (-2 i / dims)`; the sine is dims / 2 columns
    to the right of it. It stands in a schedule, or in the only kernel that reads it.
    """

    name = "spatial.rope_table"
    label = prop_def(StringAttr)
    start = prop_def(IntAttr)
    wavelength = prop_def(FloatAttr, prop_name="base")
    tensor = result_def(TensorRefType)
    traits = traits_def(Pure())

    def __init__(self, label: str, start: int, base: float, type: TensorRefType):
        super().__init__(
            properties={"label": StringAttr(label), "start": IntAttr(start), "base": FloatAttr(base, f64)},
            result_types=[type],
        )

    @override
    def verify_(self) -> None:
        dims = self.tensor.type.dims
        if len(dims) < 2 or max(dims[:-2], default=1) > 1 or dims[-1] % 2:
            raise VerifyException(
                f"a rope table is [1, ..., positions, an even number of features], got {self.tensor.type}"
            )
        if self.start.data < 0 or self.wavelength.value.data <= 0:
            raise VerifyException("a rope table starts at position 0 or later and has a base above 0")

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        label = parser.parse_str_literal()
        parser.parse_keyword("start")
        start = parser.parse_integer()
        parser.parse_keyword("base")
        base = float(parser.parse_number())
        parser.parse_punctuation(":")
        type = parser.parse_type()
        if not isinstance(type, TensorRefType):
            parser.raise_error(f"expected a !spatial.tensor type, got {type}")
        return cls(label, start, base, type)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        printer.print_string(f" start {self.start.data} base {float_text(self.wavelength.value.data)} : ")
        printer.print_attribute(self.tensor.type)
