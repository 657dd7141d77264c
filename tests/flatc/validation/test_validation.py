"""Recorded figures against flatc: every row that flatc expresses is met, every other has a reason."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path
from shutil import copyfile
from tempfile import TemporaryDirectory

import pytest

from flatc.accelerators import load
from flatc.compiler import compile
from flatc.dialects.diagnostics import FlatcError
from flatc.passes.cost.primitive_costs import VECTOR_WORK
from flatc.validation import Table, flat_paper, fusemax_study, render, to_json, validate
from flatc.validation.document import fill
from flatc.validation.experiment import Sizes, attention, machine, products, run
from flatc.validation.flat_paper import Recorded

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "tests" / "reference"
DOCUMENT = ROOT / "docs" / "validation.md"

FLAT = ["flat-ideal", "flat-traffic", "flat-latency", "flat-overlapped"]
STUDY = [f"study-{design}-{what}" for design in ("unfused", "flat", "fusemax") for what in ("latency", "traffic")]


@cache
def tables() -> dict[str, Table]:
    """The tables of `fusemax_flat.csv`; those of the RTL have tests of their own."""
    with TemporaryDirectory() as folder:
        copyfile(REFERENCE / "fusemax_flat.csv", Path(folder) / "fusemax_flat.csv")
        return {table.name: table for table in validate(Path(folder))}


def recorded_rows() -> list[dict[str, str]]:
    """The file as a spreadsheet would see it."""
    lines = (REFERENCE / "fusemax_flat.csv").read_text().splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def small(**changes: str) -> str:
    """A reference file of one short row."""
    row = dict.fromkeys(recorded_rows()[0], "")
    row |= {"platform": "edge", "model": "tiny", "seq_len_tokens": "100", "batch": "2", "heads": "3", "head_dim": "80"}
    row |= {"flatcode_query_rows_per_iteration": "7", "flatcode_stationarity": "weight", "flatcode_onchip_tensors": "Q"}
    row |= {"flatcode_buffered_fraction": "1", "flatcode_ideal_latency_s": "1", "flatcode_latency_s": "1"}
    row |= {"flatcode_dram_bytes": "1"} | changes
    return ",".join(row) + "\n" + ",".join(row.values()) + "\n"


# --- The shipped figures ----------------------------------------------------------------------------------------


def test_these_tables_are_made():
    assert set(FLAT + STUDY) <= set(tables())


@pytest.mark.parametrize("name", FLAT + STUDY)
def test_every_row_is_met_or_has_a_reason(name: str):
    assert tables()[name].unexplained == ()


@pytest.mark.parametrize("name", FLAT)
def test_every_row_of_flats_code_is_compared_with_the_recorded_figure(name: str):
    column = {"flat-ideal": "ideal_latency_s", "flat-traffic": "dram_bytes"}.get(name, "latency_s")
    table = tables()[name]
    assert [row.recorded for row in table.rows] == [float(row[f"flatcode_{column}"]) for row in recorded_rows()]
    assert all(row.flatc is not None for row in table.rows)


@pytest.mark.parametrize("name", STUDY)
def test_every_row_of_the_study_is_compared_with_the_recorded_figure(name: str):
    _, design, what = name.split("-")
    column = f"{design}_{'latency_s' if what == 'latency' else 'dram_bytes'}"
    figures = [float(row[column]) for row in recorded_rows() if row[column]]
    assert [row.recorded for row in tables()[name].rows] == figures


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("flat-ideal", 48),
        ("flat-traffic", 24),
        ("flat-latency", 8),
        ("flat-overlapped", 32),
        ("study-unfused-latency", 12),
        ("study-unfused-traffic", 12),
        ("study-flat-latency", 8),
        ("study-flat-traffic", 4),
        ("study-fusemax-latency", 12),
        ("study-fusemax-traffic", 12),
    ],
)
def test_this_many_rows_are_expressed_in_full(name: str, rows: int):
    """A reason more on a row that was met must not go unnoticed."""
    expressed = tables()[name].expressed
    assert expressed is not None
    assert (expressed.rows, expressed.within) == (rows, rows)


@pytest.mark.slow
def test_the_document_has_every_table():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert fill(text, validate()) == text, "run python -m flatc.validation.document docs/validation.md"


def test_a_document_without_a_place_for_a_table_is_refused():
    with pytest.raises(FlatcError, match="no place for flat-ideal"):
        fill("nothing", [tables()["flat-ideal"]])


# --- Traffic and time from first principles ---------------------------------------------------------------------


def flat(sizes: Sizes, rows: int, onchip: str, platform: str = "edge") -> Recorded:
    """A mapping as FLAT's code would record it."""
    return Recorded(sizes, platform, rows, "weight", tuple(onchip.split("+")), 1.0)


