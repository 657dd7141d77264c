"""Every block of the documents is run: commands give the output that is shown, code runs, paths exist.

Outputs are written anew by `make docs`, which is this file with UPDATE_DOCS=1; read the difference before you commit.
Rounding errors may differ from one NumPy to the next, so their digits are not compared.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flatc.cli import main
from flatc.frontend import parse_flat

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/report.md", "docs/limits.md")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROUNDING = re.compile(r"(?<=largest error )[\d.e+-]+|(?<=tolerance )[\d.e+-]+")
UPDATE = os.environ.get("UPDATE_DOCS") == "1"


def blocks(document: str, language: str) -> list[str]:
    """The blocks of one language in a document."""
    text = (ROOT / document).read_text()
    return [match[2] for match in BLOCK.finditer(text) if match[1] == language]


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a reader's checkout, where commands may write."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def executed(block: str) -> str:
    """The block as a terminal shows it: each command, then its output, or its error where it has none."""
    shown: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            shown += [line, *output_of(line[2:]).splitlines()]
    return "\n".join(shown) + "\n"


def output_of(command: str) -> str:
    """What a command prints. Flatc runs in this process, which has it loaded, and the shell does what follows it."""
    first, _, rest = command.partition(" | ")
    program, *arguments = shlex.split(first)
    if program != "flatc" or ">" in arguments:
        result = subprocess.run(command, shell=True, capture_output=True, text=True)
        return result.stdout or (result.stderr if result.returncode else "")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        failed = main(arguments)
    if rest:
        return subprocess.run(rest, shell=True, input=out.getvalue(), stdout=subprocess.PIPE, text=True).stdout
    return out.getvalue() or (err.getvalue() if failed else "")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_give_the_output_that_is_shown(document: str):
    path = ROOT / document
    for block in blocks(document, "console"):
        found = executed(block)
        if UPDATE:
            path.write_text(path.read_text().replace(f"```console\n{block}```", f"```console\n{found}```"))
        else:
            assert ROUNDING.sub("", found) == ROUNDING.sub("", block), (
                "the output has changed: run `make docs` and read the difference"
            )


@pytest.mark.parametrize("document", DOCUMENTS)
def test_code_runs(document: str):
    names: dict[str, object] = {}
    for block in blocks(document, "python"):
        exec(compile(block, document, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_exist(document: str):
    for block in blocks(document, "sh"):
        for line in block.splitlines():
            assert line.startswith("make ")
            assert subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True).returncode == 0, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_graphs_are_valid(document: str):
    for block in blocks(document, "flat"):
        parse_flat(block, document)


def test_the_example_of_the_readme_is_the_file_that_it_names():
    (shown,) = blocks("README.md", "flat")
    assert shown in (ROOT / "examples" / "bert_base.flat").read_text()


def test_the_map_of_the_house_leads_to_files_that_exist():
    (text,) = blocks("README.md", "text")
    folder = ""
    for line in text.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        assert (ROOT / (name if name == folder else folder + name)).exists(), line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_has_a_language_that_is_run(document: str):
    fences = re.findall(r"^```(\w*)$", (ROOT / document).read_text(), re.MULTILINE)
    assert set(fences[::2]) <= {"console", "python", "sh", "flat", "text"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_files_that_are_named_exist(document: str):
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    named = re.findall(r"`((?:flatc|passes|dialects|tests|examples|docs|benchmarks)/[\w./]+\.\w+)`", text)
    for path in [*links, *(name for name in named if "your_" not in name)]:
        assert (ROOT / path).exists(), path
