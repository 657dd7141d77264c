"""Accelerator files: the shipped ones hold what the papers say, and every mistake is shown in its place."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest

from flatc import accelerators
from flatc.accelerators.loader import parse
from flatc.accelerators.units import MEASURES, format_quantity
from flatc.accelerators.units import parse as parse_quantity
from flatc.dialects.accelerator import NO_VECTOR_UNIT, field_paths
from flatc.dialects.diagnostics import FlatcError

EDGE = accelerators.describe(accelerators.load("edge"))


def test_shipped_names():
    assert {"cloud", "edge", "fusemax", "rtl16"} <= set(accelerators.names())
    for name in accelerators.names():
        assert accelerators.load(name).name == name


@pytest.mark.parametrize("name", accelerators.names())
def test_a_description_is_a_file_that_loads_as_the_same_machine(name: str):
    accelerator = accelerators.load(name)
    text = accelerators.describe(accelerator)
    assert parse(text, "described.yaml") == accelerator
    assert accelerators.describe(parse(text, "described.yaml")) == text


@pytest.mark.parametrize("name", accelerators.names())
def test_every_number_has_a_source(name: str):
    accelerator = accelerators.load(name)
    for path in field_paths():
        left_out = path in ("offchip.overhead_cycles", "array.overhead_cycles", "array.chaining") and name != "rtl16"
        assert left_out or accelerator.source_of(path) or path.count(".") == 0


def test_flats_edge():
    edge = accelerators.load("edge")
    assert (edge.array.rows, edge.array.columns, edge.vector.lanes) == (32, 32, 32)
    assert edge.buffer.capacity_bytes == 512 * 1024
    assert edge.buffer.bandwidth_bytes_per_second == 10**12
    assert edge.offchip.read_bytes_per_second == edge.offchip.write_bytes_per_second == 50 * 2**30
    assert edge.cycles_per_byte_read == Fraction(940 * 10**6, 50 * 2**30)
    assert edge.words.storage_bytes == 2
    assert edge.free_vector_operations == ("cast",)


def test_flats_cloud():
    cloud = accelerators.load("cloud")
    assert (cloud.array.pes, cloud.vector.lanes) == (256 * 256, 256)
    assert cloud.buffer.capacity_bytes == 32 * 2**20
    assert cloud.offchip.read_bytes_per_second == 400 * 2**30
    assert cloud.buffer.bandwidth_bytes_per_second == 8 * 10**12


def test_fusemax():
    fusemax = accelerators.load("fusemax")
    assert dict(fusemax.array.pe_cycles) == {"mac": 1, "max": 1, "add": 1, "exp": 7}
    assert fusemax.vector.prices.exp == 7
    assert fusemax.buffer.capacity_bytes == 16 * 2**20
    assert fusemax.buffer_cycles_per_byte == 0
    assert fusemax.vector.energies_pj.exp == 94.6


def test_rtl16():
    rtl16 = accelerators.load("rtl16")
    assert rtl16.array.pes == 256
    assert rtl16.vector == NO_VECTOR_UNIT
    assert rtl16.offchip.channels == "separate"
    assert 1 / rtl16.cycles_per_byte_read == 4 * rtl16.words.storage_bytes
    assert 1 / rtl16.buffer_cycles_per_byte == 32 * rtl16.words.storage_bytes


def test_a_users_file_works_wherever_a_name_does(tmp_path: Path):
    path = tmp_path / "chip.yaml"
    path.write_text("\ufeff" + EDGE.replace("name: edge", "name: chip").replace("\n", "\r\n"), encoding="utf-8")
    assert accelerators.load(path).name == "chip"
    assert accelerators.load(str(path)).array == accelerators.load("edge").array


MISTAKES = [
    ("capacity: 512 KiB", "capacity: 512", "buffer.capacity: '512' has no unit; expected a size", "like 512 KiB"),
    ("capacity: 512 KiB", "capacity: 512 kib", "'kib' is no unit of a size", "did you mean 'KiB'?"),
    ("capacity: 512 KiB", "capacity: 940 MHz", "buffer.capacity: 'MHz' is no unit of a size", "KiB"),
    ("capacity: 512 KiB", "capacity: -4 KiB", "buffer.capacity must be positive, got '-4 KiB'", None),
    ("capacity: 512 KiB", "capacity: 0.3 B", "must be a whole number of B, got '0.3 B'", None),
    ("capacity: 512 KiB", "capacity: [1, 2]", "buffer.capacity must be a single value", None),
    ("capacity: 512 KiB", "capacity: 1e999 B", "is too large", None),
    ("bandwidth: 50 GiB/s", "bandwidth: 50 GiBps", "offchip.bandwidth: 'GiBps' is no unit", "'GiB/s'?"),
    ("channels: shared", "channels: share", "offchip.channels must be one of shared, separate", "'shared'?"),
    ("channels: shared", "chanels: shared", "unknown field 'offchip.chanels'", "did you mean 'channels'?"),
    ("rows: 32", "rows: many", "array.rows: expected a whole number, got 'many'", None),
    ("rows: 32", "rows: 32 PEs", "expected a whole number without a unit", None),
    ("rows: 32", "rows: 3.5", "array.rows must be a whole number, got '3.5'", None),
    ("  rows: 32\n", "", "missing field 'array.rows'", "for example 'rows: 32'"),
    ("  rows: 32\n", "  rows: 32\n  rows: 33\n", "'rows' is given twice", None),
    ("  channels: shared", "  read_bandwidth: 1 GB/s\n  channels: shared", "has 'bandwidth' already", None),
    ("bandwidth: 50 GiB/s", "write_bandwidth: 50 GiB/s", "missing field 'offchip.bandwidth'", "50 GiB/s"),
    ("{mac: 1 cycle}", "{max: 1 cycle}", "array.operations must price 'mac'", None),
    ("{mac: 1 cycle}", "{mac: 0 cycles}", "array.operations.mac must be positive, got '0 cycles'", None),
    ("{mac: 1 cycle}", "{mac: 1 cycle, sin: 2 cycles}", "unknown field 'array.operations.sin'", None),
    ("[rows, columns]", "[row]", "array.foldings must be one of rows, columns", "did you mean 'rows'?"),
    ("[rows, columns]", "[rows, rows]", "array.foldings names 'rows' twice", None),
    ("[rows, columns]", "rows", "array.foldings must be a list", "[rows, columns"),
    ("vector:\n", "vector: 3\nvectors:\n", "unknown field 'vectors'", "did you mean 'vector'?"),
    ("clock: 940 MHz", "clock: 940: MHz", "this is not YAML", None),
    ("name: edge", "name:", "name is empty", None),
    ("lanes: 32", "lanes: 0", "vector.lanes must be positive", "vector: none"),
]


@pytest.mark.parametrize(("old", "new", "message", "help"), MISTAKES, ids=[case[1] for case in MISTAKES])
def test_a_mistake_is_shown_in_its_place(old: str, new: str, message: str, help: str | None):
    assert EDGE.count(old) >= 1
    with pytest.raises(FlatcError) as error:
        parse(EDGE.replace(old, new, 1), "chip.yaml")
    assert message in error.value.message
    assert help is None or help in (error.value.help or "")
    position = error.value.position
    assert position is not None
    assert position.file == "chip.yaml"
    assert position.line == pytest.approx(EDGE[: EDGE.index(old)].count("\n") + 1, abs=2)
    assert error.value.source_line is not None
    assert "chip.yaml:" in str(error.value)


def test_a_number_without_source_is_refused():
    text = "".join(line for line in EDGE.splitlines(keepends=True) if not line.startswith(("source:", "  clock: ")))
    with pytest.raises(FlatcError, match="no source is given for clock_hz"):
        parse(text, "chip.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'chip.yaml' is empty"),
        ("# nothing", "'chip.yaml' is empty"),
        ("hello", "an accelerator file must be a group of fields"),
        ("- 1\n- 2", "an accelerator file must be a group of fields"),
        ("a: 1\n---\nb: 2", "this is not YAML"),
        ("\0", "'chip.yaml' is not YAML"),
        ("[" * 5000, "'chip.yaml' is not YAML"),
        ("? [a]\n: b", "must be a single value"),
        ("&a [*a]", "an accelerator file must be a group of fields"),
        ("name: !!python/object/apply:os.system [x]", "name must be a single value"),
    ],
)
def test_what_is_no_accelerator_file_is_refused(text: str, message: str):
    with pytest.raises(FlatcError) as error:
        parse(text, "chip.yaml")
    assert message in error.value.message or message.startswith("name")


@pytest.mark.parametrize("end", range(0, len(EDGE), 97))
def test_a_file_cut_off_anywhere_is_refused(end: int):
    with pytest.raises(FlatcError):
        parse(EDGE[:end], "chip.yaml")


def test_what_cannot_be_read_is_refused(tmp_path: Path):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(bytes(range(256)))
    cases = {
        "edg": "no accelerator is named 'edg'",
        "": "no accelerator is named ''",
        "x" * 5000: "no accelerator is named",
        "missing.yaml": "cannot read the accelerator file 'missing.yaml'",
        "nul\0.yaml": "cannot read the accelerator file",
        str(tmp_path): "cannot read the accelerator file",
        str(binary): "it is not UTF-8 text",
    }
    for name, message in cases.items():
        with pytest.raises(FlatcError) as error:
            accelerators.load(name)
        assert message in error.value.message


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(FlatcError) as error:
        accelerators.load("edg")
    assert error.value.help == "did you mean 'edge'?"
    assert "edge" in error.value.notes[0]


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [
        ("512 KiB", "B", 524288),
        ("1.5 MiB", "B", 1572864),
        ("50GiB/s", "B/s", 53687091200),
        ("50 GB/s", "B/s", 50 * 10**9),
        ("1e12 B/s", "B/s", 10**12),
        ("940 MHz", "Hz", 940 * 10**6),
        ("1 cycle", "cycles", 1),
        ("0.1 pJ", "pJ", Fraction(1, 10)),
        ("3.9 pJ/bit", "pJ/B", Fraction(312, 10)),
        ("32", "", 32),
    ],
)
def test_quantities_are_read_exactly(text: str, base: str, value: Fraction):
    assert parse_quantity(text, base) == value


def test_a_bandwidth_may_be_given_by_cycle():
    assert parse_quantity("8 B/cycle", "B/s", clock_hz=940_000_000) == 8 * 940_000_000
    with pytest.raises(FlatcError, match="no unit of a bandwidth"):
        parse_quantity("8 B/cycle", "B/s")


@pytest.mark.parametrize("base", [base for base in MEASURES if base not in ("pJ", "pJ/B")])
@pytest.mark.parametrize("value", [0, 1, 7, 1000, 1024, 524288, 53687091200, 10**12, 999_999_999_999])
def test_a_printed_quantity_reads_back(base: str, value: int):
    assert parse_quantity(format_quantity(value, base), base) == value


@pytest.mark.parametrize("value", [0.0, 0.5, 37.5, 1e-7, 0.1, 1e22])
def test_a_printed_energy_reads_back(value: float):
    assert float(parse_quantity(format_quantity(value, "pJ/B"), "pJ/B")) == value
