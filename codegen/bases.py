"""Exponential and logarithms to the bases 2 and 10, exact where the result is an integer or a power of two; the cube
root."""

from __future__ import annotations

import math

import numpy as np

from codegen import coefficients as fitted
from codegen.polynomials import (
    clamp_above,
    format_of,
    horner,
    integer_part,
    log_specials,
    power_of_two,
    scale,
    split,
)
from codegen.scalar_builder import ScalarBuilder, Value

# ln 2, 1 / ln 2 and 1 / ln 10, each as the nearest float64 and what it misses.
_LN2 = (math.log(2), float.fromhex("0x1.abc9e3b39803fp-56"))
_LOG2_E = (float.fromhex("0x1.71547652b82fep+0"), float.fromhex("0x1.777d0ffda0d24p-56"))
_LOG10_E = (float.fromhex("0x1.bcb7b1526e50ep-2"), float.fromhex("0x1.95355baaafad3p-57"))
# log10(2), the first part so short that its product with an exponent is exact.
_LOG10_2_32 = (float.fromhex("0x1.344p-2"), float.fromhex("0x1.3509f79fef312p-18"))
_LOG10_2_64 = (float.fromhex("0x1.34413509f6p-2"), float.fromhex("0x1.9fef311f12b36p-42"))


def _parts(x: Value, pair: tuple[float, float]) -> tuple[float, float]:
    """The two parts as the format of x holds them."""
    if x.dtype.bits == 64:
        return pair
    high = float(np.float32(pair[0]))
    return high, pair[0] - high


def exp2(b: ScalarBuilder, x: Value) -> Value:
    """(1 + p) 2^n with n = round(x) and p = expm1((x - n) ln 2); as in `exp`, what is 0 is chosen."""
    c = format_of(x)
    high, low = _parts(x, _LN2)
    zero = b.const(x.dtype, 0)
    vanishes = b.compare("lt", x, -(c.bias + c.mantissa + 2))
    x = b.select(vanishes, zero, clamp_above(b, x, c.bias + 2))
    t = b.add(x, c.magic)
    r = b.subtract(x, b.subtract(t, c.magic))
    y = b.multiply(r, high)
    lost = b.fma(r, low, b.fma(r, high, b.negative(y)))
    rest = b.fma(horner(b, y, c.exp), b.multiply(y, y), lost)
    return b.select(vanishes, zero, scale(b, b.add(b.add(y, rest), 1), t))


def _log_rest(b: ScalarBuilder, f: Value) -> Value:
    """log(1 + f) - f for 1 + f from sqrt(1/2) to sqrt(2)."""
    if f.dtype.bits == 32:
        return b.multiply(b.multiply(f, f), b.fma(f, horner(b, f, fitted.LOG_32), -0.5))
    s = b.divide(f, b.add(f, 2))
    square = b.multiply(s, s)
    half = b.multiply(b.multiply(f, 0.5), f)
    return b.fma(s, b.fma(square, horner(b, square, fitted.LOG_64), half), b.negative(half))


def _log_in_base(b: ScalarBuilder, x: Value, e_high: float, e_low: float, base: tuple[float, float]) -> Value:
    """e (e_high + e_low) + log(m) (high + low), the large terms in two parts."""
    high, low = _parts(x, base)
    m, e = split(b, x)
    f = b.subtract(m, 1)
    rest = _log_rest(b, f)
    product = b.multiply(f, high)
    lost = b.fma(f, high, b.negative(product))
    lost = b.fma(e, e_low, b.fma(f, low, b.fma(rest, high, lost)))
    start = b.multiply(e, e_high)
    total = b.add(start, product)
    # The start is 0 or the larger of the two, near enough for what is lost to be exact.
    lost = b.add(lost, b.subtract(product, b.subtract(total, start)))
    return log_specials(b, x, b.add(total, lost))


def log2(b: ScalarBuilder, x: Value) -> Value:
    return _log_in_base(b, x, 1.0, 0.0, _LOG2_E)


def log10(b: ScalarBuilder, x: Value) -> Value:
    pair = _LOG10_2_32 if x.dtype.bits == 32 else _LOG10_2_64
    return _log_in_base(b, x, *pair, _LOG10_E)


# Cube roots of 1/2, 1 and 2.
_ROOTS = (2.0 ** (-1 / 3), 1.0, 2.0 ** (1 / 3))


def cbrt(b: ScalarBuilder, x: Value) -> Value:
    """w^(1/3) 2^q for |x| = w 2^(3 q): a polynomial, one step of Halley's, and one of Newton's with a full residual."""
    c = format_of(x)
    size = b.absolute(x)
    m, e = split(b, size)
    t = b.fma(e, 1 / 3, c.magic)
    left = b.fma(b.subtract(t, c.magic), -3, e)
    below, above = b.compare("lt", left, 0), b.compare("gt", left, 0)
    one = b.const(x.dtype, 1)
    w = b.multiply(m, b.select(below, 0.5, b.select(above, 2, one)))
    y = b.multiply(horner(b, m, fitted.CBRT), b.select(below, _ROOTS[0], b.select(above, _ROOTS[2], one)))
    cube = b.multiply(b.multiply(y, y), y)
    y = b.multiply(y, b.divide(b.fma(w, 2, cube), b.fma(cube, 2, w)))
    square = b.multiply(y, y)
    square_low = b.fma(y, y, b.negative(square))
    negative = b.negative(y)
    missed = b.fma(negative, square_low, b.fma(negative, square, w))
    y = b.add(y, b.divide(missed, b.multiply(square, 3)))
    result = b.multiply(y, power_of_two(b, integer_part(b, t, c.bias), x))
    unusual = b.bit_or(b.compare("eq", size, 0), b.bit_not(b.compare("lt", size, math.inf)))
    return b.copysign(b.select(unusual, size, result), x)
