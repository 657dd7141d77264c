"""Machines with less: what `--buffer-limit` and `--max-bandwidth` make of an accelerator.

    limited(load("edge"), buffer_limit="256 KiB", max_bandwidth="20 GB/s")

A limit is a constraint on schedules: they may use no more than so much of the buffer, or of the off-chip bandwidth, so
they are those of a machine that has no more. A limit above what the machine has changes nothing.
"""

from __future__ import annotations

from dataclasses import replace

from flatc.accelerators.units import parse
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError


def limited(accelerator: Accelerator, buffer_limit: str | None, max_bandwidth: str | None) -> Accelerator:
    """`accelerator` with at most so much buffer and off-chip bandwidth, both with units. Raises `FlatcError`."""
    if buffer_limit is not None:
        capacity = min(accelerator.buffer.capacity_bytes, _whole("--buffer-limit", buffer_limit, "B"))
        accelerator = replace(accelerator, buffer=replace(accelerator.buffer, capacity_bytes=capacity))
    if max_bandwidth is not None:
        most, memory = _whole("--max-bandwidth", max_bandwidth, "B/s", accelerator.clock_hz), accelerator.offchip
        memory = replace(
            memory,
            read_bytes_per_second=min(memory.read_bytes_per_second, most),
            write_bytes_per_second=min(memory.write_bytes_per_second, most),
        )
        accelerator = replace(accelerator, offchip=memory)
    return accelerator


def _whole(option: str, text: str, base: str, clock_hz: int | None = None) -> int:
    try:
        found = parse(text, base, clock_hz)
    except FlatcError as error:
        raise FlatcError(f"{option}: {error.message}", help=error.help) from error
    if found <= 0 or found.denominator != 1:
        raise FlatcError(f"{option}: '{text}' is no whole positive number of {base}")
    return int(found)
