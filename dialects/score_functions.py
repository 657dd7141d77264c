"""The kinds of `spatial.vector` that work on scores before the softmax, and what they are told beside their operands.

    %t1 = spatial.vector softcap (%s) into (%s) extent [1, 2, 4, 64, 128] #spatial.score<softcap(cap = 50.0)>
    %t2 = spatial.vector bias (%s, %b) into (%s) extent [1, 2, 4, 64, 128] after(%t1)

    #spatial.score<softcap(cap = 50.0)>
    #spatial.score<alibi(heads = 8, group = 4, offset = 0)>
    #spatial.score<t5_relative(max_distance = 128, offset = 0, bidirectional = true)>

The meanings are those of `attn.softcap`, `attn.alibi` and `attn.t5_relative`; a tile does not know how many heads there
are, and has to be told. Operands are stored as the tensor is, and repeated along dims of 1.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from typing_extensions import override
from xdsl.ir import Data
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer

from flatc.dialects.frozen import frozen
from flatc.dialects.parsing import float_text
from flatc.dialects.vector_kinds import VectorKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@frozen
class Softcap:
    """Scores become `cap * tanh(scores / cap)`."""

    cap: float


@frozen
class Alibi:
    """The slope of a query head among `heads` follows from its number: kv head * `group` + place in the group."""

    heads: int
    group: int
    offset: int


@frozen
class T5Relative:
    """Which bucket of a table the distance `key - (query + offset)` falls into."""

    max_distance: int
    offset: int
    bidirectional: bool


ScoreFunction = Softcap | Alibi | T5Relative

FUNCTIONS: dict[str, type[ScoreFunction]] = {"softcap": Softcap, "alibi": Alibi, "t5_relative": T5Relative}
"""The word of each function, which is also the kind of the vector operation that needs it."""


SCORE_KINDS: dict[str, VectorKind] = {
    "scale_columns": VectorKind(("scores", "scale"), ("scores",), "scores = scores * scale, or probabilities so"),
    "softcap": VectorKind(("scores",), ("scores",), "scores = cap * tanh(scores / cap)"),
    "bias": VectorKind(("scores", "bias"), ("scores",), "scores = scores + bias"),
    "alibi": VectorKind(("scores",), ("scores",), "scores = scores - slope(head) * |key - (query + offset)|"),
    "t5_relative": VectorKind(
        ("scores", "table"), ("scores",), "scores = scores + table[bucket(key - (query + offset)), head]"
    ),
    "keep": VectorKind(("scores", "keep"), ("scores",), "scores become -inf where keep is false"),
    "same": VectorKind(
        ("scores", "row documents", "key documents"),
        ("scores",),
        "scores become -inf where the document of the row is not that of the key",
    ),
    "sink": VectorKind(
        ("sink", "maximum"),
        ("maximum", "sum"),
        "maximum = max(maximum, sink); sum = exp(sink - maximum), to which probabilities are added",
    ),
}
"""Vector operations on scores, and a sink's part in the softmax. Extents are batch to key, a sink's end with 1."""

REPEATED_OPERANDS = ("scale", "bias", "keep", "row documents", "key documents", "sink")
"""Operands of these kinds that are repeated along dims of 1."""
POSITIONS = {"mask": ("query", "key"), "alibi": ("kv head", "place in the group", "query", "key")}
POSITIONS["t5_relative"] = POSITIONS["mask"]
"""What the position of a kind consists of."""


def t5_buckets(distances: NDArray[Any], buckets: int, max_distance: int, bidirectional: bool) -> NDArray[np.int64]:
    """The bucket of each distance (key minus row), as T5 computes it."""
    import numpy as np

    later = np.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        later = (distances > 0) * buckets
        reach = np.abs(distances)
    else:
        reach = np.maximum(-distances, 0)
    exact = buckets // 2
    ratio = np.log(np.maximum(reach, 1) / exact) / math.log(max_distance / exact)
    far = np.minimum(exact + np.floor(ratio * (buckets - exact)).astype(np.int64), buckets - 1)
    return later + np.where(reach < exact, reach, far)


@irdl_attr_definition
class ScoreFunctionAttr(Data[ScoreFunction]):
    """A score function as an attribute: `#spatial.score<softcap(cap = 50.0)>`."""

    name = "spatial.score"

    @classmethod
    @override
    def parse_parameter(cls, parser: AttrParser) -> ScoreFunction:
        with parser.in_angle_brackets():
            start = parser.pos
            word = parser.parse_identifier()
            kind = FUNCTIONS.get(word)
            if kind is None:
                parser.raise_error(f"unknown score function '{word}': expected one of {', '.join(FUNCTIONS)}", start)
            values: list[float | int | bool] = []
            for index, parameter in enumerate(fields(kind)):
                parser.parse_punctuation("," if index else "(")
                parser.parse_keyword(parameter.name)
                parser.parse_punctuation("=")
                values.append(_parse_value(parser, str(parameter.type)))
            parser.parse_punctuation(")")
            return kind(*values)  # pyright: ignore[reportArgumentType, reportCallIssue]

    @override
    def print_parameter(self, printer: Printer) -> None:
        values = ((f.name, getattr(self.data, f.name)) for f in fields(self.data))
        text = ", ".join(f"{name} = {_value_text(value)}" for name, value in values)
        word = next(word for word, kind in FUNCTIONS.items() if isinstance(self.data, kind))
        printer.print_string(f"<{word}({text})>")


def _parse_value(parser: AttrParser, type: str) -> float | int | bool:
    if type == "bool":
        return parser.parse_boolean()
    return float(parser.parse_number()) if type == "float" else parser.parse_integer(allow_boolean=False)


def _value_text(value: float | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return float_text(value) if isinstance(value, float) else str(value)
