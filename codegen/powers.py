"""x to the power y for floats: float32 by way of float64, float64 with the logarithm in two parts."""

from __future__ import annotations

from codegen import coefficients as fitted
from codegen.polynomials import (
    FLOAT32,
    FLOAT64,
    INFINITY,
    NAN,
    clamp_above,
    clamp_below,
    exp_parts,
    horner,
    integer_part,
    power_of_two,
    scale,
    split,
)
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.types import float32, float64

_THIRD = (1 / 3, float.fromhex("0x1.5555555555555p-56"))
# ln 2 in parts, the first so short that its product with an exponent is exact.
_LN2 = (
    float.fromhex("0x1.62e42fefa3p-1"),
    float.fromhex("0x1.3de6af278ece6p-42"),
    float.fromhex("0x1.f97b57a079a19p-103"),
)


def power(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """C99 pow within 2 ULP."""
    size = b.absolute(x)
    result = _short_power(b, size, y) if x.dtype is float32 else _long_power(b, size, y)
    whole = b.compare("eq", b.call_intrinsic("floor", y), y)
    half = b.multiply(y, 0.5)
    odd = b.bit_and(whole, b.compare("ne", b.call_intrinsic("floor", half), half))
    result = b.copysign(result, b.select(odd, x, b.const(x.dtype, 1)))
    negative = b.bit_and(b.compare("lt", x, 0), b.compare("gt", x, -INFINITY))
    result = b.select(b.bit_and(negative, b.bit_not(whole)), NAN, result)
    result = b.select(b.binary("fcmp uno", x, y, whole.dtype), NAN, result)
    certain = b.bit_or(b.compare("eq", x, 1), b.compare("eq", y, 0))
    return b.select(certain, 1, result)


def _short_power(b: ScalarBuilder, narrow: Value, narrow_y: Value) -> Value:
    """exp(y log(x)) with a relative error of 2^-32 before the last rounding."""
    x, y = b.astype(narrow, float64), b.astype(narrow_y, float64)
    m, e = split(b, x, subnormal=False)
    f = b.subtract(m, 1)
    s = b.divide(f, b.add(f, 2))
    square = b.multiply(s, s)
    s = b.add(s, s)
    series = b.fma(b.multiply(s, square), horner(b, square, fitted.LOG_SHORT), s)
    logarithm = _at_ends(b, x, b.fma(e, FLOAT64.ln2_high, series))
    product = _product(b, y, logarithm)
    product = clamp_below(b, clamp_above(b, product, FLOAT32.exp_high), FLOAT32.exp_low)
    p, t = exp_parts(b, product, terms=fitted.EXP_SHORT)
    power_ = power_of_two(b, integer_part(b, t, FLOAT64.bias), x)
    return b.astype(b.fma(p, power_, power_), float32)


def _at_ends(b: ScalarBuilder, x: Value, logarithm: Value) -> Value:
    """The logarithm of a number that is not negative, with its values at 0 and inf."""
    return b.select(b.compare("eq", x, 0), -INFINITY, b.select(b.compare("eq", x, INFINITY), INFINITY, logarithm))


def _product(b: ScalarBuilder, y: Value, logarithm: Value) -> Value:
    """y log(x), 0 where log(x) is 0 and y infinite."""
    return b.select(b.compare("eq", logarithm, 0), b.const(y.dtype, 0), b.multiply(y, logarithm))


def _long_power(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """exp(y log(x)) with log(x) known to 2^-64 of itself."""
    high, low = _log_in_two_parts(b, x)
    high = _at_ends(b, x, high)
    product = _product(b, y, high)
    rest = b.fma(y, low, b.fma(y, high, b.negative(product)))
    # Where exp overflows or vanishes, or the logarithm is 0, the rest may be NaN, and does not count.
    moderate = b.bit_and(b.compare("lt", b.absolute(product), 800), b.compare("ne", high, 0))
    rest = b.select(moderate, rest, b.const(float64, 0))
    product = clamp_below(b, clamp_above(b, product, FLOAT64.exp_high), FLOAT64.exp_low)
    p, t = exp_parts(b, product, rest)
    return scale(b, b.add(p, 1), t)


def _fast_sum(b: ScalarBuilder, large: Value, small: Value) -> tuple[Value, Value]:
    """The sum and what its rounding lost, for |large| >= |small|."""
    total = b.add(large, small)
    return total, b.subtract(small, b.subtract(total, large))


def _exact_product(b: ScalarBuilder, x: Value, y: Value | float) -> tuple[Value, Value]:
    """The product and what its rounding lost."""
    product = b.multiply(x, y)
    return product, b.fma(x, y, b.negative(product))


def _log_in_two_parts(b: ScalarBuilder, x: Value) -> tuple[Value, Value]:
    """log(m) = 2 s (1 + z/3 + z^2 T(z)) with s = (m - 1) / (m + 1) and z = s^2, all but T in pairs of numbers."""
    m, e = split(b, x)
    above, below = b.add(m, 1), b.subtract(m, 1)
    above_low = b.subtract(m, b.subtract(above, 1))
    s = b.divide(below, above)
    missing = b.fma(b.negative(s), above_low, b.fma(b.negative(s), above, below))
    s_low = b.divide(missing, above)
    z, z_low = _exact_product(b, s, s)
    z_low = b.fma(b.add(s, s), s_low, z_low)
    third, third_low = _exact_product(b, z, _THIRD[0])
    third_low = b.fma(z_low, _THIRD[0], b.fma(z, _THIRD[1], third_low))
    tail = b.multiply(b.multiply(z, z), horner(b, z, fitted.LOG_TAIL))
    w, w_low = _fast_sum(b, third, tail)
    w_low = b.add(w_low, third_low)
    v, v_low = _exact_product(b, s, w)
    v_low = b.fma(s, w_low, b.fma(s_low, w, v_low))
    u, u_low = _fast_sum(b, s, v)
    u_low = b.add(u_low, b.add(s_low, v_low))
    u, u_low = b.add(u, u), b.add(u_low, u_low)
    start = b.multiply(e, _LN2[0])
    # e ln 2 is 0 or at least twice log(m): the order the sum needs, but for 0, where nothing is lost.
    high, high_low = _fast_sum(b, start, u)
    middle, middle_low = _exact_product(b, e, _LN2[1])
    lost = b.add(u_low, b.add(middle_low, b.multiply(e, _LN2[2])))
    high, more = _fast_sum(b, high, b.add(high_low, middle))
    return high, b.add(b.add(more, lost), _sum_lost(b, high_low, middle))


def _sum_lost(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """What the rounding of x + y loses, in any order."""
    total = b.add(x, y)
    part = b.subtract(total, x)
    return b.add(b.subtract(x, b.subtract(total, part)), b.subtract(y, part))
