"""A check of loop programs: what the emitter and every schedule step rely on, said of each statement."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

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
    Skip,
    Space,
    Stmt,
    Store,
    Within,
    loops_of,
    run_on,
    shared_in,
    statements_of,
)
from codegen.loop_print import kernel_text
from codegen.stream import is_whole
from symgrad.errors import CompileError, SymgradError
from symgrad.opdef import OPS, Kind
from symgrad.record import record
from symgrad.types import DType, Type, bool_, int64

# How many values each combination takes.
COMBINATIONS: Mapping[str, int] = {
    "sum": 1, "prod": 1, "max": 1, "min": 1, "any": 1, "all": 1, "fma": 2, "argmax": 2, "argmin": 2,
    "cumulative_sum": 1, "cumulative_prod": 1, "cumulative_max": 1, "cumulative_min": 1, "linear_recurrence": 2,
}  # fmt: skip


@record
class Known:
    """What is known of a named value: its data type, and whether it differs between the lanes of the vector loop."""

    dtype: DType
    varies: bool


def verify(kernel: Kernel) -> None:
    """Check a kernel, naive or scheduled; one with a parallel loop counts as scheduled.

    CompileError names the first statement at which something is wrong: a name or buffer that is not there, a data
    type, an index that can leave its buffer, an accumulator that is not open, a loop where it cannot be.
    """
    _Verifier(kernel).check()


def stmt_text(stmt: Stmt) -> str:
    """The first line of a statement's text."""
    return kernel_text(Kernel((), (), (stmt,))).splitlines()[1].strip()


def gathered_lanes(body: Body) -> dict[str, int]:
    """The accumulators that gather over a vector loop, with its lanes: they hold one partial result in each."""
    lanes: dict[str, int] = {}
    for outer in loops_of(body):
        if outer.loop.bind is not Bind.VECTOR:
            continue
        for stmt in statements_of(outer.body):
            if isinstance(stmt, Accumulate) and not stmt.index.factor(outer.loop.name):
                lanes[stmt.buffer] = max(lanes.get(stmt.buffer, 1), outer.loop.lanes)
    return lanes


@dataclass(slots=True)
class Tile:
    """What a tile in registers holds: rows of `width` places by their first place, with how many lanes they have.

    `around` are the loops it was filled in that are not written out.
    """

    width: int
    around: tuple[str, ...]
    rows: dict[int, int]


