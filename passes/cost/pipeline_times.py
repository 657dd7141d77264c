"""How long the cycles of waiting of a pipeline take, for a column of mappings (`attention_pipeline`, `waiting_cycles`).

The cycles are the same for all mappings that agree in stages, slots and structure; what their steps take in all trips
is an array, and so is a bound. What a cycle misses at the ends of the pipeline is no more than so many of the largest
tiles, and the full tiles are these: total / (full tiles) is at least what one of them takes. A mask makes query
tiles of the same size differ; then the largest one of each tile of heads has a share of its work that is counted.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.passes.cost.arrays import larger, occurs, smaller
from flatc.passes.cost.attention_pipeline import SELDOM, PipelineShape, pipeline_cycles, pipeline_steps
from flatc.passes.cost.mapping_columns import Columns, Structure
from flatc.passes.cost.primitive_costs import ceil_divide
from flatc.passes.cost.tile_counts import Counts
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.cost.visited_keys import every_row_sees_keys
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class Case:
    """Mappings to be timed, and what their tiles add up to."""

    problem: AttentionProblem
    accelerator: Accelerator
    structure: Structure
    columns: Columns
    counts: Counts

    @cached_property
    def prices(self) -> TransferPrices:
        """What moving tensors costs."""
        return TransferPrices(self.accelerator, self.problem.on_chip)

    def transfer_cycles(self, role: str) -> Any:
        """What the channel takes for all bytes of a role."""
        return self.counts.tensor_bytes[role] * self.prices.rate(role)


def pipeline_times(case: Case) -> list[Any]:
    """For each cycle of waiting, a time below which no latency of a mapping lies.

    Covered are kernels of one loop, of strips and of whole rows; where scores are made twice, stay in registers, or
    have no softmax in their rows, and where query tiles are interleaved, there are none.
    """
    s, p = case.structure, case.problem
    one_loop = s.algorithm in ("online", "none") and not s.in_strips
    if s.held or s.interleave > 1 or s.is_product_rows(p) or s.algorithm == "streamed":
        return []
    if not one_loop and not every_row_sees_keys(p):
        # A row of no tiles has no product that hands on what it waited for.
        return []
    shape = _shape(case)
    if shape is None:
        return []
    steps = _StepTimes(case, one_loop=one_loop)
    found = [steps.bound(group) for group in _groups(shape)]
    return found if one_loop else [*found, steps.loads_in_order(shape)]


_ROLES = {"Q": "q", "P": "scores", "S": "result"}
"""Steps that move all of a tensor."""

Timed = tuple[str, bool]
"""A step, and whether its results are awaited."""


@frozen
class Group:
    """Cycles that differ in their steps only: (those in every trip, those seldom there) of each."""

    trips: int
    gates: tuple[str, ...]
    lost: int
    reach: int
    cycles: tuple[tuple[tuple[Timed, ...], tuple[Timed, ...]], ...]


@lru_cache(maxsize=1 << 10)
def _groups(shape: PipelineShape) -> tuple[Group, ...]:
    """The cycles of a pipeline, by what they have in common."""
    groups: dict[tuple[int, tuple[str, ...], int, int], list[tuple[tuple[Timed, ...], tuple[Timed, ...]]]] = {}
    for cycle in pipeline_cycles(shape):
        often, seldom = (
            tuple(sorted(step for step in cycle.steps if (step[0] in SELDOM) == is_seldom))
            for is_seldom in (False, True)
        )
        often = often if cycle.lost else _merged(often, shape)
        key = cycle.trips, tuple(sorted(cycle.gates)), cycle.lost, cycle.reach
        groups.setdefault(key, []).append((often, seldom))
    return tuple(Group(*key, tuple(cycles)) for key, cycles in groups.items())


def _shape(case: Case) -> PipelineShape | None:
    """The graph's shape; None where mappings of a column differ in stages or slots."""
    p, s, c = case.problem, case.structure, case.columns
    numbers: list[int] = []
    for column in (
        *(c.load, c.logit, c.softmax, c.attend, c.store),
        *(c.q_slots, c.k_slots, c.v_slots, c.score_slots, c.output_slots),
    ):
        first = column if isinstance(column, int) else int(column[0])
        if occurs(column != first):
            return None
        numbers.append(first)
    late = p.has("softmax") and s.divide == "late"
    return PipelineShape(
        rows=s.algorithm == "rows",
        strips=s.in_strips,
        has=frozenset(name for name in ("logit", "softmax", "attend") if p.has(name)),
        k_level=s.k_level,
        v_level=s.v_level,
        shares_channel=case.accelerator.offchip.channels == "shared",
        converts_probabilities=p.converts_probabilities,
        converts_output=p.has("attend") and p.converts_output,
        finishes=p.has("attend") and (late or p.converts_output),
        stages=tuple(numbers[:5]),  # pyright: ignore[reportArgumentType]
        slots=tuple(numbers[5:]),  # pyright: ignore[reportArgumentType]
    )


