"""Windows of tensors off chip and caches that grow: text, what is refused."""

from __future__ import annotations

import pytest
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.spatial import ExtendOp, PagedOp, storage
from tests.support import schedule_of

SCHEDULE = """spatial.schedule @f inputs ["c"] (%c : !spatial.tensor<1x2x4x8xbf16>) outputs ["c"] {{
    {ops}
    spatial.return %c
  }}"""


def schedule(*ops: str):
    return schedule_of(SCHEDULE.format(ops="\n    ".join(ops)))


GROWN = "%k = spatial.extend %c : !spatial.tensor<1x2x4x8xbf16> -> !spatial.tensor<1x2x6x8xbf16>"
WINDOW = "%w = spatial.slice %k at [0, 1, 4, 0] : !spatial.tensor<1x2x6x8xbf16> -> !spatial.tensor<1x1x2x8xbf16>"

HEADS = "%h = spatial.view %c order [0, 2, 1, 3] : !spatial.tensor<1x2x4x8xbf16> -> !spatial.tensor<1x4x2x8xbf16>"


def test_a_view_may_take_dims_in_another_order_and_split_them_further():
    split = "%s = spatial.view %h : !spatial.tensor<1x4x2x8xbf16> -> !spatial.tensor<1x2x2x2x8xbf16>"
    module = schedule(HEADS, split)
    module.verify()
    assert HEADS in str(module)
    assert split in str(module)


def test_dims_at_even_distances_are_joined_wherever_they_lie():
    joined = "%j = spatial.view %w : !spatial.tensor<1x2x3x8xbf16> -> !spatial.tensor<2x24xbf16>"
    rows = "%w = spatial.slice %c at [0, 0, 1, 0] : !spatial.tensor<1x2x4x8xbf16> -> !spatial.tensor<1x2x3x8xbf16>"
    schedule(rows, joined).verify()
    columns = rows.replace("1, 0]", "0, 1]").replace("1x2x3x8", "1x2x4x7")
    schedule(columns, "%j = spatial.view %w : !spatial.tensor<1x2x4x7xbf16> -> !spatial.tensor<4x2x7xbf16>").verify()
    with pytest.raises(VerifyException, match="not be joined"):
        schedule(columns, "%j = spatial.view %w : !spatial.tensor<1x2x4x7xbf16> -> !spatial.tensor<56xbf16>").verify()


PAGED = (
    "%p = spatial.paged %c by %t : !spatial.tensor<1x2x4x8xbf16>, !spatial.tensor<3x1xi32>"
    " -> !spatial.tensor<3x2x4x8xbf16>"
)
TABLE = '%t = spatial.offchip "t" : !spatial.tensor<3x1xi32>'


def test_sequences_in_pages_lie_in_their_pool():
    module = schedule(TABLE, PAGED)
    module.verify()
    assert PAGED in str(module)
    (paged,) = (op for op in module.walk() if isinstance(op, PagedOp))
    assert storage(paged.tensor) is paged.source


def test_both_read_back_from_their_text_and_lie_in_the_cache():
    module = schedule(GROWN, WINDOW)
    module.verify()
    text = str(module)
    assert GROWN in text
    assert WINDOW in text
    (extend,) = (op for op in module.walk() if isinstance(op, ExtendOp))
    assert extend.added_bytes == 1 * 2 * 2 * 8 * 2
    (use,) = extend.tensor.uses
    assert storage(use.operation.results[0]) is extend.source


@pytest.mark.parametrize(
    ("ops", "error"),
    [
        ((GROWN.replace("x6x", "x3x"),), "makes one dim longer"),
        ((GROWN.replace("1x2x6x8", "1x3x6x8"),), "makes one dim longer"),
        ((GROWN.replace("6x8xbf16", "6x8xf32"),), "makes one dim longer"),
        ((GROWN, WINDOW.replace("[0, 1, 4, 0]", "[0, 1, 5, 0]")), "does not lie in"),
        ((GROWN, WINDOW.replace("[0, 1, 4, 0]", "[0, 1, 4]")), "does not lie in"),
        ((HEADS.replace("[0, 2, 1, 3]", "[0, 2, 2, 3]"),), "by the order"),
        ((HEADS.replace("[0, 2, 1, 3]", "[0, 2, 1]"),), "by the order"),
        ((HEADS.replace("1x4x2x8xbf16", "1x2x4x8xbf16"),), "by the order"),
        (
            (HEADS, "%j = spatial.view %h : !spatial.tensor<1x4x2x8xbf16> -> !spatial.tensor<1x8x8xbf16>"),
            "not be joined",
        ),
        ((TABLE, PAGED.replace("3x2x4x8", "3x2x5x8")), "does not give"),
        ((TABLE, PAGED.replace("3x2x4x8", "2x2x4x8")), "does not give"),
        ((TABLE.replace("i32", "i64"), PAGED.replace("i32", "i64")), "does not give"),
        (
            (
                GROWN,
                WINDOW.replace("[0, 1, 4, 0]", "[0, 0, 4, 0]").replace("1x1x2x8", "1x2x2x8"),
                "%v = spatial.view %w : !spatial.tensor<1x2x2x8xbf16> -> !spatial.tensor<32xbf16>",
            ),
            "dims can be split and not be joined",
        ),
    ],
)
def test_what_does_not_fit_is_refused(ops: tuple[str, ...], error: str):
    with pytest.raises(VerifyException, match=error):
        schedule(*ops).verify()
