"""Pooling into so many parts of each axis, whatever its extent. Users see it as `sg.nn`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from symgrad import functions as sg
from symgrad.errors import ShapeError
from symgrad.graph import Node, describe
from symgrad.nn_checks import need_float
from symgrad.operators import apply, as_node, broadcast_to, constant_like, reshape_to


def adaptive_max_pool1d(x: Node, size: int | Sequence[int]) -> Node:
    """`adaptive_max_pool2d` along one axis, for x (n, channels, length)."""
    return _adaptive_max("adaptive_max_pool1d", 1, x, size)


def adaptive_max_pool2d(x: Node, size: int | Sequence[int]) -> Node:
    """The largest elements of x (n, channels, height, width) over so many parts of each axis, of known extents.

    Part i reaches from floor(i extent / size) up to ceil((i + 1) extent / size), as in PyTorch: parts overlap where
    the size does not divide the extent. Ties share the gradient equally, as in `sg.max`.

        sg.nn.adaptive_max_pool2d(x, (7, 7))  # (n, channels, height, width): (n, channels, 7, 7)
    """
    return _adaptive_max("adaptive_max_pool2d", 2, x, size)


def adaptive_max_pool3d(x: Node, size: int | Sequence[int]) -> Node:
    """`adaptive_max_pool2d` along three axes, for x (n, channels, depth, height, width)."""
    return _adaptive_max("adaptive_max_pool3d", 3, x, size)


def _adaptive_max(name: str, rank: int, x: Node, size: int | Sequence[int]) -> Node:
    need_float(name, x)
    if x.ndim != rank + 2:
        raise ShapeError(f"nn.{name}: expected (batch, channels) and {rank} axes of space, got {describe(x)}")
    counts = tuple(size) if isinstance(size, Sequence) else (size,) * rank
    if len(counts) != rank or any(isinstance(c, bool) or not isinstance(c, int | np.integer) or c < 1 for c in counts):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise ValueError(f"nn.{name}: size is one integer of at least 1 or {rank} of them, got {size!r}")
    # Every axis of space becomes two: the parts, and the elements of a part. One reduction over all, so that ties of a
    # whole part are equal.
    for k, count in enumerate(counts):
        x = _parts(name, x, 2 + 2 * k, int(count))
    return sg.max(x, axis=tuple(range(3, 3 + 2 * rank, 2)))


def _parts(name: str, x: Node, axis: int, count: int) -> Node:
    """An axis as (parts, elements); -inf where a part has fewer elements than another."""
    extent = x.shape[axis]
    if not isinstance(extent, int) or extent < 1:
        raise ShapeError(f"nn.{name}: an axis of space of {describe(x)} must have a known, positive extent")
    head, tail = x.shape[:axis], x.shape[axis + 1 :]
    if extent % count == 0:
        return reshape_to(x, (*head, count, extent // count, *tail))
    starts = [part * extent // count for part in range(count)]
    stops = [-(-(part + 1) * extent // count) for part in range(count)]
    widest = max(stop - start for start, stop in zip(starts, stops, strict=True))
    places = np.array(starts)[:, None] + np.arange(widest)
    last = np.array(stops)[:, None] - 1
    parts = apply("take", x, as_node(x, np.minimum(places, last)), axis=axis)
    inside = places <= last
    if inside.all():
        return parts
    mask = reshape_to(as_node(x, inside), (count, widest, *(1,) * len(tail)))
    return apply("where", broadcast_to(mask, parts.shape), parts, constant_like(parts, -math.inf))
