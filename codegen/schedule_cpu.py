"""Schedules for the CPU: which steps make each kind of naive kernel fast. Decides; `steps` applies, `emit` spells."""

from __future__ import annotations

from dataclasses import replace

from codegen.group import Anchor
from codegen.loop import Accumulate, Bind, Body, For, Index, Kernel, Load, Loop, Stmt, Store, loops_of
from codegen.steps import Distribute, Fuse, Parallel, Split, Step, Unroll, Vectorize, apply, can_fuse
from codegen.target import Target

# Reductions gather in this many bytes of lanes on every machine, so that their tree depends on shapes alone.
ROW_BYTES = 64
# Iterations that make a parallel loop worth having.
PARALLEL_UNITS = 8


def schedule(kernel: Kernel, anchor: Anchor, target: Target) -> tuple[Kernel, tuple[Step, ...]]:
    """The scheduled kernel and the steps that led there."""
    fused, kernel = _fuse_loops(kernel)
    match anchor:
        case Anchor.MAP:
            steps = _map_steps(kernel, target)
        case Anchor.ROWS:
            steps = _row_steps(kernel, target)
        case Anchor.CONTRACT:
            steps = contract_steps(kernel, target)
        case Anchor.SCATTER:
            steps = ()
    kernel = apply(kernel, steps)
    if anchor is Anchor.SCATTER:
        kernel = as_one_unit(kernel)
    return with_units(kernel), (*fused, *steps)


def _fuse_loops(kernel: Kernel) -> tuple[tuple[Step, ...], Kernel]:
    """Merge perfectly nested loops whose indices run on without a gap."""
    steps: list[Step] = []
    while True:
        found = [(f.loop.name, inner) for f in loops_of(kernel.body) if (inner := can_fuse(f)) is not None]
        if not found:
            return tuple(steps), kernel
        step = Fuse(*found[0])
        kernel = apply(kernel, [step])
        steps.append(step)


def with_units(kernel: Kernel) -> Kernel:
    """The kernel with every outermost statement inside a parallel loop."""
    if all(isinstance(s, For) and s.loop.bind is Bind.PARALLEL for s in kernel.body):
        return kernel
    return as_one_unit(kernel)


def as_one_unit(kernel: Kernel) -> Kernel:
    """The kernel as one indivisible unit of work."""
    serial = tuple(_serial(s) for s in kernel.body)
    return replace(kernel, body=(For(Loop("unit", 1, 0, Bind.PARALLEL), serial),))


def _serial(stmt: Stmt) -> Stmt:
    if isinstance(stmt, For) and stmt.loop.bind is Bind.PARALLEL:
        return For(replace(stmt.loop, bind=Bind.SERIAL), stmt.body)
    return stmt


def _itemsize(kernel: Kernel) -> int:
    """The width that decides the lanes: of the floats if there are any, else of the widest number."""
    floats = [b.dtype.itemsize for b in kernel.params + kernel.locals if b.dtype.is_float]
    return max(floats or [b.dtype.itemsize for b in kernel.params + kernel.locals], default=4)


def _nest(body: Body) -> list[For]:
    """The perfect nest a body starts with."""
    loops: list[For] = []
    while len(body) == 1 and isinstance(body[0], For):
        loops.append(body[0])
        body = body[0].body
    return loops


def _accesses(body: Body) -> list[Load | Store]:
    found = [s for s in body if isinstance(s, Load | Store)]
    for loop in loops_of(body):
        found += [s for s in loop.body if isinstance(s, Load | Store)]
    return found


def _unit_stride(body: Body, name: str) -> int:
    """How many accesses go to neighboring elements when a loop advances, less those that jump."""
    factors = [a.index.factor(name) for a in _accesses(body)]
    return sum(1 for f in factors if f == 1) - sum(1 for f in factors if f not in (0, 1))


