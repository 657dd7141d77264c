"""A source text, and errors that point into it.

`Source` holds the lines of one file. Everything the front end reports goes through `Source.error`, so every
message shows the line and underlines the words that are wrong:

    source.error("unknown mask 'casual'", Position("g.flat", 6, 31, 6), help="did you mean 'causal'?")

    g.flat:6:31: error: unknown mask 'casual'
     6 | a = attention(q, q, q, mask = casual)
       |                               ^~~~~~
       = help: did you mean 'causal'?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from flatc.dialects.diagnostics import FlatcError, Position
from flatc.dialects.frozen import frozen

MAX_ERRORS = 10
LONGEST_SHOWN_LINE = 160


class FlatcErrors(FlatcError):
    """Several independent errors of one file, in the order of the text; itself stands for the first."""

    def __init__(self, errors: Sequence[FlatcError]):
        first = errors[0]
        super().__init__(
            first.message,
            position=first.position,
            source_line=first.source_line,
            notes=first.notes,
            help=first.help,
        )
        self.errors = tuple(errors)

    def render(self) -> str:
        """Every message, as the command line prints them."""
        return "\n\n".join(error.render() for error in self.errors)


def combined(errors: Sequence[FlatcError]) -> FlatcError:
    """One error to raise for a non-empty list of them, sorted by position."""
    ordered = sorted(errors, key=lambda e: (e.position.line, e.position.column) if e.position else (0, 0))
    return ordered[0] if len(ordered) == 1 else FlatcErrors(ordered[:MAX_ERRORS])


@frozen
class Source:
    """The text of one file, by lines, with line ends and byte order mark normalised."""

    file: str
    lines: tuple[str, ...]

    @classmethod
    def of(cls, text: str, file: str) -> Source:
        """Split `text` into lines at \\n, \\r\\n or \\r."""
        unix = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        return cls(file, tuple(unix.split("\n")))

    @property
    def text(self) -> str:
        """The normalised text."""
        return "\n".join(self.lines)

    @property
    def end(self) -> Position:
        """Just after the last character that is not white space."""
        for number in range(len(self.lines), 0, -1):
            if line := self.lines[number - 1].rstrip():
                return Position(self.file, number, len(line) + 1)
        return Position(self.file, 1, 1)

    def span(self, first: Position, last: Position) -> Position:
        """From the start of `first` to the end of `last`, cut at the end of the first line."""
        if last.line == first.line:
            stop = last.column + last.length
        else:
            stop = len(self.lines[first.line - 1].split("#")[0].rstrip()) + 1
        return replace(first, length=max(1, stop - first.column))

    def error(self, message: str, at: Position, *, notes: Iterable[str] = (), help: str | None = None) -> FlatcError:
        """An error at a place of this text."""
        return self.pointed(FlatcError(message, position=at, notes=notes, help=help))

    def pointed(self, error: FlatcError) -> FlatcError:
        """The same error with its source line shown, if it lies in this text."""
        at = error.position
        if at is None or at.file != self.file or error.source_line is not None or at.line > len(self.lines):
            return error
        line, notes = _printable(self.lines[at.line - 1]), error.notes
        shown: str | None = line
        if len(line) > LONGEST_SHOWN_LINE:
            shown, notes = None, (f"the text there is '{_excerpt(line, at)}'", *notes)
        return FlatcError(error.message, position=at, source_line=shown, notes=notes, help=error.help)


def quoted(text: str) -> str:
    """User text for use in a message: quoted, printable and short."""
    clean = _printable(text)
    return f"'{clean if len(clean) <= 40 else clean[:37] + '...'}'"


def _printable(text: str) -> str:
    """One column per character: tabs become spaces, control characters a visible mark."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)


def _excerpt(line: str, at: Position) -> str:
    start = max(0, at.column - 1 - 20)
    return ("..." if start else "") + line[start : start + 60].strip() + "..."
