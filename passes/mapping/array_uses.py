"""How the products of tiles may use the array: every way that is worth pricing, counted for all tiles at once.

    uses = ArrayUses(problem, accelerator, tiles, "latency")
    found = uses.of(uses.structures(family))      # pairs of a tile and a structure, with what they add up to
    found.bounds                                  # what no ranking of theirs can be below

A product of a tile may keep either operand or its output in the PEs (its stationarity). **Dominated uses** are left
out: with the same tiles, slots and stages, a use that takes no longer than another on any kind of tile, until the array
is free and until the result is there, and no more energy, makes no operation end later, since each starts when its
tokens, its slot and its resource are ready, in an order that is fixed. So the other one never ranks before it, neither
simulated nor by closed form.

NumPy takes as long for a call as for a few thousand numbers, so all pairs of the families that differ only in slots and
stages are counted together, and once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from functools import reduce
from itertools import product
from typing import Any, Literal, cast

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.closed_form import busy_cycles, total_work
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.primitive_costs import MatmulTile, Work, energy_pj, largest_folds
from flatc.passes.cost.shared_counts import PARTS, Part, SharedCounts, relevant
from flatc.passes.cost.tile_counts import Counts, together
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.map_space import Family
from flatc.passes.mapping.ranking import Objective, objectives


@frozen
class Uses:
    """Pairs: the tile in row `tile` under the structure with the number `which`; dominated ones are left out.

    Each of `bounds` has a row for each pair: numbers that the ranking of a mapping with these cannot be below,
    whatever its slots and stages: energy, bytes, and the time that each resource is busy. `parts` are what they add up
    to, and in which row of it a pair is.
    """

    structures: Sequence[Structure]
    which: Ints
    tile: Ints
    bounds: list[Any]
    parts: Sequence[tuple[Counts, Ints]]

    def counts(self, pairs: Ints) -> Counts:
        """What some pairs add up to."""
        return together(counts.take(rows[pairs]) for counts, rows in self.parts)


_ROUNDED_DOWN = 1 - 2**-40
"""Energies are summed in another order than that of the closed form, which they must not exceed."""


@frozen
class _Sums:
    """What bounds are made of: far fewer numbers than counts have. `energy_pj` is that of all but the transfers."""

    energy_pj: Any
    counts: Counts

    @classmethod
    def of(cls, accelerator: Accelerator, counts: Counts) -> _Sums:
        """What some counts add up to."""
        busy = {"": counts.array} if counts.product else {}
        rest = Counts(Work(), busy, vector_aside=counts.vector)
        return cls(
            sum(energy_pj(accelerator, counts.work).values()),
            replace(rest, tensor_bytes=counts.tensor_bytes, transfers=counts.transfers),
        )

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.energy_pj + other.energy_pj, self.counts + other.counts)

    def take(self, indices: Ints) -> _Sums:
        """The rows at `indices`."""
        energy = self.energy_pj
        return _Sums(energy[indices] if getattr(energy, "shape", ()) else energy, self.counts.take(indices))


class ArrayUses:
    """The uses of the array for one set of tiles."""

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, tiles: Columns, objective: Objective):
        self.problem, self.accelerator, self.tiles = problem, accelerator, tiles
        self.objective: Objective = objective
        self.shared = SharedCounts(problem, accelerator, tiles, lambda name, s: self._folds(name, s, tiles))
        self._uses: dict[Structure, Uses] = {}
        self._kept: dict[tuple[str, Structure], dict[str, Any]] = {}
        self._stacks: dict[tuple[Part, tuple[Structure, ...]], tuple[Counts, _Sums]] = {}

    def structures(self, family: Family) -> list[Structure]:
        """A family with every stationarity of each product."""
        uses = product(*(self._stationarities(name) for name in ("logit", "attend")))
        uses = [("output", "input")] if family.held else list(uses)
        whole = structure_of_family(family)
        return [replace(whole, logit_stationarity=logit, attend_stationarity=attend) for logit, attend in uses]

    def _stationarities(self, name: str) -> tuple[str, ...]:
        found = self.accelerator.array.stationarities
        return found if self.problem.has(name) else found[:1]

    # --- Pairs of tiles and structures --------------------------------------------------------------------

    def of(self, structures: Sequence[Structure]) -> Uses:
        """The pairs of some structures that differ in stationarities only."""
        found = self._uses.get(structures[0])
        if found is None:
            found = self._uses[structures[0]] = self._pairs(structures)
        return found

    def _pairs(self, structures: Sequence[Structure]) -> Uses:
        import numpy as np

        which, tile = np.nonzero(self._undominated(structures))
        parts: list[tuple[Counts, Ints]] = []
        sums: list[_Sums] = []
        for part in PARTS:
            keys = [relevant(part, structure) for structure in structures]
            different = tuple(dict.fromkeys(keys))
            place = np.array([different.index(key) for key in keys])
            counts, sum_ = self._stack(part, different)
            rows = place[which] * self.tiles.size + tile if len(different) > 1 else tile
            parts.append((counts, rows))
            sums.append(sum_.take(rows))
        return Uses(structures, which, tile, self._bounds(reduce(_Sums.__add__, sums)), parts)

    def _bounds(self, sums: _Sums) -> list[Any]:
        prices = TransferPrices(self.accelerator, self.problem.on_chip)
        energy = sums.energy_pj + sum(energy_pj(self.accelerator, total_work(prices, sums.counts)).values())
        return objectives(
            self.objective,
            latency=_largest(busy_cycles(prices, sums.counts).values()),
            energy=energy * _ROUNDED_DOWN,
            offchip=sum(prices.offchip_bytes(sums.counts.tensor_bytes).values()),
        )

    def _stack(self, part: Part, different: tuple[Structure, ...]) -> tuple[Counts, _Sums]:
        """One part of the counts of all tiles, under each of some structures in turn."""
        found = self._stacks.get((part, different))
        if found is None:
            parts = [self.shared.part(part, structure) for structure in different]
            counts = parts[0] if len(parts) == 1 else _stacked(parts, self.tiles.size)
            found = self._stacks[part, different] = counts, _Sums.of(self.accelerator, counts)
        return found

    # --- Uses that are dominated --------------------------------------------------------------------------

    def undominated(self, structure: Structure) -> Any:
        """Which tiles have no better use of the array than that of a structure; see the module docstring."""
        (kept,) = self._undominated([structure])
        return kept

    def _undominated(self, structures: Sequence[Structure]) -> list[Any]:
        """`undominated` of structures that differ in stationarities only."""
        logits, attends = (self._uses_of(name, structures[0]) for name in ("logit", "attend"))
        return [logits[one.logit_stationarity] & attends[one.attend_stationarity] for one in structures]

    def _uses_of(self, name: Literal["logit", "attend"], structure: Structure) -> dict[str, Any]:
        """For each stationarity of a product, which tiles have no better one."""
        import numpy as np

        if not self.problem.has(name) or structure.held:
            # Where PEs work on score tiles, there is one use of the array.
            return {getattr(structure, f"{name}_stationarity"): np.ones(self.tiles.size, dtype=bool)}
        key = name, relevant(name, replace(structure, **{f"{name}_stationarity": ""}))
        if key not in self._kept:
            stationarities = self._stationarities(name)
            structures = [replace(structure, **{f"{name}_stationarity": one}) for one in stationarities]
            parts = [self.shared.part(name, one) for one in structures]
            measures = [_measures(self.accelerator, part, self.tiles.size) for part in parts]
            self._kept[key] = dict(zip(stationarities, _undominated(measures), strict=True))
        return self._kept[key]

    # --- Folds --------------------------------------------------------------------------------------------

    def with_folds(self, columns: Columns, structure: Structure) -> Columns:
        """`columns` with the folds of a structure."""
        folds: dict[str, Any] = {}
        for name in ("logit", "attend"):
            if self.problem.has(name):
                rows, across = self._folds(name, structure, columns)
                folds |= {f"{name}_fold_rows": rows, f"{name}_fold_columns": across}
        return replace(columns, **folds)

    def _folds(self, name: str, structure: Structure, tiles: Columns) -> tuple[Any, Any]:
        """The largest folds of a product that the machine permits and the tile has pieces for.

        None where score tiles stay in registers, which both products and the softmax must lay out alike.
        """
        if structure.held:
            return tiles.batch * 0 + 1, tiles.batch * 0 + 1
        array = self.accelerator.array
        batch, rows = tiles.batch * tiles.kv_head, tiles.group * tiles.query
        if name == "logit":
            tile = MatmulTile(batch, rows, tiles.key, rows * 0 + self.problem.d_qk)
        else:
            width = self.problem.d_v + structure.sums_in_attend
            tile = MatmulTile(batch, rows, rows * 0 + width, tiles.key)
        return largest_folds(array, getattr(structure, f"{name}_stationarity"), tile)


# --- Helpers ------------------------------------------------------------------------------------------------


def structure_of_family(family: Family) -> Structure:
    """The structure of a family's mappings, without the stationarities."""
    place = family.placement
    return Structure(
        *(family.algorithm, family.divide, family.k_level, family.v_level, "", ""),
        maximum=place.maximum,
        exponential=place.exponential,
        total=place.total,
        add=place.add,
        in_strips=family.in_strips,
    )


