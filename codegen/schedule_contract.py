"""Schedules of contractions for the CPU: register tiles, cache blocks and packed factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from codegen.costs import COSTS
from codegen.loop import Finish, For, Kernel, Let, Load, Loop, Store, loops_of
from codegen.stage import (
    Contraction,
    Panel,
    contraction_of,
    copy_steps,
    fill_panel,
    lies_along,
    stage,
    stage_panel,
)
from codegen.steps import Block, Distribute, Join, Keep, Merge, Parallel, Spill, Split, Step, Unroll, Vectorize, apply
from codegen.target import Target

# Iterations that make a parallel loop worth having.
PARALLEL_UNITS = 8
# A factor is packed when at least so many register tiles read it again.
PACK_REUSE = 4
# Packed rows keep this many neighbors of the summation together, so that packing copies and does not transpose.
RUN = 16
# Instructions of an epilogue, written out for every accumulator, from which it is kept in loops.
LONG_EPILOGUE = 300
# Products summed in one chain; longer sums are sums of such chains.
CHAIN = 512
# Elements this far apart cost a translation and a cache set each; so many of them in a row are worth packing.
FAR_BYTES = 1024
FAR_STEPS = 64
# Tiles of rows from which one that is lower than the others costs little.
LOW = 5
# Strips of rows that pass a panel, up to which it is kept small.
FEW_STRIPS = 16
# Lines of a factor that meets one row: how many are read at once, and the vectors and elements of their pieces.
ROW_GROUP = 4
ROW_VECTORS = 32
ROW_LONGEST = 2048
# Iterations of another loop that stand beside columns of one vector.
MOST_BESIDE = 7
# Lanes that a tile stores one by one, where its columns are not those of the result: more only take long to compile.
MAX_SCATTERED = 16


@dataclass(frozen=True, slots=True)
class Beside:
    """A further loop of the column factor, of which `size` iterations stand side by side in a tile, like vectors."""

    loop: str
    size: int


@dataclass(frozen=True, slots=True)
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


def schedule_contract(kernel: Kernel, target: Target) -> list[tuple[Kernel, tuple[Step, ...]]]:
    """Scheduled kernels and their steps: those that pack factors where it pays, then the contraction itself.

    Columns that every row passes once are packed by each worker as a panel in its scratch memory; columns that come
    back for every block of rows, or for every step of another loop, are packed once, before.
    """
    if not _has_sum(kernel):
        return [_plain(kernel)]
    shape = contraction_of(kernel)
    tiling = choose_tiling(kernel, shape, target)
    if tiling is None:
        return [_plain(kernel)]
    if _is_one_row(shape, tiling):
        steps = _row_steps(shape, tiling)
        return [(apply(kernel, steps), steps)]
    row_factor, column_factor = _factors(shape, tiling)
    out: list[tuple[Kernel, tuple[Step, ...]]] = []
    panel: Panel | None = None
    if tiling.pack_columns and _is_filled_once(shape, tiling, column_factor):
        kernel, panel = stage_panel(
            kernel, shape, column_factor, tiling.columns, tiling.column_block, tiling.column_tile, tiling.lanes, "panel"
        )
    elif tiling.pack_columns:
        staged = stage(kernel, shape, column_factor, tiling.columns, tiling.column_tile, 1, "packed_columns")
        steps = _pack_steps(staged.pack, shape, tiling.columns, tiling.column_tile, 1, tiling.lanes)
        out.append((apply(staged.pack, steps), steps))
        kernel = staged.rest
    if tiling.pack_rows and tiling.rows is not None:
        staged = stage(kernel, shape, row_factor, tiling.rows, tiling.row_tile, tiling.run, "packed_rows")
        steps = _pack_steps(staged.pack, shape, tiling.rows, tiling.row_tile, tiling.run, tiling.lanes)
        out.append((apply(staged.pack, steps), steps))
        kernel = staged.rest
    steps = (*_tile_steps(shape, tiling), *_spill_steps(kernel, tiling))
    kernel = apply(kernel, steps)
    out.append((fill_panel(kernel, panel) if panel is not None else kernel, steps))
    return out


def _has_sum(kernel: Kernel) -> bool:
    return any(f.loop.name.startswith("k") for f in loops_of(kernel.body))


def lane_bytes(kernel: Kernel) -> int:
    """The width that decides the lanes: of the floats if there are any, else of the widest number."""
    floats = [b.dtype.itemsize for b in kernel.params + kernel.locals if b.dtype.is_float]
    return max(floats or [b.dtype.itemsize for b in kernel.params + kernel.locals], default=4)


def parallel_position(sizes: Sequence[int]) -> int:
    """The outermost loop that has enough iterations to share, else the one with most."""
    for k, size in enumerate(sizes):
        if size >= PARALLEL_UNITS:
            return k
    return max(range(len(sizes)), key=lambda k: sizes[k])


def shared(names: Sequence[str], sizes: Sequence[int]) -> list[Step]:
    """Make the loop at the `parallel_position` of a perfect nest, given from outside in, the outermost and parallel."""
    first = parallel_position(sizes)
    return [*(Distribute(name) for name in reversed(names[:first])), Parallel(names[first])]


def _plain(kernel: Kernel) -> tuple[Kernel, tuple[Step, ...]]:
    """Nothing to tile: share the outermost loop, if there is one."""
    first = next((f.loop.name for f in loops_of(kernel.body)), None)
    steps = (Parallel(first),) if first is not None and first.startswith("d") else ()
    return apply(kernel, steps), steps


def choose_tiling(kernel: Kernel, shape: Contraction, target: Target) -> Tiling | None:
    """The loops of the register tile: columns run along the lanes, rows are those of the other factor.

    None when no factor has a loop of its own to run along the lanes.
    """
    left, right = shape.factors
    depends = {f: shape.loops_of(f) for f in (left, right)}
    own = {
        f: [o for o in shape.outer if o.extent > 1 and o.name in depends[f] - depends[g]]
        for f, g in ((left, right), (right, left))
    }
    stores = [s for f in loops_of(kernel.body) for s in f.body if isinstance(s, Store)]
    lanes = target.lanes(lane_bytes(kernel))
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
    columns, factor = best[3], best[4]
    other = right if factor == left else left
    if not any(s.index.factor(columns) == 1 for s in stores):
        lanes = min(lanes, MAX_SCATTERED)
    rows = max(own[other], key=lambda o: (o.extent, o.name), default=None)
    extents = {o.name: o.extent for o in (*shape.outer, *shape.inner)}
    height = extents[rows.name] if rows is not None else 1
    row_tile, vectors = tile_shape(height, extents[columns], target, lanes)
    depth = 1
    for one in shape.inner:
        depth *= one.extent
    elsewhere = [o.extent for o in shape.outer if o.name not in depends[other] and o.name != columns]
    reuse = math.prod(elsewhere) * -(-extents[columns] // (lanes * vectors))
    pack_rows = rows is not None and _pack_rows(kernel, shape, other, rows, reuse, target)
    load = shape.load(other)
    last = shape.inner[-1] if shape.inner else None
    along = load is not None and last is not None and last.extent >= RUN and load.index.factor(last.name) == 1
    pack_columns = _pack_columns(shape, factor, columns, -(-height // row_tile), depth)
    more: tuple[str, ...] = ()
    beside: Beside | None = None
    if vectors == 1 and not pack_columns and height > target.registers // 2:
        beside = _beside([one for one in own[factor] if one.name != columns])
    if beside is not None:
        more, row_tile = (f"{beside.loop}.1",), _even(height, (target.registers - 4) // beside.size)
    elif rows is not None and not pack_rows:
        more, row_tile = _more_rows(rows, own[other], row_tile, (target.registers - 4) // vectors)
    tile = lanes * vectors
    column_block = tile
    if pack_columns:
        strips = -(-height // row_tile)
        # Arrays that the rows pass after short sums are passed in long pieces, and their rows are shared.
        passing = rows is not None and depth <= CHAIN and _passed_arrays(kernel, rows.name) > 1
        shares = 1 if passing and strips >= PARALLEL_UNITS else PARALLEL_UNITS
        width = depth * _itemsize(shape, factor)
        column_block = _column_block(extents[columns], tile, strips, shares, width, target)
    return Tiling(
        rows.name if rows is not None else None,
        beside,
        more,
        columns,
        row_tile,
        vectors,
        lanes,
        pack_rows=pack_rows,
        pack_columns=pack_columns,
        run=RUN if pack_rows and along else 1,
        column_block=column_block,
    )


def _beside(loops: list[Loop]) -> Beside | None:
    """The loop to take pieces of beside the columns, where these fill one vector: more products for each load."""
    for size in range(2, MOST_BESIDE + 1):
        for one in reversed(loops):
            if one.extent % size == 0:
                return Beside(one.name, size)
    return None


def _more_rows(rows: Loop, own: list[Loop], row_tile: int, tallest: int) -> tuple[tuple[str, ...], int]:
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


def _pack_columns(shape: Contraction, factor: str, columns: str, reuse: int, depth: int) -> bool:
    """Pack what does not lie along the lanes, and what several row tiles read at long distances."""
    load = shape.load(factor)
    if load is None or load.index.factor(columns) != 1:
        return True
    return reuse >= PACK_REUSE and depth >= FAR_STEPS and _is_far(shape, factor, shape.inner[-1].name)


def _pack_rows(kernel: Kernel, shape: Contraction, factor: str, rows: Loop, reuse: int, target: Target) -> bool:
    """Pack rows that are computed, and long rows that many column tiles read across the direction they lie in."""
    load = shape.load(factor)
    if load is None:
        return True
    if load.index.factor(shape.inner[-1].name) == 1:
        return False
    extents = {o.name: o.extent for o in (*shape.outer, *shape.inner)}
    mine = shape.loops_of(factor)
    long = math.prod(o.extent for o in shape.inner) * rows.extent * _itemsize(shape, factor) > target.l1
    # Overlapping windows are more packed than they are.
    fits = math.prod(extents[name] for name in mine) <= kernel.buffer(load.buffer).size
    far = any(_is_far(shape, factor, one.name) for one in (rows, *shape.inner) if one.name in mine)
    return reuse >= PACK_REUSE and long and far and fits


def _is_far(shape: Contraction, factor: str, loop: str) -> bool:
    """Whether neighbors in a loop lie on different pages and in the same few sets of the first cache."""
    load = shape.load(factor)
    return load is not None and abs(load.index.factor(loop)) * _itemsize(shape, factor) >= FAR_BYTES


def tile_shape(rows: int, columns: int, target: Target, lanes: int) -> tuple[int, int]:
    """Rows and vectors per tile: as many accumulators as registers allow; rows evenly divided if that costs little."""
    budget = target.registers - 4
    vectors = 2 if rows > 6 else 4 if rows > 2 else 8
    vectors = max(1, min(vectors, -(-columns // lanes)))
    return _even(rows, max(1, budget // vectors)), vectors


def _even(rows: int, tallest: int) -> int:
    """The height of a tile: one that divides the rows needs no second form of the kernel for the rest."""
    if rows <= tallest:
        return rows
    if rows <= LOW * tallest:
        for tile in range(tallest, tallest // 2, -1):
            if rows % tile == 0:
                return tile
    return -(-rows // -(-rows // tallest))


def _factors(shape: Contraction, tiling: Tiling) -> tuple[str, str]:
    left, right = shape.factors
    return (right, left) if tiling.columns in shape.loops_of(left) else (left, right)


def _tile_steps(shape: Contraction, tiling: Tiling) -> tuple[Step, ...]:
    rows, more, columns = tiling.rows, tiling.more, tiling.columns
    order = [o.name for o in _outer(shape, tiling)]
    steps: list[Step] = [Split(tiling.beside.loop, tiling.beside.size)] if tiling.beside is not None else []
    for name in (rows, *more, columns):
        if name is not None:
            steps += [Distribute(name)] * (len(order) - 1 - order.index(name))
            order = [n for n in order if n != name] + [name]
    levels = 1 + len(shape.inner)
    if shape.inner:
        last = shape.inner[-1].name
        if shape.inner[-1].extent >= 2 * CHAIN:
            steps += [Split(last, CHAIN), Block(f"{last}.1", "total")]
            last, levels = f"{last}.1", levels + 1
        if tiling.run > 1:
            steps.append(Split(last, tiling.run))
    steps.append(Split(columns, tiling.column_block))
    if tiling.is_blocked:
        steps.append(Split(f"{columns}.1", tiling.column_tile))
    inner = tiling.tile_columns
    steps += [Split(inner, tiling.lanes), Vectorize(f"{inner}.1", tiling.lanes), Unroll(f"{inner}.0")]
    around = inner.removesuffix(".1") + ".0"
    if rows is None:
        steps += [*_inward(f"{inner}.1", f"{inner}.0", levels=levels), Join(around)]
    else:
        tile = f"{rows}.1"
        steps.append(Split(rows, tiling.row_tile))
        # From the inside out. A vector beside another is used by the rows of a tile in turn, as that one is.
        written_out = (*reversed(more), tile) if tiling.beside is not None else (tile, *reversed(more))
        passed = tiling.column_levels + (len(more) if tiling.beside is None else 0)
        for name in written_out:
            steps += [Unroll(name), *_inward(name, levels=passed)]
            passed = tiling.column_levels
        steps += [*_inward(f"{inner}.1", f"{inner}.0", levels=levels), Join(tile)]
        steps += _inward(*written_out, levels=levels)
        # Columns outside rows: the panel of columns stays in the cache while the rows pass by.
        steps.append(Distribute(f"{rows}.0"))
    blocks = _blocks(shape, tiling)
    steps += shared([name for name, _ in blocks], [size for _, size in blocks])
    extents = {o.name: o.extent for o in shape.outer}
    if rows is not None and extents[rows] % tiling.row_tile:
        steps += [Merge(name) for name, _ in blocks if name != f"{rows}.0"]
    return tuple(steps)


def _is_one_row(shape: Contraction, tiling: Tiling) -> bool:
    """Whether one row meets a factor that lies along the columns, in lines far apart, and is read only once."""
    if tiling.rows is not None or len(shape.inner) != 1 or shape.inner[0].extent < 2 * ROW_GROUP:
        return False
    _, factor = _factors(shape, tiling)
    load, last = shape.load(factor), shape.inner[0]
    return load is not None and load.index.factor(tiling.columns) == 1 and _is_far(shape, factor, last.name)


def _row_steps(shape: Contraction, tiling: Tiling) -> tuple[Step, ...]:
    """Read the lines of a factor in long pieces, several lines at once, into sums kept in the first cache.

    Register tiles would read short pieces of many lines, which memory delivers much more slowly.
    """
    columns, last = tiling.columns, shape.inner[0].name
    extents = {o.name: o.extent for o in shape.outer}
    order = [o.name for o in shape.outer]
    width = tiling.lanes * max(ROW_VECTORS, extents[columns] // (tiling.lanes * PARALLEL_UNITS))
    width = min(width, ROW_LONGEST)
    blocks = [(name, extents[name]) for name in order if name != columns]
    blocks.append((f"{columns}.0", -(-extents[columns] // width)))
    inner = f"{columns}.1"
    return (
        *[Distribute(columns)] * (len(order) - 1 - order.index(columns)),
        Split(last, ROW_GROUP),
        Block(f"{last}.1", "total"),
        Split(columns, width),
        Split(inner, tiling.lanes),
        Vectorize(f"{inner}.1", tiling.lanes),
        *[Distribute(f"{inner}.1")] * 2,
        Unroll(f"{last}.1"),
        Distribute(f"{inner}.0"),
        Keep("total"),
        *shared([name for name, _ in blocks], [size for _, size in blocks]),
    )


def _outer(shape: Contraction, tiling: Tiling) -> list[Loop]:
    """The outer loops, after a piece of one was taken beside the columns."""
    out: list[Loop] = []
    for one in shape.outer:
        if tiling.beside is not None and one.name == tiling.beside.loop:
            size = tiling.beside.size
            out += [Loop(f"{one.name}.0", one.extent // size), Loop(f"{one.name}.1", size)]
        else:
            out.append(one)
    return out


def _blocks(shape: Contraction, tiling: Tiling) -> list[tuple[str, int]]:
    """The loops around a register tile from outside in, and their extents, before one of them is made parallel."""
    extents = {o.name: o.extent for o in shape.outer}
    rows, columns = tiling.rows, tiling.columns
    blocks = [(o.name, o.extent) for o in _outer(shape, tiling) if o.name not in (rows, *tiling.more, columns)]
    blocks.append((f"{columns}.0", -(-extents[columns] // tiling.column_block)))
    if rows is not None:
        blocks.append((f"{rows}.0", -(-extents[rows] // tiling.row_tile)))
    return blocks


def _is_filled_once(shape: Contraction, tiling: Tiling, factor: str) -> bool:
    """Whether the loops that a factor depends on are the outermost ones, so that a panel of it is packed only once."""
    blocks = _blocks(shape, tiling)
    first = blocks.pop(parallel_position([size for _, size in blocks]))
    columns, mine = f"{tiling.columns}.0", shape.loops_of(factor)
    order = [name for name, size in (first, *blocks) if size > 1 or name == columns]
    needed = [name for name in order if name in mine or name == columns]
    return order[: len(needed)] == needed


def _spill_steps(kernel: Kernel, tiling: Tiling) -> tuple[Step, ...]:
    """Roll up an epilogue that would be long when written out for every accumulator, or that passes several arrays."""
    if tiling.rows is None:
        return ()
    lets = [s for f in loops_of(kernel.body) if any(isinstance(s, Finish) for s in f.body) for s in f.body]
    weight = sum(COSTS.get(s.op, 1) for s in lets if isinstance(s, Let))
    long = weight * tiling.row_tile * tiling.vectors > LONG_EPILOGUE
    if not long and not (tiling.is_blocked and _passed_arrays(kernel, tiling.rows) > 1):
        return ()
    inner = tiling.tile_columns
    block = f"{tiling.columns}.1.0" if tiling.is_blocked else None
    return (Spill(f"{tiling.rows}.1", f"{inner}.0", f"{inner}.1", "tile", block),)


def _passed_arrays(kernel: Kernel, rows: str) -> int:
    """How many arrays the statements after the sums read or write in other places for every row."""
    after = [s for f in loops_of(kernel.body) if any(isinstance(s, Finish) for s in f.body) for s in f.body]
    return len({s.buffer for s in after if isinstance(s, Load | Store) and s.index.factor(rows)})


def _inward(*loops: str, levels: int) -> list[Step]:
    """Each loop past every loop the summation is made of."""
    return [Distribute(name) for name in loops for _ in range(levels)]


def _column_block(columns: int, tile: int, strips: int, shares: int, column_bytes: int, target: Target) -> int:
    """Columns of one panel: whole tiles, in at least so many shares.

    Panels that many strips of rows pass fill half of the second cache, so that the rows are read seldom; a panel that
    few pass is read again while it is in the nearer half.
    """
    room = target.l2 // 2 if strips > FEW_STRIPS else target.l2 // 8
    fitting = room // (tile * max(column_bytes, 1))
    return max(1, min(fitting, -(-columns // tile) if shares == 1 else columns // (tile * shares))) * tile


def _pack_steps(pack: Kernel, shape: Contraction, loop: str, tile: int, run: int, lanes: int) -> tuple[Step, ...]:
    """Tiles outermost; the direction in which the source lies contiguous runs along the lanes."""
    nest = [f.loop for f in loops_of(pack.body)]
    inner = [one.name for one in nest if one.name in {o.name for o in shape.inner}]
    outer = [one for one in nest if one.name not in inner and one.name != loop]
    steps: list[Step] = [Split(loop, tile)]
    if run > 1:
        last = inner[-1]
        steps += [Split(last, run), *[Distribute(f"{loop}.1")] * len(inner)]
        steps += [Split(f"{last}.1", min(lanes, run)), Vectorize(f"{last}.1.1", min(lanes, run))]
        steps.append(Unroll(f"{last}.1.0"))
    else:
        body = next(f.body for f in loops_of(pack.body) if not any(isinstance(s, For) for s in f.body))
        summed = [one for one in nest if one.name in inner]
        if lies_along(body, loop):
            steps += [Distribute(f"{loop}.1")] * len(inner)
            summed = []
        steps += copy_steps(body, f"{loop}.1", summed, lanes)
    blocks = [*(one.name for one in outer), f"{loop}.0"]
    extent = next(one.extent for one in nest if one.name == loop)
    return (*steps, *shared(blocks, [*(one.extent for one in outer), -(-extent // tile)]))
