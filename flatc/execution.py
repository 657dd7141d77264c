"""Executing a schedule in NumPy and comparing it with attention in float64: what `flatc run` does.

    result = run(schedule, graph)
    result.passed, result.max_abs_error, result.tolerance

The reference is the graph itself with nothing rounded below float64; for a schedule without its graph, attention
by its definition on the schedule's inputs. The tolerance follows from the types in use, for reference values of at
most M, sums of n terms, and `eps` the distance from 1 to the next number of a type:

    M * (2 * eps(stored) + (2 + sqrt(n)) * eps(accumulated))

where probabilities and outputs are stored and scores, sums and outputs are accumulated. In float64 that is about
1e-14, with bf16 storage and float32 accumulation about 2 % of M.

A layer rounds many times, and how far that carries depends on its numbers, which a norm may magnify. So its graph is
also executed operator by operator, rounded to the types that it states, and twice the error of that is added: a
schedule must be about as exact as its graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
from xdsl.dialects.builtin import AnyFloat, DictionaryAttr, IntegerAttr, ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import Attribute, SSAValue

from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import BufferType, KernelOp, MatmulOp, ScheduleOp, StoreOp, VectorOp, timed_ops
from flatc.interpreter import random_inputs, run_module, run_schedule
from flatc.interpreter.dtypes import Array, numpy_dtype
from flatc.interpreter.engine import result_names
from flatc.interpreter.schedule_reference import attention_of
from flatc.passes.cost.bounds import AnyProblem, least_macs, longest_sum
from flatc.passes.cost.kernel_costs import count_events
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.schedule_problem import Attention, Part
from flatc.passes.kinds.registry import parts
from flatc.report.build import schedule_of

MOST_MACS = 2_000_000_000
"""Larger attentions are not executed: their reference takes minutes and gigabytes."""
MOST_RUN_EVENTS = 500_000
"""Schedules with more operations are not executed: each takes some tens of microseconds."""


@frozen
class RunResult:
    """Outputs by name, the float64 reference, and how far apart they are. `offchip_bytes` are (read, written)."""

    outputs: Mapping[str, Array]
    reference: Mapping[str, Array]
    max_abs_error: float
    tolerance: float
    offchip_bytes: Mapping[str, tuple[int, int]]

    @property
    def passed(self) -> bool:
        """Whether the outputs are the reference's, up to rounding; an output that is not a number is not."""
        return self.max_abs_error <= self.tolerance


def run(module: ModuleOp, graph: ModuleOp | None, inputs: Mapping[str, Any] | None = None, seed: int = 0) -> RunResult:
    """Runs a schedule on inputs, or on seeded ones, and compares."""
    schedule = schedule_of(module)
    found = parts(schedule)
    _check_size(schedule, found, graph)
    arrays = dict(inputs) if inputs is not None else random_inputs(graph or module, seed)
    done = run_schedule(module, arrays)
    outputs = dict(zip(result_names(schedule), done.outputs, strict=True))
    reference = _reference(schedule, found, graph, arrays)
    largest = max(map(_largest, reference.values()), default=0.0)
    tolerance = relative_tolerance(schedule, found) * largest
    if graph is not None and not _only_attention(found):
        rounded = dict(zip(result_names(schedule), run_module(graph, arrays), strict=True))
        tolerance += 2 * _largest_distance(rounded, reference)
    return RunResult(
        outputs=outputs,
        reference=reference,
        max_abs_error=_largest_distance(outputs, reference),
        tolerance=tolerance,
        offchip_bytes=done.offchip_bytes,
    )


def _only_attention(found: Iterable[Part] | None) -> bool:
    return found is not None and all(isinstance(part, Attention) for part in found)


