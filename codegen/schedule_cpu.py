"""Schedules for the CPU: which steps make each kind of naive kernel fast. Decides; `steps` applies, `emit` spells."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from codegen.ahead import Ahead, MapAhead
from codegen.costs import COSTS, estimated_ns
from codegen.frame import lane_bytes
from codegen.group import Anchor
from codegen.loop import Accumulate, Bind, Body, For, Kernel, Let, Load, Loop, Store, Within, loops_of
from codegen.overlap import Overlap, passes_beside
from codegen.padding import Padding
from codegen.schedule_contract import innermost, parallel_position, schedule_contract, shared
from codegen.share import divided, serial
from codegen.single import elements_apart, single_elements
from codegen.steps import Distribute, Fuse, Parallel, Split, Step, Unroll, Vectorize, apply, can_fuse
from codegen.stream import Gather, Stream, apply_stream, is_whole, large_results
from codegen.target import CACHE_LINE, Target
from codegen.tiling import Choice, choices
from codegen.transpose import Transpose, turned_loads
from codegen.writer import INTERLEAVED, MAX_SHUFFLED
from symgrad.record import record, replace

# Rows scanned side by side by one worker: their chains of additions overlap.
SCANNED_ROWS = 4
# A worker brings all updates into at least this many neighboring bytes of slices.
SCATTER_BYTES = 1 << 10
# Reductions gather in this many bytes of lanes on every machine, so that their tree depends on shapes alone.
ROW_BYTES = 64
# Rows of so many bytes are fetched ahead: shorter ones the processor foresees itself, longer ones would not stay.
AHEAD_BYTES = (1 << 10, 1 << 17)
# Passes over rows that cost so little wait for what they gather.
SHORT_PASS = 4
# How many rows one short pass gathers side by side, and sizes of the second cache up to which they need not be fetched
# ahead: where they share what they meet, and where not.
ROWS_BESIDE = (4, 3, 2)
SHARED_CACHES = 16
OWN_CACHES = 4
# How many rows are a unit of work where each is written while the next one is read, and how many units there must be.
UNIT_ROWS = (32, 16, 8)
FEWEST_UNITS = 64
# How far ahead maps fetch what they read.
MAP_AHEAD_BYTES = 1 << 12
# The narrowest vector of a short loop.
MIN_LANES = 4
# A map with a body that costs so much fills the window of a processor by itself: each operation waits for the one
# before. Two vectors side by side keep it busy, where there are registers for both.
LONG_BODY = 128
# So does one that costs less, where results go past the caches, which take two lines at once sooner than one by one.
STREAMED_BODY = 16
# A core that does not compute while it writes past the caches gathers a page of results first, and then writes it in
# one go; not where runs are short, or where the body is long and hides that lines are read to be written over.
GATHERED_BYTES = 1 << 12
SHORT_RUN_BYTES = 1 << 10
# A body with so few statements is written out for each row of a block that is turned in registers.
SHORT_BODY = 8
TWICE_REGISTERS = 32
# Vectors of a row that is read in part, as that of a padded array, up to which each knows which part it reads.
GUARDED_VECTORS = 8
# Units that are fewer than these and take longer than this leave workers waiting for the last one: they are divided.
FEW_UNITS = 64
LONG_UNIT_NS = 10_000
# How many blocks are turned side by side on their way from memory to memory, and how far ahead rows are fetched then.
TURNED_BLOCKS = 4
TURNED_AHEAD_BYTES = 1 << 8


@record
class Scheduled:
    """A kernel ready to be spelled, and the steps that made it so. Parameters keep the names of the naive kernel."""

    kernel: Kernel
    steps: tuple[Step, ...]


def schedule(
    kernel: Kernel,
    anchor: Anchor,
    target: Target,
    choice: Choice | None = None,
    padded: Mapping[str, Padding] = MappingProxyType({}),
) -> tuple[Scheduled, ...]:
    """The scheduled kernels of one naive kernel, in the order they run.

    Several where a factor of a contraction is packed first: they share a parameter whose name starts with `packed`.
    `choice` is one of the `contraction_choices` of a contraction, by default the first. `padded` says where parameters
    are known to be 0.
    """
    fused, kernel = _fuse_loops(kernel)
    match anchor:
        case Anchor.MAP:
            done = [_applied(kernel, _map_steps(kernel, target))]
        case Anchor.ROWS:
            single = single_elements(kernel)
            kernel = apply(kernel, single)
            apart = elements_apart(kernel)
            kernel = apply(kernel, apart)
            fused = (*fused, *single, *apart)
            done = [_applied(kernel, _row_steps(kernel, target))]
        case Anchor.CONTRACT:
            done = [Scheduled(one, steps) for one, steps in schedule_contract(kernel, target, choice, padded)]
        case Anchor.SCAN | Anchor.SCAN_BACK:
            done = [_applied(kernel, _scan_steps(kernel, target))]
        case Anchor.SCATTER:
            done = [_applied(kernel, _scatter_steps(kernel, target))]
        case Anchor.SORT:
            done = [_applied(kernel, _sort_steps(kernel, target))]
    divides = anchor in (Anchor.MAP, Anchor.ROWS, Anchor.CONTRACT)
    return tuple(_divided(with_units(one.kernel), (*fused, *one.steps), divides) for one in done)


def _divided(kernel: Kernel, steps: tuple[Step, ...], divides: bool) -> Scheduled:
    """The scheduled kernel; where its units are few and long, loops inside of them are shared as well."""
    # Rows that overlap belong to one worker.
    divides = divides and not any(isinstance(step, Overlap) for step in steps)
    if not divides or kernel.units >= FEW_UNITS or estimated_ns(kernel) < kernel.units * LONG_UNIT_NS:
        return Scheduled(kernel, steps)
    kernel, more = divided(kernel, FEW_UNITS)
    return Scheduled(kernel, (*steps, *more))


def contraction_choices(kernel: Kernel, target: Target) -> tuple[Choice, ...]:
    """Ways to schedule a naive contraction that give the same bits, the default first; none where nothing is free."""
    return choices(_fuse_loops(kernel)[1], target)


def _applied(kernel: Kernel, steps: tuple[Step, ...]) -> Scheduled:
    return Scheduled(apply(kernel, steps), steps)


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
    body = tuple(serial(s) if isinstance(s, For) else s for s in kernel.body)
    return replace(kernel, body=(For(Loop("unit", 1, 0, Bind.PARALLEL), body),))


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
    lanes = target.lanes(lane_bytes(kernel))
    best = _vector_loop(loops, lanes)
    extents = {f.loop.name: f.loop.extent for f in loops}
    if (turned := _turned_loop(loops, best)) is not None:
        steps = _turned_steps(loops, best, turned, lanes)
        streams = _streams(kernel, steps, target)
        read = {load.buffer for load in turned_loads(loops[-1].body, turned, best, MAX_SHUFFLED)}
        if not streams or not _is_far(kernel, read, target):
            return (*steps, *streams)
        return (
            *_turned_steps(loops, best, turned, lanes, TURNED_BLOCKS),
            *streams,
            *_turned_ahead(kernel, loops, best, turned, lanes, target),
        )
    cost = _cost(loops[-1].body)
    beside = _beside(loops, best)
    large = bool(large_results(kernel, target))
    gathered: tuple[Step, ...] = ()
    if large and not target.overlaps and cost >= STREAMED_BODY:
        gathered = () if beside else _gathered(kernel, loops[-1].body, best, extents[best], target)
        large = bool(gathered)
    long = STREAMED_BODY if large and extents[best] % (2 * lanes) == 0 else LONG_BODY
    if target.registers >= TWICE_REGISTERS and cost >= long:
        lanes *= 2
    lanes = _narrowed(lanes, extents[best])
    # The vector loop goes innermost.
    inward, order = innermost([f.loop.name for f in loops], *beside, best)
    rest = order[: len(order) - 1 - len(beside)]
    block, inner = lanes, best
    if gathered:
        block, inner = min(extents[best], GATHERED_BYTES // lane_bytes(kernel)), f"{best}.1"
        inward = [*inward, Split(best, block), *gathered]
    sizes = [*(extents[n] for n in rest), -(-extents[best] // block)]
    outer = shared([*rest, f"{best}.0"], sizes)
    within = [step for name in reversed(beside) for step in (Distribute(name), Unroll(name))]
    steps = (*inward, Split(inner, lanes), *within, *outer, Vectorize(f"{inner}.1", lanes))
    short = extents[best] <= GUARDED_VECTORS * lanes and parallel_position(sizes) < len(rest)
    if short and _is_guarded(loops[-1].body, best):
        steps = (*steps, Unroll(f"{inner}.0"))
    streams = _streams(kernel, steps, target) if large else ()
    return (*steps, *streams, *_map_ahead(kernel, loops[-1].body, f"{inner}.1", target))


def _is_guarded(body: Body, name: str) -> bool:
    """Whether something is read in a part of the iterations of a loop only."""
    return any(isinstance(s, Load | Within) and any(g.factor(name) for g in s.guard) for s in body)


def _gathered(kernel: Kernel, body: Body, best: str, extent: int, target: Target) -> tuple[Gather, ...]:
    """The step that gathers large results before they go past the caches, where that pays; it follows a split."""
    widths = {step.buffer: kernel.buffer(step.buffer).dtype.itemsize for step in large_results(kernel, target)}
    stores = [s for s in body if isinstance(s, Store)]
    if _cost(body) > LONG_BODY or sorted(s.buffer for s in stores) != sorted(widths):
        return ()
    lines = Loop(best, CACHE_LINE, 0, Bind.VECTOR, CACHE_LINE)
    long = extent * min(widths.values()) >= SHORT_RUN_BYTES
    whole = all(is_whole(s, lines, widths[s.buffer]) for s in stores)
    return (Gather(f"{best}.1", tuple(widths)),) if long and whole else ()


def _beside(loops: list[For], best: str) -> list[str]:
    """The short loops that are written out around the vector loop `best`: those that store between its lanes.

    With them those that say which parts of arrays that lie side by side are read.
    """
    body = loops[-1].body
    stores = [s for s in body if isinstance(s, Store)]
    extents = {f.loop.name: f.loop.extent for f in loops}
    stride = stores[0].index.factor(best) if stores else 0
    if stride not in INTERLEAVED or any(s.index.terms != stores[0].index.terms for s in stores):
        return []
    inside = sorted((factor, name) for name, factor in stores[0].index.terms if factor < stride)
    filled = 1
    for factor, name in inside:
        if factor != filled:
            return []
        filled *= extents[name]
    if filled != stride:
        return []
    between = [name for _, name in reversed(inside)]
    guards = [one for s in body if isinstance(s, Load) for one in s.guard]
    parts = [n for n, extent in extents.items() if extent in INTERLEAVED and any(g.factor(n) for g in guards)]
    return [*(name for name in parts if name not in (*between, best)), *between]


def _streams(kernel: Kernel, steps: Sequence[Step], target: Target) -> tuple[Stream, ...]:
    """For large results, the further steps that write them past the caches, where whole vectors are stored."""
    possible = large_results(kernel, target)
    if not possible:
        return ()
    scheduled = apply(kernel, steps)
    return tuple(step for step in possible if apply_stream(scheduled, step) != scheduled)


def _map_ahead(kernel: Kernel, body: Body, inner: str, target: Target) -> tuple[MapAhead, ...]:
    """What is read is fetched ahead if it lies beyond the caches of a worker, unless arithmetic takes much longer."""
    far = _cost(body) <= 2 * LONG_BODY and _is_far(kernel, {s.buffer for s in body if isinstance(s, Load)}, target)
    return (MapAhead(inner, MAP_AHEAD_BYTES, target.l2),) if far else ()


def _is_far(kernel: Kernel, read: Collection[str], target: Target) -> bool:
    """Whether an array that is read is too large for the caches of a worker."""
    return any(b.size * b.dtype.itemsize >= target.l2 for b in kernel.params if b.name in read)


def _turned_loop(loops: list[For], best: str) -> str | None:
    """The loop that most loads lie along which jump along the vector loop, if it pays to turn blocks of them."""
    body = loops[-1].body
    counts = [
        (len(turned_loads(body, f.loop.name, best, MAX_SHUFFLED)), k)
        for k, f in enumerate(loops)
        if f.loop.name != best and f.loop.extent >= MIN_LANES
    ]
    count, k = max(counts, default=(0, 0))
    fits = next(f.loop.extent for f in loops if f.loop.name == best) >= MIN_LANES
    return loops[k].loop.name if count and fits else None


def _turned_steps(loops: list[For], best: str, turned: str, lanes: int, blocks: int = 1) -> tuple[Step, ...]:
    """Blocks of vectors along `turned`, turned in registers to vectors along `best`.

    With several blocks side by side their rows are read from one end to the other, and make runs of lines of a result.
    """
    order = [f.loop.name for f in loops]
    extents = {f.loop.name: f.loop.extent for f in loops}
    steps: list[Step] = []
    if order[-2:] != [turned, best]:
        steps, order = innermost(order, turned, best)
    rows, columns = (_narrowed(lanes, extents[name]) for name in (turned, best))
    lane, inside = best, [f"{turned}.0", f"{best}.0"]
    sizes = [-(-extents[turned] // rows), -(-extents[best] // columns)]
    if blocks > 1:
        steps += [Split(best, blocks * columns), Distribute(turned)]
        lane, inside = f"{best}.1", [f"{best}.0", f"{turned}.0", f"{best}.1.0"]
        sizes = [-(-sizes[1] // blocks), sizes[0], blocks]
    steps += [Split(lane, columns), Split(turned, rows), Distribute(f"{turned}.1"), Vectorize(f"{lane}.1", columns)]
    body = loops[-1].body
    short = len(body) <= SHORT_BODY and len(turned_loads(body, turned, best, 0)) == 1
    steps.append(Transpose(f"{turned}.1", f"{lane}.1", rows, "t", kept=not short))
    rest = order[:-2]
    return (*steps, *shared([*rest, *inside], [*(extents[n] for n in rest), *sizes]))


def _turned_ahead(
    kernel: Kernel, loops: list[For], best: str, turned: str, lanes: int, target: Target
) -> tuple[MapAhead, ...]:
    """Fetches of what the rows to be turned hold next, and of what lies along the results of the next blocks."""
    rows = _narrowed(lanes, next(f.loop.extent for f in loops if f.loop.name == turned))
    loads = [s for s in loops[-1].body if isinstance(s, Load) and s.index.factor(best) == 1]
    strides = [s.index.factor(turned) * kernel.buffer(s.buffer).dtype.itemsize for s in loads]
    ahead = MapAhead(f"{turned}.1", TURNED_AHEAD_BYTES, target.l2)
    return (ahead, MapAhead(f"{best}.1.1", rows * max(strides), target.l2)) if strides else (ahead,)


def _cost(body: Body) -> int:
    """What the operations of a body without loops cost, in additions."""
    return sum(COSTS.get(s.op, 1) for s in body if isinstance(s, Let) and s.op != "const")


def _narrowed(lanes: int, extent: int) -> int:
    """The lanes of a loop that is too short for all of them."""
    while lanes > MIN_LANES and extent <= lanes // 2:
        lanes //= 2
    return lanes


def _vector_loop(loops: list[For], lanes: int) -> str:
    """The loop whose neighbors lie next to each other in most accesses; a short one only if there is none around it."""
    body = loops[-1].body
    scores = [
        (min(f.loop.extent, lanes) * max(_unit_stride(body, f.loop.name), 0) + _stores(body, f.loop.name), k)
        for k, f in enumerate(loops)
    ]
    best = loops[max(scores)[1]].loop
    # A loop too short for the lanes is written out in one that steps over it.
    around = [f.loop for f in loops if f.loop.extent > best.extent and best.name in _beside(loops, f.loop.name)]
    if best.extent <= max(INTERLEAVED) and around:
        return max(around, key=lambda one: one.extent).name
    return best.name


def _stores(body: Body, name: str) -> int:
    return sum(1 for a in _accesses(body) if isinstance(a, Store) and a.index.factor(name) == 1)


def _row_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    itemsize = lane_bytes(kernel)
    passes = [f for f in loops_of(kernel.body) if f.loop.name.startswith("r") and not _has_loop(f)]
    if not passes:
        return _map_like_rows(kernel)
    reduced = max(_unit_stride(f.body, f.loop.name) for f in passes)
    outer = [f for f in loops_of(kernel.body) if f.loop.name.startswith("d")]
    kept = max((_unit_stride(passes[0].body, f.loop.name), k) for k, f in enumerate(outer)) if outer else (0, 0)
    if outer and kept[0] > reduced and len({f.loop.name for f in passes}) == 1:
        return _column_steps(outer[kept[1]], outer, target.lanes(itemsize))
    bytes_of_row = passes[0].loop.extent * itemsize
    fetched = AHEAD_BYTES[0] <= bytes_of_row <= AHEAD_BYTES[1]
    beside = _rows_beside(kernel, outer, target, fetched)
    steps = list(beside)
    for name in dict.fromkeys(f.loop.name for f in passes):
        extent = next(f.loop.extent for f in passes if f.loop.name == name)
        lanes = ROW_BYTES // itemsize
        if extent >= 4 * lanes:
            lanes *= 2
        if extent >= 4 * lanes and len(passes) > 2 and all(_waits(f.body) for f in passes if f.loop.name == name):
            lanes *= 2
        steps += [Split(name, lanes), Vectorize(f"{name}.1", lanes)]
    if beside:
        first = outer[0].loop.name
        return (*steps, Parallel(f"{first}.0" if len(outer) == 1 else first))
    steps += _streams(kernel, steps, target)
    streamed = {step.buffer for step in steps if isinstance(step, Stream)}
    streaming = [f for f in passes if any(isinstance(s, Store) and s.buffer in streamed for s in f.body)]
    names = [f.loop.name for f in passes]
    if outer and len(set(names)) == len(names) and fetched:
        # Passes that write past the caches wait for memory as it is.
        quiet = [f for f in passes if f not in streaming]
        busiest = max(quiet or passes, key=lambda f: _cost(f.body)).loop.name
        steps.append(Ahead(f"{busiest}.1", outer[-1].loop.name, target.l2))
    alone = streaming == passes[-1:] and bytes_of_row <= AHEAD_BYTES[1] and target.overlaps
    if alone and (late := _overlapped(kernel, steps, outer)):
        return (*steps, *late)
    return (*steps, Parallel(outer[0].loop.name)) if outer else tuple(steps)


def _rows_beside(kernel: Kernel, outer: Sequence[For], target: Target, fetched: bool) -> tuple[Step, ...]:
    """Pass several rows side by side, where one short pass over each is all: what they share is read once for them.

    Rows that come from far away, and can be `fetched` ahead, are faster one after the other.
    """
    loops = loops_of(kernel.body)
    if not outer or loops[:-1] != list(outer) or math.prod(f.loop.extent for f in outer) < FEW_UNITS:
        return ()
    rows, body = outer[-1].loop, loops[-1].body
    beside = next((n for n in ROWS_BESIDE if rows.extent % n == 0), None)
    if beside is None or _cost(body) > SHORT_PASS or not all(isinstance(s, Accumulate | Load | Let) for s in body):
        return ()
    if any(isinstance(s, Accumulate) and s.combine not in ("sum", "max", "min") for s in body):
        return ()
    loads = [s for s in body if isinstance(s, Load)]
    own = {s.buffer for s in loads if s.index.factor(rows.name)}
    near = SHARED_CACHES if any(not s.index.factor(rows.name) for s in loads) else OWN_CACHES
    size = sum(b.size * b.dtype.itemsize for b in kernel.params if b.name in own)
    if fetched and size > near * target.l2:
        return ()
    return (Split(rows.name, beside), Unroll(f"{rows.name}.1"), Distribute(f"{rows.name}.1"))


def _waits(body: Body) -> bool:
    """Whether the extrema a pass gathers take longer than anything else in it, one after the other."""
    gathered = [s for s in body if isinstance(s, Accumulate)]
    return bool(gathered) and _cost(body) <= SHORT_PASS and all(s.combine in ("max", "min") for s in gathered)


def _overlapped(kernel: Kernel, steps: Sequence[Step], outer: Sequence[For]) -> tuple[Step, ...]:
    """The last steps of a schedule that writes a row while the next one is read; none where that cannot be."""
    if not outer:
        return ()
    names, sizes = [f.loop.name for f in outer], [f.loop.extent for f in outer]
    rows, cut, units = names[-1], (), [Parallel(names[0])]
    if all(len(f.body) == 1 for f in outer[:-1]):
        fitting = [n for n in UNIT_ROWS if sizes[-1] % n == 0 and max([*sizes[:-1], sizes[-1] // n]) >= FEWEST_UNITS]
        if not fitting:
            return ()
        blocks = [*sizes[:-1], sizes[-1] // fitting[0]]
        rows, cut, units = f"{rows}.1", (Split(rows, fitting[0]),), shared([*names[:-1], f"{rows}.0"], blocks)
    scheduled = apply(kernel, (*steps, *cut))
    beside = passes_beside(scheduled, rows)
    if not beside:
        return ()
    costs = {f.loop.name: _cost(f.body) for f in loops_of(scheduled.body)}
    return (*cut, Overlap(rows, max(beside, key=lambda name: costs[f"{name}.1"])), *units)


def _has_loop(stmt: For) -> bool:
    return any(isinstance(s, For) for s in stmt.body)


def _map_like_rows(kernel: Kernel) -> tuple[Step, ...]:
    """Reductions over nothing: every row only writes what its passes begin with."""
    outer = _nest(kernel.body)
    return (Parallel(outer[0].loop.name),) if outer else ()


def _sort_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    """Rows in parallel; in each, the counting of those before an element for as many elements as there are lanes."""
    outer = [f for f in _nest(kernel.body) if f.loop.name.startswith("d")]
    steps: list[Step] = []
    ranked = [f for f in loops_of(kernel.body) if f.loop.name == "i"]
    if ranked:
        extent = ranked[0].loop.extent
        width = next(kernel.buffer(s.buffer).dtype.itemsize for s in ranked[0].body if isinstance(s, Load))
        lanes = _narrowed(target.lanes(width), extent)
        vectors = max(1, min(4, extent // lanes))
        steps += [Split("i", lanes * vectors), Split("i.1", lanes), Vectorize("i.1.1", lanes), Unroll("i.1.0")]
        steps += [Distribute("i.1.1"), Distribute("i.1.0")]
    if outer:
        steps += shared([f.loop.name for f in outer], [f.loop.extent for f in outer])
    return tuple(steps)


def _column_steps(chosen: For, outer: list[For], lanes: int) -> tuple[Step, ...]:
    """Reduce or scan over rows with neighboring columns in the lanes: a block of columns stays in registers."""
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
    return (*steps, *shared(blocks, [*sizes, -(-extent // (lanes * vectors))]))


def _scan_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    """Neighboring columns in the lanes where there are some, else several rows at a time."""
    outer = [f for f in loops_of(kernel.body) if f.loop.name.startswith("d")]
    scan = next((f for f in loops_of(kernel.body) if f.loop.name == "s0"), None)
    if not outer:
        return ()
    if scan is None:
        return (Parallel(outer[0].loop.name),)
    stride, position = max((_unit_stride(scan.body, f.loop.name), k) for k, f in enumerate(outer))
    if stride > 0:
        return _column_steps(outer[position], outer, target.lanes(lane_bytes(kernel)))
    rows = outer[-1].loop.name
    blocks = [*(f.loop.name for f in outer[:-1]), f"{rows}.0"]
    steps: list[Step] = [Split(rows, SCANNED_ROWS), Unroll(f"{rows}.1"), Distribute(f"{rows}.1")]
    sizes = [*(f.loop.extent for f in outer[:-1]), -(-outer[-1].loop.extent // SCANNED_ROWS)]
    return (*steps, *shared(blocks, sizes))


def _scatter_steps(kernel: Kernel, target: Target) -> tuple[Step, ...]:
    """Each worker has its own part of every slice, neighbors of the last axis in the lanes; indices in order."""
    loops = [f for f in _nest(kernel.body) if f.loop.name.startswith("e")]
    if not loops:
        return ()
    names, sizes = [f.loop.name for f in loops], [f.loop.extent for f in loops]
    itemsize, last = lane_bytes(kernel), names[-1]
    lanes = target.lanes(itemsize)
    steps: list[Step] = []
    inner: str | None = None
    if all(a.index.factor(last) == 1 for a in _accesses(loops[-1].body) if isinstance(a, Store)):
        inner = last
        if len(names) == 1:
            block = SCATTER_BYTES // itemsize
            steps.append(Split(last, block))
            names, sizes, inner = [f"{last}.0"], [-(-sizes[0] // block)], f"{last}.1"
        else:
            names, sizes = names[:-1], sizes[:-1]
    steps += shared(names, sizes)
    if inner is not None:
        depth = max(_depth(loops[-1].body), 1)
        steps += [Split(inner, lanes), Vectorize(f"{inner}.1", lanes)]
        steps += [Distribute(f"{inner}.1")] * depth + [Distribute(f"{inner}.0")] * depth
    return tuple(steps)


def _depth(body: Body) -> int:
    """How many loops are nested in a body."""
    return max((1 + _depth(s.body) for s in body if isinstance(s, For)), default=0)
