"""Loops of the spatial dialect: `spatial.for`, what its trips hand on, and tokens to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from typing_extensions import override
from xdsl.dialects.builtin import (
    IndexType,
    IntAttr,
    UnitAttr,
)
from xdsl.ir import (
    Block,
    Region,
    SSAValue,
)
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    lazy_traits_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import (
    IsTerminator,
    Pure,
    SingleBlockImplicitTerminator,
)
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.parsing import parse_known_operands, print_operands
from flatc.dialects.quasi_affine import Expr
from flatc.dialects.spatial_types import (
    ExprAttr,
    Indices,
    TokenType,
    print_expr,
)


@irdl_op_definition
class StartOp(IRDLOperation):
    """A token that is ready from the start, to begin a carried chain: `%t = spatial.start`."""

    name = "spatial.start"
    token = result_def(TokenType)
    traits = traits_def(Pure())
    assembly_format = "attr-dict"

    def __init__(self) -> None:
        super().__init__(result_types=[TokenType()])


@irdl_op_definition
class YieldOp(IRDLOperation):
    """Ends a loop body and passes tokens to the next trip: `spatial.yield %t`."""

    name = "spatial.yield"
    tokens = var_operand_def(TokenType)
    traits = traits_def(IsTerminator())

    def __init__(self, tokens: Sequence[SSAValue] = ()):
        super().__init__(operands=[tokens])

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        return cls(parse_known_operands(parser))

    @override
    def print(self, printer: Printer) -> None:
        print_operands(printer, self.tokens)


@irdl_op_definition
class ForOp(IRDLOperation):
    """A symbolic loop. See the module docstring for stages and `stream`.

    `%done = spatial.for %key = 0 to min(ceildiv(%query * 64 + 64, 128), 4) stream carry(%o = %t) stage 1 { ... }`

    Carried values are tokens: in the first trip the given one, then what the trip before yielded; the
    results are what the last trip yielded, or the given ones if there was no trip.
    """

    name = "spatial.for"
    inits = var_operand_def(TokenType)
    indices = var_operand_def(IndexType)
    done = var_result_def(TokenType)
    lower = prop_def(ExprAttr)
    upper = prop_def(ExprAttr)
    stream = opt_prop_def(UnitAttr)
    stage = prop_def(IntAttr)
    body = region_def("single_block")
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    traits = lazy_traits_def(lambda: (SingleBlockImplicitTerminator(YieldOp),))

    def __init__(
        self,
        lower: ExprAttr,
        upper: ExprAttr,
        indices: Sequence[SSAValue],
        inits: Sequence[SSAValue],
        body: Region,
        *,
        stream: bool = False,
        stage: int = 0,
    ):
        super().__init__(
            operands=[inits, indices],
            result_types=[[TokenType()] * len(inits)],
            properties={
                "lower": lower,
                "upper": upper,
                "stream": UnitAttr() if stream else None,
                "stage": IntAttr(stage),
            },
            regions=[body],
        )

    @property
    def index(self) -> SSAValue:
        """The loop index inside the body."""
        return self.body.block.args[0]

    @property
    def carried(self) -> Sequence[SSAValue]:
        """The carried tokens inside the body."""
        return self.body.block.args[1:]

    @property
    def yield_op(self) -> YieldOp:
        """The terminator of the body."""
        last = self.body.block.last_op
        assert isinstance(last, YieldOp)
        return last

    @property
    def stream_child(self) -> ForOp | None:
        """The streamed loop in the body, if there is one."""
        return next((op for op in self.body.block.ops if isinstance(op, ForOp) and op.stream), None)

    @override
    def verify_(self) -> None:
        if len(self.carried) != len(self.inits) or len(self.yield_op.tokens) != len(self.inits):
            raise VerifyException("spatial.for must carry, yield and return the same number of tokens")
        streams = [op for op in self.body.block.ops if isinstance(op, ForOp) and op.stream]
        if len(streams) > 1:
            raise VerifyException("a spatial.for body may hold one `stream` loop; make the others plain")
        if self.stream and not isinstance(self.parent_op(), ForOp):
            raise VerifyException("a `stream` loop continues the trips of a loop around it, and here is none")
        if self.stream and self.stage.data:
            raise VerifyException("a `stream` loop has no stage of its own; its operations have")
        if self.stage.data < 0:
            raise VerifyException(f"a stage cannot be negative, got {self.stage.data}")

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        indices = Indices()
        index = parser.parse_argument(expect_type=False).resolve(IndexType())
        parser.parse_punctuation("=")
        lower = indices.parse(parser)
        parser.parse_characters("to")
        upper = indices.parse(parser)
        stream = parser.parse_optional_keyword("stream") is not None
        pairs: list[tuple[Parser.UnresolvedArgument, SSAValue]] = []
        if parser.parse_optional_keyword("carry"):
            pairs = parser.parse_comma_separated_list(parser.Delimiter.PAREN, lambda: _parse_carry(parser))
        stage = parser.parse_integer() if parser.parse_optional_keyword("stage") else 0
        carried = [argument.resolve(TokenType()) for argument, _ in pairs]
        body = parser.parse_region([index, *carried])
        if not isinstance(body.block.last_op, YieldOp):
            body.block.add_op(YieldOp())
        inits = [init for _, init in pairs]
        return cls(lower, upper, indices.values, inits, body, stream=stream, stage=stage)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_ssa_value(self.index)
        printer.print_string(" = ")
        print_expr(printer, self.lower, self.indices)
        printer.print_string(" to ")
        print_expr(printer, self.upper, self.indices)
        if self.stream:
            printer.print_string(" stream")
        if self.inits:
            printer.print_string(" carry(")
            for i, (argument, init) in enumerate(zip(self.carried, self.inits, strict=True)):
                printer.print_string(", " if i else "")
                printer.print_ssa_value(argument)
                printer.print_string(" = ")
                printer.print_ssa_value(init)
            printer.print_string(")")
        if self.stage.data:
            printer.print_string(f" stage {self.stage.data}")
        printer.print_string(" ")
        terminated = bool(self.yield_op.tokens)
        printer.print_region(
            self.body,
            print_entry_block_args=False,
            print_block_terminators=terminated,
            print_empty_block=False,
        )


def _parse_carry(parser: Parser) -> tuple[Parser.UnresolvedArgument, SSAValue]:
    argument = parser.parse_argument(expect_type=False)
    parser.parse_punctuation("=")
    return argument, parser.parse_operand(TokenType())


def make_for(
    loops: dict[str, SSAValue],
    lower: Expr | int,
    upper: Expr | int,
    body: Block,
    inits: Sequence[SSAValue] = (),
    *,
    stream: bool = False,
    stage: int = 0,
) -> ForOp:
    """A loop whose bounds name enclosing loops; `body` takes the index and one token per init."""
    indices = Indices()
    low, high = indices.bind(lower, loops), indices.bind(upper, loops)
    return ForOp(low, high, indices.values, inits, Region(body), stream=stream, stage=stage)
