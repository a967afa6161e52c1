"""Quotients rounded down and their remainders, neighbors of floats, and shifts by any count."""

from __future__ import annotations

from codegen.polynomials import INFINITY, NAN, format_of, scale
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.types import bool_, float64

# A quotient below this is an integer after truncation, wrong by at most one.
_EXACT = 2.0**53
# How far quotients of float32 and of float64 reach beyond it, and by how much one step shortens them.
_REACH = {32: 230, 64: 2046}
_STEP = 52


def floor_divide(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """The quotient rounded down. Of integers 0 for divisor 0, and wrapped; of floats as Python, x / y for divisor 0."""
    if not x.dtype.is_float:
        return _integer_parts(b, x, y)[0]
    rest, adjust = _signed_rest(b, x, y)
    plain = b.divide(x, y)
    quotient = b.divide(b.subtract(x, rest), y)
    quotient = b.select(adjust, b.subtract(quotient, 1), quotient)
    floor = b.call_intrinsic("floor", quotient)
    # The quotient is an integer but for rounding.
    floor = b.select(b.compare("gt", b.subtract(quotient, floor), 0.5), b.add(floor, 1), floor)
    zero = b.copysign(b.const(x.dtype, 0) if x.lanes == 1 else b.splat(b.const(x.dtype, 0)), plain)
    floor = b.select(b.compare("ne", quotient, 0), floor, zero)
    return b.select(b.compare("eq", y, 0), plain, floor)


def remainder(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """x - y floor(x / y), with the sign of y. Of integers 0 for divisor 0; of floats exact, NaN for divisor 0."""
    if not x.dtype.is_float:
        return _integer_parts(b, x, y)[1]
    rest, adjust = _signed_rest(b, x, y)
    zero = b.copysign(b.const(x.dtype, 0) if x.lanes == 1 else b.splat(b.const(x.dtype, 0)), y)
    return b.select(b.compare("ne", rest, 0), b.select(adjust, b.add(rest, y), rest), zero)


def _integer_parts(b: ScalarBuilder, x: Value, y: Value) -> tuple[Value, Value]:
    """Dividing by 0, or the least number by -1, is not defined for the instruction."""
    zero = b.const(x.dtype, 0)
    bad = b.compare("eq", y, 0)
    if x.dtype.kind == "u":
        safe = b.select(bad, 1, y)
        quotient = b.binary("udiv", x, safe)
        rest = b.subtract(x, b.multiply(quotient, safe))
        return b.select(bad, zero, quotient), b.select(bad, zero, rest)
    opposite = b.compare("eq", y, -1)
    safe = b.select(b.bit_or(bad, opposite), 1, y)
    quotient = b.binary("sdiv", x, safe)
    rest = b.subtract(x, b.multiply(quotient, safe))
    adjust = _signs_differ(b, rest, safe)
    quotient = b.select(adjust, b.subtract(quotient, 1), quotient)
    rest = b.select(adjust, b.add(rest, safe), rest)
    quotient = b.select(opposite, b.subtract(0, x), quotient)
    return b.select(bad, zero, quotient), b.select(bad, zero, rest)


def _signs_differ(b: ScalarBuilder, rest: Value, y: Value) -> Value:
    """Whether a remainder that is not 0 has the other sign than the divisor."""
    unlike = b.bit_xor(b.compare("lt", rest, 0), b.compare("lt", y, 0))
    return b.bit_and(b.compare("ne", rest, 0), unlike)


def _signed_rest(b: ScalarBuilder, x: Value, y: Value) -> tuple[Value, Value]:
    """C99 fmod, with the sign of x, and whether y has to be added to give it the sign of y."""
    size, divisor = b.absolute(x), b.absolute(y)
    finite = b.compare("lt", size, INFINITY)
    positive = b.bit_and(b.compare("gt", divisor, 0), b.compare("lt", divisor, INFINITY))
    usual = b.bit_and(finite, positive)
    one = b.const(x.dtype, 1)
    rest = b.call_function("fmod", _rest_body, x.dtype, b.select(usual, size, one), b.select(usual, divisor, one))
    unchanged = b.bit_and(finite, b.compare("eq", divisor, INFINITY))
    rest = b.select(usual, rest, b.select(unchanged, size, NAN))
    rest = b.copysign(rest, x)
    return rest, _signs_differ(b, rest, y)


def _rest_body(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """What subtracting y as often as it goes leaves of x, exactly; both finite, x not negative, y positive."""
    narrow = x.dtype
    x, y = b.astype(x, float64), b.astype(y, float64)
    magic = format_of(x).magic
    far = b.compare("ge", b.divide(x, y), _EXACT)
    b.lines.append(f"br i1 {b.any_lane(far)}, label %far, label %near")
    kind = b.type_of(x)
    rest, t, out = x._replace(text=b.fresh()), b.const(float64, magic + _REACH[narrow.bits]), x._replace(text=b.fresh())
    start = t.text
    t = t._replace(text=b.fresh())
    before = len(b.lines)
    # Multiples of y by powers of two are subtracted first, the largest that any quotient needs to begin with.
    multiple = scale(b, y, t)
    shorter = b.select(b.compare("le", multiple, rest), _subtract_multiples(b, rest, multiple), rest)
    following = b.subtract(t, _STEP)
    more = b.compare("gt", following, magic)
    loop = b.lines[before:]
    del b.lines[before:]
    b.lines += [
        "far:",
        f"{rest.text} = phi {kind} [ {x.text}, %entry ], [ {shorter.text}, %far ]",
        f"{t.text} = phi double [ {start}, %entry ], [ {following.text}, %far ]",
        *loop,
        f"br i1 {more.text}, label %far, label %near",
        "near:",
        f"{out.text} = phi {kind} [ {x.text}, %entry ], [ {shorter.text}, %far ]",
    ]
    return b.astype(_subtract_multiples(b, out, y), narrow)


def _subtract_multiples(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """The remainder of x by y for a quotient below 2^53: the fma is exact, and the quotient at most one too large."""
    quotient = b.call_intrinsic("trunc", b.divide(x, y))
    rest = b.fma(b.negative(quotient), y, x)
    return b.select(b.compare("lt", rest, 0), b.add(rest, y), rest)


def nextafter(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """The neighbor of x in the direction of y; y where they are equal."""
    c = format_of(x)
    bits = b.bitcast(x, c.integer)
    outward = b.compare("eq", b.compare("gt", y, x), b.compare("gt", x, 0))
    moved = b.bitcast(b.add(bits, b.select(outward, 1, b.const(c.integer, -1))), x.dtype)
    least = b.const(x.dtype, 2.0 ** (1 - c.bias - c.mantissa))
    moved = b.select(b.compare("eq", x, 0), b.copysign(*b.matched(least, y)), moved)
    moved = b.select(b.binary("fcmp uno", x, y, bool_), NAN, moved)
    return b.select(b.compare("eq", x, y), y, moved)


def shift_left(b: ScalarBuilder, x: Value, count: Value) -> Value:
    """0 for counts that are negative or not less than the width."""
    inside = _is_inside(b, count)
    zero = b.const(x.dtype, 0)
    return b.select(inside, b.shift_left(x, b.select(inside, count, zero)), zero)


def shift_right(b: ScalarBuilder, x: Value, count: Value) -> Value:
    """Copies the sign; for counts that are negative or not less than the width nothing else is left."""
    if x.dtype.kind == "i":
        return b.shift_right(x, b.select(_is_inside(b, count), count, x.dtype.bits - 1))
    inside = _is_inside(b, count)
    zero = b.const(x.dtype, 0)
    return b.select(inside, b.shift_right(x, b.select(inside, count, zero)), zero)


def _is_inside(b: ScalarBuilder, count: Value) -> Value:
    below = b.compare("lt", count, count.dtype.bits)
    if count.dtype.kind == "u":
        return below
    return b.bit_and(below, b.bit_not(b.compare("lt", count, 0)))
