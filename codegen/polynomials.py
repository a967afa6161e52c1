"""Exponentials, logarithms and the functions made of them, from IEEE additions, products, quotients and fma alone.

One spelling serves float32 and float64; what differs stands in a `Format`. Every function stays within 2 ULP over the
whole range, subnormal arguments and results included, and has the special values of C99.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from codegen import coefficients as fitted
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.record import record
from symgrad.types import DType, float64, int32, int64

INFINITY, NAN = math.inf, math.nan


@record
class Format:
    """The numbers a floating type needs. `magic` added to a number of moderate size rounds it to an integer that
    then stands in the low bits; the `_low` constants are what the `_high` ones miss."""

    integer: DType
    mantissa: int
    bias: int
    magic: float
    magic_bits: int
    ln2_high: float
    ln2_low: float
    sqrt_half_bits: int
    exp: Sequence[float]
    exp_low: float  # exp is 0 from here down
    exp_high: float  # and inf from here up
    tanh: Sequence[float]
    tanh_high: float  # tanh is 1 from here up
    erf: Sequence[float]
    erf_split: float
    erf_high: float  # erf is 1 from here up


FLOAT32 = Format(
    integer=int32,
    mantissa=23,
    bias=127,
    magic=1.5 * 2**23,
    magic_bits=0x4B400000,
    ln2_high=0.693147182464599609375,
    ln2_low=-1.904654299957767878541823431924500011926579e-9,
    sqrt_half_bits=0x3F3504F3,
    exp=fitted.EXP_32,
    exp_low=-104.0,
    exp_high=89.0,
    tanh=fitted.TANH_32,
    tanh_high=10.0,
    erf=fitted.ERF_32,
    erf_split=0.92,
    erf_high=4.0,
)
FLOAT64 = Format(
    integer=int64,
    mantissa=52,
    bias=1023,
    magic=1.5 * 2**52,
    magic_bits=0x4338000000000000,
    ln2_high=0.693147180559945286226763982995180413126945495605,
    ln2_low=2.319046813846299558417771e-17,
    sqrt_half_bits=0x3FE6A09E667F3BCD,
    exp=fitted.EXP_64,
    exp_low=-746.0,
    exp_high=710.0,
    tanh=fitted.TANH_64,
    tanh_high=20.0,
    erf=fitted.ERF_64,
    erf_split=1.0,
    erf_high=6.0,
)


def format_of(x: Value) -> Format:
    return FLOAT32 if x.dtype.bits == 32 else FLOAT64


def horner(b: ScalarBuilder, x: Value, coefficients: Sequence[float]) -> Value:
    """The polynomial, lowest power first."""
    result = b.fma(x, coefficients[-1], coefficients[-2])
    for coefficient in coefficients[-3::-1]:
        result = b.fma(result, x, coefficient)
    return result


def clamp_above(b: ScalarBuilder, x: Value, bound: float) -> Value:
    """The smaller of the two; NaN stays."""
    return b.select(b.compare("lt", b.const(x.dtype, bound), x), bound, x)


def clamp_below(b: ScalarBuilder, x: Value, bound: float) -> Value:
    """The larger of the two; NaN stays."""
    return b.select(b.compare("gt", b.const(x.dtype, bound), x), bound, x)


def exp_parts(
    b: ScalarBuilder, x: Value, low: Value | None = None, terms: Sequence[float] | None = None
) -> tuple[Value, Value]:
    """(p, t) with exp(x + low) = (1 + p) 2^n, |p| < 0.42, where t is n + magic.

    n is round(x / ln 2) and p = expm1(x + low - n ln 2). The first fma of the reduction is exact.
    """
    c = format_of(x)
    t = b.fma(x, 1 / math.log(2), c.magic)
    n = b.subtract(t, c.magic)
    r = b.fma(n, -c.ln2_high, x)
    r = b.fma(n, -c.ln2_low, r) if low is None else b.add(r, b.fma(n, -c.ln2_low, low))
    return b.fma(horner(b, r, terms or c.exp), b.multiply(r, r), r), t


def integer_part(b: ScalarBuilder, t: Value, offset: int) -> Value:
    """n + offset as an integer from n + magic."""
    c = format_of(t)
    return b.add(b.bitcast(t, c.integer), offset - c.magic_bits)


def power_of_two(b: ScalarBuilder, biased: Value, like: Value) -> Value:
    """2^(biased - bias), for results that are normal."""
    return b.bitcast(b.shift_left(biased, format_of(like).mantissa), like.dtype)


def scale(b: ScalarBuilder, x: Value, t: Value) -> Value:
    """x 2^n from t = n + magic, in two steps so that it overflows and underflows with one rounding."""
    c = format_of(x)
    if b.has_scalef(x):
        return b.scalef(x, b.subtract(t, c.magic))
    both = integer_part(b, t, 2 * c.bias)
    first = b.shift_right(both, 1)
    second = b.subtract(both, first)
    return b.multiply(b.multiply(x, power_of_two(b, first, x)), power_of_two(b, second, x))


def exp(b: ScalarBuilder, x: Value) -> Value:
    """(1 + p) 2^n. Processors are slow where a result underflows: what is 0, as what a mask hides from a softmax, is
    chosen."""
    c = format_of(x)
    stays = b.bit_not(b.compare("lt", x, c.exp_low))
    p, t = exp_parts(b, b.select(stays, clamp_above(b, x, c.exp_high), 0))
    return b.select(stays, scale(b, b.add(p, 1), t), 0)


def expm1(b: ScalarBuilder, x: Value) -> Value:
    """(2^n r + (2^n - 1)) + 2^n (expm1(r) - r), at half the scale so that 2^n does not overflow before the result.

    Where 2^n expm1(r) cancels 2^n - 1 the rounding of r would count: what it lost goes into the last term.
    """
    c = format_of(x)
    x_bounded = clamp_below(b, clamp_above(b, x, c.exp_high), -80.0)
    t = b.fma(x_bounded, 1 / math.log(2), c.magic)
    n = b.subtract(t, c.magic)
    start = b.fma(n, -c.ln2_high, x_bounded)
    r = b.fma(n, -c.ln2_low, start)
    lost = b.fma(n, -c.ln2_low, b.subtract(start, r))
    rest = b.fma(horner(b, r, c.exp), b.multiply(r, r), lost)
    half = power_of_two(b, integer_part(b, t, c.bias - 1), x)
    moved = b.fma(rest, half, b.fma(r, half, b.subtract(half, 0.5)))
    result = b.select(b.compare("eq", t, c.magic), b.add(r, rest), b.add(moved, moved))
    return b.copysign(result, x)


def sigmoid(b: ScalarBuilder, x: Value) -> Value:
    """1 / (1 + 2^n (1 + p)) as 2^-k / (2^-k + 2^(n - k) (1 + p)), k about n / 2: nothing overflows, and what is small
    underflows with the last product. What is 0 is chosen, as that product would be slow."""
    c = format_of(x)
    stays = b.bit_not(b.compare("lt", x, c.exp_low))
    p, t = exp_parts(b, b.select(stays, clamp_below(b, b.negative(x), c.exp_low), 0))
    both = integer_part(b, t, 2 * c.bias)
    first = b.shift_right(both, 1)
    power = power_of_two(b, first, x)
    inverse = power_of_two(b, b.subtract(2 * c.bias, b.subtract(both, first)), x)
    # Where 2^n is so large that 1 + 2^n would be rounded, it is added last.
    far = b.compare("gt", t, c.magic + c.mantissa - 2)
    start = b.select(far, inverse, b.add(power, inverse))
    total = b.add(b.fma(p, power, start), b.select(far, power, 0))
    return b.select(stays, b.multiply(b.divide(1, total), inverse), 0)


def tanh(b: ScalarBuilder, x: Value) -> Value:
    """x + x^3 P(x^2) up to 0.625, beyond it 1 - 2 / (exp(2 |x|) + 1)."""
    c = format_of(x)
    size = clamp_above(b, b.absolute(x), c.tanh_high)
    square = b.multiply(size, size)
    small = b.fma(b.multiply(square, size), horner(b, square, c.tanh), size)
    p, t = exp_parts(b, b.add(size, size))
    power = power_of_two(b, integer_part(b, t, c.bias), x)
    large = b.subtract(1, b.divide(2, b.fma(p, power, b.add(power, 1))))
    return b.copysign(b.select(b.compare("lt", size, 0.625), small, large), x)


def split(b: ScalarBuilder, x: Value, *, subnormal: bool = True) -> tuple[Value, Value]:
    """(m, e) with x = m 2^e and m from sqrt(1/2) up to sqrt(2), for positive finite x; e is floating."""
    c = format_of(x)
    offset = b.const(x.dtype, c.magic + c.bias)
    if subnormal:
        tiny = b.compare("lt", x, 2.0 ** (1 - c.bias))
        x = b.select(tiny, b.multiply(x, 2.0**c.mantissa), x)
        offset = b.select(tiny, c.magic + c.bias + c.mantissa, offset)
    bits = b.bitcast(x, c.integer)
    # The bias keeps the exponent positive: a logical shift will do, where AVX2 has no arithmetic one for 64 bits.
    lifted = b.add(bits, (c.bias << c.mantissa) - c.sqrt_half_bits)
    biased = b.binary("lshr", lifted, c.mantissa)
    power = b.shift_left(b.subtract(biased, c.bias), c.mantissa)
    exponent = b.subtract(b.bitcast(b.add(biased, c.magic_bits), x.dtype), offset)
    return b.bitcast(b.subtract(bits, power), x.dtype), exponent


def log_of_parts(b: ScalarBuilder, f: Value, e: Value) -> Value:
    """log(1 + f) + e ln 2 for 1 + f from sqrt(1/2) to sqrt(2)."""
    c = format_of(f)
    correction = b.multiply(e, c.ln2_low)
    if f.dtype.bits == 32:
        square = b.multiply(f, f)
        tail = b.fma(f, horner(b, f, fitted.LOG_32), -0.5)
        return b.fma(e, c.ln2_high, b.add(f, b.fma(square, tail, correction)))
    # log(1 + f) = 2 artanh(s) with s = f / (2 + f), written as f - f^2/2 + s (f^2/2 + R(s^2)).
    s = b.divide(f, b.add(f, 2))
    square = b.multiply(s, s)
    half = b.multiply(b.multiply(f, 0.5), f)
    rest = b.fma(square, horner(b, square, fitted.LOG_64), half)
    return b.fma(e, c.ln2_high, b.subtract(f, b.subtract(half, b.fma(s, rest, correction))))


def log_specials(b: ScalarBuilder, x: Value, result: Value) -> Value:
    """-inf at 0, inf at inf, NaN for negative x and NaN."""
    outside = b.select(b.compare("eq", x, 0), -INFINITY, b.select(b.compare("eq", x, INFINITY), x, NAN))
    inside = b.bit_and(b.compare("gt", x, 0), b.compare("lt", x, INFINITY))
    return b.select(inside, result, outside)


def log(b: ScalarBuilder, x: Value) -> Value:
    m, e = split(b, x)
    return log_specials(b, x, log_of_parts(b, b.subtract(m, 1), e))


def log1p(b: ScalarBuilder, x: Value) -> Value:
    """The log of u = 1 + x, its argument corrected by what the addition lost."""
    c = format_of(x)
    u = b.add(x, 1)
    part = b.subtract(u, 1)
    lost = b.add(b.subtract(1, b.subtract(u, part)), b.subtract(x, part))
    m, e = split(b, u, subnormal=False)
    # Beyond 2^(bias - 2) nothing is lost that counts, and 2^-e would not be normal.
    inverse = power_of_two(b, integer_part(b, b.subtract(c.magic, clamp_above(b, e, c.bias - 2)), c.bias), x)
    result = log_of_parts(b, b.fma(lost, inverse, b.subtract(m, 1)), e)
    return b.copysign(log_specials(b, u, result), x)


def erf(b: ScalarBuilder, x: Value) -> Value:
    """x + x P(x^2) near 0, beyond it 1 - erfc(|x|)."""
    c = format_of(x)
    size = clamp_above(b, b.absolute(x), c.erf_high)
    square = b.multiply(size, size)
    small = b.fma(size, horner(b, square, c.erf), size)
    large = _erf_float32(b, size) if x.dtype.bits == 32 else _erf_float64(b, size, square)
    return b.copysign(b.select(b.compare("lt", size, c.erf_split), small, large), x)


def erfc(b: ScalarBuilder, x: Value) -> Value:
    """1 - erf(x) up to 1/2 in size; beyond it exp(-a^2) R(a), from 2 for negative x; accurate as it vanishes."""
    size = clamp_above(b, b.absolute(x), 11.0 if x.dtype.bits == 32 else 28.0)
    near = b.compare("lt", size, 0.5)
    square = b.multiply(size, size)
    small = b.copysign(b.fma(size, horner(b, square, format_of(x).erf), size), x)
    if x.dtype.bits == 32:
        large = b.astype(_tail(b, b.astype(size, float64), fitted.ERFC_TAIL_SHORT), x.dtype)
    else:
        large = _tail(b, size, fitted.ERFC_TAIL_64)
    far = b.select(b.compare("lt", x, 0), b.subtract(2, large), large)
    return b.select(near, b.subtract(1, small), far)


def _sum(b: ScalarBuilder, x: Value, y: float) -> tuple[Value, Value]:
    """The sum and what its rounding lost, in any order of size."""
    total = b.add(x, y)
    part = b.subtract(total, x)
    return total, b.add(b.subtract(x, b.subtract(total, part)), b.subtract(y, part))


def _tail(b: ScalarBuilder, a: Value, terms: Sequence[float]) -> Value:
    """exp(-a^2) S(t) / (a + 1) with t = (a - 1) / (a + 1), all but the small parts of S and exp in pairs."""
    square = b.multiply(a, a)
    low = b.fma(a, b.negative(a), square)
    p, t = exp_parts(b, b.negative(square), low)
    head = b.add(p, 1)
    head_low = b.subtract(p, b.subtract(head, 1))
    under, under_low = _sum(b, a, 1)
    above, above_low = _sum(b, a, -1)
    place = b.divide(above, under)
    negative = b.negative(place)
    place_low = b.divide(b.fma(negative, under_low, b.add(b.fma(negative, under, above), above_low)), under)
    factor = horner(b, place, terms[1:])
    rest = b.multiply(place, factor)
    # What the quotient misses, times the slope of S: a few terms of it are enough.
    slope = horner(b, place, [k * term for k, term in enumerate(terms[1:8], 1)])
    rest_low = b.fma(place_low, slope, b.fma(place, factor, b.negative(rest)))
    series = b.add(rest, terms[0])
    series_low = b.add(b.subtract(rest, b.subtract(series, terms[0])), rest_low)
    over = b.multiply(series, head)
    over_low = b.fma(series, head, b.negative(over))
    over_low = b.add(over_low, b.fma(series, head_low, b.multiply(series_low, head)))
    quotient = b.divide(over, under)
    negative = b.negative(quotient)
    missed = b.fma(negative, under_low, b.add(b.fma(negative, under, over), over_low))
    return scale(b, b.add(quotient, b.divide(missed, under)), t)


def _erf_float32(b: ScalarBuilder, size: Value) -> Value:
    """erfc as exp of a polynomial."""
    p, t = exp_parts(b, horner(b, size, fitted.ERFC_32))
    power = power_of_two(b, integer_part(b, t, FLOAT32.bias), size)
    return b.fma(b.negative(p), power, b.subtract(1, power))


def _erf_float64(b: ScalarBuilder, size: Value, square: Value) -> Value:
    """erfc as exp(-a^2) times a polynomial in (a - 2) / (a + 2)."""
    factor = horner(b, b.divide(b.subtract(size, 2), b.add(size, 2)), fitted.ERFC_64)
    p, t = exp_parts(b, b.negative(square))
    weight = b.multiply(factor, power_of_two(b, integer_part(b, t, FLOAT64.bias), size))
    return b.subtract(1, b.fma(weight, p, weight))
