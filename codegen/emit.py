"""Scheduled kernels to LLVM text for the CPU: spells what the schedule decided, and decides nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from codegen.affine import Affine
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
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
    loops_of,
)
from codegen.scalar import ScalarBuilder, Value, llvm_type, memory_type
from codegen.target import Target
from symgrad.errors import CompileError
from symgrad.types import DType, bool_, int64, uint8

SIGNATURE = "(ptr noalias %slots, ptr noalias %args, i64 %begin, i64 %end, ptr noalias %scratch, ptr noalias %status)"
SCRATCH_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Variable:
    """What a loop variable is while its body is spelled: a number, a register, or the lanes of a vector."""

    start: int = 0
    register: str | None = None
    lanes: int = 0
    active: int = 0
    depth: int = 0


@dataclass(frozen=True, slots=True)
class Named:
    """A named value and the loop depth from which on it is known."""

    value: Value
    depth: int


@dataclass(slots=True)
class Level:
    """The block under construction at one loop depth. Loop-invariant instructions of inner loops are added to it."""

    label: str
    lines: list[str] = field(default_factory=list[str])
    memo: dict[object, Named] = field(default_factory=dict[object, "Named"])


Accumulator: TypeAlias = tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Emitted:
    """The text of one kernel function and what its module must hold besides."""

    text: str
    declarations: frozenset[str]
    globals: frozenset[str]
    scratch_bytes: int


def emit(kernel: Kernel, name: str, target: Target) -> Emitted:
    """The LLVM function `name` of a scheduled kernel. Its outermost statements must be parallel loops."""
    return _Emitter(kernel, target).function(name)


def module_text(kernels: Iterable[Emitted], target: Target) -> str:
    """One module with several kernels, their declarations and shared functions once each."""
    kernels = list(kernels)
    declarations = sorted(set().union(*(k.declarations for k in kernels)))
    shared = sorted(set().union(*(k.globals for k in kernels)))
    return "\n".join([f'target triple = "{target.triple}"', *shared, *declarations, *(k.text for k in kernels)])


def scratch_layout(kernel: Kernel) -> tuple[Mapping[str, int], int]:
    """Byte offset of every scratch buffer of a kernel, and the bytes they take together."""
    offsets: dict[str, int] = {}
    total = SCRATCH_ALIGNMENT  # the first line takes writes that mean nothing, see _check_index
    for buffer in kernel.locals:
        if buffer.space is Space.SCRATCH:
            offsets[buffer.name] = total
            size = buffer.size * buffer.dtype.itemsize
            # Vector stores of a short last block write whole registers where nothing follows.
            total += -(-size // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT + SCRATCH_ALIGNMENT
    return offsets, total


class _Emitter:
    """The state of spelling one kernel."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        self.kernel = kernel
        self.target = target
        self.b = ScalarBuilder(1, target)
        self.buffers = {b.name: b for b in kernel.params + kernel.locals}
        self.scratch, self.scratch_bytes = scratch_layout(kernel)
        self.levels: list[Level] = [Level("entry")]
        self.variables: dict[str, Variable] = {}
        self.named: dict[str, Named] = {}
        self.registers: dict[tuple[str, int], Accumulator] = {}
        self.acc_lanes = _accumulator_lanes(kernel.body, {}, {})
        self.vector: Variable | None = None
        self.labels = 0

    # Function and loops

    def function(self, name: str) -> Emitted:
        for position, buffer in enumerate(self.kernel.params):
            self._bind_param(position, buffer.name)
        for buffer, offset in self.scratch.items():
            self.levels[0].lines.append(f"%b_{buffer} = getelementptr i8, ptr %scratch, i64 {offset}")
        offset = 0
        for stmt in self.kernel.body:
            if not isinstance(stmt, For) or stmt.loop.bind is not Bind.PARALLEL:
                raise CompileError(f"a kernel's outermost statement must be a parallel loop, got {stmt}")
            self._parallel(stmt, offset)
            offset += stmt.loop.extent
        body = "\n".join(line if line.endswith(":") else f"  {line}" for line in self.levels[0].lines)
        text = f"define void @{name}{SIGNATURE} nounwind {{\nentry:\n{body}\n  ret void\n}}"
        return Emitted(text, frozenset(self.b.declarations), frozenset(self.b.globals), self.scratch_bytes)

    def _bind_param(self, position: int, name: str) -> None:
        lines = self.levels[0].lines
        lines += [
            f"%as_{name} = getelementptr i8, ptr %args, i64 {position * 16}",
            f"%s_{name} = load i64, ptr %as_{name}, align 8",
            f"%ao_{name} = getelementptr i8, ptr %args, i64 {position * 16 + 8}",
            f"%o_{name} = load i64, ptr %ao_{name}, align 8",
            f"%sp_{name} = getelementptr ptr, ptr %slots, i64 %s_{name}",
            f"%r_{name} = load ptr, ptr %sp_{name}, align 8",
            f"%b_{name} = getelementptr i8, ptr %r_{name}, i64 %o_{name}",
        ]

    def _label(self, prefix: str) -> str:
        self.labels += 1
        return f"{prefix}{self.labels}"

    def _parallel(self, stmt: For, offset: int) -> None:
        """Run the part of this loop that lies in the units [begin, end) of the call."""
        loop, top = stmt.loop, self.levels[0]
        k = self._label("u")
        limit = offset + loop.extent
        top.lines += [
            f"%{k}a = call i64 @llvm.smax.i64(i64 %begin, i64 {offset})",
            f"%{k}b = call i64 @llvm.smin.i64(i64 %end, i64 {limit})",
            f"%{k}lo = add i64 %{k}a, {loop.start - offset}",
            f"%{k}hi = add i64 %{k}b, {loop.start - offset}",
            f"%{k}any = icmp slt i64 %{k}lo, %{k}hi",
            f"br i1 %{k}any, label %{k}pre, label %{k}skip",
            f"{k}pre:",
        ]
        self.b.declarations |= {"declare i64 @llvm.smax.i64(i64, i64)", "declare i64 @llvm.smin.i64(i64, i64)"}
        outer_memo = top.memo
        top.label, top.memo = f"{k}pre", {}
        self._counted(stmt, f"%{k}lo", f"%{k}hi")
        top.lines += [f"br label %{k}skip", f"{k}skip:"]
        top.label, top.memo = f"{k}skip", outer_memo

    def _body(self, body: Body) -> None:
        for stmt in body:
            self._stmt(stmt)

    def _stmt(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self._for(stmt)
            case Let():
                self._let(stmt)
            case Index(name, index, dtype):
                self._name(name, self._number(index, dtype))
            case Load():
                self._load(stmt)
            case Within(name, guard):
                self._name(name, self._within(guard))
            case Store():
                self._store(stmt)
            case Init(buffer, index, combine):
                self._init(buffer, index, combine)
            case Accumulate():
                self._accumulate(stmt)
            case Finish():
                self._finish(stmt)

    def _for(self, stmt: For) -> None:
        loop = stmt.loop
        if loop.extent == 0:
            return
        match loop.bind:
            case Bind.VECTOR:
                self._vector(stmt)
            case Bind.UNROLL:
                for value in range(loop.start, loop.start + loop.extent):
                    self._once(stmt, value)
            case Bind.SERIAL if loop.extent == 1:
                self._once(stmt, loop.start)
            case Bind.SERIAL:
                self._counted(stmt, str(loop.start), str(loop.start + loop.extent))
            case Bind.PARALLEL:
                raise CompileError(f"parallel loop {loop.name} is not outermost")

    def _once(self, stmt: For, value: int) -> None:
        self.variables[stmt.loop.name] = Variable(start=value, depth=0)
        self._body(stmt.body)
        del self.variables[stmt.loop.name]

    def _vector(self, stmt: For) -> None:
        loop = stmt.loop
        if self.vector is not None:
            raise CompileError(f"vector loop {loop.name} inside a vector loop")
        self.vector = Variable(loop.start, None, loop.lanes, loop.extent, len(self.levels) - 1)
        self.variables[loop.name] = self.vector
        self.b.lanes = loop.lanes
        self._body(stmt.body)
        del self.variables[loop.name]
        self.vector, self.b.lanes = None, 1

    def _counted(self, stmt: For, start: str, stop: str) -> None:
        """A loop that runs at least once; accumulators it changes travel in phis."""
        k = self._label("l")
        outer = self.levels[-1]
        changed = {s.buffer for s in _accumulates(stmt.body)}
        carried = {key: acc for key, acc in self.registers.items() if key[0] in changed}
        phis: dict[tuple[str, int], tuple[str, ...]] = {}
        for key, acc in carried.items():
            names = tuple(self.b.fresh() for _ in acc)
            phis[key] = names
            self.registers[key] = tuple(v._replace(text=n) for v, n in zip(acc, names, strict=True))
        inner = Level(k)
        self.levels.append(inner)
        self.variables[stmt.loop.name] = Variable(register=f"%{k}i", depth=len(self.levels) - 1)
        self._body(stmt.body)
        del self.variables[stmt.loop.name]
        self.levels.pop()
        head = [f"%{k}i = phi i64 [ {start}, %{outer.label} ], [ %{k}n, %{inner.label} ]"]
        for key, acc in carried.items():
            for name, before, after in zip(phis[key], acc, self.registers[key], strict=True):
                kind = llvm_type(before.dtype, before.lanes)
                head.append(f"{name} = phi {kind} [ {before.text}, %{outer.label} ], [ {after.text}, %{inner.label} ]")
        outer.lines += [f"br label %{k}", f"{k}:", *head, *inner.lines]
        outer.lines += [
            f"%{k}n = add i64 %{k}i, 1",
            f"%{k}c = icmp slt i64 %{k}n, {stop}",
            f"br i1 %{k}c, label %{k}, label %{k}x",
            f"{k}x:",
        ]
        outer.label = f"{k}x"

    # Values

    def _name(self, name: str, named: Named) -> None:
        self.named[name] = named

    def _place(self, depth: int, lanes: int) -> int:
        """The level an instruction goes to: uniform ones as far out as their operands allow, vectors where they stand."""
        return depth if lanes == 1 else len(self.levels) - 1

    def _flush(self, level: int) -> None:
        self.levels[level].lines += self.b.lines
        self.b.lines.clear()

    def _remembered(self, key: object) -> Named | None:
        for level in reversed(self.levels):
            if (found := level.memo.get(key)) is not None:
                return found
        return None

    def _remember(self, level: int, key: object, value: Value) -> Named:
        named = Named(value, level)
        self.levels[level].memo[key] = named
        return named

    def _let(self, stmt: Let) -> None:
        if stmt.op == "const":
            literal = dict(stmt.attrs)["value"].array
            value = (
                self.b.const_bits(stmt.dtype, int(literal.view(f"u{literal.dtype.itemsize}")))
                if stmt.dtype.is_float
                else self.b.const(stmt.dtype, literal.item())
            )
            self._name(stmt.name, Named(value, 0))
            return
        args = [self.named[a] for a in stmt.args]
        if stmt.op == "check_index":
            self._check_index(stmt, args[0])
            return
        key = (stmt.op, tuple(a.value for a in args), stmt.attrs)
        if (found := self._remembered(key)) is not None:
            self._name(stmt.name, found)
            return
        lanes = max((a.value.lanes for a in args), default=1)
        level = self._place(max((a.depth for a in args), default=0), lanes)
        value = self.b.op(stmt.op, *(a.value for a in args), **dict(stmt.attrs))
        self._flush(level)
        self._name(stmt.name, self._remember(level, key, value))

    def _check_index(self, stmt: Let, arg: Named) -> None:
        """Wrap negative indices; note an index out of range in the status word and read element 0 instead."""
        b = self.b
        x = b.op("astype", arg.value, dtype=stmt.dtype) if arg.value.dtype is not stmt.dtype else arg.value
        extent = b.const(x.dtype, dict(stmt.attrs)["extent"])
        zero = b.const(x.dtype, 0)
        if x.dtype.kind == "i":
            x = b.op("where", b.op("less", x, zero), b.op("add", x, extent), x)
        good = b.op("less", x, extent)
        if x.dtype.kind == "i":
            good = b.op("logical_and", good, b.op("greater_equal", x, zero))
        bad = b.op("logical_not", good)
        if bad.lanes > 1:
            bad = self._masked_flag(bad)
            name = b.fresh()
            self._declare(f"declare i1 @llvm.vector.reduce.or.v{bad.lanes}i1(<{bad.lanes} x i1>)")
            b.lines.append(f"{name} = call i1 @llvm.vector.reduce.or.v{bad.lanes}i1(<{bad.lanes} x i1> {bad.text})")
            bad = Value(name, bool_, 1)
        spot = b.fresh()
        # Writing the code where nothing reads it is cheaper than a branch.
        b.lines.append(f"{spot} = select i1 {bad.text}, ptr %status, ptr %scratch")
        b.lines.append(f"store i64 1, ptr {spot}, align 8")
        safe = b.op("where", good, x, zero)
        level = len(self.levels) - 1
        self._flush(level)
        self._name(stmt.name, Named(safe, level))

    def _masked_flag(self, flag: Value) -> Value:
        assert self.vector is not None
        if self.vector.active == self.vector.lanes:
            return flag
        name = self.b.fresh()
        self.b.lines.append(f"{name} = and <{flag.lanes} x i1> {flag.text}, {self._mask()}")
        return Value(name, bool_, flag.lanes)

    def _declare(self, line: str) -> None:
        self.b.declarations.add(line)

    def _mask(self) -> str:
        assert self.vector is not None
        bits = ("i1 true" if k < self.vector.active else "i1 false" for k in range(self.vector.lanes))
        return f"<{', '.join(bits)}>"

    # Indices

    def _parts(self, index: Affine) -> tuple[int, list[tuple[str, int, int]], int, list[tuple[Value, int]]]:
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
                    wide = self._wide(named)
                    uniform.append((wide.value.text, factor, wide.depth))
            elif variable.register is not None:
                uniform.append((variable.register, factor, variable.depth))
            else:
                const += factor * variable.start
                stride += factor if variable.lanes else 0
        uniform.sort(key=lambda term: term[2])
        return const, uniform, stride, vectors

    def _wide(self, named: Named) -> Named:
        """A uniform integer as i64."""
        if named.value.dtype is int64:
            return named
        key = ("wide", named.value)
        if (found := self._remembered(key)) is not None:
            return found
        value = self.b.op("astype", named.value, dtype=int64)
        self._flush(named.depth)
        return self._remember(named.depth, key, value)

    def _sum(self, uniform: list[tuple[str, int, int]], const: int) -> Named:
        """The uniform part of an index as a number."""
        text, depth = str(const), 0
        for register, factor, at in uniform:
            depth = max(depth, at)
            key = ("sum", text, register, factor)
            found = self._remembered(key)
            if found is None:
                scaled, total = self.b.fresh(), self.b.fresh()
                self.b.lines += [f"{scaled} = mul i64 {register}, {factor}", f"{total} = add i64 {text}, {scaled}"]
                self._flush(depth)
                found = self._remember(depth, key, Value(total, int64, 1))
            text = found.value.text
        return Named(Value(text, int64, 1), depth)

    def _number(self, index: Affine, dtype: DType) -> Named:
        const, uniform, stride, vectors = self._parts(index)
        base = self._sum(uniform, const)
        level = base.depth
        value = base.value
        if stride or vectors:
            value = self.b.splat(value)
            if stride:
                value = self.b.add(value, self._lane_numbers(stride))
            for vector, factor in vectors:
                wide = self.b.op("astype", vector, dtype=int64) if vector.dtype is not int64 else vector
                value = self.b.add(value, self.b.multiply(wide, factor))
            level = len(self.levels) - 1
        if dtype is not int64:
            value = self.b.op("astype", value, dtype=dtype)
        self._flush(level)
        return Named(value, level)

    def _lane_numbers(self, stride: int) -> Value:
        assert self.vector is not None
        numbers = ", ".join(f"i64 {stride * k}" for k in range(self.vector.lanes))
        return Value(f"<{numbers}>", int64, self.vector.lanes)

    def _within(self, guard: tuple[Affine, ...]) -> Named:
        """The truth of every guard, uniform when no guard depends on the lane."""
        result: Value | None = None
        depth = 0
        for one in guard:
            number = self._number(one, int64)
            truth = self.b.op("greater_equal", number.value, self.b.const(int64, 0))
            self._flush(self._place(number.depth, truth.lanes))
            depth = max(depth, number.depth)
            result = truth if result is None else self.b.op("logical_and", result, truth)
            self._flush(self._place(depth, result.lanes))
        assert result is not None
        return Named(result, self._place(depth, result.lanes))

    def _pointer(self, buffer: str, const: int, uniform: list[tuple[str, int, int]], itemsize: int) -> Named:
        """The address of an element: outer terms first, so that each loop adds to an address from outside."""
        text, depth = f"%b_{buffer}", 0
        for register, factor, at in uniform:
            depth = max(depth, at)
            key = ("address", text, register, factor * itemsize)
            found = self._remembered(key)
            if found is None:
                scaled, moved = self.b.fresh(), self.b.fresh()
                self.b.lines += [
                    f"{scaled} = mul i64 {register}, {factor * itemsize}",
                    f"{moved} = getelementptr i8, ptr {text}, i64 {scaled}",
                ]
                self._flush(depth)
                found = self._remember(depth, key, Value(moved, int64, 1))
            text = found.value.text
        if const:
            key = ("address", text, const * itemsize)
            found = self._remembered(key)
            if found is None:
                moved = self.b.fresh()
                self.b.lines.append(f"{moved} = getelementptr i8, ptr {text}, i64 {const * itemsize}")
                self._flush(depth)
                found = self._remember(depth, key, Value(moved, int64, 1))
            text = found.value.text
        return Named(Value(text, int64, 1), depth)

    # Memory

    def _load(self, stmt: Load) -> None:
        buffer = self.buffers[stmt.buffer]
        const, uniform, stride, vectors = self._parts(stmt.index)
        frozen = buffer.space is Space.GLOBAL and not buffer.written
        guard = self._within(stmt.guard) if stmt.guard else None
        lanes = self.vector.lanes if self.vector is not None and (stride or vectors) else 1
        if guard is not None:
            lanes = max(lanes, guard.value.lanes)
        pointer = self._pointer(stmt.buffer, const, uniform, buffer.dtype.itemsize)
        active = self.vector.active if self.vector is not None and lanes > 1 else 1
        condition = guard.value.text if guard is not None else ""
        key = ("load", stmt.buffer, pointer.value.text, lanes, active, stride, tuple(vectors), condition)
        if frozen and (found := self._remembered(key)) is not None:
            self._name(stmt.name, found)
            return
        if lanes == 1:
            depth = max(pointer.depth, guard.depth if guard is not None else 0)
            level = depth if frozen else len(self.levels) - 1
            value = self._load_one(buffer.dtype, pointer.value.text, stmt.buffer, guard)
        else:
            level = len(self.levels) - 1
            value = self._load_lanes(stmt.buffer, pointer.value.text, stride, vectors, guard)
        value = self.b.from_memory(value, stmt.dtype)
        self._flush(level)
        named = self._remember(level, key, value) if frozen else Named(value, level)
        self._name(stmt.name, named)

    def _load_one(self, dtype: DType, pointer: str, buffer: str, guard: Named | None) -> Value:
        b = self.b
        if guard is not None:
            pointer = self._guarded_pointer(pointer, buffer, guard, 0)
        name = b.fresh()
        b.lines.append(f"{name} = load {memory_type(dtype, 1)}, ptr {pointer}, align {dtype.itemsize}")
        return Value(name, _memory_dtype(dtype), 1)

    def _load_lanes(
        self, buffer: str, pointer: str, stride: int, vectors: list[tuple[Value, int]], guard: Named | None
    ) -> Value:
        assert self.vector is not None
        b, v, dtype = self.b, self.vector, self.buffers[buffer].dtype
        kind, one = memory_type(dtype, v.lanes), memory_type(dtype, 1)
        memory = _memory_dtype(dtype)
        if stride == 1 and not vectors:
            mask = self._load_mask(guard)
            name = b.fresh()
            if mask is None:
                b.lines.append(f"{name} = load {kind}, ptr {pointer}, align {dtype.itemsize}")
                return Value(name, memory, v.lanes)
            if self.target.masked or guard is not None:
                suffix = f"v{v.lanes}{_mangle(one)}"
                self._declare(f"declare {kind} @llvm.masked.load.{suffix}.p0(ptr, i32, <{v.lanes} x i1>, {kind})")
                b.lines.append(
                    f"{name} = call {kind} @llvm.masked.load.{suffix}.p0(ptr {pointer}, i32 {dtype.itemsize}, "
                    f"<{v.lanes} x i1> {mask}, {kind} zeroinitializer)"
                )
                return Value(name, memory, v.lanes)
        offsets = self._lane_offsets(stride, vectors, dtype.itemsize)
        text = "zeroinitializer"
        for lane in range(v.active):
            spot = b.fresh()
            b.lines.append(f"{spot} = getelementptr i8, ptr {pointer}, i64 {offsets[lane]}")
            if guard is not None:
                spot = self._guarded_pointer(spot, buffer, guard, lane)
            element, joined = b.fresh(), b.fresh()
            b.lines += [
                f"{element} = load {one}, ptr {spot}, align {dtype.itemsize}",
                f"{joined} = insertelement {kind} {text}, {one} {element}, i64 {lane}",
            ]
            text = joined
        return Value(text, memory, v.lanes)

    def _guarded_pointer(self, pointer: str, buffer: str, guard: Named, lane: int) -> str:
        """The pointer where the guard holds in a lane, else the start of the buffer, which can always be read."""
        b, flag = self.b, guard.value.text
        if guard.value.lanes > 1:
            flag = b.fresh()
            b.lines.append(f"{flag} = extractelement <{guard.value.lanes} x i1> {guard.value.text}, i64 {lane}")
        safe = b.fresh()
        b.lines.append(f"{safe} = select i1 {flag}, ptr {pointer}, ptr %b_{buffer}")
        return safe

    def _lane_offsets(self, stride: int, vectors: list[tuple[Value, int]], itemsize: int) -> list[str]:
        """The byte offset of each active lane from the uniform address."""
        assert self.vector is not None
        b, v = self.b, self.vector
        if not vectors:
            return [str(stride * itemsize * lane) for lane in range(v.active)]
        total: Value | None = None
        for value, factor in vectors:
            wide = b.op("astype", value, dtype=int64) if value.dtype is not int64 else value
            scaled = b.multiply(wide, factor * itemsize)
            total = scaled if total is None else b.add(total, scaled)
        assert total is not None
        if stride:
            total = b.add(total, self._lane_numbers(stride * itemsize))
        offsets: list[str] = []
        for lane in range(v.active):
            name = b.fresh()
            b.lines.append(f"{name} = extractelement <{v.lanes} x i64> {total.text}, i64 {lane}")
            offsets.append(name)
        return offsets

    def _load_mask(self, guard: Named | None) -> str | None:
        assert self.vector is not None
        v = self.vector
        tail = self._mask() if v.active < v.lanes else None
        if guard is None:
            return tail
        flag = self.b.splat(guard.value)
        if tail is None:
            return flag.text
        name = self.b.fresh()
        self.b.lines.append(f"{name} = and <{v.lanes} x i1> {flag.text}, {tail}")
        return name

    def _store(self, stmt: Store) -> None:
        buffer = self.buffers[stmt.buffer]
        b = self.b
        const, uniform, stride, vectors = self._parts(stmt.index)
        pointer = self._pointer(stmt.buffer, const, uniform, buffer.dtype.itemsize).value.text
        value = b.to_memory(self.named[stmt.value].value)
        one = memory_type(buffer.dtype, 1)
        if self.vector is None or not (stride or vectors):
            if value.lanes != 1:
                raise CompileError(f"store to {stmt.buffer}: a vector value at one address")
            b.lines.append(f"store {one} {value.text}, ptr {pointer}, align {buffer.dtype.itemsize}")
        else:
            self._store_lanes(buffer.dtype, b.splat(value), pointer, stride, vectors)
        self._flush(len(self.levels) - 1)

    def _store_lanes(
        self, dtype: DType, value: Value, pointer: str, stride: int, vectors: list[tuple[Value, int]]
    ) -> None:
        assert self.vector is not None
        b, v = self.b, self.vector
        kind, one = memory_type(dtype, v.lanes), memory_type(dtype, 1)
        if stride == 1 and not vectors and v.active == v.lanes:
            b.lines.append(f"store {kind} {value.text}, ptr {pointer}, align {dtype.itemsize}")
            return
        if stride == 1 and not vectors and self.target.masked:
            suffix = f"v{v.lanes}{_mangle(one)}"
            self._declare(f"declare void @llvm.masked.store.{suffix}.p0({kind}, ptr, i32, <{v.lanes} x i1>)")
            b.lines.append(
                f"call void @llvm.masked.store.{suffix}.p0({kind} {value.text}, ptr {pointer}, "
                f"i32 {dtype.itemsize}, <{v.lanes} x i1> {self._mask()})"
            )
            return
        for lane, offset in enumerate(self._lane_offsets(stride, vectors, dtype.itemsize)):
            element, spot = b.fresh(), b.fresh()
            b.lines += [
                f"{element} = extractelement {kind} {value.text}, i64 {lane}",
                f"{spot} = getelementptr i8, ptr {pointer}, i64 {offset}",
                f"store {one} {element}, ptr {spot}, align {dtype.itemsize}",
            ]

    # Accumulators

    def _register(self, buffer: str, index: Affine) -> tuple[str, int]:
        """The register of an accumulator: its index must be a constant, or run along the lanes."""
        const, uniform, _, vectors = self._parts(index)
        if uniform or vectors:
            raise CompileError(f"accumulator {buffer}[{index}] is not a register: unroll {uniform or vectors}")
        return buffer, const

    def _init(self, buffer: str, index: Affine, combine: str) -> None:
        dtype = self.buffers[buffer].dtype
        lanes = self.vector.lanes if self.vector is not None else self.acc_lanes.get(buffer, 1)
        first = _lanes_of(identity(self.b, combine, dtype), lanes)
        acc = (first,)
        if combine in ("argmax", "argmin"):
            acc = (first, _lanes_of(self.b.const(int64, _NO_INDEX), lanes))
        self.registers[self._register(buffer, index)] = acc

    def _accumulate(self, stmt: Accumulate) -> None:
        b, key = self.b, self._register(stmt.buffer, stmt.index)
        acc = self.registers[key]
        args = [self.named[a].value for a in stmt.args]
        lanes = acc[0].lanes
        outer_lanes, b.lanes = b.lanes, lanes
        args = [b.splat(a) for a in args]
        new = combined(b, stmt.combine, acc, tuple(args))
        if self.vector is not None and self.vector.active < self.vector.lanes and self.acc_lanes.get(stmt.buffer, 1) > 1:
            mask = Value(self._mask(), bool_, lanes)
            new = tuple(b.select(mask, n, old) for n, old in zip(new, acc, strict=True))
        b.lanes = outer_lanes
        self._flush(len(self.levels) - 1)
        self.registers[key] = new

    def _finish(self, stmt: Finish) -> None:
        key = self._register(stmt.buffer, stmt.index)
        acc = self.registers.pop(key)
        if self.vector is None:
            while acc[0].lanes > 1:
                acc = self._halve(stmt.combine, acc)
        level = len(self.levels) - 1
        self._flush(level)
        self._name(stmt.name, Named(acc[-1], level))

    def _halve(self, combine: str, acc: Accumulator) -> Accumulator:
        """Combine the upper half of the lanes into the lower one."""
        b, lanes = self.b, acc[0].lanes
        half = lanes // 2
        low = tuple(self._lanes_slice(v, 0, half) for v in acc)
        high = tuple(self._lanes_slice(v, half, half) for v in acc)
        outer, b.lanes = b.lanes, half
        if combine == "fma":
            out = (b.op("add", low[0], high[0]),)
        elif combine in ("argmax", "argmin"):
            out = _better(b, combine, low, high, ties=True)
        else:
            out = combined(b, combine, low, high)
        b.lanes = outer
        return out

    def _lanes_slice(self, value: Value, start: int, count: int) -> Value:
        kind = llvm_type(value.dtype, value.lanes)
        if count == 1:
            return self.b.emit(value.dtype, 1, f"extractelement {kind} {value.text}, i64 {start}")
        picks = ", ".join(f"i32 {start + k}" for k in range(count))
        return self.b.emit(
            value.dtype, count, f"shufflevector {kind} {value.text}, {kind} poison, <{count} x i32> <{picks}>"
        )


_NO_INDEX = (1 << 63) - 1


def identity(b: ScalarBuilder, combine: str, dtype: DType) -> Value:
    """The value that changes nothing when it is combined."""
    match combine:
        case "sum" | "fma" | "any":
            return b.const(dtype, 0)
        case "prod" | "all":
            return b.const(dtype, 1)
        case "max" | "argmax":
            return b.const(dtype, _lowest(dtype))
        case "min" | "argmin":
            return b.const(dtype, _highest(dtype))
        case _:
            raise CompileError(f"no identity for {combine}")


def _lowest(dtype: DType) -> float | int:
    if dtype.is_float:
        return float("-inf")
    return -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0


def _highest(dtype: DType) -> float | int:
    if dtype.is_float:
        return float("inf")
    return (1 << (dtype.bits - (dtype.kind == "i"))) - 1


def combined(b: ScalarBuilder, combine: str, acc: Accumulator, args: tuple[Value, ...]) -> Accumulator:
    """The accumulator after one more contribution in every lane."""
    match combine:
        case "sum":
            return (b.op("add", acc[0], args[0]),)
        case "fma" if acc[0].dtype.is_float:
            return (b.fma(args[0], args[1], acc[0]),)
        case "fma":
            return (b.op("add", acc[0], b.op("multiply", args[0], args[1])),)
        case "prod":
            return (b.op("multiply", acc[0], args[0]),)
        case "max":
            return (b.op("maximum", acc[0], args[0]),)
        case "min":
            return (b.op("minimum", acc[0], args[0]),)
        case "any":
            return (b.op("logical_or", acc[0], args[0]),)
        case "all":
            return (b.op("logical_and", acc[0], args[0]),)
        case "argmax" | "argmin":
            return _better(b, combine, acc, args, ties=False)
        case _:
            raise CompileError(f"no combination {combine}")


def _better(b: ScalarBuilder, combine: str, acc: Accumulator, other: Accumulator, *, ties: bool) -> Accumulator:
    """The extreme value and its place; a NaN beats every number and the first of equals wins.

    Within a lane places only grow, so ties keep what stands, but an identity, whose place is beyond all, always goes.
    """
    value, place = other
    take = b.op("greater" if combine == "argmax" else "less", value, acc[0])
    if value.dtype.is_float:
        nan, had_nan = b.op("isnan", value), b.op("isnan", acc[0])
        take = b.op("logical_or", take, b.op("logical_and", nan, b.op("logical_not", had_nan)))
        same = b.op("logical_or", b.op("equal", value, acc[0]), b.op("logical_and", nan, had_nan))
    else:
        same = b.op("equal", value, acc[0])
    earlier = b.op("less", place, acc[1]) if ties else b.op("equal", acc[1], b.const(int64, _NO_INDEX))
    take = b.op("logical_or", take, b.op("logical_and", same, earlier))
    return b.select(take, value, acc[0]), b.select(take, place, acc[1])


def _lanes_of(value: Value, lanes: int) -> Value:
    """A literal in every lane."""
    if lanes == 1:
        return value
    return Value(f"splat ({llvm_type(value.dtype, 1)} {value.text})", value.dtype, lanes)


def _memory_dtype(dtype: DType) -> DType:
    return uint8 if dtype is bool_ else dtype


def _mangle(kind: str) -> str:
    return {"float": "f32", "double": "f64"}.get(kind, kind)


def _accumulates(body: Body) -> list[Accumulate]:
    found = [s for s in body if isinstance(s, Accumulate)]
    for stmt in loops_of(body):
        found += [s for s in stmt.body if isinstance(s, Accumulate)]
    return found


def _accumulator_lanes(body: Body, lanes: dict[str, int], inside: Mapping[str, int]) -> dict[str, int]:
    """The lanes of accumulators that gather over a vector loop, and so hold one partial result per lane."""
    for stmt in body:
        if isinstance(stmt, For):
            loop: Loop = stmt.loop
            deeper = {**inside, loop.name: loop.lanes} if loop.bind is Bind.VECTOR else inside
            _accumulator_lanes(stmt.body, lanes, deeper)
        elif isinstance(stmt, Accumulate):
            for name, width in inside.items():
                if not stmt.index.factor(name):
                    lanes[stmt.buffer] = max(lanes.get(stmt.buffer, 1), width)
    return lanes
