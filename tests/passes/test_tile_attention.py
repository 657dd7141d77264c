"""`tile-attention`, by example: a small module goes in, the same module with mappings comes out."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from flatc.accelerators import load
from flatc.builder import MaskExpr, causal, window
from flatc.dialects.accelerator import Accelerator, attach_accelerator
from flatc.dialects.diagnostics import FlatcError
from flatc.dialects.flat import FusedOp
from flatc.dialects.mapping import Mapping
from flatc.frontend.mlir import parse_mlir
from flatc.interpreter import random_inputs, run_module
from flatc.passes.allocate_buffers import AllocateBuffersPass
from flatc.passes.cost.closed_form import evaluate_mapping
from flatc.passes.kernels.problem import match_kernel
from flatc.passes.kinds.attention import ATTENTION
from flatc.passes.lower_to_spatial import LowerToSpatialPass
from flatc.passes.mapping.judge import CLOSE_ENOUGH
from flatc.passes.mapping.mapping_text import format_mappings
from flatc.passes.mapping.search import OBJECTIVES, STRATEGIES
from flatc.passes.tile_attention import KernelSearch, TileAttentionPass, tile_module
from tests.support import UNFUSED, Shape, attention, fused

ROOT = Path(__file__).resolve().parents[2]
WHOLE = ("logit+mask+softmax+attend",)
SHAPE = Shape(batch=2, heads=4, kv_heads=2, queries=13, keys=17, d_qk=8, d_v=5)


def kernels_in(module: ModuleOp) -> list[FusedOp]:
    return [op for op in module.walk() if isinstance(op, FusedOp)]


def fused_module(
    groups: tuple[str, ...] = WHOLE,
    mask: MaskExpr | None = None,
    machine: str | Accelerator = "edge",
    shape: Shape = SHAPE,
    dtypes: tuple[str, str] = ("bf16", "f32"),
) -> ModuleOp:
    """An attention in kernels, with the machine it is compiled for: what the pass is given."""
    module = attention(shape, mask, *dtypes)
    fused(module, groups)
    attach_accelerator(module, load(machine) if isinstance(machine, str) else machine)
    return module


def tiled(module: ModuleOp, **options: Any) -> ModuleOp:
    """A copy of the module after the pass."""
    copy = module.clone()
    TileAttentionPass(**options).apply(Context(), copy)
    copy.verify()
    return copy


def mappings_of(module: ModuleOp) -> dict[str, Mapping]:
    return {op.kernel.data: ATTENTION.mapping_of(op) for op in kernels_in(module) if op.mapping is not None}


def groups_of(strategy: str) -> tuple[str, ...]:
    return UNFUSED if strategy == "unfused" else WHOLE


def test_every_kernel_gets_a_mapping_and_nothing_else_changes():
    module = fused_module(UNFUSED)
    before, after = str(module).splitlines(), str(tiled(module, strategy="unfused")).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 3
    for old, new in changed:
        head, body = new.split(' strategy "unfused" mapping #flat.mapping<')
        assert old.startswith(head)
        assert body.startswith("tiles(batch ")
    assert sorted(mappings_of(tiled(module, strategy="unfused"))) == ["attend", "logit", "softmax"]


def test_the_result_reads_back_from_its_text():
    module = tiled(fused_module(mask=causal()), strategy="online")
    assert str(parse_mlir(str(module), "tiled.mlir")) == str(module)


@pytest.mark.parametrize("mask", [None, causal()], ids=["full", "causal"])
def test_auto_is_not_slower_than_what_it_includes(mask: MaskExpr | None):
    """The mappings of both are among its own; a thousandth is given for less energy."""
    (kernel,) = kernels_in(fused_module(mask=mask))
    latencies = {
        strategy: KernelSearch(load("edge"), strategy, "latency").simulated(kernel)[0]
        for strategy in ("auto", "flat", "online")
    }
    assert latencies["auto"] <= min(latencies.values()) * CLOSE_ENOUGH


# --- Numbers ------------------------------------------------------------------------------------------


def lowered(module: ModuleOp) -> ModuleOp:
    copy = module.clone()
    LowerToSpatialPass().apply(Context(), copy)
    AllocateBuffersPass().apply(Context(), copy)
    copy.verify()
    return copy


def output(module: ModuleOp, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
    (found,) = run_module(module, inputs)
    return found


@pytest.mark.parametrize("mask", [None, causal() & window(6)], ids=["full", "masked"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_numbers_stay_as_they_are(strategy: str, mask: MaskExpr | None):
    """The mapping is a note on the kernel: its numbers are the same; those of its schedule are, but for the order of
    sums."""
    module = fused_module(groups_of(strategy), mask, dtypes=("f64", "f64"))
    inputs = random_inputs(module, 7)
    before, after = output(module, inputs), tiled(module, strategy=strategy)
    assert np.array_equal(output(after, inputs), before)
    np.testing.assert_allclose(output(lowered(after), inputs), before, rtol=1e-12, atol=1e-13)


# --- Strategies and objectives ------------------------------------------------------------------------


def test_strategies_are_seen_in_their_tiles():
    everything, one_batch = (2, 2, 2, 13), (1, 2, 2, 13)

    def tile(strategy: str) -> tuple[int, ...]:
        (mapping,) = mappings_of(tiled(fused_module(), strategy=strategy)).values()
        assert (mapping.softmax.algorithm == "online") == (strategy == "online")
        t = mapping.tiles
        return (t.batch, t.kv_head, t.group, t.query)

    assert tile("flat-m") == everything
    assert tile("flat-b") == one_batch
    assert tile("flat-h") == (1, 1, 1, 13)
    assert tile("flat-r")[:3] == (1, 1, 1)
    tile("online")


@pytest.mark.parametrize("mask", [None, causal()], ids=["full", "causal"])
def test_no_objective_is_beaten_at_its_own_game(mask: MaskExpr | None):
    """Off-chip bytes and energy are exact: whoever asks for the least gets the least."""
    costs: dict[str, dict[str, float]] = {}
    for objective in OBJECTIVES:
        (kernel,) = kernels_in(tiled(fused_module(mask=mask, machine=small_edge(2_000)), objective=objective))
        form = evaluate_mapping(match_kernel(kernel).problem, load("edge"), ATTENTION.mapping_of(kernel))
        costs[objective] = {"offchip": form.offchip_bytes.item(), "energy": form.energy_pj.item()}
    for goal in ("offchip", "energy"):
        assert costs[goal][goal] == min(cost[goal] for cost in costs.values())
    assert costs["offchip"]["offchip"] < costs["latency"]["offchip"]


# --- Given mappings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["unfused", "flat", "online"])
def test_a_printed_mapping_given_back_gives_the_same_module(strategy: str):
    module = fused_module(groups_of(strategy), causal())
    chosen = tiled(module, strategy=strategy)
    replayed = tiled(module, mapping=format_mappings(mappings_of(chosen)))
    assert [op.strategy.data for op in kernels_in(replayed) if op.strategy] == ["given"] * len(kernels_in(replayed))
    for op, original in zip(kernels_in(replayed), kernels_in(chosen), strict=True):
        op.strategy = original.strategy
    assert str(replayed) == str(chosen)


def test_one_mapping_without_a_name_is_for_the_one_kernel():
    (mapping,) = mappings_of(tiled(fused_module(), strategy="flat-h")).values()
    text = f"#flat.mapping<{mapping.to_text()}>"
    assert mappings_of(tiled(fused_module(), mapping=text)) == {"attention": mapping}


def test_named_mappings_go_to_their_kernels_in_any_order():
    found = mappings_of(tiled(fused_module(UNFUSED), strategy="unfused"))
    backwards = format_mappings(dict(reversed(found.items())))
    assert mappings_of(tiled(fused_module(UNFUSED), mapping=backwards)) == found


def test_an_edited_mapping_is_taken_as_it_is():
    """Not the best one, but legal: nothing is searched."""
    module = fused_module()
    (mapping,) = mappings_of(tiled(module, strategy="flat-m")).values()
    text = format_mappings({"attention": mapping}).replace("query 13", "query 5")
    tiling = tile_module(module, "auto", "latency", text)
    assert mappings_of(module)["attention"].tiles.query == 5
    assert tiling.choices == {}


# --- The same question, the same answer ---------------------------------------------------------------


def test_the_pass_is_deterministic():
    module = fused_module(mask=causal())
    assert str(tiled(module)) == str(tiled(module))


def test_a_fresh_process_gives_the_same_text(tmp_path: Path):
    """Whatever order Python's sets and dictionaries have there."""
    module = fused_module(UNFUSED, causal())
    path = tmp_path / "fused.mlir"
    path.write_text(str(module))
    command = [sys.executable, "-m", "flatc.opt", str(path), "-p", "tile-attention{strategy=unfused}"]
    expected = str(tiled(module, strategy="unfused")).strip()
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == expected


