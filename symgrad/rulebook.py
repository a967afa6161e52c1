"""The lists of rules. Construction applies the exact ones; the optimizer applies more."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import symgrad.ops  # noqa: F401  # pyright: ignore[reportUnusedImport] the rules name operators, so the table must be filled
from symgrad.folding import FAMILIES, FOLDING
from symgrad.graph import DEFAULT_REWRITES, Graph, Node
from symgrad.ops.build import apply, constant_like
from symgrad.rules import (
    AnyRule,
    Attr,
    Bindings,
    Constant,
    Number,
    Rule,
    Var,
    compile_rules,
    compute,
    operator,
    uniform_array,
    when,
)
from symgrad.stabilize import OPTIONAL, STABILIZING
from symgrad.types import Dim, DType, Shape, bool_

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from symgrad.graph import Rewrite

x, y, z, c = Var("x"), Var("y"), Var("z"), Var("c")
k = Constant("k")
s, p, q, d, e = Attr("s"), Attr("p"), Attr("q"), Attr("d"), Attr("e")

add, subtract, multiply, divide, power = map(operator, ("add", "subtract", "multiply", "divide", "power"))
negative, absolute, sign, square, safe_multiply = map(operator, ("negative", "abs", "sign", "square", "safe_multiply"))
maximum, minimum, where = map(operator, ("maximum", "minimum", "where"))
floor, ceil, rint, trunc = map(operator, ("floor", "ceil", "round", "trunc"))
equal, not_equal, less, less_equal = map(operator, ("equal", "not_equal", "less", "less_equal"))
greater, greater_equal, isnan = map(operator, ("greater", "greater_equal", "isnan"))
land, lor, lxor, lnot = map(operator, ("logical_and", "logical_or", "logical_xor", "logical_not"))
band, bor, bxor, invert = map(operator, ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"))
astype, reshape, permute, broadcast = map(operator, ("astype", "reshape", "permute", "broadcast"))
cut, pad, flip = map(operator, ("slice", "pad", "flip"))
phase, stop_gradient = map(operator, ("phase", "stop_gradient"))

# Named conditions.


def has_dtype(node: Node, dtype: DType) -> bool:
    return node.type.dtype is dtype


def holds_all_values(node: Node, dtype: DType) -> bool:
    """Whether every value of the node's dtype is a value of this one."""
    a, b = node.type.dtype, dtype
    if a is b or a.kind == "b":
        return True
    if a.kind == "f" or b.kind == "b":
        return a.kind == b.kind and a.bits <= b.bits
    if b.kind == "f":
        return a.bits - (a.kind == "i") <= (24 if b.bits == 32 else 53)
    return a.bits <= b.bits if a.kind == b.kind else a.kind == "u" and a.bits < b.bits


def casts_through(node: Node, middle: DType, last: DType) -> bool:
    """Whether casting through the middle dtype is casting straight to the last: integers wrap, floats saturate."""
    saturates = middle.is_float and last.is_integer and node.type.dtype.is_integer
    return holds_all_values(node, middle) and (not saturates or holds_all_values(node, last))


def has_shape(node: Node, shape: Shape) -> bool:
    return node.type.shape == shape


def keeps_order(axes: tuple[int, ...]) -> bool:
    return axes == tuple(range(len(axes)))


def is_whole(node: Node, starts: Shape, stops: Shape, steps: tuple[int, ...]) -> bool:
    return all(a == 0 for a in starts) and stops == node.type.shape and all(a == 1 for a in steps)


def composes(starts: Shape, stops: Shape, steps: tuple[int, ...], inner: tuple[int, ...]) -> bool:
    """Whether a slice of a slice is a slice: everything known, or no steps."""
    known = all(isinstance(a, int) for a in (*starts, *stops))
    return known or all(a == 1 for a in (*steps, *inner))


def is_nothing(low: Shape, high: Shape) -> bool:
    return all(a == 0 for a in (*low, *high))


def is_empty(axes: tuple[int, ...]) -> bool:
    return not axes


def cuts_padding(node: Node, low: Shape, starts: Shape, stops: Shape, steps: tuple[int, ...]) -> bool:
    inside = tuple(a + extent for a, extent in zip(low, node.type.shape, strict=True))
    return starts == low and stops == inside and all(a == 1 for a in steps)


def is_power_of_two(node: Node) -> bool:
    """Whether the constant and its reciprocal are powers of two in the normal range."""
    array = uniform_array(node)
    if array is None:
        return False
    fraction, exponent = math.frexp(array.item())
    return abs(fraction) == 0.5 and abs(exponent) < (126 if array.dtype.itemsize == 4 else 1022)


# Computed attributes.


