"""Shape rules of the attn dialect: what fits together, and what comes out.

Plain functions on tuples of sizes. The verifiers of the operations and the graph builder call the same
rule, so a shape is explained in the same words wherever it is found to be wrong:

    >>> logit((1, 32, 7, 128), (1, 8, 99, 128))
    (1, 32, 7, 99)

The layouts: q is [batch, query heads, queries, d_qk], k is [batch, kv heads, keys, d_qk] and v is
[batch, kv heads, keys, d_v]. Kv heads divide query heads and the repeat is never written out: query
head h reads kv head h // (query heads // kv heads).
"""

from __future__ import annotations

from collections.abc import Sequence

from flatc.dialects.diagnostics import FlatcError

Shape = tuple[int, ...]

LARGEST_DIMENSION = 2**40
LARGEST_TENSOR = 2**62


def text(shape: Shape) -> str:
    """A shape as users write it: `[2, 8, 64]`."""
    return f"[{', '.join(map(str, shape))}]"


def check_sizes(shape: Shape, *, may_be_empty: bool = False) -> None:
    """Reject sizes that no machine holds; an empty tensor is only ever a cache nobody has filled yet."""
    elements = 1
    for index, size in enumerate(shape):
        if size < 0 or (size == 0 and not may_be_empty):
            raise FlatcError(
                f"dim {index} of {text(shape)} is {size}",
                help="every dim must be at least 1; only the length of a rank-4 cache may be 0",
            )
        if size > LARGEST_DIMENSION:
            raise FlatcError(f"dim {index} of {text(shape)} is {size}", help="the largest dim is 2**40")
        elements *= size
    if elements > LARGEST_TENSOR:
        raise FlatcError(f"{text(shape)} has {elements} elements", help="the largest tensor has 2**62")


def rank(what: str, shape: Shape, layout: str) -> None:
    """Require as many dims as `layout` names, such as 'batch, heads, keys, d_v'."""
    if len(shape) != layout.count(",") + 1:
        raise FlatcError(
            f"{what} has shape {text(shape)}, expected {layout.count(',') + 1} dims: [{layout}]",
            help="use heads(x, H) to split [batch, sequence, H * d] into heads" if "heads" in layout else None,
        )


def same(what: str, left: tuple[str, Shape, int], right: tuple[str, Shape, int]) -> None:
    """Require two dims to agree; each side is (name, shape, index of the dim)."""
    if left[1][left[2]] != right[1][right[2]]:
        raise FlatcError(
            f"{left[0]} {text(left[1])} and {right[0]} {text(right[1])} differ in {what}",
            notes=[f"{what} is {side[1][side[2]]} in {side[0]} (dim {side[2]})" for side in (left, right)],
        )


def _kv_heads(left: tuple[str, Shape], right: tuple[str, Shape]) -> None:
    heads, kv_heads = left[1][1], right[1][1]
    if kv_heads == 0 or heads % kv_heads:
        raise FlatcError(
            f"{left[0]} {text(left[1])} has {heads} heads, which is no multiple of the {kv_heads} heads of"
            f" {right[0]} {text(right[1])}",
            help="kv heads must divide query heads; each kv head serves a group of equal size",
        )


def logit(q: Shape, k: Shape) -> Shape:
    """q [B, H, S, D] and k [B, KV, T, D] give scores [B, H, S, T]."""
    rank("q", q, "batch, heads, queries, d_qk")
    rank("k", k, "batch, kv heads, keys, d_qk")
    same("batch", ("q", q, 0), ("k", k, 0))
    same("d_qk", ("q", q, 3), ("k", k, 3))
    _kv_heads(("q", q), ("k", k))
    return (*q[:3], k[2])


def attend(p: Shape, v: Shape) -> Shape:
    """p [B, H, S, T] and v [B, KV, T, E] give [B, H, S, E]."""
    rank("p", p, "batch, heads, queries, keys")
    rank("v", v, "batch, kv heads, keys, d_v")
    same("batch", ("p", p, 0), ("v", v, 0))
    same("the number of keys", ("p", p, 3), ("v", v, 2))
    _kv_heads(("p", p), ("v", v))
    return (*p[:3], v[3])


