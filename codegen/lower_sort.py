"""Lowering of sorting: rows in parallel, each in scratch memory, without a branch that depends on data.

Short rows are ranked: the place of an element is the number of those before it in the order, counted for a vector of
elements at a time. Longer rows take a radix sort from the least significant digit on: the counts of all digits in one
pass, then one stable pass for each digit of the keys of `order_key`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from codegen.access import Point, at, ranges_of
from codegen.affine import ZERO, Affine, linearize, variable
from codegen.group import Group
from codegen.inline import Lowered, Lowering, finished, nest
from codegen.loop import Accumulate, Finish, Index, Init, Let, Load, Loop, Space, Store
from symgrad.graph import Node
from symgrad.storage import Literal
from symgrad.types import DTYPES, DType, bool_, int32, int64, static_shape, uint8, uint32

# Rows up to this length are ranked. The places of such a row fit any key.
RANK_LENGTH = 128
# Bits of a digit; from this length on wider ones of wide keys: what counts then is how often memory is passed over.
DIGIT_BITS = 8
WIDE_DIGIT_BITS = 11
WIDE_DIGIT_LENGTH = 1 << 18


def lower_sort(group: Group, stored: set[int]) -> Lowered:
    """The naive kernel of `sort`, of `argsort`, or of both for one order of the same elements."""
    row = _Row(group, stored)
    row.state.open(*(loop.name for loop in row.outer))
    if row.length <= RANK_LENGTH:
        row.rank()
    else:
        row.distribute()
    return finished(row.state, group.outputs, nest(row.outer, row.state.close()))


class _Row:
    """The sorting of one row: what is loaded, in which scratch buffers it moves, and where it goes."""

    def __init__(self, group: Group, stored: set[int]) -> None:
        node = group.nodes[0]
        self.values = next((n for n in group.nodes if n.op.name == "sort"), None)
        self.places = next((n for n in group.nodes if n.op.name == "argsort"), None)
        self.source = node.inputs[0]
        self.shape = static_shape(node.shape)
        self.axis: int = node.attrs[0]
        self.descending: bool = node.attrs[1]
        self.length = self.shape[self.axis]
        self.outer = [Loop(f"d{k}", d) for k, d in enumerate(self.shape) if k != self.axis]
        self.state = Lowering(stored - {n.id for n in group.nodes}, ranges_of([*self.outer, Loop("q", self.length)]))
        # One constant instance of each data type: what has as many bits as the elements, and what counts them.
        self.key: DType = DTYPES[f"uint{self.source.dtype.itemsize * 8}"]
        small = self.length < 1 << 31
        self.place, self.count = (int32, uint32) if small else (int64, int64)

    # Pieces

    def point(self, place: Affine) -> Point:
        """The element of the row at a place."""
        others = iter([at(loop) for loop in self.outer])
        return tuple(place if k == self.axis else next(others) for k in range(len(self.shape)))

    def loop(self, name: str, extent: int, body: Callable[[Affine], None]) -> None:
        """A loop around the statements that `body` emits for an index."""
        loop = Loop(name, extent)
        self.state.open(name)
        body(at(loop))
        inside = self.state.close()
        for stmt in nest((loop,), inside):
            self.state.emit(stmt)

    def load(self, buffer: str, index: Affine, dtype: DType) -> str:
        name = self.state.fresh()
        self.state.emit(Load(name, buffer, index, dtype))
        return name

    def let(self, op: str, args: tuple[str, ...], result: DType, **attrs: object) -> str:
        name = self.state.fresh()
        self.state.emit(Let(name, op, args, result, tuple(attrs.items())))
        return name

    def number(self, value: int, dtype: DType) -> str:
        constant = self.state.constant(Literal(np.asarray(value, dtype.np)), dtype)
        self.state.emit(constant)
        return constant.name

    def index(self, index: Affine, dtype: DType) -> str:
        name = self.state.fresh()
        self.state.emit(Index(name, index, dtype))
        return name

    def key_of(self, value: str) -> str:
        return self.let("order_key", (value,), self.key, descending=self.descending)

    def store(self, node: Node, place: Affine, value: str) -> None:
        self.state.emit(Store(self.state.param(node), linearize(self.point(place), self.shape), value))

    def scratch(self, dtype: DType, size: int) -> str:
        return self.state.local("s", dtype, size, Space.SCRATCH)

    # Short rows

    def rank(self) -> None:
        """Count for each element those before it: the smaller ones, and the equal ones that stand before it."""
        length, key, dtype = self.length, self.key, self.source.dtype
        keys, ranks = self.scratch(key, length), self.scratch(key, length)
        values = "" if self.values is None else self.scratch(dtype, length)

        def read(q: Affine) -> None:
            value = self.state.value(self.source, self.point(q))
            if values:
                self.state.emit(Store(values, q, value))
            self.state.emit(Store(keys, q, self.key_of(value)))

        def count(i: Affine) -> None:
            total = self.state.local("a", key, 1, Space.REG)
            zero, one = self.number(0, key), self.number(1, key)
            own, place = self.load(keys, i, key), self.index(i, key)
            self.state.emit(Init(total, ZERO, "sum"))

            def compare(j: Affine) -> None:
                other = self.load(keys, j, key)
                smaller = self.let("less", (other, own), bool_)
                equal = self.let("equal", (other, own), bool_)
                earlier = self.let("less", (self.index(j, key), place), bool_)
                before = self.let("logical_or", (smaller, self.let("logical_and", (equal, earlier), bool_)), bool_)
                self.state.emit(Accumulate(total, ZERO, "sum", (self.let("where", (before, one, zero), key),)))

            self.loop("j", length, compare)
            found = self.state.fresh()
            self.state.emit(Finish(found, total, ZERO, "sum", key))
            self.state.emit(Store(ranks, i, found))

        def write(k: Affine) -> None:
            rank = variable(self.load(ranks, k, key))
            if self.values is not None:
                self.store(self.values, rank, self.load(values, k, dtype))
            if self.places is not None:
                self.store(self.places, rank, self.index(k, int64))

        self.loop("q", length, read)
        self.loop("i", length, count)
        self.loop("k", length, write)

    # Long rows

    def distribute(self) -> None:
        """Move the elements to the place of their key, by one digit of it after the other."""
        length = self.length
        wide = length >= WIDE_DIGIT_LENGTH and self.key.bits >= 32
        bits = WIDE_DIGIT_BITS if wide else DIGIT_BITS
        # One count more than there are digits, so that counts become starts where they stand.
        digits, table = -(-self.key.bits // bits), (1 << bits) + 1
        # Places need the keys alone; values keep what keys lose, the sign of zero and the bits of NaN.
        dtype = self.source.dtype
        by_place = self.places is not None
        moved = self.key if by_place else dtype
        rooms = 1 if digits == 1 else 2
        values = [self.scratch(moved, length) for _ in range(rooms)]
        places = [self.scratch(self.place, length) for _ in range(rooms)] if by_place and digits > 1 else []
        originals = self.scratch(dtype, length) if by_place and self.values is not None else ""
        starts = self.scratch(self.count, digits * table)

        def clear(z: Affine) -> None:
            self.state.emit(Store(starts, z, self.number(0, self.count)))

        def read(q: Affine) -> None:
            value = self.state.value(self.source, self.point(q))
            key = self.key_of(value)
            self.state.emit(Store(values[0], q, key if by_place else value))
            if originals:
                self.state.emit(Store(originals, q, value))
            one = self.number(1, self.count)
            for digit in range(digits):
                spot = variable(self.digit(key, digit, bits)) + (digit * table + 1)
                more = self.let("add", (self.load(starts, spot, self.count), one), self.count)
                self.state.emit(Store(starts, spot, more))

        def sum_up(b: Affine) -> None:
            for digit in range(digits):
                before = self.load(starts, b + digit * table, self.count)
                own = self.load(starts, b + (digit * table + 1), self.count)
                self.state.emit(Store(starts, b + (digit * table + 1), self.let("add", (before, own), self.count)))

        def move(digit: int) -> Callable[[Affine], None]:
            source, target = digit % 2, (digit + 1) % 2

            def body(s: Affine) -> None:
                value = self.load(values[source], s, moved)
                key = value if by_place else self.key_of(value)
                start = variable(self.digit(key, digit, bits)) + digit * table
                free = self.load(starts, start, self.count)
                self.state.emit(Store(starts, start, self.let("add", (free, self.number(1, self.count)), self.count)))
                room = variable(free)
                place = self.load(places[source], s, self.place) if by_place and digit else self.index(s, self.place)
                if digit == digits - 1:
                    self.write(room, place, value, originals)
                    return
                self.state.emit(Store(values[target], room, value))
                if by_place:
                    self.state.emit(Store(places[target], room, place))

            return body

        self.loop("z", digits * table, clear)
        self.loop("q", length, read)
        self.loop("b", table - 1, sum_up)
        for digit in range(digits):
            self.loop(f"s{digit}", length, move(digit))

    def write(self, room: Affine, place: str, value: str, originals: str) -> None:
        """The element that comes to a place in the order, given where it stood, or by its value alone."""
        if self.places is not None:
            wide = self.let("astype", (place,), int64, dtype=int64) if self.place is not int64 else place
            self.store(self.places, room, wide)
        if self.values is not None:
            dtype = self.source.dtype
            self.store(self.values, room, self.load(originals, variable(place), dtype) if originals else value)

    def digit(self, key: str, digit: int, bits: int) -> str:
        """One digit of a key, the least significant one first."""
        if digit:
            key = self.let("bitwise_right_shift", (key, self.number(bits * digit, self.key)), self.key)
        if bits == uint8.bits:
            return key if self.key is uint8 else self.let("astype", (key,), uint8, dtype=uint8)
        return self.let("bitwise_and", (key, self.number((1 << bits) - 1, self.key)), self.key)
