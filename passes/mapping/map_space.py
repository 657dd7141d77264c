"""The map space of one kernel: which mappings the search looks at, as columns of numbers.

Tiles come from stated finite sets, so that "best" has a meaning:

    query, key   powers of two, multiples of the array's sides (1, 2, 3, 4, 6, 8, ... times), the whole, and the
                 balanced tiles ceil(size / n) for n up to 16
    heads        divisors: of the group first, then kv heads, then batch, up to 64 query heads in a tile, and FLAT's
                 corners: all heads of one batch, all of every batch
    pipelining   `overlapped`: attend works one trip behind logit on a second set of scores; `with a spare`: a third
                 set, which a logit writes while an attend still leaves the array (where probabilities take the place
                 of scores); `one head`: overlapped, with one slot for all K or V of a head, as two may not fit
                 (`auto`); `in turn`: one set of scores, array and vector unit alternate; `single`: no second slot
                 anywhere
    row sums     on the vector unit, or a column of ones beside V (`auto`, overlapped)
    strips       an online softmax may work on r key tiles at a time: r = 2, 3, 4, 6, 8, 12, ..., of tiles of 2, 4 or
                 8 times the array's side, K and V streamed, one kv head with all its query heads in a tile,
                 overlapped; what the two rules of `strip_space` leave
    PEs          where they can do max, exp and add: all softmax work of scores on tiles in their registers, 1, 3 or 5
                 tiles between logit and attend and loads 1, 2 or 4 tiles ahead, products added on the vector unit, K
                 and V at the same level (`auto`)

A strategy restricts the space. FLAT's granularities (Kao et al., ASPLOS 2023, section 4.3) fix the tiles outside
the rows: M-Gran takes everything at once, B-Gran one batch, H-Gran one head, R-Gran some rows of one head.
Folds are as large as the machine permits and the tile has pieces; a product's stationarity is chosen by the
search, product by product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.passes.cost.mapping_columns import Columns
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.legal_mapping import is_whole_pages

MULTIPLES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MOST_BALANCED = 16
MOST_HEADS_IN_A_TILE = 64
MOST_MASKED_QUERY_TILES = 16384
STRIP_MULTIPLES = (2, 4, 8)


@frozen
class Pipelining:
    """Stages and slots that go together."""

    stages: tuple[int, int, int, int, int]
    slots: int
    score_slots: int
    q_slots: int = 0
    key_slots: int = 0
    head_slots: int = 0
    """Slots of Q, of tiles of K and V, and of all K or V of a head; `slots` where 0."""


OVERLAPPED = Pipelining((0, 0, 1, 1, 2), 2, 2)
WITH_A_SPARE = Pipelining((0, 0, 1, 1, 2), 2, 3)
ONE_HEAD = replace(OVERLAPPED, head_slots=1)
IN_TURN = Pipelining((0, 0, 0, 0, 1), 2, 1)
SINGLE = Pipelining((0, 0, 0, 0, 0), 1, 1)
TO_MEMORY = Pipelining((0, 0, 0, 0, 1), 2, 2)
"""For kernels whose result leaves from the score buffer: one tile is stored while the next is made."""


def _in_registers(lead: int, depth: int) -> Pipelining:
    """Loads `lead` tiles ahead of the logit, the attend `depth` tiles behind it; slots for what is in between."""
    stages = (0, lead, lead, lead + depth, lead + depth + 1)
    return Pipelining(stages, 2, depth + 1, q_slots=lead + 2, key_slots=lead + depth + 2, head_slots=lead + 1)


IN_REGISTERS = tuple(_in_registers(lead, depth) for depth in (1, 3, 5) for lead in (1, 2, 4))
"""For score tiles in the registers of PEs: waves through the array take longer than the work on a tile, so several are
under way, and the loads behind a store must not wait until it is due."""


@frozen
class Placement:
    """Which unit does what of a softmax and its sums; see `mapping.Softmax`."""

    maximum: str = "vector"
    exponential: str = "vector"
    total: str = "vector"
    add: str = "array"


ON_VECTOR = Placement()
ONES_COLUMN = Placement(total="attend")
ON_ARRAY = Placement("array", "array", "array", "vector")


def can_hold_scores(accelerator: Accelerator) -> bool:
    """Whether score tiles may stay in the PEs for all of the softmax."""
    array = accelerator.array
    able = all(array.cycles_of(operation) is not None for operation in ("max", "exp", "add"))
    return able and array.rows == array.columns and {"output", "input"} <= set(array.stationarities)


def pipelinings(problem: AttentionProblem) -> tuple[Pipelining, ...]:
    """The pipelinings that make sense for a kernel."""
    if problem.has("attend") and (problem.has("logit") or problem.has("softmax")):
        spare = () if problem.converts_probabilities else (WITH_A_SPARE,)
        return (OVERLAPPED, *spare, IN_TURN, SINGLE)
    return (TO_MEMORY, SINGLE)


@frozen
class Family:
    """One corner of the map space: an algorithm, where K and V stay, a pipelining, which unit does what."""

    algorithm: str
    divide: str
    k_level: str
    v_level: str
    pipelining: Pipelining
    placement: Placement = ON_VECTOR
    in_strips: bool = False
    """Whether an online softmax works on several key tiles at a time."""

    @property
    def held(self) -> bool:
        """Whether score tiles stay in the registers of PEs."""
        return self.placement == ON_ARRAY


def families(problem: AttentionProblem, strategy: str, accelerator: Accelerator | None = None) -> Iterator[Family]:
    """Every family that a strategy admits for a kernel on a machine; without one, those of machines with plain PEs."""
    for algorithm in _algorithms(problem, strategy):
        divide = "early" if algorithm == "streamed" or not problem.has("attend") else "late"
        if algorithm == "rows" and problem.has("attend") and problem.keys < problem.d_v:
            divide = "early"
        for k_level in ("key", "kv_head") if problem.has("logit") else ("key",):
            for v_level in _value_levels(problem, algorithm, k_level):
                for placement, found in _placements(problem, strategy, accelerator, algorithm, divide):
                    if placement.total == "attend" and v_level == "k":
                        continue  # there is no buffer of V to have a column of ones
                    if placement == ON_ARRAY and v_level not in (k_level, "k"):
                        continue
                    for pipelining in found:
                        yield Family(algorithm, divide, k_level, v_level, pipelining, placement)
                        # Without a logit V is loaded a stage ahead of its use, and two tiles of it are there.
                        one_head = pipelining == OVERLAPPED and strategy == "auto" and problem.has("logit")
                        if one_head and "kv_head" in (k_level, v_level):
                            yield Family(algorithm, divide, k_level, v_level, ONE_HEAD, placement)


def strip_families(problem: AttentionProblem, strategy: str) -> Iterator[Family]:
    """The families of a strategy whose softmax works on several key tiles at a time."""
    whole = all(problem.has(stage) for stage in ("logit", "softmax", "attend"))
    if not whole or "online" not in _algorithms(problem, strategy):
        return
    for placement, found in _placements(problem, strategy, None, "online", "late"):
        for pipelining in found:
            if pipelining in (OVERLAPPED, WITH_A_SPARE):
                yield Family("online", "late", "key", "key", pipelining, placement, in_strips=True)


def _placements(
    problem: AttentionProblem, strategy: str, accelerator: Accelerator | None, algorithm: str, divide: str
) -> list[tuple[Placement, tuple[Pipelining, ...]]]:
    """Where the work of a softmax may run, each with its pipelinings."""
    usual = pipelinings(problem)
    found = [(ON_VECTOR, usual)]
    if strategy != "auto" or not (problem.has("softmax") and problem.has("attend")):
        return found
    if divide == "late" and problem.sink is None and problem.value_scale is None:
        found.append((ONES_COLUMN, tuple(one for one in usual if one not in (IN_TURN, SINGLE))))
    changed = problem.operands or problem.score_ops or problem.sink is not None
    held = algorithm == "online" and problem.has("logit") and not changed
    if held and accelerator and can_hold_scores(accelerator):
        found.append((ON_ARRAY, IN_REGISTERS))
    return found


def _value_levels(problem: AttentionProblem, algorithm: str, k_level: str) -> tuple[str, ...]:
    """Where V may stay: also in K's buffer, if it is features of K and K is still there when V is needed."""
    if not problem.has("attend"):
        return ("key",)
    if problem.v_in_k is not None and (k_level == "kv_head" or algorithm in ("online", "none")):
        return ("k", "key", "kv_head")
    return ("key", "kv_head")