def compose_axes(inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(inner[a] for a in outer)


def odd_axes(inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(set(inner) ^ set(outer)))


def add_widths(inner: Shape, outer: Shape) -> Shape:
    return tuple(a + b for a, b in zip(inner, outer, strict=True))


def compose_starts(inner: Shape, steps: tuple[int, ...], outer: Shape) -> Shape:
    return tuple(a + b * step for a, b, step in zip(inner, outer, steps, strict=True))


def compose_stops(inner: Shape, steps: tuple[int, ...], starts: Shape, stops: Shape, outer: tuple[int, ...]) -> Shape:
    found: list[int | Dim] = []
    for base, step, start, stop, stride in zip(inner, steps, starts, stops, outer, strict=True):
        if step == 1 and stride == 1:
            found.append(base + stop)
            continue
        count = (stop - start + stride - 1) // stride
        first = base + start * step
        found.append(first + (count - 1) * (step * stride) + 1 if count != 0 else first)
    return tuple(found)


def compose_steps(inner: tuple[int, ...], outer: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a * b for a, b in zip(inner, outer, strict=True))


# Right sides no pattern says.


def times_negated(graph: Graph, bound: Bindings) -> Node:
    node: Node = bound["x"]
    return apply("multiply", node, apply("negative", bound["k"]))


def times_reciprocal(graph: Graph, bound: Bindings) -> Node | None:
    array = uniform_array(bound["k"])
    return None if array is None else apply("multiply", bound["x"], constant_like(bound["x"], 1 / array.item()))


ARITHMETIC: tuple[Rule, ...] = (
    Rule("multiply_one", multiply(x, 1), x, over="iuf"),
    Rule("multiply_minus_one", multiply(x, -1), negative(x), over="if"),
    Rule("multiply_zero", multiply(x, 0), Number(0), over="iu"),
    Rule("multiply_negatives", multiply(negative(x), negative(y)), multiply(x, y), over="iuf"),
    Rule("multiply_negative_constant", multiply(negative(x), k), times_negated, over="iuf"),
    Rule("negative_multiply_constant", negative(multiply(x, k)), times_negated, over="iuf"),
    Rule("divide_one", divide(x, 1), x),
    Rule("divide_minus_one", divide(x, -1), negative(x)),
    Rule("divide_power_of_two", divide(x, k), times_reciprocal, when=(when(is_power_of_two, k),)),
    Rule("divide_negatives", divide(negative(x), negative(y)), divide(x, y)),
    Rule("add_zero", add(x, 0), x, over="iu"),
    Rule("add_negative_zero", add(x, -0.0), x, over="f"),
    Rule("subtract_zero", subtract(x, 0), x),
    Rule("subtract_itself", subtract(x, x), Number(0), over="iu"),
    Rule("add_negative", add(x, negative(y)), subtract(x, y), over="iuf"),
    Rule("subtract_negative", subtract(x, negative(y)), add(x, y), over="iuf"),
    Rule("double_negative", negative(negative(x)), x),
    Rule("power_one", power(x, 1), x),
    Rule("power_zero", power(x, 0), Number(1)),
    Rule("safe_multiply_zero", safe_multiply(x, 0), Number(0)),
    Rule("safe_multiply_negatives", safe_multiply(negative(x), negative(y)), safe_multiply(x, y)),
    Rule("abs_abs", absolute(absolute(x)), absolute(x)),
    Rule("abs_negative", absolute(negative(x)), absolute(x), over="if"),
    Rule("abs_square", absolute(square(x)), square(x), over="f"),
    Rule("square_negative", square(negative(x)), square(x)),
    Rule("square_abs", square(absolute(x)), square(x)),
    Rule("sign_sign", sign(sign(x)), sign(x)),
    Rule("floor_floor", floor(floor(x)), floor(x)),
    Rule("ceil_ceil", ceil(ceil(x)), ceil(x)),
    Rule("round_round", rint(rint(x)), rint(x)),
    Rule("trunc_trunc", trunc(trunc(x)), trunc(x)),
    Rule("maximum_itself", maximum(x, x), x),
    Rule("minimum_itself", minimum(x, x), x),
)

LOGIC: tuple[Rule, ...] = (
    Rule("where_same", where(c, x, x), x),
    Rule("where_not", where(lnot(c), x, y), where(c, y, x)),
    Rule("where_where_true", where(c, where(c, x, y), z), where(c, x, z)),
    Rule("where_where_false", where(c, x, where(c, y, z)), where(c, x, z)),
    Rule("and_itself", land(x, x), x),
    Rule("and_true", land(x, True), x),
    Rule("and_false", land(x, False), Number(False)),
    Rule("or_itself", lor(x, x), x),
    Rule("or_true", lor(x, True), Number(True)),
    Rule("or_false", lor(x, False), x),
    Rule("xor_itself", lxor(x, x), Number(False)),
    Rule("xor_false", lxor(x, False), x),
    Rule("xor_true", lxor(x, True), lnot(x)),
    Rule("double_not", lnot(lnot(x)), x),
    Rule("not_equal", lnot(equal(x, y)), not_equal(x, y)),
    Rule("not_unequal", lnot(not_equal(x, y)), equal(x, y)),
    Rule("bits_and_itself", band(x, x), x),
    Rule("bits_or_itself", bor(x, x), x),
    Rule("bits_xor_itself", bxor(x, x), Number(0)),
    Rule("bits_and_zero", band(x, 0), Number(0)),
    Rule("bits_or_zero", bor(x, 0), x),
    Rule("bits_xor_zero", bxor(x, 0), x),
    Rule("double_invert", invert(invert(x)), x),
    Rule("equal_itself", equal(x, x), Number(True, dtype=bool_), over="biu"),
    Rule("less_equal_itself", less_equal(x, x), Number(True, dtype=bool_), over="biu"),
    Rule("greater_equal_itself", greater_equal(x, x), Number(True, dtype=bool_), over="biu"),
    Rule("unequal_itself", not_equal(x, x), Number(False, dtype=bool_), over="biu"),
    Rule("unequal_itself_is_nan", not_equal(x, x), isnan(x), over="f"),
    Rule("less_itself", less(x, x), Number(False, dtype=bool_)),
    Rule("greater_itself", greater(x, x), Number(False, dtype=bool_)),
    Rule("isnan_integer", isnan(x), Number(False, dtype=bool_), over="iu"),
    Rule("astype_same", astype(x, dtype=d), x, when=(when(has_dtype, x, d),)),
    Rule(
        "astype_astype",
        astype(astype(x, dtype=d), dtype=e),
        astype(x, dtype=e),
        when=(when(casts_through, x, d, e),),
    ),
)

VIEWS: tuple[Rule, ...] = (
    Rule("reshape_same", reshape(x, shape=s), x, when=(when(has_shape, x, s),)),
    Rule("reshape_reshape", reshape(reshape(x), shape=s), reshape(x, shape=s)),
    Rule("permute_same", permute(x, axes=p), x, when=(when(keeps_order, p),)),
    Rule(
        "permute_permute",
        permute(permute(x, axes=p), axes=q),
        permute(x, axes=compute(compose_axes, p, q)),
    ),
    Rule("broadcast_same", broadcast(x, shape=s), x, when=(when(has_shape, x, s),)),
    Rule("broadcast_broadcast", broadcast(broadcast(x), shape=s), broadcast(x, shape=s)),
    Rule("flip_nothing", flip(x, axes=p), x, when=(when(is_empty, p),)),
    Rule("flip_flip", flip(flip(x, axes=p), axes=q), flip(x, axes=compute(odd_axes, p, q))),
    Rule(
        "slice_all",
        cut(x, starts=s, stops=p, steps=q),
        x,
        when=(when(is_whole, x, s, p, q),),
    ),
    Rule(
        "slice_slice",
        cut(cut(x, starts=Attr("a"), stops=Attr("b"), steps=p), starts=s, stops=Attr("t"), steps=q),
        cut(
            x,
            starts=compute(compose_starts, Attr("a"), p, s),
            stops=compute(compose_stops, Attr("a"), p, s, Attr("t"), q),
            steps=compute(compose_steps, p, q),
        ),
        when=(when(composes, s, Attr("t"), q, p),),
    ),
    Rule(
        "slice_pad",
        cut(pad(x, low=p), starts=s, stops=d, steps=q),
        x,
        when=(when(cuts_padding, x, p, s, d, q),),
    ),
    Rule("pad_nothing", pad(x, low=p, high=q), x, when=(when(is_nothing, p, q),)),
    Rule(
        "pad_pad",
        pad(pad(x, low=p, high=q, value=Attr("v")), low=s, high=d, value=Attr("v")),
        pad(x, low=compute(add_widths, p, s), high=compute(add_widths, q, d), value=Attr("v")),
    ),
)

CONTROL: tuple[Rule, ...] = (
    Rule("phase_same", phase(x, x), x),
    Rule("stop_gradient_twice", stop_gradient(stop_gradient(x)), stop_gradient(x)),
    Rule("stop_gradient_constant", stop_gradient(k), k),
)

# What Graph.add applies unless told otherwise: every bit of the result stays.
CONSTRUCTION: tuple[AnyRule, ...] = (*ARITHMETIC, *LOGIC, *VIEWS, *CONTROL, *FAMILIES)

# What the optimizer applies: stabilizing rules see the forms the user wrote, before exact rules take them apart.
OPTIMIZING: tuple[AnyRule, ...] = (*STABILIZING, *CONSTRUCTION, *FOLDING)

ALL_RULES: tuple[AnyRule, ...] = (*OPTIMIZING, *OPTIONAL)


def rule_names() -> list[str]:
    """The names that `without` and `extra` of the optimizer take, in the order the rules are tried."""
    return list(dict.fromkeys(rule.name for rule in ALL_RULES))


def choose_rules(without: Iterable[str] = (), extra: Iterable[str] = ()) -> Mapping[str, Sequence[Rewrite]]:
    """The optimizer's rules without some, and with some that are off by default. ValueError for a name no rule has."""
    off, on = frozenset(without), frozenset(extra)
    if unknown := sorted((off | on) - set(rule_names())):
        raise ValueError(f"no rule is named {', '.join(unknown)}; there are {', '.join(rule_names())}")
    if not off and not on:
        return _OPTIMIZING
    chosen = [r for r in OPTIMIZING if r.name not in off]
    return compile_rules([*(r for r in OPTIONAL if r.name in on), *chosen])


_OPTIMIZING = compile_rules(OPTIMIZING)
DEFAULT_REWRITES.update(compile_rules(CONSTRUCTION))
