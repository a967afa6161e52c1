"""Rows asked for ahead of time: memory works while a worker computes on the row before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from codegen.affine import ZERO, Affine, variable
from codegen.loop import (
    Bind,
    Body,
    Buffer,
    Fetch,
    For,
    Kernel,
    Load,
    Loop,
    Space,
    Stmt,
    Store,
    loops_of,
    replace_loops,
    statements_of,
)
from codegen.target import CACHE_LINE
from symgrad.record import record, replace


@record
class Ahead:
    """In the vector loop `inner` of one pass over a row, fetch what the passes read of the next row.

    `rows` is the loop over rows. Passes are loops split in two, named `pass.0` and `pass.1`. What later passes write of
    this row is fetched too, so that their stores do not wait, unless they go past the caches. Buffers of less than
    `least` bytes stay in the caches anyway.
    """

    inner: str
    rows: str
    least: int


@record
class MapAhead:
    """In the vector loop `inner` of a map, fetch what lies so many bytes behind what it reads along the lanes.

    The processor foresees such accesses too, but not far enough ahead to have memory work all the time where a body is
    long or writes past the caches. Buffers of less than `least` bytes stay in the caches anyway.
    """

    inner: str
    distance: int
    least: int


@record
class StripAhead:
    """While the register tiles of a strip of rows are summed, fetch the rows of the next strip.

    `strips` is the loop over strips, `rows` the one over the rows of a strip, and `run` the innermost one of the sum,
    in which the elements of a row are neighbors on a cache line: what it reads is fetched once, a strip before. Where
    a loop over tiles side by side passes the strip several times, each of them fetches its share of the rows.
    """

    strips: str
    rows: str
    run: str


@record
class TermAhead:
    """While a register tile is summed, fetch what the tile one iteration of `loop` later reads of `array` and this not.

    `term` is the loop of the sum before whose body what the tile reads for one of its iterations is fetched. Where it
    is split by how often a tile's rows are read, `share` is its inner loop and `passes` the loop in which they are:
    each pass fetches its share.
    """

    array: str
    loop: str
    term: str
    share: str | None = None
    passes: str | None = None


@record
class SumAhead:
    """In the innermost loop `run` of a sum, fetch what a tile reads of `array` so many iterations later.

    What it reads for one iteration lies side by side; the line on which that begins is another's. Near the end of the
    loop that is nothing the tile needs, and what it needs first nobody fetches.
    """

    array: str
    run: str
    distance: int


def fetch_ahead(kernel: Kernel, step: Ahead) -> Kernel:
    """The kernel with fetches in the loops called `inner`."""
    chosen = step.inner.removesuffix(".1")
    fetches: dict[Stmt, None] = {}
    before = True
    for name, access in _accesses(kernel):
        before = before and name != chosen
        if not _is_far(kernel.buffer(access.buffer), step.least):
            continue
        write = isinstance(access, Store)
        index = access.index.substitute({f"{name}.{k}": variable(f"{chosen}.{k}") for k in "01"})
        if not index.factor(step.rows) or (isinstance(access, Load) and access.guard):
            continue
        if not write or before or name == chosen:
            index = index.substitute({step.rows: variable(step.rows) + 1})
        fetches[Fetch(access.buffer, index, write)] = None

    return replace(kernel, body=replace_loops(kernel.body, step.inner, lambda f: (For(f.loop, (*fetches, *f.body)),)))


def fetch_map(kernel: Kernel, step: MapAhead) -> Kernel:
    """The kernel with fetches in the loops called `inner`."""

    def fetches(load: Load) -> Body:
        buffer = kernel.buffer(load.buffer)
        if load.guard or load.index.factor(step.inner) != 1 or not _is_far(buffer, step.least):
            return ()
        return (Fetch(load.buffer, load.index + step.distance // buffer.dtype.itemsize),)

    def change(stmt: For) -> Body:
        found = dict.fromkeys(one for s in stmt.body if isinstance(s, Load) for one in fetches(s))
        return (For(stmt.loop, (*found, *stmt.body)),)

    return replace(kernel, body=replace_loops(kernel.body, step.inner, change))


def fetch_strip(kernel: Kernel, step: StripAhead) -> Kernel:
    """The kernel with fetches before the loops called `run`."""
    height = max(f.loop.extent for f in loops_of(kernel.body) if f.loop.name == step.rows)

    def fetches(load: Load, around: Sequence[Loop]) -> Stmt:
        """Those for what a load reads, inside of loops around it."""
        values = {step.strips: variable(step.strips) + 1, step.run: ZERO}
        if step.rows in [one.name for one in around]:
            return Fetch(load.buffer, load.index.substitute(values))
        passes = [one for one in around if not load.index.factor(one.name)]
        row, share = variable(step.rows), height
        if passes:
            share = -(-height // (passes[-1].start + passes[-1].extent))
            row = row + variable(passes[-1].name) * share
        fetch = Fetch(load.buffer, load.index.substitute({**values, step.rows: row}))
        return For(Loop(step.rows, share, 0, Bind.UNROLL), (fetch,))

    def in_strip(body: Body, around: tuple[Loop, ...]) -> Body:
        out: list[Stmt] = []
        for stmt in body:
            if not isinstance(stmt, For):
                out.append(stmt)
            elif stmt.loop.name == step.run:
                loads = dict.fromkeys(s for s in statements_of(stmt.body) if isinstance(s, Load))
                rows = [s for s in loads if s.index.factor(step.rows) and s.index.factor(step.run) == 1]
                out += [*(fetches(load, around) for load in rows), stmt]
            else:
                out.append(For(stmt.loop, in_strip(stmt.body, (*around, stmt.loop))))
        return tuple(out)

    def strips(stmt: For) -> Body:
        is_last = stmt.loop.start > 0  # what a split left over
        return (stmt if is_last else For(stmt.loop, in_strip(stmt.body, ())),)

    return replace(kernel, body=replace_loops(kernel.body, step.strips, strips))


def fetch_terms(kernel: Kernel, step: TermAhead) -> Kernel:
    """The kernel with fetches at the beginning of the loops called `term`."""

    def fetches(stmt: For) -> Body:
        load = _load_of(stmt, step.array)
        if load is None:
            return (stmt,)
        inside = [one for one in _inside(stmt) if one.name != step.share]
        now = _offsets(load.index, inside)
        new = sorted({place + load.index.factor(step.loop) for place in now} - now)
        # All of these on lines that begin anywhere: no line is between two that are picked.
        line, picked = CACHE_LINE // load.dtype.itemsize, new[:1]
        for place, following in zip(new, [*new[1:], None], strict=True):
            if place > picked[-1] and (following is None or following - picked[-1] > line):
                picked.append(place)
        values = {one.name: ZERO for one in inside}
        if step.share is not None and step.passes is not None:
            values[step.share] = variable(step.passes)
        first = load.index.substitute(values)
        return (For(stmt.loop, (*(Fetch(load.buffer, first + place) for place in picked), *stmt.body)),)

    return replace(kernel, body=replace_loops(kernel.body, step.term, fetches))


def fetch_sum(kernel: Kernel, step: SumAhead) -> Kernel:
    """The kernel with fetches at the beginning of the loops called `run`."""

    def fetches(stmt: For) -> Body:
        load = _load_of(stmt, step.array)
        if load is None:
            return (stmt,)
        inside = _inside(stmt)
        places = _offsets(load.index, inside)
        later = load.index.substitute({one.name: ZERO for one in inside}) + step.distance * load.index.factor(step.run)
        line = CACHE_LINE // load.dtype.itemsize
        found = [Fetch(load.buffer, later + place) for place in range(max(places), min(places) - 1, -line)]
        return (For(stmt.loop, (*found, *stmt.body)),)

    return replace(kernel, body=replace_loops(kernel.body, step.run, fetches))


def _load_of(stmt: For, array: str) -> Load | None:
    """The first load of an array in a loop."""
    return next((s for s in statements_of(stmt.body) if isinstance(s, Load) and s.buffer == array), None)


def _inside(stmt: For) -> list[Loop]:
    """The loops in a loop, each once."""
    return list({one.loop.name: one.loop for one in loops_of(stmt.body)}.values())


def _offsets(index: Affine, loops: Sequence[Loop]) -> set[int]:
    """How far from where loops begin at 0 an index comes in them."""
    out = {0}
    for one in loops:
        if factor := index.factor(one.name):
            out = {place + factor * (one.start + k) for place in out for k in range(one.extent)}
    return out


def _is_far(buffer: Buffer, least: int) -> bool:
    """Whether a buffer is in memory, and too large to stay in the caches."""
    return buffer.space is Space.GLOBAL and buffer.size * buffer.dtype.itemsize >= least


def _accesses(kernel: Kernel) -> Iterator[tuple[str, Load | Store]]:
    """What the vector loops of passes read and write along the lanes, with the name of the pass."""
    for stmt in loops_of(kernel.body):
        name = stmt.loop.name.removesuffix(".1")
        known = {f"{name}.0", f"{name}.1"}
        for access in stmt.body:
            if (
                isinstance(access, Load | Store)
                and not (isinstance(access, Store) and access.past_caches)
                and access.index.factor(f"{name}.1") == 1
                and all(term in known or _is_outer(term) for term, _ in access.index.terms)
            ):
                yield name, access


def _is_outer(term: str) -> bool:
    return term.startswith("d") and term[1:].isdecimal()
