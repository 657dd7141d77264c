"""Chains of vector operations: three readings of one schedule agree, whatever the chain, its sizes and its mapping."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.builder import Graph
from flatc.compiler import compile
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.spatial import KernelOp
from flatc.dialects.vector_mapping import VectorMapping, VectorStages
from flatc.interpreter import random_inputs, run_module
from flatc.passes.cost.primitive_costs import Work
from flatc.passes.kinds.vector import VECTOR
from flatc.passes.simulation.simulator import simulate_kernel
from tests.chains import Chain, lower_chain, problem_of, random_chain
from tests.support import run_checked


def random_machine(rng: random.Random) -> Accelerator:
    """A machine that may have one channel or two, transfers that take their time, and any number of lanes."""
    machine = load(rng.choice(["edge", "cloud"]))
    channels, wait, overhead = rng.choice(["shared", "separate"]), rng.choice([0, 100]), rng.choice([0, 7])
    offchip = replace(machine.offchip, channels=channels, latency_cycles=wait, overhead_cycles=overhead)
    return replace(machine, offchip=offchip, vector=replace(machine.vector, lanes=rng.choice([1, 3, 32])))


@cache
def random_case(seed: int) -> tuple[Chain, Accelerator, KernelOp]:
    rng = random.Random(seed)
    machine = random_machine(rng)
    case = random_chain(rng, machine)
    lowered = lower_chain(case.module, case.mapping, machine)
    (kernel,) = (op for op in lowered.walk() if isinstance(op, KernelOp))
    return case, machine, kernel


SEEDS = range(40)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_computes_its_graph_and_moves_what_is_charged(seed: int):
    case, machine, _ = random_case(seed)
    inputs = random_inputs(case.module, seed)
    run = run_checked(lower_chain(case.module, case.mapping, machine), inputs, exact=True)
    for output, expected in zip(run.outputs, run_module(case.module, inputs, exact=True), strict=True):
        np.testing.assert_allclose(output, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_closed_form_counts_what_the_simulator_counts(seed: int):
    case, machine, kernel = random_case(seed)
    form, simulated = VECTOR.price(case.problem, machine, case.mapping), simulate_kernel(kernel, machine)
    part = VECTOR.read_back(kernel)
    assert part is not None
    moved: dict[str, tuple[int, int]] = {}
    for role, size in form.tensor_bytes.items():
        read, written = moved.get(part.tensors[role], (0, 0))
        new = (0, int(size[0])) if role.startswith("result") else (int(size[0]), 0)
        moved[part.tensors[role]] = (read + new[0], written + new[1])
    assert moved == simulated.tensor_bytes
    assert form.peak_buffer_bytes[0] == simulated.peak_buffer_bytes
    assert {name: float(busy[0]) for name, busy in form.busy_cycles.items()} == pytest.approx(
        {name: float(busy) for name, busy in simulated.busy_cycles.items()}
    )
    assert form.busy_cycles["vector"][0] == simulated.busy_cycles["vector"]
    assert counts(form.work) == pytest.approx(counts(simulated.work))
    assert float(form.latency_cycles[0]) <= float(simulated.latency_cycles) * (1 + 1e-12)


def counts(work: Work) -> dict[str, float]:
    return {name: float(np.ravel(value)[0]) for name, value in vars(work).items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schedule_says_what_it_computes(seed: int):
    case, _, kernel = random_case(seed)
    part = VECTOR.read_back(kernel)
    assert part is not None
    assert part.problem == case.problem
    assert set(part.values) == {*case.problem.operand_roles, *case.problem.result_roles}


# --- What is chosen -----------------------------------------------------------------------------------------

LAYER = """graph layer
dim B = 2, S = 37, E = 48
dtype f16, softmax f32
input x, h : [B, S, E]
weight g, b : [E]
y = layernorm(x + h, g, b)
output y
"""


@pytest.mark.parametrize("machine", ["edge", "cloud", "fusemax"])
def test_add_and_layernorm_are_one_kernel_that_moves_every_byte_once(machine: str):
    result = compile(LAYER, machine)
    (kernel,) = result.report.kernels
    bytes = {t.name: (t.read_bytes, t.written_bytes) for t in kernel.tensors}
    whole = 2 * 37 * 48 * 2
    assert bytes == {"x": (whole, 0), "h": (whole, 0), "g": (96, 0), "b": (96, 0), "y": (0, whole)}
    assert result.run().passed
    assert result.report.bounds is not None
    assert kernel.latency_cycles >= result.report.bounds.cycles


def test_a_mapping_printed_edited_and_given_back():
    result = compile(LAYER, "edge")
    again = compile(LAYER, "edge", mapping=result.mapping_text)
    assert again.report.kernels[0].latency_cycles == result.report.kernels[0].latency_cycles
    assert str(again.schedule).replace('"given"', '"auto"') == str(result.schedule)
    edited = result.mapping_text.replace("1 x 19 x 48", "1 x 5 x 48").replace("order(0, 1, 2)", "order(1, 0, 2)")
    edited = edited.replace("input x2", "input x3").replace("compute 0, store 1", "compute 1, store 2")
    assert compile(LAYER, "edge", mapping=edited).run().passed


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (VectorMapping((1, 48), (0, 1), 2, 2, VectorStages(0, 0, 1)), "2 tiles, and the result 3 dims"),
        (VectorMapping((1, 38, 48), (0, 1, 2), 2, 2, VectorStages(0, 0, 1)), "tile 1 is 38, and the dim has 37"),
        (VectorMapping((1, 5, 24), (0, 1, 2), 2, 2, VectorStages(0, 0, 1)), "needs whole rows, and the last tile"),
        (VectorMapping((1, 5, 48), (0, 1, 2), 2, 2, VectorStages(1, 0, 1)), "stages must not decrease"),
        (VectorMapping((1, 5, 48), (0, 1, 2), 2, 1, VectorStages(0, 0, 1)), '"result" is filled at stage 0'),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: VectorMapping, message: str):
    with pytest.raises((FlatcError, VerifyException), match=message):
        compile(LAYER, "edge", mapping=mapping)


def test_one_slot_or_stage_edited_gives_an_error_or_a_right_answer():
    graph = Graph("layer", dtype="f64")
    x, h = graph.input("x", [2, 7, 6]), graph.input("h", [2, 7, 6])
    graph.output(graph.layernorm(x + h, graph.weight("g", [6])))
    module, machine = graph.module(), load("edge")
    inputs, accepted = random_inputs(module, 0), 0
    for stages in product((0,), (0, 1), (0, 1, 2)):
        for slots in [(1, 1), (2, 1), (2, 3)]:
            mapping = VectorMapping((1, 2, 6), (1, 0, 2), *slots, VectorStages(*stages))
            try:
                VECTOR.check(problem_of(module), mapping, machine, "k")
                lowered = lower_chain(module, mapping, machine)
            except (FlatcError, VerifyException):
                continue
            accepted += 1
            np.testing.assert_allclose(run_checked(lowered, inputs).outputs[0], run_module(module, inputs)[0])
    assert accepted > 5


def test_rope_loads_its_table_once_for_all_heads():
    graph = Graph("rope", dtype="bf16")
    x = graph.input("x", [2, 4, 9, 16])
    graph.output(graph.rope(x, start=5, base=100.0), names=["y"])
    (kernel,) = compile(graph, "edge").report.kernels
    assert {t.name: t.read_bytes for t in kernel.tensors}["rope table"] == 9 * 16 * 4


def test_a_report_without_simulation_has_the_same_counts():
    graph = Graph("rope", dtype="bf16")
    graph.output(graph.rope(graph.input("x", [2, 4, 9, 16]), dims=8), names=["y"])
    (priced,), (simulated,) = (compile(graph, "edge", simulate=how).report.kernels for how in ("never", "always"))
    assert (priced.latency_source, simulated.latency_source) == ("closed form", "simulated")
    assert priced.tensors == simulated.tensors
    assert priced.peak_buffer_bytes == simulated.peak_buffer_bytes
    assert priced.latency_cycles <= simulated.latency_cycles


def test_the_table_is_no_compulsory_traffic():
    graph = Graph("rope", dtype="bf16")
    graph.output(graph.rope(graph.input("x", [1, 4, 9, 16])), names=["y"])
    assert problem_of(graph.module()).compulsory_bytes() == {"operand0": 4 * 9 * 16 * 2, "result": 4 * 9 * 16 * 2}


def test_a_gate_is_one_kernel():
    graph = Graph("gate", dtype="bf16")
    up, gate = graph.input("up", [3, 40]), graph.input("gate", [3, 40])
    graph.output(graph.multiply(graph.silu(gate), up), names=["y"])
    assert [kernel.name for kernel in compile(graph, "edge").report.kernels] == ["silu_multiply"]


def test_a_sum_that_a_residual_takes_too_leaves_the_kernel_of_its_norm():
    """x + h is normalised and stored, in one kernel, and read again by the residual connection only."""
    graph = Graph("residual", dtype="f16")
    x, h, other = (graph.input(name, [3, 16]) for name in ("x", "h", "other"))
    total = x + h
    graph.output(graph.rmsnorm(total), other + total, names=["n", "y"])
    result = compile(graph, "edge")
    first, second = result.report.kernels
    assert (first.name, second.name) == ("add_rmsnorm", "add")
    assert {t.name: (t.read_bytes, t.written_bytes) for t in first.tensors} == {
        "x": (96, 0), "h": (96, 0), "add_rmsnorm": (0, 96), "n": (0, 96),
    }  # fmt: skip
    assert result.run().passed


def test_a_machine_without_a_vector_unit_refuses():
    with pytest.raises(FlatcError, match="has no vector unit"):
        compile(LAYER, "rtl16")


def test_a_row_that_does_not_fit_is_refused_with_what_it_needs():
    graph = Graph("wide", dtype="f32")
    graph.output(graph.rmsnorm(graph.input("x", [1, 70000])), names=["y"])
    with pytest.raises(FlatcError, match="the smallest needs 560000"):
        compile(graph, "edge")


def test_integers_are_refused_by_name():
    graph = Graph("quantised", dtype="f16")
    graph.output(graph.cast(graph.input("x", [3, 8], "i8"), "f16"), names=["y"])
    with pytest.raises(FlatcError, match="the vector unit has no operation on i8"):
        compile(graph, "edge")
