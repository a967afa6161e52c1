"""The checker of programs: types inferred again, order, membership, updates."""

from __future__ import annotations

from symgrad.errors import GraphError, SymgradError
from symgrad.graph import STATEFUL, Graph, Node, describe
from symgrad.program import Program


def verify(program: Program, *, after: str = "") -> None:
    """Check every node a program reaches, its inputs and its updates.

    Raises GraphError that names the first fault and, when given, the pass it was found after. A fault here is a
    mistake in symgrad or in a hand-made graph, never in the user's mathematics.
    """
    where = f" after {after}" if after else ""
    graph = program.graph
    for node in program.inputs:
        if node.op.name != "input":
            raise GraphError(f"verify{where}: program input {describe(node)} is not an input")
    for node in (*program.inputs, *program.roots, *(old for old, _ in program.updates)):
        if not _member(graph, node):
            raise GraphError(f"verify{where}: {describe(node)} is not a node of the program's graph")
    for old, new in program.updates:
        _check_update(old, new, where)
    targets = [old.id for old, _ in program.updates]
    if len(set(targets)) != len(targets):
        raise GraphError(f"verify{where}: a param or state has two updates")
    if program.output_names is not None and len(program.output_names) != len(program.outputs):
        raise GraphError(f"verify{where}: {len(program.outputs)} outputs, {len(program.output_names)} names")
    given = {node.id for node in program.inputs}
    for node in program.nodes:
        _check_node(graph, node, where)
    for node in program.inputs_read:
        if node.id not in given:
            raise GraphError(f"verify{where}: the outputs need {describe(node)}, which is not among the inputs")


def _check_node(graph: Graph, node: Node, where: str) -> None:
    if not _member(graph, node):
        raise GraphError(f"verify{where}: {describe(node)} has id {node.id}, which is another node of the graph")
    for source in node.inputs:
        if source.graph is not graph or source.id >= node.id:
            raise GraphError(f"verify{where}: {describe(node)} reads {describe(source)}, which is not before it")
    if len(node.attrs) != len(node.op.attrs):
        raise GraphError(f"verify{where}: {describe(node)} has attributes {node.attrs}, expected {node.op.attrs}")
    try:
        found = node.op.infer(*[i.type for i in node.inputs], **dict(zip(node.op.attrs, node.attrs, strict=True)))
    except SymgradError as error:
        raise GraphError(f"verify{where}: {describe(node)} is ill-typed: {error}") from error
    if found != node.type:
        raise GraphError(f"verify{where}: {describe(node)} should have type {found}")


def _check_update(old: Node, new: Node, where: str) -> None:
    if old.op.name not in STATEFUL:
        raise GraphError(f"verify{where}: update of {describe(old)}, which is neither param nor state")
    if old.type != new.type:
        raise GraphError(f"verify{where}: update of {describe(old)} with {describe(new)}: types differ")


def _member(graph: Graph, node: Node) -> bool:
    return node.graph is graph and node.id < len(graph.nodes) and graph.nodes[node.id] is node
