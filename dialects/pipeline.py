"""The structure of a pipelined loop nest: which operations take part in a trip, and in which order.

A *chain* is a loop together with the `stream` loops that continue it inward. Its trips form one sequence;
each operation of the chain is an *entry* with a level (which loop of the chain it belongs to), a section
(before the inner stream loop, after it, or in the innermost body), a stage and a place in the text:

    spatial.for %query = 0 to 8 {          entries of this chain, with (level, section, stage, text):
      %t0 = load q                           load q   (0, before, 0, 0)
      spatial.for %key = 0 to 4 stream {
        %t1 = matmul                         matmul   (1, body, 0, 1)
      }
      %t2 = store  stage 1                   store    (0, after, 1, 2)
    }

In trip g, entry (level, section, stage, text) works on trip g - stage, if that trip is one it takes part in:
every trip for the body, the first trip of its loop's instance for `before`, the last for `after`. Within a trip,
entries issue in text order. The verifier (`schedule_rules`) and the readers (`passes/program_order`) share this.
"""

from __future__ import annotations

from typing import Literal

from xdsl.ir import Operation
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import BufferOp, ForOp, StartOp, TimedOp, YieldOp

Section = Literal["before", "body", "after"]


@frozen
class Entry:
    """One operation of a chain: a timed operation, or a loop that runs as a whole."""

    op: TimedOp | ForOp
    level: int
    section: Section
    stage: int
    text: int

    @property
    def position(self) -> tuple[int, int]:
        """Where it issues, relative to the trip it works on: (stage, place in the text)."""
        return (self.stage, self.text)


@frozen
class Chain:
    """A loop and the stream loops that continue it inward, outermost first, with their entries."""

    loops: tuple[ForOp, ...]
    entries: tuple[Entry, ...]
    buffers: tuple[tuple[BufferOp, ...], ...]

    @property
    def depth(self) -> int:
        """How many trips after its own an operation may still work: the largest stage."""
        return max((entry.stage for entry in self.entries), default=0)


def chain_of(root: ForOp) -> Chain:
    """The chain that starts at `root`."""
    loops = [root]
    while (child := loops[-1].stream_child) is not None:
        loops.append(child)
    before: list[tuple[Operation, int, Section]] = []
    after: list[tuple[Operation, int, Section]] = []
    for level, loop in enumerate(loops):
        child = loops[level + 1] if level + 1 < len(loops) else None
        section: Section = "body" if child is None else "before"
        tail: list[tuple[Operation, int, Section]] = []
        for op in loop.body.block.ops:
            if op is child:
                section = "after"
            elif section == "after":
                tail.append((op, level, section))
            else:
                before.append((op, level, section))
        after = tail + after
    entries: list[Entry] = []
    buffers: list[list[BufferOp]] = [[] for _ in loops]
    for op, level, section in before + after:
        if isinstance(op, BufferOp):
            buffers[level].append(op)
        elif isinstance(op, TimedOp | ForOp):
            entries.append(Entry(op, level, section, op.stage.data, len(entries)))
        elif not isinstance(op, StartOp | YieldOp):
            raise VerifyException(f"{op.name} cannot stand in a loop: move it in front of the kernel")
    return Chain(tuple(loops), tuple(entries), tuple(tuple(b) for b in buffers))


def root_loops(op: Operation) -> list[ForOp]:
    """Every loop inside `op` that starts a chain."""
    return [loop for loop in op.walk() if isinstance(loop, ForOp) and not loop.stream]
