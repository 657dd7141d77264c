"""What the trips of a kernel are, before anything is timed: few kinds of trips, and how often each follows.

To time, a trip is its *kind*: which entries take part, which of them work, on which extents, for how long. The trips
of a chain are a *series*: parts one after the other, each a kind or an inner series, repeated.

    causal, 4 query tiles:   series(first 1, last 1)  series(first 1, middle 1, last 1)  series(first 1, middle 2, ...

Equal kinds and equal series are the same object, so a series that recurs (the query tiles of another head) is
recognised at once. A plan is made for all trips of a level together, with arrays, after finding where trips change
(`change_points`): its cost grows with the number of different trips, not with the number of trips, and nothing is
approximate, since each stretch is proven to be alike before one trip stands for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from flatc.dialects.frozen import frozen
from flatc.dialects.pipeline import Entry
from flatc.dialects.spatial import ForOp, TimedOp
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.change_points import sign_changes, value_changes
from flatc.passes.simulation.nest_facts import ChainFacts, Columns, NestFacts
from flatc.passes.simulation.time_registers import is_immediate
from flatc.passes.simulation.trip_shapes import ChainShape, NestShapes, OpShape, Shaping


@frozen
class Busy:
    """An operation that works: on what, and how many ticks its resource is taken and its result takes."""

    op: TimedOp
    extents: tuple[int, ...]
    busy: int
    latency: int


class Idle:
    """An operation whose `when` is not positive."""


IDLE = Idle()


class Kind:
    """A kind of trip. `work` has an item for each entry of the chain, None for those that do not take part.

    `first`, `last` say by level whether the trip is the first or last one inside of its frame; `fresh` whether that
    frame is the first of its run. `shape` is all of this but extents and ticks.
    """

    __slots__ = ("first", "frames", "fresh", "last", "number", "shape", "weight", "work")

    def __init__(self, number: int, flags: tuple[tuple[bool, ...], ...], work: tuple[Work, ...]):
        self.number = number
        self.first, self.last, self.fresh = flags
        self.frames = len(self.first)
        self.work = work
        self.shape = (*flags, *(type(item) for item in work))
        self.weight = 1 + sum(item.weight for item in work if isinstance(item, Series))


class Series:
    """Parts one after the other, each a kind of trip or an inner series and how often it comes in a row.

    `weight` counts the parts of the parts, and so on.
    """

    __slots__ = ("number", "parts", "weight")

    def __init__(self, number: int, parts: tuple[Part, ...]):
        self.number = number
        self.parts = parts
        self.weight = sum(part.weight for part, _ in parts)


Work = Busy | Idle | Series | None
Part = tuple[Kind | Series, int]

GROUP = 16
"""Parts of a series, beyond which they are put into groups."""

MOST_ROWS = 20_000_000
"""Trips that differ, beyond which a plan would not fit into memory."""


class CannotSkip(Exception):
    """A kernel can only be simulated event by event. No schedule that flatc makes is such a kernel."""


class TripPlan:
    """Plans the trips of a kernel's loops. Objects are told apart by their numbers; `spend` is told of the effort."""

    def __init__(self, facts: NestFacts, model: CostModel, spend: Callable[[int], None]):
        self._facts = facts
        self._model = model
        self._spend = spend
        self._shapes = NestShapes(facts)
        self._exprs = self._shapes.exprs
        self.things: list[Kind | Series] = []
        self._numbers: dict[Any, int] = {}
        self._busies: dict[tuple[TimedOp, tuple[int, ...]], Busy] = {}

    def series(self, root: ForOp) -> Series:
        """The trips of a loop that stands in the kernel's own body."""
        number = int(self._plan(self._facts.chain(root), {}, 1)[0])
        found = self.things[number]
        assert isinstance(found, Series)
        return found

    def work(self, op: TimedOp) -> Work:
        """What an operation in the kernel's own body does."""
        when = None if op.when is None else op.when.data.constant
        return IDLE if when is not None and when <= 0 else self._busy(op, tuple(e.data.constant for e in op.extents))

    def executed(self, tops: Sequence[Series]) -> Counter[tuple[TimedOp, tuple[int, ...]]]:
        """How often each operation works on each extents, in all trips of `tops`."""
        times: Counter[int] = Counter(top.number for top in tops)
        done: Counter[tuple[TimedOp, tuple[int, ...]]] = Counter()
        # What a series is made of has smaller numbers.
        for number in range(len(self.things) - 1, -1, -1):
            count = times[number]
            if not count:
                continue
            thing = self.things[number]
            if isinstance(thing, Series):
                for part, repeated in thing.parts:
                    times[part.number] += count * repeated
                continue
            for item in thing.work:
                if isinstance(item, Series):
                    times[item.number] += count
                elif isinstance(item, Busy):
                    done[item.op, item.extents] += count
        return done

    def _busy(self, op: TimedOp, extents: tuple[int, ...]) -> Busy:
        found = self._busies.get((op, extents))
        if found is None:
            price = self._model.price(op, extents)
            if price.latency < price.busy or (price.latency > price.busy and is_immediate(op)):
                raise CannotSkip("an operation's result is there at another time than its resource says")
            found = self._busies[op, extents] = Busy(op, extents, price.busy, price.latency)
        return found

    # --- Levels of a chain ------------------------------------------------------------------------------

    def _plan(self, facts: ChainFacts, columns: Columns, rows: int) -> Ints:
        """For each row, the number of the series of a chain's trips there; rows that decide alike are planned once."""
        import numpy as np

        shape = self._shapes.chain(facts)
        first, inverse = _distinct([self._input(each, columns, rows) for each in shape.inputs], rows)
        order = np.argsort(first)
        first, rank = first[order], np.argsort(order)
        none = np.zeros((len(first), 0), dtype=bool)
        return self._level(shape, 0, _rows_of(columns, first), (none, none, none), len(first))[rank[inverse]]

    def _input(self, shaping: Shaping, columns: Columns, rows: int) -> Ints:
        number, by_sign = shaping
        values = self._exprs.evaluate(number, columns, rows)
        return (values > 0).astype(values.dtype) if by_sign else values

    def _level(self, shape: ChainShape, level: int, columns: Columns, flags: _Flags, rows: int) -> Ints:
        """For each row, a frame around the loop of `level`, the number of the series of that loop's trips."""
        import numpy as np

        lower, upper = (self._exprs.evaluate(bound, columns, rows) for bound in shape.bounds[level])
        result = np.full(rows, self._empty(), dtype=np.int64)
        empty = np.flatnonzero(lower >= upper)
        if level > 0 and len(empty):
            kinds = self._kinds(shape, level, _rows_of(columns, empty), tuple(f[empty] for f in flags), len(empty))
            result[empty] = [self._joined([int(kind)], [1]) for kind in kinds]
        full = np.flatnonzero(lower < upper)
        if len(full):
            inside = self._inside(shape, level, columns, flags, _Bounds(full, lower[full], upper[full]))
            result[full] = inside
        return result

    def _inside(self, shape: ChainShape, level: int, columns: Columns, flags: _Flags, bounds: _Bounds) -> list[int]:
        """The numbers of the series of loops that are not empty."""
        import numpy as np

        row, start, count = self._stretches(shape, level, _rows_of(columns, bounds.rows), bounds)
        place = bounds.rows[row]
        inner = _rows_of(columns, place) | {shape.names[level]: start}
        at_start, at_end = start == bounds.lower[row], start + count == bounds.upper[row]
        inner_flags = _inner_flags(shape.facts, level, tuple(f[place] for f in flags), at_start, at_end)
        if level + 1 < len(shape.names):
            numbers = self._level(shape, level + 1, inner, inner_flags, len(row))
        else:
            numbers = self._kinds(shape, level + 1, inner, inner_flags, len(row))
        ends = np.searchsorted(row, np.arange(len(bounds.rows)), side="right").tolist()
        things, counts = numbers.tolist(), count.tolist()
        return [
            self._joined(things[begin:end], counts[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)
        ]

    def _joined(self, numbers: list[int], counts: list[int]) -> int:
        """The number of the series of these parts. Many different parts become a tree, whose groups may recur."""
        parts: list[Part] = []
        for number, count in zip(numbers, counts, strict=True):
            if parts and parts[-1][0].number == number:
                count += parts.pop()[1]
            parts.append((self.things[number], count))
        while len(parts) > GROUP:
            groups = [self._series(tuple(parts[i : i + GROUP])) for i in range(0, len(parts), GROUP)]
            parts = [(self.things[number], 1) for number in groups]
        return self._series(tuple(parts))

    def _series(self, parts: tuple[Part, ...]) -> int:
        if len(parts) == 1:
            ((inner, outer_count),) = parts
            if isinstance(inner, Series) and len(inner.parts) == 1:
                parts = ((inner.parts[0][0], inner.parts[0][1] * outer_count),)
        found = self._numbers.get(parts)
        if found is None:
            found = self._numbers[parts] = len(self.things)
            self.things.append(Series(found, parts))
        return found

    def _empty(self) -> int:
        return self._series(())

    # --- Where trips change -----------------------------------------------------------------------------

    def _stretches(self, shape: ChainShape, level: int, columns: Columns, bounds: _Bounds) -> tuple[Ints, Ints, Ints]:
        """Stretches of alike trips: their row, first index and number of trips."""
        import numpy as np

        marks = None if shape.every[level] else self._marks(shape, level, columns, bounds)
        trips = bounds.upper - bounds.lower
        if marks is None:
            self._spend(int(trips.sum()))
            if int(trips.sum()) > MOST_ROWS:
                raise CannotSkip("there are too many different trips")
            row = np.repeat(np.arange(len(trips)), trips)
            start = np.arange(len(row)) - np.repeat(np.cumsum(trips) - trips - bounds.lower, trips)
            return row, start, np.ones(len(row), dtype=np.int64)
        row, start = np.concatenate([row for row, _ in marks]), np.concatenate([start for _, start in marks])
        self._spend(len(row))
        row, start = _sorted_pairs(row, start)
        following = np.append(start[1:], 0)
        last = np.append(row[1:] != row[:-1], True)
        return row, start, np.where(last, bounds.upper[row], following) - start

    def _marks(
        self, shape: ChainShape, level: int, columns: Columns, bounds: _Bounds
    ) -> list[tuple[Ints, Ints]] | None:
        """Where stretches begin, by row and index; None where every trip is on its own."""
        import numpy as np

        lower, upper, name = bounds.lower, bounds.upper, shape.names[level]
        every = np.arange(len(lower))
        marks = [(every, lower)]
        if shape.ends_matter[level]:
            marks += [(every, upper - 1), (every, np.minimum(lower + 1, upper - 1))]
        for number, by_sign in shape.changing[level]:

            def values(rows: Ints, index: Ints, number: int = number) -> Ints:
                return self._exprs.evaluate(number, _rows_of(columns, rows) | {name: index}, len(rows))

            found = sign_changes(values, lower, upper) if by_sign else value_changes(values, lower, upper)
            if found is None:
                return None
            marks.append(found)
        return marks

    # --- Kinds --------------------------------------------------------------------------------------------

    def _kinds(self, chain: ChainShape, frames: int, columns: Columns, flags: _Flags, rows: int) -> Ints:
        """For each row, a trip of `frames` frames, the number of its kind."""
        import numpy as np

        fields = [flag[:, level].astype(np.int64) for flag in flags for level in range(frames)]
        slices: list[int] = []
        for entry, shape in zip(chain.facts.chain.entries, chain.entries, strict=True):
            slices.append(len(fields))
            part = _part(entry, frames, flags, rows)
            if isinstance(shape, OpShape):
                fields += self._operation_fields(shape, part, columns, rows)
            else:
                fields.append(self._loop_field(shape, part, columns))
        representatives, inverse = _distinct(fields, rows)
        table = np.array([field[representatives] for field in fields], dtype=np.int64).T.tolist()
        numbers = [self._kind(chain, frames, values, slices) for values in table]
        return np.array(numbers, dtype=np.int64)[inverse]

    def _loop_field(self, loop: ForOp, part: Ints, columns: Columns) -> Ints:
        """What tells trips apart by a loop: 0 if it takes no part, else the number of its series, plus one."""
        import numpy as np

        found, inside = np.zeros(len(part), dtype=np.int64), np.flatnonzero(part)
        if len(inside):
            found[inside] = 1 + self._plan(self._facts.chain(loop), _rows_of(columns, inside), len(inside))
        return found

    def _operation_fields(self, shape: OpShape, part: Ints, columns: Columns, rows: int) -> list[Ints]:
        """What tells trips apart by an operation: 0 if it takes no part, 1 if it idles, 2 and its extents if it works.

        Extents that never vary need not be told apart.
        """
        works = part.astype("int64")
        if not part.any():  # Its indices may have no values here.
            return [works] * (1 + len(shape.varying))
        if shape.when is not None:
            works = works * (self._exprs.evaluate(shape.when, columns, rows) > 0)
        return [part + works, *(self._exprs.evaluate(number, columns, rows) * works for number in shape.varying)]

    def _kind(self, chain: ChainShape, frames: int, values: list[int], slices: list[int]) -> int:
        key = (chain.facts, frames, *values)
        found = self._numbers.get(key)
        if found is not None:
            return found
        flags = tuple(tuple(bool(v) for v in values[i * frames : (i + 1) * frames]) for i in range(3))
        work: list[Work] = []
        for shape, place in zip(chain.entries, slices, strict=True):
            what = values[place]
            if not isinstance(shape, OpShape):
                inner = self.things[what - 1] if what else None
                assert not isinstance(inner, Kind)
                work.append(inner)
            elif what < 2:
                work.append(IDLE if what else None)
            else:
                extents = shape.extents(values[place + 1 : place + 1 + len(shape.varying)])
                work.append(self._busy(shape.op, extents))
        found = self._numbers[key] = len(self.things)
        self.things.append(Kind(found, flags, tuple(work)))
        return found


# --- Helpers ------------------------------------------------------------------------------------------------

_Flags = tuple[Any, ...]
"""First, last and fresh: arrays of a row for each place and a column for each level."""


@frozen
class _Bounds:
    """Loops that have trips: the rows they stand in, and their bounds."""

    rows: Ints
    lower: Ints
    upper: Ints


def _rows_of(columns: Columns, rows: Ints) -> Columns:
    return {name: column[rows] for name, column in columns.items()}


def _inner_flags(facts: ChainFacts, level: int, flags: _Flags, at_start: Ints, at_end: Ints) -> _Flags:
    """The flags of the trips of the loop of `level`, or of frames around a loop further in.

    A level that holds nothing has no frames that anybody looks at: its flags stay false, and trips stay alike.
    """
    import numpy as np

    first, last, fresh = flags
    inner = np.full(len(at_start), facts.holds[level] or level + 1 == len(facts.loops))
    return (
        np.column_stack([first & at_start[:, None], inner]),
        np.column_stack([last & at_end[:, None], inner]),
        np.column_stack([fresh, at_start & facts.carries[level]]),
    )


def _part(entry: Entry, frames: int, flags: _Flags, rows: int) -> Ints:
    """In which trips an entry takes part (as `program_order` has it)."""
    import numpy as np

    if entry.level >= frames:
        return np.zeros(rows, dtype=bool)
    if entry.section == "body":
        return np.ones(rows, dtype=bool)
    return flags[0 if entry.section == "before" else 1][:, entry.level]


def _sorted_pairs(row: Ints, start: Ints) -> tuple[Ints, Ints]:
    """Pairs by row and start, each once."""
    import numpy as np

    order = np.lexsort((start, row))
    row, start = row[order], start[order]
    new = np.append(True, (row[1:] != row[:-1]) | (start[1:] != start[:-1]))
    return row[new], start[new]


def _distinct(fields: list[Ints], rows: int) -> tuple[Ints, Ints]:
    """Rows that represent all different ones, and for each row which of these it equals."""
    import numpy as np

    inverse = np.zeros(rows, dtype=np.int64)
    for word in _packed(fields):
        codes = np.unique(word, return_inverse=True)[1]
        inverse = (
            np.unique(inverse * (int(codes.max()) + 1) + codes, return_inverse=True)[1] if inverse.any() else codes
        )
    return np.unique(inverse, return_index=True)[1], inverse


def _packed(fields: list[Ints]) -> list[Ints]:
    """As few columns as may be that tell the same rows apart: sorting is dear."""
    words: list[Ints] = []
    free = 0
    for field in fields:
        low = field.min()
        bits = int(field.max() - low).bit_length()
        if not bits:
            continue
        if bits > free:
            words.append(field - low)
            free = 62 - bits
        else:
            words[-1] = (words[-1] << bits) | (field - low)
            free -= bits
    return words
