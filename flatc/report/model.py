"""What a report says, as records: every number, none of the words.

A report is a function of a schedule alone, so that compiling a graph, replaying its mapping and reading back the
schedule file give the same one. `build` makes it; `text` and `json` are two ways to write it down.

    report.latency_cycles, report.latency_seconds
    report.bounds.binding, report.gap.cycles
    report.kernels[0].offchip_bytes, report.kernels[0].utilisation["vector"]

Cycles are exact fractions, bytes and counts integers. Totals are sums over kernels, which run one after
the other, but for the peak of buffer bytes and the bounds, which belong to the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import reduce

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.kernel_mapping import KernelMapping
from flatc.passes.cost.bounds import NO_BOUNDS, RESOURCES, Bounds, buffer_cycles
from flatc.passes.cost.explanation import Explanation
from flatc.passes.cost.primitive_costs import Work, energy_pj
from flatc.passes.simulation.stalls import KernelTime


@frozen
class TensorTraffic:
    """Off-chip bytes of one tensor. `compulsory_bytes` is what any schedule of the graph moves."""

    name: str
    read_bytes: int
    written_bytes: int
    compulsory_bytes: int | None

    @property
    def bytes(self) -> int:
        """Both directions."""
        return self.read_bytes + self.written_bytes


@frozen
class BufferUse:
    """One buffer: where its first slot lies, how many slots of which size it has, what it holds."""

    label: str
    address: int | None
    slots: int
    slot_bytes: int
    shape: tuple[int, ...]
    element: str

    @property
    def bytes(self) -> int:
        """All slots."""
        return self.slots * self.slot_bytes


@frozen
class KeptTensor:
    """A tensor that is on chip while a kernel runs, for this kernel or for others: where it lies, what it holds."""

    name: str
    address: int | None
    bytes: int
    shape: tuple[int, ...]
    element: str


@frozen
class Roofline:
    """Where a program stands under the roofline, in multiply-accumulates (MAC)."""

    macs: int
    offchip_bytes: int
    cycles: Fraction
    peak_macs_per_cycle: int
    bytes_per_cycle: Fraction

    @property
    def intensity(self) -> float:
        """MAC per byte moved off chip."""
        return self.macs / self.offchip_bytes if self.offchip_bytes else 0.0

    @property
    def balance(self) -> float:
        """MAC per byte at which the machine's array and its off-chip memory are equally busy."""
        return float(self.peak_macs_per_cycle / self.bytes_per_cycle)

    @property
    def attained(self) -> float:
        """MAC per cycle."""
        return float(self.macs / self.cycles) if self.cycles else 0.0

    @property
    def roof(self) -> float:
        """The most MAC per cycle at this intensity."""
        return min(float(self.peak_macs_per_cycle), self.intensity * float(self.bytes_per_cycle))


@frozen
class Gap:
    """Latency beyond the bound, by cause; the causes add up to `cycles`.

    `extra_work`: the busiest resource does more than any algorithm needs. `in_sequence`: kernels wait for
    each other instead of sharing the machine. `waiting`: within a kernel, the busiest resource starts late,
    waits, or ends early.
    """

    extra_work: Fraction
    in_sequence: Fraction
    waiting: Fraction

    @property
    def cycles(self) -> Fraction:
        """The whole gap."""
        return self.extra_work + self.in_sequence + self.waiting


@frozen
class KernelReport:
    """One kernel. `strategy` names its corner of the map space; `loops` shows its loop nest, line by line.

    `beyond` says what the mapping does that the strategies of its corner do not.
    `bounds` are those of what the kernel computes; None where flatc does not recognise it. `least_macs` are the
    multiply-accumulates of visible scores. `kept` are the tensors that stay on chip between kernels while it runs;
    `peak_buffer_bytes` has them in it. `time` says how each resource spent it, if the kernel was simulated.
    """

    name: str
    strategy: str
    mapping: KernelMapping | None
    loops: tuple[str, ...]
    latency_cycles: Fraction
    latency_source: str
    events: int
    tensors: tuple[TensorTraffic, ...]
    buffers: tuple[BufferUse, ...]
    peak_buffer_bytes: int
    live_elements: int | None
    work: Work
    least_macs: int | None
    bounds: Bounds | None
    mapping_bounds: Bounds
    time: KernelTime | None = None
    beyond: tuple[str, ...] = ()
    kept: tuple[KeptTensor, ...] = ()

    @property
    def offchip_bytes(self) -> int:
        """All off-chip traffic."""
        return self.work.offchip_read_bytes + self.work.offchip_write_bytes

    @property
    def utilisation(self) -> Mapping[str, float]:
        """How much of the kernel's time each resource is busy."""
        return utilisation(self.mapping_bounds, self.latency_cycles)


