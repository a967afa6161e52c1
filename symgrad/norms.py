"""Norms of vectors."""

from __future__ import annotations

import math

from symgrad import functions as sg
from symgrad.arguments import checked
from symgrad.errors import DTypeError
from symgrad.graph import Node, describe
from symgrad.operators import constant_like
from symgrad.shaping import normal_axes

__all__ = ["vector_norm"]


@checked
def vector_norm(x: Node, /, *, axis: sg.Axis = None, keepdims: bool = False, ord: float = 2) -> Node:
    """The norm of the elements of a floating node over axes, of all elements by default.

    `ord` is p of sum(|x| ** p) ** (1 / p): 1, 2 (the length) or any other number; `inf` and `-inf` are the largest and
    the smallest magnitude, 0 is the number of elements that are not 0. Squares are not scaled: they overflow beyond
    the square root of the largest number. At the zero vector the gradient is 0.

        unit = x / sg.linalg.vector_norm(x, axis=-1, keepdims=True)

    Raises DTypeError (x is not floating), ShapeError (axes; no element where `ord` is infinite). Array API standard,
    linalg.vector_norm.
    """
    if not x.dtype.is_float:
        raise DTypeError(f"vector_norm: {describe(x)} is not floating; use astype")
    if isinstance(ord, str) or math.isnan(ord):  # pyright: ignore[reportUnnecessaryIsInstance] norms of matrices have names
        raise ValueError(f"vector_norm: ord must be a number, got {ord!r}")
    axis = normal_axes("vector_norm", x, axis)
    if math.isinf(ord):
        return (sg.max if ord > 0 else sg.min)(sg.abs(x), axis, keepdims=keepdims)
    if ord == 0:
        return sg.sum(sg.astype(sg.not_equal(x, 0), x.dtype), axis, keepdims=keepdims)
    if ord == 1:
        return sg.sum(sg.abs(x), axis, keepdims=keepdims)
    total = sg.sum(sg.square(x) if ord == 2 else sg.abs(x) ** ord, axis, keepdims=keepdims)
    if ord < 0:
        return total ** (1 / ord)
    # A root of 1 in place of 0, so that no derivative meets its infinite slope.
    nothing = sg.equal(total, 0)
    length = sg.where(nothing, constant_like(total, 1), total)
    root = sg.sqrt(length) if ord == 2 else length ** (1 / ord)
    return sg.where(nothing, constant_like(total, 0), root)
