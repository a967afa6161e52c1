"""Gradient control, phases and sub-programs. Gone before code generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from symgrad.errors import GraphError, ShapeError
from symgrad.graph import STATEFUL, Graph, Node, Origin, ancestors
from symgrad.opdef import OPS, Kind, defop
from symgrad.ops.build import apply, constant_like
from symgrad.ops.references import same_values
from symgrad.program import Program
from symgrad.types import Type

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def _same_type(x: Type) -> Type:
    return x


def _phase_type(train: Type, infer: Type) -> Type:
    if train != infer:
        raise ShapeError(f"the train value {train} and the infer value {infer} differ in type")
    return train


def _phase_vjp(n: Node, g: Node) -> Cotangents:
    zero = constant_like(g, 0)
    return (apply("phase", g, zero), apply("phase", zero, g))


def _call_type(*operands: Type, program: Program) -> Type:
    expected = tuple(i.type for i in program.inputs)
    if operands != expected:
        raise ShapeError(f"program {program.name} takes ({', '.join(map(str, expected))})")
    if len(program.outputs) != 1 or program.updates:
        raise GraphError(f"program {program.name} must have exactly one output and no updates")
    inputs = set(program.inputs)
    for node in program.nodes:
        if node.op.name in STATEFUL or (node.op.name == "input" and node not in inputs):
            raise GraphError(f"program {program.name} reads {node.name!r}, which is not one of its inputs; make it one")
    return program.outputs[0].type


def _call_values(*arrays: Array, program: Program) -> Array:
    from symgrad.evaluate import evaluate

    return evaluate(program.outputs[0], dict(zip(program.inputs, arrays, strict=True)))


def _call_vjp(n: Node, g: Node) -> Cotangents:
    from symgrad.grad import grad

    # Differentiated where the inputs are independent, then copied: the operands of the call may depend on each other.
    program: Program = n.attrs[0]
    inner = program.graph.add(OPS["input"], (), (f"cotangent of {program.name}", g.shape, g.dtype))
    wrt = [i for i in program.inputs if i.dtype.is_float]
    gradients = grad(program.outputs[0], wrt, cotangent=inner, disconnected="zero")
    copies = inline(n.graph, (*program.inputs, inner), gradients, (*n.inputs, g))
    found = dict(zip(wrt, copies, strict=True))
    return tuple(found.get(i) for i in program.inputs)


def inline(graph: Graph, inputs: Sequence[Node], outputs: Sequence[Node], operands: Sequence[Node]) -> list[Node]:
    """Copies of the outputs in a graph, with the inputs they are functions of replaced by operands."""
    copy_of = dict(zip(inputs, operands, strict=True))
    for node in ancestors(outputs):
        if node not in copy_of:
            with graph.derived_from(Origin(node.loc, node.scope, node.gradient_of, node.order)):
                copy_of[node] = graph.add(node.op, tuple([copy_of[i] for i in node.inputs]), node.attrs)
    return [copy_of[o] for o in outputs]


defop(
    "stop_gradient",
    Kind.CONTROL,
    infer=_same_type,
    vjp=lambda n, g: (None,),
    ref=same_values,
    doc="The input, as a constant to every derivative.",
)
defop(
    "phase",
    Kind.CONTROL,
    infer=_phase_type,
    vjp=_phase_vjp,
    linear=True,
    doc="The first input in training, the second in inference.",
)
defop(
    "call",
    Kind.CONTROL,
    attrs=("program",),
    infer=_call_type,
    vjp=_call_vjp,
    ref=_call_values,
    doc="The one output of a program at these inputs.",
)
