"""Functions that arrange elements: shapes, axes, joining and cutting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from symgrad.arguments import checked, not_a_node
from symgrad.errors import ShapeError
from symgrad.graph import Node, Operand, checked_shape, describe
from symgrad.operators import apply, common, of_one_dtype, permute_to, reshape_to
from symgrad.operators import broadcast_to as broadcast_node
from symgrad.ops.build import scalar_literal, slice_axis
from symgrad.types import Dim, Extent, Shape, size_of

if TYPE_CHECKING:
    from symgrad.types import Array


@checked
def shape(x: Node) -> Shape:
    """The extents of x; symbolic ones work in shapes and arithmetic."""
    return x.shape


def normal_axis(name: str, x: Node, axis: int | None, ndim: int | None = None) -> int:
    """The axis counted from the start. ShapeError when x has no such axis, or none is given; TypeError for no node."""
    if not isinstance(x, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise not_a_node(name, x)
    count = x.ndim if ndim is None else ndim
    if axis is None:
        raise ShapeError(f"{name}: {describe(x)} has {count} dimensions; say which axis")
    if not isinstance(axis, int | np.integer):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise TypeError(f"{name}: an axis is an integer, got {axis!r} for {describe(x)}")
    if not -count <= axis < count:
        raise ShapeError(f"{name}: axis {axis} is out of range for {describe(x)}")
    return int(axis) % count


def normal_axes(name: str, x: Node, axis: int | Sequence[int] | None, ndim: int | None = None) -> tuple[int, ...]:
    """The axes counted from the start and sorted, all of them for None. ShapeError for one that repeats."""
    if axis is None:
        return tuple(range(x.ndim))
    given = axis if isinstance(axis, Sequence) else (axis,)
    axes = sorted(normal_axis(name, x, a, ndim) for a in given)
    if any(a == b for a, b in pairwise(axes)):
        raise ShapeError(f"{name}: axes {tuple(given)} of {describe(x)} repeat")
    return tuple(axes)


def keep_axes(reduced: Node, shape: Shape, axes: Sequence[int]) -> Node:
    """A reduced node with its axes back, with extent 1."""
    return reshape_to(reduced, tuple(1 if k in axes else e for k, e in enumerate(shape)))


@checked
def reshape(x: Node, shape: Extent | Sequence[Extent]) -> Node:
    """The elements in row-major order under another shape; one extent may be -1 and is computed.

    ShapeError when the numbers of elements differ; with symbolic extents the call decides.
    """
    given: list[Any] = list(shape) if isinstance(shape, Iterable) else [shape]  # pyright: ignore[reportUnnecessaryIsInstance, reportUnknownArgumentType] users pass anything
    free = [k for k, extent in enumerate(given) if isinstance(extent, int | np.integer) and extent == -1]
    wanted = list(checked_shape("reshape", [1 if k in free else extent for k, extent in enumerate(given)]))
    if len(free) > 1:
        raise ShapeError(f"reshape: only one extent can be -1, got {tuple(given)}")
    if free:
        known, total = size_of(tuple(wanted)), size_of(x.shape)
        if isinstance(known, int) and isinstance(total, int) and (known == 0 or total % known):
            raise ShapeError(f"reshape: {describe(x)} has {total} elements, which {known} does not divide")
        wanted[free[0]] = total // known
    return reshape_to(x, tuple(wanted))


@checked
def permute_dims(x: Node, axes: Sequence[int]) -> Node:
    """The axes in another order: axis k of the result is axis axes[k] of x."""
    if sorted(normal_axis("permute_dims", x, a) for a in axes) != list(range(x.ndim)):
        raise ShapeError(f"permute_dims: axes {tuple(axes)} are not an order of the axes of {describe(x)}")
    return permute_to(x, [a % x.ndim for a in axes])


@checked
def moveaxis(x: Node, source: int | Sequence[int], destination: int | Sequence[int]) -> Node:
    """Axes moved to other places, the rest in their order."""
    sources = [source] if isinstance(source, int) else list(source)
    places = [destination] if isinstance(destination, int) else list(destination)
    start = [normal_axis("moveaxis", x, a) for a in sources]
    goal = [normal_axis("moveaxis", x, a) for a in places]
    if len(start) != len(goal) or len(set(start)) != len(start) or len(set(goal)) != len(goal):
        raise ShapeError(f"moveaxis: {sources} and {places} must be equally many distinct axes")
    order = [k for k in range(x.ndim) if k not in start]
    for place, axis in sorted(zip(goal, start, strict=True)):
        order.insert(place, axis)
    return permute_to(x, order)


@checked
def expand_dims(x: Node, axis: int | Sequence[int] = 0) -> Node:
    """Axes of extent 1 inserted, at these places of the result."""
    count = x.ndim + (len(axis) if isinstance(axis, Sequence) else 1)
    axes = normal_axes("expand_dims", x, axis, count)
    rest = iter(x.shape)
    return reshape_to(x, tuple(1 if k in axes else next(rest) for k in range(count)))


@checked
def squeeze(x: Node, axis: int | Sequence[int]) -> Node:
    """Axes of extent 1 removed. ShapeError for another extent; for a symbolic one the call decides."""
    axes = normal_axes("squeeze", x, axis)
    for a in axes:
        if isinstance(x.shape[a], int) and x.shape[a] != 1:
            raise ShapeError(f"squeeze: axis {a} of {describe(x)} has extent {x.shape[a]}, not 1")
    return reshape_to(x, tuple(e for k, e in enumerate(x.shape) if k not in axes))


@checked
def broadcast_to(x: Node, shape: Extent | Sequence[Extent]) -> Node:
    """x with leading axes added and axes of extent 1 stretched to this shape."""
    return broadcast_node(x, checked_shape("broadcast_to", shape))


def broadcast_arrays(*arrays: Operand) -> list[Node]:
    """The operands in their common shape, each in its data type."""
    return common("broadcast_arrays", *arrays, dtypes=False)


@checked
def flip(x: Node, axis: int | Sequence[int] | None = None) -> Node:
    """The order of the elements reversed along axes, all by default."""
    axes = normal_axes("flip", x, axis)
    return apply("flip", x, axes=axes) if axes else x


def concat(arrays: Sequence[Operand], axis: int | None = 0) -> Node:
    """The arrays one after another along an axis that exists, flattened first for None. Data types promote."""
    nodes = _given("concat", arrays)
    if axis is None:
        nodes, axis = [reshape(n, (-1,)) for n in nodes], 0
    place = normal_axis("concat", nodes[0], axis)
    return nodes[0] if len(nodes) == 1 else apply("concat", *nodes, axis=place)


def stack(arrays: Sequence[Operand], axis: int = 0) -> Node:
    """Arrays of one shape along a new axis at this place of the result."""
    nodes = _given("stack", arrays)
    place = normal_axis("stack", nodes[0], axis, nodes[0].ndim + 1)
    return concat([expand_dims(n, place) for n in nodes], place)


def _given(name: str, arrays: Sequence[Operand]) -> list[Node]:
    if not isinstance(arrays, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise not_a_node(name, arrays)
    if len(arrays) == 0:
        raise ShapeError(f"{name}: at least one array is needed")
    return of_one_dtype(name, arrays)


def unstack(x: Node, axis: int = 0) -> tuple[Node, ...]:
    """The slices along an axis of known extent, without it."""
    place = normal_axis("unstack", x, axis)
    parts = _cut(x, place, range(1, _known("unstack", x, place)))
    return tuple([squeeze(part, place) for part in parts])


def _known(name: str, x: Node, axis: int) -> int:
    extent = x.shape[axis]
    if isinstance(extent, Dim):
        raise ShapeError(f"{name}: the extent {extent} of axis {axis} of {describe(x)} is not known; use slices")
    return extent


def _cut(x: Node, axis: int, places: Sequence[Extent]) -> list[Node]:
    if x.shape[axis] == 0 and not places:
        return []
    bounds = [0, *places, x.shape[axis]]
    return [slice_axis(x, axis, start, stop) for start, stop in pairwise(bounds)]


@checked
def split(x: Node, sections: int | Sequence[Extent], axis: int = 0) -> list[Node]:
    """Equal parts of an axis of known extent, or the parts between the given places of any axis."""
    place = normal_axis("split", x, axis)
    if isinstance(sections, Sequence):
        return [slice_axis(x, place, a, b) for a, b in pairwise([0, *sections, x.shape[place]])]
    extent = _known("split", x, place)
    if sections < 1 or extent % sections:
        raise ShapeError(f"split: axis {place} of {describe(x)} is not a multiple of {sections}; give the places")
    width = extent // sections
    return [slice_axis(x, place, k * width, (k + 1) * width) for k in range(sections)]


@checked
def pad(x: Node, pad_width: int | Sequence[int] | Sequence[Sequence[Extent]], constant_values: float = 0) -> Node:
    """x with a fill around it: one width, a pair (before, after) for every axis, or a pair for each axis."""
    pairs = _pad_pairs(x, pad_width)
    low, high = tuple(p[0] for p in pairs), tuple(p[1] for p in pairs)
    if all(w == 0 for w in (*low, *high)):
        return x
    return apply("pad", x, low=low, high=high, value=scalar_literal(x.dtype, constant_values))


def _pad_pairs(x: Node, width: int | Sequence[int] | Sequence[Sequence[Extent]]) -> list[tuple[Extent, Extent]]:
    if not isinstance(width, Sequence):
        return [(width, width)] * x.ndim
    pairs: list[tuple[Extent, Extent]] = []
    for pair in width:
        if not isinstance(pair, Sequence):
            pairs = [(width[0], width[-1])] * x.ndim  # pyright: ignore[reportAssignmentType] one pair for every axis
            break
        pairs.append((pair[0], pair[-1]))
    if len(pairs) == 1:
        pairs *= x.ndim
    if len(pairs) != x.ndim:
        raise ShapeError(f"pad: {describe(x)} has {x.ndim} dimensions, got {len(pairs)} pairs of widths")
    return pairs


@checked
def tile(x: Node, repetitions: int | Sequence[int]) -> Node:
    """x repeated as a whole along its axes; missing repetitions are 1, missing axes are added in front."""
    counts = list(repetitions) if isinstance(repetitions, Sequence) else [repetitions]
    counts = [1] * (x.ndim - len(counts)) + counts
    x = reshape_to(x, (1,) * (len(counts) - x.ndim) + x.shape)
    split_shape = tuple(e for extent in x.shape for e in (1, extent))
    full = tuple(e for count, extent in zip(counts, x.shape, strict=True) for e in (count, extent))
    out = tuple(count * extent for count, extent in zip(counts, x.shape, strict=True))
    return reshape_to(broadcast_node(reshape_to(x, split_shape), full), out)


@checked
def repeat(x: Node, repeats: Extent | Sequence[int] | Array, axis: int | None = None) -> Node:
    """Every element repeated so many times along an axis, of the flattened node by default.

    `repeats` is one number, or a sequence with a number for each element of an axis of known extent: numbers and not
    nodes, because they decide the shape.
    """
    if isinstance(repeats, Node):
        raise ShapeError(f"repeat: {describe(repeats)} would decide the shape; give numbers, or use take")
    if axis is None:
        x, axis = reshape(x, (-1,)), 0
    place = normal_axis("repeat", x, axis)
    if isinstance(repeats, Sequence | np.ndarray):
        return _repeat_each(x, np.asarray(repeats), place)
    (repeats,) = checked_shape("repeat", repeats)
    head, extent, tail = x.shape[:place], x.shape[place], x.shape[place + 1 :]
    spread = broadcast_node(reshape_to(x, (*head, extent, 1, *tail)), (*head, extent, repeats, *tail))
    return reshape_to(spread, (*head, extent * repeats, *tail))


def _repeat_each(x: Node, repeats: Array, axis: int) -> Node:
    if repeats.ndim > 1 or repeats.dtype.kind not in "iu" or (repeats < 0).any():
        raise ShapeError(f"repeat: repeats must be integers of at least 0 in one row, got {repeats!r}")
    if repeats.size == 1:
        return repeat(x, int(repeats.reshape(())), axis)
    extent = _known("repeat", x, axis)
    if repeats.size != extent:
        raise ShapeError(f"repeat: {repeats.size} repeats for axis {axis} of {describe(x)}")
    return apply("take", x, x.graph.const(np.repeat(np.arange(extent), repeats)), axis=axis)


@checked
def roll(x: Node, shift: int | Sequence[int], axis: int | Sequence[int] | None = None) -> Node:
    """The elements moved along axes, those that leave coming in at the other end; flattened first by default.

    Along a symbolic extent the shift must be smaller than the extent of the call.
    """
    if axis is None:
        return reshape_to(roll(reshape(x, (-1,)), shift, 0), x.shape)
    axes = list(axis) if isinstance(axis, Sequence) else [axis]
    shifts = list(shift) if isinstance(shift, Sequence) else [shift] * len(axes)
    if len(axes) != len(shifts):
        raise ShapeError(f"roll: {len(shifts)} shifts for {len(axes)} axes")
    for given, along in zip(shifts, axes, strict=True):
        place = normal_axis("roll", x, along)
        extent = x.shape[place]
        by = given if isinstance(extent, Dim) or not extent else given % extent
        if by and extent:
            cut = extent - by if by > 0 else -by
            x = apply("concat", slice_axis(x, place, cut, extent), slice_axis(x, place, 0, cut), axis=place)
    return x
