"""Running values along an axis: element k of the result combines the elements up to k.

All of them take `reverse=True` to start from the end of the axis. The elements are combined one after the other, so
`cumulative_sum` and `cumulative_prod` have the bits of `numpy.cumsum` and `numpy.cumprod`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from symgrad.arguments import checked
from symgrad.errors import ShapeError
from symgrad.functions import astype, concat, exp, isfinite, log, stop_gradient, widened
from symgrad.graph import Node, describe
from symgrad.operators import apply, constant_like
from symgrad.ops.build import filled, pad_axis, slice_axis
from symgrad.shaping import normal_axis
from symgrad.types import float32

if TYPE_CHECKING:
    from symgrad.types import DTypeLike

__all__ = ["cumulative_logsumexp", "cumulative_max", "cumulative_min", "cumulative_prod", "cumulative_sum"]


@checked
def cumulative_sum(
    x: Node,
    /,
    *,
    axis: int | None = None,
    dtype: DTypeLike | None = None,
    include_initial: bool = False,
    reverse: bool = False,
) -> Node:
    """The sum of the elements up to each place along an axis, which may be left out for 1-dimensional x.

    Integers and bool add up in 64 bits unless `dtype` says otherwise, and wrap. `include_initial` puts a 0 where the
    sums begin, which makes the axis one longer. ShapeError without dimensions.

        sg.cumulative_sum(g.const([1, 2, 3]))     # 1, 3, 6
    """
    place = _axis("cumulative_sum", x, axis)
    x = widened(x, dtype, "cumulative_sum")
    out = _scan("cumulative_sum", x, place, reverse)
    if not include_initial:
        return out
    start = filled(x.graph, (*x.shape[:place], 1, *x.shape[place + 1 :]), x.dtype, 0)
    return concat([out, start] if reverse else [start, out], axis=place)


@checked
def cumulative_prod(
    x: Node,
    /,
    *,
    axis: int | None = None,
    dtype: DTypeLike | None = None,
    include_initial: bool = False,
    reverse: bool = False,
) -> Node:
    """The product of the elements up to each place along an axis, which may be left out for 1-dimensional x.

    Data types and arguments are those of `cumulative_sum`; the initial value is 1. The gradient is exact with any
    number of zeros, at every order. ShapeError without dimensions.
    """
    place = _axis("cumulative_prod", x, axis)
    x = widened(x, dtype, "cumulative_prod")
    if include_initial:
        # 1 times an element is that element, so the initial value can simply be the first factor.
        x = pad_axis(x, place, int(not reverse), int(reverse), 1)
    return _scan("cumulative_prod", x, place, reverse)


@checked
def cumulative_max(x: Node, /, *, axis: int | None = None, reverse: bool = False) -> Node:
    """The largest element up to each place along an axis, which may be left out for 1-dimensional x.

    NaN from the first NaN on. The gradient goes to the place where the value was first attained.
    """
    return _scan("cumulative_max", x, _axis("cumulative_max", x, axis), reverse)


@checked
def cumulative_min(x: Node, /, *, axis: int | None = None, reverse: bool = False) -> Node:
    """The smallest element up to each place along an axis, which may be left out for 1-dimensional x.

    NaN from the first NaN on. The gradient goes to the place where the value was first attained.
    """
    return _scan("cumulative_min", x, _axis("cumulative_min", x, axis), reverse)


@checked
def cumulative_logsumexp(x: Node, /, *, axis: int | None = None, reverse: bool = False) -> Node:
    """log(sum(exp(x))) of the elements up to each place along an axis, which may be left out for 1-dimensional x.

    Without overflow, and -inf as long as all elements are -inf, where the gradient is 0. Integers and bool are taken
    as float32. The sum is kept relative to the largest element so far and scaled whenever that grows.
    """
    place = _axis("cumulative_logsumexp", x, axis)
    x = x if x.dtype.is_float else astype(x, float32)
    largest = stop_gradient(_scan("cumulative_max", x, place, reverse))
    shift = stop_gradient(apply("where", isfinite(largest), largest, constant_like(largest, 0)))
    extent = x.shape[place]
    padded = pad_axis(largest, place, int(not reverse), int(reverse), 0)
    before = slice_axis(padded, place, int(reverse), extent + int(reverse))
    step = -1 if reverse else 1
    total = apply("linear_recurrence", exp(before - shift), exp(x - shift), axis=place, step=step)
    return log(total) + shift


def _axis(name: str, x: Node, axis: int | None) -> int:
    if x.ndim == 0:
        raise ShapeError(f"{name}: {describe(x)} has no axis; give it one with sg.reshape(x, (1,))")
    return 0 if axis is None and x.ndim == 1 else normal_axis(name, x, axis)


def _scan(name: str, x: Node, axis: int, reverse: bool) -> Node:
    return apply(name, x, axis=axis, step=-1 if reverse else 1)
