"""The last pass over a row together with a pass over the next one: memory takes results while a worker computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codegen.affine import ZERO, variable
from codegen.loop import (
    Accumulate,
    Body,
    Buffer,
    Finish,
    For,
    Index,
    Init,
    Kernel,
    Let,
    Load,
    Loop,
    Space,
    Stmt,
    Store,
    Within,
    defined,
    loops_of,
    map_indices,
    renamed,
    replace_loops,
    statements_of,
    used,
    without_dead,
)
from symgrad.record import record, replace
from symgrad.types import DType, bool_

# What is appended to the names of values in the last pass, and to buffers of those that wait for it.
LATE, KEPT = "_late", "_kept"


@record
class Overlap:
    """Run the last of the passes in the loop `rows` with the pass `beside` over the row that follows.

    Passes are loops split in two, named `pass.0` and `pass.1`. What the last one needs of its row is kept meanwhile.
    """

    rows: str
    beside: str


@record
class _Row:
    """The body of a loop over rows: up to its last pass, what begins this, its loops, and what follows."""

    head: Body
    begin: Body
    loops: tuple[For, ...]
    end: Body

    @property
    def late(self) -> Body:
        """All that belongs to the last pass."""
        return (*self.begin, *self.loops, *self.end)


def passes_beside(kernel: Kernel, rows: str) -> tuple[str, ...]:
    """The passes that the last one of the row before can run with, first to last."""
    found = [f for f in loops_of(kernel.body) if f.loop.name == rows]
    if len(found) != 1 or found[0].loop.start or found[0].loop.extent < 2:
        return ()
    names = _passes(found[0].body)
    if len(names) < 2:
        return ()
    row = _cut(found[0].body)
    if len(row.head) + len(row.late) < len(found[0].body) or not _is_apart(kernel, row):
        return ()
    return tuple(name for k, name in enumerate(names[:-1]) if _fits(kernel, row, name, names[:k]))


def overlap(kernel: Kernel, step: Overlap) -> Kernel:
    """The kernel with the last pass moved. ValueError where the passes do not allow it."""
    if step.beside not in passes_beside(kernel, step.rows):
        raise ValueError(f"overlap: the last pass of {step.rows} cannot run beside {step.beside}")
    kept: dict[str, Buffer] = {}

    def change(stmt: For) -> Body:
        row = _cut(stmt.body)
        source = {name: s for s in row.head if (name := defined(s)) is not None}
        names = dict.fromkeys(n for s in statements_of(row.late) for n in used(s) if n in source)
        literals = [s for n in names if isinstance(s := source[n], Let) and s.op == "const"]
        values = [source[n] for n in names if source[n] not in literals]
        buffers = {n: Buffer(n + KEPT, _dtype(s), 1, Space.SCRATCH) for s in values if (n := defined(s)) is not None}
        kept.update(buffers)
        keep = [Store(b.name, ZERO, n) for n, b in buffers.items()]
        late = _late(row, step, names)
        back = [
            *(Load(n + LATE, b.name, ZERO, b.dtype) for n, b in buffers.items()),
            *(replace(s, name=s.name + LATE) for s in literals),
        ]
        places = [k for k, s in enumerate(row.head) if _is_pass(s, step.beside)]
        beside = [_joined(one, s) for one, s in zip(late.loops, row.head[places[0] : places[-1] + 1], strict=True)]
        both = (*row.head[: places[0]], *back, *late.begin, *beside, *late.end, *row.head[places[-1] + 1 :])
        name, extent = stmt.loop.name, stmt.loop.extent
        return (
            For(Loop(name, 1), (*row.head, *keep)),
            For(Loop(name, extent - 1, 1), (*both, *keep)),
            For(Loop(name, 1, extent), (*back, *late.late)),
        )

    body = without_dead(replace_loops(kernel.body, step.rows, change))
    return replace(kernel, body=body, locals=(*kernel.locals, *kept.values()))


def _late(row: _Row, step: Overlap, values: Iterable[str]) -> _Row:
    """What belongs to the last pass, for the row before and in the loops of the pass beside it."""
    last = row.loops[0].loop.name.removesuffix(".0")
    beside = step.beside
    own = [name for s in statements_of(row.late) if (name := defined(s)) is not None]
    names = {n: n + LATE for n in (*own, *values)} | {f"{last}.{k}": f"{beside}.{k}" for k in "01"}
    before = {step.rows: variable(step.rows) + -1}

    def moved(body: Body) -> Body:
        return renamed(map_indices(body, lambda index: index.substitute(before)), names)

    loops = tuple(s for s in moved(row.loops) if isinstance(s, For))
    return _Row((), moved(row.begin), loops, moved(row.end))


def _joined(one: For, other: Stmt) -> For:
    """Two loops over blocks of lanes as one, with the first's statements before the second's."""
    assert isinstance(other, For)
    (first,), (second,) = one.body, other.body
    assert isinstance(first, For)
    assert isinstance(second, For)
    return For(other.loop, (For(second.loop, (*first.body, *second.body)),))


def _passes(body: Body) -> list[str]:
    """The names of the passes over a row, in order."""
    loops = [s.loop.name for s in body if isinstance(s, For)]
    return list(dict.fromkeys(name.removesuffix(".0") for name in loops))


def _is_pass(stmt: Stmt, name: str) -> bool:
    return isinstance(stmt, For) and stmt.loop.name == f"{name}.0"


def _cut(body: Body) -> _Row:
    name = _passes(body)[-1]
    places = [k for k, s in enumerate(body) if _is_pass(s, name)]
    loops = tuple(s for s in body[places[0] : places[-1] + 1] if isinstance(s, For))
    sums = {s.buffer for s in statements_of(loops) if isinstance(s, Accumulate)}
    before = body[: places[0]]
    begin = tuple(s for s in before if isinstance(s, Init) and s.buffer in sums)
    return _Row(tuple(s for s in before if s not in begin), begin, loops, body[places[-1] + 1 :])


def _is_apart(kernel: Kernel, row: _Row) -> bool:
    """Whether what the last pass and those before it write is theirs alone, but for scratch memory it reads."""
    spaces = {b.name: b.space for b in (*kernel.params, *kernel.locals)}
    head, late = (_touched(body) for body in (row.head, row.late))
    written = {b for b, writes in late.items() if writes}
    shared = {b for b in head.keys() & late.keys() if head[b] and spaces[b] is not Space.SCRATCH}
    started = {s.buffer for s in row.begin if isinstance(s, Init)}
    sums = {s.buffer for s in statements_of(row.loops) if isinstance(s, Accumulate)}
    return not shared and not written & head.keys() and sums == started and not any(isinstance(s, For) for s in row.end)


def _fits(kernel: Kernel, row: _Row, name: str, before: Sequence[str]) -> bool:
    """Whether the last pass has the loops of pass `name` and reads no scratch memory that is written too early."""
    places = [k for k, s in enumerate(row.head) if _is_pass(s, name)]
    own = row.head[places[0] : places[-1] + 1]
    if [_shape(s) for s in own] != [_shape(s) for s in row.loops] or None in map(_shape, own):
        return False
    last = row.loops[0].loop.name.removesuffix(".0")
    loops = {f"{last}.{k}": f"{name}.{k}" for k in "01"}
    read = {s.buffer for s in statements_of(row.late) if isinstance(s, Load)}
    scratch = {b.name for b in kernel.locals if b.space is Space.SCRATCH and b.name in read}
    early = tuple(s for s in row.head if isinstance(s, For) and s.loop.name.removesuffix(".0") in before)
    if scratch & {s.buffer for s in statements_of(early) if isinstance(s, Store)}:
        return False
    # What is read and then written anew in one loop must be the same elements.
    for buffer in scratch & {s.buffer for s in statements_of(own) if isinstance(s, Store)}:
        taken = {
            s.index for s in statements_of(renamed(row.loops, loops)) if isinstance(s, Load) and s.buffer == buffer
        }
        given = {s.index for s in statements_of(own) if isinstance(s, Store) and s.buffer == buffer}
        if taken != given or any(isinstance(s, Load) and s.buffer == buffer for s in row.end):
            return False
    return True


def _shape(stmt: Stmt) -> tuple[int, int, Loop] | None:
    """The iterations of a pass over whole vectors or what is left over, and their lanes; None for other loops."""
    if not isinstance(stmt, For) or len(stmt.body) != 1 or not isinstance(inner := stmt.body[0], For):
        return None
    if any(isinstance(s, For) for s in inner.body):
        return None
    return stmt.loop.start, stmt.loop.extent, replace(inner.loop, name="")


def _touched(body: Body) -> dict[str, bool]:
    """The buffers a body loads from and stores to, and whether it stores."""
    found: dict[str, bool] = {}
    for s in statements_of(body):
        if isinstance(s, Load | Store):
            found[s.buffer] = found.get(s.buffer, False) or isinstance(s, Store)
    return found


def _dtype(stmt: Stmt) -> DType:
    """The data type of what a statement defines."""
    match stmt:
        case Let() | Index() | Load() | Finish():
            return stmt.dtype
        case Within():
            return bool_
        case _:
            raise ValueError(f"overlap: {stmt} is not kept")
