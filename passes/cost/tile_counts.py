"""What the tiles of a column of mappings add up to: the sums that `closed_form` turns into bytes, cycles and energy.

Three files count them: `product_tile_counts` the products, `vector_tile_counts` the vector unit's work, and
`transfer_counts` what goes off chip and back. They visit the same kinds of tiles (`TileKinds`).
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
    every = list(parts)
    work = [vars(part.work) for part in every]
    return Counts(
        Work(*(_sum(numbers[name] for numbers in work) for name in work[0])),
        _sums(part.product for part in every),
        _sums(part.skew for part in every),
        _sums(part.awaited_skew for part in every),
        _sums(part.largest for part in every),
        _sum(part.vector_between for part in every),
        _sum(part.vector_aside for part in every),
        _sum(part.vector_finish for part in every),
        _sum(part.rescaling for part in every),
        _sum(part.largest_row for part in every),
        _sums(part.ends for part in every),
        _sums(part.tensor_bytes for part in every),
        (_sum(part.transfers[0] for part in every), _sum(part.transfers[1] for part in every)),
        tuple(cycles for part in every for cycles in part.tile_cycles),
    )


def _sum(numbers: Iterable[Any]) -> Any:
    """The sum of numbers or columns; a part that has nothing to add takes no time."""
    found: Any = 0
    for number in numbers:
        if _is_nothing(found):
            found = number
        elif not _is_nothing(number):
            found = found + number
    return found


def _is_nothing(number: Any) -> bool:
    return isinstance(number, NUMBER) and not number


def _sums(numbers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Sums by name; what only one of them has is kept."""
    found: dict[str, Any] = {}
    for some in numbers:
        for name, number in some.items():
            found[name] = _sum((found[name], number)) if name in found else number
    return found


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
