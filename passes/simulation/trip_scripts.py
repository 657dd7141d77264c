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

from typing_extensions import override
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
class _Step:
    """A trip joins a window: pieces and loops that run in between, and the window then."""

    items: list[Piece | tuple[NestedRun, Series]]
    target: _Place
    script: Script | None = None


@dataclass(eq=False, slots=True)
class _Place:
    """A window of a chain in given surroundings, with the steps from it that have been made."""

    pipeline: _Pipeline
    window: Window
    steps: dict[Kind | None, _Step] = field(default_factory=dict["Kind | None", "_Step"])
    series: dict[Series, tuple[Script, _Place]] = field(default_factory=dict["Series", "tuple[Script, _Place]"])


class _Pipeline:
    """A chain in given surroundings: its windows and programs."""

    def __init__(self, registers: Registers, chain: ChainFacts, outside: Surroundings):
        self._registers = registers
        self.chain = chain
        self.outside = outside
        self._programs: dict[tuple[object, ...], Program] = {}
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
        shapes = tuple(None if trip is None else trip.shape for trip in window)
        program = self._programs.get(shapes)
        if program is None:
            program = self._programs[shapes] = Program(self._registers, self.chain, self.outside, window)
        items: list[Piece | tuple[NestedRun, Series]] = []
        for item in program.items:
            if isinstance(item, Part):
                if item.moves or item.events:
                    items.append(Piece(item, window))
                continue
            trip = window[item.age]
            series = None if trip is None else trip.work[item.entry]
            assert isinstance(series, Series)
            items.append((item, series))
        return _Step(items, self._place(window))

    def results(self, series: Series, window: Window) -> tuple[int | None, ...]:
        """The registers of what the loop's results stand for, after its last trip has left its last stage."""
        root, age = self.chain.loops[0], self.chain.chain.depth
        if not series.parts:
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
        self._runs: dict[_Run, list[_Written]] = {}

    def write(self) -> Script:
        """The script of the whole kernel."""
        kernel, out = self._facts.kernel, _Out(self)
        for op in kernel.body.block.ops:
            if isinstance(op, TimedOp):
                out.piece(self._kernel_operation(op))
            elif isinstance(op, ForOp):
                series = self.plan.series(op)
                self.tops.append(series)
                inner = self._facts.chain(op)
                tokens = {token: self._kernel_token(token) for token in inner.outside_tokens()}
                ages: dict[BufferOp, int | None] = dict.fromkeys(inner.outside_buffers())
                results = tuple(self._kernel_token(result) for result in op.done)
                self.run_loop(out, op, Surroundings(tokens, ages), series, results)
        out.flush()
        return out.script

    def stretch(self, pieces: tuple[Piece, ...]) -> Stretch:
        """The one object for these pieces in a row."""
        found = self._stretches.get(pieces)
        if found is None:
            found = self._stretches[pieces] = Stretch(pieces, self.registers)
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
            return Piece(Part(events=[Event((registers.origin, *waits), token, waits=tuple(waits))]), ())
        assert isinstance(work, Busy)
        self.own_work.append(work)
        resource = registers.resource[op]
        pair = registers.free[resource], registers.done[resource]
        trip = Kind(-1, ((), (), ()), (work,))
        event = Event((pair[0], *waits), token, pair, op=op, waits=tuple(waits))
        return Piece(Part(events=[event]), (trip,))

    # --- Loops --------------------------------------------------------------------------------------------

    def run_loop(
        self, out: _Out, loop: ForOp, outside: Surroundings, series: Series, results: tuple[int | None, ...]
    ) -> None:
        """A loop that runs as a whole, until its last trip has left its last stage.

        What it writes is the same wherever it stands in the same surroundings, so it is written once.
        """
        run = loop, outside.key(), series, results
        written = self._runs.get(run)
        if written is None:
            copy = _Copying(out)
            self._run_loop(copy, loop, outside, series, results)
            self._runs[run] = copy.written
            return
        self._spend(1)
        for one in written:
            if isinstance(one, Piece):
                out.piece(one)
            else:
                out.item(one)

    def _run_loop(
        self, out: _Out, loop: ForOp, outside: Surroundings, series: Series, results: tuple[int | None, ...]
    ) -> None:
        key = (loop, outside.key())
        pipeline = self._pipelines.get(key)
        if pipeline is None:
            pipeline = _Pipeline(self.registers, self._facts.chain(loop), outside)
            self._pipelines[key] = pipeline
        place = self.run_series(out, pipeline.empty, series)
        for _ in range(pipeline.chain.chain.depth if series.parts else 0):
            place = self._trips(out, place, None, 1)
        pairs = zip(results, pipeline.results(series, place.window), strict=True)
        origin = self.registers.origin
        sources = [(origin if source is None else source, kept) for kept, source in pairs if kept is not None]
        events = [Event((source,), kept, waits=(source,)) for source, kept in sources]
        if events:
            out.piece(Piece(Part(events=events), ()))

    def run_series(self, out: _Out, place: _Place, series: Series) -> _Place:
        """The parts of a series, from a window on; gives the window after."""
        for part, count in series.parts:
            if isinstance(part, Kind):
                place = self._trips(out, place, part, count)
                continue
            while count > 1 or (count and part.weight >= HEAVY):
                script, after = self._script(place, part)
                rounds = count if after is place else 1
                out.item(Repeat(script, rounds))
                place, count = after, count - rounds
            if count:
                place = self.run_series(out, place, part)
        return place

    def _script(self, place: _Place, series: Series) -> tuple[Script, _Place]:
        found = place.series.get(series)
        if found is None:
            out = _Out(self)
            after = self.run_series(out, place, series)
            out.flush()
            found = place.series[series] = out.script, after
        return found

    def _trips(self, out: _Out, place: _Place, kind: Kind | None, count: int) -> _Place:
        while count:
            step = place.steps.get(kind)
            if step is None:
                step = place.steps[kind] = place.pipeline.step(place, kind)
            if step.target is place and count >= FEWEST:
                out.power(self._step_script(step), count)
                return place
            self._take(out, step)
            place, count = step.target, count - 1
        return place

    def _take(self, out: _Out, step: _Step) -> None:
        self._spend(1)
        for item in step.items:
            if isinstance(item, Piece):
                out.piece(item)
            else:
                run, series = item
                self.run_loop(out, run.loop, run.surroundings, series, run.results)

    def _step_script(self, step: _Step) -> Script:
        if step.script is None:
            out = _Out(self)
            self._take(out, step)
            out.flush()
            step.script = out.script
        return step.script