@frozen
class Report:
    """One schedule on one accelerator. `phase` is the phase of its graph, None where the graph has none.

    `explanation` names the causes of the gap to the bound; None where a kernel is not recognised, or was not simulated.
    """

    graph: str
    accelerator: Accelerator
    strategy: str
    kernels: tuple[KernelReport, ...]
    bounds: Bounds | None
    phase: str | None = None
    explanation: Explanation | None = None

    @property
    def title(self) -> str:
        """The graph, with its phase."""
        return self.graph if self.phase is None else f"{self.graph} ({self.phase})"

    @property
    def latency_cycles(self) -> Fraction:
        """From the first kernel's start to the last one's end."""
        return sum((kernel.latency_cycles for kernel in self.kernels), Fraction(0))

    @property
    def latency_seconds(self) -> float:
        """The same at the machine's clock."""
        return self.accelerator.seconds(self.latency_cycles)

    @property
    def latency_source(self) -> str:
        """`simulated` if every kernel was, else `closed form`: then the latency is a lower bound."""
        return "simulated" if all(k.latency_source == "simulated" for k in self.kernels) else "closed form"

    @property
    def work(self) -> Work:
        """What all kernels did."""
        return reduce(Work.__add__, (kernel.work for kernel in self.kernels), Work())

    @property
    def offchip_bytes(self) -> int:
        """All off-chip traffic."""
        return self.work.offchip_read_bytes + self.work.offchip_write_bytes

    @property
    def peak_buffer_bytes(self) -> int:
        """The most bytes on chip at any time."""
        return max((kernel.peak_buffer_bytes for kernel in self.kernels), default=0)

    @property
    def energy_by_component(self) -> Mapping[str, float]:
        """Picojoules by component; they add up to `energy_pj`."""
        return energy_pj(self.accelerator, self.work)

    @property
    def energy_pj(self) -> float:
        """All energy."""
        return float(sum(self.energy_by_component.values()))

    @property
    def mapping_bounds(self) -> Bounds:
        """How long each resource is busy."""
        return reduce(Bounds.__add__, (kernel.mapping_bounds for kernel in self.kernels), NO_BOUNDS)

    @property
    def buffer_cycles(self) -> Fraction:
        """What the buffer's ports need for all bytes through them, which no schedule is charged; 0 if unlimited."""
        return buffer_cycles(self.accelerator, self.work)

    @property
    def binding(self) -> str:
        """The resource that is busiest, and so the one to relieve first."""
        return self.mapping_bounds.binding

    @property
    def utilisation(self) -> Mapping[str, float]:
        """How much of the time each resource is busy."""
        return utilisation(self.mapping_bounds, self.latency_cycles)

    @property
    def gap(self) -> Gap | None:
        """Why the latency is above the bound; None where there is no bound."""
        if self.bounds is None:
            return None
        busiest = sum((kernel.mapping_bounds.cycles for kernel in self.kernels), Fraction(0))
        together = self.mapping_bounds.cycles
        return Gap(together - self.bounds.cycles, busiest - together, self.latency_cycles - busiest)

    @property
    def tensors(self) -> tuple[TensorTraffic, ...]:
        """Traffic by tensor, over all kernels."""
        return merge_traffic(traffic for kernel in self.kernels for traffic in kernel.tensors)

    @property
    def kept(self) -> tuple[KeptTensor, ...]:
        """The tensors that stay on chip between kernels, in order of first appearance."""
        return tuple(dict.fromkeys(tensor for kernel in self.kernels for tensor in kernel.kept))

    @property
    def roofline(self) -> Roofline:
        """Where the program stands under the roofline."""
        return roofline(self.accelerator, self.work, self.latency_cycles)

    @property
    def free_vector_operations(self) -> tuple[str, ...]:
        """What the accelerator file does not charge."""
        return self.accelerator.free_vector_operations


def utilisation(busy: Bounds, latency: Fraction) -> dict[str, float]:
    """Busy time of each resource over the latency."""
    return {name: float(busy.of(name) / latency) if latency else 0.0 for name in RESOURCES}


def roofline(accelerator: Accelerator, work: Work, cycles: Fraction) -> Roofline:
    """The roofline numbers of some work; bandwidth is that of reads, which dominate."""
    moved = work.offchip_read_bytes + work.offchip_write_bytes
    return Roofline(work.macs, moved, cycles, accelerator.array.pes, 1 / accelerator.cycles_per_byte_read)


def merge_traffic(parts: Iterable[TensorTraffic]) -> tuple[TensorTraffic, ...]:
    """One row for each tensor, in order of first appearance."""
    read, written, compulsory = Counter[str](), Counter[str](), dict[str, int | None]()
    for part in parts:
        read[part.name] += part.read_bytes
        written[part.name] += part.written_bytes
        compulsory[part.name] = part.compulsory_bytes
    return tuple(TensorTraffic(name, read[name], written[name], least) for name, least in compulsory.items())
