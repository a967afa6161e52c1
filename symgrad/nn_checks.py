"""What layers and losses check of their operands, and the shift of exponentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from symgrad import functions as sg
from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node, describe
from symgrad.types import Shape, joint_shape

Axes: TypeAlias = "int | Sequence[int]"


def shifted(name: str, x: Node, axis: int) -> Node:
    """x less its largest element along an axis, which to derivatives is a constant: the shift cancels."""
    one_axis(name, x, axis)
    return x - sg.stop_gradient(sg.max(x, axis=axis, keepdims=True))


def normal_axes(name: str, x: Node, axis: Axes) -> tuple[int, ...]:
    """The axes counted from the start, in order; floating operands only."""
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted(one_axis(name, x, a) for a in given))
    if not axes or len(set(axes)) != len(axes):
        raise ShapeError(f"nn.{name}: axes are different and at least one, got {axis}")
    return axes


def one_axis(name: str, x: Node, axis: int) -> int:
    """The axis counted from the start; floating operands only."""
    need_float(name, x)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"nn.{name}: axis {axis} is out of range for {describe(x)}")
    return axis % x.ndim


def need_float(name: str, x: Node) -> None:
    """Raise unless the operand is a floating node."""
    if not isinstance(x, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise TypeError(f"nn.{name}: expected a node, got {type(x).__name__}; make one with g.input or g.const")
    if not x.dtype.is_float:
        raise DTypeError(f"nn.{name}: expected a floating data type, got {describe(x)}; use sg.astype")


def need_shape(name: str, what: str, node: Node, shape: Shape) -> None:
    """Raise unless the node has this shape; symbolic extents are decided at the call."""
    if len(node.shape) == len(shape) and joint_shape(node.shape, shape) is not None:
        fits = all(have == want or not (have == 1 or want == 1) for have, want in zip(node.shape, shape, strict=True))
        if fits:
            return
    text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    raise ShapeError(f"nn.{name}: {what} must have the shape ({text}), got {describe(node)}")
