"""Packing: a factor of a contraction laid out beforehand in the order in which its kernel reads it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from codegen.affine import ZERO, Affine, tile_quotient, tile_remainder
from codegen.loop import (
    Accumulate,
    Body,
    Buffer,
    For,
    Kernel,
    Load,
    Loop,
    Space,
    Stmt,
    Store,
    chain,
    defined,
    replace_statements,
    statements_of,
    used,
    without_dead,
)
from codegen.padding import Note, note_panel
from codegen.steps import Distribute, Split, Step, Unroll, Vectorize, apply, split_body
from codegen.transpose import Transpose
from symgrad.record import record, replace
from symgrad.types import DType


@record
class Contraction:
    """What a naive contraction kernel looks like: its outer and inner loops and the factors it multiplies."""

    outer: tuple[Loop, ...]
    inner: tuple[Loop, ...]
    factors: tuple[str, str]
    defs: dict[str, Stmt]

    def loops_of(self, factor: str) -> set[str]:
        """The loops a factor depends on."""
        names = {loop.name for loop in (*self.outer, *self.inner)}
        return {n for stmt in self.chain(factor) for n in used(stmt) if n in names}

    def chain(self, value: str) -> Body:
        """The statements that compute a value, in order."""
        return chain(tuple(self.defs.values()), {value})

    def load(self, factor: str) -> Load | None:
        """The load that is the whole factor, if it is no more than that."""
        chain = self.chain(factor)
        return chain[0] if len(chain) == 1 and isinstance(chain[0], Load) and not chain[0].guard else None

    def dtype(self, factor: str) -> DType:
        stmt = self.defs[factor]
        dtype = getattr(stmt, "dtype", None)
        assert isinstance(dtype, DType)
        return dtype


def contraction_of(kernel: Kernel) -> Contraction:
    """Read the loops and factors of a naive contraction kernel."""
    defs: dict[str, Stmt] = {}
    outer: list[Loop] = []
    body = kernel.body
    while len(body) == 1 and isinstance(body[0], For):
        outer.append(body[0].loop)
        body = body[0].body
    inner: list[Loop] = []
    while True:
        nested = next((s for s in body if isinstance(s, For)), None)
        defs |= {name: s for s in _before(body, nested) if (name := defined(s)) is not None}
        if nested is None:
            break
        inner.append(nested.loop)
        body = nested.body
    accumulate = next(s for s in body if isinstance(s, Accumulate))
    return Contraction(tuple(outer), tuple(inner), (accumulate.args[0], accumulate.args[1]), defs)


def _before(body: Body, stop: Stmt | None) -> Iterator[Stmt]:
    for stmt in body:
        if stmt is stop:
            return
        yield stmt


@record
class Staged:
    """A naive kernel that packs a factor for all who read it, and the kernel that reads the packed one."""

    pack: Kernel
    rest: Kernel


def stage(kernel: Kernel, shape: Contraction, factor: str, loop: str, tile: int, run: int, name: str) -> Staged:
    """Compute a factor once for all and keep it in buffer `name`, in tiles of `tile` iterations of `loop`.

    The layout is batch loops, tiles, inner loops with the last one in runs of `run`, place in the tile, place in the
    run: what a register tile reads lies side by side, and where the source runs along the last inner loop packing
    copies whole runs.
    """
    mine = shape.loops_of(factor)
    tiled = next(one for one in shape.outer if one.name == loop)
    batch = [one for one in shape.outer if one.name in mine and one.name != loop]
    inner = [one for one in shape.inner if one.name in mine]
    tiles = -(-tiled.extent // tile)
    index = _linear([(_at(one), one.extent) for one in batch]) * tiles + tile_quotient(loop, tile)
    size = tiles * tile
    for one in batch:
        size *= one.extent
    for one in inner[:-1]:
        index = index * one.extent + _at(one)
        size *= one.extent
    if inner:
        last = inner[-1]
        runs = -(-last.extent // run)
        index = index * runs + (tile_quotient(last.name, run) if run > 1 else _at(last))
        size *= runs * run
    index = index * tile + tile_remainder(loop, tile)
    if run > 1:
        index = index * run + tile_remainder(inner[-1].name, run)
    dtype = shape.dtype(factor)
    chain = shape.chain(factor)
    body: Body = (*chain, Store(name, index, factor))
    for one in reversed((*batch, tiled, *inner)):
        body = (For(one, body),)
    read = _buffers(chain)
    packed = Buffer(name, dtype, size, Space.GLOBAL)
    pack = Kernel((*(b for b in kernel.params if b.name in read), replace(packed, written=True)), (), body)
    rest = _replace_factor(kernel, factor, Load(factor, name, index, dtype))
    names = _buffers(statements_of(rest.body))
    params = (*(b for b in kernel.params if b.name in names or b.name not in read), packed)
    return Staged(pack, replace(rest, params=params))


@record
class Panel:
    """A factor that each worker packs for one block of columns at a time, in its own scratch memory."""

    columns: str
    block: int
    tile: int
    lanes: int
    body: Body
    inner: tuple[Loop, ...]
    extent: int
    outer: frozenset[str]  # the other loops that the factor varies with


def stage_panel(
    kernel: Kernel, shape: Contraction, factor: str, columns: str, block: int, tile: int, lanes: int, name: str
) -> tuple[Kernel, Panel]:
    """Read a factor from a panel in scratch memory: tiles of a block, inner loops, place in the tile.

    `fill_panel` writes it.
    """
    mine = shape.loops_of(factor)
    inner = tuple(one for one in shape.inner if one.name in mine)
    dtype, chain = shape.dtype(factor), shape.chain(factor)
    depth = math.prod(one.extent for one in inner)
    in_block = tile_quotient(columns, tile) + tile_quotient(columns, block) * -(block // tile)
    index = (in_block * depth + _linear([(_at(one), one.extent) for one in inner])) * tile
    index = index + tile_remainder(columns, tile)
    rest = _replace_factor(kernel, factor, Load(factor, name, index, dtype))
    names = _buffers(statements_of(rest.body))
    read = _buffers(chain)
    params = tuple(b for b in kernel.params if b.name in names or b.name in read)
    rest = replace(rest, params=params, locals=(*rest.locals, Buffer(name, dtype, block * depth, Space.SCRATCH)))
    extent = next(one.extent for one in shape.outer if one.name == columns)
    outer = frozenset(one.name for one in shape.outer if one.name in mine and one.extent > 1 and one.name != columns)
    return rest, Panel(columns, block, tile, lanes, (*chain, Store(name, index, factor)), inner, extent, outer)


def fill_panel(kernel: Kernel, panel: Panel, note: Note | None = None) -> Kernel:
    """The scheduled kernel with its panel packed as soon as the loops stand that it depends on, and noted."""
    more: dict[str, Buffer] = {}

    def nest(width: int) -> Body:
        made = _panel_nest(panel, width)
        more.update((b.name, b) for b in made.locals)
        if note is None:
            return made.body
        body, sums = note_panel(made.body, note, kernel.buffer(note.packed))
        more[sums.name] = sums
        return body

    body = _fill(kernel.body, panel, panel.outer | {f"{panel.columns}.0"}, 0, nest)
    return replace(kernel, body=body, locals=(*kernel.locals, *more.values()))


def _fill(body: Body, panel: Panel, missing: frozenset[str], width: int, nest: Callable[[int], Body]) -> Body:
    """A body in which the panel is packed by `nest`, given its columns, where none of the missing loops is missing."""
    out: list[Stmt] = []
    for stmt in body:
        if not isinstance(stmt, For):
            out.append(stmt)
            continue
        left = missing - {stmt.loop.name}
        if stmt.loop.name == f"{panel.columns}.0":
            width = min(panel.block, panel.extent - stmt.loop.start * panel.block)
        if missing and not left:
            out.append(For(stmt.loop, (*nest(width), *stmt.body)))
        else:
            out.append(For(stmt.loop, _fill(stmt.body, panel, left, width, nest)))
    return tuple(out)


def _panel_nest(panel: Panel, width: int) -> Kernel:
    """The loops that pack `width` columns of a block, in the order in which the source lies."""
    columns = f"{panel.columns}.1"
    body = split_body(panel.body, panel.columns, panel.block)
    along = lies_along(body, columns)
    nest: Body = (For(Loop(columns, width), body),) if along else body
    for one in reversed(panel.inner):
        nest = (For(one, nest),)
    if not along:
        nest = (For(Loop(columns, width), nest),)
    steps: list[Step] = []
    if panel.block > panel.tile:
        steps.append(Split(columns, panel.tile))
        columns = f"{columns}.1"
    inner = () if along else panel.inner
    return apply(Kernel((), (), nest), (*steps, *copy_steps(body, columns, inner, panel.lanes)))


def lies_along(body: Body, loop: str) -> bool:
    """Whether everything a body loads lies along a loop."""
    return all(s.index.factor(loop) == 1 for s in body if isinstance(s, Load))


def copy_steps(body: Body, columns: str, inner: Sequence[Loop], lanes: int) -> tuple[Step, ...]:
    """Steps for a nest of `columns` around `inner` that writes vectors along the columns.

    What lies along the last inner loop is turned in registers.
    """
    steps = (Split(columns, lanes), Vectorize(f"{columns}.1", lanes))
    last = inner[-1] if inner else None
    if last is not None and last.extent >= lanes and lies_along(body, last.name):
        return (
            *steps,
            Split(last.name, lanes),
            *[Distribute(f"{columns}.1")] * (len(inner) + 1),
            Transpose(f"{last.name}.1", f"{columns}.1", lanes, "turned", kept=False),
        )
    steps = (*steps, Unroll(f"{columns}.0"))
    return (*steps, *(Distribute(f"{columns}.{k}") for k in (1, 0) for _ in inner))


def _at(loop: Loop) -> Affine:
    return Affine(0, ((loop.name, 1),)) if loop.extent > 1 else Affine(loop.start)


def _linear(parts: Sequence[tuple[Affine, int]]) -> Affine:
    total = ZERO
    for one, extent in parts:
        total = total * extent + one
    return total


def _buffers(stmts: Iterable[Stmt]) -> set[str]:
    return {s.buffer for s in stmts if isinstance(s, Load | Store)}


def _replace_factor(kernel: Kernel, factor: str, load: Load) -> Kernel:
    body = replace_statements(kernel.body, lambda s: (load if defined(s) == factor else s,))
    return replace(kernel, body=without_dead(body))
