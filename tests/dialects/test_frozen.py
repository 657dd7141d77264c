"""Records behave as frozen dataclasses do, whatever their fields are like."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Generic, TypeVar

import pytest

from flatc.dialects.frozen import frozen

T = TypeVar("T")


@frozen
class Tile:
    rows: int
    keys: int = 1
    names: tuple[str, ...] = field(default_factory=tuple[str, ...])

    @cached_property
    def scores(self) -> int:
        return self.rows * self.keys


@frozen
class Strip(Tile):
    hidden: str = field(default="", repr=False, compare=False)
    made: list[int] = field(init=False, compare=False, default_factory=list[int])


@frozen
class Pair(Generic[T]):
    first: T
    second: T

    def __post_init__(self) -> None:
        if self.first == self.second:
            raise ValueError("twice the same")


@frozen
class Named:
    values: int
    names: int = 0
    pass_: list[int] = field(default_factory=list[int])


@frozen
class Nothing:
    pass


@dataclass(frozen=True)
class AsDataclass:
    rows: int
    keys: int = 1
    names: tuple[str, ...] = field(default_factory=tuple[str, ...])


def test_it_is_made_like_a_dataclass_and_reads_like_one():
    assert Tile(4) == Tile(rows=4, keys=1, names=()) != Tile(4, 2)
    assert repr(Tile(4, names=("a",))) == repr(AsDataclass(4, names=("a",))).replace("AsDataclass", "Tile")
    assert is_dataclass(Tile)
    assert [each.name for each in fields(Tile)] == ["rows", "keys", "names"]
    assert asdict(Tile(4)) == asdict(AsDataclass(4))
    assert replace(Tile(4), keys=2) == Tile(4, 2)
    match Tile(4, 5):
        case Tile(rows, keys):
            assert (rows, keys) == (4, 5)
    assert list(inspect.signature(Tile).parameters) == ["rows", "keys", "names"]
    with pytest.raises(TypeError, match="rows"):
        Tile()  # pyright: ignore[reportCallIssue]


def test_nothing_can_be_set_or_deleted_but_values_may_be_remembered():
    tile = Tile(4, 2)
    with pytest.raises(FrozenInstanceError, match=r"cannot set Tile\.rows"):
        tile.rows = 5  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(FrozenInstanceError):
        del tile.rows  # pyright: ignore[reportAttributeAccessIssue]
    assert tile.scores == 8
    assert tile == Tile(4, 2)


def test_equal_ones_have_one_hash_and_those_of_other_classes_are_not_equal():
    assert len({Tile(4), Tile(4, 1), Tile(4, 2)}) == 2
    assert Tile(4) != AsDataclass(4)
    assert Tile(4) != Strip(4)
    assert {Nothing(), Nothing()} == {Nothing()}
    assert pickle.loads(pickle.dumps(Tile(4))) == Tile(4)


def test_any_name_may_be_a_field():
    assert [getattr(Named(1, 2, [3]), each.name) for each in fields(Named)] == [1, 2, [3]]


def test_a_class_may_inherit_and_say_what_counts():
    strip = Strip(4, hidden="x")
    assert strip == Strip(4, hidden="y")
    assert hash(strip) == hash(Strip(4))
    assert isinstance(strip, Tile)
    assert repr(strip) == "Strip(rows=4, keys=1, names=(), made=[])"
    assert strip.made is not Strip(4).made


def test_what_a_record_says_of_itself_holds():
    assert Pair(1, 2) == Pair(1, 2)
    with pytest.raises(ValueError, match="twice"):
        Pair(1, 1)

    @frozen
    class Alike:
        size: int

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

    assert Alike(1) == Alike(2)
    assert hash(Alike(1)) == 0
