"""States that composites keep on their own: named for the whole graph, made when first needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from symgrad.errors import GraphError
from symgrad.graph import Graph, Node, describe
from symgrad.opdef import OPS
from symgrad.storage import Storage
from symgrad.types import Type, as_dtype

if TYPE_CHECKING:
    from symgrad.types import Array


def graph_state(graph: Graph, name: str, value: Array) -> Node:
    """The state with this name, made with the value when there is none. Scopes do not prefix the name.

    GraphError when the name is taken by something else or by a state of another type.
    """
    dtype = as_dtype(value.dtype)
    assert dtype is not None
    wanted = Type(value.shape, dtype)
    found = graph.find(name)
    if found is None:
        node = graph.add(OPS["state"], (), (name, wanted.shape, wanted.dtype))
        graph.adopt(name, node, Storage(value, graph.lock))
        return node
    if found.op.name != "state" or found.type != wanted:
        raise GraphError(f"the name {name!r} is needed for a state {wanted}, but names {describe(found)}; rename that")
    return found
