"""Finding the best mapping of a kernel: enumerate, drop what does not fit, price what may be best, rank.

The space is `map_space`; the prices are the closed form's, computed for whole columns at once. The ranking is by
the objective, ties by the other objectives, by the number of tiles, by the footprint, and then by the order of
enumeration, so the same question always has the same answer. `Choice` says how many mappings were looked at. The best
of every family is kept, so that `tile-attention` can simulate a few that differ in kind before it decides.

**Pruning rule.** Energy and off-chip bytes of a mapping depend on its tiles, where K and V stay, its softmax and its
use of the array, not on slots and stages. Nor does the time that each resource is busy, below which no
latency lies. So each choice of these has a ranking that no choice of slots and stages beats. A mapping whose ranking so
reckoned comes behind the best that was priced in its family is not priced: it cannot win.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from typing import Any, Generic, Literal

from typing_extensions import TypeVar

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.closed_form import (
    Columns,
    SharedCounts,
    Structure,
    busy_cycles,
    evaluate,
    mapping_at,
    peak_buffer_bytes,
    total_work,
)
from flatc.passes.cost.primitive_costs import MatmulTile, ceil_divide, energy_pj, largest_folds
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.map_space import Family, columns, families, tiles

STRATEGIES = ("unfused", "flat-m", "flat-b", "flat-h", "flat-r", "flat", "online", "auto")
"""`unfused`: one kernel per operator. `flat-*`: FLAT's granularities; `flat`: the best of them. `online`: online
softmax. `auto`: the best of everything."""

Objective = Literal["latency", "energy", "edp", "offchip"]
OBJECTIVES: tuple[Objective, ...] = ("latency", "energy", "edp", "offchip")

_PARTS = {"flat": ("flat-m", "flat-b", "flat-h", "flat-r")}


class NothingFits(FlatcError):
    """No mapping of a strategy fits the machine's buffer."""


M = TypeVar("M", bound=KernelMapping, default=Mapping, covariant=True)


@dataclass(frozen=True)
class Choice(Generic[M]):
    """The chosen mapping, the concrete strategy it belongs to, and how much of the space was looked at.

    `covered` mappings were enumerated, `legal` of them fit the machine and were priced.
    """

    mapping: M
    strategy: str
    covered: int
    legal: int
    ranking: tuple[float, ...]


def check_strategy(strategy: str, objective: str) -> None:
    """Raises `FlatcError` for a name that is not known."""
    for what, word, known in (("strategy", strategy, STRATEGIES), ("objective", objective, OBJECTIVES)):
        if word not in known:
            raise FlatcError(
                f"unknown {what} '{word}'", help=did_you_mean(word, known) or f"choose one of {', '.join(known)}"
            )


def find_mapping(
    problem: AttentionProblem,
    accelerator: Accelerator,
    strategy: str = "auto",
    objective: Objective = "latency",
    *,
    kernel: str = "kernel",
) -> Choice:
    """The best mapping of a kernel under a strategy. Raises `FlatcError` if none fits the machine."""
    return find_mappings(problem, accelerator, strategy, objective, kernel=kernel)[0]


def find_mappings(
    problem: AttentionProblem,
    accelerator: Accelerator,
    strategy: str = "auto",
    objective: Objective = "latency",
    *,
    kernel: str = "kernel",
) -> list[Choice]:
    """The best mapping of every family that a strategy admits, best first, each once."""
    check_strategy(strategy, objective)
    _check_machine(problem, accelerator, kernel)
    best: list[Choice] = []
    covered = legal = 0
    least: list[int] = []
    for part in _PARTS.get(strategy, (strategy,)):
        space = _Space(problem, accelerator, part, objective)
        for family in families(problem, part):
            candidates = space.of(family)
            covered, legal = covered + space.size, legal + candidates.size
            least.append(candidates.least_bytes)
            if candidates.size:
                best.append(candidates.best())
    if not best:
        raise _nothing_fits(accelerator, strategy, kernel, min(least))
    distinct: dict[Mapping, Choice] = {}
    for choice in sorted(best, key=lambda choice: choice.ranking):
        distinct.setdefault(choice.mapping, replace(choice, covered=covered, legal=legal))
    return list(distinct.values())


