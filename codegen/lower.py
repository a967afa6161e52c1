"""Groups to loop programs: the only module that sees both forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from codegen.affine import ZERO, Affine, delinearize, linearize, variable
from codegen.group import COSTS, Anchor, Group, is_leaf
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
)
from symgrad import types
from symgrad.errors import CompileError
from symgrad.graph import Literal, Node, describe
from symgrad.opdef import Kind
from symgrad.types import DType, static_shape

Point: TypeAlias = "tuple[Affine, ...]"
Guard: TypeAlias = "tuple[Affine, ...]"
Ranges: TypeAlias = "dict[str, tuple[int, int]]"
Demand: TypeAlias = "tuple[Node, Point, Guard]"

# Cost from which a value that several passes over a row need is kept in scratch memory.
STAGE_COST = 6
STAGE_BYTES = 64 << 10


class NotAffine(Exception):
    """An index is not affine unless this node is stored first."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.node = node


@dataclass(frozen=True, slots=True)
class Lowered:
    """A naive kernel and the nodes its parameters stand for, inputs and outputs."""

    kernel: Kernel
    params: tuple[Node, ...]


def view_demands(node: Node, index: Point, guard: Guard, ranges: Ranges, stored: bool = False) -> list[Demand]:
    """Which input elements one element of a view is made of. For concat and pad their guards say when each applies."""
    source = node.inputs[0]
    shape = static_shape(source.shape)
    match node.op.name:
        case "permute":
            (axes,) = node.attrs
            place = {axis: k for k, axis in enumerate(axes)}
            return [(source, tuple(index[place[axis]] for axis in range(len(shape))), guard)]
        case "broadcast":
            lead = len(index) - len(shape)
            return [
                (
                    source,
                    tuple(ZERO if d == 1 else index[lead + k] for k, d in enumerate(shape)),
                    guard,
                )
            ]
        case "slice":
            starts, _, steps = node.attrs
            point = tuple(i * step + start for i, start, step in zip(index, starts, steps, strict=True))
            return [(source, point, guard)]
        case "flip":
            (axes,) = node.attrs
            point = tuple(
                i * -1 + (d - 1) if k in axes else i for k, (i, d) in enumerate(zip(index, shape, strict=True))
            )
            return [(source, point, guard)]
        case "reshape":
            point = reshape_point(index, static_shape(node.shape), shape, ranges)
            if point is None:
                raise NotAffine(source)
            return [(source, point, guard)]
        case "pad":
            low, _, _ = node.attrs
            point = tuple(i + -shift for i, shift in zip(index, low, strict=True))
            return [(source, point, guard + inside(point, shape, ranges))]
        case "concat":
            return _concat_demands(node, index, guard, ranges)
        case _:
            raise CompileError(f"no lowering for view {node.op.name}; wanted by {describe(node)}")


def reshape_point(index: Point, target: tuple[int, ...], source: tuple[int, ...], ranges: Ranges) -> Point | None:
    """The index before a reshape. Unit axes come and go without arithmetic."""
    kept = [(i, d) for i, d in zip(index, target, strict=True) if d != 1]
    wanted = [d for d in source if d != 1]
    if [d for _, d in kept] == wanted:
        values = iter([i for i, _ in kept])
        return tuple(ZERO if d == 1 else next(values) for d in source)
    return delinearize(linearize(index, target), source, ranges)


def inside(point: Point, shape: Sequence[int], ranges: Ranges) -> Guard:
    """The guards that keep a point inside a shape, without those that always hold."""
    guards: list[Affine] = []
    for one, extent in zip(point, shape, strict=True):
        for guard in (one, one * -1 + (extent - 1)):
            span = guard.range(ranges)
            if span is None or span[0] < 0:
                guards.append(guard)
    return tuple(guards)


def _concat_demands(node: Node, index: Point, guard: Guard, ranges: Ranges) -> list[Demand]:
    (axis,) = node.attrs
    out: list[Demand] = []
    offset = 0
    for source in node.inputs:
        shape = static_shape(source.shape)
        point = (*index[:axis], index[axis] + -offset, *index[axis + 1 :])
        out.append(
            (
                source,
                point,
                guard + inside(point[axis : axis + 1], shape[axis : axis + 1], ranges),
            )
        )
        offset += shape[axis]
    return out


