"""`x[...]` on nodes, and what it takes to write there.

An index may hold integers, slices, None, one ellipsis and integer arrays, with the meaning NumPy gives them. Where the
extent of an axis is symbolic, integers and slice bounds are taken to lie within it: `x[1:]` of an axis `n` has extent
`n - 1`, and a call with an extent for which a bound does not lie within the axis fails with a ShapeError, where NumPy
would clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from symgrad.errors import GraphError, ShapeError, user_loc
from symgrad.graph import Node, describe
from symgrad.operators import as_node, binary, common
from symgrad.ops.build import apply, broadcast_to, inverse_order, permute_to, reshape_to, slice_axis, source
from symgrad.record import record, replace
from symgrad.types import Dim, DType, Extent, Shape, as_dtype, bool_, int64, size_of, uint64

MODES = ("raise", "clip", "wrap")


@record
class Span:
    """What an index selects along one axis: indices, or every step-th element from `start` up to `stop`.

    A negative step selects the same elements in reverse order. An axis with an integer is not kept. `apart` says that
    an ellipsis of no axes stands before it, which parts arrays as one of axes does.
    """

    start: Extent
    stop: Extent
    step: int = 1
    kept: bool = True
    indices: Node | None = None
    apart: bool = False

    @property
    def extent(self) -> Extent:
        return (self.stop - self.start + (abs(self.step) - 1)) // abs(self.step)


Selection: TypeAlias = "tuple[Span | None, ...]"


def index_node(x: Node, index: Any) -> Node:
    """The elements of a node at an index, as NumPy gives them."""
    items = selection(x, index)
    arrays = [s.indices for s in items if s is not None and s.indices is not None]
    if not arrays:
        return selected(x, items)
    if len(arrays) > 1:
        return Gathering(x, items).taken()
    # One array needs no arithmetic on indices: everything else is a view before it.
    place = sum(item is None or item.kept for item in items[: _first_array(items)])
    whole = tuple(Span(0, s.stop) if s is not None and s.indices is not None else s for s in items)
    taken = apply("take", selected(x, whole), arrays[0], axis=place)
    if _is_adjacent(items):
        return taken
    block = range(place, place + arrays[0].ndim)
    return permute_to(taken, (*block, *(k for k in range(taken.ndim) if k not in block)))


def selection(x: Node, index: Any) -> Selection:
    """What an index selects along each axis, and None for each new one. Indices of arrays are checked at the call."""
    out: list[Span | None] = []
    axis = 0
    expanded, split = _expand(x, index if isinstance(index, tuple) else (index,))  # pyright: ignore[reportUnknownArgumentType] any index
    for item in expanded:
        if item is None:
            out.append(None)
            continue
        extent = x.shape[axis]
        if _is_integer(item):
            start = _position(x, axis, item)
            out.append(Span(start, start + 1, kept=False))
        elif isinstance(item, slice):
            out.append(Span(*_bounds(x, axis, item)))
        else:
            out.append(Span(0, extent, indices=index_within(as_node(x, item), extent)))
        axis += 1
    if split is not None and (behind := out[split]) is not None:
        out[split] = replace(behind, apart=True)
    return tuple(out)


def selected(x: Node, items: Selection) -> Node:
    """The elements at a selection without arrays."""
    spans = spans_of(items)
    if not all(map(_is_whole, (replace(s, step=abs(s.step), kept=True) for s in spans), x.shape)):
        starts, stops = tuple(s.start for s in spans), tuple(s.stop for s in spans)
        x = apply("slice", x, starts=starts, stops=stops, steps=tuple(abs(s.step) for s in spans))
    flips = tuple(k for k, s in enumerate(spans) if s.step < 0)
    if flips:
        x = apply("flip", x, axes=flips)
    return reshape_to(x, kept_shape(items))


def spans_of(items: Selection) -> list[Span]:
    """What is selected along each axis of the operand."""
    return [s for s in items if s is not None]


def kept_shape(items: Sequence[Span | None]) -> Shape:
    """The shape of the result of a selection without arrays."""
    return tuple(1 if s is None else s.extent for s in items if s is None or s.kept)


def take_checked(x: Node, indices: Node, axis: int, mode: str = "raise") -> Node:
    """The slices of x at indices along an axis; negative ones count from the end, IndexError at the call outside."""
    return apply("take", x, index_within(indices, x.shape[axis], mode), axis=axis)


def index_within(indices: Node, extent: Extent, mode: str = "raise") -> Node:
    """Indices counted from the start of an axis.

    The modes are those of `numpy.take`: "raise" takes negative indices to count from the end and reports others out of
    range at the call; "clip" takes the nearest element, the first for negative ones; "wrap" takes indices modulo the
    extent. An axis without elements is an IndexError in every mode, unless there are no indices.
    """
    if mode not in MODES:
        raise ValueError(f"the mode of an index is one of {', '.join(map(repr, MODES))}, got {mode!r}")
    if mode != "raise":
        # In 64 bits, because the extent may not fit the data type of the indices.
        wide = indices if indices.dtype in (int64, uint64) else apply("astype", indices, dtype=int64)
        limit = as_node(wide, extent)
        indices = binary("remainder", wide, limit)
        if mode == "clip":
            indices = binary("minimum", binary("maximum", wide, 0), binary("subtract", limit, 1))
    return apply("check_index", indices, extent=extent)


class Gathering:
    """A selection with arrays as one `take`: the axes from the first to the last that is not whole, merged into one.

    `indices` are the places along the merged axis, `shape` is that of the result. Nothing is moved in memory: an axis
    between two arrays becomes a part of the indices.
    """

    def __init__(self, x: Node, items: Selection) -> None:
        spans = spans_of(items)
        places = [k for k, s in enumerate(spans) if not _is_whole(s, x.shape[k])]
        first, last = places[0], places[-1]
        self.x, self.axis = x, first
        self.run: Shape = x.shape[first : last + 1]
        merged = spans[first : last + 1]
        block, self.indices = _merged_indices(x, merged, self.run, _is_adjacent(items))
        self.order = tuple(range(x.ndim - len(merged) + self.indices.ndim))
        rest = [s for s in items if s is None or s.indices is None]
        before = sum(s is None or s.kept for s in items[: _first_array(items)])
        if not _is_adjacent(items):
            moved = range(first, first + len(block))
            self.order = (*moved, *(k for k in self.order if k not in moved))
            before = 0
        self.shape: Shape = (*kept_shape(rest[:before]), *block, *kept_shape(rest[before:]))

    def flat(self, x: Node) -> Node:
        """A node of the shape of x with the merged axis."""
        behind = self.axis + len(self.run)
        return reshape_to(x, (*x.shape[: self.axis], size_of(self.run), *x.shape[behind:]))

    def taken(self) -> Node:
        """The elements."""
        found = apply("take", self.flat(self.x), self.indices, axis=self.axis)
        return reshape_to(permute_to(found, self.order), self.shape)

    def scattered(self, combine: str, updates: Node) -> Node:
        """x with updates of `shape` brought in by a scatter operator."""
        behind = self.axis + len(self.run)
        natural: Shape = (*self.x.shape[: self.axis], *self.indices.shape, *self.x.shape[behind:])
        rows = reshape_to(updates, tuple(natural[k] for k in self.order))
        rows = permute_to(rows, inverse_order(self.order))
        out = apply(combine, self.flat(self.x), self.indices, rows, axis=self.axis)
        return reshape_to(out, self.x.shape)


def _merged_indices(x: Node, spans: Sequence[Span], run: Shape, adjacent: bool) -> tuple[Shape, Node]:
    """The common shape of the arrays, and the places along the axes of `run` in row-major order.

    The axes of the arrays stand where the first one is among the axes of ranges, or before all of them.
    """
    arrays = [s.indices for s in spans if s.indices is not None]
    if len(spans) == 1:
        return arrays[0].shape, arrays[0]
    arrays = [a if a.dtype is int64 else apply("astype", a, dtype=int64) for a in arrays]
    arrays = common("index", *arrays, dtypes=False)
    block = arrays[0].shape
    ranges = [s for s in spans if s.indices is None and s.kept]
    ahead = sum(s.kept for s in spans[: _first_array(spans)]) if adjacent else 0
    lead, tail = kept_shape(ranges[:ahead]), kept_shape(ranges[ahead:])
    full: Shape = (*lead, *block, *tail)
    total: Node | None = None
    offset: Extent = 0
    pending = iter(arrays)
    axis = 0  # of the next range among `full`
    for k, span in enumerate(spans):
        stride = size_of(run[k + 1 :])
        if span.indices is not None:
            part = reshape_to(next(pending), (*(1,) * len(lead), *block, *(1,) * len(tail)))
            # Times 0 the check of the index would be left out, and over an axis without elements any stride will do.
            part = part if stride in (0, 1) else binary("multiply", part, stride)
        elif span.kept:
            place = axis if axis < len(lead) else axis + len(block)
            part = places_along(x, span, run[k], stride)
            part = reshape_to(part, tuple(span.extent if j == place else 1 for j in range(len(full))))
            axis += 1
        else:
            offset = offset + span.start * stride
            continue
        total = part if total is None else binary("add", total, part)
    assert total is not None
    return block, broadcast_to(total if offset == 0 else binary("add", total, offset), full)


def places_along(x: Node, span: Span, extent: Extent, stride: Extent) -> Node:
    """The places that a range selects along an axis of this extent, times the stride."""
    step = abs(span.step)
    if isinstance(stride, int) and stride > 0:
        # Every stride-th number instead of a product: an index expression.
        all_places = source(x.graph, "iota", extent=extent * stride, dtype=int64)
        out = slice_axis(all_places, 0, span.start * stride, span.stop * stride, step * stride)
    else:
        all_places = source(x.graph, "iota", extent=extent, dtype=int64)
        out = binary("multiply", slice_axis(all_places, 0, span.start, span.stop, step), stride)
    return apply("flip", out, axes=(0,)) if span.step < 0 else out


def _first_array(items: Sequence[Span | None]) -> int:
    return next(k for k, s in enumerate(items) if s is not None and s.indices is not None)


def _is_whole(span: Span, extent: Extent) -> bool:
    return span.indices is None and (span.start, span.stop, span.step, span.kept) == (0, extent, 1, True)


def _is_adjacent(items: Selection) -> bool:
    """Whether the arrays stand side by side, integers being arrays too, so that their axes stay in place."""
    places = [k for k, s in enumerate(items) if s is not None and (s.indices is not None or not s.kept)]
    inner = items[places[0] + 1 : places[-1] + 1]
    return len(inner) + 1 == len(places) and not any(s is not None and s.apart for s in inner)


def diagonal_first(x: Node, axes: Sequence[int]) -> Node:
    """The elements whose places along these axes, of one extent, are equal: first the joint axis, then the others."""
    extent = x.shape[axes[0]]
    each = source(x.graph, "iota", extent=extent, dtype=int64)
    items = tuple(Span(0, e, indices=each if k in axes else None) for k, e in enumerate(x.shape))
    found = Gathering(x, items).taken()
    if not _is_adjacent(items):
        return found
    return permute_to(found, (axes[0], *(k for k in range(found.ndim) if k != axes[0])))


def _at(x: Node) -> str:
    place = user_loc(1)
    return f"index of {describe(x)}" + (f" at {place}" if place is not None else "")


def _is_integer(item: object) -> bool:
    return isinstance(item, int | np.integer | Dim) and not isinstance(item, bool)


def _expand(x: Node, items: tuple[Any, ...]) -> tuple[list[Any], int | None]:
    """The items with lists as arrays, the ellipsis written out, and one item for each axis.

    And which item follows an ellipsis of no axes, if there is one.
    """
    items = tuple([listed(i) for i in items])  # pyright: ignore[reportUnknownArgumentType] any list
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
    split = place if places and not rest and place + 1 < len(items) else None
    return [*items[:place], *rest, *items[place + 1 :]], split


def listed(item: Any) -> Any:
    """A list as an array, of integers when it is empty; anything else as it is."""
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
