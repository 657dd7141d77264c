"""`flatc.compile` from Python: what it takes, what it gives, and that all levels and forms lead to one report."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

import flatc
from flatc.accelerators import load
from flatc.builder import Graph, causal
from flatc.compiler import Compilation
from flatc.dialects.diagnostics import FlatcError
from flatc.execution import MOST_MACS, RunResult
from flatc.frontend.mlir import parse_mlir
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.report import to_dict, to_text
from tests.support import UNFUSED, Shape, attention

ROOT = Path(__file__).resolve().parents[2]
TEXT = """graph small
dim B = 1, H = 4, KV = 2, S = 33, D = 16
dtype bf16, softmax f32
input q : [B, H, S, D]
input k, v : [B, KV, S, D]
o = attention(q, k, v, mask = causal)
output o
"""
STRATEGIES = ("unfused", "flat-m", "flat-b", "flat-h", "flat-r", "flat", "online", "auto")


def builder() -> Graph:
    graph = Graph("small", dtype="bf16", softmax="f32")
    q = graph.input("q", [1, 4, 33, 16])
    k, v = (graph.input(name, [1, 2, 33, 16]) for name in "kv")
    graph.output(graph.attention(q, k, v, mask=causal()), names=["o"])
    return graph


@cache
def small(strategy: str) -> Compilation:
    """The small graph compiled, which several tests look at and none changes."""
    return flatc.compile(TEXT, "edge", strategy=strategy)


def again(module: ModuleOp) -> ModuleOp:
    """The module read back from its text."""
    return parse_mlir(str(module), "again.mlir")


# --- What comes in ----------------------------------------------------------------------------------------


def test_all_forms_of_a_graph_give_the_same_report(tmp_path: Path):
    path = tmp_path / "small.flat"
    path.write_text(TEXT)
    module = builder().module()
    forms = [path, str(path), TEXT, builder(), module, again(module)]
    texts = {to_text(flatc.compile(form, "edge", strategy="flat-r").report) for form in forms}
    assert len(texts) == 1
    assert module.is_structurally_equivalent(builder().module())  # what was given stays as it was


@pytest.mark.parametrize("strategy", ["auto", "unfused"])
def test_a_schedule_read_back_gives_the_same_report_and_the_same_schedule(strategy: str):
    result = flatc.compile(TEXT, "cloud", strategy=strategy)
    reread = flatc.compile(again(result.schedule))
    assert to_dict(reread.report) == to_dict(result.report)
    assert str(reread.schedule) == str(result.schedule)
    assert reread.graph is None


def test_a_fused_module_may_enter_with_its_mappings_or_without():
    result = small("online")
    fused = builder().module().clone()
    FuseAttentionPass().apply(Context(), fused)
    searched = flatc.compile(fused, "edge", strategy="online")
    assert searched.mapping_text == result.mapping_text
    replayed = flatc.compile(fused, "edge", mapping=result.mappings)
    assert replayed.mapping_text == result.mapping_text


def test_mappings_come_in_many_forms(tmp_path: Path):
    result = small("auto")
    path = tmp_path / "mapping.txt"
    path.write_text(result.mapping_text)
    for form in (result.mapping_text, path, str(path), result.mappings, result.mappings["attention"]):
        replayed = flatc.compile(TEXT, "edge", mapping=form)
        assert to_text(replayed.report) == to_text(result.report)
        assert str(replayed.schedule) == str(result.schedule)
        assert not replayed.search


def test_mappings_of_separate_kernels_are_known_as_such():
    unfused = small("unfused")
    assert sorted(unfused.mappings) == ["attend", "logit", "softmax"]
    assert to_dict(flatc.compile(TEXT, "edge", mapping=unfused.mappings).report) == to_dict(unfused.report)


def test_the_accelerator_is_the_given_one_or_that_of_the_module_or_edge():
    assert flatc.compile(TEXT, strategy="online").report.accelerator.name == "edge"
    cloud = flatc.compile(TEXT, load("cloud"), strategy="online")
    assert cloud.report.accelerator.name == "cloud"
    assert flatc.compile(cloud.schedule).report.accelerator.name == "cloud"


def test_bindings_change_sizes():
    large = flatc.compile(TEXT, strategy="online", bindings={"S": 66}).report
    assert large.work.macs > 3 * small("online").report.work.macs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"graph": builder(), "bindings": {"S": 1}}, "bindings and phases belong to .flat graphs"),
        ({"graph": "graph g\ninput x : [4]\noutput x\n"}, "the graph computes nothing"),
        ({"graph": TEXT, "strategy": "fast"}, "unknown strategy 'fast'"),
        ({"graph": TEXT, "objective": "beauty"}, "unknown objective 'beauty'"),
        ({"graph": TEXT, "simulate": "sometimes"}, "unknown way to simulate"),
        ({"graph": TEXT, "mapping": "#flat.mapping<nonsense>"}, "nonsense|expected"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, object], message: str):
    with pytest.raises(FlatcError, match=message):
        flatc.compile(**arguments)  # pyright: ignore[reportArgumentType]


def test_a_schedule_takes_no_mapping():
    result = small("auto")
    with pytest.raises(FlatcError, match="a schedule already has its mappings"):
        flatc.compile(result.schedule, mapping=result.mapping_text)


def test_what_does_not_fit_is_blamed_on_the_kernel_alone():
    result = small("auto")
    text = result.mapping_text.replace("Q x2", "Q x4000")
    with pytest.raises(FlatcError, match=r"spatial.kernel: the kernel's buffers need \d+ bytes") as refused:
        flatc.compile(TEXT, "edge", mapping=text)
    assert "builtin.module" not in str(refused.value)


def test_importing_flatc_is_light_and_gives_the_compiler_when_asked():
    script = "import sys, flatc; before = 'xdsl' in sys.modules; flatc.compile; print(before, 'xdsl' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "True"]
    assert {"compile", "Compilation", "FlatcError"} <= set(dir(flatc))
    assert flatc.Compilation is Compilation
    with pytest.raises(AttributeError, match="no attribute 'compil'"):
        _ = flatc.compil  # pyright: ignore


# --- Numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_computes_attention(strategy: str):
    result = small(strategy).run(seed=4)
    assert result.passed
    assert result.max_abs_error > 0  # bf16 rounds
    assert result.outputs["o"].shape == (1, 4, 33, 16)


HOSTILE = (
    Shape(queries=1, keys=3, d_qk=80, d_v=16),
    Shape(batch=3, heads=4, kv_heads=1, queries=7, keys=130, d_qk=8, d_v=8),
    Shape(heads=2, kv_heads=2, queries=67, keys=33, d_qk=16, d_v=80),
)


def hostile() -> Iterator[Any]:
    """Every strategy on a shape, and strategies of different algorithms on all of them; the others are slow."""
    for (i, strategy), (j, shape) in product(enumerate(STRATEGIES), enumerate(HOSTILE)):
        quick = strategy in ("unfused", "flat-r", "online") or i % len(HOSTILE) == j
        yield pytest.param(strategy, shape, id=f"{shape}-{strategy}", marks=[] if quick else [pytest.mark.slow])


@pytest.mark.parametrize(("strategy", "sizes"), list(hostile()))
def test_float64_storage_is_exact_on_hostile_shapes(strategy: str, sizes: Shape):
    graph = attention(sizes, causal(), "f64", "f64")
    result = flatc.compile(graph, "cloud", strategy=strategy).run()
    assert result.max_abs_error <= 1e-10
    assert result.passed


def test_bytes_that_move_are_those_of_the_report():
    compilation = small("unfused")
    moved = compilation.run().offchip_bytes
    assert {t.name: (t.read_bytes, t.written_bytes) for t in compilation.report.tensors} == dict(moved)


def test_own_inputs_are_used_and_checked():
    compilation = flatc.compile(attention(Shape(queries=2, keys=3, d_qk=8, d_v=8), dtype="f32"), strategy="online")
    q, k = np.zeros((1, 1, 2, 8), np.float32), np.zeros((1, 1, 3, 8), np.float32)
    v = np.arange(24, dtype=np.float32).reshape(1, 1, 3, 8)
    result = compilation.run({"q": q, "k": k, "v": v})
    np.testing.assert_allclose(result.outputs["o"], np.broadcast_to(v.mean(2, keepdims=True), (1, 1, 2, 8)), rtol=1e-6)
    with pytest.raises(FlatcError, match="input 'q' is"):
        compilation.run({"q": q[..., :4], "k": k, "v": v})


def test_outputs_that_are_not_numbers_do_not_pass():
    wrong = np.array([np.nan])
    result = RunResult({"o": wrong}, {"o": wrong}, float("inf"), 1.0, {})
    assert not result.passed


def test_large_graphs_compile_and_are_not_executed():
    compilation = flatc.compile(TEXT, strategy="online", bindings={"S": 16384})
    assert compilation.report.work.macs > MOST_MACS
    with pytest.raises(FlatcError, match="executing this schedule would take too long") as refused:
        compilation.run()
    assert "S = 16384" in refused.value.notes[0]


def test_the_schedule_of_an_unfused_graph_has_three_kernels():
    report = small("unfused").report
    assert [kernel.name for kernel in report.kernels] == [group.split("+")[-1] for group in UNFUSED]
