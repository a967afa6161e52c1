"""Windows that move along the last axes, and their sum back into place: each is the derivative of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Kind, defop
from symgrad.ops.build import apply
from symgrad.ops.references import arithmetic
from symgrad.ops.view import may_equal
from symgrad.types import Extent, Shape, Type

if TYPE_CHECKING:
    from symgrad.types import Array

    Integers = tuple[int, ...]


def window_count(extent: Extent, size: int, stride: int, dilation: int) -> Extent:
    """How many windows lie wholly within an axis."""
    return (extent - dilation * (size - 1) - 1) // stride + 1


def _check_steps(x: Type, rank: int, *parts: tuple[str, Shape]) -> None:
    for what, values in parts:
        if len(values) != rank:
            raise ShapeError(f"one of {what} is needed for each of {rank} axes, got {values}")
        if any(not isinstance(v, int) or v < 1 for v in values):
            raise ShapeError(f"{what} must be integers of at least 1, got {values}")
    if rank < 1 or rank > x.ndim:
        raise ShapeError(f"{rank} axes of windows for {x.ndim} dimensions")


def _window_type(x: Type, sizes: Integers, strides: Integers, dilations: Integers) -> Type:
    rank = len(sizes)
    _check_steps(x, rank, ("sizes", sizes), ("strides", strides), ("dilations", dilations))
    lead = x.ndim - rank
    counts: list[Extent] = []
    for axis, (size, stride, dilation) in enumerate(zip(sizes, strides, dilations, strict=True), lead):
        extent, span = x.shape[axis], dilation * (size - 1) + 1
        if isinstance(extent, int) and extent < span:
            raise ShapeError(f"a window of {span} elements does not fit axis {axis} of extent {extent}")
        counts.append(window_count(extent, size, stride, dilation))
    return Type((*x.shape[:lead], *counts, *sizes), x.dtype)


def _fold_type(x: Type, extents: Shape, strides: Integers, dilations: Integers) -> Type:
    rank = len(extents)
    if x.dtype.kind == "b":
        raise DTypeError("not defined for bool; use astype")
    if x.ndim < 2 * rank:
        raise ShapeError(f"{rank} axes of windows need {2 * rank} dimensions, got {x.shape}")
    sizes = x.shape[x.ndim - rank :]
    _check_steps(x, rank, ("sizes", sizes), ("strides", strides), ("dilations", dilations))
    counts = x.shape[x.ndim - 2 * rank : x.ndim - rank]
    for count, size, extent, stride, dilation in zip(counts, sizes, extents, strides, dilations, strict=True):
        assert isinstance(size, int)
        if isinstance(extent, int) and extent <= dilation * (size - 1):
            raise ShapeError(f"a window of {dilation * (size - 1) + 1} elements does not fit an axis of {extent}")
        wanted = window_count(extent, size, stride, dilation)
        if not may_equal(count, wanted):
            raise ShapeError(f"{wanted} windows lie within an axis of extent {extent}, got {count}")
    return Type((*x.shape[: x.ndim - 2 * rank], *extents), x.dtype)


def _taps(counts: Integers, tap: Integers, strides: Integers, dilations: Integers) -> tuple[slice, ...]:
    """The elements that stand at one place of all windows."""
    return tuple(
        slice(d * k, d * k + s * (count - 1) + 1, s)
        for count, k, s, d in zip(counts, tap, strides, dilations, strict=True)
    )


def _window_values(x: Array, sizes: Integers, strides: Integers, dilations: Integers) -> Array:
    lead = x.ndim - len(sizes)
    counts = tuple(map(window_count, x.shape[lead:], sizes, strides, dilations))
    out = np.empty((*x.shape[:lead], *counts, *sizes), x.dtype)
    for tap in np.ndindex(*sizes):
        out[(..., *tap)] = x[(..., *_taps(counts, tap, strides, dilations))]  # pyright: ignore[reportArgumentType] integers
    return out


def _fold_values(x: Array, extents: Integers, strides: Integers, dilations: Integers) -> Array:
    rank = len(extents)
    counts, sizes = x.shape[x.ndim - 2 * rank : x.ndim - rank], x.shape[x.ndim - rank :]
    out = np.zeros((*x.shape[: x.ndim - 2 * rank], *extents), x.dtype)
    for tap in np.ndindex(*sizes):
        out[(..., *_taps(counts, tap, strides, dilations))] += x[(..., *tap)]
    return out


def _window_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    (x,) = n.inputs
    sizes, strides, dilations = n.attrs
    return (apply("fold", g, extents=x.shape[x.ndim - len(sizes) :], strides=strides, dilations=dilations),)


def _fold_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    (x,) = n.inputs
    _, strides, dilations = n.attrs
    return (apply("window", g, sizes=x.shape[x.ndim - len(strides) :], strides=strides, dilations=dilations),)


defop(
    "window",
    Kind.VIEW,
    attrs=("sizes", "strides", "dilations"),
    infer=_window_type,
    vjp=_window_vjp,
    ref=_window_values,
    linear=True,
    doc="Windows along the last axes: element [..., o, …, k, …] is [..., stride o + dilation k, …] of the input.",
)
defop(
    "fold",
    Kind.REDUCE,
    attrs=("extents", "strides", "dilations"),
    infer=_fold_type,
    vjp=_fold_vjp,
    ref=arithmetic(_fold_values),
    linear=True,
    doc="The sum over [..., o, …, k, …] with stride o + dilation k = i, for every i below the extents.",
)
