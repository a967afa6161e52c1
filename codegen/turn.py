"""Register tiles turned before they are stored: the result lies along their rows, and not along their lanes."""

from __future__ import annotations

from collections.abc import Callable

from codegen.affine import variable
from codegen.loop import (
    Bind,
    Body,
    Buffer,
    Finish,
    For,
    Kernel,
    Load,
    Space,
    Store,
    finishes,
    loops_of,
    replace_loops,
    replace_statements,
    statements_of,
)
from symgrad.record import record, replace


@record
class Turn:
    """Turn the finished accumulators of a tile in registers, and run what follows with rows in the lanes.

    `rows` and `columns` are the unrolled loops of the tile, `lanes` its vector loop; there are at most as many rows as
    lanes. Turned tiles are kept in scratch memory, so that what follows is not written out. They are called `tile`.
    """

    rows: str
    columns: str
    lanes: str
    tile: str


def turn(kernel: Kernel, step: Turn) -> Kernel:
    """The kernel with its tiles turned. ValueError where one has more rows than lanes."""
    vectors = [f for f in loops_of(kernel.body) if f.loop.name == step.lanes]
    width = vectors[0].loop.lanes
    # The last one: earlier ones are of sums that are summed again.
    finish = [s for f in vectors for s in f.body if isinstance(s, Finish)][-1]
    columns = max(f.loop.start + f.loop.extent for f in loops_of(kernel.body) if f.loop.name == step.columns)
    row, column, lane = variable(step.rows), variable(step.columns) * width, variable(step.lanes)
    place, line = (column + row) * width + lane, (column + lane) * width + row
    kept = f"{step.tile}_kept"

    def turned(stmt: For) -> Body:
        if not any(finishes(s, finish.buffer) for s in statements_of(stmt.body)):
            return (stmt,)
        if stmt.loop.extent > width or stmt.loop.start:
            raise ValueError(f"turn: {stmt.loop.name} does not fit into {width} lanes")
        along = replace(stmt.loop, bind=Bind.VECTOR, lanes=width)

        def nest(bind: Bind, change: Callable[[Body], Body]) -> Body:
            """The columns and lanes of the tile around its rows, which are in the lanes."""
            return tuple(
                For(
                    replace(outer.loop, bind=bind),
                    (For(replace(inner.loop, bind=bind, lanes=0), (For(along, change(inner.body)),)),),
                )
                for outer in _inside(stmt)
                for inner in _inside(outer)
            )

        load = Load(finish.name, step.tile, place, finish.dtype)
        store = Store(step.tile, place, finish.name)
        return (
            For(stmt.loop, replace_statements(stmt.body, lambda s: (s, store) if finishes(s, finish.buffer) else ())),
            *nest(Bind.UNROLL, lambda _: (load, Store(kept, line, finish.name))),
            *nest(Bind.SERIAL, lambda body: _rest(body, finish, replace(load, buffer=kept, index=line))),
        )

    size = columns * width * width
    tiles = (Buffer(step.tile, finish.dtype, size, Space.TILE), Buffer(kept, finish.dtype, size, Space.SCRATCH))
    return replace(kernel, body=replace_loops(kernel.body, step.rows, turned), locals=(*kernel.locals, *tiles))


def _inside(stmt: For) -> list[For]:
    """The loops that a loop consists of."""
    loops = [s for s in stmt.body if isinstance(s, For)]
    if len(loops) < len(stmt.body):
        raise ValueError(f"turn: there is more than loops inside {stmt.loop.name}")
    return loops


def _rest(body: Body, finish: Finish, load: Load) -> Body:
    """What a body does with the sums."""
    return tuple(load if finishes(s, finish.buffer) else s for s in body)
