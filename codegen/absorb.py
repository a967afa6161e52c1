"""Arrays that need not be stored: a kernel fills the part that an iteration of its parallel loop reads just before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from codegen.affine import Affine, variable
from codegen.costs import COSTS
from codegen.loop import (
    Bind,
    Body,
    Fetch,
    For,
    Kernel,
    Let,
    Load,
    Space,
    Stmt,
    Store,
    defined,
    loops_of,
    renamed,
    replace_statements,
    statements_of,
)
from codegen.share import serial
from symgrad.record import record, replace

# Cost of an element up to which it is computed by each of several kernels that read it.
CHEAP = 4


@record
class Slices:
    """The parallel loop of a kernel whose iterations read disjoint parts of `size` elements of an array, in order."""

    loop: str
    count: int
    size: int


def slices_of(kernel: Kernel, name: str) -> Slices | None:
    """How a scheduled kernel that reads the array `name` does it, if in slices."""
    if len(kernel.body) != 1 or not isinstance(kernel.body[0], For) or kernel.body[0].loop.start:
        return None
    loop = kernel.body[0].loop
    found: set[int] = set()
    size = kernel.buffer(name).size // loop.extent
    if loop.bind is not Bind.PARALLEL or size * loop.extent != kernel.buffer(name).size:
        return None
    for access, ranges in _accesses(kernel.body, name, {}):
        found.add(access.index.factor(loop.name))
        span = (access.index + variable(loop.name) * -size).range(ranges)
        if isinstance(access, Store) or access.guard or span is None or span[0] < 0 or span[1] >= size:
            return None
    return Slices(loop.name, loop.extent, size) if found == {size} else None


def is_filled_in(naive: Kernel, slices: Slices) -> bool:
    """Whether the outermost loop of a naive kernel, which computes every element of one array, writes such slices."""
    written = [b for b in naive.params if b.written]
    if len(written) != 1 or len(naive.body) != 1 or naive.locals:
        return False
    outer = naive.body[0]
    if not isinstance(outer, For) or outer.loop.extent != slices.count or written[0].size != slices.count * slices.size:
        return False
    if not any(isinstance(s, For) for s in outer.body):
        return False
    spans = [
        (access.index + variable(outer.loop.name) * -slices.size).range(ranges)
        for access, ranges in _accesses(naive.body, written[0].name, {})
        if isinstance(access, Store)
    ]
    return all(span is not None and span[0] >= 0 and span[1] < slices.size for span in spans)


def is_cheap(naive: Kernel) -> bool:
    """Whether an element is computed in so few operations that several kernels may do it."""
    return sum(COSTS.get(s.op, 1) for s in statements_of(naive.body) if isinstance(s, Let) and s.op != "const") <= CHEAP


def absorbed(
    kernel: Kernel,
    name: str,
    slices: Slices,
    naive: Kernel,
    names: Mapping[str, str],
    scheduled: Callable[[Kernel], Kernel],
) -> Kernel:
    """A scheduled kernel that fills its slices of the array `name` as the naive kernel does, in scratch memory.

    `names` are the names of the parameters of the naive kernel in the kernel, where new ones are added behind, and
    `scheduled` schedules a naive kernel.
    """
    (outer,) = kernel.body
    (whole,) = naive.body
    assert isinstance(outer, For)
    assert isinstance(whole, For)
    scratch = replace(kernel.buffer(name), size=slices.size, space=Space.SCRATCH, written=False)
    back = variable(slices.loop) * -slices.size

    # Loops and values get names of their own.
    own = {one.loop.name for one in loops_of(naive.body)} | {n for s in statements_of(naive.body) if (n := defined(s))}
    names_of = {n: f"{name}_{n}" for n in own} | {whole.loop.name: slices.loop} | dict(names)
    body = renamed(whole.body, names_of)
    params = tuple(replace(b, name=names_of[b.name]) for b in naive.params)
    part = scheduled(Kernel(params, (), _moved(body, name, back)))
    inner = {b.name: f"{name}_{b.name}" for b in part.locals}

    filled = renamed(tuple(serial(s) for s in part.body if isinstance(s, For)), inner)
    known = {b.name for b in kernel.params}
    more = tuple(b for b in params if not b.written and b.name not in known)
    return Kernel(
        (*(b for b in kernel.params if b.name != name), *more),
        (*kernel.locals, scratch, *(replace(b, name=inner[b.name]) for b in part.locals)),
        (For(outer.loop, (*filled, *_moved(outer.body, name, back))),),
    )


def _accesses(
    body: Body, name: str, ranges: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[Load | Store, Mapping[str, tuple[int, int]]]]:
    """What reads or writes a buffer, with the values that loops have there."""
    for stmt in body:
        if isinstance(stmt, For):
            loop = stmt.loop
            yield from _accesses(stmt.body, name, {**ranges, loop.name: (loop.start, loop.start + loop.extent - 1)})
        elif isinstance(stmt, Load | Store) and stmt.buffer == name:
            yield stmt, ranges


def _moved(body: Body, name: str, back: Affine) -> Body:
    """The body with another place in a buffer wherever it is accessed; what is filled just before is not fetched."""

    def moved(stmt: Stmt) -> Body:
        if isinstance(stmt, Fetch) and stmt.buffer == name:
            return ()
        if isinstance(stmt, Load | Store) and stmt.buffer == name:
            return (replace(stmt, index=stmt.index + back),)
        return (stmt,)

    return replace_statements(body, moved)
