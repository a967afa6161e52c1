"""Register tiles and cache blocks of contractions: what is given by the loops, what is free, and rules that choose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from codegen.loop import Finish, Kernel, Load, Loop, Stmt, Store, loops_of, statements_of, used
from codegen.stage import Contraction, contraction_of
from codegen.target import CACHE_LINE, Target
from symgrad.record import record, replace

# Iterations that make a parallel loop worth having.
PARALLEL_UNITS = 8
# A factor is packed when at least so many register tiles read it again.
PACK_REUSE = 4
# Register tiles that read rows so often that even rows in the second cache are packed for them.
OFTEN = 64
# Packed rows keep this many neighbors of the summation together, so that packing copies and does not transpose.
RUN = 16
# Products summed in one chain; longer sums are sums of such chains.
CHAIN = 512
# Elements this far apart cost a translation and a cache set each; so many of them in a row are worth packing.
FAR_BYTES = 1024
FAR_STEPS = 64
# Tiles of rows from which one that is lower than the others costs little.
LOW = 5
# Instructions of a step of the sum beside those for the elements of a tile, and how many a core takes in a cycle while
# another thread has half of it; multiply-adds in a cycle, and the cycles until one is done.
STEP_INSTRUCTIONS = 3
INSTRUCTIONS = 3
MULTIPLY_ADDS = 2
LATENCY = 4
# Cycles lost where the innermost loop of the sum begins anew: a branch that was not foreseen.
RESTART = 20
# Tiles that divide all rows or columns need no second form of the kernel for the rest: they may take so much longer.
SECOND_FORM = 1.01
# Multiply-adds up to which a product is no work for several workers.
SMALL = 1 << 21
# Strips of rows that pass a panel, up to which it is kept small.
FEW_STRIPS = 16
# Lines of a factor that meets one row: how many are read at once.
ROW_GROUP = 4
# Iterations of another loop that stand beside columns of one vector.
MOST_BESIDE = 7
# Lanes that a tile stores one by one, where its columns are not those of the result: more only take long to compile.
MAX_SCATTERED = 16
# Terms of a sum that take the time in which its share of a tile is turned, and rows that take the time in which columns
# are packed; the share of the time in which loads do not wait that cross lines of the cache.
TURN_TERMS = 16
PACK_ROWS = 40
UNALIGNED = 0.9
# Packed columns are read again for every image rather than images for every block of columns, up to so many times more.
READ_AGAIN = 2
# Bytes that a core finds again without a search for their pages: packed columns of a tile that many rows pass.
REACH = 96 << 12
# Vectors of a register tile.
VECTORS = (1, 2, 3, 4, 8)
# Vectors of a register tile, register tiles of a panel and how many of what can stand beside columns are tried where
# the choice is measured.
TRIED_VECTORS = (1, 2, 3, 4)
TRIED_BLOCKS = (1, 2, 4, 8)
TRIED_BESIDES = 4


@record
class Beside:
    """A further loop of the column factor, of which `size` iterations stand side by side in a tile, like vectors."""

    loop: str
    size: int


@record
class Choice:
    """What is free in a tiling: whatever is chosen, every sum has the same order and the result the same bits.

    A register tile has `row_tile` rows of so many vectors, a block of packed columns so many register tiles.
    """

    row_tile: int
    vectors: int
    column_block: int
    pack_columns: bool
    pack_rows: bool
    beside: Beside | None = None


@record
class Frame:
    """What is given in a tiling: columns run along the lanes, rows are those of the other factor."""

    kernel: Kernel
    shape: Contraction
    target: Target
    row_factor: str
    column_factor: str
    rows: Loop | None
    own: tuple[Loop, ...]  # the loops of the row factor alone
    columns: Loop
    others: tuple[Loop, ...]  # further loops of the column factor alone
    lanes: int
    turned: bool = False  # the result lies along the rows: tiles are turned before they are stored

    @property
    def height(self) -> int:
        return self.rows.extent if self.rows is not None else 1

    @property
    def depth(self) -> int:
        return math.prod(one.extent for one in self.shape.inner)

    def tallest(self, vectors: int) -> int:
        """The most rows of so many vectors that registers hold, beside those of the columns and a row's element.

        Turned ones are no more than the lanes.
        """
        registers = self.target.registers
        rows = min(registers - 4, registers - 1 - vectors) // vectors
        # With an odd number of multiply-adds the last one would be alone in its cycle.
        rows = max(1, rows - rows * vectors % MULTIPLY_ADDS)
        return min(rows, self.lanes) if self.turned else rows

    def tiles(self, vectors: int) -> int:
        """How many register tiles of so many vectors the columns take."""
        return -(-self.columns.extent // (self.lanes * vectors))

    def column_bytes(self, vectors: int) -> int:
        """Bytes of the packed columns of one register tile."""
        return self.lanes * vectors * self.depth * _itemsize(self.shape, self.column_factor)


@record
class Tiling:
    """Which loops become the register tile, its size, and which factors are packed first."""

    rows: str | None
    beside: Beside | None
    more: tuple[str, ...]  # further loops that are in the tile as a whole: short ones of the row factor, or `beside`
    columns: str
    row_tile: int
    vectors: int
    lanes: int
    pack_rows: bool
    pack_columns: bool
    run: int
    column_block: int
    turned: bool
    passing: tuple[str, ...]  # loops around the rows that are inside of those over blocks of columns
    line: int  # elements on a cache line of the rows, which are fetched a strip ahead; 0 where they are not

    @property
    def column_tile(self) -> int:
        return self.lanes * self.vectors

    @property
    def is_blocked(self) -> bool:
        """Whether a block of columns holds several register tiles."""
        return self.column_block > self.column_tile

    @property
    def column_levels(self) -> int:
        """How many loops the columns outside a register tile are made of."""
        return 2 if self.is_blocked else 1

    @property
    def tile_columns(self) -> str:
        """The loop over the columns of one register tile."""
        return f"{self.columns}.1.1" if self.is_blocked else f"{self.columns}.1"


def frame_of(kernel: Kernel, target: Target) -> Frame | None:
    """The loops of the register tile: None when nothing is summed or no factor has a loop to run along the lanes."""
    if not _has_sum(kernel):
        return None
    shape = contraction_of(kernel)
    left, right = shape.factors
    depends = {f: shape.loops_of(f) for f in (left, right)}
    own = {
        f: [o for o in shape.outer if o.extent > 1 and o.name in depends[f] - depends[g]]
        for f, g in ((left, right), (right, left))
    }
    stores = [s for s in statements_of(kernel.body) if isinstance(s, Store)]
    lanes = target.lanes(_sum_bytes(kernel))
    best: tuple[bool, int, int, str, str] | None = None
    for factor in (left, right):
        for one in own[factor]:
            load = shape.load(factor)
            unit = 1 if load is not None and load.index.factor(one.name) == 1 else 0
            stored = 2 if any(s.index.factor(one.name) == 1 for s in stores) else 0
            # A loop over the few places in a window would leave most lanes idle, which costs more than packing. But a
            # factor that has other loops of its own is packed for all of them: with windows, every place of every one.
            alone = all(o is one for o in own[factor])
            good = 2 * one.extent >= lanes and (unit > 0 or alone)
            score = (good, unit + stored, one.extent, one.name, factor)
            if best is None or score > best:
                best = score
    if best is None:
        return None
    factor = best[4]
    other = right if factor == left else left
    columns = next(o for o in own[factor] if o.name == best[3])
    if _is_better_turned(shape, own[factor], columns, own[other], lanes):
        factor, other, columns = other, factor, own[other][0]
    rows = max(own[other], key=lambda o: (o.extent, o.name), default=None)
    turned = False
    if not any(s.index.factor(columns.name) == 1 for s in stores):
        along = [o for o in own[other] if all(s.index.factor(o.name) == 1 for s in stores) and 4 * o.extent >= lanes]
        turned = bool(along)
        rows = along[0] if turned else rows
        lanes = lanes if turned else min(lanes, MAX_SCATTERED)
    others = tuple(o for o in own[factor] if o is not columns)
    return Frame(kernel, shape, target, other, factor, rows, tuple(own[other]), columns, others, lanes, turned)


def _is_better_turned(
    shape: Contraction, places: Sequence[Loop], columns: Loop, channels: Sequence[Loop], lanes: int
) -> bool:
    """Whether the only loop of one factor fills the lanes better than one of several loops of the other.

    Vectors of the latter end where that loop ends, and with windows lie across lines of the cache. The other way costs
    that the factor of the one loop is packed, and that tiles are turned.
    """
    if len(places) < 2 or len(channels) != 1:
        return False
    found = [load for f in shape.factors if (load := shape.load(f)) is not None and columns.name in used(load)]
    stride = found[0].index.factor(columns.name) if found else 0
    windows = any(load.index.factor(o.name) == stride for load in found for o in shape.inner)
    plain = _filled(columns.extent, lanes) * (UNALIGNED if windows else 1)
    depth, passes = (math.prod(o.extent for o in loops) for loops in (shape.inner, places))
    return _filled(channels[0].extent, lanes) * _share(depth, TURN_TERMS) * _share(passes, PACK_ROWS) > plain


def _filled(extent: int, lanes: int) -> float:
    """The share of the lanes that a loop fills."""
    return extent / (-(-extent // lanes) * lanes)


def _share(work: int, once: int) -> float:
    """The share of work in the time of it and of what is done once."""
    return work / (work + once)


def choice_by_rules(
    frame: Frame, vectors: int | None = None, *, pack_columns: bool | None = None, pack_rows: bool | None = None
) -> Choice:
    """What the rules choose, given a part of the choice."""
    shape, rows, columns = frame.shape, frame.rows, frame.columns
    vectors = vectors or (_turned_vectors(frame) if frame.turned else _vectors(frame))
    if pack_rows is None:
        shared_with = shape.loops_of(frame.row_factor)
        elsewhere = [o.extent for o in shape.outer if o.name not in shared_with and o is not columns]
        pack_rows = rows is not None and _pack_rows(frame, rows, math.prod(elsewhere) * frame.tiles(vectors))
    if pack_columns is None:
        strips = -(-frame.height // _even(frame.height, frame.tallest(vectors)))
        pack_columns = _pack_columns(frame, strips)
    beside: Beside | None = None
    if vectors == 1 and not pack_columns and frame.height > frame.target.registers // 2:
        beside = next(iter(_besides(frame)), None)
    _, row_tile = _rows_of_tile(frame, vectors, pack_rows, beside)
    column_block = 1
    if pack_columns:
        strips = -(-frame.height // row_tile)
        # Arrays that the rows pass after short sums are passed in long pieces, and their rows are shared.
        passing = rows is not None and frame.depth <= CHAIN and passed_arrays(frame.kernel, rows.name) > 1
        shares = 1 if passing and strips >= PARALLEL_UNITS else PARALLEL_UNITS
        column_block = _column_block(frame, vectors, strips, shares)
    return Choice(row_tile, vectors, column_block, pack_columns, pack_rows, beside)


def _besides(frame: Frame) -> Iterator[Beside]:
    """What can stand beside the columns, where these fill one vector: more products for each load."""
    for size in range(2, MOST_BESIDE + 1):
        for one in reversed(frame.others):
            if one.extent % size == 0:
                yield Beside(one.name, size)


def choices(kernel: Kernel, target: Target) -> tuple[Choice, ...]:
    """The choice by rules, then some that may be faster; none where nothing is free."""
    frame = frame_of(kernel, target)
    if frame is None or is_one_row(frame):
        return ()
    first = choice_by_rules(frame)
    found = [first]
    for vectors in TRIED_VECTORS:
        if vectors <= -(-frame.columns.extent // frame.lanes):
            found.append(choice_by_rules(frame, vectors))
    more, _ = _rows_of_tile(frame, first.vectors, first.pack_rows, first.beside)
    if not more:
        found.append(replace(first, row_tile=min(frame.height, frame.tallest(first.vectors))))
    if _can_read_columns(frame):
        found.append(choice_by_rules(frame, pack_columns=not first.pack_columns))
    if frame.rows is not None and frame.shape.load(frame.row_factor) is not None:
        found.append(choice_by_rules(frame, pack_rows=not first.pack_rows))
    if first.pack_columns:
        room = frame.target.l2 // max(frame.column_bytes(first.vectors), 1)
        blocks = [b for b in TRIED_BLOCKS if b == 1 or b <= min(room, frame.tiles(first.vectors))]
        found += [replace(first, column_block=block) for block in blocks]
    if first.beside is not None:
        for beside in (None, *itertools.islice(_besides(frame), 1, TRIED_BESIDES)):
            _, row_tile = _rows_of_tile(frame, first.vectors, first.pack_rows, beside)
            found.append(replace(first, row_tile=row_tile, beside=beside))
    return tuple(dict.fromkeys(found))


def _can_read_columns(frame: Frame) -> bool:
    """Whether the column factor can be read where it is, with neighbors along the lanes."""
    load = frame.shape.load(frame.column_factor)
    return load is not None and load.index.factor(frame.columns.name) == 1


def tiling_of(frame: Frame, choice: Choice) -> Tiling:
    more, _ = _rows_of_tile(frame, choice.vectors, choice.pack_rows, choice.beside)
    return Tiling(
        frame.rows.name if frame.rows is not None else None,
        choice.beside,
        more,
        frame.columns.name,
        choice.row_tile,
        choice.vectors,
        frame.lanes,
        pack_rows=choice.pack_rows,
        pack_columns=choice.pack_columns,
        run=RUN if choice.pack_rows and _rows_lie_along(frame, RUN) else 1,
        column_block=choice.column_block * frame.lanes * choice.vectors,
        turned=frame.turned,
        passing=_passing(frame, choice) if frame.turned else (),
        line=0 if choice.pack_rows or more else _fetched_line(frame, choice.row_tile),
    )


def _passing(frame: Frame, choice: Choice) -> tuple[str, ...]:
    """The loops around the rows of a turned tile that pass packed columns as the rows do.

    Those that do not shift a window, as one over images, stay outside of all columns unless packed columns are many:
    columns that are read again come in the order of memory.
    """
    load = frame.shape.load(frame.row_factor)
    names = [o.name for o in frame.own if o is not frame.rows]
    if load is None:
        return tuple(names)
    near = {load.index.factor(o.name) for o in frame.shape.inner}
    apart = [o for o in frame.own if o is not frame.rows and load.index.factor(o.name) not in near]
    blocks = -(-frame.columns.extent // (choice.column_block * frame.lanes * choice.vectors))
    again = math.prod(o.extent for o in apart) * frame.columns.extent * frame.depth
    if again > READ_AGAIN * blocks * frame.kernel.buffer(load.buffer).size:
        return tuple(names)
    return tuple(name for name in names if all(name != o.name for o in apart))


def _rows_lie_along(frame: Frame, least: int) -> bool:
    """Whether at least so many neighbors in the sum are neighbors in the rows."""
    load = frame.shape.load(frame.row_factor)
    last = frame.shape.inner[-1] if frame.shape.inner else None
    return load is not None and last is not None and last.extent >= least and load.index.factor(last.name) == 1


def _fetched_line(frame: Frame, row_tile: int) -> int:
    """Elements on a cache line of rows worth fetching a strip ahead, as all of them are much for the caches; else 0.

    Sums of pieces that are no whole lines would need a second form of the kernel, so they are left to the machine.
    """
    itemsize = _itemsize(frame.shape, frame.row_factor)
    line = CACHE_LINE // itemsize
    much = frame.height * frame.depth * itemsize > frame.target.l2 // 4
    if frame.height <= row_tile or not much or not _rows_lie_along(frame, 2 * line):
        return 0
    return 0 if frame.shape.inner[-1].extent % line else line


def is_one_row(frame: Frame) -> bool:
    """Whether one row meets a factor that lies along the columns, in lines far apart, and is read only once."""
    shape = frame.shape
    if frame.rows is not None or len(shape.inner) != 1 or shape.inner[0].extent < 2 * ROW_GROUP:
        return False
    return _can_read_columns(frame) and _is_far(shape, frame.column_factor, shape.inner[0].name)


def _rows_of_tile(frame: Frame, vectors: int, pack_rows: bool, beside: Beside | None) -> tuple[tuple[str, ...], int]:
    """The loops that are in a register tile as a whole, and the rows that are left to it."""
    if beside is not None:
        return (f"{beside.loop}.1",), _even(frame.height, frame.tallest(beside.size))
    tallest = frame.tallest(vectors)
    row_tile = _even(frame.height, tallest)
    if frame.rows is None or pack_rows or frame.turned:
        return (), row_tile
    return _more_rows(frame.rows, frame.own, row_tile, tallest)


def _more_rows(rows: Loop, own: Sequence[Loop], row_tile: int, tallest: int) -> tuple[tuple[str, ...], int]:
    """The short loops that fill a register tile better than rows alone, and the rows that are left to it."""
    best: tuple[int, tuple[str, ...], int] = (row_tile, (), row_tile)
    short = [one for one in own if one is not rows and one.extent <= tallest]
    for count in range(1, len(short) + 1):
        for chosen in itertools.combinations(short, count):
            size = math.prod(one.extent for one in chosen)
            if size > tallest:
                continue
            height = _even(rows.extent, tallest // size)
            if size * height > best[0]:
                best = (size * height, tuple(one.name for one in chosen), height)
    return best[1], best[2]


def _itemsize(shape: Contraction, factor: str) -> int:
    return shape.dtype(factor).itemsize


def _pack_columns(frame: Frame, strips: int) -> bool:
    """Pack what does not lie along the lanes, and what several strips of rows read at long distances."""
    if not _can_read_columns(frame):
        return True
    far = _is_far(frame.shape, frame.column_factor, frame.shape.inner[-1].name)
    return strips >= PACK_REUSE and frame.depth >= FAR_STEPS and far


def _pack_rows(frame: Frame, rows: Loop, reuse: int) -> bool:
    """Pack rows that are computed, and long rows that many column tiles read across the direction they lie in."""
    shape, factor = frame.shape, frame.row_factor
    load = shape.load(factor)
    if load is None:
        return True
    if load.index.factor(shape.inner[-1].name) == 1:
        return False
    extents = {o.name: o.extent for o in (*shape.outer, *shape.inner)}
    mine = shape.loops_of(factor)
    near = frame.target.l1 if reuse >= OFTEN else frame.target.l2 // 2
    long = frame.depth * rows.extent * _itemsize(shape, factor) > near
    # Overlapping windows are more packed than they are.
    fits = math.prod(extents[name] for name in mine) <= frame.kernel.buffer(load.buffer).size
    far = any(_is_far(shape, factor, one.name) for one in (rows, *shape.inner) if one.name in mine)
    return reuse >= PACK_REUSE and long and far and fits


def _is_far(shape: Contraction, factor: str, loop: str) -> bool:
    """Whether neighbors in a loop lie on different pages and in the same few sets of the first cache."""
    load = shape.load(factor)
    return load is not None and abs(load.index.factor(loop)) * _itemsize(shape, factor) >= FAR_BYTES


def _vectors(frame: Frame) -> int:
    """Vectors in a row of a register tile: those that take the least time, and leave tiles for all workers."""
    rows, columns, lanes = frame.height, frame.columns.extent, frame.lanes
    elsewhere = math.prod(o.extent for o in frame.shape.outer if o is not frame.columns and o is not frame.rows)
    alone = elsewhere >= PARALLEL_UNITS or rows * columns * frame.depth * elsewhere <= SMALL
    run = frame.shape.inner[-1].extent if frame.shape.inner else 1

    def time(vectors: int) -> float:
        height = _even(rows, frame.tallest(vectors))
        tiles, rest = divmod(columns, lanes * vectors)
        cycles = tiles * _cycles_of_strips(rows, height, vectors, run)
        return (cycles + _cycles_of_strips(rows, height, -(-rest // lanes), run)) * SECOND_FORM if rest else cycles

    def is_possible(vectors: int) -> bool:
        shared = alone or columns >= PARALLEL_UNITS * lanes * vectors
        near = rows <= frame.tallest(vectors) or frame.column_bytes(vectors) <= REACH
        return vectors <= 2 or (shared and near)

    available = -(-columns // lanes)
    return min((v for v in VECTORS if v <= available and is_possible(v)), key=lambda v: (time(v), v))


def _turned_vectors(frame: Frame) -> int:
    """As many as registers hold for the rows of a tile, which are at most as many as lanes."""
    row_tile = _even(frame.height, frame.tallest(2))
    return max(1, min((frame.target.registers - 4) // row_tile, -(-frame.columns.extent // frame.lanes)))


def _even(rows: int, tallest: int) -> int:
    """The height of a tile: one that divides the rows needs no second form of the kernel for the rest."""
    if rows <= tallest:
        return rows
    if rows <= LOW * tallest:
        for tile in range(tallest, tallest // 2, -1):
            if rows % tile == 0:
                return tile
    return -(-rows // -(-rows // tallest))


def _cycles_of_strips(rows: int, height: int, vectors: int, run: int) -> float:
    strips, rest = divmod(rows, height)
    cycles = strips * _cycles(height, vectors, run)
    return (cycles + _cycles(rest, vectors, run)) * SECOND_FORM if rest else cycles


def _cycles(rows: int, vectors: int, run: int) -> float:
    """The time of a step of the sum in a register tile, where so many steps follow each other.

    It is the mean of what the multiply-adds take where nothing else does, and what all the instructions take: a core
    whose other thread is busy has no more room for them than that.
    """
    products = -(-rows * vectors // MULTIPLY_ADDS)
    instructions = rows * vectors + rows + vectors + STEP_INSTRUCTIONS
    return (max(products, LATENCY) + max(instructions / INSTRUCTIONS, LATENCY)) / 2 + RESTART / run


def _column_block(frame: Frame, vectors: int, strips: int, shares: int) -> int:
    """Register tiles of one panel, which leave at least so many shares.

    Panels that many strips of rows pass fill half of the second cache, so that the rows are read seldom; a panel that
    few pass is read again while it is in the nearer half.
    """
    room = frame.target.l2 // 2 if strips > FEW_STRIPS else frame.target.l2 // 8
    fitting = room // max(frame.column_bytes(vectors), 1)
    most = frame.tiles(vectors) if shares == 1 else frame.columns.extent // (frame.lanes * vectors * shares)
    return max(1, min(fitting, most))


def passed_arrays(kernel: Kernel, rows: str) -> int:
    """How many arrays the statements after the sums read or write in other places for every row."""
    return len({s.buffer for s in epilogue(kernel) if isinstance(s, Load | Store) and s.index.factor(rows)})


def epilogue(kernel: Kernel) -> list[Stmt]:
    """The statements that finish sums or stand beside those that do."""
    return [s for f in loops_of(kernel.body) if any(isinstance(s, Finish) for s in f.body) for s in f.body]


def _has_sum(kernel: Kernel) -> bool:
    return any(f.loop.name.startswith("k") for f in loops_of(kernel.body))


def _sum_bytes(kernel: Kernel) -> int:
    """The width of the sums: what follows them may be wider, and takes several registers then."""
    return next(kernel.buffer(s.buffer).dtype.itemsize for s in statements_of(kernel.body) if isinstance(s, Finish))


def lane_bytes(kernel: Kernel) -> int:
    """The width that decides the lanes: of the floats if there are any, else of the widest number."""
    floats = [b.dtype.itemsize for b in kernel.params + kernel.locals if b.dtype.is_float]
    return max(floats or [b.dtype.itemsize for b in kernel.params + kernel.locals], default=4)
