"""What a kernel's loop nest is, once and for all: chains inside chains, and what shapes their trips.

A *chain* (see `dialects.pipeline`) is a loop with the stream loops that continue it; a loop that is an entry of
another chain starts a chain of its own, inside of that entry. Offsets do not matter to time: the trips of a loop are
*shaped* by extents, conditions and bounds only.

    facts = NestFacts(kernel)
    facts.chain(root)                     # the chain of a root loop or of a nested one
    facts.chain(root).stage_of(op)        # the stage of the entry that is, or holds, an operation
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, reduce
from typing import Any

from xdsl.ir import Block, Operation, SSAValue

from flatc.dialects.pipeline import Chain, chain_of, root_loops
from flatc.dialects.quasi_affine import Expr, var
from flatc.dialects.spatial import BufferOp, ForOp, KernelOp, TimedOp, timed_ops
from flatc.passes.cost.arrays import Ints

Columns = dict[str, Ints]
"""The values of loop indices, by name, in many places at once."""


class ChainFacts:
    """A chain, where it stands, and which of its levels hold anything."""

    def __init__(self, root: ForOp, outer: ChainFacts | None):
        self.chain: Chain = chain_of(root)
        self.loops = self.chain.loops
        self.outer = outer
        self.levels: dict[Block, int] = {loop.body.block: level for level, loop in enumerate(self.loops)}
        self.has_loops = any(isinstance(entry.op, ForOp) for entry in self.chain.entries)
        self.carries = [bool(loop.inits) for loop in self.loops]
        self.holds = [self._holds(level) for level in range(len(self.loops))]

    def _holds(self, level: int) -> bool:
        entries = any(entry.level == level for entry in self.chain.entries)
        return entries or bool(self.chain.buffers[level]) or self.carries[level]

    def stage_of(self, op: Operation) -> int:
        """The stage of the entry that is `op` or holds it."""
        while op.parent not in self.levels:
            parent = op.parent_op()
            assert parent is not None, "the operation stands outside of the chain"
            op = parent
        assert isinstance(op, TimedOp | ForOp)
        return op.stage.data

    def level_of(self, op: Operation) -> int | None:
        """The level whose body `op` stands in, or None if it stands elsewhere."""
        return None if op.parent is None else self.levels.get(op.parent)

    @cached_property
    def outside_tokens(self) -> list[SSAValue]:
        """The tokens from outside that operations of the chain, or its nested loops, look at."""
        root = self.loops[0]
        return [token for token in dict.fromkeys(_tokens_used(root)) if not root.is_ancestor(_owner(token))]

    @cached_property
    def outside_buffers(self) -> list[BufferOp]:
        """The buffers from outside that the chain touches."""
        root, touched = self.loops[0], dict.fromkeys(b for op in timed_ops(self.loops[0]) for b in buffers_of(op))
        return [buffer for buffer in touched if not root.is_ancestor(buffer)]


class NestFacts:
    """All chains of a kernel, outer ones first."""

    def __init__(self, kernel: KernelOp):
        self.kernel = kernel
        self.chains: dict[ForOp, ChainFacts] = {}
        self._homes: dict[Block, ChainFacts] = {}
        for root in root_loops(kernel):
            assert root.parent is not None
            facts = self.chains[root] = ChainFacts(root, self._homes.get(root.parent))
            self._homes |= dict.fromkeys(facts.levels, facts)

    def chain(self, root: ForOp) -> ChainFacts:
        """The chain that starts at `root`."""
        return self.chains[root]

    def home(self, op: Operation) -> ChainFacts | None:
        """The chain in one of whose bodies `op` stands; None for the kernel's own body."""
        return None if op.parent is None else self._homes.get(op.parent)


def buffers_of(op: TimedOp) -> Iterator[BufferOp]:
    """The buffers that an operation touches whose slots it may have to wait for: registers change hands in order."""
    for value in (*op.reads, *op.writes):
        assert isinstance(value.owner, BufferOp)
        if value.owner.registers is None:
            yield value.owner


def _tokens_used(root: ForOp) -> Iterator[SSAValue]:
    for op in root.walk():
        if isinstance(op, TimedOp):
            yield from op.after
        elif isinstance(op, ForOp):
            yield from op.inits
            yield from op.yield_op.tokens


def _owner(token: SSAValue) -> Operation:
    owner = token.owner
    parent = owner.parent_op() if isinstance(owner, Block) else owner
    assert parent is not None
    return parent


# --- Expressions --------------------------------------------------------------------------------------------


class IndexedExprs:
    """The different expressions of a kernel, with one name for each loop index, compiled for arrays.

    `number` gives equal expressions equal numbers.
    """

    def __init__(self) -> None:
        self._names: dict[SSAValue, str] = {}
        self._numbers: dict[Expr, int] = {}
        self.exprs: list[Expr] = []
        self._names_in: list[frozenset[str]] = []
        self._functions: dict[int, Callable[[Columns], Ints]] = {}

    def name(self, index: SSAValue) -> str:
        """The name of a loop index."""
        return self._names.setdefault(index, f"i{len(self._names)}")

    def number(self, expr: Expr, indices: tuple[SSAValue, ...]) -> int:
        """The number of an expression of an operation's index operands."""
        if expr.is_constant():
            return self.number_of(expr)
        return self.number_of(expr.substitute({f"d{i}": var(self.name(index)) for i, index in enumerate(indices)}))

    def number_of(self, expr: Expr) -> int:
        """The number of an expression of index names."""
        found = self._numbers.get(expr)
        if found is None:
            found = self._numbers[expr] = len(self.exprs)
            self.exprs.append(expr)
            self._names_in.append(frozenset(expr.variables()))
        return found

    def names_in(self, number: int) -> frozenset[str]:
        """The indices that an expression depends on."""
        return self._names_in[number]

    def evaluate(self, number: int, columns: Columns, count: int) -> Ints:
        """The values of an expression in `count` places."""
        import numpy as np

        if not self._names_in[number]:
            return np.full(count, self.exprs[number].constant, dtype=np.int64)
        function = self._functions.get(number)
        if function is None:
            function = self._functions[number] = _compiled(self.exprs[number])
        return function(columns)


def _compiled(expr: Expr) -> Callable[[Columns], Ints]:
    names: dict[str, Any] = {"__builtins__": {}, "min": _minimum, "max": _maximum}
    return eval(f"lambda c: {expr.to_python(lambda name: f'c[{name!r}]')}", names)


def _minimum(*parts: Ints) -> Ints:
    import numpy as np

    return reduce(np.minimum, parts)


def _maximum(*parts: Ints) -> Ints:
    import numpy as np

    return reduce(np.maximum, parts)
