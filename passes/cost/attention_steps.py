"""The steps of an attention's pipeline, and which waits for which, as `recurrence` wants them.

It is the loop nest of `kernel_schedule` told once more, from the problem and the mapping alone. A trip is a tile of
scores where key tiles stream through one loop, and a query tile where whole rows stay on chip, or a strip of its key
tiles: then `fill`, `change` and `use` are loops inside of a trip. Steps, in the order of the text:

    T, Hk, Hv, Oh    the table of pages, K, V and operands of scores that stay for a tile of heads
    Q, Oq, Z         queries and operands of a query tile; the sink
    K, P, L          tiles of K or of scores, logit
    O, W, M          operands, steps and mask of a tile of scores
    N, B, E, U, H    where scores stay in PEs: maximum, merged maximum, exponentials, sum, merged sum
    Y, X             softmax of a tile, a strip, or rows; Y, what comes before probabilities get a buffer of their own
    V, R, A, G       tiles of V; rescaling, attend, and adding its products on the vector unit
    D, S             division or conversion of the outputs, their store

The vector unit takes its work in order and is done with each operation before the next: its steps do not wait for
each other.
"""

from __future__ import annotations

from collections.abc import Iterator

from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Mapping
from flatc.passes.cost.recurrence import EDGE, FIRST, HEAD, HEADS, KEY, LAST, QUERY, STRIP, Step, Wait
from flatc.passes.kernels.problem import AttentionProblem
from flatc.passes.kernels.score_ops import Operand, operand_level, operand_slots


