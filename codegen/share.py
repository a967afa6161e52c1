"""Parallel loops of few long iterations: workers share loops inside of them too, so that none waits for another."""

from __future__ import annotations

from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Finish,
    For,
    Init,
    Kernel,
    Load,
    Space,
    Store,
    run_on,
    shared_in,
    statements_of,
)
from codegen.writer import DIVIDED_LEVELS
from symgrad.record import record, replace


@record
class Share:
    """Divide the iterations of the parallel or shared loop `outer` into units: those of `loop` directly inside of it.

    What stands before these loops is done by every worker that comes to such an iteration.
    """

    outer: str
    loop: str


def divided(kernel: Kernel, units: int) -> tuple[Kernel, tuple[Share, ...]]:
    """The kernel with iterations of parallel loops divided, and what divides them, until there are so many units.

    Beside it the steps that made it so.
    """
    best, steps, level = (kernel, ()), (), [s for s in kernel.body if isinstance(s, For)]
    while kernel.units < units and len(steps) < DIVIDED_LEVELS:
        names = {(one.loop.name, _dividing(one, kernel)) for one in level}
        outer, name = names.pop()
        if name is None or names:
            break
        steps = (*steps, Share(outer, name))
        kernel = apply_share(kernel, steps[-1])
        if kernel.units > best[0].units:
            best = kernel, steps
        level = [s for s in kernel.body if isinstance(s, For)]
        for _ in steps:
            level = [inner for one in level for inner in shared_in(one)]
    return best


def apply_share(kernel: Kernel, step: Share) -> Kernel:
    def divided(stmt: For) -> For:
        if stmt.loop.name == step.outer:
            return For(stmt.loop, _bound(stmt.body, step.loop))
        body = (divided(s) if isinstance(s, For) and s.loop.bind is Bind.SHARED else s for s in stmt.body)
        return For(stmt.loop, tuple(body))

    return replace(kernel, body=tuple(divided(s) if isinstance(s, For) else s for s in kernel.body))


def _bound(body: Body, name: str) -> Body:
    """A body with its loops of this name shared."""
    return tuple(
        For(replace(s.loop, bind=Bind.SHARED), s.body) if isinstance(s, For) and s.loop.name == name else s
        for s in body
    )


def serial(stmt: For) -> For:
    """A loop as one that a worker runs by itself, whatever was parallel or shared."""
    body = tuple(serial(s) if isinstance(s, For) and s.loop.bind is Bind.SHARED else s for s in stmt.body)
    bind = Bind.SERIAL if stmt.loop.bind in (Bind.PARALLEL, Bind.SHARED) else stmt.loop.bind
    return For(replace(stmt.loop, bind=bind), body)


def _dividing(stmt: For, kernel: Kernel) -> str | None:
    """The loops at the end of an iteration that compute all its results, each a part of them of its own."""
    loops = [s for s in stmt.body if isinstance(s, For)]
    if len(loops) != len(stmt.body) or not loops:
        return None
    name = loops[-1].loop.name
    first = next(k for k, s in enumerate(loops) if s.loop.name == name)
    before, inside = loops[:first], loops[first:]
    # Sums have loops with other names: iterations over places in a result do not depend on each other.
    if not name.startswith("d") or any(s.loop.name != name or s.loop.bind is not Bind.SERIAL for s in inside):
        return None
    if not run_on(inside):
        return None
    params = {b.name for b in kernel.params}
    kept = {b.name for b in kernel.locals if b.space is not Space.SCRATCH}
    if _stored(before) & params or _buffers(before) & _buffers(inside) & kept or _stored(inside) & _buffers(before):
        return None
    return name


def _buffers(loops: list[For]) -> set[str]:
    accesses = (s for s in statements_of(tuple(loops)) if isinstance(s, Load | Store | Init | Accumulate | Finish))
    return {s.buffer for s in accesses}


def _stored(loops: list[For]) -> set[str]:
    return {s.buffer for s in statements_of(tuple(loops)) if isinstance(s, Store)}
