"""Functions whose intermediate values are computed again in the backward pass instead of being kept for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from symgrad.custom import closed, function_values, joined, split_like
from symgrad.errors import GradientError
from symgrad.grad import jvp, vjp
from symgrad.graph import Operand
from symgrad.operators import as_node, graph_of
from symgrad.ops.build import apply, placeholder
from symgrad.ops.control import inline
from symgrad.program import Program

Made: TypeAlias = Callable[..., Any]


def checkpoint(f: Callable[..., Any]) -> Made:
    """The function `f` of nodes, with a backward pass that computes the inside of `f` again from its operands.

    What `f` computes on the way to its result is then not kept in memory between the forward and the backward pass;
    the price is one more evaluation of `f` per derivative. Values, derivatives of every order and mode are those of
    `f` itself. Operands are the arguments and whatever else `f` reads, such as params; nodes that were built before
    the call are operands too. Arguments by keyword are handed on as they are. `f` returns a node or a tuple of nodes
    of one floating dtype. Forward mode keeps nothing, so there it changes nothing. Chen, Xu, Zhang and Guestrin,
    "Training Deep Nets with Sublinear Memory Cost" (2016).

    Paths of derivatives lead through the operands only: a node that `f` built inside counts as disconnected outside.
    Where something inside has a derivative in reverse mode only, as `sg.grad_clip`, so has the whole.

    Raises GradientError where `f` returns anything else, or reads nothing that is floating.

        for w in weights:
            h = sg.checkpoint(lambda h: sg.nn.gelu(h @ w))(h)
    """

    @functools.wraps(f)
    def function(*arguments: Operand, **options: Any) -> Any:
        first = graph_of("checkpoint", *arguments)
        xs = [as_node(first, a) for a in arguments]
        mark = len(first.graph.nodes)
        returned: Any = f(*xs, **options)
        several = isinstance(returned, tuple | list)
        values = function_values("checkpoint", returned)
        value = joined(values) if several else values[0]
        body, operands = closed(getattr(f, "__name__", "checkpoint"), [value], xs, (), mark)
        floating = tuple(k for k, operand in enumerate(operands) if operand.dtype.is_float)
        if not floating:
            raise GradientError("checkpoint: the function reads nothing that is floating, so it has no derivative")
        program, modes = _rules(body, floating)
        made = apply("custom", value, *operands, program=program, count=len(operands), wrt=floating, modes=modes)
        return split_like(made, values) if several else made

    return function


def _rules(body: Program, floating: Sequence[int]) -> tuple[Program, str]:
    """Cotangents and the tangent of a value as functions of operands, the value, its cotangent, and tangents.

    And the modes there are rules for: "both", or "vjp" where there is no tangent. The value is the one output of a
    program of the operands, whose graph the rules are built in.

    The reverse rule reads its operands behind fences: what it computes comes after the cotangent, and is not shared
    with the forward pass.
    """
    graph, inputs, (value,) = body.graph, body.inputs, body.outputs
    output, cotangent = placeholder(graph, "output", value.type), placeholder(graph, "cotangent", value.type)
    tangents = [placeholder(graph, f"tangent {k}", inputs[k].type) for k in floating]
    fenced = [apply("fence", i, cotangent) for i in inputs]
    reverse = vjp(inline(graph, inputs, [value], fenced), [fenced[k] for k in floating], [cotangent])
    given, name = (*inputs, output, cotangent), body.name
    try:
        forward = jvp([value], [inputs[k] for k in floating], tangents)
    except GradientError:
        # A rule inside that is not linear in its cotangent: whoever asks for the tangent of the whole is told so.
        return Program(graph, given, tuple(reverse), name=name), "vjp"
    return Program(graph, (*given, *tangents), (*reverse, *forward), name=name), "both"
