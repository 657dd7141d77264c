"""What makes a schedule legal: tokens and slots against brute force, and buffers that fit.

The verifier judges the text, whatever the trip counts are. The oracle here plays out program order for many
trip counts, as the documentation of the spatial dialect describes it, and looks for an operation that waits
for a later one, or that touches a slot that is still in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin
from xdsl.parser import Parser
from xdsl.utils.exceptions import VerifyException

from flatc.accelerators import load
from flatc.dialects.accelerator import attach_accelerator
from flatc.dialects.spatial import Spatial

CAPACITY = load("edge").buffer.capacity_bytes


def verify(body: str, *, on_edge: bool = False) -> None:
    """Verifies a schedule of one kernel."""
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
    module = Parser(context, text).parse_module()
    if on_edge:
        attach_accelerator(module, load("edge"))
    module.verify()


def error(body: str, *, on_edge: bool = False) -> str:
    with pytest.raises(VerifyException) as caught:
        verify(body, on_edge=on_edge)
    return str(caught.value)


# --- Slots and stages ---------------------------------------------------------------------------------------


def load_then_store(slots: int, stage: int) -> str:
    return f"""
    spatial.for %i = 0 to 8 {{
      %b = spatial.buffer "b" slots {slots} : !spatial.buffer<4xf32>
      %t0 = spatial.load %x[0] into %b extent [4]
      %t1 = spatial.store %b into %x[0] extent [4] after(%t0) stage {stage}
    }}"""


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_use_so_many_stages_later_needs_one_slot_more(slots: int, stage: int):
    """In trip i the load fills instance i while the store still reads instance i - stage."""
    if stage < slots:
        verify(load_then_store(slots, stage))
    else:
        message = error(load_then_store(slots, stage))
        assert f'buffer "b" is filled at stage 0 and still in use at stage {stage}' in message
        assert f"it has {slots} slot{'s' if slots > 1 else ''} and needs {stage + 1}" in message


def test_a_last_use_that_stands_first_in_the_text_saves_a_slot():
    body = """
    spatial.for %i = 0 to 8 {
      %b = spatial.buffer "b" slots 1 : !spatial.buffer<4xf32>
      %t1 = spatial.store %b into %x[0] extent [4] stage 1
      %t0 = spatial.load %x[0] into %b extent [4]
    }"""
    verify(body)
    assert "needs 2" in error(body.replace("stage 1", "stage 2"))


# --- Tokens -------------------------------------------------------------------------------------------------


def test_a_token_from_a_later_stage_is_refused():
    body = load_then_store(2, 0).replace("extent [4]\n", "extent [4] stage 1\n", 1)
    message = error(body)
    assert "spatial.store at stage 0 waits for spatial.load of the same instance at stage 1" in message
    assert "give it stage 1 or more" in message


CARRIED = """
    %start = spatial.start
    %end = spatial.for %i = 0 to 8 carry(%c = %start) {{
      %b = spatial.buffer "b" slots 4 : !spatial.buffer<4xf32>
      %t0 = spatial.load %x[0] into %b extent [4] after(%c)
      %t1 = spatial.store %b into %x[0] extent [4] after(%t0) stage {stage}
      spatial.yield %t1
    }}"""


def test_a_carried_token_comes_from_one_trip_earlier():
    """The store of the instance before, at stage s, issues s - 1 trips after the load that waits for it."""
    verify(CARRIED.format(stage=0))
    assert "of the instance before at stage 1, which issues later" in error(CARRIED.format(stage=1))


def test_a_token_that_is_both_given_and_carried_must_come_in_time_as_both():
    """The first inner trip waits for the load of its own instance, the others for the same load again."""
    body = """
    spatial.for %i = 0 to 8 {
      %a = spatial.buffer "a" slots 4 : !spatial.buffer<4xf32>
      %t0 = spatial.load %x[0] into %a extent [4] stage 1
      %r = spatial.for %j = 0 to 8 stream carry(%c = %t0) {
        %t1 = spatial.store %a into %x[0] extent [4] after(%c)
        spatial.yield %t0
      }
    }"""
    assert "spatial.load of the same instance at stage 1" in error(body)
    verify(body.replace("after(%c)", "after(%c) stage 1"))


# --- Against brute force --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """One operation of a random chain of two loops."""

    section: str
    stage: int
    touches: tuple[str, ...]
    waits: tuple[str, ...]


@dataclass(frozen=True)
class Nest:
    """`for i { before; for j stream carry(c) { body }; after }` with a buffer `a` per i and `b` per j."""

    ops: tuple[Op, ...]
    slots: tuple[int, int]
    init: str
    yielded: str

    def text(self) -> str:
        lines = {section: self._lines(section) for section in ("before", "body", "after")}
        return f"""
        %start = spatial.start
        spatial.for %i = 0 to 8 {{
          %a = spatial.buffer "a" slots {self.slots[0]} : !spatial.buffer<4xf32>
          {lines["before"]}
          %r = spatial.for %j = 0 to 8 stream carry(%c = %{self.init}) {{
            %b = spatial.buffer "b" slots {self.slots[1]} : !spatial.buffer<4xf32>
            {lines["body"]}
            spatial.yield %{self.yielded}
          }}
          {lines["after"]}
        }}"""

    def _lines(self, section: str) -> str:
        lines: list[str] = []
        for number, op in enumerate(self.ops):
            if op.section == section:
                after = f" after({', '.join(f'%{token}' for token in op.waits)})" if op.waits else ""
                buffers = ", ".join(f"%{buffer}" for buffer in op.touches)
                work = f"vector cast ({buffers.split(', ')[0]}) into ({buffers.split(', ')[-1]}) extent [4]"
                lines.append(f"%t{number} = spatial.{work}{after} stage {op.stage}")
        return "\n".join(lines)


@st.composite
def nests(draw: st.DrawFn) -> Nest:
    sections = [s for s in ("before", "body", "after") for _ in range(draw(st.integers(int(s == "body"), 2)))]
    ops: list[Op] = []
    for number, section in enumerate(sections):
        visible = [f"t{n}" for n, other in enumerate(ops) if section == other.section or other.section == "before"]
        visible += {"before": [], "body": ["c"], "after": ["r"]}[section]
        buffers = [("a",), ("b",), ("a", "b")] if section == "body" else [("a",)]
        waits = draw(st.lists(st.sampled_from(visible), max_size=2, unique=True)) if visible else []
        ops.append(Op(section, draw(st.integers(0, 2)), draw(st.sampled_from(buffers)), tuple(waits)))
        assert len(ops) == number + 1
    before = [f"t{n}" for n, op in enumerate(ops) if op.section == "before"]
    body = [f"t{n}" for n, op in enumerate(ops) if op.section == "body"]
    init = draw(st.sampled_from(["start", *before]))
    yielded = draw(st.sampled_from(["c", *before, *body]))
    return Nest(tuple(ops), (draw(st.integers(1, 3)), draw(st.integers(1, 3))), init, yielded)


Instance = tuple[int, int]
"""The trip of the outer loop and that of the inner one; -1 stands for a run without trips."""


def program_order(nest: Nest, counts: Sequence[int]) -> list[tuple[int, Instance]]:
    """Which operation works on which instance, in the order of issue, for these inner trip counts."""
    trips = [(i, j) for i, count in enumerate(counts) for j in (range(count) if count else [-1])]
    issued: list[tuple[int, Instance]] = []
    for g in range(len(trips) + max(op.stage for op in nest.ops)):
        for number, op in enumerate(nest.ops):
            t = g - op.stage
            if not 0 <= t < len(trips):
                continue
            i, j = trips[t]
            first, last = j <= 0, j == counts[i] - 1
            if {"before": first, "after": last, "body": j >= 0}[op.section]:
                issued.append((number, (i, j if op.section == "body" else -2)))
    return issued


def producers(nest: Nest, token: str, instance: Instance, counts: Sequence[int]) -> tuple[int, Instance] | None:
    """The execution that a token of this instance comes from; None is the start of time."""
    i, j = instance
    if token == "start":
        return None
    if token == "r":
        return producers(nest, nest.yielded, (i, counts[i] - 1), counts) if counts[i] else _init(nest, i, counts)
    if token == "c":
        return producers(nest, nest.yielded, (i, j - 1), counts) if j > 0 else _init(nest, i, counts)
    number = int(token[1:])
    return number, (i, j if nest.ops[number].section == "body" else -2)


def _init(nest: Nest, i: int, counts: Sequence[int]) -> tuple[int, Instance] | None:
    return producers(nest, nest.init, (i, -2), counts)


def is_legal(nest: Nest, counts: Sequence[int]) -> bool:
    """Whether program order respects all tokens and slots for these trip counts."""
    issued = program_order(nest, counts)
    place = {execution: position for position, execution in enumerate(issued)}
    for number, instance in issued:
        for token in nest.ops[number].waits:
            producer = producers(nest, token, instance, counts)
            if producer is not None and place[producer] >= place[number, instance]:
                return False
    inner = [(i, j) for i, count in enumerate(counts) for j in range(count)]
    return _slots_hold(nest, "a", list(range(len(counts))), issued) and _slots_hold(nest, "b", inner, issued)


def _slots_hold(nest: Nest, buffer: str, instances: Sequence[object], issued: list[tuple[int, Instance]]) -> bool:
    slots = nest.slots[0 if buffer == "a" else 1]
    uses: dict[object, list[int]] = {instance: [] for instance in instances}
    for position, (number, instance) in enumerate(issued):
        if buffer in nest.ops[number].touches:
            uses[instance[0] if buffer == "a" else instance].append(position)
    ordered = list(uses.values())
    return all(max(old) < min(new) for old, new in zip(ordered, ordered[slots:], strict=False) if old and new)


COUNTS = [*product((0, 1, 2), repeat=3), (1, 1, 1, 1), (1, 1, 1, 1, 1), (3, 0, 0, 2), (0, 1, 0, 1), (4, 4)]


@settings(max_examples=300, deadline=None)
@given(nests())
def test_the_verifier_agrees_with_brute_force(nest: Nest):
    """It accepts what is legal for all trip counts, and refuses what is not for some."""
    legal = all(is_legal(nest, counts) for counts in COUNTS)
    if legal:
        verify(nest.text())
    else:
        error(nest.text())


# --- Memory ---------------------------------------------------------------------------------------------------


def buffers(*places: tuple[int, int, int | None]) -> str:
    """Buffers of so many floats, slots, at an address."""
    return "\n".join(
        f'%b{n} = spatial.buffer "b{n}" slots {slots}{"" if address is None else f" at {address}"} '
        f": !spatial.buffer<{floats}xf32>"
        for n, (floats, slots, address) in enumerate(places)
    )


def test_buffers_must_fit_together():
    half = CAPACITY // 8
    verify(buffers((half, 1, None), (half // 2, 2, None)), on_edge=True)
    message = error(buffers((half, 1, None), (half // 2, 2, None), (1, 1, None)), on_edge=True)
    assert f"need {CAPACITY + 4} bytes on chip and the accelerator has {CAPACITY}" in message
    assert "use smaller tiles or fewer slots" in message


def test_addresses_count_against_the_capacity():
    verify(buffers((4, 1, CAPACITY - 16)), on_edge=True)
    assert f"need {CAPACITY + 16} bytes" in error(buffers((4, 2, CAPACITY - 16)), on_edge=True)


def test_without_an_accelerator_there_is_no_capacity():
    verify(buffers((CAPACITY, 9, None)))


def test_all_slots_of_all_buffers_lie_apart():
    verify(buffers((4, 2, 0), (4, 1, 32), (4, 1, 48)))
    verify(buffers((4, 1, 48), (4, 2, 0), (4, 1, 32)))
    assert 'buffers "b0" and "b1" overlap at byte 31' in error(buffers((4, 2, 0), (4, 1, 31)))
    assert 'buffers "b1" and "b0" overlap at byte 16' in error(buffers((4, 1, 16), (40, 1, 0), (4, 1, 200)))


def test_addresses_are_for_all_buffers_or_for_none():
    assert "either all buffers of a kernel have an address or none has" in error(buffers((4, 1, 0), (4, 1, None)))


def test_kernels_use_the_memory_one_after_the_other():
    half = buffers((CAPACITY // 4 - 1, 1, None))
    verify(f'{half}\n}}\nspatial.kernel "next" {{\n{half}', on_edge=True)


def test_buffers_of_all_loops_count():
    body = "spatial.for %i = 0 to 2 {{\n{}\n}}"
    quarter = (CAPACITY // 16, 1, None)
    verify("\n".join([body.format(buffers(quarter))] * 4), on_edge=True)
    assert "on chip" in error("\n".join([body.format(buffers(quarter))] * 5), on_edge=True)
