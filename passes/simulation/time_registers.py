"""Where each time of a simulation is kept: one flat list of registers for a whole kernel.

What the future of a schedule depends on is a fixed set of times:

- when each resource is free, and done with what it has;
- when the tokens are ready that a later trip still asks for: of each token as many as there are frames of its loop
  that can be asked for, the newest first;
- when each of the last instances of a buffer was last in use, the newest first. An instance waits for those before it
  in the same slot: the verifier makes sure that they are touched for the last time before it is touched first
  (`schedule_rules`, rule 2), so nobody needs to know when the slot was handed over. Once an instance can no longer be
  touched, its slot's later times are merged into one;
- the origin: the time at which the kernel starts.

When a loop makes a new frame, tokens and instances of that loop move one place on. Tokens of an innermost loop that
nobody asks for after the trip at hand have registers as well, behind all others: no map needs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from xdsl.ir import Block, BlockArgument, OpResult, SSAValue

from flatc.dialects.spatial import BufferOp, ForOp, StartOp, TimedOp, VectorOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.nest_facts import ChainFacts, NestFacts, buffers_of

_Pairs = list[tuple[int, int]]

MOST_HOPS = 2
"""Tokens that are carried on unchanged through more trips than that are not kept."""


class Registers:
    """Numbers of registers: those below `size` live between trips, those up to `total` only within one."""

    def __init__(self, facts: NestFacts, model: CostModel):
        ops = [op for op in facts.kernel.walk() if isinstance(op, TimedOp)]
        self.facts = facts
        self.origin = 0
        self._next = 1
        resources = sorted({model.resource(op) for op in ops})
        self.free = {resource: self._take() for resource in resources}
        self.done = {resource: self._take() for resource in resources}
        self.resource = {op: model.resource(op) for op in ops}
        self.waits_for = {op: tuple(op.after) for op in ops}
        self.touches = {op: tuple(buffers_of(op)) for op in ops}
        self.slots = {buffer: self._places(n) for buffer, n in self._instances(ops).items()}
        self.slot_counts = {buffer: buffer.slots.data for buffer in self.slots}
        # Nobody waits for the others.
        self.touches = {op: tuple(b for b in touched if b in self.slots) for op, touched in self.touches.items()}
        frames = self._frames_asked_for(ops)
        kept = {token: count - self._is_short_lived(token) for token, count in frames.items()}
        self.tokens = {token: self._places(count) for token, count in kept.items()}
        self.size = self._next
        for token, count in frames.items():
            self.tokens[token] += self._places(count - kept[token])
        self.total = self._next
        self._moved: dict[tuple[ChainFacts, int], tuple[_Pairs, _Pairs]] = {}

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    def _places(self, count: int) -> tuple[int, ...]:
        return tuple(self._take() for _ in range(count))

    def moved_by(self, chain: ChainFacts, level: int) -> tuple[_Pairs, _Pairs]:
        """What a new frame of a chain's loop does: pairs (to, from) of registers to merge, then of those to move."""
        found = self._moved.get((chain, level))
        if found is None:
            found = self._moved[chain, level] = self._moves(chain, level)
        return found

    def _moves(self, chain: ChainFacts, level: int) -> tuple[_Pairs, _Pairs]:
        merges, moves = _Pairs(), _Pairs()
        for buffer in chain.chain.buffers[level]:
            if buffer in self.slots:
                places, slots = self.slots[buffer], self.slot_counts[buffer]
                merges.append((places[-1 - slots], places[-1]))
                moves += [(places[0], places[slots - 1]), *zip(places[1:], places, strict=False)]
        for op in chain.loops[level].body.block.ops:
            for token in op.results:
                places = self.tokens.get(token, ())
                moves += zip(places[1:], places, strict=False)
        return merges, moves

    # --- Buffers ------------------------------------------------------------------------------------------

    def _instances(self, ops: list[TimedOp]) -> dict[BufferOp, int]:
        """How many instances of each buffer are remembered; one that is made once waits for nobody.

        Neither do instances of a buffer that only one resource touches, if its results are there when it is free.
        """
        latest: dict[BufferOp, int] = {}
        users: dict[BufferOp, set[str | None]] = {}
        for op in ops:
            for buffer in self.touches[op]:
                home = self.facts.home(buffer)
                if home is not None:
                    latest[buffer] = max(latest.get(buffer, 0), home.stage_of(op))
                    users.setdefault(buffer, set()).add(self.resource[op] if is_immediate(op) else None)
        return {
            buffer: stage + 1 + buffer.slots.data
            for buffer, stage in latest.items()
            if len(users[buffer]) > 1 or None in users[buffer]
        }

    # --- Tokens -------------------------------------------------------------------------------------------

    def _is_short_lived(self, token: SSAValue) -> bool:
        """Whether its oldest frame is only asked for within the trip that asks."""
        assert isinstance(token, OpResult)
        home = self.facts.home(token.op)
        return home is not None and not home.has_loops and home.level_of(token.op) == len(home.loops) - 1

    def _frames_asked_for(self, ops: list[TimedOp]) -> dict[SSAValue, int]:
        """For each token that somebody waits for, how many of its frames can be asked for."""
        found: Counter[SSAValue] = Counter()
        for op in ops:
            for token in self.waits_for[op]:
                self._ask(found, op, token)
        for root, chain in self.facts.chains.items():
            for token in root.inits:
                self._ask(found, root, token)
            for token in root.yield_op.tokens:
                for producer, hops in _producers(token, 0):
                    if self.facts.home(producer.op) is chain:
                        # Asked for after the last trip, when nothing that is short-lived is left.
                        found[producer] = max(found[producer], hops + 2)
                    else:
                        self._ask(found, root, producer)
        return dict(found)

    def _ask(self, found: Counter[SSAValue], op: TimedOp | ForOp, token: SSAValue) -> None:
        for producer, hops in _producers(token, 0):
            home = self.facts.home(producer.op)
            stage = 0 if home is None else home.stage_of(op)
            found[producer] = max(found[producer], stage + hops + 1)


def is_immediate(op: TimedOp) -> bool:
    """Whether its result is there when its resource is free again, neither earlier nor later."""
    return isinstance(op, VectorOp) and op.on_array is None


def _producers(token: SSAValue, hops: int) -> Iterator[tuple[OpResult, int]]:
    """The tokens that are kept which `token` may stand for, each with how many frames back it may lie."""
    if hops > MOST_HOPS:
        return
    if isinstance(token, BlockArgument):
        loop = _loop_of(token.owner)
        yield from _producers(loop.yield_op.tokens[token.index - 1], hops + 1)
        yield from _producers(loop.inits[token.index - 1], hops)
        return
    assert isinstance(token, OpResult)
    owner = token.owner
    if isinstance(owner, ForOp) and owner.stream:
        yield from _producers(owner.yield_op.tokens[token.index], hops)
        yield from _producers(owner.inits[token.index], hops)
    elif not isinstance(owner, StartOp):
        yield token, hops


def _loop_of(block: Block) -> ForOp:
    loop = block.parent_op()
    assert isinstance(loop, ForOp)
    return loop
