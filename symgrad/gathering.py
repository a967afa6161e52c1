"""Elements and slices at indices that are data, and arrays with updates brought in there.

Indices are integers of any data type. By default negative ones count from the end and what is out of range is an
IndexError at the call; the modes "clip" and "wrap" are those of `numpy.take`. An index whose slice no output needs may
go unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable

from symgrad.arguments import checked
from symgrad.errors import ShapeError
from symgrad.graph import Node, Operand, describe
from symgrad.indexing import Span, index_within, places_along, take_checked
from symgrad.operators import apply, as_node, binary, broadcast_to, is_scalar, reshape_to
from symgrad.shaping import normal_axis
from symgrad.types import Extent, Shape, int64, joint_shape, size_of

__all__ = [
    "gather",
    "put_along_axis",
    "scatter_add",
    "scatter_max",
    "scatter_min",
    "scatter_multiply",
    "scatter_set",
    "take",
    "take_along_axis",
]


@checked
def take(x: Node, indices: Operand, axis: int | None = None, *, mode: str = "raise") -> Node:
    """The slices of x at integer indices along an axis; the axis may be left out for 1-dimensional x.

    The result has the shape of the indices in place of the axis. With the mode "raise" negative indices count from the
    end, and an index out of range is an IndexError at the call; "clip" takes the nearest element, the first for
    negative indices; "wrap" takes indices modulo the extent. The gradient accumulates repeated indices.

        sg.take(table, tokens, axis=0)  # (vocabulary, width) at (batch, length): (batch, length, width)
    """
    place = 0 if axis is None and x.ndim == 1 else normal_axis("take", x, axis)
    return take_checked(x, _indices(x, indices), place, mode)


@checked
def gather(x: Node, indices: Operand, axis: int = 0, *, mode: str = "raise") -> Node:
    """`take` along the first axis unless another is named: what `scatter_add` transposes.

    The function `gather` of PyTorch, with its own indices at every position, is `take_along_axis`.
    """
    return take_checked(x, _indices(x, indices), normal_axis("gather", x, axis), mode)


def _indices(x: Node, indices: Operand) -> Node:
    number = is_scalar(indices) and not isinstance(indices, bool)
    return as_node(x, indices, int64) if number else as_node(x, indices)


def take_along_axis(x: Node, indices: Operand, axis: int = -1, *, mode: str = "raise") -> Node:
    """For each position of the other axes the elements of x at its own indices along an axis.

    The indices have as many dimensions as x; all axes but the named one broadcast against those of x. Modes as in
    `take`; IndexError at the call for an index out of range with the mode "raise".

        sg.take_along_axis(scores, sg.expand_dims(labels, 1), axis=1)  # one score of each row
    """
    x, flat = _along("take_along_axis", x, indices, axis, mode)
    return apply("take", reshape_to(x, (size_of(x.shape),)), flat, axis=0)


@checked
def put_along_axis(
    x: Node, indices: Operand, values: Operand, axis: int = -1, *, combine: str = "set", mode: str = "raise"
) -> Node:
    """x with values brought in where `take_along_axis` reads.

    The values broadcast to the shape `take_along_axis` gives, and take the data type of x. Of repeated indices the last
    value wins; with `combine` one of "add", "multiply", "max" and "min" all of them count.
    """
    if combine not in _COMBINATIONS:
        raise ValueError(f"put_along_axis: combine is one of {', '.join(map(repr, _COMBINATIONS))}, got {combine!r}")
    given = x.shape
    x, flat = _along("put_along_axis", x, indices, axis, mode)
    updates = broadcast_to(converted(x, values), flat.shape)
    out = apply(f"scatter_{combine}", reshape_to(x, (size_of(x.shape),)), flat, updates, axis=0)
    return reshape_to(out, given)


def _along(name: str, x: Node, indices: Operand, axis: int, mode: str) -> tuple[Node, Node]:
    """x as wide as the indices but for the axis, and the places of the elements in it."""
    place = normal_axis(name, x, axis)
    index = _indices(x, indices)
    if index.ndim != x.ndim:
        raise ShapeError(f"{name}: {describe(x)} and the indices {describe(index)} must have equally many dimensions")
    shape = joint_shape(_with(x.shape, place, 1), _with(index.shape, place, 1))
    if shape is None:
        raise ShapeError(
            f"{name}: {describe(x)} and the indices {describe(index)} do not broadcast along the axes but {place}"
        )
    index = index_within(index, x.shape[place], mode)
    index = index if index.dtype is int64 else apply("astype", index, dtype=int64)
    result = _with(shape, place, index.shape[place])
    # An axis of one element only broadcasts: all indices read it, at place 0.
    kept: Shape = tuple(1 if e == 1 else wide for e, wide in zip(x.shape, shape, strict=True))
    x = broadcast_to(x, _with(kept, place, x.shape[place]))
    stride = size_of(x.shape[place + 1 :])
    total = index if stride == 1 else binary("multiply", index, stride)
    for k, extent in enumerate(x.shape):
        if k != place and extent != 1:
            part = places_along(x, Span(0, extent), extent, size_of(x.shape[k + 1 :]))
            total = binary("add", total, reshape_to(part, tuple(extent if j == k else 1 for j in range(x.ndim))))
    return x, broadcast_to(total, result)


def _with(shape: Shape, place: int, extent: Extent) -> Shape:
    return (*shape[:place], extent, *shape[place + 1 :])


def converted(x: Node, values: Operand) -> Node:
    """Values that are written into x, in its data type."""
    node = as_node(x, values)
    return node if node.dtype is x.dtype else apply("astype", node, dtype=x.dtype)


_COMBINATIONS = ("set", "add", "multiply", "max", "min")


def _scatter(combine: str, summary: str) -> Callable[..., Node]:
    name = f"scatter_{combine}"

    def function(x: Node, indices: Operand, updates: Operand, axis: int = 0, *, mode: str = "raise") -> Node:
        place = normal_axis(name, x, axis)
        index = index_within(_indices(x, indices), x.shape[place], mode)
        full_shape: Shape = x.shape[:place] + index.shape + x.shape[place + 1 :]
        return apply(name, x, index, broadcast_to(converted(x, updates), full_shape), axis=place)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = (
        summary
        + """

    The updates broadcast to the shape `take` gives, and take the data type of x. Modes as in `take`: IndexError at the
    call for an index out of range with the mode "raise". The order is fixed: the same bits in every run.
    """
    )
    return function


scatter_add = _scatter("add", "x with updates added to its slices at indices along an axis; repeated ones accumulate.")
scatter_set = _scatter(
    "set", "x with its slices at indices along an axis replaced by updates; of repeated indices the last one wins."
)
scatter_multiply = _scatter("multiply", "x with its slices at indices along an axis multiplied by updates.")
scatter_max = _scatter(
    "max",
    "x with the larger of its slices at indices along an axis and the updates. Ties share the gradient equally.",
)
scatter_min = _scatter(
    "min",
    "x with the smaller of its slices at indices along an axis and the updates. Ties share the gradient equally.",
)
