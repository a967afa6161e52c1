"""`vmap`: a function of nodes applied along an axis, by rebuilding what it builds with a leading batch axis.

The function is built once, on placeholders without the axis. Every node that depends on one is then rebuilt by the
rule of its operator, which knows where the batch axis goes; every other node is used as it stands.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from symgrad.errors import GraphError, ShapeError
from symgrad.grad import building
from symgrad.graph import Graph, Node, Origin, ancestors, describe
from symgrad.opdef import Kind, OpDef
from symgrad.ops.build import (
    apply,
    broadcast_to,
    inverse_order,
    permute_to,
    placeholder,
    reshape_to,
    source,
)
from symgrad.ops.view import same_extent
from symgrad.program import Program
from symgrad.types import Extent, Shape, Type, int64

Axis: TypeAlias = int | None
# The node, its operands with or without a leading batch axis, which of them have one, the extent of the axis.
BatchRule: TypeAlias = Callable[[Node, Sequence[Node], Sequence[bool], Extent], Node]


def vmap(
    f: Callable[..., Any], in_axes: Axis | Sequence[Axis] = 0, out_axes: Axis | Sequence[Axis] = 0
) -> Callable[..., Any]:
    """`f`, a function of nodes, applied to each slice of its arguments along an axis: vectorized, not repeated.

    `in_axes` is the axis of each argument that is mapped, or None for an argument that every application takes whole;
    one value serves for all arguments. Mapped arguments are nodes or NumPy arrays; others, and keyword arguments, are
    passed on as they are. `f` gives a node, or a tuple, list or dict of nodes, and so does the result: each with the
    mapped axis at its place in `out_axes`, where None asks for an output that is the same for every slice, as it is.

    What does not depend on a mapped argument is computed once, so a random operator in `f` draws the same numbers for
    every slice: draw outside and map over the draws. Symbolic extents and nested `vmap` work, and `f` may take
    derivatives. Raises ShapeError where axes do not fit, and GraphError for an operator that has no batching rule.

        per_example = sg.vmap(lambda a, b: sg.grad(loss(a, b), w))(x, t)
    """

    @functools.wraps(f)
    def mapped(*arguments: Any, **named: Any) -> Any:
        axes = _one_each("in_axes", in_axes, len(arguments))
        graph = _graph_of(arguments)
        rows = [_moved(graph, k, a, axis) for k, (a, axis) in enumerate(zip(arguments, axes, strict=True))]
        extent = _batch_extent([r for r in rows if r is not None])
        passed: list[Any] = list(arguments)
        replacements: dict[Node, Node] = {}
        for k, row in enumerate(rows):
            if row is None:
                continue
            passed[k] = placeholder(graph, f"(slice {len(graph.nodes)} of vmap)", Type(row.shape[1:], row.dtype))
            replacements[passed[k]] = reshape_to(row, (extent, *row.shape[1:]))
        result = f(*passed, **named)
        outputs, restore = _outputs(result)
        places = _one_each("out_axes", out_axes, len(outputs))
        found = batched(graph, outputs, replacements, extent)
        with building(graph):
            placed = [_placed(o, b, p, extent) for o, b, p in zip(outputs, found, places, strict=True)]
        return restore(placed)

    return mapped


def batched(
    graph: Graph,
    outputs: Sequence[Node],
    replacements: Mapping[Node, Node],
    extent: Extent,
    shortcut: Callable[[Node, Sequence[bool]], Node | None] | None = None,
) -> list[Node | None]:
    """The outputs rebuilt with a leading axis of this extent; None for one that depends on no replaced node.

    `replacements` gives for nodes their values with the leading axis. `shortcut(node, live)` may give a node rebuilt in
    a better way than by its rule, `live` saying which inputs depend on a replaced node; None for no better way.
    """
    new_of = dict(replacements)
    with building(graph):
        for node in ancestors(outputs):
            if node in new_of:
                continue
            live = [i in new_of for i in node.inputs]
            if not any(live):
                continue
            graph.origin = Origin(node.loc, node.scope, node.gradient_of, node.order)
            better = None if shortcut is None else shortcut(node, live)
            operands = [new_of.get(i, i) for i in node.inputs]
            new_of[node] = _rule(node)(node, operands, live, extent) if better is None else better
    return [new_of.get(o) for o in outputs]


def again(node: Node, inputs: Sequence[Node], **changes: Any) -> Node:
    """The operator of a node on other inputs, with some attributes changed."""
    op: OpDef = node.op
    attrs = tuple([changes.get(name, value) for name, value in zip(op.attrs, node.attrs, strict=True)])
    return node.graph.add(op, tuple(inputs), attrs)


# What callers pass.


def _one_each(what: str, axes: Axis | Sequence[Axis], count: int) -> list[Axis]:
    each = [axes] * count if axes is None or isinstance(axes, int) else list(axes)
    for axis in each:
        if axis is not None and (isinstance(axis, bool) or not isinstance(axis, int)):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise GraphError(f"vmap: {what} holds integers and None, got {axis!r}")
    if len(each) != count:
        noun = "argument" if what == "in_axes" else "output"
        raise GraphError(f"vmap: {what} has {len(each)} axes for {count} {noun}s; give one for each")
    return each


def _graph_of(arguments: Sequence[Any]) -> Graph:
    found: Graph | None = None
    for argument in arguments:
        if not isinstance(argument, Node):
            continue
        if found is not None and argument.graph is not found:
            raise GraphError(
                f"vmap: {describe(argument)} belongs to {argument.graph!r}, not to {found!r}; "
                "build everything in one graph"
            )
        found = argument.graph
    if found is None:
        raise GraphError("vmap: no argument is a node; lift arrays with g.const")
    return found


def _moved(graph: Graph, position: int, argument: Any, axis: Axis) -> Node | None:
    """A mapped argument with the mapped axis first; None for one that is not mapped."""
    if axis is None:
        return None
    if isinstance(argument, np.ndarray):
        argument = graph.const(argument)
    if not isinstance(argument, Node):
        raise GraphError(
            f"vmap: argument {position} is mapped and must be a node or an array, got {type(argument).__name__}; "
            "pass nodes one by one, or None for it in in_axes"
        )
    if not -argument.ndim <= axis < argument.ndim:
        raise ShapeError(f"vmap: argument {position} has no axis {axis}: {describe(argument)}")
    axis %= argument.ndim
    return permute_to(argument, (axis, *(k for k in range(argument.ndim) if k != axis)))


def _batch_extent(rows: Sequence[Node]) -> Extent:
    if not rows:
        raise GraphError("vmap: no argument is mapped; in_axes is None for each")
    extent = same_extent([r.shape[0] for r in rows])
    if extent is None:
        listed = ", ".join(str(r.shape[0]) for r in rows)
        raise ShapeError(f"vmap: the mapped axes have extents {listed}, and must be equal")
    return extent


def _outputs(result: Any) -> tuple[list[Node], Callable[[list[Node]], Any]]:
    """The outputs in order, and what gives other nodes the structure they came in."""
    if isinstance(result, Node):
        return [result], _only
    if isinstance(result, dict):
        names: list[Any] = list(result)  # pyright: ignore[reportUnknownArgumentType] any dict
        return _all_nodes(list(result.values())), lambda nodes: dict(zip(names, nodes, strict=True))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if isinstance(result, tuple | list):
        kind: Callable[[list[Node]], Any] = tuple if isinstance(result, tuple) else list
        return _all_nodes(list(result)), kind  # pyright: ignore[reportUnknownArgumentType]
    return _all_nodes([result]), _only


def _only(nodes: list[Node]) -> Node:
    return nodes[0]


def _all_nodes(values: list[Any]) -> list[Node]:
    for value in values:
        if not isinstance(value, Node):
            raise GraphError(
                f"vmap: the function must give nodes, alone or in a tuple, list or dict, got {type(value).__name__}"
            )
    return values


def _placed(output: Node, rows: Node | None, axis: Axis, extent: Extent) -> Node:
    if axis is None:
        if rows is None:
            return output
        raise GraphError(f"vmap: out_axes is None for {describe(output)}, which depends on a mapped argument")
    if not -output.ndim - 1 <= axis <= output.ndim:
        raise ShapeError(f"vmap: out_axes {axis} is out of range for an output of {output.ndim + 1} dimensions")
    axis %= output.ndim + 1
    order = list(range(1, output.ndim + 1))
    order.insert(axis, 0)
    return permute_to(_with_rows(output, False, extent) if rows is None else rows, order)


# Rules.


def _rule(node: Node) -> BatchRule:
    found = _RULES.get(node.op.name)
    if found is not None:
        return found
    if node.op.kind is Kind.POINTWISE:
        return _pointwise
    if node.op.kind is Kind.REDUCE and node.op.attrs in (("axes",), ("axis",)):
        return _reduction
    if node.op.kind is Kind.SCAN:
        return _scan
    raise GraphError(
        f"vmap: {node.op.name} has no batching rule: {describe(node)}; write it with other operators, or keep it "
        "independent of what is mapped"
    )


def _with_rows(operand: Node, live: bool, extent: Extent) -> Node:
    return operand if live else broadcast_to(operand, (extent, *operand.shape))


def _all_rows(operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> list[Node]:
    return [_with_rows(o, on, extent) for o, on in zip(operands, live, strict=True)]


def _attr(node: Node, name: str) -> Any:
    return node.attrs[node.op.attrs.index(name)]


def _pointwise(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, _all_rows(operands, live, extent))


def _reduction(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    if node.op.attrs == ("axis",):
        return again(node, operands, axis=node.attrs[0] + 1)
    return again(node, operands, axes=tuple(a + 1 for a in node.attrs[0]))


def _scan(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, _all_rows(operands, live, extent), axis=_attr(node, "axis") + 1)


def _sum_to(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    (x,) = operands
    shape: Shape = node.attrs[0]
    lead = x.ndim - 1 - len(shape)
    if lead:
        x = apply("sum", x, axes=tuple(range(1, lead + 1)))
    target = (extent, *shape)
    return x if x.shape == target else apply("sum_to", x, shape=target)


def _reshape(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return reshape_to(operands[0], (extent, *node.shape))


def _permute(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return permute_to(operands[0], (0, *(a + 1 for a in node.attrs[0])))


def _broadcast(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    (x,) = operands
    ones = (1,) * (node.ndim + 1 - x.ndim)
    return broadcast_to(reshape_to(x, (extent, *ones, *x.shape[1:])), (extent, *node.shape))


def _slice(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    starts, stops, steps = node.attrs
    return again(node, operands, starts=(0, *starts), stops=(extent, *stops), steps=(1, *steps))


def _pad(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, operands, low=(0, *_attr(node, "low")), high=(0, *_attr(node, "high")))


def _flip(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, operands, axes=tuple(a + 1 for a in node.attrs[0]))


def _concat(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, _all_rows(operands, live, extent), axis=node.attrs[0] + 1)


def _contract(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    left, right, out = node.attrs
    used = set(left + right)
    label = next((c for c in string.ascii_letters if c not in used), None)
    if label is None:
        raise GraphError(f"vmap: {describe(node)} uses every label there is; contract in two steps")
    left = label + left if live[0] else left
    right = label + right if live[1] else right
    return again(node, operands, left=left, right=right, out=label + out)


def _take(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    x, index = operands
    axis: int = node.attrs[0]
    if not live[1]:
        return again(node, operands, axis=axis + 1)
    if not live[0]:
        taken = again(node, operands)
        return permute_to(taken, (axis, *(k for k in range(taken.ndim) if k != axis)))
    flat = apply("take", _joined(x, axis), _shifted(index, extent, x.shape[axis + 1]), axis=0)
    return permute_to(flat, inverse_order(_axis_first(flat.ndim, axis, index.ndim - 1)))


def _scatter(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    index = operands[1]
    axis: int = node.attrs[0]
    x, updates = (_with_rows(operands[k], live[k], extent) for k in (0, 2))
    if not live[1]:
        return again(node, (x, index, updates), axis=axis + 1)
    rows = permute_to(updates, _axis_first(updates.ndim, axis, index.ndim - 1))
    order = _axis_first(x.ndim, axis, 1)
    moved = tuple(x.shape[k] for k in order)
    flat = again(node, (_joined(x, axis), _shifted(index, extent, x.shape[axis + 1]), rows), axis=0)
    return permute_to(reshape_to(flat, moved), inverse_order(order))


def _ordered(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, operands, axis=node.attrs[0] + 1)


def _searchsorted(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    # Values may have any axes behind those of the rows they are searched in.
    if not live[0] and node.inputs[0].ndim == 1:
        return again(node, operands)
    return again(node, _all_rows(operands, live, extent))


def _axis_first(ndim: int, axis: int, count: int) -> tuple[int, ...]:
    """The order of axes that puts `count` ones, from `axis` on without the batch axis, right behind the batch axis."""
    chosen = range(axis + 1, axis + 1 + count)
    return (0, *chosen, *(k for k in range(1, ndim) if k not in chosen))


def _joined(x: Node, axis: int) -> Node:
    """The batch axis and an axis of the slices as one leading axis."""
    moved = permute_to(x, _axis_first(x.ndim, axis, 1))
    return reshape_to(moved, (moved.shape[0] * moved.shape[1], *moved.shape[2:]))


def _shifted(index: Node, extent: Extent, stride: Extent) -> Node:
    """Indices into an axis of the slices as indices into the joined axis; int64, which holds them all."""
    wide = index if index.dtype is int64 else apply("astype", index, dtype=int64)
    row = source(index.graph, "iota", extent=extent, dtype=int64)
    each = broadcast_to(source(index.graph, "dim", extent=stride), row.shape)
    start = reshape_to(apply("multiply", row, each), (extent, *(1,) * (index.ndim - 1)))
    return apply("add", wide, broadcast_to(start, index.shape))


def _call(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, operands, program=_with_axis(node.attrs[0], live, extent))


def _custom(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    # A derivative rule gives one cotangent per slice, so every operand has the axis, and broadcasting sums them.
    program: Program = node.attrs[0]
    batched_rule = _with_axis(program, [True] * len(program.inputs), extent)
    return again(node, _all_rows(operands, live, extent), program=batched_rule)


def _with_axis(program: Program, live: Sequence[bool], extent: Extent) -> Program:
    """The program with a leading axis on these inputs and on every output."""
    graph = program.graph
    inputs = list(program.inputs)
    replacements: dict[Node, Node] = {}
    for k, given in enumerate(program.inputs):
        if live[k]:
            kind = Type((extent, *given.shape), given.dtype)
            inputs[k] = replacements[given] = placeholder(graph, f"{given.name} ({len(graph.nodes)})", kind)
    found = batched(graph, program.outputs, replacements, extent)
    with building(graph):
        outputs = [
            _with_rows(o if r is None else r, r is not None, extent)
            for o, r in zip(program.outputs, found, strict=True)
        ]
    return Program(graph, tuple(inputs), tuple(outputs), name=program.name)


def _unchanged(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    """For operators along the last axes that leave any number of leading ones as they are."""
    return again(node, operands)


def _fence(node: Node, operands: Sequence[Node], live: Sequence[bool], extent: Extent) -> Node:
    return again(node, (_with_rows(operands[0], live[0], extent), operands[1]))


_RULES: dict[str, BatchRule] = {
    "fence": _fence,
    "reshape": _reshape,
    "permute": _permute,
    "broadcast": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "flip": _flip,
    "concat": _concat,
    "sum_to": _sum_to,
    "contract": _contract,
    "take": _take,
    "scatter_add": _scatter,
    "scatter_set": _scatter,
    "scatter_max": _scatter,
    "scatter_min": _scatter,
    "scatter_multiply": _scatter,
    "sort": _ordered,
    "argsort": _ordered,
    "searchsorted": _searchsorted,
    "stop_gradient": _pointwise,
    "phase": _pointwise,
    "call": _call,
    "custom": _custom,
    "window": _unchanged,
    "fold": _unchanged,
}
