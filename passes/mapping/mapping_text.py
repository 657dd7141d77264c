"""Files of mappings: what `--mapping` reads and what a report prints to be edited.

One mapping, for a program of one kernel, or one per kernel, named:

    "attention" #flat.mapping<tiles(...) keep(...) logit(...) attend(...) softmax(...) stages(...)>
"""

from __future__ import annotations

from collections.abc import Mapping as Dictionary

from xdsl.context import Context
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError

from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.flat import Flat, MappingAttr
from flatc.dialects.kernel_mapping import KernelMapping


def format_mappings(mappings: Dictionary[str, KernelMapping]) -> str:
    """The text of a file with these mappings, by kernel name."""
    parts = [f"{_quoted(name)} #flat.mapping<\n  {m.to_text(chr(10) + '  ')}>\n" for name, m in mappings.items()]
    return "\n".join(parts)


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def parse_mappings(text: str, file: str = "mapping") -> dict[str, KernelMapping]:
    """Mappings by kernel name; a mapping without a name has the empty name. Raises `FlatcError` with the place."""
    context = Context()
    context.load_dialect(Flat)
    found: dict[str, KernelMapping] = {}
    try:
        parser = Parser(context, text, name=file)
        while parser.pos < len(text.rstrip()):
            name = parser.parse_optional_str_literal() or ""
            attribute = parser.parse_attribute()
            if not isinstance(attribute, MappingAttr):
                parser.raise_error(f"expected #flat.mapping<...>, got {attribute}")
            if name in found:
                parser.raise_error(f'two mappings for kernel "{name}"' if name else "two mappings without a name")
            found[name] = attribute.data
    except ParseError as error:
        raise _located(error, text, file) from None
    if not found:
        raise FlatcError(f"{file} holds no mapping", help="write one as #flat.mapping<...>")
    return found


def _located(error: ParseError, text: str, file: str) -> FlatcError:
    start = error.span.start
    line = text.count("\n", 0, start) + 1
    column = start - (text.rfind("\n", 0, start) + 1) + 1
    lines = text.splitlines()
    source = lines[line - 1] if line <= len(lines) else ""
    length = max(1, min(error.span.len, len(source) - column + 1))
    return FlatcError(error.msg, position=Position(file, line, column, length), source_line=source)
