"""The words of an accelerator file: which key of which group fills which field of the record.

The record (`flatc.dialects.accelerator`) carries base units in its names; a file writes units out, so
its keys are shorter. The loader and `describe` share this table:

    buffer:
      capacity: 512 KiB        # Buffer.capacity_bytes
"""

from __future__ import annotations

from flatc.dialects import accelerator as records

KEYS: dict[type, dict[str, str]] = {
    records.Accelerator: {
        "name": "name",
        "description": "description",
        "clock": "clock_hz",
        "offchip": "offchip",
        "buffer": "buffer",
        "registers": "registers",
        "array": "array",
        "vector": "vector",
        "words": "words",
    },
    records.OffchipMemory: {
        "read_bandwidth": "read_bytes_per_second",
        "write_bandwidth": "write_bytes_per_second",
        "channels": "channels",
        "latency": "latency_cycles",
        "energy": "energy_pj_per_byte",
        "overhead": "overhead_cycles",
    },
    records.Buffer: {
        "capacity": "capacity_bytes",
        "bandwidth": "bandwidth_bytes_per_second",
        "ports": "ports",
        "read_energy": "read_energy_pj_per_byte",
        "write_energy": "write_energy_pj_per_byte",
    },
    records.Registers: {"capacity": "bytes_per_pe", "energy": "energy_pj_per_byte"},
    records.Array: {
        "rows": "rows",
        "columns": "columns",
        "operations": "pe_cycles",
        "stationarities": "stationarities",
        "foldings": "foldings",
        "skew": "skew",
        "mac_energy": "mac_energy_pj",
        "overhead": "overhead_cycles",
        "chaining": "chaining",
    },
    records.VectorUnit: {"lanes": "lanes", "prices": "prices", "energies": "energies_pj"},
    records.VectorPrices: {name: name for name in records.VECTOR_OPERATIONS},
    records.VectorEnergies: {name: name for name in records.VECTOR_OPERATIONS},
    records.Words: {"storage": "storage_bytes", "accumulator": "accumulator_bytes"},
}

SHARED_BANDWIDTH = "bandwidth"
"""In `offchip`, stands for read_bandwidth and write_bandwidth at once."""

SOURCE = "source"
"""In every group: where its numbers are from, one text or one for each key (`all` for the rest)."""

UNLIMITED = "unlimited"
"""The bandwidth of a buffer that never limits."""

NO_UNIT = "none"
"""Written for `vector` when the machine has no vector unit."""


def keys_of(group: type) -> tuple[str, ...]:
    """Every key that may stand in a group."""
    extra = (SHARED_BANDWIDTH,) if group is records.OffchipMemory else ()
    return (*KEYS[group], *extra, SOURCE)
