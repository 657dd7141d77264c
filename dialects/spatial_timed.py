"""The operations of the spatial dialect that take time: transfers, array operations, vector operations.

    %t0 = spatial.load %q[%query * 64, 0] into %qb extent [64, 64]
    %t1 = spatial.matmul output (%qb, %kb) into %sb extent [64, 128, 64] transposed after(%t0)
    %t2 = spatial.vector row_max (%sb, %m) into (%m) extent [64, 128] after(%t1) stage 1
    %t3 = spatial.store %sb into %s[%query * 64, 0] extent [64, 128] after(%t2) stage 1

Each gives a token. `flatc.dialects.spatial` says when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self, cast

from typing_extensions import override
from xdsl.dialects.builtin import (
    ArrayAttr,
    FloatAttr,
    IndexType,
    IntAttr,
    StringAttr,
    UnitAttr,
    f64,
)
from xdsl.ir import (
    Attribute,
    SSAValue,
)
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    opt_operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.attn import MaskAttr
from flatc.dialects.frozen import frozen
from flatc.dialects.on_array import OnArray, array_properties, on_array_of, parse_fold, parse_on_array
from flatc.dialects.parsing import float_text, parse_known_operand
from flatc.dialects.quasi_affine import Expr
from flatc.dialects.score_functions import FUNCTIONS, POSITIONS, SCORE_KINDS, ScoreFunctionAttr
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
from flatc.dialects.vector_kinds import VALUE_KINDS, VectorKind


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
class _Timed:
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
        value = parse_known_operand(parser)
        if parser.parse_optional_punctuation("[") is None:
            return value, ()
        offsets = [self.indices.parse(parser)]
        while parser.parse_optional_punctuation(",") is not None:
            offsets.append(self.indices.parse(parser))
        parser.parse_punctuation("]")
        return value, offsets

    def parse_accesses(self, parser: Parser) -> list[tuple[SSAValue, Sequence[ExprAttr]]]:
        return parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: self.parse_access(parser))

    def parse_extents(self, parser: Parser) -> None:
        parser.parse_keyword("extent")
        self.extents = self.indices.parse_list(parser).data

    def parse_tail(self, parser: Parser) -> None:
        if parser.parse_optional_keyword("after"):
            self.after = parser.parse_comma_separated_list(
                parser.Delimiter.PAREN, lambda: parser.parse_operand(TokenType())
            )
        if parser.parse_optional_keyword("when"):
            self.when = self.indices.parse(parser)
        if parser.parse_optional_keyword("stage"):
            self.stage = parser.parse_integer()

    def operands(self) -> list[SSAValue | Sequence[SSAValue] | None]:
        return [
            self.tensor,
            [value for value, _ in self.reads],
            [value for value, _ in self.writes],
            self.after,
            self.indices.values,
        ]

    def properties(self) -> dict[str, Attribute | None]:
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

    def build(self) -> _Timed:
        """The same with expressions bound to SSA indices."""
        timed = _Timed(tensor=self.tensor, after=self.after, stage=self.stage)

        def bind(exprs: Sequence[Expr | int]) -> list[ExprAttr]:
            return [timed.indices.bind(expr, self.loops) for expr in exprs]

        timed.tensor_offsets = bind(self.tensor_offsets)
        timed.reads = [(access.value, bind(access.offsets)) for access in self.reads]
        timed.writes = [(access.value, bind(access.offsets)) for access in self.writes]
        timed.extents = bind(self.extents)
        timed.when = None if self.when is None else timed.indices.bind(self.when, self.loops)
        return timed


def _print_access(printer: Printer, value: SSAValue, offsets: Sequence[ExprAttr], op: TimedOp) -> None:
    printer.print_ssa_value(value)
    if offsets:
        print_exprs(printer, offsets, op.indices)


def _print_accesses(printer: Printer, op: TimedOp, values: Sequence[SSAValue], first: int) -> None:
    printer.print_string("(")
    for i, value in enumerate(values):
        printer.print_string(", " if i else "")
        _print_access(printer, value, op.windows.data[first + i].data, op)
    printer.print_string(")")


def _print_extents(printer: Printer, op: TimedOp) -> None:
    printer.print_string(" extent ")
    print_exprs(printer, op.extents.data, op.indices)


def _print_tail(printer: Printer, op: TimedOp) -> None:
    if op.after:
        printer.print_string(" after(")
        printer.print_list(op.after, printer.print_ssa_value)
        printer.print_string(")")
    if op.when is not None:
        printer.print_string(" when ")
        print_expr(printer, op.when, op.indices)
    if op.stage.data:
        printer.print_string(f" stage {op.stage.data}")


class _TransferOp(TimedOp):
    """A copy between a tensor off chip and a buffer; trailing dimensions of equal extent line up."""

    def __init__(self, timed: _Timed | TimedBuilder):
        timed = timed.build() if isinstance(timed, TimedBuilder) else timed
        super().__init__(operands=timed.operands(), result_types=[TokenType()], properties=timed.properties())

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


@irdl_op_definition
class LoadOp(_TransferOp):
    """Off chip to on chip: `%t = spatial.load %q[%i * 64, 0] into %qb extent [64, 64] after(%u) stage 1`.

        %t = spatial.load %k[0, 0, %i * 64, 0] by %table block 16 into %kb extent [1, 8, 64, 128] after(%u)

    Of a paged tensor it takes a transfer for each block of rows of each sequence; `%table` is the buffer that says
    where blocks lie. Windows begin at the start of a block, or lie within one.
    """

    name = "spatial.load"

    block = opt_prop_def(IntAttr)

    def __init__(self, timed: _Timed | TimedBuilder, *, block: int | None = None):
        super().__init__(timed)
        if block is not None:
            self.block = IntAttr(block)

    @property
    @override
    def resource(self) -> str:
        return "read"

    @property
    @override
    def moved(self) -> Sequence[SSAValue]:
        return self.writes

    def transfers(self, extents: Sequence[int]) -> int:
        """How many transfers a window of this size takes."""
        if self.block is None:
            return 1
        return extents[0] * -(-extents[-2] // self.block.data)

    @override
    def verify_operands(self) -> None:
        super().verify_operands()
        if len(self.reads) != (self.block is not None):
            raise VerifyException("spatial.load reads one table where it says `by ... block`, and else no buffer")
        if self.block is not None and (self.block.data < 1 or len(self.extents) < 3):
            raise VerifyException(
                "spatial.load moves blocks of at least 1 row, of tensors [batch, ..., rows, features]"
            )

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = _Timed()
        timed.tensor, timed.tensor_offsets = timed.parse_access(parser)
        block = None
        if parser.parse_optional_keyword("by"):
            timed.reads = [timed.parse_access(parser)]
            parser.parse_keyword("block")
            block = parser.parse_integer()
        parser.parse_keyword("into")
        timed.writes = [timed.parse_access(parser)]
        timed.parse_extents(parser)
        timed.parse_tail(parser)
        return cls(timed, block=block)

    @override
    def print(self, printer: Printer) -> None:
        assert self.tensor is not None
        printer.print_string(" ")
        _print_access(printer, self.tensor, self.tensor_offsets.data, self)
        if self.block is not None:
            printer.print_string(" by ")
            _print_access(printer, self.reads[0], self.windows.data[0].data, self)
            printer.print_string(f" block {self.block.data}")
        printer.print_string(" into ")
        _print_access(printer, self.writes[0], self.windows.data[-1].data, self)
        _print_extents(printer, self)
        _print_tail(printer, self)


@irdl_op_definition
class StoreOp(_TransferOp):
    """On chip to off chip: `%t = spatial.store %ob into %o[%i * 64, 0] extent [64, 64] after(%u) stage 2`."""

    name = "spatial.store"

    @property
    @override
    def resource(self) -> str:
        return "write"

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = _Timed()
        timed.reads = [timed.parse_access(parser)]
        parser.parse_keyword("into")
        timed.tensor, timed.tensor_offsets = timed.parse_access(parser)
        timed.parse_extents(parser)
        timed.parse_tail(parser)
        return cls(timed)

    @override
    def print(self, printer: Printer) -> None:
        assert self.tensor is not None
        printer.print_string(" ")
        _print_access(printer, self.reads[0], self.windows.data[0].data, self)
        printer.print_string(" into ")
        _print_access(printer, self.tensor, self.tensor_offsets.data, self)
        _print_extents(printer, self)
        _print_tail(printer, self)


@irdl_op_definition
class MatmulOp(TimedOp):
    """One tile of a matrix product on the 2D array: c += scale * a . b, over leading batch dimensions.

        %t = spatial.matmul output (%q, %k) into %s extent [1, 64, 128, 64] batch 1 transposed scale 0.125

    Extents are [batch..., rows..., n, k]; a is [batch..., rows..., k], b is [batch..., k, n] (or [batch..., n, k]
    where `transposed`), c is [batch..., rows..., n]. `output`, `weight` or `input` names what is stationary:
    c, b or a. `fold 1 x 4` lays four independent pieces side by side on the columns. `accumulate` adds
    to what c holds; otherwise c is overwritten. The scale is applied as results leave the array.
    """

    name = "spatial.matmul"

    @property
    @override
    def resource(self) -> str:
        return "array"

    stationarity = prop_def(StringAttr)
    batch_rank = prop_def(IntAttr)
    fold_rows = prop_def(IntAttr)
    fold_columns = prop_def(IntAttr)
    transposed = opt_prop_def(UnitAttr)
    accumulate = opt_prop_def(UnitAttr)
    scale = opt_prop_def(FloatAttr)

    def __init__(
        self,
        timed: _Timed | TimedBuilder,
        *,
        stationarity: str,
        batch_rank: int,
        fold: tuple[int, int] = (1, 1),
        transposed: bool = False,
        accumulate: bool = False,
        scale: float | None = None,
    ):
        timed = timed.build() if isinstance(timed, TimedBuilder) else timed
        super().__init__(
            operands=timed.operands(),
            result_types=[TokenType()],
            properties=timed.properties()
            | {
                "stationarity": StringAttr(stationarity),
                "batch_rank": IntAttr(batch_rank),
                "fold_rows": IntAttr(fold[0]),
                "fold_columns": IntAttr(fold[1]),
                "transposed": UnitAttr() if transposed else None,
                "accumulate": UnitAttr() if accumulate else None,
                "scale": None if scale is None else FloatAttr(scale, f64),
            },
        )

    @override
    def verify_operands(self) -> None:
        if len(self.reads) != 2 or len(self.writes) != 1:
            raise VerifyException("spatial.matmul reads two buffers and writes one")
        if self.stationarity.data not in ("output", "weight", "input"):
            raise VerifyException(f"unknown stationarity '{self.stationarity.data}'")
        a, b, c = (cast(BufferType, v.type) for v in (*self.reads, *self.writes))
        rank, batch = len(self.extents), self.batch_rank.data
        if len(a.dims) != rank - 1 or len(c.dims) != rank - 1 or len(b.dims) != batch + 2:
            raise VerifyException(
                f"spatial.matmul over {rank} extents with {batch} batch dimensions cannot take buffers "
                f"of rank {len(a.dims)}, {len(b.dims)} and {len(c.dims)}"
            )

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = _Timed()
        stationarity = parser.parse_identifier()
        timed.reads = timed.parse_accesses(parser)
        parser.parse_keyword("into")
        timed.writes = [timed.parse_access(parser)]
        timed.parse_extents(parser)
        batch = parser.parse_integer() if parser.parse_optional_keyword("batch") else 0
        fold = parse_fold(parser)
        transposed = parser.parse_optional_keyword("transposed") is not None
        accumulate = parser.parse_optional_keyword("accumulate") is not None
        scale = float(parser.parse_number()) if parser.parse_optional_keyword("scale") else None
        timed.parse_tail(parser)
        return cls(
            timed,
            stationarity=stationarity,
            batch_rank=batch,
            fold=fold,
            transposed=transposed,
            accumulate=accumulate,
            scale=scale,
        )

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(f" {self.stationarity.data} ")
        _print_accesses(printer, self, self.reads, 0)
        printer.print_string(" into ")
        _print_access(printer, self.writes[0], self.windows.data[2].data, self)
        _print_extents(printer, self)
        if self.batch_rank.data:
            printer.print_string(f" batch {self.batch_rank.data}")
        if (self.fold_rows.data, self.fold_columns.data) != (1, 1):
            printer.print_string(f" fold {self.fold_rows.data} x {self.fold_columns.data}")
        if self.transposed:
            printer.print_string(" transposed")
        if self.accumulate:
            printer.print_string(" accumulate")
        if self.scale is not None:
            printer.print_string(f" scale {float_text(self.scale.value.data)}")
        _print_tail(printer, self)


VECTOR_KINDS: dict[str, VectorKind] = {
    "mask": VectorKind(("scores",), ("scores",), "scores that the mask hides become -inf"),
    "row_max": VectorKind(
        ("scores", "maximum"),
        ("maximum", "correction?"),
        "maximum = max(maximum, each row's largest score); correction = exp(old maximum - new maximum)",
    ),
    "exp": VectorKind(
        ("scores", "maximum", "sum?", "correction?"),
        ("probabilities", "sum?"),
        "probabilities = exp(scores - maximum); sum = sum * correction + each row's sum of probabilities",
    ),
    "tile_max": VectorKind(("scores",), ("maximum",), "maximum = each row's largest score in this tile"),
    "merge_max": VectorKind(
        ("tile", "maximum"),
        ("tile", "maximum", "correction"),
        "tile and maximum = max(tile, maximum); correction = exp(old maximum - new maximum)",
        of_rows=True,
    ),
    "tile_sum": VectorKind(("probabilities",), ("sum",), "sum = each row's sum of probabilities in this tile"),
    "merge_sum": VectorKind(
        ("tile", "sum", "correction"), ("sum",), "sum = sum * correction + tile, row by row", of_rows=True
    ),
    "rescale": VectorKind(("output", "correction"), ("output",), "output = output * correction, row by row"),
    "divide": VectorKind(("x", "sum"), ("y",), "y = x / sum, row by row; rows whose sum is 0 give 0"),
    "divide_by_last": VectorKind(
        ("x",), ("y",), "y = x / x's last column, row by row, without that column; rows whose sum is 0 give 0"
    ),
    "cast": VectorKind(("x",), ("y",), "y = x in another storage type"),
    **SCORE_KINDS,
    **VALUE_KINDS,
}
"""The vector operations of attention, those on its scores, and those of the layer around it. Rows are all dimensions
of the extents but the last."""

_OF_ROWS = ("maximum", "sum", "correction")
"""Operands with one value for each row."""


@irdl_op_definition
class VectorOp(TimedOp):
    """One tile of vector work; `VECTOR_KINDS` lists the kinds, their operands and their meaning.

        %t = spatial.vector exp (%s, %m, %l, %alpha) into (%p, %l) extent [64, 128] after(%u)
        %t = spatial.vector mask (%s) into (%s) extent [64, 128] #attn.mask<causal(offset = 0)>
             at [%i * 64, %j * 128] after(%u) when %j * 128 + 128 - %i * 64
        %t = spatial.vector rmsnorm (%x, %g) into (%y) extent [64, 4096] epsilon 1e-05 after(%u)

    `at` gives the absolute query and key position of the tile's first score, or what `POSITIONS` says. A kind that
    takes a number has it behind a keyword of its own. The PEs of the array can do some of it on tiles in their
    registers, where the accelerator says so:

        %t = spatial.vector exp (%s, %m) into (%s) extent [2, 64, 128] on array batch 1 fold 2 x 1 after(%u)
    """

    name = "spatial.vector"

    @property
    @override
    def resource(self) -> str:
        return "vector" if self.on_array is None else "array"

    kind = prop_def(StringAttr)
    mask = opt_prop_def(MaskAttr)
    function = opt_prop_def(ScoreFunctionAttr)
    position = opt_prop_def(ArrayAttr[ExprAttr])
    number = opt_prop_def(FloatAttr)
    batch_rank = opt_prop_def(IntAttr)
    fold_rows = opt_prop_def(IntAttr)
    fold_columns = opt_prop_def(IntAttr)

    @property
    def on_array(self) -> OnArray | None:
        """How it uses the array; None where it runs on the vector unit."""
        return on_array_of(self)

    def __init__(
        self,
        kind: str,
        timed: _Timed | TimedBuilder,
        *,
        mask: MaskAttr | None = None,
        function: ScoreFunctionAttr | None = None,
        position: Sequence[Expr] | ArrayAttr[ExprAttr] | None = None,
        number: float | None = None,
        on_array: OnArray | None = None,
    ):
        if isinstance(timed, TimedBuilder):
            loops, timed = timed.loops, timed.build()
            if position is not None:
                exprs = [p for p in position if isinstance(p, Expr)]
                position = ArrayAttr([timed.indices.bind(p, loops) for p in exprs])
        super().__init__(
            operands=timed.operands(),
            result_types=[TokenType()],
            properties=timed.properties()
            | {
                "kind": StringAttr(kind),
                "mask": mask,
                "function": function,
                "position": cast("ArrayAttr[ExprAttr] | None", position),
                "number": None if number is None else FloatAttr(number, f64),
            }
            | array_properties(on_array),
        )

    @override
    def verify_operands(self) -> None:
        kind = VECTOR_KINDS.get(self.kind.data)
        if kind is None:
            raise VerifyException(
                f"unknown vector operation '{self.kind.data}': expected one of {', '.join(VECTOR_KINDS)}"
            )
        for names, values, verb in ((kind.reads, self.reads, "reads"), (kind.writes, self.writes, "writes")):
            least = sum(not name.endswith("?") for name in names)
            if not least <= len(values) <= len(names):
                raise VerifyException(f"{self.kind.data} {verb} ({', '.join(names)}), got {len(values)} buffers")
            for name, value in zip(names, values, strict=False):
                self._verify_rank(name.removesuffix("?"), cast(BufferType, value.type))
        if (kind.number is None) != (self.number is None):
            wanted = "takes no number" if kind.number is None else f"needs a number: {kind.number} ..."
            raise VerifyException(f"{self.kind.data} {wanted}")
        if self.kind.data == "exp" and (len(self.reads) > 2) != (len(self.writes) > 1):
            raise VerifyException("exp adds to a sum that it reads and writes, or has no sum at all")
        if self.on_array is not None and self.on_array.batch_rank > len(self.extents) - 2:
            raise VerifyException(
                f"{self.kind.data} on the array works on tiles of rows and keys, and {self.on_array.batch_rank} of "
                f"{len(self.extents)} extents are batch dimensions"
            )
        self._verify_parameters()

    def _verify_parameters(self) -> None:
        kind = self.kind.data
        if (self.mask is not None) != (kind == "mask"):
            raise VerifyException("mask, and only mask, needs a mask attribute")
        if (None if self.function is None else type(self.function.data)) is not FUNCTIONS.get(kind):
            wanted = f"a #spatial.score<{kind}(...)>" if kind in FUNCTIONS else "no #spatial.score"
            raise VerifyException(f"{kind} takes {wanted}")
        expected, given = POSITIONS.get(kind, ()), 0 if self.position is None else len(self.position)
        if given != len(expected):
            wanted = f"a position of {', '.join(expected)}" if expected else "no position"
            raise VerifyException(f"{kind} takes {wanted}, got {given} expressions")
        if kind in SCORE_KINDS and len(self.extents) != 5:
            raise VerifyException(f"{kind} works on 5 extents, batch to key, got {len(self.extents)}")

    def _verify_rank(self, name: str, type: BufferType) -> None:
        of_rows = name in _OF_ROWS and not VECTOR_KINDS[self.kind.data].of_rows
        rank = 3 if name == "table" and self.kind.data in SCORE_KINDS else len(self.extents) - of_rows
        if len(type.dims) != rank:
            extents = len(self.extents)
            raise VerifyException(f"{self.kind.data} over {extents} extents needs {name} of rank {rank}, got {type}")

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = _Timed()
        kind = parser.parse_identifier()
        timed.reads = timed.parse_accesses(parser)
        parser.parse_keyword("into")
        timed.writes = timed.parse_accesses(parser)
        timed.parse_extents(parser)
        given = parser.parse_optional_attribute()
        if given is not None and not isinstance(given, MaskAttr | ScoreFunctionAttr):
            parser.raise_error(f"expected #attn.mask<...> or #spatial.score<...>, got {given}")
        mask = given if isinstance(given, MaskAttr) else None
        function = given if isinstance(given, ScoreFunctionAttr) else None
        position = timed.indices.parse_list(parser) if parser.parse_optional_keyword("at") else None
        keyword = VECTOR_KINDS[kind].number if kind in VECTOR_KINDS else None
        number = float(parser.parse_number()) if keyword and parser.parse_optional_keyword(keyword) else None
        on_array = None
        if parser.parse_optional_keyword("on"):
            parser.parse_keyword("array")
            on_array = parse_on_array(parser)
        timed.parse_tail(parser)
        return cls(kind, timed, mask=mask, function=function, position=position, number=number, on_array=on_array)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(f" {self.kind.data} ")
        _print_accesses(printer, self, self.reads, 0)
        printer.print_string(" into ")
        _print_accesses(printer, self, self.writes, len(self.reads))
        _print_extents(printer, self)
        for attribute in (self.mask, self.function):
            if attribute is not None:
                printer.print_string(" ")
                printer.print_attribute(attribute)
        if self.position is not None:
            printer.print_string(" at ")
            print_exprs(printer, self.position.data, self.indices)
        if self.number is not None:
            printer.print_string(f" {VECTOR_KINDS[self.kind.data].number} {float_text(self.number.value.data)}")
        if self.on_array is not None:
            printer.print_string(f" on array {self.on_array.to_text()}")
        _print_tail(printer, self)
