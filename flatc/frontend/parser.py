"""Text of a `.flat` file -> syntax tree, with errors that say what was expected and where.

The tokens are grouped into statements here, and each statement is parsed alone by the LALR automaton of
`flat.lark`. A mistake therefore spoils one statement only: reading goes on at the next one, and independent
mistakes are all reported at once. A bracket that is never closed is blamed at the bracket:

    g.flat:4:10: error: this '(' is never closed
     4 | q = heads(x @ w, H
       |          ^
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean
from flatc.frontend.assemble import Assembler, finished, position_of_token
from flatc.frontend.grammar import Automaton, load
from flatc.frontend.source import MAX_ERRORS, Source, combined, quoted
from flatc.frontend.syntax import Statement

if TYPE_CHECKING:
    from lark import Token

MAX_DEPTH = 32
KEYWORDS = ("graph", "dim", "phase", "dtype", "input", "weight", "cache", "output")
OPERATORS = ("OR", "AND", "PLUS", "MINUS", "STAR", "SLASH", "AT")
CLOSING = {"(": ")", "[": "]"}
TYPOGRAPHIC = {"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u00d7": "*", "\u00f7": "/", "\u2018": "'"}


def parse(source: Source) -> tuple[Statement, ...]:
    """The statements of a file; raises one `FlatcError` that carries every syntax error found."""
    reader = _Reader(source)
    statements: list[Statement] = []
    errors: list[FlatcError] = []
    while reader.find_statement() and len(errors) < MAX_ERRORS:
        try:
            statements.append(reader.statement())
        except FlatcError as error:
            errors.append(error)
            reader.skip_statement()
    if errors:
        raise combined(errors)
    return tuple(statements)


class _Reader:
    """Reads statements one after the other from the tokens of a source."""

    def __init__(self, source: Source):
        self._source = source
        self._grammar = load(Assembler(source))
        self._tokens: Iterator[Token] = self._grammar.lex(source.text)
        self._token: Token | None = next(self._tokens, None)
        self._starts_line = True
        self._brackets: list[Token] = []
        self._first: Token | None = None

    def _advance(self) -> None:
        self._starts_line = self._token is not None and self._token.type == "NEWLINE"
        self._token = next(self._tokens, None)

    def find_statement(self) -> bool:
        """Move to the first token of the next statement; False at the end of the text."""
        self._brackets.clear()
        while self._token is not None and self._token.type == "NEWLINE":
            self._advance()
        return self._token is not None

    def skip_statement(self) -> None:
        """After an error, move to a line that can start a statement."""
        while (token := self._token) is not None:
            if self._starts_line and token is not self._first and self._can_start(token):
                return
            if token in CLOSING:
                self._brackets.append(token)
            elif token in CLOSING.values() and self._brackets:
                self._brackets.pop()
            self._advance()

    def _can_start(self, token: Token) -> bool:
        indented = self._first is not None and (token.column or 1) > (self._first.column or 1)
        return token in KEYWORDS or not (self._brackets or indented)

    def statement(self) -> Statement:
        """Parse one statement, up to the line break that ends it."""
        parser, self._first = self._grammar.parse_interactive(), self._token
        words: list[Token] = []
        while (token := self._token) is not None:
            if token.type != "NEWLINE":
                self._feed(parser, token, words)
                words.append(token)
            elif not self._brackets:
                break
            self._advance()
        if self._brackets:
            self._never_closed()
        return self._finish(parser, words)

    def _feed(self, parser: Automaton, token: Token, words: list[Token]) -> None:
        from lark.exceptions import UnexpectedToken

        inside = bool(self._brackets) and self._starts_line
        if inside and token in KEYWORDS:
            self._never_closed()
        try:
            parser.feed_token(token)
        except UnexpectedToken:
            if inside and token.type == "NAME":
                self._never_closed()
            _Explanation(self._source, token, words, self._brackets, frozenset(parser.accepts())).fail()
        if token in CLOSING:
            self._brackets.append(token)
            if len(self._brackets) > MAX_DEPTH:
                raise self._error(f"more than {MAX_DEPTH} brackets are open", token)
        elif token in CLOSING.values():
            self._brackets.pop()

    def _finish(self, parser: Automaton, words: list[Token]) -> Statement:
        from lark.exceptions import UnexpectedToken

        try:
            return finished(parser.feed_eof(words[-1]))
        except UnexpectedToken:
            last = position_of_token(words[-1], self._source.file)
            raise self._source.error(
                "the line stops in the middle of a statement",
                Position(last.file, last.line, last.column + last.length),
                notes=_expected(frozenset(parser.accepts())),
                help=_CONTINUE if words[-1].type in (*OPERATORS, "COMMA", "EQUAL") else None,
            ) from None

    def _never_closed(self) -> NoReturn:
        opening = self._brackets[-1]
        self._brackets.clear()
        raise self._error(f"this '{opening}' is never closed", opening) from None

    def _error(self, message: str, token: Token) -> FlatcError:
        return self._source.error(message, position_of_token(token, self._source.file))


class _Explanation:
    """Why a token cannot stand where it stands."""

    def __init__(
        self,
        source: Source,
        token: Token,
        words: list[Token],
        brackets: list[Token],
        accepts: frozenset[str],
    ):
        self.source, self.token, self.words, self.brackets = source, token, words, brackets
        self.accepts = accepts

    def fail(self) -> NoReturn:
        """Raise the error that fits best."""
        token, text = self.token, str(self.token)
        if token.type == "FOREIGN":
            self._foreign(text)
        if not self.words:
            self._raise(f"a statement starts with a word, not with {quoted(text)}", notes=(_STATEMENTS,))
        if len(self.words) == 1 and self.words[0].type == "NAME" and token.type != "EQUAL":
            self._not_an_assignment()
        if text in CLOSING.values():
            self._wrong_bracket(text)
        if text in KEYWORDS and "NAME" in self.accepts:
            self._raise(f"'{text}' is a reserved word", help="choose another name")
        help = "comments start with '#'" if text == "/" == str(self.words[-1]) else None
        self._raise(f"unexpected {quoted(text)}", notes=_expected(self.accepts), help=help)

    def _raise(
        self,
        message: str,
        *,
        token: Token | None = None,
        notes: tuple[str, ...] = (),
        help: str | None = None,
    ) -> NoReturn:
        at = position_of_token(token or self.token, self.source.file)
        raise self.source.error(message, at, notes=notes, help=help) from None

    def _foreign(self, text: str) -> NoReturn:
        if text[0] in "\"'":
            self._raise("unexpected quotation mark", help="there are no strings; write the bare word")
        if text.isascii() and text.isprintable():
            self._raise(f"unexpected {quoted(text)}", notes=_expected(self.accepts))
        name = unicodedata.name(text[0], "a control character" if ord(text[0]) < 32 else "no name")
        plain = TYPOGRAPHIC.get(text[0])
        self._raise(
            f"unexpected character U+{ord(text[0]):04X} ({name})",
            help=f"write '{plain}' instead" if plain else None,
        )

    def _not_an_assignment(self) -> NoReturn:
        first = self.words[0]
        near = did_you_mean(str(first), KEYWORDS)
        if near or self.token.type in ("NAME", "NUMBER") or self.token in KEYWORDS:
            self._raise(f"unknown statement '{first}'", token=first, help=near, notes=() if near else (_STATEMENTS,))
        self._raise(
            f"unexpected {quoted(str(self.token))}",
            notes=("expected '='",),
            help=f"declare a tensor as 'input {first} : [...]'" if self.token.type == "COLON" else None,
        )

    def _wrong_bracket(self, text: str) -> NoReturn:
        if not self.brackets:
            self._raise(f"this '{text}' closes nothing")
        opening = self.brackets[-1]
        if CLOSING[str(opening)] != text:
            where = position_of_token(opening, self.source.file)
            self._raise(f"'{text}' cannot close '{opening}'", notes=(f"the '{opening}' is at {where}",))
        self._raise(f"unexpected '{text}'", notes=_expected(self.accepts))


_CONTINUE = "a line break ends a statement unless a bracket is open"
_STATEMENTS = f"statements are {', '.join(KEYWORDS)}, and 'name = expression'"
_WORDS = {
    "NAME": "a name",
    "NUMBER": "a number",
    "EQUAL": "'='",
    "COLON": "':'",
    "COMMA": "','",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "$END": "the end of the line",
}


def _expected(accepts: frozenset[str]) -> tuple[str, ...]:
    """One note that lists what the automaton would take, in words; operators and values are collapsed."""
    if {"NAME", "NUMBER"} <= accepts:
        words = ["an expression"]
        accepts = accepts - {"NAME", "NUMBER", "LPAR", "MINUS"}
    else:
        words = []
    if accepts & set(OPERATORS):
        accepts = accepts - {"LPAR"}
    words += [word for terminal, word in _WORDS.items() if terminal in accepts]
    if accepts & set(OPERATORS):
        words.append("an operator")
    if not words:
        return ()
    *most, last = words
    return (f"expected {', '.join(most)} or {last}" if most else f"expected {last}",)
