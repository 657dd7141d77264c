"""A report for programs: one JSON object, with `schema_version`, `totals` and `kernels`.

    {"schema_version": 1, "graph": "bert_base", "accelerator": "edge", "strategy": "auto",
     "totals": {"latency_cycles": 123, "latency_seconds": 1.3e-07, "offchip_bytes": ..., "bounds": {...}, ...},
     "kernels": [{"name": "attention", "strategy": "online", "mapping": "tiles(...) ...", ...}]}

Cycles that are whole are integers, others floats. `docs/report.md` lists the keys. `schema_version` grows when
a key changes its meaning or goes away, not when one is added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from fractions import Fraction
from typing import Any

from flatc.dialects.kernel_mapping import KernelMapping
from flatc.passes.cost.bounds import Bounds
from flatc.passes.cost.explanation import Explanation
from flatc.passes.cost.primitive_costs import energy_pj
from flatc.passes.simulation.stalls import ResourceTime
from flatc.report.model import KernelReport, Report, Roofline, TensorTraffic, roofline

SCHEMA_VERSION = 1


def to_json(report: Report) -> str:
    """The text, ending with a newline."""
    return json.dumps(to_dict(report), indent=2, allow_nan=False) + "\n"


def to_dict(report: Report) -> dict[str, Any]:
    """The object."""
    return {
        "schema_version": SCHEMA_VERSION,
        "graph": report.graph,
        "phase": report.phase,
        "accelerator": report.accelerator.name,
        "strategy": report.strategy,
        "totals": _totals(report),
        "free_vector_operations": list(report.free_vector_operations),
        "kernels": [_kernel(report, kernel) for kernel in report.kernels],
    }


def _totals(report: Report) -> dict[str, Any]:
    gap = report.gap
    causes = {name: number(value) for name, value in vars(gap).items()} if gap else None
    return {
        **_costs(report, report),
        "buffer_cycles": number(report.buffer_cycles),
        "buffer_capacity_bytes": report.accelerator.buffer.capacity_bytes,
        "gap": {"cycles": number(gap.cycles), **(causes or {})} if gap else None,
        "explanation": _explanation(report.explanation),
        "roofline": _roofline(report.roofline),
    }


def _costs(report: Report, part: Report | KernelReport) -> dict[str, Any]:
    """What totals and kernels have in common."""
    energies = energy_pj(report.accelerator, part.work)
    return {
        "latency_cycles": number(part.latency_cycles),
        "latency_seconds": report.accelerator.seconds(part.latency_cycles),
        "latency_source": part.latency_source,
        "offchip_bytes": part.offchip_bytes,
        "offchip_read_bytes": part.work.offchip_read_bytes,
        "offchip_write_bytes": part.work.offchip_write_bytes,
        "tensors": {tensor.name: _tensor(tensor) for tensor in part.tensors},
        "peak_buffer_bytes": part.peak_buffer_bytes,
        "energy_pj": float(sum(energies.values())),
        "energy_by_component_pj": {name: float(value) for name, value in energies.items()},
        "macs": part.work.macs,
        "bounds": _bounds(part.bounds),
        "mapping_bounds": _bounds(part.mapping_bounds),
        "binding": part.mapping_bounds.binding,
        "utilisation": dict(part.utilisation),
    }


def _kernel(report: Report, kernel: KernelReport) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "strategy": kernel.strategy,
        "beyond": kernel.beyond,
        "mapping": kernel.mapping.to_text() if kernel.mapping else None,
        "mapping_fields": _mapping_fields(kernel.mapping),
        **_costs(report, kernel),
        "events": kernel.events,
        "live_elements": kernel.live_elements,
        "roofline": _roofline(roofline(report.accelerator, kernel.work, kernel.latency_cycles)),
        "on_chip": [asdict(tensor) for tensor in kernel.kept],
        "buffers": [asdict(buffer) | {"bytes": buffer.bytes} for buffer in kernel.buffers],
        "time": time_dict(kernel.time.resources) if kernel.time is not None else None,
    }


def _mapping_fields(mapping: KernelMapping | None) -> dict[str, Any] | None:
    return asdict(mapping) if is_dataclass(mapping) and not isinstance(mapping, type) else None


def _explanation(explanation: Explanation | None) -> dict[str, Any] | None:
    return None if explanation is None else {"resource": explanation.resource, "causes": causes_list(explanation)}


def causes_list(explanation: Explanation) -> list[dict[str, Any]]:
    """The causes of the gap, largest first; they add up to it."""
    return [{"kind": c.kind, "name": c.name, "cycles": number(c.cycles)} for c in explanation.causes]


def time_dict(resources: Mapping[str, ResourceTime]) -> dict[str, Any]:
    """By resource its busy cycles, those of its stalls by what it waited for, and those after its last operation."""
    return {
        name: {
            "busy": number(time.busy),
            "stalls": [
                {"waits_for": stall.waits_for, "what": stall.what, "cycles": number(idle)}
                for stall, idle in sorted(time.stalls.items(), key=lambda item: (-item[1], item[0].what))
            ],
            "after": number(time.after),
        }
        for name, time in resources.items()
    }


def _tensor(tensor: TensorTraffic) -> dict[str, int | None]:
    read, written, least = tensor.read_bytes, tensor.written_bytes, tensor.compulsory_bytes
    return {"read_bytes": read, "written_bytes": written, "compulsory_bytes": least}


def _bounds(bounds: Bounds | None) -> dict[str, int | float] | None:
    return None if bounds is None else {name: number(value) for name, value in vars(bounds).items()}


def _roofline(roof: Roofline) -> dict[str, float]:
    return {
        "macs_per_byte": roof.intensity,
        "balance_macs_per_byte": roof.balance,
        "macs_per_cycle": roof.attained,
        "roof_macs_per_cycle": roof.roof,
        "peak_macs_per_cycle": roof.peak_macs_per_cycle,
    }


def number(value: Fraction) -> int | float:
    """A plain number: whole if it is."""
    return value.numerator if value.denominator == 1 else float(value)
