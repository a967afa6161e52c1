"""Schedules of contractions for the CPU: the steps of a tiling, and of packing what it reads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from codegen.ahead import StripAhead, SumAhead, TermAhead
from codegen.costs import COSTS
from codegen.frame import ROW_GROUP, Frame, array_bytes, epilogue, frame_of, is_one_row, is_shifted, passed_arrays
from codegen.loop import Bind, Body, For, Kernel, Let, Load, Loop, Store, loops_of
from codegen.padding import LeaveOut, Note, Padding, can_note, is_sum, products_of
from codegen.stage import (
    Contraction,
    Panel,
    copy_steps,
    fill_panel,
    lies_along,
    stage,
    stage_panel,
)
from codegen.steps import (
    Block,
    Distribute,
    Join,
    Keep,
    Merge,
    Parallel,
    Spill,
    Split,
    Step,
    Unroll,
    Vectorize,
    WriteOut,
    apply,
)
from codegen.target import Target
from codegen.tiling import (
    CHAIN,
    PACKED_ROWS,
    PARALLEL_UNITS,
    Choice,
    Tiling,
    choice_by_rules,
    tiling_of,
)
from codegen.turn import Turn
from symgrad.types import float32, float64

# Instructions of an epilogue, written out for every accumulator, from which it is kept in loops.
LONG_EPILOGUE = 300
# Terms of a sum that are written out one after the other in a register tile, and the vector multiply-adds of them: of a
# long sum, to whose terms counting adds little, and of a short one.
MOST_TERMS = 8
MOST_PRODUCTS = 56
MOST_PRODUCTS_OF_FEW = 128
# Lines of a factor that are packed for all tiles before the next ones.
PACKED_LINES = 16
# The fewest and the most vectors of the pieces in which the lines of a factor are read that meets one row.
ROW_VECTORS = 32
ROW_LONGEST = 64


def schedule_contract(
    kernel: Kernel, target: Target, choice: Choice | None = None, padded: Mapping[str, Padding] = MappingProxyType({})
) -> list[tuple[Kernel, tuple[Step, ...]]]:
    """Scheduled kernels and their steps: those that pack factors where it pays, then the contraction itself.

    What is free is done as chosen, which is one of `choices`, else by rules. Columns that every row passes once are
    packed by each worker as a panel in its scratch memory; columns that come back for every block of rows, or for every
    step of another loop, are packed once, before. What `padded` arrays add nothing to is left out there.
    """
    frame = frame_of(kernel, target)
    if frame is None:
        return [_plain(kernel)]
    if is_one_row(frame):
        steps = _row_steps(frame)
        return [(apply(kernel, steps), steps)]
    shape = frame.shape
    tiling = tiling_of(frame, choice or choice_by_rules(frame))
    row_factor, column_factor = frame.row_factor, frame.column_factor
    out: list[tuple[Kernel, tuple[Step, ...]]] = []
    panel: Panel | None = None
    leaving: LeaveOut | None = None
    if tiling.pack_columns and _is_filled_once(shape, tiling, column_factor):
        kernel, panel = stage_panel(
            kernel, shape, column_factor, tiling.columns, tiling.column_block, tiling.column_tile, tiling.lanes, "panel"
        )
    elif tiling.pack_columns:
        staged = stage(kernel, shape, column_factor, tiling.columns, tiling.column_tile, 1, "packed_columns")
        steps = _pack_steps(staged.pack, shape, tiling.columns, tiling.column_tile, 1, tiling.lanes)
        pack = apply(staged.pack, steps)
        leaving = _leaving(frame, tiling, padded, "packed_columns", tiling.column_tile)
        if leaving is not None and not can_note(pack, leaving.note):
            leaving = None
        out.append((pack, steps))
        kernel = staged.rest
    if tiling.pack_rows and tiling.rows is not None:
        staged = stage(kernel, shape, row_factor, tiling.rows, tiling.row_tile, tiling.run, PACKED_ROWS)
        steps = _pack_steps(staged.pack, shape, tiling.rows, tiling.row_tile, tiling.run, tiling.lanes)
        out.append((apply(staged.pack, steps), steps))
        kernel = staged.rest
    steps = (*_tile_steps(shape, tiling), *_spill_steps(kernel, tiling))
    kernel = apply(kernel, steps)
    if panel is not None:
        leaving = _leaving(frame, tiling, padded, "panel", panel.block)
    note: Note | None = None
    if leaving is not None and (left := apply(kernel, [leaving])) != kernel:
        kernel, steps, note = left, (*steps, leaving), leaving.note
    writing = _written_out(kernel)
    kernel, steps = apply(kernel, writing), (*steps, *writing)
    if panel is not None:
        kernel = fill_panel(kernel, panel, note)
    elif note is not None:
        pack, packing = out[0]
        out[0] = apply(pack, [note]), (*packing, note)
    out.append((kernel, steps))
    return out


def _leaving(frame: Frame, tiling: Tiling, padded: Mapping[str, Padding], packed: str, columns: int) -> LeaveOut | None:
    """How terms are left out that are zero since rows are padded, with columns packed so many at a time; None if none.

    Sums in chains have other loops than these.
    """
    load = frame.shape.load(frame.row_factor)
    padding = padded.get(load.buffer) if load is not None and not tiling.pack_rows else None
    if load is None or padding is None or frame.shape.dtype(frame.column_factor) not in (float32, float64):
        return None
    mine = frame.shape.loops_of(frame.column_factor)
    size = columns * math.prod(one.extent for one in frame.shape.inner if one.name in mine)
    return LeaveOut(load.buffer, padding, Note(packed, size, f"{packed}_notes"))


def parallel_position(sizes: Sequence[int], apart: int = 0) -> int:
    """The outermost loop that has enough iterations to share, else the one with most.

    One of the first `apart` loops, of which no two iterations read the same, need not have as many, if those inside of
    it make up for them: what other kernels leave in the caches of a worker is then read by the same one.
    """
    for k, size in enumerate(sizes):
        if size >= PARALLEL_UNITS or (k < apart and size > 1 and math.prod(sizes[k:]) >= PARALLEL_UNITS):
            return k
    return max(range(len(sizes)), key=lambda k: sizes[k])


def shared(names: Sequence[str], sizes: Sequence[int], apart: int = 0) -> list[Step]:
    """Make the loop at the `parallel_position` of a perfect nest, given from outside in, the outermost and parallel."""
    first = parallel_position(sizes, apart)
    return [*(Distribute(name) for name in reversed(names[:first])), Parallel(names[first])]


def innermost(order: Sequence[str], *names: str) -> tuple[list[Step], list[str]]:
    """Move loops of a perfect nest, given from outside in, to its inside one after the other; the order then."""
    steps: list[Step] = []
    moved = list(order)
    for name in names:
        steps += [Distribute(name)] * (len(moved) - 1 - moved.index(name))
        moved = [n for n in moved if n != name] + [name]
    return steps, moved


def _plain(kernel: Kernel) -> tuple[Kernel, tuple[Step, ...]]:
    """Nothing to tile: share the outermost loop, if there is one."""
    first = next((f.loop.name for f in loops_of(kernel.body)), None)
    steps = (Parallel(first),) if first is not None and first.startswith("d") else ()
    return apply(kernel, steps), steps


def _tile_steps(shape: Contraction, tiling: Tiling) -> tuple[Step, ...]:
    """The steps of a tiling."""
    rows, more, columns = tiling.rows, tiling.more, tiling.columns
    steps: list[Step] = [Split(tiling.beside.loop, tiling.beside.size)] if tiling.beside is not None else []
    inside = (*more, columns) if rows is None else (rows, *more, columns)
    steps += innermost([o.name for o in _outer(shape, tiling)], *inside)[0]
    levels = 1 + len(shape.inner)
    fetching: str | None = None
    later: list[Step] = []
    if shape.inner:
        last = shape.inner[-1].name
        if shape.inner[-1].extent >= 2 * CHAIN:
            steps += [Split(last, CHAIN), Block(f"{last}.1", "total")]
            last, levels = f"{last}.1", levels + 1
        if tiling.run > 1:
            steps.append(Split(last, tiling.run))
        if tiling.line:
            steps.append(Split(last, tiling.line))
            fetching, levels = f"{last}.1", levels + 1
        later += (_sum_ahead(array, last, terms, tiling) for array, terms in tiling.later)
    ahead = _term_ahead(shape, tiling)
    if ahead is not None and ahead.share is not None:
        steps.append(Split(ahead.term.removesuffix(".0"), _shares(shape, tiling)))
        levels += 1
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
    steps += [Distribute(name) for name in reversed(tiling.passing)]
    steps += _shifts_inward(shape, tiling)
    blocks = _blocks(shape, tiling)
    steps += shared([name for name, _ in blocks], [size for _, size in blocks], _joint(shape, blocks))
    extents = {o.name: o.extent for o in shape.outer}
    if rows is not None and extents[rows] % tiling.row_tile:
        steps += [Merge(name) for name, _ in blocks if name != f"{rows}.0"]
    if fetching is not None:
        steps.append(StripAhead(f"{rows}.0", f"{rows}.1", fetching))
    if ahead is not None:
        steps.append(ahead)
    steps += later
    return tuple(steps)


def _sum_ahead(array: str, last: str, terms: int, tiling: Tiling) -> SumAhead:
    """How what a tile reads so many terms later of the innermost sum `last` is fetched, or of a run in packed rows."""
    if tiling.run > 1 and array == PACKED_ROWS:
        return SumAhead(array, f"{last}.0", max(1, terms // tiling.run))
    return SumAhead(array, f"{last}.1" if tiling.run > 1 or tiling.line else last, terms)


def _written_out(kernel: Kernel) -> list[Step]:
    """Write out several terms of the innermost loops of sums: to count them takes instructions as well."""
    found: dict[str, list[For]] = {}
    for stmt in _innermost_sums(kernel.body):
        found.setdefault(stmt.loop.name, []).append(stmt)
    steps: list[Step] = []
    for name, stmts in found.items():
        if any(s.loop.bind is not Bind.SERIAL or s.loop.skip is not None for s in stmts):
            continue
        terms = math.gcd(*(s.loop.extent for s in stmts))
        products = MOST_PRODUCTS_OF_FEW if terms <= MOST_TERMS else MOST_PRODUCTS
        most = min(products * s.loop.extent // products_of(s) for s in stmts)
        count = next((k for k in range(min(MOST_TERMS, most), 1, -1) if terms % k == 0), 1)
        if count > 1:
            steps.append(WriteOut(name, count))
    return steps


def _innermost_sums(body: Body) -> Iterator[For]:
    """The loops of sums that have none but written out ones in them, but for those of what splits left over."""
    for stmt in body:
        if not isinstance(stmt, For) or stmt.loop.start:
            continue
        if is_sum(stmt) and all(f.loop.bind in (Bind.UNROLL, Bind.VECTOR) for f in loops_of(stmt.body)):
            yield stmt
        else:
            yield from _innermost_sums(stmt.body)


def _term_ahead(shape: Contraction, tiling: Tiling) -> TermAhead | None:
    """How what the rows of a turned tile read is fetched an iteration ahead, term by term of the outermost sum."""
    if tiling.ahead is None or not shape.inner:
        return None
    load = next(load for f in shape.factors if tiling.rows in shape.loops_of(f) and (load := shape.load(f)) is not None)
    term, _ = _first_terms(shape)
    if _shares(shape, tiling) == 1:
        return TermAhead(load.buffer, tiling.ahead, term)
    return TermAhead(load.buffer, tiling.ahead, f"{term}.0", f"{term}.1", f"{tiling.columns}.1.0")


def _first_terms(shape: Contraction) -> tuple[str, int]:
    """The outermost loop over terms of a sum, or of a chain of one that consists of several, and its extent."""
    first = shape.inner[0]
    in_chains = len(shape.inner) == 1 and first.extent >= 2 * CHAIN
    return (f"{first.name}.1", CHAIN) if in_chains else (first.name, first.extent)


def _shares(shape: Contraction, tiling: Tiling) -> int:
    """Among how many tiles of a block of columns the terms are divided that each fetches for all."""
    _, extent = _first_terms(shape)
    return next(k for k in range(tiling.column_block // tiling.column_tile, 0, -1) if extent % k == 0)


def _row_steps(frame: Frame) -> tuple[Step, ...]:
    """Read the lines of a factor in long pieces, several lines at once, into sums kept in the first cache.

    Register tiles would read short pieces of many lines, which memory delivers much more slowly.
    """
    outer, columns, extent = frame.shape.outer, frame.columns.name, frame.columns.extent
    last = frame.shape.inner[0].name
    blocks = [(o.name, o.extent) for o in outer if o.name != columns]
    others = math.prod(size for _, size in blocks)
    vectors = others * extent // (frame.lanes * PARALLEL_UNITS)
    width = frame.lanes * min(max(ROW_VECTORS, vectors), ROW_LONGEST)
    blocks.append((f"{columns}.0", -(-extent // width)))
    inner = f"{columns}.1"
    is_near = array_bytes(frame, frame.column_factor) <= frame.target.near
    ahead = () if is_near else (StripAhead(f"{last}.0", f"{last}.1", f"{inner}.1"),)
    return (
        *innermost([o.name for o in outer], columns)[0],
        Split(last, ROW_GROUP),
        Block(f"{last}.1", "total"),
        Split(columns, width),
        Split(inner, frame.lanes),
        Vectorize(f"{inner}.1", frame.lanes),
        *_inward(f"{inner}.1", levels=2),
        Unroll(f"{last}.1"),
        Distribute(f"{inner}.0"),
        Keep("total"),
        *shared([name for name, _ in blocks], [size for _, size in blocks]),
        *ahead,
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
    """The loops around a register tile from outside in, and their extents, before one of them is made parallel.

    Not those over strips of rows where workers pack all columns alone: to divide them comes after that.
    """
    extents = {o.name: o.extent for o in shape.outer}
    rows, columns, passing, shifts = tiling.rows, tiling.columns, tiling.passing, _shifts(shape, tiling)
    around = (rows, *tiling.more, columns, *passing, *shifts)
    blocks = [(o.name, o.extent) for o in _outer(shape, tiling) if o.name not in around]
    blocks.append((f"{columns}.0", -(-extents[columns] // tiling.column_block)))
    blocks += [(name, extents[name]) for name in passing]
    if rows is not None and not tiling.alone:
        blocks.append((f"{rows}.0", -(-extents[rows] // tiling.row_tile)))
    return blocks + [(name, extents[name]) for name in shifts]


def _joint(shape: Contraction, blocks: Sequence[tuple[str, int]]) -> int:
    """How many of the outermost loops both factors depend on, as those over the blocks of a long sum."""
    joint = shape.loops_of(shape.factors[0]) & shape.loops_of(shape.factors[1])
    return next((k for k, (name, _) in enumerate(blocks) if name not in joint), len(blocks))


def _shifts(shape: Contraction, tiling: Tiling) -> list[str]:
    """The loops that read the same rows shifted: the places in a window, where it is not these that are summed over.

    They are innermost: a strip of rows stays in the cache, and what it is stored to.
    """
    if tiling.turned or tiling.rows is None or tiling.pack_rows:
        return []
    factor = next(f for f in shape.factors if tiling.rows in shape.loops_of(f))
    load = shape.load(factor)
    if load is None:
        return []
    shifted = [o.name for o in shape.outer if is_shifted(load, o, shape.inner)]
    mine = shape.loops_of(shape.factors[0]) ^ shape.loops_of(shape.factors[1])
    kept = (tiling.rows, *tiling.more)
    return [] if tiling.rows in shifted else [name for name in shifted if name in mine and name not in kept]


def _shifts_inward(shape: Contraction, tiling: Tiling) -> list[Step]:
    """Move the loops that shift to the inside of those over blocks, which end with columns and rows."""
    shifts = _shifts(shape, tiling)
    around = (tiling.rows, *tiling.more, tiling.columns)
    order = [o.name for o in _outer(shape, tiling) if o.name not in around]
    steps: list[Step] = []
    for name in reversed(shifts):
        passed = [other for other in order[order.index(name) + 1 :] if other not in shifts]
        steps += _inward(name, levels=len(passed) + 2)
    return steps


def _is_filled_once(shape: Contraction, tiling: Tiling, factor: str) -> bool:
    """Whether the loops that a factor depends on are the outermost ones, so that a panel of it is packed only once.

    That is asked without loops that are parallel only for being apart: workers who share what is inside of one would
    each pack its panel.
    """
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
    inner = tiling.tile_columns
    if tiling.turned:
        return (Turn(f"{tiling.rows}.1", f"{inner}.0", f"{inner}.1", "tile"),)
    after = epilogue(kernel)
    weight = sum(COSTS.get(s.op, 1) for s in after if isinstance(s, Let))
    # Lanes that lie apart in memory are read and written one by one.
    accesses = [s for s in after if isinstance(s, Load | Store)]
    weight += tiling.lanes * sum(s.index.factor(tiling.columns) not in (0, 1) for s in accesses)
    extents = {f.loop.name: f.loop.extent for f in loops_of(kernel.body)}
    more = math.prod(extents[name] for name in tiling.more if tiling.beside is None)
    long = weight * tiling.row_tile * more * tiling.vectors > LONG_EPILOGUE
    if not long and not (tiling.is_blocked and passed_arrays(kernel, tiling.rows) > 1):
        return ()
    block = f"{tiling.columns}.1.0" if tiling.is_blocked else None
    return (Spill(f"{tiling.rows}.1", f"{inner}.0", f"{inner}.1", "tile", block, tiling.more),)


def _inward(*loops: str, levels: int) -> list[Step]:
    """Each loop past so many loops inside of it."""
    return [Distribute(name) for name in loops for _ in range(levels)]


def _pack_steps(pack: Kernel, shape: Contraction, loop: str, tile: int, run: int, lanes: int) -> tuple[Step, ...]:
    """Tiles outermost; the direction in which the source lies contiguous runs along the lanes.

    Where that is across tiles, a few lines are read for all of these before the next ones.
    """
    nest = [f.loop for f in loops_of(pack.body)]
    inner = [one.name for one in nest if one.name in {o.name for o in shape.inner}]
    outer = [one for one in nest if one.name not in inner and one.name != loop]
    extents = {one.name: one.extent for one in nest}
    body = next(f.body for f in loops_of(pack.body) if not any(isinstance(s, For) for s in f.body))
    steps: list[Step] = []
    if run == 1 and inner and lies_along(body, loop) and extents[inner[-1]] > PACKED_LINES:
        last = inner[-1]
        steps += [Split(last, PACKED_LINES), *[Distribute(loop)] * len(inner), Split(loop, tile)]
        steps += [Distribute(f"{loop}.1"), *copy_steps(body, f"{loop}.1", (), lanes)]
        before = [*(one.name for one in outer), *inner[:-1]]
        blocks = [*before, f"{last}.0", f"{loop}.0"]
        sizes = [*(extents[name] for name in before), -(-extents[last] // PACKED_LINES), -(-extents[loop] // tile)]
        return (*steps, *shared(blocks, sizes))
    steps.append(Split(loop, tile))
    if run > 1:
        last = inner[-1]
        steps += [Split(last, run), *[Distribute(f"{loop}.1")] * len(inner)]
        steps += [Split(f"{last}.1", min(lanes, run)), Vectorize(f"{last}.1.1", min(lanes, run))]
        steps.append(Unroll(f"{last}.1.0"))
    else:
        summed = [one for one in nest if one.name in inner]
        if lies_along(body, loop):
            steps += [Distribute(f"{loop}.1")] * len(inner)
            summed = []
        steps += copy_steps(body, f"{loop}.1", summed, lanes)
    blocks = [*(one.name for one in outer), f"{loop}.0"]
    extent = next(one.extent for one in nest if one.name == loop)
    return (*steps, *shared(blocks, [*(one.extent for one in outer), -(-extent // tile)]))
