"""Functions that put elements in order, search ordered ones and pick elements by their values.

One order serves all: false before true, numbers by value, -0.0 equal to 0.0, and NaN above every number. So NaN comes
last in ascending and first in descending order, as `max` gives NaN where there is one. Every sort is stable: equal
elements keep the order they stand in, in descending order too.

How many elements a condition picks, only values decide, while a shape must be known before: functions that pick take
a `size`. What is found beyond the size is dropped, and where less is found the rest of the result is filled. Each says
how to get the number that is valid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from symgrad.arguments import checked
from symgrad.cumulative import cumulative_sum
from symgrad.errors import DTypeError, ShapeError
from symgrad.functions import (
    astype,
    equal,
    floor,
    isnan,
    less,
    logical_or,
    minimum,
    not_equal,
    reshape,
    sum,
    where,
)
from symgrad.graph import Node, Operand, checked_extent, describe
from symgrad.indexing import take_checked
from symgrad.operators import apply, as_node, broadcast_to, common, graph_of, is_scalar, permute_to, reshape_to, source
from symgrad.ops.build import pad_axis, slice_axis
from symgrad.ops.order import moved_along_axis
from symgrad.ops.view import may_equal
from symgrad.shaping import keep_axes, moveaxis, normal_axes, normal_axis
from symgrad.types import Extent, bool_, float32, int64, promote, size_of

__all__ = [
    "argsort",
    "argwhere",
    "masked_select",
    "median",
    "nonzero",
    "quantile",
    "searchsorted",
    "sort",
    "top_k",
    "unique_all",
    "unique_counts",
    "unique_inverse",
    "unique_values",
]


def sort(x: Node, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Node:
    """The elements in order along an axis, in the shape and data type of x. ShapeError for a 0-dimensional x.

    NaN is above every number. `stable` is taken for the array API's sake: every sort is. The gradient goes back to
    where each element came from.

        sg.sort(x)[..., -1]            # the largest
    """
    return apply("sort", x, axis=normal_axis("sort", x, axis), descending=bool(descending))


def argsort(x: Node, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Node:
    """The int64 indices that put the elements in order along an axis, in the shape of x.

    The order and the arguments are those of `sort`; the indices have no gradient.

        order = sg.argsort(scores, descending=True)
        sg.take_along_axis(names, order)
    """
    return apply("argsort", x, axis=normal_axis("argsort", x, axis), descending=bool(descending))


def top_k(x: Node, k: Extent, /, *, axis: int = -1, mode: str = "largest") -> tuple[Node, Node]:
    """The k largest (or `mode="smallest"`) elements along an axis in order, and their int64 indices.

    Of equal elements the first ones come first; NaN counts as the largest. ShapeError when the axis has less than k
    elements. The gradient goes back to the elements chosen.

        values, indices = sg.top_k(logits, 5)
    """
    if mode not in ("largest", "smallest"):
        raise ValueError(f"top_k: mode is 'largest' or 'smallest', got {mode!r}")
    place = normal_axis("top_k", x, axis)
    extent = x.shape[place]
    k = checked_extent("top_k", k)
    if isinstance(k, int) and isinstance(extent, int) and k > extent:
        raise ShapeError(f"top_k: {describe(x)} has {extent} elements along axis {place}, not {k}")
    indices = slice_axis(argsort(x, axis=place, descending=mode == "largest"), place, 0, k)
    return _taken_along(x, indices, place), indices


def _taken_along(x: Node, places: Node, axis: int) -> Node:
    """The elements at places along an axis, which are all in range."""
    if x.ndim == 1:
        return apply("take", x, places, axis=0)
    rows, index = moveaxis(x, axis, -1), moveaxis(places, axis, -1)
    length = rows.shape[-1]
    count = size_of(rows.shape[:-1])
    start = reshape_to(source(x.graph, "iota", extent=count, dtype=int64) * length, (count, 1))
    flat = reshape_to(index, (count, index.shape[-1])) + start
    found = apply("take", reshape_to(rows, (count * length,)), flat, axis=0)
    return moveaxis(reshape_to(found, index.shape), -1, axis)


def searchsorted(x1: Operand, x2: Operand, /, *, side: str = "left", sorter: Operand | None = None) -> Node:
    """The int64 indices at which the elements of x2 would go into x1 for it to stay in order; the shape of x2.

    x1 is 1-dimensional and in ascending order, or `sorter` holds the indices that bring it there (`argsort` of it).
    On the left, the index counts the elements of x1 below the value, on the right those equal to it too; NaN is equal
    to NaN. Data types promote. An x1 that is not in order gives indices in [0, n] that mean nothing.

        bins = sg.searchsorted(edges, x, side="right")
    """
    if side not in ("left", "right"):
        raise ValueError(f"searchsorted: side is 'left' or 'right', got {side!r}")
    like = graph_of("searchsorted", x1, x2)
    row = as_node(x2 if isinstance(x2, Node) else like, x1)
    values = as_node(row, x2)
    if row.ndim != 1:
        raise ShapeError(f"searchsorted: x1 must have 1 dimension, got {describe(row)}")
    if sorter is not None:
        order = as_node(row, sorter)
        if order.ndim != 1 or not may_equal(order.shape[0], row.shape[0]):
            raise ShapeError(f"searchsorted: the sorter {describe(order)} must have the shape of {describe(row)}")
        row = take_checked(row, order, 0)
    dtype = promote(row.dtype, values.dtype)
    if dtype is None:
        raise DTypeError(
            f"searchsorted: no data type holds both {describe(row)} and {describe(values)}; use astype on one"
        )
    return apply("searchsorted", astype(row, dtype), astype(values, dtype), side=side)


# Picking by a condition.


@checked
def nonzero(x: Node, /, *, size: Extent, fill_value: int | Sequence[int] = 0) -> tuple[Node, ...]:
    """The int64 indices along each axis of the elements that are not 0, in row-major order: `size` of each.

    Indices beyond the size are dropped; the rest is `fill_value`, one for all axes or one for each. The number of
    valid ones is `minimum(count_nonzero(x), size)`. ShapeError for a 0-dimensional x.

        (places,) = sg.nonzero(mask, size=100)
    """
    if not x.ndim:
        raise ShapeError(f"nonzero: {describe(x)} has no axes; reshape it to (1,)")
    fills = list(fill_value) if isinstance(fill_value, Sequence) else [fill_value] * x.ndim
    if len(fills) != x.ndim:
        raise ShapeError(f"nonzero: {len(fills)} fill values for the {x.ndim} dimensions of {describe(x)}")
    place, valid = _true_places(reshape(astype(x, bool_), (-1,)), checked_extent("nonzero", size))
    indices: list[Node] = []
    for axis in range(x.ndim - 1, -1, -1):
        extent = x.shape[axis]
        # An axis without elements has no indices; a divisor of 1 keeps the arithmetic in bounds.
        indices.append(place % extent if axis and extent != 0 else place)
        place = place // extent if axis and extent != 0 else place
    pairs = zip(reversed(indices), fills, strict=True)
    return tuple(_filled_up("nonzero", valid, index, fill) for index, fill in pairs)


@checked
def argwhere(x: Node, /, *, size: Extent, fill_value: int | Sequence[int] = 0) -> Node:
    """The indices of the elements that are not 0 as rows: int64 of shape (size, x.ndim); see `nonzero`."""
    indices = nonzero(x, size=size, fill_value=fill_value)
    columns = [reshape_to(index, (*index.shape, 1)) for index in indices]
    return columns[0] if len(columns) == 1 else apply("concat", *columns, axis=1)


def masked_select(x: Node, mask: Operand, /, *, size: Extent, fill_value: float = 0) -> Node:
    """The elements at which a mask is true, in row-major order: a vector of `size`, filled up with `fill_value`.

    x and mask broadcast against each other; the result has the data type of x, which must hold the fill value
    (DTypeError). The number of valid elements is `minimum(count_nonzero(mask), size)`, with
    the mask broadcast. The gradient goes back to the elements selected.

        positive = sg.masked_select(x, x > 0, size=64)
    """
    x, mask = common("masked_select", x, mask, dtypes=False)
    if mask.dtype is not bool_:
        raise DTypeError(f"masked_select: the mask must be bool, got {describe(mask)}; compare it, or use astype")
    place, valid = _true_places(reshape(mask, (-1,)), checked_extent("masked_select", size))
    return _filled_up("masked_select", valid, _padded_take(reshape(x, (-1,)), place), fill_value)


def _filled_up(name: str, valid: Node, values: Node, fill_value: float) -> Node:
    """The valid values, and the fill value for the others; DTypeError where their data type does not hold it."""
    is_flag = values.dtype is bool_ and is_scalar(fill_value) and fill_value in (0, 1)
    fill = as_node(values, bool(fill_value) if is_flag else fill_value)
    if fill.dtype is not values.dtype:
        raise DTypeError(f"{name}: the fill value {fill_value!r} does not fit {values.dtype}; use astype on the array")
    return where(valid, values, fill)


def _true_places(flags: Node, size: Extent) -> tuple[Node, Node]:
    """The first places at which a vector is true, `size` of them, and which of these are valid; others are in range."""
    total = flags.shape[0]
    order = apply("argsort", flags, axis=0, descending=True)
    if not (isinstance(total, int) and isinstance(size, int) and total >= size):
        order = pad_axis(order, 0, 0, size)
    count = broadcast_to(sum(astype(flags, int64)), (size,))
    return slice_axis(order, 0, 0, size), less(source(flags.graph, "iota", extent=size, dtype=int64), count)


def _padded_take(x: Node, place: Node) -> Node:
    """The elements of a vector at places; where it is empty, zeros."""
    total = x.shape[0]
    known = isinstance(total, int) and total > 0
    return apply("take", x if known else pad_axis(x, 0, 0, 1), place, axis=0)


# Distinct elements.


@checked
def unique_values(x: Node, /, *, size: Extent, fill_value: float | None = None) -> Node:
    """The distinct elements in ascending order: a vector of `size`.

    Values beyond the size are dropped; the rest is `fill_value`, the smallest element of x by default. -0.0 and 0.0
    are one value, every NaN is one of its own, as the array API has it. `unique_counts` also tells how many entries
    are valid: those with a count. The gradient goes back to the first of the equal elements.

        sg.unique_values(labels, size=10)
    """
    ordered = sort(reshape(x, (-1,)), axis=0)
    starts, valid = _starts(ordered, checked_extent("unique_values", size))
    return _distinct("unique_values", ordered, starts, valid, fill_value)


@checked
def unique_counts(x: Node, /, *, size: Extent, fill_value: float | None = None) -> tuple[Node, Node]:
    """`unique_values`, and how often each occurs: int64, 0 for an entry that is not valid.

    So the number of valid entries is that of the counts which are not 0.

        values, counts = sg.unique_counts(words, size=1000)
        distinct = sg.count_nonzero(counts)
    """
    ordered = sort(reshape(x, (-1,)), axis=0)
    starts, valid = _starts(ordered, checked_extent("unique_counts", size))
    return _distinct("unique_counts", ordered, starts, valid, fill_value), _counts(starts)


@checked
def unique_inverse(x: Node, /, *, size: Extent, fill_value: float | None = None) -> tuple[Node, Node]:
    """`unique_values`, and for each element of x the int64 index of its value among them, in the shape of x.

    The index of a value that the size has dropped is `size`; the number of valid entries is at most `max(inverse) + 1`.
    """
    values, _, inverse, _ = unique_all(x, size=size, fill_value=fill_value)
    return values, inverse


@checked
def unique_all(x: Node, /, *, size: Extent, fill_value: float | None = None) -> tuple[Node, Node, Node, Node]:
    """`unique_values`, the flat index of the first occurrence of each, `unique_inverse` and `unique_counts`.

    The index of an entry that is not valid is that of the smallest element of x. All indices and counts are int64.

        values, indices, inverse, counts = sg.unique_all(x, size=16)
    """
    flat = reshape(x, (-1,))
    size = checked_extent("unique_all", size)
    ordered, places = sort(flat, axis=0), argsort(flat, axis=0)
    starts, valid = _starts(ordered, size)
    values = _distinct("unique_all", ordered, starts, valid, fill_value)
    first = where(valid, slice_axis(starts, 0, 0, size), 0)
    indices = _padded_take(places, first)
    run = minimum(cumulative_sum(astype(_begins_run(ordered), int64)) - 1, size)
    return values, indices, reshape_to(moved_along_axis(run, places, 0), x.shape), _counts(starts)


def _starts(ordered: Node, size: Extent) -> tuple[Node, Node]:
    """Where in an ordered vector each run of equal elements starts, size + 1 places filled with the number of elements.

    And which of the first `size` are valid.
    """
    places, valid = _true_places(_begins_run(ordered), size + 1)
    return where(valid, places, ordered.shape[0]), slice_axis(valid, 0, 0, size)


def _begins_run(ordered: Node) -> Node:
    """Whether an element is the first one or differs from the one before it."""
    total = ordered.shape[0]
    before = slice_axis(pad_axis(ordered, 0, 1, 0), 0, 0, total)
    first = source(ordered.graph, "iota", extent=total, dtype=int64) < 1
    return logical_or(first, not_equal(ordered, before))


def _distinct(name: str, ordered: Node, starts: Node, valid: Node, fill_value: float | None) -> Node:
    size = valid.shape[0]
    # The place of an entry that is not valid is the first one: the smallest element.
    values = _padded_take(ordered, where(valid, slice_axis(starts, 0, 0, size), 0))
    return values if fill_value is None else _filled_up(name, valid, values, fill_value)


def _counts(starts: Node) -> Node:
    size = starts.shape[0] - 1
    return slice_axis(starts, 0, 1, size + 1) - slice_axis(starts, 0, 0, size)


# Statistics of order.


@checked
def median(x: Node, axis: int | Sequence[int] | None = None, *, keepdims: bool = False) -> Node:
    """The middle element in order over axes, all by default, or the mean of the two in the middle; NaN if one is NaN.

    Integers and bool are taken as float32. ShapeError where there is no element. The gradient goes to the middle.
    """
    rows, axes = _rows("median", x, axis)
    extent = rows.shape[-1]
    last = rows.ndim - 1
    low = slice_axis(rows, last, (extent - 1) // 2, (extent - 1) // 2 + 1)
    middle = low
    if not (isinstance(extent, int) and extent % 2):
        # Halves first: their sum does not overflow.
        middle = low * 0.5 + slice_axis(rows, last, extent // 2, extent // 2 + 1) * 0.5
    top = slice_axis(rows, last, extent - 1, extent)
    out = reshape_to(where(isnan(top), top, middle), rows.shape[:-1])
    return keep_axes(out, x.shape, axes) if keepdims else out


@checked
def quantile(
    x: Node, q: float | Sequence[float], axis: int | Sequence[int] | None = None, *, keepdims: bool = False
) -> Node:
    """The values below which the parts q of the elements lie over axes, all by default; NaN if an element is NaN.

    Between elements it interpolates linearly: the value at position q (n - 1) in order (definition 7 of Hyndman and
    Fan, "Sample quantiles in statistical packages", 1996; NumPy's default). A sequence of q gives a leading axis.
    Integers and bool are taken as float32. ShapeError where there is no element or q is outside of [0, 1].

        low, high = sg.quantile(x, (0.05, 0.95), axis=0)
    """
    parts = np.asarray(q, np.float64)
    if parts.ndim > 1 or not bool(np.all((parts >= 0) & (parts <= 1))):
        raise ShapeError(f"quantile: q is a number in [0, 1] or a sequence of such, got {q}")
    rows, axes = _rows("quantile", x, axis)
    extent, last = rows.shape[-1], rows.ndim - 1
    position = x.graph.const(parts.reshape(-1)) * (extent - 1)
    below = floor(position)
    share = astype(position - below, rows.dtype)
    place = astype(below, int64)
    low = apply("take", rows, place, axis=last)
    # At the last element there is none above it, and none is needed.
    above = where(less(place, extent - 1), place + 1, place)
    high = apply("take", rows, above, axis=last)
    # From the nearer end: exact at both.
    gap = high - low
    near = where(less(share, 0.5), low + gap * share, high - gap * (1 - share))
    # Between equal infinities the gap is NaN.
    out = where(equal(low, high), low, near)
    top = slice_axis(rows, last, extent - 1, extent)
    out = where(isnan(top), top, out)
    out = permute_to(out, (last, *range(last)))
    shape = tuple(1 if k in axes else e for k, e in enumerate(x.shape)) if keepdims else rows.shape[:-1]
    return reshape_to(out, (*out.shape[:1], *shape) if parts.ndim else shape)


def _rows(name: str, x: Node, axis: int | Sequence[int] | None) -> tuple[Node, tuple[int, ...]]:
    """The elements over axes in order along one last axis, and those axes."""
    axes = normal_axes(name, x, axis)
    kept = tuple(k for k in range(x.ndim) if k not in axes)
    extent = size_of(tuple(x.shape[a] for a in axes))
    if extent == 0:
        raise ShapeError(f"{name}: {describe(x)} has no elements over axes {axes}")
    moved = permute_to(x if x.dtype.is_float else astype(x, float32), (*kept, *axes))
    return sort(reshape_to(moved, (*(x.shape[k] for k in kept), extent))), axes
