"""The house rules that a reader relies on: imports go one way, every file says what it is, starting is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"dialects": 0, "passes": 1, "flatc": 2}
"""A folder may import from folders of its own floor or a lower one."""

SOURCES = [path for folder in FLOORS for path in sorted((ROOT / folder).rglob("*.py"))]
HEAVY = ("numpy", "ml_dtypes", "lark", "yaml", "torch", "onnx", "xdsl.interpreters")


def _identity(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _floor(module: str) -> int | None:
    """The floor that a dotted module name belongs to; None for modules of others."""
    parts = module.split(".")
    if parts[0] != "flatc":
        return None
    return FLOORS.get(parts[1], FLOORS["flatc"]) if len(parts) > 1 else FLOORS["flatc"]


def _imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Every module imported anywhere below `node`, with its line."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            yield from ((found.lineno, alias.name) for alias in found.names)
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, f"line {found.lineno}: relative imports hide where a name is from"
            module = found.module or ""
            yield found.lineno, module
            if module == "flatc":
                yield from ((found.lineno, f"flatc.{alias.name}") for alias in found.names)


@pytest.mark.parametrize("path", SOURCES, ids=_identity)
def test_imports_go_one_way(path: Path):
    own = FLOORS[path.relative_to(ROOT).parts[0]]
    for line, module in _imports(ast.parse(path.read_text())):
        assert module.split(".")[0] not in ("dialects", "passes"), f"line {line}: write flatc.{module}"
        floor = _floor(module)
        if module == "flatc" and own < FLOORS["flatc"]:
            continue  # `from flatc import x` is judged by x
        assert floor is None or floor <= own, f"line {line}: {path.parent.name} must not import {module}"


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))], ids=_identity)
def test_every_module_says_what_it_is(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "a newcomer reads the module docstring first: what it is, why, an example"


@pytest.mark.parametrize("path", SOURCES, ids=_identity)
def test_public_functions_and_classes_have_a_docstring(path: Path):
    tree = ast.parse(path.read_text())
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    for name, node in {node.name: node for node in found}.items():  # the last of several overloads
        assert name.startswith("_") or ast.get_docstring(node), f"line {node.lineno}: {name} has no docstring"


@pytest.mark.parametrize("module", ["flatc.cli", "flatc.opt", "flatc"])
def test_a_command_starts_without_heavy_packages(module: str):
    if not (ROOT / (module.replace(".", "/") + ".py")).exists() and module != "flatc":
        pytest.skip(f"{module} does not exist")
    script = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]", "import it inside the function that needs it"


@pytest.mark.parametrize("folder", ["dialects", "passes"])
def test_importing_a_folder_by_its_bare_name_is_refused(folder: str):
    result = subprocess.run([sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"ImportError: import flatc.{folder} instead of '{folder}'" in result.stderr


def test_sources_name_no_path_of_a_machine():
    for path in SOURCES:
        assert "/home/" not in path.read_text(), path