def test_spilled_scores_are_written_once_and_read_once_a_strip_of_values():
    sizes = Sizes(2, 3, 1024, 64)
    tensor, scores = 6 * sizes.head_bytes, 6 * 1024 * 1024 * 2
    result = flat_paper.schedule(flat(sizes, 128, "Q"))
    assert result.offchip_bytes == 2 * tensor + 2 * tensor * 8 + 3 * scores


def test_scores_on_chip_leave_keys_and_values_once_an_iteration():
    sizes = Sizes(2, 3, 1024, 64)
    tensor = 6 * sizes.head_bytes
    assert flat_paper.schedule(flat(sizes, 128, "Q+QK+A")).offchip_bytes == 2 * tensor + 2 * tensor * 8


def test_a_mapping_larger_than_the_buffer_is_priced_and_said_not_to_fit():
    sizes = Sizes(1, 1, 4096, 64)
    fits, does_not = (flat_paper.schedule(flat(sizes, rows, "Q+QK+A")) for rows in (16, 64))
    assert (fits.fits, does_not.fits) == (True, False)
    assert fits.peak_bytes <= 512 * 1024 < does_not.peak_bytes
    assert does_not.offchip_bytes == (2 + 2 * 64) * sizes.head_bytes


def test_the_last_strip_of_values_may_be_narrower():
    sizes = Sizes(1, 2, 100, 80)
    tensor, scores = 2 * sizes.head_bytes, 2 * 100 * 100 * 2
    assert flat_paper.schedule(flat(sizes, 50, "Q")).offchip_bytes == 2 * tensor + 2 * tensor * 2 + 4 * scores


def test_mappings_that_fit_are_simulated_and_verified():
    """The figure of a table is the one that compiling with the same graph, machine and mapping gives."""
    sizes, accelerator = Sizes(1, 2, 300, 64), machine("study_cloud")
    given = fusemax_study.unfused_mappings(sizes, accelerator)
    report = compile(attention(sizes), accelerator, mapping=given).report
    result = run(attention(sizes), accelerator, given)
    assert (report.latency_seconds, report.offchip_bytes) == (result.latency_s, result.offchip_bytes)
    assert {kernel.latency_source for kernel in report.kernels} == {"simulated"}


def test_validated_schedules_compute_attention():
    sizes, accelerator = Sizes(1, 2, 96, 16), machine("study_fusemax")
    given = fusemax_study.fusemax_mappings(sizes, accelerator)
    assert compile(attention(sizes), accelerator, mapping=given).run().passed


def test_strips_of_values_are_kernels_of_their_own():
    text = str(products(Sizes(1, 1, 8, 80), 32))
    assert text.count("attn.attend") == 3


def test_flats_machines_charge_no_softmax():
    for name in ("flat_edge", "flat_cloud"):
        accelerator = machine(name)
        assert not any(vars(accelerator.vector.prices).values())
        assert (accelerator.array.skew, accelerator.array.foldings) == ("none", ())


def test_validation_machines_are_the_shipped_ones_under_other_assumptions():
    for name, shipped in (
        ("flat_edge", "edge"),
        ("flat_cloud", "cloud"),
        ("study_cloud", "cloud"),
        ("study_fusemax", "fusemax"),
    ):
        ours, theirs = load(shipped), machine(name)
        assert (theirs.clock_hz, theirs.offchip.read_bytes_per_second) == (
            ours.clock_hz,
            ours.offchip.read_bytes_per_second,
        )
        assert (theirs.array.rows, theirs.array.columns) == (ours.array.rows, ours.array.columns)
        assert (theirs.vector.lanes, theirs.buffer.capacity_bytes) == (ours.vector.lanes, ours.buffer.capacity_bytes)


