"""Happens-before, and that it means what it says: what the interpreter takes to be ordered is ordered in time.

The simulator knows nothing of clocks, and clocks know nothing of time. They meet in one property: if a schedule loses
a token and the interpreter does not mind, then the token was implied by others, and no machine runs any differently.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.builder import causal
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.mapping import Tiles
from flatc.dialects.spatial import StartOp, TimedOp
from flatc.interpreter import ScheduleError, random_inputs, run_schedule
from flatc.interpreter.order import Order, Step
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.event_simulation import Simulation
from flatc.passes.simulation.program_order import walk
from tests.support import Choice, Shape, attention, kernels_of, lower, schedule_of, strict_machine

OPS = """
spatial.schedule @ops inputs ["x"] (%x: !spatial.tensor<4x4xf32>) outputs ["y"] {
  %y = spatial.offchip "y" : !spatial.tensor<4x4xf32>
  spatial.kernel "ops" {
    %b = spatial.buffer "B" slots 1 : !spatial.buffer<4x4xf32>
    %load = spatial.load %x[0, 0] into %b extent [4, 4]
    %matmul = spatial.matmul output (%b, %b) into %b extent [4, 4, 4]
    %cast = spatial.vector cast (%b) into (%b) extent [4, 4]
    %store = spatial.store %b into %y[0, 0] extent [4, 4]
  }
  spatial.return %y
}
"""


class Issue:
    """Issues loads, products, casts and stores by name."""

    def __init__(self, shared_channel: bool = False):
        self._ops = {op.token.name_hint: op for op in schedule_of(OPS).walk() if isinstance(op, TimedOp)}
        self._order = Order(shared_channel)

    def __call__(self, name: str, *after: Step) -> Step:
        return self._order.issue(self._ops[name], {}, [step.after for step in after])


def test_a_token_orders():
    issue = Issue()
    load, other = issue("load"), issue("matmul")
    product = issue("matmul", load)
    assert product.follows(load)
    assert not other.follows(load)
    assert not load.follows(product)


def test_order_passes_through_other_operations():
    issue = Issue()
    load = issue("load")
    store = issue("store", issue("cast", issue("matmul", load)))
    assert store.follows(load, needs_result=True)


def test_what_an_operation_waited_for_is_finished_for_its_successors_on_the_resource():
    """The second product issues after the first, which started after the load had finished."""
    issue = Issue()
    load = issue("load")
    issue("matmul", load)
    assert issue("matmul").follows(load, needs_result=True)


def test_a_resource_finishes_in_order():
    """To wait for the second load is to wait for both."""
    issue = Issue()
    first, second = issue("load"), issue("load")
    assert issue("matmul", second).follows(first, needs_result=True)


@pytest.mark.parametrize(("name", "finished"), [("load", False), ("matmul", False), ("cast", True)])
def test_the_next_operation_of_a_resource_may_overwrite_but_not_always_read(name: str, finished: bool):
    """Transfers and products are on their way while the next one starts; the vector unit does one thing at a time."""
    issue = Issue()
    first, second = issue(name), issue(name)
    assert second.follows(first)
    assert second.follows(first, needs_result=True) == finished


def test_loads_and_stores_share_an_order_only_where_they_share_the_channel():
    for shared in (False, True):
        issue = Issue(shared)
        load = issue("load")
        assert issue("store").follows(load) == shared


# --- Clocks and time ----------------------------------------------------------------------------------


def machines() -> list[Accelerator]:
    """Machines on which different parts are slow."""
    base = strict_machine()
    array = replace(base.array, rows=4, columns=4)
    vector = replace(base.vector, lanes=4)
    slow = replace(base.offchip, read_bytes_per_second=10**9, write_bytes_per_second=10**9)
    return [
        base,
        replace(base, array=array, vector=vector),
        replace(base, offchip=replace(slow, latency_cycles=0)),
        replace(base, offchip=replace(base.offchip, latency_cycles=5000), vector=replace(vector, lanes=1)),
        replace(base, array=replace(array, rows=1, skew="exposed"), offchip=slow),
    ]


def timeline(module: ModuleOp, machine: Accelerator) -> list[Fraction]:
    """When each executed operation ends."""
    simulation, ends = Simulation(CostModel(machine)), list[Fraction]()
    for event in walk(kernels_of(module)[0]):
        active = event.active()
        simulation.execute(event)
        if active:
            ends.append(Fraction(event.frame.values[event.op.token], simulation.model.ticks_per_cycle))
    return ends


def timed(module: ModuleOp) -> list[TimedOp]:
    return [op for op in module.walk() if isinstance(op, TimedOp)]


def with_one_token_less(module: ModuleOp) -> Iterator[ModuleOp]:
    """The schedule without one of its tokens, for each of them: a token that is ready from the start instead."""
    for place, op in enumerate(timed(module)):
        for index in range(len(op.after)):
            copy = module.clone()
            changed, body = timed(copy)[place], kernels_of(copy)[0].body.block
            start = StartOp()
            assert body.first_op is not None
            body.insert_op_before(start, body.first_op)
            first = len(changed.operands) - len(changed.indices) - len(changed.after)
            changed.operands[first + index] = start.token
            yield copy


ODD = Tiles(1, 1, 2, 5, 7, 1 << 30, 1 << 30)


@pytest.mark.parametrize(
    "choice",
    [
        Choice("online", tiles=ODD),
        Choice("online", tiles=ODD, levels=("kv_head", "kv_head"), stages=(0, 1, 2, 3, 4), slots=(5, 5, 5, 5, 5)),
        Choice("rows", "early", tiles=ODD),
        Choice("streamed", "early", tiles=ODD),
    ],
    ids=str,
)
def test_a_token_that_nobody_misses_changes_no_timeline(choice: Choice):
    module = attention(Shape(heads=2, queries=13, keys=17), causal(), "bf16", "f32")
    lowered, inputs = lower(module, choice), random_inputs(module, 0)
    expected = [timeline(lowered, machine) for machine in machines()]
    noticed = 0
    for changed in with_one_token_less(lowered):
        try:
            run_schedule(changed, inputs)
        except ScheduleError:
            noticed += 1
        else:
            assert [timeline(changed, machine) for machine in machines()] == expected
    assert noticed >= 5