def never(guard: Guard, ranges: Ranges) -> bool:
    """Whether a guard can be seen to fail always."""
    spans = [g.range(ranges) for g in guard]
    return any(span is not None and span[1] < 0 for span in spans)


@dataclass(slots=True)
class Scope:
    """Statements under construction at one loop level and the values they have named."""

    variables: frozenset[str]
    stmts: list[Stmt] = field(default_factory=list[Stmt])
    named: dict[Demand, str] = field(default_factory=dict["Demand", str])
    names: set[str] = field(default_factory=set[str])


class Lowering:
    """The state of lowering one group: parameters, names and the open scopes, outermost first."""

    def __init__(self, stored: set[int], ranges: Ranges) -> None:
        self.stored = stored
        self.ranges = ranges
        self.params: list[Node] = []
        self.buffer_of: dict[int, str] = {}
        self.locals: list[Buffer] = []
        self.scopes: list[Scope] = []
        self.count = 0

    def fresh(self, prefix: str = "v") -> str:
        self.count += 1
        return f"{prefix}{self.count}"

    def param(self, node: Node) -> str:
        """The parameter that holds a stored node."""
        if node.id not in self.buffer_of:
            self.buffer_of[node.id] = f"p{len(self.params)}"
            self.params.append(node)
        return self.buffer_of[node.id]

    def local(self, prefix: str, dtype: DType, size: int, space: Space) -> str:
        name = self.fresh(prefix)
        self.locals.append(Buffer(name, dtype, size, space))
        return name

    def open(self, *variables: str) -> Scope:
        """Open a scope whose statements may use these loop variables and all outer ones."""
        outer = self.scopes[-1].variables if self.scopes else frozenset[str]()
        self.scopes.append(Scope(outer | frozenset(variables)))
        return self.scopes[-1]

    def close(self) -> Body:
        return tuple(self.scopes.pop().stmts)

    def emit(self, stmt: Stmt) -> None:
        self.scopes[-1].stmts.append(stmt)

    def lookup(self, demand: Demand) -> str | None:
        for scope in reversed(self.scopes):
            if (name := scope.named.get(demand)) is not None:
                return name
        return None

    def bind(self, demand: Demand, name: str) -> None:
        """Give an element a name that a reduction, a contraction or a staged value already has."""
        scope = self.scopes[-1]
        scope.named[demand] = name
        scope.names.add(name)

    def value(self, node: Node, index: Point, guard: Guard = ()) -> str:
        """Name one element of a node, writing what computes it in the outermost scope that can hold it."""
        root = (node, index, guard)
        stack = [root]
        while stack:
            demand = stack[-1]
            if self.lookup(demand) is not None:
                stack.pop()
                continue
            missing = [d for d in self._demands(demand) if self.lookup(d) is None]
            if missing:
                stack.extend(missing)
                continue
            self._define(demand)
            stack.pop()
        name = self.lookup(root)
        assert name is not None
        return name

    def _is_load(self, node: Node) -> bool:
        return is_leaf(node) or node.id in self.stored

    def _demands(self, demand: Demand) -> list[Demand]:
        node, index, guard = demand
        if self._is_load(node) or node.op.kind is Kind.SOURCE:
            return []
        if node.op.name == "reshape" and self._is_load(node.inputs[0]):
            return []
        if node.op.kind is Kind.POINTWISE:
            return [(i, index, guard) for i in node.inputs]
        if node.op.kind is Kind.VIEW:
            return [d for d in view_demands(node, index, guard, self.ranges) if not never(d[2], self.ranges)]
        if node.op.name == "take":
            return self._take_demands(node, index, guard)
        raise CompileError(f"{describe(node)} cannot be computed inside another kernel")

    def _take_demands(self, node: Node, index: Point, guard: Guard) -> list[Demand]:
        (axis,) = node.attrs
        array, indices = node.inputs
        where = (indices, index[axis : axis + indices.ndim], guard)
        name = self.lookup(where)
        if name is None:
            return [where]
        return [
            where,
            (
                array,
                (*index[:axis], variable(name), *index[axis + indices.ndim :]),
                guard,
            ),
        ]

    def _define(self, demand: Demand) -> None:
        node, index, guard = demand
        dtype = node.dtype
        if self._is_load(node):
            offset = linearize(index, static_shape(node.shape))
            self._let(demand, Load(self.fresh(), self.param(node), offset, dtype, guard))
            return
        if node.op.name == "reshape" and self._is_load(node.inputs[0]):
            offset = linearize(index, static_shape(node.shape))
            self._let(
                demand,
                Load(self.fresh(), self.param(node.inputs[0]), offset, dtype, guard),
            )
            return
        if node.op.name == "const":
            self._let(demand, self.constant(node.attrs[0], dtype))
            return
        if node.op.name == "iota":
            self._let(demand, Index(self.fresh(), index[0], dtype))
            return
        args = [self._named(d) for d in self._demands(demand)]
        if node.op.kind is Kind.POINTWISE:
            if node.op.name == "check_index" and guard:
                args = [self._guarded_index(demand, args[0])]
            attrs = tuple(zip(node.op.attrs, node.attrs, strict=True))
            self._let(demand, Let(self.fresh(), node.op.name, tuple(args), dtype, attrs))
        elif node.op.name == "pad":
            self._define_pad(demand)
        elif node.op.name == "concat":
            self._define_concat(demand)
        elif node.op.name == "take":
            self._alias(demand, args[1])
        else:
            self._alias(demand, args[0])

    def _named(self, demand: Demand) -> str:
        name = self.lookup(demand)
        assert name is not None
        return name

    def constant(self, literal: Literal, dtype: DType) -> Let:
        """A statement that names a scalar constant."""
        return Let(self.fresh("c"), "const", (), dtype, (("value", literal),))

    def _guarded_index(self, demand: Demand, name: str) -> str:
        """An index that is only read where its guard holds must not be checked elsewhere."""
        node, _, guard = demand
        scope = self._home(demand)
        zero = self.constant(Literal(np_zero(node.dtype)), node.dtype)
        within = Within(self.fresh(), guard)
        chosen = Let(self.fresh(), "where", (within.name, name, zero.name), node.dtype)
        scope.stmts += (zero, within, chosen)
        scope.names |= {zero.name, within.name, chosen.name}
        return chosen.name

    def _define_pad(self, demand: Demand) -> None:
        node, index, guard = demand
        scope = self._home(demand)
        fill = self.constant(node.attrs[2], node.dtype)
        scope.stmts.append(fill)
        scope.names.add(fill.name)
        (inner,) = view_demands(node, index, guard, self.ranges)
        if never(inner[2], self.ranges):
            self._alias(demand, fill.name)
        else:
            self._choose(demand, inner[2][len(guard) :], self._named(inner), fill.name)

    def _define_concat(self, demand: Demand) -> None:
        node, index, guard = demand
        parts = [d for d in _concat_demands(node, index, guard, self.ranges) if not never(d[2], self.ranges)]
        value = self._named(parts[-1])
        for part in parts[-2::-1]:
            # Earlier parts end where later ones begin: the upper guard alone decides.
            value = self._select(demand, part[2][len(guard) :][-1:], self._named(part), value)
        self._alias(demand, value)

    def _choose(self, demand: Demand, guard: Guard, yes: str, no: str) -> None:
        self._alias(demand, self._select(demand, guard, yes, no))

    def _select(self, demand: Demand, guard: Guard, yes: str, no: str) -> str:
        if not guard:
            return yes
        scope = self._home(demand)
        within = Within(self.fresh(), guard)
        chosen = Let(self.fresh(), "where", (within.name, yes, no), demand[0].dtype)
        scope.stmts += (within, chosen)
        scope.names |= {within.name, chosen.name}
        return chosen.name

    def _alias(self, demand: Demand, name: str) -> None:
        self._home(demand).named[demand] = name

    def _let(self, demand: Demand, stmt: Let | Index | Load) -> None:
        scope = self._home(demand)
        scope.stmts.append(stmt)
        scope.named[demand] = stmt.name
        scope.names.add(stmt.name)

    def _home(self, demand: Demand) -> Scope:
        """The outermost open scope that has every loop variable and value the element depends on."""
        wanted = {name for one in (*demand[1], *demand[2]) for name, _ in one.terms}
        used = {d for d in (self.lookup(d) for d in self._demands(demand)) if d is not None}
        level = 0
        for k, scope in enumerate(self.scopes):
            if wanted & (scope.variables | scope.names) - self._seen_before(k):
                level = k
            if used & scope.names:
                level = max(level, k)
        return self.scopes[level]

    def _seen_before(self, level: int) -> frozenset[str]:
        return self.scopes[level - 1].variables if level else frozenset()


