"""What a chain of vector operations has to do, apart from its IR: tensors, steps, and which buffers they share.

    add + layernorm of x, h [2, 7, 64] with a weight:

    dims (2, 7, 64)
    operands  0: x (2, 7, 64)   1: h (2, 7, 64)   2: weight (1, 1, 64)
    steps     add (0, 1) -> 3   layernorm (3, 2) -> 4
    results   4

Values are numbered: operands in the order of their first use, then what each step makes. An operand has as many dims
as the result, 1 where it is repeated. Values between steps stay on chip, in buffers that are used again as soon as
nobody needs what they hold.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import cached_property

from flatc.dialects.frozen import frozen
from flatc.dialects.vector_kinds import VALUE_KINDS
from flatc.passes.cost.primitive_costs import VectorWork, vector_work

ROW_KINDS = ("layernorm", "rmsnorm", "rope", "rope_interleaved")
"""Operations that need whole rows: the last dim of such a chain is never cut."""


@frozen
class RopeTable:
    """What an operand holds that nobody passes in: cosines and sines from position `start` on."""

    start: int
    base: float


@frozen
class Operand:
    """A tensor off chip that the chain reads."""

    dims: tuple[int, ...]
    element: str
    element_bytes: int
    table: RopeTable | None = None

    def varies(self, dim: int, dims: tuple[int, ...]) -> bool:
        """Whether it is another for each index of a dim of the chain."""
        return self.dims[dim] == dims[dim] and dims[dim] > 1


@frozen
class Step:
    """One vector operation; it makes the next value, with elements of the given type.

    `columns` (first, how many) limits it to some columns; if the first is not 0 it goes on with the value of the step
    before.
    """

    kind: str
    reads: tuple[int, ...]
    element: str
    element_bytes: int
    number: float | None = None
    columns: tuple[int, int] | None = None

    @property
    def makes_value(self) -> bool:
        """Whether it makes a value rather than the remaining columns of the one before."""
        return self.columns is None or self.columns[0] == 0


@frozen
class WorkBuffer:
    """A buffer for values that steps make; `slots` of one that is `stored` are those of outputs."""

    element: str
    element_bytes: int
    stored: bool


@frozen
class VectorProblem:
    """One chain; see the module docstring. `results` are the values that leave the chip."""

    dims: tuple[int, ...]
    operands: tuple[Operand, ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]
    on_chip: frozenset[str] = frozenset()
    """Roles of its tensors that stay on chip between kernels."""

    @property
    def needs_rows(self) -> bool:
        """Whether rows must be whole on chip."""
        return any(step.kind in ROW_KINDS for step in self.steps)

    @property
    def elements(self) -> int:
        """Elements of a result."""
        return math.prod(self.dims)

    @cached_property
    def written(self) -> tuple[int, ...]:
        """The value that each step writes."""
        value, found = len(self.operands) - 1, list[int]()
        for step in self.steps:
            value += step.makes_value
            found.append(value)
        return tuple(found)

    def element_of(self, value: int) -> tuple[str, int]:
        """Element type of a value, and its bytes."""
        if value < len(self.operands):
            return self.operands[value].element, self.operands[value].element_bytes
        step = self.steps[self.written.index(value)]
        return step.element, step.element_bytes

    def dims_of(self, value: int) -> tuple[int, ...]:
        """Dims of a value; what steps make is never repeated."""
        return self.operands[value].dims if value < len(self.operands) else self.dims

    def work(self, step: Step) -> VectorWork:
        """Operations of the price table that a step takes."""
        converts = self.element_of(step.reads[0])[0] != step.element
        return vector_work(step.kind, reads=len(step.reads), writes=1, converts=converts)

    def uses(self, value: int) -> list[int]:
        """The steps that read a value, in order."""
        return [number for number, step in enumerate(self.steps) if value in step.reads]

    @cached_property
    def buffers(self) -> tuple[tuple[WorkBuffer, ...], dict[int, int]]:
        """The buffers for values that steps make, and which of them each value has.

        A result has one of its own. Any other value takes the first that holds its type and nothing needed any more;
        a step may write over what it reads.
        """
        buffers, place = list[WorkBuffer](), dict[int, int]()
        for number, value in enumerate(self.written):
            if value in place:
                continue
            element, size = self.element_of(value)
            needed = {place[v] for v in place if v in self.results or max(self.uses(v), default=-1) > number}
            free = [i for i, b in enumerate(buffers) if not b.stored and b.element == element and i not in needed]
            if value in self.results or not free:
                place[value] = len(buffers)
                buffers.append(WorkBuffer(element, size, value in self.results))
            else:
                place[value] = free[0]
        return tuple(buffers), place

    # --- What bounds ask for (`flatc.passes.cost.bounds.Problem`) -----------------------------------------

    def least_macs(self) -> int:
        """None: a chain has no product."""
        return 0

    def compulsory_bytes(self) -> dict[str, int]:
        """Each operand once, but for tables, which can be computed, and each result once."""
        found = {
            role: math.prod(operand.dims) * operand.element_bytes
            for role, operand in zip(self.operand_roles, self.operands, strict=True)
            if operand.table is None
        }
        return found | {
            role: self.elements * self.element_of(value)[1]
            for role, value in zip(self.result_roles, self.results, strict=True)
        }

    def least_vector_counts(self) -> dict[str, int]:
        """What the formulas of `value_work` take; changes of type are left out."""
        counts: Counter[str] = Counter()
        rows = math.prod(self.dims[:-1])
        for step in self.steps:
            if step.kind not in VALUE_KINDS:
                continue
            work = vector_work(step.kind, reads=len(step.reads), writes=1, converts=False)
            elements = rows * (step.columns[1] if step.columns else self.dims[-1])
            counts.update({name: elements * work.per_element.count(name) for name in set(work.per_element)})
            counts.update({name: rows * work.per_row.count(name) for name in set(work.per_row)})
        return dict(sorted(counts.items()))

    def longest_sum(self) -> int:
        """A row, for norms; two terms otherwise."""
        return self.dims[-1] if self.needs_rows else 2

    @property
    def operand_roles(self) -> tuple[str, ...]:
        """Names of the operands: `operand0`, `operand1`, ..."""
        return tuple(f"operand{i}" for i in range(len(self.operands)))

    @property
    def result_roles(self) -> tuple[str, ...]:
        """Names of the results: `result`, `result1`, ..."""
        return tuple(f"result{i or ''}" for i in range(len(self.results)))
