"""Hyperbolic functions and their inverses, from IEEE operations alone, within 2 ULP."""

from __future__ import annotations

from codegen import coefficients as fitted
from codegen.polynomials import (
    NAN,
    clamp_above,
    exp_parts,
    format_of,
    horner,
    integer_part,
    log_of_parts,
    log_specials,
    power_of_two,
    scale,
    split,
)
from codegen.scalar_builder import ScalarBuilder, Value


def _half_exp(b: ScalarBuilder, size: Value) -> tuple[Value, Value]:
    """exp(size) / 2 as a sum, the second what rounding to the first would lose; inf beyond where it overflows."""
    c = format_of(size)
    size = clamp_above(b, size, c.exp_high + 2)
    p, t = exp_parts(b, size)
    head = b.add(p, 1)
    lost = b.subtract(p, b.subtract(head, 1))
    t = b.subtract(t, 1)
    return scale(b, head, t), scale(b, lost, t)


def sinh(b: ScalarBuilder, x: Value) -> Value:
    """x + x^3 P(x^2) up to 1, beyond it exp(x) / 2 - 1 / (2 exp(x))."""
    size = b.absolute(x)
    near = b.compare("lt", size, 1)
    square = b.multiply(size, size)
    terms = fitted.SINH_32 if x.dtype.bits == 32 else fitted.SINH_64
    small = b.fma(b.multiply(size, square), horner(b, square, terms), size)
    half, low = _half_exp(b, size)
    large = b.add(half, b.subtract(low, b.divide(0.25, half)))
    return b.copysign(b.select(near, small, large), x)


def cosh(b: ScalarBuilder, x: Value) -> Value:
    half, low = _half_exp(b, b.absolute(x))
    return b.add(half, b.add(low, b.divide(0.25, half)))


def _log_of_sum(b: ScalarBuilder, high: Value, low: Value, doubled: Value | None = None) -> Value:
    """log(high + low), or that of twice the sum where `doubled` holds; as `log` for special values of `high`."""
    c = format_of(high)
    m, e = split(b, high, subnormal=False)
    # Beyond 2^(bias - 2) nothing is lost that counts, and 2^-e would not be normal.
    inverse = power_of_two(b, integer_part(b, b.subtract(c.magic, clamp_above(b, e, c.bias - 2)), c.bias), high)
    f = b.fma(low, inverse, b.subtract(m, 1))
    if doubled is not None:
        e = b.select(doubled, b.add(e, 1), e)
    return log_specials(b, high, log_of_parts(b, f, e))


def _sum(b: ScalarBuilder, x: Value, y: Value) -> tuple[Value, Value]:
    """The sum and what its rounding lost, in any order of size."""
    total = b.add(x, y)
    part = b.subtract(total, x)
    return total, b.add(b.subtract(x, b.subtract(total, part)), b.subtract(y, part))


def _with_root(b: ScalarBuilder, x: Value, sign: int) -> tuple[Value, Value]:
    """x + sqrt(x^2 + sign) in two parts."""
    square = b.multiply(x, x)
    lost = b.fma(x, x, b.negative(square))
    high, low = _sum(b, square, b.const(x.dtype, sign))
    root = b.call_intrinsic("sqrt", high)
    missed = b.add(b.fma(b.negative(root), root, high), b.add(low, lost))
    double = b.add(root, root)
    root_low = b.divide(missed, b.select(b.compare("eq", root, 0), 1, double))
    total, total_low = _sum(b, x, root)
    return total, b.add(total_low, root_low)


def _inverse(b: ScalarBuilder, size: Value, sign: int) -> Value:
    """log(size + sqrt(size^2 + sign)); where the root is the size, and its square may overflow, log(2 size)."""
    large = b.compare("gt", size, 2.0 ** (format_of(size).mantissa // 2 + 4))
    high, low = _with_root(b, size, sign)
    return _log_of_sum(b, b.select(large, size, high), b.select(large, 0, low), large)


def asinh(b: ScalarBuilder, x: Value) -> Value:
    size = b.absolute(x)
    tiny = b.compare("lt", size, _tiny(size))
    return b.copysign(b.select(tiny, size, _inverse(b, size, 1)), x)


def acosh(b: ScalarBuilder, x: Value) -> Value:
    """NaN below 1."""
    return b.select(b.compare("lt", x, 1), NAN, _inverse(b, x, -1))


def atanh(b: ScalarBuilder, x: Value) -> Value:
    """log(1 + 2 |x| / (1 - |x|)) / 2, the quotient in two parts; NaN beyond 1."""
    size = b.absolute(x)
    one = b.const(x.dtype, 1)
    under, under_low = _sum(b, one, b.negative(size))
    over = b.add(size, size)
    quotient = b.divide(over, under)
    negative = b.negative(quotient)
    missed = b.fma(negative, under_low, b.fma(negative, under, over))
    total, total_low = _sum(b, one, quotient)
    result = b.multiply(0.5, _log_of_sum(b, total, b.add(total_low, b.divide(missed, under))))
    return b.copysign(b.select(b.compare("lt", size, _tiny(size)), size, result), x)


def _tiny(x: Value) -> float:
    """Below this an odd function of slope 1 is its argument, to a small part of the last place."""
    return 2.0 ** (-(format_of(x).mantissa // 2) - 2)