def np_zero(dtype: DType) -> types.Array:
    """A 0-d zero."""
    import numpy as np

    return np.zeros((), dtype.np)


def at(loop: Loop) -> Affine:
    """The index a loop stands for: a constant when it runs once, so that unit axes never count."""
    return Affine(loop.start) if loop.extent == 1 else variable(loop.name)


def _nest(loops: Sequence[Loop], body: Body) -> Body:
    for loop in reversed(loops):
        body = (For(loop, body),)
    return body


def _ranges(loops: Sequence[Loop]) -> Ranges:
    return {loop.name: (loop.start, loop.start + max(loop.extent, 1) - 1) for loop in loops}


def _loops_for(domain: Sequence[int], prefix: str = "d") -> list[Loop]:
    return [Loop(f"{prefix}{k}", extent) for k, extent in enumerate(domain)]


def member_point(node: Node, domain: Sequence[int], point: Point, axes: tuple[int, ...]) -> Point | None:
    """The index at which a member of a group is computed when its loops stand at a point; None when it has none.

    Members have the shape of the domain, or that of the domain without the reduced axes; unit axes do not count.
    """
    shape = static_shape(node.shape)
    for skip in ((), axes):
        kept = [(d, i) for k, (d, i) in enumerate(zip(domain, point, strict=True)) if k not in skip]
        if tuple(d for d, _ in kept) == shape:
            return tuple(i for _, i in kept)
        if [d for d, _ in kept if d != 1] == [d for d in shape if d != 1]:
            values = iter([i for d, i in kept if d != 1])
            return tuple(ZERO if d == 1 else next(values) for d in shape)
    return None


