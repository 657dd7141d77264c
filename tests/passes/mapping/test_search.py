"""The search against trying everything: the mapping it finds is the best of the stated space, and fits for real."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, cast

import pytest

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, first, window
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp, MappingAttr
from flatc.dialects.mapping import ArrayUse, Mapping, Softmax, Stationarity
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.cost.mapping_columns import Structure, mapping_at
from flatc.passes.cost.primitive_costs import fold_limits, spatial_extents
from flatc.passes.kernels.problem import AttentionProblem, match_kernel
from flatc.passes.mapping.legal_mapping import check_mapping, product_tile
from flatc.passes.mapping.map_space import columns, families, strip_families, strips, tiles
from flatc.passes.mapping.search import OBJECTIVES, Name, Objective, find_mapping, find_mappings
from flatc.passes.mapping.strip_space import FAR, FEWEST_STRIPS, MOST_UNEVEN_TILES
from flatc.passes.simulation.simulator import peak_buffer_bytes
from tests.support import UNFUSED, Shape, attention, fused, lower_mapped, schedule

EDGE = load("edge")
WHOLE = ("logit+mask+softmax+attend",)


def machine(capacity: int = 1 << 20) -> Accelerator:
    """Edge with an array of 4 x 4 of two kinds and 4 lanes, so that tiny attentions need thought."""
    array = replace(EDGE.array, rows=4, columns=4, stationarities=("output", "weight"))
    buffer, vector = replace(EDGE.buffer, capacity_bytes=capacity), replace(EDGE.vector, lanes=4)
    return replace(EDGE, array=array, buffer=buffer, vector=vector)


def kernels(shape: Shape, mask: MaskExpr | None = None, groups: tuple[str, ...] = WHOLE) -> list[FusedOp]:
    return fused(attention(shape, mask, "bf16", "f32"), groups)


def whole(shape: Shape, mask: MaskExpr | None = None) -> AttentionProblem:
    """An attention in one kernel."""
    (kernel,) = kernels(shape, mask)
    return match_kernel(kernel).problem


@dataclass(frozen=True)
class Question:
    """What to search, small enough to go through one mapping at a time; `part` of an attention, or all of it."""

    strategy: str
    shape: Shape
    mask: str = ""
    part: str = ""
    capacity: int = 1 << 20

    def __str__(self) -> str:
        return " ".join(filter(None, [self.strategy, str(self.shape), self.mask, self.part, f"{self.capacity} B"]))

    @property
    def problem(self) -> AttentionProblem:
        mask = {"": None, "causal": causal(), "sinks": causal() & (window(2) | first(1))}[self.mask]
        if not self.part:
            return whole(self.shape, mask)
        return match_kernel(kernels(self.shape, mask, UNFUSED)[UNFUSED.index(self.part)]).problem


SMALL = Shape(heads=2, queries=3, keys=4, d_qk=3, d_v=6)
QUESTIONS = [
    Question("flat-m", SMALL),
    Question("flat-r", SMALL, "causal"),
    Question("flat", Shape(queries=2, keys=3, d_qk=9, d_v=2), capacity=300),
    Question("online", Shape(queries=5, keys=3, d_qk=8, d_v=5)),
    Question("online", SMALL, "sinks", capacity=400),
    Question("online", Shape(queries=2, keys=17, d_qk=3, d_v=6), capacity=600),
    Question("auto", Shape(queries=2, keys=3, d_qk=5, d_v=5)),
    Question("unfused", SMALL, part="logit"),
    Question("unfused", SMALL, "causal", part="mask+softmax"),
    Question("unfused", SMALL, part="attend", capacity=200),
]


# --- Trying everything --------------------------------------------------------------------------------


def mappings(problem: AttentionProblem, accelerator: Accelerator, strategy: str) -> Iterator[Mapping]:
    """The mappings of a strategy one by one, their use of the array still to be chosen."""
    for part in ("flat-m", "flat-b", "flat-h", "flat-r") if strategy == "flat" else (strategy,):
        for family in families(problem, part):
            places = (family.k_level, family.v_level, "output", "output")
            structure = Structure(family.algorithm, family.divide, *places, **vars(family.placement))
            column = columns(tiles(problem, accelerator, part), family)
            yield from (mapping_at(problem, structure, column, i) for i in range(column.size))


def array_uses(problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping, name: str) -> list[ArrayUse]:
    """Every stationarity, with as many pieces side by side as the machine permits and the tile has."""
    if not problem.has(name):
        return [ArrayUse("output")]
    array, tile, found = accelerator.array, product_tile(problem, mapping, name), list[ArrayUse]()
    for stationarity in array.stationarities:
        p, q, _ = spatial_extents(stationarity, tile)
        rows, across = fold_limits(array, stationarity, p, q)
        pieces = tile.batch * -(-p // array.rows) * -(-q // array.columns)
        across = min(across, pieces)
        found.append(ArrayUse(cast(Stationarity, stationarity), min(rows, -(-pieces // across)), across))
    return found


def rankings(
    problem: AttentionProblem, accelerator: Accelerator, mapping: Mapping
) -> dict[Objective, tuple[float, ...]]:
    """For every objective: it, the others in their order, then the number of tiles, then the footprint."""
    form, p, t = evaluate_mapping(problem, accelerator, mapping), problem, mapping.tiles
    latency, energy = float(form.latency_cycles[0]), float(form.energy_pj[0])
    costs = {"latency": latency, "energy": energy, "edp": latency * energy, "offchip": float(form.offchip_bytes[0])}
    sizes = ((p.batch, t.batch), (p.kv_heads, t.kv_head), (p.group, t.group), (p.queries, t.query), (p.keys, t.key))
    tiles = math.prod(-(-size // tile) for size, tile in sizes)
    found: dict[Objective, tuple[float, ...]] = {}
    for goal in OBJECTIVES:
        order = [goal, *(other for other in OBJECTIVES if other != goal)]
        found[goal] = (*(costs[name] for name in order), tiles, float(form.peak_buffer_bytes[0]))
    return found


def strips_of(problem: AttentionProblem, accelerator: Accelerator, strategy: str) -> Iterator[Mapping]:
    """Strips of several key tiles, in the same way."""
    column = strips(problem, accelerator, strategy)
    for family in strip_families(problem, strategy):
        places = (family.k_level, family.v_level, "output", "output")
        structure = Structure(family.algorithm, family.divide, *places, **vars(family.placement), in_strips=True)
        found = (mapping_at(problem, structure, columns(column, family), i) for i in range(column.size))
        yield from (mapping for mapping in found if mapping.softmax.rescaled_every > 1)


def is_left(problem: AttentionProblem, accelerator: Accelerator, strip: Mapping) -> bool:
    """Whether a strip is left by the two rules of `strip_space`."""
    every, key = strip.softmax.rescaled_every, strip.tiles.key
    masked, capacity = problem.mask is not None, accelerator.buffer.capacity_bytes
    tile = replace(strip, tiles=replace(strip.tiles, key=key * every), softmax=Softmax("online"))
    piece = replace(strip, softmax=Softmax("rows")) if masked else tile
    if evaluate_mapping(problem, accelerator, piece).peak_buffer_bytes[0] <= capacity:
        return False
    uses = product(*(array_uses(problem, accelerator, strip, name) for name in ("logit", "attend")))
    busy = [evaluate_mapping(problem, accelerator, replace(strip, logit=a, attend=b)).busy_cycles for a, b in uses]
    others = min(max(float(time[0]) for name, time in one.items() if name != "vector") for one in busy)
    if masked:
        uneven = every > MOST_UNEVEN_TILES or problem.keys < FEWEST_STRIPS * every * key
        return busy[0]["vector"][0] > FAR * others and not uneven
    half = replace(strip, softmax=replace(strip.softmax, rescaled_every=every // 2))
    return evaluate_mapping(problem, accelerator, half).busy_cycles["vector"][0] > others


@cache
def tried(question: Question) -> tuple[int, int, dict[Objective, tuple[float, ...]]]:
    """(mappings, mappings that fit, the best ranking by objective), from evaluating every mapping alone."""
    problem, accelerator = question.problem, machine(question.capacity)
    covered = legal = 0
    best: dict[Objective, tuple[float, ...]] = {}
    every = [*mappings(problem, accelerator, question.strategy), *strips_of(problem, accelerator, question.strategy)]
    for mapping in every:
        covered += 1
        if evaluate_mapping(problem, accelerator, mapping).peak_buffer_bytes[0] > question.capacity:
            continue
        if mapping.softmax.rescaled_every > 1 and not is_left(problem, accelerator, mapping):
            continue
        legal += 1
        uses = [array_uses(problem, accelerator, mapping, name) for name in ("logit", "attend")]
        for logit, attend in product(*uses):
            for goal, found in rankings(problem, accelerator, replace(mapping, logit=logit, attend=attend)).items():
                best[goal] = min(best.get(goal, found), found)
    return covered, legal, best


MASKED_STRIPS = Question("online", Shape(queries=2, keys=130, d_qk=1, d_v=3), "causal", capacity=400)


@pytest.mark.parametrize("question", [*QUESTIONS, pytest.param(MASKED_STRIPS, marks=pytest.mark.slow)], ids=str)
def test_the_search_finds_the_best_of_all_mappings(question: Question):
    problem, accelerator = question.problem, machine(question.capacity)
    covered, legal, best = tried(question)
    for objective in OBJECTIVES:
        choice = find_mapping(problem, accelerator, question.strategy, objective)
        assert choice.ranking == pytest.approx(best[objective], rel=1e-12), objective
        assert rankings(problem, accelerator, choice.mapping)[objective] == pytest.approx(choice.ranking, rel=1e-12)
        assert (choice.covered, choice.legal) == (covered, legal)
        check_mapping(problem, choice.mapping, accelerator, "kernel")


def test_some_questions_leave_mappings_out():
    """The brute force above is worth something only where some mappings do not fit."""
    assert any(0 < legal < covered for covered, legal, _ in map(tried, QUESTIONS))


@pytest.mark.parametrize("strategy", ["flat", "online", "auto"])
def test_nothing_ranks_before_what_is_found(strategy: str):
    found = find_mappings(whole(SMALL), machine(), strategy)
    assert found[0] == find_mapping(whole(SMALL), machine(), strategy)
    assert found.before(found[0].ranking, most=3) == (0, [])
    total, rivals = found.before((math.inf,), most=3)
    assert min(rival.ranking for rival in rivals) == found[0].ranking
    if strategy != "flat":  # which is the best of several, and these share mappings
        assert len({rival.make().mapping for rival in rivals}) == len(rivals) <= total


def test_every_mapping_may_have_a_turn():
    """Asked for again and again, but for those that were tried, all come out, each once, the first of all first."""
    found = find_mappings(whole(SMALL), machine(), "online")
    total, _ = found.before((math.inf,), most=1)
    assert found.best().name in {rival.name for rival in found.before((math.inf,), most=1)[1]}
    tried: set[Name] = set()
    while len(tried) < total:
        left, rivals = found.before((math.inf,), most=20, but=tried)
        assert left == total - len(tried)
        assert not tried & {rival.name for rival in rivals}
        tried |= {rival.name for rival in rivals}


# --- What is found fits -------------------------------------------------------------------------------

SHAPES = [
    (Shape(batch=2, heads=6, kv_heads=3, queries=13, keys=37, d_qk=8, d_v=5), None),
    (Shape(heads=4, queries=40, keys=33, d_qk=16, d_v=16), causal()),
    (Shape(heads=2, queries=1, keys=131, d_qk=80, d_v=24), causal() & window(20)),
    (Shape(heads=2, queries=70, keys=11, d_qk=8, d_v=8), causal() & (window(3) | first(2))),
]


@pytest.mark.parametrize("objective", ["latency", "offchip"])
@pytest.mark.parametrize(("shape", "mask"), SHAPES, ids=lambda part: str(part) if isinstance(part, Shape) else "")
def test_the_footprint_is_what_allocation_takes(shape: Shape, mask: MaskExpr | None, objective: Objective):
    """The schedule of every candidate is accepted by the verifier, in exactly the bytes that were promised."""
    for capacity in (4_000, 60_000):
        small = machine(capacity)
        _, rivals = find_mappings(whole(shape, mask), small, "auto", objective).before((math.inf,), most=1)
        for choice in (rival.make() for rival in rivals[:6]):
            (lowered,) = schedule(attention(shape, mask, "bf16", "f32"), choice.mapping, small).kernels()
            assert peak_buffer_bytes(lowered) == choice.ranking[-1] <= capacity


def test_a_softmax_and_attend_on_given_scores_can_be_scheduled_however_it_is_mapped():
    """As where scores are an output of the graph: every family of `auto` is accepted by the verifier."""
    groups = ("logit", "mask+softmax+attend")
    module = attention(Shape(batch=2, heads=6, kv_heads=2, queries=5, keys=9), causal(), "bf16", "f32")
    _, kernel = fused(module.clone(), groups)
    _, rivals = find_mappings(match_kernel(kernel).problem, EDGE, "auto").before((math.inf,), most=1)
    for choice in (rival.make() for rival in rivals):
        copy = module.clone()
        logit, rest = fused(copy, groups)
        logit.mapping = MappingAttr(find_mapping(match_kernel(logit).problem, EDGE, "unfused").mapping)
        rest.mapping = MappingAttr(choice.mapping)
        lower_mapped(copy, EDGE)


# --- More is never worse ------------------------------------------------------------------------------


def best(problem: AttentionProblem, accelerator: Accelerator, strategy: str, objective: Objective) -> float:
    """The least cost by closed form; infinite where nothing fits."""
    try:
        return find_mapping(problem, accelerator, strategy, objective).ranking[0]
    except FlatcError:
        return math.inf


CROWDED = (Shape(batch=32, heads=4, kv_heads=4, queries=3, keys=5, d_qk=8, d_v=8), None)
"""128 heads, more than a tile has that is no corner of FLAT's."""