def _merged(steps: tuple[Timed, ...], shape: PipelineShape) -> tuple[Timed, ...]:
    """Steps with loops in the place of pairs of them: all loads of K or of V in a trip, or of V from an attend on."""
    found = dict(steps)
    if not (shape.rows or shape.strips) or all(name in found for name in ("V", "A", "Vn")):
        return steps
    for pair, loop in ((("K", "Kn"), "K*"), (("V", "Vn"), "V*"), (("A", "Vn"), "A*")):
        if all(name in found for name in pair):
            del found[pair[0]], found[pair[1]]
            found[loop] = False
    return tuple(sorted(found.items()))


class _StepTimes:
    """What each step of a pipeline takes in all trips, as a column."""

    def __init__(self, case: Case, *, one_loop: bool):
        self.case, self.one_loop = case, one_loop
        self._times: dict[Timed, Any] = {}
        self._sums: dict[tuple[Timed, ...], Any] = {}
        self._shares_kept: dict[int, Any] = {}

    def bound(self, group: Group) -> Any:
        """The longest time of a group of cycles; 0 where a mapping does not have them."""
        longest: Any = None
        for often, seldom in group.cycles:
            time = self._sum(often)
            if group.lost:
                time = time * self._kept(group.lost)
            for step in seldom:
                time = time + self._time(step) * (1 - group.lost / self._full_heads)
            longest = time if longest is None else larger(longest, time)
        if group.trips > 1:
            longest = longest / group.trips
        for gate in group.gates:
            longest = longest * self._open(gate)
        return longest * (self._full_rows >= group.reach) if group.lost else longest

    def loads_in_order(self, shape: PipelineShape) -> Any:
        """All loads of all trips, one after the other, with the products that those inside a trip wait for."""
        present = [step.name for step in pipeline_steps(shape) if step.resource == "read"]
        merged = _merged(tuple(sorted((name, False) for name in present)), shape)
        return self._sum(merged)

    def _sum(self, steps: tuple[Timed, ...]) -> Any:
        """What some steps take; cycles that begin with the same steps share their sum."""
        found = self._sums.get(steps)
        if found is None:
            last = self._time(steps[-1])
            found = self._sums[steps] = self._sum(steps[:-1]) + last if len(steps) > 1 else last
        return found

    def _kept(self, lost: int) -> Any:
        """The share of the time of a step that all but the `lost` instances take."""
        found = self._shares_kept.get(lost)
        if found is None:
            share = self.case.counts.largest_row / self._full_groups
            found = self._shares_kept[lost] = larger(1 - lost * share, 0)
        return found

    def _time(self, step: Timed) -> Any:
        name, awaited = step
        found = self._times.get(step)
        if found is None:
            skew = self._skew(name) if awaited else None
            found = self._busy(name) if skew is None else self._time((name, False)) + skew
            self._times[step] = found
        return found

    def _busy(self, name: str) -> Any:
        case = self.case
        counts, s = case.counts, case.structure
        if name in SELDOM:
            # A kernel of one tile of heads loads them before the pipeline begins.
            return case.transfer_cycles(name[1]) * (self._heads > 1)
        if name in _ROLES:
            return case.transfer_cycles(_ROLES[name])
        if name == "D":
            return counts.vector_finish
        if name == "X":
            return counts.vector_between - (counts.rescaling if s.chains_attends else 0)
        if name[-1] == "*":
            return self._loop(name[0])
        if name[0] in "KV":
            return self._share_of_loads(name) * case.transfer_cycles(name[0].lower())
        return self._share_of_products(name) * counts.product["logit" if name[0] == "L" else "attend"]

    def _skew(self, name: str) -> Any:
        """What is awaited beyond the time that a resource is busy."""
        if name[0] not in "LA":
            return None
        counts, product = self.case.counts, "logit" if name[0] == "L" else "attend"
        if self.one_loop or name[-1] == "n":
            return counts.awaited_skew[product]
        return counts.skew[product] / self._key_tiles * self._full_firsts * (self.case.problem.mask is None)

    def _loop(self, name: str) -> Any:
        """The loads of a key loop and the products that they wait for, inside all trips.

        A load waits for the product so many tiles before as there are slots. There are as many paths of loads and
        products in turn, which meet every load, and every product but the last of each path; the longest takes no less
        than their mean. From an attend on the first load of each is not met.
        """
        case, tensor = self.case, "k" if name == "K" else "v"
        c, counts, product = case.columns, case.counts, "logit" if name == "K" else "attend"
        slots = c.k_slots if name == "K" else c.v_slots
        read = case.transfer_cycles(tensor)
        missed = counts.largest[product]
        pair = self._time((name, name == "A")) + self._time(("Vn" if name == "A" else name + "n", False))
        if name == "A":
            p = case.problem
            width = c.batch * c.kv_head * c.key * (p.d_v * p.v_bytes)
            missed = missed + width * case.prices.rate(tensor)
        around = (read + counts.product[product] + counts.skew[product]) / slots - self._trips * missed
        return larger(pair, around)

    # --- Shares of the tiles of a row ------------------------------------------------------------------------

    @cached_property
    def _key_tiles(self) -> Any:
        return ceil_divide(self.case.problem.keys, self.case.columns.key)

    @cached_property
    def _tiles_in_trip(self) -> Any:
        """The most key tiles in a trip."""
        case = self.case
        return case.columns.rescaled_every if case.structure.in_strips else self._key_tiles

    @cached_property
    def _trips_of_row(self) -> Any:
        """How many trips a row has, at the most."""
        return ceil_divide(self._key_tiles, self._tiles_in_trip)

    @cached_property
    def _full_firsts(self) -> Any:
        """How many trips of a row begin with a full key tile, where it visits all."""
        full = self.case.problem.keys // self.case.columns.key
        return larger(ceil_divide(full, self._tiles_in_trip), 1)

    @cached_property
    def _full_lasts(self) -> Any:
        """How many trips of a row end with a full key tile that is not their first, where it visits all."""
        full, ragged = self.case.problem.keys // self.case.columns.key, self.case.problem.keys % self.case.columns.key
        whole, left = full // self._tiles_in_trip, full % self._tiles_in_trip
        return whole * (self._tiles_in_trip > 1) + (left > 1) * (ragged == 0)

    @cached_property
    def _is_even(self) -> bool:
        """Whether all query tiles visit all key tiles."""
        return self.case.problem.mask is None or not self.case.problem.skips_hidden

    def _share_of_loads(self, name: str) -> Any:
        """Of the bytes of a row's key tiles: the first one, the others, those beyond the slots of V; at the least."""
        p, c = self.case.problem, self.case.columns
        if self.one_loop:
            return 1
        even = smaller(c.key * self._full_firsts / p.keys, 1)
        first = even if self._is_even else (self._key_tiles == 1) * 1
        if name[-1] != "n":
            return first
        if name == "Kn":
            return 1 - first
        if not self._is_even:
            return first * 0
        return larger(1 - c.v_slots * self._trips_of_row * c.key / p.keys, 0)

    def _share_of_products(self, name: str) -> Any:
        """Of the cycles of a row's products: the first of each trip, those between, the last; at the least.

        A full tile takes at least the mean. What is not known to be of the first or the last is counted between.
        """
        if self.one_loop:
            return 1
        tiles = self._key_tiles
        if self._is_even:
            first, last = self._full_firsts / tiles, self._full_lasts / tiles
        else:
            first, last = (tiles == 1) * 1, tiles * 0
        if name[-1] == "n":
            return last
        if name == "L":
            return 1 - last
        return first if name == "A" else 1 - first - last

    # --- How often -------------------------------------------------------------------------------------------

    @cached_property
    def _heads(self) -> Any:
        p, c = self.case.problem, self.case.columns
        return ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head)

    @cached_property
    def _rows(self) -> Any:
        """How many query tiles there are."""
        p, c = self.case.problem, self.case.columns
        return self._heads * ceil_divide(p.group, c.group) * ceil_divide(p.queries, c.query)

    @cached_property
    def _trips(self) -> Any:
        """How many trips there are, at the most."""
        return self._rows * self._trips_of_row

    @cached_property
    def _full_heads(self) -> Any:
        p, c = self.case.problem, self.case.columns
        return (p.batch // c.batch) * (p.kv_heads // c.kv_head)

    @cached_property
    def _full_groups(self) -> Any:
        """So many tiles of query heads are as large as the largest."""
        return self._full_heads * (self.case.problem.group // self.case.columns.group)

    @cached_property
    def _full_rows(self) -> Any:
        """So many query tiles have as many rows as the largest."""
        return self._full_groups * (self.case.problem.queries // self.case.columns.query)

    def _open(self, gate: str) -> Any:
        """Which mappings have the waits of a gate (see `attention_pipeline`)."""
        tiles, most, slots = self._key_tiles, self._tiles_in_trip, self.case.columns.v_slots
        if self.case.problem.mask is not None:
            return tiles < 0
        if gate == "single":
            return tiles == 1 if self.one_loop else tiles <= most
        left = tiles % most
        return (most > slots) & ((left == 0) | (left > slots))
