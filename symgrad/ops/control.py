"""Gradient control, phases and sub-programs. All but `fence` are gone before code generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from symgrad.errors import GradientError, GraphError, ShapeError
from symgrad.graph import STATEFUL, Graph, Node, Origin, ancestors, describe
from symgrad.opdef import Kind, defop
from symgrad.ops.build import apply, constant_like, placeholder
from symgrad.ops.references import same_values
from symgrad.program import Program
from symgrad.types import Type

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def _same_type(x: Type) -> Type:
    return x


def _fence_type(x: Type, _after: Type) -> Type:
    return x


def _fence_values(x: Array, _after: Array) -> Array:
    return same_values(x)


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
    inner = placeholder(program.graph, f"cotangent of {program.name}", g.type)
    wrt = [i for i in program.inputs if i.dtype.is_float]
    gradients = grad(program.outputs[0], wrt, cotangent=inner, disconnected="zero")
    copies = inline(n.graph, (*program.inputs, inner), gradients, (*n.inputs, g))
    found = dict(zip(wrt, copies, strict=True))
    return tuple(found.get(i) for i in program.inputs)


def _custom_type(value: Type, *operands: Type, program: Program, count: int, wrt: tuple[int, ...], modes: str) -> Type:
    if modes not in ("vjp", "jvp", "both") or not 0 < count <= len(operands) or not value.dtype.is_float:
        raise GraphError(f"a derivative rule of modes {modes!r} for {count} of {len(operands)} operands")
    floating = [t for t in operands[:count] if t.dtype.is_float]
    tangents = floating if modes != "vjp" else []
    if tuple(i.type for i in program.inputs) != (*operands, value, value, *tangents):
        raise ShapeError(f"program {program.name} takes ({', '.join(str(i.type) for i in program.inputs)})")
    if wrt != tuple(sorted({k for k in wrt if 0 <= k < count})) or (modes == "jvp" and wrt):
        raise GraphError(f"a derivative rule with respect to operands {wrt} of {count}")
    given = [o.type for o in program.outputs]
    cotangents = [operands[k] for k in wrt]
    if given not in (cotangents, [*cotangents, value] if tangents else cotangents) or program.updates:
        raise ShapeError(f"program {program.name} gives ({', '.join(map(str, given))})")
    return value


def _custom_values(value: Array, *_operands: Array, **_attrs: object) -> Array:
    return same_values(value)


def carriers(node: Node) -> tuple[Node, ...]:
    """The inputs a derivative can flow to: not the value whose derivative a rule replaces, nor what only it reads."""
    return node.inputs[1 : 1 + node.attrs[1]] if node.op.name == "custom" else node.inputs


def readers(node: Node, choice: int) -> tuple[Node, ...]:
    """The inputs the value of a node depends on, in training (choice 0) or inference (1)."""
    if node.op.name == "phase":
        return (node.inputs[choice],)
    return node.inputs[:1] if node.op.name == "custom" else node.inputs


def _custom_vjp(n: Node, g: Node) -> Cotangents:
    from symgrad.grad import vjp

    program: Program
    program, count, wrt, modes = n.attrs
    operands = n.inputs[1:]
    inputs, outputs = program.inputs[: len(operands) + 2], program.outputs[: len(wrt)]
    if modes == "jvp":
        # Linear in the tangents: its transpose is its derivative with respect to them.
        tangents, cotangent = program.inputs[len(inputs) :], inputs[-1]
        wrt = [k for k in range(count) if operands[k].dtype.is_float]
        outputs = vjp(program.outputs, tangents, [cotangent] * len(program.outputs))
        _check_linear(n, outputs, tangents, "jvp", "tangents")
    copies = inline(n.graph, inputs, outputs, (*operands, n, g), n.graph.origin)
    found = dict(zip(wrt, copies, strict=True))
    return (None, *(found.get(k) for k in range(len(operands))))


def is_elementwise(n: Node) -> bool:
    """Whether the rule of a `custom` node gives every element a derivative by the same elements of its operands."""
    program: Program = n.attrs[0]
    if any(i.shape not in (n.shape, ()) for i in carriers(n)):
        return False
    fixed: set[int] = set()
    for node in ancestors(program.outputs):
        if node.op.name != "input" and all(i.id in fixed for i in node.inputs):
            fixed.add(node.id)
        elif node.op.kind is not Kind.POINTWISE and node.op.name not in ("input", "stop_gradient"):
            return False
    return all(o.shape == n.shape for o in program.outputs)


def custom_jvp(n: Node, tangents: Sequence[Node | None]) -> Node | None:
    """The tangent of a `custom` node from the tangents of its inputs; None stands for zero."""
    from symgrad.grad import vjp, zeros_like

    program: Program
    count: int
    wrt: tuple[int, ...]
    program, count, wrt, modes = n.attrs
    operands = n.inputs[1:]
    floating = [k for k in range(count) if operands[k].dtype.is_float]
    if all(tangents[1 + k] is None for k in (wrt if modes == "vjp" else floating)):
        return None
    moves = {k: t if (t := tangents[1 + k]) is not None else zeros_like(operands[k]) for k in floating}
    cotangent = program.inputs[len(operands) + 1]
    outer, inner = (*operands, n), program.inputs[: len(operands) + 1]
    if modes != "vjp":
        outputs = program.outputs[len(wrt) :]
        outer, inner = (*outer, *moves.values()), (*inner, *program.inputs[len(operands) + 2 :])
        found = inline(n.graph, inner, outputs, outer, n.graph.origin)
        return found[0] if found else None
    # Linear in the cotangent: differentiated with respect to it, it is its own transpose.
    graph = program.graph
    seeds = [placeholder(graph, f"tangent {k}", operands[k].type) for k in wrt]
    outputs = vjp(program.outputs, [cotangent], seeds)
    _check_linear(n, outputs, [cotangent], "vjp", "cotangent")
    return inline(n.graph, (*inner, *seeds), outputs, (*outer, *(moves[k] for k in wrt)), n.graph.origin)[0]


def _check_linear(n: Node, derivatives: Sequence[Node], wrt: Sequence[Node], rule: str, what: str) -> None:
    reached = set(ancestors(derivatives))
    if not reached.isdisjoint(wrt):
        other = "jvp" if rule == "vjp" else "vjp"
        raise GradientError(
            f"the {rule} rule of {describe(n)} is not linear in its {what}, so no {other} follows from it; "
            f"give a {other} rule too, or take the derivative in the other mode"
        )


def inline(
    graph: Graph,
    inputs: Sequence[Node],
    outputs: Sequence[Node],
    operands: Sequence[Node],
    origin: Origin | None = None,
) -> list[Node]:
    """Copies of the outputs in a graph, with the inputs they are functions of replaced by operands.

    With an origin the copies keep their places and have the rest from it.
    """
    copy_of = dict(zip(inputs, operands, strict=True))
    for node in ancestors(outputs):
        if node not in copy_of:
            made = origin or node
            with graph.derived_from(Origin(node.loc, made.scope, made.gradient_of, made.order)):
                copy_of[node] = graph.add(node.op, tuple([copy_of[i] for i in node.inputs]), node.attrs)
    return [copy_of[o] for o in outputs]


defop(
    "fence",
    Kind.VIEW,
    infer=_fence_type,
    vjp=lambda n, g: (g, None),
    ref=_fence_values,
    doc="The first input, computed after the second; what reads it is not shared with what reads the input itself.",
)
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
defop(
    "custom",
    Kind.CONTROL,
    attrs=("program", "count", "wrt", "modes"),
    infer=_custom_type,
    vjp=_custom_vjp,
    ref=_custom_values,
    doc="The first input, whose derivative with respect to `count` more inputs is what a program says.",
)
