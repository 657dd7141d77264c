"""Finding the best mapping of a kernel: enumerate, drop what does not fit, price the rest, rank.

The space is `map_space`; the prices are the closed form's, computed for whole columns at once. The ranking is by
the objective, ties by the other objectives, by the number of tiles, by the footprint, and then by the order of
enumeration, so the same question always has the same answer. `Choice` says how many mappings were looked at. The best
of every family is kept, so that `tile-attention` can simulate a few that differ in kind before it decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Generic, Literal

from typing_extensions import TypeVar

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError, did_you_mean
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.closed_form import ClosedForm, Columns, Structure, evaluate, mapping_at, peak_buffer_bytes
from flatc.passes.cost.key_geometry import key_geometry
from flatc.passes.cost.primitive_costs import (
    MatmulTile,
    ceil_divide,
    fold_limits,
    spatial_extents,
)
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.map_space import Family, columns, families

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
    for part in _PARTS.get(strategy, (strategy,)):
        for family in families(problem, part):
            found, seen, fitting = _best_of_family(problem, accelerator, part, family, objective)
            covered, legal = covered + seen, legal + fitting
            if found is not None:
                best.append(found)
    if not best:
        raise _nothing_fits(problem, accelerator, strategy, kernel)
    distinct: dict[Mapping, Choice] = {}
    for choice in sorted(best, key=lambda choice: choice.ranking):
        distinct.setdefault(choice.mapping, replace(choice, covered=covered, legal=legal))
    return list(distinct.values())


def _check_machine(problem: AttentionProblem, accelerator: Accelerator, kernel: str) -> None:
    if not accelerator.vector.lanes and (problem.has("softmax") or problem.has("mask") or problem.converts_output):
        raise FlatcError(
            f"{kernel}: accelerator '{accelerator.name}' has no vector unit, and the kernel needs one",
            help="choose an accelerator with a vector unit",
        )


def _nothing_fits(problem: AttentionProblem, accelerator: Accelerator, strategy: str, kernel: str) -> NothingFits:
    capacity = accelerator.buffer.capacity_bytes
    least = _least_footprint(problem, accelerator, strategy)
    return NothingFits(
        f"{kernel}: no '{strategy}' mapping fits the {capacity} bytes of {accelerator.name}'s buffer; "
        f"the smallest needs {least}",
        help="use strategy online or auto, whose footprint does not grow with length"
        if strategy not in ("online", "auto")
        else "give the accelerator a larger buffer",
    )


def _least_footprint(problem: AttentionProblem, accelerator: Accelerator, strategy: str) -> int:
    least: list[int] = []
    for part in _PARTS.get(strategy, (strategy,)):
        for family in families(problem, part):
            column = columns(problem, accelerator, part, family)
            least.append(int(_footprints(problem, family, column).min()))
    return min(least)


def _structure(family: Family, logit: str = "output", attend: str = "output") -> Structure:
    return Structure(family.algorithm, family.divide, family.k_level, family.v_level, logit, attend)


def _footprints(problem: AttentionProblem, family: Family, column: Columns) -> Any:
    geometry = key_geometry(problem, column.query, column.key)
    return peak_buffer_bytes(problem, _structure(family), column, geometry)


def _best_of_family(
    problem: AttentionProblem, accelerator: Accelerator, strategy: str, family: Family, objective: Objective
) -> tuple[Choice | None, int, int]:
    """(best mapping, mappings enumerated, mappings that fit) of one family."""
    import numpy as np

    column = columns(problem, accelerator, strategy, family)
    covered = column.size
    fits = _footprints(problem, family, column) <= accelerator.buffer.capacity_bytes
    column = column.take(np.flatnonzero(fits))
    if not column.size:
        return None, covered, 0
    best: Choice | None = None
    for structure, part in _with_array_use(problem, accelerator, family, column):
        cost = evaluate(problem, accelerator, structure, part)
        index, ranking = _rank(cost, _tiles_visited(problem, part), objective)
        if best is None or ranking < best.ranking:
            mapping = mapping_at(problem, structure, part, index)
            best = Choice(mapping, strategy, 0, 0, ranking)
    return best, covered, column.size


def _tiles_visited(problem: AttentionProblem, column: Columns) -> Any:
    """How many (query, key) tiles a mapping has without a mask: the fewer, the fewer transfers and operations."""
    heads = ceil_divide(problem.batch, column.batch) * ceil_divide(problem.kv_heads, column.kv_head)
    rows = heads * ceil_divide(problem.group, column.group) * ceil_divide(problem.queries, column.query)
    return rows * ceil_divide(problem.keys, column.key)


def _rank(cost: ClosedForm, tiles: Any, objective: Objective) -> tuple[int, tuple[float, ...]]:
    """Index and ranking of the best of a column: the objectives in order, then fewer tiles, then less on chip."""
    import numpy as np

    latency, energy = np.asarray(cost.latency_cycles), np.asarray(cost.energy_pj)
    keys = {"latency": latency, "energy": energy, "edp": latency * energy, "offchip": np.asarray(cost.offchip_bytes)}
    order = [keys[objective], *(keys[other] for other in OBJECTIVES if other != objective)]
    order += [np.asarray(tiles), np.asarray(cost.peak_buffer_bytes)]
    index = int(np.lexsort(order[::-1])[0])
    return index, tuple(float(key[index]) for key in order)


def _with_array_use(
    problem: AttentionProblem, accelerator: Accelerator, family: Family, column: Columns
) -> Iterator[tuple[Structure, Columns]]:
    """A column with every use of the array: any stationarity for each product, its fold as large as it can be."""
    stationarities = accelerator.array.stationarities
    logits = stationarities if problem.has("logit") else stationarities[:1]
    attends = stationarities if problem.has("attend") else stationarities[:1]
    for logit, attend in product(logits, attends):
        folds = _folds(problem, accelerator, column, "logit", logit) | _folds(
            problem, accelerator, column, "attend", attend
        )
        yield _structure(family, logit, attend), replace(column, **folds)


def _folds(
    problem: AttentionProblem, accelerator: Accelerator, column: Columns, name: str, stationarity: str
) -> dict[str, Any]:
    """The largest folds of one product that the machine permits and the tile has pieces for."""
    import numpy as np

    if not problem.has(name):
        return {}
    array = accelerator.array
    batch, rows = column.batch * column.kv_head, column.group * column.query
    if name == "logit":
        tile = MatmulTile(batch, rows, column.key, rows * 0 + problem.d_qk)
    else:
        tile = MatmulTile(batch, rows, rows * 0 + problem.d_v, column.key)
    p, q, _ = spatial_extents(stationarity, tile)
    most_rows, most_columns = fold_limits(array, stationarity, p, q)
    pieces = batch * ceil_divide(p, array.rows) * ceil_divide(q, array.columns)
    fold_columns = np.minimum(most_columns, pieces)
    fold_rows = np.minimum(most_rows, ceil_divide(pieces, fold_columns))
    return {f"{name}_fold_rows": fold_rows, f"{name}_fold_columns": fold_columns}
