"""Groups around running values along an axis to loop programs."""

from __future__ import annotations

from codegen.access import Point, at, member_point, ranges_of
from codegen.affine import ZERO
from codegen.group import Anchor, Group
from codegen.inline import Lowered, Lowering, finished, nest, store
from codegen.loop import Accumulate, Finish, Init, Loop, Space
from symgrad.graph import Node
from symgrad.opdef import Kind


def lower_scan(group: Group, stored: set[int]) -> Lowered:
    """The scanned axis is a serial loop that carries the running values; all others are outside of it."""
    (axis,) = group.axes
    outer = [Loop(f"d{k}", d) for k, d in enumerate(group.domain) if k != axis]
    scanned = Loop("s0", group.domain[axis])
    state = Lowering(stored - {n.id for n in group.nodes}, ranges_of([*outer, scanned]))
    point = _point(group, outer, scanned)
    state.open(*(loop.name for loop in outer))
    scans = [n for n in group.nodes if n.op.kind is Kind.SCAN]
    accumulators = {n.id: _begun(state, n) for n in scans}
    state.open(scanned.name)
    for node in scans:
        args = tuple([state.value(i, _own(i, group, point)) for i in node.inputs])
        name = state.fresh()
        state.emit(Accumulate(accumulators[node.id], ZERO, node.op.name, args, name))
        state.bind((node, _own(node, group, point), ()), name)
    for node in group.outputs:
        store(state, node, _own(node, group, point))
    for stmt in nest([scanned], state.close()):
        state.emit(stmt)
    for node in scans:
        state.emit(Finish(state.fresh(), accumulators[node.id], ZERO, node.op.name, node.dtype))
    return finished(state, group.outputs, nest(outer, state.close()))


def _point(group: Group, outer: list[Loop], scanned: Loop) -> Point:
    (axis,) = group.axes
    place = at(scanned)
    if group.anchor is Anchor.SCAN_BACK:
        place = place * -1 + (scanned.extent - 1)
    others = iter(outer)
    return tuple([place if k == axis else at(next(others)) for k in range(len(group.domain))])


def _own(node: Node, group: Group, point: Point) -> Point:
    found = member_point(node, group.domain, point, ())
    assert found is not None
    return found


def _begun(state: Lowering, node: Node) -> str:
    name = state.local("a", node.dtype, 1, Space.REG)
    state.emit(Init(name, ZERO, node.op.name))
    return name