def _check_machine(problem: AttentionProblem, accelerator: Accelerator, kernel: str) -> None:
    works = problem.has("softmax") or problem.has("mask") or problem.score_ops or problem.converts_output
    if not accelerator.vector.lanes and works:
        raise FlatcError(
            f"{kernel}: accelerator '{accelerator.name}' has no vector unit, and the kernel needs one",
            help="choose an accelerator with a vector unit",
        )


def _nothing_fits(accelerator: Accelerator, strategy: str, kernel: str, least_bytes: int) -> NothingFits:
    return NothingFits(
        f"{kernel}: no '{strategy}' mapping fits the {accelerator.buffer.capacity_bytes} bytes of "
        f"{accelerator.name}'s buffer; the smallest needs {least_bytes}",
        help="use strategy online or auto, whose footprint does not grow with length"
        if strategy not in ("online", "auto")
        else "give the accelerator a larger buffer",
    )


# --- Pricing a space ----------------------------------------------------------------------------------------


class _Space:
    """The map space of one strategy, with what its families share: tiles, and the counts of tiles."""

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, strategy: str, objective: Objective):
        self.problem, self.accelerator = problem, accelerator
        self.strategy = strategy
        self.objective: Objective = objective
        self.tiles = tiles(problem, accelerator, strategy)
        self.visited = _tiles_visited(problem, self.tiles)
        self.shared = SharedCounts(problem, accelerator, self.tiles, self._folds)
        self._lower: dict[Structure, list[Any]] = {}

    @property
    def size(self) -> int:
        """How many mappings each family has."""
        return self.tiles.size

    def of(self, family: Family) -> _Candidates:
        """The mappings of a family that fit the machine."""
        return _Candidates(self, family)

    def structures(self, family: Family) -> list[Structure]:
        """A family with every stationarity of each product."""
        stationarities = self.accelerator.array.stationarities
        logits, attends = (stationarities if self.problem.has(n) else stationarities[:1] for n in ("logit", "attend"))
        f = family
        return [Structure(f.algorithm, f.divide, f.k_level, f.v_level, *uses) for uses in product(logits, attends)]

    def lower_bounds(self, structure: Structure) -> list[Any]:
        """For each tile, numbers that the ranking of its mappings cannot be below; slots and stages do not matter."""
        found = self._lower.get(structure)
        if found is None:
            counts = self.shared.counts(structure)
            found = objectives(
                self.objective,
                latency=_largest(busy_cycles(self.accelerator, counts).values()),
                energy=sum(energy_pj(self.accelerator, total_work(counts)).values()),
                offchip=sum(counts.tensor_bytes.values()),
            )
            self._lower[structure] = found
        return found

    def _folds(self, name: str, stationarity: str) -> tuple[Any, Any]:
        """The largest folds of a product that the machine permits and the tile has pieces for."""

        array, tiles = self.accelerator.array, self.tiles
        batch, rows = tiles.batch * tiles.kv_head, tiles.group * tiles.query
        if name == "logit":
            tile = MatmulTile(batch, rows, tiles.key, rows * 0 + self.problem.d_qk)
        else:
            tile = MatmulTile(batch, rows, rows * 0 + self.problem.d_v, tiles.key)
        return largest_folds(array, stationarity, tile)

    def with_folds(self, columns: Columns, structure: Structure, rows: Any) -> Columns:
        """`columns`, which are the tiles at `rows`, with the folds of a structure."""
        folds: dict[str, Any] = {}
        for name in ("logit", "attend"):
            if self.problem.has(name):
                found = self._folds(name, getattr(structure, f"{name}_stationarity"))
                folds |= {f"{name}_fold_{of}": fold[rows] for of, fold in zip(("rows", "columns"), found, strict=True)}
        return replace(columns, **folds)


