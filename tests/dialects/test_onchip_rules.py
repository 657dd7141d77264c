"""Tensors that stay on chip between kernels: their text, when they live, and what the verifier says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.onchip_rules import alive_by_kernel, lifetimes
from flatc.dialects.spatial import ScheduleOp
from tests.support import schedule_of

CHAIN = """
spatial.schedule @chain inputs ["x"] (%x: !spatial.tensor<8xf32>) outputs ["y"] {
  %h = spatial.onchip "h" at 0 : !spatial.tensor<8xf32>
  %g = spatial.onchip "g" at 32 : !spatial.tensor<8xf32>
  %y = spatial.offchip "y" : !spatial.tensor<8xf32>
  spatial.kernel "first" {
    %a = spatial.buffer "A" slots 1 at 64 : !spatial.buffer<8xf32>
    %t = spatial.load %x[0] into %a extent [8]
    %u = spatial.store %a into %h[0] extent [8] after(%t)
  }
  spatial.kernel "second" {
    %a = spatial.buffer "A" slots 1 at 64 : !spatial.buffer<8xf32>
    %t = spatial.load %h[0] into %a extent [8]
    %u = spatial.store %a into %g[0] extent [8] after(%t)
  }
  %v = spatial.view %h : !spatial.tensor<8xf32> -> !spatial.tensor<2x4xf32>
  spatial.kernel "third" {
    %a = spatial.buffer "A" slots 1 at 64 : !spatial.buffer<2x4xf32>
    %b = spatial.buffer "B" slots 1 at 96 : !spatial.buffer<8xf32>
    %t = spatial.load %v[0, 0] into %a extent [2, 4]
    %u = spatial.load %g[0] into %b extent [8]
    %w = spatial.store %b into %y[0] extent [8] after(%t, %u)
  }
  spatial.return %y
}
"""


def chain(*changes: tuple[str, str]) -> ModuleOp:
    text = CHAIN
    for right, wrong in changes:
        assert right in text
        text = text.replace(right, wrong)
    return schedule_of(text)


def error(*changes: tuple[str, str], bytes_on_chip: int = 128) -> str:
    """What is wrong with the schedule so changed, on a machine with so many bytes on chip."""
    module, machine = chain(*changes), load("edge")
    attach_accelerator(module, replace(machine, buffer=replace(machine.buffer, capacity_bytes=bytes_on_chip)))
    with pytest.raises(VerifyException) as caught:
        module.verify()
    return str(caught.value)


def test_text_is_read_back():
    module = chain()
    module.verify()
    assert str(schedule_of(str(module))) == str(module)
    assert '%h = spatial.onchip "h" at 0 : !spatial.tensor<8xf32>' in str(module)


def test_a_tensor_lives_from_its_first_kernel_to_its_last_also_through_views():
    (schedule,) = (op for op in chain().ops if isinstance(op, ScheduleOp))
    found = [(one.tensor.label.data, one.first, one.last, one.bytes) for one in lifetimes(schedule)]
    assert found == [("h", 0, 2, 32), ("g", 1, 2, 32)]
    alive = [[tensor.label.data for tensor in kept] for kept in alive_by_kernel(schedule)]
    assert alive == [["h"], ["h", "g"], ["h", "g"]]


def test_buffers_keep_clear_of_what_lives_meanwhile():
    """In the first kernel `g` does not live yet, and its place is free."""
    start = "spatial.buffer<8xf32>\n    %t = spatial.load %x"
    chain((f"at 64 : !{start}", f"at 32 : !{start}")).verify()
    again = "spatial.buffer<8xf32>\n    %t = spatial.load %h"
    assert 'kernel "second": tensor "g" and buffer "A" overlap at byte 40' in error(
        (f"at 64 : !{again}", f"at 40 : !{again}")
    )
    assert 'kernel "second": tensor "h" and tensor "g" overlap at byte 16' in error(('"g" at 32', '"g" at 16'))


def test_everything_that_is_on_chip_at_once_fits():
    assert (
        'kernel "second" needs 132 bytes on chip, with the tensors that stay there, and the accelerator has 131'
        in error(('"g" at 32', '"g" at 100'), ("at 96 :", "at 32 :"), bytes_on_chip=131)
    )


def test_without_addresses_the_sum_must_fit():
    places = [(f" at {byte} :", " :") for byte in (0, 32, 64, 96)]
    chain(*places).verify()
    assert 'kernel "third" needs 128 bytes' in error(*places, bytes_on_chip=127)
    assert "have an address or none has" in error(places[0])


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("return %y", "return %h", 'tensor "h" stays on chip, and spatial.return needs it off chip: declare it as'),
        ("into %h[0]", "into %y[0]", 'kernel "second" is the first to use tensor "h", which stays on chip, and does'),
        ('"h" at 0', '"h" at -4', 'tensor "h" lies at byte -4: count from 0'),
    ],
)
def test_what_is_not_between_kernels_is_refused(right: str, wrong: str, message: str):
    assert message in error((right, wrong))
