"""Functions that make nodes from numbers and extents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from symgrad import types
from symgrad.arguments import checked
from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Graph, Node, checked_shape, describe
from symgrad.operators import apply, binary, broadcast_to, constant_like, filled, reshape_to, source
from symgrad.types import DType, Extent, Shape, as_dtype, float32, int64

if TYPE_CHECKING:
    from symgrad.types import DTypeLike


def _dtype(name: str, dtype: DTypeLike) -> DType:
    found = as_dtype(dtype)
    if found is None:
        raise DTypeError(f"{name}: symgrad has no data type {dtype!r}; it has {', '.join(types.DTYPES)}")
    return found


@checked
def full(graph: Graph, shape: Extent | Sequence[Extent], fill_value: float, dtype: DTypeLike = float32) -> Node:
    """A node of this shape with every element the value."""
    return filled(graph, checked_shape("full", shape), _dtype("full", dtype), fill_value)


@checked
def zeros(graph: Graph, shape: Extent | Sequence[Extent], dtype: DTypeLike = float32) -> Node:
    """A node of this shape with every element 0."""
    return full(graph, shape, 0, dtype)


@checked
def ones(graph: Graph, shape: Extent | Sequence[Extent], dtype: DTypeLike = float32) -> Node:
    """A node of this shape with every element 1."""
    return full(graph, shape, 1, dtype)


@checked
def empty(graph: Graph, shape: Extent | Sequence[Extent], dtype: DTypeLike = float32) -> Node:
    """A node of this shape whose elements do not matter: zeros, because a graph holds values and not memory."""
    return zeros(graph, shape, dtype)


@checked
def full_like(x: Node, fill_value: float, dtype: DTypeLike | None = None) -> Node:
    """A node of the shape and, unless another is given, the data type of x with every element the value."""
    return full(x.graph, x.shape, fill_value, x.dtype if dtype is None else dtype)


@checked
def zeros_like(x: Node, dtype: DTypeLike | None = None) -> Node:
    """Zeros in the shape and data type of x."""
    return full_like(x, 0, dtype)


@checked
def ones_like(x: Node, dtype: DTypeLike | None = None) -> Node:
    """Ones in the shape and data type of x."""
    return full_like(x, 1, dtype)


@checked
def empty_like(x: Node, dtype: DTypeLike | None = None) -> Node:
    """A node of the shape and data type of x whose elements do not matter; see `empty`."""
    return zeros_like(x, dtype)


@checked
def arange(
    graph: Graph,
    start: Extent | float,
    stop: Extent | float | None = None,
    step: float = 1,
    dtype: DTypeLike | None = None,
) -> Node:
    """start, start + step, … before stop, or 0, 1, … before the one number given.

    int64, or float32 when a number is a float. Extents may be symbolic where the step is 1.
    """
    first, last = (0, start) if stop is None else (start, stop)
    floating = any(isinstance(v, float) for v in (first, last, step))
    target = (float32 if floating else int64) if dtype is None else _dtype("arange", dtype)
    if not isinstance(first, types.Dim) and not isinstance(last, types.Dim):
        if step == 1 and not floating:
            return _shifted_iota(graph, max(int(last) - int(first), 0), int(first), target)
        return graph.const(np.arange(first, last, step), target)
    if step != 1 or floating:
        raise ShapeError("arange: symbolic extents need integers and step 1; scale and shift the result instead")
    extent = last - first  # pyright: ignore[reportOperatorIssue, reportUnknownVariableType] no floats here
    return _shifted_iota(graph, extent, first, target)  # pyright: ignore[reportArgumentType, reportUnknownArgumentType]


def _shifted_iota(graph: Graph, extent: Extent, start: Extent, dtype: DType) -> Node:
    index = source(graph, "iota", extent=extent, dtype=dtype)
    return index if start == 0 else binary("add", index, start)


@checked
def linspace(
    graph: Graph, start: float, stop: float, num: int, *, endpoint: bool = True, dtype: DTypeLike = float32
) -> Node:
    """num evenly spaced numbers from start to stop, computed in float64."""
    return graph.const(np.linspace(start, stop, num, endpoint=endpoint), _dtype("linspace", dtype))


def eye(graph: Graph, rows: Extent, columns: Extent | None = None, *, k: int = 0, dtype: DTypeLike = float32) -> Node:
    """Ones on diagonal k (above the main one if positive), zeros elsewhere; square unless columns are given."""
    shape = checked_shape("eye", (rows, rows if columns is None else columns))
    row, column = _positions(graph, shape)
    return apply("astype", binary("equal", row + k, column), dtype=_dtype("eye", dtype))


@checked
def tril(x: Node, k: int = 0) -> Node:
    """x with zeros above diagonal k of its last two axes."""
    row, column = _matrix_positions("tril", x)
    return apply("where", broadcast_to(binary("less_equal", column, row + k), x.shape), x, constant_like(x, 0))


@checked
def triu(x: Node, k: int = 0) -> Node:
    """x with zeros below diagonal k of its last two axes."""
    row, column = _matrix_positions("triu", x)
    return apply("where", broadcast_to(binary("greater_equal", column, row + k), x.shape), x, constant_like(x, 0))


def _matrix_positions(name: str, x: Node) -> tuple[Node, Node]:
    if x.ndim < 2:
        raise ShapeError(f"{name}: {describe(x)} has fewer than 2 dimensions")
    return _positions(x.graph, x.shape[-2:])


def _positions(graph: Graph, shape: Shape) -> tuple[Node, Node]:
    """The row numbers as a column and the column numbers as a row."""
    row, column = (source(graph, "iota", extent=extent, dtype=int64) for extent in shape)
    return reshape_to(row, (shape[0], 1)), reshape_to(column, (1, shape[1]))
