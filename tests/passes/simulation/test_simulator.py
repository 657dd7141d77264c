"""Timelines worked out by hand: when every operation of a tiny schedule ends, in exact cycles.

The machine reads 16 bytes a cycle and writes 8, has an array of 4 x 4 and 4 vector lanes. A tile of 4 x 4 f32 takes

    load 4 cycles      matmul 4 cycles (k steps)      cast 4 cycles (16 elements, 4 lanes)      store 8 cycles
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from flatc.accelerators import load
from flatc.dialects.accelerator import NO_VECTOR_UNIT, Accelerator, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.spatial import KernelOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.event_simulation import Simulation
from flatc.passes.simulation.program_order import walk
from flatc.passes.simulation.simulator import KernelSimulation, simulate_kernel
from tests.support import kernels_of, schedule_of

SCHEDULE = """
spatial.schedule @tile inputs ["x", "w"] (%x: !spatial.tensor<12x4xf32>, %w: !spatial.tensor<4x4xf32>)
    outputs ["y"] {
  %y = spatial.offchip "y" : !spatial.tensor<12x4xf32>
  spatial.kernel "tile" {
    %wb = spatial.buffer "W" slots 1 : !spatial.buffer<4x4xf32>
    %w0 = spatial.load %w[0, 0] into %wb extent [4, 4]
    spatial.for %i = 0 to 3 {
      %xb = spatial.buffer "X" slots 3 : !spatial.buffer<4x4xf32>
      %yb = spatial.buffer "Y" slots 3 : !spatial.buffer<4x4xf32>
      %load = spatial.load %x[%i * 4, 0] into %xb extent [4, 4]
      %mul = spatial.matmul output (%xb, %wb) into %yb extent [4, 4, 4] after(%w0, %load)
      %store = spatial.store %yb into %y[%i * 4, 0] extent [4, 4] after(%mul) stage 1
    }
  }
  spatial.return %y
}
"""


def machine(*, shared: bool = False, latency: int = 0, skew: bool = False) -> Accelerator:
    """The machine of the module docstring; a shared channel moves 16 bytes a cycle both ways."""
    cloud = load("cloud")
    written = 16 if shared else 8
    offchip = replace(
        cloud.offchip,
        channels="shared" if shared else "separate",
        read_bytes_per_second=16 * 10**9,
        write_bytes_per_second=written * 10**9,
        latency_cycles=latency,
    )
    array = replace(cloud.array, rows=4, columns=4, skew="overlapped" if skew else "none")
    vector = replace(cloud.vector, lanes=4, prices=replace(cloud.vector.prices, cast=1))
    return replace(cloud, clock_hz=10**9, offchip=offchip, array=array, vector=vector)


def kernel(*changes: tuple[str, str]) -> KernelOp:
    text = SCHEDULE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    module = schedule_of(text)
    attach_accelerator(module, machine())
    module.verify()
    return kernels_of(module)[0]


def ends(accelerator: Accelerator, *changes: tuple[str, str]) -> dict[str, list[int]]:
    """The cycle in which each operation's result is there, trip by trip."""
    simulation = Simulation(CostModel(accelerator))
    found: dict[str, list[int]] = {}
    for event in walk(kernel(*changes)):
        simulation.execute(event)
        end = Fraction(event.frame.values[event.op.token], simulation.model.ticks_per_cycle)
        found.setdefault(event.op.token.name_hint or "", []).append(int(end))
        assert end.denominator == 1
    return found


def test_transfers_array_and_stores_overlap():
    """
    cycle   0   4    8    12   16   20   24   28   32   36
    read    w0  load load load
    array            mul  mul  mul
    write                 store....store....store....
    """
    assert ends(machine()) == {"w0": [4], "load": [8, 12, 16], "mul": [12, 16, 20], "store": [20, 28, 36]}


def test_slots_limit_how_far_loads_run_ahead():
    """With one slot, a load waits until the product has read the tile before."""
    assert ends(machine(), ('"X" slots 3', '"X" slots 1'))["load"] == [8, 16, 24]


