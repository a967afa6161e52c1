"""Which groups compute alike: equal layers of a model are lowered and scheduled once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple

from codegen.access import is_leaf
from codegen.group import Group
from symgrad.graph import NAMED, Node, attr_key


class Likeness(NamedTuple):
    """What the kernel of a group depends on, and nothing else of the program.

    Groups with equal keys have the same kernel, with the nodes at the same places of `nodes` as its parameters.
    `stored` are the ids of those of the nodes that kernels store.
    """

    key: Hashable
    nodes: tuple[Node, ...]
    stored: set[int]


def likeness(group: Group, stored: set[int]) -> Likeness:
    """The likeness of a group, given the ids of all nodes that kernels store."""
    members = {n.id for n in group.nodes}
    found: dict[int, Node] = {}
    stack = list(group.nodes)
    while stack:
        node = stack.pop()
        if node.id in found:
            continue
        found[node.id] = node
        if node.id in members or not (is_leaf(node) or node.id in stored):
            stack += node.inputs
    nodes = tuple([found[k] for k in sorted(found)])
    place = {node.id: k for k, node in enumerate(nodes)}
    own = {k for k in found if k in stored}
    key = (
        group.anchor,
        group.domain,
        group.axes,
        tuple([place[n.id] for n in group.nodes]),
        tuple([place[n.id] for n in group.outputs]),
        tuple([_element(n, n.id in members, n.id in own, place) for n in nodes]),
    )
    return Likeness(key, nodes, own)


def _element(node: Node, inside: bool, stored: bool, place: dict[int, int]) -> Hashable:
    """What a node is: of one that is read from memory, only its type counts."""
    if not inside and (stored or is_leaf(node)):
        return node.type, stored
    attrs = attr_key(node.attrs if node.op.name not in NAMED else node.attrs[1:])
    return node.op.name, attrs, node.type, tuple([place[i.id] for i in node.inputs]), inside, stored
