"""A matrix product as a recurrence: the steps of its pipeline, and what each takes on a tile.

    product_cycles(problem, accelerator, mapping)        # a lower bound of the latency, close to it

It is the loop nest of `product_nest` told once more, from the problem and the mapping alone. A trip is a turn of the
loop over k. Levels are the outer loop over tiles (`HEADS`), tiles of the result (`QUERY`) and k (`KEY`); what is kept
at a loop of one trip is loaded once, when everything (or a head) begins. `recurrence` walks through few of the trips.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.product_mapping import ProductMapping
from flatc.passes.cost.primitive_costs import MatmulTile, array_cycles
from flatc.passes.cost.product_costs import finish_price
from flatc.passes.cost.recurrence import Recurrence, Rounds, Work
from flatc.passes.cost.tick_prices import TickPrices, Times
from flatc.passes.cost.trip_steps import BEGIN, FIRST, HEAD, HEADS, KEY, LAST, QUERY, Pipeline, Step, Wait
from flatc.passes.kernels.product_problem import ProductProblem


def product_cycles(problem: ProductProblem, accelerator: Accelerator, mapping: ProductMapping) -> float:
    """Cycles that a kernel takes at the least."""
    return _Walk(problem, accelerator, mapping).cycles()


def _steps(problem: ProductProblem, accelerator: Accelerator, mapping: ProductMapping) -> Iterator[Step]:
    """Loads of x, w and the bias, `multiply`, `finish` (bias or conversion) and `store`, in the order of the text."""
    p, keep, stages = problem, mapping.keep, mapping.stages
    places = {"k": (KEY, 0)} | {dim: _place(problem, mapping, dim) for dim in mapping.order}
    write = "read" if accelerator.offchip.channels == "shared" else "write"
    levels = {"x": (keep.x_level, keep.x_slots, "multiply"), "w": (keep.w_level, keep.w_slots, "multiply")}
    if p.has_bias:
        levels["bias"] = "n", keep.sums_slots, "finish"
    order = sorted(levels, key=lambda role: (places[levels[role][0]][0], places[levels[role][0]][1] != BEGIN))
    for role in order:
        level, only = places[levels[role][0]]
        _, slots, user = levels[role]
        # What is loaded for a head waits for the head so many before: the outer tile before, or as many of these.
        known = only != BEGIN or slots == 1 or _is_alone(problem, mapping)
        waits = (Wait(user, slots, level),) if known else ()
        # What stands in front of all loops has no stage.
        yield Step(role, "read", 0 if only == BEGIN and p.heads == 1 else stages.load, level, waits, only=only)
    free = Wait("finish" if p.own_result else "store", keep.sums_slots, QUERY)
    operands = [Wait(role, level=places[levels[role][0]][0]) for role in ("x", "w")]
    yield Step("multiply", "array", stages.multiply, KEY, (*operands, free))
    done = Wait("multiply", level=QUERY)
    if p.finishes:
        waits = [done, *([Wait("bias", level=places["n"][0])] if p.has_bias else [])]
        waits += [Wait("store", keep.y_slots, QUERY)] if p.own_result else []
        yield Step("finish", "vector", stages.multiply, QUERY, tuple(waits), only=LAST)
        done = Wait("finish", level=QUERY)
    yield Step("store", write, stages.store, QUERY, (done,), only=LAST)


def _is_alone(problem: ProductProblem, mapping: ProductMapping) -> bool:
    """Whether the outer loop has one trip."""
    outer = mapping.order[0]
    return getattr(problem, outer) <= getattr(mapping.tiles, outer)


def _place(problem: ProductProblem, mapping: ProductMapping, dim: str) -> tuple[int, int]:
    """The level, and the kind of trip, in which is loaded what is kept at a loop."""
    sizes = {"m": (problem.m, mapping.tiles.m), "n": (problem.n, mapping.tiles.n)}
    size, tile = sizes[dim]
    outermost = dim == mapping.order[0]
    if size <= tile and not (outermost and problem.heads == 1):
        return HEADS, BEGIN
    return (HEADS, HEAD) if outermost else (QUERY, FIRST)


@frozen
class _Tile:
    """Extents of a tile."""

    m: int
    n: int
    k: int


class _Walk(TickPrices):
    """Goes through the nest: heads, the outer loop, the inner loop, k; alike tiles in a row as rounds."""

    def __init__(self, problem: ProductProblem, accelerator: Accelerator, mapping: ProductMapping):
        super().__init__(accelerator, problem.on_chip)
        self.problem, self.mapping = problem, mapping
        pipeline = Pipeline(_steps(problem, accelerator, mapping))
        self.steps, self.recurrence = pipeline.steps, Recurrence(pipeline)
        self.begins = 0
        tiles = mapping.tiles
        self.parts = {
            dim: [(size // tile, tile), (int(size % tile > 0), size % tile)]
            for dim, size, tile in (("m", problem.m, tiles.m), ("n", problem.n, tiles.n), ("k", problem.k, tiles.k))
        }
        self._known: dict[_Tile, Work] = {}

    def cycles(self) -> float:
        """From the first load to the last result."""
        self.recurrence.repeat(self.problem.heads, self._head, HEADS, self._trips(*self.mapping.order))
        return self.recurrence.finish() / self.ticks_per_cycle

    def _trips(self, *dims: str) -> int:
        """Turns of the loop over k in all tiles along some dimensions."""
        total = sum(count for count, _ in self.parts["k"])
        for dim in dims:
            total *= sum(count for count, _ in self.parts[dim])
        return total

    def _head(self) -> None:
        outer, inner = self.mapping.order
        self.begins = BEGIN
        self._along(outer, HEADS, self._trips(inner), lambda extent: self._outer({outer: extent}))

    def _along(self, dim: str, level: int, trips: int, body: Callable[[int], None]) -> None:
        for count, extent in self.parts[dim]:
            self.recurrence.repeat(count, lambda extent=extent: body(extent), level, trips)

    def _outer(self, extents: dict[str, int]) -> None:
        self.recurrence.enter(HEADS)
        self.begins |= HEAD
        inner = self.mapping.order[1]
        self._along(inner, QUERY, self._trips(), lambda extent: self._tile(extents | {inner: extent}))

    def _tile(self, extents: dict[str, int]) -> None:
        """All turns of one tile of the result."""
        self.recurrence.enter(QUERY)
        begins, self.begins = self.begins | FIRST, 0
        sizes = [(count, k) for count, k in self.parts["k"] if count]
        turns = [Rounds(count, self._work(_Tile(**extents, k=k))) for count, k in sizes]
        self.recurrence.stream(turns, begins, KEY)

    def _work(self, tile: _Tile) -> Work:
        found = self._known.get(tile)
        if found is None:
            found = self._known[tile] = Work(tuple(self._price(step.name, tile) for step in self.steps))
        return found

    def _price(self, name: str, tile: _Tile) -> Times:
        p, keep, use = self.problem, self.mapping.keep, self.mapping.array
        match name:
            case "x":
                return self.moved("x", tile.m * (tile.k if keep.x_level == "k" else p.k) * p.x_bytes)
            case "w":
                return self.moved("w", tile.n * (tile.k if keep.w_level == "k" else p.k) * p.w_bytes)
            case "bias":
                return self.moved("bias", tile.n * (p.bias_bytes or 0))
            case "store":
                return self.moved("result", tile.m * tile.n * p.output_bytes)
            case "finish":
                return self.at_once(finish_price(p, self.accelerator, tile.m, tile.n)[0])
            case _:
                product = MatmulTile(1, tile.m, tile.n, tile.k)
                fold = use.fold_rows, use.fold_columns
                return self.on_array(array_cycles(self.accelerator.array, use.stationarity, fold, product))