def attention(q: Shape, k: Shape, v: Shape) -> Shape:
    """q, k and v as one call of attention has them; gives [B, H, S, d_v]."""
    scores = logit(q, k)
    rank("v", v, "batch, kv heads, keys, d_v")
    same("batch", ("k", k, 0), ("v", v, 0))
    same("the number of heads", ("k", k, 1), ("v", v, 1))
    same("the number of keys", ("k", k, 2), ("v", v, 2))
    return attend(scores, v)


def scores(shape: Shape) -> Shape:
    """Scores are [B, H, S, T]."""
    rank("scores", shape, "batch, heads, queries, keys")
    return shape


def onto_scores(what: str, scores: Shape, operand: Shape) -> Shape:
    """`operand` broadcasts to the scores [B, H, S, T] from the right: [S, T], [H, S, T], [B, 1, 1, T], ..."""
    rank("scores", scores, "batch, heads, queries, keys")
    try:
        result = broadcast(scores, operand)
    except FlatcError:
        result = ()
    if result != scores:
        raise FlatcError(
            f"{what} {text(operand)} does not broadcast to scores {text(scores)}",
            help="give it [queries, keys], [heads, queries, keys] or four dims; a dim of 1 is repeated",
        )
    return scores


def per_key(what: str, scores: Shape, operand: Shape) -> None:
    """`operand` has one entry for each key of each batch row: [B, T]."""
    rank(what, operand, "batch, keys")
    same("batch", ("scores", scores, 0), (what, operand, 0))
    same("the number of keys", ("scores", scores, 3), (what, operand, 1))


def column_scale(scores: Shape, scale: Shape) -> None:
    """`scale` has one entry for each key of each kv head: [B, KV, T], or 1 for B or KV."""
    rank("scale", scale, "batch, kv heads, keys")
    same("the number of keys", ("scores", scores, 3), ("scale", scale, 2))
    if scale[0] not in (1, scores[0]) or scores[1] % scale[1]:
        raise FlatcError(
            f"scale {text(scale)} does not fit scores {text(scores)}",
            help=f"give it [{scores[0]} or 1, kv heads or 1, {scores[3]}]; kv heads divide the {scores[1]} heads",
        )


def documents(scores: Shape, operand: Shape) -> None:
    """Document numbers are [B, T], and the queries are the last of the keys."""
    per_key("same", scores, operand)
    if scores[2] > scores[3]:
        raise FlatcError(
            f"same(doc) needs the queries to be the last of the keys, but scores {text(scores)} have more"
            " queries than keys",
            help="pass a mask tensor of bool instead",
        )


def vector(what: str, operand: Shape, name: str, size: int) -> None:
    """`operand` is a vector of `size` entries, one for each `name`."""
    if operand != (size,):
        raise FlatcError(f"{what} has shape {text(operand)}, expected [{size}]: one entry for each {name}")


def linear(x: Shape, w: Shape) -> Shape:
    """x [..., I] times w [I, O] gives [..., O]; x [B, H, S, I] times w [H, I, O], head by head, gives [B, H, S, O]."""
    if (len(x), len(w)) == (4, 3):
        return _linear_by_head(x, w)
    inner = w[-2] if len(w) >= 2 else None
    if not x or inner is None or len(w) != 2 or x[-1] != inner:
        notes: list[str] = []
        if x and inner is not None and x[-1] != inner:
            notes = [f"the last dim of the left side is {x[-1]}, the first of the right side is {inner}"]
        elif len(w) != 2:
            notes = [f"the right side has {len(w)} dims, a weight has 2: [in, out], or 3: [heads, in, out]"]
        raise FlatcError(f"cannot multiply {text(x)} by {text(w)}", notes=notes)
    return (*x[:-1], w[1])


def _linear_by_head(x: Shape, w: Shape) -> Shape:
    if (x[1], x[3]) != (w[0], w[1]):
        raise FlatcError(
            f"cannot multiply {text(x)} by {text(w)} head by head",
            notes=[f"a weight {text(w)} takes [batch, {w[0]} heads, sequence, {w[1]} features]"],
        )
    return (*x[:3], w[2])


