"""FLAT's live footprint: what a fused attention keeps on chip, in elements, by the paper's own formula.

Kao et al. (ASPLOS 2023, section 4.3) count double buffers of Q, K, V and the output and one slice of scores. For R
rows of one head with N keys of size d, that is

    4*R*d + 4*N*d + R*N

which grows with N for row granularity, with N squared where R is N. A mapping that streams keys in tiles of T
keeps T of them instead of N, where and while it streams. The number is comparable between mappings whatever slots they
have; what a schedule really occupies is its peak of buffer bytes.
"""

from __future__ import annotations

from flatc.dialects.mapping import Mapping
from flatc.passes.kernels.problem import AttentionProblem


def live_elements(problem: AttentionProblem, mapping: Mapping) -> int | None:
    """Elements live on chip by FLAT's formula; None for kernels that are no whole attention."""
    if not (problem.has("logit") and problem.has("softmax") and problem.has("attend")):
        return None
    tiles, keep = mapping.tiles, mapping.keep
    heads = tiles.batch * tiles.kv_head
    rows = heads * tiles.group * tiles.query
    k_rows = problem.keys if keep.k_level == "kv_head" else tiles.key
    v_rows = {"kv_head": problem.keys, "k": 0}.get(keep.v_level, tiles.key)
    strip = min(tiles.key * mapping.softmax.rescaled_every, problem.keys)
    slice_width = problem.keys if mapping.softmax.algorithm == "rows" else strip
    outside = 2 * rows * (problem.d_qk + problem.d_v)
    keyed = 2 * heads * (k_rows * problem.d_qk + v_rows * problem.d_v)
    return outside + keyed + rows * slice_width


def beyond_strategies(problem: AttentionProblem, mapping: Mapping) -> tuple[str, ...]:
    """What a mapping does that no named strategy but `auto` does; nothing for a mapping of its `granularity`."""
    softmax = mapping.softmax
    more = {
        "a column of ones": softmax.total == "attend",
        "softmax in the PEs": softmax.on_array,
        "interleaved query tiles": mapping.interleave > 1 and problem.has("softmax"),
    }
    return tuple(name for name, is_so in more.items() if is_so)


def granularity(problem: AttentionProblem, mapping: Mapping) -> str:
    """The corner of the map space that a mapping's tiles and algorithm lie in (see `search.STRATEGIES`)."""
    if not (problem.has("logit") and problem.has("softmax") and problem.has("attend")):
        parts = [stage for stage in problem.stages if stage != "mask"]
        return f"{' and '.join(parts)} fused" if len(parts) > 1 else "unfused"
    if mapping.softmax.algorithm != "rows":
        return mapping.softmax.algorithm
    tiles = mapping.tiles
    if tiles.query < problem.queries:
        return "flat-r"
    if (tiles.batch, tiles.kv_head, tiles.group) == (problem.batch, problem.kv_heads, problem.group):
        return "flat-m"
    if (tiles.batch, tiles.kv_head, tiles.group) == (1, problem.kv_heads, problem.group):
        return "flat-b"
    return "flat-h" if tiles.batch * tiles.kv_head * tiles.group == 1 else "flat"
