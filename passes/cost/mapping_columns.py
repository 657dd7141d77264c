"""Many mappings at once: what they have in common, and their numbers as arrays.

    Structure   what is not a number: algorithm, residencies, stationarities, who does what of the softmax
    Columns     one array for each number (tiles, slots, folds, stages), one entry a mapping

Mappings of one structure are priced together (`closed_form`). A single mapping is a column of one.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from flatc.dialects.frozen import frozen
from flatc.dialects.mapping import ArrayUse, Keep, Mapping, Softmax, Stages, Tiles
from flatc.passes.cost.arrays import Ints
from flatc.passes.kernels.problem import AttentionProblem


@frozen
class Structure:
    """What mappings of one column have in common: everything that is not a number."""

    algorithm: str
    divide: str
    k_level: str
    v_level: str
    logit_stationarity: str
    attend_stationarity: str
    d_qk: int | None = None
    """The tile of d_qk; None where it is not cut."""
    interleave: int = 1
    maximum: str = "vector"
    exponential: str = "vector"
    total: str = "vector"
    rescales_first: bool = False
    add: str = "array"
    in_strips: bool = False
    """Whether an online softmax rescales more seldom than at every key tile."""

    @property
    def held(self) -> bool:
        """Whether score tiles stay in the registers of PEs."""
        return "array" in (self.maximum, self.exponential, self.total)

    @property
    def sums_in_attend(self) -> bool:
        """Whether a column of ones beside V gives the row sums."""
        return self.total == "attend"

    @property
    def chains_attends(self) -> bool:
        """Whether an attend waits for outputs to be rescaled, which wait for the attend before."""
        return self.algorithm == "online" and self.add == "array" and self.interleave == 1

    def is_product_rows(self, problem: AttentionProblem) -> bool:
        """Whether rows of scores stay on chip without a softmax on them."""
        return self.algorithm == "rows" and not problem.has("softmax")


@frozen
class Columns:
    """The numbers of many mappings, one array each (see `Mapping`)."""

    batch: Ints
    kv_head: Ints
    group: Ints
    query: Ints
    key: Ints
    q_slots: Ints
    k_slots: Ints
    v_slots: Ints
    score_slots: Ints
    output_slots: Ints
    logit_fold_rows: Ints
    logit_fold_columns: Ints
    attend_fold_rows: Ints
    attend_fold_columns: Ints
    load: Ints
    logit: Ints
    softmax: Ints
    attend: Ints
    store: Ints
    rescaled_every: Ints

    def take(self, indices: Any) -> Columns:
        """The rows at `indices`."""
        return Columns(*(getattr(self, f.name)[indices] for f in fields(Columns)))

    @property
    def size(self) -> int:
        """How many mappings."""
        return int(self.batch.shape[0])


def structure_of(mapping: Mapping) -> Structure:
    """The structure a mapping belongs to."""
    return Structure(
        mapping.softmax.algorithm,
        mapping.softmax.divide,
        mapping.keep.k_level,
        mapping.keep.v_level,
        mapping.logit.stationarity,
        mapping.attend.stationarity,
        mapping.tiles.d_qk,
        mapping.interleave,
        mapping.softmax.maximum,
        mapping.softmax.exponential,
        mapping.softmax.total,
        mapping.softmax.rescales_first,
        mapping.attend.add,
        mapping.softmax.rescaled_every > 1,
    )


def columns_of(mapping: Mapping) -> Columns:
    """A column of one mapping."""
    import numpy as np

    plain = numbers_of(mapping)
    return Columns(*(np.array([getattr(plain, field.name)], dtype=np.int64) for field in fields(Columns)))


def numbers_of(mapping: Mapping) -> Columns:
    """The numbers of one mapping as they are: all that is priced of it is numbers, too, and sooner found."""
    t, k, s, logit, attend = mapping.tiles, mapping.keep, mapping.stages, mapping.logit, mapping.attend
    numbers = [t.batch, t.kv_head, t.group, t.query, t.key]
    numbers += [k.q_slots, k.k_slots, k.v_slots, k.score_slots, k.output_slots]
    numbers += [logit.fold_rows, logit.fold_columns, attend.fold_rows, attend.fold_columns]
    numbers += [s.load, s.logit, s.softmax, s.attend, s.store, mapping.softmax.rescaled_every]
    return Columns(*numbers)  # pyright: ignore[reportArgumentType]


def mapping_at(problem: AttentionProblem, structure: Structure, columns: Columns, index: int) -> Mapping:
    """The mapping in row `index` of a column."""
    n = {f.name: int(getattr(columns, f.name)[index]) for f in fields(Columns)}
    s = structure
    return Mapping(
        Tiles(n["batch"], n["kv_head"], n["group"], n["query"], n["key"], s.d_qk or problem.d_qk, problem.d_v),
        Keep(
            n["q_slots"],
            n["k_slots"],
            n["v_slots"],
            n["score_slots"],
            n["output_slots"],
            s.k_level,  # pyright: ignore[reportArgumentType]
            s.v_level,  # pyright: ignore[reportArgumentType]
        ),
        ArrayUse(s.logit_stationarity, n["logit_fold_rows"], n["logit_fold_columns"]),  # pyright: ignore[reportArgumentType]
        ArrayUse(s.attend_stationarity, n["attend_fold_rows"], n["attend_fold_columns"], s.add),  # pyright: ignore[reportArgumentType]
        Softmax(
            s.algorithm,  # pyright: ignore[reportArgumentType]
            s.divide,  # pyright: ignore[reportArgumentType]
            s.maximum,  # pyright: ignore[reportArgumentType]
            s.exponential,  # pyright: ignore[reportArgumentType]
            s.total,  # pyright: ignore[reportArgumentType]
            s.rescales_first,
            n["rescaled_every"],
        ),
        Stages(n["load"], n["logit"], n["softmax"], n["attend"], n["store"]),
        s.interleave,
    )
