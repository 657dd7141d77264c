"""Building blocks of any kernel's loop nest: the loops around a place, and the operations emitted there so far.

    nest = Nest()
    with nest.loop("m", trips, stream=False):            # spatial.for %m = 0 to trips { ...
        x = nest.buffer("x", 2, [64, 128], bf16)
        loaded = nest.load(tensor, [m * 64, 0], [64, 128], Access(x), 0, "x")
        ...                                              # }

`nest_builder` adds what only attention has.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from xdsl.dialects.builtin import IndexType
from xdsl.ir import Attribute, Block, Operation, SSAValue

from flatc.dialects.quasi_affine import Expr, Range, as_expr
from flatc.dialects.spatial import (
    Access,
    BufferOp,
    BufferType,
    ForOp,
    LoadOp,
    OnArray,
    StartOp,
    StoreOp,
    TimedBuilder,
    TimedOp,
    TokenType,
    YieldOp,
    make_for,
)


class Nest:
    """A place in a loop nest under construction."""

    def __init__(self) -> None:
        self.loops: dict[str, SSAValue] = {}
        self.ops: list[Operation] = []
        self.ranges: dict[str, Range] = {}

    def simplified(self, expr: Expr) -> Expr:
        """`expr` with what the ranges of the loops imply."""
        return expr.simplify(self.ranges)

    def buffer(
        self,
        label: str,
        slots: int,
        shape: Sequence[int],
        type: Attribute,
        initial: float | None = None,
        registers: OnArray | None = None,
    ) -> SSAValue:
        """Declares a buffer here."""
        op = BufferOp(label, slots, BufferType(shape, type), initial=initial, registers=registers)
        op.buffer.name_hint = label
        self.ops.append(op)
        return op.buffer

    def emit(self, op: TimedOp, hint: str) -> SSAValue:
        """Appends a timed operation and gives its token."""
        op.token.name_hint = hint
        self.ops.append(op)
        return op.token

    def timed(
        self,
        extents: Sequence[Expr | int],
        reads: Sequence[Access | SSAValue] = (),
        writes: Sequence[Access | SSAValue] = (),
        after: Sequence[SSAValue] = (),
        stage: int = 0,
    ) -> TimedBuilder:
        """The shared part of a timed operation at the current place."""
        return TimedBuilder(
            self.loops,
            [as_expr(e) for e in extents],
            [a if isinstance(a, Access) else Access(a) for a in reads],
            [a if isinstance(a, Access) else Access(a) for a in writes],
            after=list(dict.fromkeys(after)),
            stage=stage,
        )

    def load(
        self, tensor: SSAValue, starts: Sequence[Expr], extents: Sequence[Expr], into: Access, stage: int, hint: str
    ) -> SSAValue:
        """A load of a box of `tensor`."""
        timed = replace(self.timed(extents, writes=[into], stage=stage), tensor=tensor, tensor_offsets=starts)
        return self.emit(LoadOp(timed), f"load_{hint}")

    def store(
        self,
        source: Access,
        tensor: SSAValue,
        starts: Sequence[Expr],
        extents: Sequence[Expr],
        after: Sequence[SSAValue],
        stage: int,
    ) -> SSAValue:
        """A store into a box of `tensor`."""
        timed = replace(
            self.timed(extents, reads=[source], after=after, stage=stage), tensor=tensor, tensor_offsets=starts
        )
        return self.emit(StoreOp(timed), "store")

    # --- Loops ------------------------------------------------------------------------------------------

    def loop_block(self, dim: str, tokens: int = 0) -> Block:
        """The body of a loop over tiles of `dim`, whose index it makes known."""
        block = Block(arg_types=[IndexType(), *[TokenType()] * tokens])
        block.args[0].name_hint = dim
        self.loops[dim] = block.args[0]
        return block

    @contextmanager
    def loop(self, dim: str, trips: int, *, stream: bool) -> Generator[None]:
        """A loop over all tiles of `dim`: what is emitted inside stands in its body."""
        outside, self.ops = self.ops, []
        block = self.loop_block(dim)
        yield
        block.add_ops([*self.ops, YieldOp()])
        del self.loops[dim]
        self.ops = [*outside, make_for(self.loops, 0, trips, block, stream=stream)]

    @contextmanager
    def reduction(self, dim: str, trips: int) -> Generator[list[SSAValue]]:
        """A stream loop that gives on a token: put it into the list. Afterwards the list holds the last trip's."""
        start = StartOp()
        outside, self.ops = [*self.ops, start], []
        block, token = self.loop_block(dim, tokens=1), list[SSAValue]()
        yield token
        block.add_ops([*self.ops, YieldOp(token)])
        del self.loops[dim]
        loop: ForOp = make_for(self.loops, 0, trips, block, [start.token], stream=True)
        self.ops = [*outside, loop]
        token[:] = loop.done
