"""Affine expressions against plain integers."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from codegen.affine import ZERO, Affine, delinearize, divide, linearize, variable

NAMES = ("a", "b", "c")
SMALL = st.integers(-12, 12)
EXPRESSIONS = st.builds(
    lambda const, factors: sum((variable(n) * f for n, f in zip(NAMES, factors, strict=True)), Affine(const)),
    SMALL,
    st.tuples(SMALL, SMALL, SMALL),
)
RANGES = st.tuples(*[st.tuples(st.integers(-3, 3), st.integers(1, 5))] * 3).map(
    lambda spans: {n: (low, low + extent - 1) for n, (low, extent) in zip(NAMES, spans, strict=True)}
)


def points(ranges):
    names = list(ranges)
    for values in itertools.product(*(range(low, high + 1) for low, high in ranges.values())):
        yield dict(zip(names, values, strict=True))


def value(expression: Affine, point) -> int:
    return expression.const + sum(f * point[n] for n, f in expression.terms)


@given(EXPRESSIONS, EXPRESSIONS, SMALL, RANGES)
def test_arithmetic(left: Affine, right: Affine, factor: int, ranges) -> None:
    for expression in (left + right, left * factor, left + factor, left.substitute({"a": right})):
        assert expression.terms == tuple(sorted(expression.terms))
        assert all(f for _, f in expression.terms)
    for point in points(ranges):
        assert value(left + right, point) == value(left, point) + value(right, point)
        assert value(left * factor, point) == value(left, point) * factor
        assert value(left + factor, point) == value(left, point) + factor
        inner = {**point, "a": value(right, point)}
        assert value(left.substitute({"a": right}), point) == value(left, inner)


@given(EXPRESSIONS, RANGES)
def test_range_is_attained(expression: Affine, ranges) -> None:
    values = [value(expression, p) for p in points(ranges)]
    assert expression.range(ranges) == (min(values), max(values))


def test_range_of_the_unknown() -> None:
    assert (variable("a") + variable("z")).range({"a": (0, 3)}) is None


@given(EXPRESSIONS, st.integers(1, 12), RANGES)
def test_divide_is_floor_division(expression: Affine, divisor: int, ranges) -> None:
    parts = divide(expression, divisor, ranges)
    if parts is None:
        return
    for point in points(ranges):
        assert tuple(value(part, point) for part in parts) == divmod(value(expression, point), divisor)


def test_divide_finds_what_is_affine() -> None:
    ranges = {"a": (0, 3), "b": (0, 7)}
    assert divide(variable("a") * 8 + variable("b"), 8, ranges) == (variable("a"), variable("b"))
    assert divide(variable("a") * 8 + variable("b") + 16, 8, ranges) == (variable("a") + 2, variable("b"))
    assert divide(variable("a") * 8 + variable("b") + -8, 8, ranges) == (variable("a") + -1, variable("b"))
    assert divide(variable("a") * 8 + variable("b") + 1, 8, ranges) is None
    assert divide(variable("b"), 4, ranges) is None
    assert divide(variable("z"), 4, ranges) is None


@given(st.lists(st.integers(1, 5), min_size=0, max_size=4))
def test_delinearize_inverts_linearize(shape: list[int]) -> None:
    """Over its own loops an index comes back; unit axes come back as zero."""
    index = [variable(f"d{k}") for k in range(len(shape))]
    ranges = {f"d{k}": (0, d - 1) for k, d in enumerate(shape)}
    back = delinearize(linearize(index, shape), tuple(shape), ranges)
    assert back is not None
    for point in points(ranges):
        assert [value(i, point) for i in back] == [point[f"d{k}"] for k in range(len(shape))]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.data())
def test_delinearize_to_another_shape(shape: list[int], data) -> None:
    """Where a reshape is affine, the index is that of the same element."""
    size = math.prod(shape)
    first = data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0]))
    second = data.draw(st.sampled_from([d for d in range(1, size // first + 1) if size // first % d == 0]))
    target = (first, second, size // first // second)
    index = [variable(f"d{k}") for k in range(len(shape))]
    ranges = {f"d{k}": (0, d - 1) for k, d in enumerate(shape)}
    offset = linearize(index, shape)
    found = delinearize(offset, target, ranges)
    if found is None:
        return
    for point in points(ranges):
        place = [value(i, point) for i in found]
        assert all(0 <= p < d for p, d in zip(place, target, strict=True))
        assert value(linearize(found, target), point) == value(offset, point)


def test_delinearize_splits_and_merges_axes() -> None:
    a, b = variable("a"), variable("b")
    ranges = {"a": (0, 3), "b": (0, 4)}
    assert delinearize(a * 5 + b, (20,), ranges) == (a * 5 + b,)
    assert delinearize(a * 5 + b, (2, 2, 5), ranges) is None
    assert delinearize(a * 5 + b, (4, 1, 5), ranges) == (a, ZERO, b)
    assert delinearize(ZERO, (), {}) == ()


def test_text() -> None:
    assert str(Affine(0)) == "0"
    assert str(variable("d0") * 16 + variable("d1") + -3) == "16*d0 + d1 - 3"
    assert str(variable("d0") * -1 + 4) == "-1*d0 + 4"
