"""Powers of integers."""

from __future__ import annotations

from codegen.scalar_builder import ScalarBuilder, Value


def power(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """x ** y modulo 2^bits; a negative exponent gives the exact result truncated, and 0 for base 0.

    A literal exponent becomes a chain of products, any other a loop in an internal function of the module.
    """
    exponent = _literal(y)
    if exponent is None:
        return b.call_function("power", _power_body, x.dtype, x, y)
    if exponent < 0:
        return _negative_power(b, x, y)
    result: Value | None = None
    while exponent:
        if exponent & 1:
            result = x if result is None else b.multiply(result, x)
        exponent >>= 1
        if exponent:
            x = b.multiply(x, x)
    one = b.const(x.dtype, 1)
    return result or (one if x.lanes == 1 else b.splat(one))


def _literal(y: Value) -> int | None:
    """The exponent where it is a literal, in one lane or splatted."""
    if not y.is_literal:
        return None
    return int(y.text.removeprefix("splat (").removesuffix(")").split()[-1])


def _negative_power(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """1 / x ** -y truncated."""
    one = b.const(x.dtype, 1)
    sign = b.select(b.compare("ne", b.bit_and(y, 1), 0), -1, one)
    return b.select(b.compare("eq", x, 1), 1, b.select(b.compare("eq", x, -1), sign, b.const(x.dtype, 0)))


def _power_body(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """Repeated squaring over the bits of the exponents until every lane has run out of them."""
    kind, lanes = b.type_of(x), x.lanes
    start = y
    if x.dtype.kind == "i":
        start = b.select(b.compare("lt", y, 0), b.const(x.dtype, 0), y)
    base, rest, result = (x._replace(text=b.fresh()) for _ in range(3))
    before = len(b.lines)
    one = b.const(x.dtype, 1)
    product = b.select(b.compare("ne", b.bit_and(rest, 1), 0), b.multiply(result, base), result)
    squared = b.multiply(base, base)
    shorter = b.binary("lshr", rest, 1)
    pending = b.compare("ne", shorter, 0)
    loop = b.lines[before:]
    del b.lines[before:]
    ones = one if lanes == 1 else b.splat(one)
    b.lines += [
        "br label %loop",
        "loop:",
        f"{base.text} = phi {kind} [ {x.text}, %entry ], [ {squared.text}, %loop ]",
        f"{rest.text} = phi {kind} [ {start.text}, %entry ], [ {shorter.text}, %loop ]",
        f"{result.text} = phi {kind} [ {ones.text}, %entry ], [ {product.text}, %loop ]",
        *loop,
    ]
    b.lines += [f"br i1 {b.any_lane(pending)}, label %loop, label %done", "done:"]
    if x.dtype.kind == "u":
        return product
    return b.select(b.compare("lt", y, 0), _negative_power(b, x, y), product)
