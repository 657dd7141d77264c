"""States of a pipeline between trips: where a trip from a state that was met before ends is known.

Streams of trips under a mask come again and again: query tiles visit more and more key tiles, but each begins as the
one before did, and ends so. `recurrence` takes a trip from a state once; whoever comes to that state with the same trip
goes on to where it ended, and times are written down only when a trip is met that is new.

    state = states.find(ahead, (works, kinds, before, since))
    state.follows[entered, work, kind] = (another, 120)          # 120 ticks later all is as in another state
"""

from __future__ import annotations

from typing import Generic, TypeVar

Work = TypeVar("Work")

Flight = tuple[tuple[Work, ...], tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]
"""What is under way in each stage: its work, its kind, and the levels of which a tile was entered before it; and of
which levels a tile was entered since."""

Trip = tuple[tuple[int, ...], Work, int]
"""Levels of the tiles entered, the work, and of which kind it is besides."""


class TripState(Generic[Work]):
    """How far all times are ahead of the first free resource (-1 behind it), and what is under way."""

    __slots__ = ("ahead", "ends", "flight", "follows")

    def __init__(self, ahead: tuple[int, ...], flight: Flight[Work]):
        self.ahead, self.flight = ahead, flight
        self.follows: dict[Trip[Work], tuple[TripState[Work], int]] = {}
        """In which state a trip ends, and how much later."""
        self.ends: dict[tuple[Work, int], Ends[Work]] = {}
        """Where alike trips end, each with a tile of a level."""


class Ends(Generic[Work]):
    """Where rounds from a state on end: each state, and how much later; and from which on they come again, if any."""

    __slots__ = ("_begins", "_index", "_move", "_period", "found")

    def __init__(self, state: TripState[Work]):
        self.found: list[tuple[TripState[Work], int]] = [(state, 0)]
        self._index = {state: 0}
        self._begins, self._period, self._move = 0, 0, 0

    def add(self, state: TripState[Work], later: int) -> None:
        """Where one more round ends."""
        begins = self._index.get(state)
        if begins is None:
            self._index[state] = len(self.found)
            self.found.append((state, later))
        else:
            self._begins, self._period = begins, len(self.found) - begins
            self._move = later - self.found[begins][1]

    def after(self, count: int) -> tuple[TripState[Work], int] | None:
        """Where so many rounds end; None where that is not known yet."""
        if count < len(self.found):
            return self.found[count]
        if not self._period:
            return None
        again, rest = divmod(count - self._begins, self._period)
        state, later = self.found[self._begins + rest]
        return state, later + again * self._move


class TripStates(Generic[Work]):
    """All states that were met."""

    def __init__(self):
        self._met: dict[tuple[tuple[int, ...], Flight[Work]], TripState[Work]] = {}

    def find(self, ahead: tuple[int, ...], flight: Flight[Work]) -> TripState[Work]:
        """The one state that is such."""
        found = self._met.get((ahead, flight))
        if found is None:
            found = self._met[ahead, flight] = TripState(ahead, flight)
        return found
