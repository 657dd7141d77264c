"""flatc: a compiler for attention on spatial accelerators.

    import flatc

    result = flatc.compile("examples/bert_base.flat", accelerator="edge", bindings={"B": 1, "S": 128})
    result.report.latency_seconds, result.report.binding
    result.run().passed

`flatc.dialects` and `flatc.passes` are folders beside this one in a source checkout and
subpackages of it once installed; the hook below makes both spellings the same import. The compiler is
imported when it is first asked for, so that `import flatc` costs nothing.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flatc.compiler import Compilation, compile
    from flatc.dialects.diagnostics import FlatcError

_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "dialects").is_dir():
    __path__.append(str(_root))

__all__ = ["Compilation", "FlatcError", "compile"]


def __getattr__(name: str) -> object:
    if name == "FlatcError":
        from flatc.dialects.diagnostics import FlatcError

        return FlatcError
    if name in __all__:
        from flatc import compiler

        return getattr(compiler, name)
    raise AttributeError(f"module 'flatc' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
