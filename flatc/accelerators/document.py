"""A YAML text as nodes that know where they stand, so that every mistake is shown in its place.

    document = Document("rows: many", "chip.yaml")
    for key, value in document.entries(document.root, "the file").items():
        document.fail(value.node, "array.rows: expected a whole number, got 'many'")

prints as

    chip.yaml:1:7: error: array.rows: expected a whole number, got 'many'
     1 | rows: many
       |       ^~~~

Nothing is ever built from YAML tags: a value is the text that stands there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

import yaml

from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.frozen import frozen


@frozen
class Entry:
    """One `key: value` of a mapping."""

    key: yaml.Node
    node: yaml.Node


_FAST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML was built with it. It crashes on what is nested too deeply, and words errors otherwise."""


class Document:
    """One YAML document. `root` is its outermost node. One that is `known` to be good is read faster."""

    def __init__(self, text: str, file: str, *, known: bool = False):
        self.file = file
        self.lines = text.split("\n")
        self.root = self._compose(text, _FAST_LOADER if known else yaml.SafeLoader)

    def _compose(self, text: str, loader: type[Any]) -> yaml.Node:
        try:
            root = yaml.compose(text, Loader=loader)
        except yaml.MarkedYAMLError as error:
            reason = f"this is not YAML: {error.problem or error.context}"
            raise self._error(error.problem_mark or error.context_mark, 1, reason) from error
        except (yaml.YAMLError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).split("\n")[0]
            raise FlatcError(f"'{self.file}' is not YAML: {reason}") from error
        if root is None:
            raise FlatcError(f"'{self.file}' is empty")
        return root

    def fail(self, node: yaml.Node, message: str, *, help: str | None = None, notes: Iterable[str] = ()) -> NoReturn:
        """Raise the user's error at `node`."""
        start, end = node.start_mark, node.end_mark
        one_line = isinstance(node, yaml.ScalarNode) and start.line == end.line
        length = max(1, end.column - start.column) if one_line else 1
        raise self._error(start, length, message, help=help, notes=notes)

    def _error(
        self,
        mark: yaml.Mark | None,
        length: int,
        message: str,
        *,
        help: str | None = None,
        notes: Iterable[str] = (),
    ) -> FlatcError:
        position, line = None, None
        if mark is not None:
            position = Position(self.file, mark.line + 1, mark.column + 1, length)
            line = self.lines[mark.line].rstrip() if mark.line < len(self.lines) else None
        return FlatcError(message, position=position, source_line=line, help=help, notes=notes)

    def entries(self, node: yaml.Node, what: str) -> dict[str, Entry]:
        """The entries of the mapping `node`, which a message calls `what`."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{what} must be a group of fields, one 'field: value' a line")
        found: dict[str, Entry] = {}
        for key, value in node.value:
            name = self.text(key, f"a field name of {what}")
            if name in found:
                first = found[name].key.start_mark.line + 1
                self.fail(key, f"'{name}' is given twice", notes=[f"the first one is on line {first}"])
            found[name] = Entry(key, value)
        return found

    def items(self, node: yaml.Node, what: str, example: str) -> list[yaml.Node]:
        """The items of the list `node`."""
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, f"{what} must be a list", help=f"write it like {example}")
        return list(node.value)

    def text(self, node: yaml.Node, what: str) -> str:
        """The text of the scalar `node`, with runs of white space made one blank."""
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, f"{what} must be a single value, not a list or a group")
        return " ".join(str(node.value).split())