def _map_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    loops = _nest(kernel.body)
    if not loops:
        return ()
    lanes = target.lanes(_itemsize(kernel))
    best = _vector_loop(loops, lanes)
    steps: list[Step] = []
    # The vector loop goes innermost.
    order = [f.loop.name for f in loops]
    position = order.index(best)
    steps += [Distribute(best)] * (len(order) - 1 - position)
    order = [*order[:position], *order[position + 1 :], best]
    extents = {f.loop.name: f.loop.extent for f in loops}
    steps.append(Split(best, lanes))
    outer = [*order[:-1], f"{best}.0"]
    sizes = [*(extents[n] for n in order[:-1]), -(-extents[best] // lanes)]
    first = _parallel_position(sizes)
    for name in reversed(outer[:first]):
        steps.append(Distribute(name))
    steps.append(Vectorize(f"{best}.1", lanes))
    steps.append(Parallel(outer[first]))
    return tuple(steps)


def _vector_loop(loops: list[For], lanes: int) -> str:
    """The loop whose neighbors lie next to each other in most accesses; a short one only if all are short."""
    body = loops[-1].body
    scores = [
        (min(f.loop.extent, lanes) * max(_unit_stride(body, f.loop.name), 0) + _stores(body, f.loop.name), k)
        for k, f in enumerate(loops)
    ]
    return loops[max(scores)[1]].loop.name


def _stores(body: Body, name: str) -> int:
    return sum(1 for a in _accesses(body) if isinstance(a, Store) and a.index.factor(name) == 1)


def _parallel_position(sizes: list[int]) -> int:
    """The outermost loop that has enough iterations to share, else the one with most."""
    for k, size in enumerate(sizes):
        if size >= PARALLEL_UNITS:
            return k
    return max(range(len(sizes)), key=lambda k: sizes[k])


def _row_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    itemsize = _itemsize(kernel)
    passes = [f for f in loops_of(kernel.body) if f.loop.name.startswith("r") and not _has_loop(f)]
    if not passes:
        return _map_like_rows(kernel)
    reduced = max(_unit_stride(f.body, f.loop.name) for f in passes)
    outer = [f for f in loops_of(kernel.body) if f.loop.name.startswith("d")]
    kept = max((_unit_stride(passes[0].body, f.loop.name), k) for k, f in enumerate(outer)) if outer else (0, 0)
    if kept[0] > reduced and len({f.loop.name for f in passes}) == 1:
        return _column_steps(outer[kept[1]], outer, target.lanes(itemsize))
    steps: list[Step] = []
    for name in dict.fromkeys(f.loop.name for f in passes):
        extent = next(f.loop.extent for f in passes if f.loop.name == name)
        lanes = ROW_BYTES // itemsize
        if extent >= 4 * lanes:
            lanes *= 2
        steps += [Split(name, lanes), Vectorize(f"{name}.1", lanes)]
    if outer:
        steps.append(Parallel(outer[0].loop.name))
    return tuple(steps)


def _has_loop(stmt: For) -> bool:
    return any(isinstance(s, For) for s in stmt.body)


def _map_like_rows(kernel: Kernel) -> tuple[Step, ...]:
    """Reductions over nothing: every row only writes what its passes begin with."""
    outer = _nest(kernel.body)
    return (Parallel(outer[0].loop.name),) if outer else ()


def _column_steps(chosen: For, outer: list[For], lanes: int) -> tuple[Step, ...]:
    """Reduce over rows with neighboring columns in the lanes: a block of columns at a time stays in registers."""
    name, extent = chosen.loop.name, chosen.loop.extent
    order = [f.loop.name for f in outer]
    position = order.index(name)
    steps: list[Step] = [Distribute(name)] * (len(order) - 1 - position)
    vectors = max(1, min(4, extent // lanes))
    steps.append(Split(name, lanes * vectors))
    inner = f"{name}.1"
    steps += [Split(inner, lanes), Vectorize(f"{inner}.1", lanes), Unroll(f"{inner}.0")]
    steps += [Distribute(f"{inner}.1"), Distribute(f"{inner}.0")]
    rest = [*order[:position], *order[position + 1 :]]
    sizes = [f.loop.extent for f in outer if f.loop.name != name]
    blocks = [*rest, f"{name}.0"]
    first = _parallel_position([*sizes, -(-extent // (lanes * vectors))])
    steps += [Distribute(n) for n in reversed(blocks[:first])]
    steps.append(Parallel(blocks[first]))
    return tuple(steps)


def contract_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    """A tile of the result in registers: rows unrolled, columns in vectors, the sum innermost."""
    loops = {f.loop.name: f.loop.extent for f in loops_of(kernel.body)}
    lanes = target.lanes(_itemsize(kernel))
    rows, columns = _tile_loops(kernel)
    if columns is None:
        return _plain_contract(kernel)
    order = [f.loop.name for f in _nest(kernel.body)]
    steps: list[Step] = []
    for name in (rows, columns):
        if name is not None:
            steps += [Distribute(name)] * (len(order) - 1 - order.index(name))
            order = [n for n in order if n != name] + [name]
    row_tile, vectors = tile_shape(loops[rows] if rows else 1, loops[columns], target, lanes)
    steps.append(Split(columns, lanes * vectors))
    inner = f"{columns}.1"
    steps += [Split(inner, lanes), Vectorize(f"{inner}.1", lanes), Unroll(f"{inner}.0")]
    blocks = [n for n in order if n not in (rows, columns)]
    sizes = [loops[n] for n in blocks]
    if rows is not None:
        steps.append(Split(rows, row_tile))
        blocks.append(f"{rows}.0")
        sizes.append(-(-loops[rows] // row_tile))
        steps += [Unroll(f"{rows}.1")]
    blocks.append(f"{columns}.0")
    sizes.append(-(-loops[columns] // (lanes * vectors)))
    steps += [Distribute(f"{inner}.1"), Distribute(f"{inner}.0")]
    if rows is not None:
        steps += [Distribute(f"{rows}.1")] * 2
    # Columns outside rows: the panel of columns stays in the cache while rows pass by.
    if rows is not None and sizes[-1] >= PARALLEL_UNITS // 2:
        steps.append(Distribute(f"{rows}.0"))
        blocks[-1], blocks[-2] = blocks[-2], blocks[-1]
        sizes[-1], sizes[-2] = sizes[-2], sizes[-1]
    first = _parallel_position(sizes)
    steps += [Distribute(n) for n in reversed(blocks[:first])]
    steps.append(Parallel(blocks[first]))
    return tuple(steps)


def _plain_contract(kernel: Kernel) -> tuple[Step, ...]:
    outer = [f.loop.name for f in _nest(kernel.body)]
    return (Parallel(outer[0]),) if outer else ()


def _tile_loops(kernel: Kernel) -> tuple[str | None, str | None]:
    """The loop to unroll and the loop to put into lanes: the factor that runs along the lanes must be contiguous."""
    outer = [f for f in loops_of(kernel.body) if f.loop.name.startswith("d")]
    stores = [a for a in _accesses(kernel.body) if isinstance(a, Store)]
    loads = [a for a in _accesses(kernel.body) if isinstance(a, Load)]
    best: tuple[int, str] | None = None
    for f in outer:
        name = f.loop.name
        score = 4 * sum(1 for a in loads if a.index.factor(name) == 1) + sum(
            1 for a in stores if a.index.factor(name) == 1
        )
        if f.loop.extent > 1 and (best is None or (score, name) > best):
            best = (score, name)
    if best is None:
        return None, None
    columns = best[1]
    reused = [
        (f.loop.extent, f.loop.name)
        for f in outer
        if f.loop.name != columns and f.loop.extent > 1 and not _batch(kernel, f.loop.name)
    ]
    return (max(reused)[1] if reused else None), columns


def _batch(kernel: Kernel, name: str) -> bool:
    """Whether both factors depend on a loop."""
    for loop in loops_of(kernel.body):
        for stmt in loop.body:
            if isinstance(stmt, Accumulate):
                loads = {s.name: s for s in loop.body if isinstance(s, Load)}
                index = [loads[a].index.factor(name) for a in stmt.args if a in loads]
                return len(index) == 2 and all(index)
    return False


def tile_shape(rows: int, columns: int, target: Target, lanes: int) -> tuple[int, int]:
    """Rows and vectors per tile: as many accumulators as registers allow, balanced over the rows there are."""
    budget = target.registers - 4
    vectors = 2 if rows > 6 else 4 if rows > 2 else 8
    vectors = max(1, min(vectors, -(-columns // lanes)))
    tallest = max(1, budget // vectors)
    tiles = -(-rows // tallest)
    return -(-rows // tiles), vectors


def has_index(body: Body) -> bool:
    """Whether a body names an index as a number."""
    return any(isinstance(s, Index) for f in loops_of(body) for s in f.body)
