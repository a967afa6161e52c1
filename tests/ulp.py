"""Errors in units in the last place (ULP): the distance from the true value, divided by the distance between the two
floating-point numbers around the true value. Beyond the largest number both go on as if exponents did not end."""

# pyright: basic
from __future__ import annotations

from typing import Any

import mpmath
import numpy as np

Array = np.ndarray
mp: Any = mpmath


def has_wide_floats() -> bool:
    """Whether longdouble has enough digits more than float64 to judge its errors."""
    return np.finfo(np.longdouble).nmant >= 63


def units(got: Array, true: Array) -> Array:
    """The errors of floats; `true` are the values in a wider dtype. An infinity counts as the number after the largest.

    0 where both are NaN, inf where one is.
    """
    info = np.finfo(got.dtype)
    limit = true.dtype.type(2) ** int(info.maxexp)
    with np.errstate(all="ignore"):
        exponent = np.clip(np.frexp(true)[1], int(info.minexp) + 1, int(info.maxexp))
        unit = np.ldexp(np.ones_like(true), exponent - int(info.nmant) - 1)
        difference = np.clip(got.astype(true.dtype), -limit, limit) - np.clip(true, -limit, limit)
        errors = np.abs(difference / unit).astype(np.float64)
    nan = np.isnan(true)
    return np.where(nan & np.isnan(got), 0.0, np.where(nan | np.isnan(got), np.inf, errors))


def true_units(got: Any, true: Any) -> float:
    """The error of one float, which is not NaN; `true` is an mpmath number, and the precision of mpmath counts."""
    info = np.finfo(got.dtype)
    limit = mp.mpf(2) ** int(info.maxexp)
    exponent = mp.frexp(true)[1] if true and mp.isfinite(true) else int(info.minexp if not true else info.maxexp)
    unit = mp.mpf(2) ** (min(max(exponent, int(info.minexp) + 1), int(info.maxexp)) - int(info.nmant) - 1)
    have, want = (max(-limit, min(limit, v)) for v in (mp.mpf(float(got)), true))
    return float(abs(have - want) / unit)


def steps_apart(a: Array, b: Array) -> Array:
    """How many floating numbers lie between, counted across zero; infinity is next to the largest number."""
    kind = {4: np.int32, 8: np.int64}[a.itemsize]
    low = np.iinfo(kind).min

    def line(x: Array) -> Array:
        bits = np.ascontiguousarray(x).view(kind).astype(object)
        return np.where(np.signbit(x), low - bits, bits)

    return np.abs(line(a) - line(b)).astype(np.float64)
