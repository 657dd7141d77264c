"""The command line: `flatc compile | run | explain | pareto | report | validate | reproduce | accelerators`.

    flatc compile examples/bert_base.flat --accelerator edge --bind S=4096 -o out
    flatc run examples/bert_base.flat --bind B=1,S=128
    flatc explain examples/bert_base.flat --accelerator cloud
    flatc pareto examples/bert_base.flat --objectives latency,energy
    flatc pareto examples/bert_base.flat --accelerator edge --objectives latency,energy
  flatc report out/schedule.mlir
    flatc validate
    flatc reproduce flat-footprint
    flatc accelerators edge

A user's mistake prints one message on standard error and gives exit status 1; then nothing is written. What a command
needs is imported when it runs.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import override

from flatc.dialects.diagnostics import FlatcError, did_you_mean

if TYPE_CHECKING:
    from flatc.compiler import Compilation
    from flatc.passes.mapping.search import Choice

DESCRIPTION = "Compile attention for spatial accelerators: fuse, tile, schedule, execute, and explain the cost."

EXAMPLES = """\
examples:
  flatc compile examples/bert_base.flat --accelerator edge
  flatc compile examples/llama3_8b_gqa.flat --accelerator cloud --phase decode --json
  flatc compile examples/bert_base.flat --accelerator edge --bind S=4096,B=1 -o out
  flatc compile examples/bert_base.flat --accelerator edge --mapping out/mapping.txt
  flatc run examples/bert_base.flat --accelerator edge --bind B=1,S=128
  flatc explain examples/bert_base.flat --accelerator cloud --strategy unfused
  flatc pareto examples/bert_base.flat --accelerator edge --objectives latency,energy
  flatc report out/schedule.mlir
  flatc validate
  flatc validate --reference my_figures --json
  flatc reproduce flat-footprint
  flatc reproduce -o results
  flatc accelerators
