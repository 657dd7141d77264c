"""Seeded inputs for a graph: the same numbers for the same seed and names, wherever they are made.

Each tensor has a generator of its own, seeded by the seed and the tensor's name, so adding an input or
changing the order changes no other one. Values keep activations near 1 through a deep graph: weights
are divided by the square root of their first dim. Booleans are mostly true, integers are nondecreasing
along the last dim, as document numbers are; tables of pages name any blocks of their pool, or different ones where
there are enough and rows are appended to them.
"""

from __future__ import annotations

import math
import zlib
from typing import cast

import numpy as np
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp
from xdsl.ir import SSAValue

from flatc.dialects import attn
from flatc.dialects.spatial import ExtendOp, PagedOp, ScheduleOp, TensorRefType
from flatc.interpreter.dtypes import Array, numpy_dtype
from flatc.interpreter.engine import Parameter, parameters, program_of


def random_inputs(module: ModuleOp, seed: int) -> dict[str, Array]:
    """An array for each input of the graph or schedule, in its storage type."""
    program = program_of(module)
    blocks, grows = _blocks_of_tables(program), any(isinstance(op, attn.AppendOp | ExtendOp) for op in program.walk())
    return {p.name: _random(p, seed, blocks.get(p.name), apart=grows) for p in parameters(program)}


def _blocks_of_tables(program: FuncOp | ScheduleOp) -> dict[str, int]:
    """How many blocks the pool has that a table names, by the table's name."""
    names: dict[SSAValue, str] = {
        value: p.name for value, p in zip(program.body.block.args, parameters(program), strict=True)
    }
    found: dict[str, int] = {}
    for op in program.body.block.ops:
        if isinstance(op, attn.PagedOp) and op.table in names:
            found[names[op.table]] = attn.shape_of(op.pool)[0]
        elif isinstance(op, PagedOp) and op.table in names:
            found[names[op.table]] = cast(TensorRefType, op.source.type).dims[0]
    return found


def _random(parameter: Parameter, seed: int, blocks: int | None, *, apart: bool) -> Array:
    generator = np.random.default_rng([seed, zlib.crc32(parameter.name.encode())])
    shape, dtype = parameter.shape, numpy_dtype(parameter.element)
    if blocks is not None:
        if apart and math.prod(shape) <= blocks:
            return generator.permutation(blocks)[: math.prod(shape)].reshape(shape).astype(dtype)
        return generator.integers(0, blocks, shape, dtype=dtype)
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
