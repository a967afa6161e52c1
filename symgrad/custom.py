"""Derivative rules of the user's own: functions with a rule in graph operators, and cotangents rewritten on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast, overload

from symgrad.errors import GradientError
from symgrad.functions import concat, maximum, minimum
from symgrad.graph import NAMED, Graph, Node, Operand, Origin, describe
from symgrad.opdef import Kind
from symgrad.operators import as_node, graph_of
from symgrad.ops.build import apply, broadcast_to, placeholder, reshape_to, slice_axis
from symgrad.ops.control import carriers
from symgrad.program import Program
from symgrad.types import Extent, Type, size_of

Rule: TypeAlias = Callable[..., Any]
Made: TypeAlias = Callable[..., Any]


@overload
def custom_gradient(f: Callable[..., Any], *, vjp: Rule | None = None, jvp: Rule | None = None) -> Made: ...
@overload
def custom_gradient(f: None = None, *, vjp: Rule | None = None, jvp: Rule | None = None) -> Callable[[Rule], Made]: ...
def custom_gradient(
    f: Callable[..., Any] | None = None, *, vjp: Rule | None = None, jvp: Rule | None = None
) -> Made | Callable[[Rule], Made]:
    """The function `f` of nodes with a derivative rule of your own, written in graph operators.

    `vjp(inputs, output, cotangent)` gives one cotangent per input, of its shape and dtype, or None for none;
    `jvp(inputs, output, tangents)` gives the tangent of the output from one tangent per input, None for inputs that
    are not floating. One rule is enough: it is linear in the cotangent or the tangents, so that the other mode is its
    transpose. The rules are differentiated in turn for higher orders, and `output` in a rule has the custom derivative
    again. Without either, `f` returns its value and the reverse rule, a function of the cotangent alone. `f` may return
    a tuple of nodes of one floating dtype; `output`, and the cotangent or the tangent, are then tuples too.

    The rules are read at each call of the function, so that mistakes in them are errors there. They may use other
    nodes of the graph. What `f` itself reads must be among its arguments, constant or behind `sg.stop_gradient`.
    In compiled code nothing is left of it. With `f` left out it is a decorator.

    Raises GradientError for rules that do not fit.

        smooth_step = sg.custom_gradient(lambda x: sg.sign(x), vjp=lambda inputs, output, c: (c * (1 - output**2),))
    """
    if f is None:
        return functools.partial(custom_gradient, vjp=vjp, jvp=jvp)

    @functools.wraps(f)
    def function(*arguments: Operand) -> Any:
        return _call("custom_gradient", f, arguments, vjp, jvp)

    return function


def on_gradient(node: Node, f: Callable[[Node], Node | None]) -> Node:
    """The node itself, with the cotangent that arrives at it replaced by `f` of it; None stops it.

    `f` is read at once, and gives a node of the shape and dtype of its argument. Derivatives of higher order
    differentiate what it gives. Where `f` is not linear, forward mode has no meaning and raises GradientError.

        h = sg.on_gradient(h, lambda c: c / sg.maximum(1.0, sg.sqrt(sg.sum(c * c))))
    """

    def rule(_inputs: Any, _output: Any, cotangent: Node) -> tuple[Node | None]:
        return (f(cotangent),)

    if not callable(f):
        raise GradientError(f"on_gradient: the second argument is a function of the cotangent, got {f!r}")
    return cast("Node", _call("on_gradient", _same, (node,), rule, None))


def grad_scale(x: Node, s: Operand) -> Node:
    """x itself, with the cotangent that arrives at it multiplied by `s`, in every mode; -1 reverses gradients."""
    return on_gradient(x, lambda cotangent: cotangent * s)


def grad_clip(x: Node, limit: Operand) -> Node:
    """x itself, with each element of the cotangent that arrives at it clipped to [-limit, limit]; reverse mode only."""
    if isinstance(limit, int | float) and not limit >= 0:
        raise GradientError(f"grad_clip: the limit is at least 0, got {limit!r}")
    return on_gradient(x, lambda cotangent: maximum(minimum(cotangent, limit), 0 - as_node(cotangent, limit)))


def _same(x: Node) -> Node:
    return x


def _call(caller: str, f: Rule, arguments: Sequence[Operand], vjp: Rule | None, jvp: Rule | None) -> Any:
    first = graph_of(caller, *arguments)
    graph = first.graph
    xs = [as_node(first, a) for a in arguments]
    mark = len(graph.nodes)
    returned: Any = f(*xs)
    if vjp is None and jvp is None:
        pair = cast("tuple[Any, ...]", returned)
        if not isinstance(returned, tuple) or len(pair) != 2 or not callable(pair[1]):
            raise GradientError(f"{caller}: give vjp= or jvp=, or a function that returns its value and the vjp rule")
        returned, rule = pair
    else:
        rule = None
    several = isinstance(returned, tuple | list)
    values = function_values(caller, returned)
    _check_closed(caller, values, xs)

    def unpack(node: Node) -> Any:
        return split_like(node, values) if several else node

    # New names make new nodes, so that what a rule makes of them is new too, and told from what it captures.
    # Several outputs are one vector, so that one rule sees all their cotangents.
    value = joined(values) if several else values[0]
    kind = value.type
    output = placeholder(graph, f"(output of {mark}: %{value.id})", kind)
    cotangent = placeholder(graph, f"(cotangent of {mark}: %{value.id})", kind)
    tangents = [
        placeholder(graph, f"(tangent of {mark}: input {k})", x.type) if x.dtype.is_float else None
        for k, x in enumerate(xs)
    ]
    moving = [t for t in tangents if t is not None]
    if not moving:
        raise GradientError(f"{caller}: no input is floating, so there is no derivative")
    outer, given = unpack(output), unpack(cotangent)
    outputs: list[Node] = []
    wrt: tuple[int, ...] = ()
    if rule is not None or vjp is not None:
        if rule is not None:
            parts = rule(*given) if several else rule(given)
        else:
            parts = cast("Rule", vjp)(tuple(xs), outer, given)
        found = _fitting(caller, "the vjp rule", "cotangents", parts, [x.type for x in xs], graph)
        wrt = tuple(k for k, part in enumerate(found) if part is not None)
        outputs += [part for part in found if part is not None]
    if jvp is not None:
        parts = jvp(tuple(xs), outer, tuple(tangents))
        kinds = [v.type for v in values]
        found = _fitting(caller, "the jvp rule", "tangents", parts, kinds, graph)
        if any(t is not None for t in found):
            whole = [t if t is not None else _zeros(graph, k) for t, k in zip(found, kinds, strict=True)]
            outputs.append(joined(whole) if several else whole[0])
    modes = "vjp" if jvp is None else "jvp" if vjp is None else "both"
    last = [output, cotangent, *(moving if modes != "vjp" else [])]
    program, operands = closed(getattr(f, "__name__", caller), outputs, xs, last, mark)
    made = apply("custom", value, *operands, program=program, count=len(xs), wrt=wrt, modes=modes)
    return unpack(made)


def joined(values: Sequence[Node]) -> Node:
    """The elements of several nodes as one vector."""
    return concat([reshape_to(v, (size_of(v.shape),)) for v in values])


def split_like(node: Node, values: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes that were joined to a vector, from one of its length."""
    start: Extent = 0
    parts: list[Node] = []
    for value in values:
        stop = start + size_of(value.shape)
        parts.append(reshape_to(slice_axis(node, 0, start, stop), value.shape))
        start = stop
    return tuple(parts)


