"""`flatc reproduce`: studies are tables that add up, and the same question gives the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

import flatc
from flatc.accelerators import load
from flatc.cli import main
from flatc.dialects.diagnostics import FlatcError
from flatc.reproduce import STUDIES, reproduce
from flatc.reproduce.document import document
from flatc.reproduce.flat_sweeps import footprint
from flatc.reproduce.model import Column, Study, Table, line, mean
from flatc.reproduce.text import files, render, to_csv
from flatc.reproduce.workloads import MODELS, Level, Workload, free_softmax, lengths, measure

BERT = MODELS[0]


def test_a_point_is_what_compile_says() -> None:
    edge, work = load("edge"), Workload(BERT, 512)
    found = measure(work, edge, "flat-r")
    report = flatc.compile(work.graph(), edge, strategy="flat-r").report
    assert found is not None
    assert found.latency_seconds == report.latency_seconds
    assert found.utilisation == pytest.approx(report.utilisation["array"], rel=0.2)
    assert found.utilisation <= 1
    assert found.offchip_bytes == report.offchip_bytes


@pytest.mark.parametrize("level", ["block", "layer"])
def test_levels_around_attention_are_those_of_the_whole_graph(level: Level) -> None:
    """Attention of one strategy and the kernels around it, measured apart, are the graph under that strategy."""
    cloud, work = load("cloud"), Workload(MODELS[4], 64, level)
    found, report = measure(work, cloud, "unfused"), flatc.compile(work.graph(), cloud, strategy="unfused").report
    assert found is not None
    assert found.latency_seconds == pytest.approx(report.latency_seconds, rel=1e-12)
    assert found.energy_pj == pytest.approx(report.energy_pj, rel=1e-12)
    assert (found.offchip_bytes, found.macs) == (report.offchip_bytes, report.work.macs)


def test_a_granularity_that_does_not_fit_has_no_figure() -> None:
    assert measure(Workload(BERT, 512), load("edge"), "flat-m") is None


def test_where_vector_work_is_free_the_vector_unit_is_never_busy() -> None:
    free = free_softmax(load("cloud"))
    assert flatc.compile(Workload(BERT, 512).graph(), free).report.utilisation["vector"] == 0


def test_footprints_are_those_of_the_paper() -> None:
    """4Rd + 4Nd + RN elements for R rows of one head; M-Gran holds all 64 x 12 heads."""
    (table,) = footprint(quick=True).tables
    n, d, r = 512, 64, 64
    by_head = 4 * n * d + 4 * n * d + n * n
    assert table.rows[0] == (n, 768 * by_head, 12 * by_head, by_head, 4 * r * d + 4 * n * d + r * n, 8 * r * d + r * r)


def test_lengths_double_and_quick_ones_keep_the_ends() -> None:
    assert list(lengths(512, 4096, quick=False)) == [512, 1024, 2048, 4096]
    assert list(lengths(512, 4096, quick=True)) == [512, 2048, 4096]


@pytest.mark.parametrize("level", ["block", "layer"])
def test_levels_hold_the_products_around_attention(level: Level) -> None:
    text = str(Workload(MODELS[4], 512, level).graph().module())
    assert text.count("attn.linear") == {"block": 4, "layer": 6}[level]


# --- Writing --------------------------------------------------------------------------------------------------


def _study() -> Study:
    columns = (Column("model"), Column("tokens", digits=0), Column("latency", "s", 3))
    table = Table("points", "Every point", columns, (("BERT", 65536, 1.25), ("T5", 512, None)))
    long = Table("all", "All of them", columns, table.rows, shown=False)
    return Study("some", "Some study", ("nothing",), (table, long))


def test_text_shows_units_and_a_dash_where_there_is_no_figure() -> None:
    assert render(_study()) == (
        "Some study\n  assumes: nothing\n\nEvery point\n  model  tokens  latency [s]\n  BERT   65,536        1.250\n"
        "  T5        512            -\n\nAll of them: 2 rows in its .csv file\n"
    )


def test_a_csv_file_has_numbers_as_they_are() -> None:
    assert to_csv(_study().tables[0]) == "model,tokens,latency [s]\nBERT,65536,1.25\nT5,512,\n"
    assert list(files(_study())) == ["some.txt", "some-points.csv", "some-all.csv"]


def test_means_and_lines_leave_out_what_has_no_figure() -> None:
    assert mean([]) is None
    assert mean([1.0, 2.0]) == 1.5
    assert line("l", [1, 2], [None, 3.0]).points == ((2, 3.0),)


def test_the_document_holds_what_is_printed() -> None:
    assert f"## some\n\n```text\n{render(_study())}```" in document([_study()])


# --- The command ----------------------------------------------------------------------------------------------


def test_the_command_prints_a_study_and_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "flat-footprint", "-o", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    assert main(["reproduce", "flat-footprint", "-o", str(tmp_path / "two")]) == 0
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["flat-footprint-footprint.csv", "flat-footprint-footprint.svg", "flat-footprint.txt"]
    assert (tmp_path / "one" / "flat-footprint.txt").read_text() == printed
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_unknown_study_is_named_with_a_suggestion() -> None:
    with pytest.raises(FlatcError, match="unknown study 'fusemx'") as error:
        reproduce(["fusemx"])
    assert "fusemax" in str(error.value.help)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_a_figure_at_every_point_but_where_nothing_fits(name: str) -> None:
    (study,) = reproduce([name], quick=True)
    assert study.assumptions
    for table in study.tables:
        assert table.rows
        for row in table.rows:
            assert any(isinstance(cell, int | float) for cell in row), row