@pytest.mark.parametrize("objective", ["latency", "energy"])
@pytest.mark.parametrize(
    ("case", "accelerator"), [(SHAPES[0], machine(6_000)), (SHAPES[3], machine(6_000)), (CROWDED, load("cloud"))]
)
def test_auto_is_at_least_as_good_as_each_strategy_alone(
    case: tuple[Shape, MaskExpr | None], accelerator: Accelerator, objective: Objective
):
    problem = whole(*case)
    costs = {name: best(problem, accelerator, name, objective) for name in ("flat-m", "flat-b", "flat-h", "flat-r")}
    assert best(problem, accelerator, "flat", objective) == min(costs.values())
    assert costs["flat-r"] <= costs["flat-h"]  # whole heads are rows too
    everything = best(problem, accelerator, "auto", objective)
    assert everything <= min(*costs.values(), best(problem, accelerator, "online", objective))


@pytest.mark.parametrize("strategy", ["flat-h", "flat-r", "online", "auto"])
def test_more_capacity_never_costs_more(strategy: str):
    problem = whole(*SHAPES[3])
    for objective in OBJECTIVES[:2]:
        costs = [best(problem, machine(1 << bits), strategy, objective) for bits in range(7, 18, 2)]
        assert costs == sorted(costs, reverse=True)
        assert costs[0] > costs[-1]


