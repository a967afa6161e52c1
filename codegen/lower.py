"""Groups to loop programs: the naive kernel of each kind of group."""

from __future__ import annotations

from codegen.access import SCATTERS, Point, at, is_leaf, loops_for, member_point, ranges_of
from codegen.affine import ZERO, Affine, linearize, variable
from codegen.costs import COSTS
from codegen.group import Anchor, Group, point_shape
from codegen.inline import Lowered, Lowering, finished, nest, np_zero, store
from codegen.loop import Accumulate, Body, Finish, Index, Init, Let, Load, Loop, Space, Stmt, Store
from codegen.lower_scan import lower_scan
from codegen.lower_sort import lower_sort
from codegen.row_blocks import rows_of_blocks, summed_in_blocks
from symgrad import types
from symgrad.graph import Node
from symgrad.opdef import Kind
from symgrad.storage import Literal
from symgrad.types import static_shape

# Cost from which a value that several passes over a row need is kept in scratch memory.
STAGE_COST = 6
STAGE_BYTES = 64 << 10


def lower(group: Group, stored: set[int]) -> Lowered:
    """The naive kernel of a group. `stored` are the ids of the nodes other kernels have stored.

    Raises NotAffineError with the node that must be stored for an index to become affine.
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
        case Anchor.SCAN | Anchor.SCAN_BACK:
            return lower_scan(group, stored)
        case Anchor.SORT:
            return lower_sort(group, stored)


def _lower_map(group: Group, stored: set[int]) -> Lowered:
    loops = loops_for(group.domain)
    state = Lowering(stored - {n.id for n in group.nodes}, ranges_of(loops))
    point = tuple(at(loop) for loop in loops)
    state.open(*(loop.name for loop in loops))
    for node in group.outputs:
        own = member_point(node, group.domain, point, ())
        assert own is not None
        store(state, node, own)
    return finished(state, group.outputs, nest(loops, state.close()))


def _lower_rows(group: Group, stored: set[int]) -> Lowered:
    return _Rows(group, stored).lowered()


class _Rows:
    """Lowering of reductions over rows: one pass over the row for each level of reductions, then the outputs.

    Where blocks of rows are summed, the loop over rows is two: over blocks, and over the rows of one. Its sums stand in
    the result while they grow.
    """

    def __init__(self, group: Group, stored: set[int]) -> None:
        self.group = group
        self.members = {n.id: n for n in group.nodes}
        self.outer = [Loop(f"d{k}", d) for k, d in enumerate(group.domain) if k not in group.axes]
        self.rows: Point = tuple(at(loop) for loop in self.outer)
        self.block_sums = {n.id: n for n in group.nodes if summed_in_blocks(n) is not None}
        if self.block_sums:
            self._cut_rows()
        ranges = ranges_of(self.outer)
        self.passes: list[list[Loop]] = []
        self.level: dict[int, int] = {}
        self.wanted: dict[int, set[int]] = {}
        self.order = self._closure(stored)
        self._levels()
        last = max(self.level[n.id] for n in group.nodes)
        for p in range(last + 1):
            loops = [Loop(f"r{p}_{k}", group.domain[k]) for k in group.axes]
            self.passes.append(loops)
            ranges |= ranges_of(loops)
        self.state = Lowering(stored - set(self.members), ranges)

    def _cut_rows(self) -> None:
        last = self.outer.pop()
        rows = rows_of_blocks(self.group.domain)
        self.outer += [Loop(last.name, last.extent // rows), Loop(f"d{len(self.group.domain) - 1}", rows)]
        self.rows = (*self.rows[:-1], at(self.outer[-2]) * rows + at(self.outer[-1]))

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
        return node.id in self.members and node.op.kind is Kind.REDUCE and node.id not in self.block_sums

    def _is_full(self, node: Node) -> bool:
        return point_shape(static_shape(node.shape)) == point_shape(self.group.domain)

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
                if node.id in outputs and (self._is_full(node) or node.id in self.block_sums):
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
        staged = dict.fromkeys(self._staged(), "")
        state.open(*(loop.name for loop in self.outer))
        outputs = {n.id for n in group.outputs}
        stored: set[int] = set()
        for p, loops in enumerate(self.passes):
            self._row_outputs(p, outputs, stored)
            reductions = [n for n in group.nodes if self._is_reduction(n) and self.level[n.id] == p + 1]
            fulls = [
                n for n in group.nodes
                if n.id in outputs and self._is_full(n) and not self._is_reduction(n) and self.level[n.id] == p
            ]  # fmt: skip
            sums = [n for n in self.block_sums.values() if self.level[n.id] == p]
            if not reductions and not fulls and not sums:
                continue
            accumulators = {n.id: self._accumulator(n) for n in reductions}
            if all(loop.extent for loop in loops):
                self._pass(p, loops, reductions, [*fulls, *sums], accumulators, staged)
            for node in reductions:
                name = state.fresh()
                state.emit(Finish(name, accumulators[node.id], ZERO, node.op.name, node.dtype))
                state.bind((node, self.rows, ()), name)
        self._row_outputs(len(self.passes), outputs, stored)
        body = state.close()
        if self.block_sums:
            body = (*self._beginnings(), *nest(self.outer[-1:], body))
            return finished(state, group.outputs, nest(self.outer[:-1], body))
        return finished(state, group.outputs, nest(self.outer, body))

    def _point(self, loops: list[Loop]) -> Point:
        reduced = dict(zip(self.group.axes, loops, strict=True))
        rows = iter(self.rows)
        return tuple(at(reduced[k]) if k in reduced else next(rows) for k in range(len(self.group.domain)))

    def _pass(
        self,
        p: int,
        loops: list[Loop],
        reductions: list[Node],
        outputs: list[Node],
        accumulators: dict[int, str],
        staged: dict[int, str],
    ) -> None:
        """One pass over the row. A row without elements has none: not even what does not vary in it can be read."""
        state, point = self.state, self._point(loops)
        state.open(*(loop.name for loop in loops))
        self._load_staged(staged, point, loops)
        self._store_staged(staged, p, point, loops)
        for node in reductions:
            self._accumulate(node, accumulators[node.id], point)
        for node in outputs:
            if node.id in self.block_sums:
                self._add_to_block(node, at(loops[0]))
            else:
                store(state, node, self._member_point(node, point))
        for stmt in nest(loops, state.close()):
            state.emit(stmt)

    def _block_place(self, node: Node, column: Affine) -> Affine:
        """Where a column of the sums of the block at hand stands."""
        return linearize((*(at(loop) for loop in self.outer[:-1]), column), static_shape(node.shape))

    def _beginnings(self) -> Body:
        """Loops that set the sums of a block to 0."""
        out: list[Stmt] = []
        for k, node in enumerate(self.block_sums.values()):
            loop = Loop(f"r{len(self.passes) + k}_0", self.group.domain[-1])
            zero = self.state.fresh("c")
            value = Let(zero, "const", (), node.dtype, (("value", Literal(np_zero(node.dtype))),))
            stored = Store(self.state.param(node), self._block_place(node, at(loop)), zero)
            out += nest([loop], (value, stored))
        return tuple(out)

    def _add_to_block(self, node: Node, column: Affine) -> None:
        state, buffer, place = self.state, self.state.param(node), self._block_place(node, column)
        value = state.value(node.inputs[0], (*(at(loop) for loop in self.outer), column))
        before, after = state.fresh(), state.fresh()
        state.emit(Load(before, buffer, place, node.dtype))
        state.emit(Let(after, "add", (before, value), node.dtype))
        state.emit(Store(buffer, place, after))

    def _member_point(self, node: Node, point: Point) -> Point:
        found = member_point(node, self.group.domain, point, self.group.axes)
        assert found is not None
        return found

    def _row_outputs(self, p: int, outputs: set[int], stored: set[int]) -> None:
        """Store what has one value per row as soon as the passes before have computed it."""
        for node in self.group.nodes:
            row = self._is_reduction(node) or not (self._is_full(node) or node.id in self.block_sums)
            if node.id not in outputs or node.id in stored or not row or self.level[node.id] > p:
                continue
            stored.add(node.id)
            own = self.rows
            if not self._is_reduction(node):
                own = self._member_point(node, self._point(self.passes[0]))
            store(self.state, node, own)

    def _accumulator(self, node: Node) -> str:
        name = self.state.local("a", node.inputs[0].dtype, 1, Space.REG)
        self.state.emit(Init(name, ZERO, node.op.name))
        return name

    def _accumulate(self, node: Node, accumulator: str, point: Point) -> None:
        args = [self.state.value(node.inputs[0], point)]
        if node.op.name in ("argmax", "argmin"):
            axis: int = node.attrs[0]
            place = Index(self.state.fresh(), point[axis], types.int64)
            self.state.emit(place)
            args.append(place.name)
        self.state.emit(Accumulate(accumulator, ZERO, node.op.name, tuple(args)))

    def _row_offset(self, loops: list[Loop]) -> Affine:
        return linearize((at(loop) for loop in loops), (loop.extent for loop in loops))

    def _store_staged(self, staged: dict[int, str], p: int, point: Point, loops: list[Loop]) -> None:
        for node in self.order:
            if node.id not in staged or staged[node.id] or min(self.wanted[node.id]) != p:
                continue
            size = 1
            for loop in loops:
                size *= loop.extent
            value = self.state.value(node, self._member_point(node, point))
            staged[node.id] = self.state.local("s", node.dtype, size, Space.SCRATCH)
            self.state.emit(Store(staged[node.id], self._row_offset(loops), value))

    def _load_staged(self, staged: dict[int, str], point: Point, loops: list[Loop]) -> None:
        for node in self.order:
            if (buffer := staged.get(node.id)) and self.wanted[node.id]:
                name = self.state.fresh()
                self.state.emit(Load(name, buffer, self._row_offset(loops), node.dtype))
                self.state.bind((node, self._member_point(node, point), ()), name)


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
    names = {label: at(loop) for label, loop in zip((*out, *summed), (*outer, *inner), strict=True)}
    state = Lowering(stored - {n.id for n in group.nodes}, ranges_of([*outer, *inner]))
    state.open(*(loop.name for loop in outer))
    accumulator = state.local("a", node.dtype, 1, Space.REG)
    state.emit(Init(accumulator, ZERO, "fma"))
    if all(loop.extent for loop in inner):
        state.open(*(loop.name for loop in inner))
        factors = [
            state.value(operand, tuple(names[label] for label in labels))
            for operand, labels in zip(node.inputs, (left, right), strict=True)
        ]
        state.emit(Accumulate(accumulator, ZERO, "fma", tuple(factors)))
        for stmt in nest(inner, state.close()):
            state.emit(stmt)
    result = state.fresh()
    state.emit(Finish(result, accumulator, ZERO, "fma", node.dtype))
    point = tuple(names[label] for label in out)
    state.bind((node, point, ()), result)
    for member in group.outputs:
        own = member_point(member, group.domain, point, ())
        assert own is not None
        store(state, member, own)
    return finished(state, group.outputs, nest(outer, state.close()))


def _lower_scatter(group: Group, stored: set[int]) -> Lowered:
    """Copy the array, then bring in the updates one index after the other, so that their order is fixed.

    The loops over the elements of a slice are outside: no two of their iterations touch the same element.
    """
    (node,) = group.nodes
    axis: int = node.attrs[0]
    array, indices, updates = node.inputs
    shape = static_shape(node.shape)
    along = Loop(f"d{axis}", shape[axis])
    places = [Loop(f"i{k}", d) for k, d in enumerate(static_shape(indices.shape))]
    rest = [Loop(f"e{k}", d) for k, d in enumerate(shape) if k != axis]
    state = Lowering(stored - {node.id}, ranges_of([along, *places, *rest]))
    others = [at(loop) for loop in rest]
    state.open(*(loop.name for loop in rest))
    state.open(along.name)
    point = (*others[:axis], at(along), *others[axis:])
    name = state.value(array, point)
    out = state.param(node)
    state.emit(Store(out, linearize(point, shape), name))
    for stmt in nest([along], state.close()):
        state.emit(stmt)
    state.open(*(loop.name for loop in places))
    spots = tuple(at(loop) for loop in places)
    where = state.value(indices, spots)
    target = linearize((*others[:axis], variable(where), *others[axis:]), shape)
    update = state.value(updates, (*others[:axis], *spots, *others[axis:]))
    combine = SCATTERS[node.op.name]
    if combine is not None:
        old, new = state.fresh(), state.fresh()
        state.emit(Load(old, out, target, node.dtype))
        state.emit(Let(new, combine, (old, update), node.dtype))
        update = new
    state.emit(Store(out, target, update))
    for stmt in nest(places, state.close()):
        state.emit(stmt)
    return finished(state, group.outputs, nest(rest, state.close()))
