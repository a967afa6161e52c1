"""Rules that replace a formula by one that keeps its accuracy where the formula as written overflows or cancels.

The optimizer applies them, construction does not: derivatives are taken of what the user wrote. Each is named and can
be switched off. The right side is never less accurate beyond the rounding of its own few operations, and gives the
same NaN.
"""

from __future__ import annotations

import symgrad.ops  # noqa: F401  # pyright: ignore[reportUnusedImport] the rules name operators
from symgrad.graph import Attrs, Graph, Node
from symgrad.opdef import OPS
from symgrad.ops.build import apply, constant_like, restore_axes
from symgrad.rules import AnyRule, Attr, Bindings, Computed, Rule, Var, operator, when

x, g = Var("x"), Var("g")
a = Attr("a")

add, subtract, multiply, divide = map(operator, ("add", "subtract", "multiply", "divide"))
negative, reciprocal, square, sqrt = map(operator, ("negative", "reciprocal", "square", "sqrt"))
exp, log, log1p, expm1, sigmoid, tanh = map(operator, ("exp", "log", "log1p", "expm1", "sigmoid", "tanh"))
absolute, safe_multiply, maximum, minimum = map(operator, ("abs", "safe_multiply", "maximum", "minimum"))
total = operator("sum")

_ROUTE = frozenset(("broadcast", "reshape"))


def _folded(node: Node) -> Node:
    return apply("negative", apply("abs", node))


def _softplus(node: Node) -> Node:
    """max(x, 0) + log1p(exp(-|x|)): both terms are of one sign, and exp never overflows."""
    small = apply("exp", _folded(node))
    return apply("add", apply("maximum", node, constant_like(node, 0)), apply("log1p", small))


def softplus(graph: Graph, bound: Bindings) -> Node:
    return _softplus(bound["x"])


def folded_softplus(graph: Graph, bound: Bindings) -> Node | None:
    """Softplus of log1p(exp(x)); None where x is its own -|x|, for which the result would hold the left side again."""
    node: Node = bound["x"]
    return None if _folded(node) is node else _softplus(node)


def minus_softplus(graph: Graph, bound: Bindings) -> Node:
    return apply("negative", _softplus(bound["x"]))


def log_sigmoid(graph: Graph, bound: Bindings) -> Node:
    """min(x, 0) - log1p(exp(-|x|))."""
    node: Node = bound["x"]
    small = apply("exp", apply("negative", apply("abs", node)))
    return apply("subtract", apply("minimum", node, constant_like(node, 0)), apply("log1p", small))


def sech_squared(graph: Graph, bound: Bindings) -> Node:
    """4 e / (1 + e)² with e = exp(-2 |x|)."""
    node: Node = bound["x"]
    small = apply("exp", apply("multiply", apply("abs", node), constant_like(node, -2)))
    bottom = apply("square", apply("add", small, constant_like(node, 1)))
    return apply("divide", apply("multiply", small, constant_like(node, 4)), bottom)


def source_of(node: Node) -> Node:
    """What a node is a stretched or reshaped copy of."""
    while node.op.name in _ROUTE:
        node = node.inputs[0]
    return node


def is_unshifted(node: Node) -> bool:
    """Whether a node is not a difference to its own maximum already."""
    if node.op.name != "subtract":
        return True
    shift = source_of(node.inputs[1])
    if shift.op.name == "where":
        shift = source_of(shift.inputs[1])
    return shift.op.name != "max"


def is_unfolded(node: Node) -> bool:
    """Whether a node is not written as -|x| already, as the right side of the rule and `nn.softplus` write it."""
    if node.op.name == "negative":
        return node.inputs[0].op.name != "abs"
    if node.op.name != "where":
        return True
    test, taken, other = node.inputs
    return not (test.op.name == "greater" and taken.op.name == "negative" and taken.inputs[0] is other)


def is_not_empty(node: Node, axes: tuple[int, ...]) -> bool:
    return all(node.type.shape[axis] != 0 for axis in axes)


def _largest(node: Node, axes: tuple[int, ...]) -> Node:
    """The maximum over axes, 0 where it is infinite or NaN, so that a difference to it is one of finite numbers."""
    largest = apply("max", node, axes=axes)
    return apply("where", apply("isfinite", largest), largest, constant_like(largest, 0))


