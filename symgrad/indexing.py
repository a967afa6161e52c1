"""`x[...]` on nodes.

An index may hold integers, slices, None, one ellipsis, and one integer array. Where the extent of an axis is
symbolic, integers and slice bounds are taken to lie within it: `x[1:]` of an axis `n` has extent `n - 1`, and a call
with an extent for which a bound does not lie within the axis fails with a ShapeError, where NumPy would clip.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from symgrad.errors import GraphError, ShapeError, user_loc
from symgrad.graph import Node, describe
from symgrad.operators import as_node
from symgrad.ops.build import apply, reshape_to
from symgrad.types import Dim, DType, Extent, as_dtype, bool_


def index_node(x: Node, index: Any) -> Node:
    """The elements of a node at an index, as NumPy gives them."""
    items = _expand(x, index if isinstance(index, tuple) else (index,))  # pyright: ignore[reportUnknownArgumentType] any index
    starts: list[Extent] = []
    stops: list[Extent] = []
    steps: list[int] = []
    flips: list[int] = []
    shape: list[Extent] = []  # of the result, before an index array replaces its axis
    array: tuple[int, Any] | None = None
    axis = 0
    for item in items:
        if item is None:
            shape.append(1)
            continue
        extent = x.shape[axis]
        start, stop, step = 0, extent, 1
        if _is_integer(item):
            start = _position(x, axis, item)
            stop = start + 1
        elif isinstance(item, slice):
            start, stop, step = _bounds(x, axis, item)
            shape.append((stop - start + (abs(step) - 1)) // abs(step))
            if step < 0:
                flips.append(axis)
        else:
            if array is not None:
                raise GraphError(
                    f"{_at(x)}: several integer arrays in one index are not supported; index one axis at a time"
                )
            array = (len(shape), item)
            shape.append(extent)
        starts.append(start)
        stops.append(stop)
        steps.append(abs(step))
        axis += 1
    out = x
    if any(starts) or tuple(stops) != x.shape or any(s != 1 for s in steps):
        out = apply("slice", x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
    if flips:
        out = apply("flip", out, axes=tuple(flips))
    out = reshape_to(out, tuple(shape))
    if array is None:
        return out
    indices = as_node(x, array[1])
    return take_checked(out, indices, array[0])


def take_checked(x: Node, indices: Node, axis: int) -> Node:
    """The slices of x at indices along an axis; negative ones count from the end, IndexError at the call outside."""
    return apply("take", x, apply("check_index", indices, extent=x.shape[axis]), axis=axis)


def _at(x: Node) -> str:
    place = user_loc(1)
    return f"index of {describe(x)}" + (f" at {place}" if place is not None else "")


def _is_integer(item: object) -> bool:
    return isinstance(item, int | np.integer | Dim) and not isinstance(item, bool)


def _expand(x: Node, items: tuple[Any, ...]) -> list[Any]:
    """The items with lists as arrays, the ellipsis written out, and one item for each axis."""
    items = tuple([_listed(i) for i in items])  # pyright: ignore[reportUnknownArgumentType] any list
    for item in items:
        _check_item(x, item)
    used = sum(i is not None and i is not Ellipsis for i in items)
    if used > x.ndim:
        raise ShapeError(f"{_at(x)}: {used} indices for {x.ndim} dimensions")
    places = [k for k, item in enumerate(items) if item is Ellipsis]
    if len(places) > 1:
        raise ShapeError(f"{_at(x)}: more than one ellipsis")
    place = places[0] if places else len(items)
    rest = [slice(None)] * (x.ndim - used)
    return [*items[:place], *rest, *items[place + 1 :]]


def _listed(item: Any) -> Any:
    if not isinstance(item, list):
        return item
    array = np.asarray(item)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType] any list
    return array if array.size else array.astype(np.int64)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


def _check_item(x: Node, item: Any) -> None:
    if item is None or item is Ellipsis or isinstance(item, slice) or _is_integer(item):
        return
    dtype = _array_dtype(item)
    if isinstance(item, bool | np.bool_) or dtype is bool_:
        raise ShapeError(
            f"{_at(x)}: a boolean index gives a shape that only values decide; use sg.where to keep the shape, "
            "or sg.nonzero(mask, size=...) and take"
        )
    if dtype is None or not dtype.is_integer:
        raise GraphError(
            f"{_at(x)}: an index is an integer, slice, None, ... or an integer array, "
            f"got {dtype or type(item).__name__}"
        )


def _array_dtype(item: Any) -> DType | None:
    return as_dtype(item.dtype) if isinstance(item, Node | np.ndarray) else None  # pyright: ignore[reportUnknownArgumentType, reportUnknownMemberType] any array


def _position(x: Node, axis: int, item: Any) -> Extent:
    extent = x.shape[axis]
    if isinstance(item, Dim):
        return item
    position = int(item)
    if isinstance(extent, int) and not -extent <= position < extent:
        raise ShapeError(f"{_at(x)}: {position} is out of range for axis {axis} of extent {extent}")
    return position if position >= 0 else extent + position


def _bounds(x: Node, axis: int, item: Any) -> tuple[Extent, Extent, int]:
    """Start and stop of the elements in ascending order, and the step with its sign."""
    extent = x.shape[axis]
    step = 1 if item.step is None else int(item.step)
    if step == 0:
        raise ShapeError(f"{_at(x)}: the step of a slice cannot be 0")
    first, last = item.start, item.stop
    if isinstance(extent, int) and not isinstance(first, Dim) and not isinstance(last, Dim):
        start, stop, _ = item.indices(extent)
        if step > 0:
            return start, max(start, stop), step
        low = min(stop, start) + 1
        count = (start + 1 - low + -step - 1) // -step
        # Begin at the element visited last, so that the reversed order visits the same ones.
        return (start + 1 - ((count - 1) * -step + 1), start + 1, step) if count else (0, 0, step)
    if step > 0:
        start = 0 if first is None else _from_start(first, extent)
        stop = extent if last is None else _from_start(last, extent)
        return start, stop, step
    stop = extent if first is None else _from_start(first, extent) + 1
    low = 0 if last is None else _from_start(last, extent) + 1
    count = (stop - low + (-step - 1)) // -step
    return stop - ((count - 1) * -step + 1), stop, step


def _from_start(bound: Any, extent: Extent) -> Extent:
    if isinstance(bound, Dim):
        return bound
    return int(bound) if int(bound) >= 0 else extent + int(bound)
