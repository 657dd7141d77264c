"""Give every buffer an address: `allocate-buffers`.

Kernels run one after the other, so each starts with the whole memory: buffers of different kernels reuse
the same bytes. Within a kernel all buffers live as long as its pipeline runs, so they lie one after the
other, in textual order:

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

from flatc.dialects.spatial import KernelOp


@dataclass(frozen=True)
class AllocateBuffersPass(ModulePass):
    """See the module docstring."""

    name = "allocate-buffers"

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for kernel in op.walk():
            if isinstance(kernel, KernelOp):
                allocate(kernel)


def allocate(kernel: KernelOp) -> int:
    """Sets the addresses of one kernel's buffers; gives the first byte after the last."""
    address = 0
    for buffer in kernel.buffers():
        if buffer.registers is not None:
            continue
        buffer.address = IntAttr(address)
        address += buffer.total_bytes
    return address
