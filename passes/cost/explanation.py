"""Why a schedule takes longer than the bound: named causes that add up to the gap.

The bound belongs to one resource, the one that any algorithm keeps busy longest (`bounds.binding`). Its time in the
schedule is accounted for without remainder:

    latency - bound = work it does beyond the least + time it stands idle

Work beyond the least is split by what it is: hidden scores in tiles on the mask's edge, tiles that do not fill the
array, ragged edges, skew; tensors moved more often than once; row sums, rescaling, masking. Idle time is split by
what it waited for (`stalls`), with kernels that do not use the resource at all. A cause may be negative where the
schedule does less than the bound's algorithm would (it may divide elsewhere, say): the sum is exact all the same.

    explanation = explain(schedule, accelerator)
    sum(cause.cycles for cause in explanation.causes) == explanation.latency_cycles - explanation.bounds.cycles
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import (
    BufferOp,
    KernelOp,
    LoadOp,
    MatmulOp,
    ScheduleOp,
    StoreOp,
    TimedOp,
    VectorOp,
    stays_on_chip,
)
from flatc.dialects.vector_kinds import VALUE_KINDS
from flatc.passes.cost.bounds import AnyProblem, Bounds, least_macs, least_vector_counts
from flatc.passes.cost.cost_model import CostModel, adds_product, matmul_tile, vector_operation_work
from flatc.passes.cost.primitive_costs import MatmulTile, array_cycles, ceil_divide
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.schedule_problem import Part, least_by_tensor, schedule_bounds
from flatc.passes.kinds.registry import parts
from flatc.passes.simulation.simulator import tensor_name
from flatc.passes.simulation.stalls import KernelTime, ResourceTime, kernel_time, operation_name


@frozen
class Cause:
    """One reason for cycles above the bound. `kind` is `work` or `idle`."""

    kind: str
    name: str
    cycles: Fraction


@frozen
class KernelExplanation:
    """One kernel: how each resource spent its time."""

    name: str
    latency_cycles: Fraction
    resources: Mapping[str, ResourceTime]


@frozen
class Explanation:
    """A schedule's latency, its bounds, the resource that sets the bound, and the causes of the gap, largest first."""

    latency_cycles: Fraction
    bounds: Bounds
    resource: str
    causes: tuple[Cause, ...]
    kernels: tuple[KernelExplanation, ...]

    @property
    def gap_cycles(self) -> Fraction:
        """Latency above the bound; the causes add up to it."""
        return self.latency_cycles - self.bounds.cycles


def explain(schedule: ScheduleOp, accelerator: Accelerator, times: Sequence[KernelTime] | None = None) -> Explanation:
    """Explains a schedule. Raises `FlatcError` where flatc does not know what its kernels compute.

    `times` are those of its kernels, if they are known already.
    """
    found = parts(schedule)
    if found is None:
        raise FlatcError(
            "the schedule has kernels that flatc does not recognise, so there is no bound to explain the gap to",
            help="`flatc report` prices any schedule",
        )
    bounds = schedule_bounds(schedule, found, accelerator)
    if times is None:
        times = [kernel_time(kernel, accelerator) for kernel in schedule.kernels()]
    kernels = list(zip(schedule.kernels(), times, strict=True))
    latency = sum((time.latency_cycles for _, time in kernels), Fraction(0))
    account = _Account(schedule, accelerator, found, bounds, kernels)
    causes = sorted(account.causes(), key=lambda cause: -cause.cycles)
    return Explanation(
        latency_cycles=latency,
        bounds=bounds,
        resource=bounds.binding,
        causes=tuple(causes),
        kernels=tuple(KernelExplanation(k.label.data, t.latency_cycles, t.resources) for k, t in kernels),
    )


