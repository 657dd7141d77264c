"""MLIR text -> module, at any of the three levels: attn, flat or spatial.

xDSL reads the text; its complaints become one `FlatcError` with file, line and column:

    g.mlir:4:12: error: Operation attn.logitt is not registered
     4 |     %s = attn.logitt %q, %k : ...
       |          ^
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.utils.exceptions import ParseError, VerifyException

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean, position_of
from flatc.frontend.source import Source


def parse_mlir(text: str, file: str) -> ModuleOp:
    """Read and verify a module; everything wrong with it is a `FlatcError`."""
    source = Source.of(text, file)
    if not source.text.strip():
        raise FlatcError(f"{file} is empty", help="write a module: builtin.module { func.func ... }")
    check_strings(source)
    module = _parsed(source)
    _verify(module, source)
    if not module.body.block.ops:
        raise FlatcError(f"{file} holds no operations", help="a graph is a func.func in a builtin.module")
    return module


def context() -> Context:
    """The dialects that a file may use: those of flatc, and builtin and func; each is imported when met."""
    from xdsl.dialects.builtin import Builtin
    from xdsl.dialects.func import Func

    from flatc.opt import get_all_dialects

    context = Context()
    context.load_dialect(Builtin)
    context.load_dialect(Func)
    for name, factory in get_all_dialects().items():
        context.register_dialect(name, factory)
    return context


_STRINGS = re.compile(r'//[^\n]*|"(?:[^"\\\n\v\f]|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*(?P<closed>"?)')


def check_strings(source: Source) -> None:
    """Refuse a string that is not closed or not well-formed: xDSL's lexer needs exponential time to find out."""
    for match in _STRINGS.finditer(source.text):
        if match[0].startswith('"') and not match["closed"]:
            at = _position(source, match.start(), match.start() + 1)
            raise source.error("this string is never closed, or has an unknown escape", at)


def _parsed(source: Source) -> ModuleOp:
    try:
        return _module(Parser(context(), source.text, source.file), source)
    except ParseError as error:
        raise _at_offset(source, error.msg, error.span.start, error.span.end) from None


def _module(parser: Parser, source: Source) -> ModuleOp:
    try:
        return parser.parse_module()
    except ParseError:
        raise
    except FlatcError as error:
        if error.position is not None:
            raise source.pointed(error) from None
        at = _position(source, parser.pos, parser.pos + 1)
        raise source.error(error.message, at, notes=error.notes, help=error.help) from None
    except RecursionError:
        raise FlatcError(f"{source.file} is nested too deeply to be read") from None
    except Exception as error:  # whatever xDSL's parser lets through on malformed text
        raise _at_offset(source, _first_line(error), parser.pos, parser.pos + 1) from None


def _at_offset(source: Source, message: str, start: int, end: int) -> FlatcError:
    if unknown := re.match(r"Operation (\S+) is not registered", message):
        return _unknown_operation(source, unknown[1], start)
    if undefined := re.match(r"values used but not defined: \[(%[\w$.-]+)", message):
        use = re.search(re.escape(undefined[1]) + r"(?![\w$.-])", source.text)
        at = _position(source, use.start(), use.end()) if use else source.end
        return source.error(f"{undefined[1]} is used but never defined", at)
    cut = start >= len(source.text.rstrip())
    at = source.end if cut else _position(source, start, end)
    return source.error(_tidy(message), at, help="the file seems to be cut off here" if cut else None)


def _unknown_operation(source: Source, name: str, before: int) -> FlatcError:
    """xDSL complains at the word after the name; the name itself is meant."""
    start = max(0, source.text.rfind(name, 0, before))
    dialects = context()
    if (prefix := name.split(".")[0]) not in dialects.registered_dialect_names:
        help = did_you_mean(prefix, dialects.registered_dialect_names)
    else:
        help = did_you_mean(name, [op.name for op in dialects.get_dialect(prefix).operations])
    return source.error(f"unknown operation '{name}'", _position(source, start, start + len(name)), help=help)


def _position(source: Source, start: int, end: int) -> Position:
    before = source.text[:start]
    line, column = before.count("\n") + 1, start - before.rfind("\n")
    length = max(1, min(end - start, len(source.lines[line - 1]) - column + 1))
    return Position(source.file, line, column, length)


def _tidy(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0].removeprefix("error: ").rstrip(".!") if lines else "malformed MLIR"


def _first_line(error: Exception) -> str:
    return str(error) or type(error).__name__


def _verify(module: ModuleOp, source: Source) -> None:
    """Verify operation by operation, the inner ones first, so that the one at fault is known."""
    for op in module.walk(region_first=True):
        try:
            op.verify(verify_nested_ops=False)
        except (VerifyException, FlatcError) as error:
            raise _blame(op, error, module, source) from None


def _blame(op: Operation, error: Exception, module: ModuleOp, source: Source) -> FlatcError:
    at = position_of(op) or _find(op, module, source)
    notes = error.notes if isinstance(error, FlatcError) else ()
    help = error.help if isinstance(error, FlatcError) else None
    message = error.message if isinstance(error, FlatcError) else _tidy(_first_line(error))
    message = f"{op.name}: {message.removeprefix(f'{op.name}: ')}"
    if at is None:
        return FlatcError(f"{source.file}: {message}", notes=notes, help=help)
    return source.error(message, at, notes=notes, help=help)


def _find(op: Operation, module: ModuleOp, source: Source) -> Position | None:
    """Where an operation is written: the n-th of its name in the module is the n-th in the text."""
    twins = [other for other in module.walk() if other.name == op.name]
    places = list(_mentions(op.name, source))
    return places[twins.index(op)] if len(places) == len(twins) else None


def _mentions(name: str, source: Source) -> Iterator[Position]:
    word = re.compile(rf'(?<![\w.#!$])"?{re.escape(name)}(?![\w.])')
    for number, line in enumerate(source.lines, 1):
        for match in word.finditer(line.split("//")[0]):
            yield Position(source.file, number, match.start() + 1, match.end() - match.start())