def _largest_distance(outputs: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    return max((_distance(outputs[name], reference[name]) for name in reference), default=0.0)


def _largest(reference: Array) -> float:
    """The largest magnitude of what is finite: hidden scores are minus infinity."""
    return float(np.max(np.abs(reference), initial=0.0, where=np.isfinite(reference)))


def _distance(output: Array, reference: Array) -> float:
    """The largest difference: none between equal infinities, infinite where an output is not a number."""
    found = output.astype(np.float64)
    apart = np.subtract(found, reference, out=np.zeros_like(found), where=found != reference)
    return float(np.max(np.where(np.isnan(apart), np.inf, np.abs(apart)), initial=0.0))


# --- How large, how exact -------------------------------------------------------------------------------------


def _check_size(schedule: ScheduleOp, found: Iterable[Part] | None, graph: ModuleOp | None) -> None:
    macs = sum(_macs(part.problem) for part in found or ())
    events = sum(map(count_events, schedule.kernels()))
    if macs <= MOST_MACS and events <= MOST_RUN_EVENTS:
        return
    size = f"{macs:,} multiply-accumulates in {events:,} operations"
    limit = f"{MOST_MACS:,} and {MOST_RUN_EVENTS:,}"
    raise FlatcError(
        f"executing this schedule would take too long: {size}, and the limits are {limit}",
        notes=_dims(graph),
        help="bind smaller dims, for instance --bind B=1,S=128, or compile only; costs need no execution",
    )


def _macs(problem: AnyProblem) -> int:
    """Multiply-accumulates of the reference, which computes hidden scores too."""
    if isinstance(problem, AttentionProblem):
        return problem.heads * problem.queries * problem.keys * (problem.d_qk + problem.d_v)
    return least_macs(problem)


def _dims(graph: ModuleOp | None) -> list[str]:
    """The dims that the user may bind."""
    functions = [op for op in graph.ops if isinstance(op, FuncOp)] if graph is not None else []
    dims = functions[0].attributes.get("flat.dims") if functions else None
    if not isinstance(dims, DictionaryAttr):
        return []
    sizes = [f"{n} = {cast(IntegerAttr[Any], value).value.data}" for n, value in dims.data.items()]
    return [f"the graph has {', '.join(sizes)}"] if sizes else []


def relative_tolerance(schedule: ScheduleOp, found: Iterable[Part] | None) -> float:
    """The tolerance for reference values of at most 1 (see the module docstring); errors of attentions add up."""
    stored, accumulated = 0.0, 0.0
    for kernel in schedule.kernels():
        for element, sums in _element_types(kernel):
            epsilon = _epsilon(element)
            stored, accumulated = (stored, max(accumulated, epsilon)) if sums else (max(stored, epsilon), accumulated)
    terms = max((longest_sum(part.problem) for part in found or ()), default=4096)
    attentions = sum(isinstance(part, Attention) for part in found or ())
    return max(1, attentions) * (2 * stored + (2 + math.sqrt(terms)) * accumulated)


def _element_types(kernel: KernelOp) -> Iterable[tuple[Attribute, bool]]:
    """Element types that values are rounded to, and whether sums are."""
    for op in timed_ops(kernel):
        if isinstance(op, MatmulOp):
            yield _element(op.writes[0]), True
        elif isinstance(op, VectorOp) and op.kind.data == "exp":
            yield _element(op.writes[0]), False
            yield from ((_element(value), True) for value in op.writes[1:])
        elif isinstance(op, VectorOp) and op.kind.data in ("tile_sum", "merge_sum", "add"):
            yield _element(op.writes[0]), True
        elif isinstance(op, StoreOp):
            yield op.tensor_type.element_type, False


def _element(value: SSAValue) -> Attribute:
    return cast(BufferType, value.type).element_type


def _epsilon(element: Attribute) -> float:
    """The distance from 1 to the next number of a type; integers are copied, or summed exactly."""
    if not isinstance(element, AnyFloat):
        return 0.0
    import ml_dtypes

    return float(cast(Any, ml_dtypes).finfo(numpy_dtype(element)).eps)


# --- The reference --------------------------------------------------------------------------------------------


def _reference(
    schedule: ScheduleOp, found: list[Part] | None, graph: ModuleOp | None, inputs: Mapping[str, Array]
) -> dict[str, Array]:
    """The outputs in float64, by name."""
    names = result_names(schedule)
    if graph is not None:
        return dict(zip(names, run_module(graph, inputs, exact=True), strict=True))
    values: dict[str, Array] = dict(inputs)
    for part in found or ():
        if (
            not isinstance(part, Attention)
            or part.problem.stages[0] != "logit"
            or not {"softmax", "attend"} <= set(part.problem.stages)
        ):
            found = None
            break
        output = attention_of(part, values)
        if output is None:
            found = None
            break
        values[part.tensors["result"]] = output
    if found is None or any(name not in values for name in names):
        raise FlatcError(
            "there is nothing to compare this schedule with: it is not whole attention",
            help="run the graph that it was compiled from",
        )
    return {name: values[name] for name in names}
