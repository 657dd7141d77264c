"""What the tiles of a column of mappings add up to: the sums that `closed_form` turns into bytes, cycles and energy.

Three files count them: `product_tile_counts` the products, `vector_tile_counts` the vector unit's work, and
`transfer_counts` what goes off chip and back. They visit the same kinds of tiles (`TileKinds`), and each adds what it
counts to a `Tally`: of its own where many mappings share a part (`SharedCounts`), of all three for one mapping.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.passes.cost.arrays import NUMBER, occurs, smaller
from flatc.passes.cost.key_geometry import KeyGeometry
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.primitive_costs import ArrayCycles, Work
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class Counts:
    """What the tiles of a column of mappings add up to, whenever they happen; every number is an array.

    It depends on the sizes of tiles and on folds, not on slots and stages, so mappings that differ in these share it
    (`SharedCounts`). `product`, `skew` and `awaited_skew` are cycles of each product, and of what PEs do of the
    softmax: busy, skew of all its tiles, and skew that the vector unit or a store waits for. `largest` is what one tile
    of a product takes at most, until its result is there. `vector_between` is vector
    work between logit and attend of the same scores, `vector_aside` the rest, of which `vector_finish` is what finished
    outputs need. `rescaling` is the part of it that
    stands between an attend and the next one of the same rows, and what these wait for the first.
    `ends` are cycles at both ends of a kernel of whole rows, at the least: from the first `logit` until the scores of
    the first query tile are there; from the last query tile's first `attend` until its outputs are there, and how long
    after the array is free (`waves`); what finishes these (`finish`).
    `largest_row` is the share of what happens for a tile of query heads that its largest query tile has, at the most.
    `transfers` are loads and stores.
    """

    work: Work
    product: dict[str, Any] = field(default_factory=dict[str, Any])
    skew: dict[str, Any] = field(default_factory=dict[str, Any])
    awaited_skew: dict[str, Any] = field(default_factory=dict[str, Any])
    largest: dict[str, Any] = field(default_factory=dict[str, Any])
    vector_between: Any = 0
    vector_aside: Any = 0
    vector_finish: Any = 0
    rescaling: Any = 0
    largest_row: Any = 0
    ends: dict[str, Any] = field(default_factory=dict[str, Any])
    tensor_bytes: dict[str, Any] = field(default_factory=dict[str, Any])
    transfers: tuple[Any, Any] = (0, 0)
    tile_cycles: tuple[ArrayCycles, ...] = ()
    """Of each kind of tile of the products, what one operation takes; nothing for kinds that do not occur."""

    @property
    def array(self) -> Any:
        """Cycles that the array is busy."""
        return sum(self.product.values())

    @property
    def vector(self) -> Any:
        """Cycles that the vector unit is busy."""
        return self.vector_between + self.vector_aside

    def __add__(self, other: Counts) -> Counts:
        return together((self, other))

    def take(self, indices: Any) -> Counts:
        """The rows at `indices`, without `tile_cycles`."""

        def at(number: Any) -> Any:
            return number[indices] if getattr(number, "shape", ()) else number

        def each(numbers: dict[str, Any]) -> dict[str, Any]:
            return {name: at(number) for name, number in numbers.items()}

        return Counts(
            Work(**each(vars(self.work))),
            each(self.product),
            each(self.skew),
            each(self.awaited_skew),
            each(self.largest),
            at(self.vector_between),
            at(self.vector_aside),
            at(self.vector_finish),
            at(self.rescaling),
            at(self.largest_row),
            each(self.ends),
            each(self.tensor_bytes),
            (at(self.transfers[0]), at(self.transfers[1])),
        )


def together(parts: Iterable[Counts]) -> Counts:
    """What parts add up to."""
    first, *others = parts
    for part in others:
        first = Counts(
            Work(*map(_sum, vars(first.work).values(), vars(part.work).values())),
            _sums(first.product, part.product),
            _sums(first.skew, part.skew),
            _sums(first.awaited_skew, part.awaited_skew),
            _sums(first.largest, part.largest),
            _sum(first.vector_between, part.vector_between),
            _sum(first.vector_aside, part.vector_aside),
            _sum(first.vector_finish, part.vector_finish),
            _sum(first.rescaling, part.rescaling),
            _sum(first.largest_row, part.largest_row),
            _sums(first.ends, part.ends),
            _sums(first.tensor_bytes, part.tensor_bytes),
            (_sum(first.transfers[0], part.transfers[0]), _sum(first.transfers[1], part.transfers[1])),
            (*first.tile_cycles, *part.tile_cycles),
        )
    return first


def _sum(left: Any, right: Any) -> Any:
    """left + right; a part that has nothing to add takes no time."""
    if isinstance(left, NUMBER) and not left:
        return right
    if isinstance(right, NUMBER) and not right:
        return left
    return left + right


def _sums(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Sums by name; what only one of the two has is kept."""
    return left | {name: _sum(left.get(name, 0), number) for name, number in right.items()}


