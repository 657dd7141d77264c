"""flatc beside AccelForge: the same machine, workload, prices and objective; one mapping judged on latency and energy.

    python benchmarks/accelforge.py --accelforge VENV [--points edge-512,cloud-4096-four] [--workers N] [--all]
    python benchmarks/accelforge.py --recorded

VENV is a virtual environment that has accelforge, or its Python; the variable ACCELFORGE says the same. It needs
Python 3.12 and Graphviz:

    python3.12 -m venv VENV && VENV/bin/pip install accelforge==1.0.467

Points are those of `accelforge_bert.csv` whose rows are whole (`--all`: every fused one): BERT-base attention, batch
64, on FLAT's edge and cloud. Both tools get their numbers from `flatc/validation/machines/accelforge_*.yaml`:
AccelForge through the templates in `accelforge_mapper/`, flatc as it is. Both search for the least energy x latency.

    one     a score takes one operation between the two products: AccelForge's softmax
    four    maximum, exponential, sum and division are an operation each; flatc compiles attention with its softmax

`search` is the time of AccelForge's mapper and of flatc's search, simulations included, both without imports: wall
clock, and in brackets the processor time of all workers, which tells more on a busy machine. Below each point of `one`
stands flatc with the real softmax at the prices of `four`: what the elementwise function leaves out. With `--recorded`
nothing of AccelForge is run: its figures are those of the file, its seconds the best that were seen there on an idle
machine, and the ratio is to flatc's processor time. Exits with 1 if flatc's mapping is worse by more than 0.1 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import NoReturn

from xdsl.context import Context

import flatc
from flatc.dialects.accelerator import attach_accelerator
from flatc.passes.choose_fusion import choose_fusion
from flatc.passes.fuse_attention import FuseAttentionPass
from flatc.passes.tile_attention import KernelSearch, tile_module
from flatc.validation.accelforge import FILE, WORD_BYTES, Point, point, tile
from flatc.validation.experiment import PICOJOULES, Sizes
from flatc.validation.records import Record, read

MAPPER = Path(__file__).resolve().parent / "accelforge_mapper" / "run.py"
VARIABLE = "ACCELFORGE"
ALLOWED = 0.001
"""By how much a mapping may be worse."""


@dataclass(frozen=True)
class Found:
    """What a search found, and how long it took; processor seconds are None where nobody measured them."""

    latency_s: float
    energy_j: float
    offchip_bytes: float
    seconds: float
    processor_seconds: float | None = None


# --- AccelForge ---------------------------------------------------------------------------------------------------


def numbers(point: Point) -> dict[str, float]:
    """What the templates of `accelforge_mapper` are filled in with, in bytes, seconds and joules."""
    machine, sizes = point.accelerator, point.sizes
    return {
        "clock": machine.clock_hz,
        "offchip_bandwidth": machine.offchip.read_bytes_per_second,
        "offchip_energy": machine.offchip.energy_pj_per_byte / PICOJOULES,
        "buffer_capacity": machine.buffer.capacity_bytes,
        "buffer_bandwidth": machine.buffer.bandwidth_bytes_per_second or float("inf"),
        "buffer_read_energy": machine.buffer.read_energy_pj_per_byte / PICOJOULES,
        "buffer_write_energy": machine.buffer.write_energy_pj_per_byte / PICOJOULES,
        "rows": machine.array.rows,
        "columns": machine.array.columns,
        "mac_energy": machine.array.mac_energy_pj / PICOJOULES,
        "lanes": machine.vector.lanes,
        "vector_energy": machine.vector.energies_pj.exp / PICOJOULES,
        "accumulator": machine.words.accumulator_bytes,
        "word": WORD_BYTES,
        "heads": sizes.batch * sizes.heads,
        "tokens": sizes.length,
        "depth": sizes.depth,
    }


def run_accelforge(python: Path, point: Point, workers: int) -> Found:
    """AccelForge's mapper on one point, in its own environment."""
    order = json.dumps({"softmax": point.softmax, "workers": workers, "numbers": numbers(point)})
    done = subprocess.run([str(python), str(MAPPER)], input=order, capture_output=True, text=True)
    if done.returncode:
        fail(f"AccelForge failed on {point.label}:\n{done.stderr.strip()[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    del answer["version"]
    return Found(**answer)


def recorded(record: Record) -> Found:
    """What the file has for one point."""
    columns = ("latency_s", "energy_j", "offchip_bytes", "mapper_seconds_best_seen")
    return Found(*(record.number(column) for column in columns))


def python_of(given: str | None) -> Path:
    """The Python that has accelforge; ends the script where there is none."""
    place = given or os.environ.get(VARIABLE)
    if not place:
        fail(f"no environment with accelforge: give --accelforge VENV or set {VARIABLE}, or compare with --recorded")
    python = Path(place) / "bin" / "python" if Path(place).is_dir() else Path(place)
    if not python.exists():
        fail(f"there is no Python at {python}: give the folder of a virtual environment that has accelforge")
    check = subprocess.run([str(python), "-c", "import accelforge"], capture_output=True, text=True)
    if check.returncode:
        fail(f"{python} cannot import accelforge: {check.stderr.strip().splitlines()[-1]}")
    return python


# --- flatc --------------------------------------------------------------------------------------------------------


def run_flatc(point: Point) -> Found:
    """flatc's best mapping of one point, by energy times latency, simulated; the seconds are those of the search."""
    module, machine = point.graph(), point.accelerator
    attach_accelerator(module, machine)
    FuseAttentionPass().apply(Context(), module)
    wall, used = time.perf_counter(), time.process_time()
    search = KernelSearch(machine, "auto", "edp")
    choose_fusion(module, search)
    tile_module(module, "auto", "edp", search=search)
    wall, used = time.perf_counter() - wall, time.process_time() - used
    report = flatc.compile(module, machine).report
    return Found(report.latency_seconds, report.energy_pj / PICOJOULES, report.offchip_bytes, wall, used)


def warm_up() -> None:
    """Imports everything, so that no point pays for it."""
    for softmax in ("one", "four"):
        run_flatc(Point(Sizes(1, 1, 64, 64), "edge", softmax, fused=True))


# --- The table ----------------------------------------------------------------------------------------------------


def name(point: Point) -> str:
    """A point as `--points` has it."""
    return f"{point.platform}-{point.sizes.length}{'-four' if point.softmax == 'four' else ''}"


def points(every: bool) -> dict[str, tuple[Point, Record]]:
    """The points of the file, by name: those that are fused and, unless `every` one is asked for, whole."""
    text = (resources.files("flatc.validation") / "reference" / FILE).read_text(encoding="utf-8")
    records = [(point(record), record) for record in read(text, FILE)]
    return {name(at): (at, record) for at, record in records if at.fused and (every or tile(at) is not None)}


def compare(point: Point, theirs: Found) -> bool:
    """Prints the lines of one point; whether flatc's mapping is no worse."""
    ours = run_flatc(point)
    ratios = (ours.latency_s / theirs.latency_s, ours.energy_j / theirs.energy_j)
    print(f"{name(point):16}AccelForge{line(theirs)}")
    print(f"{'':16}flatc     {line(ours)}")
    worse = [what for what, ratio in zip(("latency", "energy"), ratios, strict=True) if ratio > 1 + ALLOWED]
    bytes_ratio = ours.offchip_bytes / theirs.offchip_bytes
    verdict = f"WORSE in {' and '.join(worse)}" if worse else "no worse"
    print(
        f"{'':16}ratio     {ratios[0]:14.5f}{ratios[1]:14.5f}{bytes_ratio:14.5f}{faster(ours, theirs):>22}  {verdict}"
    )
    if point.softmax == "one":
        real = run_flatc(replace(point, softmax="four"))
        print(f"{'':16}softmax   {line(real)}")
    return not worse


def faster(ours: Found, theirs: Found) -> str:
    """How many times as fast flatc's search is, by the wall clock and by processor time."""
    assert ours.processor_seconds
    if theirs.processor_seconds is None:
        return f"{theirs.seconds / ours.processor_seconds:.0f}x"
    return f"{theirs.seconds / ours.seconds:.0f}x ({theirs.processor_seconds / ours.processor_seconds:.0f}x)"


def line(found: Found) -> str:
    """The columns of one search."""
    used = "" if found.processor_seconds is None else f" ({found.processor_seconds:.2f})"
    seconds, offchip = f"{found.seconds:.2f}{used} s", found.offchip_bytes / 1e9
    return f"{found.latency_s * 1e3:11.3f} ms{found.energy_j * 1e3:11.3f} mJ{offchip:11.3f} GB{seconds:>22}"


def fail(message: str) -> NoReturn:
    """Ends the script."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description="flatc beside AccelForge, point by point")
    parser.add_argument("--accelforge", metavar="VENV", help=f"where accelforge is installed; default: ${VARIABLE}")
    parser.add_argument("--points", metavar="NAME,...", help="only these, such as edge-512,cloud-4096-four")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of AccelForge's mapper")
    parser.add_argument(
        "--all", action="store_true", help="every fused point, also where AccelForge's row is not whole"
    )
    parser.add_argument("--recorded", action="store_true", help="take AccelForge's figures and seconds from the file")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Compares every point that is asked for; 1 if flatc is worse somewhere."""
    options = arguments(given)
    known = points(options.all or options.points is not None)
    chosen = options.points.split(",") if options.points else list(known)
    for unknown in (one for one in chosen if one not in known):
        fail(f"there is no point '{unknown}': the points are {', '.join(known)}")
    python = None if options.recorded else python_of(options.accelforge)
    if python is None:
        print("AccelForge: recorded figures; its seconds are the best that were seen, against flatc's processor time")
    print(f"{'':26}{'latency':>14}{'energy':>14}{'off chip':>14}{'search':>22}")
    warm_up()
    fine = True
    for one in chosen:
        at, record = known[one]
        theirs = recorded(record) if python is None else run_accelforge(python, at, options.workers)
        fine = compare(at, theirs) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
