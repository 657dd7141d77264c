"""Give every buffer an address: `allocate-buffers`.

Kernels run one after the other, so buffers of different kernels reuse the same bytes. Tensors that stay on chip between
kernels lie lowest, each in the same place from its first kernel to its last; the memory above those that live
meanwhile belongs to the kernel. Within a kernel all buffers live as long as its pipeline runs, so they lie one after
the other, in textual order:

    %q = spatial.buffer "Q" slots 2 : !spatial.buffer<64x64xbf16>
    %k = spatial.buffer "K" slots 2 : !spatial.buffer<128x64xbf16>

    %q = spatial.buffer "Q" slots 2 at 0 : !spatial.buffer<64x64xbf16>
    %k = spatial.buffer "K" slots 2 at 16384 : !spatial.buffer<128x64xbf16>

The verifier then checks that no two overlap and that the last one ends inside the memory. Buffers in registers have
no address.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp
from xdsl.passes import ModulePass

from flatc.dialects.onchip_rules import lifetimes
from flatc.dialects.spatial import KernelOp, ScheduleOp
from flatc.passes.kernels.kept_results import heights, places


@dataclass(frozen=True)
class AllocateBuffersPass(ModulePass):
    """See the module docstring."""

    name = "allocate-buffers"

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for schedule in op.walk():
            if isinstance(schedule, ScheduleOp):
                allocate_schedule(schedule)


def allocate_schedule(schedule: ScheduleOp) -> None:
    """Sets the addresses of the tensors that stay on chip, and of all kernels' buffers."""
    alive, kernels = lifetimes(schedule), schedule.kernels()
    tensors = [(lifetime.bytes, lifetime.first, lifetime.last) for lifetime in alive]
    for lifetime, address in zip(alive, places(tensors), strict=True):
        lifetime.tensor.address = IntAttr(address)
    for kernel, height in zip(kernels, heights(tensors, len(kernels)), strict=True):
        allocate(kernel, height)


def allocate(kernel: KernelOp, address: int = 0) -> int:
    """Sets the addresses of one kernel's buffers, from `address` on; gives the first byte after the last."""
    for buffer in kernel.buffers():
        if buffer.registers is not None:
            continue
        buffer.address = IntAttr(address)
        address += buffer.total_bytes
    return address
