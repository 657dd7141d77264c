"""What one tile costs: a transfer, an array operation, a vector operation.

These small functions are the only place where work becomes cycles, bytes and energy counts; the simulator
and the closed form both call them. They take integers or NumPy arrays of integers (for search) and are
exact for both.

    transfer   bytes / bandwidth + overhead cycles of the channel, + latency until the data are there
    copy       of a tensor that stays on chip: bytes / bandwidth of the buffer's ports + overhead of the channel
    array      passes x temporal extent, + skew and overhead (see `array_cycles`)
    vector     ceil(elements / lanes) x price, for every operation of the kind (see `VECTOR_WORK`)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from flatc.dialects.accelerator import Accelerator, Array, VectorEnergies, VectorPrices, VectorUnit
from flatc.dialects.frozen import frozen
from flatc.passes.cost.value_work import VALUE_WORK, VectorWork, value_work

Count = Any
"""An integer, or a NumPy array of integers."""


def ceil_divide(a: Count, b: Count) -> Count:
    """a / b rounded up, for integers and arrays."""
    return -(-a // b)


# --- The array ----------------------------------------------------------------------------------------


@frozen
class MatmulTile:
    """`batch` products [m, k] x [k, n], the tile of one array operation."""

    batch: Count
    m: Count
    n: Count
    k: Count


@frozen
class ScoreTile:
    """`batch` tiles of scores, of so many query rows and keys each."""

    batch: Count
    queries: Count
    keys: Count


@frozen
class ArrayCycles:
    """`busy` cycles until the array can take the next operation, `latency` until the result is there."""

    busy: Count
    latency: Count


def spatial_extents(stationarity: str, tile: MatmulTile) -> tuple[Count, Count, Count]:
    """(along the rows, along the columns, in time) of a product whose `stationarity` operand stays in the PEs.

    Output stationary: PE (i, j) holds c[i, j] and k passes in time. Weight stationary: it holds b[i, j], the
    contraction runs down the rows and m passes in time. Input stationary: it holds a[j, i], and n passes.
    """
    if stationarity == "output":
        return tile.m, tile.n, tile.k
    if stationarity == "weight":
        return tile.k, tile.n, tile.m
    return tile.k, tile.m, tile.n


def array_cycles(array: Array, stationarity: str, fold: tuple[Count, Count], tile: MatmulTile) -> ArrayCycles:
    """Cycles of one array operation.

    A piece is what fits the array at once; a product has batch x ceil(p / rows) x ceil(q / columns) of them, for
    spatial extents p, q. `fold` pieces share a pass side by side. Every pass takes the temporal extent t. The
    skew of a pass, rows used + columns used - 2 cycles between its first input and its last result, is paid by every
    pass where the accelerator says `exposed`, only by the result of the last pass where it says `overlapped`
    (the next pass enters behind the wavefront), and not at all where it says `none`. Every operation holds the
    array for `overhead_cycles` more.
    """
    p, q, t = spatial_extents(stationarity, tile)
    passes = array.passes(tile.batch, p, q, fold)
    skew = _at_most(p * fold[0], array.rows) + _at_most(q * fold[1], array.columns) - 2
    cycles = passes * (t + (skew if array.skew == "exposed" else 0)) + array.overhead_cycles * (passes > 0)
    return ArrayCycles(cycles, cycles + (skew * (passes > 0) if array.skew == "overlapped" else 0))


def pe_cycles(array: Array, operations: tuple[str, ...], fold: tuple[Count, Count], tile: ScoreTile) -> ArrayCycles:
    """Cycles of `operations` that PEs do, one after the other, on a tile of scores in their registers.

    Keys lie down the rows of PEs and query rows along their columns, in batch x ceil(keys / rows) x ceil(queries /
    columns) pieces, of which `fold` share a pass. A pass takes as long as the operations of one PE; reducing down the
    rows of PEs is one operation of each, in a wave; a PE rounds what it writes, at no price. Skew and overhead are
    those of a product (FuseMax, MICRO 2024: max 1, exp 7 and sum 1 cycle for each tile of the array's size, in waves
    behind those of the products).
    """
    price = sum(array.cycles_of(name) or 0 for name in operations)
    passes = array.passes(tile.batch, tile.keys, tile.queries, fold)
    skew = _at_most(tile.keys * fold[0], array.rows) + _at_most(tile.queries * fold[1], array.columns) - 2
    cycles = passes * (price + (skew if array.skew == "exposed" else 0)) + array.overhead_cycles * (passes > 0)
    return ArrayCycles(cycles, cycles + (skew * (passes > 0) if array.skew == "overlapped" else 0))


def _at_most(value: Count, limit: int) -> Count:
    if isinstance(value, int):
        return value if value < limit else limit
    import numpy as np

    return np.minimum(value, limit)


def fold_limits(array: Array, stationarity: str, p: Count, q: Count) -> tuple[Count, Count]:
    """How many pieces may lie side by side along rows and columns, by size and by what the machine permits.

    Down the rows of a weight- or input-stationary array runs the contraction, and sums of different
    pieces must not meet: that needs the permission `contraction`, which a plain systolic array does not give.
    """
    row_permission = "rows" if stationarity == "output" else "contraction"
    rows = _at_least_one(array.rows // p) if row_permission in array.foldings else _ones(p)
    columns = _at_least_one(array.columns // q) if "columns" in array.foldings else _ones(q)
    return rows, columns


def largest_folds(array: Array, stationarity: str, tile: MatmulTile) -> tuple[Count, Count]:
    """The most pieces of a product along rows and columns that the machine permits and the tile has."""
    import numpy as np

    p, q, _ = spatial_extents(stationarity, tile)
    most_rows, most_columns = fold_limits(array, stationarity, p, q)
    pieces = tile.batch * ceil_divide(p, array.rows) * ceil_divide(q, array.columns)
    columns = np.minimum(most_columns, pieces)
    return np.minimum(most_rows, ceil_divide(pieces, columns)), columns


def _at_least_one(value: Count) -> Count:
    if isinstance(value, int):
        return max(value, 1)
    import numpy as np

    return np.maximum(value, 1)


def _ones(like: Count) -> Count:
    return 1 if isinstance(like, int) else like * 0 + 1


@frozen
class OperandTraffic:
    """Elements that move between buffer and array in one operation."""

    a_reads: Count
    b_reads: Count
    c_reads: Count
    c_writes: Count


def chained_traffic(array: Array, tile: MatmulTile) -> Count:
    """Elements copied in the buffer, read once and written once, where `a` is the result of another product."""
    return tile.batch * tile.m * tile.k * (array.chaining == "copied")


def operand_traffic(array: Array, stationarity: str, tile: MatmulTile, *, accumulate: Any) -> OperandTraffic:
    """Elements read and written in the buffer by one array operation.

    The stationary operand is read (or written) once. A streamed operand is read again for every strip of the
    array that the other spatial dimension needs. Partial sums of a contraction longer than the array
    leave and come back once per strip of it. `accumulate`, true or false or an array of these: whether the product is
    added to what is there.
    """
    m, n, k = tile.m * tile.batch, tile.n, tile.k
    if stationarity == "output":
        a, b = m * k * ceil_divide(n, array.columns), n * k * ceil_divide(tile.m, array.rows) * tile.batch
        return OperandTraffic(a, b, m * n * accumulate, m * n)
    strips = ceil_divide(k, array.rows)
    c_reads, c_writes = m * n * (strips - 1 + accumulate), m * n * strips
    if stationarity == "weight":
        return OperandTraffic(m * k * ceil_divide(n, array.columns), n * k * tile.batch, c_reads, c_writes)
    b = n * k * ceil_divide(tile.m, array.columns) * tile.batch
    return OperandTraffic(m * k, b, c_reads, c_writes)


# --- The vector unit ----------------------------------------------------------------------------------


VECTOR_WORK: dict[str, VectorWork] = {
    "mask": VectorWork(("select",)),
    "softcap": VectorWork(("exp", "add", "divide", "add")),
    "scale_columns": VectorWork(("multiply",)),
    "bias": VectorWork(("add",)),
    "alibi": VectorWork(("add", "max", "multiply", "add")),
    "t5_relative": VectorWork(("add", "max", "select", "select", "add")),
    "keep": VectorWork(("select",)),
    "same": VectorWork(("max", "select")),
    "sink": VectorWork((), ("max", "exp")),
    "row_max": VectorWork(("max",)),
    "row_max_online": VectorWork(("max",), ("max", "exp")),
    "exp": VectorWork(("exp",)),
    "exp_sum": VectorWork(("exp", "add")),
    "exp_sum_online": VectorWork(("exp", "add"), ("multiply", "add")),
    "tile_max": VectorWork(("max",)),
    "merge_max": VectorWork(("max", "exp")),
    "tile_sum": VectorWork(("add",)),
    "merge_sum": VectorWork(("multiply", "add")),
    "rescale": VectorWork(("multiply",)),
    "divide": VectorWork(("divide",)),
    "divide_by_last": VectorWork(("divide",)),
    "cast": VectorWork(("cast",)),
}
"""Which operations of the price table each variant of a vector operation performs.