HEAVY = 2 * GROUP
"""Weight of a series from which on it has a script of its own, which others may share."""

FEWEST = 3
"""Alike trips from which on a power is better than trips in a row."""


class _Out:
    """A script being written: pieces wait until they make a stretch."""

    def __init__(self, writer: ScriptWriter):
        self.script = Script()
        self._writer = writer
        self._pieces: list[Piece] = []

    def piece(self, piece: Piece) -> None:
        """Adds a piece."""
        self._pieces.append(piece)

    def item(self, item: Stretch | Power | Repeat) -> None:
        """Adds something that repeats."""
        self.flush()
        self.script.items.append(item)

    def power(self, script: Script, count: int) -> None:
        """Adds a script of one step, repeated."""
        (only,) = script.items if len(script.items) == 1 else (None,)
        self.item(Power(only, count) if isinstance(only, Stretch) else Repeat(script, count))

    def flush(self) -> None:
        """Makes a stretch of the pieces that wait."""
        if self._pieces:
            self.script.items.append(self._writer.stretch(tuple(self._pieces)))
            self._pieces = []


_Written = Piece | Stretch | Power | Repeat

_Run = tuple[ForOp, tuple[object, ...], Series, tuple[int | None, ...]]
"""A loop, its surroundings, its trips, and the registers of its results."""


class _Copying(_Out):
    """Hands on what is written, and keeps it."""

    def __init__(self, out: _Out):
        self._out = out
        self.written: list[_Written] = []

    @override
    def piece(self, piece: Piece) -> None:
        self.written.append(piece)
        self._out.piece(piece)

    @override
    def item(self, item: Stretch | Power | Repeat) -> None:
        self.written.append(item)
        self._out.item(item)