class _Account:
    """The account of the bound's resource over all kernels."""

    def __init__(
        self,
        schedule: ScheduleOp,
        accelerator: Accelerator,
        found: Sequence[Part],
        bounds: Bounds,
        kernels: Sequence[tuple[KernelOp, KernelTime]],
    ):
        self.schedule, self.accelerator, self.kernels = schedule, accelerator, kernels
        self.problems: list[AnyProblem] = [part.problem for part in found]
        self.parts, self.bounds = found, bounds
        self.resource = self._queue(bounds.binding)
        self.model = CostModel(accelerator)

    def _queue(self, binding: str) -> str:
        """The resource of the simulation that a bound belongs to; of two channels, the one with more to move."""
        if binding != "off-chip":
            return binding
        if self.accelerator.offchip.channels == "shared":
            return "offchip"
        moved: Counter[str] = Counter()
        for _, time in self.kernels:
            for (op, extents), times in time.executed.items():
                if isinstance(op, LoadOp | StoreOp) and op.tensor is not None and not stays_on_chip(op.tensor):
                    moved[op.resource] += math.prod(extents) * op.tensor_type.element_bytes * times
        read = moved["read"] * self.accelerator.cycles_per_byte_read
        return "read" if read >= moved["write"] * self.accelerator.cycles_per_byte_written else "write"

    def causes(self) -> list[Cause]:
        """All causes; cycles of one name are added up."""
        account: Counter[tuple[str, str]] = Counter()
        for name, cycles in self._work():
            account["work", name] += cycles  # pyright: ignore[reportArgumentType]
        for name, cycles in self._idle():
            account["idle", name] += cycles  # pyright: ignore[reportArgumentType]
        return [Cause(kind, name, Fraction(cycles)) for (kind, name), cycles in account.items() if cycles]

    # --- Idle time --------------------------------------------------------------------------------------

    def _idle(self) -> Iterator[tuple[str, Fraction]]:
        for kernel, time in self.kernels:
            use = time.resources.get(self.resource)
            if use is None:
                yield f"kernel {kernel.label.data} does not use it", time.latency_cycles
                continue
            for stall, cycles in use.stalls.items():
                what = f"a free slot of {stall.what}" if stall.waits_for == "slots" else stall.what
                yield f"waits for {what}", cycles
            yield "done before the kernel is", use.after

    # --- Work -------------------------------------------------------------------------------------------

    def _executed(self) -> Iterator[tuple[TimedOp, tuple[int, ...], int]]:
        model = self.model
        for _, time in self.kernels:
            for (op, extents), times in time.executed.items():
                if model.resource(op) == self.resource:
                    yield op, extents, times

    def _work(self) -> Iterable[tuple[str, Fraction]]:
        if self.bounds.binding == "array":
            return self._array_work()
        return self._vector_work() if self.bounds.binding == "vector" else self._offchip_work()

    def _array_work(self) -> Iterator[tuple[str, Fraction]]:
        pes = self.accelerator.array.pes
        executed = list(self._executed())
        products = [(op, extents, times) for op, extents, times in executed if isinstance(op, MatmulOp)]
        for op, extents, times in executed:
            if isinstance(op, VectorOp):
                yield f"{operation_name(op)} on the array", self.model.busy_cycles(op, extents) * times
        full = _largest_extents(products)
        total = 0
        for op, extents, times in products:
            name, tile = operation_name(op), matmul_tile(op, extents)
            macs = tile.batch * tile.m * tile.n * tile.k
            busy, skew = self._array_busy(op, tile)
            ones = tile.batch * tile.m * tile.k if _has_ones(op) else 0
            yield "row sums as a column of ones", Fraction(ones * times, pes)
            total += (macs - ones) * times
            yield f"skew of {name}", Fraction(skew * times)
            where = "ragged edges" if extents != full[op] else "tiles that do not fill the array"
            yield f"{where} in {name}", (busy - skew - Fraction(macs, pes)) * times
        hidden = total - sum(map(least_macs, self.problems))
        yield "scores that the mask hides, in tiles on its edge", Fraction(hidden, pes)

    def _array_busy(self, op: MatmulOp, tile: MatmulTile) -> tuple[int, int]:
        """Busy cycles of one tile, and how many of them are skew."""
        array, fold = self.accelerator.array, (op.fold_rows.data, op.fold_columns.data)
        busy: int = array_cycles(array, op.stationarity.data, fold, tile).busy
        return busy, busy - array_cycles(replace(array, skew="none"), op.stationarity.data, fold, tile).busy

    def _vector_work(self) -> Iterator[tuple[str, Fraction]]:
        unit = self.accelerator.vector
        for op, extents, times in self._executed():
            assert isinstance(op, VectorOp)
            work = vector_operation_work(op)
            elements, rows = math.prod(extents), math.prod(extents[:-1])
            for name in work.per_element:
                price: int = getattr(unit.prices, name)
                what = "adding products to outputs" if adds_product(op) else _vector_name(op.kind.data, name)
                yield what, Fraction(ceil_divide(elements, unit.lanes) * price * times)
            row_price: int = sum(getattr(unit.prices, name) for name in work.per_row)
            yield _row_name(op.kind.data), Fraction(ceil_divide(rows, unit.lanes) * row_price * times)
        for problem in self.problems:
            yield from self._least_vector_work(problem)

    def _least_vector_work(self, problem: AnyProblem) -> Iterator[tuple[str, Fraction]]:
        """What the bound already has, to be taken off."""
        unit, array = self.accelerator.vector, self.accelerator.array
        for name, count in least_vector_counts(problem).items():
            if array.cycles_of(name) is None:
                price: int = getattr(unit.prices, name)
                beyond = _BEYOND[name] if isinstance(problem, AttentionProblem) else _BEYOND_FORMULAS
                yield beyond, -Fraction(count * price, unit.lanes)

    def _offchip_work(self) -> Iterator[tuple[str, Fraction]]:
        read, written = least_by_tensor(self.schedule, self.parts)
        moved: Counter[tuple[str, str]] = Counter()
        for op, extents, times in self._executed():
            assert isinstance(op, LoadOp | StoreOp)
            assert op.tensor is not None
            name = tensor_name(op.tensor)
            if stays_on_chip(op.tensor):
                yield f"copies {name} on chip", self.model.busy_cycles(op, extents) * times
                continue
            moved[name, op.resource] += math.prod(extents) * op.tensor_type.element_bytes * times
        for (name, direction), size in moved.items():
            machine = self.accelerator
            price = machine.cycles_per_byte_read if direction == "read" else machine.cycles_per_byte_written
            least = (read if direction == "read" else written).get(name, 0)
            verb = "reads" if direction == "read" else "writes"
            more = f"{verb} {name} {float(Fraction(size, least)):.2f} times" if least else f"{verb} {name}"
            yield more, (size - least) * price


