"""Places that an index names in a row: the one element is computed apart, and the loop need not look for it."""

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
    Load,
    Stmt,
    Store,
    chain,
    defined,
    finishes,
    is_zero,
    loops_of,
    map_indices,
    renamed,
    replace_loops,
    replace_statements,
    statements_of,
    used,
    without_dead,
)
from symgrad.record import record, replace

# Integers of so many bits have a value for every place of a row.
WIDE_BITS = 32
# Rows of so many elements are worth computing one of them apart.
LONG_ROW = 128


@record
class Single:
    """Read the one element that makes up what `sum` accumulates over `loop`, after the loop.

    The sum is over `where(loop == place, element, 0)`, and the place is checked to be inside of the loop's range.
    """

    loop: str
    sum: str


@record
class Apart:
    """Compute what a row holds at the one place where a choice in `loop` is for its first value by itself.

    `choice` is `where(loop == place, first, second)`, and the place is checked to be inside of the loop's range. The
    loop has the second value everywhere; what follows from the first is computed before it and stored after it.
    """

    loop: str
    choice: str


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
        alone = chain(inside, {element})
        own = {name: f"{name}_{step.sum}" for s in alone if (name := defined(s)) is not None}
        at_place = map_indices(alone, lambda index: index.substitute({step.loop: variable(place)}))
        # What the others add makes -0 to 0.
        sums = Let(finish.name, "add", (own.get(element, element), zero), finish.dtype)
        return (*renamed(at_place, own), sums)

    def change(s: Stmt) -> Body:
        if isinstance(s, Finish) and finishes(s, step.sum):
            return element_alone(s)
        return () if isinstance(s, Init | Accumulate) and s.buffer == step.sum else (s,)

    kept = tuple(b for b in kernel.locals if b.name != step.sum)
    return replace(kernel, body=without_dead(replace_statements(kernel.body, change)), locals=kept)


def elements_apart(kernel: Kernel) -> tuple[Apart, ...]:
    """A step for one choice in each loop of a naive kernel that can be made apart: places of two may be the same."""
    found: dict[str, Apart] = {}
    for loop in loops_of(kernel.body):
        for s in loop.body:
            if isinstance(s, Let) and loop.loop.extent >= LONG_ROW and _changed(kernel, loop, s):
                found.setdefault(loop.loop.name, Apart(loop.loop.name, s.name))
    return tuple(found.values())


def take_apart(kernel: Kernel, step: Apart) -> Kernel:
    """The kernel with the element computed apart. ValueError where it cannot be."""

    def change(loop: For) -> Body:
        choice = next((s for s in loop.body if isinstance(s, Let) and s.name == step.choice), None)
        stores = () if choice is None else _changed(kernel, loop, choice)
        place = None if choice is None else _place(kernel, loop, choice)
        if choice is None or place is None or not stores:
            raise ValueError(f"apart: {step.choice} is not a choice by a place in {step.loop}")
        _, first, second = choice.args
        others = tuple(s for s in loop.body if s is not choice)
        alone = chain(others, {s.value for s in stores})
        own = {name: f"{name}_{step.choice}" for s in alone if (name := defined(s)) is not None}
        own[step.choice] = first
        there = {step.loop: variable(place)}
        before, after = (
            renamed(map_indices(body, lambda index: index.substitute(there)), own) for body in (alone, stores)
        )
        return (*before, For(loop.loop, renamed(others, {step.choice: second})), *after)

    return replace(kernel, body=without_dead(replace_loops(kernel.body, step.loop, change)))


def _changed(kernel: Kernel, loop: For, choice: Let) -> tuple[Store, ...]:
    """The stores of a loop that a choice by a place changes, if nothing else but values changes with it."""
    if _place(kernel, loop, choice) is None:
        return ()
    inside = {name for s in loop.body if (name := defined(s)) is not None}
    changed = {choice.name}
    stores: list[Store] = []
    for s in loop.body:
        if not changed & set(used(s)):
            continue
        if isinstance(s, Store):
            stores.append(s)
        elif isinstance(s, Let) and s.op != "check_index":
            changed.add(s.name)
        else:
            return ()
    written = {s.buffer for s in loop.body if isinstance(s, Store)}
    alone = chain(loop.body, {s.value for s in stores})
    is_read = any(isinstance(s, Load) and s.buffer in written for s in alone)
    return () if is_read or inside & set(choice.args[1:]) else tuple(stores)


def _place(kernel: Kernel, loop: For, choice: Let) -> str | None:
    """The place at which a choice is for its first value, and nowhere else in a loop."""
    if choice.op != "where" or loop.loop.start or any(isinstance(s, For) for s in loop.body):
        return None
    inside = {name: s for s in loop.body if (name := defined(s)) is not None}
    around = {s.name: s for s in statements_of(kernel.body) if isinstance(s, Let) and s.name not in inside}
    equal = inside.get(choice.args[0])
    if not isinstance(equal, Let) or equal.op != "equal":
        return None
    for place, index in (equal.args, equal.args[::-1]):
        counted, check = inside.get(index), around.get(place)
        if not isinstance(counted, Index) or counted.index != variable(loop.loop.name):
            continue
        if check is None or check.op != "check_index" or check.dtype.bits < WIDE_BITS:
            continue
        if dict(check.attrs)["extent"] == loop.loop.extent:
            return place
    return None


def _bodies(body: Body) -> Iterator[Body]:
    yield body
    for stmt in loops_of(body):
        yield stmt.body


def _single(kernel: Kernel, loop: For, stmt: Accumulate) -> tuple[str, str, str] | None:
    """The place of the only element of a loop that adds to a sum, the element, and the 0 in its stead elsewhere."""
    chosen = next((s for s in loop.body if defined(s) == stmt.args[0]), None)
    if stmt.combine != "sum" or stmt.name is not None or not isinstance(chosen, Let):
        return None
    place = _place(kernel, loop, chosen)
    if place is None or not is_zero(chosen.args[2], kernel):
        return None
    return place, chosen.args[1], chosen.args[2]
