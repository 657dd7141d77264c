"""Skipping ahead: a simulation that does not take one event at a time, and loses nothing.

The state of a simulation is a set of times (`time_registers`). A trip maps it to the next state by maxima and
additions alone, so it is a linear map of the max-plus algebra (`max_plus`), and what a whole schedule does is a script
of such maps (`trip_scripts`). This is how times go through a script:

- A stretch is run as events, or as a product with its matrix if it is met often enough to be worth one.
- Alike trips in a row are a power of their map, by repeated squaring. Nothing needs to settle or recur for that.
- A script that repeats is run until its state recurs: maps commute with a shift of all times, so if after p rounds
  every time is later by the same D, the rest does nothing but add D every p rounds,

      state(i + p) = state(i) + D   =>   state(i + m p) = state(i) + m D

  Where a script led from a state before, it leads again: another head soon comes to a state that the first head was in.
  If nothing recurs soon, the script is made into one map itself and raised to a power.

**Times that lie too far back to matter.** Every operation starts when its resource is free, or later. So no time up to
the *horizon*, the time at which the first resource is free, has an effect on any start: two states that differ in such
times only go the same way, and stay alike. States are compared, remembered and moved towards the base up to that.

So the result is the same to the tick as that of `event_simulation`, which knows nothing of all this; tests compare the
two on thousands of schedules.
"""

from __future__ import annotations

from collections import Counter, deque

from flatc.dialects.frozen import frozen
from flatc.dialects.spatial import KernelOp, TimedOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.budget import Budget
from flatc.passes.simulation.max_plus import LARGEST, Overflow, Times, largest
from flatc.passes.simulation.time_registers import Registers
from flatc.passes.simulation.trip_plan import CannotSkip
from flatc.passes.simulation.trip_scripts import Power, Repeat, Script, ScriptWriter, Stretch

WORTH_A_MATRIX = 6
"""Times that a stretch is met before it gets a matrix: making one takes as long as walking it a few times."""

LONGEST_PERIOD = 12
"""Rounds of a script in which its state may recur. The period of a max-plus system divides the lengths of its
critical cycles, which are slot counts here; a longer one costs time, never exactness."""

WORTH_A_MAP = 40
"""Rounds left from which on a script that does not recur is made into one map: that takes as long as some rounds."""

EFFORT_OF_PRODUCT = 4
"""What a product with a matrix takes, in events."""


class FastSimulation:
    """One simulation of one kernel. Raises `OutOfBudget` (`budget`), or `CannotSkip` where it can only be walked."""

    def __init__(self, kernel: KernelOp, model: CostModel, budget: Budget | None = None):
        self.model = model
        budget = budget or Budget(None)
        writer = ScriptWriter(kernel, model, budget.spend)
        times, script = _Times(writer.registers, budget), writer.write()
        try:
            times.run(script)
        except Overflow as error:
            raise CannotSkip("times lie too far apart") from error
        self.end = times.end()
        self.executed: Counter[tuple[TimedOp, tuple[int, ...]]] = writer.plan.executed(writer.tops)
        for work in writer.own_work:
            self.executed[work.op, work.extents] += 1


