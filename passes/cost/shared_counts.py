"""Counts of tiles, by part, so that mappings share what they have in common.

A part depends on few facts of a structure (`relevant`): a search that prices many structures over the same tiles counts
each part once for all structures that agree on these (`SharedCounts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from flatc.dialects.accelerator import Accelerator
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.key_geometry import KeyGeometry, key_geometry
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.product_tile_counts import ProductTileCounts
from flatc.passes.cost.tile_counts import Counts, Tally, TileKinds, head_kinds, together
from flatc.passes.cost.transfer_counts import TransferCounts
from flatc.passes.cost.vector_tile_counts import VectorTileCounts
from flatc.passes.kernels.problem import AttentionProblem

Part = Literal["logit", "attend", "vector", "transfers"]
PARTS: tuple[Part, ...] = ("logit", "attend", "vector", "transfers")

_WITHOUT_INFLUENCE: dict[Part, tuple[str, ...]] = {
    "logit": ("divide", "v_level", "attend_stationarity", "rescales_first", "add"),
    "attend": ("divide", "k_level", "v_level", "logit_stationarity", "rescales_first"),
    "vector": ("k_level", "v_level", "logit_stationarity", "attend_stationarity"),
    "transfers": (
        *("divide", "logit_stationarity", "attend_stationarity"),
        *("maximum", "exponential", "total", "rescales_first", "add", "in_strips"),
    ),
}
"""What of a structure a part of the counts does not depend on."""


@lru_cache(maxsize=1 << 12)
def relevant(part: Part, structure: Structure) -> Structure:
    """A structure without what a part of the counts does not depend on."""
    without = dict.fromkeys(_WITHOUT_INFLUENCE[part], "")
    if part == "logit" and structure.k_level != "query":
        without["k_level"] = ""
    if part == "logit" and not structure.held:
        without["total"] = ""
    if part == "vector" and structure.held:
        # What PEs do of the softmax is folded as attend is.
        del without["attend_stationarity"]
    return replace(structure, **without)


def _add_part(part: Part, tiles: TileKinds, tally: Tally) -> None:
    """Adds one part of the work of a column of mappings."""
    if part == "vector":
        VectorTileCounts(tiles, tally).add()
    elif part == "transfers":
        TransferCounts(tiles, tally).add()
    else:
        ProductTileCounts(tiles, tally, part).add()


def count_part(part: Part, tiles: TileKinds) -> Counts:
    """What one part of the work of a column of mappings adds up to."""
    tally = Tally()
    _add_part(part, tiles, tally)
    return tally.counts()


def count_all(
    problem: AttentionProblem,
    accelerator: Accelerator,
    structure: Structure,
    columns: Columns,
    geometry: KeyGeometry,
) -> Counts:
    """What a column of mappings adds up to."""
    tiles, tally = TileKinds(problem, accelerator, structure, columns, geometry), Tally()
    for part in PARTS:
        _add_part(part, tiles, tally)
    return tally.counts()


class SharedCounts:
    """Counts of one set of tiles under many structures: each part once for all structures that agree on it.

        shared = SharedCounts(problem, accelerator, tiles, folds)
        shared.counts(structure)                  # a row for each of `tiles`

    `tiles` needs batch, kv_head, group, query and key only; `folds(product, structure)` gives a product's folds, which
    depend on its stationarity, on whether scores are held, and on whether row sums are in the attend.
    """

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        tiles: Columns,
        folds: Callable[[str, Structure], tuple[Ints, Ints]],
    ):
        self.problem, self.accelerator, self.tiles, self.folds = problem, accelerator, tiles, folds
        self.geometry = key_geometry(problem, tiles.query, tiles.key, tiles.rescaled_every)
        self._heads = head_kinds(problem, tiles)
        self._parts: dict[tuple[Part, Structure], Counts] = {}

    def counts(self, structure: Structure, indices: Any = None) -> Counts:
        """The counts of every tile under `structure`, or of the tiles at `indices`."""
        parts = [self.part(part, structure) for part in PARTS]
        if indices is not None:
            parts = [part.take(indices) for part in parts]
        return together(parts)

    def part(self, part: Part, structure: Structure) -> Counts:
        """One part of the counts."""
        key = relevant(part, structure)
        found = self._parts.get((part, key))
        if found is None:
            tiles = self.tiles
            product = "attend" if part == "vector" and structure.held else part
            if product in ("logit", "attend"):
                rows, columns = self.folds(product, structure)
                tiles = replace(tiles, **{f"{product}_fold_rows": rows, f"{product}_fold_columns": columns})
            kinds = TileKinds(self.problem, self.accelerator, key, tiles, self.geometry, self._heads)
            found = self._parts[part, key] = count_part(part, kinds)
        return found
