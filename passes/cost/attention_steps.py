"""The steps of an attention's pipeline, and which waits for which, as `recurrence` wants them.

It is the loop nest of `kernel_schedule` told once more, from the problem and the mapping alone. A trip is a tile of
scores where key tiles stream through one loop, a strip of these where it rescales in strips, and a query tile where
whole rows stay on chip or scores are made twice: then there are loops inside of a trip. The steps, in order:

    T, Hk, Hv, Oh    the table of pages, K, V and operands of scores that stay for a tile of heads
    Q, Oq, Z         queries and operands of a query tile; the sink
    K, P, L          tiles of K or of scores, logit
    O, W, M          operands, steps and mask of a tile of scores
    N, B, E, U, H    where scores stay in PEs: maximum, merged maximum, exponentials, sum, merged sum
    Y, X             softmax of a tile, or of whole rows; Y, what comes before probabilities get a buffer of their own
    F                exponentials, where scores are made twice: Y is in the first loop, the marked steps in the second
    C                scales of values on a tile of probabilities, behind the loads of their operand
    V, R, A, G       tiles of V; rescaling, attend, and adding its products on the vector unit
    D, S             division or conversion of the outputs, their store

The vector unit takes its work in order and is done with each operation before the next: its steps do not wait for
each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import Keep, Mapping, Softmax, Stages
from flatc.passes.cost.trip_steps import EDGE, FIRST, HEAD, HEADS, KEY, LAST, QUERY, STRIP, Pipeline, Step, Wait
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import Level, Operand, operand_level, operand_slots


@frozen
class _Pass:
    """Once over the scores: the loop it is, if any, its stages of loads, of logit and of what is done with scores, and
    what marks its steps where it is the second."""

    loop: str
    load: int
    logit: int
    change: int
    mark: str = ""


def attention_pipeline(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping) -> Pipeline:
    """The pipeline of a mapping: the same one for all mappings that differ in tiles and folds only."""
    tiles = mapping.tiles
    return _pipeline(
        _Facts(
            problem,
            mapping.keep,
            mapping.stages,
            mapping.softmax,
            shares_channel=accelerator.offchip.channels == "shared",
            adds=mapping.attend.add == "vector",
            loops=problem.batch > tiles.batch or problem.kv_heads > tiles.kv_head,
        )
    )


@frozen
class _Facts:
    """All that the steps depend on; `adds` products on the vector unit, `loops` over tiles of heads."""

    problem: AttentionProblem
    keep: Keep
    stages: Stages
    softmax: Softmax
    shares_channel: bool
    adds: bool
    loops: bool


@lru_cache(maxsize=1 << 8)
def _pipeline(facts: _Facts) -> Pipeline:
    return Pipeline(_AttentionSteps(facts).steps())


class _AttentionSteps:
    """Says what the steps are and which waits for which."""

    def __init__(self, facts: _Facts):
        self.problem, self.adds, self.loops = facts.problem, facts.adds, facts.loops
        self.stages, self.slots, self.softmax = facts.stages, facts.keep, facts.softmax
        self.by_rows = self.softmax.algorithm == "rows"
        self.streamed = self.softmax.algorithm == "streamed"
        self.in_loops = self.by_rows or self.streamed or self.softmax.rescaled_every > 1
        self.held = self.softmax.on_array
        self.write = "read" if facts.shares_channel else "write"
        self.source = "L" if self.problem.has("logit") else "P"
        self.of_scores = KEY if self.streamed or not self.in_loops else QUERY if self.by_rows else STRIP
        """The level of a buffer of scores."""

    def steps(self) -> Iterator[Step]:
        """All steps in the order of the text."""
        yield from self._of_heads()
        yield from self._of_queries()
        if self.streamed:
            yield from self._two_passes()
        else:
            yield from self._one_pass()
        yield from self._scaled()
        yield from self._sink()
        if self.problem.has("attend"):
            yield from self._finish()

    def _one_pass(self) -> Iterator[Step]:
        s = self.stages
        once = _Pass("", s.load, s.logit, s.softmax)
        if self.in_loops:
            once = _Pass("fill", s.logit, s.logit, s.softmax)
        yield from self._source(once, () if self.held else self._users_of_scores())
        yield from self._change(once, "change" if self.in_loops else "")
        if self.problem.has("softmax"):
            yield from self._held() if self.held else self._softmax()

    def _two_passes(self) -> Iterator[Step]:
        """One pass for maxima and sums, one for the probabilities: each is a loop."""
        first, second = self.stages.logit, self.stages.attend
        yield from self._source(_Pass("measure", first, first, first), ("Y",))
        yield from self._change(_Pass("measure", first, first, first), "measure")
        yield Step("Y", "vector", first, KEY, (Wait(self.source),), loop="measure")
        use = _Pass("use", second, second, second, "'")
        yield from self._source(use, self._users_of_scores())
        yield from self._change(use, "use")
        yield Step("F", "vector", second, KEY, (Wait(f"{self.source}'"),), loop="use")
        own = self.problem.converts_probabilities
        slot = (Wait("A" if self.problem.has("attend") else "S", self.slots.score_slots),) if own else ()
        yield Step("X", "vector", second, KEY, slot, loop="use")

    def _load_stage(self, name: str) -> int:
        later = self.stages.attend - self.stages.logit if name == "v" and self.problem.has("logit") else 0
        return self.stages.load + later

    def _of_heads(self) -> Iterator[Step]:
        p, keep = self.problem, self.slots
        if p.block is not None:
            yield Step("T", "read", self.stages.load if self.loops else 0, HEADS, only=HEAD)
        table = (Wait("T", level=HEADS),) if p.block is not None else ()
        if p.has("logit") and keep.k_level == "kv_head":
            slots = tuple(Wait(user, keep.k_slots, HEADS) for user in self._users_of_keys())
            yield Step("Hk", "read", self._load_stage("k") if self.loops else 0, HEADS, (*table, *slots), only=HEAD)
        if p.has("attend") and keep.v_level == "kv_head":
            waits = (*table, Wait("A", keep.v_slots, HEADS))
            yield Step("Hv", "read", self._load_stage("v") if self.loops else 0, HEADS, waits, only=HEAD)
        yield from self._operands_at("heads", HEADS, HEAD)

    def _operands_at(self, level: str, at: int, only: int) -> Iterator[Step]:
        """Loads of the operands that stay on chip for a tile of heads, or a query tile."""
        used = self.stages.logit if self.streamed else self.stages.softmax
        stage = self.stages.load + used - self.stages.logit if at == QUERY or self.loops else 0
        for operand, user in self._operands():
            if operand_level(operand, self.slots.k_level) == level:
                slots = self._slots_of(operand_level(operand, self.slots.k_level))
                yield Step(f"O{operand.role}", "read", stage, at, (Wait(user, slots, at),), only=only)

    def _slots_of(self, level: Level) -> int:
        return operand_slots(self.slots, self.stages, self.softmax, level)

    def _operands(self) -> list[tuple[Operand, str]]:
        """Each operand, and the step that uses it."""
        p = self.problem
        last = "'" if self.streamed else ""
        found = [(operand, f"W{i}{last}") for i, step in enumerate(p.score_ops) for operand in step.operands]
        others = ((p.sink, "Z"), (p.value_scale, "C"))
        return [*found, *((operand, user) for operand, user in others if operand is not None)]

    def _of_queries(self) -> Iterator[Step]:
        first = 0 if self.by_rows or self.streamed else FIRST
        if self.problem.has("logit"):
            last = "L'" if self.streamed else "L"
            yield Step("Q", "read", self.stages.load, QUERY, (Wait(last, self.slots.q_slots, QUERY),), only=first)
        yield from self._operands_at("query", QUERY, first)
        sink = self.problem.sink
        if sink is not None and not self.by_rows:
            stage = self.stages.logit if self.streamed else self.stages.softmax
            yield Step("Z", "vector", stage, QUERY, self._wait_for(sink), only=first)

    def _wait_for(self, operand: Operand) -> tuple[Wait, ...]:
        level = {"heads": HEADS, "query": QUERY}.get(operand_level(operand, self.slots.k_level), KEY)
        return (Wait(f"O{operand.role}", level=level),)

    def _source(self, at: _Pass, users: tuple[str, ...]) -> Iterator[Step]:
        """What makes scores; the end of `users` frees a slot of them."""
        keep, mark, loop = self.slots, at.mark, at.loop
        slot = tuple(Wait(user, keep.score_slots, self.of_scores) for user in users)
        if not self.problem.has("logit"):
            yield Step(f"P{mark}", "read", at.load, KEY, slot, loop=loop)
            return
        keys = Wait("Hk", level=HEADS)
        if keep.k_level == "key":
            keys = Wait(f"K{mark}")
            table = (Wait("T", level=HEADS),) if self.problem.block is not None else ()
            slots = tuple(Wait(user, keep.k_slots) for user in self._users_of_keys(mark))
            yield Step(f"K{mark}", "read", at.load, KEY, (*table, *slots), loop=loop)
        yield Step(f"L{mark}", "array", at.logit, KEY, (Wait("Q", level=QUERY), keys, *slot), loop=loop)

    def _users_of_keys(self, mark: str | None = None) -> tuple[str, ...]:
        """Whose end frees a slot of K: the last of those whose end is later than all others'."""
        if mark is None:
            mark = "'" if self.streamed else ""
        return (f"L{mark}", *("A" for _ in [0] if self.slots.v_level == "k"))

    def _users_of_scores(self) -> tuple[str, ...]:
        """Whose end frees a slot of scores."""
        p = self.problem
        if p.has("softmax") and p.converts_probabilities:
            return ("X",)
        return ("A" if p.has("attend") else "S",)

    def _change(self, at: _Pass, loop: str) -> Iterator[Step]:
        """What scores go through before the softmax."""
        stage, mark = at.change, at.mark
        load = stage if loop else self.stages.load + stage - self.stages.logit
        made = Wait(f"{self.source}{mark}", level=KEY if self.streamed else self.of_scores)
        for i, step in enumerate(self.problem.score_ops):
            waits = [made]
            for operand in step.operands:
                level = operand_level(operand, self.slots.k_level)
                if level in ("key", "tile"):
                    waits.append(Wait(f"O{operand.role}{mark}"))
                    slots = Wait(f"W{i}{mark}", self._slots_of(level))
                    yield Step(f"O{operand.role}{mark}", "read", load, KEY, (slots,), loop=loop)
                else:
                    waits += self._wait_for(operand)
            yield Step(f"W{i}{mark}", "vector", stage, KEY, tuple(waits), loop=loop)
        if self.problem.mask is not None:
            yield Step(f"M{mark}", "vector", stage, KEY, (made,), only=EDGE, loop=loop)

    def _softmax(self) -> Iterator[Step]:
        p, level = self.problem, self.of_scores
        sink = p.sink
        waits = (Wait(self.source, level=level),)
        if sink is not None and self.by_rows:
            waits = (*waits, *self._wait_for(sink))
        if p.converts_probabilities:
            yield Step("Y", "vector", self.stages.softmax, level, waits)
            waits = (Wait("A" if p.has("attend") else "S", self.slots.score_slots, level),)
        yield Step("X", "vector", self.stages.softmax, level, waits)

    def _held(self) -> Iterator[Step]:
        softmax, p, stages = self.softmax, self.problem, self.stages
        twice = 2 * self.slots.score_slots
        made = (Wait("L"),) if softmax.maximum == "vector" or p.mask is not None or p.score_ops else ()
        made = (
            *made,
            *(Wait(f"W{i}") for i, _ in enumerate(p.score_ops)),
            *((Wait("M"),) if p.mask is not None else ()),
        )
        yield Step("N", softmax.maximum, stages.softmax, KEY, (*made, Wait("B", twice), Wait("E", twice)))
        yield Step("B", "vector", stages.softmax, KEY, (Wait("N"),))
        yield Step("E", softmax.exponential, stages.attend, KEY, (Wait("B"),))
        if softmax.total != "attend":
            weighed = (Wait("E"),) if "vector" in (softmax.total, softmax.exponential) else ()
            yield Step("U", softmax.total, stages.attend, KEY, (*weighed, Wait("H", twice)))
            yield Step("H", "vector", stages.attend, KEY, (Wait("U"),))

    def _scaled(self) -> Iterator[Step]:
        operand = self.problem.value_scale
        if operand is None:
            return
        loop, stage = "scale" if self.in_loops else "", self.stages.softmax
        if self.streamed:
            loop, stage = "use", self.stages.attend
        level = operand_level(operand, self.slots.k_level)
        if level == "key":
            load = stage if loop else self.stages.load + stage - self.stages.logit
            slots = self._slots_of(level)
            yield Step(f"O{operand.role}", "read", load, KEY, (Wait("C", slots),), loop=loop)
        made = "X" if self.problem.has("softmax") else self.source
        waits = (Wait(made, level=self.of_scores), *self._wait_for(operand))
        yield Step("C", "vector", stage, KEY, waits, loop=loop)

    def _ready(self) -> tuple[Wait, ...]:
        """What a tile of scores, or of probabilities, is finished by."""
        p, softmax = self.problem, self.softmax
        if self.held:
            if softmax.total == "vector":
                return (Wait("U"),)
            return (Wait("E"),) if softmax.exponential == "vector" else ()
        if p.value_scale is not None:
            return (Wait("C", level=self.of_scores),)
        if p.has("softmax"):
            return (Wait("X", level=self.of_scores),)
        last = [f"W{i}" for i, _ in enumerate(p.score_ops)][-1:]
        last += ["M"] if p.mask is not None else []
        return tuple(Wait(name) for name in (self.source, *last))

    def _sink(self) -> Iterator[Step]:
        p, keep, stages = self.problem, self.slots, self.stages
        loop = "use" if self.in_loops else ""
        if not p.has("attend"):
            stage = stages.attend if self.streamed else stages.store
            yield Step("S", self.write, stage, KEY, self._ready(), loop=loop)
            return
        free = Wait("D" if p.converts_output else "S", keep.output_slots, QUERY)
        values = {"key": (Wait("V"),), "kv_head": (Wait("Hv", level=HEADS),)}.get(keep.v_level, ())
        waits = (*self._ready(), *values)
        if self.softmax.algorithm == "online":
            level = self.of_scores
            before = () if self.adds else (Wait("A", 1, level),)
            yield Step("R", "vector", stages.attend, level, before, never=FIRST)
            if self.softmax.rescales_first:
                yield Step("R0", "vector", stages.attend, level, (free,), only=FIRST)
            rescaled = ("R", "R0") if self.softmax.rescales_first else ("R",)
            waits = waits if self.adds else (*waits, *(Wait(name, level=level) for name in rescaled))
        if keep.v_level == "key":
            table = (Wait("T", level=HEADS),) if p.block is not None else ()
            stage = stages.attend if self.in_loops else self._load_stage("v")
            yield Step("V", "read", stage, KEY, (*table, Wait("A", keep.v_slots)), loop=loop)
        if not self.adds:
            yield Step("A", "array", stages.attend, KEY, (*waits, free), loop=loop)
            return
        products = keep.score_slots * (2 if self.held else 1)
        yield Step("A", "array", stages.attend, KEY, (*waits, Wait("G", products)))
        yield Step("G", "vector", stages.attend, KEY, (Wait("A"), *(() if p.converts_output else (free,))))

    def _finish(self) -> Iterator[Step]:
        p, last = self.problem, 0 if self.by_rows or self.streamed else LAST
        done = (Wait("A", level=QUERY), *((Wait("G", level=QUERY),) if self.adds else ()))
        if divides(p, self.softmax) or p.converts_output:
            slot = (Wait("S", self.slots.output_slots, QUERY),) if p.converts_output else ()
            yield Step("D", "vector", self.stages.store, QUERY, (*done, *slot), only=last)
            done = (Wait("D", level=QUERY),)
        yield Step("S", self.write, self.stages.store, QUERY, done, only=last)


def divides(problem: AttentionProblem, softmax: Softmax) -> bool:
    """Whether finished outputs are divided by the sums of their rows."""
    return problem.has("softmax") and softmax.divide == "late"
