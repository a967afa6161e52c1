"""The sweep: a program copied into a fresh graph, where rules, interning and constant folding simplify it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from symgrad.graph import NAMED, STATEFUL, Graph, Node, Origin, Rewrite
from symgrad.opdef import OPS
from symgrad.ops.control import inline
from symgrad.program import Program
from symgrad.record import replace
from symgrad.rulebook import choose_rules
from symgrad.types import Type

Rules: TypeAlias = Mapping[str, Sequence[Rewrite]]
Copies: TypeAlias = Mapping[int, Node]
Make: TypeAlias = Callable[[Graph, Node, Copies], Node]


def simplify(program: Program, rules: Rules | None = None) -> Program:
    """The program in a fresh graph with every rule applied, equal nodes made one and unreached nodes gone."""
    return sweep(program, choose_rules() if rules is None else rules)


def inline_calls(program: Program) -> Program:
    """The program with every call replaced by the nodes of what it calls; the program itself if it calls nothing."""
    while any(node.op.name == "call" for node in program.nodes):
        program = sweep(program, {}, _inlined)
    return program


def _inlined(graph: Graph, node: Node, copies: Copies) -> Node:
    if node.op.name != "call":
        return again(graph, node, copies)
    called: Program = node.attrs[0]
    return inline(graph, called.inputs, called.outputs, [copies[i.id] for i in node.inputs])[0]


def again(graph: Graph, node: Node, copies: Copies) -> Node:
    """The same operator in another graph."""
    inputs = tuple([copies[i.id] for i in node.inputs])
    for old, new in zip(node.inputs, inputs, strict=True):
        if new.type is not old.type:
            return graph.add(node.op, inputs, node.attrs)
    return graph.add(node.op, inputs, node.attrs, node.type)


def sweep(
    program: Program,
    rules: Rules,
    make: Make = again,
    *,
    nodes: Iterable[Node] | None = None,
    bind: Callable[[Node], Type] | None = None,
) -> Program:
    """The program copied into a fresh graph with these rules, each node built by `make` from earlier copies.

    What the roots do not reach is left behind; inputs stay, in their order, used or not. Params and states share
    their storage with the source. Copies keep place, scope and order of derivative; `gradient_of` is the copy of the
    node it named, or None where that is left behind, so that nothing holds the old graph. `nodes` are the nodes to
    copy, in topological order, where `make` does not need all the roots reach; `bind` gives the types of named nodes.
    """
    source = program.graph
    graph = Graph(rules=rules, seed=source.seed)
    graph.opaque = 0
    copies: dict[int, Node] = {}
    order = program.nodes if nodes is None else list(nodes)
    named = {n.id: n for n in order if n.op.name in NAMED}
    named.update({old.id: old for old, _ in program.updates})
    for node in (*program.inputs, *(named[k] for k in sorted(named))):
        if node.id not in copies:
            copies[node.id] = _copy_named(graph, node, bind)
    origin, key = Origin(None), None
    for node in order:
        if node.id in copies:
            continue
        forward = node.gradient_of
        now = (node.loc, node.scope, None if forward is None else forward.id, node.order)
        if now != key:
            copied = None if forward is None or forward.graph is not source else copies.get(forward.id)
            origin, key = Origin(node.loc, node.scope, copied, node.order), now
        graph.origin = origin
        copies[node.id] = make(graph, node, copies)
    graph.origin = None
    return replace(
        program,
        graph=graph,
        inputs=tuple(copies[i.id] for i in program.inputs),
        outputs=tuple(copies[o.id] for o in program.outputs),
        updates=tuple((copies[old.id], copies[new.id]) for old, new in program.updates),
    )


def _copy_named(graph: Graph, node: Node, bind: Callable[[Node], Type] | None) -> Node:
    name, _, dtype = node.attrs
    kind = node.type if bind is None else bind(node)
    graph.origin = Origin(node.loc, node.scope)
    copy = graph.add(OPS[node.op.name], (), (name, kind.shape, dtype), kind)
    graph.adopt(name, copy, node.graph.storage[name] if node.op.name in STATEFUL else None)
    return copy
