"""Results too large for the caches, written past them: no line of memory is read only to be written over."""

from __future__ import annotations

from codegen.affine import variable
from codegen.loop import (
    Bind,
    Body,
    Buffer,
    For,
    Kernel,
    Load,
    Loop,
    Space,
    Stmt,
    Store,
    replace_loops,
    replace_statements,
    statements_of,
)
from codegen.target import CACHE_LINE, Target
from symgrad.record import record, replace

# Bytes that a kernel writes, from which their readers find them in memory one way or the other.
STREAMED_BYTES = 16 << 20
# What is appended to the names of results that are gathered.
NEAR = "_near"
# Processors gather parts of a line of memory that are written in turn.
PART_BYTES = 16


@record
class Stream:
    """Write the whole aligned vectors of a buffer past the caches."""

    buffer: str


@record
class Gather:
    """Keep what the innermost loops called `loop` store to buffers in scratch memory, and store it after each of them.

    That is done by loops of the same name: steps that split the one do the same to the other.
    """

    loop: str
    buffers: tuple[str, ...]


def large_results(kernel: Kernel, target: Target) -> tuple[Stream, ...]:
    """A step for every buffer that a kernel only writes, if they are better written past the caches."""
    if not target.streams:
        return ()
    read = {s.buffer for s in statements_of(kernel.body) if isinstance(s, Load)}
    results = [b for b in kernel.params if b.written and b.name not in read]
    large = sum(b.size * b.dtype.itemsize for b in results) >= STREAMED_BYTES
    return tuple(Stream(b.name) for b in results) if large else ()


def apply_stream(kernel: Kernel, step: Stream) -> Kernel:
    """The kernel with those stores to a buffer marked that write whole lines, if the buffer starts with one."""
    buffer = kernel.buffer(step.buffer)
    if buffer.space is not Space.GLOBAL:
        raise ValueError(f"stream {step.buffer}: not in memory")

    def change(body: Body, vector: Loop | None) -> Body:
        return tuple(
            For(s.loop, change(s.body, s.loop if s.loop.bind is Bind.VECTOR else vector))
            if isinstance(s, For)
            else replace(s, past_caches=True)
            if isinstance(s, Store) and s.buffer == buffer.name and is_whole(s, vector, buffer.dtype.itemsize)
            else s
            for s in body
        )

    return replace(kernel, body=change(kernel.body, None))


def gather(kernel: Kernel, step: Gather) -> Kernel:
    """The kernel with those stores moved. ValueError where loops are inside, or a buffer is read or stored to twice."""
    kept: dict[str, Buffer] = {}
    place = variable(step.loop)

    def change(stmt: For) -> Body:
        stored = [s.buffer for s in stmt.body if isinstance(s, Store) and s.buffer in step.buffers]
        read = {s.buffer for s in stmt.body if isinstance(s, Load)}
        if any(isinstance(s, For) for s in stmt.body) or len({*stored} - read) < len(stored):
            raise ValueError(f"gather {step.loop}: a loop is inside, or one of {step.buffers} is used more than once")
        first: list[Stmt] = []
        after: list[Stmt] = []
        for s in stmt.body:
            if not isinstance(s, Store) or s.buffer not in step.buffers:
                first.append(s)
                continue
            buffer, name, value = kernel.buffer(s.buffer), s.buffer + NEAR, f"{s.value}_{s.buffer}"
            size = max(stmt.loop.extent, kept[name].size if name in kept else 0)
            kept[name] = Buffer(name, buffer.dtype, size, Space.SCRATCH)
            first.append(Store(name, place, s.value))
            after += [Load(value, name, place, buffer.dtype), replace(s, value=value)]
        return (For(stmt.loop, tuple(first)), For(stmt.loop, tuple(after)))

    body = replace_loops(kernel.body, step.loop, change)
    return replace(kernel, body=body, locals=(*kernel.locals, *kept.values()))


def without_gathering(stmt: For) -> For:
    """The loop that stores results as they are computed, and gathers none: that takes less where caches take them."""
    found = statements_of(stmt.body)
    near = {s.name: s.buffer for s in found if isinstance(s, Load) and s.buffer.endswith(NEAR)}
    last = {near[s.value]: s for s in found if isinstance(s, Store) and s.value in near}

    def change(s: Stmt) -> Body:
        if isinstance(s, Store):
            return () if s.value in near else (replace(last.get(s.buffer, s), value=s.value),)
        return () if isinstance(s, Load) and s.name in near else (s,)

    def filled(stmts: Body) -> Body:
        inner = (For(s.loop, filled(s.body)) if isinstance(s, For) else s for s in stmts)
        return tuple(s for s in inner if not isinstance(s, For) or s.body)

    return For(stmt.loop, filled(replace_statements(stmt.body, change))) if near else stmt


def is_whole(stmt: Store, vector: Loop | None, itemsize: int) -> bool:
    """Whether the lanes of a store are neighbors that fill a line or a part of one, wherever the loops around stand."""
    if vector is None or vector.extent < vector.lanes or stmt.index.factor(vector.name) != 1:
        return False
    unit = min(CACHE_LINE, vector.lanes * itemsize)
    steps = [CACHE_LINE // itemsize, stmt.index.const, *(f for name, f in stmt.index.terms if name != vector.name)]
    return unit >= PART_BYTES and all(step * itemsize % unit == 0 for step in steps)