def test_the_same_question_has_the_same_answer():
    first_time, again = (find_mapping(whole(*SHAPES[0]), machine(8_000), "auto") for _ in range(2))
    assert first_time == again


# --- What is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "help"),
    [
        ("flat-m", "use strategy online or auto, whose footprint does not grow with length"),
        ("flat", "use strategy online or auto, whose footprint does not grow with length"),
        ("online", "give the accelerator a larger buffer"),
        ("auto", "give the accelerator a larger buffer"),
    ],
)
def test_where_nothing_fits_the_least_that_would_is_named_exactly(strategy: str, help: str):
    """One byte less than it says is too little, and what it says is enough."""
    problem = whole(*SHAPES[0])
    with pytest.raises(FlatcError) as caught:
        find_mapping(problem, machine(10), strategy, kernel="attention")
    needs = int(caught.value.message.rsplit(" ", 1)[1])
    assert caught.value.message == (
        f"attention: no '{strategy}' mapping fits the 10 bytes of edge's buffer; the smallest needs {needs}"
    )
    assert caught.value.help == help
    assert find_mapping(problem, machine(needs), strategy).legal >= 1
    with pytest.raises(FlatcError):
        find_mapping(problem, machine(needs - 1), strategy)


def test_a_machine_without_a_vector_unit_takes_products_only():
    rtl16 = load("rtl16")
    logit, softmax, _ = (match_kernel(kernel).problem for kernel in kernels(SMALL, None, UNFUSED))
    assert find_mapping(logit, rtl16, "unfused").legal
    with pytest.raises(FlatcError, match="softmax: accelerator 'rtl16' has no vector unit, and the kernel needs one"):
        find_mapping(softmax, rtl16, "unfused", kernel="softmax")


@pytest.mark.parametrize(
    ("names", "message", "help"),
    [
        (("onlin", "latency"), "unknown strategy 'onlin'", "did you mean 'online'?"),
        (("auto", "latncy"), "unknown objective 'latncy'", "did you mean 'latency'?"),
        (("x", "latency"), "unknown strategy 'x'", "choose one of unfused, flat-m, "),
    ],
)
def test_unknown_names_are_refused(names: Any, message: str, help: str):
    with pytest.raises(FlatcError) as caught:
        find_mapping(whole(SMALL), machine(), *names)
    assert caught.value.message == message
    assert (caught.value.help or "").startswith(help)
