"""Blocks turned in registers: what lies along one loop is loaded in vectors of it, and used in vectors of another."""

from __future__ import annotations

from codegen.affine import Affine, variable
from codegen.loop import Bind, Body, Buffer, For, Kernel, Load, Space, Stmt, Store, replace_loops
from symgrad.record import record, replace


@record
class Transpose:
    """Load what lies along `rows` by whole vectors, and turn blocks of them in registers.

    `rows` is the only thing inside its body's vector loop `lanes`, and has at most `width` iterations. Blocks are named
    after `tile`. With `kept`, turned blocks are kept in scratch memory, so that `rows` need not be written out.
    """

    rows: str
    lanes: str
    width: int
    tile: str
    kept: bool


def turned_loads(body: Body, rows: str, lanes: str, nearest: int) -> tuple[Load, ...]:
    """The loads of a body that lie along `rows`, and that advance by more than `nearest` elements along `lanes`."""
    return tuple(
        s
        for s in body
        if isinstance(s, Load) and not s.guard and s.index.factor(rows) == 1 and abs(s.index.factor(lanes)) > nearest
    )


def transpose(stmt: For, step: Transpose) -> tuple[Body, tuple[Buffer, ...]]:
    """The loop `rows` with blocks turned, and the tiles that hold them."""
    (inner,) = stmt.body
    if not isinstance(inner, For) or inner.loop.name != step.lanes or inner.loop.bind is not Bind.VECTOR:
        raise ValueError(f"transpose: the vector loop {step.lanes} is not the only thing inside {step.rows}")
    rows, lanes, width = stmt.loop, inner.loop, step.width
    if rows.extent > width or rows.start or lanes.start:
        raise ValueError(f"transpose: {rows.name} does not fit into {width} lanes")
    loads = turned_loads(inner.body, step.rows, step.lanes, 0)
    place = variable(lanes.name) * width + variable(rows.name)
    line = variable(rows.name) * lanes.lanes + variable(lanes.name)
    along = replace(rows, bind=Bind.VECTOR, lanes=width)
    across = replace(lanes, bind=Bind.UNROLL, lanes=0)
    unrolled = replace(rows, bind=Bind.UNROLL)
    out: list[Stmt] = []
    buffers: list[Buffer] = []
    where: dict[Load, tuple[str, Affine]] = {}
    for k, load in enumerate(loads):
        tile = f"{step.tile}{k}"
        buffers.append(Buffer(tile, load.dtype, lanes.lanes * width, Space.TILE))
        out.append(For(across, (For(along, (load, Store(tile, place, load.name))),)))
        where[load] = (tile, place)
        if step.kept:
            kept = f"{tile}_kept"
            buffers.append(Buffer(kept, load.dtype, lanes.lanes * width, Space.SCRATCH))
            turned = (Load(load.name, tile, place, load.dtype), Store(kept, line, load.name))
            out.append(For(unrolled, (For(lanes, turned),)))
            where[load] = (kept, line)
    body = tuple(Load(s.name, *where[s], s.dtype) if isinstance(s, Load) and s in where else s for s in inner.body)
    out.append(For(stmt.loop if step.kept else unrolled, (For(lanes, body),)))
    return tuple(out), tuple(buffers)


def apply_transpose(kernel: Kernel, step: Transpose) -> Kernel:
    """The kernel with every loop called `rows` turned. ValueError where the loops do not fit."""
    buffers: dict[str, Buffer] = {}

    def change(stmt: For) -> Body:
        turned, made = transpose(stmt, step)
        buffers.update((b.name, b) for b in made)
        return turned

    body = replace_loops(kernel.body, step.rows, change)
    return replace(kernel, body=body, locals=(*kernel.locals, *buffers.values()))