def _stacked(parts: Sequence[Counts], size: int) -> Counts:
    """Counts of `size` rows each as one, row after row; without `tile_cycles`."""
    names = [field.name for field in fields(Counts) if field.name != "tile_cycles"]
    return Counts(**{name: _one_after_the_other([getattr(part, name) for part in parts], size) for name in names})


def _one_after_the_other(values: Sequence[Any], size: int) -> Any:
    import numpy as np

    first = values[0]
    if isinstance(first, Work):
        return Work(**_one_after_the_other([vars(value) for value in values], size))
    if isinstance(first, dict):
        names = cast("dict[str, Any]", first)
        return {name: _one_after_the_other([value[name] for value in values], size) for name in names}
    if isinstance(first, tuple):
        return tuple(_one_after_the_other(list(numbers), size) for numbers in zip(*values, strict=True))
    if not any(getattr(value, "shape", ()) for value in values) and len(set(values)) == 1:
        return first
    return np.concatenate([np.broadcast_to(value, (size,)) for value in values])


def _measures(accelerator: Accelerator, part: Counts, size: int) -> list[Any]:
    """What one use of the array is compared by: times of every kind of tile, and the energy of all.

    Where a mask hides everything there is no kind of tile, and the energy is one number for all mappings.
    """
    import numpy as np

    times = [time for cycles in part.tile_cycles for time in (cycles.busy, cycles.latency)]
    measures = [*times, sum(energy_pj(accelerator, part.work).values())]
    return [np.broadcast_to(measure, (size,)) for measure in measures]


def _undominated(measures: list[list[Any]]) -> list[Any]:
    """For each of several uses, where no other is as good in every measure; of equals the first stays."""
    import numpy as np

    kept: list[Any] = []
    for i, ours in enumerate(measures):
        mine = np.ones(len(ours[-1]), dtype=bool)
        for j, theirs in enumerate(measures):
            if i == j:
                continue
            no_worse = reduce(np.logical_and, [b <= a for a, b in zip(ours, theirs, strict=True)])
            if j > i:
                no_worse = no_worse & reduce(np.logical_or, [b < a for a, b in zip(ours, theirs, strict=True)])
            mine &= ~no_worse
        kept.append(mine)
    return kept


def _largest(arrays: Iterable[Any]) -> Any:
    """The largest of several numbers, row by row."""
    import numpy as np

    return reduce(np.maximum, arrays)