class _Candidates:
    """The mappings of one family that fit the machine; their use of the array is still to be chosen."""

    def __init__(self, space: _Space, family: Family):
        import numpy as np

        self.space, self.family = space, family
        self.structures = space.structures(family)
        column = columns(space.tiles, family)
        peak = peak_buffer_bytes(space.problem, self.structures[0], column, space.shared.geometry)
        self.least_bytes = int(peak.min())
        self.rows = np.flatnonzero(peak <= space.accelerator.buffer.capacity_bytes)
        self.columns, self.peak = column.take(self.rows), peak[self.rows]

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.rows)

    def best(self) -> Choice:
        """The best of them under the best use of the array.

        Only those are priced whose lower bounds do not rank behind the best price so far; the first to be priced is
        the one with the best bounds.
        """
        import numpy as np

        bounds = [[bound[self.rows] for bound in self.space.lower_bounds(s)] for s in self.structures]
        first = [first_row(bound) for bound in bounds]
        order = sorted(range(len(bounds)), key=lambda i: [float(bound[first[i]]) for bound in bounds[i]])
        best = self._priced(self.structures[order[0]], np.array([first[order[0]]]))
        for i in order:
            open_ = np.flatnonzero(_may_rank_before(bounds[i], best[0]))
            if len(open_):
                best = min(best, self._priced(self.structures[i], open_), key=lambda found: found[0])
        ranking, structure, index = best
        rows = np.array([index])
        column = self.space.with_folds(self.columns.take(rows), structure, self.rows[rows])
        return Choice(mapping_at(self.space.problem, structure, column, 0), self.space.strategy, 0, 0, ranking)

    def _priced(self, structure: Structure, indices: Any) -> tuple[tuple[float, ...], Structure, int]:
        """(ranking, structure, index) of the best of the candidates at `indices` under one structure."""
        space, rows = self.space, self.rows[indices]
        counts, peak = space.shared.counts(structure, rows), self.peak[indices]
        cost = evaluate(space.problem, space.accelerator, structure, self.columns.take(indices), counts, peak)
        order = objectives(space.objective, cost.latency_cycles, cost.energy_pj, cost.offchip_bytes)
        order += [space.visited[rows], peak]
        best = first_row(order)
        return tuple(float(key[best]) for key in order), structure, int(indices[best])


def objectives(objective: Objective, latency: Any, energy: Any, offchip: Any) -> list[Any]:
    """What is compared, in order: the objective, then the others."""
    keys = {"latency": latency, "energy": energy, "edp": latency * energy, "offchip": offchip}
    return [keys[objective], *(keys[other] for other in OBJECTIVES if other != objective)]


def first_row(keys: Sequence[Any]) -> int:
    """The index of the first of the rows by several keys in turn, the earliest of equals."""
    import numpy as np

    rows = np.flatnonzero(keys[0] == keys[0].min())
    for key in keys[1:]:
        at = key[rows]
        rows = rows[at == at.min()]
    return int(rows[0])


def _may_rank_before(bounds: list[Any], ranking: tuple[float, ...]) -> Any:
    """Which rows of lower bounds do not rank behind a ranking: no number of theirs lies below its bound, so neither
    does the ranking that they make."""
    before: Any = False
    equal: Any = True
    for bound, number in zip(bounds, ranking, strict=False):
        before = before | (equal & (bound < number))
        equal = equal & (bound == number)
    return before | equal


def _largest(arrays: Iterable[Any]) -> Any:
    """The largest of several numbers, row by row."""
    import numpy as np

    return reduce(np.maximum, arrays)


def _tiles_visited(problem: AttentionProblem, column: Columns) -> Any:
    """How many (query, key) tiles a mapping has without a mask: the fewer, the fewer transfers and operations."""
    heads = ceil_divide(problem.batch, column.batch) * ceil_divide(problem.kv_heads, column.kv_head)
    rows = heads * ceil_divide(problem.group, column.group) * ceil_divide(problem.queries, column.query)
    return rows * ceil_divide(problem.keys, column.key)
