"""What each step of an attention takes on a tile, in ticks: the primitive costs of the closed form, on plain numbers.

    prices = AttentionPrices(problem, accelerator, mapping)
    prices.of("L", Tile(batch=1, kv_head=1, group=1, query=64, key=128))      # (resource free, result there)

`attention_steps` says what the steps are, `attention_trips` on which tiles they work.
"""

from __future__ import annotations

from typing import Any

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.attention_steps import divides
from flatc.passes.cost.primitive_costs import (
    VECTOR_WORK,
    MatmulTile,
    ScoreTile,
    array_cycles,
    ceil_divide,
    pe_cycles,
)
from flatc.passes.cost.tick_prices import TickPrices, Times
from flatc.passes.kernels.keyed_storage import PAGE_BYTES
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import Operand, operand_level


@frozen
class Tile:
    """Extents of a tile of scores."""

    batch: int
    kv_head: int
    group: int
    query: int
    key: int

    @property
    def heads(self) -> int:
        """How many kv heads, of all sequences."""
        return self.batch * self.kv_head

    @property
    def rows(self) -> int:
        """How many rows of scores."""
        return self.batch * self.kv_head * self.group * self.query


_OF_ROWS = frozenset(("T", "Hk", "Hv", "Q", "Z", "B", "H", "R", "R0", "G", "D"))
"""Steps that take as long on a tile of many keys as on a tile of few."""


