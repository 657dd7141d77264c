"""What the operations of the spatial dialect that take time have in common: what they touch, when, and their text.

    %t0 = spatial.load %q[%query * 64, 0] into %qb extent [64, 64]
    %t1 = spatial.matmul output (%qb, %kb) into %sb extent [64, 128, 64] transposed after(%t0)
    %t2 = spatial.vector row_max (%sb, %m) into (%m) extent [64, 128] after(%t1) stage 1
    %t3 = spatial.store %sb into %s[%query * 64, 0] extent [64, 128] after(%t2) stage 1

Each gives a token. `flatc.dialects.spatial` says when they run; transfers are in `spatial_transfers`, operations of
the array and of the vector unit in `spatial_work`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from typing_extensions import override
from xdsl.dialects.builtin import (
    ArrayAttr,
    IndexType,
    IntAttr,
)
from xdsl.ir import (
    Attribute,
    SSAValue,
)
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.frozen import frozen
from flatc.dialects.parsing import parse_known_operand
from flatc.dialects.quasi_affine import Expr
from flatc.dialects.spatial_types import (
    BufferType,
    ExprAttr,
    Indices,
    TensorRefType,
    TokenType,
    exprs_of,
    print_expr,
    print_exprs,
)


@frozen
class Access:
    """One buffer that an operation touches: from `offsets` (per dimension; empty means the origin)."""

    value: SSAValue
    offsets: tuple[Expr, ...] = ()


class TimedOp(IRDLOperation):
    """What transfers, array and vector operations share.

    `extents` are the sizes they work on; `windows` the offsets into each buffer, reads before writes. All
    expressions name the index operands d0, d1, .... `when` makes the operation conditional: it works only in
    trips where the expression is positive, and its token is then ready with the tokens it waits for.
    """

    tensor = opt_operand_def(TensorRefType)
    reads = var_operand_def(BufferType)
    writes = var_operand_def(BufferType)
    after = var_operand_def(TokenType)
    indices = var_operand_def(IndexType)
    tensor_offsets = prop_def(ArrayAttr[ExprAttr])
    windows = prop_def(ArrayAttr[ArrayAttr[ExprAttr]])
    extents = prop_def(ArrayAttr[ExprAttr])
    when = opt_prop_def(ExprAttr)
    stage = prop_def(IntAttr)
    token = result_def(TokenType)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)

    @property
    def resource(self) -> str:
        """What issues it: "read" or "write" (off-chip channels), "array" or "vector"."""
        raise NotImplementedError

    @property
    def read_accesses(self) -> list[Access]:
        """The buffers it reads."""
        return self._accesses(self.reads, 0)

    @property
    def write_accesses(self) -> list[Access]:
        """The buffers it writes."""
        return self._accesses(self.writes, len(self.reads))

    def _accesses(self, values: Sequence[SSAValue], first: int) -> list[Access]:
        windows = self.windows.data[first : first + len(values)]
        return [Access(value, exprs_of(window)) for value, window in zip(values, windows, strict=True)]

    @override
    def verify_(self) -> None:
        if len(self.windows) != len(self.reads) + len(self.writes):
            raise VerifyException(f"{self.name} needs one window per buffer")
        for access in self.read_accesses + self.write_accesses:
            rank = len(cast(BufferType, access.value.type).dims)
            if access.offsets and len(access.offsets) != rank:
                raise VerifyException(
                    f"{self.name}: a buffer of rank {rank} is accessed with {len(access.offsets)} offsets"
                )
        if self.stage.data < 0:
            raise VerifyException(f"a stage cannot be negative, got {self.stage.data}")
        self.verify_operands()

    def verify_operands(self) -> None:
        """Checks of one kind of operation."""


@dataclass
class Timed:
    """Collects the shared parts of a timed operation while it is parsed or built."""

    indices: Indices = field(default_factory=Indices)
    tensor: SSAValue | None = None
    tensor_offsets: Sequence[ExprAttr] = ()
    reads: list[tuple[SSAValue, Sequence[ExprAttr]]] = field(default_factory=list[tuple[SSAValue, Sequence[ExprAttr]]])
    writes: list[tuple[SSAValue, Sequence[ExprAttr]]] = field(default_factory=list[tuple[SSAValue, Sequence[ExprAttr]]])
    extents: Sequence[ExprAttr] = ()
    after: Sequence[SSAValue] = ()
    when: ExprAttr | None = None
    stage: int = 0

    def parse_access(self, parser: Parser) -> tuple[SSAValue, Sequence[ExprAttr]]:
        """`%buffer`, or `%buffer[offset, ...]`."""
        value = parse_known_operand(parser)
        if parser.parse_optional_punctuation("[") is None:
            return value, ()
        offsets = [self.indices.parse(parser)]
        while parser.parse_optional_punctuation(",") is not None:
            offsets.append(self.indices.parse(parser))
        parser.parse_punctuation("]")
        return value, offsets

    def parse_accesses(self, parser: Parser) -> list[tuple[SSAValue, Sequence[ExprAttr]]]:
        """`(%buffer[offset, ...], ...)`."""
        return parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: self.parse_access(parser))

    def parse_extents(self, parser: Parser) -> None:
        """`extent [size, ...]`."""
        parser.parse_keyword("extent")
        self.extents = self.indices.parse_list(parser).data

    def parse_tail(self, parser: Parser) -> None:
        """What ends an operation: `after(%token, ...)`, `when expression`, `stage number`, each if it is there."""
        if parser.parse_optional_keyword("after"):
            self.after = parser.parse_comma_separated_list(
                parser.Delimiter.PAREN, lambda: parser.parse_operand(TokenType())
            )
        if parser.parse_optional_keyword("when"):
            self.when = self.indices.parse(parser)
        if parser.parse_optional_keyword("stage"):
            self.stage = parser.parse_integer()

    def operands(self) -> list[SSAValue | Sequence[SSAValue] | None]:
        """The operands of the operation, by segment."""
        return [
            self.tensor,
            [value for value, _ in self.reads],
            [value for value, _ in self.writes],
            self.after,
            self.indices.values,
        ]

    def properties(self) -> dict[str, Attribute | None]:
        """The properties that all timed operations have."""
        windows = [ArrayAttr(offsets) for _, offsets in [*self.reads, *self.writes]]
        return {
            "tensor_offsets": ArrayAttr(self.tensor_offsets),
            "windows": ArrayAttr(windows),
            "extents": ArrayAttr(self.extents),
            "when": self.when,
            "stage": IntAttr(self.stage),
        }


@dataclass
class TimedBuilder:
    """What `lower-to-spatial` says about a timed operation: expressions name loops, not operands."""

    loops: dict[str, SSAValue]
    extents: Sequence[Expr | int]
    reads: Sequence[Access] = ()
    writes: Sequence[Access] = ()
    tensor: SSAValue | None = None
    tensor_offsets: Sequence[Expr | int] = ()
    after: Sequence[SSAValue] = ()
    when: Expr | None = None
    stage: int = 0

    def build(self) -> Timed:
        """The same with expressions bound to SSA indices."""
        timed = Timed(tensor=self.tensor, after=self.after, stage=self.stage)

        def bind(exprs: Sequence[Expr | int]) -> list[ExprAttr]:
            return [timed.indices.bind(expr, self.loops) for expr in exprs]

        timed.tensor_offsets = bind(self.tensor_offsets)
        timed.reads = [(access.value, bind(access.offsets)) for access in self.reads]
        timed.writes = [(access.value, bind(access.offsets)) for access in self.writes]
        timed.extents = bind(self.extents)
        timed.when = None if self.when is None else timed.indices.bind(self.when, self.loops)
        return timed


def print_access(printer: Printer, value: SSAValue, offsets: Sequence[ExprAttr], op: TimedOp) -> None:
    """What `Timed.parse_access` reads."""
    printer.print_ssa_value(value)
    if offsets:
        print_exprs(printer, offsets, op.indices)


def print_accesses(printer: Printer, op: TimedOp, values: Sequence[SSAValue], first: int) -> None:
    """What `Timed.parse_accesses` reads: `values`, whose windows in `op` begin with number `first`."""
    printer.print_string("(")
    for i, value in enumerate(values):
        printer.print_string(", " if i else "")
        print_access(printer, value, op.windows.data[first + i].data, op)
    printer.print_string(")")


def print_extents(printer: Printer, op: TimedOp) -> None:
    """What `Timed.parse_extents` reads."""
    printer.print_string(" extent ")
    print_exprs(printer, op.extents.data, op.indices)


def print_tail(printer: Printer, op: TimedOp) -> None:
    """What `Timed.parse_tail` reads."""
    if op.after:
        printer.print_string(" after(")
        printer.print_list(op.after, printer.print_ssa_value)
        printer.print_string(")")
    if op.when is not None:
        printer.print_string(" when ")
        print_expr(printer, op.when, op.indices)
    if op.stage.data:
        printer.print_string(f" stage {op.stage.data}")
