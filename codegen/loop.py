"""The loop program: statements in order over flat buffers, with named loops. Knows no graphs."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

from codegen.affine import Affine, variable
from symgrad.record import record, replace
from symgrad.types import DType


class Space(enum.Enum):
    """Where a buffer lives."""

    GLOBAL = "global"  # passed to the kernel
    SCRATCH = "scratch"  # private to a worker, in its cache
    REG = "reg"  # registers: every index is a constant once loops are unrolled
    TILE = "tile"  # registers, stored row by row along the lanes of a vector loop and loaded column by column


class Bind(enum.Enum):
    """What becomes of a loop."""

    SERIAL = "serial"
    PARALLEL = "parallel"  # outermost only; consecutive parallel loops share one space of units
    SHARED = "shared"  # directly in a parallel or shared loop, whose iterations it divides into units
    VECTOR = "vector"
    UNROLL = "unroll"


@record
class Buffer:
    """A flat array of `size` elements."""

    name: str
    dtype: DType
    size: int
    space: Space
    written: bool = False


@record
class Skip:
    """Where iterations that only add to sums add nothing: where a guard is negative, unless a truth value says no.

    They may be left out there.
    """

    guard: tuple[Affine, ...]
    unless: str


@record
class Loop:
    """A variable that runs from `start` over `extent` values. A vector loop has `lanes` >= extent."""

    name: str
    extent: int
    start: int = 0
    bind: Bind = Bind.SERIAL
    lanes: int = 0
    skip: Skip | None = None


@record
class Let:
    """Name the result of a scalar operation of the pointwise vocabulary, or of `const` with attribute `value`."""

    name: str
    op: str
    args: tuple[str, ...]
    dtype: DType
    attrs: tuple[tuple[str, Any], ...] = ()


@record
class Index:
    """Name the value of an affine expression as a number."""

    name: str
    index: Affine
    dtype: DType


@record
class Load:
    """Name an element. Where a guard is negative nothing is read and the value is unspecified."""

    name: str
    buffer: str
    index: Affine
    dtype: DType
    guard: tuple[Affine, ...] = ()


@record
class Within:
    """Name the truth of `every guard >= 0`."""

    name: str
    guard: tuple[Affine, ...]


@record
class Store:
    """Write an element: `past_caches` where nobody reads it soon and every line of memory is written whole."""

    buffer: str
    index: Affine
    value: str
    past_caches: bool = False


@record
class Fetch:
    """Ask for an element to be brought near, to be read or written later. It need not be inside of the buffer."""

    buffer: str
    index: Affine
    write: bool = False


@record
class Init:
    """Set an accumulator to the identity of its combination."""

    buffer: str
    index: Affine
    combine: str


@record
class Accumulate:
    """Combine values into an accumulator: one value; two factors for `fma`; value and index for argmax, argmin.

    `name`, where there is one, names the value the accumulator then has: a running value.
    """

    buffer: str
    index: Affine
    combine: str
    args: tuple[str, ...]
    name: str | None = None


@record
class Finish:
    """Name the combined value of an accumulator, folding its lanes in a fixed tree."""

    name: str
    buffer: str
    index: Affine
    combine: str
    dtype: DType


@record
class For:
    """Run the body once for each value of the loop."""

    loop: Loop
    body: Body


Stmt: TypeAlias = Let | Index | Load | Within | Store | Fetch | Init | Accumulate | Finish | For
Body: TypeAlias = tuple[Stmt, ...]


@record
class Kernel:
    """A function over buffers. `params` are passed by the caller in order; `locals` are its own."""

    params: tuple[Buffer, ...]
    locals: tuple[Buffer, ...]
    body: Body

    @property
    def units(self) -> int:
        """How many independent iterations the parallel loops have together, with the shared loops in them."""
        loops = (s for s in self.body if isinstance(s, For) and s.loop.bind is Bind.PARALLEL)
        return sum(s.loop.extent * parts_of(s) for s in loops)

    def buffer(self, name: str) -> Buffer:
        """The buffer with this name; KeyError when there is none."""
        for buffer in self.params + self.locals:
            if buffer.name == name:
                return buffer
        raise KeyError(name)


def shared_in(stmt: For) -> list[For]:
    """The shared loops directly in a loop, which run on where the one before ends."""
    return [s for s in stmt.body if isinstance(s, For) and s.loop.bind is Bind.SHARED]


def run_on(loops: Sequence[For]) -> bool:
    """Whether loops begin where the one before ends, the first at 0."""
    ends = [0, *(s.loop.start + s.loop.extent for s in loops)]
    return all(s.loop.start == end for s, end in zip(loops, ends, strict=False))


def parts_of(stmt: For) -> int:
    """How many units an iteration of a parallel or shared loop consists of: those of the shared loops in it, or one."""
    return sum(one.loop.extent * parts_of(one) for one in shared_in(stmt)) or 1


def map_indices(body: Body, change: Callable[[Affine], Affine]) -> Body:
    """The body with every index and guard changed."""
    return tuple(_map_stmt(s, change) for s in body)


def _map_stmt(stmt: Stmt, change: Callable[[Affine], Affine]) -> Stmt:
    match stmt:
        case Let():
            return stmt
        case For(loop, body):
            if loop.skip is not None:
                loop = replace(loop, skip=replace(loop.skip, guard=tuple(map(change, loop.skip.guard))))
            return For(loop, map_indices(body, change))
        case Load():
            return replace(stmt, index=change(stmt.index), guard=tuple(map(change, stmt.guard)))
        case Within():
            return replace(stmt, guard=tuple(map(change, stmt.guard)))
        case Index() | Store() | Fetch() | Init() | Accumulate() | Finish():
            return replace(stmt, index=change(stmt.index))


def indices_of(body: Body) -> list[Affine]:
    """Every index and guard in a body."""
    found: list[Affine] = []
    for stmt in statements_of(body):
        match stmt:
            case Let():
                pass
            case Load():
                found.append(stmt.index)
                found += stmt.guard
            case Within():
                found += stmt.guard
            case Index() | Store() | Fetch() | Init() | Accumulate() | Finish():
                found.append(stmt.index)
            case For():
                raise AssertionError("a loop is no statement without loops")
    return found


def loops_of(body: Body) -> list[For]:
    """Every loop in a body, outer before inner."""
    found: list[For] = []
    _collect_loops(body, found)
    return found


def _collect_loops(body: Body, found: list[For]) -> None:
    for stmt in body:
        if isinstance(stmt, For):
            found.append(stmt)
            _collect_loops(stmt.body, found)


def replace_loops(body: Body, name: str, change: Callable[[For], Body]) -> Body:
    """A body with every loop of this name replaced by what `change` makes of it."""
    out: list[Stmt] = []
    for stmt in body:
        if not isinstance(stmt, For):
            out.append(stmt)
        elif stmt.loop.name == name:
            out += change(stmt)
        else:
            out.append(For(stmt.loop, replace_loops(stmt.body, name, change)))
    return tuple(out)


def replace_statements(body: Body, change: Callable[[Stmt], Body]) -> Body:
    """A body with every statement that is no loop, here and in its loops, replaced by what `change` makes of it."""
    out: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For):
            out.append(For(stmt.loop, replace_statements(stmt.body, change)))
        else:
            out += change(stmt)
    return tuple(out)


def statements_of(body: Body) -> list[Stmt]:
    """Every statement in a body and in its loops that is no loop, in the order of the text."""
    found: list[Stmt] = []
    _collect_statements(body, found)
    return found


def _collect_statements(body: Body, found: list[Stmt]) -> None:
    for stmt in body:
        if isinstance(stmt, For):
            _collect_statements(stmt.body, found)
        else:
            found.append(stmt)


def checks_index(kernel: Kernel) -> bool:
    """Whether a kernel evaluates an index check, and so can report a failure."""
    return any(isinstance(s, Let) and s.op == "check_index" for s in statements_of(kernel.body))


def is_zero(name: str, kernel: Kernel) -> bool:
    """Whether a value is the constant 0, and not -0."""
    found = [s for s in statements_of(kernel.body) if isinstance(s, Let) and s.name == name and s.op == "const"]
    return bool(found) and not any(dict(found[0].attrs)["value"].array.tobytes())


def finishes(stmt: Stmt, buffer: str) -> bool:
    """Whether a statement names what was accumulated in a buffer."""
    return isinstance(stmt, Finish) and stmt.buffer == buffer


def defined(stmt: Stmt) -> str | None:
    """The name a statement defines."""
    return stmt.name if isinstance(stmt, Let | Index | Load | Within | Finish | Accumulate) else None


def used(stmt: Stmt) -> list[str]:
    """The names of values a statement uses directly, index variables included."""
    if isinstance(stmt, Let):
        return list(stmt.args)
    names: list[str] = []
    if isinstance(stmt, Accumulate):
        names += stmt.args
    elif isinstance(stmt, Store):
        names.append(stmt.value)
    if not isinstance(stmt, For):
        for index in indices_of((stmt,)):
            names += [name for name, _ in index.terms]
    return names


def chain(stmts: Sequence[Stmt], values: Collection[str]) -> Body:
    """The statements that compute values, in order."""
    wanted, found = set(values), list[Stmt]()
    for stmt in reversed(stmts):
        if defined(stmt) in wanted:
            found.append(stmt)
            wanted.update(used(stmt))
    return tuple(reversed(found))


def renamed(body: Body, names: Mapping[str, str]) -> Body:
    """The body with loops, values and buffers renamed."""
    variables = {old: variable(new) for old, new in names.items()}

    def new(name: str) -> str:
        return names.get(name, name)

    def one(stmt: Stmt) -> Stmt:
        match stmt:
            case For(loop, inner):
                skip = None if loop.skip is None else replace(loop.skip, unless=new(loop.skip.unless))
                return For(replace(loop, name=new(loop.name), skip=skip), tuple(map(one, inner)))
            case Let():
                return replace(stmt, name=new(stmt.name), args=tuple(map(new, stmt.args)))
            case Index() | Within():
                return replace(stmt, name=new(stmt.name))
            case Load() | Finish():
                return replace(stmt, name=new(stmt.name), buffer=new(stmt.buffer))
            case Store():
                return replace(stmt, value=new(stmt.value), buffer=new(stmt.buffer))
            case Fetch() | Init():
                return replace(stmt, buffer=new(stmt.buffer))
            case Accumulate():
                name = None if stmt.name is None else new(stmt.name)
                return replace(stmt, name=name, buffer=new(stmt.buffer), args=tuple(map(new, stmt.args)))

    return tuple(map(one, map_indices(body, lambda index: index.substitute(variables))))


def without_dead(body: Body) -> Body:
    """The body without definitions nobody uses, but for checks, which can fail."""
    while True:
        wanted: set[str | None] = {None, *(name for stmt in statements_of(body) for name in used(stmt))}
        wanted |= {s.name for s in statements_of(body) if isinstance(s, Let) and s.op == "check_index"}
        wanted |= {f.loop.skip.unless for f in loops_of(body) if f.loop.skip is not None}
        smaller = replace_statements(body, lambda s, wanted=wanted: (s,) if defined(s) in wanted else ())
        if smaller == body:
            return body
        body = smaller
