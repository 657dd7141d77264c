"""How long a simulation may take, counted in operations walked, so that the answer does not depend on the machine.

budget = Budget(250_000)
budget.spend(12)                 # raises OutOfBudget once nothing is left
"""

from __future__ import annotations


class OutOfBudget(Exception):
    """The simulation would take longer than was allowed."""


class Budget:
    """Counts the effort of a simulation: about one for each event walked, matrices and plans in proportion.

    With None it may take as long as it takes.
    """

    def __init__(self, most: int | None):
        self.most = most
        self.spent = 0

    def spend(self, effort: int) -> None:
        """Takes note of some effort."""
        self.spent += effort
        if self.most is not None and self.spent > self.most:
            raise OutOfBudget
