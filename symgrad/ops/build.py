"""How derivative rules make nodes: operators applied to operands that fit already, and the guarded product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.storage import Literal
from symgrad.types import DType, Extent, Shape, Type

if TYPE_CHECKING:
    from symgrad.types import Array

_COPIES = frozenset(("broadcast", "reshape", "permute", "flip"))


def apply(name: str, *inputs: Node, **attrs: Any) -> Node:
    """The operator on these nodes, with nothing lifted, promoted or broadcast."""
    op = OPS[name]
    return inputs[0].graph.add(op, inputs, tuple([attrs[a] for a in op.attrs]))


def source(graph: Graph, name: str, **attrs: Any) -> Node:
    """An operator without inputs."""
    op = OPS[name]
    return graph.add(op, (), tuple([attrs[a] for a in op.attrs]))


def placeholder(graph: Graph, name: str, kind: Type) -> Node:
    """A source that no function declares: it stands for a value until what depends on it is rebuilt."""
    return graph.add(OPS["input"], (), (name, kind.shape, kind.dtype))


def scalar_literal(dtype: DType, value: float) -> Literal:
    """A 0-dimensional literal of this data type."""
    return Literal(np.asarray(value, dtype.np))


def scalar_const(graph: Graph, dtype: DType, value: float) -> Node:
    """A 0-dimensional constant of this data type."""
    return source(graph, "const", value=scalar_literal(dtype, value))


def broadcast_to(node: Node, shape: Shape) -> Node:
    """The node broadcast to this shape; the node itself when it has the shape already."""
    return node if node.shape == shape else apply("broadcast", node, shape=shape)


def constant_like(node: Node, value: float) -> Node:
    """A scalar of the node's data type, broadcast to its shape."""
    return broadcast_to(scalar_const(node.graph, node.dtype, value), node.shape)


def filled(graph: Graph, shape: Shape, dtype: DType, value: float) -> Node:
    """A scalar broadcast to this shape."""
    return broadcast_to(scalar_const(graph, dtype, value), shape)


def reshape_to(node: Node, shape: Shape) -> Node:
    """The node with this shape; the node itself when it has the shape already."""
    return node if node.shape == shape else apply("reshape", node, shape=shape)


def permute_to(node: Node, axes: Sequence[int]) -> Node:
    """The node with its axes in this order; the node itself when that is the order they are in."""
    axes = tuple(axes)
    return node if axes == tuple(range(node.ndim)) else apply("permute", node, axes=axes)


def inverse_order(axes: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes this one."""
    return tuple(sorted(range(len(axes)), key=lambda k: axes[k]))


def restore_axes(node: Node, axes: Sequence[int], shape: Shape) -> Node:
    """A node without these axes, broadcast along them to the full shape."""
    kept: Shape = tuple(1 if k in axes else extent for k, extent in enumerate(shape))
    return broadcast_to(reshape_to(node, kept), shape)


def slice_axis(node: Node, axis: int, start: Extent, stop: Extent, step: int = 1) -> Node:
    """The elements start, start + step, … before stop along one axis."""
    if start == 0 and stop == node.shape[axis] and step == 1:
        return node
    starts, stops, steps = [0] * node.ndim, list(node.shape), [1] * node.ndim
    starts[axis], stops[axis], steps[axis] = start, stop, step  # pyright: ignore[reportCallIssue, reportArgumentType] extents
    return apply("slice", node, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def pad_axis(node: Node, axis: int, low: Extent, high: Extent, value: float = 0) -> Node:
    """The node with a fill before and after it along one axis."""
    if low == 0 and high == 0:
        return node
    lows: list[Extent] = [0] * node.ndim
    highs: list[Extent] = [0] * node.ndim
    lows[axis], highs[axis] = low, high
    return apply("pad", node, low=tuple(lows), high=tuple(highs), value=scalar_literal(node.dtype, value))


def uniform_value(node: Node) -> float | int | bool | None:
    """The one value of a constant whose elements are all equal, seen through views; None for every other node."""
    while node.op.name in _COPIES:
        node = node.inputs[0]
    if node.op.name != "const":
        return None
    array: Array = node.attrs[0].array
    if array.size == 0:
        return None
    flat = array.reshape(-1)
    first: np.generic = flat[0]
    if flat.size > 1:
        if flat[-1] != first or not (flat == first).all():
            return None
        if first == 0 and node.dtype.is_float and (np.signbit(flat) != np.signbit(first)).any():
            return None
    return first.item()


def product(a: Node, b: Node) -> Node:
    """The product of a cotangent and a local derivative: an exact zero wins over infinities and NaN.

    Every derivative rule multiplies with this, so that the zero cotangent of a branch not taken stays zero at any
    order. A plain product serves where one factor is a finite constant.
    """
    for one, other in ((a, b), (b, a)):
        value = uniform_value(one)
        if value is None or not math.isfinite(value):
            continue
        if value == 0:
            return constant_like(other, 0)
        if value == 1:
            return other
        return apply("negative", other) if value == -1 else apply("multiply", other, one)
    return apply("safe_multiply", a, b)
