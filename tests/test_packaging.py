"""The wheel holds everything and nothing else: built here, imported from elsewhere without the sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"flatc": ROOT / "flatc", "flatc.dialects": ROOT / "dialects", "flatc.passes": ROOT / "passes"}
DATA = (".yaml", ".lark", ".typed", ".css", ".js", ".html", ".svg", ".json")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
sys.path.insert(0, sys.argv[1])
import flatc
assert flatc.__file__.startswith(sys.argv[1]), flatc.__file__
for module in pkgutil.walk_packages(flatc.__path__, "flatc."):
    found = importlib.import_module(module.name)
    assert found.__file__.startswith(sys.argv[1]), found.__file__
from flatc.accelerators import load, names
print(*map(load, names()), sep="\\n")
"""


def _packages() -> dict[str, Path]:
    """Every package of the sources, by its dotted name."""
    found = dict(FOLDERS)
    for name, folder in FOLDERS.items():
        for init in folder.rglob("*/__init__.py"):
            found[".".join((name, *init.parent.relative_to(folder).parts))] = init.parent
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """flatc's wheel, built without network from a copy of the sources."""
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS.values():
        shutil.copytree(folder, copy / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_pyproject_lists_every_package():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert sorted(setuptools["packages"]) == sorted(_packages())
    for name, folder in _packages().items():
        parent, mapped = name, list[str]()
        while parent not in setuptools["package-dir"]:
            parent, _, last = parent.rpartition(".")
            mapped.insert(0, last)
        assert ROOT.joinpath(setuptools["package-dir"][parent], *mapped) == folder


def test_the_wheel_holds_every_source_and_data_file(wheel: zipfile.ZipFile):
    inside = set(wheel.namelist())
    for name, folder in _packages().items():
        for path in folder.iterdir():
            if path.suffix == ".py" or path.name.endswith(DATA):
                assert f"{name.replace('.', '/')}/{path.name}" in inside
    for path in (ROOT / "flatc" / "validation").glob("*/*.*"):
        assert path.suffix == ".pyc" or f"flatc/validation/{path.parent.name}/{path.name}" in inside
    assert {"flatc/py.typed", "flatc/accelerators/edge.yaml", "flatc/frontend/flat.lark"} <= inside


def test_the_wheel_puts_one_name_into_site_packages(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"flatc"}


def test_every_module_imports_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path):
    wheel.extractall(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, str(tmp_path)],
        cwd=tmp_path.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert "name='edge'" in result.stdout
