"""Columns hold mappings."""

from __future__ import annotations

import random

from flatc.passes.cost.mapping_columns import columns_of, mapping_at, structure_of
from tests.support import random_case


def test_columns_hold_mappings_and_give_them_back():
    case = random_case(random.Random(5))
    columns = columns_of(case.mapping)
    assert columns.size == 1
    assert mapping_at(case.problem, structure_of(case.mapping), columns, 0) == case.mapping
