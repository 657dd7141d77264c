"""Program order: the sequence in which a schedule's operations issue, one event at a time.

This is the meaning of loops, streams and stages (see `flatc.dialects.spatial`), in one place. The NumPy
interpreter and the plain simulator both read a kernel through `walk`; they differ only in what they do
with an event.

    for event in walk(kernel):
        event.op                 # the timed operation
        event.extents()          # its sizes in this trip, as integers
        event.tokens()           # what was stored for the tokens it waits for
        event.complete(value)    # stores a value for its own token
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xdsl.dialects.builtin import ArrayAttr
from xdsl.ir import Block, BlockArgument, OpResult, SSAValue

from flatc.dialects.pipeline import Chain, Entry, chain_of
from flatc.dialects.quasi_affine import Expr
from flatc.dialects.spatial import BufferOp, ExprAttr, ForOp, KernelOp, StartOp, TimedOp, VectorOp

IndexValues = dict[SSAValue, int]

Carry = tuple[tuple[SSAValue, ...], tuple[SSAValue, ...]]
"""The tokens a loop starts from and the tokens it yields."""


class Frame:
    """One trip of one loop (or the kernel's body): its index values, buffer instances and token values."""

    __slots__ = ("block", "carry", "first", "indices", "instances", "last_trip", "parent", "previous", "values")

    def __init__(self, block: Block, parent: Frame | None, previous: Frame | None, carry: Carry | None = None):
        self.block = block
        self.carry = carry
        self.parent = parent
        self.previous = previous
        self.first = previous is None
        self.indices: IndexValues = dict(parent.indices) if parent else {}
        self.instances: dict[BufferOp, int] = {}
        self.values: dict[SSAValue, Any] = {}
        self.last_trip: dict[ForOp, Frame | None] = {}


@dataclass(slots=True)
class Trip:
    """One trip of a chain: the frames of its loops, and for each whether the trip is its first or last."""

    frames: list[Frame]
    first: list[bool]
    last: list[bool]


CompiledExprs = Callable[[Sequence[int]], tuple[int, ...]]


class _Compiled:
    """An operation's expressions as Python functions of its index values."""

    def __init__(self, op: TimedOp):
        self.extents = _compile(op.extents)
        self.tensor_offsets = _compile(op.tensor_offsets)
        self.windows = [_compile(window) for window in op.windows]
        self.when = None if op.when is None else _compile(ArrayAttr([op.when]))
        position = op.position if isinstance(op, VectorOp) else None
        self.position = None if position is None else _compile(position)
        self.indices = tuple(op.indices)
        self.token = op.token
        self.tokens = tuple(op.after)
        touched = [_buffer_of(value) for value in (*op.reads, *op.writes)]
        self.buffers = tuple((buffer, block) for buffer, block in touched if buffer.registers is None)


def _buffer_of(value: SSAValue) -> tuple[BufferOp, Block]:
    buffer = value.owner
    assert isinstance(buffer, BufferOp)
    assert buffer.parent is not None
    return buffer, buffer.parent


def _compile(exprs: ArrayAttr[ExprAttr]) -> CompiledExprs:
    values = [e.data for e in exprs]
    if all(e.is_constant() for e in values):
        constants = tuple(e.constant for e in values)
        return lambda indices: constants
    return compile_exprs(values)


def compile_exprs(exprs: Sequence[Expr]) -> CompiledExprs:
    """A fast function from index values (d0, d1, ... in order) to the values of `exprs`."""
    body = ",".join(e.to_python(lambda name: f"d[{name[1:]}]") for e in exprs)
    return eval(f"lambda d: ({body},)", {"__builtins__": {}, "min": min, "max": max})


class Event:
    """One execution of one timed operation."""

    __slots__ = ("_compiled", "_values", "frame", "op")

    def __init__(self, op: TimedOp, frame: Frame, compiled: _Compiled):
        self.op = op
        self.frame = frame
        self._compiled = compiled
        self._values = [frame.indices[index] for index in compiled.indices]

    def active(self) -> bool:
        """False where the operation's `when` is not positive."""
        when = self._compiled.when
        return when is None or when(self._values)[0] > 0

    def extents(self) -> tuple[int, ...]:
        """The sizes it works on."""
        return self._compiled.extents(self._values)

    def tensor_offsets(self) -> tuple[int, ...]:
        """Where it starts in the tensor off chip."""
        return self._compiled.tensor_offsets(self._values)

    def window(self, index: int) -> tuple[int, ...]:
        """Where it starts in buffer `index` (reads before writes); empty means the origin."""
        return self._compiled.windows[index](self._values)

    def position(self) -> tuple[int, ...]:
        """Absolute query and key position, for masks."""
        assert self._compiled.position is not None
        return self._compiled.position(self._values)

    def instance(self, buffer: SSAValue) -> tuple[BufferOp, int]:
        """The buffer operation behind a value, and the number of the instance it names here."""
        op = buffer.owner
        assert isinstance(op, BufferOp)
        return op, _enclosing(self.frame, op.parent).instances[op]

    def instances(self) -> list[tuple[BufferOp, int]]:
        """The buffers it touches, reads before writes, each with the number of the instance it names here.

        Those in registers are left out: their slots change hands without waiting.
        """
        frame = self.frame
        return [(buffer, _enclosing(frame, block).instances[buffer]) for buffer, block in self._compiled.buffers]

    def tokens(self) -> list[Any]:
        """The values stored for the tokens it waits for; tokens of `spatial.start` have none."""
        frame = self.frame
        values = [resolve(token, frame) for token in self._compiled.tokens]
        return [value for value in values if value is not None]

    def places(self) -> list[tuple[Frame, OpResult]]:
        """Where the values of the tokens that it waits for are stored, and which operations' tokens they are."""
        found = [locate(token, self.frame) for token in self._compiled.tokens]
        return [place for place in found if place is not None]

    def complete(self, value: Any) -> None:
        """Stores `value` for its token."""
        self.frame.values[self._compiled.token] = value


def _enclosing(frame: Frame, block: Block | None) -> Frame:
    while frame.block is not block:
        assert frame.parent is not None, "a value is used outside of the loop that defines it"
        frame = frame.parent
    return frame


def resolve(token: SSAValue, frame: Frame) -> Any:
    """The value stored for a token as seen from `frame`, None for a token of `spatial.start`."""
    place = locate(token, frame)
    return None if place is None else place[0].values[place[1]]


def locate(token: SSAValue, frame: Frame) -> tuple[Frame, OpResult] | None:
    """Where the value of a token as seen from `frame` is stored, through carried tokens and loop results.

    The frame, and the token of the timed operation that gave it; None for a token of `spatial.start`.
    """
    while True:
        if isinstance(token, BlockArgument):
            frame = _enclosing(frame, token.owner)
            assert frame.carry is not None
            if not frame.first:
                assert frame.previous is not None, "a token is carried through more trips than the pipeline holds"
                token, frame = frame.carry[1][token.index - 1], frame.previous
            else:
                assert frame.parent is not None
                token, frame = frame.carry[0][token.index - 1], frame.parent
            continue
        assert isinstance(token, OpResult)
        owner = token.owner
        if isinstance(owner, StartOp):
            return None
        frame = _enclosing(frame, owner.parent)
        if not isinstance(owner, ForOp):
            return frame, token
        inner = frame.last_trip[owner]
        if inner is None:
            token = owner.inits[token.index]
        else:
            assert inner.carry is not None
            token, frame = inner.carry[1][token.index], inner


class _Walker:
    def __init__(self) -> None:
        self._chains: dict[ForOp, Chain] = {}
        self._compiled: dict[TimedOp, _Compiled] = {}
        self._bounds: dict[ForOp, tuple[CompiledExprs, tuple[SSAValue, ...]]] = {}
        self._counters: dict[BufferOp, int] = {}
        self._carries: dict[ForOp, Carry] = {}

    def kernel(self, kernel: KernelOp) -> Iterator[Event]:
        frame = Frame(kernel.body.block, None, None)
        for op in kernel.body.block.ops:
            if isinstance(op, BufferOp):
                self._create(frame, [op])
            elif isinstance(op, ForOp):
                yield from self._loop(op, frame)
            elif isinstance(op, TimedOp):
                yield self._event(op, frame)

    def _event(self, op: TimedOp, frame: Frame) -> Event:
        compiled = self._compiled.get(op)
        if compiled is None:
            compiled = self._compiled[op] = _Compiled(op)
        return Event(op, frame, compiled)

    def _create(self, frame: Frame, buffers: Sequence[BufferOp]) -> None:
        for buffer in buffers:
            frame.instances[buffer] = number = self._counters.get(buffer, 0)
            self._counters[buffer] = number + 1

    def _loop(self, root: ForOp, parent: Frame) -> Iterator[Event]:
        chain = self._chains.get(root)
        if chain is None:
            chain = self._chains[root] = chain_of(root)
        window: deque[Trip] = deque(maxlen=chain.depth + 1)
        for trip in self._trips(chain, 0, parent):
            self._retire(window)
            window.appendleft(trip)
            yield from self._issue(chain, window, 0)
        for drained in range(1, chain.depth + 1):
            yield from self._issue(chain, window, drained)

    @staticmethod
    def _retire(window: deque[Trip]) -> None:
        """Lets go of what nobody can ask for any more: the trip that leaves the window is done."""
        if len(window) == window.maxlen:
            trip = window[-1]
            for level, frame in enumerate(trip.frames):
                if trip.last[level]:
                    frame.previous = None

    def _issue(self, chain: Chain, window: deque[Trip], drained: int) -> Iterator[Event]:
        for entry in chain.entries:
            age = entry.stage - drained
            if 0 <= age < len(window) and _takes_part(entry, window[age]):
                frame = window[age].frames[entry.level]
                if isinstance(entry.op, ForOp):
                    yield from self._loop(entry.op, frame)
                else:
                    yield self._event(entry.op, frame)

    def _trips(self, chain: Chain, level: int, parent: Frame) -> Iterator[Trip]:
        loop = chain.loops[level]
        lower, upper = self._range(loop, parent)
        parent.last_trip[loop] = None
        carry = self._carries.get(loop)
        if carry is None:
            carry = self._carries[loop] = (tuple(loop.inits), tuple(loop.yield_op.tokens))
        block, index = loop.body.block, loop.index
        previous: Frame | None = None
        for value in range(lower, upper):
            frame = Frame(block, parent, previous, carry)
            frame.indices[index] = value
            self._create(frame, chain.buffers[level])
            parent.last_trip[loop] = previous = frame
            empty = True
            if level + 1 < len(chain.loops):
                for trip in self._trips(chain, level + 1, frame):
                    trip.frames.insert(0, frame)
                    empty = False
                    yield _mark(trip, value == lower, value == upper - 1, level)
            if empty:
                trip = Trip([frame], [True], [True])
                yield _mark(trip, value == lower, value == upper - 1, level)

    def _range(self, loop: ForOp, frame: Frame) -> tuple[int, int]:
        compiled = self._bounds.get(loop)
        if compiled is None:
            compiled = _compile(ArrayAttr([loop.lower, loop.upper])), tuple(loop.indices)
            self._bounds[loop] = compiled
        lower, upper = compiled[0]([frame.indices[index] for index in compiled[1]])
        return lower, upper


def _mark(trip: Trip, is_first: bool, is_last: bool, level: int) -> Trip:
    """Adds the flags of the loop around: its first trip is the first one of its first trip, and so on."""
    if level > 0:
        trip.first.insert(0, is_first and trip.first[0])
        trip.last.insert(0, is_last and trip.last[0])
    return trip


def _takes_part(entry: Entry, trip: Trip) -> bool:
    if entry.level >= len(trip.frames):
        return False
    if entry.section == "before":
        return trip.first[entry.level]
    if entry.section == "after":
        return trip.last[entry.level]
    return True


def walk(kernel: KernelOp) -> Iterator[Event]:
    """Every execution of every timed operation of `kernel`, in program order.

    The reader must call `Event.complete` on each event before taking the next one.
    """
    return _Walker().kernel(kernel)
