"""Element types of the IR as NumPy types, and the rule for how precisely things are computed.

Storage types that NumPy lacks (bfloat16, float8) come from `ml_dtypes`; arithmetic never happens in
them. Everything is computed in float32, or in float64 where a float64 takes part, and is rounded once to
the type of the result:

    >>> numpy_dtype(BFloat16Type())
    dtype(bfloat16)
    >>> Precision().compute(BFloat16Type(), Float32Type())
    dtype('float32')
    >>> Precision(exact=True).compute(BFloat16Type())
    dtype('float64')
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from xdsl.dialects.builtin import (
    AnyFloat,
    BFloat16Type,
    Float8E4M3FNType,
    Float8E5M2Type,
    Float16Type,
    Float32Type,
    Float64Type,
    IntegerType,
)
from xdsl.ir import Attribute

from flatc.dialects.frozen import frozen

Array = NDArray[Any]

_NUMPY: dict[Attribute, np.dtype[Any]] = {
    Float64Type(): np.dtype(np.float64),
    Float32Type(): np.dtype(np.float32),
    Float16Type(): np.dtype(np.float16),
    BFloat16Type(): np.dtype(ml_dtypes.bfloat16),
    Float8E4M3FNType(): np.dtype(ml_dtypes.float8_e4m3fn),
    Float8E5M2Type(): np.dtype(ml_dtypes.float8_e5m2),
    IntegerType(1): np.dtype(np.bool_),
    IntegerType(8): np.dtype(np.int8),
    IntegerType(32): np.dtype(np.int32),
    IntegerType(64): np.dtype(np.int64),
}
_ELEMENT = {dtype: element for element, dtype in _NUMPY.items()}


def numpy_dtype(element: Attribute) -> np.dtype[Any]:
    """The NumPy type that holds values of an element type."""
    return _NUMPY[element]


def element_type(dtype: np.dtype[Any]) -> Attribute:
    """The element type of the IR for a NumPy type."""
    return _ELEMENT[dtype]


@frozen
class Precision:
    """How to round: as the types of the IR say, or, if `exact`, not at all (everything in float64)."""

    exact: bool = False

    def compute(self, *elements: Attribute) -> np.dtype[Any]:
        """The type to compute in when these element types take part; sums of i32 are exact in float64."""
        wide = self.exact or Float64Type() in elements or IntegerType(32) in elements
        return np.dtype(np.float64 if wide else np.float32)

    def stored(self, element: Attribute) -> np.dtype[Any]:
        """The type that a result of this element type has."""
        return np.dtype(np.float64) if self.exact and isinstance(element, AnyFloat) else numpy_dtype(element)

    def store(self, value: Array, element: Attribute) -> Array:
        """Round a computed value to the type of the result."""
        return value.astype(self.stored(element), copy=False)
