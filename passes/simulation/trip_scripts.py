"""From a plan of trips to a script of maps: what to do with the times, in order, in few items.

Trips join a pipeline one after the other (`step_programs`). After a few alike trips the window no longer changes, and
the rest of the stretch is a power of one map; so is a series that leaves the window as it found it:

    Stretch     trips in a row: the end of one query tile and the start of the next, say
    Power       one stretch, so many times: the middle of a key loop
    Repeat      a script, so many times: the query tiles of an unmasked head, the heads of a layer

Equal stretches are one object, and have one matrix, wherever they occur. A script says nothing of times and is made
once, whatever they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from xdsl.ir import SSAValue

from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import BufferOp, ForOp, KernelOp, TimedOp
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.max_plus import NEVER, Matrix, Powers, identity, multiply
from flatc.passes.simulation.nest_facts import ChainFacts, NestFacts
from flatc.passes.simulation.step_programs import Event, NestedRun, Part, Piece, Program, Surroundings, View, Window
from flatc.passes.simulation.time_registers import Registers
from flatc.passes.simulation.trip_plan import GROUP, Busy, Idle, Kind, Series, TripPlan


class Stretch:
    """Pieces in a row, as events and, once it pays, as a matrix on the registers that they touch."""

    def __init__(self, pieces: tuple[Piece, ...], registers: Registers):
        self.pieces = pieces
        self.events = sum(piece.events for piece in pieces)
        self.longest = sum(piece.longest for piece in pieces)
        self._registers = registers
        self._times_met = 0

    def met(self, count: int) -> int:
        """Takes note that it is met so many times more; gives how often that makes."""
        self._times_met += count
        return self._times_met

    @cached_property
    def touched(self) -> Ints:
        """The registers that it reads or writes, ascending; none that only live within a trip."""
        import numpy as np

        found = set[int]().union(*(piece.touched for piece in self.pieces))
        return np.array(sorted(r for r in found if r < self._registers.size), dtype=np.int64)

    @cached_property
    def powers(self) -> Powers:
        """Its matrix, on the registers of `touched`, and the powers of it."""
        return Powers(self._matrix())

    def _matrix(self) -> Matrix:
        import numpy as np

        count = len(self.touched)
        never = np.full(count, NEVER, dtype=np.int64)
        rows: list[Any] = [never] * self._registers.total
        for place, register in enumerate(self.touched.tolist()):
            rows[register] = never.copy()
            rows[register][place] = 0
        for piece in self.pieces:
            piece.run_rows(rows)
        matrix = np.array([rows[register] for register in self.touched.tolist()], dtype=np.int64).reshape(count, count)
        return np.where(matrix < 0, NEVER, matrix)


@frozen
class Power:
    """A stretch, so many times."""

    stretch: Stretch
    count: int


@dataclass(eq=False)
class Script:
    """Items in order."""

    items: list[Stretch | Power | Repeat] = field(default_factory=list["Stretch | Power | Repeat"])

    @cached_property
    def touched(self) -> Ints:
        """The registers that its items touch, ascending."""
        import numpy as np

        stretches = {id(stretch): stretch for stretch in self._stretches()}.values()
        parts = [stretch.touched for stretch in stretches]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.int64)

    @cached_property
    def powers(self) -> Powers:
        """All of it as one matrix, on the registers of `touched`, and the powers of it."""
        import numpy as np

        matrix = identity(len(self.touched))
        for item in self.items:
            part = item.stretch if isinstance(item, Power) else item.script if isinstance(item, Repeat) else item
            factor = part.powers.matrix(1 if isinstance(item, Stretch) else item.count)
            places = np.searchsorted(self.touched, part.touched)
            matrix[places] = multiply(factor, matrix[places])
        return Powers(matrix)

    @property
    def size(self) -> int:
        """How many items it has, those of inner scripts among them."""
        return sum(1 + (item.script.size if isinstance(item, Repeat) else 0) for item in self.items)

    def _stretches(self) -> list[Stretch]:
        found: list[Stretch] = []
        for item in self.items:
            if isinstance(item, Repeat):
                found += item.script._stretches()
            else:
                found.append(item if isinstance(item, Stretch) else item.stretch)
        return found


@frozen
class Repeat:
    """A script, so many times."""

    script: Script
    count: int


@dataclass(eq=False, slots=True)
class _Run:
    """A loop that runs as a whole in given surroundings, its results for given registers.

    What it writes is the same wherever it stands, so it is written once for each series of trips.
    """

    pipeline: _Pipeline
    results: tuple[int | None, ...]
    written: dict[Series, list[_Item]] = field(default_factory=dict["Series", "list[_Item]"])


@dataclass(eq=False, slots=True)
class _Step:
    """A trip joins a window: pieces and loops that run in between, how many of these, and the window then."""

    items: list[Piece | tuple[_Run, Series]]
    runs: int
    target: _Place
    written: list[_Item] | None = None
    script: Script | None = None


@dataclass(eq=False, slots=True)
class _Place:
    """A window of a chain in given surroundings, with the steps from it that have been made."""

    pipeline: _Pipeline
    window: Window
    steps: dict[Kind | None, _Step] = field(default_factory=dict["Kind | None", "_Step"])
    series: dict[Series, tuple[Script, _Place]] = field(default_factory=dict["Series", "tuple[Script, _Place]"])
    results: dict[tuple[int | None, ...], list[Piece]] = field(
        default_factory=dict["tuple[int | None, ...]", "list[Piece]"]
    )


class _Pipeline:
    """A chain in given surroundings: its windows and programs."""

    def __init__(self, writer: ScriptWriter, chain: ChainFacts, outside: Surroundings):
        self._writer = writer
        self._registers = writer.registers
        self.chain = chain
        self.outside = outside
        self._programs: dict[tuple[object, ...], list[Part | tuple[NestedRun, _Run]]] = {}
        self._places: dict[Window, _Place] = {}
        self.empty = self._place((None,) * (chain.chain.depth + 2))

    def _place(self, window: Window) -> _Place:
        found = self._places.get(window)
        if found is None:
            found = self._places[window] = _Place(self, window)
        return found

    def step(self, place: _Place, kind: Kind | None) -> _Step:
        """What happens when a trip, or none, joins."""
        window = (kind, *place.window[:-1])
        items: list[Piece | tuple[_Run, Series]] = []
        for item in self._program(window):
            if isinstance(item, Part):
                items.append(item.piece(window))
                continue
            nested, run = item
            trip = window[nested.age]
            series = None if trip is None else trip.work[nested.entry]
            assert isinstance(series, Series)
            items.append((run, series))
        return _Step(items, sum(not isinstance(item, Piece) for item in items), self._place(window))

    def _program(self, window: Window) -> list[Part | tuple[NestedRun, _Run]]:
        """What happens in windows of these shapes."""
        shapes = tuple([None if trip is None else trip.shape for trip in window])
        found = self._programs.get(shapes)
        if found is None:
            items = Program(self._registers, self.chain, self.outside, window).items
            found = self._programs[shapes] = [
                item if isinstance(item, Part) else (item, self._writer.run(item.loop, item.surroundings, item.results))
                for item in items
                if isinstance(item, NestedRun) or item.moves or item.events
            ]
        return found

    def hand_over(self, place: _Place, results: tuple[int | None, ...]) -> list[Piece]:
        """What hands on the loop's results after its last trip has left its last stage."""
        found = place.results.get(results)
        if found is None:
            pairs = zip(results, self._results(place.window), strict=True)
            origin = self._registers.origin
            sources = [(origin if source is None else source, kept) for kept, source in pairs if kept is not None]
            events = [Event((source,), kept, waits=(source,)) for source, kept in sources]
            found = place.results[results] = [Part(events=events).piece(())] if events else []
        return found

    def _results(self, window: Window) -> tuple[int | None, ...]:
        """The registers of what the loop's results stand for."""
        root, age = self.chain.loops[0], self.chain.chain.depth
        if window[age] is None:  # It had no trip.
            return tuple(self.outside.tokens[token] for token in root.inits)
        view = View(self._registers, self.chain, self.outside, window)
        return tuple(view.resolve(token, age) for token in root.yield_op.tokens)


