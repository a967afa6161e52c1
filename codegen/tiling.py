"""Register tiles and cache blocks of contractions: what is free, and rules that choose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from codegen.frame import (
    MULTIPLY_ADDS,
    Frame,
    array_bytes,
    can_read_columns,
    frame_of,
    is_far,
    is_one_row,
    is_shifted,
    itemsize_of,
    passed_arrays,
    rows_lie_along,
)
from codegen.loop import Kernel, Loop
from codegen.target import CACHE_LINE, Target
from symgrad.record import record, replace

# Iterations that make a parallel loop worth having.
PARALLEL_UNITS = 8
# Rows are packed when at least so many register tiles read them again, columns when more strips of rows do so.
PACK_REUSE = 4
PACK_STRIPS = 24
# Multiply-adds of vectors in which memory brings packed rows, and columns; the most terms of a sum that are fetched
# ahead, and the part of all that these may be.
ROWS_AHEAD = 1536
COLUMNS_AHEAD = 768
MOST_AHEAD = 64
PART_AHEAD = 4
# What packed rows are called.
PACKED_ROWS = "packed_rows"
# Register tiles that read rows so often that even rows in the second cache are packed for them.
OFTEN = 64
# Elements of columns that a worker packs in less time than it takes to wait for others.
PACKED_ALONE = 1 << 15
# Register tiles that read rows so seldom that these are packed if they fill half of the second cache, not a quarter.
SELDOM = 16
# Packed rows keep this many neighbors of the summation together, so that packing copies and does not transpose.
RUN = 16
# Products summed in one chain; longer sums are sums of such chains.
CHAIN = 512
# So many elements in a row that are far apart are worth packing.
FAR_STEPS = 64
# Tiles of rows from which one that is lower than the others costs little.
LOW = 5
# Instructions of a step of the sum beside those for the elements of a tile, and how many a core takes in a cycle while
# another thread has half of it; the cycles until a multiply-add is done.
STEP_INSTRUCTIONS = 1
INSTRUCTIONS = 3
LATENCY = 4
# Cycles lost where the innermost loop of the sum begins anew: a branch that was not foreseen.
RESTART = 20
# Tiles that divide all rows or columns need no second form of the kernel for the rest: they may take so much longer.
SECOND_FORM = 1.01
# Multiply-adds up to which a product is no work for several workers.
SMALL = 1 << 21
# Strips of rows that follow each other often enough to fetch for the next one, rather than for the next of all.
FETCHED_STRIPS = 4
# Strips of rows that pass a panel, up to which it is kept small.
FEW_STRIPS = 16
# Iterations of another loop that stand beside columns of one vector.
MOST_BESIDE = 7
# Packed columns are read again for every image rather than images for every block of columns, up to so many times more.
READ_AGAIN = 2
# Sizes of the second cache up to which packed columns are not far from it.
NEAR = 3
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
    alone: bool  # every worker packs all columns for itself
    turned: bool
    passing: tuple[str, ...]  # loops around the rows that are inside of those over blocks of columns
    line: int  # elements on a cache line of the rows, which are fetched a strip ahead; 0 where they are not
    ahead: str | None  # the loop of which what a turned tile reads is fetched an iteration ahead
    later: tuple[tuple[str, int], ...]  # arrays of which what a tile reads is fetched so many terms of the sum ahead

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
    if vectors == 1 and not pack_columns and not frame.turned and frame.height > frame.target.registers // 2:
        beside = next(iter(_besides(frame)), None)
    _, row_tile = _rows_of_tile(frame, vectors, pack_rows, beside)
    column_block = 1
    if pack_columns:
        strips = -(-frame.height // row_tile)
        # Arrays that the rows pass after short sums are passed in long pieces, and their rows are shared.
        passing = rows is not None and frame.depth <= CHAIN and passed_arrays(frame.kernel, rows.name) > 1
        others = any(o.extent >= PARALLEL_UNITS for o in frame.others)
        is_shared = others or (passing and strips >= PARALLEL_UNITS) or _is_packed_alone(frame)
        shares = 1 if is_shared else PARALLEL_UNITS
        if frame.turned:
            apart = _apart(frame)
            strips *= math.prod(o.extent for o in frame.own if o is not rows and o not in apart)
            shares = 1 if math.prod(o.extent for o in apart) >= PARALLEL_UNITS else PARALLEL_UNITS
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
        if vectors <= frame.tiles(1):
            found.append(choice_by_rules(frame, vectors))
    more, _ = _rows_of_tile(frame, first.vectors, first.pack_rows, first.beside)
    if not more:
        found.append(replace(first, row_tile=min(frame.height, frame.tallest(first.vectors))))
    if can_read_columns(frame):
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
        run=RUN if choice.pack_rows and rows_lie_along(frame, RUN) else 1,
        column_block=choice.column_block * frame.lanes * choice.vectors,
        alone=choice.pack_columns and choice.column_block >= frame.tiles(choice.vectors) and _is_packed_alone(frame),
        turned=frame.turned,
        passing=_passing(frame, choice) if frame.turned else (),
        line=0 if choice.pack_rows or more else _fetched_line(frame, choice.row_tile),
        ahead=_fetched_ahead(frame, choice) if frame.turned and not choice.pack_rows else None,
        later=_fetched_later(frame, choice),
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
    apart = _apart(frame)
    blocks = -(-frame.columns.extent // (choice.column_block * frame.lanes * choice.vectors))
    columns = frame.columns.extent * frame.depth
    near = columns * itemsize_of(frame.shape, frame.column_factor) <= NEAR * frame.target.l2
    rows = frame.height * frame.depth * math.prod(o.extent for o in frame.own if o is not frame.rows)
    size = rows if choice.pack_rows else frame.kernel.buffer(load.buffer).size
    if math.prod(o.extent for o in apart) * columns > (READ_AGAIN if near else 1) * blocks * size:
        return tuple(names)
    return tuple(name for name in names if all(name != o.name for o in apart))


def _apart(frame: Frame) -> list[Loop]:
    """The loops around the rows of which no two steps read the same: those that do not shift a window by a part."""
    load = frame.shape.load(frame.row_factor)
    if load is None:
        return []
    return [o for o in frame.own if o is not frame.rows and not is_shifted(load, o, frame.shape.inner)]


def _fetched_line(frame: Frame, row_tile: int) -> int:
    """Elements on a cache line of rows worth fetching a strip ahead, as all of them are much for the caches; else 0.

    Sums of pieces that are no whole lines would need a second form of the kernel, so they are left to the machine.
    """
    itemsize = itemsize_of(frame.shape, frame.row_factor)
    line = CACHE_LINE // itemsize
    much = frame.height * frame.depth * itemsize > frame.target.l2 // 4
    if frame.height <= row_tile or not much or not rows_lie_along(frame, 2 * line):
        return 0
    return 0 if frame.shape.inner[-1].extent % line else line


def _fetched_ahead(frame: Frame, choice: Choice) -> str | None:
    """The loop along which a turned tile's reads lie far apart in memory, one after the other: no machine foresees it.

    None where all that is read stays in the second cache.
    """
    if frame.rows is None or array_bytes(frame, frame.row_factor) < frame.target.l2:
        return None
    strips = -(-frame.height // choice.row_tile)
    others = [o.name for o in frame.own if o is not frame.rows]
    if not others or (len(others) == 1 and strips >= FETCHED_STRIPS):
        return f"{frame.rows.name}.0"
    return others[-1]


def _fetched_later(frame: Frame, choice: Choice) -> tuple[tuple[str, int], ...]:
    """What a tile reads far from the second cache, in an order that no machine foresees far enough, and how far ahead.

    Packed rows come line by line from wherever they were left; columns that are read where they are lie on a page each.
    """
    last = frame.shape.inner[-1] if frame.shape.inner else None
    if last is None:
        return ()
    terms = min(last.extent, CHAIN)
    products = choice.row_tile * choice.vectors

    def ahead(most: int) -> int:
        return min(MOST_AHEAD, most // products, terms // PART_AHEAD)

    out: list[tuple[str, int]] = []
    rows = math.prod(o.extent for o in frame.own) * frame.depth * itemsize_of(frame.shape, frame.row_factor)
    if choice.pack_rows and rows > frame.target.l2 // 2:
        out.append((PACKED_ROWS, ahead(ROWS_AHEAD)))
    load = frame.shape.load(frame.column_factor)
    read = not choice.pack_columns and choice.beside is None
    far = is_far(frame.shape, frame.column_factor, last.name)
    if read and load is not None and far and array_bytes(frame, frame.column_factor) > frame.target.l2:
        out.append((load.buffer, ahead(COLUMNS_AHEAD)))
    return tuple((array, count) for array, count in out if count > 1)


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


def _pack_columns(frame: Frame, strips: int) -> bool:
    """Pack what does not lie along the lanes, and what several strips of rows read at long distances.

    Many strips are worth packing vectors of which most cross lines of the cache, which take two reads each.
    """
    if not can_read_columns(frame):
        return True
    last = frame.shape.inner[-1].name
    far = is_far(frame.shape, frame.column_factor, last)
    load = frame.shape.load(frame.column_factor)
    itemsize = itemsize_of(frame.shape, frame.column_factor)
    crossing = load is not None and load.index.factor(last) * itemsize % CACHE_LINE != 0
    return strips >= PACK_STRIPS and frame.depth >= FAR_STEPS and (far or crossing)


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
    near = frame.target.l1 if reuse >= OFTEN else frame.target.l2 // (2 if reuse < SELDOM else 4)
    long = frame.depth * rows.extent * itemsize_of(shape, factor) > near
    # Overlapping windows are more packed than they are.
    fits = math.prod(extents[name] for name in mine) <= frame.kernel.buffer(load.buffer).size
    far = any(is_far(shape, factor, one.name) for one in (rows, *shape.inner) if one.name in mine)
    return reuse >= PACK_REUSE and long and far and fits


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

    return min((v for v in VECTORS if v <= frame.tiles(1) and is_possible(v)), key=lambda v: (time(v), v))


def _turned_vectors(frame: Frame) -> int:
    """As many as registers hold for the rows of a tile, which are at most as many as lanes.

    Some less where none are left over then.
    """
    row_tile, tiles = _even(frame.height, frame.tallest(2)), frame.tiles(1)
    fitting = (v for v in range(frame.target.registers, 1, -1) if frame.tallest(v) >= row_tile)
    most = min(next(fitting, 1), tiles)
    return next((v for v in range(most, most // 2, -1) if tiles % v == 0), most)


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


def _is_packed_alone(frame: Frame) -> bool:
    """Whether columns are so few, beside rows for all workers, that these are sooner done packing them than sharing."""
    plain = frame.rows is not None and len(frame.shape.outer) == 2
    return plain and not frame.turned and frame.columns.extent * frame.depth <= PACKED_ALONE


def _column_block(frame: Frame, vectors: int, strips: int, shares: int) -> int:
    """Register tiles of one panel, which leave at least so many shares.

    Panels that many strips of rows pass fill half of the second cache, so that the rows are read seldom; a panel that
    few pass is read again while it is in the nearer half.
    """
    room = frame.target.l2 // 2 if strips > FEW_STRIPS else frame.target.l2 // 8
    fitting = room // max(frame.column_bytes(vectors), 1)
    most = frame.tiles(vectors) if shares == 1 else frame.columns.extent // (frame.lanes * vectors * shares)
    tiles = max(1, min(fitting, most))
    if frame.turned:
        # A block less than the others would need a second form of the kernel.
        tiles = next(k for k in range(tiles, 0, -1) if frame.tiles(vectors) % k == 0)
    return tiles
