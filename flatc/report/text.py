"""A report for people: what binds, how far from the bound, and where cycles, bytes and energy go.

    print(to_text(report))

The first lines are the verdict; the tables below say what it rests on. The text has no timings and no dates: the
same schedule gives the same text.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from flatc.passes.cost.bounds import RESOURCES
from flatc.report.explain import cause_rows, time_line
from flatc.report.model import KernelReport, Report, Roofline
from flatc.report.tables import cycles, duration, energy, percent, size, table, times

RULE = "-" * 100
BINDS = 0.9
"""A resource that is busy for a smaller share of the time does not set the latency alone."""
MOST_CAUSES = 5
"""Causes of the gap that are named; `flatc explain` has them all."""
MOST_STALLS = 2
"""Things that a resource waits for that are named."""
ROWS = {"array": "array", "off-chip": "off-chip memory", "vector": "vector unit"}


def to_text(report: Report) -> str:
    """The whole report, ending with a newline."""
    sections = [_head(report), _summary(report), _resources(report), _traffic(report), _energy(report)]
    sections += [_kernel(report, kernel) for kernel in report.kernels]
    return "\n\n".join("\n".join(section) for section in map(list, sections)) + "\n"


def verdict(report: Report) -> str:
    """What binds, in one line."""
    busy = report.utilisation[report.binding]
    verb = "binds, busy" if busy >= BINDS else "is busiest,"
    line = f"the {ROWS[report.binding]} {verb} {percent(busy)} of the time"
    if report.bounds is None or not report.bounds.cycles:
        return line
    ratio = report.latency_cycles / report.bounds.cycles
    return f"{line}; {float(ratio):.2f}x the time that no schedule can beat ({ROWS[report.bounds.binding]})"


def _head(report: Report) -> Iterator[str]:
    took = duration(report.latency_seconds)
    yield f"{report.title} on {report.accelerator.name}, strategy {report.strategy}: {took}"
    yield verdict(report)
    yield RULE


def _summary(report: Report) -> Iterator[str]:
    machine, moved, peak = report.accelerator, report.work, report.peak_buffer_bytes
    clock = f"{machine.clock_hz / 1e6:,g} MHz"
    capacity = machine.buffer.capacity_bytes
    roof = report.roofline
    rows = [
        ["latency", f"{cycles(report.latency_cycles)} cycles", f"{duration(report.latency_seconds)} at {clock}"],
        ["off chip", f"{report.offchip_bytes:,} B", _directions(moved.offchip_read_bytes, moved.offchip_write_bytes)],
        ["on chip", f"{peak:,} B", f"{size(peak)} of {size(capacity)}, {percent(peak / capacity)}"],
        ["energy", f"{report.energy_pj:,.0f} pJ", energy(report.energy_pj)],
        ["work", f"{roof.macs:,} MAC", _roofline(roof)],
    ]
    yield from table(rows, "<><")
    yield from _notes(report)


def _directions(read: int, written: int) -> str:
    return f"{size(read + written)}: {size(read)} read, {size(written)} written"


def _roofline(roof: Roofline) -> str:
    share = percent(roof.attained / roof.roof) if roof.roof else "-"
    return (
        f"{roof.intensity:,.1f} MAC/B (machine balance {roof.balance:,.1f}), "
        f"{roof.attained:,.1f} of {roof.peak_macs_per_cycle:,} MAC/cycle, {share} of the roofline"
    )


def _notes(report: Report) -> Iterator[str]:
    if report.latency_source != "simulated":
        events = sum(k.events for k in report.kernels if k.latency_source != "simulated")
        yield f"latency: closed form (a lower bound); simulation would take {events:,} events"
    else:
        yield f"latency: simulated, {sum(k.events for k in report.kernels):,} events"
    if report.kept:
        most = max(sum(tensor.bytes for tensor in kernel.kept) for kernel in report.kernels)
        yield f"{len(report.kept)} tensors stay on chip between kernels, at most {most:,} B of them at once"
    if report.free_vector_operations:
        free = ", ".join(report.free_vector_operations)
        yield f"free by the accelerator file: {free}"
    if not report.energy_pj:
        yield "the accelerator file states no energies"


# --- Time ---------------------------------------------------------------------------------------------------


def _resources(report: Report) -> Iterator[str]:
    busy, least, total = report.mapping_bounds, report.bounds, report.latency_cycles
    rows = [["cycles", "least", "this schedule", "", "busy"]]
    for name in RESOURCES:
        bound = least.of(name) if least else None
        rows.append(_resource(ROWS[name], bound, busy.of(name), total))
    rows.append(_resource("all together", least.cycles if least else None, total, None))
    yield from table(rows, "<>>>>")
    yield from _buffer_ports(report)
    if report.gap is None:
        yield "bounds: none, flatc does not recognise what every kernel computes"
        return
    yield from _gap(report)


def _buffer_ports(report: Report) -> Iterator[str]:
    """Whether what is not charged would matter."""
    needed = report.buffer_cycles
    if needed > report.latency_cycles:
        yield f"not charged: the buffer's ports need {cycles(needed)} cycles for the bytes through them, more than that"


def _resource(name: str, least: Fraction | None, used: Fraction, total: Fraction | None) -> list[str]:
    share = percent(float(used / total)) if total else ""
    return [name, cycles(least) if least is not None else "?", cycles(used), times(used, least or Fraction(0)), share]


def _gap(report: Report) -> Iterator[str]:
    gap = report.gap
    assert gap is not None
    if not gap.cycles:
        yield "no schedule is faster"
        return
    if report.explanation is not None:
        sees = ROWS[report.explanation.resource]
        yield f"{cycles(gap.cycles)} cycles above the bound, as the {sees} sees it (`flatc explain` says more):"
        yield from table(cause_rows(report.explanation, MOST_CAUSES), ">><<", "  ")
        return
    causes = [
        (gap.extra_work, f"more work for the {ROWS[report.binding]} than any algorithm needs"),
        (gap.in_sequence, "kernels run one after the other"),
        (gap.waiting, "start, end, and waiting for one another"),
    ]
    yield f"{cycles(gap.cycles)} cycles above the bound:"
    rows = [[cycles(c), percent(float(c / gap.cycles)), why] for c, why in causes if c]
    yield from table(rows, ">><", "  ")


# --- Bytes and energy ---------------------------------------------------------------------------------------


def _traffic(report: Report) -> Iterator[str]:
    rows = [["off-chip bytes", "read", "written", "least", ""]]
    kept = {tensor.name for tensor in report.kept}
    for tensor in report.tensors:
        least = tensor.compulsory_bytes
        ratio = times(Fraction(tensor.bytes), Fraction(least)) if least else "stays inside" if least == 0 else "?"
        ratio = "stays on chip" if tensor.name in kept else ratio
        shown = f"{least:,}" if least is not None else "?"
        rows.append([tensor.name, f"{tensor.read_bytes:,}", f"{tensor.written_bytes:,}", shown, ratio])
    yield from table(rows, "<>>>>")


def _energy(report: Report) -> Iterator[str]:
    total = report.energy_pj
    rows = [["energy", "pJ", ""]]
    for name, part in report.energy_by_component.items():
        rows.append([name, f"{part:,.0f}", percent(part / total) if total else "-"])
    rows.append(["total", f"{total:,.0f}", energy(total)])
    yield from table(rows, "<>>")


# --- Kernels ------------------------------------------------------------------------------------------------


def _kernel(report: Report, kernel: KernelReport) -> Iterator[str]:
    yield RULE
    share = float(kernel.latency_cycles / report.latency_cycles) if report.latency_cycles else 0.0
    name = " with ".join(filter(None, [kernel.strategy, " and ".join(kernel.beyond)]))
    yield f'kernel "{kernel.name}", {name}: {cycles(kernel.latency_cycles)} cycles, {percent(share)}'
    if kernel.time is None:
        busy = ", ".join(f"{ROWS[name]} {percent(part)}" for name, part in kernel.utilisation.items())
        yield f"busy: {busy}"
    else:
        for name, time in kernel.time.resources.items():
            yield time_line(name, time, kernel.latency_cycles, MOST_STALLS)
    yield from _efficiency(report, kernel)
    yield ""
    yield from (f"  {line}" for line in kernel.loops)
    if kernel.mapping is not None:
        yield ""
        yield from (f"  {line}" for line in kernel.mapping.to_text("\n").split("\n"))
    yield ""
    yield from _buffers(kernel)


def _efficiency(report: Report, kernel: KernelReport) -> Iterator[str]:
    """How well the array is used while it is busy, and for what."""
    slots = kernel.mapping_bounds.array_cycles * report.accelerator.array.pes
    if not slots:
        return
    line = f"while the array is busy, {percent(float(kernel.work.macs / slots))} of the PEs have work"
    if kernel.least_macs is not None and kernel.least_macs < kernel.work.macs:
        hidden = 1 - kernel.least_macs / kernel.work.macs
        line += f", {percent(hidden)} of it on scores that the mask hides"
    yield line


def _buffers(kernel: KernelReport) -> Iterator[str]:
    rows = [["buffer", "address", "slots", "bytes", "holds"]]
    for buffer in kernel.buffers:
        where = f"{buffer.address:,}" if buffer.address is not None else "-"
        shape = " x ".join(map(str, buffer.shape))
        rows.append([buffer.label, where, f"{buffer.slots}", f"{buffer.bytes:,}", f"{shape} {buffer.element}"])
    for tensor in kernel.kept:
        where = f"{tensor.address:,}" if tensor.address is not None else "-"
        shape = " x ".join(map(str, tensor.shape))
        rows.append([tensor.name, where, "", f"{tensor.bytes:,}", f"{shape} {tensor.element}, stays on chip"])
    yield from table(rows, "<>>><", "  ")
    yield f"  peak {kernel.peak_buffer_bytes:,} B"
    if kernel.live_elements is not None:
        yield f"  live footprint by FLAT's formula (4*R*d + 4*N*d + R*N): {kernel.live_elements:,} elements"
