"""The closed form of a matrix product: bytes, cycles and energy of many mappings at once, without walking tiles.

As for attention (`closed_form`), tiles come in few kinds: a full and a ragged one along each of m, n, k. All counts,
bytes, array and vector cycles are exact; latency is a lower bound that the simulator approaches, the largest of

- each resource's busy time, with the shortest time before its first and after its last operation;
- on a channel that loads and stores share, the array's busy time and its waits for loads behind a store;
- each cycle of waiting, over the slots of its buffer: a tile of x or w is loaded, multiplied and released; a tile of
  sums is added up, finished, stored and released.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any, Literal

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import ArrayUse
from flatc.dialects.product_mapping import ProductKeep, ProductMapping, ProductStages, ProductTiles
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.cost.primitive_costs import (
    ArrayCycles,
    MatmulTile,
    Work,
    array_cycles,
    ceil_divide,
    energy_pj,
    operand_traffic,
    value_price,
    vector_cycles,
    vector_energy_pj,
    vector_work,
)
from flatc.passes.cost.transfer_prices import TransferPrices, split
from flatc.passes.kernels.product_problem import ProductProblem


@frozen
class ProductStructure:
    """What mappings of one column have in common: everything that is not a number."""

    first: str
    """The outermost loop, m or n."""
    x_level: str
    w_level: str
    stationarity: str

    @property
    def keeps(self) -> bool:
        """Whether x or w stays on chip across a loop."""
        return self.x_level != "k" or self.w_level != "k"


@frozen
class ProductColumns:
    """The numbers of many mappings, one array each (see `ProductMapping`)."""

    m: Ints
    n: Ints
    k: Ints
    x_slots: Ints
    w_slots: Ints
    sums_slots: Ints
    y_slots: Ints
    fold_rows: Ints
    fold_columns: Ints
    load: Ints
    multiply: Ints
    store: Ints

    def take(self, indices: Any) -> ProductColumns:
        """The rows at `indices`."""
        return ProductColumns(*(getattr(self, f.name)[indices] for f in fields(ProductColumns)))


def structure_of(mapping: ProductMapping) -> ProductStructure:
    """The structure a mapping belongs to."""
    keep = mapping.keep
    return ProductStructure(mapping.order[0], keep.x_level, keep.w_level, mapping.array.stationarity)


def columns_of(mapping: ProductMapping) -> ProductColumns:
    """A column of one mapping."""
    import numpy as np

    tiles, keep, use, stages = mapping.tiles, mapping.keep, mapping.array, mapping.stages
    numbers = [tiles.m, tiles.n, tiles.k, keep.x_slots, keep.w_slots, keep.sums_slots, keep.y_slots]
    numbers += [use.fold_rows, use.fold_columns, stages.load, stages.multiply, stages.store]
    return ProductColumns(*(np.array([n], dtype=np.int64) for n in numbers))


def mapping_at(structure: ProductStructure, columns: ProductColumns, index: int) -> ProductMapping:
    """The mapping in row `index` of a column."""
    n, s = {f.name: int(getattr(columns, f.name)[index]) for f in fields(ProductColumns)}, structure
    slots = (n["x_slots"], n["w_slots"], n["sums_slots"], n["y_slots"])
    return ProductMapping(
        ProductTiles(n["m"], n["n"], n["k"]),
        ("m", "n") if s.first == "m" else ("n", "m"),
        ProductKeep(*slots, s.x_level, s.w_level),  # pyright: ignore[reportArgumentType]
        ArrayUse(s.stationarity, n["fold_rows"], n["fold_columns"]),  # pyright: ignore[reportArgumentType]
        ProductStages(n["load"], n["multiply"], n["store"]),
    )


# --- What is on chip, what moves ----------------------------------------------------------------------------


def peak_buffer_bytes(problem: ProductProblem, structure: ProductStructure, columns: ProductColumns) -> Any:
    """Bytes of all buffers, as `product_nest` declares them."""
    p, c, s = problem, columns, structure
    x = c.x_slots * c.m * (c.k if s.x_level == "k" else p.k) * p.x_bytes
    w = c.w_slots * c.n * (c.k if s.w_level == "k" else p.k) * p.w_bytes
    sums = c.sums_slots * c.n * (c.m * p.accumulator_bytes + (p.bias_bytes or 0))
    return x + w + sums + c.y_slots * c.m * c.n * (p.output_bytes * p.own_result)


@frozen
class _Turns:
    """How often things happen: trips of each loop, turns in which x, w and the bias are loaded."""

    heads: int
    m: Any
    n: Any
    k: Any
    x: Any
    w: Any
    bias: Any

    @property
    def tiles(self) -> Any:
        """Tiles of the result, of all heads."""
        return self.heads * self.m * self.n

    def loads(self, role: Literal["x", "w"], level: str) -> Any:
        """How often a tile or strip of x or of w is loaded."""
        if level == "k":
            return self.tiles * self.k
        return self.heads * (self.x * self.m if role == "x" else self.w * self.n)


def _turns(problem: ProductProblem, structure: ProductStructure, columns: ProductColumns) -> _Turns:
    """`x` counts the passes over all of x off chip, `w` and `bias` those over theirs; see `_transfers` for loads."""
    p, c, s = problem, columns, structure
    m, n, k = ceil_divide(p.m, c.m), ceil_divide(p.n, c.n), ceil_divide(p.k, c.k)
    # What is kept at a loop is loaded once for each turn of the loops around it; a loop of one trip is not there.
    x_kept, w_kept = (n if s.first == "n" else 1), (m if s.first == "m" else 1)
    x = n if s.x_level == "k" else 1 + (x_kept - 1) * (m > 1)
    bias = 1 + (w_kept - 1) * (n > 1)
    w = m if s.w_level == "k" else bias
    return _Turns(p.heads, m, n, k, x, w, bias)


def tensor_bytes(problem: ProductProblem, structure: ProductStructure, columns: ProductColumns) -> dict[str, Any]:
    """Bytes moved by role, wherever its tensor lies."""
    p, turns = problem, _turns(problem, structure, columns)
    once = p.compulsory_bytes()
    found = {"x": turns.x * once["x"], "w": turns.w * once["w"]}
    if p.has_bias:
        found["bias"] = turns.bias * once["bias"]
    return found | {"result": columns.m * 0 + once["result"]}


def _transfers(structure: ProductStructure, turns: _Turns, *, bias: bool) -> tuple[Any, Any]:
    """How many loads and how many stores."""
    x, w = turns.loads("x", structure.x_level), turns.loads("w", structure.w_level)
    return x + w + (turns.bias * turns.n if bias else 0), turns.tiles


# --- Work ---------------------------------------------------------------------------------------------------


class ProductCounts:
    """Work of a column of mappings, added up over the kinds of tiles.

    It does not depend on the order of the loops nor on what stays on chip. Cycles are counted at once, the rest by
    `work`: a search looks at many mappings' cycles, and at the work of few.
    """

    def __init__(self, problem: ProductProblem, accelerator: Accelerator, stationarity: str, columns: ProductColumns):
        self.problem, self.accelerator = problem, accelerator
        self.stationarity, self.columns = stationarity, columns
        self.zero = columns.m * 0
        self.array: Any = self.zero
        self.vector: Any = self.zero
        # Cycles until a result is there beyond those its array is taken: of all products, of each tile's last.
        self.skew: Any = self.zero
        self.last_skew: Any = self.zero
        # Each kind of tile of the result: how many, rows, columns, array cycles of one.
        self.tiles: list[tuple[Any, Any, Any, Any]] = []
        last_k = _last(problem.k, columns.k)
        for tiles, m, n in self._result_tiles():
            busy = self.zero
            for ks, k in _kinds(problem.k, columns.k):
                cycles = self._array_cycles(m, n, k)
                skew = cycles.latency - cycles.busy
                busy = busy + cycles.busy * ks
                self.skew = self.skew + skew * (tiles * ks)
                self.last_skew = self.last_skew + skew * (tiles * (ks > 0) * (k == last_k))
            self.array = self.array + busy * tiles
            self.tiles.append((tiles, m, n, busy))
            if problem.finishes:
                self.vector = self.vector + finish_price(problem, accelerator, m, n)[0] * tiles
        self.full_array: Any = self._array_cycles(columns.m, columns.n, columns.k).busy
        # What the last tile of the result takes from its last product on.
        m, n = _last(problem.m, columns.m), _last(problem.n, columns.n)
        cycles = self._array_cycles(m, n, last_k)
        self.final_array, self.final_skew = cycles.latency, cycles.latency - cycles.busy
        self.final_vector: Any = finish_price(problem, accelerator, m, n)[0] if problem.finishes else self.zero

    def _result_tiles(self) -> Iterator[tuple[Any, Any, Any]]:
        """(how many, rows, columns) of each kind of tile of the result."""
        for ms, m in _kinds(self.problem.m, self.columns.m):
            for ns, n in _kinds(self.problem.n, self.columns.n):
                yield self.problem.heads * ms * ns, m, n

    def _array_cycles(self, m: Any, n: Any, k: Any) -> ArrayCycles:
        fold = (self.columns.fold_rows, self.columns.fold_columns)
        return array_cycles(self.accelerator.array, self.stationarity, fold, MatmulTile(1, m, n, k))

    def work(self) -> Work:
        """Everything but transfers."""
        p, total = self.problem, Work(macs=self.zero + self.problem.least_macs())
        for tiles, m, n in self._result_tiles():
            for ks, k in _kinds(p.k, self.columns.k):
                total = total + self._product_work(MatmulTile(1, m, n, k)) * (tiles * ks)
            if p.finishes:
                total = total + finish_price(p, self.accelerator, m, n)[1] * tiles
        return total

    def _product_work(self, tile: MatmulTile) -> Work:
        """Traffic between buffer and array; sums of one turn only are not read."""
        p, array = self.problem, self.accelerator.array
        traffic = operand_traffic(array, self.stationarity, tile, accumulate=False)
        c_reads = traffic.c_reads + tile.m * tile.n * (self.columns.k < p.k)
        return Work(
            buffer_read_bytes=traffic.a_reads * p.x_bytes + traffic.b_reads * p.w_bytes + c_reads * p.accumulator_bytes,
            buffer_write_bytes=traffic.c_writes * p.accumulator_bytes,
        )


def finish_price(problem: ProductProblem, accelerator: Accelerator, m: Any, n: Any) -> tuple[Any, Work]:
    """Cycles and work of adding the bias to a tile of sums, or of converting it."""
    p, unit = problem, accelerator.vector
    kind = "add" if p.has_bias else "cast"
    work = vector_work(kind, reads=1 + p.has_bias, writes=1, converts=p.converts_output)
    if p.bias_bytes is not None:
        reads = [(m * n, p.accumulator_bytes), (n, p.bias_bytes)]
        price = value_price(unit, work, (m, n), reads, p.output_bytes)
        return price.cycles, price.work
    elements = m * n
    counts = Work(
        vector_energy_pj=vector_energy_pj(unit, work, elements, m),
        vector_elements=elements * len(work.per_element),
        buffer_read_bytes=elements * p.accumulator_bytes,
        buffer_write_bytes=elements * p.output_bytes,
    )
    return vector_cycles(unit, work, elements, m), counts


def _kinds(size: int, tile: Any) -> list[tuple[Any, Any]]:
    """(how many, extent) of the full tiles and of the ragged tile."""
    ragged = size % tile
    return [(size // tile, tile), ((ragged > 0) * 1, ragged)]


def _last(size: int, tile: Any) -> Any:
    """Extent of the last tile."""
    ragged = size % tile
    return ragged + tile * (ragged == 0)


# --- All together -------------------------------------------------------------------------------------------


def evaluate(
    problem: ProductProblem, accelerator: Accelerator, structure: ProductStructure, columns: ProductColumns
) -> ClosedForm:
    """Costs of a column of mappings; see the module docstring for what is exact."""
    counts = ProductCounts(problem, accelerator, structure.stationarity, columns)
    moved, prices = tensor_bytes(problem, structure, columns), TransferPrices(accelerator, problem.on_chip)
    work = counts.work() + prices.work(moved)
    times = _Times(counts, structure)
    return ClosedForm(
        latency_cycles=times.latency(),
        busy_cycles=times.busy,
        tensor_bytes=prices.offchip_bytes(moved),
        peak_buffer_bytes=peak_buffer_bytes(problem, structure, columns),
        work=work,
        energy_pj=sum(energy_pj(accelerator, work).values()),
    )


def quick_bounds(counts: ProductCounts, structure: ProductStructure, ahead: int) -> tuple[Any, Any, Any]:
    """Bounds of latency, energy and off-chip bytes whatever the slots: `evaluate` gives no less.

    Stores are at most `ahead` stages behind loads.
    """
    accelerator, prices = counts.accelerator, TransferPrices(counts.accelerator, counts.problem.on_chip)
    moved = sum(prices.offchip_bytes(tensor_bytes(counts.problem, structure, counts.columns)).values())
    energy = counts.problem.least_macs() * accelerator.array.mac_energy_pj
    return _Times(counts, structure).in_parallel(ahead), energy + moved * accelerator.offchip.energy_pj_per_byte, moved


def even_latency(counts: ProductCounts, structure: ProductStructure) -> Any:
    """Latency if every tile of the result took as long as its products or its transfers, whichever is longer.

    An estimate, not a bound: loads run ahead by a turn or two only, so that time which one tile leaves free on the
    channel does not help another. It tells mappings apart whose tiles are uneven, and which bounds think equal.
    """
    import numpy as np

    p, machine = counts.problem, counts.accelerator
    prices = TransferPrices(machine, p.on_chip)
    total: Any = counts.zero
    for tiles, m, n, busy in counts.tiles:
        x = m * (p.k * p.x_bytes * (structure.x_level == "k"))
        w = n * (p.k * p.w_bytes * (structure.w_level == "k"))
        loading, storing = prices.cycles({"x": x, "w": w}), prices.cycles({"result": m * n * p.output_bytes})
        channel = loading + storing
        if machine.offchip.channels != "shared":
            channel = np.maximum(loading, storing)
        total = total + tiles * np.maximum(busy, channel)
    return total


class _Times:
    """Lower bounds on the latency of a column of mappings."""

    def __init__(self, counts: ProductCounts, structure: ProductStructure):
        self.counts, self.structure, machine = counts, structure, counts.accelerator
        self.turns = _turns(counts.problem, structure, counts.columns)
        self.channel = machine.offchip
        self.prices = TransferPrices(machine, counts.problem.on_chip)
        moved = tensor_bytes(counts.problem, structure, counts.columns)
        loaded, stored = split(moved)
        loads, stores = _transfers(structure, self.turns, bias=counts.problem.has_bias)
        overhead = self.channel.overhead_cycles
        self.loading = self.prices.cycles(loaded) + loads * overhead
        self.storing = self.prices.cycles(stored) + stores * overhead
        self.x_loading, self.w_loading = (self.prices.cycles({role: moved[role]}) for role in ("x", "w"))
        self.busy = {"array": counts.array, "vector": counts.vector}
        if self.channel.channels == "shared":
            self.busy["offchip"] = self.loading + self.storing
        else:
            self.busy |= {"read": self.loading, "write": self.storing}

    def in_parallel(self, ahead: Any, slots: Any = None) -> Any:
        """The largest of what each resource needs, with the shortest time before and after it.

        Loads run at most `ahead` turns before the store of a tile, and no further than the slots of their buffer.
        """
        first, last = self._first_load(), self._last_store()
        tail = self.counts.final_vector + last
        return self._largest(
            [
                *(time for name, time in self.busy.items() if name not in ("array", "vector")),
                self.loading - self._one_bias() + self.counts.final_array + tail,
                first + self.counts.array + self._held_up(ahead, slots) + self.counts.final_skew + tail,
                first + self.counts.vector + last,
            ]
        )

    def latency(self) -> Any:
        """The largest of all bounds."""
        c = self.counts.columns
        slots = c.x_slots if self.structure.x_level == "k" else c.w_slots
        return self._largest([self.in_parallel(c.store - c.load, slots), *self._waiting()])

    def _held_up(self, ahead: Any, slots: Any) -> Any:
        """Cycles that the array waits because a store holds up the loads behind it on a shared channel.

        After the last product of a tile come its finish, its store, and only then the load that is `ahead` + 1
        turns later; loads that find no free slot before that product is done come before the store, too. Meanwhile
        the array has the products of `ahead` turns. Tiles of less than `ahead` + 1 turns share such a stretch.
        """
        import numpy as np

        counts, c, p, s = self.counts, self.counts.columns, self.counts.problem, self.structure
        if self.channel.channels != "shared" or "k" not in (s.x_level, s.w_level):
            return counts.zero
        m, n, k = _last(p.m, c.m), _last(p.n, c.n), _last(p.k, c.k)
        x, w = m * k * p.x_bytes * (s.x_level == "k"), k * n * p.w_bytes * (s.w_level == "k")
        load = self.prices.cycles({"x": x, "w": w})
        before = counts.vector / self.turns.tiles
        if slots is not None:
            before = np.maximum(before, np.maximum(ahead - slots + 1, 0) * load)
        after = before + (counts.last_skew + self.storing) / self.turns.tiles + load
        stretches = np.maximum(self.turns.tiles // ceil_divide(ahead + 1, self.turns.k) - 1, 0)
        return stretches * np.maximum(after - ahead * counts.full_array, 0)

    def _largest(self, bounds: Sequence[Any]) -> Any:
        import numpy as np

        found: Any = self.counts.zero.astype(np.float64)
        for bound in bounds:
            found = np.maximum(found, bound)
        return found

    def _first_load(self) -> Any:
        """Cycles before the first product: its tiles of x and w must be there."""
        p, c, s = self.counts.problem, self.counts.columns, self.structure
        x = c.m * (c.k if s.x_level == "k" else p.k) * p.x_bytes
        w = c.n * (c.k if s.w_level == "k" else p.k) * p.w_bytes
        latency = self.channel.latency_cycles * self.prices.on_chip.isdisjoint(("x", "w"))
        return self.prices.cycles({"x": x, "w": w}) + 2 * self.channel.overhead_cycles + latency

    def _one_bias(self) -> Any:
        """Cycles of loading the bias of a tile, which no product waits for."""
        size = self.counts.problem.bias_bytes
        if size is None:
            return self.counts.zero
        return self.counts.columns.n * (size * self.prices.rate("bias")) + self.channel.overhead_cycles

    def _last_store(self) -> Any:
        """Cycles of the store of the last tile."""
        p, c = self.counts.problem, self.counts.columns
        stored = self.prices.cycles({"result": _last(p.m, c.m) * _last(p.n, c.n) * p.output_bytes})
        latency = self.channel.latency_cycles * ("result" not in self.prices.on_chip)
        return stored + self.channel.overhead_cycles + latency

    def _waiting(self) -> list[Any]:
        """Total length of each cycle of waiting over the slots that it goes through."""
        counts, s, c, turns = self.counts, self.structure, self.counts.columns, self.turns
        products = counts.array + counts.skew
        between = self.w_loading if s.w_level == "k" else counts.zero
        x_cycle = self.x_loading + (between + products if s.x_level == "k" else counts.array)
        w_cycle = self.w_loading + (products if s.w_level == "k" else counts.array)
        # What is loaded once for the kernel waits for nobody.
        x_turns, w_turns = turns.loads("x", s.x_level), turns.loads("w", s.w_level)
        found = [x_cycle / c.x_slots * (x_turns > 1), w_cycle / c.w_slots * (w_turns > 1)]
        finished = counts.array + counts.last_skew + counts.vector
        if counts.problem.own_result:
            return [*found, finished / c.sums_slots, (counts.vector + self.storing) / c.y_slots]
        return [*found, (finished + self.storing) / c.y_slots]


def evaluate_product(problem: ProductProblem, accelerator: Accelerator, mapping: ProductMapping) -> ClosedForm:
    """Costs of one mapping as a search sees it, a column of one; `product_trips` comes nearer to its latency."""
    return evaluate(problem, accelerator, structure_of(mapping), columns_of(mapping))
