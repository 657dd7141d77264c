"""What shapes trips: loops whose bounds move on, but whose trips do not, are alike."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.spatial import ForOp, KernelOp
from flatc.passes.cost.cost_model import CostModel
from flatc.passes.simulation.budget import Budget
from flatc.passes.simulation.nest_facts import NestFacts
from flatc.passes.simulation.simulator import simulate_kernel
from flatc.passes.simulation.trip_plan import Series, TripPlan
from tests.support import kernels_of, schedule_of

MACHINE = load("edge")


def strips(rows: int, inner: str, extent: str = "8") -> KernelOp:
    """A loop over strips, with a loop over the keys of each."""
    module: ModuleOp = schedule_of(f"""
spatial.schedule @strips inputs ["x"] (%x: !spatial.tensor<8x8xf32>) outputs ["x"] {{
  spatial.kernel "strips" {{
    spatial.for %i = 0 to {rows} {{
      spatial.for %j = {inner} {{
        %b = spatial.buffer "b" slots 2 : !spatial.buffer<8x8xf32>
        %l = spatial.load %x[0, 0] into %b extent [8, {extent}]
      }}
    }}
  }}
  spatial.return %x
}}""")
    attach_accelerator(module, MACHINE)
    module.verify()
    return kernels_of(module)[0]


def plan(kernel: KernelOp) -> tuple[Series, int]:
    """The series of a kernel's loop, and the effort of planning it."""
    budget, facts = Budget(None), NestFacts(kernel)
    (root,) = (op for op in kernel.body.block.ops if isinstance(op, ForOp))
    return TripPlan(facts, CostModel(MACHINE), budget.spend).series(root), budget.spent


def test_strips_of_other_keys_are_alike():
    """Ten million strips of 8 keys, and a last one of 3."""
    series, effort = plan(strips(10_000_001, "%i * 8 to min(%i * 8 + 8, 80000003)"))
    assert [count for _, count in series.parts] == [10_000_000, 1]
    assert effort < 100


def test_loops_that_become_longer_and_shorter():
    """The keys of a strip that lie on the edge of a band: none, then more, then all, and back."""
    series, effort = plan(strips(1_000_000, "max(%i * 8, 803) to min(%i * 8 + 8, 4005)"))
    assert [count for _, count in series.parts] == [100, 1, 399, 1, 999_499]
    assert effort < 100


@pytest.mark.parametrize(
    ("inner", "extent"),
    [
        ("%i * 8 to min(%i * 8 + 8, 43)", "8"),
        ("%i * 8 to min(%i * 8 + 8, 43)", "min(8, 43 - %j)"),
        ("%i * 8 to %i * 8 + 8", "min(8, %i + 1)"),
        ("max(%i * 8, 11) to min(%i * 8 + 8, 30)", "8"),
    ],
)
def test_nothing_that_differs_is_taken_to_be_alike(inner: str, extent: str):
    kernel = strips(6, inner, extent)
    assert simulate_kernel(kernel, MACHINE) == simulate_kernel(kernel, MACHINE, skip_ahead=False)