# --- What is refused ----------------------------------------------------------------------------------


def refusal(module: ModuleOp, **options: Any) -> FlatcError:
    """The error; the module has no mapping afterwards."""
    with pytest.raises(FlatcError) as caught:
        TileAttentionPass(**options).apply(Context(), module)
    return caught.value


def small_edge(capacity: int) -> Accelerator:
    edge = load("edge")
    return replace(edge, buffer=replace(edge.buffer, capacity_bytes=capacity))


GIVEN = (
    "#flat.mapping<tiles(batch 1, kv_head 1, group 1, query 13, key 17, d_qk 8, d_v 5) "
    "keep(Q x1, K x1 at key, V x1 at key, scores x1, output x1) "
    "logit(output stationary, fold 1 x 1) attend(output stationary, fold 1 x 1) "
    "softmax(online, divide late) stages(load 0, logit 0, softmax 0, attend 0, store 0)>"
)


def test_the_mapping_that_is_broken_below_is_legal():
    assert len(mappings_of(tiled(fused_module(), mapping=GIVEN))) == 1


@pytest.mark.parametrize(
    ("options", "message", "help"),
    [
        ({"strategy": "onlin"}, "unknown strategy 'onlin'", "did you mean 'online'?"),
        ({"objective": "energie"}, "unknown objective 'energie'", "did you mean 'energy'?"),
        (
            {"strategy": "unfused"},
            "kernel 'attention' is fused and the strategy is unfused",
            'run fuse-attention{groups="logit","mask+softmax","attend"} before',
        ),
        (
            {"mapping": f'"atention" {GIVEN}'},
            "there is a mapping for kernel 'atention', and no such kernel",
            "did you mean 'attention'?",
        ),
        (
            {"mapping": f'"x" {GIVEN}'},
            "there is a mapping for kernel 'x', and no such kernel",
            "the kernels are attention",
        ),
        (
            {"mapping": GIVEN.replace("query 13", "query 99")},
            "attention: the tile of query is 99, and there are only 13",
            None,
        ),
        (
            {"mapping": GIVEN.replace("softmax(online", "softmax(none")},
            "attention: the kernel has a softmax and the mapping says softmax(none)",
            None,
        ),
        ({"mapping": ""}, "mapping holds no mapping", "write one as #flat.mapping<...>"),
    ],
)
def test_a_mistake_in_the_options_is_explained(options: dict[str, str], message: str, help: str | None):
    module = fused_module()
    error = refusal(module, **options)
    assert (error.message, error.help) == (message, help)
    assert mappings_of(module) == {}


