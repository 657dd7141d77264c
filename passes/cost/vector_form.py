"""The closed form of chains of vector operations: bytes, cycles and energy of many mappings, without walking tiles.

Mappings are columns of NumPy arrays with one loop order. Bytes, counts, busy cycles and the footprint are exact:

- a tensor is loaded once for each trip of the loops outside of its load that do not change it;
- a dim has full tiles and perhaps one ragged tile, so tiles are of at most 2 ** dims kinds, each priced once.

**Latency** is a lower bound that the simulator approaches: the largest of

- the vector unit's work, between the first tile's way in and the last tile's way out;
- each channel's work and, where one channel serves both directions, what the last tile's work leaves it idle;
- all tiles' way from load to store, over how many tiles may be under way: as many as an input or an output has slots
  and, on a shared channel, as many as the stores lag behind the loads, since a channel takes its transfers in program
  order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from itertools import product
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.vector_mapping import VectorMapping
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.closed_form import ClosedForm
from flatc.passes.cost.primitive_costs import (
    Work,
    ceil_divide,
    energy_pj,
    vector_cycles,
    vector_energy_pj,
)
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.kernels.vector_problem import Operand, Step, VectorProblem


@frozen
class ChainColumns:
    """The numbers of many mappings of one loop order: a tile of each dim, slots, and stages."""

    order: tuple[int, ...]
    tiles: tuple[Ints, ...]
    input_slots: Ints
    output_slots: Ints
    store_lag: Ints
    """Stages between load and store."""


def evaluate_chain(problem: VectorProblem, accelerator: Accelerator, mapping: VectorMapping) -> ClosedForm:
    """The closed form of one mapping: columns of one entry."""
    import numpy as np

    lag = mapping.stages.store - mapping.stages.load
    numbers = [np.array([number]) for number in (mapping.input_slots, mapping.output_slots, lag)]
    tiles = tuple(np.array([tile]) for tile in mapping.tiles)
    return ChainForm(problem, accelerator, ChainColumns(mapping.order, tiles, *numbers)).closed_form()


class ChainForm:
    """The closed form of a column of mappings, piece by piece."""

    def __init__(self, problem: VectorProblem, accelerator: Accelerator, columns: ChainColumns):
        self.problem, self.accelerator, self.columns = problem, accelerator, columns
        self.prices = TransferPrices(accelerator, problem.on_chip)
        self.trips: list[Ints] = [ceil_divide(n, t) for n, t in zip(problem.dims, columns.tiles, strict=True)]
        self.all_trips: Ints = reduce(lambda a, b: a * b, self.trips)
        self.last_tile = [n - (k - 1) * t for n, k, t in zip(problem.dims, self.trips, columns.tiles, strict=True)]

    def closed_form(self) -> ClosedForm:
        """Everything together."""
        p = self.problem
        loads = [self._load(operand) for operand in p.operands]
        steps = [self._step_cycles(step) for step in p.steps]
        zero = self.all_trips * 0
        moved = {role: load.bytes for role, load in zip(p.operand_roles, loads, strict=True)}
        for role, value in zip(p.result_roles, p.results, strict=True):
            moved[role] = zero + p.elements * p.element_of(value)[1]
        work = self._work(moved)
        cycles = _Cycles(self, loads, steps)
        return ClosedForm(
            latency_cycles=cycles.latency(),
            busy_cycles=cycles.busy(),
            tensor_bytes=self.prices.offchip_bytes(moved),
            peak_buffer_bytes=self.peak_bytes(),
            work=work,
            energy_pj=sum(energy_pj(self.accelerator, work).values()) + zero,
        )

    # --- Loads ----------------------------------------------------------------------------------------------

    def _load(self, operand: Operand) -> Load:
        """How often an operand is loaded, walking the loops from the innermost."""
        dims, one = self.problem.dims, self.all_trips * 0 + 1
        looped, events, repeats = one * 0, one, one
        for dim in reversed(self.columns.order):
            if operand.varies(dim, dims):
                looped = looped | (self.trips[dim] > 1)
            times = 1 + (self.trips[dim] - 1) * looped
            events = events * times
            if not operand.varies(dim, dims):
                repeats = repeats * times
        size = math.prod(operand.dims) * operand.element_bytes
        return Load(size * repeats, events, looped)

    def tile_elements(self, operand: Operand) -> Ints:
        """How many elements of an operand a tile has: all where it has no tiles of its own."""
        sizes = zip(operand.dims, self.problem.dims, self.columns.tiles, strict=True)
        return (
            reduce(lambda a, b: a * b, (tile if own == size else own for own, size, tile in sizes)) + 0 * self.trips[0]
        )

    def peak_bytes(self) -> Ints:
        """Bytes of all buffers, as `vector_nest` declares them."""
        c, p = self.columns, self.problem
        tile = reduce(lambda a, b: a * b, c.tiles)
        output_slots = 1 + (c.output_slots - 1) * (self.all_trips > 1)
        total = self.all_trips * 0
        for operand in p.operands:
            slots = 1 + (c.input_slots - 1) * self._load(operand).looped
            total = total + slots * self.tile_elements(operand) * operand.element_bytes
        for buffer in p.buffers[0]:
            total = total + tile * buffer.element_bytes * (output_slots if buffer.stored else 1)
        return total

    # --- Steps ----------------------------------------------------------------------------------------------

    @cached_property
    def kinds(self) -> list[tuple[Ints, tuple[Ints, ...]]]:
        """(how many, extents) of each kind of tile."""
        parts: list[list[tuple[Ints, Ints]]] = []
        for size, tile in zip(self.problem.dims, self.columns.tiles, strict=True):
            whole, rest = size // tile, size % tile
            parts.append([(whole, tile), (1 * (rest > 0), rest)] if rest.any() else [(whole, tile)])
        found: list[tuple[Ints, tuple[Ints, ...]]] = []
        for kind in product(*parts):
            count = reduce(lambda a, b: a * b, (times for times, _ in kind))
            found.append((count, tuple(extent for _, extent in kind)))
        return found

    def _step_cycles(self, step: Step) -> Ints:
        """Vector cycles of one step over all tiles."""
        return sum((count * self.step_on(step, extents) for count, extents in self.kinds), self.all_trips * 0)

    def step_on(self, step: Step, extents: Sequence[Ints]) -> Ints:
        """Vector cycles of one step on one tile."""
        rows = reduce(lambda a, b: a * b, extents[:-1])
        width = extents[-1] if step.columns is None else step.columns[1]
        return vector_cycles(self.accelerator.vector, self.problem.work(step), rows * width, rows)

    def _work(self, moved: Mapping[str, Ints]) -> Work:
        p, unit = self.problem, self.accelerator.vector
        zero = self.all_trips * 0
        total = Work(macs=zero) + self.prices.work(moved)
        rows = math.prod(p.dims[:-1])
        for step in p.steps:
            elements, work = rows * (step.columns[1] if step.columns else p.dims[-1]), p.work(step)
            total = total + Work(
                vector_energy_pj=vector_energy_pj(unit, work, elements, rows) + zero,
                vector_elements=elements * len(work.per_element),
                buffer_read_bytes=self._bytes_read(step, work.passes),
                buffer_write_bytes=elements * step.element_bytes,
            )
        return total

    def _bytes_read(self, step: Step, passes: int) -> Ints:
        """Bytes that a step reads over all tiles; a dim that an operand repeats is read once in each tile."""
        p, total = self.problem, self.all_trips * 0
        for place, value in enumerate(step.reads):
            own = list(p.dims_of(value))
            if step.columns is not None and own[-1] != 1:
                own[-1] = step.columns[1]
            times = passes if place == 0 else 1
            repeated = (trips for trips, size in zip(self.trips, own, strict=True) if size == 1)
            elements = reduce(lambda a, b: a * b, repeated, math.prod(own))
            total = total + elements * p.element_of(value)[1] * times
        return total


@frozen
class Load:
    """The loads of one operand: all bytes, how many loads, and 1 if they stand in a loop, else 0."""

    bytes: Ints
    events: Ints
    looped: Ints


class _Cycles:
    """Time: how long each resource is busy, and the latency."""

    def __init__(self, form: ChainForm, loads: Sequence[Load], steps: Sequence[Ints]):
        self.form, self.loads, self.steps = form, loads, steps
        machine, p = form.accelerator, form.problem
        self.shared = machine.offchip.channels == "shared"
        # A copy on chip has no latency; where there is any, bounds leave it out of all transfers.
        self.wait = 0 if p.on_chip else machine.offchip.latency_cycles
        self.overhead = machine.offchip.overhead_cycles
        self.rates = [form.prices.rate(role) for role in p.operand_roles]
        self.result_rates = {
            value: form.prices.rate(role) for role, value in zip(p.result_roles, p.results, strict=True)
        }
        self.load_cycles = [
            load.bytes * rate + load.events * self.overhead for load, rate in zip(loads, self.rates, strict=True)
        ]
        self.reading: Any = sum(self.load_cycles, form.all_trips * 0.0)
        self.writing: Any = sum(self._stores_of(value) for value in p.results)
        self.vector: Any = sum(steps, form.all_trips * 0)

    def busy(self) -> dict[str, Any]:
        """Cycles of each resource."""
        vector = {"vector": self.vector}
        if self.shared:
            return vector | {"offchip": self.reading + self.writing}
        return vector | {"read": self.reading, "write": self.writing}

    def latency(self) -> Any:
        """See the module docstring."""
        import numpy as np

        bounds = [self._vector(), *self._channels(), *self._slots()]
        if self.shared:
            bounds.append(self._in_program_order())
        return reduce(np.maximum, bounds)

    # --- Parts of one tile ----------------------------------------------------------------------------------

    def _first_loads(self) -> Any:
        """Until the first step can start: the loads of what it reads."""
        p, form = self.form.problem, self.form
        total: Any = form.all_trips * 0.0
        for value in dict.fromkeys(p.steps[0].reads):
            if value < len(p.operands):
                operand = p.operands[value]
                total = total + form.tile_elements(operand) * operand.element_bytes * self.rates[value] + self.overhead
        return total + self.wait

    def _store_of(self, value: int, extents: Sequence[Ints]) -> Any:
        elements = reduce(lambda a, b: a * b, extents)
        return elements * self.form.problem.element_of(value)[1] * self.result_rates[value] + self.overhead

    def _last_store(self) -> Any:
        """The way out of what the last step makes of the last tile."""
        return self._store_of(self.form.problem.written[-1], self.form.last_tile) + self.wait

    def _after_last_load(self, extents: Sequence[Ints] | None) -> Any:
        """Steps from the first that needs the last operand; of one tile, or of all."""
        p = self.form.problem
        start = min(p.uses(len(p.operands) - 1))
        if extents is None:
            return sum(self.steps[start:], self.form.all_trips * 0)
        return sum(self.form.step_on(step, extents) for step in p.steps[start:])

    # --- Bounds ---------------------------------------------------------------------------------------------

    def _vector(self) -> Any:
        return self._first_loads() + self.vector + self._last_store()

    def _channels(self) -> list[Any]:
        """Each channel's work, before it, and after it."""
        import numpy as np

        form = self.form
        tail = self.wait + self._after_last_load(form.last_tile)
        stores = [self._store_of(value, form.columns.tiles) for value in form.problem.results]
        if self.shared:
            lag = np.minimum(form.columns.store_lag, form.all_trips - 1)
            others = sum(stores[:-1]) + lag * sum(stores)
            return [self.reading + self.writing + np.maximum(tail - others, 0) + self.wait]
        first = form.problem.written.index(form.problem.results[0])
        made = sum(form.step_on(step, form.columns.tiles) for step in form.problem.steps[: first + 1])
        return [self.reading + tail + self._last_store(), self._first_loads() + made + self.writing + self.wait]

    def _slots(self) -> list[Any]:
        """Time from load to last use, and from first write to store, over the slots there are."""
        p, c, trips = self.form.problem, self.form.columns, self.form.all_trips
        found: list[Any] = []
        for value, load in enumerate(self.loads):
            uses = p.uses(value)
            held = sum(self.steps[uses[0] : uses[-1] + 1]) * (load.events == trips)
            found.append((self.load_cycles[value] + load.events * self.wait + held) / c.input_slots)
        for value in p.results:
            made = sum(cycles for cycles, written in zip(self.steps, p.written, strict=True) if written == value)
            found.append((made + self._stores_of(value) + trips * self.wait) / c.output_slots)
        return found

    def _stores_of(self, value: int) -> Any:
        """The channel's time for all stores of a result."""
        size = self.form.problem.elements * self.form.problem.element_of(value)[1]
        return size * self.result_rates[value] + self.form.all_trips * self.overhead

    def _in_program_order(self) -> Any:
        """Loads of a tile wait for the stores before them in program order, and these for the work on their tile."""
        trips = self.form.all_trips
        way: Any = trips * self.wait + self._after_last_load(None) + self._stores_of(self.form.problem.written[-1])
        for cycles, load in zip(self.load_cycles, self.loads, strict=True):
            way = way + cycles * (load.events == trips)
        return way / (self.form.columns.store_lag + 1)
