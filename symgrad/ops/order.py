"""Operators that put elements in order, and that search ordered ones.

One order serves all of them, for every data type: false before true, numbers by value, -0.0 equal to 0.0, and NaN
above every number and equal to NaN. `order_key` maps it to unsigned integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Kind, defop
from symgrad.ops.build import apply, broadcast_to, filled, inverse_order, permute_to, reshape_to, source
from symgrad.ops.pointwise import zero_gradient
from symgrad.ops.references import arithmetic
from symgrad.ops.view import check_axis, may_equal
from symgrad.types import DTYPES, DType, Type, int64, size_of

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def key_dtype(dtype: DType) -> DType:
    """The unsigned integers that order the values of a data type: as wide as its elements."""
    return DTYPES[f"uint{dtype.itemsize * 8}"]


def _key_type(x: Type, descending: bool) -> Type:
    _check_flag(descending)
    return Type(x.shape, key_dtype(x.dtype))


def _check_flag(descending: bool) -> None:
    if not isinstance(descending, bool):  # pyright: ignore[reportUnnecessaryIsInstance] files hold anything
        raise DTypeError(f"descending is True or False, got {descending!r}")


def order_keys(x: Array, descending: bool) -> Array:
    """Unsigned integers in the order of the elements, or in the reverse order."""
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * x.dtype.itemsize - 1))
    if x.dtype.kind == "f":
        # Adding 0 makes -0.0 the same as 0.0. Negative numbers grow with their bits: all of them are inverted.
        bits = np.asarray(x + x.dtype.type(0)).view(unsigned)
        key = np.where(np.isnan(x), ~unsigned.type(0), np.where(bits & sign, ~bits, bits | sign))
    elif x.dtype.kind == "i":
        key = x.view(unsigned) ^ sign
    else:
        key = x.astype(unsigned)
    return ~key if descending else key


def _argsort_type(x: Type, axis: int, descending: bool) -> Type:
    check_axis(axis, x.ndim)
    _check_flag(descending)
    return Type(x.shape, int64)


def _sort_type(x: Type, axis: int, descending: bool) -> Type:
    return Type(_argsort_type(x, axis, descending).shape, x.dtype)


def _argsort_values(x: Array, axis: int, descending: bool) -> Array:
    return np.argsort(order_keys(x, descending), axis, kind="stable")


def _sort_values(x: Array, axis: int, descending: bool) -> Array:
    return np.take_along_axis(x, _argsort_values(x, axis, descending), axis)


def _sort_vjp(n: Node, g: Node) -> Cotangents:
    (x,) = n.inputs
    axis, descending = n.attrs
    places = apply("argsort", x, axis=axis, descending=descending)
    return (moved_along_axis(g, places, axis),)


def moved_along_axis(x: Node, places: Node, axis: int) -> Node:
    """The elements moved to their places along an axis. `places` has the shape of x and holds every index once."""
    order = (*(k for k in range(x.ndim) if k != axis), axis)
    moved, index = permute_to(x, order), permute_to(places, order)
    length, total = moved.shape[-1], size_of(moved.shape)
    if moved.ndim > 1:
        rows = size_of(moved.shape[:-1])
        row = source(x.graph, "iota", extent=rows, dtype=int64)
        each = broadcast_to(source(x.graph, "dim", extent=length), row.shape)
        start = reshape_to(apply("multiply", row, each), (rows, 1))
        index = reshape_to(index, (rows, length))
        index = reshape_to(apply("add", index, broadcast_to(start, index.shape)), (total,))
    flat = apply("scatter_add", filled(x.graph, (total,), x.dtype, 0), index, reshape_to(moved, (total,)), axis=0)
    return permute_to(reshape_to(flat, moved.shape), inverse_order(order))


def _searchsorted_type(x: Type, values: Type, side: str) -> Type:
    if side not in ("left", "right"):
        raise DTypeError(f"side is 'left' or 'right', got {side!r}")
    if x.dtype is not values.dtype:
        raise DTypeError(f"data types {x.dtype} and {values.dtype} differ; use astype")
    lead = x.shape[:-1]
    if not x.ndim or values.ndim < len(lead) or not all(map(may_equal, lead, values.shape)):
        raise ShapeError(f"values of shape {values.shape} do not begin with the axes of {x.shape} before its last one")
    return Type(values.shape, int64)


def _searchsorted_values(x: Array, values: Array, side: str) -> Array:
    keys, wanted = order_keys(x, False), order_keys(values, False)
    lead = x.shape[:-1]
    out = np.empty(values.shape, np.int64)
    for row in np.ndindex(lead):
        out[row] = np.searchsorted(keys[row], wanted[row], "right" if side == "right" else "left")
    return out


defop(
    "order_key",
    Kind.POINTWISE,
    attrs=("descending",),
    infer=_key_type,
    vjp=zero_gradient,
    ref=arithmetic(order_keys),
    doc="Unsigned integers of the same width in the order of the elements: -0.0 as 0.0, NaN above every number.",
)
defop(
    "argsort",
    Kind.INDEXED,
    attrs=("axis", "descending"),
    infer=_argsort_type,
    vjp=zero_gradient,
    ref=_argsort_values,
    doc="The indices that sort along an axis, equal elements in the order they stand in; NaN above every number.",
)
defop(
    "sort",
    Kind.INDEXED,
    attrs=("axis", "descending"),
    infer=_sort_type,
    vjp=_sort_vjp,
    ref=_sort_values,
    doc="The elements in order along an axis, equal ones in the order they stand in; NaN above every number.",
)
defop(
    "searchsorted",
    Kind.INDEXED,
    attrs=("side",),
    infer=_searchsorted_type,
    vjp=zero_gradient,
    ref=_searchsorted_values,
    doc="How many elements of the last axis of x, in order, are less than each value; on the right also equal ones.",
)
