"""The spatial dialect: schedules of one accelerator, with exact meaning in data and in time.

A schedule holds kernels; a kernel holds symbolic loops over buffers, transfers, array operations and
vector operations. Its size does not depend on tensor lengths. Three readers give it meaning and must
agree: the NumPy interpreter (data), the simulator (time) and the closed form (price).

    spatial.schedule @bert inputs ["q", "k"] (%q: !spatial.tensor<...>, %k: ...) outputs ["s"] {
      %s = spatial.offchip "s" : !spatial.tensor<...>
      spatial.kernel "logit" {
        spatial.for %query = 0 to 8 {
          %qb = spatial.buffer "Q" slots 2 : !spatial.buffer<64x64xbf16>
          %t0 = spatial.load %q[%query * 64, 0] into %qb extent [64, 64]
          spatial.for %key = 0 to 4 stream {
            %kb = spatial.buffer "K" slots 2 : !spatial.buffer<128x64xbf16>
            %sb = spatial.buffer "scores" slots 2 : !spatial.buffer<64x128xf32>
            %t1 = spatial.load %k[%key * 128, 0] into %kb extent [128, 64]
            %t2 = spatial.matmul output (%qb, %kb) into %sb extent [64, 128, 64] transposed after(%t0, %t1)
            %t3 = spatial.store %sb into %s[%query * 64, %key * 128] extent [64, 128] after(%t2) stage 1
          }
        }
      }
      spatial.return %s
    }

**Time.** Each resource (off-chip channel, array, vector unit) issues its operations in program order and finishes
them in that order. An operation starts when its tokens (`after`), the slots of its buffers and its resource are ready.

**Program order.** A loop runs its trips in order. In trip i, an operation of stage s works on instance
i - s; instances out of range vanish. A `stream` loop is its parent's only stream: the trips of all its
runs, over all trips of the parent, form one sequence, and a run without trips counts as one trip in which only
the parent's operations work. What stands before it in the parent belongs to its first trip, what
stands after it to its last. A loop without `stream` runs as a whole where it stands, at its own stage.

**Slots.** A buffer has one instance per trip of the loop whose body declares it; instances take its slots
in turn. An instance may be touched only when every operation on the slot's previous instance has finished.
A fresh instance holds nothing, or `initial` everywhere (hardware clears accumulators by a valid bit).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self, cast

from typing_extensions import override
from xdsl.dialects.builtin import (
    ArrayAttr,
    FloatAttr,
    IndexType,
    IntAttr,
    StringAttr,
    SymbolNameConstraint,
    UnitAttr,
    f64,
)
from xdsl.ir import (
    Attribute,
    Block,
    Data,
    Dialect,
    Operation,
    ParametrizedAttribute,
    Region,
    SSAValue,
    TypeAttribute,
)
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_attr_definition,
    irdl_op_definition,
    lazy_traits_def,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    param_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.parser import AttrParser, Parser
from xdsl.printer import Printer
from xdsl.traits import (
    IsTerminator,
    NoTerminator,
    Pure,
    SingleBlockImplicitTerminator,
    SymbolOpInterface,
)
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.accelerator import AcceleratorAttr
from flatc.dialects.attn import MaskAttr
from flatc.dialects.flat import MappingAttr, parse_mapping_attribute
from flatc.dialects.parsing import float_text, parse_known_operand, parse_known_operands
from flatc.dialects.quasi_affine import Expr, as_expr, parse_expr, var

# --- Attributes and types ---------------------------------------------------------------------------


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


# --- Reading and printing expressions over SSA indices ------------------------------------------------


@dataclass
class _Indices:
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


def _print_expr(printer: Printer, attribute: ExprAttr, indices: Sequence[SSAValue]) -> None:
    # Index names are made by the printer, which only knows how to print: collect through a placeholder.
    text = attribute.data.to_text(lambda name: f"\0{name[1:]}\0")
    for i, piece in enumerate(text.split("\0")):
        if i % 2:
            printer.print_ssa_value(indices[int(piece)])
        else:
            printer.print_string(piece)


def _print_exprs(printer: Printer, exprs: Sequence[ExprAttr], indices: Sequence[SSAValue]) -> None:
    printer.print_string("[")
    for i, expr in enumerate(exprs):
        printer.print_string(", " if i else "")
        _print_expr(printer, expr, indices)
    printer.print_string("]")


def _exprs(attributes: ArrayAttr[ExprAttr]) -> tuple[Expr, ...]:
    return tuple(a.data for a in attributes)


# --- Schedule, kernel, tensors, buffers ---------------------------------------------------------------


@irdl_op_definition
class ReturnOp(IRDLOperation):
    """Ends a schedule and names its results: `spatial.return %o`."""

    name = "spatial.return"
    values = var_operand_def(TensorRefType)
    traits = traits_def(IsTerminator())

    def __init__(self, values: Sequence[SSAValue]):
        super().__init__(operands=[values])

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        return cls(parse_known_operands(parser))

    @override
    def print(self, printer: Printer) -> None:
        if self.values:
            printer.print_string(" ")
            printer.print_list(self.values, printer.print_ssa_value)


@irdl_op_definition
class ScheduleOp(IRDLOperation):
    """A whole schedule: kernels that run one after the other on tensors in off-chip memory.

    spatial.schedule @double inputs ["x"] (%x: !spatial.tensor<4xf32>) outputs ["x"] {
      spatial.return %x
    }
    """

    name = "spatial.schedule"
    sym_name = prop_def(SymbolNameConstraint())
    input_names = prop_def(ArrayAttr[StringAttr])
    output_names = prop_def(ArrayAttr[StringAttr])
    body = region_def("single_block")
    traits = lazy_traits_def(lambda: (SymbolOpInterface(), SingleBlockImplicitTerminator(ReturnOp)))

    def __init__(self, name: str, inputs: Sequence[str], outputs: Sequence[str], body: Region):
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "input_names": ArrayAttr([StringAttr(n) for n in inputs]),
                "output_names": ArrayAttr([StringAttr(n) for n in outputs]),
            },
            regions=[body],
        )

    def kernels(self) -> list[KernelOp]:
        """The kernels in execution order."""
        return [op for op in self.body.block.ops if isinstance(op, KernelOp)]

    @override
    def verify_(self) -> None:
        block = self.body.block
        last = block.last_op
        outputs = last.values if isinstance(last, ReturnOp) else ()
        if len(self.input_names) != len(block.args) or len(self.output_names) != len(outputs):
            raise VerifyException(
                f"spatial.schedule needs one name per input and output: {len(block.args)} inputs, "
                f"{len(outputs)} outputs, names {self.input_names} and {self.output_names}"
            )

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        name = parser.parse_symbol_name().data
        parser.parse_keyword("inputs")
        inputs = _parse_names(parser)
        arguments = parser.parse_comma_separated_list(parser.Delimiter.PAREN, parser.parse_argument)
        parser.parse_keyword("outputs")
        outputs = _parse_names(parser)
        op = cls(name, inputs, outputs, parser.parse_region(arguments))
        if not isinstance(op.body.block.last_op, ReturnOp):
            op.body.block.add_op(ReturnOp([]))
        return op

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_symbol_name(self.sym_name.data)
        printer.print_string(" inputs ")
        printer.print_attribute(self.input_names)
        printer.print_string(" (")
        printer.print_list(self.body.block.args, printer.print_block_argument)
        printer.print_string(") outputs ")
        printer.print_attribute(self.output_names)
        printer.print_string(" ")
        printer.print_region(self.body, print_entry_block_args=False)


def _parse_names(parser: Parser) -> list[str]:
    return parser.parse_comma_separated_list(parser.Delimiter.SQUARE, parser.parse_str_literal)


@irdl_op_definition
class OffchipOp(IRDLOperation):
    """A tensor off chip that the schedule writes: `%s = spatial.offchip "scores" : !spatial.tensor<4xf32>`."""

    name = "spatial.offchip"
    label = prop_def(StringAttr)
    tensor = result_def(TensorRefType)
    assembly_format = "$label attr-dict `:` type($tensor)"

    def __init__(self, label: str, type: TensorRefType):
        super().__init__(properties={"label": StringAttr(label)}, result_types=[type])


@irdl_op_definition
class ViewOp(IRDLOperation):
    """The same off-chip bytes under another shape: heads split into (kv head, group), for instance.

    `%v = spatial.view %q : !spatial.tensor<2x8x5x4xf32> -> !spatial.tensor<2x2x4x5x4xf32>`
    """

    name = "spatial.view"
    source = operand_def(TensorRefType)
    tensor = result_def(TensorRefType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `->` type($tensor)"

    def __init__(self, source: SSAValue, type: TensorRefType):
        super().__init__(operands=[source], result_types=[type])

    @override
    def verify_(self) -> None:
        source, target = cast(TensorRefType, self.source.type), self.tensor.type
        if source.bytes != target.bytes or source.element_type != target.element_type:
            raise VerifyException(f"spatial.view cannot turn {source} into {target}: the sizes differ")


@irdl_op_definition
class KernelOp(IRDLOperation):
    """One kernel of a schedule: it starts when the kernel before it has finished.

    `spatial.kernel "attention" strategy "online" mapping #flat.mapping<...> { ... }`
    """

    name = "spatial.kernel"
    label = prop_def(StringAttr)
    strategy = opt_prop_def(StringAttr)
    mapping = opt_prop_def(MappingAttr)
    body = region_def("single_block")
    traits = traits_def(NoTerminator())

    def __init__(
        self,
        label: str,
        body: Region,
        strategy: StringAttr | None = None,
        mapping: MappingAttr | None = None,
    ):
        super().__init__(
            properties={"label": StringAttr(label), "strategy": strategy, "mapping": mapping}, regions=[body]
        )

    def buffers(self) -> list[BufferOp]:
        """Every buffer of the kernel, in textual order."""
        return [op for op in self.walk() if isinstance(op, BufferOp)]

    @override
    def verify_(self) -> None:
        from flatc.dialects.schedule_rules import verify_kernel

        verify_kernel(self)

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        label = parser.parse_str_literal()
        strategy = StringAttr(parser.parse_str_literal()) if parser.parse_optional_keyword("strategy") else None
        mapping = parse_mapping_attribute(parser) if parser.parse_optional_keyword("mapping") else None
        body = parser.parse_region()
        if not body.blocks:
            body.add_block(Block())
        return cls(label, body, strategy, mapping)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        if self.strategy is not None:
            printer.print_string(" strategy ")
            printer.print_string_literal(self.strategy.data)
        if self.mapping is not None:
            printer.print_string(" mapping ")
            printer.print_attribute(self.mapping)
        printer.print_string(" ")
        printer.print_region(self.body, print_entry_block_args=False, print_empty_block=False)


@irdl_op_definition
class BufferOp(IRDLOperation):
    """An on-chip buffer: a new instance every time the enclosing loop body runs, `slots` copies in turn.

    `%k = spatial.buffer "K" slots 2 at 4096 initial -inf : !spatial.buffer<128x64xbf16>`

    `at` is the byte address of slot 0, given by `allocate-buffers`; slot i lies i * size bytes further.
    Reads of an instance before its first write give `initial`, and are errors without it.
    """

    name = "spatial.buffer"
    label = prop_def(StringAttr)
    slots = prop_def(IntAttr)
    address = opt_prop_def(IntAttr)
    initial = opt_prop_def(FloatAttr)
    buffer = result_def(BufferType)

    def __init__(
        self,
        label: str,
        slots: int,
        type: BufferType,
        *,
        address: int | None = None,
        initial: float | None = None,
    ):
        super().__init__(
            properties={
                "label": StringAttr(label),
                "slots": IntAttr(slots),
                "address": None if address is None else IntAttr(address),
                "initial": None if initial is None else FloatAttr(initial, f64),
            },
            result_types=[type],
        )

    @property
    def type(self) -> BufferType:
        """Shape and element type of one slot."""
        return self.buffer.type

    @property
    def total_bytes(self) -> int:
        """Bytes of all its slots."""
        return self.slots.data * self.type.bytes

    @override
    def verify_(self) -> None:
        if self.slots.data < 1:
            raise VerifyException(f'buffer "{self.label.data}" needs at least one slot')
        if self.address is not None and self.address.data < 0:
            raise VerifyException(f'buffer "{self.label.data}" lies at byte {self.address.data}: count from 0')

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        label = parser.parse_str_literal()
        parser.parse_keyword("slots")
        slots = parser.parse_integer()
        address = parser.parse_integer() if parser.parse_optional_keyword("at") else None
        initial = None
        if parser.parse_optional_keyword("initial"):
            negative = parser.parse_optional_punctuation("-") is not None
            infinite = parser.parse_optional_keyword("inf") is not None
            value = float("inf") if infinite else float(parser.parse_number())
            initial = -value if negative else value
        parser.parse_punctuation(":")
        type = parser.parse_type()
        if not isinstance(type, BufferType):
            parser.raise_error(f"expected a !spatial.buffer type, got {type}")
        return cls(label, slots, type, address=address, initial=initial)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        printer.print_string(f" slots {self.slots.data}")
        if self.address is not None:
            printer.print_string(f" at {self.address.data}")
        if self.initial is not None:
            printer.print_string(f" initial {float_text(self.initial.value.data)}")
        printer.print_string(" : ")
        printer.print_attribute(self.type)


# --- Loops --------------------------------------------------------------------------------------------


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
        if self.tokens:
            printer.print_string(" ")
            printer.print_list(self.tokens, printer.print_ssa_value)


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
        indices = _Indices()
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
        _print_expr(printer, self.lower, self.indices)
        printer.print_string(" to ")
        _print_expr(printer, self.upper, self.indices)
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


# --- Timed operations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
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
        return [Access(value, _exprs(window)) for value, window in zip(values, windows, strict=True)]

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

    indices: _Indices = field(default_factory=_Indices)
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
        _print_exprs(printer, offsets, op.indices)


def _print_accesses(printer: Printer, op: TimedOp, values: Sequence[SSAValue], first: int) -> None:
    printer.print_string("(")
    for i, value in enumerate(values):
        printer.print_string(", " if i else "")
        _print_access(printer, value, op.windows.data[first + i].data, op)
    printer.print_string(")")


def _print_extents(printer: Printer, op: TimedOp) -> None:
    printer.print_string(" extent ")
    _print_exprs(printer, op.extents.data, op.indices)


def _print_tail(printer: Printer, op: TimedOp) -> None:
    if op.after:
        printer.print_string(" after(")
        printer.print_list(op.after, printer.print_ssa_value)
        printer.print_string(")")
    if op.when is not None:
        printer.print_string(" when ")
        _print_expr(printer, op.when, op.indices)
    if op.stage.data:
        printer.print_string(f" stage {op.stage.data}")


class _TransferOp(TimedOp):
    """A copy between a tensor off chip and a buffer; trailing dimensions of equal extent line up."""

    def __init__(self, timed: _Timed | TimedBuilder):
        timed = timed.build() if isinstance(timed, TimedBuilder) else timed
        super().__init__(operands=timed.operands(), result_types=[TokenType()], properties=timed.properties())

    @property
    def tensor_type(self) -> TensorRefType:
        """The type of the tensor off chip."""
        assert self.tensor is not None
        return cast(TensorRefType, self.tensor.type)

    @override
    def verify_operands(self) -> None:
        if self.tensor is None or len(self.reads) + len(self.writes) != 1:
            raise VerifyException(f"{self.name} moves between one tensor and one buffer")
        rank = len(self.tensor_type.dims)
        buffer = cast(BufferType, (*self.reads, *self.writes)[0].type)
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
    """Off chip to on chip: `%t = spatial.load %q[%i * 64, 0] into %qb extent [64, 64] after(%u) stage 1`."""

    name = "spatial.load"

    @property
    @override
    def resource(self) -> str:
        return "read"

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        timed = _Timed()
        timed.tensor, timed.tensor_offsets = timed.parse_access(parser)
        parser.parse_keyword("into")
        timed.writes = [timed.parse_access(parser)]
        timed.parse_extents(parser)
        timed.parse_tail(parser)
        return cls(timed)

    @override
    def print(self, printer: Printer) -> None:
        assert self.tensor is not None
        printer.print_string(" ")
        _print_access(printer, self.tensor, self.tensor_offsets.data, self)
        printer.print_string(" into ")
        _print_access(printer, self.writes[0], self.windows.data[0].data, self)
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


@dataclass(frozen=True)
class MatmulShape:
    """How the extents of a matrix product split: `batch` leading dimensions, then `rows`, then n and k."""

    batch: int
    rows: int


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
        fold = (1, 1)
        if parser.parse_optional_keyword("fold"):
            rows = parser.parse_integer()
            parser.parse_characters("x")
            fold = (rows, parser.parse_integer())
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


@dataclass(frozen=True)
class VectorKind:
    """What one kind of vector operation reads and writes. `?` marks operands that may be absent."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    meaning: str


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
    "rescale": VectorKind(("output", "correction"), ("output",), "output = output * correction, row by row"),
    "divide": VectorKind(("x", "sum"), ("y",), "y = x / sum, row by row; rows whose sum is 0 give 0"),
    "cast": VectorKind(("x",), ("y",), "y = x in another storage type"),
}
"""The vector operations of attention. Rows are all dimensions of the extents but the last."""