`row_max_online` also combines the row's running maximum and makes the correction factor; `exp_sum` also adds up
the probabilities; `exp_sum_online` also corrects the running sum; the `merge` operations do the same where the tile's
own maximum or sum was found elsewhere. A change of storage type adds a `cast` per element. Rows lie across lanes, so
reducing a row is work within a lane and has no price of its own. Norms, activations and the like are in `value_work`.

Of scores: cap * tanh(s / cap) is cap - 2 * cap / (exp(2 / cap * s) + 1), and the price of `exp` has a factor in it.
`alibi` takes a distance, its magnitude (a `max`), times the slope, and adds it. `t5_relative` takes a distance, clamps
it, looks up the bucket of the distance (compile-time constants) and the bias of the bucket, a `select` each, and adds
it. Comparing two documents has the price of a `max`. Operands are widened to the type of the scores as they are read.
"""


def vector_work(kind: str, *, reads: int, writes: int, converts: bool) -> VectorWork:
    """The work of a `spatial.vector` operation, by its kind and how many of its operands are present."""
    variant = kind
    if kind == "row_max" and writes == 2:
        variant = "row_max_online"
    if kind == "exp" and writes == 2:
        variant = "exp_sum_online" if reads == 4 else "exp_sum"
    return _with_cast(_work_of(variant, reads), converts=converts)


def _work_of(variant: str, reads: int = 1) -> VectorWork:
    return value_work(variant, reads) if variant in VALUE_WORK else VECTOR_WORK[variant]


def _with_cast(work: VectorWork, *, converts: bool) -> VectorWork:
    """The work of an operation that also converts what it writes."""
    if converts and "cast" not in work.per_element:
        return replace(work, per_element=(*work.per_element, "cast"))
    return work


def vector_cycles(unit: VectorUnit, work: VectorWork, elements: Count, rows: Count) -> Count:
    """Cycles of one vector operation: ceil(count / lanes) x price, over all its operations."""
    element_price, row_price = _total(unit.prices, work.per_element), _total(unit.prices, work.per_row)
    return ceil_divide(elements, unit.lanes) * element_price + ceil_divide(rows, unit.lanes) * row_price


def vector_energy_pj(unit: VectorUnit, work: VectorWork, elements: Count, rows: Count) -> Any:
    """Energy of one vector operation: count x energy, over all its operations."""
    return elements * _total(unit.energies_pj, work.per_element) + rows * _total(unit.energies_pj, work.per_row)


def _total(table: VectorPrices | VectorEnergies, operations: tuple[str, ...]) -> Any:
    return sum(getattr(table, name) for name in operations)


@frozen
class KindPrice:
    """What a kind of vector operation costs on one unit, looked up once for many tiles.

    `element_cycles` and `row_cycles` are those of as many elements, or rows, as there are lanes; energies are of one,
    `element_operations` are done on each element.
    """

    lanes: int
    element_cycles: int
    row_cycles: int
    element_pj: float
    row_pj: float
    element_operations: int

    def cycles(self, elements: Count, rows: Count) -> Count:
        """`vector_cycles` of this kind; one 0 where all of it is free."""
        found: Count = 0
        if self.element_cycles:
            found = ceil_divide(elements, self.lanes) * self.element_cycles
        return found + ceil_divide(rows, self.lanes) * self.row_cycles if self.row_cycles else found

    def energy_pj(self, elements: Count, rows: Count) -> Any:
        """`vector_energy_pj` of this kind."""
        found = elements * self.element_pj
        return found + rows * self.row_pj if self.row_pj else found


class KindPrices(dict[tuple[str, bool], KindPrice]):
    """Prices on one unit by kind, and by whether the operation converts what it writes."""

    def __init__(self, unit: VectorUnit):
        super().__init__()
        self.unit = unit

    def __missing__(self, key: tuple[str, bool]) -> KindPrice:
        kind, converts = key
        prices, energies, work = self.unit.prices, self.unit.energies_pj, _with_cast(_work_of(kind), converts=converts)
        found = self[key] = KindPrice(
            lanes=self.unit.lanes,
            element_cycles=_total(prices, work.per_element),
            row_cycles=_total(prices, work.per_row),
            element_pj=_total(energies, work.per_element),
            row_pj=_total(energies, work.per_row),
            element_operations=len(work.per_element),
        )
        return found


@lru_cache(maxsize=64)
def kind_prices(unit: VectorUnit) -> KindPrices:
    """The prices of kinds of vector operations on a unit, each found when it is first asked for."""
    return KindPrices(unit)


def repeated_elements(operand: Sequence[int], extents: Sequence[Count]) -> Count:
    """Elements that an operation reads of an operand with these dims: a dim of 1 is read once and repeated."""
    return math.prod(1 if size == 1 else extent for size, extent in zip(operand, extents, strict=True))


@frozen
class VectorPrice:
    """Cycles of one vector operation, and what it did."""

    cycles: Count
    work: Work


def value_price(
    unit: VectorUnit,
    work: VectorWork,
    extents: Sequence[Count],
    reads: Sequence[tuple[Count, int]],
    write_bytes: int,
) -> VectorPrice:
    """The price of an operation of `VALUE_KINDS`; `reads` are (elements, bytes of one) of its operands."""
    rows, elements = math.prod(extents[:-1]), math.prod(extents)
    first, *others = (count * size for count, size in reads)
    counts = Work(
        vector_energy_pj=vector_energy_pj(unit, work, elements, rows),
        vector_elements=elements * len(work.per_element),
        buffer_read_bytes=first * work.passes + sum(others),
        buffer_write_bytes=elements * write_bytes,
    )
    return VectorPrice(vector_cycles(unit, work, elements, rows), counts)


# --- Copies within the buffer --------------------------------------------------------------------------


def copy_ticks(accelerator: Accelerator, size: int, ticks_per_cycle: int) -> int:
    """Ticks of copying `size` bytes between a tensor that stays on chip and a tile, rounded up.

    The transfer engine reads and writes the buffer through its ports at their bandwidth. Ticks are those of the
    off-chip channels, so a copy takes no longer than a transfer where the buffer is no slower than off-chip memory.
    """
    return math.ceil(size * accelerator.cycles_per_byte_copied * ticks_per_cycle)


# --- Counts that add up to energy ---------------------------------------------------------------------


@frozen
class Work:
    """What was done, in counts that do not depend on when: the basis of bytes and energy."""

    macs: Count = 0
    vector_energy_pj: Any = 0.0
    vector_elements: Count = 0
    offchip_read_bytes: Count = 0
    offchip_write_bytes: Count = 0
    buffer_read_bytes: Count = 0
    buffer_write_bytes: Count = 0
    register_bytes: Count = 0

    def __add__(self, other: Work) -> Work:
        added = vars(other)
        return Work(**{name: count + added[name] for name, count in vars(self).items()})

    def __mul__(self, times: Count) -> Work:
        return Work(**{name: count * times for name, count in vars(self).items()})


def energy_pj(accelerator: Accelerator, work: Work) -> dict[str, Any]:
    """Energy by component, in picojoules; the total is the sum of the values."""
    offchip = work.offchip_read_bytes + work.offchip_write_bytes
    price = accelerator.registers.energy_pj_per_byte
    return {
        "array": work.macs * accelerator.array.mac_energy_pj,
        "vector": work.vector_energy_pj,
        "buffer read": work.buffer_read_bytes * accelerator.buffer.read_energy_pj_per_byte,
        "buffer write": work.buffer_write_bytes * accelerator.buffer.write_energy_pj_per_byte,
        "off-chip": offchip * accelerator.offchip.energy_pj_per_byte,
        **({"registers": work.register_bytes * price} if price else {}),
    }
