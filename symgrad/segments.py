"""Reductions over segments: rows of data whose ids are equal, in any order.

`segment_ids` are integers of any data type, in the shape of the first axes of the data. The result has `num_segments`
rows in place of these axes; row k combines the slices of the data whose id is k. An id that is not in
[0, num_segments) is an IndexError at the call. The order of additions is that of the data: the same bits in every run.
"""

from __future__ import annotations

from symgrad.arguments import checked
from symgrad.errors import DTypeError, ShapeError
from symgrad.functions import astype, maximum, where
from symgrad.graph import Node, Operand, checked_extent, describe
from symgrad.indexing import index_within
from symgrad.operators import apply, as_node, divide, filled, reshape_to
from symgrad.ops.indexed import least_or_greatest
from symgrad.ops.view import may_equal
from symgrad.types import Extent, Shape, float32, int64

__all__ = ["segment_max", "segment_mean", "segment_min", "segment_prod", "segment_sum"]


def segment_sum(data: Node, segment_ids: Operand, num_segments: Extent) -> Node:
    """The sum of each segment, in the data type of the data; 0 for an empty one.

    sg.segment_sum(messages, receivers, nodes)  # (edges, width), (edges,): (nodes, width)
    """
    return _combined("segment_sum", "scatter_add", data, segment_ids, num_segments, 0)


def segment_prod(data: Node, segment_ids: Operand, num_segments: Extent) -> Node:
    """The product of each segment, in the data type of the data; 1 for an empty one.

    The gradient is exact with any number of zeros; it takes time in proportion to the square of the number of ids.
    """
    return _combined("segment_prod", "scatter_multiply", data, segment_ids, num_segments, 1)


@checked
def segment_max(data: Node, segment_ids: Operand, num_segments: Extent) -> Node:
    """The largest element of each segment, NaN if there is one; ties share the gradient equally.

    For an empty segment the least value of the data type: -inf of floats, False of bool.
    """
    least = least_or_greatest(data.dtype, greatest=False)
    return _combined("segment_max", "scatter_max", data, segment_ids, num_segments, least)


@checked
def segment_min(data: Node, segment_ids: Operand, num_segments: Extent) -> Node:
    """The smallest element of each segment, NaN if there is one; ties share the gradient equally.

    For an empty segment the greatest value of the data type: inf of floats, True of bool.
    """
    greatest = least_or_greatest(data.dtype, greatest=True)
    return _combined("segment_min", "scatter_min", data, segment_ids, num_segments, greatest)


@checked
def segment_mean(data: Node, segment_ids: Operand, num_segments: Extent) -> Node:
    """The mean of each segment, 0 for an empty one. Integers and bool are taken as float32."""
    data = data if data.dtype.is_float else astype(data, float32)
    num_segments = checked_extent("segment_mean", num_segments)
    ids = _ids("segment_mean", data, segment_ids, num_segments)
    total = _scattered("scatter_add", data, ids, num_segments, 0)
    ones = filled(data.graph, ids.shape, data.dtype, 1)
    count = _scattered("scatter_add", ones, ids, num_segments, 0)
    return divide(total, reshape_to(maximum(count, 1), (num_segments, *(1,) * (total.ndim - 1))))


def _combined(
    name: str, combine: str, data: Node, segment_ids: Operand, num_segments: Extent, nothing: float | int | bool
) -> Node:
    num_segments = checked_extent(name, num_segments)
    ids = _ids(name, data, segment_ids, num_segments)
    return _scattered(combine, data, ids, num_segments, nothing)


def _scattered(combine: str, data: Node, ids: Node, num_segments: Extent, nothing: float | int | bool) -> Node:
    empty: Shape = (num_segments, *data.shape[ids.ndim :])
    return apply(combine, filled(data.graph, empty, data.dtype, nothing), ids, data, axis=0)


def _ids(name: str, data: Node, segment_ids: Operand, num_segments: Extent) -> Node:
    """The ids, checked when they are used."""
    ids = as_node(data, segment_ids)
    if not ids.dtype.is_integer:
        raise DTypeError(f"{name}: segment ids must be integers, got {describe(ids)}")
    if ids.ndim > data.ndim or not all(map(may_equal, ids.shape, data.shape)):
        raise ShapeError(
            f"{name}: the segment ids {describe(ids)} must have the shape of the first axes of {describe(data)}"
        )
    if ids.dtype.kind == "i":
        # As an index a negative number would count from the end.
        wide = astype(ids, int64)
        ids = where(wide < 0, as_node(wide, num_segments), wide)
    return index_within(ids, num_segments)
