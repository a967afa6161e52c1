"""`at`: an array with new values at an index, as a value of its own. Nothing is overwritten, so derivatives follow.

    y = sg.at(x)[2, 1:].set(0.0)  # as y = x.copy(); y[2, 1:] = 0.0
    z = sg.at(x)[rows, cols].add(v)  # as z = x.copy(); np.add.at(z, (rows, cols), v)

A function whose update of a state is such a value writes it in the place of the old one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from symgrad.arguments import Unfinished, not_a_node
from symgrad.errors import ShapeError
from symgrad.functions import max, min, where
from symgrad.gathering import converted
from symgrad.graph import Node, Operand, describe
from symgrad.indexing import Gathering, Selection, kept_shape, listed, selected, selection, spans_of
from symgrad.operators import apply, as_node, binary, broadcast_to, filled, reshape_to, uniform_value
from symgrad.ops.view import may_equal, spread_slice
from symgrad.record import replace
from symgrad.shaping import stack
from symgrad.types import Shape, bool_

__all__ = ["at"]


def at(x: Node) -> At:
    """What new values of x are made from: `sg.at(x)[index].set(v)`, or `add`, `multiply`, `max`, `min` for `set`.

    The index is any that `x[index]` takes (integers, slices, None, an ellipsis, integer arrays), or one array of bool
    with the shape of x or of its first axes. The values broadcast to the shape of `x[index]`, and take the data type of
    x, as in an assignment of NumPy; those for an array of bool broadcast to the shape of x, or of the axes that are
    left. An index of an array out of range is an IndexError at the call.

    Where integer arrays name an element twice, `set` keeps the last value in row-major order, and the other methods
    apply all of them, one after the other. The gradient of `set` is 0 for what is overwritten; `max` and `min` share it
    equally among ties. TypeError for anything but a node.
    """
    if not isinstance(x, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise not_a_node("at", x)
    return At(x)


class At(Unfinished):
    """The left side of an update of a node, before its index is known."""

    __slots__ = ("_x",)
    advice = "give it an index and new values, as in sg.at(x)[index].set(values)"

    def __init__(self, x: Node) -> None:
        self._x = x

    def __getitem__(self, index: Any) -> Place:
        return Place(self._x, index)


class Place(Unfinished):
    """The elements of a node at an index, which a method gives new values."""

    __slots__ = ("_region", "_x")
    advice = "give it new values with set, add, multiply, max or min; x[index] reads it"

    def __init__(self, x: Node, index: Any) -> None:
        self._x = x
        self._region = _region(x, index)

    def set(self, values: Operand) -> Node:
        """x with these elements replaced."""
        return self._updated("set", values)

    def add(self, values: Operand) -> Node:
        """x with values added to these elements."""
        return self._updated("add", values)

    def multiply(self, values: Operand) -> Node:
        """x with these elements multiplied by values."""
        return self._updated("multiply", values)

    def max(self, values: Operand) -> Node:
        """x with the larger of these elements and values; NaN where either is."""
        return self._updated("max", values)

    def min(self, values: Operand) -> Node:
        """x with the smaller of these elements and values; NaN where either is."""
        return self._updated("min", values)

    def _updated(self, combine: str, values: Operand) -> Node:
        x, region = self._x, self._region
        if isinstance(region, Gathering):
            return region.scattered(f"scatter_{combine}", _fitted(x, values, region.shape))
        if isinstance(region, Node):
            return where(region, _combined(combine, x, _fitted(x, values, x.shape)), x)
        new = _fitted(x, values, kept_shape(region))
        if combine in ("max", "min"):
            # Ties are shared by a reduction, which is best made of as few elements as there are.
            new, combine = _combined(combine, selected(x, region), new), "set"
        return _chosen(_combined(combine, x, _spread(new, region, x.shape)), x, region)


def _region(x: Node, index: Any) -> Gathering | Selection | Node:
    """Where an index is: places along an axis, slices, or a mask with as many dimensions as x."""
    index = listed(index)
    if isinstance(index, Node | np.ndarray):
        mask = as_node(x, index)  # pyright: ignore[reportUnknownArgumentType] any array
        if mask.dtype is bool_:
            if mask.ndim > x.ndim or not all(map(may_equal, mask.shape, x.shape)):
                raise ShapeError(
                    f"at: the index {describe(mask)} must have the shape of {describe(x)}, or of its first axes"
                )
            return reshape_to(mask, (*mask.shape, *(1,) * (x.ndim - mask.ndim)))
    items = selection(x, index)
    arrays = any(s.indices is not None for s in spans_of(items))
    return Gathering(x, items) if arrays else items


def _fitted(x: Node, values: Operand, shape: Shape) -> Node:
    """Values in the data type of x and this shape; leading axes of extent 1 too many are dropped, as NumPy does."""
    node = converted(x, values)
    extra = node.ndim - len(shape)
    if extra > 0 and node.shape[:extra] == (1,) * extra:
        node = reshape_to(node, node.shape[extra:])
    return broadcast_to(node, shape)


def _combined(combine: str, old: Node, new: Node) -> Node:
    match combine:
        case "set":
            return new
        case "max":
            return max(stack([old, new]), axis=0)
        case "min":
            return min(stack([old, new]), axis=0)
        case _:
            return binary(combine, old, new)


def _spread(values: Node, items: Selection, shape: Shape) -> Node:
    """The values of a selection without arrays at their places in an array of this shape; zeros elsewhere."""
    spans = spans_of(items)
    full = reshape_to(values, tuple(s.extent for s in spans))
    flips = tuple(k for k, s in enumerate(spans) if s.step < 0)
    if flips:
        full = apply("flip", full, axes=flips)
    steps = tuple(abs(s.step) for s in spans)
    return spread_slice(full, shape, tuple(s.start for s in spans), tuple(s.stop for s in spans), steps)


def _chosen(new: Node, old: Node, items: Selection) -> Node:
    """The new values where a selection without arrays is, the old ones elsewhere."""
    # One choice for each axis: a mask of all of them together would be as large as the array.
    for axis, span in enumerate(spans_of(items)):
        extent = old.shape[axis]
        inside = _spread(filled(old.graph, (span.extent,), bool_, True), (replace(span, kept=True),), (extent,))
        if uniform_value(inside) is not True:
            thin = tuple(extent if k == axis else 1 for k in range(old.ndim))
            new = where(reshape_to(inside, thin), new, old)
    return new
