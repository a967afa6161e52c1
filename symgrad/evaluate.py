"""The NumPy interpreter: the reference meaning of a graph. Slow, exact, no compilation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

import symgrad.operators  # noqa: F401  # pyright: ignore[reportUnusedImport] fills the operator table
from symgrad.arguments import node_list
from symgrad.bind import bind_attr, bind_shape, bind_sizes
from symgrad.errors import DTypeError, GraphError, ShapeError, SymgradError
from symgrad.graph import STATEFUL, Node, describe
from symgrad.ops.control import readers
from symgrad.types import Type, as_dtype

if TYPE_CHECKING:
    from symgrad.types import Array

Phase = Literal["train", "infer"]
_CHOICE = {"train": 0, "infer": 1}


@overload
def evaluate(
    nodes: Node,
    feeds: Mapping[Node, Any] | None = None,
    *,
    phase: Phase | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Array: ...
@overload
def evaluate(
    nodes: Sequence[Node],
    feeds: Mapping[Node, Any] | None = None,
    *,
    phase: Phase | None = None,
    sizes: Mapping[str, int] | None = None,
) -> list[Array]: ...
def evaluate(
    nodes: Node | Sequence[Node],
    feeds: Mapping[Node, Any] | None = None,
    *,
    phase: Phase | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Array | list[Array]:
    """The values of nodes for given values of inputs.

    `feeds` maps inputs, or any other nodes, to arrays of their data type and shape. Params and states that are not
    fed have their stored values. `phase` is "train" or "infer" (the default); `sizes` gives symbolic extents no input
    tells. The results are fresh arrays of exactly the type of the nodes.

    GraphError for an input without a value, ShapeError and DTypeError for arrays that do not fit, IndexError for an
    index out of range.

        sg.evaluate(sg.exp(x), {x: np.zeros(3, np.float32)})
    """
    if phase is not None and phase not in _CHOICE:
        raise GraphError(f"evaluate: phase must be 'train' or 'infer', got {phase!r}")
    outputs = node_list("evaluate", nodes)
    for node in outputs[1:]:
        if node.graph is not outputs[0].graph:
            raise GraphError(f"evaluate: {describe(outputs[0])} and {describe(node)} belong to different graphs")
    values = {node: _fed_array(node, value) for node, value in (feeds or {}).items()}
    bound = bind_sizes(list(values), list(values.values()), sizes)
    choice = _CHOICE[phase or "infer"]
    order = _order(outputs, values, choice)
    uses = _count_uses(order, outputs, values, choice)
    for node in order:
        if node in values:
            continue
        sources = readers(node, choice)
        values[node] = _value(node, [values[s] for s in sources], bound, choice)
        for source in sources:
            uses[source] -= 1
            if not uses[source]:
                del values[source]
    results = [np.array(values[node], copy=True, order="C") for node in outputs]
    return results[0] if isinstance(nodes, Node) else results


def _fed_array(node: Node, value: Any) -> Array:
    array = np.asarray(value)
    if not isinstance(value, np.ndarray | np.generic):
        # Python numbers and lists carry no data type of their own.
        array = np.asarray(value, node.dtype.np)
    if as_dtype(array.dtype) is not node.dtype:
        raise DTypeError(f"evaluate: {describe(node)} was given {array.dtype}; convert it with .astype('{node.dtype}')")
    # Views keep the byte order of their operand, and nodes have native data types.
    return array.astype(node.dtype.np, copy=False)


def _order(outputs: Sequence[Node], values: Mapping[Node, Array], choice: int) -> list[Node]:
    """The nodes that must be computed, operands first: nothing behind a fed node or a phase not chosen."""
    stack = list(outputs)
    seen = {n.id: n for n in stack}
    while stack:
        node = stack.pop()
        for source in () if node in values else readers(node, choice):
            if source.id not in seen:
                seen[source.id] = source
                stack.append(source)
    return [seen[k] for k in sorted(seen)]


def _count_uses(
    order: Sequence[Node], outputs: Sequence[Node], values: Mapping[Node, Array], choice: int
) -> dict[Node, int]:
    uses = dict.fromkeys(order, 0)
    for node in order:
        for source in () if node in values else readers(node, choice):
            uses[source] += 1
    for node in outputs:
        uses[node] += 1
    return uses


def _value(node: Node, operands: list[Array], sizes: Mapping[str, int], choice: int) -> Array:
    if node.op.name in STATEFUL:
        return node.value
    if node.op.name == "input":
        raise GraphError(f"evaluate: {describe(node)} has no value; give it in the feeds")
    if node.op.name in ("phase", "custom"):
        return operands[0]
    if node.op.ref is None:
        raise GraphError(f"evaluate: operator {node.op.name} has no reference meaning")
    attrs: dict[str, Any] = dict(zip(node.op.attrs, bind_attr(node.attrs, sizes), strict=True))
    expected = _checked_type(node, operands, attrs, sizes)
    result = np.asarray(node.op.ref(*operands, **attrs))
    if result.dtype != expected.dtype.np or result.shape != expected.shape:
        raise GraphError(
            f"{describe(node)}: the reference gave {result.dtype}{list(result.shape)}, expected {expected}"
        )
    return result


def _checked_type(node: Node, operands: list[Array], attrs: dict[str, Any], sizes: Mapping[str, int]) -> Type:
    """The type under concrete extents. What was assumed of symbolic ones when the node was built is checked here."""
    declared = Type(bind_shape(node.shape, sizes), node.dtype)
    if node.type.is_static and all(i.type.is_static for i in node.inputs):
        return declared
    kinds = [Type(a.shape, i.dtype) for a, i in zip(operands, node.inputs, strict=True)]
    try:
        found = node.op.infer(*kinds, **attrs) if node.op.name != "call" else declared
    except SymgradError as error:
        raise type(error)(f"{describe(node)}: {error}") from None
    if found != declared:
        raise ShapeError(f"{describe(node)}: with the extents of this call it is {found}, not {declared}")
    return declared
