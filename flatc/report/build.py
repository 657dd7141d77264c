"""From a schedule to its report.

    report = build_report(module)                      # a module that holds one spatial.schedule and its machine

Everything is read off the schedule itself, so a schedule file gives the report that its compilation gave.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from xdsl.dialects.builtin import ModuleOp

from flatc.dialects.accelerator import Accelerator, accelerator_of
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.onchip_rules import alive_by_kernel
from flatc.dialects.spatial import BufferOp, KernelOp, OnchipOp, ScheduleOp
from flatc.passes.cost.bounds import least_macs, mapping_bounds, problem_bounds
from flatc.passes.cost.explanation import Explanation, explain
from flatc.passes.cost.kernel_costs import KernelCosts, Simulate, all_kernel_costs
from flatc.passes.kernels.schedule_problem import compulsory_by_tensor, schedule_bounds
from flatc.passes.kinds.registry import kernel_part, kind_with, parts
from flatc.report.loops import loop_lines
from flatc.report.model import BufferUse, KeptTensor, KernelReport, Report, TensorTraffic


def schedule_of(module: ModuleOp) -> ScheduleOp:
    """The one schedule of a module."""
    schedules = [op for op in module.ops if isinstance(op, ScheduleOp)]
    if len(schedules) != 1:
        raise FlatcError(f"the module has {len(schedules)} schedules", help="a report is about one schedule")
    return schedules[0]


def build_report(module: ModuleOp, simulate: Simulate = "auto") -> Report:
    """The report of the schedule in `module`."""
    schedule, accelerator = schedule_of(module), accelerator_of(module)
    found = parts(schedule)
    compulsory = None if found is None else compulsory_by_tensor(schedule, found)
    costs = all_kernel_costs(schedule.kernels(), accelerator, simulate)
    kept = alive_by_kernel(schedule)
    kernels = tuple(map(partial(_kernel, accelerator, compulsory), schedule.kernels(), costs, kept))
    bounds = None
    if found is not None:
        bounds = schedule_bounds(schedule, found, accelerator)
    phase = schedule.phase.data if schedule.phase is not None else None
    explanation = _explanation(schedule, accelerator, kernels) if found is not None else None
    strategy = _strategy(schedule.kernels())
    return Report(schedule.sym_name.data, accelerator, strategy, kernels, bounds, phase, explanation)


def _explanation(schedule: ScheduleOp, accelerator: Accelerator, kernels: Sequence[KernelReport]) -> Explanation | None:
    times = [kernel.time for kernel in kernels if kernel.time is not None]
    return explain(schedule, accelerator, times) if len(times) == len(kernels) else None


def _strategy(kernels: Sequence[KernelOp]) -> str:
    """What was asked for, as far as the schedule says it."""
    names = {kernel.strategy.data if kernel.strategy else "given" for kernel in kernels}
    return names.pop() if len(names) == 1 else "mixed"


def _kernel(
    accelerator: Accelerator,
    compulsory: dict[str, int] | None,
    kernel: KernelOp,
    costs: KernelCosts,
    kept: Sequence[OnchipOp],
) -> KernelReport:
    part = kernel_part(kernel)
    problem = part.problem if part else None
    mapping = kernel.mapping.data if kernel.mapping else None
    kind = kind_with(problem) if problem is not None and mapping is not None else None
    return KernelReport(
        name=kernel.label.data,
        strategy=kind.corner(problem, kind.mapping_of(kernel)) if kind else "given",
        mapping=mapping,
        loops=tuple(loop_lines(kernel)),
        latency_cycles=costs.latency_cycles,
        latency_source=costs.source,
        events=costs.events,
        tensors=_tensors(costs, compulsory),
        buffers=tuple(map(_buffer, kernel.buffers())),
        peak_buffer_bytes=_peak_bytes(costs.peak_buffer_bytes, kept),
        beyond=kind.beyond(problem, kind.mapping_of(kernel)) if kind else (),
        live_elements=kind.live_elements(problem, kind.mapping_of(kernel)) if kind else None,
        work=costs.work,
        least_macs=least_macs(problem) if problem else None,
        bounds=problem_bounds([problem], accelerator) if problem else None,
        mapping_bounds=mapping_bounds(costs, accelerator),
        time=costs.time,
        kept=tuple(map(_kept, kept)),
    )


def _peak_bytes(own_bytes: int, kept: Sequence[OnchipOp]) -> int:
    """Bytes on chip while a kernel runs: up to the end of its highest buffer, or of a tensor that stays meanwhile."""
    if any(tensor.address is None for tensor in kept):
        return own_bytes + sum(tensor.bytes for tensor in kept)
    return max([own_bytes, *(tensor.address.data + tensor.bytes for tensor in kept if tensor.address is not None)])


def _kept(tensor: OnchipOp) -> KeptTensor:
    type, address = tensor.tensor.type, None if tensor.address is None else tensor.address.data
    return KeptTensor(tensor.label.data, address, tensor.bytes, type.dims, str(type.element_type))


def _tensors(costs: KernelCosts, compulsory: dict[str, int] | None) -> tuple[TensorTraffic, ...]:
    return tuple(
        TensorTraffic(name, read, written, None if compulsory is None else compulsory.get(name, 0))
        for name, (read, written) in costs.tensor_bytes.items()
    )


def _buffer(buffer: BufferOp) -> BufferUse:
    type = buffer.type
    address = buffer.address.data if buffer.address is not None else None
    return BufferUse(buffer.label.data, address, buffer.slots.data, type.bytes, type.dims, str(type.element_type))