class _Times:
    """The state: times relative to a base. The base is a Python integer, so the clock never runs over."""

    def __init__(self, registers: Registers, budget: Budget):
        import numpy as np

        self._free = list(registers.free.values())
        self._done = list(registers.done.values())
        self._times: Times = np.zeros(registers.size, dtype=np.int64)
        self._short_lived = [0] * (registers.total - registers.size)
        self._base = 0
        self._bound = 0
        self._budget = budget
        self._known: dict[tuple[Script, bytes], tuple[bytes, int]] = {}

    def end(self) -> int:
        """When the last resource is done, on the kernel's own clock."""
        return self._base + max((int(self._times[register]) for register in self._done), default=0)

    def run(self, script: Script) -> None:
        """Takes the times through a script."""
        for item in script.items:
            if isinstance(item, Repeat):
                self._repeat(item.script, item.count)
            elif isinstance(item, Power):
                self._power(item.stretch, item.count)
            else:
                self._stretch(item)

    # --- Stretches ----------------------------------------------------------------------------------------

    def _stretch(self, stretch: Stretch) -> None:
        if stretch.met(1) > WORTH_A_MATRIX:
            self._product(stretch, 1, stretch.longest)
        else:
            self._walk(stretch, 1)

    def _power(self, stretch: Stretch, count: int) -> None:
        if stretch.met(count) > WORTH_A_MATRIX:
            self._product(stretch, count, stretch.longest)
        else:
            self._walk(stretch, count)

    def _product(self, map: Stretch | Script, count: int, longest: int) -> None:
        """Raises a map to a power, in parts if times would move too far at once."""
        self._budget.spend(EFFORT_OF_PRODUCT)
        touched, most = map.touched, max(1, LARGEST // 4 // max(1, longest))
        while count:
            some = min(count, most)
            self._make_room(longest * some)
            self._times[touched] = map.powers.apply(some, self._times[touched])
            count -= some

    def _walk(self, stretch: Stretch, count: int) -> None:
        self._budget.spend(stretch.events * count)
        self._make_room(stretch.longest * count)
        times = [*self._times.tolist(), *self._short_lived]
        for _ in range(count):
            for piece in stretch.pieces:
                piece.run(times)
        self._times[:] = times[: len(self._times)]

    # --- Scripts that repeat --------------------------------------------------------------------------------

    def _repeat(self, script: Script, count: int) -> None:
        history = deque([self._state()], maxlen=LONGEST_PERIOD)
        while count:
            if count >= WORTH_A_MAP and len(history) == LONGEST_PERIOD:
                self._budget.spend(EFFORT_OF_PRODUCT * script.size)
                self._product(script, count, largest(script.powers.matrix(1)))
                return
            history.append(self._once(script, history[-1]))
            count -= 1 + self._skip(history, count - 1)

    def _once(self, script: Script, before: _State) -> _State:
        """Takes the times through a script, or to where it led from the same state before."""
        known = self._known.get((script, before.ahead))
        if known is None:
            self.run(script)
            after = self._state()
            self._known[script, before.ahead] = after.ahead, after.horizon - before.horizon
            return after
        self._budget.spend(EFFORT_OF_PRODUCT)
        after = _State(before.horizon + known[1], known[0])
        self._go_to(after)
        return after

    def _skip(self, history: deque[_State], count: int) -> int:
        """Passes over rounds if the last state is one of those before; gives how many."""
        now = history[-1]
        for rounds in range(1, min(count, len(history) - 1) + 1):
            before = history[-1 - rounds]
            if before.ahead == now.ahead:
                self._base += (now.horizon - before.horizon) * (count // rounds)
                history.clear()
                history.append(self._state())
                return count - count % rounds
        return 0

    # --- States ---------------------------------------------------------------------------------------------

    def _state(self) -> _State:
        import numpy as np

        horizon = int(self._times[self._free].min(initial=LARGEST))
        return _State(self._base + horizon, np.maximum(self._times - horizon, 0).tobytes())

    def _go_to(self, state: _State) -> None:
        import numpy as np

        self._base = state.horizon
        self._times = np.frombuffer(state.ahead, dtype=np.int64).copy()
        self._bound = int(self._times.max())

    def _make_room(self, distance: int) -> None:
        """Before times move on by up to `distance`: moves the base along, if they would come too far from it."""
        self._bound += distance
        if self._bound > LARGEST:
            self._go_to(self._state())
            self._bound += distance
        if self._bound > LARGEST:
            raise CannotSkip("one of its resources has too little to do for the others")


@frozen
class _State:
    """The horizon, and how far ahead of it each time lies; what lies behind it may as well lie at it."""

    horizon: int
    ahead: bytes