def test_fusemaxs_ten_cycles_of_row_work_are_flatcs_own():
    """The study charges 10 cycles a 256 x 256 tile for what belongs to rows: flatc's online softmax at its prices."""
    prices = machine("study_fusemax").vector.prices
    per_row = [*VECTOR_WORK["row_max_online"].per_row, *VECTOR_WORK["exp_sum_online"].per_row]
    assert sum(getattr(prices, name) for name in per_row) == 10


# --- Other files --------------------------------------------------------------------------------------------------


def test_tests_and_flatc_read_the_same_files():
    shipped = ROOT / "flatc" / "validation" / "reference"
    assert REFERENCE.resolve() == shipped
    assert "MIT licence" in (REFERENCE / "README.md").read_text()
    for path in REFERENCE.glob("*.csv"):
        assert path.read_text().startswith("#"), "a first line says where the figures are from"
        assert path.name.removesuffix(".csv") in (REFERENCE / "README.md").read_text()


def test_a_folder_of_other_figures_is_read(tmp_path: Path):
    (tmp_path / "fusemax_flat.csv").write_text(small())
    found = {table.name: table for table in validate(tmp_path)}
    row = found["flat-ideal"].rows[0]
    assert (row.label, row.recorded) == ("edge tiny 100", 1.0)
    assert row.flatc == pytest.approx(6 * 100 * 100 * 80 * 2 / 32 / 32 / 940e6, rel=1e-12)
    assert found["study-flat-latency"].rows == ()
    assert "MISS, unexplained" in render(list(found.values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"platform": "moon"}, r"fusemax_flat.csv:2:1: error: platform: expected one of edge, cloud, got 'moon'"),
        ({"heads": "-3"}, r"fusemax_flat.csv:2:17: error: heads: expected a positive whole number, got '-3'"),
        ({"flatcode_dram_bytes": "many"}, "flatcode_dram_bytes: expected a positive number, got 'many'"),
        ({"flatcode_stationarity": "none"}, "expected one of output, weight, input, got 'none'"),
        ({"flatcode_onchip_tensors": "Q+X"}, "expected tensors of Q, K, V, QK, A, AV, got 'X'"),
        ({"flatcode_query_rows_per_iteration": "101"}, "there are only 100 rows"),
        ({"seq_len_tokens": "1000000000"}, "together are too large"),
        ({"flat_latency_s": "1"}, r"platform: expected one of cloud, got 'edge'"),
    ],
)
def test_a_mistake_in_a_file_is_one_error_at_its_place(tmp_path: Path, changes: dict[str, str], message: str):
    (tmp_path / "fusemax_flat.csv").write_text(small(**changes))
    with pytest.raises(FlatcError, match=message) as caught:
        validate(tmp_path)
    assert caught.value.position is not None


def test_a_folder_without_reference_files_is_refused(tmp_path: Path):
    with pytest.raises(FlatcError, match=r"holds no reference file(.|\n)*fusemax_flat.csv"):
        validate(tmp_path)
    with pytest.raises(FlatcError, match="is no folder"):
        validate(tmp_path / "nothing")


def test_a_missing_file_is_skipped_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from flatc import validation

    other = validation.Source("other.csv", "Others", lambda records: [])
    monkeypatch.setattr(validation, "SOURCES", (*validation.SOURCES, other))
    (tmp_path / "other.csv").write_text("a\n1\n")
    notes = [note for table in validate(tmp_path) for note in table.notes]
    assert notes
    assert all(note.startswith("skipped, there is no ") for note in notes)
    assert any("fusemax_flat.csv" in note for note in notes)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "fusemax_flat.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FlatcError, match="not UTF-8"):
        validate(tmp_path)


def test_json_is_complete():
    data = json.loads(to_json(list(tables().values())))
    assert [table["name"] for table in data["tables"]] == list(tables())
    assert sum(len(table["rows"]) for table in data["tables"]) >= 4 * 48 + 6 * 12
