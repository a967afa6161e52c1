"""Spelling of scalar operations as LLVM text: what every name of the pointwise vocabulary becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from codegen import bases, hyperbolic, integers, inverse, philox, polynomials, powers, remainders, trigonometry
from codegen.scalar_builder import ScalarBuilder, Value
from symgrad.errors import DTypeError
from symgrad.types import DTYPES, bool_

Operation: TypeAlias = Callable[..., Value]
Unary: TypeAlias = Callable[[ScalarBuilder, Value], Value]
Binary: TypeAlias = Callable[[ScalarBuilder, Value, Value], Value]


def spell(b: ScalarBuilder, name: str, *args: Value, **attrs: Any) -> Value:
    """Apply an operation of the pointwise vocabulary.

    The result has one lane when every argument has. Arguments of one operation have one dtype (but the condition of
    `where`). DTypeError where the operation has no meaning for the dtype, KeyError for an unknown name.
    """
    return OPERATIONS[name](b, *b.matched(*args), **attrs)


def _floats(name: str, spell: Operation) -> Operation:
    """The operation, for floats alone."""

    def apply(b: ScalarBuilder, *args: Value) -> Value:
        if not args[0].dtype.is_float:
            raise DTypeError(f"{name}: got {args[0].dtype}; the operation is for float32 and float64")
        return spell(b, *args)

    return apply


def _integers(name: str, spell: Operation) -> Operation:
    """The operation, for integers alone."""

    def apply(b: ScalarBuilder, *args: Value) -> Value:
        if not args[0].dtype.is_integer:
            raise DTypeError(f"{name}: got {args[0].dtype}; the operation is for integers")
        return spell(b, *args)

    return apply


def _numbers(name: str, spell: Operation) -> Operation:
    """The operation, for everything but bool."""

    def apply(b: ScalarBuilder, *args: Value) -> Value:
        _reject_bool(name, args[0])
        return spell(b, *args)

    return apply


def _rounding(intrinsic: str) -> Unary:
    """Integers are their own rounding."""
    return lambda b, x: b.call_intrinsic(intrinsic, x) if x.dtype.is_float else x


def _comparison(predicate: str) -> Binary:
    return lambda b, x, y: b.compare(predicate, x, y)


def _logical(spell: Binary) -> Binary:
    return lambda b, x, y: spell(b, b.astype(x, bool_), b.astype(y, bool_))


def _add(b: ScalarBuilder, x: Value, y: Value) -> Value:
    return b.bit_or(x, y) if x.dtype.kind == "b" else b.add(x, y)


def _multiply(b: ScalarBuilder, x: Value, y: Value) -> Value:
    return b.bit_and(x, y) if x.dtype.kind == "b" else b.multiply(x, y)


def _subtract(b: ScalarBuilder, x: Value, y: Value) -> Value:
    _reject_bool("subtract", x)
    return b.subtract(x, y)


def _reject_bool(name: str, x: Value) -> None:
    if x.dtype.kind == "b":
        raise DTypeError(f"{name}: got bool; use logical operations or convert with astype")


def _negative(b: ScalarBuilder, x: Value) -> Value:
    _reject_bool("negative", x)
    return b.negative(x)


def _abs(b: ScalarBuilder, x: Value) -> Value:
    if x.dtype.is_float:
        return b.absolute(x)
    return b.select(b.compare("lt", x, 0), b.subtract(0, x), x) if x.dtype.kind == "i" else x


def _sign(b: ScalarBuilder, x: Value) -> Value:
    """-1, 0 or 1; both zeros give +0, NaN gives NaN."""
    _reject_bool("sign", x)
    if x.dtype.kind == "u":
        return b.astype(b.compare("ne", x, 0), x.dtype)
    below = b.select(b.compare("lt", x, 0), -1, b.const(x.dtype, 0))
    result = b.select(b.compare("gt", x, 0), 1, below)
    return b.select(b.is_nan(x), x, result) if x.dtype.is_float else result


def _extremum(predicate: str, of_bool: Binary) -> Binary:
    """NaN in either argument gives NaN; equal arguments, signed zeros too, give the second."""

    def apply(b: ScalarBuilder, x: Value, y: Value) -> Value:
        if x.dtype.kind == "b":
            return of_bool(b, x, y)
        result = b.select(b.compare(predicate, x, y), x, y)
        return b.select(b.is_nan(x), x, result) if x.dtype.is_float else result

    return apply


def _sqrt(b: ScalarBuilder, x: Value) -> Value:
    return b.call_intrinsic("sqrt", x)


def _rsqrt(b: ScalarBuilder, x: Value) -> Value:
    return b.divide(1, _sqrt(b, x))


def _reciprocal(b: ScalarBuilder, x: Value) -> Value:
    return b.divide(1, x)


def _square(b: ScalarBuilder, x: Value) -> Value:
    return _multiply(b, x, x)


def _logical_not(b: ScalarBuilder, x: Value) -> Value:
    return b.bit_not(b.astype(x, bool_))


def _is_finite(b: ScalarBuilder, x: Value) -> Value:
    return b.compare("lt", b.absolute(x), float("inf")) if x.dtype.is_float else _uniform(b, x, True)


def _is_inf(b: ScalarBuilder, x: Value) -> Value:
    return b.compare("eq", b.absolute(x), float("inf")) if x.dtype.is_float else _uniform(b, x, False)


def _is_nan(b: ScalarBuilder, x: Value) -> Value:
    return b.is_nan(x) if x.dtype.is_float else _uniform(b, x, False)


def _uniform(b: ScalarBuilder, like: Value, value: bool) -> Value:
    literal = b.const(bool_, value)
    return literal if like.lanes == 1 else b.splat(literal)


def _safe_multiply(b: ScalarBuilder, x: Value, y: Value) -> Value:
    """0 where a factor is exactly 0, even if the other is infinite or NaN."""
    # Both "not equal to zero": one masked comparison and a masked product, where masks cost instructions of their own.
    counts = b.bit_and(b.compare("ne", x, 0), b.compare("ne", y, 0))
    return b.select(counts, b.multiply(x, y), b.const(x.dtype, 0))


def _power(b: ScalarBuilder, x: Value, y: Value) -> Value:
    _reject_bool("power", x)
    return powers.power(b, x, y) if x.dtype.is_float else integers.power(b, x, y)


def _order_key(b: ScalarBuilder, x: Value, *, descending: bool) -> Value:
    unsigned = DTYPES[f"uint{x.dtype.itemsize * 8}"]
    sign = 1 << (unsigned.bits - 1)
    if x.dtype.is_float:
        # Adding 0 makes -0.0 the same as 0.0. Negative numbers grow with their bits: all of them are inverted.
        signed = b.bitcast(b.add(x, 0.0), DTYPES[f"int{unsigned.bits}"])
        change = b.bit_or(b.shift_right(signed, unsigned.bits - 1), sign)
        key = b.bitcast(b.bit_xor(signed, change), unsigned)
        key = b.select(b.is_nan(x), b.const(unsigned, -1), key)
    elif x.dtype.kind == "i":
        key = b.bit_xor(b.bitcast(x, unsigned), sign)
    else:
        key = b.astype(x, unsigned)
    return b.bit_not(key) if descending else key


def _philox(b: ScalarBuilder, *args: Value, word: int) -> Value:
    return philox.philox(b, args[:4], args[4:])[word]


# Every name of the pointwise vocabulary.
OPERATIONS: dict[str, Operation] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _floats("divide", ScalarBuilder.divide),
    "power": _power,
    "safe_multiply": _safe_multiply,
    "maximum": _extremum("gt", ScalarBuilder.bit_or),
    "minimum": _extremum("lt", ScalarBuilder.bit_and),
    "negative": _negative,
    "abs": _abs,
    "sign": _sign,
    "sqrt": _floats("sqrt", _sqrt),
    "rsqrt": _floats("rsqrt", _rsqrt),
    "square": _square,
    "reciprocal": _floats("reciprocal", _reciprocal),
    "exp": _floats("exp", polynomials.exp),
    "log": _floats("log", polynomials.log),
    "log1p": _floats("log1p", polynomials.log1p),
    "expm1": _floats("expm1", polynomials.expm1),
    "sin": _floats("sin", trigonometry.sin),
    "cos": _floats("cos", trigonometry.cos),
    "tan": _floats("tan", trigonometry.tan),
    "tanh": _floats("tanh", polynomials.tanh),
    "sigmoid": _floats("sigmoid", polynomials.sigmoid),
    "erf": _floats("erf", polynomials.erf),
    "erfc": _floats("erfc", polynomials.erfc),
    "asin": _floats("asin", inverse.asin),
    "acos": _floats("acos", inverse.acos),
    "atan": _floats("atan", inverse.atan),
    "atan2": _floats("atan2", inverse.atan2),
    "hypot": _floats("hypot", inverse.hypot),
    "sinh": _floats("sinh", hyperbolic.sinh),
    "cosh": _floats("cosh", hyperbolic.cosh),
    "asinh": _floats("asinh", hyperbolic.asinh),
    "acosh": _floats("acosh", hyperbolic.acosh),
    "atanh": _floats("atanh", hyperbolic.atanh),
    "cbrt": _floats("cbrt", bases.cbrt),
    "exp2": _floats("exp2", bases.exp2),
    "log2": _floats("log2", bases.log2),
    "log10": _floats("log10", bases.log10),
    "copysign": _floats("copysign", ScalarBuilder.copysign),
    "nextafter": _floats("nextafter", remainders.nextafter),
    "floor_divide": _numbers("floor_divide", remainders.floor_divide),
    "remainder": _numbers("remainder", remainders.remainder),
    "bitwise_left_shift": _integers("bitwise_left_shift", remainders.shift_left),
    "bitwise_right_shift": _integers("bitwise_right_shift", remainders.shift_right),
    "floor": _rounding("floor"),
    "ceil": _rounding("ceil"),
    "round": _rounding("roundeven"),
    "trunc": _rounding("trunc"),
    "equal": _comparison("eq"),
    "not_equal": _comparison("ne"),
    "less": _comparison("lt"),
    "less_equal": _comparison("le"),
    "greater": _comparison("gt"),
    "greater_equal": _comparison("ge"),
    "logical_and": _logical(ScalarBuilder.bit_and),
    "logical_or": _logical(ScalarBuilder.bit_or),
    "logical_xor": _logical(ScalarBuilder.bit_xor),
    "logical_not": _logical_not,
    "bitwise_and": ScalarBuilder.bit_and,
    "bitwise_or": ScalarBuilder.bit_or,
    "bitwise_xor": ScalarBuilder.bit_xor,
    "bitwise_invert": ScalarBuilder.bit_not,
    "where": ScalarBuilder.select,
    "astype": ScalarBuilder.astype,
    "isnan": _is_nan,
    "isfinite": _is_finite,
    "isinf": _is_inf,
    "fma": _floats("fma", ScalarBuilder.fma),
    "philox": _philox,
    "order_key": _order_key,
}