class Tally:
    """`Counts` while tiles are added to them, by one part or by all parts in turn: numbers start as nothing at all."""

    def __init__(self):
        self.macs: Any = 0
        self.energy_pj: Any = 0.0
        self.elements: Any = 0
        self.reads: Any = 0
        self.writes: Any = 0
        self.registers: Any = 0
        self.product: dict[str, Any] = {}
        self.skew: dict[str, Any] = {}
        self.awaited_skew: dict[str, Any] = {}
        self.largest: dict[str, Any] = {}
        self.between: Any = 0
        self.aside: Any = 0
        self.finish: Any = 0
        self.rescaling: Any = 0
        self.largest_row: Any = 0
        self.ends: dict[str, Any] = {}
        self.tensor_bytes: dict[str, Any] = {}
        self.transfers: tuple[Any, Any] = (0, 0)
        self.tile_cycles: list[ArrayCycles] = []

    def counts(self) -> Counts:
        """What was added."""
        work = Work(
            macs=self.macs,
            vector_energy_pj=self.energy_pj,
            vector_elements=self.elements,
            buffer_read_bytes=self.reads,
            buffer_write_bytes=self.writes,
            register_bytes=self.registers,
        )
        return Counts(
            work,
            self.product,
            self.skew,
            self.awaited_skew,
            self.largest,
            self.between,
            self.aside,
            self.finish,
            self.rescaling,
            self.largest_row,
            self.ends,
            self.tensor_bytes,
            self.transfers,
            tuple(self.tile_cycles),
        )


class TileKinds:
    """The kinds of tiles that a column of mappings has, and how many there are of each.

    `heads` may be given where it is known already.
    """

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        structure: Structure,
        columns: Columns,
        geometry: KeyGeometry,
        heads: list[HeadKind] | None = None,
    ):
        self.problem, self.accelerator = problem, accelerator
        self.structure, self.columns = structure, columns
        self.geometry = geometry
        self.heads = head_kinds(problem, columns) if heads is None else heads
        self.product_rows = structure.is_product_rows(problem)
        self.shares_keys = structure.interleave > 1 and not self.product_rows
        """Whether interleaved query tiles of an online softmax share tiles of K and V."""
        self.has_strips = structure.algorithm == "rows" or structure.in_strips
        """Whether the softmax works on several key tiles at a time."""
        self.passes = 2 if structure.algorithm == "streamed" else 1
        """How often scores are made."""
        self.whole_rows = structure.algorithm == "rows" and not self.product_rows
        """Whether the softmax works on all visible keys of a query tile at once."""

    def is_last(self, query: int) -> Any:
        """1 where the last query tile is of this kind, else 0."""
        ragged = self.geometry.q_counts[1]
        return ragged if query else 1 - ragged


HeadKind = tuple[Any, Any, Any]
"""(how many, batch x kv heads in the tile, query heads per kv head)"""


def head_kinds(problem: AttentionProblem, columns: Columns) -> list[HeadKind]:
    """Each kind of head tile that occurs."""
    p, c = problem, columns
    kinds: list[HeadKind] = []
    kv_heads, groups = kinds_along(p.kv_heads, c.kv_head), kinds_along(p.group, c.group)
    for batches, batch in kinds_along(p.batch, c.batch):
        for kv_tiles, kv_head in kv_heads:
            for group_tiles, group in groups:
                count = batches * kv_tiles * group_tiles
                if occurs(count):
                    kinds.append((count, batch * kv_head, group))
    return kinds


class LeastOf:
    """The least of some numbers, or columns of them, each of which counts where it is said to; 0 where none does."""

    def __init__(self):
        self._least: Any = _FAR

    def add(self, number: Any, counts: Any) -> None:
        """One more, where `counts` is 1."""
        self._least = smaller(self._least, number + _FAR * (1 - counts))

    @property
    def number(self) -> Any:
        """The least of all."""
        return self._least * (self._least < _FAR)


_FAR = 1 << 60
"""Beyond all cycles."""


def tiles_along(size: int, tile: Any) -> list[tuple[Any, Any]]:
    """(how many, extent) of the full tiles and of the ragged tile."""
    ragged = size % tile
    return [(size // tile, tile), ((ragged > 0) * 1, ragged)]


def kinds_along(size: int, tile: Any) -> list[tuple[Any, Any]]:
    """`tiles_along` that occur."""
    return [(count, extent) for count, extent in tiles_along(size, tile) if occurs(count)]
