"""sin, cos and tan, from IEEE operations alone, within 2 ULP for every finite argument.

Arguments of moderate size are reduced by pi/2 in two or three parts; where some lane holds a larger one, a branch
taken for that case alone reduces it with as many digits of 2/pi as it needs, in integers (Payne and Hanek, 1983).
Each function is an internal function of the module, so that the branch stays out of the caller's lines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from codegen import coefficients as fitted
from codegen.polynomials import INFINITY, format_of, horner
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.types import float64, int64

# pi/2 in parts: each the nearest number to what the ones before it leave.
_PARTS_32 = tuple(map(float.fromhex, ("0x1.921fb6p+0", "-0x1.777a5cp-25", "-0x1.ee59dap-50")))
_PARTS_64 = tuple(map(float.fromhex, ("0x1.921fb54442d18p+0", "0x1.1a62633145c07p-54", "-0x1.f1976b7ed8fbcp-110")))
_TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
# Up to here the product of each part and the quotient is known to the digits that count.
_LIMIT_32 = 2.0**17
_LIMIT_64 = 2.0**30

# The first 1216 bits of the fraction of 2/pi.
_TWO_OVER_PI_BITS = (
    "A2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561"
    "B7246E3A424DD2E006492EEA09D1921CFE1DEB1CB129A73EE88235F52EBB4484"
    "E99C7026B45F7E413991D639835339F49C845F8BBDF9283B1FF897FFDE05980F"
    "EF2F118B5A0A6D1F6D367ECF27CB09B74F463F669E5FEA2D7527BAC7EBE5F17B"
    "3D0739F78A5292EA6BFB5FB11F8D5D0856033046FC7B6BAB"
)
_WORDS = [0, *(int(_TWO_OVER_PI_BITS[k : k + 16], 16) for k in range(0, len(_TWO_OVER_PI_BITS), 16))]
_TABLE = (
    f"@symgrad_two_over_pi = internal unnamed_addr constant [{len(_WORDS)} x i64] "
    f"[{', '.join(f'i64 {word}' for word in _WORDS)}]"
)

# For 2^17 <= |x| < inf: the remainder of x by pi/2 as a sum of two doubles, and the quotient modulo 4.
# x = m 2^e with a 53-bit integer m. A window of 192 bits of 2/pi begins at the bit that weighs 2 in x * 2/pi; what
# stands left of it adds multiples of 4, what stands right of it less than 2^-137. The top 128 bits of the product
# modulo 2^192 are quotient (2 bits) and fraction, split into signed 42, 43 and 43 bits that are exact as doubles.
_REDUCE_LARGE = """\
define internal { double, double, i64 } @symgrad_reduce_large(double %x) nounwind willreturn memory(none) {
entry:
  %bits = bitcast double %x to i64
  %magnitude = and i64 %bits, 9223372036854775807
  %exponent = lshr i64 %magnitude, 52
  %fraction = and i64 %bits, 4503599627370495
  %m = or i64 %fraction, 4503599627370496
  %position = sub i64 %exponent, 1013
  %index0 = lshr i64 %position, 6
  %shift = and i64 %position, 63
  %index1 = add i64 %index0, 1
  %index2 = add i64 %index0, 2
  %index3 = add i64 %index0, 3
  %p0 = getelementptr i64, ptr @symgrad_two_over_pi, i64 %index0
  %p1 = getelementptr i64, ptr @symgrad_two_over_pi, i64 %index1
  %p2 = getelementptr i64, ptr @symgrad_two_over_pi, i64 %index2
  %p3 = getelementptr i64, ptr @symgrad_two_over_pi, i64 %index3
  %t0 = load i64, ptr %p0
  %t1 = load i64, ptr %p1
  %t2 = load i64, ptr %p2
  %t3 = load i64, ptr %p3
  %w0 = call i64 @llvm.fshl.i64(i64 %t0, i64 %t1, i64 %shift)
  %w1 = call i64 @llvm.fshl.i64(i64 %t1, i64 %t2, i64 %shift)
  %w2 = call i64 @llvm.fshl.i64(i64 %t2, i64 %t3, i64 %shift)
  %m.wide = zext i64 %m to i128
  %w1.wide = zext i64 %w1 to i128
  %w2.wide = zext i64 %w2 to i128
  %low = mul i128 %m.wide, %w2.wide
  %middle = mul i128 %m.wide, %w1.wide
  %high = mul i64 %m, %w0
  %high.wide = zext i64 %high to i128
  %high.placed = shl i128 %high.wide, 64
  %low.placed = lshr i128 %low, 64
  %sum = add i128 %middle, %low.placed
  %product = add i128 %sum, %high.placed
  %rounded = add i128 %product, 42535295865117307932921825928971026432
  %quotient.wide = lshr i128 %rounded, 126
  %quotient = trunc i128 %quotient.wide to i64
  %whole = shl i128 %quotient.wide, 126
  %rest = sub i128 %product, %whole
  %chunk2.wide = ashr i128 %rest, 86
  %chunk2 = trunc i128 %chunk2.wide to i64
  %chunk1.wide = lshr i128 %rest, 43
  %chunk1.raw = trunc i128 %chunk1.wide to i64
  %chunk1 = and i64 %chunk1.raw, 8796093022207
  %chunk0.raw = trunc i128 %rest to i64
  %chunk0 = and i64 %chunk0.raw, 8796093022207
  %float2 = sitofp i64 %chunk2 to double
  %float1 = sitofp i64 %chunk1 to double
  %float0 = sitofp i64 %chunk0 to double
  %d2 = fmul double %float2, 0x3D70000000000000
  %d1 = fmul double %float1, 0x3AC0000000000000
  %d0 = fmul double %float0, 0x3810000000000000
  %s = fadd double %d2, %d1
  %s.part = fsub double %s, %d2
  %s.lost = fsub double %d1, %s.part
  %tail = fadd double %s.lost, %d0
  %h = fadd double %s, %tail
  %h.part = fsub double %h, %s
  %l = fsub double %tail, %h.part
  %r = fmul double %h, 0x3FF921FB54442D18
  %r.negative = fneg double %r
  %r.lost = call double @llvm.fma.f64(double %h, double 0x3FF921FB54442D18, double %r.negative)
  %e1 = call double @llvm.fma.f64(double %h, double 0x3C91A62633145C07, double %r.lost)
  %e = call double @llvm.fma.f64(double %l, double 0x3FF921FB54442D18, double %e1)
  %below = icmp slt i64 %bits, 0
  %e.negative = fneg double %e
  %quotient.negative = sub i64 0, %quotient
  %r.signed = select i1 %below, double %r.negative, double %r
  %e.signed = select i1 %below, double %e.negative, double %e
  %q.signed = select i1 %below, i64 %quotient.negative, i64 %quotient
  %with.r = insertvalue { double, double, i64 } poison, double %r.signed, 0
  %with.e = insertvalue { double, double, i64 } %with.r, double %e.signed, 1
  %with.q = insertvalue { double, double, i64 } %with.e, i64 %q.signed, 2
  ret { double, double, i64 } %with.q
}"""


class Reduced(NamedTuple):
    """x = r + low + q pi/2, q in the low bits of an integer; `low` is None for float32, where it does not count."""

    r: Value
    low: Value | None
    q: Value


def _reduce(b: ScalarBuilder, x: Value) -> Reduced:
    """Opens basic blocks: for bodies of internal functions alone."""
    c = format_of(x)
    limit = _LIMIT_32 if x.dtype.bits == 32 else _LIMIT_64
    t = b.fma(x, _TWO_OVER_PI, c.magic)
    n = b.subtract(t, c.magic)
    if x.dtype.bits == 32:
        r = x
        for part in _PARTS_32:
            r = b.fma(n, -part, r)
        fast = (r, b.bitcast(t, c.integer))
    else:
        fast = (*_subtract_parts(b, x, n), b.bitcast(t, c.integer))
    size = b.absolute(x)
    large = b.bit_and(b.compare("gt", size, limit), b.compare("lt", size, INFINITY))
    moved = _where_large(b, large, x, fast)
    return Reduced(moved[0], moved[1] if len(moved) == 3 else None, moved[-1])


def _subtract_parts(b: ScalarBuilder, x: Value, n: Value) -> tuple[Value, Value]:
    """x - n pi/2 as a sum of two numbers; the first fma is exact, the second product and difference are too."""
    first, second, third = _PARTS_64
    start = b.fma(n, -first, x)
    product = b.multiply(n, second)
    lost_product = b.fma(n, second, b.negative(product))
    r = b.subtract(start, product)
    part = b.subtract(r, start)
    lost = b.subtract(b.subtract(start, b.subtract(r, part)), b.add(product, part))
    return r, b.fma(n, -third, b.subtract(lost, lost_product))


def _where_large(b: ScalarBuilder, large: Value, x: Value, fast: tuple[Value, ...]) -> tuple[Value, ...]:
    """`fast`, with the lanes of `large` arguments replaced on a branch that is taken when there are any."""
    b.globals |= {_TABLE, _REDUCE_LARGE}
    b.declarations |= {
        "declare i64 @llvm.fshl.i64(i64, i64, i64)",
        "declare double @llvm.fma.f64(double, double, double)",
    }
    b.lines += [f"br i1 {b.any_lane(large)}, label %large, label %reduced", "large:"]
    slow = _reduce_lanes(b, b.select(large, x, _LIMIT_64), fast)
    slow = tuple(b.select(large, s, f) for s, f in zip(slow, fast, strict=True))
    b.lines += ["br label %reduced", "reduced:"]
    return tuple(_phi(b, f, s) for f, s in zip(fast, slow, strict=True))


def _phi(b: ScalarBuilder, fast: Value, slow: Value) -> Value:
    kind = b.type_of(fast)
    return b.emit(fast.dtype, fast.lanes, f"phi {kind} [ {fast.text}, %entry ], [ {slow.text}, %large ]")


def _reduce_lanes(b: ScalarBuilder, x: Value, like: tuple[Value, ...]) -> tuple[Value, ...]:
    """The reduction of every lane by itself, in the dtypes of `like`: r, low where there is one, q."""
    results: list[Value | None] = [None] * len(like)
    fields = (0, 2) if len(like) == 2 else (0, 1, 2)
    for lane in range(x.lanes):
        one = x
        if x.lanes > 1:
            one = b.emit(x.dtype, 1, f"extractelement {b.type_of(x)} {x.text}, i64 {lane}")
        wide = b.astype(one, float64)
        call = b.fresh()
        b.lines.append(f"{call} = call {{ double, double, i64 }} @symgrad_reduce_large(double {wide.text})")
        for k, field in enumerate(fields):
            source = int64 if field == 2 else float64
            item = b.emit(source, 1, f"extractvalue {{ double, double, i64 }} {call}, {field}")
            item = b.astype(item, like[k].dtype)
            so_far = results[k]
            if x.lanes > 1:
                base = so_far.text if so_far else "poison"
                insert = f"insertelement {b.type_of(like[k])} {base}, {b.type_of(item)} {item.text}, i64 {lane}"
                item = b.emit(like[k].dtype, x.lanes, insert)
            results[k] = item
    return tuple(r for r in results if r is not None)


class Pair(NamedTuple):
    """A number as a sum; `low` is what rounding the sum to `high` would lose."""

    high: Value
    low: Value


def _sum(b: ScalarBuilder, large: Value, small: Value) -> Pair:
    """For |large| >= |small|."""
    high = b.add(large, small)
    return Pair(high, b.subtract(small, b.subtract(high, large)))


def _sine_and_cosine(b: ScalarBuilder, reduced: Reduced) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    """Of r + low, |r| <= pi/4: each as two terms to add, the first the larger."""
    r, low, _ = reduced
    square = b.multiply(r, r)
    cube = b.multiply(square, r)
    half = b.multiply(square, 0.5)
    head = b.subtract(1, half)
    if low is None:
        sine = b.multiply(cube, horner(b, square, fitted.SIN_32))
        return (r, sine), (head, b.multiply(square, b.multiply(square, horner(b, square, fitted.COS_32))))
    sine = b.fma(cube, horner(b, square, fitted.SIN_64), b.multiply(low, head))
    tail = b.multiply(square, horner(b, square, fitted.COS_64))
    lost = b.subtract(b.subtract(1, head), half)
    return (r, sine), (head, b.fma(square, tail, b.subtract(lost, b.multiply(r, low))))


def _sine_body(shift: int) -> Callable[[ScalarBuilder, Value], Value]:
    def body(b: ScalarBuilder, x: Value) -> Value:
        reduced = _reduce(b, x)
        sine, cosine = (b.add(*terms) for terms in _sine_and_cosine(b, reduced))
        q = b.add(reduced.q, shift) if shift else reduced.q
        size = b.select(_is_odd(b, q), cosine, sine)
        sign = b.shift_left(b.bit_and(q, 2), x.dtype.bits - 2)
        result = b.bitcast(b.bit_xor(b.bitcast(size, q.dtype), sign), x.dtype)
        return result if shift else _keep_zero(b, x, result)

    return body


def _keep_zero(b: ScalarBuilder, x: Value, result: Value) -> Value:
    """The reduction loses the sign of zero."""
    return b.select(b.compare("eq", x, 0), x, result)


def _is_odd(b: ScalarBuilder, q: Value) -> Value:
    return b.compare("ne", b.bit_and(q, 1), 0)


def _tangent_body(b: ScalarBuilder, x: Value) -> Value:
    """The quotient of pairs: a first quotient and what it leaves, divided by the same reciprocal."""
    reduced = _reduce(b, x)
    sine, cosine = (_sum(b, *terms) for terms in _sine_and_cosine(b, reduced))
    odd = _is_odd(b, reduced.q)
    over, under = b.select(odd, b.negative(cosine.high), sine.high), b.select(odd, sine.high, cosine.high)
    over_low, under_low = b.select(odd, b.negative(cosine.low), sine.low), b.select(odd, sine.low, cosine.low)
    inverse = b.divide(1, under)
    first = b.multiply(over, inverse)
    negative = b.negative(first)
    rest = b.fma(negative, under_low, b.add(b.fma(negative, under, over), over_low))
    return _keep_zero(b, x, b.fma(rest, inverse, first))


def _short_tangent_body(b: ScalarBuilder, narrow: Value) -> Value:
    """float32 by way of float64, rounded once at the end."""
    c = format_of(b.const(float64, 0))
    x = b.astype(narrow, float64)
    t = b.fma(x, _TWO_OVER_PI, c.magic)
    n = b.subtract(t, c.magic)
    r = b.fma(n, -_PARTS_64[1], b.fma(n, -_PARTS_64[0], x))
    size = b.absolute(x)
    large = b.bit_and(b.compare("gt", size, _LIMIT_64), b.compare("lt", size, INFINITY))
    r, q = _where_large(b, large, x, (r, b.bitcast(t, c.integer)))
    square = b.multiply(r, r)
    sine = b.fma(b.multiply(square, r), horner(b, square, fitted.SIN_SHORT), r)
    tail = b.multiply(square, horner(b, square, fitted.COS_SHORT))
    cosine = b.fma(square, tail, b.fma(square, -0.5, b.const(float64, 1)))
    odd = _is_odd(b, q)
    quotient = b.divide(b.select(odd, b.negative(cosine), sine), b.select(odd, sine, cosine))
    return _keep_zero(b, narrow, b.astype(quotient, narrow.dtype))


def sin(b: ScalarBuilder, x: Value) -> Value:
    return b.call_function("sin", _sine_body(0), x.dtype, x)


def cos(b: ScalarBuilder, x: Value) -> Value:
    return b.call_function("cos", _sine_body(1), x.dtype, x)


def tan(b: ScalarBuilder, x: Value) -> Value:
    return b.call_function("tan", _short_tangent_body if x.dtype.bits == 32 else _tangent_body, x.dtype, x)