class ScriptWriter:
    """Writes the script of a kernel. `spend` is told of the effort."""

    def __init__(self, kernel: KernelOp, model: CostModel, spend: Callable[[int], None]):
        self._facts = NestFacts(kernel)
        self.registers = Registers(self._facts, model)
        self.plan = TripPlan(self._facts, model, spend)
        self.tops: list[Series] = []
        self.own_work: list[Busy] = []
        self._spend = spend
        self._pipelines: dict[tuple[object, ...], _Pipeline] = {}
        self._stretches: dict[tuple[Piece, ...], Stretch] = {}
        self._runs: dict[tuple[object, ...], _Run] = {}

    def write(self) -> Script:
        """The script of the whole kernel."""
        kernel, out = self._facts.kernel, list[_Item]()
        for op in kernel.body.block.ops:
            if isinstance(op, TimedOp):
                out.append(self._kernel_operation(op))
            elif isinstance(op, ForOp):
                series = self.plan.series(op)
                self.tops.append(series)
                inner = self._facts.chain(op)
                tokens = {token: self._kernel_token(token) for token in inner.outside_tokens}
                ages: dict[BufferOp, int | None] = dict.fromkeys(inner.outside_buffers)
                results = tuple(self._kernel_token(result) for result in op.done)
                self._run_loop(out, self.run(op, Surroundings(tokens, ages), results), series)
        return self._script(out)

    def run(self, loop: ForOp, outside: Surroundings, results: tuple[int | None, ...]) -> _Run:
        """The one object for a loop that runs as a whole."""
        key = loop, outside.key
        pipeline = self._pipelines.get(key)
        if pipeline is None:
            pipeline = self._pipelines[key] = _Pipeline(self, self._facts.chain(loop), outside)
        return self._runs.setdefault((pipeline, results), _Run(pipeline, results))

    def _script(self, items: list[_Item]) -> Script:
        """A script of these items; pieces in a row make a stretch."""
        script, pieces = Script(), list[Piece]()
        for item in items:
            if isinstance(item, Piece):
                pieces.append(item)
                continue
            if pieces:
                script.items.append(self._stretch(pieces))
                pieces = []
            script.items.append(item)
        if pieces:
            script.items.append(self._stretch(pieces))
        return script

    def _stretch(self, pieces: list[Piece]) -> Stretch:
        """The one object for these pieces in a row."""
        key = tuple(pieces)
        found = self._stretches.get(key)
        if found is None:
            found = self._stretches[key] = Stretch(key, self.registers)
        return found

    # --- The kernel's own body ----------------------------------------------------------------------------

    def _kernel_token(self, token: SSAValue) -> int | None:
        places = self.registers.tokens.get(token, ())
        return places[0] if places else None

    def _kernel_operation(self, op: TimedOp) -> Piece:
        work, registers = self.plan.work(op), self.registers
        waits = [place for token in op.after if (place := self._kernel_token(token)) is not None]
        token = self._kernel_token(op.token)
        if isinstance(work, Idle):
            return Part(events=[Event((registers.origin, *waits), token, waits=tuple(waits))]).piece(())
        assert isinstance(work, Busy)
        self.own_work.append(work)
        resource = registers.resource[op]
        pair = registers.free[resource], registers.done[resource]
        trip = Kind(-1, ((), (), ()), (work,))
        event = Event((pair[0], *waits), token, pair, op=op, waits=tuple(waits))
        return Part(events=[event]).piece((trip,))

    # --- Loops --------------------------------------------------------------------------------------------

    def _run_loop(self, out: list[_Item], run: _Run, series: Series) -> None:
        """A loop that runs as a whole, until its last trip has left its last stage."""
        written = run.written.get(series)
        if written is None:
            written = run.written[series] = []
            place = self._run_series(written, run.pipeline.empty, series)
            for _ in range(run.pipeline.chain.chain.depth if series.parts else 0):
                place = self._trips(written, place, None, 1)
            written += run.pipeline.hand_over(place, run.results)
        else:
            self._spend(1)
        out += written

    def _run_series(self, out: list[_Item], place: _Place, series: Series) -> _Place:
        """The parts of a series, from a window on; gives the window after."""
        for part, count in series.parts:
            if isinstance(part, Kind):
                place = self._trips(out, place, part, count)
                continue
            while count > 1 or (count and part.weight >= HEAVY):
                script, after = self._series_script(place, part)
                rounds = count if after is place else 1
                out.append(Repeat(script, rounds))
                place, count = after, count - rounds
            if count:
                place = self._run_series(out, place, part)
        return place

    def _series_script(self, place: _Place, series: Series) -> tuple[Script, _Place]:
        found = place.series.get(series)
        if found is None:
            out = list[_Item]()
            after = self._run_series(out, place, series)
            found = place.series[series] = self._script(out), after
        return found

    def _trips(self, out: list[_Item], place: _Place, kind: Kind | None, count: int) -> _Place:
        while count:
            step = place.steps.get(kind)
            if step is None:
                step = place.steps[kind] = place.pipeline.step(place, kind)
            if step.target is place and count >= FEWEST:
                out.append(self._power(step, count))
                return place
            self._take(out, step)
            place, count = step.target, count - 1
        return place

    def _take(self, out: list[_Item], step: _Step) -> None:
        written = step.written
        if written is None:
            written = step.written = []
            self._spend(1)
            for item in step.items:
                if isinstance(item, Piece):
                    written.append(item)
                else:
                    self._run_loop(written, *item)
        else:
            self._spend(1 + step.runs)
        out += written

    def _power(self, step: _Step, count: int) -> Power | Repeat:
        """A step, repeated."""
        if step.script is None:
            out = list[_Item]()
            self._take(out, step)
            step.script = self._script(out)
        (only,) = step.script.items if len(step.script.items) == 1 else (None,)
        return Power(only, count) if isinstance(only, Stretch) else Repeat(step.script, count)


HEAVY = 2 * GROUP
"""Weight of a series from which on it has a script of its own, which others may share."""

FEWEST = 3
"""Alike trips from which on a power is better than trips in a row."""

_Item = Piece | Stretch | Power | Repeat
"""What is written: pieces wait until they make a stretch."""
