"""Affine integer expressions over named variables: what every index and guard is made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from symgrad.record import record


@record
class Affine:
    """`const + sum(factor * variable)`. Terms are sorted by name and have no zero factor."""

    const: int
    terms: tuple[tuple[str, int], ...] = ()

    def __add__(self, other: Affine | int) -> Affine:
        if isinstance(other, int):
            return Affine(self.const + other, self.terms) if other else self
        if not other.terms:
            return self + other.const
        if not self.terms:
            return other + self.const
        total = dict(self.terms)
        for name, factor in other.terms:
            total[name] = total.get(name, 0) + factor
        return _affine(self.const + other.const, total)

    def __mul__(self, factor: int) -> Affine:
        if factor == 1:
            return self
        if factor == 0:
            return ZERO
        return Affine(self.const * factor, tuple((n, f * factor) for n, f in self.terms))

    def factor(self, name: str) -> int:
        """The factor of a variable, 0 when it does not occur."""
        for other, factor in self.terms:
            if other == name:
                return factor
        return 0

    def substitute(self, values: Mapping[str, Affine]) -> Affine:
        """The expression with variables replaced."""
        if not any(name in values for name, _ in self.terms):
            return self
        out = Affine(self.const)
        for name, factor in self.terms:
            out = out + values.get(name, Affine(0, ((name, 1),))) * factor
        return out

    def range(self, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int] | None:
        """The least and greatest value over inclusive ranges of the variables; None when one has no known range."""
        low = high = self.const
        for name, factor in self.terms:
            if name not in ranges:
                return None
            a, b = ranges[name]
            low += factor * (a if factor > 0 else b)
            high += factor * (b if factor > 0 else a)
        return low, high

    def __str__(self) -> str:
        parts = [name if f == 1 else f"{f}*{name}" for name, f in self.terms]
        if self.const or not parts:
            parts.append(str(self.const))
        return " + ".join(parts).replace("+ -", "- ")


ZERO = Affine(0)


def variable(name: str) -> Affine:
    """The expression that is one variable."""
    return Affine(0, ((name, 1),))


def tile_quotient(name: str, tile: int) -> Affine:
    """The number of the tile a loop stands in: becomes affine when the loop is split by the tile or a multiple."""
    return variable(f"{name}//{tile}")


def tile_remainder(name: str, tile: int) -> Affine:
    """The place in its tile a loop stands at; see `tile_quotient`."""
    return variable(f"{name}%{tile}")


class Tile(NamedTuple):
    """What a tile variable says: the loop, the size of the tile, and whether it is the tile's number."""

    loop: str
    size: int
    is_quotient: bool

    def of(self, value: Any) -> Any:
        """The value of the variable where the loop stands at `value`, a number or an array."""
        return value // self.size if self.is_quotient else value % self.size


def tile_of(name: str) -> Tile | None:
    """What a variable says if it is one of `tile_quotient` and `tile_remainder`, else None."""
    for mark in ("//", "%"):
        loop, found, size = name.partition(mark)
        if found:
            return Tile(loop, int(size), mark == "//")
    return None


def _affine(const: int, total: Mapping[str, int]) -> Affine:
    return Affine(const, tuple(sorted((n, f) for n, f in total.items() if f)))


def divide(value: Affine, divisor: int, ranges: Mapping[str, tuple[int, int]]) -> tuple[Affine, Affine] | None:
    """Floor quotient and remainder as affine expressions; None when they are not affine.

    The terms whose factor the divisor divides give the quotient; the rest must stay inside one period.
    """
    if divisor == 1:
        return value, ZERO
    whole = {n: f // divisor for n, f in value.terms if f % divisor == 0}
    rest = Affine(value.const % divisor, tuple((n, f) for n, f in value.terms if f % divisor))
    span = rest.range(ranges)
    if span is None or span[0] // divisor != span[1] // divisor:
        return None
    shift = span[0] // divisor
    return _affine(value.const // divisor + shift, whole), rest + -shift * divisor


def linearize(index: Iterable[Affine], shape: Iterable[int]) -> Affine:
    """The row-major element offset of an index."""
    total = ZERO
    for one, extent in zip(index, shape, strict=True):
        total = total * extent + one
    return total


def delinearize(
    offset: Affine, shape: tuple[int, ...], ranges: Mapping[str, tuple[int, int]]
) -> tuple[Affine, ...] | None:
    """The index of a row-major element offset; None when it is not affine."""
    if 0 in shape:
        return (ZERO,) * len(shape)  # there is no element to find
    index: list[Affine] = []
    for axis in range(len(shape) - 1, 0, -1):
        if shape[axis] == 1:
            index.append(ZERO)
            continue
        parts = divide(offset, shape[axis], ranges)
        if parts is None:
            return None
        offset = parts[0]
        index.append(parts[1])
    if shape:
        index.append(offset)
    return tuple(reversed(index))
