"""The forms in which contractions and softmax are computed, once no rule looks for those that they were written in.

Permutes and broadcasts around contractions become labels. Softmax takes the reciprocal of each sum once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.ops.build import apply, reshape_to, restore_axes
from symgrad.program import Program
from symgrad.simplify import Rules, again, sweep
from symgrad.stabilize import normalizer, puts_back, source_of


def final_forms(program: Program, rules: Rules) -> Program:
    """The program with contractions over the operands as they are stored, and softmax without a division per element.

    Permutes and broadcasts that contractions read or feed are absorbed into their labels. A permute of a result that
    others read too stays: the contraction is not computed twice. A broadcast is absorbed where its new axes are axes of
    the other operand and of the result. A sum over axes of extent 1 is no sum: their labels go. `rules` are those of
    the sweep; with none at all the program stays as it is.
    """
    nodes = program.nodes
    if not rules or not any(map(_is_candidate, nodes)):
        return program
    uses = Counter(source.id for node in nodes for source in node.inputs)
    uses.update(root.id for root in program.roots)

    def make(graph: Graph, node: Node, copies: Mapping[int, Node]) -> Node:
        if node.op.name == "contract":
            return _contraction(graph, node, copies)
        if node.op.name == "divide" and (axes := _softmax_axes(node)) is not None:
            top, bottom = (copies[i.id] for i in node.inputs)
            once = apply("reciprocal", source_of(bottom))
            return apply("multiply", top, restore_axes(once, axes, node.shape))
        if node.op.name != "permute":
            return again(graph, node, copies)
        product = copies[node.inputs[0].id]
        if product.op.name != "contract" or uses[node.inputs[0].id] != 1:
            return again(graph, node, copies)
        left, right, out = product.attrs
        return graph.add(product.op, product.inputs, (left, right, "".join(out[axis] for axis in node.attrs[0])))

    return sweep(program, rules, make)


def _softmax_axes(node: Node) -> tuple[int, ...] | None:
    """The axes of the sums where a quotient is exp(x - max(x)) / sum(exp(x - max(x))).

    The sums are at least 1 then, infinite or NaN, or all terms are 0, so that no reciprocal is rounded but once and NaN
    comes of the same: 0 / 0 is NaN, and so is 0 times the reciprocal of 0.
    """
    top, bottom = node.inputs
    axes = normalizer(bottom, top)
    if axes is None or top.op.name != "exp" or top.inputs[0].op.name != "subtract":
        return None
    x, shift = top.inputs[0].inputs
    largest = source_of(shift)
    if largest.op.name == "where":
        # Whatever is taken where the maximum is not finite: the sum is 0, infinite or NaN.
        test, largest, _ = largest.inputs
        if test.op.name != "isfinite" or test.inputs[0] is not largest:
            return None
    if largest.op.name != "max" or largest.inputs[0] is not x or largest.attrs[0] != axes:
        return None
    return axes if puts_back(shift, axes) else None


def _is_candidate(node: Node) -> bool:
    if node.op.name == "divide":
        return _softmax_axes(node) is not None
    if node.op.name == "contract":
        return any(i.op.name in ("permute", "broadcast") or 1 in i.shape for i in node.inputs)
    return node.op.name == "permute" and node.inputs[0].op.name == "contract"


def _contraction(graph: Graph, node: Node, copies: Mapping[int, Node]) -> Node:
    operands = [copies[i.id] for i in node.inputs]
    labels: list[str] = list(node.attrs[:2])
    out: str = node.attrs[2]
    for k in (0, 1):
        while True:
            absorbed = _absorb(operands[k], labels[k], labels[1 - k], out)
            if absorbed is None:
                break
            operands[k], labels[k] = absorbed
    for k in (0, 1):
        operands[k], labels[k] = _without_unit_sums(operands[k], labels[k], out)
    return graph.add(OPS["contract"], (operands[0], operands[1]), (labels[0], labels[1], out))


def _without_unit_sums(operand: Node, labels: str, out: str) -> tuple[Node, str]:
    """The operand without axes of extent 1 that are summed over."""
    kept = [axis for axis, label in enumerate(labels) if label in out or operand.shape[axis] != 1]
    return reshape_to(operand, tuple(operand.shape[a] for a in kept)), "".join(labels[a] for a in kept)


def _absorb(operand: Node, labels: str, other: str, out: str) -> tuple[Node, str] | None:
    """What an operand is a view of, with the labels of that; None where it is no such view."""
    if operand.op.name == "permute":
        label_of = dict(zip(operand.attrs[0], labels, strict=True))
        return operand.inputs[0], "".join(label_of[axis] for axis in range(len(labels)))
    if operand.op.name != "broadcast":
        return None
    source = operand.inputs[0]
    lead = operand.ndim - source.ndim
    stretched = [
        axis for axis, extent in enumerate(operand.shape) if axis < lead or source.shape[axis - lead] != extent
    ]
    if not all(labels[axis] in other and labels[axis] in out for axis in stretched):
        return None
    shape = tuple(extent for axis, extent in enumerate(operand.shape) if axis not in stretched)
    kept = "".join(label for axis, label in enumerate(labels) if axis not in stretched)
    return reshape_to(source, shape), kept
