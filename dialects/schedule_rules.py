"""What makes a kernel's schedule legal: program order respects tokens and slots, and buffers fit.

The rules are checked on the text alone, whatever the trip counts are:

1. An operation waits only for tokens of operations that issue before it. With stages, "before" compares
   (trip, place in the text): a token from the same instance needs a stage that is not later; a carried token comes
   from the instance before, one trip earlier.
2. A slot's next instance is first touched after its last instance was last touched. Instance n + slots
   begins at least `slots` trips after instance n ends, so the last access may be at most `slots` stages after
   the first, and in the very last of these only if it stands earlier in the text.
3. The buffers of a kernel fit the accelerator's memory: without addresses their sum, with addresses
   every slot lies inside and none overlap. Those in registers fit the registers of each PE.

Tensors that stay on chip between kernels have rules of their own (`onchip_rules`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from xdsl.ir import BlockArgument, Operation, OpResult, SSAValue
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.onchip_rules import accelerator_around
from flatc.dialects.pipeline import Chain, Entry, chain_of, root_loops
from flatc.dialects.spatial import BufferOp, ForOp, TimedOp, timed_ops


def verify_kernel(kernel: Operation) -> None:
    """Raises `VerifyException` with the rule that is broken and what to change."""
    for root in root_loops(kernel):
        chain = chain_of(root)
        _verify_tokens(chain)
        _verify_slots(chain)
    _verify_memory(kernel)


# --- Rule 1: tokens -----------------------------------------------------------------------------------


def _verify_tokens(chain: Chain) -> None:
    entry_of: dict[Operation, Entry] = {entry.op: entry for entry in chain.entries}
    for consumer in chain.entries:
        for token in _outside_tokens(consumer.op):
            for producer, distance in _producers(token, chain, entry_of, 0, set()):
                if (producer.stage - distance, producer.text) >= consumer.position:
                    raise VerifyException(_late_token(producer, consumer, distance))


def _late_token(producer: Entry, consumer: Entry, distance: int) -> str:
    source = "the instance before" if distance else "the same instance"
    return (
        f"{consumer.op.name} at stage {consumer.stage} waits for {producer.op.name} of {source} at stage "
        f"{producer.stage}, which issues later: give it stage {producer.stage} or more"
    )


def _outside_tokens(op: Operation) -> Iterator[SSAValue]:
    """Tokens that an entry waits for and that come from outside of it."""
    for inner in op.walk():
        tokens = inner.inits if isinstance(inner, ForOp) else inner.after if isinstance(inner, TimedOp) else ()
        for token in tokens:
            owner = token.owner if isinstance(token.owner, Operation) else token.owner.parent_op()
            if owner is not None and not op.is_ancestor(owner):
                yield token


def _producers(
    token: SSAValue, chain: Chain, entry_of: dict[Operation, Entry], distance: int, seen: set[tuple[SSAValue, int]]
) -> Iterator[tuple[Entry, int]]:
    """The entries a token may come from, each with how many instances back it lies."""
    if (token, distance) in seen:
        return
    seen.add((token, distance))
    if isinstance(token, BlockArgument):
        loop = token.owner.parent_op()
        if isinstance(loop, ForOp) and loop in chain.loops:
            yield from _producers(loop.yield_op.tokens[token.index - 1], chain, entry_of, 1, seen)
            yield from _producers(loop.inits[token.index - 1], chain, entry_of, distance, seen)
        return
    assert isinstance(token, OpResult)
    if token.owner in entry_of:
        yield entry_of[token.owner], distance
    elif isinstance(token.owner, ForOp) and token.owner in chain.loops:
        index = token.index
        yield from _producers(token.owner.yield_op.tokens[index], chain, entry_of, distance, seen)
        yield from _producers(token.owner.inits[index], chain, entry_of, distance, seen)


# --- Rule 2: slots ------------------------------------------------------------------------------------


def _verify_slots(chain: Chain) -> None:
    touching: dict[SSAValue, list[Entry]] = {}
    for entry in chain.entries:
        for op in timed_ops(entry.op):
            for value in dict.fromkeys([*op.reads, *op.writes]):
                touching.setdefault(value, []).append(entry)
    for buffers in chain.buffers:
        for buffer in buffers:
            entries = touching.get(buffer.buffer, [])
            if entries:
                _verify_buffer_slots(buffer, min(e.position for e in entries), max(e.position for e in entries))


def _verify_buffer_slots(buffer: BufferOp, first: tuple[int, int], last: tuple[int, int]) -> None:
    slots = buffer.slots.data
    if (last[0] - slots, last[1]) >= first:
        needed = last[0] - first[0] + (1 if last[1] >= first[1] else 0)
        raise VerifyException(
            f'buffer "{buffer.label.data}" is filled at stage {first[0]} and still in use at stage {last[0]}: '
            f"it has {slots} slot{'s' if slots > 1 else ''} and needs {needed}"
        )


# --- Rule 3: memory -----------------------------------------------------------------------------------


def _verify_memory(kernel: Operation) -> None:
    everything = [op for op in kernel.walk() if isinstance(op, BufferOp)]
    accelerator = accelerator_around(kernel)
    if accelerator is not None:
        _verify_registers(everything, accelerator)
    buffers = [buffer for buffer in everything if buffer.registers is None]
    placed = [buffer for buffer in buffers if buffer.address is not None]
    if placed and len(placed) != len(buffers):
        raise VerifyException("either all buffers of a kernel have an address or none has")
    spans = sorted(
        (b.address.data, b.address.data + b.total_bytes, b.label.data) for b in placed if b.address is not None
    )
    for (_, end, label), (start, _, other) in pairwise(spans):
        if start < end:
            raise VerifyException(f'buffers "{label}" and "{other}" overlap at byte {start}')
    peak = max((end for _, end, _ in spans), default=sum(b.total_bytes for b in buffers))
    if accelerator is not None and peak > accelerator.buffer.capacity_bytes:
        raise VerifyException(
            f"the kernel's buffers need {peak} bytes on chip and the accelerator has "
            f"{accelerator.buffer.capacity_bytes}: use smaller tiles or fewer slots"
        )


def _verify_registers(buffers: Sequence[BufferOp], accelerator: Accelerator) -> None:
    needed = sum(buffer.bytes_per_pe(accelerator.array) for buffer in buffers)
    capacity = accelerator.registers.bytes_per_pe
    if capacity and needed > capacity:
        raise VerifyException(
            f"the tiles in registers need {needed} bytes of each PE and the accelerator has {capacity}: use smaller "
            "tiles or fewer slots of scores"
        )
