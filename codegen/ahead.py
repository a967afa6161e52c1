"""Rows asked for ahead of time: memory works while a worker computes on the row before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from codegen.affine import variable
from codegen.loop import Body, Fetch, For, Kernel, Load, Space, Stmt, Store, loops_of


@dataclass(frozen=True, slots=True)
class Ahead:
    """In the vector loop `inner` of one pass over a row, fetch what the passes read of the next row.

    `rows` is the loop over rows. Passes are loops split in two, named `pass.0` and `pass.1`. What later passes write of
    this row is fetched too, so that their stores do not wait, unless they go past the caches. Buffers of less than
    `least` bytes stay in the caches anyway.
    """

    inner: str
    rows: str
    least: int


def fetch_ahead(kernel: Kernel, step: Ahead) -> Kernel:
    """The kernel with fetches in the loops called `inner`."""
    chosen = step.inner.removesuffix(".1")
    fetches: dict[Stmt, None] = {}
    before = True
    for name, access in _accesses(kernel):
        before = before and name != chosen
        buffer = kernel.buffer(access.buffer)
        if buffer.space is not Space.GLOBAL or buffer.size * buffer.dtype.itemsize < step.least:
            continue
        write = isinstance(access, Store)
        index = access.index.substitute({f"{name}.{k}": variable(f"{chosen}.{k}") for k in "01"})
        if not index.factor(step.rows) or (isinstance(access, Load) and access.guard):
            continue
        if not write or before or name == chosen:
            index = index.substitute({step.rows: variable(step.rows) + 1})
        fetches[Fetch(access.buffer, index, write)] = None

    def change(body: Body) -> Body:
        out: list[Stmt] = []
        for stmt in body:
            if not isinstance(stmt, For):
                out.append(stmt)
            elif stmt.loop.name == step.inner:
                out.append(For(stmt.loop, (*fetches, *stmt.body)))
            else:
                out.append(For(stmt.loop, change(stmt.body)))
        return tuple(out)

    return replace(kernel, body=change(kernel.body))


def _accesses(kernel: Kernel) -> Iterator[tuple[str, Load | Store]]:
    """What the vector loops of passes read and write along the lanes, with the name of the pass."""
    for stmt in loops_of(kernel.body):
        name = stmt.loop.name.removesuffix(".1")
        known = {f"{name}.0", f"{name}.1"}
        for access in stmt.body:
            if (
                isinstance(access, Load | Store)
                and not (isinstance(access, Store) and access.past_caches)
                and access.index.factor(f"{name}.1") == 1
                and all(term in known or _is_outer(term) for term, _ in access.index.terms)
            ):
                yield name, access


def _is_outer(term: str) -> bool:
    return term.startswith("d") and term[1:].isdecimal()