def reads_same_point(
    node: Node,
    members: set[int],
    stored: set[int],
    domain: tuple[int, ...],
    axes: tuple[int, ...],
) -> bool:
    """Whether all values a node takes from members are those of the iteration that computes the node itself."""
    loops = _loops_for(domain)
    ranges = _ranges(loops)
    point = tuple(at(loop) for loop in loops)
    if node.op.kind is Kind.REDUCE:
        start: list[Demand] = [(node.inputs[0], point, ())]
    else:
        own = member_point(node, domain, point, axes)
        if own is None:
            return False
        start = [(i, own, ()) for i in node.inputs] if node.op.kind is Kind.POINTWISE else []
        if node.op.kind is Kind.VIEW:
            try:
                start = view_demands(node, own, (), ranges)
            except NotAffine:
                return False
        if node.op.kind not in (Kind.POINTWISE, Kind.VIEW):
            return False
    seen: set[Demand] = set()
    stack = start
    while stack:
        demand = stack.pop()
        if demand in seen:
            continue
        seen.add(demand)
        source, index, guard = demand
        if source.id in members:
            if guard or member_point(source, domain, point, axes) != index:
                return False
        elif is_leaf(source) or source.id in stored or source.op.kind is Kind.SOURCE:
            continue
        elif source.op.kind is Kind.POINTWISE:
            stack += [(i, index, guard) for i in source.inputs]
        elif source.op.kind is Kind.VIEW:
            try:
                stack += view_demands(source, index, guard, ranges)
            except NotAffine:
                return False
        elif any(_reaches(i, members, stored) for i in source.inputs):
            return False
    return True


def _reaches(node: Node, members: set[int], stored: set[int]) -> bool:
    stack = [node]
    while stack:
        source = stack.pop()
        if source.id in members:
            return True
        if not is_leaf(source) and source.id not in stored:
            stack += source.inputs
    return False


