"""Where instructions go and where elements stand, while a kernel is spelled as LLVM text.

Uniform instructions are placed as far out as their operands allow, and equal ones are written once: loop-invariant
code and common subexpressions never reach LLVM.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from codegen.affine import Affine
from codegen.combine import Accumulator
from codegen.loop import Kernel
from codegen.scalar_builder import ScalarBuilder, Value, llvm_type
from codegen.target import Target
from symgrad.record import record
from symgrad.types import DType, bool_, int64


@record
class Variable:
    """What a loop variable is while its body is spelled: a number, a register, or the lanes of a vector.

    It is one of the `extent` values from `start`; of a loop written out from 0 on, it is one of `written_out`.
    """

    start: int = 0
    register: str | None = None
    lanes: int = 0
    active: int = 0
    depth: int = 0
    extent: int = 1
    written_out: int = 0


@record
class Named:
    """A named value and the loop depth from which on it is known."""

    value: Value
    depth: int


@dataclass(slots=True)
class Level:
    """The block under construction at one loop depth. Loop-invariant instructions of inner loops are added to it.

    `counter` is the register of the loop's variable. `moving` names the addresses that move by so many bytes in each
    iteration, by where they would be in iteration 0.
    """

    label: str
    counter: str = ""
    lines: list[str] = field(default_factory=list[str])
    memo: dict[object, Named] = field(default_factory=dict[object, "Named"])
    moving: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])


def opaque_key(pointer: str, copy: int = 0) -> tuple[str, str, int]:
    """What a pointer of which LLVM does not know where it comes from is remembered by."""
    return "opaque", pointer, copy


class Addressing:
    """Levels, names and addresses of one kernel under construction."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.target = target
        self.b = ScalarBuilder(1, target)
        self.buffers = {b.name: b for b in kernel.params + kernel.locals}
        self.levels: list[Level] = [Level("entry")]
        self.variables: dict[str, Variable] = {}
        self.named: dict[str, Named] = {}
        self.vector: Variable | None = None
        self.registers: dict[tuple[str, int], Accumulator] = {}  # of the sums that are not finished

    # Values

    def name(self, name: str, named: Named) -> None:
        self.named[name] = named

    def place(self, depth: int, lanes: int) -> int:
        """The level an instruction goes to: as far out as its operands allow if uniform, else where it stands."""
        return depth if lanes == 1 else len(self.levels) - 1

    def flush(self, level: int) -> None:
        self.levels[level].lines += self.b.lines
        self.b.lines.clear()

    def remembered(self, key: object) -> Named | None:
        for level in reversed(self.levels):
            if (found := level.memo.get(key)) is not None:
                return found
        return None

    def remember(self, level: int, key: object, value: Value) -> Named:
        named = Named(value, level)
        self.levels[level].memo[key] = named
        return named

    def masked_flag(self, flag: Value) -> Value:
        assert self.vector is not None
        if self.vector.active == self.vector.lanes:
            return flag
        name = self.b.fresh()
        self.b.lines.append(f"{name} = and <{flag.lanes} x i1> {flag.text}, {self.mask()}")
        return Value(name, bool_, flag.lanes)

    def declare(self, line: str) -> None:
        self.b.declarations.add(line)

    def mask(self) -> str:
        assert self.vector is not None
        bits = ("i1 true" if k < self.vector.active else "i1 false" for k in range(self.vector.lanes))
        return f"<{', '.join(bits)}>"

    # Indices

    def parts(self, index: Affine) -> tuple[int, list[tuple[str, int, int]], int, list[tuple[Value, int]]]:
        """An index as constant, uniform terms (register, factor, depth) from outside in, lane stride, vector terms."""
        const, stride = index.const, 0
        uniform: list[tuple[str, int, int]] = []
        vectors: list[tuple[Value, int]] = []
        for name, factor in index.terms:
            variable = self.variables.get(name)
            if variable is None:
                named = self.named[name]
                value = named.value
                if value.lanes > 1:
                    vectors.append((value, factor))
                else:
                    wide = self._as(named, int64)
                    uniform.append((wide.value.text, factor, wide.depth))
            elif variable.register is not None:
                uniform.append((variable.register, factor, variable.depth))
            else:
                const += factor * variable.start
                stride += factor if variable.lanes else 0
        if len(uniform) > 1:
            uniform.sort(key=lambda term: term[2])
        return const, uniform, stride, vectors

    def _as(self, named: Named, dtype: DType) -> Named:
        """A uniform number as another integer type."""
        if named.value.dtype is dtype:
            return named
        key = ("as", named.value, dtype)
        if (found := self.remembered(key)) is not None:
            return found
        value = self.b.astype(named.value, dtype)
        self.flush(named.depth)
        return self.remember(named.depth, key, value)

    def _sum(self, uniform: list[tuple[str, int, int]], const: int) -> Named:
        """The uniform part of an index as a number."""
        text, depth = str(const), 0
        for register, factor, at in uniform:
            depth = max(depth, at)
            key = ("sum", text, register, factor)
            found = self.remembered(key)
            if found is None:
                scaled, total = self.b.fresh(), self.b.fresh()
                times, line = f"{scaled} = mul i64 {register}, {factor}", f"{total} = add i64 {text}, {scaled}"
                found = self._number_at(depth, key, total, times, line)
            text = found.value.text
        return Named(Value(text, int64, 1), depth)

    def number(self, index: Affine, dtype: DType) -> Named:
        const, uniform, stride, vectors = self.parts(index)
        # Integers wrap: they are added as narrow as the result is.
        counted = dtype if dtype.kind in "iu" else int64
        if stride and not uniform and not vectors:
            base = Named(self.lane_numbers(stride, counted, const), len(self.levels) - 1)
        elif not uniform:
            base = Named(self.b.const(counted, const), 0)
        else:
            base = self._as(self._sum(uniform, const), counted)
        value, level = base.value, base.depth
        if value.lanes == 1 and (stride or vectors):
            value, level = self.in_lanes(value), len(self.levels) - 1
            if stride:
                value = self.b.add(value, self.lane_numbers(stride, counted))
            for vector, factor in vectors:
                value = self.b.add(value, self.b.multiply(self.b.astype(vector, counted), factor))
        if dtype is not counted:
            value = self.b.astype(value, dtype)
        self.flush(level)
        return Named(value, level)

    def in_lanes(self, value: Value) -> Value:
        """A value in every lane of the builder; what many operations meet there is written once for all of them."""
        if value.lanes == self.b.lanes or value.is_literal:
            return self.b.splat(value)
        key = ("lanes", value.text, self.b.lanes)
        found = self.remembered(key)
        if found is None:
            level, splat = len(self.levels) - 1, self.b.splat(value)
            self.flush(level)
            found = self.remember(level, key, splat)
        return found.value

    def lane_numbers(self, stride: int, dtype: DType = int64, first: int = 0) -> Value:
        """The literal with `first` in lane 0 and `stride` more in each lane after it."""
        assert self.vector is not None
        one = llvm_type(dtype, 1)
        numbers = (f"{one} {self.b.const(dtype, first + stride * k).text}" for k in range(self.vector.lanes))
        return Value(f"<{', '.join(numbers)}>", dtype, self.vector.lanes)

    def within(self, guard: tuple[Affine, ...]) -> Named:
        """The truth of every guard, uniform when no guard depends on the lane."""
        ranges = {name: (v.start, v.start + v.extent - 1) for name, v in self.variables.items()}
        spans = [(one, one.range(ranges)) for one in guard]
        if any(span is not None and span[1] < 0 for _, span in spans):
            return Named(self.b.const(bool_, False), 0)
        result: Value | None = None
        depth = 0
        for one, span in spans:
            if span is not None and span[0] >= 0:
                continue
            number = self.number(one, int64)
            truth = self.b.compare("ge", number.value, 0)
            self.flush(self.place(number.depth, truth.lanes))
            depth = max(depth, number.depth)
            result = truth if result is None else self.b.bit_and(result, truth)
            self.flush(self.place(depth, result.lanes))
        if result is None:
            return Named(self.b.const(bool_, True), 0)
        return Named(result, self.place(depth, result.lanes))

    def pointer(
        self, buffer: str, const: int, uniform: list[tuple[str, int, int]], itemsize: int, copy: int = 0
    ) -> Named:
        """The address of an element: outer terms first, so that each loop adds to an address from outside.

        LLVM does not know that one with another number `copy` is the same.
        """
        text, depth = f"%b_{buffer}", 0
        for register, factor, at in uniform:
            if depth < at and register == self.levels[at].counter:
                depth, text = at, self._moving(self.levels[at], text, factor * itemsize)
                continue
            depth = max(depth, at)
            key = ("address", text, register, factor * itemsize)
            found = self.remembered(key)
            if found is None:
                scaled, moved = self.b.fresh(), self.b.fresh()
                times = f"{scaled} = mul i64 {register}, {factor * itemsize}"
                line = f"{moved} = getelementptr i8, ptr {text}, i64 {scaled}"
                found = self._number_at(depth, key, moved, times, line)
            text = found.value.text
        if copy or (const and self.registers and depth and depth == len(self.levels) - 1):
            text = self._opaque(text, depth, copy)
        if const:
            key = ("address", text, const * itemsize)
            found = self.remembered(key)
            if found is None:
                moved = self.b.fresh()
                line = f"{moved} = getelementptr i8, ptr {text}, i64 {const * itemsize}"
                found = self._number_at(depth, key, moved, line)
            text = found.value.text
        return Named(Value(text, int64, 1), depth)

    def _moving(self, level: Level, start: str, step: int) -> str:
        """An address that moves with the loop of a level: to add to it is less than to multiply anew."""
        key = start, step
        if key not in level.moving:
            level.moving[key] = self.b.fresh()
        return level.moving[key]

    def _opaque(self, pointer: str, depth: int, copy: int) -> str:
        """The same pointer, of which LLVM does not know where it comes from.

        With many sums in registers it is spared what it would do with places at constant distances from it: some
        versions count each by itself, in memory. Convolutions gain 1 to 3 % where it does nothing of the kind, too.
        """
        key = opaque_key(pointer, copy)
        found = self.remembered(key)
        if found is None:
            same = self.b.fresh()
            found = self._number_at(depth, key, same, f'{same} = call ptr asm "", "=r,0"(ptr {pointer})')
        return found.value.text

    def _number_at(self, depth: int, key: object, name: str, *lines: str) -> Named:
        """Write the lines that compute a uniform number or address at a level, and remember it there."""
        self.b.lines += lines
        self.flush(depth)
        return self.remember(depth, key, Value(name, int64, 1))
