"""FLAT's evaluation: utilisation, speed-up and energy of fused attention, five models, two machines, three levels.

Kao et al., ASPLOS 2023, section 6, give 1.94x (edge) and 1.76x (cloud) over accelerators without a customised
dataflow, and 49 % and 42 % less energy. Here `unfused` is that baseline, compiled by flatc as well as the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.reproduce.model import Cell, Column, Plot, Study, Table, line, mean
from flatc.reproduce.workloads import LEVELS, MODELS, Level, Measured, Model, Workload, free_softmax, lengths, measure

STRATEGIES = ("unfused", "flat", "auto")
PUBLISHED = {"edge": (1.94, 0.49), "cloud": (1.76, 0.42)}
"""Speed-up and share of energy saved by machine: the abstract of the paper."""

ASSUMPTIONS = (
    "batch 64, words of two bytes, no masks; sizes are the published configurations: "
    + ", ".join(f"{m.name} {m.source} ({m.heads} x {m.head_dim}, {m.feed_forward})" for m in MODELS),
    "both sides are flatc's best mapping for latency under the named strategy, on one machine with one price table",
    "FLAT does not charge softmax. 'vector free' does the same; without it softmax costs what the machine file says",
    "utilisation is MACs over what the whole array could do in the time; energy is flatc's accounting, all components",
    "the published figures are means over FLAT's own choice of points, against baselines of its own cost model",
)


@frozen
class _Point:
    machine: str
    level: Level
    workload: Workload
    results: dict[str, Measured | None]

    def speedup(self, strategy: str) -> float | None:
        """Latency of unfused over that of a strategy."""
        base, other = self.results["unfused"], self.results[strategy]
        return base.latency_seconds / other.latency_seconds if base and other else None

    def saved(self, strategy: str) -> float | None:
        """Share of the energy of unfused that a strategy saves."""
        base, other = self.results["unfused"], self.results[strategy]
        return 1 - other.energy_pj / base.energy_pj if base and other else None


def machines() -> dict[str, Accelerator]:
    """FLAT's two machines, each with softmax charged and free."""
    found: dict[str, Accelerator] = {}
    for name in PUBLISHED:
        machine = load(name)
        found[name] = machine
        free = free_softmax(machine)
        found[free.name] = free
    return found


def speedup(quick: bool) -> Study:
    """The study `flat-speedup`."""
    models: Sequence[Model] = MODELS[:1] if quick else MODELS
    points = [
        _Point(name, level, work, {s: measure(work, machine, s) for s in STRATEGIES})
        for name, machine in machines().items()
        for level in LEVELS
        for model in models
        for work in [Workload(model, tokens, level) for tokens in lengths(512, 65536, quick=quick)]
    ]
    return Study(
        "flat-speedup",
        "FLAT's evaluation: fused attention against one kernel for each operator",
        ASSUMPTIONS,
        (_means(points), _by_length(points), _every(points)),
        tuple(_plot(points, machine) for machine in machines()),
    )


def _means(points: Sequence[_Point]) -> Table:
    """Means over models and lengths, beside the paper's."""
    rows: list[tuple[Cell, ...]] = []
    for machine in machines():
        speed, energy = PUBLISHED[machine.split(",")[0]]
        for level in LEVELS:
            group = [p for p in points if (p.machine, p.level) == (machine, level)]
            gains = [mean(_known(p.speedup(s) for p in group)) for s in STRATEGIES[1:]]
            saved = [_percent(mean(_known(p.saved(s) for p in group))) for s in STRATEGIES[1:]]
            rows.append((machine, level, *gains, speed, *saved, 100 * energy))
    columns = (
        Column("machine"),
        Column("level"),
        Column("flat", "x"),
        Column("auto", "x"),
        Column("FLAT's paper", "x"),
    )
    columns += (Column("flat saves", "%", 0), Column("auto saves", "%", 0), Column("paper saves", "%", 0))
    return Table("means", "Mean speed-up and energy saved over unfused, all models and lengths", columns, tuple(rows))


def _by_length(points: Sequence[_Point]) -> Table:
    """Means over models, for each length."""
    rows: list[tuple[Cell, ...]] = []
    for machine in machines():
        for level in LEVELS:
            group = [p for p in points if (p.machine, p.level) == (machine, level)]
            for tokens in sorted({p.workload.tokens for p in group}):
                some = [p for p in group if p.workload.tokens == tokens]
                used = [_percent(mean(_utilisation(some, s))) for s in STRATEGIES]
                gains = [mean(_known(p.speedup(s) for p in some)) for s in STRATEGIES[1:]]
                rows.append((machine, level, tokens, *used, *gains))
    columns = (Column("machine"), Column("level"), Column("tokens", digits=0))
    columns += tuple(Column(f"{s} used", "%", 1) for s in STRATEGIES)
    columns += (Column("flat", "x"), Column("auto", "x"))
    return Table("lengths", "Utilisation of the array and speed-up by length, means over models", columns, tuple(rows))


def _every(points: Sequence[_Point]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for point in points:
        for strategy, found in point.results.items():
            work = point.workload
            start: tuple[Cell, ...] = (point.machine, work.level, work.model.name, work.tokens, strategy)
            if found is None:
                rows.append((*start, None, None, None, None, None, None, None))
                continue
            gain, saved = point.speedup(strategy), _percent(point.saved(strategy))
            source = "simulated" if found.simulated else "closed form"
            costs = (found.latency_seconds, found.energy_pj, found.offchip_bytes, 100 * found.utilisation)
            rows.append((*start, *costs, gain, saved, source))
    columns = tuple(Column(name) for name in ("machine", "level", "model", "tokens", "strategy"))
    columns += (Column("latency", "s"), Column("energy", "pJ"), Column("off chip", "B"), Column("used", "%"))
    columns += (Column("speed-up", "x"), Column("energy saved", "%"), Column("latency is"))
    return Table("points", "Every point", columns, tuple(rows), shown=False)


def _plot(points: Sequence[_Point], machine: str) -> Plot:
    group = [p for p in points if (p.machine, p.level) == (machine, "attention")]
    tokens = sorted({p.workload.tokens for p in group})

    def used(strategy: str, length: int) -> float | None:
        return _percent(mean(_utilisation([p for p in group if p.workload.tokens == length], strategy)))

    lines = tuple(line(s, tokens, [used(s, length) for length in tokens]) for s in STRATEGIES)
    name = machine.replace(", vector ", "-")
    return Plot(f"utilisation-{name}", f"Attention on {machine}, mean of the models", "tokens", "array used [%]", lines)


def _utilisation(points: Iterable[_Point], strategy: str) -> list[float]:
    return [found.utilisation for p in points if (found := p.results[strategy]) is not None]


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
