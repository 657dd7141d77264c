"""A kernel's loop nest for people: one line a loop or operation, extents of full tiles, stages.

    for batch 64
      for kv_head 12
        load   v -> V [512 x 64]                      read
        for query 16
          load   q -> Q [32 x 64]                     read
          for key 4
            load   k -> K [128 x 64]                  read
            matmul Q, K -> scores [32 x 128 x 64]     array, output stationary

Dimensions of one are left out; `~` marks a trip count or extent that differs between trips, given as its largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from xdsl.ir import Block, SSAValue

from flatc.dialects.quasi_affine import Expr
from flatc.dialects.spatial import (
    BufferOp,
    ForOp,
    KernelOp,
    LoadOp,
    MatmulOp,
    TimedOp,
    VectorOp,
    stays_on_chip,
)
from flatc.passes.simulation.simulator import tensor_name

Ranges = Mapping[SSAValue, tuple[int, int]]

MOST_EVALUATED = 1 << 16
"""Longer loops are not looked at trip by trip."""


def loop_lines(kernel: KernelOp) -> list[str]:
    """The lines of a kernel's loop nest, aligned."""
    rows = list(_block(kernel.body.block, 0, {}))
    width = max((len(left) for left, right in rows if right), default=0)
    return [f"{left:{width}}  {right}".rstrip() for left, right in rows]


def _block(block: Block, depth: int, ranges: Ranges) -> Iterator[tuple[str, str]]:
    indent = "  " * depth
    for op in block.ops:
        if isinstance(op, ForOp):
            trips, inner = _trips(op, ranges)
            yield f"{indent}for {_name(op.index)} {trips}", _stage(op.stage.data)
            yield from _block(op.body.block, depth + 1, inner)
        elif isinstance(op, TimedOp):
            yield indent + _operation(op, ranges), _resource(op)


def _name(index: SSAValue) -> str:
    return index.name_hint or "i"


def _trips(loop: ForOp, ranges: Ranges) -> tuple[str, Ranges]:
    """The number of trips as text, and the ranges of indices inside."""
    lower, upper = (_range(e.data, loop.indices, ranges) for e in (loop.lower, loop.upper))
    trips = _range(loop.upper.data - loop.lower.data, loop.indices, ranges)
    inside = {**ranges, loop.index: (lower[0], max(lower[0], upper[1] - 1))}
    return _number(trips), inside


def _range(expr: Expr, indices: Sequence[SSAValue], ranges: Ranges) -> tuple[int, int]:
    """The least and the largest value: exact where one index of a loop of usual length decides, else bounds of them."""
    named = {f"d{i}": ranges[value] for i, value in enumerate(indices)}
    varying = {name for name in expr.variables() if named[name][0] < named[name][1]}
    if len(varying) != 1:
        return expr.range(named)
    (name,) = varying
    low, high = named[name]
    if high - low >= MOST_EVALUATED:
        return expr.range(named)
    import numpy as np

    values = expr.evaluate({n: ends[0] for n, ends in named.items()} | {name: np.arange(low, high + 1)})
    return int(values.min()), int(values.max())


def _number(range: tuple[int, int]) -> str:
    low, high = range
    return str(high) if low == high else f"~{max(high, 0)}"


def _operation(op: TimedOp, ranges: Ranges) -> str:
    reads, writes = ([_label(value) for value in values] for values in (op.reads, op.writes))
    if op.tensor is not None:
        (reads if isinstance(op, LoadOp) else writes).append(tensor_name(op.tensor))
        if stays_on_chip(op.tensor):
            return f"copy    {', '.join(reads)} -> {', '.join(writes)} {_extents(op, ranges)}"
    verb = op.kind.data.replace("_", " ") if isinstance(op, VectorOp) else op.name.removeprefix("spatial.")
    return f"{verb:7} {', '.join(reads)} -> {', '.join(writes)} {_extents(op, ranges)}"


def _label(value: SSAValue) -> str:
    owner = value.owner
    return owner.label.data if isinstance(owner, BufferOp) else "?"


def _extents(op: TimedOp, ranges: Ranges) -> str:
    """Sizes of the widest tile; ragged last tiles are not marked, they follow from the sizes."""
    sizes = [_range(e.data, op.indices, ranges)[1] for e in op.extents]
    wide = [str(size) for size in sizes if size != 1]
    return f"[{' x '.join(wide) or '1'}]"


def _resource(op: TimedOp) -> str:
    parts = [op.resource]
    if isinstance(op, MatmulOp):
        fold = (op.fold_rows.data, op.fold_columns.data)
        parts.append(f"{op.stationarity.data} stationary" + (f", fold {fold[0]} x {fold[1]}" if fold != (1, 1) else ""))
    if op.stage.data:
        parts.append(_stage(op.stage.data))
    if op.when is not None:
        parts.append("at the mask's edge" if isinstance(op, VectorOp) and op.mask is not None else "in some trips")
    return ", ".join(parts)


def _stage(stage: int) -> str:
    return f"stage {stage}" if stage else ""
