"""Seeded inputs for a graph: the same numbers for the same seed and names, wherever they are made.

Each tensor has a generator of its own, seeded by the seed and the tensor's name, so adding an input or
changing the order changes no other one. Values keep activations near 1 through a deep graph: weights
are divided by the square root of their first dim. Booleans are mostly true, integers are nondecreasing
along the last dim, as document numbers are.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
from xdsl.dialects.builtin import ModuleOp

from flatc.interpreter.dtypes import Array, numpy_dtype
from flatc.interpreter.engine import Parameter, parameters, program_of


def random_inputs(module: ModuleOp, seed: int) -> dict[str, Array]:
    """An array for each input of the graph or schedule, in its storage type."""
    return {parameter.name: _random(parameter, seed) for parameter in parameters(program_of(module))}


def _random(parameter: Parameter, seed: int) -> Array:
    generator = np.random.default_rng([seed, zlib.crc32(parameter.name.encode())])
    shape, dtype = parameter.shape, numpy_dtype(parameter.element)
    if dtype == np.bool_:
        values: Array = generator.random(shape) < 0.8
        values.reshape(-1)[:1] = True
        return values
    if dtype == np.int8:
        return generator.integers(-8, 8, shape, dtype=np.int8)
    if dtype.kind == "i":
        return np.cumsum(generator.random(shape) < 0.2, axis=-1).astype(dtype)
    scale = 1 / math.sqrt(shape[0]) if parameter.kind == "weight" and len(shape) > 1 else 1.0
    return (generator.standard_normal(shape, dtype=np.float64) * scale).astype(dtype)
