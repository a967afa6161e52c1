"""Records are frozen dataclasses with slots, but for the time it takes to make their classes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import pytest

from symgrad.record import record, replace


@record
class Point:
    """A place."""

    x: float
    y: float = 0.0

    def norm(self) -> float:
        return abs(self.x) + abs(self.y)


@record
class Only:
    x: float


@record
class Other:
    x: float


@record
class Value:
    value: float
    changes: float


@record
class Nothing:
    pass


@record(eq=False)
class Thing:
    x: float


@record
class Named:
    x: float

    def __repr__(self) -> str:
        return "named"


@dataclass(frozen=True, slots=True)
class Plain:
    x: float
    y: float = 0.0


CASES: list[Callable[[Any], Any]] = [
    lambda kind: kind(1.0),
    lambda kind: kind(x=1.0),
    lambda kind: kind(1.0, y=2.0),
    lambda kind: kind(),
    lambda kind: kind(1.0, 2.0, 3.0),
    lambda kind: kind(1.0, z=2.0),
    lambda kind: kind(1.0) == kind(1.0, 0.0),
    lambda kind: kind(1.0) == kind(2.0),
    lambda kind: kind(1.0) == 1.0,
    lambda kind: hash(kind(1.0)),
    lambda kind: len({kind(1.0), kind(1), kind(2.0)}),
    lambda kind: setattr(kind(1.0), "x", 2.0),
    lambda kind: delattr(kind(1.0), "x"),
    lambda kind: kind.__match_args__,
    lambda kind: hasattr(kind(1.0), "__dict__"),
    lambda kind: copy.deepcopy(kind(1.0)),
    lambda kind: pickle.loads(pickle.dumps(kind(1.0))),
    lambda kind: replace(kind(1.0), y=3.0),
    lambda kind: replace(kind(1.0), z=3.0),
]


def outcome(case: Callable[[Any], Any], kind: type) -> str:
    try:
        return repr(case(kind)).replace(kind.__name__, "K")
    except (TypeError, AttributeError) as error:
        return type(error).__name__


@pytest.mark.parametrize("case", CASES)
def test_like_a_dataclass(case: Callable[[Any], Any]) -> None:
    assert outcome(case, Point) == outcome(case, Plain)


def test_what_a_class_defines_stays() -> None:
    assert Point(3.0, -1.0).norm() == 4.0
    assert Point.__doc__ == "A place."
    assert repr(Named(1.0)) == "named"
    assert Named(1.0) == Named(1.0)


def test_classes_apart() -> None:
    """Equal fields do not make records of two classes equal; without fields all of a class are."""
    assert Only(1.0) == Only(1.0)
    assert Only(1.0) != Other(1.0)
    assert Nothing() == Nothing()
    assert repr(Nothing()) == "Nothing()"


def test_any_field_can_be_replaced() -> None:
    assert replace(Value(1.0, 2.0), value=3.0) == Value(3.0, 2.0)


def test_identity() -> None:
    one = Thing(1.0)
    assert one == one  # noqa: PLR0124
    assert one != Thing(1.0)
    with pytest.raises(FrozenInstanceError):
        one.x = 2.0  # pyright: ignore[reportAttributeAccessIssue]


def test_match() -> None:
    match Point(1.0, 2.0):
        case Point(x, y):
            assert (x, y) == (1.0, 2.0)


def test_a_field_may_be_called_like_the_argument() -> None:
    @record
    class Held:
        value: int

    assert replace(Held(1), value=2) == Held(2)
