"""`allocate-buffers`, by example: where buffers lie, and what the verifier makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import IntAttr, ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.accelerator import attach_accelerator
from flatc.passes.allocate_buffers import AllocateBuffersPass
from tests.support import UNFUSED, Choice, Shape, attention, kernels_of, lower, schedule_of, strict_machine

TWO_KERNELS = """
spatial.schedule @two inputs ["x"] (%x: !spatial.tensor<8xf32>) outputs [] {
  spatial.kernel "first" {
    %a = spatial.buffer "A" slots 1 : !spatial.buffer<8xf32>
    spatial.for %i = 0 to 2 {
      %b = spatial.buffer "B" slots 2 : !spatial.buffer<3xbf16>
      %c = spatial.buffer "C" slots 3 : !spatial.buffer<4x4xf32>
    }
  }
  spatial.kernel "second" {
    %d = spatial.buffer "D" slots 1 : !spatial.buffer<8xf32>
  }
}
"""


def allocated(module: ModuleOp) -> dict[str, int]:
    AllocateBuffersPass().apply(Context(), module)
    module.verify()
    buffers = [buffer for kernel in kernels_of(module) for buffer in kernel.buffers()]
    return {buffer.label.data: buffer.address.data for buffer in buffers if buffer.address is not None}


def test_buffers_lie_one_after_the_other_with_all_their_slots():
    """A takes 32 bytes, B two slots of 6, C three of 64; the next kernel starts at 0 again."""
    assert allocated(schedule_of(TWO_KERNELS)) == {"A": 0, "B": 32, "C": 44, "D": 0}


def test_allocation_can_be_repeated():
    module = schedule_of(TWO_KERNELS)
    first = allocated(module)
    assert allocated(module) == first


def test_addresses_are_part_of_the_text():
    module = schedule_of(TWO_KERNELS)
    allocated(module)
    assert '"C" slots 3 at 44 : !spatial.buffer<4x4xf32>' in str(module)


@pytest.mark.parametrize("groups", [("logit+mask+softmax+attend",), UNFUSED], ids=" | ".join)
def test_no_two_buffers_of_a_lowered_kernel_share_a_byte(groups: tuple[str, ...]):
    for kernel in kernels_of(lower(attention(Shape(heads=2, queries=17, keys=23)), Choice(), groups)):
        used = [
            byte
            for buffer in kernel.buffers()
            if buffer.address is not None
            for byte in range(buffer.address.data, buffer.address.data + buffer.total_bytes)
        ]
        assert sorted(used) == list(range(len(used)))


def test_the_verifier_finds_an_overlap():
    module = schedule_of(TWO_KERNELS)
    allocated(module)
    kernels_of(module)[0].buffers()[1].address = IntAttr(40)
    with pytest.raises(VerifyException, match='buffers "B" and "C" overlap at byte 44'):
        module.verify()


def test_what_does_not_fit_is_refused_with_the_bytes_it_needs():
    module = schedule_of(TWO_KERNELS)
    machine = strict_machine()
    attach_accelerator(module, replace(machine, buffer=replace(machine.buffer, capacity_bytes=235)))
    with pytest.raises(VerifyException, match="buffers need 236 bytes on chip and the accelerator has 235"):
        allocated(module)
