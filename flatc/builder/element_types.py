"""The element types of graphs, by the names that `.flat` files and builders use."""

from __future__ import annotations

from xdsl.dialects.builtin import (
    BFloat16Type,
    Float8E4M3FNType,
    Float8E5M2Type,
    Float16Type,
    Float32Type,
    Float64Type,
    IntegerType,
)
from xdsl.ir import Attribute

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean

DTYPES: dict[str, Attribute] = {
    "f64": Float64Type(),
    "f32": Float32Type(),
    "f16": Float16Type(),
    "bf16": BFloat16Type(),
    "f8E4M3FN": Float8E4M3FNType(),
    "f8E5M2": Float8E5M2Type(),
    "i8": IntegerType(8),
    "i32": IntegerType(32),
    "bool": IntegerType(1),
}
"""The element types by name."""

_SPELT_ELSEWHERE = {
    "fp8": "f8E4M3FN or f8E5M2",
    "f8": "f8E4M3FN or f8E5M2",
    "e4m3": "f8E4M3FN",
    "fp8_e4m3": "f8E4M3FN",
    "float8_e4m3fn": "f8E4M3FN",
    "e5m2": "f8E5M2",
    "fp8_e5m2": "f8E5M2",
    "float8_e5m2": "f8E5M2",
    "int8": "i8",
    "int32": "i32",
    "float16": "f16",
    "fp16": "f16",
    "half": "f16",
    "bfloat16": "bf16",
    "float32": "f32",
    "fp32": "f32",
    "float": "f32",
    "i1": "bool",
}


def dtype_help(word: str) -> str:
    """What to write instead of a word that is no element type."""
    known = _SPELT_ELSEWHERE.get(word.lower())
    if known is not None:
        return f"write {known}"
    return did_you_mean(word, DTYPES) or f"the types are {', '.join(DTYPES)}"


DTYPE_NAMES = {element: name for name, element in DTYPES.items()}
"""The names of the element types."""

COMPUTE_DTYPES = ("f64", "f32", "f16", "bf16")
"""Those of scores and accumulators."""


def element_type(dtype: str, at: Position | None) -> Attribute:
    """The element type of that name; an error at `at` for one that is none."""
    if dtype not in DTYPES:
        raise FlatcError(f"unknown element type '{dtype}'", position=at, help=dtype_help(dtype))
    return DTYPES[dtype]
