"""When a kernel may write a value over one that it reads, and copies for where it may not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

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


class Overwriting:
    """When a work may write a value over one that it reads, found out once for each kernel that works share."""

    def __init__(self) -> None:
        # By the identity of a kernel, which is kept so that no other one has it, and the names of two parameters.
        self._allowed: dict[tuple[int, str, str], tuple[Kernel, bool]] = {}
        self._shorter: dict[tuple[int, str, str], tuple[Kernel, Kernel, float]] = {}

    def may(self, work: Work, new: str, old: str) -> bool:
        """Whether a work may write the new value over the old one."""
        if old not in work.values:
            return True
        key = _key(work, new, old)
        if key not in self._allowed:
            self._allowed[key] = (work.kernel, same_element(work, new, old))
        return self._allowed[key][1]

    def without_copy(self, work: Work, new: str, old: str) -> Work:
        """The work without loops that only copy the old value to where it stands already."""
        if old not in work.values:
            return work
        key = _key(work, new, old)
        if key not in self._shorter:
            kernel = _without_copy(work.kernel, source=key[2], destination=key[1])
            self._shorter[key] = (work.kernel, kernel, estimated_ns(kernel))
        _, kernel, ns = self._shorter[key]
        return work if kernel is work.kernel else replace(work, kernel=kernel, ns=ns)


def _key(work: Work, new: str, old: str) -> tuple[int, str, str]:
    new_name, old_name = (work.kernel.params[work.values.index(v)].name for v in (new, old))
    return id(work.kernel), new_name, old_name


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


def _without_copy(kernel: Kernel, source: str, destination: str) -> Kernel:
    """The kernel without the nests that only copy, or itself where it has none or has nothing else."""
    body = _useful(kernel.body, source, destination)
    left = any(isinstance(s, Store) and s.buffer == destination for s in statements_of(body))
    return replace(kernel, body=body) if left and body != kernel.body else kernel


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
