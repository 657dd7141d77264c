"""Happens-before between the operations of a schedule: what is finished when an operation starts.

Nothing here knows about time. Whatever the speeds of a machine are, an operation starts after

    - the operations whose tokens it waits for have finished,
    - every operation on the previous instance of each slot that it touches has finished (the handover), and
    - the operations before it on the same resource have started, so what they waited for has finished too.

A resource finishes its operations in the order it starts them, so "what is finished" is one number for each
resource: a vector clock.

    order = Order(shared_channel=False)
    load = order.issue(load_op, trip, [])
    product = order.issue(matmul_op, trip, [load.after])
    product.follows(load)                                   # True: it waited for the token

One thing follows without waiting: on one resource, a later operation may overwrite or add to what an earlier one
wrote, because the pipeline keeps their order. Only to read a result the operation that made it must have finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from xdsl.ir import SSAValue

from flatc.dialects.spatial import TimedOp, VectorOp

Clock = tuple[int, ...]
"""For each resource, how many of its operations have finished."""

_RESOURCES = ("read", "write", "array", "vector")
NOTHING: Clock = (0,) * len(_RESOURCES)
"""The clock at the start of a kernel."""


def join(first: Clock, others: Iterable[Clock]) -> Clock:
    """What is finished when all of `first` and `others` are."""
    for clock in others:
        if clock is not first:
            first = tuple(map(max, first, clock))
    return first


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One executed operation: the `number`-th of its resource, and what is finished `before` and `after` it."""

    op: TimedOp
    trip: Mapping[SSAValue, int]
    resource: int
    number: int
    before: Clock
    after: Clock

    def follows(self, other: Step, *, needs_result: bool = False) -> bool:
        """Whether what `other` does is ordered before what this step does."""
        if other.number <= self.before[other.resource]:
            return True
        return other.resource == self.resource and not needs_result

    def succeeds(self, clock: Clock) -> bool:
        """Whether all of `clock` on other resources has finished before this step."""
        return all(
            finished <= self.before[resource] for resource, finished in enumerate(clock) if resource != self.resource
        )

    def __str__(self) -> str:
        return describe(self.op, self.trip)


class Order:
    """Numbers operations as they issue and derives their clocks."""

    def __init__(self, shared_channel: bool):
        self._index = {name: i for i, name in enumerate(_RESOURCES)}
        if shared_channel:
            self._index["write"] = self._index["read"]
        self._issued = [0] * len(_RESOURCES)
        self._before = [NOTHING] * len(_RESOURCES)

    @property
    def stores(self) -> int:
        """The resource that stores go through, as a place in clocks."""
        return self._index["write"]

    def issue(self, op: TimedOp, trip: Mapping[SSAValue, int], waits: Iterable[Clock]) -> Step:
        """The next operation on its resource, after everything in `waits`."""
        resource = self._index[op.resource]
        number = self._issued[resource] + 1
        before = join(self._before[resource], waits)
        if op.resource == "vector":  # it holds its unit until the result is there
            before = _with(before, resource, number - 1)
        self._issued[resource], self._before[resource] = number, before
        return Step(op, trip, resource, number, before, _with(before, resource, number))


def _with(clock: Clock, index: int, value: int) -> Clock:
    return (*clock[:index], value, *clock[index + 1 :])


def describe(op: TimedOp, trip: Mapping[SSAValue, int]) -> str:
    """An execution of an operation in words: `spatial.vector exp (query = 2, key = 0)`."""
    name = op.kind.data if isinstance(op, VectorOp) else op.token.name_hint
    indices = ", ".join(f"{index.name_hint or 'index'} = {value}" for index, value in trip.items())
    return f"{op.name} {name or 'without a name'} ({indices or 'outside of loops'})"
