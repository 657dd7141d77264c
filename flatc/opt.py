"""`flatc-opt`: parse IR, run a pipeline of passes, print IR. For testing one pass at a time.

    flatc-opt attention.mlir -p fuse,tile --accelerator edge

`--accelerator` writes the machine into the module before the first pass runs, because passes read it from
there and never load files. Every other option is that of `xdsl-opt`; graphs in `.flat` are read as well.
`FLATC_UNIVERSE` makes the dialects and passes known to `xdsl-opt` itself and to any tool built on it.

A user's mistake prints one error and gives exit status 1; then nothing is written.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import IO

from typing_extensions import override
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Dialect
from xdsl.parser import Parser
from xdsl.universe import Universe
from xdsl.utils.arg_spec import parse_pipeline
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError, VerifyException
from xdsl.xdsl_opt_main import xDSLOptMain

from flatc.dialects.diagnostics import FlatcError, Position, did_you_mean, position_of
from flatc.passes import get_all_passes

LONGEST_SHOWN_LINE = 160


def get_all_dialects() -> dict[str, Callable[[], Dialect]]:
    """Every dialect of flatc, each imported when it is first used."""

    def attn() -> Dialect:
        from flatc.dialects.attn import Attn

        return Attn

    def flat() -> Dialect:
        from flatc.dialects.flat import Flat

        return Flat

    def spatial() -> Dialect:
        from flatc.dialects.spatial import Spatial

        return Spatial

    return {"attn": attn, "flat": flat, "spatial": spatial}


FLATC_UNIVERSE = Universe(all_dialects=get_all_dialects(), all_passes=get_all_passes())


class _Pending(StringIO):
    """Output that is kept, even once closed, until everything has succeeded."""

    @override
    def close(self) -> None:
        pass


class FlatcOptMain(xDSLOptMain):
    """`xdsl-opt` with an accelerator, a front end for graphs, and errors for users."""

    version_format = "flatc-opt (xDSL {xdsl_version})"

    def __init__(self, args: Sequence[str] | None = None):
        self.module: ModuleOp | None = None
        self.output = _Pending()
        super().__init__("Run passes of flatc on IR, one by one or as a pipeline", args)

    @override
    def register_all_arguments(self, arg_parser: ArgumentParser) -> None:
        super().register_all_arguments(arg_parser)
        arg_parser.add_argument(
            "--accelerator",
            metavar="NAME",
            help="accelerator to compile for: a name that `flatc accelerators` lists, or a YAML file; "
            "replaces the one that the module has",
        )

    @override
    def register_all_frontends(self) -> None:
        self.available_frontends["mlir"] = self._parse_mlir
        self.available_frontends["flat"] = self._parse_flat

    def _parse_mlir(self, stream: IO[bytes]) -> ModuleOp:
        parser = Parser(self.ctx, _decode(stream.read(), self.get_input_name()), self.get_input_name())
        try:
            return parser.parse_module(not self.args.no_implicit_module)
        except (ParseError, DiagnosticException, FlatcError):
            raise
        except Exception as error:  # what xDSL's parser lets through on malformed text
            parser.raise_error(str(error) or type(error).__name__, parser.pos, parser.pos + 1)

    def _parse_flat(self, stream: IO[bytes]) -> ModuleOp:
        from flatc.frontend import parse_flat

        name = self.get_input_name()
        return parse_flat(_decode(stream.read(), name), name)

    @override
    def setup_pipeline(self) -> None:
        try:
            for spec in parse_pipeline(self.args.passes):
                if spec.name not in self.available_passes:
                    near = did_you_mean(spec.name, self.available_passes)
                    raise FlatcError(f"-p: no pass is named '{spec.name}'", help=near)
            super().setup_pipeline()
        except (ValueError, ArgSpecParseError) as error:
            raise FlatcError(f"-p: {str(error).strip().splitlines()[-1].strip()}") from error

    @override
    def prepare_input(self) -> tuple[list[tuple[IO[bytes], int]], str]:
        try:
            return super().prepare_input()
        except OSError as error:
            raise FlatcError(f"cannot read '{self.args.input_file}': {error.strerror or error}") from error
        except ValueError as error:
            known = ", ".join(f".{extension}" for extension in self.available_frontends)
            raise FlatcError(f"cannot read '{self.args.input_file}': {error}", help=f"known: {known}") from error

    @override
    def prepare_output(self) -> IO[str]:
        return self.output

    @override
    def parse_chunk(self, chunk: IO[bytes], file_extension: str, start_offset: int = 0) -> ModuleOp | None:
        self.module = super().parse_chunk(chunk, file_extension, start_offset)
        if self.module is not None and self.args.accelerator is not None:
            from flatc.accelerators import load
            from flatc.dialects.accelerator import attach_accelerator

            attach_accelerator(self.module, load(self.args.accelerator))
        return self.module

    @override
    def run(self) -> None:
        with self._users_errors():
            super().run()
        text = self.output.getvalue()
        if self.args.output_file is None:
            sys.stdout.write(text)
            return
        try:
            with open(self.args.output_file, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise FlatcError(f"cannot write '{self.args.output_file}': {error.strerror or error}") from error

    @contextmanager
    def _users_errors(self) -> Generator[None]:
        """Turn what xDSL raises for wrong input into a `FlatcError`, in its place where that is known."""
        try:
            yield
        except ParseError as error:
            raise _in_its_place(error) from error
        except VerifyException as error:
            raise self._verification_error(error) from error
        except DiagnosticException as error:
            raise FlatcError(str(error)) from error

    def _verification_error(self, error: VerifyException) -> FlatcError:
        """The same error at the operation that does not verify."""
        for op in self.module.walk(region_first=True) if self.module else ():
            try:
                op.verify(verify_nested_ops=False)
            except VerifyException as found:
                return FlatcError(f"{op.name}: {found}", position=position_of(op))
        return FlatcError(str(error))


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlatcError(f"cannot read '{name}': it is not UTF-8 text") from error


def _in_its_place(error: ParseError) -> FlatcError:
    """A parse error as the user's error: file, line, column and the line itself."""
    span, at = error.span, error.span.get_location()
    lines = str(span.input.content).split("\n")
    line = lines[at.line - 1 - span.line_offset]
    length = max(1, min(span.len, len(line) - at.col + 1))
    position = Position(at.file, at.line, at.col, length)
    shown = line if len(line) <= LONGEST_SHOWN_LINE else None
    return FlatcError(error.msg.strip() or "malformed IR", position=position, source_line=shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    try:
        FlatcOptMain(arguments).run()
        sys.stdout.flush()
    except FlatcError as error:
        print(error.render(), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
