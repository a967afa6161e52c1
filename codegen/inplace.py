"""When a kernel may write a value over one that it reads, and copies for where it may not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from codegen.affine import variable
from codegen.costs import estimated_ns
from codegen.group import Anchor
from codegen.loop import Body, Buffer, For, Kernel, Load, Loop, Space, Stmt, Store, statements_of
from codegen.plan import Work
from codegen.schedule_cpu import schedule
from codegen.target import Target
from symgrad.record import record, replace
from symgrad.types import DType


@record
class Access:
    """A load or store, with the loops around it from outside in, and what place each has in the body before it."""

    stmt: Load | Store
    loops: tuple[Loop, ...]
    path: tuple[int, ...]


@dataclass(slots=True)
class Overwriting:
    """`same_element`, answered once for each kernel that works share."""

    known: dict[tuple[int, str, str], tuple[Kernel, bool]] = field(
        default_factory=dict[tuple[int, str, str], tuple[Kernel, bool]]
    )

    def may(self, work: Work, new: str, old: str) -> bool:
        """Whether a work may write the new value over the old one."""
        if old not in work.values:
            return True
        name = {v: work.kernel.params[work.values.index(v)].name for v in (new, old)}
        key = (id(work.kernel), name[new], name[old])
        if key not in self.known:
            # The kernel is kept, so that no other one has its identity.
            self.known[key] = (work.kernel, same_element(work, new, old))
        return self.known[key][1]


def same_element(work: Work, new: str, old: str) -> bool:
    """Whether the new value can be written over the old one, because what is read of the old one is read in the
    iteration that writes there, and before.

    An iteration of the loops that a load and a store share may touch a whole set of elements, in loops that each has
    for itself, as the passes over a row do. Relies on kernels to write an element of a value in one iteration only.
    """
    buffers = {v: b.name for v, b in zip(work.values, work.kernel.params, strict=True)}
    if old not in buffers:
        return True
    accesses = [a for a in _accesses(work.kernel.body) if a.stmt.buffer in (buffers[old], buffers[new])]
    stores: list[Access] = []  # from the last to the first
    for access in reversed(accesses):
        if isinstance(access.stmt, Store):
            if access.stmt.buffer == buffers[new]:
                stores.append(access)
        elif access.stmt.buffer == buffers[old] and not any(_is_place_of(access, s) for s in stores):
            return False
    written: list[Access] = []
    for access in accesses:
        if isinstance(access.stmt, Store):
            written.append(access)
        elif access.stmt.buffer == buffers[old] and any(_may_clobber(s, access) for s in written):
            return False
    return True


def _accesses(body: Body) -> Iterator[Access]:
    """The loads and stores of a body in program order."""
    stack: list[tuple[Stmt, tuple[Loop, ...], tuple[int, ...]]] = []
    stack += [(s, (), (k,)) for k, s in enumerate(body)][::-1]
    while stack:
        stmt, loops, path = stack.pop()
        if isinstance(stmt, For):
            stack += [(s, (*loops, stmt.loop), (*path, k)) for k, s in enumerate(stmt.body)][::-1]
        elif isinstance(stmt, Load | Store):
            yield Access(stmt, loops, path)


def _is_place_of(load: Access, store: Access) -> bool:
    """Whether an iteration of the loops around both reads exactly the elements it then writes, and no other does."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(load.path, store.path, strict=False))
    shared = len(list(pairs))
    common = {loop.name for loop in load.loops[:shared]}
    if not shared:  # the iterations of two outermost loops run side by side
        return False
    if not _is_once(load) or not _is_once(store) or load.stmt.index.const != store.stmt.index.const:
        return False
    together = [sorted((n, f) for n, f in a.stmt.index.terms if n in common) for a in (load, store)]
    alone = [sorted((a.stmt.index.factor(o.name), o.start, o.extent) for o in a.loops[shared:]) for a in (load, store)]
    return together[0] == together[1] and alone[0] == alone[1]


def _is_once(access: Access) -> bool:
    """Whether every loop around an access moves it, and nothing else does."""
    names = {loop.name for loop in access.loops}
    moved = {name for name, _ in access.stmt.index.terms}
    return moved <= names and all(loop.extent == 1 or loop.name in moved for loop in access.loops)


def _may_clobber(store: Access, load: Access) -> bool:
    """Whether a store that stands before a load may write what the load wants to read."""
    return not _is_once(store) or _is_place_of(load, store)


def without_copy(work: Work, new: str, old: str) -> Work:
    """The work without loops that only copy the old value to where it stands already."""
    buffers = {v: b.name for v, b in zip(work.values, work.kernel.params, strict=True)}
    if old not in buffers:
        return work
    kernel = replace(work.kernel, body=_useful(work.kernel.body, buffers[old], buffers[new]))
    left = any(isinstance(s, Store) and s.buffer == buffers[new] for s in statements_of(kernel.body))
    if kernel.body == work.kernel.body or not left:
        return work
    return replace(work, kernel=kernel, ns=estimated_ns(kernel))


def _useful(body: Body, source: str, destination: str) -> Body:
    """A body without the nests whose one statement copies from the source to the same place of the destination."""
    out: list[Stmt] = []
    for stmt in body:
        match stmt:
            case For(_, (Load(name, buffer, at), Store(into, to, value))):
                if (buffer, into, value, to) != (source, destination, name, at):
                    out.append(stmt)
            case For(loop, inner):
                rest = _useful(inner, source, destination)
                out += [For(loop, rest)] if rest else []
            case _:
                out.append(stmt)
    return tuple(out)


def copy_kernel(dtype: DType, size: int, target: Target) -> Kernel:
    """A kernel that copies a flat array."""
    body = (Load("v1", "p0", variable("d0"), dtype), Store("p1", variable("d0"), "v1"))
    params = (Buffer("p0", dtype, size, Space.GLOBAL), Buffer("p1", dtype, size, Space.GLOBAL, written=True))
    kernel = Kernel(params, (), (For(Loop("d0", size), body),))
    return schedule(kernel, Anchor.MAP, target)[0].kernel