def lower(group: Group, stored: set[int]) -> Lowered:
    """The naive kernel of a group. `stored` are the ids of the nodes other kernels have stored.

    Raises NotAffine with the node that must be stored for an index to become affine.
    """
    match group.anchor:
        case Anchor.MAP:
            return _lower_map(group, stored)
        case Anchor.ROWS:
            return _lower_rows(group, stored)
        case Anchor.CONTRACT:
            return _lower_contract(group, stored)
        case Anchor.SCATTER:
            return _lower_scatter(group, stored)


def _finish(state: Lowering, group: Group, body: Body) -> Lowered:
    written = {n.id for n in group.outputs}
    params = tuple(
        Buffer(
            state.buffer_of[n.id],
            n.dtype,
            types.size_of(n.shape),
            Space.GLOBAL,
            n.id in written,
        )  # pyright: ignore[reportArgumentType] static
        for n in state.params
    )
    return Lowered(Kernel(params, tuple(state.locals), body), tuple(state.params))


def _store(state: Lowering, node: Node, point: Point) -> None:
    name = state.value(node, point)
    state.emit(Store(state.param(node), linearize(point, static_shape(node.shape)), name))


def _lower_map(group: Group, stored: set[int]) -> Lowered:
    loops = _loops_for(group.domain)
    state = Lowering(stored - {n.id for n in group.nodes}, _ranges(loops))
    point = tuple(at(loop) for loop in loops)
    state.open(*(loop.name for loop in loops))
    for node in group.outputs:
        own = member_point(node, group.domain, point, ())
        assert own is not None
        _store(state, node, own)
    return _finish(state, group, _nest(loops, state.close()))


def _lower_rows(group: Group, stored: set[int]) -> Lowered:
    return _Rows(group, stored).lowered()


