"""The command line: what it prints, what it writes, and one clear message for everything that can be wrong."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flatc.cli import bindings, main
from flatc.dialects.diagnostics import FlatcError

ROOT = Path(__file__).resolve().parents[2]
BERT = str(ROOT / "examples" / "bert_base.flat")
SMALL = ["--bind", "B=1,H=2,S=48"]

Capture = pytest.CaptureFixture[str]


def run(capsys: Capture, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys: Capture, *arguments: str) -> str:
    """The one message of a command that must fail."""
    status, out, err = run(capsys, *arguments)
    assert status == 1
    assert out == ""
    assert "Traceback" not in err
    assert len(re.findall(r"(?:^|: )error: ", err, re.MULTILINE)) == 1, err
    return err


@cache
def compiled(*arguments: str) -> dict[str, Any]:
    """The JSON of a compilation, which several tests look at; files among the arguments stay as they are."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        assert main(["compile", BERT, *arguments, "--json"]) == 0
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small compilation, which nobody changes."""
    out = tmp_path_factory.mktemp("new") / "small" / "out"
    assert main(["compile", BERT, *SMALL, "-o", str(out)]) == 0
    return out


# --- compile --------------------------------------------------------------------------------------------------


def test_json_is_all_that_standard_output_holds(capsys: Capture):
    status, out, err = run(capsys, "compile", BERT, "--accelerator", "edge", *SMALL, "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report == compiled(*SMALL)
    assert (report["schema_version"], report["accelerator"], report["strategy"]) == (1, "edge", "auto")
    keys = ("latency_cycles", "latency_seconds", "offchip_bytes", "peak_buffer_bytes", "energy_pj")
    for costs in (report["totals"], *report["kernels"]):
        assert all(costs[key] > 0 for key in keys)
        assert set(costs["bounds"]) == {"array_cycles", "offchip_cycles", "vector_cycles"}
        assert all(isinstance(value, int | float) for value in costs["bounds"].values())
        assert costs["latency_cycles"] >= max(costs["bounds"].values())
    (kernel,) = report["kernels"]
    assert kernel["name"] == "attention"
    assert kernel["mapping"].startswith("tiles(batch 1, ")


def test_text_names_what_binds_and_stays_the_same(capsys: Capture, small: Path):
    status, text, err = run(capsys, "compile", BERT, *SMALL)
    assert status == 0
    assert re.match(r"bert_base on edge, strategy auto: [\d.]+ us\nthe .* (binds, busy|is busiest,) [\d.]+ %", text)
    assert 'kernel "attention"' in text
    assert re.search(r"mappings covered, [\d,]+ fit the machine", err)
    assert (small / "report.txt").read_text() == text


def test_a_folder_gets_everything_and_a_mapping_from_it_replays_to_the_same_report(capsys: Capture, tmp_path: Path):
    out = tmp_path / "new" / "out"
    for strategy in ("auto", "unfused", "flat-r"):
        options = [*SMALL, "--strategy", strategy]
        _, text, _ = run(capsys, "compile", BERT, *options, "-o", str(out))
        assert sorted(os.listdir(out)) == ["mapping.txt", "report.json", "report.txt", "schedule.mlir"]
        assert (out / "report.txt").read_text() == text
        assert compiled(*options) == json.loads((out / "report.json").read_text())
        _, replayed, _ = run(capsys, "compile", BERT, *options, "--mapping", str(out / "mapping.txt"))
        assert replayed == text
        _, reread, _ = run(capsys, "report", str(out / "schedule.mlir"))
        assert reread == text


def test_an_edited_mapping_gives_another_report_or_an_error(capsys: Capture, small: Path, tmp_path: Path):
    mapping = tmp_path / "mapping.txt"
    original = (small / mapping.name).read_text()
    mapping.write_text(re.sub(r"query \d+", "query 7", original))
    assert "query 7," in compiled(*SMALL, "--mapping", str(mapping))["kernels"][0]["mapping"]

    mapping.write_text(re.sub(r"query \d+", "query 49", original))
    assert "the tile of query is 49, and there are only 48" in refused(
        capsys, "compile", BERT, *SMALL, "--mapping", str(mapping)
    )
    mapping.write_text(re.sub(r"K x\d+", "K x4096", original))
    assert "bytes on chip" in refused(capsys, "compile", BERT, *SMALL, "--mapping", str(mapping))
    mapping.write_text(original.replace("tiles(", "tils(", 1))
    assert refused(capsys, "compile", BERT, "--mapping", str(mapping)).startswith(f"{mapping}:2:")
    mapping.write_text(original.replace('"attention"', '"attenton"'))
    assert "did you mean 'attention'?" in refused(capsys, "compile", BERT, "--mapping", str(mapping))


def test_bindings_and_phases_change_the_problem(capsys: Capture):
    llama = str(ROOT / "examples" / "llama3_8b_gqa.flat")
    status, text, _ = run(capsys, "compile", llama, "--phase", "decode", "--bind", "P=100", "--json")
    assert status == 0
    assert json.loads(text)["totals"]["macs"] == 32 * 101 * 2 * 128
    assert "no phase" in refused(capsys, "compile", llama, "--phase", "decoding")


def test_objectives_are_reached():
    fast, frugal = (compiled(*SMALL, "--objective", name)["totals"] for name in ("latency", "energy"))
    assert frugal["energy_pj"] <= fast["energy_pj"]
    assert fast["latency_cycles"] <= frugal["latency_cycles"]


def test_simulation_can_be_asked_for_and_forgone(capsys: Capture):
    quick = [*SMALL, "--strategy", "online", "--simulate"]
    assert compiled(*quick, "always")["totals"]["latency_source"] == "simulated"
    assert compiled(*quick, "never")["totals"]["latency_source"] == "closed form"
    _, text, _ = run(capsys, "compile", BERT, *quick, "never")
    assert re.search(r"latency: closed form \(a lower bound\); simulation would take [\d,]+ events", text)


# --- run, report, accelerators --------------------------------------------------------------------------------


def test_run_compares_with_float64_attention(capsys: Capture):
    status, out, _ = run(capsys, "run", BERT, *SMALL)
    assert status == 0
    assert "matches float64 attention" in out
    assert "a: bfloat16[1, 2, 48, 64]" in out


def test_run_takes_a_schedule_without_its_graph(capsys: Capture, small: Path, tmp_path: Path):
    run(capsys, "compile", BERT, *SMALL, "--strategy", "unfused", "-o", str(tmp_path))
    for folder in (small, tmp_path):
        status, out, _ = run(capsys, "run", str(folder / "schedule.mlir"), "--seed", "3")
        assert status == 0
        assert "matches float64 attention" in out


def test_run_exits_with_1_when_the_numbers_differ(capsys: Capture, tmp_path: Path):
    run(capsys, "compile", BERT, *SMALL, "--strategy", "flat-r", "-o", str(tmp_path))
    schedule = tmp_path / "schedule.mlir"
    text = schedule.read_text()
    assert "scale 0.125" in text
    schedule.write_text(text.replace("scale 0.125", "scale 0.25"))
    # The reference follows the schedule's own scale, so break what it does not see: where the sums begin.
    assert run(capsys, "run", str(schedule))[0] == 0
    schedule.write_text(re.sub(r'(buffer "sum" slots \d+ at \d+ initial) 0\S*', r"\1 99.0", text))
    status, out, _ = run(capsys, "run", str(schedule))
    assert status == 1
    assert "DIFFERS from float64 attention" in out


def test_run_refuses_what_would_take_too_long(capsys: Capture):
    message = refused(capsys, "run", BERT)
    assert "executing this schedule would take too long" in message
    assert "the graph has B = 64, H = 12, S = 512, D = 64" in message
    assert "--bind B=1,S=128" in message


def test_a_schedule_may_be_timed_on_another_machine(capsys: Capture, small: Path):
    own, other = (
        json.loads(run(capsys, "report", str(small / "schedule.mlir"), "--json", *machine)[1])
        for machine in ([], ["--accelerator", "cloud"])
    )
    assert (own["accelerator"], other["accelerator"]) == ("edge", "cloud")
    assert other["totals"]["offchip_bytes"] == own["totals"]["offchip_bytes"]
    assert other["totals"]["bounds"]["array_cycles"] < own["totals"]["bounds"]["array_cycles"]


def test_accelerators_are_listed_and_printed_as_files(capsys: Capture, tmp_path: Path):
    _, listed, _ = run(capsys, "accelerators")
    assert [line.split()[0] for line in listed.splitlines()] == sorted(line.split()[0] for line in listed.splitlines())
    assert "edge" in listed
    _, described, _ = run(capsys, "accelerators", "edge")
    own = tmp_path / "own.yaml"
    own.write_text(described.replace("name: edge", "name: own"))
    report = compiled(*SMALL, "--accelerator", str(own))
    assert report["accelerator"] == "own"
    assert report["totals"] == compiled(*SMALL)["totals"]


# --- Bad input: one message that says where and what to do ------------------------------------------------------


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_a_broken_line_of_a_graph(capsys: Capture, tmp_path: Path):
    text = Path(BERT).read_text().replace("attention(q, k, v)", "atention(q, k, v)")
    message = refused(capsys, "compile", write(tmp_path, "bad.flat", text))
    assert re.search(r"bad\.flat:9:5: error: ", message)
    assert "did you mean 'attention'?" in message


def test_kv_heads_that_do_not_divide(capsys: Capture):
    message = refused(capsys, "compile", str(ROOT / "examples" / "llama3_8b_gqa.flat"), "--bind", "KV=5")
    assert re.search(r"llama3_8b_gqa\.flat:\d+:\d+: error: ", message)
    assert "5" in message


def test_an_unknown_accelerator_field(capsys: Capture, tmp_path: Path):
    _, described, _ = run(capsys, "accelerators", "edge")
    bad = write(tmp_path, "bad.yaml", described.replace("  rows: 32", "  rws: 32"))
    message = refused(capsys, "compile", BERT, "--accelerator", bad)
    assert re.search(r"bad\.yaml:\d+:\d+: error: .*rws", message)
    assert "did you mean 'rows'?" in message


def test_a_buffer_too_small_for_any_mapping(capsys: Capture, tmp_path: Path):
    _, described, _ = run(capsys, "accelerators", "edge")
    tiny = write(tmp_path, "tiny.yaml", described.replace("capacity: 512 KiB", "capacity: 100 B"))
    message = refused(capsys, "compile", BERT, "--accelerator", tiny)
    assert "no 'auto' mapping fits the 100 bytes" in message
    assert "larger buffer" in message


@pytest.mark.parametrize("strategy", ["flat-m", "flat-h"])
def test_a_strategy_that_does_not_fit(capsys: Capture, strategy: str):
    message = refused(capsys, "compile", BERT, "--strategy", strategy, "--bind", "S=16384")
    assert f"no '{strategy}' mapping fits" in message
    assert "use strategy online or auto" in message


def test_a_truncated_module(capsys: Capture, small: Path, tmp_path: Path):
    text = (small / "schedule.mlir").read_text()
    for part in (0.3, 0.6, 0.95):
        cut = write(tmp_path, "cut.mlir", text[: int(len(text) * part)])
        assert re.search(r"cut\.mlir:\d+:\d+: error: ", refused(capsys, "report", cut))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["compile", "missing.flat"], "there is no file 'missing.flat'"),
        (["compile", BERT, "--bind", "S=99999999999"], "elements"),
        (["compile", BERT, "--bind", "S=9999999999999999999999"], "absurdly large"),
        (["compile", BERT, "--bind", "S"], "write --bind S=4096,B=1"),
        (["compile", BERT, "--bind", "S=-1"], "must be a whole number"),
        (["compile", BERT, "--bind", "S=1,S=2"], "bound twice"),
        (["compile", BERT, "--bind", "Q=1"], "'Q'"),
        (["compile", BERT, "--accelerator", "egde"], "did you mean 'edge'?"),
        (["compile", BERT, "--strategy", "flatr"], "did you mean 'flat-r'?"),
        (["compile", BERT, "--objective", "speed"], "choose one of latency, energy"),
        (["compile", BERT, "--simulate", "alway"], "did you mean 'always'?"),
        (["compile", BERT, "--mapping", "missing.txt"], "there is no file 'missing.txt'"),
        (["compile", BERT, "--accelerator", "rtl16"], "has no vector unit"),
        (["compile", str(ROOT / "examples")], "is a directory"),
        (["compile", str(ROOT / "README.md")], "no reader for '.md' files"),
        (["compile", BERT, "--bnd", "S=1"], "unrecognized arguments: --bnd"),
        (["compil", BERT], "did you mean 'compile'?"),
        (["accelerators", "clod"], "did you mean 'cloud'?"),
        ([], "COMMAND"),
    ],
)
def test_other_mistakes(capsys: Capture, arguments: list[str], expected: str):
    assert expected in refused(capsys, *arguments)


def test_nothing_is_written_when_compiling_fails(capsys: Capture, tmp_path: Path):
    out = tmp_path / "out"
    refused(capsys, "compile", BERT, "--strategy", "flat-m", "-o", str(out))
    assert not out.exists()
    (tmp_path / "report.txt").mkdir()
    small = [*SMALL, "--strategy", "online"]
    message = refused(capsys, "compile", BERT, *small, "-o", str(tmp_path))
    assert "it is a directory" in message
    assert os.listdir(tmp_path) == ["report.txt"]
    blocked = write(tmp_path, "file", "")
    assert "cannot write to" in refused(capsys, "compile", BERT, *small, "-o", blocked)


def test_bindings_are_read_from_all_their_spellings():
    assert bindings(["S=4096,B=1", "H = 2"]) == {"S": 4096, "B": 1, "H": 2}
    assert bindings([]) == {}
    with pytest.raises(FlatcError, match="no binding"):
        bindings(["S=1,"])


# --- As a process -----------------------------------------------------------------------------------------------


def test_the_command_as_a_process():
    command = [sys.executable, "-m", "flatc"]
    shown = subprocess.run([*command, "--version"], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"flatc \d+\.\d+\.\d+\n", shown.stdout)
    failed = subprocess.run([*command, "compile", "no.flat"], cwd=ROOT, capture_output=True, text=True)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: there is no file 'no.flat'")


def test_a_reader_that_closes_its_pipe_early_ends_the_command_quietly():
    pipe = f"{sys.executable} -m flatc accelerators edge | true"
    closed = subprocess.run(pipe, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert closed.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_output_that_cannot_be_written_is_an_error():
    full = f"{sys.executable} -m flatc accelerators edge >/dev/full"
    result = subprocess.run(full, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "error: cannot write: No space left on device\n")


@pytest.mark.parametrize("command", [[], ["compile"], ["run"], ["report"], ["accelerators"]])
def test_help_shows_examples(capsys: Capture, command: list[str]):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    assert "examples:" in capsys.readouterr().out
