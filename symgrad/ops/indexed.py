"""Operators whose index depends on data. Indices are in range; `check_index` sees to that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Kind, defop
from symgrad.ops.build import apply, filled
from symgrad.ops.references import taken_values
from symgrad.ops.view import check_axis, may_equal
from symgrad.types import Type

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def _take_type(x: Type, index: Type, axis: int) -> Type:
    check_axis(axis, x.ndim)
    if not index.dtype.is_integer:
        raise DTypeError(f"indices must have an integer data type, got {index.dtype}")
    return Type(x.shape[:axis] + index.shape + x.shape[axis + 1 :], x.dtype)


def _scatter_add_type(x: Type, index: Type, updates: Type, axis: int) -> Type:
    expected = _take_type(x, index, axis)
    if updates.dtype is not x.dtype:
        raise DTypeError(f"data types {x.dtype} and {updates.dtype} differ; use astype")
    if x.dtype.kind == "b":
        raise DTypeError("not defined for bool; use astype")
    if len(updates.shape) != len(expected.shape) or not all(map(may_equal, updates.shape, expected.shape)):
        raise ShapeError(f"updates must have shape {expected.shape}, got {updates.shape}")
    return x


def _scatter_add_values(x: Array, index: Array, updates: Array, axis: int) -> Array:
    out = x.copy()
    rest = x.shape[:axis] + x.shape[axis + 1 :]
    order = (*range(axis, axis + index.ndim), *range(axis), *range(axis + index.ndim, updates.ndim))
    rows = np.transpose(updates, order).reshape(index.size, *rest)
    with np.errstate(all="ignore"):
        np.add.at(np.moveaxis(out, axis, 0), index.ravel(), rows)
    return out


def _take_vjp(n: Node, g: Node) -> Cotangents:
    x, index = n.inputs
    return (apply("scatter_add", filled(x.graph, x.shape, x.dtype, 0), index, g, axis=n.attrs[0]), None)


def _scatter_add_vjp(n: Node, g: Node) -> Cotangents:
    return (g, None, apply("take", g, n.inputs[1], axis=n.attrs[0]))


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
    infer=_scatter_add_type,
    vjp=_scatter_add_vjp,
    ref=_scatter_add_values,
    linear=True,
    doc="x with the updates added to its slices at the indices; repeated indices accumulate.",
)