class _Verifier:
    """The state of one walk in program order: each loop's body is visited once."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.buffers = {b.name: b for b in kernel.params + kernel.locals}
        self.scheduled = any(f.loop.bind is Bind.PARALLEL for f in loops_of(kernel.body))
        self.gathered = gathered_lanes(kernel.body)
        self.loops: dict[str, Loop] = {}
        self.ranges: dict[str, tuple[int, int]] = {}
        self.names: dict[str, Known] = {}
        self.vector: Loop | None = None
        self.open: set[tuple[str, int]] = set()
        self.stored: set[str] = set()
        self.tiles: dict[str, Tile] = {}

    def check(self) -> None:
        buffers = self.kernel.params + self.kernel.locals
        if len(self.buffers) != len(buffers):
            raise CompileError(f"loop program: two buffers have one name: {', '.join(b.name for b in buffers)}")
        for stmt in self.kernel.body:
            if self.scheduled and not (isinstance(stmt, For) and stmt.loop.bind is Bind.PARALLEL):
                _fail(stmt, "the outermost statements of a scheduled kernel must be parallel loops")
            self._stmt(stmt)
        for buffer in self.kernel.params:
            if buffer.written and buffer.size and buffer.name not in self.stored:
                raise CompileError(
                    f"loop program: parameter {buffer.name} is to be written, and nothing is stored to it"
                )

    def _stmt(self, stmt: Stmt) -> None:
        match stmt:
            case For():
                self._loop(stmt)
            case Let():
                self._let(stmt)
            case Index(name, index, dtype):
                self._variables(stmt, index)
                self._define(stmt, name, dtype, self._varies(index))
            case Load():
                self._load(stmt)
            case Within(name, guard):
                if not guard:
                    _fail(stmt, "there is no guard")
                for one in guard:
                    self._variables(stmt, one)
                self._define(stmt, name, bool_, any(map(self._varies, guard)))
            case Store():
                self._store(stmt)
            case Fetch(buffer, index):
                self._variables(stmt, index)
                if self._buffer(stmt, buffer).space is not Space.GLOBAL:
                    _fail(stmt, f"{buffer} is not in memory")
            case Init() | Accumulate() | Finish():
                self._accumulator(stmt)

    # Loops

    def _loop(self, stmt: For) -> None:
        loop = stmt.loop
        if loop.name in self.loops or loop.name in self.names:
            _fail(stmt, f"{loop.name} is the name of something outside")
        if loop.extent < 0 or loop.start < 0:
            _fail(stmt, "the extent or start is negative")
        if loop.bind is Bind.PARALLEL and self.loops:
            _fail(stmt, "a parallel loop must be outermost")
        around = next(reversed(self.loops.values()), None)
        if loop.bind is Bind.SHARED and (around is None or around.bind not in (Bind.PARALLEL, Bind.SHARED)):
            _fail(stmt, "a shared loop must stand directly in a parallel or shared one")
        if shared := shared_in(stmt):
            self._divided(stmt, shared)
        if loop.bind is Bind.VECTOR:
            self._vector_loop(stmt)
        elif loop.lanes:
            _fail(stmt, "only a vector loop has lanes")
        if not loop.extent:
            return
        names, before, stored = dict(self.names), set(self.open), set(self.stored)
        if loop.bind is Bind.PARALLEL:
            self.stored -= {b.name for b in self.kernel.locals}
        self.loops[loop.name] = loop
        self.ranges[loop.name] = (loop.start, loop.start + loop.extent - 1)
        if loop.skip is not None:
            self._skip(stmt, loop.skip)
        for inner in stmt.body:
            self._stmt(inner)
        del self.loops[loop.name], self.ranges[loop.name]
        self.names = names
        if loop.bind is Bind.SHARED:
            # Another worker may run another iteration, with scratch memory of its own.
            self.stored -= {b.name for b in self.kernel.locals} - stored
        if not _is_fixed(loop):
            self.tiles = {name: tile for name, tile in self.tiles.items() if loop.name not in tile.around}
        if loop.bind is Bind.VECTOR:
            self.vector = None
        repeats = loop.extent > 1 and loop.bind in (Bind.SERIAL, Bind.PARALLEL, Bind.SHARED)
        if self.scheduled and repeats and self.open != before:
            changed = sorted({buffer for buffer, _ in self.open ^ before})
            _fail(stmt, f"the loop opens or finishes {', '.join(changed)} for what is outside of it")

    def _skip(self, stmt: For, skip: Skip) -> None:
        """What may be left out does nothing but add to sums, and all lanes leave out the same."""
        if not skip.guard or stmt.loop.bind not in (Bind.SERIAL, Bind.UNROLL) or self.vector is not None:
            _fail(stmt, "iterations cannot be left out")
        for one in skip.guard:
            self._variables(stmt, one)
        unless = self._known(stmt, skip.unless)
        if unless.dtype is not bool_ or unless.varies or any(map(self._varies, skip.guard)):
            _fail(stmt, f"{skip.unless} is {unless.dtype}, or not the same in all lanes")
        for one in statements_of(stmt.body):
            if not isinstance(one, Accumulate | Load | Let | Index | Within | Fetch):
                _fail(one, f"iterations of {stmt.loop.name} may be left out, and this is more than a sum")

    def _divided(self, stmt: For, shared: list[For]) -> None:
        before = stmt.body[: -len(shared)]
        if stmt.body[len(before) :] != tuple(shared) or not all(isinstance(s, For) for s in before):
            _fail(stmt, "only loops can stand beside shared ones, and only before them")
        for one in statements_of(before):
            if isinstance(one, Store) and self._buffer(one, one.buffer).space is Space.GLOBAL:
                _fail(one, "several workers do what stands before shared loops: it may store to their own memory only")
        if not run_on(shared):
            _fail(stmt, "shared loops must run on where the one before ends")

    def _vector_loop(self, stmt: For) -> None:
        loop = stmt.loop
        if self.vector is not None:
            _fail(stmt, f"a vector loop inside the vector loop {self.vector.name}")
        if loop.lanes < max(loop.extent, 1) or loop.lanes & (loop.lanes - 1):
            _fail(stmt, f"{loop.lanes} lanes for {loop.extent} values: lanes are a power of two, and enough")
        self.vector = loop

    # Values

    def _define(self, stmt: Stmt, name: str, dtype: DType, varies: bool) -> None:
        if name in self.names or name in self.loops:
            _fail(stmt, f"{name} is defined already")
        self.names[name] = Known(dtype, varies)

    def _known(self, stmt: Stmt, name: str) -> Known:
        if name not in self.names:
            _fail(stmt, f"{name} is not defined here")
        return self.names[name]

    def _let(self, stmt: Let) -> None:
        args = [self._known(stmt, a) for a in stmt.args]
        wanted = self._result(stmt, [a.dtype for a in args])
        if wanted is not stmt.dtype:
            _fail(stmt, f"the result is {wanted}")
        self._define(stmt, stmt.name, stmt.dtype, any(a.varies for a in args))

    def _result(self, stmt: Let, args: list[DType]) -> DType:
        attrs = dict(stmt.attrs)
        if stmt.op == "const":
            if "value" not in attrs or attrs["value"].array.ndim or args:
                _fail(stmt, "a constant has a 0-dimensional value and no arguments")
            return stmt.dtype if attrs["value"].array.dtype == stmt.dtype.np else bool_
        if stmt.op == "fma":
            if len(args) != 3 or len(set(args)) != 1 or not args[0].is_float:
                _fail(stmt, f"fma of {args}")
            return args[0]
        op = OPS.get(stmt.op)
        if op is None or op.kind is not Kind.POINTWISE:
            _fail(stmt, f"{stmt.op} is no pointwise operator")
        try:
            return op.infer(*(Type((), a) for a in args), **attrs).dtype
        except (SymgradError, TypeError) as error:
            _fail(stmt, str(error))

    def _load(self, stmt: Load) -> None:
        buffer = self._memory(stmt, stmt.buffer)
        if buffer.dtype is not stmt.dtype:
            _fail(stmt, f"{buffer.name} holds {buffer.dtype}")
        if buffer.space is Space.SCRATCH and buffer.name not in self.stored:
            _fail(stmt, f"nothing was stored to {buffer.name} before")
        for one in stmt.guard:
            self._variables(stmt, one)
        self._inside(stmt, stmt.index, buffer, stmt.guard)
        if buffer.space is Space.TILE:
            self._load_column(stmt)
        self._define(stmt, stmt.name, stmt.dtype, any(map(self._varies, (stmt.index, *stmt.guard))))

    def _store(self, stmt: Store) -> None:
        buffer = self._memory(stmt, stmt.buffer)
        value = self._known(stmt, stmt.value)
        if buffer.space is Space.GLOBAL and not buffer.written:
            _fail(stmt, f"{buffer.name} is only read")
        if value.dtype is not buffer.dtype:
            _fail(stmt, f"{buffer.name} holds {buffer.dtype}, {stmt.value} is {value.dtype}")
        self._inside(stmt, stmt.index, buffer, ())
        if value.varies and not self._varies(stmt.index):
            _fail(stmt, f"{stmt.value} has a value per lane, and the index is the same in all")
        if buffer.space is Space.TILE:
            self._store_row(stmt)
        if stmt.past_caches and not is_whole(stmt, self.vector, buffer.dtype.itemsize):
            _fail(stmt, "only whole aligned vectors go past the caches")
        self.stored.add(buffer.name)

    def _store_row(self, stmt: Store) -> None:
        vector, places = self._places(stmt)
        tile = self.tiles.get(stmt.buffer)
        if tile is None or tile.width != vector.lanes or tile.around != self._around():
            tile = self.tiles[stmt.buffer] = Tile(vector.lanes, self._around(), {})
        if stmt.index.factor(vector.name) != 1 or any(place % vector.lanes for place in places):
            _fail(stmt, f"the rows of {stmt.buffer} run along the lanes")
        tile.rows |= dict.fromkeys(places, vector.extent)

    def _load_column(self, stmt: Load) -> None:
        vector, places = self._places(stmt)
        tile = self.tiles.get(stmt.buffer)
        if tile is None or tile.around != self._around():
            _fail(stmt, f"{stmt.buffer} was not stored in the loops around this")
        if stmt.guard or stmt.index.factor(vector.name) != tile.width:
            _fail(stmt, f"the columns of {stmt.buffer} run along the lanes")
        for place in places:
            row, column = place // tile.width * tile.width, place % tile.width
            if any(column >= tile.rows.get(row + k * tile.width, 0) for k in range(vector.extent)):
                _fail(stmt, f"not all of column {column} was stored to {stmt.buffer}")

    def _places(self, stmt: Load | Store) -> tuple[Loop, set[int]]:
        """The vector loop around an access to a tile, and the places of its first lane over the other loops."""
        if self.vector is None:
            _fail(stmt, f"{stmt.buffer} is a tile, and there are no lanes")
        values: list[list[int]] = []
        for name, factor in stmt.index.terms:
            loop = self.loops.get(name)
            if loop is None or not _is_fixed(loop):
                _fail(stmt, f"a tile is in registers, and {name} is not written out")
            if loop is not self.vector:
                values.append([factor * (loop.start + k) for k in range(loop.extent)])
        start = stmt.index.const + stmt.index.factor(self.vector.name) * self.vector.start
        return self.vector, {start + sum(one) for one in itertools.product(*values)}

    def _around(self) -> tuple[str, ...]:
        return tuple(name for name, loop in self.loops.items() if not _is_fixed(loop))

    def _memory(self, stmt: Stmt, name: str) -> Buffer:
        buffer = self._buffer(stmt, name)
        if buffer.space is Space.REG:
            _fail(stmt, f"{name} is an accumulator")
        return buffer

    def _buffer(self, stmt: Stmt, name: str) -> Buffer:
        if name not in self.buffers:
            _fail(stmt, f"there is no buffer {name}")
        return self.buffers[name]

    # Indices

    def _variables(self, stmt: Stmt, index: Affine) -> None:
        """Every variable of an index is a loop around it, or a named integer."""
        for name, _ in index.terms:
            if name in self.loops:
                continue
            if (tile := tile_of(name)) is not None:
                self._tile(stmt, name, tile.loop)
            elif not self._known(stmt, name).dtype.is_integer:
                _fail(stmt, f"{name} is {self.names[name].dtype}, and an index must be an integer")

    def _tile(self, stmt: Stmt, name: str, loop: str) -> None:
        if self.scheduled:
            _fail(stmt, f"no split has resolved the tile variable {name}")
        if loop not in self.loops:
            _fail(stmt, f"{loop} is not defined here")

    def _varies(self, index: Affine) -> bool:
        if self.vector is None:
            return False
        own = self.vector.name
        return any(n == own or (n in self.names and self.names[n].varies) for n, _ in index.terms)

    def _inside(self, stmt: Stmt, index: Affine, buffer: Buffer, guards: Iterable[Affine]) -> None:
        self._variables(stmt, index)
        guards = tuple(guards)
        ranges = {**self.ranges, **self._tile_ranges((index, *guards))}
        high = highest(index, guards, ranges)
        low = highest(index * -1, guards, ranges)
        if high is not None and low is not None and (low > 0 or high >= buffer.size):
            _fail(stmt, f"the index runs from {-low} to {high}, and {buffer.name} has {buffer.size} elements")

    def _tile_ranges(self, indices: Iterable[Affine]) -> dict[str, tuple[int, int]]:
        out: dict[str, tuple[int, int]] = {}
        for name in {n for index in indices for n, _ in index.terms}:
            tile = tile_of(name)
            if tile is not None and tile.loop in self.ranges:
                low, high = self.ranges[tile.loop]
                out[name] = (tile.of(low), tile.of(high)) if tile.is_quotient else (0, min(high, tile.size - 1))
        return out

    # Accumulators

    def _accumulator(self, stmt: Init | Accumulate | Finish) -> None:
        buffer = self._buffer(stmt, stmt.buffer)
        if buffer.space is not Space.REG:
            _fail(stmt, f"{buffer.name} is not an accumulator")
        if stmt.combine not in COMBINATIONS:
            _fail(stmt, f"there is no combination {stmt.combine}")
        self._inside(stmt, stmt.index, buffer, ())
        registers = self._registers(stmt)
        places = stmt.combine in ("argmax", "argmin")
        if isinstance(stmt, Init):
            if registers & self.open:
                _fail(stmt, "the accumulator is open already")
            self.open |= registers
            return
        if not registers <= self.open:
            _fail(stmt, "the accumulator is not open: there is no init before, or it is finished")
        if isinstance(stmt, Finish):
            self.open -= registers
            wanted = int64 if places else buffer.dtype
            if stmt.dtype is not wanted:
                _fail(stmt, f"the result is {wanted}")
            self._define(stmt, stmt.name, stmt.dtype, self.vector is not None)
            return
        args = [self._known(stmt, a) for a in stmt.args]
        if len(args) != COMBINATIONS[stmt.combine]:
            _fail(stmt, f"{stmt.combine} takes {COMBINATIONS[stmt.combine]} values")
        for position, arg in enumerate(args):
            wanted = int64 if places and position == 1 else buffer.dtype
            if arg.dtype is not wanted:
                _fail(stmt, f"{stmt.args[position]} is {arg.dtype}, wanted {wanted}")
        if stmt.name is None:
            return
        if stmt.buffer in self.gathered:
            _fail(stmt, f"{stmt.buffer} gathers over the lanes and has no running value")
        self._define(stmt, stmt.name, buffer.dtype, self.vector is not None)

    def _registers(self, stmt: Init | Accumulate | Finish) -> set[tuple[str, int]]:
        """The registers a statement stands for over the loops around it. Lanes count as one."""
        inside = self.vector is not None
        by_lane = inside and self.vector is not None and bool(stmt.index.factor(self.vector.name))
        if stmt.buffer in self.gathered and inside is not isinstance(stmt, Accumulate) and not isinstance(stmt, Init):
            where = "in" if inside else "outside of"
            _fail(stmt, f"{stmt.buffer} gathers over the lanes, and this is {where} a vector loop")
        if inside and not by_lane and stmt.buffer not in self.gathered:
            _fail(stmt, f"{stmt.buffer} does not differ between the lanes")
        values: list[list[int]] = []
        for name, factor in stmt.index.terms:
            loop = self.loops.get(name)
            if loop is None or (self.scheduled and not _is_fixed(loop)):
                _fail(stmt, f"an accumulator must be a register, and {name} is not written out")
            extent = 1 if loop.bind is Bind.VECTOR else loop.extent
            values.append([factor * (loop.start + k) for k in range(extent)])
        return {(stmt.buffer, stmt.index.const + sum(one)) for one in itertools.product(*values)}


def _is_fixed(loop: Loop) -> bool:
    """Whether a loop is written out, so that its variable is a number wherever it stands."""
    return loop.bind in (Bind.UNROLL, Bind.VECTOR) or (loop.extent == 1 and loop.bind is Bind.SERIAL)


def highest(index: Affine, guards: Iterable[Affine], ranges: Mapping[str, tuple[int, int]]) -> int | None:
    """An upper bound of an index where every guard is at least 0; None when a variable has no known range.

    Adding a multiple of a guard can only raise the index there, and cancels the variables they share. Guards that
    contradict each other would lower the bound for ever, so only as many steps are taken as guards can help with.
    """
    span = index.range(ranges)
    if span is None:
        return None
    guards = tuple(guards)
    for _ in range(4 * len(guards)):
        raised = [(bound[1], k, one) for k, one in enumerate(_raised(index, guards)) if (bound := one.range(ranges))]
        best = min(raised, default=None, key=lambda one: one[:2])
        if best is None or best[0] >= span[1]:
            break
        index, span = best[2], (0, best[0])
    return span[1]


def _raised(index: Affine, guards: Iterable[Affine]) -> Iterator[Affine]:
    """The index with a multiple of one guard added that cancels a variable."""
    for guard in guards:
        for name, factor in guard.terms:
            own = index.factor(name)
            if own * factor < 0 and own % factor == 0:
                yield index + guard * (-own // factor)


def _fail(stmt: Stmt, why: str) -> NoReturn:
    raise CompileError(f"loop program: {why}: {stmt_text(stmt)}")
