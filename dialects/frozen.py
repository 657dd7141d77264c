"""`@frozen`: `@dataclass(frozen=True)` that costs next to nothing to declare.

A compiler is a short-lived process that declares some two hundred records, and `dataclass` writes and compiles six
functions for each: a third of what importing flatc took. Here all records share theirs, but for `__init__`, which is
written when the first record of a class is made. What `dataclasses` offers otherwise holds: `fields`, `replace`,
`asdict`, `is_dataclass`, `field(default_factory=...)`, `__post_init__`, inheritance, matching, generic classes.

    @frozen
    class Tile:
        rows: int
        keys: int = 1

    assert replace(Tile(4), keys=2) == Tile(rows=4, keys=2)

A class that inherits from a frozen dataclass of another package (xDSL's passes) has to be one itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from operator import attrgetter
from typing import Any, NoReturn, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """`cls` as a frozen dataclass with equality, hash and text. A method that `cls` itself defines stays."""
    record: Any = dataclass(init=False, repr=False, eq=False)(cls)
    own = cls.__dict__
    shared = {"__setattr__": _refuse, "__delattr__": _refuse, "__repr__": _repr, "__init__": _WrittenOnUse(record)}
    if "__eq__" not in own:
        shared |= _equality(record)
    for name, method in shared.items():
        if name not in own:
            setattr(record, name, method)
    return record


def _refuse(self: object, name: str, *value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot set {type(self).__name__}.{name}: it is frozen")


def _repr(self: Any) -> str:
    shown = ", ".join(f"{each.name}={getattr(self, each.name)!r}" for each in fields(self) if each.repr)
    return f"{type(self).__qualname__}({shown})"


def _equality(record: Any) -> dict[str, Callable[..., Any]]:
    """Records are equal if they are of one class and their fields are; equal ones have one hash."""
    names = [each.name for each in fields(record) if each.compare]
    values: Callable[[object], object] = attrgetter(*names) if names else lambda self: ()

    def eq(self: object, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def hash_of(self: object) -> int:
        return hash(values(self))

    return {"__eq__": eq, "__hash__": hash_of}


class _WrittenOnUse:
    """The `__init__` of `record`, written and put in place when it is first looked up."""

    def __init__(self, record: Any):
        self.record = record

    def __get__(self, instance: object, owner: Any) -> Callable[..., None]:
        written = _initialiser(self.record)
        self.record.__init__ = written
        return written if instance is None else written.__get__(instance, owner)


def _initialiser(record: Any) -> Callable[..., None]:
    # A dictionary that is given as a whole is read twice as fast as one that is filled field by field (CPython 3.11).
    names: dict[str, object] = {"_missing": MISSING, "_set": object.__setattr__}
    parameters, values = ["self"], list[str]()
    for each in fields(record):
        parameter, value = _from_parameter(each, names)
        if parameter:
            parameters.append(parameter)
        if value:
            values.append(f"{each.name!r}: {value}")
    body = [f"_set(self, '__dict__', {{{', '.join(values)}}})"]
    if hasattr(record, "__post_init__"):
        body.append("self.__post_init__()")
    exec(f"def __init__({', '.join(parameters)}):\n  " + "\n  ".join(body), names)
    written: Any = names["__init__"]
    written.__qualname__ = f"{record.__qualname__}.__init__"
    written.__module__ = record.__module__
    written.__annotations__ = {each.name: each.type for each in fields(record) if each.init} | {"return": None}
    return written


def _from_parameter(each: Field[Any], names: dict[str, object]) -> tuple[str, str]:
    """The parameter for a field and the expression for its value, either may be empty; defaults go into `names`."""
    if each.default is not MISSING:
        names[f"_default_{each.name}"] = each.default
        return (f"{each.name}=_default_{each.name}", each.name) if each.init else ("", f"_default_{each.name}")
    if each.default_factory is not MISSING:
        factory = f"_factory_{each.name}"
        names[factory] = each.default_factory
        if each.init:
            return f"{each.name}=_missing", f"{factory}() if {each.name} is _missing else {each.name}"
        return "", f"{factory}()"
    return (each.name, each.name) if each.init else ("", "")
