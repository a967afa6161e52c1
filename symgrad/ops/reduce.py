"""Operators that combine elements along axes. The reduced axes are gone from the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Infer, Kind, defop
from symgrad.ops.build import (
    apply,
    broadcast_to,
    constant_like,
    filled,
    inverse_order,
    pad_axis,
    permute_to,
    product,
    reshape_to,
    restore_axes,
    slice_axis,
    source,
)
from symgrad.ops.pointwise import zero_gradient
from symgrad.ops.references import arithmetic, reduced_values
from symgrad.ops.view import check_axis, check_broadcast
from symgrad.types import Dim, Shape, Type, int64, size_of

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def _reduced(kinds: str, *, empty: bool = True) -> Infer:
    def infer(x: Type, axes: tuple[int, ...]) -> Type:
        if x.dtype.kind not in kinds:
            raise DTypeError(f"not defined for {x.dtype}; use astype")
        if list(axes) != sorted(set(axes)):
            raise ShapeError(f"axes {axes} must be sorted and distinct")
        for axis in axes:
            check_axis(axis, x.ndim)
            if x.shape[axis] == 0 and not empty:
                raise ShapeError(f"axis {axis} of {x.shape} is empty and has no extreme value")
        return Type(tuple(e for k, e in enumerate(x.shape) if k not in axes), x.dtype)

    return infer


def _sum_to_type(x: Type, shape: Shape) -> Type:
    if x.dtype.kind == "b":
        raise DTypeError("not defined for bool; use astype")
    check_broadcast(shape, x.shape)
    return Type(shape, x.dtype)


def _sum_to_values(x: Array, shape: tuple[int, ...]) -> Array:
    lead = x.ndim - len(shape)
    axes = (*range(lead), *(lead + k for k, e in enumerate(shape) if e == 1))
    return np.sum(x, axis=axes, dtype=x.dtype).reshape(shape)


def _argument_type(x: Type, axis: int) -> Type:
    check_axis(axis, x.ndim)
    if x.shape[axis] == 0:
        raise ShapeError(f"axis {axis} of {x.shape} is empty and has no extreme value")
    return Type(x.shape[:axis] + x.shape[axis + 1 :], int64)


def _extreme_vjp(n: Node, g: Node) -> Cotangents:
    """Elements equal to the extreme value share the cotangent equally."""
    (x,) = n.inputs
    axes: tuple[int, ...] = n.attrs[0]
    extreme = apply("equal", x, restore_axes(n, axes, x.shape))
    count = apply("sum", apply("astype", extreme, dtype=x.dtype), axes=axes)
    share = product(g, apply("reciprocal", count))
    return (apply("where", extreme, restore_axes(share, axes, x.shape), constant_like(x, 0)),)


def _prod_vjp(n: Node, g: Node) -> Cotangents:
    """The product of the other elements, never a quotient: exact with any number of zeros, at any order."""
    (x,) = n.inputs
    axes: tuple[int, ...] = n.attrs[0]
    order = (*(k for k in range(x.ndim) if k not in axes), *axes)
    moved = permute_to(x, order)
    flat = reshape_to(moved, (*n.shape, size_of(tuple(x.shape[a] for a in axes))))
    spread = broadcast_to(reshape_to(g, (*n.shape, 1)), flat.shape)
    gradient = product(spread, _product_of_others(flat))
    return (permute_to(reshape_to(gradient, moved.shape), inverse_order(order)),)


def _product_of_others(x: Node) -> Node:
    """For each element the product of all others along the last axis."""
    extent = x.shape[-1]
    if isinstance(extent, Dim):
        return _product_of_others_unknown(x, extent)
    if extent < 2:
        return constant_like(x, 1)
    before, after = _shifted(x, 1, 0), _shifted(x, 0, 1)
    # Products over windows of doubling width: logarithmically many nodes.
    width = 1
    while width < extent - 1:
        before = apply("multiply", before, _shifted(before, width, 0))
        after = apply("multiply", after, _shifted(after, 0, width))
        width *= 2
    return apply("multiply", before, after)


def _shifted(x: Node, later: int, earlier: int) -> Node:
    """The elements moved along the last axis, with ones moving in."""
    axis, extent = x.ndim - 1, x.shape[-1]
    return pad_axis(slice_axis(x, axis, earlier, extent - later), axis, later, earlier, value=1)


def _product_of_others_unknown(x: Node, extent: Dim) -> Node:
    """The same for an extent that is not known: a square table with ones on its diagonal, reduced by rows."""
    table: Shape = (*x.shape, extent)
    index = source(x.graph, "iota", extent=extent, dtype=int64)
    row = broadcast_to(reshape_to(index, (extent, 1)), table)
    column = broadcast_to(index, table)
    elements = broadcast_to(reshape_to(x, (*x.shape[:-1], 1, extent)), table)
    others = apply("where", apply("equal", row, column), filled(x.graph, table, x.dtype, 1), elements)
    return apply("prod", others, axes=(len(table) - 1,))


defop(
    "sum",
    Kind.REDUCE,
    attrs=("axes",),
    infer=_reduced("iuf"),
    vjp=lambda n, g: (restore_axes(g, n.attrs[0], n.inputs[0].shape),),
    ref=reduced_values(np.sum, typed=True),
    linear=True,
    doc="The sum in the data type of the input; 0 over nothing.",
)
defop(
    "prod",
    Kind.REDUCE,
    attrs=("axes",),
    infer=_reduced("iuf"),
    vjp=_prod_vjp,
    ref=reduced_values(np.prod, typed=True),
    doc="The product in the data type of the input; 1 over nothing.",
)
defop(
    "max",
    Kind.REDUCE,
    attrs=("axes",),
    infer=_reduced("biuf", empty=False),
    vjp=_extreme_vjp,
    ref=reduced_values(np.max),
    doc="The largest element; NaN if there is one; the gradient is shared equally by ties.",
)
defop(
    "min",
    Kind.REDUCE,
    attrs=("axes",),
    infer=_reduced("biuf", empty=False),
    vjp=_extreme_vjp,
    ref=reduced_values(np.min),
    doc="The smallest element; NaN if there is one; the gradient is shared equally by ties.",
)
defop(
    "any",
    Kind.REDUCE,
    attrs=("axes",),
    infer=_reduced("b"),
    vjp=zero_gradient,
    ref=reduced_values(np.any),
    doc="Whether one is true; false over nothing.",
)
defop(
    "all",
    Kind.REDUCE,
    attrs=("axes",),
    infer=_reduced("b"),
    vjp=zero_gradient,
    ref=reduced_values(np.all),
    doc="Whether all are true; true over nothing.",
)
defop(
    "argmax",
    Kind.REDUCE,
    attrs=("axis",),
    infer=_argument_type,
    vjp=zero_gradient,
    ref=arithmetic(np.argmax),
    doc="The index of the first largest element, or of the first NaN.",
)
defop(
    "argmin",
    Kind.REDUCE,
    attrs=("axis",),
    infer=_argument_type,
    vjp=zero_gradient,
    ref=arithmetic(np.argmin),
    doc="The index of the first smallest element, or of the first NaN.",
)
defop(
    "sum_to",
    Kind.REDUCE,
    attrs=("shape",),
    infer=_sum_to_type,
    vjp=lambda n, g: (broadcast_to(g, n.inputs[0].shape),),
    ref=arithmetic(_sum_to_values),
    linear=True,
    doc="The sum over leading extra axes and those whose target extent is 1: the reverse of broadcast.",
)
