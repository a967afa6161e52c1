"""Operators whose index depends on data. Indices are in range; `check_index` sees to that.

A scatter takes updates in the shape that `take` gives and brings them into the slices of an array one after the other,
in the row-major order of the indices: the result is the same in every run and for any number of workers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Infer, Kind, Reference, defop
from symgrad.ops.build import (
    apply,
    broadcast_to,
    constant_like,
    filled,
    product,
    reshape_to,
    scalar_const,
    source,
    uniform_value,
)
from symgrad.ops.references import taken_values
from symgrad.ops.view import check_axis, may_equal
from symgrad.types import DType, Extent, Shape, Type, int64, size_of

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def _take_type(x: Type, index: Type, axis: int) -> Type:
    check_axis(axis, x.ndim)
    if not index.dtype.is_integer:
        raise DTypeError(f"indices must have an integer data type, got {index.dtype}")
    return Type(x.shape[:axis] + index.shape + x.shape[axis + 1 :], x.dtype)


def _scatter_type(kinds: str) -> Infer:
    def infer(x: Type, index: Type, updates: Type, axis: int) -> Type:
        expected = _take_type(x, index, axis)
        if updates.dtype is not x.dtype:
            raise DTypeError(f"data types {x.dtype} and {updates.dtype} differ; use astype")
        if x.dtype.kind not in kinds:
            raise DTypeError(f"not defined for {x.dtype}; use astype")
        if len(updates.shape) != len(expected.shape) or not all(map(may_equal, updates.shape, expected.shape)):
            raise ShapeError(f"updates must have shape {expected.shape}, got {updates.shape}")
        return x

    return infer


def _scatter_values(ufunc: Any) -> Reference:
    """The meaning of a scatter: `ufunc.at`, or assignment where the last of equal indices wins for None."""

    def scatter(x: Array, index: Array, updates: Array, axis: int) -> Array:
        out = x.copy()
        rest = x.shape[:axis] + x.shape[axis + 1 :]
        order = (*range(axis, axis + index.ndim), *range(axis), *range(axis + index.ndim, updates.ndim))
        rows = np.transpose(updates, order).reshape(index.size, *rest)
        flat, target = index.ravel(), np.moveaxis(out, axis, 0)
        with np.errstate(all="ignore"):
            if ufunc is not None:
                ufunc.at(target, flat, rows)
            else:
                places, last = np.unique(flat[::-1], return_index=True)
                target[places] = rows[::-1][last]
        return out

    return scatter


def _take_vjp(n: Node, g: Node) -> Cotangents:
    x, index = n.inputs
    return (apply("scatter_add", filled(x.graph, x.shape, x.dtype, 0), index, g, axis=n.attrs[0]), None)


def _scatter_add_vjp(n: Node, g: Node) -> Cotangents:
    return (g, None, apply("take", g, n.inputs[1], axis=n.attrs[0]))


def _scatter_set_vjp(n: Node, g: Node) -> Cotangents:
    """What was overwritten has no influence, nor has an update that a later one with the same index overwrote."""
    index, updates = n.inputs[1:]
    axis: int = n.attrs[0]
    kept = apply("scatter_set", g, index, constant_like(updates, 0), axis=axis)
    given = apply("take", g, index, axis=axis)
    if size_of(index.shape) == 1:
        return (kept, None, given)
    places = reshape_to(source(n.graph, "iota", extent=size_of(index.shape), dtype=int64), index.shape)
    last = apply("scatter_set", filled(n.graph, (n.shape[axis],), int64, 0), index, places, axis=0)
    wins = _over_slices(apply("equal", apply("take", last, index, axis=0), places), updates, axis)
    return (kept, None, apply("where", wins, given, constant_like(given, 0)))


def _over_slices(flags: Node, updates: Node, axis: int) -> Node:
    """One value per index, for every element of its slice of the updates."""
    after = updates.ndim - axis - flags.ndim
    return broadcast_to(reshape_to(flags, (*(1,) * axis, *flags.shape, *(1,) * after)), updates.shape)


def _scatter_extreme_vjp(n: Node, g: Node) -> Cotangents:
    """The element and the updates that equal the extreme value share the cotangent equally."""
    x, index, updates = n.inputs
    axis: int = n.attrs[0]
    zero, one = constant_like(n, 0), constant_like(n, 1)
    equal = apply("equal", x, n)
    if uniform_value(x) == least_or_greatest(x.dtype, greatest=n.op.name == "scatter_min"):
        # Where nothing could be less extreme than x, x stands for an absent element.
        equal = broadcast_to(scalar_const(n.graph, equal.dtype, False), equal.shape)
    equals = apply("equal", updates, apply("take", n, index, axis=axis))
    ones, zeros = constant_like(updates, 1), constant_like(updates, 0)
    count = apply("where", equal, one, zero)
    count = apply("scatter_add", count, index, apply("where", equals, ones, zeros), axis=axis)
    share = product(g, apply("reciprocal", count))
    given = apply("where", equals, apply("take", share, index, axis=axis), zeros)
    return (apply("where", equal, share, zero), None, given)


def least_or_greatest(dtype: DType, *, greatest: bool) -> float | int | bool:
    """The value that no other of a data type is below, or above: what an extreme over nothing is."""
    if dtype.kind == "b":
        return greatest
    if dtype.is_float:
        return np.inf if greatest else -np.inf
    limits = np.iinfo(dtype.np)
    return int(limits.max if greatest else limits.min)


def _scatter_multiply_vjp(n: Node, g: Node) -> Cotangents:
    """The product of the other factors, never a quotient: exact with any number of zeros, at any order."""
    x, index, updates = n.inputs
    axis: int = n.attrs[0]
    factors = apply("scatter_multiply", constant_like(x, 1), index, updates, axis=axis)
    others = apply("take", x, index, axis=axis)
    if size_of(index.shape) != 1:
        others = apply("multiply", others, _product_of_others(index, updates, axis))
    return (product(g, factors), None, product(apply("take", g, index, axis=axis), others))


def _product_of_others(index: Node, updates: Node, axis: int) -> Node:
    """For each update the product of the other updates with the same index: a square table, reduced by rows."""
    count: Extent = size_of(index.shape)
    head, tail = updates.shape[:axis], updates.shape[axis + index.ndim :]
    flat = reshape_to(index, (count,))
    place = source(index.graph, "iota", extent=count, dtype=int64)
    same = apply("equal", *_rows_and_columns(flat, count))
    other = apply("not_equal", *_rows_and_columns(place, count))
    table: Shape = (*head, count, count, *tail)
    flags = reshape_to(apply("logical_and", same, other), (*(1,) * len(head), count, count, *(1,) * len(tail)))
    elements = broadcast_to(reshape_to(updates, (*head, 1, count, *tail)), table)
    ones = filled(updates.graph, table, updates.dtype, 1)
    others = apply("where", broadcast_to(flags, table), elements, ones)
    return reshape_to(apply("prod", others, axes=(axis + 1,)), updates.shape)


def _rows_and_columns(x: Node, count: Extent) -> tuple[Node, Node]:
    shape: Shape = (count, count)
    return broadcast_to(reshape_to(x, (count, 1)), shape), broadcast_to(x, shape)


defop(
    "take",
    Kind.INDEXED,
    attrs=("axis",),
    infer=_take_type,
    vjp=_take_vjp,
    ref=taken_values,
    linear=True,
    doc="The slices of x at the indices along an axis.",
)
defop(
    "scatter_add",
    Kind.INDEXED,
    attrs=("axis",),
    infer=_scatter_type("iuf"),
    vjp=_scatter_add_vjp,
    ref=_scatter_values(np.add),
    linear=True,
    doc="x with the updates added to its slices at the indices; repeated indices accumulate.",
)
defop(
    "scatter_set",
    Kind.INDEXED,
    attrs=("axis",),
    infer=_scatter_type("biuf"),
    vjp=_scatter_set_vjp,
    ref=_scatter_values(None),
    linear=True,
    doc="x with its slices at the indices replaced by the updates; of repeated indices the last one wins.",
)
defop(
    "scatter_max",
    Kind.INDEXED,
    attrs=("axis",),
    infer=_scatter_type("biuf"),
    vjp=_scatter_extreme_vjp,
    ref=_scatter_values(np.maximum),
    doc="x with the larger of its slices and the updates at the indices; NaN if there is one; ties share gradients.",
)
defop(
    "scatter_min",
    Kind.INDEXED,
    attrs=("axis",),
    infer=_scatter_type("biuf"),
    vjp=_scatter_extreme_vjp,
    ref=_scatter_values(np.minimum),
    doc="x with the smaller of its slices and the updates at the indices; NaN if there is one; ties share gradients.",
)
defop(
    "scatter_multiply",
    Kind.INDEXED,
    attrs=("axis",),
    infer=_scatter_type("iuf"),
    vjp=_scatter_multiply_vjp,
    ref=_scatter_values(np.multiply),
    doc="x with its slices at the indices multiplied by the updates; repeated indices accumulate.",
)
