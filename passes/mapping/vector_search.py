"""Mappings of chains of vector operations: what is legal, and which is best.

The space: one dim is cut, dims inside of it are whole in a tile, dims outside of it are taken one at a time, in at most
`MOST_TILES` tiles; loops in every order that makes a difference; and `OVERLAPS`. The closed form prices all of it at
once.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.frozen import frozen
from flatc.dialects.vector_mapping import VectorMapping, VectorStages
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.cost.vector_form import ChainColumns, ChainForm
from flatc.passes.kernels.vector_problem import VectorProblem
from flatc.passes.mapping.map_space import tile_sizes
from flatc.passes.mapping.search import OBJECTIVES, Choice, NothingFits, Objective


def check_chain(problem: VectorProblem, mapping: VectorMapping, accelerator: Accelerator, kernel: str) -> None:
    """Raises `FlatcError` with the first rule that a mapping breaks, apart from memory and timing."""
    _check_machine(accelerator, kernel)
    dims, tiles = problem.dims, mapping.tiles
    if len(tiles) != len(dims):
        raise FlatcError(
            f"{kernel}: the mapping has {len(tiles)} tiles, and the result {len(dims)} dims",
            help=f"give one tile for each of {' x '.join(map(str, dims))}",
        )
    for dim, (tile, size) in enumerate(zip(tiles, dims, strict=True)):
        if tile > size:
            raise FlatcError(f"{kernel}: tile {dim} is {tile}, and the dim has {size}", help=f"at most {size}")
    if problem.needs_rows and tiles[-1] != dims[-1]:
        raise FlatcError(
            f"{kernel}: a norm or rope needs whole rows, and the last tile is {tiles[-1]} of {dims[-1]}",
            help=f"make the last tile {dims[-1]}",
        )
    stages = mapping.stages
    if not stages.load <= stages.compute <= stages.store:
        raise FlatcError(
            f"{kernel}: stages must not decrease from load to compute to store, got {stages.load}, {stages.compute} "
            f"and {stages.store}"
        )


def _check_machine(accelerator: Accelerator, kernel: str) -> None:
    if not accelerator.vector.lanes:
        raise FlatcError(
            f"{kernel}: accelerator '{accelerator.name}' has no vector unit, and the kernel needs one",
            help="choose an accelerator with a vector unit",
        )


# --- The space ----------------------------------------------------------------------------------------------


@frozen
class Overlap:
    """Slots of inputs and outputs, and how far the store lags."""

    slots: int
    lag: int


OVERLAPS = (Overlap(2, 1), Overlap(3, 2), Overlap(1, 0))
"""Double buffering; one tile more under way, for tensors that some trips load and others do not; and one tile after the
other, for tiles that only fit once."""

MOST_TILES = 1024
"""What does not overlap is the way in of the first tile and the way out of the last: with so many tiles, less than a
thousandth of all transfers. Mappings of more tiles are left out, unless the buffer holds no larger ones."""


def _cuts(problem: VectorProblem, lanes: int) -> tuple[Ints, ...]:
    """A tile of each dim, for every way to cut one of them."""
    import numpy as np

    dims = problem.dims
    tiles = {dims}
    for cut in _loop_dims(problem):
        tiles |= {(*[1] * cut, size, *dims[cut + 1 :]) for size in tile_sizes(dims[cut], lanes)}
    return tuple(np.array(sorted(tiles), dtype=np.int64).T)


def _loop_dims(problem: VectorProblem) -> list[int]:
    """The dims that may be cut."""
    count = len(problem.dims) - problem.needs_rows
    return [dim for dim in range(count) if problem.dims[dim] > 1]


def _orders(problem: VectorProblem) -> Iterator[tuple[int, ...]]:
    """Orders of the loops: one where no tensor is repeated, for then all are moved alike in any order."""
    dims, free = range(len(problem.dims)), _loop_dims(problem)
    repeats = any(not operand.varies(dim, problem.dims) for operand in problem.operands for dim in free)
    for order in permutations(free) if repeats else [tuple(free)]:
        places = iter(order)
        yield tuple(next(places) if dim in free else dim for dim in dims)


def _columns(problem: VectorProblem, order: tuple[int, ...], lanes: int) -> ChainColumns:
    """Every mapping of the space with this order, one overlap after the other."""
    import numpy as np

    tiles = _cuts(problem, lanes)
    count = tiles[0].size
    slots, lag = (np.repeat([getattr(overlap, name) for overlap in OVERLAPS], count) for name in ("slots", "lag"))
    return ChainColumns(order, tuple(np.tile(tile, len(OVERLAPS)) for tile in tiles), slots, slots, lag)


# --- The search ---------------------------------------------------------------------------------------------


def find_chain_mappings(
    problem: VectorProblem, accelerator: Accelerator, strategy: str, objective: Objective, kernel: str
) -> list[Choice[VectorMapping]]:
    """The best mapping of each loop order and overlap, best first. Raises `FlatcError` if none fits the machine."""
    import numpy as np

    _check_machine(accelerator, kernel)
    capacity = accelerator.buffer.capacity_bytes
    found: list[tuple[tuple[float, ...], VectorMapping]] = []
    covered = legal = 0
    least: list[int] = []
    for order in _orders(problem):
        columns = _columns(problem, order, accelerator.vector.lanes)
        form = ChainForm(problem, accelerator, columns)
        peak = np.asarray(form.peak_bytes())
        fits = peak <= capacity
        covered, legal = covered + peak.size, legal + int(fits.sum())
        least.append(int(peak.min()))
        if fits.any():
            fits &= form.all_trips <= _most_tiles(columns, form.all_trips, fits)
            found += _best(problem, accelerator, _take(columns, np.flatnonzero(fits)), objective)
    if not found:
        raise NothingFits(
            f"{kernel}: no mapping fits the {capacity} bytes of {accelerator.name}'s buffer; the smallest needs "
            f"{min(least)}",
            help="give the accelerator a larger buffer",
        )
    found.sort(key=lambda pair: pair[0])
    return [Choice(mapping, strategy, covered, legal, ranking) for ranking, mapping in found]


def _most_tiles(columns: ChainColumns, trips: Ints, fits: Any) -> Ints:
    """`MOST_TILES`, or the fewest that fit with the same overlap."""
    import numpy as np

    most = np.full_like(trips, MOST_TILES)
    for overlap in OVERLAPS:
        same = columns.store_lag == overlap.lag
        most[same] = max(MOST_TILES, int(trips[same & fits].min(initial=trips.max())))
    return most


def _take(columns: ChainColumns, rows: Ints) -> ChainColumns:
    return ChainColumns(
        columns.order,
        tuple(tile[rows] for tile in columns.tiles),
        columns.input_slots[rows],
        columns.output_slots[rows],
        columns.store_lag[rows],
    )


def _mapping_at(columns: ChainColumns, index: int) -> VectorMapping:
    tiles = tuple(int(tile[index]) for tile in columns.tiles)
    slots = int(columns.input_slots[index]), int(columns.output_slots[index])
    return VectorMapping(tiles, columns.order, *slots, VectorStages(0, 0, int(columns.store_lag[index])))


def _best(
    problem: VectorProblem, accelerator: Accelerator, columns: ChainColumns, objective: Objective
) -> Iterator[tuple[tuple[float, ...], VectorMapping]]:
    """The best mapping of each overlap, with its ranking."""
    import numpy as np

    form = ChainForm(problem, accelerator, columns)
    keys = _keys(form.closed_form(), form.all_trips, objective)
    order = np.lexsort(keys[::-1])
    for lag in dict.fromkeys(columns.store_lag.tolist()):
        index = int(order[np.flatnonzero(columns.store_lag[order] == lag)[0]])
        yield tuple(float(key[index]) for key in keys), _mapping_at(columns, index)


def _keys(cost: ClosedForm, trips: Any, objective: Objective) -> list[Any]:
    """What mappings are ranked by: the objectives in order, then fewer tiles, then less on chip."""
    import numpy as np

    latency, energy = np.asarray(cost.latency_cycles), np.asarray(cost.energy_pj)
    keys = {"latency": latency, "energy": energy, "edp": latency * energy, "offchip": np.asarray(cost.offchip_bytes)}
    order = [keys[objective], *(keys[other] for other in OBJECTIVES if other != objective)]
    return [*order, np.asarray(trips), np.asarray(cost.peak_buffer_bytes)]
