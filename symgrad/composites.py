"""Array functions made of the ones in `functions`."""

from __future__ import annotations

import math

from symgrad.arguments import checked, node_list
from symgrad.errors import ShapeError
from symgrad.functions import (
    Axis,
    abs,
    astype,
    atanh,
    concat,
    copysign,
    equal,
    exp,
    expm1,
    isfinite,
    less,
    less_equal,
    log,
    log1p,
    logical_and,
    logical_or,
    max,
    maximum,
    not_equal,
    reshape,
    stop_gradient,
    sum,
    where,
)
from symgrad.graph import Node, Operand, describe
from symgrad.operators import apply, as_node, broadcast_to, common, constant_like
from symgrad.ops.build import slice_axis
from symgrad.shaping import normal_axes, normal_axis
from symgrad.types import Shape, bool_

__all__ = ["count_nonzero", "diff", "log_sum_exp", "logaddexp", "logit", "meshgrid", "signbit", "xlogy"]


def xlogy(a: Operand, b: Operand) -> Node:
    """a * log(b), 0 where a is 0, whatever b is; NaN where b is NaN.

    Where a is 0 the gradient with respect to a is log(b), but 0 where b has no finite logarithm; with respect to b it
    is 0.
    """
    a, b = common("xlogy", a, b)
    # There log gets a number it is finite at, so that no derivative meets an infinity.
    nothing = logical_and(equal(a, 0), logical_or(less_equal(b, 0), equal(b, math.inf)))
    return a * log(where(nothing, constant_like(b, 1), b))


@checked
def log_sum_exp(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """log(sum(exp(x))) over axes, without overflow; -inf where all elements are -inf."""
    axes = normal_axes("log_sum_exp", x, axis)
    largest = _finite(max(x, axes, keepdims=True))
    out = log(sum(exp(x - largest), axes, keepdims=True)) + largest
    return out if keepdims else reshape(out, tuple(e for k, e in enumerate(x.shape) if k not in axes))


def _finite(x: Node) -> Node:
    """A shift for exponents: the value as a constant, 0 where it is not finite."""
    return stop_gradient(apply("where", isfinite(x), x, constant_like(x, 0)))


def logaddexp(a: Operand, b: Operand) -> Node:
    """log(exp(a) + exp(b)), without overflow and exact where one term is small."""
    a, b = common("logaddexp", a, b)
    largest = _finite(maximum(a, b))
    left, right = a - largest, b - largest
    # The larger exponential is 1: subtract it where it stands, and the smaller keeps all its digits.
    rest = where(a >= b, expm1(left) + exp(right), exp(left) + expm1(right))
    return log1p(rest) + largest


@checked
def logit(x: Node) -> Node:
    """log(x / (1 - x)), the inverse of `sigmoid`, exact near 1/2 too."""
    # Near 1/2 the logarithms would cancel: there 2 x - 1 is exact.
    return where(abs(x - 0.5) < 0.25, 2 * atanh(2 * x - 1), log(x) - log1p(-x))


@checked
def signbit(x: Node) -> Node:
    """Whether the sign of a floating element is negative, that of zero included."""
    return less(copysign(constant_like(x, 1), x), 0)


@checked
def count_nonzero(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """The int64 number of elements that are not 0 (NaN is not) over axes, all by default."""
    return sum(astype(x, bool_), axis, keepdims=keepdims)


def diff(
    x: Node, /, *, axis: int = -1, n: int = 1, prepend: Operand | None = None, append: Operand | None = None
) -> Node:
    """The n-th difference of neighbors along an axis, which becomes n shorter; of bool whether neighbors differ.

    What is prepended and appended broadcasts to x but for the axis; a number is one element. ShapeError where the axis
    has fewer than n elements.
    """
    place = normal_axis("diff", x, axis)
    if n < 0:
        raise ShapeError(f"diff: n must be at least 0, got {n}")
    if n == 0:
        return x
    ends = [_end(x, value, place) for value in (prepend, append)]
    out = concat([part for part in (ends[0], x, ends[1]) if part is not None], axis=place)
    for _ in range(n):
        extent = out.shape[place]
        if isinstance(extent, int) and extent == 0:
            raise ShapeError(f"diff: axis {place} of {describe(x)} has fewer than {n} elements")
        after = slice_axis(out, place, 1, extent)
        before = slice_axis(out, place, 0, extent - 1)
        out = not_equal(after, before) if out.dtype is bool_ else after - before
    return out


def _end(x: Node, value: Operand | None, place: int) -> Node | None:
    if value is None:
        return None
    node = as_node(x, value)
    extent = node.shape[place] if node.ndim == x.ndim else 1
    return broadcast_to(node, (*x.shape[:place], extent, *x.shape[place + 1 :]))


def meshgrid(*arrays: Node, indexing: str = "xy") -> list[Node]:
    """Coordinates of a grid from 1-dimensional nodes: one node each, all of the shape of the grid.

    The k-th axis belongs to the k-th node with `indexing="ij"`; with "xy" the first two axes are exchanged.
    """
    if indexing not in ("xy", "ij"):
        raise ValueError(f"meshgrid: indexing must be 'xy' or 'ij', got {indexing!r}")
    for node in node_list("meshgrid", arrays):
        if node.ndim != 1:
            raise ShapeError(f"meshgrid: {describe(node)} must have 1 dimension")
    count = len(arrays)
    order = list(range(count))
    if indexing == "xy" and count > 1:
        order[0], order[1] = 1, 0
    full_shape: Shape = tuple(arrays[k].shape[0] for k in order)
    return [
        broadcast_to(reshape(node, tuple(node.shape[0] if p == place else 1 for p in range(count))), full_shape)
        for node, place in zip(arrays, order, strict=True)
    ]
