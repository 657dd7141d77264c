"""The structure of a pipelined loop nest, read off its text: chains, entries, sections and stages."""

from __future__ import annotations

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from flatc.dialects.pipeline import Chain, chain_of, root_loops
from flatc.dialects.spatial import KernelOp, Spatial

THREE_LEVELS = """
spatial.for %i = 0 to 2 {
  %a = spatial.buffer "a" slots 4 : !spatial.buffer<4xf32>
  %t0 = spatial.load %x[0] into %a extent [4]
  spatial.for %j = 0 to 2 stream {
    %b = spatial.buffer "b" slots 4 : !spatial.buffer<4xf32>
    %t1 = spatial.load %x[0] into %b extent [4]
    spatial.for %k = 0 to 2 stream {
      %c = spatial.buffer "c" slots 4 : !spatial.buffer<4xf32>
      %t2 = spatial.vector cast (%a) into (%c) extent [4] stage 1
      %t3 = spatial.vector cast (%b) into (%c) extent [4] stage 2
    }
    %t4 = spatial.store %b into %x[0] extent [4] stage 2
  }
  %t5 = spatial.store %a into %x[0] extent [4] stage 3
}
"""

WITH_A_PLAIN_LOOP = """
spatial.for %i = 0 to 2 {
  %a = spatial.buffer "a" slots 4 : !spatial.buffer<4xf32>
  %t0 = spatial.load %x[0] into %a extent [4]
  spatial.for %j = 0 to 2 stage 1 {
    %b = spatial.buffer "b" slots 4 : !spatial.buffer<4xf32>
    %t1 = spatial.vector cast (%a) into (%b) extent [4] stage 2
  }
  %t2 = spatial.store %a into %x[0] extent [4] stage 1
}
spatial.for %n = 0 to 2 {
}
"""


def kernel(body: str) -> KernelOp:
    """A verified kernel around the given text."""
    context = Context()
    for dialect in (Builtin, Spatial):
        context.load_dialect(dialect)
    text = f"""
    spatial.schedule @f inputs ["x"] (%x: !spatial.tensor<4xf32>) outputs [] {{
      spatial.kernel "k" {{
        {body}
      }}
      spatial.return
    }}"""
    module: ModuleOp = Parser(context, text).parse_module()
    module.verify()
    return next(op for op in module.walk() if isinstance(op, KernelOp))


def table(chain: Chain) -> list[tuple[str | None, int, str, int, int]]:
    """The entries of a chain by the name of the token, or of the loop's index."""
    return [
        (
            entry.op.results[0].name_hint if entry.op.results else entry.op.regions[0].block.args[0].name_hint,
            entry.level,
            entry.section,
            entry.stage,
            entry.text,
        )
        for entry in chain.entries
    ]


def test_a_chain_goes_inward_through_its_stream_loops():
    (root,) = root_loops(kernel(THREE_LEVELS))
    chain = chain_of(root)
    assert [loop.index.name_hint for loop in chain.loops] == ["i", "j", "k"]
    assert table(chain) == [
        ("t0", 0, "before", 0, 0),
        ("t1", 1, "before", 0, 1),
        ("t2", 2, "body", 1, 2),
        ("t3", 2, "body", 2, 3),
        ("t4", 1, "after", 2, 4),
        ("t5", 0, "after", 3, 5),
    ]
    assert chain.depth == 3


def test_buffers_belong_to_the_level_that_declares_them():
    (root,) = root_loops(kernel(THREE_LEVELS))
    labels = [[buffer.label.data for buffer in buffers] for buffers in chain_of(root).buffers]
    assert labels == [["a"], ["b"], ["c"]]


def test_a_loop_without_stream_is_one_entry_and_a_chain_of_its_own():
    outer, inner, empty = (chain_of(root) for root in root_loops(kernel(WITH_A_PLAIN_LOOP)))
    assert table(outer) == [("t0", 0, "body", 0, 0), ("j", 0, "body", 1, 1), ("t2", 0, "body", 1, 2)]
    assert table(inner) == [("t1", 0, "body", 2, 0)]
    assert (outer.depth, inner.depth, empty.depth) == (1, 2, 0)
    assert empty.entries == ()


def test_positions_order_by_stage_and_then_by_text():
    (root,) = root_loops(kernel(THREE_LEVELS))
    entries = chain_of(root).entries
    assert [entry.position for entry in entries] == [(0, 0), (0, 1), (1, 2), (2, 3), (2, 4), (3, 5)]
    assert min(entries, key=lambda entry: entry.position).op.name == "spatial.load"


def test_a_loop_holds_timed_work_only():
    view = "%v = spatial.view %x : !spatial.tensor<4xf32> -> !spatial.tensor<2x2xf32>"
    with pytest.raises(VerifyException, match=r"spatial\.view cannot stand in a loop"):
        kernel(f"spatial.for %i = 0 to 2 {{\n{view}\n}}")
