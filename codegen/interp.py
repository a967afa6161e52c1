"""The meaning of loop programs: runs any kernel, naive or scheduled, over NumPy arrays. Slow, for tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from codegen.affine import Affine, tile_of
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Buffer,
    Fetch,
    Finish,
    For,
    Index,
    Init,
    Kernel,
    Let,
    Load,
    Loop,
    Space,
    Stmt,
    Store,
    Within,
    parts_of,
)
from codegen.loop_verify import gathered_lanes, stmt_text
from symgrad.errors import CompileError
from symgrad.opdef import OPS
from symgrad.types import DType

if TYPE_CHECKING:
    from symgrad.types import Array

_NO_PLACE = (1 << 63) - 1


def run(kernel: Kernel, arrays: Sequence[Array], *, backward: bool = False) -> None:
    """Run a kernel on one flat array per parameter.

    The lanes of a vector loop run together; what a guard hides, and scratch memory before it is written, is NaN or an
    odd number. Parallel loops run `backward` if asked: the result must be the same. CompileError for arrays that do
    not fit and for what a kernel must not do, IndexError for an element outside a buffer or an index check that fails.
    """
    for buffer, array in zip(kernel.params, arrays, strict=True):
        if array.shape != (buffer.size,) or array.dtype != buffer.dtype.np:
            raise CompileError(f"{buffer.name} is {buffer.dtype}[{buffer.size}], got {array.dtype}{list(array.shape)}")
    with np.errstate(all="ignore"):
        _Machine(kernel, arrays, backward).body(kernel.body)


class _Machine:
    """Memory, registers, and the values of loops and names. Values have one element, or one per active lane."""

    def __init__(self, kernel: Kernel, arrays: Sequence[Array], backward: bool) -> None:
        self.kernel = kernel
        self.backward = backward
        self.buffers = {b.name: b for b in kernel.params + kernel.locals}
        self.memory = {b.name: a for b, a in zip(kernel.params, arrays, strict=True)}
        self.gathered = gathered_lanes(kernel.body)
        self.loops: dict[str, int | Array] = {}
        self.names: dict[str, Array] = {}
        self.registers: dict[tuple[str, int], tuple[Array, ...]] = {}
        self.vector: Loop | None = None
        self._clear_scratch()

    def _clear_scratch(self) -> None:
        for buffer in self.kernel.locals:
            if buffer.space in (Space.SCRATCH, Space.TILE):
                self.memory[buffer.name] = np.full(buffer.size, _poison(buffer.dtype))

    def body(self, body: Body) -> None:
        for stmt in body:
            self._stmt(stmt)

    def _stmt(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self._for(stmt)
            case Let():
                self.names[stmt.name] = self._let(stmt)
            case Index(name, index, dtype):
                self.names[name] = np.atleast_1d(self._at(index)).astype(dtype.np)
            case Load():
                self.names[stmt.name] = self._load(stmt)
            case Within(name, guard):
                self.names[name] = self._within(guard)
            case Store():
                self._store(stmt)
            case Fetch():
                pass
            case Init(buffer, index, combine):
                lanes = self.vector.lanes if self.vector is not None else self.gathered.get(buffer, 1)
                self.registers[buffer, self._first(index)] = _identity(combine, self.buffers[buffer].dtype, lanes)
            case Accumulate():
                self._accumulate(stmt)
            case Finish():
                self.names[stmt.name] = self._finish(stmt)

    def _for(self, stmt: For) -> None:
        loop = stmt.loop
        if loop.bind is Bind.VECTOR:
            if self.vector is not None or loop.lanes < loop.extent:
                raise CompileError(f"vector loop in a vector loop, or too few lanes: {stmt_text(stmt)}")
            self.vector = loop
            self.loops[loop.name] = loop.start + np.arange(loop.extent)
            self.body(stmt.body)
            self.vector = None
            return
        values = range(loop.start, loop.start + loop.extent)
        if loop.bind is Bind.PARALLEL:
            self._units(stmt, values)
            return
        for value in values:
            self.loops[loop.name] = value
            skip = loop.skip
            if skip is None or self._within(skip.guard).all() or self.names[skip.unless].any():
                self.body(stmt.body)

    def _units(self, stmt: For, values: range) -> None:
        """Every unit of a parallel loop by itself: of the shared loops in it one iteration, and what stands before."""
        parts = range(parts_of(stmt))
        for value in reversed(values) if self.backward else values:
            for part in reversed(parts) if self.backward else parts:
                self._clear_scratch()
                self.loops[stmt.loop.name] = value
                self._part(stmt, part)

    def _part(self, stmt: For, part: int) -> None:
        """The unit `part` of the current iteration of a loop."""
        first = 0
        for inner in stmt.body:
            if not isinstance(inner, For) or inner.loop.bind is not Bind.SHARED:
                self._stmt(inner)
                continue
            step, own = divmod(part - first, parts_of(inner))
            first += inner.loop.extent * parts_of(inner)
            if 0 <= step < inner.loop.extent:
                self.loops[inner.loop.name] = inner.loop.start + step
                self._part(inner, own)

    # Values

    def _let(self, stmt: Let) -> Array:
        attrs = dict(stmt.attrs)
        if stmt.op == "const":
            return attrs["value"].array.reshape(1)
        args = np.broadcast_arrays(*(self.names[a] for a in stmt.args))
        if stmt.op == "fma":
            return fma(*args)
        reference = OPS[stmt.op].ref
        if reference is None:
            raise CompileError(f"{stmt.op} has no reference meaning: {stmt_text(stmt)}")
        value = np.asarray(reference(*args, **attrs))
        if value.dtype != stmt.dtype.np:
            raise CompileError(f"the result is {value.dtype}: {stmt_text(stmt)}")
        return value

    def _at(self, index: Affine) -> int | Array:
        """The value of an index, one per active lane where it differs between them."""
        total: int | Array = index.const
        for name, factor in index.terms:
            total = total + self._variable(name) * factor
        return total

    def _variable(self, name: str) -> int | Array:
        if name in self.loops:
            return self.loops[name]
        if (tile := tile_of(name)) is not None:
            return tile.of(self.loops[tile.loop])
        return self.names[name].astype(np.int64)

    def _first(self, index: Affine) -> int:
        return int(np.atleast_1d(self._at(index))[0])

    def _within(self, guard: Sequence[Affine]) -> Array:
        return np.logical_and.reduce(np.broadcast_arrays(*(np.atleast_1d(self._at(g)) >= 0 for g in guard)))

    # Memory

    def _load(self, stmt: Load) -> Array:
        memory = self.memory[stmt.buffer]
        place = np.atleast_1d(self._at(stmt.index))
        if not stmt.guard:
            self._check_range(stmt, place, memory)
            return memory[place]
        allowed, place = np.broadcast_arrays(self._within(stmt.guard), place)
        self._check_range(stmt, place[allowed], memory)
        out = np.full(place.shape, _poison(self.buffers[stmt.buffer].dtype))
        out[allowed] = memory[place[allowed]]
        return out

    def _store(self, stmt: Store) -> None:
        memory, value = self.memory[stmt.buffer], self.names[stmt.value]
        place = np.atleast_1d(self._at(stmt.index))
        self._check_range(stmt, place, memory)
        if value.size > place.size:
            raise CompileError(f"a value per lane at one address: {stmt_text(stmt)}")
        memory[place] = value

    def _check_range(self, stmt: Load | Store, place: Array, memory: Array) -> None:
        if place.size and (place.min() < 0 or place.max() >= memory.size):
            raise IndexError(f"elements {place} of {memory.size}: {stmt_text(stmt)}")

    # Accumulators

    def _accumulate(self, stmt: Accumulate) -> None:
        key = (stmt.buffer, self._first(stmt.index))
        acc = self.registers[key]
        active = self.vector.extent if self.vector is not None else 1
        if (acc[0].size > 1 or active > 1) and (self.vector is None or acc[0].size != self.vector.lanes):
            raise CompileError(f"an accumulator of {acc[0].size} lanes: {stmt_text(stmt)}")
        args = tuple(
            a if a.size == active else np.broadcast_to(a, active) for a in map(self.names.__getitem__, stmt.args)
        )
        new = _combined(stmt.combine, tuple(a[:active] for a in acc), args)
        whole = active == acc[0].size
        self.registers[key] = (
            new if whole else tuple(np.concatenate((n, a[active:])) for n, a in zip(new, acc, strict=True))
        )
        if stmt.name is not None:
            self.names[stmt.name] = new[0]

    def _finish(self, stmt: Finish) -> Array:
        acc = self.registers.pop((stmt.buffer, self._first(stmt.index)))
        if self.vector is not None:
            return acc[-1][: self.vector.extent]
        while acc[0].size > 1:
            half = acc[0].size // 2
            acc = _folded(stmt.combine, tuple(a[:half] for a in acc), tuple(a[half:] for a in acc))
        return acc[-1]


def _poison(dtype: DType) -> Array:
    """A value that does not go unnoticed."""
    return np.asarray(np.nan if dtype.is_float else 1 if dtype.kind == "b" else 85, dtype.np)


def _identity(combine: str, dtype: DType, lanes: int) -> tuple[Array, ...]:
    limits = (-np.inf, np.inf) if dtype.is_float else (0, 1) if dtype.kind == "b" else _integer_limits(dtype)
    values: Mapping[str, float] = {
        "sum": 0, "fma": 0, "any": 0, "prod": 1, "all": 1,
        "max": limits[0], "argmax": limits[0], "min": limits[1], "argmin": limits[1],
        "cumulative_sum": -0.0, "cumulative_prod": 1, "linear_recurrence": 0,
        "cumulative_max": limits[0], "cumulative_min": limits[1],
    }  # fmt: skip
    first = np.full(lanes, values[combine], dtype.np)
    return (first, np.full(lanes, _NO_PLACE, np.int64)) if combine in ("argmax", "argmin") else (first,)


def _integer_limits(dtype: DType) -> tuple[int, int]:
    limits = np.iinfo(dtype.np)
    return int(limits.min), int(limits.max)


_COMBINE: Mapping[str, str] = {
    "sum": "add",
    "prod": "multiply",
    "max": "maximum",
    "min": "minimum",
    "any": "logical_or",
    "all": "logical_and",
    "cumulative_sum": "add",
    "cumulative_prod": "multiply",
    "cumulative_max": "maximum",
    "cumulative_min": "minimum",
}


def _combined(combine: str, acc: tuple[Array, ...], args: tuple[Array, ...]) -> tuple[Array, ...]:
    """The accumulator after one more contribution per lane."""
    if combine == "fma":
        a, b = args
        return (fma(a, b, acc[0]) if acc[0].dtype.kind == "f" else acc[0] + a * b,)
    if combine == "linear_recurrence":
        return (_apply("safe_multiply", args[0], acc[0]) + args[1],)
    if combine in ("argmax", "argmin"):
        return _better(combine, acc, args, args[1] < 0)
    return (_apply(_COMBINE[combine], acc[0], args[0]),)


def _folded(combine: str, low: tuple[Array, ...], high: tuple[Array, ...]) -> tuple[Array, ...]:
    """The upper half of the lanes combined into the lower one."""
    if combine == "fma":
        return (low[0] + high[0],)
    if combine in ("argmax", "argmin"):
        return _better(combine, low, high, high[1] < low[1])
    return (_apply(_COMBINE[combine], low[0], high[0]),)


def _apply(name: str, a: Array, b: Array) -> Array:
    reference = OPS[name].ref
    assert reference is not None
    return np.asarray(reference(a, b))


def _better(combine: str, acc: tuple[Array, ...], other: tuple[Array, ...], earlier: Array) -> tuple[Array, ...]:
    """The extreme value and its place: NaN beats numbers, of equals the first wins, an identity always loses."""
    value, place = other
    take = value > acc[0] if combine == "argmax" else value < acc[0]
    nan, had_nan = np.isnan(value), np.isnan(acc[0])
    same = (value == acc[0]) | (nan & had_nan)
    take = take | (nan & ~had_nan) | (same & (earlier | (acc[1] == _NO_PLACE)))
    return np.where(take, value, acc[0]), np.where(take, place, acc[1])


def fma(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once, element by element, for float32 and float64."""
    if a.dtype == np.float32:
        return _fma32(a.astype(np.float64), b.astype(np.float64), c.astype(np.float64))
    values = [_fma64(*one) for one in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    return np.array(values, np.float64)


def _fma32(a: Array, b: Array, c: Array) -> Array:
    """The product is exact in float64; the sum is rounded to odd there, so that rounding it again does no harm.

    Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd"
    (2008).
    """
    product = a * b
    total = product + c
    back = total - product
    error = (product - (total - back)) + (c - back)
    even = total.view(np.int64) & 1 == 0
    wrong = even & np.isfinite(total) & (error != 0) & np.isfinite(error)
    toward = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where(wrong, toward, total).astype(np.float32)


def _fma64(a: float, b: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
        return a * b + c
    if not math.isfinite(c):
        return c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return 0.0
    sign = 1.0 if exact > 0 else -1.0
    try:
        return math.copysign(float(exact), sign)
    except OverflowError:
        return math.copysign(math.inf, sign)


def fresh_arrays(buffers: Sequence[Buffer]) -> list[Array]:
    """Arrays for parameters, filled so that an element nobody writes shows."""
    return [np.full(b.size, _poison(b.dtype)) for b in buffers]
