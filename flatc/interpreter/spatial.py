"""The NumPy meaning of the spatial dialect: a schedule executed in program order, data and discipline.

    run = run_schedule(module, inputs)
    run.outputs             # the arrays that the schedule returns
    run.offchip_bytes       # {"k": (18688, 0), ...}: bytes read and written, counted from the transfers executed

Operations touch data only through buffers and transfers (`memory`), and whatever hardware could get wrong on some
timing is a `ScheduleError`: an access out of bounds, to an element that was never written, to an instance whose slot
has gone to another, or not ordered after the access that it depends on (`order`). So a schedule that runs here gives
these numbers on every machine that keeps the rules of the dialect, however fast its parts are.

Arithmetic follows `Precision`: products and vector operations compute in float32, or float64 where a float64
takes part, and round once, to the element type of the buffer that they write.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from xdsl.dialects.builtin import IntegerType, ModuleOp, i32
from xdsl.ir import SSAValue

from flatc.dialects.accelerator import AcceleratorAttr
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.frozen import frozen
from flatc.dialects.masks import allows
from flatc.dialects.onchip_rules import alive_by_kernel
from flatc.dialects.score_functions import SCORE_KINDS
from flatc.dialects.spatial import (
    BufferOp,
    BufferType,
    ExtendOp,
    KernelOp,
    LoadOp,
    MatmulOp,
    OffchipOp,
    OnchipOp,
    PagedOp,
    ReturnOp,
    RopeTableOp,
    ScheduleOp,
    SliceOp,
    StoreOp,
    TensorRefType,
    TimedOp,
    VectorOp,
    ViewOp,
    stays_on_chip,
)
from flatc.dialects.vector_kinds import VALUE_KINDS
from flatc.interpreter.dtypes import Array, Precision
from flatc.interpreter.engine import AS_STORED, meaning, prepare
from flatc.interpreter.functions import rotary_table
from flatc.interpreter.memory import (
    Box,
    Instance,
    OffchipTensor,
    OnChipMemory,
    ScheduleError,
    Slot,
    violation,
    window,
)
from flatc.interpreter.order import NOTHING, Clock, Order, Step, join
from flatc.interpreter.vector_scores import score_operation
from flatc.interpreter.vector_values import value_operation
from flatc.passes.simulation.program_order import Event, walk


@frozen
class ScheduleRun:
    """What came out, and the bytes that moved off chip: (read, written) for each tensor that was touched."""

    outputs: list[Array]
    offchip_bytes: dict[str, tuple[int, int]]


def run_schedule(
    module: ModuleOp, inputs: Mapping[str, Array] | Sequence[Array], *, exact: bool = False
) -> ScheduleRun:
    """Runs the schedule of a module; inputs by name or in order. If `exact`, nothing is rounded below float64."""
    schedule, arguments = prepare(module, inputs, exact=exact)
    if not isinstance(schedule, ScheduleOp):
        raise ScheduleError("the module holds a graph, not a schedule", help="run lower-to-spatial first")
    return execute(schedule, arguments, Precision(exact))


def execute(schedule: ScheduleOp, arguments: Sequence[Array], precision: Precision = AS_STORED) -> ScheduleRun:
    """Runs a schedule on arrays in storage type (in float64 if `precision` is exact)."""
    tensors: dict[SSAValue, OffchipTensor] = {}
    moved: Counter[tuple[str, str]] = Counter()
    names = [name.data for name in schedule.input_names]
    kept = dict(zip(schedule.kernels(), alive_by_kernel(schedule), strict=True))
    for name, argument, array in zip(names, schedule.body.block.args, arguments, strict=True):
        tensors[argument] = OffchipTensor.given(name, array)
    for op in schedule.body.block.ops:
        if isinstance(op, OffchipOp | OnchipOp):
            type = op.tensor.type
            dtype = precision.stored(type.element_type)
            tensors[op.tensor] = OffchipTensor.empty(op.label.data, type.dims, dtype)
        elif isinstance(op, RopeTableOp):
            tensors[op.tensor] = _rope_tensor(op, precision)
        elif isinstance(op, ViewOp):
            tensors[op.tensor] = tensors[op.source].view(op.tensor.type.dims, op.dims_order)
        elif isinstance(op, SliceOp):
            tensors[op.tensor] = tensors[op.source].window(window(op.offsets, op.tensor.type.dims))
        elif isinstance(op, PagedOp):
            tensors[op.tensor] = tensors[op.source].paged(tensors[op.table], op.tensor.type.dims[2])
        elif isinstance(op, ExtendOp):
            _check_pages(op, tensors)
            tensors[op.tensor] = tensors[op.source].extended(op.tensor.type.dims)
        elif isinstance(op, KernelOp):
            for table in op.body.block.ops:
                if isinstance(table, RopeTableOp):
                    tensors[table.tensor] = _rope_tensor(table, precision)
            moved += _Kernel(op, tensors, precision, kept[op]).run()
            for tensor in tensors.values():
                tensor.settle()
    touched = dict.fromkeys(name for name, _ in moved)
    bytes = {name: (moved[name, "read"], moved[name, "write"]) for name in sorted(touched)}
    return ScheduleRun(_outputs(schedule, tensors), bytes)


def _check_pages(op: ExtendOp, tensors: Mapping[SSAValue, OffchipTensor]) -> None:
    """Raises `FlatcError` where new rows would go to a block that another page is, too."""
    paged = op.source
    while isinstance(paged.owner, ExtendOp):
        paged = paged.owner.source
    if not isinstance(paged.owner, PagedOp):
        return
    block = cast(TensorRefType, paged.owner.source.type).dims[2]
    old, new = cast(TensorRefType, op.source.type).dims[2], op.tensor.type.dims[2]
    table = tensors[paged.owner.table].data[:, : -(-new // block)]
    written = table[:, old // block :]
    shared = [number for number in written.reshape(-1).tolist() if (table == number).sum() > 1]
    if shared:
        raise FlatcError(
            f"the table gives block {shared[0]} to two pages, and new rows are appended to it",
            help="let pages of new rows be blocks of their own",
        )


def _rope_tensor(op: RopeTableOp, precision: Precision) -> OffchipTensor:
    dims = op.tensor.type.dims
    table = rotary_table(dims[-2], dims[-1], op.start.data, op.wavelength.value.data)
    return OffchipTensor.given(op.label.data, precision.store(table.reshape(dims), op.tensor.type.element_type))


@meaning(ScheduleOp)
def _schedule(op: ScheduleOp, operands: Sequence[Array], precision: Precision) -> list[Array]:
    return execute(op, operands, precision).outputs


def _outputs(schedule: ScheduleOp, tensors: Mapping[SSAValue, OffchipTensor]) -> list[Array]:
    last = schedule.body.block.last_op
    assert isinstance(last, ReturnOp)
    for value in last.values:
        missing = next(tensors[value].unwritten(), None)
        if missing is not None:
            raise ScheduleError(
                f"{tensors[value]} is returned, and its element {list(missing)} was never written",
                help="store every element of an output once",
            )
    return [tensors[value].data for value in last.values]


def _shares_channel(kernel: KernelOp) -> bool:
    schedule = kernel.parent_op()
    module = schedule.parent_op() if schedule is not None else None
    attribute = module.attributes.get("spatial.accelerator") if module is not None else None
    return isinstance(attribute, AcceleratorAttr) and attribute.data.offchip.channels == "shared"


# --- One kernel ---------------------------------------------------------------------------------------


class _Kernel:
    def __init__(
        self,
        kernel: KernelOp,
        tensors: Mapping[SSAValue, OffchipTensor],
        precision: Precision,
        kept: Sequence[OnchipOp],
    ):
        self.kernel, self.tensors, self.precision = kernel, tensors, precision
        self.memory = OnChipMemory(kernel, precision, kept)
        self.order = Order(_shares_channel(kernel))
        self.moved: Counter[tuple[str, str]] = Counter()
        self._operands: dict[TimedOp, _Operands] = {}

    def run(self) -> Counter[tuple[str, str]]:
        """Executes every event; gives the bytes moved by (tensor, direction)."""
        for event in walk(self.kernel):
            self._event(event)
        return self.moved

    def _event(self, event: Event) -> None:
        op, trip = event.op, event.frame.indices
        try:
            tokens: list[Clock] = event.tokens()
        except KeyError:
            problem = "waits for the token of an operation that has not been issued"
            raise violation(op, trip, problem, "stages and text must put the producer first") from None
        if not event.active():
            event.complete(join(NOTHING, tokens))
            return
        operands = self._operands.get(op)
        if operands is None:
            operands = self._operands[op] = _Operands.of(op, self.precision)
        slots = [self.memory.claim(op, trip, *event.instance(value)) for value in operands.buffers]
        waits = [slot.handed_over for slot, waits in zip(slots, operands.waits, strict=True) if waits]
        step = self.order.issue(op, trip, [*tokens, *waits])
        self.memory.check_registers(slots, step)
        extents = event.extents()
        if min(extents, default=0) < 0:
            raise violation(op, trip, f"works on a negative extent {list(extents)}")
        self._execute(_Access(event, step, operands, slots, extents, self.precision))
        self.memory.release(slots, step)
        event.complete(step.after)

    def _execute(self, access: _Access) -> None:
        op = access.step.op
        if isinstance(op, LoadOp):
            access.write(0, access.extents, self._load(op, access))
        elif isinstance(op, StoreOp):
            self._store(op, access)
        elif isinstance(op, MatmulOp):
            _matmul(op, access)
        else:
            assert isinstance(op, VectorOp)
            _VECTOR[op.kind.data](op, access)
        access.record()

    def _load(self, op: LoadOp, access: _Access) -> Array:
        assert op.tensor is not None
        tensor = self.tensors[op.tensor]
        self._count(tensor, op, access)
        box = window(access.event.tensor_offsets(), access.extents)
        self._look_up(op, access, 0)
        return tensor.read(box, access.step, self.order.stores)

    def _store(self, op: StoreOp, access: _Access) -> None:
        assert op.tensor is not None
        tensor = self.tensors[op.tensor]
        self._count(tensor, op, access)
        box = window(access.event.tensor_offsets(), access.extents)
        self._look_up(op, access, 1)
        tensor.write(box, access.step, access.read(0, access.extents))

    def _look_up(self, op: LoadOp | StoreOp, access: _Access, place: int) -> None:
        """Reads from the table on chip which blocks are moved; the tensor off chip goes by what it says."""
        if op.block is not None:
            first, rows = access.event.tensor_offsets()[-2], access.extents[-2]
            access.read(place, [access.extents[0], -(-(first + rows) // op.block.data)])

    def _count(self, tensor: OffchipTensor, op: LoadOp | StoreOp, access: _Access) -> None:
        if op.tensor is not None and not stays_on_chip(op.tensor):
            self.moved[tensor.name, op.resource] += math.prod(access.extents) * op.tensor_type.element_bytes


def _waits_for(buffer: SSAValue) -> bool:
    """Whether a slot of a buffer is waited for; registers change hands in program order."""
    return isinstance(buffer.owner, BufferOp) and buffer.owner.registers is None


@frozen
class _Operands:
    """What all executions of an operation share: its buffers, `reads` of them read, which of them have slots that are
    waited for, and the type it computes in."""

    buffers: tuple[SSAValue, ...]
    waits: tuple[bool, ...]
    reads: int
    compute: np.dtype[Any]

    @classmethod
    def of(cls, op: TimedOp, precision: Precision) -> _Operands:
        reads, buffers = tuple(op.reads), (*op.reads, *op.writes)
        elements = [cast(BufferType, buffer.type).element_type for buffer in buffers]
        if isinstance(op, MatmulOp) and all(isinstance(element, IntegerType) for element in elements[: len(reads)]):
            elements.append(i32)  # what products of integers accumulate in
        return cls(buffers, tuple(map(_waits_for, buffers)), len(reads), precision.compute(*elements))


class _Access:
    """The buffers of one executed operation, by the place of its operands."""

    def __init__(
        self,
        event: Event,
        step: Step,
        operands: _Operands,
        slots: Sequence[Slot],
        extents: tuple[int, ...],
        precision: Precision,
    ):
        self.event, self.step, self.extents = event, step, extents
        self.compute, self._precision = operands.compute, precision
        instances = [cast(Instance, slot.owner) for slot in slots]
        self._read_from, self._write_to = instances[: operands.reads], instances[operands.reads :]
        self._reads: list[tuple[Instance, Box]] = []
        self._writes: list[tuple[Instance, Box]] = []

    def read(self, index: int, extents: Sequence[int]) -> Array:
        """What read operand `index` holds, in the type it is stored in."""
        instance, box = self._read_from[index], window(self.event.window(index), extents)
        self._reads.append((instance, box))
        return instance.read(box, self.step)

    def operand(self, index: int, extents: Sequence[int]) -> Array:
        """What read operand `index` holds, in the type that the operation computes in."""
        return self.read(index, extents).astype(self.compute)

    def stored(self, index: int) -> Array:
        """What read operand `index` holds, in the type it is stored in; dims of 1 are repeated."""
        shape = self._read_from[index].shape
        box = [1 if size == 1 else extent for size, extent in zip(shape, self.extents, strict=True)]
        return np.broadcast_to(self.read(index, box), self.extents)

    def repeated(self, index: int) -> Array:
        """The same in the type that the operation computes in."""
        return self.stored(index).astype(self.compute)

    def position(self) -> tuple[int, ...]:
        """Where the tile lies (see `POSITIONS`)."""
        return self.event.position()

    def accumulated(self, index: int, extents: Sequence[int]) -> Array:
        """What write operand `index` holds, to be added to."""
        instance, box = self._write_to[index], self._write_box(index, extents)
        return instance.read(box, self.step, accumulates=True).astype(self.compute)

    def write(self, index: int, extents: Sequence[int], value: Array) -> None:
        """Puts `value` into write operand `index`, rounded to the type it is stored in."""
        instance, box = self._write_to[index], self._write_box(index, extents)
        self._writes.append((instance, box))
        instance.write(box, self.step, self._precision.store(value, instance.element_type))

    def record(self) -> None:
        """Lets later operations see what this one touched."""
        for instance in dict.fromkeys([*self._read_from, *self._write_to]):
            reads = [box for touched, box in self._reads if touched is instance]
            writes = [box for touched, box in self._writes if touched is instance]
            instance.record(reads, writes, self.step)

    def _write_box(self, index: int, extents: Sequence[int]) -> Box:
        return window(self.event.window(len(self._read_from) + index), extents)


# --- The array ----------------------------------------------------------------------------------------


def _matmul(op: MatmulOp, access: _Access) -> None:
    batch = access.extents[: op.batch_rank.data]
    *rows, n, k = access.extents[op.batch_rank.data :]
    a = access.operand(0, [*batch, *rows, k]).reshape(*batch, math.prod(rows), k)
    b = access.operand(1, [*batch, n, k] if op.transposed else [*batch, k, n])
    product = np.matmul(a, np.swapaxes(b, -1, -2) if op.transposed else b)
    if op.scale is not None:
        product *= product.dtype.type(op.scale.value.data)
    extents = [*batch, *rows, n]
    product = product.reshape(extents)
    if op.accumulate:
        product += access.accumulated(0, extents)
    access.write(0, extents, product)


# --- The vector unit, and PEs that do its work ---------------------------------------------------------


def _mask(op: VectorOp, access: _Access) -> None:
    assert op.mask is not None
    extents = access.extents
    query, key = access.event.position()
    rows, keys = query + np.arange(extents[-2])[:, np.newaxis], key + np.arange(extents[-1])
    scores = access.operand(0, extents)
    access.write(0, extents, np.where(allows(op.mask.data, rows, keys), scores, -np.inf))


def _row_max(op: VectorOp, access: _Access) -> None:
    rows = access.extents[:-1]
    scores, old = access.operand(0, access.extents), access.operand(1, rows)
    new = np.maximum(old, scores.max(axis=-1, initial=-np.inf))
    access.write(0, rows, new)
    if len(op.writes) > 1:  # the correction; while no key was visible there is nothing to correct
        access.write(1, rows, np.where(old == new, 1, np.exp(old - _finite(new))))


def _exp(op: VectorOp, access: _Access) -> None:
    rows = access.extents[:-1]
    scores, maximum = access.operand(0, access.extents), access.operand(1, rows)
    weights = np.exp(scores - _finite(maximum)[..., np.newaxis])
    access.write(0, access.extents, weights)
    if len(op.writes) > 1:
        total = access.operand(2, rows)
        if len(op.reads) > 3:
            total = total * access.operand(3, rows)
        access.write(1, rows, total + weights.sum(axis=-1))


def _finite(maximum: Array) -> Array:
    """The maximum of each row, with 0 for rows without a visible key: every weight of theirs is exp(-inf) = 0."""
    return np.where(maximum == -np.inf, 0, maximum)


def _tile_max(op: VectorOp, access: _Access) -> None:
    scores = access.operand(0, access.extents)
    access.write(0, access.extents[:-1], scores.max(axis=-1, initial=-np.inf))


def _merge_max(op: VectorOp, access: _Access) -> None:
    rows = access.extents
    tile, old = access.operand(0, rows), access.operand(1, rows)
    new = np.maximum(old, tile)
    access.write(0, rows, new)
    access.write(1, rows, new)
    access.write(2, rows, np.where(old == new, 1, np.exp(old - _finite(new))))


def _tile_sum(op: VectorOp, access: _Access) -> None:
    access.write(0, access.extents[:-1], access.operand(0, access.extents).sum(axis=-1))


def _merge_sum(op: VectorOp, access: _Access) -> None:
    rows = access.extents
    tile, total, correction = (access.operand(i, rows) for i in range(3))
    access.write(0, rows, total * correction + tile)


def _rescale(op: VectorOp, access: _Access) -> None:
    correction = access.operand(1, access.extents[:-1])
    access.write(0, access.extents, access.operand(0, access.extents) * correction[..., np.newaxis])


def _divide(op: VectorOp, access: _Access) -> None:
    x, total = access.operand(0, access.extents), access.operand(1, access.extents[:-1])[..., np.newaxis]
    access.write(0, access.extents, np.where(total == 0, 0, x / np.where(total == 0, 1, total)))


def _divide_by_last(op: VectorOp, access: _Access) -> None:
    *rows, columns = access.extents
    x = access.operand(0, [*rows, columns + 1])
    values, total = x[..., :-1], x[..., -1:]
    access.write(0, access.extents, np.where(total == 0, 0, values / np.where(total == 0, 1, total)))


def _cast(op: VectorOp, access: _Access) -> None:
    access.write(0, access.extents, access.operand(0, access.extents))


_VECTOR: dict[str, Callable[[VectorOp, _Access], None]] = {
    "mask": _mask,
    "row_max": _row_max,
    "exp": _exp,
    "tile_max": _tile_max,
    "merge_max": _merge_max,
    "tile_sum": _tile_sum,
    "merge_sum": _merge_sum,
    "rescale": _rescale,
    "divide": _divide,
    "divide_by_last": _divide_by_last,
    "cast": _cast,
    **dict.fromkeys(SCORE_KINDS, score_operation),
    **dict.fromkeys(VALUE_KINDS, value_operation),
}