def broadcast(left: Shape, right: Shape) -> Shape:
    """NumPy's rule: align on the right, a dim of 1 is repeated."""
    length = max(len(left), len(right))
    a = (1,) * (length - len(left)) + left
    b = (1,) * (length - len(right)) + right
    for index, (x, y) in enumerate(zip(a, b, strict=True)):
        if x != y and 1 not in (x, y):
            raise FlatcError(
                f"cannot combine {text(left)} with {text(right)} element by element",
                notes=[f"dim {index - length} is {x} on the left side and {y} on the right side"],
            )
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def split_heads(x: Shape, heads: int) -> Shape:
    """x [B, S, H * D] gives [B, H, S, D]."""
    rank("x", x, "batch, sequence, features")
    if heads < 1 or x[2] % heads:
        raise FlatcError(
            f"cannot split {text(x)} into {heads} heads",
            notes=[f"the last dim is {x[2]}, which {heads} does not divide"] if heads > 0 else [],
        )
    return (x[0], heads, x[1], x[2] // heads)


def merge_heads(x: Shape) -> Shape:
    """x [B, H, S, D] gives [B, S, H * D]."""
    rank("x", x, "batch, heads, sequence, d")
    return (x[0], x[2], x[1] * x[3])


def features(x: Shape, start: int, stop: int) -> Shape:
    """x [..., D] gives [..., stop - start]."""
    if not x or not 0 <= start < stop <= x[-1]:
        raise FlatcError(
            f"{text(x)} has no features {start} to {stop}",
            help=f"they count from 0 to {x[-1]}, and at least one is needed" if x else None,
        )
    return (*x[:-1], stop - start)


def concat(parts: Sequence[Shape]) -> Shape:
    """x [..., D] and y [..., E] give [..., D + E]."""
    first = parts[0]
    for part in parts:
        if not part or part[:-1] != first[:-1]:
            raise FlatcError(
                f"cannot join the features of {' and '.join(map(text, parts))}",
                help="all dims but the last must agree; one head is repeated for all",
            )
    return (*first[:-1], sum(part[-1] for part in parts))


def copy(x: Shape, result: Shape) -> Shape:
    """x [..., D] keeps its shape, but that [B, 1, S, D] may give [B, H, S, D]."""
    if result == x or (len(x) == len(result) == 4 and x[1] == 1 and (*x[:1], result[1], *x[2:]) == result):
        return result
    raise FlatcError(f"cannot copy {text(x)} to {text(result)}", help="the shapes must agree; one head is repeated")


def paged(pool: Shape, table: Shape, rows: int | None = None) -> Shape:
    """pool [blocks, KV, block, D] and table [B, pages] give [B, KV, rows, D]; pages are full unless `rows` is given."""
    rank("pool", pool, "blocks, kv heads, rows of a block, d")
    rank("table", table, "batch, pages")
    most = table[1] * pool[2]
    rows = most if rows is None else rows
    if not 0 < rows <= most:
        raise FlatcError(
            f"{table[1]} pages of {pool[2]} rows do not hold {rows} keys",
            help=f"a sequence has 1 to {most} keys under this table",
        )
    return (table[0], pool[1], rows, pool[3])


def append(cache: Shape, new: Shape) -> Shape:
    """cache [B, KV, P, D] followed by new [B, KV, S, D] gives [B, KV, P + S, D]."""
    rank("cache", cache, "batch, kv heads, keys, d")
    rank("new", new, "batch, kv heads, keys, d")
    same("batch", ("cache", cache, 0), ("new", new, 0))
    same("the number of heads", ("cache", cache, 1), ("new", new, 1))
    same("the head dim", ("cache", cache, 3), ("new", new, 3))
    return (cache[0], cache[1], cache[2] + new[2], cache[3])


def rope(x: Shape, dims: int) -> Shape:
    """x [B, H, S, D] keeps its shape; an even number of features, at most D, is rotated."""
    rank("x", x, "batch, heads, sequence, d")
    if dims < 2 or dims % 2 or dims > x[3]:
        raise FlatcError(
            f"rope cannot rotate {dims} features of {text(x)}",
            help=f"rotate an even number of features between 2 and {x[3]}",
        )
    return x