def test_slots_limit_how_far_products_run_ahead_of_stores():
    """With two slots, the third product needs the slot of the first, which is stored until cycle 20."""
    assert ends(machine(), ('"Y" slots 3', '"Y" slots 2'))["mul"] == [12, 16, 24]


def test_one_channel_carries_loads_and_stores_in_program_order():
    """Both directions take 4 cycles: w0 load0 load1 store0 load2 store1 store2.

    Load 2 issues in trip 2, store 0 in trip 1: the text puts the store after the load of its trip.
    """
    assert ends(machine(shared=True)) == {
        "w0": [4],
        "load": [8, 12, 20],
        "mul": [12, 16, 24],
        "store": [16, 24, 28],
    }


def test_latency_delays_results_and_not_the_next_transfer():
    """The channel is free after 4 cycles, the tile is there 10 later."""
    assert ends(machine(latency=10))["load"] == [18, 22, 26]


def test_skew_delays_the_result_and_not_the_next_product():
    """4 rows + 4 columns - 2 = 6 cycles of wavefront, hidden behind the next product."""
    assert ends(machine(skew=True))["mul"] == [18, 22, 26]


def test_a_resource_finishes_in_the_order_it_starts():
    """A product of one element has no wavefront of its own, and yet is not done before the one ahead of it.

    So to wait for the last of several products is to wait for all of them.
    """
    tiny = "%tiny = spatial.matmul output (%xb, %wb) into %yb extent [1, 1, 1] accumulate after(%w0, %load)\n"
    found = ends(machine(skew=True), ("%store =", tiny + "%store ="))
    assert found["mul"][0] == 8 + 4 + 6
    assert found["tiny"][0] == 18


def test_an_operation_that_does_not_work_passes_its_tokens_on():
    """The product works in trips 1 and 2 only; in trip 0 the store follows the load."""
    found = ends(machine(), ("after(%w0, %load)", "after(%w0, %load) when %i"))
    assert found["mul"] == [8, 16, 20]
    assert found["store"] == [16, 24, 32]


def test_ragged_tiles_cost_what_they_are():
    found = ends(machine(), ("into %xb extent [4, 4]", "into %xb extent [min(4, 9 - %i * 4), 4]"))
    assert found["load"] == [8, 12, 13]


def test_vector_work_waits_for_its_unit():
    """Two casts of one tile: the second waits for the first, though both only wait for the load."""
    casts = "".join(f"%cast{n} = spatial.vector cast (%xb) into (%xb) extent [4, 4] after(%load)\n" for n in range(2))
    found = ends(machine(), ("%mul =", casts + "%mul ="), ("after(%w0, %load)", "after(%w0, %cast1)"))
    assert found["cast0"] == [12, 20, 28]
    assert found["cast1"] == [16, 24, 32]


def test_the_summary_counts_what_was_done():
    found = simulate_kernel(kernel(), machine())
    assert found == KernelSimulation(
        latency_cycles=Fraction(36),
        busy_cycles={"array": Fraction(12), "read": Fraction(16), "write": Fraction(24)},
        tensor_bytes={"w": (64, 0), "x": (192, 0), "y": (0, 192)},
        work=found.work,
        peak_buffer_bytes=64 + 192 + 192,
        events=10,
    )
    assert (found.work.macs, found.work.offchip_read_bytes, found.work.offchip_write_bytes) == (192, 256, 192)


def test_a_machine_without_a_vector_unit_cannot_do_vector_work():
    bare = replace(machine(), vector=NO_VECTOR_UNIT)
    assert simulate_kernel(kernel(), bare).events == 10
    with pytest.raises(FlatcError, match=r"has no vector unit and the schedule needs one \(cast\)"):
        simulate_kernel(kernel(("%mul =", "%c = spatial.vector cast (%xb) into (%xb) extent [4, 4] %mul =")), bare)
