"""flatc: a compiler for attention on spatial accelerators.

`flatc.dialects` and `flatc.passes` are folders beside this one in a source checkout and
subpackages of it once installed; the hook below makes both spellings the same import.
"""

from pathlib import Path as _Path

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "dialects").is_dir():
    __path__.append(str(_root))