"""


class _Parser(argparse.ArgumentParser):
    """Arguments whose errors are `FlatcError`s: one message, a suggestion, exit status 1."""

    @override
    def error(self, message: str) -> NoReturn:
        raise FlatcError(message, help=_suggestion(message) or f"see '{self.prog} --help'")


def _suggestion(message: str) -> str | None:
    """The command that was probably meant."""
    if "invalid choice: '" not in message:
        return None
    word, _, choices = message.partition("invalid choice: '")[2].partition("'")
    return did_you_mean(word, choices.replace("'", " ").replace(",", " ").strip(" ()").split())


# --- Arguments ------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = _Parser(
        prog="flatc",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    top.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add(commands, "compile", compile_command, "compile a graph and report what it costs", _compile_arguments)
    _add(commands, "run", run_command, "execute the schedule in NumPy, compare with float64 attention", _run_arguments)
    _add(commands, "explain", explain_command, "say where the time above the bound goes", _explain_arguments)
    _add(commands, "pareto", pareto_command, "list the mappings that are best in two objectives", _pareto_arguments)
    _add(commands, "report", report_command, "report a schedule file, or a graph", _report_arguments)
    _add(commands, "validate", validate_command, "hold flatc against published figures", _validate_arguments)
    _add(commands, "reproduce", reproduce_command, "make the published evaluations again", _reproduce_arguments)
    _add(commands, "accelerators", accelerators_command, "list the accelerators, or print one", _accelerator_arguments)
    return top


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from importlib.metadata import version

        print(f"flatc {version('flatc')}")
        parser.exit()


def _add(
    commands: Any,
    name: str,
    function: Callable[[argparse.Namespace], int],
    help: str,
    arguments: Callable[[argparse.ArgumentParser], None],
) -> None:
    examples = "\n".join(["examples:", *(line for line in EXAMPLES.splitlines() if f"  flatc {name}" in line)])
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    arguments(command)
    command.set_defaults(function=function)


def _graph_arguments(command: argparse.ArgumentParser) -> None:
    _problem_arguments(command)
    command.add_argument(
        "--objective", default="latency", metavar="NAME", help="latency (the default), energy, edp or offchip"
    )
    command.add_argument(
        "--keep-on-chip",
        action="store_true",
        help="let results that fit beside the tiles of kernels stay on chip until their last use",
    )
    command.add_argument("--mapping", metavar="FILE", help="take the mappings of this file instead of searching")


def _problem_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("graph", metavar="GRAPH", help="a .flat graph, or an .mlir module of any level")
    command.add_argument(
        "--accelerator",
        metavar="NAME|FILE",
        help="an accelerator by name (see 'flatc accelerators') or a YAML file; default: the module's own, or edge",
    )
    command.add_argument(
        "--strategy",
        default="auto",
        metavar="NAME",
        help="unfused, flat-m, flat-b, flat-h, flat-r, flat (the best of these), online, or auto (all, the default)",
    )
    command.add_argument("--buffer-limit", metavar="SIZE", help="use no more of the buffer, such as '256 KiB'")
    command.add_argument("--max-bandwidth", metavar="RATE", help="use no more off-chip bandwidth, such as '20 GB/s'")
    command.add_argument("--bind", metavar="DIM=N,...", action="append", default=[], help="rebind dims of the graph")
    command.add_argument("--phase", metavar="NAME", help="the phase of the graph to compile")


def _simulate_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--simulate",
        default="auto",
        metavar="WHEN",
        help="auto: simulate where that is quick, else use the closed form (the default); always; never",
    )


def _compile_arguments(command: argparse.ArgumentParser) -> None:
    _graph_arguments(command)
    _simulate_argument(command)
    command.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
    command.add_argument(
        "-o", "--output", metavar="DIR", help="write schedule.mlir, mapping.txt, report.txt and report.json there"
    )


def _report_arguments(command: argparse.ArgumentParser) -> None:
    _graph_arguments(command)
    _simulate_argument(command)
    command.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")


def _explain_arguments(command: argparse.ArgumentParser) -> None:
    _graph_arguments(command)
    command.add_argument("--json", action="store_true", help="print the explanation as JSON, and nothing else")


def _pareto_arguments(command: argparse.ArgumentParser) -> None:
    _problem_arguments(command)
    command.add_argument(
        "--objectives",
        default="latency,energy",
        metavar="A,B",
        help="two of latency, energy, edp, offchip (default latency,energy)",
    )
    command.add_argument(
        "--simulate", action="store_true", help="simulate the latencies on the front, which are else lower bounds"
    )
    command.add_argument("--json", action="store_true", help="print the fronts as JSON, and nothing else")


def _run_arguments(command: argparse.ArgumentParser) -> None:
    _graph_arguments(command)
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the inputs (default 0)")


def _validate_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--reference", metavar="DIR", help="take the figures of this folder, files of the same names and columns"
    )
    command.add_argument("--json", action="store_true", help="print the tables as JSON, and nothing else")


def _reproduce_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("studies", nargs="*", metavar="STUDY", help="which studies; default: all")
    command.add_argument("-o", "--output", metavar="DIR", help="write texts, tables (.csv) and plots (.svg) there")
    command.add_argument("--no-plots", action="store_true", help="write no plots, which need Matplotlib")
    command.add_argument("--quick", action="store_true", help="fewer models and lengths of the same studies")


def _accelerator_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", nargs="?", metavar="NAME|FILE", help="print this accelerator as a file")


def bindings(texts: Sequence[str]) -> dict[str, int]:
    """`["S=4096,B=1"]` as `{"S": 4096, "B": 1}`."""
    found: dict[str, int] = {}
    for part in ",".join(texts).split(",") if texts else ():
        name, equals, value = (word.strip() for word in part.partition("="))
        if not name or not equals:
            raise FlatcError(f"--bind: '{part.strip()}' is no binding", help="write --bind S=4096,B=1")
        if not value.isascii() or not value.isdigit():
            raise FlatcError(f"--bind: {name} must be a whole number, got '{value}'", help=f"write --bind {name}=128")
        if name in found:
            raise FlatcError(f"--bind: {name} is bound twice")
        if len(value) > 18:
            raise FlatcError(f"--bind: {name}={value[:18]}... is absurdly large")
        found[name] = int(value)
    return found


# --- Commands -------------------------------------------------------------------------------------------------


def _compiled(arguments: argparse.Namespace, simulate: str) -> Compilation:
    from pathlib import Path

    from flatc.compiler import compile

    return compile(
        Path(arguments.graph),
        arguments.accelerator,
        strategy=arguments.strategy,
        objective=arguments.objective,
        mapping=None if arguments.mapping is None else Path(arguments.mapping),
        bindings=bindings(arguments.bind),
        phase=arguments.phase,
        simulate=simulate,  # pyright: ignore[reportArgumentType]
        buffer_limit=arguments.buffer_limit,
        max_bandwidth=arguments.max_bandwidth,
        keep_on_chip=arguments.keep_on_chip,
    )


def compile_command(arguments: argparse.Namespace) -> int:
    """`flatc compile`: the report on standard output, files in a folder if asked for."""
    result = _compiled(arguments, arguments.simulate)
    if arguments.output is not None:
        from flatc.output import write_compilation

        write_compilation(result, arguments.output)
    _print_report(result, as_json=arguments.json)
    if not arguments.json:
        for name, choice in result.search.items():
            print(f"search: kernel {name}: {_looked(choice)}", file=sys.stderr)
    return 0


def _looked(choice: Choice[Any]) -> str:
    """How much of the map space the search looked at."""
    looked = f"{choice.covered:,} mappings covered, {choice.legal:,} fit the machine"
    if choice.open is None:
        return f"{looked}, {choice.simulated:,} simulated"
    left = "none of the others can be better"
    if choice.open:
        left = f"{choice.open:,} may still be better, by {choice.gain:.2%} at most"
    uses = f"{choice.dominated:,} uses of the array dominated, {choice.priced:,} priced"
    return f"{looked}; {uses}, {choice.simulated:,} simulated; {left}"


def report_command(arguments: argparse.Namespace) -> int:
    """`flatc report`: the report of a schedule file, or of a graph compiled on the way."""
    _print_report(_compiled(arguments, arguments.simulate), as_json=arguments.json)
    return 0


def _print_report(result: Compilation, *, as_json: bool) -> None:
    from flatc.report import to_json, to_text

    sys.stdout.write(to_json(result.report) if as_json else to_text(result.report))


def explain_command(arguments: argparse.Namespace) -> int:
    """`flatc explain`: named causes that add up to the gap, and what each resource waits for."""
    from flatc.dialects.accelerator import accelerator_of
    from flatc.passes.cost.explanation import explain
    from flatc.report.build import schedule_of
    from flatc.report.explain import explanation_json, explanation_text

    module = _compiled(arguments, "never").schedule
    schedule, accelerator = schedule_of(module), accelerator_of(module)
    show = explanation_json if arguments.json else explanation_text
    sys.stdout.write(show(explain(schedule, accelerator), schedule.sym_name.data, accelerator))
    return 0


def pareto_command(arguments: argparse.Namespace) -> int:
    """`flatc pareto`: the mappings of each attention that none beats in one objective without losing in the other."""
    from pathlib import Path

    from flatc.pareto import pareto, to_json, to_text

    found = pareto(
        Path(arguments.graph),
        [name.strip() for name in arguments.objectives.split(",")],
        arguments.accelerator,
        strategy=arguments.strategy,
        simulate=arguments.simulate,
        bindings=bindings(arguments.bind),
        phase=arguments.phase,
        buffer_limit=arguments.buffer_limit,
        max_bandwidth=arguments.max_bandwidth,
    )
    sys.stdout.write(to_json(found) if arguments.json else to_text(found))
    return 0


def run_command(arguments: argparse.Namespace) -> int:
    """`flatc run`: compile, execute, compare; exit status 1 if the numbers differ."""
    compilation = _compiled(arguments, "never")
    result = compilation.run(seed=arguments.seed)
    report = compilation.report
    print(f"{report.title} on {report.accelerator.name}, strategy {report.strategy}, seed {arguments.seed}")
    for name, output in result.outputs.items():
        print(f"  {name}: {output.dtype}[{', '.join(map(str, output.shape))}]")
    for name, (read, written) in result.offchip_bytes.items():
        print(f"  {name}: {read:,} B read, {written:,} B written off chip")
    relation = "within" if result.passed else "beyond"
    print(f"  largest error {result.max_abs_error:.3g}, {relation} the tolerance {result.tolerance:.3g}")
    print("matches float64 attention" if result.passed else "DIFFERS from float64 attention")
    return 0 if result.passed else 1


def validate_command(arguments: argparse.Namespace) -> int:
    """`flatc validate`: their mapping on their machine, beside their figures; exit status 1 if a miss has no reason."""
    from pathlib import Path

    from flatc.validation import render, to_json, validate

    tables = validate(None if arguments.reference is None else Path(arguments.reference))
    sys.stdout.write(to_json(tables) if arguments.json else render(tables))
    return 1 if any(table.unexplained for table in tables) else 0


def reproduce_command(arguments: argparse.Namespace) -> int:
    """`flatc reproduce`: published evaluations with flatc's schedules; texts on standard output, files if asked for."""
    from flatc.output import write_files
    from flatc.reproduce import plots, reproduce, text

    for number, study in enumerate(reproduce(arguments.studies, quick=arguments.quick)):
        if arguments.output is not None:
            drawn = {} if arguments.no_plots else plots.files(study)
            write_files(arguments.output, text.files(study) | drawn)
        sys.stdout.write(("\n" if number else "") + text.render(study))
        sys.stdout.flush()
    return 0


