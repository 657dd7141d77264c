"""How score tiles lie on the array, for the operations that PEs do on them and for buffers in PE registers.

    %s = spatial.buffer "scores" slots 6 in registers batch 1 fold 2 x 1 : !spatial.buffer<4x128x512xbf16>
    %t = spatial.vector exp (%s, %m) into (%s) extent [4, 128, 512] on array batch 1 fold 2 x 1

Both say `batch RANK`, how many leading dimensions are independent tiles, and how many of these lie side by side.
"""

from __future__ import annotations

from typing import cast

from xdsl.dialects.builtin import IntAttr
from xdsl.ir import Attribute, Operation
from xdsl.parser import Parser

from flatc.dialects.frozen import frozen


@frozen
class OnArray:
    """How a vector operation uses the PEs of the array: on `batch_rank` leading dimensions of independent tiles, of
    which `fold` lie side by side, keys down the rows of PEs and query rows along their columns."""

    batch_rank: int
    fold: tuple[int, int] = (1, 1)

    def to_text(self) -> str:
        """The words that `parse_on_array` reads back."""
        rows, columns = self.fold
        return f"batch {self.batch_rank}" + ("" if self.fold == (1, 1) else f" fold {rows} x {columns}")


def array_properties(on_array: OnArray | None) -> dict[str, Attribute | None]:
    """The properties that say how a buffer or an operation uses the array; none where it does not."""
    if on_array is None:
        return {}
    rows, columns = on_array.fold
    return {"batch_rank": IntAttr(on_array.batch_rank), "fold_rows": IntAttr(rows), "fold_columns": IntAttr(columns)}


def on_array_of(op: Operation) -> OnArray | None:
    """What `array_properties` made."""
    if "fold_rows" not in op.properties:  # as in most buffers, which are asked with every access
        return None
    found = [op.properties.get(name) for name in ("batch_rank", "fold_rows", "fold_columns")]
    numbers = [cast("int", part.data) for part in found if isinstance(part, IntAttr)]
    return OnArray(numbers[0], (numbers[1], numbers[2])) if len(numbers) == 3 else None


def parse_on_array(parser: Parser) -> OnArray:
    """Parses what `OnArray.to_text` gives."""
    parser.parse_keyword("batch")
    batch = parser.parse_integer()
    return OnArray(batch, parse_fold(parser))


def parse_fold(parser: Parser) -> tuple[int, int]:
    """Parses `fold 2 x 4`, or nothing, which is 1 x 1."""
    if not parser.parse_optional_keyword("fold"):
        return (1, 1)
    rows = parser.parse_integer()
    parser.parse_characters("x")
    return rows, parser.parse_integer()
