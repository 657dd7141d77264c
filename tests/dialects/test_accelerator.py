"""The accelerator record: what it refuses, what it computes, and that its text in the IR is exact."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp, UnitAttr
from xdsl.ir import Dialect
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError

from flatc.dialects.accelerator import (
    MODULE_ATTRIBUTE,
    NO_VECTOR_UNIT,
    Accelerator,
    AcceleratorAttr,
    Array,
    Buffer,
    OffchipMemory,
    Registers,
    VectorEnergies,
    VectorPrices,
    VectorUnit,
    Words,
    accelerator_of,
    attach_accelerator,
    field_paths,
)
from flatc.dialects.diagnostics import FlatcError

CHIP = Accelerator(
    name="chip",
    description='a "quoted" chip,\nover two lines: é',
    clock_hz=940_000_000,
    offchip=OffchipMemory(50 * 2**30, 50 * 2**30, "shared", 12, 37.5),
    buffer=Buffer(512 * 2**10, 10**12, 2, 2.0, 1e-07),
    registers=Registers(0, 0.0),
    array=Array(32, 16, ("output", "weight"), (("mac", 1), ("exp", 7)), "exposed", (), 0.5),
    vector=VectorUnit(32, VectorPrices(1, 1, 1, 1, 1, 1, 0, 1), VectorEnergies(*[0.5] * 8)),
    words=Words(2, 4),
    sources=(("all", "assumption"), ("buffer.ports", "a data sheet")),
)


def _parse(text: str) -> ModuleOp:
    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Dialect("spatial", [], [AcceleratorAttr]))
    return Parser(context, text).parse_module()


def _module(accelerator: Accelerator) -> ModuleOp:
    module = ModuleOp([])
    attach_accelerator(module, accelerator)
    return module


def _reparsed(accelerator: Accelerator) -> Accelerator:
    return accelerator_of(_parse(str(_module(accelerator))))


def test_the_text_reads_back_as_an_equal_record():
    assert _reparsed(CHIP) == CHIP
    assert str(_module(_reparsed(CHIP))) == str(_module(CHIP))
    assert hash(AcceleratorAttr(CHIP)) == hash(AcceleratorAttr(replace(CHIP)))


def test_the_text_is_for_readers():
    text = str(_module(CHIP))
    assert "\n  array = {rows = 32, columns = 16, stationarities = [output, weight]," in text
    assert "pe_cycles = {mac = 1, exp = 7}" in text
    assert '\n  sources = {all = assumption, buffer.ports = "a data sheet"}>' in text


@given(
    text=st.text(),
    energy=st.floats(min_value=0, allow_infinity=False, allow_nan=False),
    bandwidth=st.none() | st.integers(1, 10**30),
    source=st.sampled_from(field_paths()),
)
def test_any_text_and_number_reads_back(text: str, energy: float, bandwidth: int | None, source: str):
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "surrogate"
    buffer = replace(CHIP.buffer, bandwidth_bytes_per_second=bandwidth, read_energy_pj_per_byte=energy)
    chip = replace(CHIP, name=text, description=text, buffer=buffer, sources=((source, text),))
    assert _reparsed(chip) == chip


def test_a_machine_without_vector_unit_reads_back():
    chip = replace(CHIP, vector=NO_VECTOR_UNIT)
    assert _reparsed(chip) == chip
    assert chip.free_vector_operations == ()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("array", {"rows": 0}, "Array.rows must be positive, got 0"),
        ("array", {"rows": 2.0}, "Array.rows must be a whole number, got 2.0"),
        ("array", {"rows": True}, "Array.rows must be a whole number, got True"),
        ("array", {"skew": "hidden"}, "Array.skew must be one of exposed, overlapped, none, got 'hidden'"),
        ("array", {"stationarities": ("outputs",)}, "Array.stationarities has an unknown entry 'outputs'"),
        ("array", {"stationarities": ()}, "Array.stationarities must name at least one"),
        ("array", {"foldings": ("rows", "rows")}, "Array.foldings names 'rows' twice"),
        ("array", {"foldings": ["rows"]}, "Array.foldings must be a tuple of names"),
        ("array", {"pe_cycles": (("exp", 7),)}, "Array.pe_cycles must price 'mac'"),
        ("array", {"pe_cycles": (("mac", 0),)}, "Array.pe_cycles.mac must be positive"),
        ("array", {"mac_energy_pj": math.nan}, "Array.mac_energy_pj must be a finite number"),
        ("buffer", {"capacity_bytes": -1}, "Buffer.capacity_bytes must be positive, got -1"),
        ("buffer", {"bandwidth_bytes_per_second": 0}, "Buffer.bandwidth_bytes_per_second must be positive"),
        ("offchip", {"latency_cycles": -1}, "OffchipMemory.latency_cycles must be at least 0, got -1"),
        ("offchip", {"write_bytes_per_second": 1}, "OffchipMemory.channels is shared"),
        ("vector", {"lanes": 0}, "VectorUnit.lanes must be positive where operations have a price"),
        ("words", {"storage_bytes": "2"}, "Words.storage_bytes must be a whole number, got '2'"),
    ],
)
def test_a_record_refuses_what_makes_no_sense(part: str, change: dict[str, Any], message: str):
    with pytest.raises(FlatcError) as error:
        replace(getattr(CHIP, part), **change)
    assert error.value.message.startswith(message)


def test_sources_name_fields():
    with pytest.raises(FlatcError, match=r"unknown entry 'buffer\.port'"):
        replace(CHIP, sources=(("buffer.port", "x"),))


def test_a_field_has_its_own_source_or_that_of_its_group():
    chip = replace(CHIP, sources=(("all", "a"), ("buffer", "b"), ("buffer.ports", "c")))
    paths = ("buffer.ports", "buffer.capacity_bytes", "buffer", "vector.prices.max", "clock_hz")
    assert [chip.source_of(path) for path in paths] == ["c", "b", "b", "a", "a"]
    assert replace(CHIP, sources=()).source_of("clock_hz") is None


def test_time_is_exact():
    assert CHIP.cycles_per_byte_read == Fraction(940_000_000, 50 * 2**30)
    assert CHIP.cycles_per_byte_written == CHIP.cycles_per_byte_read
    assert CHIP.buffer_cycles_per_byte == Fraction(940_000_000, 10**12)
    unlimited = replace(CHIP, buffer=replace(CHIP.buffer, bandwidth_bytes_per_second=None))
    assert unlimited.buffer_cycles_per_byte == 0
    assert CHIP.seconds(CHIP.cycles_per_byte_read * 50 * 2**30) == 1.0
    assert CHIP.seconds(470_000_000) == 0.5


def test_free_operations_are_known():
    assert CHIP.free_vector_operations == ("cast",)
    assert CHIP.array.cycles_of("exp") == 7
    assert CHIP.array.cycles_of("max") is None
    assert CHIP.array.pes == 512


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows = 32", "rows = -32", "Array.rows must be positive, got -32"),
        ("rows = 32, ", "", "Array lacks the field 'rows'"),
        ("rows = 32", "row = 32", "Array has no field 'row'; did you mean 'rows'?"),
        ("rows = 32", "rows = 32, rows = 33", "field 'rows' is given twice"),
        ("rows = 32", "rows = thirty", "Array.rows must be a whole number, got 'thirty'"),
        ("channels = shared", "channels = split", "OffchipMemory.channels must be one of shared, separate"),
        ("words = {storage_bytes = 2, accumulator_bytes = 4}", "words = 3", "Accelerator.words must be a Words"),
    ],
)
def test_edited_text_is_refused_with_the_reason(old: str, new: str, message: str):
    text = str(_module(CHIP))
    assert old in text
    with pytest.raises(ParseError) as error:
        _parse(text.replace(old, new))
    assert error.value.msg.startswith(message)


def test_a_module_without_accelerator_is_the_users_mistake():
    with pytest.raises(FlatcError, match=r"has no 'spatial\.accelerator' attribute") as error:
        accelerator_of(ModuleOp([]))
    assert "--accelerator" in (error.value.help or "")
    with pytest.raises(FlatcError, match="a wrong"):
        accelerator_of(ModuleOp([], attributes={MODULE_ATTRIBUTE: UnitAttr()}))
