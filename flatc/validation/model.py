"""What a validation says, as records: a table of recorded figures beside flatc's, and how far they are apart.

    table = Table("flat-latency", "FLAT's own code: latency", "s", 0.01, "fusemax_flat.csv", rows)
    table.statistics.mean_error, table.statistics.worst.label
    table.unexplained                                    # rows that miss and have no reason: a defect

A row lists what flatc lacks to express what was recorded. These reasons come from the recorded mapping alone, before
any figure is known: a row without reasons is held to the tolerance, whatever comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic

from typing_extensions import TypeVar

from flatc.dialects.frozen import frozen

P = TypeVar("P")
R = TypeVar("R")


@frozen
class Row:
    """One recorded figure and flatc's. `flatc` is None where nothing could be scheduled; `reasons` then say why."""

    label: str
    recorded: float
    flatc: float | None
    reasons: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """How much flatc's figure is above the recorded one, as a share of it."""
        return None if self.flatc is None else self.flatc / self.recorded - 1


@frozen
class Statistics:
    """Errors over some rows: how many, how many of them within the tolerance, mean of absolutes, the worst row."""

    rows: int
    within: int
    mean_error: float
    worst: Row

    @property
    def share_within(self) -> float:
        """Rows within the tolerance, as a share of all."""
        return self.within / self.rows


@frozen
class Table:
    """One quantity over all rows of one file. `tolerance` is the error that rows without reasons may have."""

    name: str
    title: str
    unit: str
    tolerance: float
    file: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def statistics(self) -> Statistics | None:
        """Over all rows that have a figure."""
        return self._over(self.rows)

    @property
    def expressed(self) -> Statistics | None:
        """Over the rows whose recorded mapping flatc expresses in full."""
        return self._over([row for row in self.rows if not row.reasons])

    @property
    def approximated(self) -> Statistics | None:
        """Over the rows where flatc lacks something: the nearest that it can do."""
        return self._over([row for row in self.rows if row.reasons])

    @property
    def unexplained(self) -> tuple[Row, ...]:
        """Rows that miss the tolerance, or have no figure, and no reason."""
        return tuple(row for row in self.rows if not row.reasons and not self.within(row))

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason of some row, in order."""
        return tuple(dict.fromkeys(reason for row in self.rows for reason in row.reasons))

    def within(self, row: Row) -> bool:
        """Whether a row is within the tolerance."""
        return row.error is not None and abs(row.error) <= self.tolerance

    def _over(self, rows: Sequence[Row]) -> Statistics | None:
        errors = [(abs(row.error), row) for row in rows if row.error is not None]
        if not errors:
            return None
        return Statistics(
            rows=len(errors),
            within=sum(self.within(row) for _, row in errors),
            mean_error=sum(error for error, _ in errors) / len(errors),
            worst=max(errors, key=lambda found: found[0])[1],
        )


@frozen
class Quantity(Generic[P, R]):
    """What one table compares: the recorded column, flatc's figure of a result, and why the row of a point misses.

    `name`, `title`, `unit` and `tolerance` are those of the table.
    """

    name: str
    title: str
    unit: str
    column: str
    tolerance: float
    figure: Callable[[R], float]
    reasons: Callable[[P], tuple[str, ...]]

    def table(
        self, file: str, labels: Sequence[str], recorded: Sequence[float], points: Sequence[P], results: Sequence[R]
    ) -> Table:
        """The table of some points: labels, recorded figures, points and results belong together."""
        rows = tuple(
            Row(label, figure, self.figure(result), self.reasons(point))
            for label, figure, point, result in zip(labels, recorded, points, results, strict=True)
        )
        return Table(self.name, self.title, self.unit, self.tolerance, file, rows)
