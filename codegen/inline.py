"""Computing one element of a node inside the loops of another: what fusion comes down to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from codegen.access import Demand, Guard, Point, Ranges, concat_demands, demand_of, is_leaf, never, view_demands
from codegen.affine import linearize, variable
from codegen.loop import Body, Buffer, For, Index, Kernel, Let, Load, Loop, Space, Stmt, Store, Within, defined
from symgrad import types
from symgrad.errors import CompileError
from symgrad.graph import Node, describe
from symgrad.opdef import Kind
from symgrad.record import record
from symgrad.storage import Literal
from symgrad.types import DType, static_shape, static_size


@dataclass(slots=True)
class Scope:
    """Statements under construction at one loop level and the values they have named."""

    variables: frozenset[str]
    stmts: list[Stmt] = field(default_factory=list[Stmt])
    named: dict[Demand, str] = field(default_factory=dict["Demand", str])
    names: set[str] = field(default_factory=set[str])


class Lowering:
    """The state of lowering one group: parameters, names and the open scopes, outermost first."""

    home: Scope  # the outermost scope that can hold what is being defined

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
        scope.named[demand_of(*demand)] = name
        scope.names.add(name)

    def value(self, node: Node, index: Point, guard: Guard = ()) -> str:
        """Name one element of a node, writing what computes it in the outermost scope that can hold it."""
        root = demand_of(node, index, guard)
        stack = [root]
        while stack:
            demand = stack[-1]
            if self.lookup(demand) is not None:
                stack.pop()
                continue
            needed = self._demands(demand)
            missing = [d for d in needed if self.lookup(d) is None]
            if missing:
                stack.extend(missing)
                continue
            self._define(demand, needed)
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
        if node.op.name == "searchsorted":
            return [demand_of(node.inputs[1], index, guard)]
        raise CompileError(f"{describe(node)} cannot be computed inside another kernel")

    def _take_demands(self, node: Node, index: Point, guard: Guard) -> list[Demand]:
        (axis,) = node.attrs
        array, indices = node.inputs
        where = demand_of(indices, index[axis : axis + indices.ndim], guard)
        name = self.lookup(where)
        if name is None or 0 in array.shape:
            return [where]  # of no elements none is read: every index is out of range
        return [
            where,
            (
                array,
                (*index[:axis], variable(name), *index[axis + indices.ndim :]),
                guard,
            ),
        ]

    def _define(self, demand: Demand, needed: list[Demand]) -> None:
        """Name an element of which all that it needs has a name."""
        node, index, guard = demand
        dtype = node.dtype
        self.home = self._home(demand, needed)
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
        args = [self._named(d) for d in needed]
        if node.op.kind is Kind.POINTWISE:
            if node.op.name == "check_index" and guard:
                args = [self._guarded_index(demand, args[0])]
            attrs = tuple(zip(node.op.attrs, node.attrs, strict=True))
            self._let(demand, Let(self.fresh(), node.op.name, tuple(args), dtype, attrs))
        elif node.op.name == "pad":
            self._define_pad(demand)
        elif node.op.name == "concat":
            self._define_concat(demand)
        elif node.op.name == "take" and len(args) > 1:
            self._alias(demand, args[1])
        elif node.op.name == "take":
            self._define_unread(demand)
        elif node.op.name == "searchsorted":
            self._define_searchsorted(demand, args[0])
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
        scope = self.home
        zero = self.constant(Literal(np_zero(node.dtype)), node.dtype)
        within = Within(self.fresh(), guard)
        chosen = Let(self.fresh(), "where", (within.name, name, zero.name), node.dtype)
        scope.stmts += (zero, within, chosen)
        scope.names |= {zero.name, within.name, chosen.name}
        return chosen.name

    def _define_pad(self, demand: Demand) -> None:
        node, index, guard = demand
        scope = self.home
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
        parts = [d for d in concat_demands(node, index, guard, self.ranges) if not never(d[2], self.ranges)]
        if not parts:
            # All parts are empty, or the guard holds for none.
            self._define_unread(demand)
            return
        value = self._named(parts[-1])
        for part in parts[-2::-1]:
            # Earlier parts end where later ones begin: the upper guard alone decides.
            value = self._select(demand, part[2][len(guard) :][-1:], self._named(part), value)
        self._alias(demand, value)

    def _define_unread(self, demand: Demand) -> None:
        """A value that nothing reads, where there is no element to read."""
        scope = self.home
        zero = self.constant(Literal(np_zero(demand[0].dtype)), demand[0].dtype)
        scope.stmts.append(zero)
        scope.names.add(zero.name)
        self._alias(demand, zero.name)

    def _define_searchsorted(self, demand: Demand, wanted: str) -> None:
        """Halve the part of the row in which the place lies, as often as its length demands: no branch."""
        node, index, guard = demand
        row, dtype = node.inputs[0], node.dtype
        right, scope = node.attrs[0] == "right", self.home

        def let(op: str, args: tuple[str, ...], result: DType) -> str:
            scope.stmts.append(Let(self.fresh(), op, args, result))
            return self._remembered(scope)

        def literal(value: int) -> str:
            scope.stmts.append(self.constant(Literal(np.asarray(value, dtype.np)), dtype))
            return self._remembered(scope)

        shape = static_shape(row.shape)
        # The place is in range whatever the value; which row it is in may not be.
        outside = guard if len(shape) > 1 else ()
        zero, rest = literal(0), math.prod(shape[-1:])
        nan = let("isnan", (wanted,), types.bool_) if row.dtype.is_float else ""
        place = zero
        while rest:
            half = max(1, rest // 2)
            start = linearize((*index[: len(shape) - 1], variable(place)), shape)
            scope.stmts.append(Load(self.fresh(), self.param(row), start + (half - 1), row.dtype, outside))
            middle = self._remembered(scope)
            before = let("less_equal" if right else "less", (middle, wanted), types.bool_)
            if nan:  # above every number and equal to itself
                number = nan if right else let("equal", (middle, middle), types.bool_)
                below = let("logical_and", (nan, number), types.bool_)
                before = let("logical_or", (before, below), types.bool_)
            place = let("add", (place, let("where", (before, literal(half), zero), dtype)), dtype)
            rest = 0 if rest == 1 else rest - half
        self._alias(demand, place)

    def _remembered(self, scope: Scope) -> str:
        """The name the last statement of a scope defines, known to be of that scope."""
        name = defined(scope.stmts[-1])
        assert name is not None
        scope.names.add(name)
        return name

    def _choose(self, demand: Demand, guard: Guard, yes: str, no: str) -> None:
        self._alias(demand, self._select(demand, guard, yes, no))

    def _select(self, demand: Demand, guard: Guard, yes: str, no: str) -> str:
        if not guard:
            return yes
        scope = self.home
        within = Within(self.fresh(), guard)
        chosen = Let(self.fresh(), "where", (within.name, yes, no), demand[0].dtype)
        scope.stmts += (within, chosen)
        scope.names |= {within.name, chosen.name}
        return chosen.name

    def _alias(self, demand: Demand, name: str) -> None:
        self.home.named[demand] = name

    def _let(self, demand: Demand, stmt: Let | Index | Load) -> None:
        scope = self.home
        scope.stmts.append(stmt)
        scope.named[demand] = stmt.name
        scope.names.add(stmt.name)

    def _home(self, demand: Demand, needed: list[Demand]) -> Scope:
        """The outermost open scope that has every loop variable and value the element depends on."""
        wanted = {name for one in (*demand[1], *demand[2]) for name, _ in one.terms}
        used = {self._named(d) for d in needed}
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
    return np.zeros((), dtype.np)


@record
class Lowered:
    """A naive kernel and the nodes its parameters stand for, inputs and outputs."""

    kernel: Kernel
    params: tuple[Node, ...]


def finished(state: Lowering, outputs: Iterable[Node], body: Body) -> Lowered:
    """The kernel of a lowered body that stores these outputs."""
    written = {n.id for n in outputs}
    params = tuple(
        Buffer(state.buffer_of[n.id], n.dtype, static_size(n.shape), Space.GLOBAL, n.id in written)
        for n in state.params
    )
    return Lowered(Kernel(params, tuple(state.locals), body), tuple(state.params))


def store(state: Lowering, node: Node, point: Point) -> None:
    """Write one element of an output."""
    name = state.value(node, point)
    state.emit(Store(state.param(node), linearize(point, static_shape(node.shape)), name))


def nest(loops: Sequence[Loop], body: Body) -> Body:
    """The body inside loops, the first outermost."""
    for loop in reversed(loops):
        if loop.extent != 1:  # `at` has written its index as a constant
            body = (For(loop, body),)
    return body
