"""Sums over a row to which one element alone adds something: that element is read where it stands."""

from __future__ import annotations

from collections.abc import Iterator

from codegen.affine import variable
from codegen.loop import (
    Accumulate,
    Body,
    Finish,
    For,
    Index,
    Init,
    Kernel,
    Let,
    Stmt,
    defined,
    finishes,
    loops_of,
    map_indices,
    renamed,
    statements_of,
    used,
    without_dead,
)
from symgrad.record import record, replace

# Integers of so many bits have a value for every place of a row.
WIDE_BITS = 32


@record
class Single:
    """Read the one element that makes up what `sum` accumulates over `loop`, after the loop.

    The sum is over `where(loop == place, element, 0)`, and the place is checked to be inside of the loop's range.
    """

    loop: str
    sum: str


def single_elements(kernel: Kernel) -> tuple[Single, ...]:
    """A step for every sum of a naive kernel that one element makes up."""
    found: list[Single] = []
    for body in _bodies(kernel.body):
        begun = {s.buffer for s in body if isinstance(s, Init)}
        loops = [s for s in body if isinstance(s, For)]
        found += [
            Single(one.loop.name, s.buffer)
            for one in loops
            for s in one.body
            if isinstance(s, Accumulate) and s.buffer in begun and _single(kernel, one, s) is not None
        ]
    return tuple(found)


def take_single(kernel: Kernel, step: Single) -> Kernel:
    """The kernel with the element read after the loop. ValueError where more than one element counts."""
    loop = next((one for one in loops_of(kernel.body) if one.loop.name == step.loop), None)
    inside = loop.body if loop is not None else ()
    stmt = next((s for s in inside if isinstance(s, Accumulate) and s.buffer == step.sum), None)
    found = None if loop is None or stmt is None else _single(kernel, loop, stmt)
    if found is None:
        raise ValueError(f"single: {step.sum} is not one element of {step.loop}")
    place, element, zero = found

    def element_alone(finish: Finish) -> Body:
        wanted, chain = {element}, list[Stmt]()
        for s in reversed(inside):
            if defined(s) in wanted:
                chain.insert(0, s)
                wanted.update(used(s))
        own = {name: f"{name}_{step.sum}" for s in chain if (name := defined(s)) is not None}
        at_place = map_indices(tuple(chain), lambda index: index.substitute({step.loop: variable(place)}))
        # What the others add makes -0 to 0.
        sums = Let(finish.name, "add", (own.get(element, element), zero), finish.dtype)
        return (*renamed(at_place, own), sums)

    def change(body: Body) -> Body:
        out: list[Stmt] = []
        for s in body:
            if isinstance(s, For):
                out.append(For(s.loop, change(s.body)))
            elif isinstance(s, Finish) and finishes(s, step.sum):
                out += element_alone(s)
            elif not (isinstance(s, Init | Accumulate) and s.buffer == step.sum):
                out.append(s)
        return tuple(out)

    kept = tuple(b for b in kernel.locals if b.name != step.sum)
    return replace(kernel, body=without_dead(change(kernel.body)), locals=kept)


def _bodies(body: Body) -> Iterator[Body]:
    yield body
    for stmt in loops_of(body):
        yield stmt.body


def _single(kernel: Kernel, loop: For, stmt: Accumulate) -> tuple[str, str, str] | None:
    """The place of the only element of a loop that adds to a sum, the element, and the 0 in its stead elsewhere."""
    inside = {name: s for s in loop.body if (name := defined(s)) is not None}
    around = {s.name: s for s in statements_of(kernel.body) if isinstance(s, Let) and s.name not in inside}
    chosen = inside.get(stmt.args[0])
    if stmt.combine != "sum" or stmt.name is not None or not (isinstance(chosen, Let) and chosen.op == "where"):
        return None
    condition, element, zero = chosen.args
    equal = inside.get(condition)
    if not isinstance(equal, Let) or equal.op != "equal" or not _is_zero(around.get(zero)):
        return None
    for place, index in (equal.args, equal.args[::-1]):
        counted, check = inside.get(index), around.get(place)
        if not isinstance(counted, Index) or counted.index != variable(loop.loop.name):
            continue
        if check is None or check.op != "check_index" or check.dtype.bits < WIDE_BITS:
            continue
        if dict(check.attrs)["extent"] == loop.loop.extent and not loop.loop.start:
            return place, element, zero
    return None


def _is_zero(stmt: Let | None) -> bool:
    """Whether a statement names the constant 0, and not -0."""
    return stmt is not None and stmt.op == "const" and not any(dict(stmt.attrs)["value"].array.tobytes())
