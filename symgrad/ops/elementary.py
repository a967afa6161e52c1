"""Pointwise operators beyond arithmetic and the most common functions: inverse trigonometric and hyperbolic
functions, other bases, quotients rounded down, shifts, neighbors of floats.

The rules are those of `pointwise`: derivatives are linear in the cotangent and multiply with `product`.
"""

from __future__ import annotations

import math

import numpy as np

from symgrad.graph import Node
from symgrad.ops.build import apply, constant_like, product
from symgrad.ops.pointwise import binary, unary, zero_gradient
from symgrad.ops.references import erfc_values

# 1 / ln 2 and 1 / ln 10, rounded once.
_LOG2_E, _LOG10_E = 1.4426950408889634, 0.4342944819032518


def _negative(node: Node) -> Node:
    return apply("negative", node)


def _scaled(node: Node, factor: float) -> Node:
    return apply("multiply", node, constant_like(node, factor))


def _plus(node: Node, value: float) -> Node:
    return apply("add", node, constant_like(node, value))


def _from_one(node: Node) -> Node:
    return apply("subtract", constant_like(node, 1), node)


def _circle(x: Node) -> Node:
    """1 / √(1 - x²), of factors: the difference of squares would lose digits near ±1."""
    return apply("rsqrt", apply("multiply", _from_one(x), _plus(x, 1)))


def _roots(a: Node, b: Node) -> Node:
    """1 / √(a b), of two roots: a product would overflow."""
    return apply("multiply", apply("rsqrt", a), apply("rsqrt", b))


def _inverse_length(x: Node) -> Node:
    return apply("reciprocal", apply("hypot", x, constant_like(x, 1)))


unary("asin", "f", lambda n, x: _circle(x), np.arcsin, "The inverse sine; NaN beyond ±1.")
unary("acos", "f", lambda n, x: _negative(_circle(x)), np.arccos, "The inverse cosine, from 0 to π; NaN beyond ±1.")
unary(
    "atan",
    "f",
    lambda n, x: apply("reciprocal", _plus(apply("square", x), 1)),
    np.arctan,
    "The inverse tangent, from -π/2 to π/2.",
)
unary("sinh", "f", lambda n, x: apply("cosh", x), np.sinh, "The hyperbolic sine.")
unary("cosh", "f", lambda n, x: apply("sinh", x), np.cosh, "The hyperbolic cosine.")
unary("asinh", "f", lambda n, x: _inverse_length(x), np.arcsinh, "The inverse hyperbolic sine.")
unary(
    "acosh",
    "f",
    lambda n, x: _roots(_plus(x, -1), _plus(x, 1)),
    np.arccosh,
    "The inverse hyperbolic cosine; NaN below 1.",
)
unary(
    "atanh",
    "f",
    lambda n, x: apply("reciprocal", apply("multiply", _from_one(x), _plus(x, 1))),
    np.arctanh,
    "The inverse hyperbolic tangent; ±inf at ±1, NaN beyond.",
)
unary(
    "cbrt",
    "f",
    lambda n, x: apply("reciprocal", _scaled(apply("square", n), 3)),
    np.cbrt,
    "The cube root, of negative numbers too; the gradient at 0 is inf.",
)
unary("exp2", "f", lambda n, x: _scaled(n, math.log(2)), np.exp2, "2 ** x, exact for integers.")
unary(
    "log2",
    "f",
    lambda n, x: _scaled(apply("reciprocal", x), _LOG2_E),
    np.log2,
    "The logarithm to base 2, exact for powers of two; -inf at 0, NaN below.",
)
unary(
    "log10",
    "f",
    lambda n, x: _scaled(apply("reciprocal", x), _LOG10_E),
    np.log10,
    "The logarithm to base 10, exact for powers of ten; -inf at 0, NaN below.",
)
unary(
    "erfc",
    "f",
    lambda n, x: _negative(_scaled(apply("exp", _negative(apply("square", x))), 2 / math.sqrt(math.pi))),
    erfc_values,
    "1 - erf(x), with all digits where it vanishes.",
)


def _hypot_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    # At the origin derivatives of every order are 0.
    zero = constant_like(n, 0)
    origin = apply("equal", n, zero)
    length = apply("where", origin, constant_like(n, 1), n)
    return tuple(product(g, apply("where", origin, zero, apply("divide", x, length))) for x in n.inputs)


def _atan2_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    y, x = n.inputs
    length = apply("hypot", y, x)
    # At the origin derivatives of every order are 0.
    zero = constant_like(n, 0)
    origin = apply("equal", length, zero)
    length = apply("where", origin, constant_like(n, 1), length)
    # Two quotients by the length, because its square would overflow.
    along, across = (apply("where", origin, zero, apply("divide", apply("divide", i, length), length)) for i in (x, y))
    return (product(g, along), _negative(product(g, across)))


def _copysign_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.inputs
    side = apply("multiply", apply("sign", a), apply("copysign", constant_like(b, 1), b))
    return (product(g, side), None)


def _remainder_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    if not n.dtype.is_float:
        return (None, None)
    return (g, _negative(product(g, apply("floor_divide", *n.inputs))))


binary(
    "hypot",
    "f",
    _hypot_vjp,
    np.hypot,
    "√(a² + b²), without overflow; inf where either is infinite. The gradient at (0, 0) is 0.",
    commutative=True,
)
binary(
    "atan2",
    "f",
    _atan2_vjp,
    np.arctan2,
    "The angle of the point (x, y) = (b, a), from -π to π. The gradient at (0, 0) is 0.",
)
binary("copysign", "f", _copysign_vjp, np.copysign, "|a| with the sign of b; the gradient at a = 0 is 0.")
binary(
    "nextafter",
    "f",
    zero_gradient,
    np.nextafter,
    "The neighbor of a in the direction of b, b where they are equal; its gradient is 0.",
)
binary(
    "floor_divide",
    "iuf",
    zero_gradient,
    np.floor_divide,
    "a / b rounded down. Integers: 0 for b = 0, the least by -1 wraps. Floats: from the exact remainder; a / b for 0.",
)
binary(
    "remainder",
    "iuf",
    _remainder_vjp,
    np.remainder,
    "a - b * floor(a / b), exact, with the sign of b; for b = 0 it is 0 of integers, NaN of floats.",
)
binary(
    "bitwise_left_shift",
    "iu",
    zero_gradient,
    np.left_shift,
    "a * 2 ** b modulo the width; 0 where b is negative or not less than the width.",
)
binary(
    "bitwise_right_shift",
    "iu",
    zero_gradient,
    np.right_shift,
    "a / 2 ** b rounded down; where b is negative or not less than the width -1 for negative a, else 0.",
)
