"""Reference meanings of pointwise operators that NumPy does not have as one function."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from symgrad.opdef import Reference
    from symgrad.types import Array, DType


def arithmetic(function: Reference) -> Reference:
    """The function without floating-point warnings, giving an array for 0-dimensional operands too."""

    def quiet(*arrays: Array, **attrs: Any) -> Array:
        with np.errstate(all="ignore"):
            return np.asarray(function(*arrays, **attrs))

    return quiet


def power_values(base: Array, exponent: Array) -> Array:
    """a ** b; integers by wrapping repeated squaring, negative integer exponents truncated towards 0."""
    if base.dtype.kind == "f":
        return np.power(base, exponent)
    negative = exponent < 0
    rest = np.where(negative, 0, exponent)
    square, result = base.copy(), np.ones_like(base)
    while rest.any():
        result = np.where(rest & 1, result * square, result).astype(base.dtype)
        square, rest = square * square, rest >> 1
    if not negative.any():
        return result
    odd = (exponent & 1).astype(bool)
    inverse = np.where(base == 1, 1, np.where(base == -1, np.where(odd, -1, 1), 0)).astype(base.dtype)
    return np.where(negative, inverse, result)


def safe_product(a: Array, b: Array) -> Array:
    """a * b, but 0 where either factor is exactly 0."""
    return np.where((a == 0) | (b == 0), np.zeros((), a.dtype), a * b)


def sigmoid_values(x: Array) -> Array:
    """1 / (1 + exp(-x)), computed in float64."""
    wide = x.astype(np.float64)
    small = np.exp(-np.abs(wide))
    return (np.where(wide >= 0, 1.0, small) / (1.0 + small)).astype(x.dtype)


def erf_values(x: Array) -> Array:
    """The error function, computed in float64."""
    values = [math.erf(v) for v in x.ravel().tolist()]
    return np.array(values, np.float64).reshape(x.shape).astype(x.dtype)


def erfc_values(x: Array) -> Array:
    """1 - erf(x), computed in float64."""
    values = [math.erfc(v) for v in x.ravel().tolist()]
    return np.array(values, np.float64).reshape(x.shape).astype(x.dtype)


def cast_values(x: Array, dtype: DType) -> Array:
    """Floating to integer truncates and saturates, NaN gives 0; everything else as NumPy."""
    with np.errstate(all="ignore"):
        if x.dtype.kind != "f" or not dtype.is_integer:
            return np.asarray(x.astype(dtype.np))
        limits = np.iinfo(dtype.np)
        # A power of two is exact in every floating type; the largest integer itself may not be.
        high, low = 2.0 ** (limits.bits - (dtype.kind == "i")), float(limits.min)
        inside = (x < high) & (x > low - 1) if limits.bits < 53 else (x < high) & (x >= low)
        cast = np.where(inside, x, 0).astype(dtype.np)
        return np.where(inside | np.isnan(x), cast, np.where(x > 0, limits.max, limits.min).astype(dtype.np))


def check_indices(index: Array, extent: int) -> Array:
    """Indices counted from the start; IndexError outside [-extent, extent)."""
    bad = (index >= extent) | (index < -extent) if index.dtype.kind == "i" else index >= extent
    if bad.any():
        raise IndexError(f"index {index[bad].ravel()[0]} is out of range for an axis of extent {extent}")
    # In 64 bits, because the extent may not fit the data type of the index.
    wide = index.astype(np.int64)
    return np.where(wide < 0, wide + extent, wide).astype(np.int32 if index.dtype == np.int32 else np.int64)


def philox_word(*words: Array, word: int) -> Array:
    """Ten rounds of Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011)."""
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    a, b, c, d, key0, key1 = (x.astype(np.uint64) for x in words)
    for _ in range(10):
        left, right = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b, c, d = (right >> half) ^ b ^ key0, right & low, (left >> half) ^ d ^ key1, left & low
        key0, key1 = (key0 + np.uint64(0x9E3779B9)) & low, (key1 + np.uint64(0xBB67AE85)) & low
    return np.asarray((a, b, c, d)[word].astype(np.uint32))


def rsqrt_values(x: Array) -> Array:
    """1 / √x."""
    return np.reciprocal(np.sqrt(x))


def reduced_values(function: Callable[..., Any], *, typed: bool = False) -> Reference:
    """A NumPy reduction over axes, in the data type of its operand where NumPy would take a wider one."""

    def reduce(x: Array, axes: tuple[int, ...]) -> Array:
        return function(x, axis=axes, dtype=x.dtype) if typed else function(x, axis=axes)

    return arithmetic(reduce)


def sliced_values(x: Array, starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    """Along each axis the elements start, start + step, … before stop."""
    return x[tuple(map(slice, starts, stops, steps))]


def flipped_values(x: Array, axes: tuple[int, ...]) -> Array:
    """The order reversed along axes."""
    return np.flip(x, axes)


def joined_values(*parts: Array, axis: int) -> Array:
    """The parts one after another."""
    return np.concatenate(parts, axis)


def taken_values(x: Array, index: Array, axis: int) -> Array:
    """The slices at the indices."""
    return np.take(x, index.astype(np.int64), axis)


def contracted_values(a: Array, b: Array, left: str, right: str, out: str) -> Array:
    """The sum of products that labels describe."""
    return np.einsum(f"{left},{right}->{out}", a, b, optimize=True)


def same_values(x: Array) -> Array:
    """The operand."""
    return x
