"""What shapes the trips of a kernel's chains: the expressions that tell one trip from another, and where they change.

Of an operation these are its extents and the sign of its condition. Of a loop it is how many trips it has; where its
bounds themselves lie only matters if its index shapes something inside of it:

    for %strip = 0 to ceildiv(%query * 256 + 256, 4096) {
      for %key = %strip * 8 to min(ceildiv(%query * 256 + 256, 512), %strip * 8 + 8) {     whole tiles of keys
        load ... extent [512, 64]

Nothing depends on %key, so its loop is shaped by max(0, min(...) - %strip * 8): all strips but the last are alike,
although no two of them have the same keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flatc.dialects.frozen import frozen
from flatc.dialects.quasi_affine import maximum, var
from flatc.dialects.spatial import ForOp, TimedOp
from flatc.passes.simulation.change_points import conditions, direction, monotone_parts
from flatc.passes.simulation.nest_facts import ChainFacts, IndexedExprs, NestFacts


@frozen
class OpShape:
    """What shapes an operation, as numbers of expressions: its condition, and those of its extents that may vary.

    `sizes` are its extents; None stands for the next of those that vary.
    """

    op: TimedOp
    when: int | None
    varying: tuple[int, ...]
    sizes: tuple[int | None, ...]

    def extents(self, values: Sequence[int]) -> tuple[int, ...]:
        """Its extents, given the values of those that vary."""
        following = iter(values)
        return tuple(next(following) if size is None else size for size in self.sizes)


class NestShapes:
    """What shapes each operation and each loop of a kernel.

    `bounds` are the numbers of a loop's bounds; `values` the expressions by whose values an operation or a loop is
    shaped, `signs` those of which only the sign counts.
    """

    def __init__(self, facts: NestFacts):
        self.exprs = IndexedExprs()
        self.operations: dict[TimedOp, OpShape] = {}
        self.bounds: dict[ForOp, tuple[int, int]] = {}
        self.values: dict[TimedOp | ForOp, tuple[int, ...]] = {}
        self.signs: dict[TimedOp | ForOp, tuple[int, ...]] = {}
        self._chains: dict[ChainFacts, ChainShape] = {}
        self._known_conditions: dict[int, tuple[int, ...]] = {}
        names = set[str]()
        # Inner loops come before the loops around them: an index is known to shape something, or nothing.
        for op in reversed([op for op in facts.kernel.walk() if isinstance(op, TimedOp | ForOp)]):
            if isinstance(op, TimedOp):
                self._read_operation(op)
            else:
                self._read_loop(op, counts=self.exprs.name(op.index) not in names)
            names.update(*(self.exprs.names_in(n) for n in (*self.values[op], *self.signs[op])))

    def _read_operation(self, op: TimedOp) -> None:
        exprs, indices, extents = self.exprs, tuple(op.indices), [extent.data for extent in op.extents]
        varying = tuple(exprs.number(extent, indices) for extent in extents if not extent.is_constant())
        sizes = tuple(extent.constant if extent.is_constant() else None for extent in extents)
        when = None if op.when is None else exprs.number(op.when.data, indices)
        self.operations[op] = OpShape(op, when, varying, sizes)
        self.values[op] = varying
        self.signs[op] = () if when is None else self._conditions(when)

    def _conditions(self, when: int) -> tuple[int, ...]:
        found = self._known_conditions.get(when)
        if found is None:
            found = tuple(map(self.exprs.number_of, conditions(self.exprs.exprs[when])))
            self._known_conditions[when] = found
        return found

    def _read_loop(self, loop: ForOp, *, counts: bool) -> None:
        """`counts` says that the index shapes nothing: the loop is shaped by the number of its trips."""
        exprs, indices = self.exprs, tuple(loop.indices)
        bounds = self.bounds[loop] = exprs.number(loop.lower.data, indices), exprs.number(loop.upper.data, indices)
        lower, upper = (exprs.exprs[number] for number in bounds)
        self.values[loop] = (exprs.number_of(maximum(0, upper - lower)),) if counts else bounds
        self.signs[loop] = ()

    def chain(self, facts: ChainFacts) -> ChainShape:
        """What shapes the trips of a chain."""
        found = self._chains.get(facts)
        if found is None:
            found = self._chains[facts] = ChainShape(facts, self)
        return found


class ChainShape:
    """What shapes the trips of a chain.

    `changing` lists by level the expressions that may change from trip to trip of that level's loop, and whether only
    their sign counts; `every` says that some depend on an inner index as well, or go up and down, so that no trip can
    stand for another; `ends_matter` that a first or last trip differs from others. `inputs` are expressions of outer
    indices, with the same remark, that decide together what all the trips are.
    """

    def __init__(self, facts: ChainFacts, shapes: NestShapes):
        self.facts = facts
        self.names = [shapes.exprs.name(loop.index) for loop in facts.loops]
        self.bounds = [shapes.bounds[loop] for loop in facts.loops]
        self.entries = [
            shapes.operations[entry.op] if isinstance(entry.op, TimedOp) else entry.op for entry in facts.chain.entries
        ]
        self.ends_matter = [facts.carries[level] or any(facts.holds[:level]) for level in range(len(facts.loops))]
        root, *within = [op for op in facts.loops[0].walk() if isinstance(op, TimedOp | ForOp)]
        inner = {shapes.exprs.name(op.index) for op in (root, *within) if isinstance(op, ForOp)}
        shaping = _shaping(shapes, within)
        self.every: list[bool] = []
        self.changing: list[list[Shaping]] = []
        for level, name in enumerate(self.names):
            changing = _changing(shapes.exprs, shaping, name, inner.difference(self.names[: level + 1]))
            self.every.append(changing is None)
            self.changing.append(changing or [])
        self.inputs = _inputs(shapes.exprs, {**_shaping(shapes, [root]), **shaping}, inner)


Shaping = tuple[int, bool]
"""The number of an expression, and whether only its sign counts."""


def _shaping(shapes: NestShapes, ops: Iterable[TimedOp | ForOp]) -> dict[Shaping, None]:
    """What shapes some operations and loops."""
    values = {(number, False): None for op in ops for number in shapes.values[op]}
    return values | {(number, True): None for op in ops for number in shapes.signs[op]}


def _changing(exprs: IndexedExprs, shaping: Iterable[Shaping], name: str, inner: set[str]) -> list[Shaping] | None:
    """What says where trips of the loop of an index change; None if no trip can stand for another."""
    found: dict[Shaping, None] = {}
    for number, by_sign in shaping:
        if name not in exprs.names_in(number):
            continue
        if exprs.names_in(number) & inner:
            return None
        expr = exprs.exprs[number]
        parts = [expr] if direction(expr, name) is not None else None if by_sign else monotone_parts(expr, name)
        if parts is None:
            return None
        found |= {(exprs.number_of(part), by_sign): None for part in parts}
    return list(found)


def _inputs(exprs: IndexedExprs, shaping: Iterable[Shaping], inner: set[str]) -> list[Shaping]:
    """What decides, outside of a chain, on all of its trips: what shapes them, or the outer indices that it names."""
    found: dict[Shaping, None] = {}
    for number, by_sign in shaping:
        names = exprs.names_in(number)
        if names & inner:
            found |= {(exprs.number_of(var(name)), False): None for name in sorted(names - inner)}
        else:
            found[number, by_sign] = None
    return list(found)
