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
Registers of the array's PEs change hands without waiting: each PE does its operations in order, one wave behind the
other. For the same reason the array may work on what it left in registers before its last result is out.
A fresh instance holds nothing, or `initial` everywhere (hardware clears accumulators by a valid bit).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Self

from typing_extensions import override
from xdsl.dialects.builtin import (
    ArrayAttr,
    FloatAttr,
    IntAttr,
    StringAttr,
    SymbolNameConstraint,
    f64,
)
from xdsl.ir import (
    Block,
    Dialect,
    Operation,
    Region,
    SSAValue,
)
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    lazy_traits_def,
    opt_prop_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import (
    IsTerminator,
    NoTerminator,
    SingleBlockImplicitTerminator,
    SymbolOpInterface,
)
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.accelerator import AcceleratorAttr, Array
from flatc.dialects.flat import MappingAttr, parse_mapping_attribute
from flatc.dialects.on_array import OnArray, array_properties, on_array_of, parse_on_array
from flatc.dialects.parsing import float_text, parse_known_operands, print_operands
from flatc.dialects.score_functions import ScoreFunctionAttr
from flatc.dialects.spatial_loops import ForOp, StartOp, YieldOp, make_for
from flatc.dialects.spatial_onchip import OnchipOp
from flatc.dialects.spatial_tables import RopeTableOp
from flatc.dialects.spatial_timed import Access, TimedBuilder, TimedOp
from flatc.dialects.spatial_transfers import LoadOp, StoreOp
from flatc.dialects.spatial_types import (
    BufferType,
    ExprAttr,
    TensorRefType,
    TokenType,
)
from flatc.dialects.spatial_views import ExtendOp, PagedOp, SliceOp, ViewOp, stays_on_chip, storage
from flatc.dialects.spatial_work import VECTOR_KINDS, MatmulOp, VectorKind, VectorOp

__all__ = [
    "VECTOR_KINDS",
    "Access",
    "BufferOp",
    "BufferType",
    "ExprAttr",
    "ExtendOp",
    "ForOp",
    "KernelOp",
    "LoadOp",
    "MatmulOp",
    "OffchipOp",
    "OnArray",
    "OnchipOp",
    "PagedOp",
    "ReturnOp",
    "RopeTableOp",
    "ScheduleOp",
    "SliceOp",
    "Spatial",
    "StartOp",
    "StoreOp",
    "TensorRefType",
    "TimedBuilder",
    "TimedOp",
    "TokenType",
    "VectorKind",
    "VectorOp",
    "ViewOp",
    "YieldOp",
    "make_for",
    "stays_on_chip",
    "storage",
    "timed_ops",
]


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
        print_operands(printer, self.values)


INPUT_KINDS = ("input", "weight", "cache")
"""What an input of a schedule is: data, a parameter of the model, or keys and values of earlier tokens."""


@irdl_op_definition
class ScheduleOp(IRDLOperation):
    """A whole schedule: kernels that run one after the other on tensors in off-chip memory.

    spatial.schedule @double inputs ["x"] (%x: !spatial.tensor<4xf32>) outputs ["x"] {
      spatial.return %x
    }

    `@llama phase "decode" inputs ["x", weight "w", cache "k"] ...` says which phase of its graph it was compiled for,
    and which inputs are weights or caches.
    """

    name = "spatial.schedule"
    sym_name = prop_def(SymbolNameConstraint())
    phase = opt_prop_def(StringAttr)
    input_names = prop_def(ArrayAttr[StringAttr])
    input_kinds = prop_def(ArrayAttr[StringAttr])
    output_names = prop_def(ArrayAttr[StringAttr])
    body = region_def("single_block")
    traits = lazy_traits_def(lambda: (SymbolOpInterface(), SingleBlockImplicitTerminator(ReturnOp)))

    def __init__(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        body: Region,
        phase: str | None = None,
        kinds: Sequence[str] | None = None,
    ):
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "phase": None if phase is None else StringAttr(phase),
                "input_names": ArrayAttr([StringAttr(n) for n in inputs]),
                "input_kinds": ArrayAttr([StringAttr(kind) for kind in kinds or ["input"] * len(inputs)]),
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
        from flatc.dialects.onchip_rules import verify_onchip

        verify_onchip(self)
        kinds = [kind.data for kind in self.input_kinds]
        if len(kinds) != len(block.args) or not set(kinds) <= set(INPUT_KINDS):
            raise VerifyException(f"spatial.schedule: each input is one of {', '.join(INPUT_KINDS)}; got {kinds}")

    @classmethod
    @override
    def parse(cls, parser: Parser) -> Self:
        name = parser.parse_symbol_name().data
        phase = parser.parse_str_literal() if parser.parse_optional_keyword("phase") else None
        parser.parse_keyword("inputs")
        inputs = parser.parse_comma_separated_list(parser.Delimiter.SQUARE, lambda: _parse_input(parser))
        arguments = parser.parse_comma_separated_list(parser.Delimiter.PAREN, parser.parse_argument)
        parser.parse_keyword("outputs")
        outputs = _parse_names(parser)
        body = parser.parse_region(arguments)
        op = cls(name, [name for _, name in inputs], outputs, body, phase, [kind for kind, _ in inputs])
        if not isinstance(op.body.block.last_op, ReturnOp):
            op.body.block.add_op(ReturnOp([]))
        return op

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_symbol_name(self.sym_name.data)
        if self.phase is not None:
            printer.print_string(" phase ")
            printer.print_string_literal(self.phase.data)
        printer.print_string(" inputs [")
        printer.print_list(
            zip(self.input_kinds, self.input_names, strict=True), lambda input: _print_input(printer, *input)
        )
        printer.print_string("] (")
        printer.print_list(self.body.block.args, printer.print_block_argument)
        printer.print_string(") outputs ")
        printer.print_attribute(self.output_names)
        printer.print_string(" ")
        printer.print_region(self.body, print_entry_block_args=False)


