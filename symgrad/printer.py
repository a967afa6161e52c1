"""The text form of graphs and programs: one node per line, with its type and the user's line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from symgrad.graph import Node


def reference(node: Node) -> str:
    """How other lines refer to a node: by its name, else by its number."""
    return node.name or f"%{node.id}"


def attrs_text(node: Node) -> str:
    """The attributes as `name=value`, without those the rest of the line tells already."""
    hidden = ("name", "shape", "dtype") if not node.inputs else ()
    pairs = zip(node.op.attrs, node.attrs, strict=True)
    return ", ".join(f"{name}={_value_text(value)}" for name, value in pairs if name not in hidden)


def _value_text(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_value_text, value)) + ")"  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    # A program or data type goes by its name: an attribute stays on the line of its node.
    name = getattr(value, "name", None)
    return name if isinstance(name, str) else str(value)


def node_line(node: Node) -> str:
    """`%12 = add(%3, b1): float32[batch, 128]  # train.py:14`, and for a derivative what it is the derivative of."""
    arguments = [reference(i) for i in node.inputs]
    if attrs := attrs_text(node):
        arguments.append(attrs)
    line = f"{reference(node)} = {node.op.name}({', '.join(arguments)}): {node.type}"
    notes = [str(node.loc)] if node.loc is not None else []
    if node.gradient_of is not None:
        notes.append(f"order {node.order} derivative of {reference(node.gradient_of)}")
    return f"{line}  # {'; '.join(notes)}" if notes else line


def nodes_text(nodes: Iterable[Node]) -> str:
    """One line per node, in the given order."""
    return "\n".join(map(node_line, nodes))