_BEYOND = {"max": "max of more than the visible scores", "exp": "exp of more than the visible scores"}
_BEYOND["divide"] = "more division than the least"

_WORK_ON_SCORES = {
    "softcap": "softcap, beside its exponentials",
    "scale_columns": "scales of keys and values",
    "bias": "adding biases",
    "alibi": "ALiBi",
    "t5_relative": "T5's relative bias",
    "keep": "masks given by tensors",
    "same": "masks of documents",
    "mask": "masking of edge tiles",
}
"""What vector work on scores is called, by its kind."""


_BEYOND_FORMULAS = "lanes that tiles of norms, activations and the like leave idle"


def _row_name(kind: str) -> str:
    """What the work that a vector operation does once a row is called."""
    return _BEYOND_FORMULAS if kind in VALUE_KINDS else "running maxima, sums and corrections"


def _vector_name(kind: str, operation: str) -> str:
    """What a part of the vector work is called."""
    if kind.startswith("merge"):
        return "running maxima, sums and corrections"
    if kind in VALUE_KINDS and operation != "cast":
        return _BEYOND_FORMULAS
    if kind in _WORK_ON_SCORES and operation != "exp":
        return _WORK_ON_SCORES[kind]
    if operation in _BEYOND:
        return _BEYOND[operation]
    if operation == "add":
        return "row sums on the vector unit"
    return "rescaling of outputs" if kind == "rescale" else f"{operation} in {kind}"


def _has_ones(op: MatmulOp) -> bool:
    """Whether the second operand has a column of ones, which is there from the start."""
    owner = op.reads[1].owner
    return isinstance(owner, BufferOp) and owner.initial is not None


def _largest_extents(
    executed: Iterable[tuple[MatmulOp, tuple[int, ...], int]],
) -> dict[MatmulOp, tuple[int, ...]]:
    found: dict[MatmulOp, tuple[int, ...]] = {}
    for op, extents, _ in executed:
        found[op] = tuple(map(max, found.get(op, extents), extents))
    return found
