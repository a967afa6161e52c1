"""Inverse trigonometric functions and the length of a vector, from IEEE operations alone, within 2 ULP."""

from __future__ import annotations

import math

import numpy as np

from codegen import coefficients as fitted
from codegen.polynomials import INFINITY, format_of, horner
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.types import bool_, float32, float64

# pi/2, pi/4, pi and 3 pi/4 in parts: the nearest number, and what it misses.
_PARTS_64 = {
    2: (math.pi / 2, float.fromhex("0x1.1a62633145c07p-54")),
    1: (math.pi / 4, float.fromhex("0x1.1a62633145c07p-55")),
    4: (math.pi, float.fromhex("0x1.1a62633145c07p-53")),
    3: (float.fromhex("0x1.2d97c7f3321d2p+1"), float.fromhex("0x1.a79394c9e8a0ap-54")),
}
_PARTS_32 = {k: (float(np.float32(high)), high - float(np.float32(high)) + low) for k, (high, low) in _PARTS_64.items()}
# Beyond these quotients the angle is measured from pi/4, and from pi/2.
_MIDDLE, _FAR = 0.66, 2.414


def _quarters(x: Value, count: int) -> tuple[float, float]:
    """count pi/4 in two parts."""
    return (_PARTS_32 if x.dtype.bits == 32 else _PARTS_64)[count]


def _arc(b: ScalarBuilder, over: Value, under: Value, left: Value) -> Value:
    """The angle of over / under, not negative, at most one infinite; 0 where both are 0, NaN where one is. Where `left`
    holds, what it misses of pi.

    One quotient t of at most 0.66 in size: over / under, (over - under) / (over + under) or -under / over.
    """
    far = b.compare("gt", over, b.multiply(under, _FAR))
    middle = b.compare("gt", over, b.multiply(under, _MIDDLE))
    top = b.select(far, b.negative(under), b.select(middle, b.subtract(over, under), over))
    bottom = b.select(far, over, b.select(middle, b.add(over, under), under))
    t = b.divide(top, b.select(b.compare("eq", bottom, 0), 1, bottom))
    t = b.select(left, b.negative(t), t)
    start, missed = (_start(b, over, part, far, middle, left) for part in (0, 1))
    square = b.multiply(t, t)
    terms = fitted.ATAN_32 if over.dtype.bits == 32 else fitted.ATAN_64
    rest = b.fma(b.multiply(t, square), horner(b, square, terms), missed)
    return b.add(start, b.add(t, rest))


def _start(b: ScalarBuilder, like: Value, part: int, far: Value, middle: Value, left: Value) -> Value:
    """One part of the angle from which the quotient is measured."""
    one, two, three, four = (b.const(like.dtype, _quarters(like, k)[part]) for k in (1, 2, 3, 4))
    zero = b.const(like.dtype, 0)
    return b.select(far, two, b.select(middle, b.select(left, three, one), b.select(left, four, zero)))


def atan(b: ScalarBuilder, x: Value) -> Value:
    return b.copysign(_arc(b, b.absolute(x), b.const(x.dtype, 1), b.const(bool_, False)), x)


def atan2(b: ScalarBuilder, y: Value, x: Value) -> Value:
    """The angle of the point (x, y), from -pi to pi; the sign of a zero x tells its side, two infinities are equal."""
    c = format_of(x)
    over, under = b.absolute(y), b.absolute(x)
    both = b.bit_and(b.compare("eq", over, INFINITY), b.compare("eq", under, INFINITY))
    over, under = b.select(both, 1, over), b.select(both, 1, under)
    # Sums must not overflow; what a small number loses by this is nothing next to the large one.
    limit = 2.0 ** (c.bias - 3)
    large = b.bit_or(b.compare("gt", over, limit), b.compare("gt", under, limit))
    # Products of subnormal numbers round by too much to compare quotients.
    least = 2.0 ** (2 * c.mantissa - c.bias)
    small = b.bit_and(b.compare("lt", over, least), b.compare("lt", under, least))
    factor = b.select(large, 0.25, b.select(small, 2.0 ** (2 * c.mantissa), b.const(x.dtype, 1)))
    left = b.compare("lt", b.bitcast(x, c.integer), 0)
    return b.copysign(_arc(b, b.multiply(over, factor), b.multiply(under, factor), left), y)


