"""Whether a mapping can be scheduled for a problem on an accelerator, apart from memory and timing.

Capacity, slots and stages are judged on the schedule itself by the verifier of `spatial`; what is checked here
has no meaning as a schedule at all: tiles larger than the tensor, an algorithm the kernel cannot run, an
array use the machine does not permit.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.mapping import DIMS, ArrayUse, Mapping
from flatc.passes.cost.primitive_costs import MatmulTile, ceil_divide, fold_limits, spatial_extents
from flatc.passes.kernels.problem import AttentionProblem


def check_mapping(problem: AttentionProblem, mapping: Mapping, accelerator: Accelerator, kernel: str) -> None:
    """Raises `FlatcError` with the first rule that the mapping breaks and what to change."""
    _check_tiles(problem, mapping, kernel)
    _check_softmax(problem, mapping, kernel)
    _check_product_rows(problem, mapping, kernel)
    _check_units(problem, mapping, accelerator, kernel)
    _check_values_in_keys(problem, mapping, kernel)
    _check_pages(problem, mapping, kernel)
    _check_stages(mapping, kernel)
    for name, use in (("logit", mapping.logit), ("attend", mapping.attend)):
        if problem.has(name):
            check_array_use(accelerator, use, product_tile(problem, mapping, name), f"{kernel}: {name}")


def product_tile(problem: AttentionProblem, mapping: Mapping, product: str) -> MatmulTile:
    """The full tile of the logit or attend product under a mapping."""
    tiles = mapping.tiles
    batch, rows = tiles.batch * tiles.kv_head, tiles.group * tiles.query
    if product == "logit":
        keys = problem.keys if mapping.keep.k_level == "query" else tiles.key
        return MatmulTile(batch, rows, keys, tiles.d_qk)
    return MatmulTile(batch, rows, problem.d_v + (mapping.softmax.total == "attend"), tiles.key)


def _check_tiles(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    p = problem
    sizes: dict[str, int] = dict(
        zip(DIMS, (p.batch, p.kv_heads, p.group, p.queries, p.keys, p.d_qk, p.d_v), strict=True)
    )
    for dim, size in sizes.items():
        tile = getattr(mapping.tiles, dim)
        if tile > size:
            raise FlatcError(f"{kernel}: the tile of {dim} is {tile}, and there are only {size}")
    for dim, stage in (("d_qk", "logit"), ("d_v", "attend")):
        tiled = problem.has(stage) and getattr(mapping.tiles, dim) != sizes[dim]
        if tiled and not (dim == "d_qk" and is_product_rows(problem, mapping)):
            allowed = " without a softmax and with softmax(rows)" if dim == "d_qk" else ""
            raise FlatcError(
                f"{kernel}: the tile of {dim} is {getattr(mapping.tiles, dim)}; tiling {dim} is "
                + (f"scheduled{allowed} only" if allowed else "not scheduled yet"),
                help=f"set it to {sizes[dim]}",
            )


def is_product_rows(problem: AttentionProblem, mapping: Mapping) -> bool:
    """Whether the kernel runs as `product_rows` shows: rows of scores on chip, and no softmax on them."""
    return mapping.softmax.algorithm == "rows" and not problem.has("softmax")


def _check_product_rows(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    keep = mapping.keep
    if is_product_rows(problem, mapping):
        if not problem.has("logit") or problem.has("mask") or problem.score_ops or problem.converts_output:
            raise FlatcError(
                f"{kernel}: rows without a softmax hold the scores of a logit, unchanged, and outputs of one type",
                help="use softmax(none)",
            )
        if "kv_head" in (keep.k_level, keep.v_level) or keep.v_level in ("query", "k"):
            raise FlatcError(
                f"{kernel}: rows without a softmax load K and V again for every query tile",
                help="keep K at key or at query, and V at key",
            )
        _check_interleave(problem, mapping, kernel)
        return
    if mapping.interleave != 1:
        whole = all(problem.has(stage) for stage in ("logit", "softmax", "attend"))
        changed = problem.has("mask") or problem.operands or problem.score_ops or mapping.keep.v_level == "k"
        if mapping.softmax.algorithm != "online" or not whole or changed:
            raise FlatcError(
                f"{kernel}: query tiles are interleaved in rows without a softmax, and in an online softmax of whole "
                "attention without a mask, bias, softcap or sink",
                help="use interleave(1)",
            )
        _check_interleave(problem, mapping, kernel)
    if "query" in (keep.k_level, keep.v_level):
        raise FlatcError(f"{kernel}: only rows without a softmax keep K at query", help="keep it at key or at kv_head")


def _check_interleave(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    if (mapping.interleave - 1) * mapping.tiles.query >= problem.queries:
        raise FlatcError(
            f"{kernel}: {mapping.interleave} tiles of {mapping.tiles.query} query rows are interleaved, and there "
            f"are only {problem.queries} rows"
        )


def _check_values_in_keys(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    keep, algorithm = mapping.keep, mapping.softmax.algorithm
    if keep.v_level != "k":
        return
    if problem.v_in_k is None:
        raise FlatcError(f"{kernel}: V is no part of K here, and cannot be read out of it", help="keep V at key")
    in_strips = mapping.softmax.rescaled_every > 1
    if (algorithm in ("rows", "streamed") or in_strips) and keep.k_level != "kv_head":
        raise FlatcError(
            f"{kernel}: softmax({mapping.softmax.to_text() if in_strips else algorithm}) is done with a tile of K "
            "before it needs V",
            help="keep K at kv_head, or V at key",
        )
    if mapping.softmax.total == "attend":
        raise FlatcError(
            f"{kernel}: a column of ones beside V needs a buffer for V, and V is read out of K", help="keep V at key"
        )


def is_whole_pages(key: int, keys: int, block: int | None) -> bool:
    """Whether every tile of `key` keys begins with a page, or lies within one."""
    return block is None or key % block == 0 or block % key == 0 or key == keys


def _check_pages(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    key, block = mapping.tiles.key, problem.block
    if block is None:
        return
    if is_product_rows(problem, mapping):
        raise FlatcError(f"{kernel}: rows without a softmax do not load pages", help="use softmax(none)")
    if not is_whole_pages(key, problem.keys, block):
        raise FlatcError(
            f"{kernel}: tiles of {key} keys cut through pages of {block}",
            help=f"use a multiple or a divisor of {block}, or all {problem.keys} keys",
        )


def _check_softmax(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    algorithm, divide = mapping.softmax.algorithm, mapping.softmax.divide
    if problem.has("softmax") == (algorithm == "none") and not is_product_rows(problem, mapping):
        has = "has a softmax" if problem.has("softmax") else "has no softmax"
        raise FlatcError(f"{kernel}: the kernel {has} and the mapping says softmax({algorithm})")
    if algorithm == "online" and not problem.has("attend"):
        raise FlatcError(
            f"{kernel}: online softmax corrects outputs, and this kernel has none",
            help="use rows, or streamed where rows do not fit",
        )
    if problem.has("softmax") and not problem.has("attend") and divide == "late":
        raise FlatcError(f"{kernel}: without attend there is nothing to divide later", help="use divide early")
    if algorithm == "online" and divide == "early":
        raise FlatcError(f"{kernel}: online softmax knows the sum only at the end", help="use divide late")
    if algorithm == "streamed" and divide == "late":
        raise FlatcError(f"{kernel}: streamed softmax divides in its second pass", help="use divide early")


def _check_units(problem: AttentionProblem, mapping: Mapping, accelerator: Accelerator, kernel: str) -> None:
    """Which unit does what of a softmax and its sums."""
    softmax = mapping.softmax
    if mapping.logit.add != "array":
        raise FlatcError(f"{kernel}: only attend products are added up, over tiles of keys", help="use it for attend")
    if mapping.attend.add == "vector" and (softmax.algorithm != "online" or not problem.has("attend")):
        raise FlatcError(f"{kernel}: only attend products of an online softmax are added on the vector unit")
    if softmax.rescales_first and softmax.algorithm != "online":
        raise FlatcError(f"{kernel}: only an online softmax rescales outputs", help="leave 'first rescaled' out")
    if softmax.total == "attend" and (softmax.algorithm not in ("online", "rows") or softmax.divide != "late"):
        raise FlatcError(
            f"{kernel}: a sum in attend is known when the outputs are", help="use it with online or rows, divide late"
        )
    if softmax.total == "attend" and not (problem.has("softmax") and problem.has("attend")):
        raise FlatcError(f"{kernel}: there is no softmax before an attend whose sums it could take")
    if softmax.total == "attend" and problem.sink is not None:
        raise FlatcError(f"{kernel}: a sum in attend is a sum of probabilities, and a sink adds to it")
    if softmax.total == "attend" and problem.value_scale is not None:
        raise FlatcError(f"{kernel}: a sum in attend is a sum of scaled probabilities, where values have scales")
    _check_strips(problem, mapping, kernel)
    if softmax.on_array:
        _check_held(problem, mapping, accelerator, kernel)


def _check_strips(problem: AttentionProblem, mapping: Mapping, kernel: str) -> None:
    """Outputs that are rescaled every few key tiles."""
    softmax, tiles = mapping.softmax, ceil_divide(problem.keys, mapping.tiles.key)
    if softmax.rescaled_every == 1:
        return
    if softmax.algorithm != "online":
        raise FlatcError(f"{kernel}: only an online softmax rescales outputs", help="leave 'rescaled every' out")
    if softmax.rescaled_every > tiles:
        raise FlatcError(
            f"{kernel}: outputs are rescaled every {softmax.rescaled_every} tiles of keys, and there are only {tiles}",
            help="use rows, divide late, to rescale never",
        )
    if softmax.on_array or mapping.interleave > 1 or mapping.attend.add == "vector":
        raise FlatcError(
            f"{kernel}: where PEs hold scores, query tiles are interleaved or the vector unit adds products, outputs "
            "are rescaled at every tile of keys",
            help="leave 'rescaled every' out",
        )


def _check_held(problem: AttentionProblem, mapping: Mapping, accelerator: Accelerator, kernel: str) -> None:
    """Score tiles in the registers of PEs: the array can do the work on them, and they stay where they are."""
    softmax, array = mapping.softmax, accelerator.array
    if problem.operands or problem.score_ops:
        raise FlatcError(
            f"{kernel}: the PEs do no other work on scores than a softmax, and the kernel caps, biases or hides them",
            help="leave the softmax to the vector unit",
        )
    if softmax.algorithm != "online" or not problem.has("logit"):
        raise FlatcError(
            f"{kernel}: PEs do softmax work on score tiles that stay in their registers from logit to attend",
            help="use softmax(online, ...) in a kernel of logit, softmax and attend",
        )
    for word, unit, operation in (
        ("max", softmax.maximum, "max"),
        ("exp", softmax.exponential, "exp"),
        ("sum", softmax.total, "add"),
    ):
        if unit == "array" and array.cycles_of(operation) is None:
            raise FlatcError(
                f"{kernel}: '{word} on array', and {accelerator.name}'s PEs cannot do {operation}",
                help=f"use '{word} on vector', or price {operation} in array: operations",
            )
    if array.rows != array.columns:
        raise FlatcError(
            f"{kernel}: score tiles stay in the PEs of a square array only: logit leaves them as attend needs them; "
            f"{accelerator.name}'s is {array.rows} x {array.columns}"
        )
    logit, attend = mapping.logit, mapping.attend
    if (logit.stationarity, attend.stationarity) != ("output", "input"):
        raise FlatcError(
            f"{kernel}: score tiles stay in the PEs, so logit is output stationary and attend input stationary"
        )
    if (logit.fold_rows, logit.fold_columns) != (attend.fold_columns, attend.fold_rows):
        raise FlatcError(
            f"{kernel}: score tiles stay where they are, queries along the rows of logit and the columns of attend, so "
            f"fold {logit.fold_rows} x {logit.fold_columns} of logit is fold {logit.fold_columns} x {logit.fold_rows} "
            "of attend"
        )


def _check_stages(mapping: Mapping, kernel: str) -> None:
    stages: list[tuple[str, int]] = [(f.name, getattr(mapping.stages, f.name)) for f in fields(mapping.stages)]
    for (earlier, first), (later, second) in pairwise(stages):
        if first > second:
            raise FlatcError(f"{kernel}: stage {first} of {earlier} comes after stage {second} of {later}")


def check_array_use(accelerator: Accelerator, use: ArrayUse, tile: MatmulTile, what: str) -> None:
    """Raises `FlatcError` if the machine's array cannot be used so for a product of full tiles."""
    array = accelerator.array
    if use.stationarity not in array.stationarities:
        raise FlatcError(
            f"{what}: {accelerator.name} has no {use.stationarity}-stationary array",
            help=f"use one of {', '.join(array.stationarities)}",
        )
    p, q, _ = spatial_extents(use.stationarity, tile)
    rows, columns = fold_limits(array, use.stationarity, p, q)
    if use.fold_rows > rows or use.fold_columns > columns:
        raise FlatcError(
            f"{what}: fold {use.fold_rows} x {use.fold_columns} of a {p} x {q} piece does not fit "
            f"{accelerator.name}'s {array.rows} x {array.columns} array, which takes at most {rows} x {columns}"
        )
