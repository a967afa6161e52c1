"""Schedule steps as data, and their application to a kernel. Loops are addressed by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from codegen.affine import Affine, tile_of, tile_quotient, tile_remainder, variable
from codegen.ahead import (
    Ahead,
    MapAhead,
    StripAhead,
    SumAhead,
    TermAhead,
    fetch_ahead,
    fetch_map,
    fetch_strip,
    fetch_sum,
    fetch_terms,
)
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Buffer,
    Finish,
    For,
    Init,
    Kernel,
    Let,
    Load,
    Loop,
    Space,
    Stmt,
    Store,
    defined,
    finishes,
    indices_of,
    loops_of,
    map_indices,
    replace_loops,
    replace_statements,
    statements_of,
    used,
)
from codegen.overlap import Overlap, overlap
from codegen.padding import LeaveOut, Note, apply_note, leave_out
from codegen.share import Share, apply_share
from codegen.single import Apart, Single, take_apart, take_single
from codegen.stream import Gather, Stream, apply_stream, gather
from codegen.transpose import Transpose, apply_transpose
from codegen.turn import Turn, turn
from symgrad.record import record, replace
from symgrad.storage import Literal


@record
class Split:
    """Make `loop` two: `loop.0` over blocks of `factor`, the last one shorter if need be, and `loop.1` inside."""

    loop: str
    factor: int


@record
class Distribute:
    """Move `loop` inward past the serial loops in its body, splitting the body around them.

    Accumulators that live across the pieces get an axis. Loops already bound to lanes or written out stay inside.
    """

    loop: str


@record
class Fuse:
    """Replace perfectly nested `outer` and `inner`, whose indices run on without a gap, by one loop named `outer`."""

    outer: str
    inner: str


@record
class Block:
    """Sum what `loop` runs over by itself and add up those sums: shorter chains, less error.

    `loop` is the inner one of a split summation loop. `total` names the new accumulator.
    """

    loop: str
    total: str


@record
class Join:
    """Inside `loop`, run summations over the same range together: those of whole vectors and of what is left over."""

    loop: str


@record
class Merge:
    """Make loops called `loop` that stand in one body and run over the same range one loop, in the place of the first.

    Splits whose last block is shorter leave such loops behind. Their iterations must not depend on each other.
    """

    loop: str


@record
class Spill:
    """Keep finished accumulators of a tile in scratch memory, and run what follows in loops that are not written out.

    `rows` and `columns` are the unrolled loops of the tile, `lanes` its vector loop. A long epilogue then exists once
    instead of once per accumulator. With `block`, the serial loop over tiles side by side, it follows after all of
    these, so that it passes each row of them in one go. `more` are further loops of the tile.
    """

    rows: str
    columns: str
    lanes: str
    tile: str
    block: str | None = None
    more: tuple[str, ...] = ()


@record
class Keep:
    """Keep the sums called `total` in scratch memory, so that loops over them need not be written out."""

    total: str


@record
class Vectorize:
    """Run `loop` in the lanes of a vector."""

    loop: str
    lanes: int


@record
class Unroll:
    """Write out `loop`."""

    loop: str


@record
class WriteOut:
    """Write out `count` iterations of `loop` at a time, except in what splits left over, which runs seldom."""

    loop: str
    count: int


@record
class Parallel:
    """Share the iterations of the outermost `loop` among workers."""

    loop: str


Step: TypeAlias = (
    Split
    | Distribute
    | Fuse
    | Block
    | Join
    | Merge
    | Spill
    | Share
    | Turn
    | Keep
    | Transpose
    | Single
    | Apart
    | Stream
    | Gather
    | Ahead
    | MapAhead
    | StripAhead
    | SumAhead
    | TermAhead
    | Overlap
    | Note
    | LeaveOut
    | Vectorize
    | Unroll
    | WriteOut
    | Parallel
)


def apply(kernel: Kernel, steps: Iterable[Step]) -> Kernel:
    """The kernel after each step in turn. ValueError for a step that does not fit."""
    for step in steps:
        kernel = _apply_one(kernel, step)
    return kernel


def _apply_one(kernel: Kernel, step: Step) -> Kernel:
    match step:
        case Split(loop, factor):
            return replace(kernel, body=replace_loops(kernel.body, loop, lambda f: _split(f, factor)))
        case Distribute(loop):
            return _distribute(kernel, loop)
        case Fuse(outer, inner):
            return replace(kernel, body=replace_loops(kernel.body, outer, lambda f: _fuse(f, inner)))
        case Block(loop, total):
            return _block(kernel, loop, total)
        case Join(loop):
            return replace(kernel, body=replace_loops(kernel.body, loop, lambda f: (For(f.loop, _joined(f.body)),)))
        case Merge(loop):
            return replace(kernel, body=_merged(kernel.body, loop))
        case Spill():
            return _spill(kernel, step)
        case Turn():
            return turn(kernel, step)
        case Keep(total):
            return _kept(kernel, total)
        case Transpose():
            return apply_transpose(kernel, step)
        case Share():
            return apply_share(kernel, step)
        case Single():
            return take_single(kernel, step)
        case Apart():
            return take_apart(kernel, step)
        case Stream():
            return apply_stream(kernel, step)
        case Gather():
            return gather(kernel, step)
        case Ahead():
            return fetch_ahead(kernel, step)
        case MapAhead():
            return fetch_map(kernel, step)
        case StripAhead():
            return fetch_strip(kernel, step)
        case SumAhead():
            return fetch_sum(kernel, step)
        case TermAhead():
            return fetch_terms(kernel, step)
        case Overlap():
            return overlap(kernel, step)
        case Note():
            return apply_note(kernel, step)
        case LeaveOut():
            return leave_out(kernel, step)
        case Vectorize(loop, lanes):
            return replace(kernel, body=replace_loops(kernel.body, loop, lambda f: _bound(f, Bind.VECTOR, lanes)))
        case WriteOut():
            return replace(kernel, body=_write_out(kernel.body, step))
        case Unroll(loop):
            return replace(kernel, body=replace_loops(kernel.body, loop, lambda f: _bound(f, Bind.UNROLL, 0)))
        case Parallel(loop):
            body = tuple(
                For(replace(s.loop, bind=Bind.PARALLEL), s.body) if isinstance(s, For) and s.loop.name == loop else s
                for s in kernel.body
            )
            return replace(kernel, body=body)


def _bound(stmt: For, bind: Bind, lanes: int) -> Body:
    return (For(replace(stmt.loop, bind=bind, lanes=lanes), stmt.body),)


def _split(stmt: For, factor: int) -> Body:
    loop = stmt.loop
    if loop.start:
        raise ValueError(f"split {loop.name}: loops that start at {loop.start} cannot be split")
    whole, rest = divmod(loop.extent, factor)
    body = split_body(stmt.body, loop.name, factor)
    out: list[Stmt] = []
    if whole:
        out.append(For(Loop(f"{loop.name}.0", whole), (For(Loop(f"{loop.name}.1", factor), body),)))
    if rest:
        out.append(For(Loop(f"{loop.name}.0", 1, whole), (For(Loop(f"{loop.name}.1", rest), body),)))
    return tuple(out)


def _write_out(body: Body, step: WriteOut) -> Body:
    out: list[Stmt] = []
    for stmt in body:
        if not isinstance(stmt, For) or stmt.loop.start:
            out.append(stmt)
        elif stmt.loop.name != step.loop:
            out.append(For(stmt.loop, _write_out(stmt.body, step)))
        elif stmt.loop.extent % step.count or stmt.loop.skip is not None:
            raise ValueError(f"write out {step.loop}: not a multiple of {step.count} iterations, none of them left out")
        else:
            out += replace_loops(_split(stmt, step.count), f"{step.loop}.1", lambda f: _bound(f, Bind.UNROLL, 0))
    return tuple(out)


def split_body(body: Body, name: str, factor: int) -> Body:
    """The body of a loop in the two loops that a split makes of it."""
    values = {name: variable(f"{name}.0") * factor + variable(f"{name}.1")}
    values |= _tile_variables(body, name, factor)
    return map_indices(body, lambda index: index.substitute(values))


def _tile_variables(body: Body, name: str, factor: int) -> dict[str, Affine]:
    """What the tile variables of a loop become when it is split."""
    values: dict[str, Affine] = {}
    for index in indices_of(body):
        for term, _ in index.terms:
            tile = tile_of(term)
            if tile is None or tile.loop != name:
                continue
            if factor % tile.size:
                raise ValueError(f"split {name} by {factor}: not a multiple of its tile {tile.size}")
            outer, inner = variable(f"{name}.0"), f"{name}.1"
            if factor == tile.size:
                values[term] = outer if tile.is_quotient else variable(inner)
            elif tile.is_quotient:
                values[term] = outer * (factor // tile.size) + tile_quotient(inner, tile.size)
            else:
                values[term] = tile_remainder(inner, tile.size)
    return values


def _fuse(stmt: For, inner_name: str) -> Body:
    (inner,) = stmt.body
    if not isinstance(inner, For) or inner.loop.name != inner_name or inner.loop.start or stmt.loop.start:
        raise ValueError(f"fuse: {inner_name} is not the only thing inside {stmt.loop.name}")
    outer, extent = stmt.loop, inner.loop.extent
    for index in indices_of(inner.body):
        if index.factor(outer.name) != index.factor(inner_name) * extent:
            raise ValueError(f"fuse: {index} has a gap between {outer.name} and {inner_name}")
    values = {outer.name: Affine(0), inner_name: variable(outer.name)}
    body = map_indices(inner.body, lambda index: index.substitute(values))
    return (For(Loop(outer.name, outer.extent * extent), body),)


def can_fuse(stmt: For) -> str | None:
    """The name of the loop that a loop can be fused with, if any."""
    if len(stmt.body) != 1 or not isinstance(stmt.body[0], For):
        return None
    inner = stmt.body[0]
    for index in indices_of(inner.body):
        if index.factor(stmt.loop.name) != index.factor(inner.loop.name) * inner.loop.extent:
            return None
    return inner.loop.name


def _block(kernel: Kernel, loop: str, total: str) -> Kernel:
    outer = loop.removesuffix(".1") + ".0"
    found = next(s for f in loops_of(kernel.body) if f.loop.name == loop for s in f.body if isinstance(s, Accumulate))
    old = kernel.buffer(found.buffer)

    def inside(stmt: For) -> Body:
        part = f"{old.name}_part"
        dtype = old.dtype
        body: Body = (
            Init(old.name, found.index, found.combine),
            *stmt.body,
            Finish(part, old.name, found.index, found.combine, dtype),
            Accumulate(total, found.index, "sum", (part,)),
        )
        return (For(stmt.loop, body),)

    def around(body: Body) -> Body:
        out: list[Stmt] = []
        for stmt in body:
            match stmt:
                case For() if stmt.loop.name == outer:
                    out += inside(stmt)
                case For():
                    out.append(For(stmt.loop, around(stmt.body)))
                case Init() | Finish() if stmt.buffer == old.name:
                    out.append(replace(stmt, buffer=total, combine="sum"))
                case _:
                    out.append(stmt)
        return tuple(out)

    return replace(kernel, body=around(kernel.body), locals=(*kernel.locals, replace(old, name=total)))


def _joined(body: Body) -> Body:
    """Beginnings of accumulators, then their summations with equal loops made one, then what uses the sums."""
    if not _has_several_sums(body):
        return body
    begin: list[Stmt] = []
    sums: dict[Loop, list[Stmt]] = {}
    rest: list[Stmt] = []
    for stmt in body:
        if (
            isinstance(stmt, For)
            and _is_serial(stmt)
            and any(isinstance(s, Accumulate) for s in _accumulating((stmt,)))
        ):
            sums.setdefault(stmt.loop, []).extend(stmt.body)
        elif any(isinstance(s, Init) for s in _accumulating((stmt,))):
            begin.append(stmt)
        else:
            rest.append(stmt)
    together = [For(loop, _joined(tuple(inner))) for loop, inner in sums.items()]
    return (*begin, *together, *rest)


def _merged(body: Body, name: str) -> Body:
    """The body with equal loops of this name made one, here and inside other loops."""
    out: list[Stmt] = []
    first: dict[Loop, int] = {}
    for stmt in body:
        if not isinstance(stmt, For):
            out.append(stmt)
        elif stmt.loop.name != name:
            out.append(For(stmt.loop, _merged(stmt.body, name)))
        elif stmt.loop in first:
            place = first[stmt.loop]
            before = out[place]
            assert isinstance(before, For)
            out[place] = For(stmt.loop, (*before.body, *stmt.body))
        else:
            first[stmt.loop] = len(out)
            out.append(stmt)
    return tuple(out)


def _has_several_sums(body: Body) -> bool:
    loops = [s.loop for s in body if isinstance(s, For) and _is_serial(s)]
    return len(loops) > len(set(loops))


def _spill(kernel: Kernel, step: Spill) -> Kernel:
    extents = {name: _extent(kernel, name) for name in (step.rows, step.columns, step.lanes)}
    width = extents[step.columns] * extents[step.lanes]
    index = variable(step.columns) * extents[step.lanes] + variable(step.lanes)
    if step.block is not None:
        index = index + variable(step.block) * width
        width *= _extent(kernel, step.block)
    for name in step.more:
        index = index + variable(name) * width
        width *= _extent(kernel, name)
    index = index + variable(step.rows) * width
    found = [s for f in loops_of(kernel.body) if f.loop.name == step.lanes for s in f.body if isinstance(s, Finish)]
    finish = found[-1]  # the last one: earlier ones are of sums that are summed again
    kept = Buffer(step.tile, finish.dtype, extents[step.rows] * width, Space.SCRATCH)

    def halves(stmt: Stmt) -> tuple[For, For] | None:
        """The nest that ends in storing the sums, and the rolled one that goes on from there."""
        if not isinstance(stmt, For) or stmt.loop.name != step.rows:
            return None
        if not any(s.buffer == finish.buffer for s in _accumulating(stmt.body) if isinstance(s, Finish)):
            return None
        store = Store(step.tile, index, finish.name)
        load = Load(finish.name, step.tile, index, finish.dtype)
        first = replace_statements(stmt.body, lambda s: (s, store) if finishes(s, finish.buffer) else ())
        second = replace_statements(stmt.body, lambda s: (load if finishes(s, finish.buffer) else s,))
        return For(stmt.loop, first), _rolled(For(stmt.loop, second))

    def in_place(rows: For) -> Body:
        return halves(rows) or (rows,)

    def after(block: For) -> Body:
        tiles: list[Stmt] = []
        rest: list[Stmt] = []
        for stmt in block.body:
            parts = halves(stmt)
            tiles.append(stmt if parts is None else parts[0])
            if parts is not None:
                rest.append(For(parts[1].loop, (For(block.loop, parts[1].body),)))
        return (For(block.loop, tuple(tiles)), *rest)

    loop, change = (step.rows, in_place) if step.block is None else (step.block, after)
    return replace(kernel, body=replace_loops(kernel.body, loop, change), locals=(*kernel.locals, kept))


def _kept(kernel: Kernel, total: str) -> Kernel:
    dtype = kernel.buffer(total).dtype
    zero, before, after = f"{total}_zero", f"{total}_before", f"{total}_after"
    literal = Literal(np.zeros((), dtype.np))

    def change(stmt: Stmt) -> Body:
        match stmt:
            case Init(buffer, index) if buffer == total:
                return Let(zero, "const", (), dtype, (("value", literal),)), Store(total, index, zero)
            case Accumulate(buffer, index, "sum", (part,)) if buffer == total:
                return (
                    Load(before, total, index, dtype),
                    Let(after, "add", (before, part), dtype),
                    Store(total, index, after),
                )
            case Finish(name, buffer, index) if buffer == total:
                return (Load(name, total, index, dtype),)
            case _:
                return (stmt,)

    locals_ = tuple(replace(b, space=Space.SCRATCH) if b.name == total else b for b in kernel.locals)
    return replace(kernel, body=replace_statements(kernel.body, change), locals=locals_)


def _extent(kernel: Kernel, name: str) -> int:
    return max((f.loop.start + f.loop.extent for f in loops_of(kernel.body) if f.loop.name == name), default=1)


def _rolled(stmt: For) -> For:
    """The loop nest with loops that were to be written out made serial."""
    bind = Bind.SERIAL if stmt.loop.bind is Bind.UNROLL else stmt.loop.bind
    return For(replace(stmt.loop, bind=bind), tuple(_rolled(s) if isinstance(s, For) else s for s in stmt.body))


def _distribute(kernel: Kernel, name: str) -> Kernel:
    grown: dict[str, int] = {}
    sizes = {b.name: b.size for b in kernel.locals}
    extent = max((f.loop.start + f.loop.extent for f in loops_of(kernel.body) if f.loop.name == name), default=0)

    def change(stmt: For) -> Body:
        if not any(_is_serial(s) for s in stmt.body):
            return (stmt,)
        own = _shared_accumulators(stmt.body) - _having_axis(stmt.body, name)
        for buffer in own:
            grown[buffer] = sizes[buffer] * extent

        def shifted(one: Stmt) -> Body:
            if isinstance(one, Init | Accumulate | Finish) and one.buffer in own:
                return (replace(one, index=one.index + variable(name) * sizes[one.buffer]),)
            return (one,)

        return _segments(stmt.loop, replace_statements(stmt.body, shifted))

    body = replace_loops(kernel.body, name, change)
    locals_ = tuple(replace(b, size=grown.get(b.name, b.size)) for b in kernel.locals)
    return replace(kernel, body=body, locals=locals_)


def _is_serial(stmt: Stmt) -> bool:
    return isinstance(stmt, For) and stmt.loop.bind is Bind.SERIAL


def _shared_accumulators(body: Body) -> set[str]:
    """The accumulators that live across statements of a body: some statement uses what another one began."""
    shared: set[str] = set()
    for stmt in body:
        found = list(_accumulating((stmt,)))
        shared |= {s.buffer for s in found} - {s.buffer for s in found if isinstance(s, Init)}
    return shared


def _having_axis(body: Body, name: str) -> set[str]:
    """The accumulators that a loop already has an axis in."""
    return {s.buffer for s in _accumulating(body) if s.index.factor(name)}


def _accumulating(body: Body) -> Iterable[Init | Accumulate | Finish]:
    return (s for s in statements_of(body) if isinstance(s, Init | Accumulate | Finish))


def _segments(loop: Loop, body: Body) -> Body:
    """The body cut at its loops, each piece inside `loop`; values later pieces need are computed again there."""
    pure: dict[str, Stmt] = {}
    out: list[Stmt] = []
    piece: list[Stmt] = []

    def flush() -> None:
        if any(not _is_pure(s) for s in piece):
            out.append(For(loop, _with_needed(tuple(piece), pure)))
        for stmt in piece:
            if (named := defined(stmt)) is not None:
                pure[named] = stmt
        piece.clear()

    for stmt in body:
        if isinstance(stmt, For) and _is_serial(stmt):
            flush()
            out.append(For(stmt.loop, (For(loop, _with_needed(stmt.body, pure)),)))
        else:
            piece.append(stmt)
    flush()
    return tuple(out)


def _is_pure(stmt: Stmt) -> bool:
    return defined(stmt) is not None and not isinstance(stmt, Finish | Accumulate)


def _with_needed(body: Body, pure: dict[str, Stmt]) -> Body:
    """The body with the definitions it needs from before, in order."""
    if not pure:
        return body
    needed: set[str] = set()
    stack = [name for stmt in statements_of(body) for name in used(stmt)]
    while stack:
        name = stack.pop()
        if name in pure and name not in needed:
            needed.add(name)
            stack.extend(used(pure[name]))
    return tuple(stmt for name, stmt in pure.items() if name in needed) + body