def _arcsine_parts(b: ScalarBuilder, x: Value) -> tuple[Value, Value, Value]:
    """(near, s, rest) with asin(s) = s + rest: s is |x| where that is near 0, else sqrt((1 - |x|) / 2)."""
    size = b.absolute(x)
    near = b.compare("lt", size, 0.5)
    half = b.fma(size, -0.5, 0.5)
    s = b.select(near, size, b.call_intrinsic("sqrt", half))
    square = b.select(near, b.multiply(size, size), half)
    terms = fitted.ASIN_32 if x.dtype.bits == 32 else fitted.ASIN_64
    return near, s, b.multiply(b.multiply(s, square), horner(b, square, terms))


def asin(b: ScalarBuilder, x: Value) -> Value:
    """x + x^3 P(x^2) up to 1/2, beyond it pi/2 - 2 asin(sqrt((1 - x) / 2)); NaN beyond 1."""
    (half, low), quarter = _quarters(x, 2), _quarters(x, 1)[0]
    near, s, rest = _arcsine_parts(b, x)
    # Where the result is less than 1, pi/2 is added by halves, so that the sums on the way are less than it.
    high = b.compare("lt", s, 0.28)
    first, second = b.select(high, 0, b.const(x.dtype, quarter)), b.select(high, half, b.const(x.dtype, quarter))
    far = b.add(first, b.subtract(b.subtract(second, b.add(s, s)), b.fma(rest, 2, -low)))
    return b.copysign(b.select(near, b.add(s, rest), far), x)


def acos(b: ScalarBuilder, x: Value) -> Value:
    """pi/2 - asin(x) up to 1/2 in size, beyond it 2 asin(sqrt((1 - |x|) / 2)), or that from pi; NaN beyond 1."""
    (half, half_low), (high, low) = _quarters(x, 2), _quarters(x, 4)
    near, s, rest = _arcsine_parts(b, x)
    signed_rest = b.copysign(rest, x)
    middle = b.subtract(half, b.add(x, b.subtract(signed_rest, half_low)))
    double = b.add(s, s)
    right = b.fma(rest, 2, double)
    left = b.subtract(high, b.add(double, b.fma(rest, 2, -low)))
    return b.select(near, middle, b.select(b.compare("lt", x, 0), left, right))


def hypot(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """sqrt(x^2 + y^2), scaled so that squares neither overflow nor vanish; inf where either is, next to NaN too."""
    if x.dtype is float32:
        wide = _length(b, b.astype(x, float64), b.astype(y, float64))
        result = b.astype(wide, float32)
    else:
        first, second = b.absolute(x), b.absolute(y)
        large = b.bit_or(b.compare("gt", first, 2.0**500), b.compare("gt", second, 2.0**500))
        small = b.bit_and(b.compare("lt", first, 2.0**-400), b.compare("lt", second, 2.0**-400))
        one = b.const(x.dtype, 1)
        factor = b.select(large, 2.0**-600, b.select(small, 2.0**600, one))
        inverse = b.select(large, 2.0**600, b.select(small, 2.0**-600, one))
        result = b.multiply(_length(b, b.multiply(first, factor), b.multiply(second, factor)), inverse)
    endless = b.bit_or(b.compare("eq", b.absolute(x), INFINITY), b.compare("eq", b.absolute(y), INFINITY))
    return b.select(endless, INFINITY, result)


def _length(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """The product that fma keeps whole is the larger one, for symmetry and for accuracy."""
    x, y = b.absolute(x), b.absolute(y)
    ordered = b.compare("gt", x, y)
    large, small = b.select(ordered, x, y), b.select(ordered, y, x)
    return b.call_intrinsic("sqrt", b.fma(large, large, b.multiply(small, small)))