def _algorithms(problem: AttentionProblem, strategy: str) -> tuple[str, ...]:
    if not problem.has("softmax"):
        return ("none",)
    if not problem.has("attend"):
        return ("rows", "streamed")
    if strategy == "online":
        return ("online",)
    if strategy == "auto":
        return ("online", "rows")
    return ("rows",)


def tile_sizes(size: int, side: int) -> list[int]:
    """The finite set of tiles of a dimension, given a side of the array."""
    found = {1 << power for power in range(size.bit_length()) if 1 << power <= size}
    found |= {side * times for times in MULTIPLES if side * times <= size}
    found |= {-(-size // parts) for parts in range(1, MOST_BALANCED + 1)}
    return sorted(found)


def _query_tiles(problem: AttentionProblem, accelerator: Accelerator, strategy: str) -> list[int]:
    if strategy in ("flat-m", "flat-b", "flat-h") and problem.has("logit") and problem.has("attend"):
        return [problem.queries]
    tiles = tile_sizes(problem.queries, accelerator.array.rows)
    # Masks are counted row tile by row tile.
    most = problem.queries if problem.mask is None else MOST_MASKED_QUERY_TILES
    return [tile for tile in tiles if -(-problem.queries // tile) <= most]


def _key_tiles(problem: AttentionProblem, accelerator: Accelerator) -> list[int]:
    """Tiles of keys. Where these lie in pages: whole pages or parts of one, pages times powers of 2 among them."""
    found, block, keys = set(tile_sizes(problem.keys, accelerator.array.columns)), problem.block, problem.keys
    if block is not None:
        found |= {block << power for power in range(keys.bit_length()) if block << power <= keys}
    return sorted(tile for tile in found if is_whole_pages(tile, keys, block))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, min(number, MOST_HEADS_IN_A_TILE) + 1) if number % d == 0]


def head_tiles(problem: AttentionProblem, strategy: str) -> list[tuple[int, int, int]]:
    """(batch, kv head, group) tiles that a strategy admits."""
    p = problem
    whole = p.has("logit") and p.has("attend")
    if whole and strategy in ("flat-m", "flat-b", "flat-h", "flat-r"):
        everything = {"flat-m": (p.batch, p.kv_heads, p.group), "flat-b": (1, p.kv_heads, p.group)}
        return [everything.get(strategy, (1, 1, 1))]
    found = [(1, 1, group) for group in _divisors(p.group)]
    found += [(1, kv_head, p.group) for kv_head in _divisors(p.kv_heads) if kv_head > 1]
    found += [(batch, p.kv_heads, p.group) for batch in _divisors(p.batch) if batch > 1]
    found = [tile for tile in found if tile[0] * tile[1] * tile[2] <= MOST_HEADS_IN_A_TILE]
    corners = [(1, 1, 1), (1, p.kv_heads, p.group), (p.batch, p.kv_heads, p.group)]
    return list(dict.fromkeys([*found, *corners]))


def tiles(problem: AttentionProblem, accelerator: Accelerator, strategy: str) -> Columns:
    """Every choice of tiles that a strategy admits: the same for all its families. Slots, folds and stages are 1."""
    import numpy as np

    heads = np.array(head_tiles(problem, strategy), dtype=np.int64)
    queries = np.array(_query_tiles(problem, accelerator, strategy), dtype=np.int64)
    keys = np.array(_key_tiles(problem, accelerator), dtype=np.int64)
    which, query, key = (grid.reshape(-1) for grid in np.meshgrid(np.arange(len(heads)), queries, keys, indexing="ij"))
    batch, kv_head, group = heads[which].T
    return Columns(batch, kv_head, group, query, key, *[np.ones_like(query)] * 15)


def strip_lengths(most: int) -> list[int]:
    """How many key tiles may make a strip; each but the first is twice another one, or 3."""
    return sorted({times << power for power in range(most.bit_length()) for times in (1, 3) if times << power <= most})


def strips(problem: AttentionProblem, accelerator: Accelerator, strategy: str) -> Columns:
    """Tiles as `tiles` has them, with how many of them make a strip, which is shorter than a row; 1 is among these.

    Strips of the same tiles are neighbours, the shorter first.
    """
    import numpy as np

    side, keys = accelerator.array.columns, problem.keys
    widths = [side * times for times in STRIP_MULTIPLES if is_whole_pages(side * times, keys, problem.block)]
    pairs = [(key, every) for key in widths for every in strip_lengths((keys - 1) // key)]
    queries = _query_tiles(problem, accelerator, strategy)
    grids = np.meshgrid(np.array(queries), np.arange(len(pairs)), indexing="ij")
    query, which = (grid.reshape(-1).astype(np.int64) for grid in grids)
    key, every = np.array(pairs, dtype=np.int64).reshape(-1, 2)[which].T
    one = np.ones_like(query)
    return replace(Columns(one, one, one * problem.group, query, key, *[one] * 15), rescaled_every=every)


def columns(tiles: Columns, family: Family) -> Columns:
    """Every mapping of a family: its slots and stages on every choice of tiles, folds still 1."""
    import numpy as np

    def fill(value: int) -> Any:
        return np.broadcast_to(np.int64(value), tiles.query.shape)

    pipelining = family.pipelining
    slots = fill(pipelining.slots)
    by_level = {"key": pipelining.key_slots or pipelining.slots, "kv_head": pipelining.head_slots or pipelining.slots}
    by_level["k"] = 1
    load, logit, softmax, attend, store = map(fill, pipelining.stages)
    # A tile of K that V is read out of stays until attend.
    longer = family.v_level == "k" and family.k_level == "key"
    k_slots = fill(by_level[family.k_level]) + (attend - load) * longer
    return replace(
        tiles,
        q_slots=fill(pipelining.q_slots or pipelining.slots),
        k_slots=k_slots,
        v_slots=fill(by_level[family.v_level]),
        score_slots=fill(pipelining.score_slots),
        output_slots=slots,
        load=load,
        logit=logit,
        softmax=softmax,
        attend=attend,
        store=store,
    )
