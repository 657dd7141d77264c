"""Attention as a recurrence: the steps of its pipeline, what waits for what, and what each takes on a tile.

    trip_cycles(problem, accelerator, mapping)        # a lower bound of the latency, close to it; None if not covered

It is the loop nest of `kernel_schedule` told once more, from the problem and the mapping alone. A trip is a tile of
scores where key tiles stream through one loop, and a query tile where whole rows stay on chip: then `fill`, `change`
and `use` are loops inside of a trip. Steps, in the order of the text:

    T, Hk, Hv, Oh    the table of pages, K, V and operands of scores that stay for a tile of heads
    Q, Oq, Z         queries and operands of a query tile; the sink
    K, P, L          tiles of K or of scores, logit
    O, W, M          operands, steps and mask of a tile of scores
    N, B, E, U, H    where scores stay in PEs: maximum, merged maximum, exponentials, sum, merged sum
    X                softmax of a tile, or of whole rows
    V, R, A, G       tiles of V; rescaling, attend, and adding its products on the vector unit
    D, S             division or conversion of the outputs, their store

The vector unit takes its work in order and is done with each operation before the next: its steps do not wait for
each other. `recurrence` walks through few of the trips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import lcm, prod

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.key_geometry import QueryTiles, every_row_sees_keys, query_tiles
from flatc.passes.cost.primitive_costs import (
    VECTOR_WORK,
    ArrayCycles,
    MatmulTile,
    ScoreTile,
    VectorWork,
    array_cycles,
    ceil_divide,
    copy_ticks,
    pe_cycles,
    vector_cycles,
)
from flatc.passes.cost.recurrence import (
    EDGE,
    FIRST,
    HEAD,
    HEADS,
    KEY,
    LAST,
    QUERY,
    Recurrence,
    Rounds,
    Saved,
    Step,
    Ticks,
    Wait,
)
from flatc.passes.cost.value_work import VALUE_WORK
from flatc.passes.kernels.keyed_storage import PAGE_BYTES
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import Operand, operand_level, operand_slots


def trip_cycles(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> float | None:
    """Cycles that a kernel takes at the least; None where its nest is not covered.

    Not covered are interleaved query tiles, scores that are made twice or in strips, rows without a softmax, and masks
    that leave rows without a key.
    """
    softmax = mapping.softmax
    if softmax.rescaled_every > 1:
        return None
    by_rows = softmax.algorithm == "rows"
    if mapping.interleave > 1 or softmax.algorithm == "streamed" or (by_rows and not problem.has("softmax")):
        return None
    if not every_row_sees_keys(problem) or "query" in (mapping.keep.k_level, mapping.keep.v_level):
        return None
    ticks = _Prices(problem, accelerator, mapping)
    return _Walk(problem, mapping, tuple(_Nest(problem, accelerator, mapping).steps()), ticks).cycles()


# --- Steps ------------------------------------------------------------------------------------------------


class _Nest:
    """Says what the steps are and which waits for which."""

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping):
        self.problem, self.mapping = problem, mapping
        self.stages, self.slots, self.softmax = mapping.stages, mapping.keep, mapping.softmax
        self.by_rows = self.softmax.algorithm == "rows"
        self.held = self.softmax.on_array
        shared = accelerator.offchip.channels == "shared"
        self.write = "read" if shared else "write"
        self.adds = mapping.attend.add == "vector"
        self.loops = problem.batch > mapping.tiles.batch or problem.kv_heads > mapping.tiles.kv_head
        self.source = "L" if problem.has("logit") else "P"
        self.of_scores = QUERY if self.by_rows else KEY
        """The level of a buffer of scores."""

    def steps(self) -> Iterator[Step]:
        """All steps in the order of the text."""
        yield from self._of_heads()
        yield from self._of_queries()
        yield from self._source()
        yield from self._change()
        if self.problem.has("softmax"):
            yield from self._held() if self.held else self._softmax()
        yield from self._sink()
        if self.problem.has("attend"):
            yield from self._finish()

    def _load_stage(self, name: str) -> int:
        later = self.stages.attend - self.stages.logit if name == "v" and self.problem.has("logit") else 0
        return self.stages.load + later

    def _of_heads(self) -> Iterator[Step]:
        p, keep = self.problem, self.slots
        if p.block is not None:
            yield Step("T", "read", self.stages.load if self.loops else 0, HEADS, only=HEAD)
        table = (Wait("T", level=HEADS),) if p.block is not None else ()
        if p.has("logit") and keep.k_level == "kv_head":
            users = ("L", *("A" for _ in [0] if keep.v_level == "k"))
            slots = tuple(Wait(user, keep.k_slots, HEADS) for user in users)
            yield Step("Hk", "read", self._load_stage("k") if self.loops else 0, HEADS, (*table, *slots), only=HEAD)
        if p.has("attend") and keep.v_level == "kv_head":
            waits = (*table, Wait("A", keep.v_slots, HEADS))
            yield Step("Hv", "read", self._load_stage("v") if self.loops else 0, HEADS, waits, only=HEAD)
        yield from self._operands_at("heads", HEADS, HEAD)

    def _operands_at(self, level: str, at: int, only: int) -> Iterator[Step]:
        """Loads of the operands that stay on chip for a tile of heads, or a query tile."""
        stage = self.stages.load + self.stages.softmax - self.stages.logit if at == QUERY or self.loops else 0
        for operand, user in self._operands():
            if operand_level(operand, self.slots.k_level) == level:
                slots = operand_slots(self.mapping, operand_level(operand, self.slots.k_level))
                yield Step(f"O{operand.role}", "read", stage, at, (Wait(user, slots, at),), only=only)

    def _operands(self) -> list[tuple[Operand, str]]:
        """Each operand, and the step that uses it."""
        p = self.problem
        found = [(operand, f"W{i}") for i, step in enumerate(p.score_ops) for operand in step.operands]
        return found if p.sink is None else [*found, (p.sink, "Z")]

    def _of_queries(self) -> Iterator[Step]:
        first = 0 if self.by_rows else FIRST
        if self.problem.has("logit"):
            yield Step("Q", "read", self.stages.load, QUERY, (Wait("L", self.slots.q_slots, QUERY),), only=first)
        yield from self._operands_at("query", QUERY, first)
        sink = self.problem.sink
        if sink is not None and not self.by_rows:
            yield Step("Z", "vector", self.stages.softmax, QUERY, self._wait_for(sink), only=first)

    def _wait_for(self, operand: Operand) -> tuple[Wait, ...]:
        level = {"heads": HEADS, "query": QUERY}.get(operand_level(operand, self.slots.k_level), KEY)
        return (Wait(f"O{operand.role}", level=level),)

    def _source(self) -> Iterator[Step]:
        keep, loop = self.slots, "fill" if self.by_rows else ""
        load = self.stages.logit if self.by_rows else self.stages.load
        level = QUERY if self.by_rows else KEY
        slot = () if self.held else tuple(Wait(user, keep.score_slots, level) for user in self._users_of_scores())
        if not self.problem.has("logit"):
            yield Step("P", "read", load, KEY, slot, loop=loop)
            return
        if keep.k_level == "key":
            table = (Wait("T", level=HEADS),) if self.problem.block is not None else ()
            users = ("L", *("A" for _ in [0] if keep.v_level == "k"))
            slots = tuple(Wait(user, keep.k_slots) for user in users)
            yield Step("K", "read", load, KEY, (*table, *slots), loop=loop)
        keys = Wait("K") if keep.k_level == "key" else Wait("Hk", level=HEADS)
        yield Step("L", "array", self.stages.logit, KEY, (Wait("Q", level=QUERY), keys, *slot), loop=loop)

    def _users_of_scores(self) -> tuple[str, ...]:
        """Whose end frees a slot of scores."""
        p = self.problem
        if p.has("softmax") and p.converts_probabilities:
            return ("X",)
        return ("A" if p.has("attend") else "S",)

    def _change(self) -> Iterator[Step]:
        loop, stage = "change" if self.by_rows else "", self.stages.softmax
        load = stage if self.by_rows else self.stages.load + stage - self.stages.logit
        made = Wait(self.source, level=self.of_scores)
        for i, step in enumerate(self.problem.score_ops):
            waits = [made]
            for operand in step.operands:
                level = operand_level(operand, self.slots.k_level)
                waits += self._wait_for(operand)
                if level in ("key", "tile"):
                    slots = operand_slots(self.mapping, level)
                    yield Step(f"O{operand.role}", "read", load, KEY, (Wait(f"W{i}", slots),), loop=loop)
            yield Step(f"W{i}", "vector", stage, KEY, tuple(waits), loop=loop)
        if self.problem.mask is not None:
            yield Step("M", "vector", stage, KEY, (made,), only=EDGE, loop=loop)

    def _softmax(self) -> Iterator[Step]:
        p, level = self.problem, self.of_scores
        sink = p.sink
        waits = (Wait(self.source, level=level),)
        if sink is not None and self.by_rows:
            waits = (*waits, *self._wait_for(sink))
        if p.converts_probabilities:
            yield Step("Y", "vector", self.stages.softmax, level, waits)
            waits = (Wait("A" if p.has("attend") else "S", self.slots.score_slots, level),)
        yield Step("X", "vector", self.stages.softmax, level, waits)

    def _held(self) -> Iterator[Step]:
        softmax, p, stages = self.softmax, self.problem, self.stages
        twice = 2 * self.slots.score_slots
        made = (Wait("L"),) if softmax.maximum == "vector" or p.mask is not None or p.score_ops else ()
        made = (
            *made,
            *(Wait(f"W{i}") for i, _ in enumerate(p.score_ops)),
            *((Wait("M"),) if p.mask is not None else ()),
        )
        yield Step("N", softmax.maximum, stages.softmax, KEY, (*made, Wait("B", twice), Wait("E", twice)))
        yield Step("B", "vector", stages.softmax, KEY, (Wait("N"),))
        yield Step("E", softmax.exponential, stages.attend, KEY, (Wait("B"),))
        if softmax.total != "attend":
            weighed = (Wait("E"),) if "vector" in (softmax.total, softmax.exponential) else ()
            yield Step("U", softmax.total, stages.attend, KEY, (*weighed, Wait("H", twice)))
            yield Step("H", "vector", stages.attend, KEY, (Wait("U"),))

    def _ready(self) -> tuple[Wait, ...]:
        """What a tile of scores, or of probabilities, is finished by."""
        p, softmax = self.problem, self.softmax
        if self.held:
            if softmax.total == "vector":
                return (Wait("U"),)
            return (Wait("E"),) if softmax.exponential == "vector" else ()
        if p.has("softmax"):
            return (Wait("X", level=self.of_scores),)
        last = [f"W{i}" for i, _ in enumerate(p.score_ops)][-1:]
        last += ["M"] if p.mask is not None else []
        return tuple(Wait(name) for name in (self.source, *last))

    def _sink(self) -> Iterator[Step]:
        p, keep, stages = self.problem, self.slots, self.stages
        loop = "use" if self.by_rows else ""
        if not p.has("attend"):
            yield Step("S", self.write, stages.store, KEY, self._ready(), loop=loop)
            return
        if keep.v_level == "key":
            table = (Wait("T", level=HEADS),) if p.block is not None else ()
            stage = stages.attend if self.by_rows else self._load_stage("v")
            yield Step("V", "read", stage, KEY, (*table, Wait("A", keep.v_slots)), loop=loop)
        values = {"key": Wait("V"), "kv_head": Wait("Hv", level=HEADS)}.get(keep.v_level)
        waits = [*self._ready(), *([values] if values else [])]
        if self.softmax.algorithm == "online":
            before = () if self.adds else (Wait("A", 1),)
            yield Step("R", "vector", stages.attend, KEY, before, never=FIRST)
            if self.softmax.rescales_first:
                yield Step("R0", "vector", stages.attend, KEY, only=FIRST)
            waits += [] if self.adds else [Wait("R")]
        free = Wait("D" if p.converts_output else "S", keep.output_slots, QUERY)
        if not self.adds:
            yield Step("A", "array", stages.attend, KEY, (*waits, free), loop=loop)
            return
        products = keep.score_slots * (2 if self.held else 1)
        yield Step("A", "array", stages.attend, KEY, (*waits, Wait("G", products)))
        yield Step("G", "vector", stages.attend, KEY, (Wait("A"), *(() if p.converts_output else (free,))))

    def _finish(self) -> Iterator[Step]:
        p, last = self.problem, 0 if self.by_rows else LAST
        done = (Wait("A", level=QUERY), *((Wait("G", level=QUERY),) if self.adds else ()))
        if _divides(p, self.mapping) or p.converts_output:
            slot = (Wait("S", self.slots.output_slots, QUERY),) if p.converts_output else ()
            yield Step("D", "vector", self.stages.store, QUERY, (*done, *slot), only=last)
            done = (Wait("D", level=QUERY),)
        yield Step("S", self.write, self.stages.store, QUERY, done, only=last)


def _divides(problem: AttentionProblem, mapping: Mapping) -> bool:
    return problem.has("softmax") and mapping.softmax.divide == "late"


# --- Prices -----------------------------------------------------------------------------------------------


@frozen
class _Tile:
    """Extents of a tile; `strip` are the keys of whole rows."""

    batch: int
    kv_head: int
    group: int
    query: int
    key: int
    strip: int

    @property
    def heads(self) -> int:
        return self.batch * self.kv_head

    @property
    def rows(self) -> int:
        return self.batch * self.kv_head * self.group * self.query


class _Prices:
    """What each step takes on a tile, in ticks: the primitive costs of the closed form, on plain numbers."""

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping):
        self.problem, self.accelerator, self.mapping = problem, accelerator, mapping
        read, write = accelerator.cycles_per_byte_read, accelerator.cycles_per_byte_written
        self.ticks_per_cycle = lcm(read.denominator, write.denominator)
        self._read, self._write = int(read * self.ticks_per_cycle), int(write * self.ticks_per_cycle)
        self._operands = {f"O{operand.role}": operand for operand in problem.operands}
        self._width = problem.d_v + (mapping.softmax.total == "attend")
        self._known: dict[tuple[_Tile, str], tuple[int, int]] = {}

    def of(self, name: str, tile: _Tile) -> tuple[int, int]:
        """(until its resource is free, until its result is there) of a step."""
        found = self._known.get((tile, name))
        if found is None:
            found = self._known[tile, name] = self._price(name, tile)
        return found

    def _price(self, name: str, tile: _Tile) -> tuple[int, int]:
        p = self.problem
        match name[0]:
            case "T":
                return self._load("pages", tile.batch * p.pages * PAGE_BYTES)
            case "H" if name in ("Hk", "Hv"):
                return self._keyed(name[1], tile, p.keys)
            case "K" | "V":
                return self._keyed(name.lower(), tile, tile.key)
            case "Q":
                return self._load("q", tile.rows * p.d_qk * p.q_bytes)
            case "P":
                return self._load("scores", tile.rows * tile.key * p.score_bytes)
            case "O":
                return self._load(name[1:], self._operand_bytes(self._operands[name], tile))
            case "S":
                size = p.d_v * p.output_bytes if p.has("attend") else tile.key * p.probability_bytes
                return self._transfer("result", tile.rows * size, self._write, 1)
            case "L" | "A":
                return self._product(name, tile)
            case _:
                return self._softmax(name, tile)

    # --- Transfers ------------------------------------------------------------------------------------------

    def _load(self, role: str, size: int, transfers: int = 1) -> tuple[int, int]:
        return self._transfer(role, size, self._read, transfers)

    def _transfer(self, role: str, size: int, ticks_per_byte: int, transfers: int) -> tuple[int, int]:
        offchip = self.accelerator.offchip
        if not size:
            return 0, 0
        overhead = offchip.overhead_cycles * transfers * self.ticks_per_cycle
        if role in self.problem.on_chip:
            busy = copy_ticks(self.accelerator, size, self.ticks_per_cycle) + overhead
            return busy, busy
        busy = size * ticks_per_byte + overhead
        return busy, busy + offchip.latency_cycles * self.ticks_per_cycle

    def _keyed(self, name: str, tile: _Tile, keys: int) -> tuple[int, int]:
        p = self.problem
        row = p.d_qk * p.k_bytes if name == "k" else p.d_v * p.v_bytes
        transfers = 1 if p.block is None else tile.batch * ceil_divide(keys, p.block)
        return self._load(name, tile.heads * keys * row, transfers)

    def _operand_bytes(self, operand: Operand, tile: _Tile) -> int:
        p, whole = self.problem, operand_level(operand, self.mapping.keep.k_level) == "heads"
        sizes = (tile.batch, tile.kv_head, p.group if whole else tile.group, tile.query, p.keys if whole else tile.key)
        size = operand.element_bytes * (operand.buckets or 1)
        for has, extent in zip(operand.has, sizes, strict=True):
            size *= extent if has else 1
        return size

    # --- The array and the vector unit --------------------------------------------------------------------------

    def _product(self, name: str, tile: _Tile) -> tuple[int, int]:
        p, m = self.problem, tile.group * tile.query
        use = self.mapping.logit if name == "L" else self.mapping.attend
        n, k = (tile.key, p.d_qk) if name == "L" else (self._width, tile.key)
        fold = use.fold_rows, use.fold_columns
        return self._on_array(
            array_cycles(self.accelerator.array, use.stationarity, fold, MatmulTile(tile.heads, m, n, k))
        )

    def _on_array(self, cycles: ArrayCycles) -> tuple[int, int]:
        return cycles.busy * self.ticks_per_cycle, cycles.latency * self.ticks_per_cycle

    def _softmax(self, name: str, tile: _Tile) -> tuple[int, int]:
        """Steps of the vector unit, and what PEs do of the softmax."""
        p, softmax = self.problem, self.mapping.softmax
        converts = p.converts_probabilities
        if name[0] == "W":
            return self._vector(p.score_ops[int(name[1:])].kind, tile.rows, tile.key)
        if name == "D":
            late = _divides(p, self.mapping)
            kind = "cast" if not late else "divide_by_last" if softmax.total == "attend" else "divide"
            return self._vector(kind, tile.rows, p.d_v, converts=p.converts_output)
        if name in ("X", "Y"):
            return self._rows_softmax(name, tile) if softmax.algorithm == "rows" else self._online_softmax(name, tile)
        if name in ("N", "E", "U"):
            kind, unit = {
                "N": ("tile_max", softmax.maximum),
                "E": ("exp", softmax.exponential),
                "U": ("tile_sum", softmax.total),
            }[name]
            if unit == "array":
                fold = self.mapping.attend.fold_rows, self.mapping.attend.fold_columns
                scores = ScoreTile(tile.heads, tile.group * tile.query, tile.key)
                return self._on_array(pe_cycles(self.accelerator.array, VECTOR_WORK[kind].per_element, fold, scores))
            return self._vector(kind, tile.rows, tile.key, converts=converts and name == "E")
        kind, width = {
            "M": ("mask", tile.key),
            "Z": ("sink", 1),
            "B": ("merge_max", 1),
            "H": ("merge_sum", 1),
            "R": ("rescale", self._width),
            "R0": ("rescale", self._width),
            "G": ("add", self._width),
        }[name]
        return self._vector(kind, tile.rows, width)

    def _online_softmax(self, name: str, tile: _Tile) -> tuple[int, int]:
        kind = "exp" if self.mapping.softmax.total == "attend" else "exp_sum_online"
        return self._together(name, [("row_max_online", False), (kind, True)], tile.rows, tile.key, ())

    def _rows_softmax(self, name: str, tile: _Tile) -> tuple[int, int]:
        early = self.mapping.softmax.divide == "early"
        total = "exp" if self.mapping.softmax.total == "attend" else "exp_sum"
        kinds = [("row_max", False), (total, not early), *([("divide", True)] if early else [])]
        return self._together(name, kinds, tile.rows, tile.strip, ("sink",) if self.problem.sink else ())

    def _together(
        self, name: str, kinds: Sequence[tuple[str, bool]], rows: int, width: int, of_rows: Sequence[str]
    ) -> tuple[int, int]:
        """Operations in a row; where probabilities have a buffer of their own, X is the one that writes it."""
        converts = self.problem.converts_probabilities
        ticks = [self._vector(kind, rows, width, converts=last and converts)[0] for kind, last in kinds]
        before = sum(ticks[:-1]) + sum(self._vector(kind, rows, 1)[0] for kind in of_rows)
        if not converts:
            return before + ticks[-1], before + ticks[-1]
        return (before, before) if name == "Y" else (ticks[-1], ticks[-1])

    def _vector(self, kind: str, rows: int, width: int, *, converts: bool = False) -> tuple[int, int]:
        work = VALUE_WORK[kind] if kind in VALUE_WORK else VECTOR_WORK[kind]
        if converts and "cast" not in work.per_element:
            work = VectorWork((*work.per_element, "cast"), work.per_row)
        ticks = vector_cycles(self.accelerator.vector, work, rows * width, rows) * self.ticks_per_cycle
        return ticks, ticks


_Body = Callable[[int], None]
"""Works on a tile of so many."""

_Moment = tuple[tuple[int, int, int], int, tuple[int, ...]]
"""Heads, the place among the query tiles, and how far all times lie ahead of the first free resource."""

WORTH_A_LOOK = 4
"""With more kinds of query tiles than these, it is worth remembering what followed a state."""


# --- The walk ---------------------------------------------------------------------------------------------


class _Walk:
    """Goes through the nest: tiles of heads, query tiles, key tiles; alike ones in a row as rounds."""

    def __init__(self, problem: AttentionProblem, mapping: Mapping, steps: tuple[Step, ...], prices: _Prices):
        self.problem, self.mapping, self.steps, self.prices = problem, mapping, steps, prices
        self.by_rows = mapping.softmax.algorithm == "rows"
        self.pipeline = Recurrence(steps)
        self.head = self.query = self.key = 0
        self._begins = True
        self._ticks: dict[_Tile, Ticks] = {}
        self._followed: dict[_Moment, tuple[int, Saved, tuple[int, int, int]]] = {}
        self._tiles = query_tiles(problem, mapping.tiles.query, mapping.tiles.key)
        self._trips = sum(tiles.count * self._trips_of(tiles) for tiles in self._tiles)
        """How many trips the query tiles of a tile of query heads take."""

    def cycles(self) -> float:
        """From the first load to the last result."""
        p, t = self.problem, self.mapping.tiles
        heads = ((p.batch, t.batch), (p.kv_heads, t.kv_head), (p.group, t.group))
        if not any(size % tile for size, tile in heads) and all(step.level != HEADS for step in self.steps):
            # Nothing is loaded for tiles of heads, and these are alike: their loops are one.
            count = prod(size // tile for size, tile in heads)
            self.pipeline.repeat(count, lambda: self._queries((t.batch, t.kv_head, t.group)), QUERY, self._trips)
        else:
            self._rounds(p.batch, t.batch, self._kv_heads, HEADS)
        return self.pipeline.finish() / self.prices.ticks_per_cycle

    def _kv_heads(self, batch: int) -> None:
        p, t = self.problem, self.mapping.tiles
        self._rounds(p.kv_heads, t.kv_head, lambda kv_head: self._heads(batch, kv_head), HEADS)

    def _rounds(self, size: int, tile: int, body: _Body, level: int) -> None:
        """All tiles along a dimension, the last of which may be ragged."""
        for count, extent in ((size // tile, tile), (1, size % tile)):
            if count and extent:
                self.pipeline.repeat(count, lambda extent=extent: body(extent), level, self._trips)

    def _heads(self, batch: int, kv_head: int) -> None:
        self.head += 1
        self._begins = True
        p, t = self.problem, self.mapping.tiles
        self._rounds(p.group, t.group, lambda group: self._queries((batch, kv_head, group)), QUERY)

    def _queries(self, heads: tuple[int, int, int]) -> None:
        """All query tiles of a tile of heads.

        Where a state is met that was met before in the same place, what follows is what followed then.
        """
        met: list[tuple[_Moment, int]] = []
        for place, tiles in enumerate(self._tiles):
            row = self._row if self.by_rows else self._stream
            trips = self._trips_of(tiles)
            self.pipeline.repeat(tiles.count, lambda tiles=tiles, row=row: row(heads, tiles), QUERY, trips)
            if len(self._tiles) > WORTH_A_LOOK:
                ahead, horizon = self.pipeline.moment()
                moment = heads, place, ahead
                known = self._followed.get(moment)
                if known is not None:
                    before, end, numbers = known
                    self.pipeline.go_to(end, horizon - before)
                    self.head, self.query, self.key = numbers
                    return
                met.append((moment, horizon))
        if met:
            end, numbers = self.pipeline.save(), (self.head, self.query, self.key)
            self._followed |= {moment: (horizon, end, numbers) for moment, horizon in met}

    def _trips_of(self, tiles: QueryTiles) -> int:
        return 1 if self.by_rows else tiles.trips

    def _next_query(self) -> int:
        """The kind of the first trip of a query tile."""
        self.query += 1
        begins, self._begins = self._begins, False
        return HEAD if begins else 0

    def _stream(self, heads: tuple[int, int, int], tiles: QueryTiles) -> None:
        """The trips of a query tile, one for each key tile."""
        first, left = self._next_query() | FIRST, tiles.trips
        for part in tiles.parts:
            ticks = self._of(_Tile(*heads, tiles.extent, part.extent, 0))
            kind, count = EDGE * part.masked, part.trips
            left -= count
            if first:
                self._trip(kind | first | LAST * (count == 1 and not left), ticks)
                first, count = 0, count - 1
            ends = count > 0 and not left
            self.pipeline.repeat(count - ends, lambda kind=kind, ticks=ticks: self._trip(kind, ticks), KEY, 1)
            if ends:
                self._trip(kind | LAST, ticks)

    def _trip(self, kind: int, ticks: Ticks) -> None:
        self.key += 1
        self.pipeline.trip((self.head, self.query, self.key), kind, ticks)

    def _row(self, heads: tuple[int, int, int], tiles: QueryTiles) -> None:
        """The trip of a query tile whose rows stay on chip."""
        kind, changes = self._next_query(), bool(self.problem.score_ops)
        every = [
            Rounds(part.trips, EDGE * part.masked, self._of(_Tile(*heads, tiles.extent, part.extent, 0)))
            for part in tiles.parts
        ]
        changed = every if changes else [rounds for rounds in every if rounds.kind]
        ticks = self._of(_Tile(*heads, tiles.extent, 1, tiles.keys))
        loops = {"fill": every, "change": changed, "use": every}
        self.pipeline.trip((self.head, self.query, 0), kind, ticks, loops)

    def _of(self, tile: _Tile) -> Ticks:
        found = self._ticks.get(tile)
        if found is None:
            found = self._ticks[tile] = tuple(self.prices.of(step.name, tile) for step in self.steps)
        return found
