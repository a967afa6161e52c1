"""Operators whose output elements are input elements, or a fill, at an index that depends on the output index alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Kind, defop
from symgrad.ops.build import apply, inverse_order, pad_axis, permute_to, reshape_to, scalar_literal, slice_axis
from symgrad.ops.references import flipped_values, joined_values, sliced_values
from symgrad.storage import Literal
from symgrad.types import Dim, Extent, Shape, Type, as_dtype, size_of

if TYPE_CHECKING:
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def may_equal(a: Extent, b: Extent) -> bool:
    """Whether two extents are equal or, one being symbolic, may turn out to be at the call."""
    return a == b or isinstance(a, Dim) or isinstance(b, Dim)


def same_extent(extents: Sequence[Extent]) -> Extent | None:
    """The one value of extents that must be equal, an integer if one is known; None when they cannot be equal."""
    known = [e for e in extents if isinstance(e, int)]
    if any(e != known[0] for e in known):
        return None
    return known[0] if known else extents[0]


def check_axis(axis: int, ndim: int) -> None:
    """Raise unless the axis is one of a node of that many axes, counted from the start."""
    if not 0 <= axis < ndim:
        raise ShapeError(f"axis {axis} is out of range for {ndim} dimensions")


def _reshape_type(x: Type, shape: Shape) -> Type:
    have, want = size_of(x.shape), size_of(shape)
    if any(isinstance(e, int) and e < 0 for e in shape) or not may_equal(have, want):
        raise ShapeError(f"cannot reshape {x.shape} ({have} elements) to {shape} ({want} elements)")
    return Type(shape, x.dtype)


def _permute_type(x: Type, axes: tuple[int, ...]) -> Type:
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(f"axes {axes} are not an order of the {x.ndim} dimensions of {x.shape}")
    return Type(tuple(x.shape[a] for a in axes), x.dtype)


def check_broadcast(shape: Shape, target: Shape) -> None:
    """Raise unless a shape broadcasts to a target; symbolic extents are decided at the call."""
    lead = len(target) - len(shape)
    if lead < 0 or not all(e == 1 or may_equal(e, t) for e, t in zip(shape, target[lead:], strict=True)):
        raise ShapeError(f"shape {shape} does not broadcast to {target}")


def _broadcast_type(x: Type, shape: Shape) -> Type:
    check_broadcast(x.shape, shape)
    if any(isinstance(e, int) and e < 0 for e in shape):
        raise ShapeError(f"an extent is an integer of at least 0, got shape {shape}")
    return Type(shape, x.dtype)


def _slice_type(x: Type, starts: Shape, stops: Shape, steps: tuple[int, ...]) -> Type:
    if not len(starts) == len(stops) == len(steps) == x.ndim:
        raise ShapeError(f"one start, stop and step is needed for each of the {x.ndim} dimensions")
    shape: list[Extent] = []
    for axis, (extent, start, stop, step) in enumerate(zip(x.shape, starts, stops, steps, strict=True)):
        if step < 1 or any(isinstance(gap, int) and gap < 0 for gap in (start, stop - start, extent - stop)):
            raise ShapeError(f"slice {start}:{stop}:{step} does not lie within axis {axis} of extent {extent}")
        shape.append((stop - start + (step - 1)) // step)
    return Type(tuple(shape), x.dtype)


def _slice_vjp(n: Node, g: Node) -> Cotangents:
    starts, stops, steps = _slice_attrs(n)
    return (spread_slice(g, n.inputs[0].shape, starts, stops, steps),)


def spread_slice(g: Node, shape: Shape, starts: Shape, stops: Shape, steps: tuple[int, ...]) -> Node:
    """The elements of a slice at their places in an array of this shape, with zeros (False) at the other places."""
    for axis, step in enumerate(steps):
        if step == 1:
            continue
        # Put step - 1 zeros behind every element, then the rest of the axis, and cut what is too much.
        head, extent, tail = g.shape[:axis], g.shape[axis], g.shape[axis + 1 :]
        spread = pad_axis(reshape_to(g, (*head, extent, 1, *tail)), axis + 1, 0, step - 1)
        g = reshape_to(spread, (*head, extent * step, *tail))
        g = pad_axis(g, axis, starts[axis], shape[axis] - stops[axis])
        g = slice_axis(g, axis, 0, shape[axis])
    low = tuple(0 if step != 1 else start for start, step in zip(starts, steps, strict=True))
    high = tuple(0 if t != 1 else e - s for e, s, t in zip(shape, stops, steps, strict=True))
    if any(low) or any(high):
        g = apply("pad", g, low=low, high=high, value=scalar_literal(g.dtype, 0))
    return g


def _slice_attrs(n: Node) -> tuple[Shape, Shape, tuple[int, ...]]:
    starts, stops, steps = n.attrs
    return starts, stops, steps


def _pad_type(x: Type, low: Shape, high: Shape, value: Literal) -> Type:
    if not len(low) == len(high) == x.ndim:
        raise ShapeError(f"one width before and after is needed for each of the {x.ndim} dimensions")
    if any(isinstance(width, int) and width < 0 for width in (*low, *high)):
        raise ShapeError(f"widths {low} and {high} must not be negative; slice to make an axis shorter")
    if value.array.ndim or as_dtype(value.array.dtype) is not x.dtype:
        raise DTypeError(f"the fill must be one {x.dtype}, got {value.array.dtype}{list(value.array.shape)}")
    return Type(tuple(before + e + after for before, e, after in zip(low, x.shape, high, strict=True)), x.dtype)


def _pad_vjp(n: Node, g: Node) -> Cotangents:
    (x,) = n.inputs
    low = n.attrs[0]
    stops = tuple(before + e for before, e in zip(low, x.shape, strict=True))
    return (apply("slice", g, starts=low, stops=stops, steps=(1,) * x.ndim),)


def _pad_values(x: Array, low: tuple[int, ...], high: tuple[int, ...], value: Literal) -> Array:
    out = np.full([a + e + b for a, e, b in zip(low, x.shape, high, strict=True)], value.array, x.dtype)
    out[tuple(slice(a, a + e) for a, e in zip(low, x.shape, strict=True))] = x
    return out


def _flip_type(x: Type, axes: tuple[int, ...]) -> Type:
    if len(set(axes)) != len(axes):
        raise ShapeError(f"axes {axes} repeat")
    for axis in axes:
        check_axis(axis, x.ndim)
    return x


def _concat_type(*parts: Type, axis: int) -> Type:
    if not parts:
        raise ShapeError("at least one input is needed")
    first = parts[0]
    check_axis(axis, first.ndim)
    if any(p.dtype is not first.dtype for p in parts):
        raise DTypeError(f"data types differ: {', '.join(p.dtype.name for p in parts)}; use astype")
    if any(p.ndim != first.ndim for p in parts):
        raise ShapeError(f"numbers of dimensions differ: {', '.join(str(p.shape) for p in parts)}")
    shape: list[Extent] = []
    for k in range(first.ndim):
        extents = [p.shape[k] for p in parts]
        if k == axis:
            joined = extents[0]
            for extent in extents[1:]:
                joined = joined + extent
        else:
            joined = same_extent(extents)
            if joined is None:
                raise ShapeError(f"extents of axis {k} differ: {', '.join(map(str, extents))}")
        shape.append(joined)
    return Type(tuple(shape), first.dtype)


def _concat_vjp(n: Node, g: Node) -> Cotangents:
    axis: int = n.attrs[0]
    parts: list[Node] = []
    start: Extent = 0
    for part in n.inputs:
        stop = start + part.shape[axis]
        # An extent that one part knows as a number may have a name in another.
        parts.append(reshape_to(slice_axis(g, axis, start, stop), part.shape))
        start = stop
    return tuple(parts)


defop(
    "reshape",
    Kind.VIEW,
    attrs=("shape",),
    infer=_reshape_type,
    vjp=lambda n, g: (reshape_to(g, n.inputs[0].shape),),
    ref=np.reshape,
    linear=True,
    doc="The elements in row-major order under another shape.",
)
defop(
    "permute",
    Kind.VIEW,
    attrs=("axes",),
    infer=_permute_type,
    vjp=lambda n, g: (permute_to(g, inverse_order(n.attrs[0])),),
    ref=np.transpose,
    linear=True,
    doc="Axis k of the output is axis axes[k] of the input.",
)
defop(
    "broadcast",
    Kind.VIEW,
    attrs=("shape",),
    infer=_broadcast_type,
    vjp=lambda n, g: (apply("sum_to", g, shape=n.inputs[0].shape),),
    ref=np.broadcast_to,
    linear=True,
    doc="Leading axes added and axes of extent 1 stretched.",
)
defop(
    "slice",
    Kind.VIEW,
    attrs=("starts", "stops", "steps"),
    infer=_slice_type,
    vjp=_slice_vjp,
    ref=sliced_values,
    linear=True,
    doc="Along each axis the elements start, start + step, … before stop; 0 <= start <= stop <= extent, step >= 1.",
)
defop(
    "pad",
    Kind.VIEW,
    attrs=("low", "high", "value"),
    infer=_pad_type,
    vjp=_pad_vjp,
    ref=_pad_values,
    doc="A fill before and after the elements along each axis.",
)
defop(
    "flip",
    Kind.VIEW,
    attrs=("axes",),
    infer=_flip_type,
    vjp=lambda n, g: (apply("flip", g, axes=n.attrs[0]),),
    ref=flipped_values,
    linear=True,
    doc="The order of the elements reversed along the axes.",
)
defop(
    "concat",
    Kind.VIEW,
    attrs=("axis",),
    infer=_concat_type,
    vjp=_concat_vjp,
    ref=joined_values,
    linear=True,
    doc="The inputs one after another along an axis.",
)
