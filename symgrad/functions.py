"""The array functions: names, arguments and promotion of the Python array API standard.

Operands may be nodes, NumPy arrays and Python numbers as long as one is a node. Python numbers are weak: they take
the data type of what they meet. Functions that change shapes are in `shaping`, sums of products in `contraction`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from symgrad import types
from symgrad.arguments import checked
from symgrad.contraction import einsum, matmul, tensordot, vecdot
from symgrad.creation import (
    arange,
    eye,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from symgrad.errors import DTypeError
from symgrad.gathering import (
    gather,
    put_along_axis,
    scatter_add,
    scatter_max,
    scatter_min,
    scatter_multiply,
    scatter_set,
    take,
    take_along_axis,
)
from symgrad.graph import Node, Operand, describe
from symgrad.operators import (
    apply,
    as_node,
    binary,
    bits,
    common,
    divide,
    graph_of,
    invert,
    is_scalar,
    matrix_transpose,
    power,
    source,
)
from symgrad.operators import (
    broadcast_to as _broadcast,
)
from symgrad.shaping import (
    broadcast_arrays,
    broadcast_to,
    concat,
    expand_dims,
    flip,
    keep_axes,
    moveaxis,
    normal_axes,
    normal_axis,
    pad,
    permute_dims,
    repeat,
    reshape,
    roll,
    shape,
    split,
    squeeze,
    stack,
    tile,
    unstack,
)
from symgrad.types import DType, Extent, as_dtype, bool_, float32, int64, joint_shape, size_of, uint64

if TYPE_CHECKING:
    from symgrad.types import DTypeLike

Axis: TypeAlias = int | Sequence[int] | None

__all__ = [
    "abs",
    "acos",
    "acosh",
    "add",
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "asin",
    "asinh",
    "astype",
    "atan",
    "atan2",
    "atanh",
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "broadcast_arrays",
    "broadcast_to",
    "cbrt",
    "ceil",
    "clip",
    "concat",
    "copysign",
    "cos",
    "cosh",
    "divide",
    "einsum",
    "equal",
    "erf",
    "erfc",
    "exp",
    "exp2",
    "expand_dims",
    "expm1",
    "eye",
    "flip",
    "floor",
    "floor_divide",
    "full",
    "full_like",
    "gather",
    "greater",
    "greater_equal",
    "hypot",
    "isfinite",
    "isinf",
    "isnan",
    "less",
    "less_equal",
    "linspace",
    "log",
    "log1p",
    "log2",
    "log10",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "matmul",
    "matrix_transpose",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "moveaxis",
    "multiply",
    "negative",
    "nextafter",
    "not_equal",
    "one_hot",
    "ones",
    "ones_like",
    "pad",
    "permute_dims",
    "phase",
    "positive",
    "pow",
    "power",
    "prod",
    "put_along_axis",
    "reciprocal",
    "remainder",
    "repeat",
    "reshape",
    "roll",
    "round",
    "rsqrt",
    "scatter_add",
    "scatter_max",
    "scatter_min",
    "scatter_multiply",
    "scatter_set",
    "shape",
    "sigmoid",
    "sign",
    "sin",
    "sinh",
    "split",
    "sqrt",
    "square",
    "squeeze",
    "stack",
    "std",
    "stop_gradient",
    "subtract",
    "sum",
    "take",
    "take_along_axis",
    "tan",
    "tanh",
    "tensordot",
    "tile",
    "tril",
    "triu",
    "trunc",
    "unstack",
    "var",
    "vecdot",
    "where",
    "zeros",
    "zeros_like",
]  # fmt: skip


def _unary(name: str, summary: str) -> Callable[[Node], Node]:
    def function(x: Node) -> Node:
        return apply(name, graph_of(name, x))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = summary
    return function


def _rounding(name: str, summary: str) -> Callable[[Node], Node]:
    def function(x: Node) -> Node:
        return x if graph_of(name, x).dtype.is_integer else apply(name, x)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = summary + " Integers stay as they are."
    return function


def _binary(name: str, summary: str) -> Callable[[Operand, Operand], Node]:
    def function(a: Operand, b: Operand) -> Node:
        return binary(name, a, b)

    function.__name__ = function.__qualname__ = name
    function.__doc__ = summary
    return function


add = _binary("add", "a + b, element by element; or, for bool.")
subtract = _binary("subtract", "a - b, element by element.")
multiply = _binary("multiply", "a * b, element by element; and, for bool.")
maximum = _binary("maximum", "The larger element; NaN where either is. The gradient of ties goes to b.")
minimum = _binary("minimum", "The smaller element; NaN where either is. The gradient of ties goes to b.")
equal = _binary("equal", "a == b, element by element, as bool.")
not_equal = _binary("not_equal", "a != b, element by element, as bool.")
less = _binary("less", "a < b, element by element, as bool.")
less_equal = _binary("less_equal", "a <= b, element by element, as bool.")
greater = _binary("greater", "a > b, element by element, as bool.")
greater_equal = _binary("greater_equal", "a >= b, element by element, as bool.")
logical_and = _binary("logical_and", "Whether both are true; of bool only.")
logical_or = _binary("logical_or", "Whether either is true; of bool only.")
logical_xor = _binary("logical_xor", "Whether exactly one is true; of bool only.")
atan2 = _binary("atan2", "The angle of the point (b, a) from the first axis, from -pi to pi, of floating data types.")
hypot = _binary("hypot", "sqrt(a * a + b * b), without overflow. The gradient at (0, 0) is 0.")
copysign = _binary("copysign", "|a| with the sign of b; the gradient at a = 0 is 0.")
nextafter = _binary("nextafter", "The neighbor of a in the direction of b; b where they are equal. Its gradient is 0.")
floor_divide = _binary(
    "floor_divide",
    "a / b rounded down, as `//` of NumPy. Of integers 0 where b is 0, and the least number by -1 wraps to itself.",
)
remainder = _binary(
    "remainder",
    "a - b * floor(a / b), with the sign of b, as `%` of NumPy: exact; where b is 0, 0 of integers and NaN of floats.",
)
bitwise_left_shift = _binary(
    "bitwise_left_shift", "a * 2 ** b modulo the width, of integers; 0 where b is negative or not less than the width."
)
bitwise_right_shift = _binary(
    "bitwise_right_shift",
    "a / 2 ** b rounded down, of integers; where b is negative or not less than the width, -1 for negative a, else 0.",
)
logical_not = _unary("logical_not", "Whether the element is false; of bool only.")
pow = power

negative = _unary("negative", "-x.")
abs = _unary("abs", "|x|; the gradient at 0 is 0.")
sign = _unary("sign", "-1, 0 or 1; NaN for NaN.")
sqrt = _unary("sqrt", "The square root; NaN below 0. The gradient at 0 is inf.")
rsqrt = _unary("rsqrt", "1 / sqrt(x).")
square = _unary("square", "x * x.")
reciprocal = _unary("reciprocal", "1 / x, of floating data types.")
exp = _unary("exp", "e ** x.")
log = _unary("log", "The natural logarithm; -inf at 0, NaN below.")
log1p = _unary("log1p", "log(1 + x), exact near 0.")
expm1 = _unary("expm1", "exp(x) - 1, exact near 0.")
sin = _unary("sin", "The sine of radians.")
cos = _unary("cos", "The cosine of radians.")
tan = _unary("tan", "The tangent of radians.")
tanh = _unary("tanh", "The hyperbolic tangent.")
sigmoid = _unary("sigmoid", "1 / (1 + exp(-x)), without overflow.")
erf = _unary("erf", "The error function.")
erfc = _unary("erfc", "1 - erf(x), with all digits where it vanishes.")
asin = _unary("asin", "The inverse sine, from -pi/2 to pi/2; NaN beyond 1 in size.")
acos = _unary("acos", "The inverse cosine, from 0 to pi; NaN beyond 1 in size.")
atan = _unary("atan", "The inverse tangent, from -pi/2 to pi/2.")
sinh = _unary("sinh", "The hyperbolic sine.")
cosh = _unary("cosh", "The hyperbolic cosine.")
asinh = _unary("asinh", "The inverse hyperbolic sine.")
acosh = _unary("acosh", "The inverse hyperbolic cosine; NaN below 1.")
atanh = _unary("atanh", "The inverse hyperbolic tangent; infinite at 1 and -1, NaN beyond.")
cbrt = _unary("cbrt", "The cube root, of negative numbers too; the gradient at 0 is inf.")
exp2 = _unary("exp2", "2 ** x, exact for integers.")
log2 = _unary("log2", "The logarithm to base 2, exact for powers of two; -inf at 0, NaN below.")
log10 = _unary("log10", "The logarithm to base 10, exact for powers of ten; -inf at 0, NaN below.")
floor = _rounding("floor", "The largest integer not above x.")
ceil = _rounding("ceil", "The smallest integer not below x.")
round = _rounding("round", "The nearest integer, halves to the even one.")
trunc = _rounding("trunc", "The integer part, towards 0.")
isnan = _unary("isnan", "Whether the element is NaN.")
isfinite = _unary("isfinite", "Whether the element is neither NaN nor infinite.")
isinf = _unary("isinf", "Whether the element is infinite.")
stop_gradient = _unary("stop_gradient", "x, which every derivative takes for a constant.")


def positive(x: Node) -> Node:
    """x itself."""
    return x


def bitwise_and(a: Operand, b: Operand) -> Node:
    """Bit by bit of integers, logical of bool."""
    return bits("and", a, b)


def bitwise_or(a: Operand, b: Operand) -> Node:
    """Bit by bit of integers, logical of bool."""
    return bits("or", a, b)


def bitwise_xor(a: Operand, b: Operand) -> Node:
    """Bit by bit of integers, logical of bool."""
    return bits("xor", a, b)


@checked
def bitwise_invert(x: Node) -> Node:
    """Every bit of integers inverted, logical not of bool."""
    return invert(x)


def clip(x: Node, min: Operand | None = None, max: Operand | None = None) -> Node:
    """x limited to [min, max]; the gradient at and beyond a limit is 0."""
    out = x if min is None else maximum(x, min)
    return out if max is None else minimum(out, max)


def where(condition: Operand, a: Operand, b: Operand) -> Node:
    """a where the condition holds, else b; shapes broadcast, a and b promote. The condition must be bool.

    The branch not taken has no influence: its gradient is exactly 0 there, also where its derivative is infinite.
    """
    like = graph_of("where", a, b, condition)
    if isinstance(condition, bool):
        # `node == 0` compares identities and gives one: taken for a condition it would choose for every element.
        raise DTypeError(f"where: the condition is the Python value {condition}; compare nodes with sg.equal, not ==")
    test = as_node(like, condition)
    if test.dtype is not bool_:
        raise DTypeError(f"where: the condition {describe(test)} must be bool; compare it with something")
    if not isinstance(a, Node) and not isinstance(b, Node):
        # Numbers and arrays only: an array gives the data type, else numbers their own.
        a, b = (v if is_scalar(v) else as_node(test, v) for v in (a, b))
        if not isinstance(a, Node) and not isinstance(b, Node):
            a = as_node(test, a, int64 if isinstance(b, int) and not isinstance(b, bool) else bool_)
    a, b = common("where", a, b)
    joined = joint_shape(test.shape, a.shape)
    if joined is None:
        test, a = common("where", test, a, dtypes=False)
        joined = a.shape
    return apply("where", _broadcast(test, joined), _broadcast(a, joined), _broadcast(b, joined))


@checked
def astype(x: Node, dtype: DTypeLike) -> Node:
    """x in another data type.

    Floating to integer truncates and saturates, NaN gives 0; between integers the value wraps; bool is x != 0.
    """
    target = _dtype("astype", dtype)
    return x if x.dtype is target else apply("astype", x, dtype=target)


def _dtype(name: str, dtype: DTypeLike) -> DType:
    found = as_dtype(dtype)
    if found is None:
        raise DTypeError(f"{name}: symgrad has no data type {dtype!r}; it has {', '.join(types.DTYPES)}")
    return found


def phase(train: Operand, infer: Operand) -> Node:
    """The first operand in training, the second in inference; both promote and broadcast to one type."""
    return binary("phase", train, infer)


def _reduce(name: str, x: Node, axis: Axis, keepdims: bool) -> Node:
    axes = normal_axes(name, x, axis)
    out = apply(name, x, axes=axes) if axes else x
    return keep_axes(out, x.shape, axes) if keepdims else out


def widened(x: Node, dtype: DTypeLike | None, name: str) -> Node:
    """The node in the data type sums are computed in: integers in at least 64 bits, floating types in their own."""
    if dtype is not None:
        return astype(x, _dtype(name, dtype))
    if x.dtype.is_float:
        return x
    return astype(x, uint64 if x.dtype.kind == "u" else int64)


@checked
def sum(x: Node, axis: Axis = None, *, dtype: DTypeLike | None = None, keepdims: bool = False) -> Node:
    """The sum over axes, all by default; 0 over nothing. Integers and bool add up in 64 bits."""
    return _reduce("sum", widened(x, dtype, "sum"), axis, keepdims)


@checked
def prod(x: Node, axis: Axis = None, *, dtype: DTypeLike | None = None, keepdims: bool = False) -> Node:
    """The product over axes, all by default; 1 over nothing. The gradient is exact with any number of zeros."""
    return _reduce("prod", widened(x, dtype, "prod"), axis, keepdims)


@checked
def max(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """The largest element over axes; NaN if there is one. The gradient is shared equally by ties.

    ShapeError over an axis that is empty.
    """
    return _reduce("max", x, axis, keepdims)


@checked
def min(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """The smallest element over axes; NaN if there is one. The gradient is shared equally by ties.

    ShapeError over an axis that is empty.
    """
    return _reduce("min", x, axis, keepdims)


@checked
def any(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """Whether an element is true (not 0) over axes; false over nothing."""
    return _reduce("any", astype(x, bool_), axis, keepdims)


@checked
def all(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """Whether every element is true (not 0) over axes; true over nothing."""
    return _reduce("all", astype(x, bool_), axis, keepdims)


@checked
def argmax(x: Node, axis: int | None = None, *, keepdims: bool = False) -> Node:
    """The int64 index of the first largest element, or of the first NaN; of the flattened node by default."""
    return _argument("argmax", x, axis, keepdims)


@checked
def argmin(x: Node, axis: int | None = None, *, keepdims: bool = False) -> Node:
    """The int64 index of the first smallest element, or of the first NaN; of the flattened node by default."""
    return _argument("argmin", x, axis, keepdims)


def _argument(name: str, x: Node, axis: int | None, keepdims: bool) -> Node:
    if axis is None:
        out = apply(name, reshape(x, (-1,)), axis=0)
        return keep_axes(out, x.shape, tuple(range(x.ndim))) if keepdims else out
    place = normal_axis(name, x, axis)
    out = apply(name, x, axis=place)
    return keep_axes(out, x.shape, (place,)) if keepdims else out


@checked
def mean(x: Node, axis: Axis = None, *, keepdims: bool = False) -> Node:
    """The arithmetic mean over axes, all by default; NaN over nothing. Integers and bool are taken as float32."""
    x = x if x.dtype.is_float else astype(x, float32)
    total = _reduce("sum", x, axis, keepdims)
    return divide(total, _count(x, normal_axes("mean", x, axis)))


def _count(x: Node, axes: tuple[int, ...]) -> Operand:
    extent = size_of(tuple(x.shape[a] for a in axes))
    return float(extent) if isinstance(extent, int) else extent


@checked
def var(x: Node, axis: Axis = None, *, correction: float = 0, keepdims: bool = False) -> Node:
    """The mean of squared deviations over axes; the divisor is the number of elements less the correction."""
    x = x if x.dtype.is_float else astype(x, float32)
    axes = normal_axes("var", x, axis)
    deviation = x - mean(x, axes, keepdims=True)
    total = _reduce("sum", square(deviation), axes, keepdims)
    count = _count(x, axes)
    if isinstance(count, float):
        return divide(total, count - correction if count > correction else 0.0)
    return divide(total, maximum(as_node(total, count) - correction, 0))


@checked
def std(x: Node, axis: Axis = None, *, correction: float = 0, keepdims: bool = False) -> Node:
    """The square root of `var`; its gradient is 0 where all elements are equal."""
    return sqrt(var(x, axis, correction=correction, keepdims=keepdims))


@checked
def one_hot(indices: Node, extent: Extent, dtype: DTypeLike = float32) -> Node:
    """Rows of zeros with a one at each index: shape (*indices.shape, extent).

    An index out of range, and so every negative one, gives a row of zeros.
    """
    classes = source(indices.graph, "iota", extent=extent, dtype=int64)
    return astype(equal(expand_dims(indices, -1), classes), dtype)
