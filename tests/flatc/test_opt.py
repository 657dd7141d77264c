"""flatc-opt: the accelerator reaches the passes, a user's mistake gives one error and no output."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typing_extensions import override
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from flatc import opt
from flatc.dialects.accelerator import accelerator_of

Run = Callable[..., tuple[int, str, str]]

EMPTY = "builtin.module {\n}\n"


@dataclass(frozen=True)
class RequireRows(ModulePass):
    """A pass that depends on the machine."""

    name = "require-rows"
    rows: int

    @override
    def apply(self, ctx: Context, op: ModuleOp) -> None:
        assert accelerator_of(op).array.rows == self.rows


class OptWithPass(opt.FlatcOptMain):
    """flatc-opt that knows the pass above."""

    @override
    def register_all_passes(self) -> None:
        super().register_all_passes()
        self.register_pass(RequireRows.name, lambda: RequireRows)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in an empty folder on a file of this text: its status, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opt, "FlatcOptMain", OptWithPass)

    def command(text: str | bytes, *options: str) -> tuple[int, str, str]:
        data = text if isinstance(text, bytes) else text.encode()
        Path("in.mlir").write_bytes(data)
        status = opt.main(["in.mlir", *options])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


def test_every_dialect_and_pass_is_reachable():
    for name, factory in opt.FLATC_UNIVERSE.all_dialects.items():
        assert factory().name == name
    for name, factory in opt.FLATC_UNIVERSE.all_passes.items():
        assert factory().name == name


def test_names_do_not_clash_with_those_of_xdsl():
    main = opt.FlatcOptMain([])
    assert {"attn", "flat", "spatial", "arith"} <= set(main.ctx.registered_dialect_names)


def test_the_accelerator_is_attached_before_passes_run(run: Run):
    status, out, err = run(EMPTY, "--accelerator", "edge", "-p", "require-rows{rows=32}")
    assert (status, err) == (0, "")
    assert "spatial.accelerator = #spatial.accelerator<\n  name = edge," in out
    status, again, _ = run(out, "-p", "require-rows{rows=32}")
    assert (status, again) == (0, out)
    status, replaced, _ = run(out, "--accelerator", "cloud", "-p", "require-rows{rows=256}")
    assert status == 0
    assert "name = cloud" in replaced


def test_a_pass_that_needs_a_machine_says_so(run: Run):
    status, out, err = run(EMPTY, "-p", "require-rows{rows=32}", "-o", "out.mlir")
    assert (status, out) == (1, "")
    assert err.startswith("error: the module has no 'spatial.accelerator' attribute")
    assert not Path("out.mlir").exists()


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (EMPTY, ("--accelerator", "egde"), "did you mean 'edge'?"),
        (EMPTY, ("-p", "require-row"), "did you mean 'require-rows'?"),
        (EMPTY, ("-p", "require-rows"), 'error: -p: require-rows requires argument "rows"'),
        (EMPTY, ("-p", "require-rows{rows=many}"), "error: -p: "),
        (EMPTY, ("-p", "require-rows{"), "error: -p: "),
        ("builtin.module {\n  foo.bar\n}", (), "in.mlir:3:1: error: Operation foo.bar is not registered\n 3 | }"),
        ("builtin.module {", (), "in.mlir:1:17: error: "),
        ("func.func @f(%x: i32) {\n func.return %x : i32\n}", (), "error: func.return: "),
        (b"\xff\xfe", (), "cannot read 'in.mlir': it is not UTF-8 text"),
        ("[" * 10000, (), "in.mlir:1:1: error: "),
    ],
)
def test_a_mistake_gives_one_error(run: Run, text: str | bytes, options: tuple[str, ...], message: str):
    status, out, err = run(text, *options, "-o", "out.mlir")
    assert (status, out) == (1, "")
    assert message in err
    assert "Traceback" not in err
    assert err.count("error:") == 1
    assert not Path("out.mlir").exists()


@pytest.mark.parametrize("name", ["missing.mlir", ".", "in.docx"])
def test_unreadable_input_gives_one_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "in.docx").touch()
    assert opt.main([str(tmp_path / name)]) == 1
    assert capsys.readouterr().err.startswith("error: cannot read ")


def test_output_that_cannot_be_written_gives_one_error(run: Run):
    status, _, err = run(EMPTY, "-o", "no/such/folder.mlir")
    assert status == 1
    assert err == "error: cannot write 'no/such/folder.mlir': No such file or directory\n"


def test_a_graph_file_is_read_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "g.flat"
    path.write_text("graph g\ninput q : [1, 2, 8, 4]\na = attention(q, q, q)\noutput a\n")
    assert opt.main([str(path), "--accelerator", "edge"]) == 0
    assert "attn.softmax" in capsys.readouterr().out


def test_a_closed_pipe_is_no_crash(tmp_path: Path):
    path = tmp_path / "in.mlir"
    path.write_text(EMPTY)
    command = [sys.executable, "-m", "flatc.opt", str(path), "--accelerator", "edge"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