def _shifted(node: Node, axes: tuple[int, ...]) -> Node:
    return apply("subtract", node, restore_axes(_largest(node, axes), axes, node.type.shape))


def log_sum_exp(graph: Graph, bound: Bindings) -> Node:
    node, axes = bound["x"], bound["a"]
    rest = apply("log", apply("sum", apply("exp", _shifted(node, axes)), axes=axes))
    return apply("add", _largest(node, axes), rest)


def _sum_axes(node: Node, exponential: Node) -> tuple[int, ...] | None:
    """The axes, where a node is a copy of any shape of the sum over axes of an exponential."""
    found = source_of(node)
    return found.attrs[0] if found.op.name == "sum" and found.inputs[0] is exponential else None


def normalizer(node: Node, exponential: Node) -> tuple[int, ...] | None:
    """The axes, where a node is the sum over axes of an exponential, beside every term of it."""
    axes = _sum_axes(node, exponential)
    return axes if axes is not None and puts_back(node, axes) else None


def puts_back(node: Node, axes: tuple[int, ...]) -> bool:
    """Whether a copy of what was reduced over axes has every result beside the elements that it is of.

    A square matrix can be divided by the sums of its rows as if these were those of its columns.
    """
    whole, source = node.shape, source_of(node)
    copies: list[Node] = []
    while node is not source:
        copies.append(node)
        node = node.inputs[0]
    rank = source.ndim + len(axes)
    kept = [axis for axis in range(rank) if axis not in axes]
    # For every axis of more than one element which one of the whole it is, None where it is stretched.
    places: list[int | None] = [k for k, extent in zip(kept, source.shape, strict=True) if extent != 1]
    for copy in reversed(copies):
        before = copy.inputs[0].shape
        if copy.op.name == "reshape":
            if [extent for extent in before if extent != 1] != [extent for extent in copy.shape if extent != 1]:
                return False
            continue
        lead, found = copy.ndim - len(before), iter(places)
        own = [axis >= lead and before[axis - lead] != 1 for axis in range(copy.ndim)]
        origins = [next(found) if is_own else None for is_own in own]
        places = [place for place, extent in zip(origins, copy.shape, strict=True) if extent != 1]
    wide = [axis for axis, extent in enumerate(whole) if extent != 1]
    return len(whole) == rank and all(place in (None, axis) for place, axis in zip(places, wide, strict=True))


