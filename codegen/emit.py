"""Scheduled kernels to LLVM text for the CPU: spells what the schedule decided, and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial

from codegen.addressing import Level, Named, Variable, opaque_key
from codegen.affine import Affine
from codegen.combine import Accumulator, beginning, better, combined, result
from codegen.frame import is_shifted
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Fetch,
    Finish,
    For,
    Index,
    Init,
    Kernel,
    Let,
    Load,
    Loop,
    Stmt,
    Store,
    Within,
    loops_of,
    parts_of,
    shared_in,
    statements_of,
)
from codegen.scalar import spell
from codegen.scalar_builder import Value, llvm_type
from codegen.stream import without_gathering
from codegen.target import CACHE_LINE, Target
from codegen.writer import ENTERED, LOAD, Writer, scratch_layout
from symgrad.errors import CompileError
from symgrad.record import record
from symgrad.types import bool_

# Addresses that move with a loop, each in a register of its own; of more, those that move alike share one.
MOST_POINTERS = 6
# No memory is touched, and what was read before counts as unknown.
_MEMORY_FENCE = '"", "~{memory}"'
SIGNATURE = "(ptr noalias %slots, ptr noalias %args, i64 %begin, i64 %end, ptr noalias %scratch, ptr noalias %status)"


@record
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
    declarations = sorted({line for k in kernels for line in k.declarations})
    shared = sorted({text for k in kernels for text in k.globals})
    return "\n".join([f'target triple = "{target.triple}"', *shared, *declarations, *(k.text for k in kernels)])


class _Emitter(Writer):
    """The state of spelling one kernel: loops, operations and accumulators."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        super().__init__(kernel, target)
        self.kernel = kernel
        self.scratch, self.scratch_bytes = scratch_layout(kernel)
        self.acc_lanes = _accumulator_lanes(kernel.body, {}, {})
        self.labels = 0
        self.finished = 0  # registers of the sums that ended since a loop began

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
            flag = self._may_stream(stmt)
            if flag is None:
                self._parallel(stmt, offset)
            else:
                self._streamed(stmt, offset, flag)
            offset += stmt.loop.extent * parts_of(stmt)
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

    def _may_stream(self, stmt: For) -> str | None:
        """Whether stores that may go past the caches can, as a flag; None where there are none.

        They can where what they write starts with a line of memory and does not stand over what is read.
        """
        accesses = list(statements_of(stmt.body))
        streamed = dict.fromkeys(s.buffer for s in accesses if isinstance(s, Store) and s.past_caches)
        if not streamed:
            return None
        params = {b.name for b in self.kernel.params}
        read = dict.fromkeys(s.buffer for s in accesses if isinstance(s, Load) and s.buffer in params)
        lines, flag = self.levels[0].lines, "true"
        self.declare("declare ptr @llvm.ptrmask.p0.i64(ptr, i64)")
        for name in streamed:
            start = self.b.fresh()
            lines.append(f"{start} = call ptr @llvm.ptrmask.p0.i64(ptr %b_{name}, i64 {-CACHE_LINE})")
            for test in (f"eq ptr {start}", *(f"ne ptr %b_{other}" for other in read)):
                fits, both = self.b.fresh(), self.b.fresh()
                lines += [f"{fits} = icmp {test}, %b_{name}", f"{both} = and i1 {flag}, {fits}"]
                flag = both
        return flag

    def _streamed(self, stmt: For, offset: int, flag: str) -> None:
        """This loop twice: for when its stores go past the caches, and for when they do not."""
        other = self.b.fresh()
        self.levels[0].lines.append(f"{other} = xor i1 {flag}, true")
        self.streaming = True
        self._parallel(stmt, offset, flag)
        self.streaming = False
        self._parallel(without_gathering(stmt), offset, other)

    def _parallel(self, stmt: For, offset: int, flag: str = "true") -> None:
        """Run the part of this loop that lies in the units [begin, end) of the call, if the flag holds."""
        self._span(stmt, ("%begin", "%end"), offset, str(offset), flag)

    def _span(self, stmt: For, units: tuple[str, str], offset: int, number: str, flag: str = "true") -> None:
        """Run the part of a parallel or shared loop that lies in a range of units, where its own begin at `offset`.

        `number` is that of its first unit in the whole kernel.
        """
        loop, level = stmt.loop, self.levels[-1]
        k = self._label("u")
        parts, divided = parts_of(stmt), bool(shared_in(stmt))
        level.lines += [
            f"%{k}a = call i64 @llvm.smax.i64(i64 {units[0]}, i64 {offset})",
            f"%{k}b = call i64 @llvm.smin.i64(i64 {units[1]}, i64 {offset + loop.extent * parts})",
            f"%{k}f = sub i64 %{k}a, {offset}",
            f"%{k}l = sub i64 %{k}b, {offset}",
        ]
        first, last = f"%{k}f", f"%{k}l"
        if divided:
            level.lines += [
                f"%{k}q = udiv i64 {first}, {parts}",
                f"%{k}r = add i64 {last}, {parts - 1}",
                f"%{k}s = udiv i64 %{k}r, {parts}",
            ]
            first, last = f"%{k}q", f"%{k}s"
        level.lines += [
            f"%{k}lo = add i64 {first}, {loop.start}",
            f"%{k}hi = add i64 {last}, {loop.start}",
            f"%{k}some = icmp slt i64 %{k}a, %{k}b",
            f"%{k}any = and i1 %{k}some, {flag}",
        ]
        self.b.declarations |= {"declare i64 @llvm.smax.i64(i64, i64)", "declare i64 @llvm.smin.i64(i64, i64)"}
        with self._where(f"%{k}any", k):
            if divided:
                self._counted(stmt, f"%{k}lo", f"%{k}hi", partial(self._divided, stmt, k, number))
            elif loop.bind is Bind.SHARED and loop.extent == 1:
                self._once(stmt, loop.start)
            else:
                self._counted(stmt, f"%{k}lo", f"%{k}hi")
            if self.streaming and loop.bind is Bind.PARALLEL:
                # Such stores are ordered with what other workers are told only by this.
                self.declare("declare void @llvm.x86.sse.sfence()")
                level.lines.append("call void @llvm.x86.sse.sfence()")

    def _divided(self, stmt: For, k: str, number: str) -> None:
        """One iteration of a loop that shared loops divide: the part of it that lies in the units of `_span`."""
        level, loop = self.levels[-1], stmt.loop
        level.lines += [
            f"%{k}z = sub i64 {self.variables[loop.name].register}, {loop.start}",
            f"%{k}y = mul i64 %{k}z, {parts_of(stmt)}",
            f"%{k}x = sub i64 %{k}f, %{k}y",
            f"%{k}w = sub i64 %{k}l, %{k}y",
            f"%{k}id = add i64 %{k}y, {number}",
        ]
        shared = shared_in(stmt)
        if before := stmt.body[: -len(shared)]:
            # Calls of one run do this once as long as they come to the same iteration.
            level.lines += [
                f"%{k}at = getelementptr i8, ptr %scratch, i64 {ENTERED + 8 * (len(self.levels) - 2)}",
                f"%{k}was = load i64, ptr %{k}at, align 8",
                f"%{k}new = icmp ne i64 %{k}was, %{k}id",
            ]
            with self._where(f"%{k}new", f"{k}n"):
                self._body(before)
                level.lines.append(f"store i64 %{k}id, ptr %{k}at, align 8")
        offset = 0
        for one in shared:
            own = self.b.fresh()
            level.lines.append(f"{own} = add i64 %{k}id, {offset}")
            self._span(one, (f"%{k}x", f"%{k}w"), offset, own)
            offset += one.loop.extent * parts_of(one)

    @contextmanager
    def _where(self, flag: str, name: str) -> Generator[None]:
        """What is spelled in this context runs where the flag holds; nothing remembered in it is known later.

        Accumulators that it changes are as before where the flag does not hold.
        """
        level = self.levels[-1]
        came, before = level.label, dict(self.registers)
        level.lines += [f"br i1 {flag}, label %{name}pre, label %{name}skip", f"{name}pre:"]
        memo, tiles = level.memo, self.tiles
        level.label, level.memo, self.tiles = f"{name}pre", {}, {}
        yield
        level.lines += [f"br label %{name}skip", f"{name}skip:"]
        for key, old in before.items():
            pairs = zip(old, self.registers[key], strict=True)
            self.registers[key] = tuple(self._either(value, came, new) for value, new in pairs)
        level.label, level.memo, self.tiles = f"{name}skip", memo, tiles

    def _either(self, value: Value, came: str, new: Value) -> Value:
        """The value as it was in the block `came`, or as it is in the block that ends here."""
        if new.text == value.text:
            return value
        level, name, kind = self.levels[-1], self.b.fresh(), llvm_type(value.dtype, value.lanes)
        level.lines.append(f"{name} = phi {kind} [ {value.text}, %{came} ], [ {new.text}, %{level.label} ]")
        return value._replace(text=name)

    def _body(self, body: Body) -> None:
        for stmt in body:
            self._stmt(stmt)

    def _stmt(self, stmt: Stmt) -> None:
        # What there is most of comes first.
        match stmt:
            case Let():
                self._let(stmt)
            case For():
                self._for(stmt)
            case Load():
                self.load(stmt)
            case Accumulate():
                self._accumulate(stmt)
            case Store():
                self.store(stmt)
            case Finish():
                self._finish(stmt)
            case Init(buffer, index, combine):
                self._init(buffer, index, combine)
            case Index(name, index, dtype):
                self.name(name, self.number(index, dtype))
            case Within(name, guard):
                self.name(name, self.within(guard))
            case Fetch():
                self.fetch(stmt)

    def _for(self, stmt: For) -> None:
        loop = stmt.loop
        if loop.extent == 0:
            return
        match loop.bind:
            case Bind.VECTOR:
                self._vector(stmt)
            case Bind.UNROLL:
                apart = any(f.loop.skip is not None for f in loops_of(stmt.body)) or self._reads_shifted(stmt)
                for value in range(loop.start, loop.start + loop.extent):
                    if apart and value > loop.start:
                        self._forget()
                    self._once(stmt, value)
            case Bind.SERIAL if loop.extent == 1:
                self._once(stmt, loop.start)
            case Bind.SERIAL:
                self._counted(stmt, str(loop.start), str(loop.start + loop.extent))
            case Bind.PARALLEL | Bind.SHARED:
                raise CompileError(f"{loop.bind.value} loop {loop.name} is not where it can be")

    def _reads_shifted(self, stmt: For) -> bool:
        """Whether terms of sums that fill the registers read what others of them read, as neighbors in a window do."""
        if 2 * len(self.registers) <= self.target.registers:
            return False
        inside = [f.loop for f in loops_of(stmt.body) if f.loop.bind is Bind.UNROLL]
        loads = [s for s in statements_of(stmt.body) if isinstance(s, Load)]
        return any(is_shifted(load, stmt.loop, inside) for load in loads)

    def _forget(self) -> None:
        """Read again what was read: it would be kept in registers that sums need."""
        level = self.levels[-1]
        level.memo = {
            key: known for key, known in level.memo.items() if not (isinstance(key, tuple) and key[0] == LOAD)
        }
        level.lines.append(f"call void asm sideeffect {_MEMORY_FENCE}()")

    def _once(self, stmt: For, value: int) -> None:
        loop = stmt.loop
        written_out = loop.extent if loop.bind is Bind.UNROLL and not loop.start else 0
        depth = len(self.levels) - 1
        self.variables[loop.name] = Variable(start=value, depth=depth, written_out=written_out)
        self._iteration(stmt)
        del self.variables[loop.name]

    def _iteration(self, stmt: For) -> None:
        """The body of a loop for one value of its variable, in a branch where it may be left out."""
        skip = stmt.loop.skip
        within = self.within(skip.guard) if skip is not None else None
        if skip is None or within is None or within.value.text == "true":
            self._body(stmt.body)
            return
        counts = self.named[skip.unless]
        value = counts.value
        if within.value.text != "false":
            value = self.b.bit_or(within.value, value)
            self.flush(max(within.depth, counts.depth))
        with self._where(value.text, self._label("s")):
            self._body(stmt.body)

    def _vector(self, stmt: For) -> None:
        loop = stmt.loop
        if self.vector is not None:
            raise CompileError(f"vector loop {loop.name} inside a vector loop")
        self.vector = Variable(loop.start, None, loop.lanes, loop.extent, len(self.levels) - 1, loop.extent)
        self.variables[loop.name] = self.vector
        self.b.lanes = loop.lanes
        self._body(stmt.body)
        del self.variables[loop.name]
        self.vector, self.b.lanes = None, 1

    def _counted(self, stmt: For, start: str, stop: str, body: Callable[[], None] | None = None) -> None:
        """A loop that runs at least once; accumulators it changes travel in phis. `body` spells its body, if given."""
        k = self._label("l")
        outer = self.levels[-1]
        if 4 * self.finished > self.target.registers and not self.registers:
            # LLVM brings the constants of this loop to before all loops around it, and keeps them in registers while
            # sums run that need all of these: every product would go through memory.
            outer.lines.append(_released(self.target))
        self.finished = 0
        changed = {s.buffer for s in statements_of(stmt.body) if isinstance(s, Accumulate)}
        carried = {key: acc for key, acc in self.registers.items() if key[0] in changed}
        phis: dict[tuple[str, int], tuple[str, ...]] = {}
        for key, acc in carried.items():
            names = tuple(self.b.fresh() for _ in acc)
            phis[key] = names
            self.registers[key] = tuple(v._replace(text=n) for v, n in zip(acc, names, strict=True))
        inner = Level(k, f"%{k}i")
        self.levels.append(inner)
        self.variables[stmt.loop.name] = Variable(
            stmt.loop.start, f"%{k}i", depth=len(self.levels) - 1, extent=stmt.loop.extent
        )
        if body is None:
            self._iteration(stmt)
        else:
            body()
        del self.variables[stmt.loop.name]
        self.levels.pop()
        head = [f"%{k}i = phi i64 [ {start}, %{outer.label} ], [ %{k}n, %{inner.label} ]"]
        for key, acc in carried.items():
            for name, before, after in zip(phis[key], acc, self.registers[key], strict=True):
                kind = llvm_type(before.dtype, before.lanes)
                head.append(f"{name} = phi {kind} [ {before.text}, %{outer.label} ], [ {after.text}, %{inner.label} ]")
        moving, places, steps = self._movements(outer, inner, start)
        outer.lines += [f"br label %{k}", f"{k}:", *head, *moving, *places, *inner.lines, *steps]
        outer.lines += [
            f"%{k}n = add i64 %{k}i, 1",
            f"%{k}c = icmp slt i64 %{k}n, {stop}",
            f"br i1 %{k}c, label %{k}, label %{k}x",
            f"{k}x:",
        ]
        outer.label = f"{k}x"

    def _movements(self, outer: Level, inner: Level, start: str) -> tuple[list[str], list[str], list[str]]:
        """How the addresses that move with a loop begin, where those are that move alike, and how they go on."""
        alike: dict[int, list[tuple[str, str]]] = {}
        for (base, step), name in inner.moving.items():
            alike.setdefault(step, []).append((base, name))
        phis: list[str] = []
        places: list[str] = []
        steps: list[str] = []
        for step, addresses in alike.items():
            first = str(int(start) * step) if start.isdecimal() else self.b.fresh()
            if not start.isdecimal():
                outer.lines.append(f"{first} = mul i64 {start}, {step}")
            if len(addresses) > 1 and len(inner.moving) > MOST_POINTERS:
                offset, following = self.b.fresh(), self.b.fresh()
                phis.append(f"{offset} = phi i64 [ {first}, %{outer.label} ], [ {following}, %{inner.label} ]")
                places += [f"{name} = getelementptr i8, ptr {base}, i64 {offset}" for base, name in addresses]
                steps.append(f"{following} = add i64 {offset}, {step}")
                continue
            for base, name in addresses:
                begin, following = base, self.b.fresh()
                if first != "0":
                    begin = self.b.fresh()
                    outer.lines.append(f"{begin} = getelementptr i8, ptr {base}, i64 {first}")
                phis.append(f"{name} = phi ptr [ {begin}, %{outer.label} ], [ {following}, %{inner.label} ]")
                # What nothing else needs any more moves without a copy.
                same = inner.memo.get(opaque_key(name))
                last = name if same is None else same.value.text
                steps.append(f"{following} = getelementptr i8, ptr {last}, i64 {step}")
        return phis, places, steps

    def _let(self, stmt: Let) -> None:
        if stmt.op == "const":
            literal = dict(stmt.attrs)["value"].array
            value = (
                self.b.const_bits(stmt.dtype, int(literal.view(f"u{literal.dtype.itemsize}")))
                if stmt.dtype.is_float
                else self.b.const(stmt.dtype, literal.item())
            )
            self.name(stmt.name, Named(value, 0))
            return
        args = [self.named[a] for a in stmt.args]
        if stmt.op == "check_index":
            self._check_index(stmt, args[0])
            return
        key = (stmt.op, tuple(a.value for a in args), stmt.attrs)
        if (found := self.remembered(key)) is not None:
            self.name(stmt.name, found)
            return
        lanes, depth = 1, 0
        for arg in args:
            lanes, depth = max(lanes, arg.value.lanes), max(depth, arg.depth)
        level = self.place(depth, lanes)
        values = [a.value if lanes == 1 else self.in_lanes(a.value) for a in args]
        value = spell(self.b, stmt.op, *values, **dict(stmt.attrs))
        self.flush(level)
        self.name(stmt.name, self.remember(level, key, value))

    def _check_index(self, stmt: Let, arg: Named) -> None:
        """Wrap negative indices; note an index out of range in the status word and read element 0 instead."""
        b = self.b
        x = b.astype(arg.value, stmt.dtype)
        extent = b.const(x.dtype, dict(stmt.attrs)["extent"])
        zero = b.const(x.dtype, 0)
        if x.dtype.kind == "i":
            x = b.select(b.compare("lt", x, zero), b.add(x, extent), x)
        good = b.compare("lt", x, extent)
        if x.dtype.kind == "i":
            good = b.bit_and(good, b.compare("ge", x, zero))
        bad = b.bit_not(good)
        if bad.lanes > 1:
            bad = self.masked_flag(bad)
            name = b.fresh()
            self.declare(f"declare i1 @llvm.vector.reduce.or.v{bad.lanes}i1(<{bad.lanes} x i1>)")
            b.lines.append(f"{name} = call i1 @llvm.vector.reduce.or.v{bad.lanes}i1(<{bad.lanes} x i1> {bad.text})")
            bad = Value(name, bool_, 1)
        spot = b.fresh()
        # Writing the code where nothing reads it is cheaper than a branch.
        b.lines.append(f"{spot} = select i1 {bad.text}, ptr %status, ptr %scratch")
        b.lines.append(f"store i64 1, ptr {spot}, align 8")
        safe = b.select(good, x, zero)
        level = len(self.levels) - 1
        self.flush(level)
        self.name(stmt.name, Named(safe, level))

    # Accumulators

    def _register(self, buffer: str, index: Affine) -> tuple[str, int]:
        """The register of an accumulator: its index must be a constant, or run along the lanes."""
        const, uniform, _, vectors = self.parts(index)
        if uniform or vectors:
            raise CompileError(f"accumulator {buffer}[{index}] is not a register: unroll {uniform or vectors}")
        return buffer, const

    def _init(self, buffer: str, index: Affine, combine: str) -> None:
        dtype = self.buffers[buffer].dtype
        lanes = self.vector.lanes if self.vector is not None else self.acc_lanes.get(buffer, 1)
        acc = tuple(_lanes_of(value, lanes) for value in beginning(self.b, combine, dtype))
        self.registers[self._register(buffer, index)] = acc

    def _accumulate(self, stmt: Accumulate) -> None:
        b, key = self.b, self._register(stmt.buffer, stmt.index)
        acc = self.registers[key]
        args = [self.named[a].value for a in stmt.args]
        lanes = acc[0].lanes
        outer_lanes, b.lanes = b.lanes, lanes
        args = [self.in_lanes(a) for a in args]
        new = combined(b, stmt.combine, acc, tuple(args))
        if (
            self.vector is not None
            and self.vector.active < self.vector.lanes
            and self.acc_lanes.get(stmt.buffer, 1) > 1
        ):
            mask = Value(self.mask(), bool_, lanes)
            new = tuple(b.select(mask, n, old) for n, old in zip(new, acc, strict=True))
        level = len(self.levels) - 1
        if stmt.name is not None:
            self.name(stmt.name, Named(result(b, stmt.combine, new), level))
        b.lanes = outer_lanes
        self.flush(level)
        self.registers[key] = new

    def _finish(self, stmt: Finish) -> None:
        key = self._register(stmt.buffer, stmt.index)
        acc = self.registers.pop(key)
        self.finished += len(acc)
        if self.vector is None:
            while acc[0].lanes > 1:
                acc = self._halve(stmt.combine, acc)
        value = result(self.b, stmt.combine, acc)
        level = len(self.levels) - 1
        self.flush(level)
        self.name(stmt.name, Named(value, level))

    def _halve(self, combine: str, acc: Accumulator) -> Accumulator:
        """Combine the upper half of the lanes into the lower one."""
        b, lanes = self.b, acc[0].lanes
        half = lanes // 2
        low = tuple(self.b.part(v, 0, half) for v in acc)
        high = tuple(self.b.part(v, half, half) for v in acc)
        outer, b.lanes = b.lanes, half
        if combine == "fma":
            out = (spell(b, "add", low[0], high[0]),)
        elif combine in ("argmax", "argmin"):
            out = better(b, combine, low, high, ties=True)
        else:
            out = combined(b, combine, low, high)
        b.lanes = outer
        return out


def _released(target: Target) -> str:
    """A line after which no vector register holds what it held before."""
    machine = target.triple.partition("-")[0]
    prefix = {16: "xmm", 32: "ymm", 64: "zmm"}[target.vector_bytes] if machine == "x86_64" else "v"
    return f'call void asm sideeffect "", "{",".join(f"~{{{prefix}{k}}}" for k in range(target.registers))}"()'


def _lanes_of(value: Value, lanes: int) -> Value:
    """A literal in every lane."""
    if lanes == 1:
        return value
    return Value(f"splat ({llvm_type(value.dtype, 1)} {value.text})", value.dtype, lanes)


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