def function_values(caller: str, returned: Any) -> list[Node]:
    """What a function returned as a list of nodes of one floating dtype; GradientError for anything else."""
    values: list[Any] = list(cast("Sequence[Any]", returned)) if isinstance(returned, tuple | list) else [returned]
    for value in values:
        if not isinstance(value, Node) or not value.dtype.is_float:
            got = describe(value) if isinstance(value, Node) else type(value).__name__
            raise GradientError(f"{caller}: the function returns a floating node or a tuple of them, got {got}")
    if len({v.dtype for v in values}) != 1:
        raise GradientError(
            f"{caller}: the outputs of one function have one dtype, got {[str(v.type) for v in values]}"
        )
    return values


def _check_closed(caller: str, values: Sequence[Node], xs: Sequence[Node]) -> None:
    """GradientError where a function reads a floating leaf that is not an argument: no rule has its derivative."""
    seen = {x.id for x in xs}
    stack = list(values)
    while stack:
        node = stack.pop()
        if node.id in seen or not node.dtype.is_float or node.op.name == "stop_gradient":
            continue
        seen.add(node.id)
        if node.op.name in NAMED:
            raise GradientError(
                f"{caller}: the function reads {describe(node)}, which is not one of its arguments, so its derivative "
                "would be lost; pass it as an argument, or wrap it in sg.stop_gradient"
            )
        stack += carriers(node)


