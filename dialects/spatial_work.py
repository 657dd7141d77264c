"""Work of the spatial dialect: `spatial.matmul` on the array, `spatial.vector` on the vector unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

from typing_extensions import override
from xdsl.dialects.builtin import (
    ArrayAttr,
    FloatAttr,
    IntAttr,
    StringAttr,
    UnitAttr,
    f64,
)
from xdsl.irdl import (
    irdl_op_definition,
    opt_prop_def,
    prop_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.attn import MaskAttr
from flatc.dialects.on_array import OnArray, array_properties, on_array_of, parse_fold, parse_on_array
from flatc.dialects.parsing import float_text
from flatc.dialects.quasi_affine import Expr
from flatc.dialects.score_functions import FUNCTIONS, POSITIONS, SCORE_KINDS, ScoreFunctionAttr
from flatc.dialects.spatial_timed import (
    Timed,
    TimedBuilder,
    TimedOp,
    print_access,
    print_accesses,
    print_extents,
    print_tail,
)
from flatc.dialects.spatial_types import (
    BufferType,
    ExprAttr,
    TokenType,
    print_exprs,
)
from flatc.dialects.vector_kinds import VALUE_KINDS, VectorKind


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
        timed: Timed | TimedBuilder,
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
        timed = Timed()
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
        print_accesses(printer, self, self.reads, 0)
        printer.print_string(" into ")
        print_access(printer, self.writes[0], self.windows.data[2].data, self)
        print_extents(printer, self)
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
        print_tail(printer, self)


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
        timed: Timed | TimedBuilder,
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
        timed = Timed()
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
        print_accesses(printer, self, self.reads, 0)
        printer.print_string(" into ")
        print_accesses(printer, self, self.writes, len(self.reads))
        print_extents(printer, self)
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
        print_tail(printer, self)
