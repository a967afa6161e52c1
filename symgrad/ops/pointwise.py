"""Operators that compute one output element from the input elements at the same index.

All inputs have the same shape, and but for the condition of `where` the same data type. Arithmetic gives NumPy's
bits; integers wrap. Derivative rules are linear in the cotangent element by element, so that forward mode can put a
tangent in its place. Rules multiply with `product`, in which an exact zero wins.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Infer, Kind, Reference, Vjp, defop
from symgrad.ops.build import apply, constant_like, product, uniform_value
from symgrad.ops.references import (
    arithmetic,
    cast_values,
    check_indices,
    erf_values,
    philox_word,
    power_values,
    rsqrt_values,
    safe_product,
    sigmoid_values,
)
from symgrad.types import DType, Extent, Type, bool_, int32, int64, uint32

if TYPE_CHECKING:
    from collections.abc import Callable

    Cotangents = tuple[Node | None, ...]
    Local = Callable[[Node, Node], Node]

_KIND_WORDS = {"b": "bool", "i": "signed integer", "u": "unsigned integer", "f": "floating"}
_FLOAT, _NUMERIC, _ALL, _BITS = "f", "iuf", "biuf", "biu"


def typed(kinds: str, result: DType | None = None, *, arity: int = 1) -> Infer:
    """The type rule of an operator over so many equal types of these kinds."""

    def infer(first: Type, *rest: Type) -> Type:
        if len(rest) != arity - 1:
            raise ShapeError(f"expected {arity} inputs, got {1 + len(rest)}")
        for other in rest:
            if other.shape != first.shape:
                raise ShapeError(f"shapes {first.shape} and {other.shape} differ; broadcast them first")
            if other.dtype is not first.dtype:
                raise DTypeError(f"data types {first.dtype} and {other.dtype} differ; use astype")
        if first.dtype.kind not in kinds:
            words = " or ".join(_KIND_WORDS[k] for k in kinds)
            raise DTypeError(f"expected a {words} data type, got {first.dtype}; use astype")
        return first if result is None else Type(first.shape, result)

    return infer


def zero_gradient(node: Node, cotangent: Node) -> Cotangents:
    """The rule of operators that are constant almost everywhere, or whose output is not floating."""
    return (None,) * len(node.inputs)


def unary(name: str, kinds: str, local: Local | None, ref: Reference, doc: str) -> None:
    """Define an operator of one input whose derivative at input x with output n is `local(n, x)`."""

    def vjp(n: Node, g: Node) -> Cotangents:
        return (None,) if local is None else (product(g, local(n, n.inputs[0])),)

    defop(name, Kind.POINTWISE, infer=typed(kinds), vjp=vjp, ref=arithmetic(ref), doc=doc)


def binary(
    name: str, kinds: str, vjp: Vjp, ref: Reference, doc: str, *, result: DType | None = None, commutative: bool = False
) -> None:
    defop(
        name,
        Kind.POINTWISE,
        infer=typed(kinds, result, arity=2),
        vjp=vjp,
        ref=arithmetic(ref),
        commutative=commutative,
        doc=doc,
    )


def _is_constant(node: Node) -> bool:
    # The operand of `x * 2` needs no cotangent; building one would add a dead node to every such product.
    return uniform_value(node) is not None


def _one_minus(node: Node) -> Node:
    return apply("subtract", constant_like(node, 1), node)


def _scaled(node: Node, factor: float) -> Node:
    return apply("multiply", node, constant_like(node, factor))


def _add_vjp(n: Node, g: Node) -> Cotangents:
    return tuple(None if _is_constant(i) else g for i in n.inputs)


def _subtract_vjp(n: Node, g: Node) -> Cotangents:
    a, b = n.inputs
    return (None if _is_constant(a) else g, None if _is_constant(b) else apply("negative", g))


def _multiply_vjp(n: Node, g: Node) -> Cotangents:
    a, b = n.inputs
    return (None if _is_constant(a) else product(g, b), None if _is_constant(b) else product(g, a))


def _divide_vjp(n: Node, g: Node) -> Cotangents:
    a, b = n.inputs
    value = uniform_value(b)
    if value is not None and math.isfinite(value) and value != 0:
        return (apply("divide", g, b), None)
    over = product(g, apply("reciprocal", b))
    return (None if _is_constant(a) else over, None if _is_constant(b) else apply("negative", product(over, n)))


def _power_of(node: Node, exponent: float) -> Node:
    match exponent:
        case 0:
            return constant_like(node, 1)
        case 1:
            return node
        case 2:
            return apply("square", node)
        case _:
            return apply("power", node, constant_like(node, exponent))


def _power_vjp(n: Node, g: Node) -> Cotangents:
    a, b = n.inputs
    exponent = uniform_value(b)
    if exponent == 0:
        return (None, None)
    if exponent == 1:
        return (g, None)
    if exponent is not None:
        return (product(g, _scaled(_power_of(a, exponent - 1), exponent)), None)
    below = apply("power", a, apply("subtract", b, constant_like(b, 1)))
    return (
        None if _is_constant(a) else product(g, product(b, below)),
        product(g, product(n, apply("log", a))),
    )


def _choose(condition: Node, taken: Node | None, other: Node | None) -> Node:
    like = taken if taken is not None else other
    assert like is not None
    zero = constant_like(like, 0)
    return apply("where", condition, taken if taken is not None else zero, other if other is not None else zero)


def _maximum_vjp(n: Node, g: Node) -> Cotangents:
    # The output, not the first input, against the second: the same truth, and only the output is kept for it.
    first = apply("greater", n, n.inputs[1])
    return (_choose(first, g, None), _choose(first, None, g))


def _minimum_vjp(n: Node, g: Node) -> Cotangents:
    first = apply("less", n, n.inputs[1])
    return (_choose(first, g, None), _choose(first, None, g))


def _where_vjp(n: Node, g: Node) -> Cotangents:
    c, a, b = n.inputs
    return (None, None if _is_constant(a) else _choose(c, g, None), None if _is_constant(b) else _choose(c, None, g))


def _where_type(condition: Type, a: Type, b: Type) -> Type:
    if condition.dtype is not bool_:
        raise DTypeError(f"the condition must be bool, got {condition.dtype}; compare it with something")
    if condition.shape != a.shape:
        raise ShapeError(f"shapes {condition.shape} and {a.shape} differ; broadcast them first")
    return typed(_ALL, arity=2)(a, b)


def _astype_vjp(n: Node, g: Node) -> Cotangents:
    (x,) = n.inputs
    return (apply("astype", g, dtype=x.dtype),) if x.dtype.is_float and n.dtype.is_float else (None,)


def _astype_type(x: Type, dtype: DType) -> Type:
    return Type(x.shape, dtype)


def _check_index_type(index: Type, extent: Extent) -> Type:
    if not index.dtype.is_integer:
        raise DTypeError(f"an index must have an integer data type, got {index.dtype}")
    # The extent, which a negative index is added to, may not fit 8 or 16 bits.
    return index if index.dtype in (int32, int64) else Type(index.shape, int64)


def _philox_type(*words: Type, word: int) -> Type:
    if len(words) != 6 or any(w != words[0] for w in words) or words[0].dtype is not uint32:
        raise DTypeError("expected four counter and two key words of uint32 in one shape")
    if word not in range(4):
        raise ShapeError(f"word {word} is not one of 0, 1, 2, 3")
    return words[0]


binary("add", _ALL, _add_vjp, np.add, "a + b; or, for bool.", commutative=True)
binary("subtract", _NUMERIC, _subtract_vjp, np.subtract, "a - b.")
binary("multiply", _ALL, _multiply_vjp, np.multiply, "a * b; and, for bool.", commutative=True)
binary("divide", _FLOAT, _divide_vjp, np.divide, "a / b.")
binary(
    "power",
    _NUMERIC,
    _power_vjp,
    power_values,
    "a ** b; integers wrap, and a negative integer exponent gives the exact result truncated (0 for base 0).",
)
binary(
    "safe_multiply",
    _FLOAT,
    lambda n, g: (product(g, n.inputs[1]), product(g, n.inputs[0])),
    safe_product,
    "0 where a or b is exactly 0, whatever the other is (infinite, NaN); a * b elsewhere. Used by derivatives.",
    commutative=True,
)
binary("maximum", _ALL, _maximum_vjp, np.maximum, "The larger; NaN if either is; gradient of ties goes to b.")
binary("minimum", _ALL, _minimum_vjp, np.minimum, "The smaller; NaN if either is; gradient of ties goes to b.")

defop(
    "negative",
    Kind.POINTWISE,
    infer=typed(_NUMERIC),
    vjp=lambda n, g: (apply("negative", g),),
    ref=arithmetic(np.negative),
    linear=True,
    doc="-x; unsigned integers wrap.",
)
unary("abs", _NUMERIC, lambda n, x: apply("sign", x), np.abs, "|x|; the gradient at 0 is 0.")
unary("sign", _NUMERIC, None, np.sign, "-1, 0 or 1; NaN for NaN.")
unary("sqrt", _FLOAT, lambda n, x: _scaled(apply("reciprocal", n), 0.5), np.sqrt, "√x; the gradient at 0 is inf.")
unary(
    "rsqrt",
    _FLOAT,
    lambda n, x: _scaled(apply("multiply", n, apply("square", n)), -0.5),
    rsqrt_values,
    "1 / √x.",
)
unary("square", _NUMERIC, lambda n, x: _scaled(x, 2), np.square, "x * x.")
unary("reciprocal", _FLOAT, lambda n, x: apply("negative", apply("square", n)), np.reciprocal, "1 / x.")
unary("exp", _FLOAT, lambda n, x: n, np.exp, "e ** x.")
unary("log", _FLOAT, lambda n, x: apply("reciprocal", x), np.log, "The natural logarithm; -inf at 0, NaN below.")
unary(
    "log1p",
    _FLOAT,
    lambda n, x: apply("reciprocal", apply("add", x, constant_like(x, 1))),
    np.log1p,
    "log(1 + x), exact near 0.",
)
unary("expm1", _FLOAT, lambda n, x: apply("exp", x), np.expm1, "exp(x) - 1, exact near 0.")
unary("sin", _FLOAT, lambda n, x: apply("cos", x), np.sin, "The sine of radians.")
unary("cos", _FLOAT, lambda n, x: apply("negative", apply("sin", x)), np.cos, "The cosine of radians.")
unary(
    "tan",
    _FLOAT,
    lambda n, x: apply("add", apply("square", n), constant_like(n, 1)),
    np.tan,
    "The tangent of radians.",
)
unary("tanh", _FLOAT, lambda n, x: _one_minus(apply("square", n)), np.tanh, "The hyperbolic tangent.")
unary(
    "sigmoid",
    _FLOAT,
    lambda n, x: apply("multiply", n, _one_minus(n)),
    sigmoid_values,
    "1 / (1 + exp(-x)), without overflow.",
)
unary(
    "erf",
    _FLOAT,
    lambda n, x: _scaled(apply("exp", apply("negative", apply("square", x))), 2 / math.sqrt(math.pi)),
    erf_values,
    "The error function.",
)
unary("floor", _FLOAT, None, np.floor, "The largest integer not above x.")
unary("ceil", _FLOAT, None, np.ceil, "The smallest integer not below x.")
unary("round", _FLOAT, None, np.rint, "The nearest integer, halves to the even one.")
unary("trunc", _FLOAT, None, np.trunc, "The integer part, towards 0.")

for _name, _ref, _symmetric in (
    ("equal", np.equal, True),
    ("not_equal", np.not_equal, True),
    ("less", np.less, False),
    ("less_equal", np.less_equal, False),
    ("greater", np.greater, False),
    ("greater_equal", np.greater_equal, False),
):
    binary(
        _name,
        _ALL,
        zero_gradient,
        _ref,
        "A comparison; false for NaN but for not_equal.",
        result=bool_,
        commutative=_symmetric,
    )
for _name, _ref in (("logical_and", np.logical_and), ("logical_or", np.logical_or), ("logical_xor", np.logical_xor)):
    binary(_name, "b", zero_gradient, _ref, "Of booleans.", commutative=True)
for _name, _ref in (("bitwise_and", np.bitwise_and), ("bitwise_or", np.bitwise_or), ("bitwise_xor", np.bitwise_xor)):
    binary(_name, _BITS, zero_gradient, _ref, "Bit by bit.", commutative=True)
unary("logical_not", "b", None, np.logical_not, "Of booleans.")
unary("bitwise_invert", _BITS, None, np.invert, "Every bit inverted.")
for _name, _ref in (("isnan", np.isnan), ("isfinite", np.isfinite), ("isinf", np.isinf)):
    defop(
        _name,
        Kind.POINTWISE,
        infer=typed(_NUMERIC, bool_),
        vjp=zero_gradient,
        ref=arithmetic(_ref),
        doc="Of the value; integers are finite.",
    )

defop(
    "where",
    Kind.POINTWISE,
    infer=_where_type,
    vjp=_where_vjp,
    ref=np.where,
    doc="a where the condition holds, else b; the branch not taken has no influence, on gradients either.",
)
defop(
    "astype",
    Kind.POINTWISE,
    attrs=("dtype",),
    infer=_astype_type,
    vjp=_astype_vjp,
    ref=cast_values,
    linear=True,
    doc="Floating to integer truncates and saturates, NaN gives 0; integers wrap; bool is x != 0.",
)
defop(
    "philox",
    Kind.POINTWISE,
    attrs=("word",),
    infer=_philox_type,
    vjp=zero_gradient,
    ref=philox_word,
    doc="One of the four words of Philox4x32-10 for a counter of four words and a key of two.",
)
defop(
    "check_index",
    Kind.POINTWISE,
    attrs=("extent",),
    infer=_check_index_type,
    vjp=zero_gradient,
    ref=check_indices,
    doc="The index, negative ones counted from the end; IndexError at the call outside [-extent, extent).",
)