def _log_softmax(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
    """log(exp(x) / sum(exp(x))) is x - max - log(sum(exp(x - max)))."""
    (quotient,) = inputs
    if quotient.op.name != "divide" or quotient.id < graph.opaque:
        return None
    top, bottom = quotient.inputs
    axes = normalizer(bottom, top)
    if top.op.name != "exp" or axes is None or not is_not_empty(top, axes):
        return None
    node = top.inputs[0]
    if is_unshifted(node):
        node = _shifted(node, axes)
    whole = apply("sum", apply("exp", node), axes=axes)
    return apply("subtract", node, restore_axes(apply("log", whole), axes, node.type.shape))


def _softmax(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
    """exp(x) / sum(exp(x)) with the maximum taken from x."""
    top, bottom = inputs
    axes = normalizer(bottom, top)
    if top.op.name != "exp" or axes is None or top.id < graph.opaque or not is_not_empty(top, axes):
        return None
    return None if not is_unshifted(top.inputs[0]) else _stable_softmax(top.inputs[0], axes)


def _stable_softmax(node: Node, axes: tuple[int, ...]) -> Node:
    top = apply("exp", _shifted(node, axes))
    return apply("divide", top, restore_axes(apply("sum", top, axes=axes), axes, node.type.shape))


_GRADIENT_ROOTS = ("multiply", "safe_multiply")


def _log_sum_exp_gradient(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
    """(g / sum(exp(x))) * exp(x), which differentiating log(sum(exp(x))) gives, is g * softmax(x)."""
    for factor, other in ((inputs[0], inputs[1]), (inputs[1], inputs[0])):
        if factor.op.name != "exp" or factor.id < graph.opaque or not is_unshifted(factor.inputs[0]):
            continue
        weight = source_of(other)
        parts = weight.inputs if weight.op.name in _GRADIENT_ROOTS else (weight,)
        for position, part in enumerate(parts):
            if part.op.name != "reciprocal" or (axes := _sum_axes(part.inputs[0], factor)) is None:
                continue
            if source_of(part.inputs[0]).type.shape != weight.type.shape or not is_not_empty(factor, axes):
                continue
            if not puts_back(other, axes):
                continue
            softmax = _stable_softmax(factor.inputs[0], axes)
            if len(parts) == 1:
                return softmax
            spread = restore_axes(parts[1 - position], axes, softmax.type.shape)
            return graph.add(OPS[weight.op.name], (spread, softmax))
    return None


STABILIZING: tuple[AnyRule, ...] = (
    Computed("log_softmax", ("log",), _log_softmax, exact=False, improves=True),
    Computed("softmax", ("divide",), _softmax, exact=False, improves=True),
    *(
        Computed("log_sum_exp_gradient", (root,), _log_sum_exp_gradient, exact=False, improves=True)
        for root in _GRADIENT_ROOTS
    ),
    Rule(
        "log_sum_exp",
        log(total(exp(x), axes=a)),
        log_sum_exp,
        when=(when(is_unshifted, x), when(is_not_empty, x, a)),
        exact=False,
        improves=True,
    ),
    Rule("log_one_plus_exp", log(add(exp(x), 1)), softplus, exact=False, improves=True),
    Rule("log1p_exp", log1p(exp(x)), folded_softplus, when=(when(is_unfolded, x),), exact=False, improves=True),
    Rule("log_sigmoid", log(sigmoid(x)), log_sigmoid, exact=False, improves=True),
    Rule("log_one_minus_sigmoid", log(subtract(1, sigmoid(x))), minus_softplus, exact=False, improves=True),
    Rule("log1p_minus_sigmoid", log1p(negative(sigmoid(x))), minus_softplus, exact=False, improves=True),
    Rule("log_one_plus", log(add(x, 1)), log1p(x), exact=False, improves=True),
    Rule("log_one_minus", log(subtract(1, x)), log1p(negative(x)), exact=False, improves=True),
    Rule("log_exp", log(exp(x)), x, exact=False, improves=True),
    Rule("exp_minus_one", subtract(exp(x), 1), expm1(x), exact=False, improves=True),
    Rule("exp_plus_minus_one", add(exp(x), -1), expm1(x), exact=False, improves=True),
    Rule("sigmoid_quotient", divide(1, add(exp(negative(x)), 1)), sigmoid(x), exact=False, improves=True),
    Rule("sigmoid_reciprocal", reciprocal(add(exp(negative(x)), 1)), sigmoid(x), exact=False, improves=True),
    Rule("sigmoid_of_exp", divide(exp(x), add(exp(x), 1)), sigmoid(x), exact=False, improves=True),
    *(
        rule
        for times in (multiply, safe_multiply)
        for rule in (
            Rule(
                f"sigmoid_{times().op}",
                times(reciprocal(add(exp(x), 1)), exp(x)),
                sigmoid(x),
                exact=False,
                improves=True,
            ),
            Rule(
                f"sigmoid_{times().op}_weighted",
                times(times(g, reciprocal(add(exp(x), 1))), exp(x)),
                times(g, sigmoid(x)),
                exact=False,
                improves=True,
            ),
        )
    ),
    Rule("sqrt_square", sqrt(square(x)), absolute(x), exact=False, improves=True),
)

# Off by default.
OPTIONAL: tuple[AnyRule, ...] = (
    Rule("square_sqrt", square(sqrt(x)), x, exact=False, note="NaN for x < 0 becomes x"),
    Rule("exp_log", exp(log(x)), x, exact=False, note="NaN for x < 0 becomes x"),
    Rule(
        "one_minus_tanh_squared",
        subtract(1, square(tanh(x))),
        sech_squared,
        exact=False,
        improves=True,
        note="keeps the relative accuracy where tanh(x) is near 1; costs an exponential instead of reusing tanh(x)",
    ),
    Rule(
        "one_minus_sigmoid",
        subtract(1, sigmoid(x)),
        sigmoid(negative(x)),
        exact=False,
        improves=True,
        note="keeps the relative accuracy where sigmoid(x) is near 1; costs a second sigmoid",
    ),
)