def _parse_input(parser: Parser) -> tuple[str, str]:
    """(kind, name): `"x"`, `weight "w"`, `cache "k"`."""
    kind = next((kind for kind in INPUT_KINDS[1:] if parser.parse_optional_keyword(kind)), INPUT_KINDS[0])
    return kind, parser.parse_str_literal()


def _print_input(printer: Printer, kind: StringAttr, name: StringAttr) -> None:
    if kind.data != INPUT_KINDS[0]:
        printer.print_string(f"{kind.data} ")
    printer.print_string_literal(name.data)


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

    `in registers` says that the buffer holds score tiles, spread over the registers of the array's PEs, and takes no
    memory. What follows is as for operations on the array, and says how many elements a PE holds (see `OnArray`):

    `%s = spatial.buffer "scores" slots 6 in registers batch 1 fold 2 x 1 : !spatial.buffer<4x128x512xbf16>`
    """

    name = "spatial.buffer"
    label = prop_def(StringAttr)
    slots = prop_def(IntAttr)
    address = opt_prop_def(IntAttr)
    initial = opt_prop_def(FloatAttr)
    batch_rank = opt_prop_def(IntAttr)
    fold_rows = opt_prop_def(IntAttr)
    fold_columns = opt_prop_def(IntAttr)
    buffer = result_def(BufferType)

    def __init__(
        self,
        label: str,
        slots: int,
        type: BufferType,
        *,
        address: int | None = None,
        initial: float | None = None,
        registers: OnArray | None = None,
    ):
        super().__init__(
            properties={
                "label": StringAttr(label),
                "slots": IntAttr(slots),
                "address": None if address is None else IntAttr(address),
                "initial": None if initial is None else FloatAttr(initial, f64),
            }
            | array_properties(registers),
            result_types=[type],
        )

    @property
    def type(self) -> BufferType:
        """Shape and element type of one slot."""
        return self.buffer.type

    @property
    def total_bytes(self) -> int:
        """Bytes of all its slots in the on-chip memory: none where it is in registers."""
        return 0 if self.registers is not None else self.slots.data * self.type.bytes

    @property
    def registers(self) -> OnArray | None:
        """How it is spread over the registers of the PEs; None where it lies in memory."""
        return on_array_of(self)

    def bytes_per_pe(self, array: Array) -> int:
        """Bytes that all its slots take in the registers of each PE."""
        spread = self.registers
        if spread is None:
            return 0
        *rows, keys = self.type.dims
        batch, queries = math.prod(rows[: spread.batch_rank]), math.prod(rows[spread.batch_rank :])
        return self.slots.data * array.passes(batch, keys, queries, spread.fold) * self.type.element_bytes

    @override
    def verify_(self) -> None:
        if self.slots.data < 1:
            raise VerifyException(f'buffer "{self.label.data}" needs at least one slot')
        if self.address is not None and self.address.data < 0:
            raise VerifyException(f'buffer "{self.label.data}" lies at byte {self.address.data}: count from 0')
        if self.registers is not None and self.registers.batch_rank > len(self.type.dims) - 2:
            raise VerifyException(f'buffer "{self.label.data}" in registers holds tiles of rows and keys')
        if self.registers is not None and self.address is not None:
            raise VerifyException(f'buffer "{self.label.data}" lies in registers, which have no addresses')

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
        registers = None
        if parser.parse_optional_keyword("in"):
            parser.parse_keyword("registers")
            registers = parse_on_array(parser)
        parser.parse_punctuation(":")
        type = parser.parse_type()
        if not isinstance(type, BufferType):
            parser.raise_error(f"expected a !spatial.buffer type, got {type}")
        return cls(label, slots, type, address=address, initial=initial, registers=registers)

    @override
    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_string_literal(self.label.data)
        printer.print_string(f" slots {self.slots.data}")
        if self.address is not None:
            printer.print_string(f" at {self.address.data}")
        if self.initial is not None:
            printer.print_string(f" initial {float_text(self.initial.value.data)}")
        if self.registers is not None:
            printer.print_string(f" in registers {self.registers.to_text()}")
        printer.print_string(" : ")
        printer.print_attribute(self.type)


def timed_ops(op: Operation) -> Iterator[TimedOp]:
    """Every transfer, array and vector operation inside `op`, in textual order."""
    return (inner for inner in op.walk() if isinstance(inner, TimedOp))


Spatial = Dialect(
    "spatial",
    [
        ScheduleOp,
        ReturnOp,
        OffchipOp,
        OnchipOp,
        RopeTableOp,
        ViewOp,
        SliceOp,
        ExtendOp,
        PagedOp,
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
    [AcceleratorAttr, ExprAttr, ScoreFunctionAttr, TokenType, TensorRefType, BufferType],
)
