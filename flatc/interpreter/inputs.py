"""Seeded inputs for a graph: the same numbers for the same seed and names, wherever they are made.

Each tensor has a generator of its own, seeded by the seed and the tensor's name, so adding an input or
changing the order changes no other one. Values keep activations near 1 through a deep graph: weights
are divided by the square root of their first dim. Booleans are mostly true, integers are nondecreasing
along the last dim, as document numbers are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType
from xdsl.ir import Attribute
from xdsl.utils.hints import isa

from flatc.interpreter.dtypes import Array, numpy_dtype
from flatc.interpreter.engine import argument_names, graph_function


def random_inputs(module: ModuleOp, seed: int) -> dict[str, Array]:
    """An array for each input of the graph, in its storage type."""
    function = graph_function(module)
    attributes = function.arg_attrs.data if function.arg_attrs else ()
    inputs: dict[str, Array] = {}
    for index, (name, argument) in enumerate(zip(argument_names(function), function.args, strict=True)):
        assert isa(argument.type, TensorType[Attribute])
        kind = _kind(attributes[index].data) if attributes else "input"
        inputs[name] = _random(name, kind, argument.type, seed)
    return inputs


def _kind(attributes: Mapping[str, Attribute]) -> str:
    kind = attributes.get("flat.kind")
    return kind.data if isinstance(kind, StringAttr) else "input"


def _random(name: str, kind: str, tensor: TensorType[Attribute], seed: int) -> Array:
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    shape, dtype = tensor.get_shape(), numpy_dtype(tensor.get_element_type())
    if dtype == np.bool_:
        values: Array = generator.random(shape) < 0.8
        values.reshape(-1)[:1] = True
        return values
    if dtype == np.int8:
        return generator.integers(-8, 8, shape, dtype=np.int8)
    if dtype.kind == "i":
        return np.cumsum(generator.random(shape) < 0.2, axis=-1).astype(dtype)
    scale = 1 / math.sqrt(shape[0]) if kind == "weight" and len(shape) > 1 else 1.0
    return (generator.standard_normal(shape, dtype=np.float64) * scale).astype(dtype)
