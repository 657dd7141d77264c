"""The loop nest of a kernel: its four shapes, what stays on chip, and which tiles a mask leaves.

Numbers are tested in the interpreter's tests; here it is what is executed, and how often.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import MaskExpr, causal, chunk, first, prefix, window
from flatc.dialects.mapping import Tiles
from flatc.dialects.masks import Causal, Chunk, FirstN, Mask, Window, allows
from flatc.dialects.spatial import ForOp, MatmulOp, TimedOp, VectorOp
from flatc.passes.kernels.live_keys import live_keys
from flatc.passes.simulation.program_order import walk
from tests.support import UNFUSED, Choice, Shape, attention, kernels_of, lower, simulated_bytes

FULL = 1 << 30
TILES = Tiles(1, 1, 1, 5, 4, FULL, FULL)


def name_of(op: TimedOp) -> str:
    return op.kind.data if isinstance(op, VectorOp) else (op.token.name_hint or "")


def nest(module: ModuleOp) -> list[str]:
    """The operations of a kernel, each under the loops that it stands in."""
    found: list[str] = []
    for op in kernels_of(module)[0].walk():
        if isinstance(op, TimedOp):
            path, parent = [name_of(op)], op.parent_op()
            while isinstance(parent, ForOp):
                path.append(parent.index.name_hint or "")
                parent = parent.parent_op()
            found.append("/".join(reversed(path)))
    return found


# --- The four shapes ----------------------------------------------------------------------------------

SHAPE = Shape(queries=13, keys=11)


def test_online_softmax_is_one_loop_over_keys():
    assert nest(lower(attention(SHAPE), Choice("online", tiles=TILES))) == [
        "query/load_q",
        "query/key/load_k",
        "query/key/logit",
        "query/key/row_max",
        "query/key/exp",
        "query/key/load_v",
        "query/key/rescale",
        "query/key/attend",
        "query/divide",
        "query/store",
    ]


def test_rows_fill_whole_rows_then_use_them():
    assert nest(lower(attention(SHAPE), Choice("rows", "early", tiles=TILES))) == [
        "query/load_q",
        "query/key/load_k",
        "query/key/logit",
        "query/row_max",
        "query/exp",
        "query/divide",
        "query/key/load_v",
        "query/key/attend",
        "query/store",
    ]


def test_streamed_goes_twice_over_the_keys():
    assert nest(lower(attention(SHAPE), Choice("streamed", "early", tiles=TILES))) == [
        "query/load_q",
        "query/key/load_k",
        "query/key/logit",
        "query/key/row_max",
        "query/key/exp",
        "query/key/load_k",
        "query/key/logit",
        "query/key/exp",
        "query/key/divide",
        "query/key/load_v",
        "query/key/attend",
        "query/store",
    ]


def in_strips(every: int, mask: MaskExpr | None = None, shape: Shape = SHAPE) -> ModuleOp:
    """A schedule that rescales every so many tiles."""
    return lower(attention(shape, mask), Choice(tiles=TILES, rescaled_every=every))


def test_an_online_softmax_that_rescales_every_few_tiles_works_on_strips_of_them():
    """Scores lie on chip in strips, K and V in tiles."""
    assert nest(in_strips(2)) == [
        "query/load_q",
        "query/strip/key/load_k",
        "query/strip/key/logit",
        "query/strip/row_max",
        "query/strip/exp",
        "query/strip/rescale",
        "query/strip/key/load_v",
        "query/strip/key/attend",
        "query/divide",
        "query/store",
    ]
    widths = {b.label.data: b.type.dims[-2:] for b in kernels_of(in_strips(2))[0].buffers()}
    assert (widths["K"], widths["scores"]) == ((4, 4), (5, 8))


def test_the_mask_leaves_strips_as_it_leaves_tiles():
    """Rows up to 4, 9 and 12 see 2, 3 and 4 tiles of 4 keys, of which 3 make a strip."""
    module = in_strips(3, causal(), Shape(queries=13, keys=13))
    met: Counter[tuple[str, int]] = Counter()
    for event in walk(kernels_of(module)[0]):
        event.complete(None)
        (query,) = (value for index, value in event.frame.indices.items() if index.name_hint == "query")
        met[name_of(event.op), query] += event.active()
    assert [met["logit", query] for query in range(3)] == [met["attend", query] for query in range(3)] == [2, 3, 4]
    assert [met["row_max", query] for query in range(3)] == [1, 1, 2]
    assert [met["rescale", query] for query in range(3)] == [0, 0, 1]


def test_dividing_late_moves_the_division_to_the_outputs():
    names = nest(lower(attention(SHAPE), Choice("rows", "late", tiles=TILES)))
    assert names[-2:] == ["query/divide", "query/store"]
    assert names.count("query/divide") == 1


def test_a_product_over_all_keys_is_added_to_nothing():
    """Nor is the output read for it. A mask may leave a row without keys, which keeps the zeros it began with."""

    def adds(key: int, *, masked: bool = False) -> bool:
        module = lower(attention(SHAPE, causal() if masked else None), Choice("online", tiles=replace(TILES, key=key)))
        (attend,) = (op for op in module.walk() if isinstance(op, MatmulOp) and not op.transposed)
        return attend.accumulate is not None

    assert [adds(SHAPE.keys - 1), adds(SHAPE.keys), adds(SHAPE.keys, masked=True)] == [True, False, True]


def test_a_part_alone_loads_and_stores_scores():
    logit, softmax, attend = (
        [name_of(op) for op in kernel.walk() if isinstance(op, TimedOp)]
        for kernel in kernels_of(lower(attention(SHAPE), Choice("online", tiles=TILES), UNFUSED))
    )
    assert logit == ["load_q", "load_k", "logit", "store"]
    assert softmax == ["load_scores", "row_max", "exp", "divide", "store"]
    assert attend == ["load_scores", "load_v", "attend", "store"]


def test_only_what_is_cut_into_tiles_has_a_loop():
    """The query loop is always there: everything is pipelined in it."""

    def loops(tiles: Tiles) -> list[str]:
        shape = Shape(batch=2, heads=6, kv_heads=3, queries=5, keys=4)
        module = lower(attention(shape), Choice("online", tiles=tiles))
        return [op.index.name_hint or "" for op in module.walk() if isinstance(op, ForOp)]

    assert loops(Tiles(*[FULL] * 7)) == ["query", "key"]
    assert loops(Tiles(1, FULL, FULL, FULL, FULL, FULL, FULL)) == ["batch", "query", "key"]
    assert loops(Tiles(1, 2, 1, 2, 2, FULL, FULL)) == ["batch", "kv_head", "group", "query", "key"]


# --- What stays on chip -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "k_reads", "v_reads"),
    [(("key", "key"), 6, 6), (("kv_head", "key"), 1, 6), (("key", "kv_head"), 6, 1), (("kv_head", "kv_head"), 1, 1)],
)
def test_keys_and_values_are_read_once_or_for_every_query_tile(levels: tuple[str, str], k_reads: int, v_reads: int):
    """Two heads share each kv head and 13 queries make 3 tiles: streamed keys are read 6 times."""
    shape = Shape(heads=4, kv_heads=2, queries=13, keys=11, d_qk=4, d_v=3)
    choice = Choice("online", tiles=TILES, levels=levels)  # pyright: ignore[reportArgumentType]
    moved = simulated_bytes(lower(attention(shape, None, "bf16", "f32"), choice))
    assert moved["q"] == (2 * 4 * 13 * 4, 0)
    assert moved["k"] == (2 * 2 * 11 * 4 * k_reads, 0)
    assert moved["v"] == (2 * 2 * 11 * 3 * v_reads, 0)
    assert moved["o"] == (0, 2 * 4 * 13 * 3)


def test_tiles_of_query_heads_share_their_keys():
    """With both heads of a group in one tile, each key is read once a query tile instead of twice."""
    shape = Shape(heads=4, kv_heads=2, queries=13, keys=11)

    def k_bytes(group: int) -> int:
        choice = Choice("online", tiles=Tiles(1, 1, group, 5, 4, FULL, FULL))
        return simulated_bytes(lower(attention(shape), choice))["k"][0]

    assert k_bytes(1) == 2 * k_bytes(2)


# --- Masks ----------------------------------------------------------------------------------------------

MASKS: dict[str, Callable[[], MaskExpr]] = {
    "causal": causal,
    "causal(-3)": lambda: causal(-3),
    "causal(20)": lambda: causal(20),
    "window(5)": lambda: window(5),
    "window(3, 2)": lambda: window(3, 2),
    "causal or prefix(6)": lambda: causal() | prefix(6),
    "first(3)": lambda: first(3),
    "causal and chunk(4)": lambda: causal() & chunk(4),
}


def executed(module: ModuleOp, name: str) -> Counter[tuple[int, int]]:
    """How often an operation works on each (query tile, key tile)."""
    found: Counter[tuple[int, int]] = Counter()
    for event in walk(kernels_of(module)[0]):
        event.complete(None)
        if name_of(event.op) == name and event.active():
            indices = {index.name_hint: value for index, value in event.frame.indices.items()}
            found[indices["query"], indices["key"]] += 1
    return found


def seen(mask: MaskExpr, query: int, key: int, shape: Shape) -> tuple[bool, bool]:
    """Whether any row of a tile sees any key of it, and whether every row sees every key."""
    assert mask.resolve is not None
    rows = np.arange(query * 5, min(query * 5 + 5, shape.queries))[:, None]
    keys = np.arange(key * 4, min(key * 4 + 4, shape.keys))[None, :]
    allowed = allows(mask.resolve(shape.keys - shape.queries), rows, keys)
    return bool(allowed.any()), bool(np.broadcast_to(allowed, (rows.size, keys.size)).all())


@pytest.mark.parametrize("choice", [Choice("online", tiles=TILES), Choice("rows", "late", tiles=TILES)], ids=str)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("shape", [Shape(queries=13, keys=22), Shape(queries=22, keys=13)], ids=str)
def test_hidden_tiles_are_not_visited_and_only_the_edge_is_masked(shape: Shape, mask: str, choice: Choice):
    module = lower(attention(shape, MASKS[mask]()), choice)
    tiles = list(product(range(-(-shape.queries // 5)), range(-(-shape.keys // 4))))
    views = {tile: seen(MASKS[mask](), *tile, shape) for tile in tiles}
    assert executed(module, "logit") == Counter(tile for tile in tiles if views[tile][0])
    assert executed(module, "attend") == executed(module, "logit")
    masked = executed(module, "mask")
    assert all(masked[tile] for tile in tiles if views[tile] == (True, False))
    if "chunk" not in mask:
        assert masked == Counter(tile for tile in tiles if views[tile] == (True, False))


def test_kernels_that_give_scores_visit_hidden_tiles_too():
    """What nobody attends to must still be written: every tile of the scores is."""
    module = lower(
        attention(Shape(queries=13, keys=22), causal(-9)), Choice(tiles=TILES), ("logit+mask", "softmax+attend")
    )
    assert sum(executed(module, "logit").values()) == 3 * 6


def test_rescaling_starts_with_the_second_tile_of_a_row():
    module = lower(attention(Shape(queries=13, keys=22), window(5)), Choice(tiles=TILES))
    first_tiles = {query: min(k for q, k in executed(module, "attend") if q == query) for query in range(3)}
    expected = Counter(tile for tile in executed(module, "attend") if tile[1] != first_tiles[tile[0]])
    assert executed(module, "rescale") == expected


@pytest.mark.parametrize(
    ("mask", "lower_bound", "upper_bound"),
    [
        (None, "0", "100"),
        (Causal(3), "0", "min(100, last + 4)"),
        (Window(8, 0, 0), "max(0, start - 7)", "min(100, last + 1)"),
        (FirstN(9), "0", "9"),
        (Chunk(16, 0), "max(0, floordiv(start, 16) * 16)", "min(100, floordiv(last, 16) * 16 + 16)"),
    ],
)
def test_live_keys_are_what_any_row_of_a_tile_sees(mask: Mask | None, lower_bound: str, upper_bound: str):
    live = live_keys(mask, 100)
    for start, last in ((0, 7), (40, 47), (90, 97)):
        ends = {"start": start, "last": last}
        assert live.lower.evaluate(ends) <= live.upper.evaluate(ends)
    assert (str(live.lower), str(live.upper)) == (lower_bound, upper_bound)


def test_a_row_strip_is_as_wide_as_the_longest_row_needs():
    """A window of 5 keys over tiles of 4, with 5 rows at a time: 9 keys in at most 3 tiles, of 400."""
    module = lower(attention(Shape(queries=400, keys=400), window(5)), Choice("rows", "late", tiles=TILES))
    (strip,) = (b for b in kernels_of(module)[0].buffers() if b.label.data == "scores")
    assert strip.type.dims[-1] == 12
