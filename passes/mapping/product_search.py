"""Finding the best mapping of a matrix product: which mappings there are, and which of them are best.

The space is finite and stated:

    tiles        the tiles of m or of n from a fine set (`map_space.tile_sizes`), those of the other and of k from a
                 coarse one: array sides times powers of two, and balanced parts
    loops        m outermost or n outermost; x stays for the loop over n (m outermost), or w for the loop over m (n
                 outermost), or neither
    slots        two or three of what is streamed, one or two of a strip that stays and of the sums, results for stores
                 that are one or two turns behind; or one everywhere
    array        every stationarity, folds as large as they can be

Prices are the closed form's. Most mappings are never priced in full: `quick_bounds` says what they cost at the least,
for whole columns at once, and those that cannot reach the best price found so far are left out. The answer is the
same as if all had been priced.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import product

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.product_mapping import ProductMapping
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.primitive_costs import MatmulTile, ceil_divide, largest_folds
from flatc.passes.cost.product_costs import (
    ProductColumns,
    ProductCounts,
    ProductStructure,
    evaluate,
    even_latency,
    mapping_at,
    peak_buffer_bytes,
    quick_bounds,
)
from flatc.passes.kernels.product_problem import ProductProblem
from flatc.passes.mapping.map_space import tile_sizes
from flatc.passes.mapping.product_legality import check_vector_unit
from flatc.passes.mapping.ranking import Objective, first_row, objectives
from flatc.passes.mapping.search import Choice, NothingFits

MOST_SIMULATED = 2
"""How many of the best by closed form are handed on to be simulated, beside two that are best by estimate."""
FIRST_LOOK = 64
"""How many mappings are priced in full before bounds decide about the rest."""

LOOPS = (("m", "m", "k"), ("n", "k", "n"), ("m", "k", "k"), ("n", "k", "k"))
"""(outermost loop, level of x, level of w): x stays, w stays, neither."""


# --- The space ----------------------------------------------------------------------------------------------


MOST_AHEAD = 2


def slot_choices(problem: ProductProblem, structure: ProductStructure) -> list[tuple[int, int, int, int, int]]:
    """(slots of x, of w, of the sums, of the result, stage of the store)."""
    found = [(1, 1, 1, 1, 0)]
    for streamed, store in ((2, 1), (2, MOST_AHEAD), (3, MOST_AHEAD)):
        for kept, sums in product((1, 2) if structure.keeps else (streamed,), (1, 2)):
            x, w = (kept if level != "k" else streamed for level in (structure.x_level, structure.w_level))
            found.append((x, w, sums if problem.own_result else store + 1, store + 1, store))
    return list(dict.fromkeys(found))


def coarse_tiles(size: int, side: int) -> list[int]:
    """The coarse set of tiles of a dimension, given a side of the array."""
    found = {side << power for power in range(size.bit_length()) if side << power <= size}
    found |= {-(-size // parts) for parts in (1, 2, 3, 4, 6)}
    return sorted(found)


def tile_columns(problem: ProductProblem, accelerator: Accelerator) -> tuple[Ints, Ints, Ints]:
    """Every combination of tiles of m, n and k, each once."""
    import numpy as np

    p, rows, cols = problem, accelerator.array.rows, accelerator.array.columns
    ks = coarse_tiles(p.k, rows)
    pairs = [(tile_sizes(p.m, rows), coarse_tiles(p.n, cols)), (coarse_tiles(p.m, rows), tile_sizes(p.n, cols))]
    pairs_found = sorted({pair for ms, ns in pairs for pair in product(ms, ns)})
    which, k = (grid.reshape(-1) for grid in np.meshgrid(np.arange(len(pairs_found)), ks, indexing="ij"))
    m, n = np.array(pairs_found, dtype=np.int64)[which].T
    return m, n, k.astype(np.int64)


@frozen
class _Group:
    """The mappings of one structure whose smallest version fits: their tiles, their bounds, estimates of their latency.

    Of `covered` mappings, `legal` fit the machine, slots counted.
    """

    structure: ProductStructure
    columns: ProductColumns
    bounds: Ints
    covered: int
    legal: int
    estimates: Ints


def _groups(problem: ProductProblem, accelerator: Accelerator, objective: Objective) -> Iterator[_Group]:
    import numpy as np

    m, n, k = tile_columns(problem, accelerator)
    one, zero = np.ones_like(m), np.zeros_like(m)
    tiles = ProductColumns(m, n, k, one, one, one, one, one, one, zero, zero, zero)
    capacity = accelerator.buffer.capacity_bytes
    enumerated = len(m)
    fits = [peak_buffer_bytes(problem, ProductStructure(*loops, ""), tiles) <= capacity for loops in LOOPS]
    tiles = tiles.take(np.flatnonzero(np.any(fits, axis=0)))
    for stationarity in accelerator.array.stationarities:
        folds = largest_folds(accelerator.array, stationarity, MatmulTile(1, tiles.m, tiles.n, tiles.k))
        columns = replace(tiles, fold_rows=folds[0], fold_columns=folds[1])
        counts = ProductCounts(problem, accelerator, stationarity, columns)
        for loops in LOOPS:
            structure = ProductStructure(*loops, stationarity)
            latency, energy, moved = quick_bounds(counts, structure, MOST_AHEAD)
            bounds = objectives(objective, latency, energy, moved)[0]
            fitting = np.flatnonzero(peak_buffer_bytes(problem, structure, columns) <= capacity)
            slots = slot_choices(problem, structure)
            legal = sum(_fitting(problem, structure, columns, choice, capacity) for choice in slots)
            bounds, covered = bounds[fitting].astype(np.float64), enumerated * len(slots)
            estimates = np.maximum(latency, even_latency(counts, structure))[fitting]
            yield _Group(structure, columns.take(fitting), bounds, covered, legal, estimates)


def _fitting(
    problem: ProductProblem,
    structure: ProductStructure,
    columns: ProductColumns,
    slots: tuple[int, int, int, int, int],
    capacity: int,
) -> int:
    """How many mappings fit with these slots."""
    import numpy as np

    x, w, sums, y = (columns.m * 0 + number for number in slots[:4])
    with_slots = replace(columns, x_slots=x, w_slots=w, sums_slots=sums, y_slots=y)
    return int(np.count_nonzero(peak_buffer_bytes(problem, structure, with_slots) <= capacity))


# --- The search ---------------------------------------------------------------------------------------------


def find_products(
    problem: ProductProblem, accelerator: Accelerator, objective: Objective = "latency", *, kernel: str = "kernel"
) -> list[Choice[ProductMapping]]:
    """The best mapping of each structure that is near the best, best first. Raises `FlatcError` if none fits."""
    import numpy as np

    check_vector_unit(problem, accelerator, kernel)
    groups = list(_groups(problem, accelerator, objective))
    bounds = np.concatenate([group.bounds for group in groups])
    if not len(bounds):
        raise _nothing_fits(problem, accelerator, kernel)
    first = min(FIRST_LOOK, len(bounds)) - 1
    limit = float(np.partition(bounds, first)[first])
    found = _priced(problem, accelerator, objective, groups, -np.inf, limit)
    if found[0].ranking[0] > limit:
        found += _priced(problem, accelerator, objective, groups, limit, found[0].ranking[0])
        found.sort(key=_ranking)
    found = found[:MOST_SIMULATED]
    if objective == "latency":
        found += _even(problem, accelerator, groups)
        found.sort(key=_ranking)
    covered, legal = (sum(numbers) for numbers in zip(*((group.covered, group.legal) for group in groups), strict=True))
    distinct = {choice.mapping: replace(choice, covered=covered, legal=legal) for choice in found}
    return list(distinct.values())


def _even(problem: ProductProblem, accelerator: Accelerator, groups: Sequence[_Group]) -> list[Choice[ProductMapping]]:
    """Of the two structures that promise most, the mapping with the fewest turns that is estimated to be fast."""
    promising = sorted((group for group in groups if len(group.bounds)), key=lambda group: float(group.estimates.min()))
    return [_best(problem, accelerator, "latency", group, _promising_row(problem, group)) for group in promising[:2]]


def _promising_row(problem: ProductProblem, group: _Group) -> Ints:
    """The row with the fewest turns among those whose estimates are about the least."""
    import numpy as np

    near = np.flatnonzero(group.estimates <= group.estimates.min() * 1.001)
    turns = _turns(problem, group.columns)[near]
    return near[turns.argmin() : turns.argmin() + 1]


def _ranking(choice: Choice[ProductMapping]) -> tuple[float, ...]:
    return choice.ranking


def _priced(
    problem: ProductProblem,
    accelerator: Accelerator,
    objective: Objective,
    groups: Sequence[_Group],
    above: float,
    limit: float,
) -> list[Choice[ProductMapping]]:
    """The best mapping of every structure among those with bounds above `above` and up to `limit`, best first."""
    import numpy as np

    rows = [np.flatnonzero((group.bounds > above) & (group.bounds <= limit)) for group in groups]
    pairs = [(group, chosen) for group, chosen in zip(groups, rows, strict=True) if len(chosen)]
    return sorted((_best(problem, accelerator, objective, group, chosen) for group, chosen in pairs), key=_ranking)


def _best(
    problem: ProductProblem, accelerator: Accelerator, objective: Objective, group: _Group, rows: Ints
) -> Choice[ProductMapping]:
    """The best mapping of some rows of a group."""
    import numpy as np

    columns = _with_slots(problem, group, rows)
    fits = peak_buffer_bytes(problem, group.structure, columns) <= accelerator.buffer.capacity_bytes
    columns = columns.take(np.flatnonzero(fits))
    cost = evaluate(problem, accelerator, group.structure, columns)
    order = objectives(objective, cost.latency_cycles, cost.energy_pj, cost.offchip_bytes)
    order += [_turns(problem, columns), cost.peak_buffer_bytes]
    index = first_row(order)
    return Choice(mapping_at(group.structure, columns, index), "auto", 0, 0, tuple(float(key[index]) for key in order))


def _with_slots(problem: ProductProblem, group: _Group, rows: Ints) -> ProductColumns:
    """The mappings in some rows of a group, with every choice of slots."""
    import numpy as np

    choices = np.array(slot_choices(problem, group.structure), dtype=np.int64)
    row, choice = (grid.reshape(-1) for grid in np.meshgrid(rows, np.arange(len(choices)), indexing="ij"))
    x, w, sums, y, store = choices[choice].T
    return replace(group.columns.take(row), x_slots=x, w_slots=w, sums_slots=sums, y_slots=y, store=store)


def _turns(problem: ProductProblem, columns: ProductColumns) -> Ints:
    """How many products: the fewer, the fewer transfers and operations."""
    return ceil_divide(problem.m, columns.m) * ceil_divide(problem.n, columns.n) * ceil_divide(problem.k, columns.k)


def _nothing_fits(problem: ProductProblem, accelerator: Accelerator, kernel: str) -> NothingFits:
    import numpy as np

    m, n, k = tile_columns(problem, accelerator)
    one = np.ones_like(m)
    tiles = ProductColumns(m, n, k, *[one] * (len(fields(ProductColumns)) - 3))
    least = min(int(peak_buffer_bytes(problem, ProductStructure(*loops, ""), tiles).min()) for loops in LOOPS)
    return NothingFits(
        f"{kernel}: no mapping fits the {accelerator.buffer.capacity_bytes} bytes of {accelerator.name}'s buffer; "
        f"the smallest needs {least}",
        help="give the accelerator a larger buffer",
    )
