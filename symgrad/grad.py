"""Derivatives as graph nodes: reverse and forward mode, and products with second derivatives."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, cast, overload

import numpy as np

from symgrad.arguments import one_or_more
from symgrad.errors import GradientError, GraphError
from symgrad.graph import Graph, Node, Origin, ancestors, describe
from symgrad.opdef import OPS, Kind, OpDef
from symgrad.ops.build import placeholder, uniform_value
from symgrad.ops.control import carriers, custom_jvp
from symgrad.rules import full
from symgrad.storage import Literal as Value
from symgrad.types import Type

Disconnected: TypeAlias = Literal["zero", "none", "raise"]
_STOPS = frozenset(("stop_gradient",))
# Linear in floating operands, though defined for other dtypes too, where their meaning is another.
_LINEAR = frozenset(("add", "subtract", "where"))


@overload
def grad(
    y: Node,
    wrt: Node,
    *,
    cotangent: Any = None,
    disconnected: Literal["zero", "raise"] = "zero",
    consider_constant: Sequence[Node] = (),
) -> Node: ...
@overload
def grad(
    y: Node,
    wrt: Sequence[Node],
    *,
    cotangent: Any = None,
    disconnected: Literal["zero", "raise"] = "zero",
    consider_constant: Sequence[Node] = (),
) -> list[Node]: ...
@overload
def grad(
    y: Node,
    wrt: Node,
    *,
    cotangent: Any = None,
    disconnected: Literal["none"],
    consider_constant: Sequence[Node] = (),
) -> Node | None: ...
@overload
def grad(
    y: Node,
    wrt: Sequence[Node],
    *,
    cotangent: Any = None,
    disconnected: Literal["none"],
    consider_constant: Sequence[Node] = (),
) -> list[Node | None]: ...


def grad(
    y: Node,
    wrt: Node | Sequence[Node],
    *,
    cotangent: Any = None,
    disconnected: Disconnected = "zero",
    consider_constant: Sequence[Node] = (),
) -> Node | list[Node] | list[Node | None] | None:
    """The gradient of `y` with respect to any nodes of the graph, as nodes of the same graph.

    A node gives a node, a list a list; each gradient has the shape and dtype of what it is taken with respect to. `y`
    is a floating scalar, or has a `cotangent` of its shape and dtype: the result is then the gradient of
    `sum(y * cotangent)`. Where `y` does not depend on a node, the gradient is zeros, None or an error, as
    `disconnected` says. Nothing flows through `consider_constant`. Takes time linear in the nodes between.

    Raises GradientError (no gradient defined) and GraphError (nodes of different graphs).
    """
    targets = check_targets("grad", wrt)
    check_output("grad", y)
    if disconnected not in ("zero", "none", "raise"):
        raise GradientError(f"grad: disconnected must be 'zero', 'none' or 'raise', got {disconnected!r}")
    if cotangent is None and y.type.shape != ():
        raise GradientError(
            f"grad: {describe(y)} is not a scalar, its shape is {y.shape}; reduce it with sg.sum or sg.mean, "
            "or pass cotangent= with the same shape"
        )
    seed = full(y.graph, (), y.dtype, 1) if cotangent is None else _match("grad", "cotangent", cotangent, y)
    found = _reverse("grad", [(y, seed)], targets, consider_constant)
    results = [_settle("grad", g, t, [y], disconnected) for g, t in zip(found, targets, strict=True)]
    return results[0] if isinstance(wrt, Node) else results


def vjp(outputs: Sequence[Node], wrt: Sequence[Node], cotangents: Sequence[Any]) -> list[Node]:
    """The product of cotangents with the Jacobian: the gradients of `sum over k of sum(outputs[k] * cotangents[k])`.

    One gradient per node of `wrt`, zeros where no output depends on it.
    """
    targets = check_targets("vjp", wrt)
    _check_count("vjp", "outputs", outputs, "cotangents", cotangents)
    for output in outputs:
        check_output("vjp", output)
    seeds = [(o, _match("vjp", "cotangent", c, o)) for o, c in zip(outputs, cotangents, strict=True)]
    found = _reverse("vjp", seeds, targets, ())
    return [g if g is not None else zeros_like(t) for g, t in zip(found, targets, strict=True)]


def jvp(outputs: Sequence[Node], wrt: Sequence[Node], tangents: Sequence[Any]) -> list[Node]:
    """The product of the Jacobian with tangents: the change of each output when every `wrt[k]` moves along its tangent.

    One node per output, of its shape and dtype. The nodes of `wrt` count as independent: where one depends on another,
    its tangent is the given one. Forward mode: one sweep for all outputs.
    """
    targets = check_targets("jvp", wrt)
    _check_count("jvp", "wrt", wrt, "tangents", tangents)
    for output in outputs:
        check_output("jvp", output)
    seeds = {t.id: _match("jvp", "tangent", v, t) for t, v in zip(targets, tangents, strict=True)}
    found = _forward("jvp", outputs, targets, seeds)
    return [t if t is not None else zeros_like(o) for t, o in zip(found, outputs, strict=True)]


@overload
def hvp(y: Node, wrt: Node, v: Any) -> Node: ...
@overload
def hvp(y: Node, wrt: Sequence[Node], v: Sequence[Any]) -> list[Node]: ...


def hvp(y: Node, wrt: Node | Sequence[Node], v: Any) -> Node | list[Node]:
    """The product of the Hessian of a scalar with a vector, without the Hessian: forward mode over the gradient.

    `v` has the structure, shapes and dtypes of `wrt`, and so has the result.
    """
    if isinstance(wrt, Node):
        return jvp([grad(y, wrt)], [wrt], [v])[0]
    return jvp(grad(y, wrt), wrt, v)


def zeros_like(node: Node) -> Node:
    """Zeros with the shape and dtype of a node."""
    return full(node.graph, node.type.shape, node.type.dtype, 0)


# Reverse mode.


def _reverse(
    caller: str, seeds: Sequence[tuple[Node, Node]], targets: Sequence[Node], constants: Sequence[Node]
) -> list[Node | None]:
    """One cotangent per target, None where no seed reaches it."""
    graph = targets[0].graph if targets else seeds[0][0].graph if seeds else Graph()
    check_graph(caller, graph, [*targets, *constants, *(y for y, _ in seeds), *(c for _, c in seeds)])
    cotangents: dict[int, Node] = {}
    for y, cotangent in seeds:
        _accumulate(graph, cotangents, y.id, cotangent)
    wanted = {t.id for t in targets}
    held = {c.id for c in constants}
    found: dict[int, Node] = {}
    low, high = min(wanted, default=0), max(cotangents, default=-1)
    need = _needed(graph, wanted, held, low, high)
    nodes = graph.nodes
    with building(graph):
        for k in range(high, low - 1, -1):
            if not need[k - low] or (cotangent := cotangents.pop(k, None)) is None:
                continue
            node = nodes[k]
            if k in wanted:
                found[k] = cotangent
            if k in held or node.op.name in _STOPS:
                continue
            live = [i.id >= low and need[i.id - low] == 1 for i in node.inputs]
            if not any(live):
                continue
            graph.origin = Origin(node.loc, node.scope, node, max(node.order + 1, cotangent.order))
            for source, part, on in zip(node.inputs, _pull(caller, node, cotangent, live), live, strict=True):
                if part is not None and on:
                    _accumulate(graph, cotangents, source.id, part)
    return [found.get(t.id) for t in targets]


def _needed(graph: Graph, wanted: set[int], held: set[int], low: int, high: int) -> bytearray:
    """For the ids from low to high whether a derivative can flow to one of the wanted nodes."""
    need = bytearray(max(0, high - low + 1))
    for node in graph.nodes[low : high + 1]:
        k = node.id
        if k in wanted:
            need[k - low] = 1
            continue
        if node.type.dtype.kind != "f" or k in held or node.op.name in _STOPS:
            continue
        for source in carriers(node):
            if source.id >= low and need[source.id - low]:
                need[k - low] = 1
                break
    return need


def _pull(caller: str, node: Node, cotangent: Node, live: Sequence[bool]) -> tuple[Node | None, ...]:
    if node.op.vjp is None:
        arguments = [str(k) for k, on in enumerate(live) if on]
        raise GradientError(
            f"{caller}: {node.op.name} has no derivative rule with respect to argument {', '.join(arguments)}, needed "
            f"at order {node.order + 1}: {describe(node)}; wrap it in sg.stop_gradient, or write it with "
            "other operators"
        )
    parts = node.op.vjp(node, cotangent)
    for source, part in zip(node.inputs, parts, strict=True):
        if part is not None and part.type != source.type:
            raise GradientError(
                f"{caller}: the derivative rule of {describe(node)} gave {part.type} for an input of type {source.type}"
            )
    return parts


def _accumulate(graph: Graph, cotangents: dict[int, Node], k: int, part: Node) -> None:
    earlier = cotangents.get(k)
    cotangents[k] = part if earlier is None else graph.add(OPS["add"], (earlier, part))


@contextmanager
def building(graph: Graph) -> Generator[None, None, None]:
    """Let rules look through the nodes made inside, which no user holds yet; restore the origin at the end."""
    opaque, origin = graph.opaque, graph.origin
    graph.opaque = min(opaque, len(graph.nodes))
    try:
        yield
    finally:
        graph.opaque, graph.origin = opaque, origin


# Forward mode.


def _forward(
    caller: str, outputs: Sequence[Node], targets: Sequence[Node], seeds: Mapping[int, Node]
) -> list[Node | None]:
    """One tangent per output, None where it depends on no target."""
    if not outputs or not targets:
        return [None for _ in outputs]
    graph = targets[0].graph
    check_graph(caller, graph, [*targets, *outputs, *seeds.values()])
    wanted = {t.id for t in targets}
    low, high = min(wanted), max(o.id for o in outputs)
    need = _needed(graph, wanted, set(), low, high)
    tangents: dict[int, Node] = dict(seeds)
    with building(graph):
        for node in _between(outputs, need, low):
            if node.id in wanted:
                continue
            moves = [tangents.get(i.id) for i in node.inputs]
            order = max((t.order for t in moves if t is not None), default=0)
            graph.origin = Origin(node.loc, node.scope, node, max(node.order + 1, order))
            tangent = push(caller, node, moves)
            if tangent is not None:
                tangents[node.id] = tangent
    return [tangents.get(o.id) for o in outputs]


def _between(outputs: Sequence[Node], need: bytearray, low: int) -> list[Node]:
    """The nodes a derivative passes on its way to the outputs, in topological order."""
    stack = list(outputs)
    seen: dict[int, Node] = {}
    while stack:
        node = stack.pop()
        if node.id >= low and need[node.id - low] and node.id not in seen:
            seen[node.id] = node
            stack += carriers(node)
    return [seen[k] for k in sorted(seen)]


def push(caller: str, node: Node, tangents: Sequence[Node | None]) -> Node | None:
    """The tangent of a node from the tangents of its inputs; None stands for zero."""
    if all(t is None for t in tangents):
        return None
    if node.op.name == "custom":
        return custom_jvp(node, tangents)
    if node.op.name == "contract":
        return _push_product(node, tangents)
    floating = [i.type.dtype.is_float for i in node.inputs]
    complete = all(t is not None for t, f in zip(tangents, floating, strict=True) if f)
    if node.op.name == "pad" or (is_linear(node.op) and (complete or node.op.kind is not Kind.POINTWISE)):
        return _push_linear(node, tangents)
    if node.op.kind is Kind.POINTWISE:
        return _push_pointwise(caller, node, tangents)
    return _push_transposed(caller, node, tangents)


def is_linear(op: OpDef) -> bool:
    """Whether the output is jointly linear in the floating inputs."""
    return op.linear or op.name in _LINEAR


def _push_linear(node: Node, tangents: Sequence[Node | None]) -> Node:
    inputs = tuple(
        (t if t is not None else zeros_like(i)) if i.type.dtype.is_float else i
        for i, t in zip(node.inputs, tangents, strict=True)
    )
    attrs = node.attrs
    if node.op.name == "pad":
        # Padding is affine: the fill does not move.
        zero = Value(np.zeros((), node.type.dtype.np))
        attrs = tuple(zero if name == "value" else a for name, a in zip(node.op.attrs, attrs, strict=True))
    return node.graph.add(node.op, inputs, attrs)


def _push_product(node: Node, tangents: Sequence[Node | None]) -> Node | None:
    total: Node | None = None
    for k, tangent in enumerate(tangents):
        if tangent is None:
            continue
        inputs = (*node.inputs[:k], tangent, *node.inputs[k + 1 :])
        total = plus(total, node.graph.add(node.op, inputs, node.attrs))
    return total


def _push_pointwise(caller: str, node: Node, tangents: Sequence[Node | None]) -> Node | None:
    # The Jacobian of a pointwise operator is diagonal, so its transpose is itself.
    total: Node | None = None
    for k, tangent in enumerate(tangents):
        if tangent is None:
            continue
        live = [j == k for j in range(len(tangents))]
        if node.inputs[k].type != node.type:
            return _push_transposed(caller, node, tangents)
        part = _pull(caller, node, tangent, live)[k]
        if part is not None:
            total = plus(total, part)
    return total


def _push_transposed(caller: str, node: Node, tangents: Sequence[Node | None]) -> Node | None:
    """The tangent by differentiating the reverse rule, which is linear in its cotangent."""
    graph = node.graph
    cotangent = placeholder(graph, f"(cotangent of %{node.id})", node.type)
    live = [t is not None for t in tangents]
    pairs = zip(_pull(caller, node, cotangent, live), tangents, strict=True)
    seeds = [(part, t) for part, t in pairs if part is not None and t is not None]
    if not seeds:
        return None
    tangent = _reverse(caller, seeds, [cotangent], ())[0]
    if tangent is None or cotangent not in ancestors([tangent]):
        return tangent
    ones = full(graph, node.type.shape, node.type.dtype, 1)
    return graph.substitute([tangent], {cotangent: ones})[0]


def plus(a: Node | None, b: Node | None) -> Node | None:
    """The sum, None standing for zero."""
    if a is None or b is None:
        return a if b is None else b
    return a.graph.add(OPS["add"], (a, b))


# What callers pass.


def check_targets(caller: str, wrt: Node | Sequence[Node]) -> list[Node]:
    """The nodes to differentiate with respect to; GradientError for what has no derivative."""
    targets = one_or_more(wrt)
    for node in targets:
        if not isinstance(node, Node):
            raise GradientError(f"{caller}: derivatives are taken with respect to nodes, got {type(node).__name__}")
        if not node.dtype.is_float:
            raise GradientError(
                f"{caller}: no derivative with respect to {describe(node)}: {node.dtype} is not a floating type; "
                "take it with respect to a floating node, and convert with sg.astype after it"
            )
        if uniform_value(node) is not None or node.op.name == "const":
            raise GradientError(
                f"{caller}: {describe(node)} is a constant, and equal constants are one node; "
                "make it an input or a param to take derivatives with respect to it"
            )
    return cast("list[Node]", targets)


def check_output(caller: str, y: Node) -> None:
    """Raise unless a derivative of this can be taken."""
    if not isinstance(y, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise GradientError(f"{caller}: only nodes have derivatives, got {type(y).__name__}")
    if not y.dtype.is_float:
        raise GradientError(f"{caller}: {describe(y)} has dtype {y.dtype}; only floating nodes have derivatives")


def _check_count(caller: str, one: str, a: Sequence[Any], other: str, b: Sequence[Any]) -> None:
    for what, values in ((one, a), (other, b)):
        if not isinstance(values, Sequence):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise GradientError(f"{caller}: {what} are a list, got {type(values).__name__}")
    if len(a) != len(b):
        raise GradientError(f"{caller}: {len(a)} {one} but {len(b)} {other}; give one for each")


def check_graph(caller: str, graph: Graph, nodes: Sequence[Node]) -> None:
    """Raise unless the nodes belong to this graph."""
    for node in nodes:
        if node.graph is not graph:
            raise GraphError(
                f"{caller}: {describe(node)} belongs to {node.graph!r}, not to {graph!r}; build everything in one graph"
            )


def _match(caller: str, role: str, value: Any, like: Node) -> Node:
    """A cotangent or tangent as a node, of exactly the type it belongs to."""
    if not isinstance(value, Node):
        array = np.asarray(value)
        weak = isinstance(value, int | float) and not isinstance(value, bool)
        value = like.graph.const(array, like.dtype) if weak else like.graph.const(array)
    if value.type != Type(like.shape, like.dtype):
        raise GradientError(
            f"{caller}: the {role} of {describe(like)} must have shape {like.shape} and dtype {like.dtype}, "
            f"got {describe(value)}"
        )
    return value


def _settle(caller: str, found: Node | None, target: Node, outputs: Sequence[Node], disconnected: Disconnected) -> Any:
    if found is not None:
        return found
    if disconnected == "none":
        return None
    if disconnected == "zero":
        return zeros_like(target)
    raise GradientError(
        f"{caller}: {', '.join(map(describe, outputs))} does not depend on {describe(target)} in a differentiable way; "
        "pass disconnected='zero' for zeros or 'none' for None"
    )
