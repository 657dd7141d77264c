"""How long the vector unit waits where rows end in short strips: a bound for a column of mappings under a mask.

    cycles_of_waiting(case)       # of all query tiles together; 0 where nothing is known

An online softmax that works on strips of r key tiles alternates with the array: while the vector unit works on strip
i - 1, the array takes the attends of strip i - 2 and the logits of strip i. Under a mask rows end in strips of fewer
tiles. Where strip i - 1 is such an end, the vector unit is done before the array, and waits:

    trip i - 1     rescale i-2 |
    trip i                     | mask, max, exp, rescale of i-1 | . . waits . . |
                               | attends i-2         | logits i, waves          | mask, max, exp of i

So the wait after each query tile of three strips or more, whose next one begins with a whole strip, is no less than

    r attends + r logits + waves - (vector work on its last strip of s tiles)

and no two of these waits overlap. They are added up for query tiles with s up to r / 4, up to r / 2 and up to 3 r / 4;
the largest of the three sums counts. Only a handful of mappings is ever asked for, so this counts on its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from flatc.passes.cost.arrays import Ints, larger
from flatc.passes.cost.key_geometry import query_tiles_at, visits_of
from flatc.passes.cost.pipeline_times import Case
from flatc.passes.cost.primitive_costs import VECTOR_WORK, VectorWork, ceil_divide, vector_cycles
from flatc.passes.cost.visited_keys import Sight, every_row_sees_keys, sight_of

SHARES = (1, 2, 3)
"""Of a strip, in quarters: query tiles whose last strip is no longer are counted together."""


def cycles_of_waiting(case: Case) -> Any:
    """Cycles that the vector unit waits for the array at the ends of rows, at the least."""
    import numpy as np

    p, s, c = case.problem, case.structure, case.columns
    others = p.score_ops or p.sink is not None or p.value_scale is not None
    if not s.in_strips or not s.chains_attends or others or p.mask is None or not every_row_sees_keys(p):
        return 0
    question = sight_of(p)
    found = np.zeros(np.shape(c.batch))
    counted = _counts_of(question, *(np.atleast_1d(column) for column in (c.query, c.key, c.rescaled_every)))
    array, tile, strip, masked = _prices(case, counted[-1])
    for ends, tiles, edges in zip(*[iter(counted[:-1])] * 3, strict=True):
        found = np.maximum(found, ends * (array - strip) - tiles * tile - edges * masked)
    groups = (p.batch // c.batch) * (p.kv_heads // c.kv_head) * (p.group // c.group)
    in_turn = (c.logit == 0) & (c.softmax == 1) & (c.attend == 1) & (c.store == 2)
    return found * groups * in_turn


def _prices(case: Case, visits: Any) -> tuple[Any, Any, Any, Any]:
    """What a whole strip takes the array; on the vector unit: a key tile, a strip beside its tiles, a masked tile.

    A full tile takes the array no less than the mean of all.
    """
    p, s, c, counts = case.problem, case.structure, case.columns, case.counts
    heads = ceil_divide(p.batch, c.batch) * ceil_divide(p.kv_heads, c.kv_head) * ceil_divide(p.group, c.group)
    number = larger(visits * heads, 1)
    waves = counts.skew["logit"] * (p.keys % c.key == 0)
    array = ((counts.product["logit"] + counts.product["attend"]) * c.rescaled_every + waves) / number
    unit, rows = case.accelerator.vector, c.batch * c.kv_head * c.group * c.query
    exponential = VECTOR_WORK["exp" if s.sums_in_attend else "exp_sum_online"]
    cast = ("cast",) * (p.converts_probabilities and "cast" not in exponential.per_element)
    works = [VECTOR_WORK["row_max_online"], exponential, VectorWork(cast)]
    tile = sum(vector_cycles(unit, VectorWork(work.per_element), rows * c.key, 0) for work in works)
    of_rows = sum(vector_cycles(unit, VectorWork((), work.per_row), 0, rows) for work in works)
    rescale = vector_cycles(unit, VECTOR_WORK["rescale"], rows * (p.d_v + s.sums_in_attend), rows)
    return array, tile, of_rows + rescale, vector_cycles(unit, VECTOR_WORK["mask"], rows * c.key, 0)


def _counts_of(question: Sight, query: Ints, key: Ints, every: Ints) -> Ints:
    """A row for each of `_ends` of a column of mappings."""
    import numpy as np

    kinds, inverse = np.unique(np.stack([query, key, every]), axis=1, return_inverse=True)
    counts = [_ends(question, *kind) for kind in kinds.T.tolist()]
    return np.array(counts, dtype=np.int64)[inverse.reshape(-1)].T


@lru_cache(maxsize=1 << 12)
def _ends(question: Sight, rows: int, tile: int, every: int) -> tuple[int, ...]:
    """For each of `SHARES`: how many query tiles end so, the key tiles and the masked ones in their last strips; then
    the visits of all query tiles."""
    import numpy as np

    at = {name: place[:, 0] for name, place in query_tiles_at(question, rows).items()}
    whole, ragged, masked, masked_ragged = visits_of(question, at, tile)
    trips, full = whole + ragged, slice(0, question.queries // rows)
    visited, masks = trips[full], np.minimum((masked + masked_ragged)[full], every)
    last = (visited - 1) % every + 1
    waits = (visited[:-1] > 2 * every) & (visited[1:] >= every)
    found: list[int] = []
    for share in SHARES:
        ends = waits & (4 * last[:-1] <= share * every)
        found += [int(ends.sum()), int((last[:-1] * ends).sum()), int((masks[:-1] * ends).sum())]
    return (*found, int(trips.sum()))
