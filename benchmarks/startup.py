"""How long the whole command takes, as multiples of a three-pass xDSL pipeline on a ten-op file.

    python benchmarks/startup.py [rounds]

Absolute times say little on a busy machine, ratios do: `flatc compile` of one layer should stay within 3 times the
pipeline, at any length. Times are processor time of the child, the best of several rounds. flatc's bytecode is written
first, as pip does for xDSL and `make` for flatc.
"""

from __future__ import annotations

import compileall
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
BERT, LLAMA = str(EXAMPLES / "bert_base.flat"), str(EXAMPLES / "llama3_8b_gqa.flat")

PIPELINE = """
builtin.module {
  func.func @f(%a: i32, %b: i32) -> i32 {
    %c = arith.constant 3 : i32
    %d = arith.addi %a, %b : i32
    %e = arith.addi %d, %c : i32
    %f = arith.addi %e, %e : i32
    %g = arith.muli %f, %a : i32
    %h = arith.muli %g, %b : i32
    %i = arith.addi %h, %c : i32
    %j = arith.addi %i, %d : i32
    %k = arith.addi %d, %c : i32
    func.return %j : i32
  }
}
"""


def processor_seconds(command: list[str]) -> float:
    """The processor time that `command` takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands(pipeline: str) -> dict[str, list[str]]:
    """What is measured; the first is the measure."""
    flatc = [sys.executable, "-m", "flatc"]
    bert = [*flatc, "compile", BERT]
    return {
        "xdsl-opt, three passes": [
            *(sys.executable, "-m", "xdsl.tools.xdsl_opt", pipeline),
            *("-p", "canonicalize,cse,dce"),
        ],
        "flatc accelerators": [*flatc, "accelerators"],
        "bert, 512 tokens, edge": [*bert, "--accelerator", "edge"],
        "bert, 1048576 tokens, edge": [*bert, "--accelerator", "edge", "--bind", "S=1048576"],
        "bert, 512 tokens, cloud": [*bert, "--accelerator", "cloud"],
        "bert, 1048576 tokens, cloud": [*bert, "--accelerator", "cloud", "--bind", "S=1048576"],
        "bert, 512 tokens, unfused": [*bert, "--strategy", "unfused"],
        "llama prefill, causal": [*flatc, "compile", LLAMA, "--phase", "prefill"],
        "llama decode": [*flatc, "compile", LLAMA, "--phase", "decode"],
    }


def main(rounds: int = 5) -> None:
    """Prints a line for each command."""
    for folder in ("flatc", "passes", "dialects"):
        compileall.compile_dir(ROOT / folder, quiet=1)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = os.path.join(folder, "pipeline.mlir")
        Path(pipeline).write_text(PIPELINE)
        # All in turn, round by round: what else the machine does falls on each of them.
        turns = [
            {name: processor_seconds(command) for name, command in commands(pipeline).items()} for _ in range(rounds)
        ]
        measured = {name: min(turn[name] for turn in turns) for name in turns[0]}
    measure = next(iter(measured.values()))
    for name, seconds in measured.items():
        print(f"{name:30} {seconds:6.2f} s  {seconds / measure:5.2f}x")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