class _Rows:
    """Lowering of reductions over rows: one pass over the row for each level of reductions, then the outputs."""

    def __init__(self, group: Group, stored: set[int]) -> None:
        self.group = group
        self.members = {n.id: n for n in group.nodes}
        self.outer = [Loop(f"d{k}", d) for k, d in enumerate(group.domain) if k not in group.axes]
        ranges = _ranges(self.outer)
        self.passes: list[list[Loop]] = []
        self.level: dict[int, int] = {}
        self.wanted: dict[int, set[int]] = {}
        self.order = self._closure(stored)
        self._levels()
        last = max(self.level[n.id] for n in group.nodes)
        for p in range(last + 1):
            loops = [Loop(f"r{p}_{k}", group.domain[k]) for k in group.axes]
            self.passes.append(loops)
            ranges |= _ranges(loops)
        self.state = Lowering(stored - set(self.members), ranges)

    def _closure(self, stored: set[int]) -> list[Node]:
        found: dict[int, Node] = {}
        stack = list(self.group.nodes)
        while stack:
            node = stack.pop()
            if node.id in found or is_leaf(node) or (node.id in stored and node.id not in self.members):
                continue
            found[node.id] = node
            stack += node.inputs
        return [found[k] for k in sorted(found)]

    def _is_reduction(self, node: Node) -> bool:
        return node.id in self.members and node.op.kind is Kind.REDUCE

    def _is_full(self, node: Node) -> bool:
        return static_shape(node.shape) == self.group.domain

    def _levels(self) -> None:
        """The pass in which each node can first be computed, and the passes that want it."""
        for node in self.order:
            level = max((self.level.get(i.id, 0) for i in node.inputs), default=0)
            self.level[node.id] = level + 1 if self._is_reduction(node) else level
            self.wanted[node.id] = set()
        outputs = {n.id for n in self.group.outputs}
        for node in reversed(self.order):
            if self._is_reduction(node):
                spread = {self.level[node.id] - 1}
            else:
                if node.id in outputs and self._is_full(node):
                    self.wanted[node.id].add(self.level[node.id])
                spread = self.wanted[node.id]
            for source in node.inputs:
                if source.id in self.wanted:
                    self.wanted[source.id] |= spread

    def _staged(self) -> set[int]:
        """Dear full values that more than one pass wants, if a row of them fits."""
        size = 1
        for axis in self.group.axes:
            size *= self.group.domain[axis]
        budget = STAGE_BYTES
        chosen: set[int] = set()
        for node in self.order:
            dear = COSTS.get(node.op.name, 1) >= STAGE_COST and node.op.kind is Kind.POINTWISE
            if dear and self._is_full(node) and len(self.wanted[node.id]) > 1:
                need = size * node.dtype.itemsize
                if need <= budget:
                    budget -= need
                    chosen.add(node.id)
        return chosen

    def lowered(self) -> Lowered:
        state, group = self.state, self.group
        staged = {k: "" for k in self._staged()}
        state.open(*(loop.name for loop in self.outer))
        outputs = {n.id for n in group.outputs}
        stored: set[int] = set()
        for p, loops in enumerate(self.passes):
            self._row_outputs(p, outputs, stored)
            reductions = [n for n in group.nodes if self._is_reduction(n) and self.level[n.id] == p + 1]
            fulls = [
                n for n in group.nodes
                if n.id in outputs and self._is_full(n) and not self._is_reduction(n) and self.level[n.id] == p
                and not self._is_row(n)
            ]  # fmt: skip
            if not reductions and not fulls:
                continue
            accumulators = {n.id: self._accumulator(n) for n in reductions}
            point = self._point(loops)
            state.open(*(loop.name for loop in loops))
            self._load_staged(staged, point, loops)
            self._store_staged(staged, p, point, loops)
            for node in reductions:
                self._accumulate(node, accumulators[node.id], point)
            for node in fulls:
                _store(state, node, point)
            body = state.close()
            if all(loop.extent for loop in loops):
                for stmt in _nest(loops, body):
                    state.emit(stmt)
            for node in reductions:
                name = state.fresh()
                state.emit(Finish(name, accumulators[node.id], ZERO, node.op.name, node.dtype))
                own = tuple(at(loop) for loop in self.outer)
                state.bind((node, own, ()), name)
        self._row_outputs(len(self.passes), outputs, stored)
        return _finish(state, group, _nest(self.outer, state.close()))

    def _is_row(self, node: Node) -> bool:
        return member_point(node, self.group.domain, self._point(self.passes[0]), ()) is None

    def _point(self, loops: list[Loop]) -> Point:
        names = {axis: loop.name for axis, loop in zip(self.group.axes, loops, strict=True)}
        return tuple(variable(names.get(k, f"d{k}")) for k in range(len(self.group.domain)))

    def _row_outputs(self, p: int, outputs: set[int], stored: set[int]) -> None:
        """Store what has one value per row as soon as the passes before have computed it."""
        for node in self.group.nodes:
            row = self._is_reduction(node) or self._is_row(node)
            if node.id not in outputs or node.id in stored or not row or self.level[node.id] > p:
                continue
            stored.add(node.id)
            own = tuple(at(loop) for loop in self.outer)
            if not self._is_reduction(node):
                found = member_point(
                    node,
                    self.group.domain,
                    self._point(self.passes[0]),
                    self.group.axes,
                )
                assert found is not None
                own = found
            _store(self.state, node, own)

    def _accumulator(self, node: Node) -> str:
        name = self.state.local("a", node.inputs[0].dtype, 1, Space.REG)
        self.state.emit(Init(name, ZERO, node.op.name))
        return name

    def _accumulate(self, node: Node, accumulator: str, point: Point) -> None:
        args = [self.state.value(node.inputs[0], point)]
        if node.op.name in ("argmax", "argmin"):
            place = Index(self.state.fresh(), point[node.attrs[0]], types.int64)
            self.state.emit(place)
            args.append(place.name)
        self.state.emit(Accumulate(accumulator, ZERO, node.op.name, tuple(args)))

    def _row_offset(self, loops: list[Loop]) -> Affine:
        return linearize((variable(loop.name) for loop in loops), (loop.extent for loop in loops))

    def _store_staged(self, staged: dict[int, str], p: int, point: Point, loops: list[Loop]) -> None:
        for node in self.order:
            if node.id not in staged or staged[node.id] or min(self.wanted[node.id]) != p:
                continue
            size = 1
            for loop in loops:
                size *= loop.extent
            value = self.state.value(node, point)
            staged[node.id] = self.state.local("s", node.dtype, size, Space.SCRATCH)
            self.state.emit(Store(staged[node.id], self._row_offset(loops), value))

    def _load_staged(self, staged: dict[int, str], point: Point, loops: list[Loop]) -> None:
        for node in self.order:
            if (buffer := staged.get(node.id)) and self.wanted[node.id]:
                name = self.state.fresh()
                self.state.emit(Load(name, buffer, self._row_offset(loops), node.dtype))
                self.state.bind((node, point, ()), name)


