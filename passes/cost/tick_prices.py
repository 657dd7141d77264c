"""What loads, stores, products and vector operations take, in ticks, on plain numbers: for walks (`recurrence`).

These are the primitive costs that the closed form and the simulator share, without what they count beside.
"""

from __future__ import annotations

from math import lcm
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.passes.cost.bounds import is_written
from flatc.passes.cost.primitive_costs import ArrayCycles, ceil_divide, copy_ticks, kind_prices

Times = tuple[int, int]
"""Ticks until a resource is free, and until the result is there."""


class TickPrices:
    """Prices on one accelerator, where the tensors of the roles `on_chip` stay there."""

    def __init__(self, accelerator: Accelerator, on_chip: frozenset[str]):
        self.accelerator, self.on_chip = accelerator, on_chip
        read, write = accelerator.cycles_per_byte_read, accelerator.cycles_per_byte_written
        self.ticks_per_cycle = lcm(read.denominator, write.denominator)
        self._rates: dict[tuple[str, bool], tuple[int, int]] = {}
        self._read, self._write = int(read * self.ticks_per_cycle), int(write * self.ticks_per_cycle)

    def moved(self, role: str, size: int, transfers: int = 1) -> Times:
        """A load or a store of so many bytes, in so many transfers."""
        offchip = self.accelerator.offchip
        if not size:
            return 0, 0
        overhead = offchip.overhead_cycles * transfers * self.ticks_per_cycle
        if role in self.on_chip:
            busy = copy_ticks(self.accelerator, size, self.ticks_per_cycle) + overhead
            return busy, busy
        busy = size * (self._write if is_written(role) else self._read) + overhead
        return busy, busy + offchip.latency_cycles * self.ticks_per_cycle

    def on_array(self, cycles: ArrayCycles) -> Times:
        """An operation of the array."""
        return cycles.busy * self.ticks_per_cycle, cycles.latency * self.ticks_per_cycle

    def on_vector(self, kind: str, rows: int, width: Any, *, converts: bool = False) -> Times:
        """A vector operation; `converts` says that it rounds what it writes to another type.

        Where `width` is an array of widths, so are the ticks.
        """
        of_elements, of_rows = self.rate(kind, converts=converts)
        lanes = self.accelerator.vector.lanes
        ticks = ceil_divide(rows * width, lanes) * of_elements + ceil_divide(rows, lanes) * of_rows
        return ticks, ticks

    def rate(self, kind: str, *, converts: bool) -> tuple[int, int]:
        """Ticks of a vector operation for as many elements, and for as many rows, as there are lanes."""
        found = self._rates.get((kind, converts))
        if found is None:
            price, ticks = kind_prices(self.accelerator.vector)[kind, converts], self.ticks_per_cycle
            found = self._rates[kind, converts] = price.element_cycles * ticks, price.row_cycles * ticks
        return found

    def at_once(self, cycles: int) -> Times:
        """An operation that is done when its resource is free."""
        return cycles * self.ticks_per_cycle, cycles * self.ticks_per_cycle