class AttentionSteps:
    """Says what the steps are and which waits for which."""

    def __init__(self, problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping):
        self.problem, self.mapping = problem, mapping
        self.stages, self.slots, self.softmax = mapping.stages, mapping.keep, mapping.softmax
        self.by_rows = self.softmax.algorithm == "rows"
        self.held = self.softmax.on_array
        shared = accelerator.offchip.channels == "shared"
        self.write = "read" if shared else "write"
        self.adds = mapping.attend.add == "vector"
        self.loops = problem.batch > mapping.tiles.batch or problem.kv_heads > mapping.tiles.kv_head
        self.source = "L" if problem.has("logit") else "P"
        in_strips = self.softmax.rescaled_every > 1
        self.in_loops = self.by_rows or in_strips
        """Whether key tiles are loops inside of a trip."""
        self.of_scores = QUERY if self.by_rows else STRIP if in_strips else KEY
        """The level of a buffer of scores."""

    def steps(self) -> Iterator[Step]:
        """All steps in the order of the text."""
        yield from self._of_heads()
        yield from self._of_queries()
        yield from self._source()
        yield from self._change()
        if self.problem.has("softmax"):
            yield from self._held() if self.held else self._softmax()
        yield from self._sink()
        if self.problem.has("attend"):
            yield from self._finish()

    def _load_stage(self, name: str) -> int:
        later = self.stages.attend - self.stages.logit if name == "v" and self.problem.has("logit") else 0
        return self.stages.load + later

    def _of_heads(self) -> Iterator[Step]:
        p, keep = self.problem, self.slots
        if p.block is not None:
            yield Step("T", "read", self.stages.load if self.loops else 0, HEADS, only=HEAD)
        table = (Wait("T", level=HEADS),) if p.block is not None else ()
        if p.has("logit") and keep.k_level == "kv_head":
            users = ("L", *("A" for _ in [0] if keep.v_level == "k"))
            slots = tuple(Wait(user, keep.k_slots, HEADS) for user in users)
            yield Step("Hk", "read", self._load_stage("k") if self.loops else 0, HEADS, (*table, *slots), only=HEAD)
        if p.has("attend") and keep.v_level == "kv_head":
            waits = (*table, Wait("A", keep.v_slots, HEADS))
            yield Step("Hv", "read", self._load_stage("v") if self.loops else 0, HEADS, waits, only=HEAD)
        yield from self._operands_at("heads", HEADS, HEAD)

    def _operands_at(self, level: str, at: int, only: int) -> Iterator[Step]:
        """Loads of the operands that stay on chip for a tile of heads, or a query tile."""
        stage = self.stages.load + self.stages.softmax - self.stages.logit if at == QUERY or self.loops else 0
        for operand, user in self._operands():
            if operand_level(operand, self.slots.k_level) == level:
                slots = operand_slots(self.mapping, operand_level(operand, self.slots.k_level))
                yield Step(f"O{operand.role}", "read", stage, at, (Wait(user, slots, at),), only=only)

    def _operands(self) -> list[tuple[Operand, str]]:
        """Each operand, and the step that uses it."""
        p = self.problem
        found = [(operand, f"W{i}") for i, step in enumerate(p.score_ops) for operand in step.operands]
        return found if p.sink is None else [*found, (p.sink, "Z")]

    def _of_queries(self) -> Iterator[Step]:
        first = 0 if self.by_rows else FIRST
        if self.problem.has("logit"):
            yield Step("Q", "read", self.stages.load, QUERY, (Wait("L", self.slots.q_slots, QUERY),), only=first)
        yield from self._operands_at("query", QUERY, first)
        sink = self.problem.sink
        if sink is not None and not self.by_rows:
            yield Step("Z", "vector", self.stages.softmax, QUERY, self._wait_for(sink), only=first)

    def _wait_for(self, operand: Operand) -> tuple[Wait, ...]:
        level = {"heads": HEADS, "query": QUERY}.get(operand_level(operand, self.slots.k_level), KEY)
        return (Wait(f"O{operand.role}", level=level),)

    def _source(self) -> Iterator[Step]:
        keep, loop = self.slots, "fill" if self.in_loops else ""
        load = self.stages.logit if self.in_loops else self.stages.load
        level = self.of_scores
        slot = () if self.held else tuple(Wait(user, keep.score_slots, level) for user in self._users_of_scores())
        if not self.problem.has("logit"):
            yield Step("P", "read", load, KEY, slot, loop=loop)
            return
        if keep.k_level == "key":
            table = (Wait("T", level=HEADS),) if self.problem.block is not None else ()
            users = ("L", *("A" for _ in [0] if keep.v_level == "k"))
            slots = tuple(Wait(user, keep.k_slots) for user in users)
            yield Step("K", "read", load, KEY, (*table, *slots), loop=loop)
        keys = Wait("K") if keep.k_level == "key" else Wait("Hk", level=HEADS)
        yield Step("L", "array", self.stages.logit, KEY, (Wait("Q", level=QUERY), keys, *slot), loop=loop)

    def _users_of_scores(self) -> tuple[str, ...]:
        """Whose end frees a slot of scores."""
        p = self.problem
        if p.has("softmax") and p.converts_probabilities:
            return ("X",)
        return ("A" if p.has("attend") else "S",)

    def _change(self) -> Iterator[Step]:
        loop, stage = "change" if self.in_loops else "", self.stages.softmax
        load = stage if self.in_loops else self.stages.load + stage - self.stages.logit
        made = Wait(self.source, level=self.of_scores)
        for i, step in enumerate(self.problem.score_ops):
            waits = [made]
            for operand in step.operands:
                level = operand_level(operand, self.slots.k_level)
                waits += self._wait_for(operand)
                if level in ("key", "tile"):
                    slots = operand_slots(self.mapping, level)
                    yield Step(f"O{operand.role}", "read", load, KEY, (Wait(f"W{i}", slots),), loop=loop)
            yield Step(f"W{i}", "vector", stage, KEY, tuple(waits), loop=loop)
        if self.problem.mask is not None:
            yield Step("M", "vector", stage, KEY, (made,), only=EDGE, loop=loop)

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

    def _ready(self) -> tuple[Wait, ...]:
        """What a tile of scores, or of probabilities, is finished by."""
        p, softmax = self.problem, self.softmax
        if self.held:
            if softmax.total == "vector":
                return (Wait("U"),)
            return (Wait("E"),) if softmax.exponential == "vector" else ()
        if p.has("softmax"):
            return (Wait("X", level=self.of_scores),)
        last = [f"W{i}" for i, _ in enumerate(p.score_ops)][-1:]
        last += ["M"] if p.mask is not None else []
        return tuple(Wait(name) for name in (self.source, *last))

    def _sink(self) -> Iterator[Step]:
        p, keep, stages = self.problem, self.slots, self.stages
        loop = "use" if self.in_loops else ""
        if not p.has("attend"):
            yield Step("S", self.write, stages.store, KEY, self._ready(), loop=loop)
            return
        if keep.v_level == "key":
            table = (Wait("T", level=HEADS),) if p.block is not None else ()
            stage = stages.attend if self.in_loops else self._load_stage("v")
            yield Step("V", "read", stage, KEY, (*table, Wait("A", keep.v_slots)), loop=loop)
        values = {"key": Wait("V"), "kv_head": Wait("Hv", level=HEADS)}.get(keep.v_level)
        waits = [*self._ready(), *([values] if values else [])]
        if self.softmax.algorithm == "online":
            level, rescaled = self.of_scores, ["R"]
            before = () if self.adds else (Wait("A", 1, level),)
            yield Step("R", "vector", stages.attend, level, before, never=FIRST)
            if self.softmax.rescales_first:
                yield Step("R0", "vector", stages.attend, level, only=FIRST)
                rescaled.append("R0")
            waits += [] if self.adds else [Wait(name, level=level) for name in rescaled]
        free = Wait("D" if p.converts_output else "S", keep.output_slots, QUERY)
        if not self.adds:
            yield Step("A", "array", stages.attend, KEY, (*waits, free), loop=loop)
            return
        products = keep.score_slots * (2 if self.held else 1)
        yield Step("A", "array", stages.attend, KEY, (*waits, Wait("G", products)))
        yield Step("G", "vector", stages.attend, KEY, (Wait("A"), *(() if p.converts_output else (free,))))

    def _finish(self) -> Iterator[Step]:
        p, last = self.problem, 0 if self.by_rows else LAST
        done = (Wait("A", level=QUERY), *((Wait("G", level=QUERY),) if self.adds else ()))
        if divides(p, self.mapping) or p.converts_output:
            slot = (Wait("S", self.slots.output_slots, QUERY),) if p.converts_output else ()
            yield Step("D", "vector", self.stages.store, QUERY, (*done, *slot), only=last)
            done = (Wait("D", level=QUERY),)
        yield Step("S", self.write, self.stages.store, QUERY, done, only=last)


def divides(problem: AttentionProblem, mapping: Mapping) -> bool:
    return problem.has("softmax") and mapping.softmax.divide == "late"