def accelerators_command(arguments: argparse.Namespace) -> int:
    """`flatc accelerators`: the library, or one machine as a file to start one's own from."""
    from flatc.accelerators import describe, load, names

    if arguments.name is not None:
        sys.stdout.write(describe(load(arguments.name)))
        return 0
    width = max(map(len, names()))
    for name in names():
        print(f"{name:{width}}  {load(name).description}")
    return 0


# --- The command ----------------------------------------------------------------------------------------------


def command() -> int:
    """`main` as a process of its own, which hardly looks for garbage in cycles, not even at its end."""
    collect_seldom()
    atexit.register(gc.freeze)
    return main()


def collect_seldom() -> None:
    """Lets Python look for garbage in cycles seldom.

    A compiler makes dialects and schedules, which stay, and little of that. At Python's usual pace, looking takes a
    tenth of the time of a command, and as much again at the end, only to drop all that there is.
    """
    gc.set_threshold(250_000, *gc.get_threshold()[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; gives its exit status."""
    try:
        chosen = parser().parse_args(arguments)
        status = int(chosen.function(chosen))
        sys.stdout.flush()
    except FlatcError as error:
        print(error.render(), file=sys.stderr)
        return 1
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go
        if not isinstance(error, BrokenPipeError):  # the reader of a pipe has seen enough
            print(FlatcError(f"cannot write: {error.strerror or error}").render(), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except MemoryError:
        print(FlatcError("out of memory", help="bind smaller dims").render(), file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