def test_every_kernel_needs_a_mapping_if_any_is_given():
    found = mappings_of(tiled(fused_module(UNFUSED), strategy="unfused"))
    del found["softmax"]
    error = refusal(fused_module(UNFUSED), mapping=format_mappings(found))
    assert error.message == "the mapping file has no mapping for kernel 'softmax'"


@pytest.mark.parametrize("strategy", ["flat-m", "online"])
def test_where_nothing_fits_the_error_names_bytes_and_a_way_out(strategy: str):
    error = refusal(fused_module(machine=small_edge(64)), strategy=strategy)
    assert (
        f"attention: no '{strategy}' mapping fits the 64 bytes of edge's buffer; the smallest needs " in error.message
    )
    assert (
        error.help
        == {
            "flat-m": "use strategy online or auto, whose footprint does not grow with length",
            "online": "give the accelerator a larger buffer",
        }[strategy]
    )


def test_a_softmax_needs_a_vector_unit():
    error = refusal(fused_module(machine="rtl16"))
    assert error.message == "attention: accelerator 'rtl16' has no vector unit, and the kernel needs one"
    assert error.help == "choose an accelerator with a vector unit"


def test_the_module_must_hold_an_accelerator():
    module = attention(SHAPE)
    fused(module)
    assert "does not know the machine" in refusal(module).message