class AttentionPrices(TickPrices):
    """What each step takes on a tile: the primitive costs of the closed form, on plain numbers."""

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping):
        super().__init__(accelerator, problem.on_chip)
        self.problem, self.mapping = problem, mapping
        self._operands = {f"O{operand.role}": operand for operand in problem.operands}
        self._width = problem.d_v + (mapping.softmax.total == "attend")
        self._softmax_rates: dict[str, Times] = {}

    def of(self, step: str, tile: Tile) -> Times:
        """(until its resource is free, until its result is there) of a step."""
        p, name = self.problem, step.rstrip("'")
        match name[0]:
            case "T":
                return self.moved("pages", tile.batch * p.pages * PAGE_BYTES)
            case "H" if name in ("Hk", "Hv"):
                return self._keyed(name[1], tile, p.keys)
            case "K" | "V":
                return self._keyed(name.lower(), tile, tile.key)
            case "Q":
                return self.moved("q", tile.rows * p.d_qk * p.q_bytes)
            case "P":
                return self.moved("scores", tile.rows * tile.key * p.score_bytes)
            case "O":
                return self.moved(name[1:], self._operand_bytes(self._operands[name], tile))
            case "S":
                size = p.d_v * p.output_bytes if p.has("attend") else tile.key * p.probability_bytes
                return self.moved("result", tile.rows * size)
            case "L" | "A":
                return self._product(name, tile)
            case _:
                return self._softmax(name, tile)

    def depends_on_keys(self, step: str) -> bool:
        """Whether a step may take longer on a tile of more keys."""
        return step not in _OF_ROWS and (step != "S" or not self.problem.has("attend"))

    # --- Transfers ------------------------------------------------------------------------------------------

    def _keyed(self, name: str, tile: Tile, keys: int) -> Times:
        p = self.problem
        row = p.d_qk * p.k_bytes if name == "k" else p.d_v * p.v_bytes
        transfers = 1 if p.block is None else tile.batch * ceil_divide(keys, p.block)
        return self.moved(name, tile.heads * keys * row, transfers)

    def _operand_bytes(self, operand: Operand, tile: Tile) -> int:
        p, whole = self.problem, operand_level(operand, self.mapping.keep.k_level) == "heads"
        sizes = (tile.batch, tile.kv_head, p.group if whole else tile.group, tile.query, p.keys if whole else tile.key)
        size = operand.element_bytes * (operand.buckets or 1)
        for has, extent in zip(operand.has, sizes, strict=True):
            size *= extent if has else 1
        return size

    # --- The array and the vector unit --------------------------------------------------------------------------

    def _product(self, name: str, tile: Tile) -> Times:
        p, m = self.problem, tile.group * tile.query
        use = self.mapping.logit if name == "L" else self.mapping.attend
        n, k = (tile.key, p.d_qk) if name == "L" else (self._width, tile.key)
        fold = use.fold_rows, use.fold_columns
        return self.on_array(
            array_cycles(self.accelerator.array, use.stationarity, fold, MatmulTile(tile.heads, m, n, k))
        )

    def _softmax(self, name: str, tile: Tile) -> Times:
        """Steps of the vector unit, and what PEs do of the softmax."""
        p, softmax = self.problem, self.mapping.softmax
        converts = p.converts_probabilities
        if name[0] == "W":
            return self.on_vector(p.score_ops[int(name[1:])].kind, tile.rows, tile.key)
        if name == "D":
            late = divides(p, self.mapping.softmax)
            kind = "cast" if not late else "divide_by_last" if softmax.total == "attend" else "divide"
            return self.on_vector(kind, tile.rows, p.d_v, converts=p.converts_output)
        if name in ("X", "Y", "F"):
            return self.of_softmax(name, tile.rows, tile.key)
        if name in ("N", "E", "U"):
            kind, unit = {
                "N": ("tile_max", softmax.maximum),
                "E": ("exp", softmax.exponential),
                "U": ("tile_sum", softmax.total),
            }[name]
            if unit == "array":
                fold = self.mapping.attend.fold_rows, self.mapping.attend.fold_columns
                scores = ScoreTile(tile.heads, tile.group * tile.query, tile.key)
                return self.on_array(pe_cycles(self.accelerator.array, VECTOR_WORK[kind].per_element, fold, scores))
            return self.on_vector(kind, tile.rows, tile.key, converts=converts and name == "E")
        kind, width = {
            "M": ("mask", tile.key),
            "C": ("scale_columns", tile.key),
            "Z": ("sink", 1),
            "B": ("merge_max", 1),
            "H": ("merge_sum", 1),
            "R": ("rescale", self._width),
            "R0": ("rescale", self._width),
            "G": ("add", self._width),
        }[name]
        return self.on_vector(kind, tile.rows, width)

    def of_softmax(self, step: str, rows: int, width: Any) -> Times:
        """X, Y or F, on rows of so many scores: operations of the vector unit that follow each other.

        Where `width` is an array of widths, so are the ticks.
        """
        rates = self._softmax_rates.get(step)
        if rates is None:
            rates = self._softmax_rates[step] = self._rates_of_softmax(step)
        of_elements, of_rows = rates
        lanes = self.accelerator.vector.lanes
        ticks = ceil_divide(rows * width, lanes) * of_elements + ceil_divide(rows, lanes) * of_rows
        return ticks, ticks

    def _rates_of_softmax(self, step: str) -> Times:
        """Ticks for as many scores, and for as many rows, as there are lanes."""
        of_elements, of_rows = 0, 0
        for kind, converts in self._parts_of_softmax(step):
            elements, rows = self.rate(kind, converts=converts)
            if kind == "sink":  # One score a row.
                elements, rows = 0, elements + rows
            of_elements, of_rows = of_elements + elements, of_rows + rows
        return of_elements, of_rows

    def _parts_of_softmax(self, step: str) -> list[tuple[str, bool]]:
        """The operations of a step, and whether each rounds what it writes to another type.

        Where probabilities have a buffer of their own, X is the operation that writes it, and Y those before.
        """
        softmax, converts = self.mapping.softmax, self.problem.converts_probabilities
        if softmax.algorithm == "streamed":
            of_step = {"Y": ("row_max_online", "exp_sum_online"), "F": ("exp",), "X": ("divide",)}
            return [(kind, converts and step == "X") for kind in of_step[step]]
        sums = softmax.total != "attend"
        if softmax.algorithm == "rows":
            kinds = [*(["sink"] if self.problem.sink else []), "row_max", "exp_sum" if sums else "exp"]
            kinds += ["divide"] if softmax.divide == "early" else []
        else:
            kinds = ["row_max_online", "exp_sum_online" if sums else "exp"]
        if not converts:
            return [(kind, False) for kind in kinds]
        return [(kind, False) for kind in kinds[:-1]] if step == "Y" else [(kinds[-1], True)]
