"""How long the closed form takes: for one mapping, and for a million of them.

    python benchmarks/closed_form.py [rounds]

The goals are a millisecond for one and a second or two for a million. `one mapping` is the closed form of reports,
which comes near the simulator; `its walk` is the part of it that walks through trips, whose effort grows with the
number of different query tiles under a mask; `in a search` is the closed form that a search compares by, without a
walk. All three are means over mappings that fit the machine, each priced once, so that nothing is remembered of it.
`alone` prices every mapping as a search does, but each from nothing, `in a space` prices whole families that share what
their tiles add up to, which is what a search does. Times are processor time, the best of several rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping
from flatc.dialects.masks import Causal
from flatc.passes.cost.attention_trips import trip_cycles
from flatc.passes.cost.buffer_room import peak_buffer_bytes
from flatc.passes.cost.closed_form import ClosedForm, evaluate, tight_form
from flatc.passes.cost.key_geometry import widest_rows
from flatc.passes.cost.mapping_columns import Columns, Structure, mapping_at, numbers_of, structure_of
from flatc.passes.cost.shared_counts import SharedCounts
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.mapping.map_space import Family, columns, families, tiles

MILLION = 1_000_000
TOGETHER = 25
"""So many mappings are priced one by one in a round."""


def attention(tokens: int, *, causal: bool = False) -> AttentionProblem:
    """BERT-base attention in bf16 with a softmax in f32."""
    mask = Causal(0) if causal else None
    stages = ("logit", *(["mask"] if causal else []), "softmax", "attend")
    sizes = {"batch": 64, "kv_heads": 12, "group": 1, "queries": tokens, "keys": tokens, "d_qk": 64, "d_v": 64}
    words = {"q_bytes": 2, "k_bytes": 2, "v_bytes": 2, "score_bytes": 4, "probability_bytes": 2, "output_bytes": 2}
    return AttentionProblem(
        stages, **sizes, **words, accumulator_bytes=4, converts_probabilities=True, converts_output=True, mask=mask
    )


def structures(family: Family, accelerator: Accelerator) -> list[Structure]:
    """Everything about mappings of a family that is not a number."""
    uses = product(accelerator.array.stationarities, repeat=2)
    return [
        Structure(family.algorithm, family.divide, family.k_level, family.v_level, one, other) for one, other in uses
    ]


def some_that_fit(
    problem: AttentionProblem, accelerator: Accelerator, structure: Structure, column: Columns, sets: int
) -> list[list[Mapping]]:
    """Sets of mappings that fit the machine, each spread over all of a column, none in two of them."""
    import numpy as np

    peak = peak_buffer_bytes(problem, structure, column, widest_rows(problem, column.query, column.key))
    fits = np.flatnonzero(peak <= accelerator.buffer.capacity_bytes)
    step = max(1, len(fits) // (sets * TOGETHER))
    return [
        [mapping_at(problem, structure, column, index) for index in fits[start * step :: step * sets][:TOGETHER]]
        for start in range(sets)
    ]


def one_each(price: Callable[[Mapping], object], sets: Sequence[Sequence[Mapping]]) -> Callable[[], int]:
    """Work that prices the mappings of one set, and every time of another one."""
    following = iter(sets)

    def work() -> int:
        mappings = next(following)
        for mapping in mappings:
            price(mapping)
        return len(mappings)

    return work


def quick_form(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> ClosedForm:
    """The closed form of one mapping that a search compares by."""
    return evaluate(problem, accelerator, structure_of(mapping), numbers_of(mapping))


def a_million_alone(problem: AttentionProblem, accelerator: Accelerator) -> int:
    """Prices whole columns, each from nothing."""
    (family, *_) = families(problem, "auto")
    column = columns(tiles(problem, accelerator, "auto"), family)
    priced = 0
    while priced < MILLION:
        for structure in structures(family, accelerator):
            evaluate(problem, accelerator, structure, column)
            priced += column.size
    return priced


def a_million_in_a_space(problem: AttentionProblem, accelerator: Accelerator) -> int:
    """Prices the families of one space until there are a million."""
    space = tiles(problem, accelerator, "auto")
    shared = SharedCounts(problem, accelerator, space, _unfolded(space.size))
    priced = 0
    while priced < MILLION:
        for family in families(problem, "auto"):
            column = columns(space, family)
            for structure in structures(family, accelerator):
                peak = peak_buffer_bytes(problem, structure, column, shared.geometry.width)
                evaluate(problem, accelerator, structure, column, shared.counts(structure), peak)
                priced += column.size
    return priced


def _unfolded(size: int) -> Callable[[str, Any], tuple[Any, Any]]:
    """Folds of 1."""
    import numpy as np

    ones = np.ones(size, dtype=np.int64)
    return lambda product, stationarity: (ones, ones)


def best_seconds(work: Callable[[], int], rounds: int) -> float:
    """Least processor time of one unit of what `work` counts."""
    best = float("inf")
    for _ in range(rounds):
        before = time.process_time()
        done = work()
        best = min(best, (time.process_time() - before) / done)
    return best


def main(rounds: int = 3) -> None:
    """Prints a line for each problem."""
    of_one = f"{'one mapping':>14}{'its walk':>12}{'in a search':>14}"
    print(f"{'attention':16}{'machine':9}{of_one}{'a million alone':>18}{'in a space':>13}")
    for tokens, causal in product((512, 1 << 16), (False, True)):
        problem = attention(tokens, causal=causal)
        for name in ("edge", "cloud"):
            machine = load(name)
            (family, *_) = families(problem, "auto")
            (structure, *_) = structures(family, machine)
            column = columns(tiles(problem, machine, "auto"), family)
            sets = some_that_fit(problem, machine, structure, column, 3 * rounds)

            # Neighbours for the three: alike, but not the same ones.
            prices = (partial(price, problem, machine) for price in (tight_form, trip_cycles, quick_form))
            times = [best_seconds(one_each(price, sets[i::3]), rounds) * 1e3 for i, price in enumerate(prices)]
            alone = best_seconds(partial(a_million_alone, problem, machine), rounds) * MILLION
            shared = best_seconds(partial(a_million_in_a_space, problem, machine), rounds) * MILLION
            label = f"{tokens}, causal" if causal else f"{tokens}"
            print(
                f"{label:16}{name:9}{times[0]:11.2f} ms{times[1]:9.2f} ms{times[2]:11.2f} ms"
                f"{alone:16.2f} s{shared:11.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
