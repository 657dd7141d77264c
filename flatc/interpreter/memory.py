"""The memories of a schedule. They let nothing pass that hardware would get wrong.

A buffer instance knows which of its elements were written, and which operations touched it; a tensor off chip
knows who wrote each element. Every access is checked before it happens, and a violation raises `ScheduleError`,
which names the operation, its trip, the buffer and the instance:

    error: spatial.matmul logit (query = 2, key = 0) reads buffer "K" instance 4 at [0:64, 0:16], which
    spatial.load load_k (query = 2, key = 0) writes and may not have finished
      = help: add the token of spatial.load load_k to its after(...)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from xdsl.ir import Attribute, SSAValue

from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.spatial import BufferOp, KernelOp, OnchipOp, TimedOp
from flatc.interpreter.dtypes import Array, Precision
from flatc.interpreter.order import NOTHING, Clock, Step, describe, join

Box = tuple[slice, ...]
"""A window: start and stop along every dimension."""


class ScheduleError(FlatcError):
    """A schedule that does what no hardware may be asked to do; see the module docstring."""


def violation(op: TimedOp, trip: Mapping[SSAValue, int], problem: str, help: str | None = None) -> ScheduleError:
    """The error that an execution of `op` breaks a rule of memory."""
    return ScheduleError(f"{describe(op, trip)} {problem}", position=position_of(op), help=help)


# --- Windows ------------------------------------------------------------------------------------------


def window(offsets: Sequence[int], extents: Sequence[int]) -> Box:
    """The box that starts at `offsets`; no offsets mean the origin."""
    starts = offsets or (0,) * len(extents)
    return tuple(slice(start, start + extent) for start, extent in zip(starts, extents, strict=True))


def text_of(box: Box) -> str:
    """A box as NumPy writes it: `[0:64, 16:32]`."""
    return f"[{', '.join(f'{s.start}:{s.stop}' for s in box)}]"


def _outside(box: Box, shape: Sequence[int]) -> bool:
    if len(box) != len(shape):
        return True
    return any(not 0 <= s.start <= s.stop <= size for s, size in zip(box, shape, strict=True))


def _overlap(a: Box, b: Box) -> bool:
    return a == b or all(max(x.start, y.start) < min(x.stop, y.stop) for x, y in zip(a, b, strict=True))


def _covers(outer: Box, inner: Box) -> bool:
    return outer == inner or all(x.start <= y.start and y.stop <= x.stop for x, y in zip(outer, inner, strict=True))


# --- Buffers ------------------------------------------------------------------------------------------


class Instance:
    """One instance of a buffer: its elements, and the accesses that later ones must be ordered after.

    An access stays recorded until a write covers its window: who conflicts with it then conflicts with the
    write, and who follows the write follows the access.
    """

    def __init__(self, buffer: BufferOp, number: int, precision: Precision):
        self.buffer, self.number = buffer, number
        dtype, initial = precision.stored(buffer.type.element_type), buffer.initial
        self.shape, self.in_registers = buffer.type.dims, buffer.registers is not None
        if initial is None:
            self.data, self._written = np.empty(self.shape, dtype), np.zeros(self.shape, np.bool_)
        else:
            self.data, self._written = np.full(self.shape, initial.value.data, dtype), np.ones((), np.bool_)
        self._writers: list[tuple[Box, Step]] = []
        self._readers: list[tuple[Box, Step]] = []

    @property
    def element_type(self) -> Attribute:
        """The element type of the buffer."""
        return self.buffer.type.element_type

    def __str__(self) -> str:
        return f'buffer "{self.buffer.label.data}" instance {self.number}'

    def read(self, box: Box, step: Step, *, accumulates: bool = False) -> Array:
        """The elements of a window. An operation that `accumulates` reads only to write in the same breath.

        From registers a PE reads what it wrote itself, so an operation of the array needs no more than its turn.
        """
        self._check_bounds(box, step, "reads")
        needs_result = not accumulates and not self.in_registers
        for other, writer in self._writers:
            if _overlap(box, other) and not step.follows(writer, needs_result=needs_result):
                raise self._race(box, step, "reads", writer, "writes")
        if self._written.ndim and not self._written[box].all():
            problem = f"reads {self} at {text_of(box)}, where elements were never written"
            raise violation(step.op, step.trip, problem, "write them first, or give the buffer an initial value")
        return self.data[box]

    def write(self, box: Box, step: Step, value: Array) -> None:
        """Overwrites the elements of a window; `value` has the storage type."""
        self._check_bounds(box, step, "writes")
        for accesses, verb in ((self._writers, "writes"), (self._readers, "reads")):
            for other, earlier in accesses:
                if earlier is not step and _overlap(box, other) and not step.follows(earlier):
                    raise self._race(box, step, "writes", earlier, verb)
        self.data[box] = value
        if self._written.ndim:
            self._written[box] = True

    def record(self, reads: Sequence[Box], writes: Sequence[Box], step: Step) -> None:
        """Remembers what an operation did, once all of it was checked."""
        for box in reads:
            same = [(b, s) for b, s in self._readers if b != box or s.resource != step.resource]
            self._readers = [*same, (box, step)]
        for box in writes:
            self._readers = [(b, s) for b, s in self._readers if not _covers(box, b)]
            self._writers = [(b, s) for b, s in self._writers if not _covers(box, b)]
            self._writers.append((box, step))

    def _check_bounds(self, box: Box, step: Step, verb: str) -> None:
        if _outside(box, self.shape):
            problem = f"{verb} {self} at {text_of(box)}, outside of its shape {list(self.shape)}"
            raise violation(step.op, step.trip, problem)

    def _race(self, box: Box, step: Step, verb: str, earlier: Step, did: str) -> ScheduleError:
        problem = f"{verb} {self} at {text_of(box)}, which {earlier} {did} and may not have finished"
        return violation(step.op, step.trip, problem, f"add the token of {earlier.op.name} to its after(...)")


class Slot:
    """One slot of a buffer: who owns it, what had finished when it was handed over, who has used it."""

    def __init__(self) -> None:
        self.owner: Instance | None = None
        self.handed_over: Clock = NOTHING
        self.in_use_until: Clock = NOTHING


class OnChipMemory:
    """The buffers of one kernel, beside the tensors `kept` on chip while it runs."""

    def __init__(self, kernel: KernelOp, precision: Precision, kept: Sequence[OnchipOp] = ()):
        _check_addresses(kernel, kept)
        self._precision = precision
        self._slots: dict[tuple[BufferOp, int], Slot] = {}
        self._counts: dict[BufferOp, int] = {}

    def claim(self, op: TimedOp, trip: Mapping[SSAValue, int], buffer: BufferOp, number: int) -> Slot:
        """The slot of instance `number`, which takes it over if the slot held an earlier one."""
        count = self._counts.get(buffer)
        if count is None:
            count = self._counts[buffer] = buffer.slots.data
        slot = self._slots.setdefault((buffer, number % count), Slot())
        if slot.owner is None or slot.owner.number < number:
            slot.owner = Instance(buffer, number, self._precision)
            slot.handed_over = slot.in_use_until
        elif slot.owner.number > number:
            problem = (
                f'touches buffer "{buffer.label.data}" instance {number}, whose slot instance {slot.owner.number} '
                f"has taken: the buffer has {count} slot{'s' if count > 1 else ''}"
            )
            raise violation(op, trip, problem, "give the buffer more slots, or its last use an earlier stage")
        return slot

    @staticmethod
    def check_registers(slots: Sequence[Slot], step: Step) -> None:
        """Registers change hands without waiting, so all that others did with them must come before in any case."""
        for slot in slots:
            taken = slot.owner is not None and slot.owner.in_registers
            if taken and not step.succeeds(slot.handed_over):
                problem = f"takes over the registers of {slot.owner}, whose last use may not have finished"
                raise violation(step.op, step.trip, problem, "wait for the token of that use, or give it more slots")

    @staticmethod
    def release(slots: Sequence[Slot], step: Step) -> None:
        """The next owners of the slots wait for this step too."""
        for slot in slots:
            slot.in_use_until = join(slot.in_use_until, [step.after])


def _check_addresses(kernel: KernelOp, kept: Sequence[OnchipOp]) -> None:
    """Buffers share no byte with each other, nor with a tensor that stays on chip while the kernel runs."""
    placed = [
        (b.address.data, b.total_bytes, f'buffer "{b.label.data}"', b)
        for b in kernel.buffers()
        if b.address is not None
    ]
    placed += [(t.address.data, t.bytes, f'tensor "{t.label.data}"', t) for t in kept if t.address is not None]
    for (start, size, lower, _), (following, _, upper, op) in pairwise(sorted(placed, key=lambda one: one[0])):
        if start + size > following:
            raise ScheduleError(
                f'{lower} and {upper} of kernel "{kernel.label.data}" overlap at byte {following}',
                position=position_of(op),
            )


def gather_pages(pool: Array, table: Array, rows: int) -> Array:
    """pool [blocks, heads, block, width] by table [batch, pages] as [batch, heads, rows, width].

    Raises `FlatcError` where the table names a block that the pool does not have.
    """
    strange = table[(table < 0) | (table >= len(pool))]
    if strange.size:
        raise FlatcError(
            f"the table names block {strange[0]}, and the pool has {len(pool)}",
            help=f"its entries count from 0 to {len(pool) - 1}",
        )
    batch, pages = table.shape
    _, heads, block, width = pool.shape
    found = pool[table].swapaxes(1, 2).reshape(batch, heads, pages * block, width)
    return found[:, :, :rows]


# --- Tensors off chip, and those that stay on chip -----------------------------------------------------

_UNWRITTEN, _SETTLED = -1, 0


class OffchipTensor:
    """A tensor off chip, one that stays on chip between kernels, or a view of one of them.

    Every element is written once: by the caller, or by one store.

    `_writer` holds for each element the number of the store that wrote it in this kernel, `_SETTLED` if it was there
    when the kernel started, or `_UNWRITTEN`.
    """

    def __init__(self, name: str, data: Array, writer: Array):
        self.name, self.data, self._writer = name, data, writer

    @classmethod
    def given(cls, name: str, data: Array) -> OffchipTensor:
        """An input, which the schedule may only read."""
        contiguous = np.ascontiguousarray(data)
        return cls(name, contiguous, np.full(contiguous.shape, _SETTLED, np.int8))

    @classmethod
    def empty(cls, name: str, shape: Sequence[int], dtype: np.dtype[np.generic]) -> OffchipTensor:
        """A tensor that the schedule writes."""
        return cls(name, np.empty(shape, dtype), np.full(shape, _UNWRITTEN, np.int64))

    def view(self, shape: Sequence[int], order: Sequence[int] | None = None) -> OffchipTensor:
        """The same elements under another shape, or with the dims in another order."""
        if order is not None:
            return OffchipTensor(self.name, self.data.transpose(order), self._writer.transpose(order))
        return OffchipTensor(self.name, self.data.reshape(shape), self._writer.reshape(shape))

    def window(self, box: Box) -> OffchipTensor:
        """The elements of a window, in place."""
        return OffchipTensor(self.name, self.data[box], self._writer[box])

    def paged(self, table: OffchipTensor, rows: int) -> OffchipTensor:
        """The first `rows` rows of every sequence, from the blocks that its row of `table` names."""
        blocks = gather_pages(self.data, table.data, rows)
        return OffchipTensor(self.name, blocks, np.full(blocks.shape, _SETTLED, np.int8))

    def extended(self, shape: Sequence[int]) -> OffchipTensor:
        """A tensor that begins with these elements and has room for more along one dim."""
        grown, old = OffchipTensor.empty(self.name, shape, self.data.dtype), tuple(map(slice, self.data.shape))
        grown.data[old] = self.data
        grown._writer[old] = _SETTLED
        return grown

    def settle(self) -> None:
        """The kernel has ended: all that it stored is there."""
        self._writer[self._writer > _SETTLED] = _SETTLED

    def read(self, box: Box, step: Step, stores: int) -> Array:
        """The elements of a window; `stores` is the place of the store channel in clocks."""
        self._check_bounds(box, step, "reads")
        writers = self._writer[box]
        if writers.size and writers.min() == _UNWRITTEN:
            raise violation(step.op, step.trip, f"reads {self} at {text_of(box)}, where elements were never written")
        if writers.size and writers.max() > step.before[stores]:
            problem = f"reads {self} at {text_of(box)}, which a store of this kernel writes and may not have finished"
            raise violation(step.op, step.trip, problem, "add the token of the store to its after(...)")
        return self.data[box]

    def write(self, box: Box, step: Step, value: Array) -> None:
        """Stores a window."""
        self._check_bounds(box, step, "writes")
        if (self._writer[box] != _UNWRITTEN).any():
            raise violation(step.op, step.trip, f"writes {self} at {text_of(box)}, where elements were written before")
        self.data[box] = value
        self._writer[box] = step.number

    def unwritten(self) -> Iterator[tuple[int, ...]]:
        """The elements that nobody wrote."""
        return (tuple(index) for index in np.argwhere(self._writer == _UNWRITTEN).tolist())

    def __str__(self) -> str:
        return f'tensor "{self.name}"'

    def _check_bounds(self, box: Box, step: Step, verb: str) -> None:
        if _outside(box, self.data.shape):
            problem = f"{verb} {self} at {text_of(box)}, outside of its shape {list(self.data.shape)}"
            raise violation(step.op, step.trip, problem)