@irdl_op_definition
class VectorOp(TimedOp):
    """One tile of vector work; `VECTOR_KINDS` lists the kinds, their operands and their meaning.

        %t = spatial.vector exp (%s, %m, %l, %alpha) into (%p, %l) extent [64, 128] after(%u)
        %t = spatial.vector mask (%s) into (%s) extent [64, 128] #attn.mask<causal(offset = 0)>
             at [%i * 64, %j * 128] after(%u) when %j * 128 + 128 - %i * 64

    `at` gives the absolute query and key position of the tile's first score.
    """

    name = "spatial.vector"

    @property
    @override
    def resource(self) -> str:
        return "vector"

    kind = prop_def(StringAttr)
    mask = opt_prop_def(MaskAttr)
    position = opt_prop_def(ArrayAttr[ExprAttr])

    def __init__(
        self,
        kind: str,
        timed: _Timed | TimedBuilder,
        *,
        mask: MaskAttr | None = None,
        position: Sequence[Expr] | ArrayAttr[ExprAttr] | None = None,
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
                "position": cast("ArrayAttr[ExprAttr] | None", position),
            },
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
        if self.kind.data == "exp" and (len(self.reads) > 2) != (len(self.writes) > 1):
            raise VerifyException("exp adds to a sum that it reads and writes, or has no sum at all")
        is_mask = self.kind.data == "mask"
        if (self.mask is not None, self.position is not None) != (is_mask, is_mask):
            raise VerifyException("mask, and only mask, needs a mask attribute and a position")
        if self.position is not None and len(self.position) != 2:
            raise VerifyException(f"a position is a query and a key, got {len(self.position)} expressions")

    def _verify_rank(self, name: str, type: BufferType) -> None:
        rank = len(self.extents) - (name in ("maximum", "sum", "correction"))
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
        mask = parser.parse_optional_attribute()
        if mask is not None and not isinstance(mask, MaskAttr):
            parser.raise_error(f"expected #attn.mask<...>, got {mask}")
        position = timed.indices.parse_list(parser) if parser.parse_optional_keyword("at") else None
        timed.parse_tail(parser)
        return cls(kind, timed, mask=mask, position=position)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(f" {self.kind.data} ")
        _print_accesses(printer, self, self.reads, 0)
        printer.print_string(" into ")
        _print_accesses(printer, self, self.writes, len(self.reads))
        _print_extents(printer, self)
        if self.mask is not None:
            printer.print_string(" ")
            printer.print_attribute(self.mask)
        if self.position is not None:
            printer.print_string(" at ")
            _print_exprs(printer, self.position.data, self.indices)
        _print_tail(printer, self)


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
    indices = _Indices()
    low, high = indices.bind(lower, loops), indices.bind(upper, loops)
    return ForOp(low, high, indices.values, inits, Region(body), stream=stream, stage=stage)


def timed_ops(op: Operation) -> Iterator[TimedOp]:
    """Every transfer, array and vector operation inside `op`, in textual order."""
    return (inner for inner in op.walk() if isinstance(inner, TimedOp))


Spatial = Dialect(
    "spatial",
    [
        ScheduleOp,
        ReturnOp,
        OffchipOp,
        ViewOp,
        KernelOp,
        BufferOp,
        StartOp,
        ForOp,
        YieldOp,
        LoadOp,
        StoreOp,
        MatmulOp,
        VectorOp,
    ],
    [AcceleratorAttr, ExprAttr, TokenType, TensorRefType, BufferType],
)
