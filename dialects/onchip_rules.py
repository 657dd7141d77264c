"""When tensors that stay on chip between kernels live, and what makes them legal.

    kernels      0      1      2      3
    "hidden"     stored loaded        loaded             lives in 0, 1, 2, 3
    "gate"              stored loaded                    lives in 1, 2

1. Nothing but loads, stores and views touch them: they are no outputs, do not grow, and lie in no pages.
2. The first kernel that touches one stores it. (The interpreter checks that no element is read before.)
3. In every kernel, its buffers and the tensors that live meanwhile do not overlap, and fit the memory. Without
   addresses their sum must fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.accelerator import Accelerator, AcceleratorAttr
from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import BufferOp, KernelOp, OnchipOp, ScheduleOp, SliceOp, StoreOp, TimedOp, ViewOp


@frozen
class Lifetime:
    """The kernels, by number, in which a tensor is on chip: from `first` to `last`, both counted."""

    tensor: OnchipOp
    first: int
    last: int

    @property
    def bytes(self) -> int:
        """What it takes meanwhile."""
        return self.tensor.bytes


def lifetimes(schedule: ScheduleOp) -> list[Lifetime]:
    """Of every tensor that stays on chip and is used, in the order of their declarations."""
    kept = [op for op in schedule.body.block.ops if isinstance(op, OnchipOp)]
    if not kept:
        return []
    number = {kernel: i for i, kernel in enumerate(schedule.kernels())}
    found: list[Lifetime] = []
    for tensor in kept:
        used = [number[kernel] for op in _uses(tensor.tensor) if (kernel := kernel_around(op)) is not None]
        if used:
            found.append(Lifetime(tensor, min(used), max(used)))
    return found


def alive_by_kernel(schedule: ScheduleOp) -> list[tuple[OnchipOp, ...]]:
    """For each kernel, the tensors that are on chip while it runs."""
    alive = lifetimes(schedule)
    return [
        tuple(one.tensor for one in alive if one.first <= number <= one.last)
        for number in range(len(schedule.kernels()))
    ]


def kernel_around(op: Operation) -> KernelOp | None:
    """The kernel that an operation is part of."""
    around = op.parent_op()
    while around is not None and not isinstance(around, KernelOp):
        around = around.parent_op()
    return around


def _uses(tensor: SSAValue) -> Iterator[Operation]:
    """What uses a tensor, also behind views of it."""
    for use in tensor.uses:
        if isinstance(use.operation, ViewOp | SliceOp):
            yield from _uses(use.operation.tensor)
        else:
            yield use.operation


def verify_onchip(schedule: Operation) -> None:
    """Raises `VerifyException` with the rule that is broken and what to change."""
    assert isinstance(schedule, ScheduleOp)
    alive = lifetimes(schedule)
    for op in schedule.body.block.ops:
        if isinstance(op, OnchipOp):
            _verify_uses(op)
    if not alive:
        return
    kernels = schedule.kernels()
    for lifetime in alive:
        _verify_first(lifetime, kernels[lifetime.first])
    for kernel, kept in zip(kernels, alive_by_kernel(schedule), strict=True):
        _verify_room(kernel, kept)


def _verify_uses(tensor: OnchipOp) -> None:
    for op in _uses(tensor.tensor):
        if not isinstance(op, TimedOp):
            raise VerifyException(
                f'tensor "{tensor.label.data}" stays on chip, and {op.name} needs it off chip: declare it as '
                "spatial.offchip"
            )


def _verify_first(lifetime: Lifetime, kernel: KernelOp) -> None:
    label = lifetime.tensor.label.data
    stores = (op for op in _uses(lifetime.tensor.tensor) if isinstance(op, StoreOp))
    if not any(kernel_around(op) is kernel for op in stores):
        raise VerifyException(
            f'kernel "{kernel.label.data}" is the first to use tensor "{label}", which stays on chip, and does not '
            "store it: put the kernel that does before it"
        )


def _verify_room(kernel: KernelOp, kept: Sequence[OnchipOp]) -> None:
    """Buffers of a kernel and the tensors that live meanwhile have places of their own."""
    buffers = [buffer for buffer in kernel.buffers() if buffer.registers is None]
    placed = [_span(op) for op in (*buffers, *kept) if op.address is not None]
    if placed and len(placed) != len(buffers) + len(kept):
        raise VerifyException(
            f'kernel "{kernel.label.data}": either all its buffers and the tensors on chip meanwhile have an address '
            "or none has"
        )
    for (_, end, name), (start, _, other) in pairwise(sorted(placed)):
        if start < end:
            raise VerifyException(f'kernel "{kernel.label.data}": {name} and {other} overlap at byte {start}')
    total = sum(b.total_bytes for b in buffers) + sum(tensor.bytes for tensor in kept)
    peak = max((end for _, end, _ in placed), default=total)
    accelerator = accelerator_around(kernel)
    if accelerator is not None and peak > accelerator.buffer.capacity_bytes:
        raise VerifyException(
            f'kernel "{kernel.label.data}" needs {peak} bytes on chip, with the tensors that stay there, and the '
            f"accelerator has {accelerator.buffer.capacity_bytes}: keep fewer tensors, or use smaller tiles"
        )


def _span(op: BufferOp | OnchipOp) -> tuple[int, int, str]:
    assert op.address is not None
    what, size = ("buffer", op.total_bytes) if isinstance(op, BufferOp) else ("tensor", op.bytes)
    return op.address.data, op.address.data + size, f'{what} "{op.label.data}"'


def accelerator_around(kernel: Operation) -> Accelerator | None:
    """The accelerator of the module that a kernel is part of, if it is part of one that has any."""
    parent = kernel.parent_op()
    while parent is not None and not isinstance(parent, ModuleOp):
        parent = parent.parent_op()
    attribute = parent.attributes.get("spatial.accelerator") if parent is not None else None
    return attribute.data if isinstance(attribute, AcceleratorAttr) else None
