"""Tensors that stay on chip from the kernel that makes them to the last one that uses them.

    %h = spatial.onchip "hidden" at 0 : !spatial.tensor<1x64x768xbf16>
    spatial.kernel "up" { ... spatial.store %yb into %h[...] ... }
    spatial.kernel "down" { ... spatial.load %h[...] into %xb ... }

Such a tensor is whole in the buffer, row by row, from byte `at` on. It lives from the first kernel that touches it,
which must store it, to the last one; meanwhile the buffers of kernels keep clear of it (`onchip_rules`). A
`spatial.load` or `spatial.store` of it is a copy inside the buffer: the transfer engine that moves tiles off chip and
back issues it in its turn, and nothing goes off chip. So a kernel's loops are the same wherever its tensors lie.

The operation belongs to the spatial dialect, which `flatc/dialects/spatial.py` puts together.
"""

from __future__ import annotations

from typing import Self

from typing_extensions import override
from xdsl.dialects.builtin import IntAttr, StringAttr
from xdsl.irdl import IRDLOperation, irdl_op_definition, opt_prop_def, prop_def, result_def
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.spatial_types import TensorRefType


@irdl_op_definition
class OnchipOp(IRDLOperation):
    """A tensor that stays on chip between kernels: `%h = spatial.onchip "h" at 512 : !spatial.tensor<64x768xbf16>`.

    `at` is the byte address of its first element, given by `allocate-buffers`.
    """

    name = "spatial.onchip"
    label = prop_def(StringAttr)
    address = opt_prop_def(IntAttr)
    tensor = result_def(TensorRefType)

    def __init__(self, label: str, type: TensorRefType, *, address: int | None = None):
        properties = {"label": StringAttr(label), "address": None if address is None else IntAttr(address)}
        super().__init__(properties=properties, result_types=[type])

    @property
    def bytes(self) -> int:
        """Bytes that it takes in the buffer."""
        return self.tensor.type.bytes

    @override
    def verify_(self) -> None:
        if self.address is not None and self.address.data < 0:
            raise VerifyException(f'tensor "{self.label.data}" lies at byte {self.address.data}: count from 0')

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        label = parser.parse_str_literal()
        address = parser.parse_integer() if parser.parse_optional_keyword("at") else None
        parser.parse_punctuation(":")
        type = parser.parse_type()
        if not isinstance(type, TensorRefType):
            parser.raise_error(f"expected a !spatial.tensor type, got {type}")
        return cls(label, type, address=address)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        if self.address is not None:
            printer.print_string(f" at {self.address.data}")
        printer.print_string(" : ")
        printer.print_attribute(self.tensor.type)
