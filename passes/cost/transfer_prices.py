"""What moving the tensors of a kernel costs, by role: off chip, or a copy where a tensor stays on chip between kernels.

Closed forms know how many bytes of each role a mapping moves; this turns them into time, bytes off chip and energy:

    prices = TransferPrices(accelerator, problem.on_chip)
    prices.cycles({"x": 4096, "w": 65536})           # cycles of the channel, without overheads
    prices.offchip_bytes({"x": 4096, "w": 65536})    # {"x": 0, "w": 65536} where x stays on chip

The simulator rounds each copy up to a tick (`primitive_costs.copy_ticks`); this does not, so it never says more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.passes.cost.bounds import is_written
from flatc.passes.cost.primitive_costs import Work

Roles = Mapping[str, Any]
"""By role bytes: integers, or columns of them."""


@frozen
class TransferPrices:
    """Prices on one accelerator, where the tensors of the roles `on_chip` stay there."""

    accelerator: Accelerator
    on_chip: frozenset[str]

    @cached_property
    def _rates(self) -> tuple[float, float]:
        """Cycles of a byte that is read, and of one that is written."""
        return float(self.accelerator.cycles_per_byte_read), float(self.accelerator.cycles_per_byte_written)

    @cached_property
    def _copied_rate(self) -> float:
        return float(self.accelerator.cycles_per_byte_copied)

    def rate(self, role: str) -> float:
        """Cycles of a byte of a role."""
        if role in self.on_chip:
            return self._copied_rate
        read, write = self._rates
        return write if is_written(role) else read

    def offchip_bytes(self, moved: Roles) -> dict[str, Any]:
        """Bytes off chip by role."""
        if not self.on_chip:
            return dict(moved)
        return {role: size * 0 if role in self.on_chip else size for role, size in moved.items()}

    def _copied(self, moved: Roles) -> list[Any]:
        """Bytes that are copied on chip."""
        return [size for role, size in moved.items() if role in self.on_chip] if self.on_chip else []

    def cycles(self, moved: Roles) -> Any:
        """Cycles of bytes that are all read, or all written."""
        outside = {role: size for role, size in moved.items() if role not in self.on_chip} if self.on_chip else moved
        total = sum(outside.values()) * (self.rate(next(iter(outside))) if outside else 0.0)
        copied = self._copied(moved)
        return total + sum(copied) * self._copied_rate if copied else total

    def work(self, moved: Roles) -> Work:
        """Bytes off chip, and those in the buffer that go with them."""
        loaded, stored = split(self.offchip_bytes(moved))
        read, written = sum(loaded.values()), sum(stored.values())
        copied = sum(self._copied(moved))
        return Work(
            offchip_read_bytes=read,
            offchip_write_bytes=written,
            buffer_read_bytes=written + copied,
            buffer_write_bytes=read + copied,
        )


def split(moved: Roles) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is loaded and what is stored."""
    loaded: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    for role, size in moved.items():
        (stored if is_written(role) else loaded)[role] = size
    return loaded, stored
