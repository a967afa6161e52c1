"""Contractions over the operands as they are stored: permutes and broadcasts around them become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.ops.build import reshape_to
from symgrad.program import Program
from symgrad.simplify import Rules, again, sweep


def contract_forms(program: Program, rules: Rules) -> Program:
    """The program with the permutes and broadcasts that contractions read or feed absorbed into their labels.

    A permute of a result that others read too stays: the contraction is not computed twice. A broadcast is absorbed
    where its new axes are axes of the other operand and of the result. A sum over axes of extent 1 is no sum: their
    labels go. `rules` are those of the sweep; with none at all the program stays as it is.
    """
    nodes = program.nodes
    if not rules or not any(map(_is_candidate, nodes)):
        return program
    uses = Counter(source.id for node in nodes for source in node.inputs)
    uses.update(root.id for root in program.roots)

    def make(graph: Graph, node: Node, copies: Mapping[int, Node]) -> Node:
        if node.op.name == "contract":
            return _contraction(graph, node, copies)
        if node.op.name != "permute":
            return again(graph, node, copies)
        product = copies[node.inputs[0].id]
        if product.op.name != "contract" or uses[node.inputs[0].id] != 1:
            return again(graph, node, copies)
        left, right, out = product.attrs
        return graph.add(product.op, product.inputs, (left, right, "".join(out[axis] for axis in node.attrs[0])))

    return sweep(program, rules, make)


def _is_candidate(node: Node) -> bool:
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
