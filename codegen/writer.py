"""How memory is read and written, while a kernel is spelled as LLVM text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from codegen.addressing import Addressing, Level, Named
from codegen.loop import Accumulate, Fetch, Kernel, Load, Space, Store, statements_of
from codegen.scalar_builder import Value, memory_type
from codegen.shuffles import interleaved, transposed
from codegen.target import CACHE_LINE, Target
from symgrad.errors import CompileError
from symgrad.types import DType, bool_, float32, float64, int64, uint8

SCRATCH_ALIGNMENT = 64
# Where in scratch memory stands which iteration of a divided loop a worker came to last: one word for a parallel loop,
# one for shared loops in it, and so on.
ENTERED = 8
DIVIDED_LEVELS = 2
# What keys of remembered loads begin with.
LOAD = "load"
# Lanes at most this many elements apart are read as whole vectors and shuffled.
MAX_SHUFFLED = 4
# Lanes this many elements apart are stored together with what comes between them, where one kernel stores all.
INTERLEAVED = (2, 4)
# Vectors of a tile up to which each reads elements of some rows for itself.
MOST_READING = 3


@dataclass(slots=True)
class Tile:
    """Rows in registers by their first place, and columns of them by first row and lanes, once one was asked for.

    The registers are known in the block `level`. `whole` says that all of their lanes were stored.
    """

    level: Level
    whole: bool = True
    rows: dict[int, Value] = field(default_factory=dict[int, Value])
    columns: dict[tuple[int, int], list[Value]] = field(default_factory=dict[tuple[int, int], list[Value]])


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


class Writer(Addressing):
    """Loads, fetches and stores of one kernel under construction."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        super().__init__(kernel, target)
        self.tiles: dict[str, Tile] = {}
        self.beside: dict[object, list[Value]] = {}  # what is to be stored between the lanes of each other
        self.streaming = False  # whether stores that may go past the caches do
        sums = (s for s in statements_of(kernel.body) if isinstance(s, Accumulate))
        self.places = frozenset(name for s in sums for name, _ in s.index.terms)  # the loops that number sums

    def load(self, stmt: Load) -> None:
        buffer = self.buffers[stmt.buffer]
        const, uniform, stride, vectors = self.parts(stmt.index)
        if buffer.space is Space.TILE:
            self._load_column(stmt, const, stride)
            return
        frozen = buffer.space is Space.GLOBAL and not buffer.written
        guard = self.within(stmt.guard) if stmt.guard else None
        if guard is not None and guard.value.text == "true":
            guard = None
        elif guard is not None and guard.value.text == "false":
            zero = self.b.from_memory(self.b.const(_memory_dtype(buffer.dtype), 0), stmt.dtype)
            self.flush(0)
            self.name(stmt.name, Named(zero, 0))
            return
        lanes = self.vector.lanes if self.vector is not None and (stride or vectors) else 1
        if guard is not None:
            lanes = max(lanes, guard.value.lanes)
        copy = self._reading_again(stmt) if lanes == 1 and self.registers else 0
        pointer = self.pointer(stmt.buffer, const, uniform, buffer.dtype.itemsize, copy)
        active = self.vector.active if self.vector is not None and lanes > 1 else 1
        condition = guard.value.text if guard is not None else ""
        key = (LOAD, stmt.buffer, pointer.value.text, lanes, active, stride, tuple(vectors), condition)
        if frozen and (found := self.remembered(key)) is not None:
            self.name(stmt.name, found)
            return
        if lanes == 1:
            depth = max(pointer.depth, guard.depth if guard is not None else 0)
            level = depth if frozen else len(self.levels) - 1
            value = self._load_one(buffer.dtype, pointer.value.text, stmt.buffer, guard)
        else:
            level = len(self.levels) - 1
            value = self._load_lanes(stmt.buffer, pointer.value.text, stride, vectors, guard)
        value = self.b.from_memory(value, stmt.dtype)
        self.flush(level)
        named = self.remember(level, key, value) if frozen else Named(value, level)
        self.name(stmt.name, named)

    def _reading_again(self, stmt: Load) -> int:
        """By the how manyth vector of a tile an element is read that each reads for itself; else 0.

        A multiply-add that reads it from memory spares an instruction and takes a read more: some rows of a tile do, so
        that there is room for both.
        """
        if not self.target.spreads or stmt.guard or stmt.dtype not in (float32, float64):
            return 0
        along = {name for name, _ in stmt.index.terms}
        tile = [(n in along, v) for n, v in self.variables.items() if n in self.places and v.written_out > 1]
        rows, columns = [v for mine, v in tile if mine], [v for mine, v in tile if not mine]
        if len(rows) != 1 or len(columns) != 1 or columns[0].written_out > MOST_READING:
            return 0
        every = columns[0].written_out
        return columns[0].start if rows[0].start % every == every - 1 else 0

    def _load_column(self, stmt: Load, const: int, width: int) -> None:
        """A column of a tile; the first one turns all rows."""
        assert self.vector is not None
        tile, lanes = self.tiles[stmt.buffer], self.vector.lanes
        row, column = divmod(const, width)
        if (row, lanes) not in tile.columns:
            rows = [tile.rows.get((row + k) * width) for k in range(lanes)]
            tile.columns[row, lanes] = transposed(self.b, rows, lanes, whole=tile.whole)
        value = self.b.from_memory(tile.columns[row, lanes][column], stmt.dtype)
        level = len(self.levels) - 1
        self.flush(level)
        self.name(stmt.name, Named(value, level))

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
                self.declare(f"declare {kind} @llvm.masked.load.{suffix}.p0(ptr, i32, <{v.lanes} x i1>, {kind})")
                b.lines.append(
                    f"{name} = call {kind} @llvm.masked.load.{suffix}.p0(ptr {pointer}, i32 {dtype.itemsize}, "
                    f"<{v.lanes} x i1> {mask}, {kind} zeroinitializer)"
                )
                return Value(name, memory, v.lanes)
        if guard is None and not vectors and self._is_shuffled(stride):
            return Value(self._load_shuffled(kind, pointer, stride, dtype.itemsize), memory, v.lanes)
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

    def _is_shuffled(self, stride: int) -> bool:
        """Whether lanes at this distance are read as whole vectors: few, and none that reaches beyond the last lane."""
        assert self.vector is not None
        return (stride == -1 or 1 < stride <= MAX_SHUFFLED) and abs(stride) * (
            self.vector.active - 1
        ) >= self.vector.lanes - 1

    def _load_shuffled(self, kind: str, pointer: str, stride: int, itemsize: int) -> str:
        """Elements at a small constant distance: whole vectors between the first and the last one, and shuffles."""
        assert self.vector is not None
        b, lanes, active = self.b, self.vector.lanes, self.vector.active
        first, last = sorted((0, stride * (active - 1)))
        starts = [min(first + k * lanes, last - lanes + 1) for k in range(abs(stride))]
        joined = "poison"
        done = 0  # lanes that stand in `joined`
        for start in starts:
            spot, part, shuffled = b.fresh(), b.fresh(), b.fresh()
            reached = done
            picks = list(range(done))
            while reached < active and start <= reached * stride < start + lanes:
                picks.append((lanes if done else 0) + reached * stride - start)
                reached += 1
            places = ", ".join(f"i32 {p}" for p in picks) + ", i32 poison" * (lanes - len(picks))
            operands = f"{kind} {joined}, {kind} {part}" if done else f"{kind} {part}, {kind} poison"
            b.lines += [
                f"{spot} = getelementptr i8, ptr {pointer}, i64 {start * itemsize}",
                f"{part} = load {kind}, ptr {spot}, align {itemsize}",
                f"{shuffled} = shufflevector {operands}, <{lanes} x i32> <{places}>",
            ]
            joined, done = shuffled, reached
        return joined

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
            wide = b.astype(value, int64)
            scaled = b.multiply(wide, factor * itemsize)
            total = scaled if total is None else b.add(total, scaled)
        assert total is not None
        if stride:
            total = b.add(total, self.lane_numbers(stride * itemsize))
        offsets: list[str] = []
        for lane in range(v.active):
            name = b.fresh()
            b.lines.append(f"{name} = extractelement <{v.lanes} x i64> {total.text}, i64 {lane}")
            offsets.append(name)
        return offsets

    def _load_mask(self, guard: Named | None) -> str | None:
        assert self.vector is not None
        v = self.vector
        tail = self.mask() if v.active < v.lanes else None
        if guard is None:
            return tail
        flag = self.b.splat(guard.value)
        if tail is None:
            return flag.text
        name = self.b.fresh()
        self.b.lines.append(f"{name} = and <{v.lanes} x i1> {flag.text}, {tail}")
        return name

    def fetch(self, stmt: Fetch) -> None:
        """Every cache line that the lanes reach, into the second cache: the first one holds the row at hand."""
        itemsize = self.buffers[stmt.buffer].dtype.itemsize
        const, uniform, stride, _ = self.parts(stmt.index)
        pointer = self.pointer(stmt.buffer, const, uniform, itemsize).value.text
        lanes = self.vector.lanes if self.vector is not None and stride == 1 else 1
        self.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")
        for offset in range(0, lanes * itemsize, CACHE_LINE):
            spot = self.b.fresh()
            self.b.lines += [
                f"{spot} = getelementptr i8, ptr {pointer}, i64 {offset}",
                f"call void @llvm.prefetch.p0(ptr {spot}, i32 {int(stmt.write)}, i32 2, i32 1)",
            ]
        self.flush(len(self.levels) - 1)

    def store(self, stmt: Store) -> None:
        buffer = self.buffers[stmt.buffer]
        b = self.b
        const, uniform, stride, vectors = self.parts(stmt.index)
        if buffer.space is Space.TILE:
            value = b.splat(b.to_memory(self.named[stmt.value].value))
            self.flush(len(self.levels) - 1)
            tile = self.tiles.get(stmt.buffer)
            if tile is None or tile.level is not self.levels[-1]:
                tile = self.tiles[stmt.buffer] = Tile(self.levels[-1])
            tile.whole &= self.vector is not None and self.vector.active == self.vector.lanes
            tile.rows[const] = value
            tile.columns.clear()
            return
        if (part := self._part_beside(stmt, stride)) is not None and not vectors:
            self._store_beside(stmt, const - part, uniform, stride)
            return
        pointer = self.pointer(stmt.buffer, const, uniform, buffer.dtype.itemsize).value.text
        value = b.to_memory(self.named[stmt.value].value)
        one = memory_type(buffer.dtype, 1)
        if self.vector is None or not (stride or vectors):
            if value.lanes != 1:
                raise CompileError(f"store to {stmt.buffer}: a vector value at one address")
            b.lines.append(f"store {one} {value.text}, ptr {pointer}, align {buffer.dtype.itemsize}")
        else:
            self._store_lanes(buffer.dtype, b.splat(value), pointer, stride, vectors, stmt.past_caches)
        self.flush(len(self.levels) - 1)

    def _part_beside(self, stmt: Store, stride: int) -> int | None:
        """The place between lanes at which loops that are written out store, if they store at each; else None.

        They have no other loop inside of them: what it stores is known in its iterations only.
        """
        known = ((factor, self.variables.get(name)) for name, factor in stmt.index.terms if 0 < factor < stride)
        inside = sorted(
            (factor, v.written_out, v.start)
            for factor, v in known
            if v is not None and v.written_out and v.depth == len(self.levels) - 1
        )
        part, filled = 0, 1
        for factor, extent, at in inside:
            if factor != filled:
                return None
            part, filled = part + factor * at, filled * extent
        return part if filled == stride and stride in INTERLEAVED else None

    def _store_beside(self, stmt: Store, const: int, uniform: list[tuple[str, int, int]], stride: int) -> None:
        """Store lanes between the lanes of other iterations when all of these are known: neighbors in memory."""
        assert self.vector is not None
        b, dtype, level = self.b, self.buffers[stmt.buffer].dtype, len(self.levels) - 1
        parts = self.beside.setdefault((id(stmt), const), [])
        parts.append(b.splat(b.to_memory(self.named[stmt.value].value)))
        self.flush(level)
        if len(parts) == stride:
            del self.beside[id(stmt), const]
            pointer = self.pointer(stmt.buffer, const, uniform, dtype.itemsize).value.text
            self._store_pieces(dtype, interleaved(b, parts), pointer, stride * self.vector.active)
            self.flush(level)

    def _store_lanes(
        self,
        dtype: DType,
        value: Value,
        pointer: str,
        stride: int,
        vectors: list[tuple[Value, int]],
        past_caches: bool = False,
    ) -> None:
        assert self.vector is not None
        b, v = self.b, self.vector
        kind, one = memory_type(dtype, v.lanes), memory_type(dtype, 1)
        if past_caches and self.streaming:
            b.globals.add("!0 = !{i32 1}")
            aligned = min(CACHE_LINE, v.lanes * dtype.itemsize)
            b.lines.append(f"store {kind} {value.text}, ptr {pointer}, align {aligned}, !nontemporal !0")
            return
        if stride == 1 and not vectors and v.active == v.lanes:
            b.lines.append(f"store {kind} {value.text}, ptr {pointer}, align {dtype.itemsize}")
            return
        # Only floats: LLVM 22 merges a saturating truncation into the masked store and then writes one lane too many.
        if stride == 1 and not vectors and self.target.masked and dtype.is_float:
            suffix = f"v{v.lanes}{_mangle(one)}"
            self.declare(f"declare void @llvm.masked.store.{suffix}.p0({kind}, ptr, i32, <{v.lanes} x i1>)")
            b.lines.append(
                f"call void @llvm.masked.store.{suffix}.p0({kind} {value.text}, ptr {pointer}, "
                f"i32 {dtype.itemsize}, <{v.lanes} x i1> {self.mask()})"
            )
            return
        if stride == 1 and not vectors:
            self._store_pieces(dtype, value, pointer, v.active)
            return
        for lane, offset in enumerate(self._lane_offsets(stride, vectors, dtype.itemsize)):
            element, spot = b.fresh(), b.fresh()
            b.lines += [
                f"{element} = extractelement {kind} {value.text}, i64 {lane}",
                f"{spot} = getelementptr i8, ptr {pointer}, i64 {offset}",
                f"store {one} {element}, ptr {spot}, align {dtype.itemsize}",
            ]

    def _store_pieces(self, dtype: DType, value: Value, pointer: str, active: int) -> None:
        """Store the first lanes, which are neighbors, in pieces of as many as a power of two."""
        b, start = self.b, 0
        while start < active:
            count = 1 << (active - start).bit_length() - 1
            part, spot = value if count == value.lanes else b.part(value, start, count), b.fresh()
            b.lines += [
                f"{spot} = getelementptr i8, ptr {pointer}, i64 {start * dtype.itemsize}",
                f"store {b.type_of(part)} {part.text}, ptr {spot}, align {dtype.itemsize}",
            ]
            start += count


def _memory_dtype(dtype: DType) -> DType:
    return uint8 if dtype is bool_ else dtype


def _mangle(kind: str) -> str:
    return {"float": "f32", "double": "f64"}.get(kind, kind)