def _zeros(graph: Graph, kind: Type) -> Node:
    return broadcast_to(graph.const(0, kind.dtype), kind.shape)


def _fitting(
    caller: str, rule: str, what: str, returned: Any, kinds: Sequence[Type], graph: Graph
) -> list[Node | None]:
    """What a rule returned, one node of the right type or None for each type; numbers are lifted."""
    parts: list[Any] = list(cast("Sequence[Any]", returned)) if isinstance(returned, tuple | list) else [returned]
    if len(parts) != len(kinds):
        raise GradientError(f"{caller}: {rule} gives {len(parts)} {what}, expected {len(kinds)}")
    found: list[Node | None] = []
    for k, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        if part is None:
            found.append(None)
            continue
        node = part
        if isinstance(part, int | float) and kind.dtype.is_float:
            node = broadcast_to(graph.const(part, kind.dtype), kind.shape)
        if not isinstance(node, Node) or node.type != kind or not kind.dtype.is_float:
            got = describe(node) if isinstance(node, Node) else type(node).__name__
            expected = kind if kind.dtype.is_float else "None, because it is not floating"
            raise GradientError(f"{caller}: {rule} gives {got} for number {k} of the {what}, expected {expected}")
        if node.graph is not graph:
            raise GradientError(f"{caller}: {rule} gives {describe(node)} of another graph")
        found.append(node)
    return found


def _capture(
    outputs: Sequence[Node], xs: Sequence[Node], mark: int, bound: Sequence[Node]
) -> tuple[list[Node], list[Node]]:
    """What a function that began at node number `mark` reads: its arguments `xs` and captured nodes; and its inside.

    Captured are inputs, params and states, and other nodes that are older than the function.
    """
    known = {n.id for n in (*xs, *bound)}
    captured: dict[int, Node] = {}
    inside: dict[int, Node] = {}
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node.id in known or node.id in captured or node.id in inside:
            continue
        source = node.op.kind is Kind.SOURCE
        if node.op.name in NAMED or (node.id < mark and not source):
            captured[node.id] = node
            continue
        inside[node.id] = node
        stack += node.inputs
    return [*xs, *(captured[k] for k in sorted(captured))], [inside[k] for k in sorted(inside)]


def closed(
    name: str, outputs: Sequence[Node], xs: Sequence[Node], last: Sequence[Node], mark: int
) -> tuple[Program, list[Node]]:
    """The outputs as a program in a graph of its own, a function of operands and of `last`; and the operands.

    Operands are `xs` and the older nodes that the outputs read; `last` are an output, its cotangent, and tangents, or
    nothing. A program can be copied and substituted into, where a Python function would hold on to the nodes it was
    read with.
    """
    operands, inside = _capture(outputs, xs, mark, last)
    graph = Graph()
    copy_of: dict[int, Node] = {}
    inputs: list[Node] = []
    labels = ["output", "cotangent", *[f"tangent {k}" for k in range(len(last) - 2)]][: len(last)]
    labels = [*[f"input {k}" for k in range(len(operands))], *labels]
    for label, node in zip(labels, (*operands, *last), strict=True):
        inputs.append(placeholder(graph, label, node.type))
        copy_of[node.id] = inputs[-1]
    for node in inside:
        with graph.derived_from(Origin(node.loc, node.scope)):
            copy_of[node.id] = graph.add(node.op, tuple([copy_of[i.id] for i in node.inputs]), node.attrs)
    return Program(graph, tuple(inputs), tuple(copy_of[o.id] for o in outputs), name=name), operands
