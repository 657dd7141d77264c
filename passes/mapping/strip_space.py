"""The part of the map space in which an online softmax works on strips of several key tiles, priced.

    spaces = strip_spaces(problem, accelerator, "auto", "latency")       # one, or none where no strip is possible

    for strip stream:                            # scores of r tiles on chip, tiles of K and V one by one
      for key: load K, matmul Q, K -> scores
      max, exp, rescale                          # once for all of them
      for key: load V, matmul probabilities, V -> output

A strip of r tiles of T keys (`rescaled every r`) does the vector work of one tile of r * T keys, on the buffers for K
and V of a tile of T keys, and at a mask's edge it skips what tiles of T keys skip. What it can win is therefore
rescaling and running maxima of small tiles, where large ones do not fit or hide too much. Two rules say where strips
are part of the space:

1. **Not in one piece.** Where one tile of r * T keys fits the machine with the same slots, it stands for the strip: it
   does the same in one product instead of r. Under a mask the whole row does, where that fits: it skips the same tiles
   and never rescales.
2. **Rescaling binds.** The array's work and the bytes off chip do not depend on r, the vector unit's falls with it. So
   strips of r tiles are looked at if with r // 2 of them the vector unit is still the busiest resource; otherwise more
   of them take more room and make no resource less busy that is the busiest. Under a mask rows end in strips shorter
   than the others, and resources that are as busy wait for each other: there, the vector unit must be `FAR` busier with
   r tiles, the longest row must have `FEWEST_STRIPS`, and r be `MOST_UNEVEN_TILES` at most.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from typing_extensions import override

from flatc.dialects.accelerator import Accelerator
from flatc.passes.cost.arrays import Ints
from flatc.passes.cost.buffer_room import peak_buffer_bytes
from flatc.passes.cost.closed_form import busy_cycles
from flatc.passes.cost.key_geometry import widest_rows
from flatc.passes.cost.mapping_columns import Columns
from flatc.passes.cost.transfer_prices import TransferPrices
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.array_uses import structure_of_family
from flatc.passes.mapping.map_space import Family, columns, strip_families, strips
from flatc.passes.mapping.priced_space import Candidates, PricedSpace, Room
from flatc.passes.mapping.ranking import Objective

FAR = 1.25
FEWEST_STRIPS = 8
MOST_UNEVEN_TILES = 8
"""How far the vector unit must bind, how long rows and how short strips must be, that strips of different lengths lose
less than they win."""


def strip_spaces(
    problem: AttentionProblem, accelerator: Accelerator, strategy: str, objective: Objective
) -> list[PricedSpace]:
    """The space of strips of a strategy; nothing where it has none."""
    found = list(strip_families(problem, strategy))
    tiles = strips(problem, accelerator, strategy) if found else None
    if tiles is None or not (tiles.rescaled_every > 1).any():
        return []
    return [StripSpace(problem, accelerator, strategy, objective, tiles, found)]


class StripSpace(PricedSpace):
    """The strips that the two rules leave."""

    def __init__(
        self,
        problem: AttentionProblem,
        accelerator: Accelerator,
        strategy: str,
        objective: Objective,
        tiles: Columns,
        families: Iterable[Family],
    ):
        super().__init__(problem, accelerator, strategy, objective, tiles, families)
        self.size = int((tiles.rescaled_every > 1).sum())

    @override
    def _rooms(self, every: Columns, families: Iterable[Family]) -> list[Room]:
        """By the first rule: those that fit, and do not fit in one piece."""
        problem, one = self.problem, every.batch * 0 + 1
        widest = in_one = widest_rows(problem, every.query, every.key)
        piece, algorithm = replace(every, rescaled_every=one), "rows"
        if not self._skips:
            piece, algorithm = replace(piece, key=every.key * every.rescaled_every), "online"
            in_one = widest_rows(problem, piece.query, piece.key)
        found: list[Room] = []
        for family in families:
            room = Room.of(problem, self.accelerator, family, every, widest)
            structure = replace(structure_of_family(family), algorithm=algorithm, in_strips=False)
            whole = peak_buffer_bytes(problem, structure, columns(piece, family), in_one)
            fits = room.fits & (every.rescaled_every > 1) & (whole > self.accelerator.buffer.capacity_bytes)
            if self._skips:
                fits &= widest >= FEWEST_STRIPS * every.key * every.rescaled_every
                fits &= every.rescaled_every <= MOST_UNEVEN_TILES
            found.append(replace(room, fits=fits))
        return found

    @property
    def _skips(self) -> bool:
        """Whether a mask makes rows of different lengths."""
        return self.problem.mask is not None and self.problem.skips_hidden

    @override
    def _with_kin(self, every: Columns, chosen: Ints) -> Ints:
        """With strips half as long, which stand one or two places before (`map_space.strips`)."""
        import numpy as np

        return np.union1d(chosen, chosen - _steps_back(every.rescaled_every[chosen]))

    @override
    def _candidates(self, room: Room, rows: Ints) -> Candidates:
        """By the second rule: those for which the vector unit would be the busiest with half as many tiles."""
        import numpy as np

        room = room.take(rows)
        if not room.fits.any():
            return Candidates(self, room)
        structures = self.array.structures(room.family)
        uses = self.array.of(structures)
        busy = busy_cycles(
            TransferPrices(self.accelerator, self.problem.on_chip), uses.counts(np.arange(len(uses.tile)))
        )
        others = [time for name, time in busy.items() if name != "vector"]
        busiest = np.full(self.tiles.size, np.inf)
        np.minimum.at(busiest, uses.tile, np.maximum.reduce(np.broadcast_arrays(*others)))
        vector = self.array.shared.part("vector", structures[0]).vector
        if self._skips:
            return Candidates(self, replace(room, fits=room.fits & (vector > FAR * busiest)))
        half = np.searchsorted(rows, rows - _steps_back(self.tiles.rescaled_every))
        # The strips of half the length are among the rows wherever a strip fits; elsewhere it does not matter.
        return Candidates(self, replace(room, fits=room.fits & (vector[half] > busiest)))


def _steps_back(rescaled_every: Ints) -> Ints:
    """How many places before a strip one of r // 2 tiles stands, in a list 1, 2, 3, 4, 6, 8, 12, ...: itself for 1."""
    import numpy as np

    return np.minimum(rescaled_every - 1, 2)
