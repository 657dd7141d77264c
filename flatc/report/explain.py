"""An explanation for people and for programs: where the time above the bound goes, and what each resource waits for.

    print(explanation_text(explanation, "bert_base", accelerator))

Causes are those of the resource that sets the bound; they add up to the gap. Below, each kernel's resources: busy,
idle by what they waited for, and done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.passes.cost.bounds import Bounds
from flatc.passes.cost.explanation import Explanation, KernelExplanation
from flatc.passes.simulation.stalls import ResourceTime, Stall
from flatc.report.json import causes_list, number, time_dict
from flatc.report.tables import cycles, duration, percent, table

QUEUES = {
    "array": "array",
    "vector": "vector unit",
    "offchip": "off-chip channel",
    "read": "off-chip reads",
    "write": "off-chip writes",
}
SETS = {"array": "array", "off-chip": "off-chip memory", "vector": "vector unit"}
LEAST_SHARE = 0.0005
"""Smaller shares of a kernel's time are added up in one line."""


def explanation_text(explanation: Explanation, graph: str, accelerator: Accelerator) -> str:
    """The whole explanation, ending with a newline."""
    sections = [_head(explanation, graph, accelerator), _causes(explanation)]
    sections += [_kernel(kernel) for kernel in explanation.kernels]
    return "\n\n".join("\n".join(section) for section in map(list, sections)) + "\n"


def _head(explanation: Explanation, graph: str, accelerator: Accelerator) -> Iterator[str]:
    latency, bound = explanation.latency_cycles, explanation.bounds.cycles
    took = duration(accelerator.seconds(latency))
    yield f"{graph} on {accelerator.name}: {cycles(latency)} cycles, {took}"
    sets = SETS[explanation.resource]
    ratio = f", {float(latency / bound):.2f}x as long" if bound else ""
    yield f"no schedule takes less than {cycles(bound)} cycles of the {sets}; this one takes {cycles(latency)}{ratio}"


def _causes(explanation: Explanation) -> Iterator[str]:
    gap = explanation.gap_cycles
    if not gap:
        yield "no schedule is faster"
        return
    yield f"where the {cycles(gap)} cycles above the bound go, as the {SETS[explanation.resource]} sees it:"
    rows = [*cause_rows(explanation, len(explanation.causes)), [cycles(gap), percent(1.0), "", "together"]]
    yield from table(rows, ">><<", "  ")


def cause_rows(explanation: Explanation, most: int) -> list[list[str]]:
    """Rows of a table: the largest causes, at most so many, and all else; there is a gap."""
    gap, small = explanation.gap_cycles, Fraction(0)
    rows: list[list[str]] = []
    for cause in sorted(explanation.causes, key=lambda cause: -abs(cause.cycles)):
        if abs(cause.cycles) < LEAST_SHARE * gap or len(rows) == most:
            small += cause.cycles
        else:
            rows.append([cycles(cause.cycles), percent(float(cause.cycles / gap)), cause.kind, cause.name])
    if small:
        rows.append([cycles(small), percent(float(small / gap)), "", "all else"])
    return rows


def time_line(name: str, time: ResourceTime, latency: Fraction, most: int) -> str:
    """One resource in one line: how much of the time it is busy, and what it waits for most."""
    share = percent(float(time.busy / latency)) if latency else "-"
    parts = [f"{QUEUES[name]}: busy {share}"]
    stalls = sorted(time.stalls.items(), key=lambda item: -item[1])
    for stall, idle in stalls[:most]:
        if idle >= LEAST_SHARE * latency:
            parts.append(f"{percent(float(idle / latency))} waiting for {waited_for(stall)}")
    return ", ".join(parts)


def waited_for(stall: Stall) -> str:
    """What a resource waits for, in words."""
    if stall.waits_for == "slots":
        return f"a free slot of {stall.what}"
    return f"{stall.what} ({QUEUES[stall.waits_for]})"


def _kernel(kernel: KernelExplanation) -> Iterator[str]:
    yield f'kernel "{kernel.name}": {cycles(kernel.latency_cycles)} cycles'
    for name, time in kernel.resources.items():
        rows = [["busy", cycles(time.busy), percent(_share(time.busy, kernel))]]
        rows += [[why, cycles(c), percent(_share(c, kernel))] for why, c in _idle(time, kernel)]
        yield f"  {QUEUES[name]}"
        yield from table(rows, "<>>", "    ")


def _share(part: Fraction, kernel: KernelExplanation) -> float:
    return float(part / kernel.latency_cycles) if kernel.latency_cycles else 0.0


def _idle(time: ResourceTime, kernel: KernelExplanation) -> Iterator[tuple[str, Fraction]]:
    small = time.after
    for stall, idle in sorted(time.stalls.items(), key=lambda item: -item[1]):
        if idle < LEAST_SHARE * kernel.latency_cycles:
            small += idle
            continue
        yield f"waits for {waited_for(stall)}", idle
    if small:
        yield "start, end and the rest", small


def explanation_json(explanation: Explanation, graph: str, accelerator: Accelerator) -> str:
    """One JSON object, ending with a newline; cycles as in the JSON report."""
    found = {
        "schema_version": 1,
        "graph": graph,
        "accelerator": accelerator.name,
        "latency_cycles": number(explanation.latency_cycles),
        "bounds": _bounds(explanation.bounds),
        "resource": explanation.resource,
        "gap_cycles": number(explanation.gap_cycles),
        "causes": causes_list(explanation),
        "kernels": [_kernel_dict(kernel) for kernel in explanation.kernels],
    }
    return json.dumps(found, indent=2, allow_nan=False) + "\n"


def _bounds(bounds: Bounds) -> dict[str, Any]:
    return {name: number(value) for name, value in vars(bounds).items()}


def _kernel_dict(kernel: KernelExplanation) -> dict[str, Any]:
    return {
        "name": kernel.name,
        "latency_cycles": number(kernel.latency_cycles),
        "resources": time_dict(kernel.resources),
    }
