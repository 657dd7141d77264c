"""The discipline of schedules: what hardware could get wrong on some timing is an error, never a wrong number.

One small schedule is right; each test breaks one thing in its text and reads the error. The verifier is not asked:
it would refuse some of these earlier, and the interpreter must not depend on that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.interpreter import ScheduleError, run_schedule
from tests.support import schedule_of, strict_machine

PRODUCT = """
spatial.schedule @product inputs ["x", "w"] (%x: !spatial.tensor<12x4xf32>, %w: !spatial.tensor<4x4xf32>)
    outputs ["y"] {
  %y = spatial.offchip "y" : !spatial.tensor<12x4xf32>
  spatial.kernel "product" {
    %wb = spatial.buffer "W" slots 1 : !spatial.buffer<4x4xf32>
    %load_w = spatial.load %w[0, 0] into %wb extent [4, 4]
    spatial.for %i = 0 to 3 {
      %xb = spatial.buffer "X" slots 2 : !spatial.buffer<4x4xf32>
      %yb = spatial.buffer "Y" slots 2 : !spatial.buffer<4x4xf32>
      %load_x = spatial.load %x[%i * 4, 0] into %xb extent [4, 4]
      %product = spatial.matmul output (%xb, %wb) into %yb extent [4, 4, 4] after(%load_x, %load_w)
      %twice = spatial.matmul output (%xb, %wb) into %yb extent [4, 4, 4] accumulate after(%load_x, %load_w)
      %half = spatial.vector cast (%yb) into (%yb) extent [4, 4] after(%twice)
      %store = spatial.store %yb into %y[%i * 4, 0] extent [4, 4] after(%half) stage 1
    }
  }
  spatial.return %y
}
"""

Array = NDArray[Any]


def run(*changes: tuple[str, str]) -> Array:
    """The result of the schedule with some of its text replaced, on a machine with separate channels."""
    text = PRODUCT
    for right, wrong in changes:
        assert text.count(right) == 1, right
        text = text.replace(right, wrong)
    module = schedule_of(text)
    attach_accelerator(module, strict_machine())
    return run_schedule(module, inputs()).outputs[0]


def inputs() -> dict[str, Array]:
    return {"x": np.arange(48, dtype=np.float32).reshape(12, 4), "w": np.eye(4, dtype=np.float32) * 3}


def error_of(*changes: tuple[str, str]) -> str:
    with pytest.raises(ScheduleError) as caught:
        run(*changes)
    return caught.value.message


def test_the_schedule_is_right():
    np.testing.assert_array_equal(run(), inputs()["x"] * 6)


# --- Order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "extent [4, 4, 4] after(%load_x, %load_w)",
            "extent [4, 4, 4] after(%load_w)",
            'spatial.matmul product (i = 0) reads buffer "X" instance 0 at [0:4, 0:4], which spatial.load load_x '
            "(i = 0) writes and may not have finished",
        ),
        (
            "extent [4, 4, 4] after(%load_x, %load_w)",
            "extent [4, 4, 4]",
            'spatial.matmul product (i = 0) reads buffer "X" instance 0',
        ),
        (
            "after(%twice)",
            "after(%load_w)",
            'spatial.vector cast (i = 0) reads buffer "Y" instance 0 at [0:4, 0:4], which spatial.matmul twice (i = 0) '
            "writes and may not have finished",
        ),
        (
            "after(%half) stage 1",
            "after(%product) stage 1",
            'spatial.store store (i = 0) reads buffer "Y" instance 0 at [0:4, 0:4], which spatial.vector cast (i = 0) '
            "writes and may not have finished",
        ),
        (
            "after(%half) stage 1",
            "after(%half)\n      %late = spatial.vector cast (%yb) into (%yb) extent [4, 4] after(%half)",
            'spatial.vector cast (i = 0) writes buffer "Y" instance 0 at [0:4, 0:4], which spatial.store store (i = 0) '
            "reads and may not have finished",
        ),
        (
            "after(%half) stage 1",
            "after(%half)\n      %late = spatial.load %x[0, 0] into %yb extent [4, 4] after(%half)",
            'spatial.load late (i = 0) writes buffer "Y" instance 0 at [0:4, 0:4], which spatial.store store (i = 0) '
            "reads and may not have finished",
        ),
    ],
    ids=["one token less", "no token", "wrong token", "an earlier token", "write after read", "load after store"],
)
def test_an_access_that_nothing_orders_is_a_race(right: str, wrong: str, message: str):
    assert message in error_of((right, wrong))


def test_a_race_says_which_token_to_add():
    with pytest.raises(ScheduleError) as caught:
        run(("after(%half) stage 1", "stage 1"))
    assert caught.value.help == "add the token of spatial.vector to its after(...)"


def test_windows_that_do_not_overlap_need_no_order():
    """The array and the vector unit fill two halves of Y, unordered; then the store waits for both."""
    start, end = PRODUCT.index("%product"), PRODUCT.index("%store")
    halves = """%half = spatial.matmul output (%xb, %wb) into %yb extent [2, 4, 4] after(%load_x, %load_w)
      %copy = spatial.vector cast (%xb[2, 0]) into (%yb[2, 0]) extent [2, 4] after(%load_x)
      """
    store = ("after(%half)", "after(%half, %copy)")
    expected = inputs()["x"] * np.tile([[3], [3], [1], [1]], (3, 1))
    np.testing.assert_array_equal(run((PRODUCT[start:end], halves), store), expected)
    assert 'spatial.vector cast (i = 0) writes buffer "Y" instance 0 at [1:3, 0:4]' in error_of(
        (PRODUCT[start:end], halves.replace("%yb[2, 0]", "%yb[1, 0]")), store
    )


def test_the_array_adds_in_order_but_must_finish_before_it_reads():
    """`twice` adds to what `product` makes without waiting for it; as an operand it must wait."""
    assert 'spatial.matmul twice (i = 0) reads buffer "Y" instance 0' in error_of(
        ("%twice = spatial.matmul output (%xb,", "%twice = spatial.matmul output (%yb,")
    )


def test_order_is_transitive():
    """The store waits for `half`, which waited for `twice`; another wait changes nothing."""
    np.testing.assert_array_equal(run(("after(%half) stage 1", "after(%half, %product) stage 1")), run())


# --- Slots --------------------------------------------------------------------------------------------


def test_a_slot_that_was_taken_over_cannot_be_touched():
    assert error_of(('"Y" slots 2', '"Y" slots 1')) == (
        'spatial.store store (i = 0) touches buffer "Y" instance 0, whose slot instance 1 has taken: '
        "the buffer has 1 slot"
    )


def test_one_slot_is_enough_for_what_ends_in_its_own_trip():
    np.testing.assert_array_equal(run(('"X" slots 2', '"X" slots 1')), run())


def test_tokens_come_from_operations_that_were_issued():
    assert "spatial.matmul product (i = 0) waits for the token of an operation that has not been issued" in error_of(
        ("into %xb extent [4, 4]", "into %xb extent [4, 4] stage 1")
    )


# --- Elements -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        (
            "into %xb extent [4, 4]",
            "into %xb extent [3, 4]",
            'spatial.matmul product (i = 0) reads buffer "X" instance 0 at [0:4, 0:4], where elements were never '
            "written",
        ),
        (
            "into %yb extent [4, 4, 4] after(%load_x, %load_w)",
            "into %yb extent [4, 3, 4] after(%load_x, %load_w)",
            'spatial.matmul twice (i = 0) reads buffer "Y" instance 0 at [0:4, 0:4], where elements were never written',
        ),
        (
            "into %xb extent [4, 4]",
            "into %xb[0, 1] extent [4, 4]",
            'spatial.load load_x (i = 0) writes buffer "X" instance 0 at [0:4, 1:5], outside of its shape [4, 4]',
        ),
        (
            "(%xb, %wb) into %yb extent [4, 4, 4] after",
            "(%xb, %wb) into %yb extent [5, 4, 4] after",
            'spatial.matmul product (i = 0) reads buffer "X" instance 0 at [0:5, 0:4], outside of its shape [4, 4]',
        ),
        (
            "%x[%i * 4, 0]",
            "%x[%i * 4 + 1, 0]",
            'spatial.load load_x (i = 2) reads tensor "x" at [9:13, 0:4], outside of its shape [12, 4]',
        ),
        (
            "%y[%i * 4, 0]",
            "%y[%i * 3, 0]",
            'spatial.store store (i = 1) writes tensor "y" at [3:7, 0:4], where elements were written before',
        ),
        ("%y[%i * 4, 0]", "%x[%i * 4, 0]", 'spatial.store store (i = 0) writes tensor "x" at [0:4, 0:4]'),
        ("%i = 0 to 3", "%i = 0 to 2", 'tensor "y" is returned, and its element [8, 0] was never written'),
        (
            "into %xb extent [4, 4]",
            "into %xb extent [4 - %i * 5, 4]",
            "spatial.load load_x (i = 1) works on a negative extent [-1, 4]",
        ),
    ],
)
def test_what_is_read_was_written_and_what_is_written_lies_inside(right: str, wrong: str, message: str):
    assert message in error_of((right, wrong))


def test_a_removed_store_leaves_the_output_unwritten():
    store = "%store = spatial.store %yb into %y[%i * 4, 0] extent [4, 4] after(%half) stage 1"
    assert error_of((store, "")) == 'tensor "y" is returned, and its element [0, 0] was never written'


def test_an_initial_value_may_be_read():
    initial = 'buffer "Y" slots 2 initial 1.0 :'
    accumulate = "extent [4, 4, 4] accumulate after(%load_x, %load_w)\n"
    changes = ('buffer "Y" slots 2 :', initial), ("extent [4, 4, 4] after(%load_x, %load_w)\n", accumulate)
    np.testing.assert_array_equal(run(*changes), inputs()["x"] * 6 + 1)


def test_addresses_must_not_overlap():
    changes = [
        (f'"{name}" slots {n} :', f'"{name}" slots {n} at {at} :')
        for name, n, at in (("W", 1, 0), ("X", 2, 64), ("Y", 2, 128))
    ]
    assert error_of(*changes) == 'buffer "X" and buffer "Y" of kernel "product" overlap at byte 128'


# --- Tensors off chip ---------------------------------------------------------------------------------

BACK = """
    %again = spatial.buffer "again" slots 1 : !spatial.buffer<4x4xf32>
    %load_y = spatial.load %y[8, 0] into %again extent [4, 4]
"""


def with_text_after_the_loop(text: str) -> tuple[str, str]:
    end = "(%half) stage 1\n    }\n"
    return end, end + text


def test_loading_what_the_kernel_stored_needs_order():
    assert (
        'spatial.load load_y (outside of loops) reads tensor "y" at [8:12, 0:4], which a store of this kernel writes'
        in error_of(with_text_after_the_loop(BACK))
    )


def test_the_next_kernel_finds_everything_stored():
    run(with_text_after_the_loop('  }\n  spatial.kernel "next" {' + BACK))


def test_loading_what_nobody_stored():
    assert (
        'spatial.load load_y (outside of loops) reads tensor "y" at [8:12, 0:4], where elements were never written'
        in (
            error_of(
                (' spatial.kernel "product" {', ' spatial.kernel "early" {' + BACK + '  }\n spatial.kernel "product" {')
            )
        )
    )


def test_a_graph_is_no_schedule():
    from tests.support import Shape, attention

    with pytest.raises(FlatcError, match="the module holds a graph, not a schedule"):
        run_schedule(attention(Shape()), [np.zeros((1, 1, 7, 4)), np.zeros((1, 1, 11, 4)), np.zeros((1, 1, 11, 4))])
