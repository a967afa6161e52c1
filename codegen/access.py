"""Which elements of its inputs an element of a node is made of: one index function per view operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from codegen.affine import ZERO, Affine, delinearize, linearize, variable
from codegen.loop import Loop
from codegen.row_blocks import rows_of_blocks, summed_in_blocks
from symgrad.errors import CompileError
from symgrad.graph import Node, describe
from symgrad.opdef import Kind
from symgrad.types import static_shape

Point: TypeAlias = "tuple[Affine, ...]"
Guard: TypeAlias = "tuple[Affine, ...]"
Ranges: TypeAlias = "dict[str, tuple[int, int]]"
Demand: TypeAlias = "tuple[Node, Point, Guard]"


LEAVES = frozenset(("input", "param", "state"))


# How each scatter brings an update to the old value; None where it replaces it.
SCATTERS: Mapping[str, str | None] = {
    "scatter_add": "add",
    "scatter_set": None,
    "scatter_max": "maximum",
    "scatter_min": "minimum",
    "scatter_multiply": "multiply",
}


def is_leaf(node: Node) -> bool:
    """Whether the value stands in memory before any kernel runs."""
    return node.op.name in LEAVES or (node.op.name == "const" and node.ndim > 0)


class NotAffineError(Exception):
    """An index is not affine unless this node is stored first."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.node = node


def demand_of(node: Node, index: Point, guard: Guard) -> Demand:
    """An element of a node, with the index of axes of one element written in the one way it can be."""
    return node, tuple([ZERO if d == 1 else i for i, d in zip(index, node.shape, strict=True)]), guard


def view_demands(node: Node, index: Point, guard: Guard, ranges: Ranges) -> list[Demand]:
    """Which input elements one element of a view is made of. For concat and pad their guards say when each applies."""
    source = node.inputs[0]
    shape = static_shape(source.shape)
    match node.op.name:
        case "fence":
            return [demand_of(source, index, guard)]
        case "permute":
            (axes,) = node.attrs
            place = {axis: k for k, axis in enumerate(axes)}
            return [demand_of(source, tuple(index[place[axis]] for axis in range(len(shape))), guard)]
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
            return [demand_of(source, point, guard)]
        case "window":
            _, strides, dilations = node.attrs
            rank = len(strides)
            lead = len(shape) - rank
            windows, taps = index[lead : lead + rank], index[lead + rank :]
            moved = (o * s + k * d for o, k, s, d in zip(windows, taps, strides, dilations, strict=True))
            return [demand_of(source, (*index[:lead], *moved), guard)]
        case "flip":
            (axes,) = node.attrs
            point = tuple(
                i * -1 + (d - 1) if k in axes else i for k, (i, d) in enumerate(zip(index, shape, strict=True))
            )
            return [demand_of(source, point, guard)]
        case "reshape":
            point = reshape_point(index, static_shape(node.shape), shape, ranges)
            if point is None:
                raise NotAffineError(source)
            return [demand_of(source, point, guard)]
        case "pad":
            low, _, _ = node.attrs
            point = tuple([i + -int(shift) for i, shift in zip(index, low, strict=True)])
            return [demand_of(source, point, guard + inside(point, shape, ranges))]
        case "concat":
            return concat_demands(node, index, guard, ranges)
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


def concat_demands(node: Node, index: Point, guard: Guard, ranges: Ranges) -> list[Demand]:
    axis: int = node.attrs[0]
    out: list[Demand] = []
    offset = 0
    for source in node.inputs:
        shape = static_shape(source.shape)
        point = (*index[:axis], index[axis] + -offset, *index[axis + 1 :])
        inner = inside(point[axis : axis + 1], shape[axis : axis + 1], ranges)
        out.append(demand_of(source, point, guard + inner))
        offset += shape[axis]
    return out


def never(guard: Guard, ranges: Ranges) -> bool:
    """Whether a guard can be seen to fail always."""
    spans = [g.range(ranges) for g in guard]
    return any(span is not None and span[1] < 0 for span in spans)


def at(loop: Loop) -> Affine:
    """The index a loop stands for: a constant when it runs once, so that unit axes never count."""
    return Affine(loop.start) if loop.extent == 1 else variable(loop.name)


def ranges_of(loops: Sequence[Loop]) -> Ranges:
    return {loop.name: (loop.start, loop.start + max(loop.extent, 1) - 1) for loop in loops}


def loops_for(domain: Sequence[int], prefix: str = "d") -> list[Loop]:
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


def row_point(point: Point, whole: Sequence[int]) -> Point:
    """The index in an array of an element of its blocks of rows, from block and row in it."""
    block, row = point[-3:-1]
    return (*point[:-3], block * rows_of_blocks(whole) + row, point[-1])


def reads_same_point(
    node: Node,
    members: set[int],
    stored: set[int],
    domain: tuple[int, ...],
    axes: tuple[int, ...],
) -> bool:
    """Whether all values a node takes from members are those of the iteration that computes the node itself."""
    whole = summed_in_blocks(node)
    loops = loops_for(domain if whole is None else static_shape(node.inputs[0].shape))
    ranges = ranges_of(loops)
    own_point = tuple(at(loop) for loop in loops)
    point = own_point if whole is None else row_point(own_point, whole)
    if node.op.kind in (Kind.REDUCE, Kind.SCAN):
        start: list[Demand] = [(i, own_point, ()) for i in node.inputs]
    else:
        own = member_point(node, domain, point, axes)
        if own is None:
            return False
        start = [(i, own, ()) for i in node.inputs] if node.op.kind is Kind.POINTWISE else []
        if node.op.kind is Kind.VIEW:
            try:
                start = view_demands(node, own, (), ranges)
            except NotAffineError:
                return False
        if node.op.kind not in (Kind.POINTWISE, Kind.VIEW):
            return False
    seen: set[Demand] = set()
    stack = start
    while stack:
        demand = stack.pop()
        source, index, guard = demand
        if source.id in members:
            if guard or summed_in_blocks(source) is not None or member_point(source, domain, point, axes) != index:
                return False
            continue
        if source.id in stored or is_leaf(source) or source.op.kind is Kind.SOURCE or demand in seen:
            continue
        seen.add(demand)
        if source.op.kind is Kind.POINTWISE:
            stack += [(i, index, guard) for i in source.inputs]
        elif source.op.kind is Kind.VIEW:
            try:
                stack += view_demands(source, index, guard, ranges)
            except NotAffineError:
                return False
        elif any(_reaches(i, members, stored) for i in source.inputs):
            return False
    return True


def unreached(node: Node, stored: set[int]) -> Node | None:
    """What a chain of views looks at through one that loops over the chain cannot follow; None if there is none."""
    loops = loops_for(static_shape(node.shape))
    ranges = ranges_of(loops)
    point = tuple(at(loop) for loop in loops)
    while node.op.kind is Kind.VIEW and len(node.inputs) == 1 and node.id not in stored:
        try:
            ((node, point, _),) = view_demands(node, point, (), ranges)
        except NotAffineError as reason:
            return reason.node
    return None


def _reaches(node: Node, members: set[int], stored: set[int]) -> bool:
    stack = [node]
    while stack:
        source = stack.pop()
        if source.id in members:
            return True
        if not is_leaf(source) and source.id not in stored:
            stack += source.inputs
    return False
