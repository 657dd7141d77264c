"""FuseMax's evaluation: attention from 1K to 1M tokens, its figures beside schedules that flatc finds on the same
machines.

The study's own figures (artifact of FuseMax, MICRO 2024; see `flatc/validation/reference`) are those of its model for
BERT and T5. flatc's are of schedules it chose itself: `flatc validate` is where it runs *their* mappings.

What a dataflow buys and what algebra buys are told apart by a machine on which every algorithm costs as many vector
operations a score: four, as the study counts for FLAT. There, adding up a row costs two, so that an algorithm that
divides outputs instead of probabilities pays four too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib import resources

from flatc.accelerators import load
from flatc.dialects.accelerator import Accelerator
from flatc.dialects.frozen import frozen
from flatc.reproduce.model import Cell, Column, Plot, Study, Table, line, mean
from flatc.reproduce.workloads import MODELS, Measured, Model, Workload, lengths, measure

STUDIED = tuple(model for model in MODELS if model.name != "FlauBERT")
ASSUMPTIONS = (
    "batch 64, words of two bytes; FlauBERT is not in this evaluation",
    "study: figures of the FuseMax study's model, which overlaps everything and charges no fill or drain of the array",
    "flat and auto: flatc's best schedules on 'cloud', simulated with what that file charges",
    "four each: the same machine where every algorithm pays four lane-cycles a score (adding up a row costs two)",
    "fusemax: flatc's best schedule on the machine 'fusemax', whose array can take part in softmax",
)


@frozen
class _Point:
    model: Model
    tokens: int
    study_flat_s: float | None
    study_fusemax_s: float | None
    flat: Measured | None
    auto: Measured | None
    flat_four: Measured | None
    auto_four: Measured | None
    fusemax: Measured | None


def study(quick: bool) -> Study:
    """The study `fusemax`."""
    points = _points(quick)
    longest = max(point.tokens for point in points)
    title = "FuseMax's evaluation: attention from 1K to 1M tokens"
    plots = tuple(_plot(points, model) for model in dict.fromkeys(point.model for point in points))
    assumptions = (*ASSUMPTIONS, f"lengths up to {longest} tokens")
    return Study("fusemax", title, assumptions, (_latencies(points), _gains(points)), plots)


def _points(quick: bool) -> list[_Point]:
    recorded = _recorded()
    cloud, fusemax = load("cloud"), load("fusemax")
    four = _four_each(cloud)
    found: list[_Point] = []
    for model in STUDIED[:1] if quick else STUDIED:
        for tokens in lengths(1024, 1 << 20, quick=quick):
            work = Workload(model, tokens)
            theirs = recorded.get((model.name, tokens), (None, None))
            ours = [measure(work, cloud, "flat"), measure(work, cloud, "auto")]
            ours += [measure(work, four, "flat"), measure(work, four, "auto"), measure(work, fusemax, "auto")]
            found.append(_Point(model, tokens, *theirs, *ours))
    return found


def _four_each(machine: Accelerator) -> Accelerator:
    unit = machine.vector
    prices = replace(unit.prices, add=2 * unit.prices.add)
    return replace(machine, name=f"{machine.name}, four each", vector=replace(unit, prices=prices))


def _recorded() -> dict[tuple[str, int], tuple[float | None, float | None]]:
    """Latency of the study's FLAT and of its FuseMax in seconds, by model and length."""
    from flatc.validation.records import read

    file = "fusemax_flat.csv"
    text = (resources.files("flatc.validation") / "reference" / file).read_text(encoding="utf-8")
    rows = [row for row in read(text, file) if row.text("platform") == "cloud"]
    return {
        (row.text("model"), row.integer("seq_len_tokens")): (
            row.measured("flat_latency_s"),
            row.measured("fusemax_latency_s"),
        )
        for row in rows
    }


def _latencies(points: Sequence[_Point]) -> Table:
    rows = tuple(
        (point.model.name, point.tokens, point.study_flat_s, point.study_fusemax_s, *_seconds(point))
        for point in points
    )
    names = ("study FLAT", "study FuseMax", "flat", "auto", "fusemax auto")
    columns = (Column("model"), Column("tokens", digits=0), *(Column(name, "s", 4) for name in names))
    return Table("latency", "Latency of attention", columns, rows)


def _seconds(point: _Point) -> tuple[Cell, ...]:
    results = (point.flat, point.auto, point.fusemax)
    return tuple(None if found is None else found.latency_seconds for found in results)


def _gains(points: Sequence[_Point]) -> Table:
    """Speed-ups at each point, and their means."""
    rows: list[tuple[Cell, ...]] = [(point.model.name, point.tokens, *_ratios(point)) for point in points]
    means = [mean(value for value in column if value is not None) for column in zip(*map(_ratios, points), strict=True)]
    rows.append(("mean", None, *means))
    names = ("auto over study FLAT", "auto over flat", "four each: auto over flat", "fusemax over study FuseMax")
    columns = (Column("model"), Column("tokens", digits=0), *(Column(name, "x") for name in names))
    columns += (Column("bytes of auto", "% of flat", 1), Column("energy of fusemax", "% of flat", 1))
    return Table("speed-up", "What dataflow and algebra buy: speed-ups", columns, tuple(rows))


def _ratios(point: _Point) -> tuple[float | None, ...]:
    auto, flat, fusemax = point.auto, point.flat, point.fusemax
    speed = (
        _over(point.study_flat_s, _latency(auto)),
        _over(_latency(flat), _latency(auto)),
        _over(_latency(point.flat_four), _latency(point.auto_four)),
        _over(point.study_fusemax_s, _latency(fusemax)),
    )
    moved = 100 * auto.offchip_bytes / flat.offchip_bytes if auto and flat else None
    spent = 100 * fusemax.energy_pj / flat.energy_pj if fusemax and flat else None
    return (*speed, moved, spent)


def _latency(found: Measured | None) -> float | None:
    return None if found is None else found.latency_seconds


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other


def _plot(points: Iterable[_Point], model: Model) -> Plot:
    mine = [point for point in points if point.model == model]
    tokens = [point.tokens for point in mine]
    lines = (
        line("study FLAT", tokens, [point.study_flat_s for point in mine]),
        line("study FuseMax", tokens, [point.study_fusemax_s for point in mine]),
        line("flatc flat, cloud", tokens, [_latency(point.flat) for point in mine]),
        line("flatc auto, cloud", tokens, [_latency(point.auto) for point in mine]),
        line("flatc auto, fusemax", tokens, [_latency(point.fusemax) for point in mine]),
    )
    shown = tuple(found for found in lines if found.points)
    return Plot(model.name.lower(), f"{model.name}: attention", "tokens", "latency [s]", shown, log_y=True)
