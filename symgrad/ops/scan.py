"""Operators that keep a running value along an axis: element k of the output combines the elements up to k.

`step` is 1 for values that run from the start of the axis, and -1 for values that run from its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Infer, Kind, defop
from symgrad.ops.build import apply, constant_like, filled, pad_axis, product, slice_axis
from symgrad.ops.references import arithmetic, safe_product
from symgrad.ops.view import check_axis, may_equal
from symgrad.types import Type, bool_

if TYPE_CHECKING:
    from symgrad.opdef import Reference, Vjp
    from symgrad.types import Array

    Cotangents = tuple[Node | None, ...]


def _scan_type(kinds: str) -> Infer:
    def infer(x: Type, axis: int, step: int) -> Type:
        if x.dtype.kind not in kinds:
            raise DTypeError(f"not defined for {x.dtype}; use astype")
        check_axis(axis, x.ndim)
        if step not in (1, -1):
            raise ShapeError(f"step must be 1 or -1, got {step}")
        return x

    return infer


def _recurrence_type(factor: Type, term: Type, axis: int, step: int) -> Type:
    if factor.dtype is not term.dtype:
        raise DTypeError(f"data types {factor.dtype} and {term.dtype} differ; use astype")
    if factor.ndim != term.ndim or not all(map(may_equal, factor.shape, term.shape)):
        raise ShapeError(f"shapes {factor.shape} and {term.shape} differ")
    return _scan_type("f")(term, axis, step)


def _accumulated(function: np.ufunc) -> Reference:
    """The running values of a NumPy function, one element after the other, in the data type of the operand."""

    def accumulate(x: Array, axis: int, step: int) -> Array:
        ordered = x if step == 1 else np.flip(x, axis)
        out = function.accumulate(ordered, axis=axis, dtype=x.dtype)
        return out if step == 1 else np.flip(out, axis)

    return arithmetic(accumulate)


def _recurrence_values(factor: Array, term: Array, axis: int, step: int) -> Array:
    out = np.empty_like(term)
    rows, factors, terms = (np.moveaxis(a, axis, 0)[::step] for a in (out, factor, term))
    value = np.zeros((), term.dtype)
    for k in range(len(rows)):
        rows[k] = value = safe_product(factors[k], value) + terms[k]
    return out


def _behind(x: Node, axis: int, step: int, fill: float) -> Node:
    """The elements one place further in the direction of the scan, so that each meets its predecessor."""
    extent = x.shape[axis]
    if step == 1:
        return slice_axis(pad_axis(x, axis, 1, 0, fill), axis, 0, extent)
    return slice_axis(pad_axis(x, axis, 0, 1, fill), axis, 1, extent + 1)


def _linear_scan(factor: Node, term: Node, axis: int, step: int) -> Node:
    return apply("linear_recurrence", factor, term, axis=axis, step=step)


def _sum_vjp(n: Node, g: Node) -> Cotangents:
    axis, step = n.attrs
    return (apply("cumulative_sum", g, axis=axis, step=-step),)


def _prod_vjp(n: Node, g: Node) -> Cotangents:
    """No quotient: the product before an element times what follows it, collected from the end. Exact at zeros."""
    (x,) = n.inputs
    axis, step = n.attrs
    after = _linear_scan(_behind(x, axis, -step, 0), g, axis, -step)
    return (product(after, _behind(n, axis, step, 1)),)


def _extreme_vjp(better: str) -> Vjp:
    def vjp(n: Node, g: Node) -> Cotangents:
        """An element that sets a new extreme value takes the cotangents up to the next one that does."""
        (x,) = n.inputs
        axis, step = n.attrs
        before = _behind(n, axis, step, 0)
        news = apply(better, x, before)
        if x.dtype.is_float:
            first_nan = apply("logical_and", apply("isnan", x), apply("logical_not", apply("isnan", before)))
            news = apply("logical_or", news, first_nan)
        inside = _behind(filled(x.graph, x.shape, bool_, 1), axis, step, 0)
        stays = apply("logical_and", inside, apply("logical_not", news))
        passes = _behind(apply("astype", stays, dtype=x.dtype), axis, -step, 0)
        total = _linear_scan(passes, g, axis, -step)
        return (apply("where", stays, constant_like(total, 0), total),)

    return vjp


def _recurrence_vjp(n: Node, g: Node) -> Cotangents:
    factor, _ = n.inputs
    axis, step = n.attrs
    total = _linear_scan(_behind(factor, axis, -step, 0), g, axis, -step)
    return (product(total, _behind(n, axis, step, 0)), total)


defop(
    "cumulative_sum",
    Kind.SCAN,
    attrs=("axis", "step"),
    infer=_scan_type("iuf"),
    vjp=_sum_vjp,
    ref=_accumulated(np.add),
    linear=True,
    doc="Running sums, added up one element after the other, in the data type of the input.",
)
defop(
    "cumulative_prod",
    Kind.SCAN,
    attrs=("axis", "step"),
    infer=_scan_type("iuf"),
    vjp=_prod_vjp,
    ref=_accumulated(np.multiply),
    doc="Running products, multiplied up one element after the other, in the data type of the input.",
)
defop(
    "cumulative_max",
    Kind.SCAN,
    attrs=("axis", "step"),
    infer=_scan_type("biuf"),
    vjp=_extreme_vjp("greater"),
    ref=_accumulated(np.maximum),
    doc="The largest element so far, NaN from the first one on; the gradient goes to where it was first attained.",
)
defop(
    "cumulative_min",
    Kind.SCAN,
    attrs=("axis", "step"),
    infer=_scan_type("biuf"),
    vjp=_extreme_vjp("less"),
    ref=_accumulated(np.minimum),
    doc="The smallest element so far, NaN from the first one on; the gradient goes to where it was first attained.",
)
defop(
    "linear_recurrence",
    Kind.SCAN,
    attrs=("axis", "step"),
    infer=_recurrence_type,
    vjp=_recurrence_vjp,
    ref=arithmetic(_recurrence_values),
    doc="y[k] = a[k] y[k-1] + b[k] from y[-1] = 0; a product with a factor that is exactly 0 is 0 (`safe_multiply`).",
)
