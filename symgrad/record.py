"""Records: frozen values with named fields, made without compiling source text for each class.

`dataclasses.dataclass(frozen=True, slots=True)` compiles six functions for a class. For all records of symgrad and of
the code generator together that took half the time of their import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from functools import cache
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any, Never, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
def record(made: type[T]) -> type[T]: ...
@overload
def record(*, eq: bool) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True)
def record(made: Any = None, *, eq: bool = True) -> Any:
    """The class with its annotated fields in slots, an `__init__` that takes them in order, and the other methods.

    A field with a value in the class has that as its default. Fields cannot be set or deleted: FrozenInstanceError.
    Records of one class with equal fields are equal and have equal hashes, unless `eq` is False: then each is equal to
    itself alone. What the class defines itself stays. Bases have no fields; a field has no `dataclasses.field`.

    >>> @record
    ... class Point:
    ...     x: float
    ...     y: float = 0.0
    >>> Point(1.0)
    Point(x=1.0, y=0.0)
    """

    def finish(one: type[Any]) -> type[Any]:
        return _record(one, eq)

    return finish if made is None else finish(made)


def replace(value: T, /, **changes: Any) -> T:
    """The record with some fields changed."""
    kind: Any = type(value)
    names: tuple[str, ...] = kind.__match_args__
    given = [changes.pop(name) if name in changes else getattr(value, name) for name in names]
    return kind(*given, **changes)  # a name that is no field is an error there


def _record(made: type[Any], eq: bool) -> type[Any]:
    namespace = {name: value for name, value in vars(made).items() if name not in ("__dict__", "__weakref__")}
    names = tuple(made.__annotations__)
    defaults = tuple([namespace.pop(name) for name in names if name in namespace])
    methods = {**_methods(names, eq), **namespace, "__setattr__": _set, "__delattr__": _delete}
    kind: Any = type(made)
    finished = kind(made.__name__, made.__bases__, {**methods, "__slots__": names, "__match_args__": names})
    finished.__qualname__ = made.__qualname__
    # The slots themselves set what attribute access refuses to.
    setters = {f"set_{k}": getattr(finished, name).__set__ for k, name in enumerate(names)}
    code = _init_code(len(names)).replace(co_varnames=("self", *names))
    finished.__init__ = FunctionType(code, setters, "__init__", defaults)
    return finished


@cache
def _init_code(count: int) -> CodeType:
    """The code of an `__init__` for so many fields: all classes share it but for the names of the arguments."""
    arguments = ", ".join(["self", *(f"field_{k}" for k in range(count))])
    lines = [f"set_{k}(self, field_{k})" for k in range(count)] or ["pass"]
    namespace: dict[str, Any] = {}
    exec(f"def __init__({arguments}):\n  " + "\n  ".join(lines), namespace)
    return namespace["__init__"].__code__


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives the values of all fields."""
    if len(names) != 1:
        return attrgetter(*names) if names else lambda _: ()
    only = attrgetter(*names)
    return lambda self: (only(self),)


def _methods(names: tuple[str, ...], eq: bool) -> dict[str, object]:
    values = _getter(names)

    def equal(self: Any, other: Any) -> Any:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def hashed(self: Any) -> int:
        return hash(values(self))

    def text(self: Any) -> str:
        fields = [f"{name}={value!r}" for name, value in zip(names, values(self), strict=True)]
        return f"{type(self).__qualname__}({', '.join(fields)})"

    def reduced(self: Any) -> tuple[type[Any], tuple[Any, ...]]:
        return self.__class__, values(self)

    named: dict[str, object] = {"__repr__": text, "__reduce__": reduced}
    return {**named, "__eq__": equal, "__hash__": hashed} if eq else named


def _set(self: Any, name: str, value: Any) -> Never:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete(self: Any, name: str) -> Never:
    raise FrozenInstanceError(f"cannot delete field {name!r}")