def contract_extents(node: Node) -> dict[str, int]:
    """The extent of each label of a contraction."""
    left, right, _ = node.attrs
    sizes = dict(zip(left, static_shape(node.inputs[0].shape), strict=True))
    sizes.update(zip(right, static_shape(node.inputs[1].shape), strict=True))
    return sizes


def _lower_contract(group: Group, stored: set[int]) -> Lowered:
    node = group.nodes[0]
    left, right, out = node.attrs
    sizes = contract_extents(node)
    outer = [Loop(f"d{k}", sizes[label]) for k, label in enumerate(out)]
    summed = [label for label in left if label not in out]
    inner = [Loop(f"k{k}", sizes[label]) for k, label in enumerate(summed)]
    names = {label: variable(loop.name) for label, loop in zip((*out, *summed), (*outer, *inner), strict=True)}
    state = Lowering(stored - {n.id for n in group.nodes}, _ranges([*outer, *inner]))
    state.open(*(loop.name for loop in outer))
    accumulator = state.local("a", node.dtype, 1, Space.REG)
    state.emit(Init(accumulator, ZERO, "fma"))
    state.open(*(loop.name for loop in inner))
    factors = [
        state.value(operand, tuple(names[label] for label in labels))
        for operand, labels in zip(node.inputs, (left, right), strict=True)
    ]
    state.emit(Accumulate(accumulator, ZERO, "fma", tuple(factors)))
    body = state.close()
    if all(loop.extent for loop in inner):
        for stmt in _nest(inner, body):
            state.emit(stmt)
    result = state.fresh()
    state.emit(Finish(result, accumulator, ZERO, "fma", node.dtype))
    point = tuple(names[label] for label in out)
    state.bind((node, point, ()), result)
    for member in group.outputs:
        own = member_point(member, group.domain, point, ())
        assert own is not None
        _store(state, member, own)
    return _finish(state, group, _nest(outer, state.close()))


def _lower_scatter(group: Group, stored: set[int]) -> Lowered:
    """Copy the array, then add the updates one index after the other, so that the order of additions is fixed."""
    (node,) = group.nodes
    (axis,) = node.attrs
    array, indices, updates = node.inputs
    shape = static_shape(node.shape)
    copy = [Loop(f"d{k}", d) for k, d in enumerate(shape)]
    places = [Loop(f"i{k}", d) for k, d in enumerate(static_shape(indices.shape))]
    rest = [Loop(f"e{k}", d) for k, d in enumerate(shape) if k != axis]
    state = Lowering(stored - {node.id}, _ranges([*copy, *places, *rest]))
    state.open(*(loop.name for loop in copy))
    point = tuple(at(loop) for loop in copy)
    name = state.value(array, point)
    out = state.param(node)
    state.emit(Store(out, linearize(point, shape), name))
    first = _nest(copy, state.close())
    state.open(*(loop.name for loop in (*places, *rest)))
    spots = tuple(at(loop) for loop in places)
    others = [at(loop) for loop in rest]
    where = state.value(indices, spots)
    target = linearize((*others[:axis], variable(where), *others[axis:]), shape)
    update = state.value(updates, (*others[:axis], *spots, *others[axis:]))
    old, new = state.fresh(), state.fresh()
    state.emit(Load(old, out, target, node.dtype))
    state.emit(Let(new, "add", (old, update), node.dtype))
    state.emit(Store(out, target, new))
    second = _nest([*places, *rest], state.close())
    return _finish(state, group, (*first, *second))
