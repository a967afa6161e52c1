"""Terms of sums that are zero since an array is padded: they are left out where they would be multiplied by numbers.

A sum then has the bits that it has with them, but for the sign of a zero where all its other products underflow: one
that is rounded to -0 stays so, and is not made 0 by adding a zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from codegen.affine import ZERO, Affine, delinearize, divide, variable
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
    defined,
    is_zero,
    loops_of,
    replace_statements,
    statements_of,
)
from symgrad.record import record, replace
from symgrad.storage import Literal
from symgrad.types import bool_

# Terms that are written out one after the other, so that each knows which rows it counts for: the elements of a window,
# not its places; and how many multiply-adds they may have together.
MOST_TERMS = 8
MOST_WRITTEN_OUT = 256
# Multiply-adds in an iteration that are worth a branch around them.
LEAST_SKIPPED = 32


@record
class Padding:
    """An array that is 0 at every place, row-major over `extents`, where a guard over the axes is negative."""

    extents: tuple[int, ...]
    guard: tuple[Affine, ...]  # of variables x0, x1, ...: the indices along the axes


@record
class Note:
    """Note which tiles of `packed`, of `size` elements each, hold an infinity or NaN: `notes` is NaN for these."""

    packed: str
    size: int
    notes: str


@record
class LeaveOut:
    """Leave out terms that the padding of `array` makes zero, where its tile of `packed` was noted to be finite.

    Multiplied with an infinity or NaN they count. The loop over terms of which only some rows are zero is written out.
    """

    array: str
    padding: Padding
    note: Note


def padding_of(naive: Kernel, name: str) -> Padding | None:
    """Where the array `name`, which a naive kernel computes, is known to be 0; None where that is not known."""
    definitions = {defined(s): s for s in statements_of(naive.body)}
    stores = [s for s in statements_of(naive.body) if isinstance(s, Store) and s.buffer == name]
    chosen = definitions.get(stores[0].value) if len(stores) == 1 else None
    if not isinstance(chosen, Let) or chosen.op != "where" or not is_zero(chosen.args[2], naive):
        return None
    within = definitions[chosen.args[0]]
    loops = {f.loop.name: f.loop for f in loops_of(naive.body)}
    terms = sorted(stores[0].index.terms, key=lambda term: -term[1])
    extents = tuple(loops[one].extent for one, _ in terms if one in loops)
    dense = [factor for _, factor in terms] == [math.prod(extents[k + 1 :]) for k in range(len(terms))]
    starts = any(loop.start for loop in loops.values())
    if not isinstance(within, Within) or not dense or starts or stores[0].index.const:
        return None
    axes = {one: variable(f"x{k}") for k, (one, _) in enumerate(terms)}
    if any(one not in axes for guard in within.guard for one, _ in guard.terms):
        return None
    return Padding(extents, tuple(guard.substitute(axes) for guard in within.guard))


def can_note(pack: Kernel, step: Note) -> bool:
    """Whether a scheduled kernel packs each tile in one iteration of a loop, and nothing else there."""
    return _noted(pack.body, step, {}, pack) is not None


def apply_note(pack: Kernel, step: Note) -> Kernel:
    """The kernel that packs tiles and notes which are not finite. ValueError where it does not pack tile after tile."""
    body = _noted(pack.body, step, {}, pack)
    if body is None:
        raise ValueError(f"note: {step.packed} is not packed tile after tile")
    notes, sums = _note_buffers(pack.buffer(step.packed), step)
    return Kernel((*pack.params, replace(notes, written=True)), (*pack.locals, sums), body)


def note_panel(body: Body, step: Note, packed: Buffer) -> tuple[Body, Buffer]:
    """Loops that pack a panel, which is one tile, and note whether it is finite; what that is summed in."""
    once = Loop(f"{step.notes}_once", 1)
    _, sums = _note_buffers(packed, step)
    return (For(once, _with_note(body, step, ZERO, packed)),), sums


def _note_buffers(packed: Buffer, step: Note) -> tuple[Buffer, Buffer]:
    """Where notes stand, which is where what they are about does, and what they are summed in."""
    notes = Buffer(step.notes, packed.dtype, packed.size // step.size, packed.space)
    return notes, Buffer(f"{step.notes}_sum", packed.dtype, 1, Space.REG)


def leave_out(kernel: Kernel, step: LeaveOut) -> Kernel:
    """The kernel of the sums that leaves terms out; unchanged where none can be."""
    found = _Leaving(kernel, step)
    body = found.body(kernel.body, {})
    if not found.skips:
        return kernel
    notes, _ = _note_buffers(kernel.buffer(step.note.packed), step.note)
    if notes.space is Space.SCRATCH:
        return replace(kernel, locals=(*kernel.locals, notes), body=body)
    return replace(kernel, params=(*kernel.params, notes), body=body)


def _noted(body: Body, step: Note, ranges: Mapping[str, tuple[int, int]], pack: Kernel) -> Body | None:
    """The body with notes about all tiles that are packed in it; None where a tile is not packed in one go."""
    out: list[Stmt] = []
    known: list[tuple[int, int]] = []
    around = {name: (low, low) for name, (low, _) in ranges.items()}
    for stmt in body:
        if not isinstance(stmt, For):
            return None
        inside = _with(ranges, stmt.loop)
        tiles = _tiles_stored(stmt.body, step, inside)
        # Loops that follow each other note other tiles.
        for one in tiles:
            span = None if one is None else one.range({**inside, **around})
            if span is None or any(span[0] <= high and low <= span[1] for low, high in known):
                return None
            known.append(span)
        moving = {name for name, (low, high) in inside.items() if low < high}
        tile = next(iter(tiles)) if len(tiles) == 1 else None
        if tile is not None and {name for name, _ in tile.terms if name in moving or name not in inside} == moving:
            out.append(For(stmt.loop, _with_note(stmt.body, step, tile, pack.buffer(step.packed))))
            continue
        inner = _noted(stmt.body, step, inside, pack) if stmt.loop.bind in (Bind.SERIAL, Bind.PARALLEL) else None
        if inner is None:
            return None
        out.append(For(stmt.loop, inner))
    return tuple(out)


def _tiles_stored(body: Body, step: Note, ranges: Mapping[str, tuple[int, int]]) -> set[Affine | None]:
    """The numbers of the tiles to which a body stores."""
    out: set[Affine | None] = set()
    for stmt in body:
        if isinstance(stmt, For):
            out |= _tiles_stored(stmt.body, step, _with(ranges, stmt.loop))
        elif isinstance(stmt, Store) and stmt.buffer == step.packed:
            parts = divide(stmt.index, step.size, ranges)
            out.add(parts[0] if parts is not None else None)
    return out


def _with_note(body: Body, step: Note, tile: Affine, packed: Buffer) -> Body:
    """The body that packs a tile, with 0 times all of it, which is NaN unless all are finite."""
    zero, total = f"{step.notes}_zero", f"{step.notes}_sum"
    literal = Literal(np.zeros((), packed.dtype.np))

    def noted(stmt: Stmt) -> Body:
        if isinstance(stmt, Store) and stmt.buffer == step.packed:
            return (stmt, Accumulate(total, ZERO, "fma", (stmt.value, zero)))
        return (stmt,)

    return (
        Let(zero, "const", (), packed.dtype, (("value", literal),)),
        Init(total, ZERO, "fma"),
        *replace_statements(body, noted),
        Finish(f"{step.notes}_seen", total, ZERO, "fma", packed.dtype),
        Store(step.notes, tile, f"{step.notes}_seen"),
    )


class _Leaving:
    """One walk through a kernel, which attaches guards to the innermost loops that they depend on."""

    def __init__(self, kernel: Kernel, step: LeaveOut) -> None:
        self.kernel, self.step = kernel, step
        self.skips = False
        self.unless = f"{step.note.notes}_count"

    def body(self, body: Body, ranges: Mapping[str, tuple[int, int]]) -> Body:
        """What is not only sums: the loops of sums in it, after what says whether all their terms count."""
        out: list[Stmt] = []
        for stmt in body:
            if not isinstance(stmt, For):
                out.append(stmt)
            elif not is_sum(stmt):
                out.append(For(stmt.loop, self.body(stmt.body, _with(ranges, stmt.loop))))
            else:
                out += self._sum(stmt, ranges)
        return tuple(out)

    def _sum(self, stmt: For, ranges: Mapping[str, tuple[int, int]]) -> Body:
        """A loop of sums whose loops leave out what they can."""
        tiles = {tile for _, tile in self._terms(stmt, ranges)}
        tile = tiles.pop() if len(tiles) == 1 else None
        if tile is None or any(name not in ranges for name, _ in tile.terms):
            return (stmt,)
        changed = self._attached(stmt, ranges, None)
        if changed == stmt:
            return (stmt,)
        self.skips = True
        dtype, seen = self.kernel.buffer(self.step.note.packed).dtype, f"{self.unless}_seen"
        load = Load(seen, self.step.note.notes, tile, dtype)
        return (load, Let(self.unless, "isnan", (seen,), bool_), changed)

    def _attached(self, stmt: For, ranges: Mapping[str, tuple[int, int]], serial: For | None) -> For:
        """A loop in which guards stand where they can; `serial` is the innermost loop around it that counts."""
        inside = _with(ranges, stmt.loop)
        counting = stmt if stmt.loop.bind is Bind.SERIAL and stmt.loop.extent > 1 else serial
        body = tuple(self._attached(s, inside, counting) if isinstance(s, For) else s for s in stmt.body)
        loop = stmt.loop
        guards = frozenset[Affine].intersection(*(guards for guards, _ in self._terms(stmt, ranges)))
        own = [one for one in guards if one.factor(loop.name) and {name for name, _ in one.terms} <= inside.keys()]
        if loop.bind is Bind.UNROLL:
            # A branch for each row pays only where terms are written out, so that most of them are decided.
            own = [one for one in own if serial is not None and _is_short(serial) and one.factor(serial.loop.name)]
        elif loop.bind is not Bind.SERIAL or products_of(stmt) < LEAST_SKIPPED * loop.extent:
            own = []
        if own:
            loop = replace(loop, skip=Skip(tuple(sorted(own, key=str)), self.unless))
        if stmt is counting and _is_short(stmt) and any(_depends(f.loop, loop.name) for f in loops_of(body)):
            loop = replace(loop, bind=Bind.UNROLL)
        return For(loop, body)

    def _terms(self, stmt: For, ranges: Mapping[str, tuple[int, int]]) -> list[tuple[frozenset[Affine], Affine | None]]:
        """For each product in a loop the guards that say where it is not 0, and the tile of its other factor."""
        inside = _with(ranges, stmt.loop)
        out: list[tuple[frozenset[Affine], Affine | None]] = []
        loads = {s.name: s for s in stmt.body if isinstance(s, Load)}
        for one in stmt.body:
            if isinstance(one, For):
                out += self._terms(one, inside)
            elif isinstance(one, Accumulate):
                factors = [loads[name] for name in one.args if name in loads]
                guards = frozenset(g for load in factors for g in self._guards(load, inside))
                tiles = [
                    parts[0]
                    for load in factors
                    if load.buffer == self.step.note.packed
                    and (parts := divide(load.index, self.step.note.size, inside)) is not None
                ]
                out.append((guards, tiles[0] if tiles else None))
        return out

    def _guards(self, load: Load, ranges: Mapping[str, tuple[int, int]]) -> Sequence[Affine]:
        """What is negative somewhere, and where it is an element is 0."""
        padding = self.step.padding
        places = delinearize(load.index, padding.extents, ranges) if load.buffer == self.step.array else None
        if places is None:
            return ()
        axes = {f"x{k}": place for k, place in enumerate(places)}
        guards = (one.substitute(axes) for one in padding.guard)
        return [one for one in guards if (span := one.range(ranges)) is None or span[0] < 0]


def is_sum(stmt: For) -> bool:
    """Whether a loop does nothing but add products to sums, so that iterations can be left out."""
    allowed = (Load, Let, Index, Within, Fetch, Accumulate)
    stmts = statements_of(stmt.body)
    sums = [s for s in stmts if isinstance(s, Accumulate)]
    plain = all(isinstance(s, allowed) and not (isinstance(s, Let) and s.op == "check_index") for s in stmts)
    return plain and bool(sums) and all(s.combine == "fma" and s.name is None for s in sums)


def _is_short(stmt: For) -> bool:
    """Whether a loop over terms of sums can be written out."""
    return stmt.loop.extent <= MOST_TERMS and products_of(stmt) <= MOST_WRITTEN_OUT


def _depends(loop: Loop, name: str) -> bool:
    """Whether which iterations of a written out loop count depends on the loop `name`."""
    return loop.bind is Bind.UNROLL and loop.skip is not None and any(one.factor(name) for one in loop.skip.guard)


def products_of(stmt: For) -> int:
    """Vector multiply-adds of a loop that is written out."""
    inner = sum(products_of(s) if isinstance(s, For) else isinstance(s, Accumulate) for s in stmt.body)
    return inner * (1 if stmt.loop.bind is Bind.VECTOR else stmt.loop.extent)


def _with(ranges: Mapping[str, tuple[int, int]], loop: Loop) -> dict[str, tuple[int, int]]:
    return {**ranges, loop.name: (loop.start, loop.start + max(loop.extent, 1) - 1)}
