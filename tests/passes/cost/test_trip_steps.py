"""What a trip issues, and which times its rounds read and write: the two-slot pipeline by hand."""

from __future__ import annotations

from dataclasses import replace

from flatc.passes.cost.trip_steps import FIRST, KEY, NOTHING, QUERY, Pipeline, Step, Wait

LOAD = Step("load", "bus", 0, KEY, (Wait("work", 2),))
WORK = Step("work", "unit", 1, KEY, (Wait("load"),))
FETCH = Step("fetch", "bus", 0, QUERY, only=FIRST)


def test_a_trip_issues_the_steps_of_each_stage_that_its_tile_has():
    """The first trip has no tile in stage 1, and `fetch` is in trips of the kind FIRST only."""
    pipeline = Pipeline((FETCH, LOAD, WORK))

    def names(*kinds: int) -> list[tuple[int, list[str]]]:
        return [
            (stage, [pipeline.steps[issue[0]].name for issue in issues]) for stage, _, issues in pipeline.plan(kinds)
        ]

    assert names(FIRST, NOTHING) == [(0, ["fetch", "load"])]
    assert names(0, FIRST) == [(0, ["load"]), (1, ["work"])]


def test_there_is_a_ring_for_each_result_that_is_awaited():
    pipeline = Pipeline((LOAD, WORK))
    assert set(pipeline.rings) == {("work", KEY), ("load", KEY)}
    assert pipeline.awaited("work", KEY) == range(1, 2)
    assert pipeline.awaited("load", KEY) == range(1)
    assert pipeline.ring_size > 2 + pipeline.deepest
    assert pipeline.size == 2 * len(pipeline.resources) + 2 * pipeline.ring_size


def test_a_scope_reads_what_its_rounds_may_wait_for_and_moves_all_of_it():
    """Resources and their results, the load that the next trip works on, and the work that frees a slot for its load.

    Behind tile 5, the next load is of tile 6 and waits for work 4; the next work is of tile 5 and waits for load 5.
    """
    pipeline = Pipeline((LOAD, WORK))
    scope, times = pipeline.scope(KEY), list(range(pipeline.size))
    place = (0, 0, 0, 5)
    read = scope.read(times, place, {})
    assert read == tuple(times[index] for index in scope.indices(place, {}))
    assert set(read) == {0, 1, 2, 3, pipeline.rings["work", KEY] + 4, pipeline.rings["load", KEY] + 5}
    scope.shift(times, place, 100)
    assert scope.read(times, place, {}) == tuple(time + 100 for time in read)


def test_a_step_of_a_coarser_tile_is_above_the_scope_of_key_tiles():
    """`done` waits for the last work of a query tile: that time is not a tile's own, and moves with the rounds."""
    done = Step("done", "bus", 1, QUERY, (Wait("work", level=QUERY),))
    pipeline = Pipeline((LOAD, WORK, done))
    scope, place = pipeline.scope(KEY), (0, 3, 0, 5)
    (above,) = scope.above(place)
    assert above == pipeline.rings["work", QUERY] + 3
    times = [0] * pipeline.size
    scope.shift(times, place, 7)
    assert times[above] == 7


def test_a_step_alone_in_a_loop_that_waits_for_none_of_its_rounds_is_part_of_the_trip():
    """It waits for what was loaded before the loop, and not for its own rounds, another step's, or slots of a tile."""
    load = Step("load", "bus", 0, QUERY)
    use = Step("use", "unit", 0, KEY, (Wait("load", level=QUERY),), loop="fill")
    (_, folded) = Pipeline((load, use)).steps
    assert folded.folded
    assert not folded.loop
    chained = replace(use, waits=(Wait("use", 1),))
    fed = replace(use, waits=(Wait("use", 1, QUERY),))
    (each, taken) = replace(load, level=KEY, loop="fill"), replace(use, waits=(Wait("load"),))
    for steps in ((load, chained), (load, fed), (each, taken)):
        assert Pipeline(steps).steps == steps
