"""What a kernel of a schedule costs: simulated where that is quick, else by the closed form.

This is the one place that decides between the two. Simulation is exact and takes time that grows with the number of
different trips, not with all of them (`simulation/skip_ahead.py`), so it is quick at nearly any length. The closed form
of the kernel's mapping takes none, counts bytes and work just as exactly, and gives a latency that the schedule cannot
beat (`closed_form.py` says how near it comes).

    costs = kernel_costs(kernel, accelerator)
    costs.latency_cycles, costs.source               # Fraction(...), "simulated"
    count_events(kernel)                             # 25600, without walking them

A kernel without a mapping, or one that is not what its mapping makes, can only be simulated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from xdsl.ir import Block, SSAValue

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError, position_of
from flatc.dialects.flat import MappingAttr
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import ForOp, KernelOp, TimedOp
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.bounds import is_written, mapping_bounds
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.kernels.same_kernel import likeness
from flatc.passes.kernels.schedule_problem import Part
from flatc.passes.kinds.registry import kernel_part, kind_with
from flatc.passes.simulation.simulator import KernelSimulation, peak_buffer_bytes, simulate_kernel, try_simulate
from flatc.passes.simulation.stalls import KernelTime, try_kernel_time

MOST_EFFORT = 250_000
"""A simulation that takes as long as walking so many operations gives up, unless it is asked for: about a second.
Nearly every kernel takes a tenth of that or less, at any length."""

Source = Literal["simulated", "closed form"]
Simulate = Literal["auto", "always", "never"]
SIMULATE: tuple[Simulate, ...] = ("auto", "always", "never")


@frozen
class KernelCosts:
    """Costs of one kernel. `tensor_bytes` are (read, written) by name; `events` counts all operations.

    `time` says where the time went, if that was found out: not where the closed form stands in for a simulation.
    """

    latency_cycles: Fraction
    source: Source
    busy_cycles: dict[str, Fraction]
    tensor_bytes: dict[str, tuple[int, int]]
    work: Work
    peak_buffer_bytes: int
    events: int
    time: KernelTime | None = None


def kernel_costs(kernel: KernelOp, accelerator: Accelerator, simulate: Simulate = "auto") -> KernelCosts:
    """The costs of a kernel; see the module docstring for where they come from."""
    part, events = kernel_part(kernel), count_events(kernel)
    if simulate != "never":
        explained = try_kernel_time(kernel, accelerator, None if simulate == "always" else MOST_EFFORT)
        if explained is not None:
            return _simulated(*explained, part, events)
    found = None
    if simulate == "always":
        found = simulate_kernel(kernel, accelerator)
    elif simulate == "auto":
        found = try_simulate(kernel, accelerator, MOST_EFFORT)
    if found is not None:
        return _simulated(found, None, part, events)
    if kernel.mapping is None or part is None:
        raise FlatcError(
            f"kernel '{kernel.label.data}' takes {events} events to simulate, and without a mapping it has no "
            "closed form",
            position=position_of(kernel),
            help="simulate it always, if you have the time",
        )
    return _closed_form(kernel, part, accelerator, events)


def all_kernel_costs(
    kernels: Sequence[KernelOp], accelerator: Accelerator, simulate: Simulate = "auto"
) -> list[KernelCosts]:
    """The costs of several kernels, those of kernels that differ in their tensors only found once."""
    priced: dict[tuple[MappingAttr | None, int], list[tuple[KernelOp, KernelCosts]]] = {}
    found: list[KernelCosts] = []
    for kernel in kernels:
        alike = priced.setdefault((kernel.mapping, len(list(kernel.walk()))), [])
        costs = _known_costs(kernel, alike)
        if costs is None:
            costs = kernel_costs(kernel, accelerator, simulate)
            alike.append((kernel, costs))
        found.append(costs)
    return found


def _known_costs(kernel: KernelOp, alike: Sequence[tuple[KernelOp, KernelCosts]]) -> KernelCosts | None:
    for other, costs in alike:
        same = likeness(other, kernel)
        if same is not None:
            tensors = {same.tensors[name]: size for name, size in costs.tensor_bytes.items()}
            time = costs.time.renamed(same.ops) if costs.time is not None else None
            return replace(
                costs,
                tensor_bytes=dict(sorted(tensors.items())),
                time=time,
                peak_buffer_bytes=peak_buffer_bytes(kernel),
            )
    return None


def _simulated(found: KernelSimulation, time: KernelTime | None, part: Part | None, events: int) -> KernelCosts:
    untouched = dict.fromkeys(part.tensors.values(), (0, 0)) if part else {}
    return KernelCosts(
        latency_cycles=found.latency_cycles,
        source="simulated",
        busy_cycles=found.busy_cycles,
        tensor_bytes=dict(sorted((untouched | found.tensor_bytes).items())),
        work=found.work,
        peak_buffer_bytes=found.peak_buffer_bytes,
        events=events,
        time=time,
    )


def _closed_form(kernel: KernelOp, part: Part, accelerator: Accelerator, events: int) -> KernelCosts:
    kind = kind_with(part.problem)
    form = kind.price(part.problem, accelerator, kind.mapping_of(kernel))
    tensors: dict[str, tuple[int, int]] = {}
    for role, column in form.tensor_bytes.items():
        read, written = tensors.get(part.tensors[role], (0, 0))
        size = int(column[0])
        tensors[part.tensors[role]] = (read, written + size) if is_written(role) else (read + size, written)
    busy = mapping_bounds(form, accelerator)
    return KernelCosts(
        latency_cycles=max(Fraction(float(form.latency_cycles[0])), busy.cycles),
        source="closed form",
        busy_cycles={name: Fraction(column[0].item()) for name, column in sorted(form.busy_cycles.items())},
        tensor_bytes=dict(sorted(tensors.items())),
        work=Work(**{name: _number(value) for name, value in vars(form.work).items()}),
        peak_buffer_bytes=peak_buffer_bytes(kernel),
        events=events,
    )


def _number(value: Any) -> Any:
    return value[0].item() if hasattr(value, "shape") and value.shape else value


# --- Counting events ----------------------------------------------------------------------------------------


@frozen
class _Trips:
    """The trips of the loops around a place: `copies` of each row, whose index values are columns.

    Only indices that some bound inside depends on have a column; the others are in `copies`.
    """

    indices: Mapping[SSAValue, Ints]
    copies: Ints


def count_events(kernel: KernelOp) -> int:
    """How many operations a simulation executes, counting those that a `when` skips."""
    import numpy as np

    return _count(kernel.body.block, _Trips({}, np.ones(1, dtype=np.int64)))


def _count(block: Block, around: _Trips) -> int:
    total = 0
    for op in block.ops:
        if isinstance(op, TimedOp):
            total += int(around.copies.sum())
        elif isinstance(op, ForOp):
            total += _count(op.body.block, _inside(op, around))
    return total


def _inside(loop: ForOp, around: _Trips) -> _Trips:
    import numpy as np

    names = {f"d{i}": around.indices[value] for i, value in enumerate(loop.indices)}
    lower = np.broadcast_to(loop.lower.data.evaluate(names), around.copies.shape)
    trips = np.maximum(loop.upper.data.evaluate(names) - lower, 0)
    if not _bounds_something(loop):
        return _Trips(around.indices, around.copies * trips)
    row = np.repeat(np.arange(len(trips)), trips)
    first = np.repeat(np.cumsum(trips) - trips, trips)
    indices = {value: column[row] for value, column in around.indices.items()}
    return _Trips(indices | {loop.index: lower[row] + np.arange(len(row)) - first}, around.copies[row])


def _bounds_something(loop: ForOp) -> bool:
    """Whether a loop inside of `loop` has bounds that depend on its index."""
    return any(isinstance(use.operation, ForOp) for use in loop.index.uses)
