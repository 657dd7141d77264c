"""Transfers of the spatial dialect: `spatial.load` and `spatial.store`, between a tensor and a buffer.

Tensors lie off chip, but for those that stay on chip between kernels (`spatial_onchip`): then a transfer is a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

from typing_extensions import override
from xdsl.dialects.builtin import (
    IntAttr,
)
from xdsl.ir import (
    SSAValue,
)
from xdsl.irdl import (
    irdl_op_definition,
    opt_prop_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.spatial_timed import (
    Timed,
    TimedBuilder,
    TimedOp,
    print_access,
    print_extents,
    print_tail,
)
from flatc.dialects.spatial_types import (
    BufferType,
    TensorRefType,
    TokenType,
)


class _TransferOp(TimedOp):
    """A copy between a tensor off chip and a buffer; trailing dimensions of equal extent line up.

    Of a paged tensor it takes a transfer for each block of rows of each sequence; the last buffer that is read is the
    table that says where blocks lie. Windows begin at the start of a block, or lie within one.
    """

    block = opt_prop_def(IntAttr)

    def __init__(self, timed: Timed | TimedBuilder, *, block: int | None = None):
        timed = timed.build() if isinstance(timed, TimedBuilder) else timed
        super().__init__(operands=timed.operands(), result_types=[TokenType()], properties=timed.properties())
        if block is not None:
            self.block = IntAttr(block)

    @property
    def tables(self) -> Sequence[SSAValue]:
        """The buffer that says where blocks lie, if the tensor is paged."""
        return () if self.block is None else self.reads[-1:]

    def transfers(self, extents: Sequence[int]) -> int:
        """How many transfers a window of this size takes."""
        if self.block is None:
            return 1
        return extents[0] * -(-extents[-2] // self.block.data)

    @property
    def moved(self) -> Sequence[SSAValue]:
        """The buffers that hold what is moved: one, in an operation that is right."""
        return (*self.reads, *self.writes)

    @property
    def tensor_type(self) -> TensorRefType:
        """The type of the tensor off chip."""
        assert self.tensor is not None
        return cast(TensorRefType, self.tensor.type)

    @override
    def verify_operands(self) -> None:
        if self.tensor is None or len(self.moved) != 1:
            raise VerifyException(f"{self.name} moves between one tensor and one buffer")
        if len(self.reads) + len(self.writes) != 1 + (self.block is not None):
            raise VerifyException(f"{self.name} reads one table where it says `by ... block`, and else none")
        if self.block is not None and (self.block.data < 1 or len(self.extents) < 3):
            raise VerifyException(
                f"{self.name} moves blocks of at least 1 row, of tensors [batch, ..., rows, features]"
            )
        rank = len(self.tensor_type.dims)
        buffer = cast(BufferType, self.moved[0].type)
        if not len(self.tensor_offsets) == len(self.extents) == len(buffer.dims) == rank:
            raise VerifyException(
                f"{self.name}: tensor, offsets, extents and buffer must have one rank, got {rank}, "
                f"{len(self.tensor_offsets)}, {len(self.extents)} and {len(buffer.dims)}"
            )
        if buffer.element_type != self.tensor_type.element_type:
            raise VerifyException(
                f"{self.name} does not convert: the tensor holds {self.tensor_type.element_type}, "
                f"the buffer {buffer.element_type}"
            )

    def print_block(self, printer: Printer) -> None:
        """What `_parse_block` reads: the table is the last buffer that is read."""
        if self.block is not None:
            table = len(self.reads) - 1
            printer.print_string(" by ")
            print_access(printer, self.reads[table], self.windows.data[table].data, self)
            printer.print_string(f" block {self.block.data}")


def _parse_block(timed: Timed, parser: Parser) -> int | None:
    """`by %table block 16`: the rows of a block; the table joins what is read. None if it is not there."""
    if not parser.parse_optional_keyword("by"):
        return None
    timed.reads.append(timed.parse_access(parser))
    parser.parse_keyword("block")
    return parser.parse_integer()


@irdl_op_definition
class LoadOp(_TransferOp):
    """From a tensor into a buffer: `%t = spatial.load %q[%i * 64, 0] into %qb extent [64, 64] after(%u) stage 1`.

        %t = spatial.load %k[0, 0, %i * 64, 0] by %table block 16 into %kb extent [1, 8, 64, 128] after(%u)

    `%table` is the buffer that says where the blocks of a paged tensor lie.
    """

    name = "spatial.load"

    @property
    @override
    def resource(self) -> str:
        return "read"

    @property
    @override
    def moved(self) -> Sequence[SSAValue]:
        return self.writes

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = Timed()
        timed.tensor, timed.tensor_offsets = timed.parse_access(parser)
        block = _parse_block(timed, parser)
        parser.parse_keyword("into")
        timed.writes = [timed.parse_access(parser)]
        timed.parse_extents(parser)
        timed.parse_tail(parser)
        return cls(timed, block=block)

    @override
    def print(self, printer: Printer) -> None:
        assert self.tensor is not None
        printer.print_string(" ")
        print_access(printer, self.tensor, self.tensor_offsets.data, self)
        self.print_block(printer)
        printer.print_string(" into ")
        print_access(printer, self.writes[0], self.windows.data[-1].data, self)
        print_extents(printer, self)
        print_tail(printer, self)


@irdl_op_definition
class StoreOp(_TransferOp):
    """From a buffer into a tensor: `%t = spatial.store %ob into %o[%i * 64, 0] extent [64, 64] after(%u) stage 2`.

    %t = spatial.store %rows into %k[0, 0, %i * 16, 0] by %table block 16 extent [1, 8, 16, 128] after(%u)
    """

    name = "spatial.store"

    @property
    @override
    def resource(self) -> str:
        return "write"

    @property
    @override
    def moved(self) -> Sequence[SSAValue]:
        return self.reads[:1]

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = Timed()
        timed.reads = [timed.parse_access(parser)]
        parser.parse_keyword("into")
        timed.tensor, timed.tensor_offsets = timed.parse_access(parser)
        block = _parse_block(timed, parser)
        timed.parse_extents(parser)
        timed.parse_tail(parser)
        return cls(timed, block=block)

    @override
    def print(self, printer: Printer) -> None:
        assert self.tensor is not None
        printer.print_string(" ")
        print_access(printer, self.reads[0], self.windows.data[0].data, self)
        printer.print_string(" into ")
        print_access(printer, self.tensor, self.tensor_offsets.data, self)
        self.print_block(printer)
        print_extents(printer, self)
        print_tail(printer, self)
