"""Rewrite rules: two-sided patterns as data, compiled once to matchers that construction tries when a node is added."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from symgrad.graph import Attrs, Graph, Node, Rewrite
from symgrad.opdef import OPS, OpDef
from symgrad.record import record
from symgrad.storage import Literal
from symgrad.types import DType, Shape

if TYPE_CHECKING:
    from symgrad.types import Array

Bindings: TypeAlias = dict[str, Any]
Build: TypeAlias = "Callable[[Graph, Bindings], Node | None]"
Check: TypeAlias = "Callable[[Graph, Node, Bindings], bool]"


@record
class Var:
    """Any node. The same name twice is the same node."""

    name: str


@record
class Number:
    """On the left a constant with this value in every element; zeros match by their sign.

    On the right a constant with the shape of the node bound to `like`, and its dtype unless `dtype` is given.
    """

    value: float
    like: str = "x"
    dtype: DType | None = None


@record
class Constant:
    """A node that has one constant value in every element; bound to its name."""

    name: str


@record
class Attr:
    """The value of an attribute. The same name twice is the same value."""

    name: str


@record
class Compute:
    """On the right: an attribute computed from what the left side bound."""

    function: Callable[..., Any]
    arguments: tuple[Var | Attr | Constant, ...]


@record
class Apply:
    """An operator applied to patterns. Attributes that are not named match anything."""

    op: str
    inputs: tuple[Pattern, ...]
    attrs: tuple[tuple[str, Any], ...] = ()


Pattern: TypeAlias = Var | Number | Constant | Apply


@record
class When:
    """A named condition on what the left side bound. The name is the name of the function."""

    predicate: Callable[..., bool]
    arguments: tuple[Var | Attr | Constant, ...]


@record
class Rule:
    """A rewrite of `lhs` to `rhs`.

    `rhs` is a pattern over what `lhs` binds or, where no pattern says it, a function of the bindings, which may also
    decline with None. `over` are the kinds of dtype (of the last input of the root) the rule is for. An `exact` rule
    keeps every bit, the sign of zero and NaN included (one NaN is as good as another). A rule that is not exact says
    in `note` what changes; `improves` says that the right side is never less accurate.
    """

    name: str
    lhs: Apply
    rhs: Pattern | Build
    when: tuple[When, ...] = ()
    over: str = "biuf"
    exact: bool = True
    improves: bool = False
    note: str = ""


@record
class Computed:
    """A named rewrite of whole families of operators that no two-sided pattern states.

    `every` are the operators all inputs must come from for the rewrite to be tried; None for any.
    """

    name: str
    roots: tuple[str, ...]
    rewrite: Rewrite
    every: frozenset[str] | None = None
    exact: bool = True
    improves: bool = False
    note: str = ""


AnyRule: TypeAlias = Rule | Computed


def operator(name: str) -> Callable[..., Apply]:
    """A function that writes patterns of one operator: `add(x, y)`, `reshape(x, shape=s)`; numbers are constants."""

    def apply(*inputs: Pattern | float, **attrs: Any) -> Apply:
        patterns = tuple(Number(i) if isinstance(i, int | float) else i for i in inputs)
        return Apply(name, patterns, tuple(attrs.items()))

    return apply


def compute(function: Callable[..., Any], *arguments: Var | Attr | Constant) -> Compute:
    return Compute(function, arguments)


def when(predicate: Callable[..., bool], *arguments: Var | Attr | Constant) -> When:
    return When(predicate, arguments)


# What constants are: 0-d consts, and broadcasts of them.


def uniform_array(node: Node) -> Array | None:
    """The 0-d array that every element of a node equals, for a 0-d const and a broadcast of one; else None."""
    if node.op.name == "broadcast":
        node = node.inputs[0]
    if node.op.name != "const" or node.type.shape:
        return None
    return node.attrs[0].array


def full(graph: Graph, shape: Shape, dtype: DType, value: Any) -> Node:
    """A node with one constant value in every element."""
    scalar = graph.add(OPS["const"], (), (Literal(np.asarray(value, dtype.np)),))
    return scalar if not shape else graph.add(OPS["broadcast"], (scalar,), (shape,))


# From rules to what Graph.add calls.


@record
class _Matcher:
    arity: int
    heads: tuple[frozenset[str] | None, ...]
    every: frozenset[str] | None
    rewrite: Rewrite

    def accepts(self, heads: tuple[str, ...]) -> bool:
        if self.every is not None:
            return all(h in self.every for h in heads)
        if self.arity != len(heads) and self.arity >= 0:
            return False
        return all(allowed is None or h in allowed for allowed, h in zip(self.heads, heads, strict=False))


_MAX_HEADS = 3
_CONSTANT_HEADS = frozenset(("const", "broadcast"))


def compile_rules(rules: Iterable[AnyRule]) -> Mapping[str, Sequence[Rewrite]]:
    """The rules as what `Graph` takes: per operator one rewrite, which tries them in the given order."""
    matchers: dict[str, list[_Matcher]] = {}
    for rule in rules:
        if isinstance(rule, Computed):
            for root in rule.roots:
                matchers.setdefault(root, []).append(_Matcher(-1, (), rule.every, rule.rewrite))
            continue
        for lhs in _orders(rule.lhs):
            heads = tuple(map(_head, lhs.inputs))
            matchers.setdefault(lhs.op, []).append(_Matcher(len(heads), heads, None, _rewrite(rule, lhs)))
    return {op: (_dispatch(tuple(found)),) for op, found in matchers.items()}


def _dispatch(matchers: tuple[_Matcher, ...]) -> Rewrite:
    # Which matchers can apply depends on the operators of the inputs alone; each combination is looked up once.
    memo: dict[tuple[str, ...], tuple[Rewrite, ...]] = {}

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        heads = tuple([i.op.name for i in inputs[:_MAX_HEADS]])
        found = memo.get(heads)
        if found is None:
            found = memo[heads] = tuple(m.rewrite for m in matchers if m.accepts(heads))
        for one in found:
            if (better := one(graph, inputs, attrs)) is not None:
                return better
        return None

    return rewrite


def _head(pattern: Pattern) -> frozenset[str] | None:
    match pattern:
        case Var():
            return None
        case Number() | Constant():
            return _CONSTANT_HEADS
        case Apply():
            return frozenset((pattern.op,))


def _orders(pattern: Apply) -> Iterator[Apply]:
    """The pattern with the inputs of commutative operators in every order construction can leave them in."""
    choices: list[list[Pattern]] = [[]]
    for source in pattern.inputs:
        variants = list(_orders(source)) if isinstance(source, Apply) else [source]
        choices = [[*chosen, variant] for chosen in choices for variant in variants]
    for chosen in choices:
        inputs = tuple(chosen)
        if not OPS[pattern.op].commutative or inputs[0] == inputs[1]:
            yield Apply(pattern.op, inputs, pattern.attrs)
            continue
        first, second = inputs
        # Construction puts constants last.
        if not isinstance(first, Number | Constant):
            yield Apply(pattern.op, (first, second), pattern.attrs)
        if not isinstance(second, Number | Constant):
            yield Apply(pattern.op, (second, first), pattern.attrs)


def _rewrite(rule: Rule, lhs: Apply) -> Rewrite:
    checks = tuple(map(_check, lhs.inputs))
    attributes = _check_attrs(lhs)
    conditions = tuple((w.predicate, tuple(a.name for a in w.arguments)) for w in rule.when)
    kinds = rule.over
    build = rule.rhs if callable(rule.rhs) else _builder(rule.rhs)

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        if inputs[-1].type.dtype.kind not in kinds:
            return None
        bound: Bindings = {}
        for check, source in zip(checks, inputs, strict=True):
            if not check(graph, source, bound):
                return None
        if not attributes(attrs, bound):
            return None
        for predicate, names in conditions:
            if not predicate(*[bound[name] for name in names]):
                return None
        return build(graph, bound)

    return rewrite


def _check(pattern: Pattern) -> Check:
    match pattern:
        case Var(name):
            return lambda graph, node, bound: bound.setdefault(name, node) is node
        case Number(value):
            return lambda graph, node, bound: _equals(uniform_array(node), value)
        case Constant(name):
            return lambda graph, node, bound: uniform_array(node) is not None and bound.setdefault(name, node) is node
        case Apply():
            return _check_apply(pattern)


def _check_apply(pattern: Apply) -> Check:
    op = pattern.op
    checks = tuple(map(_check, pattern.inputs))
    attributes = _check_attrs(pattern)

    def check(graph: Graph, node: Node, bound: Bindings) -> bool:
        if node.op.name != op or node.id < graph.opaque or len(node.inputs) != len(checks):
            return False
        for one, source in zip(checks, node.inputs, strict=True):
            if not one(graph, source, bound):
                return False
        return attributes(node.attrs, bound)

    return check


def _check_attrs(pattern: Apply) -> Callable[[Attrs, Bindings], bool]:
    order = OPS[pattern.op].attrs
    wanted = tuple((order.index(name), value) for name, value in pattern.attrs)
    if not wanted:
        return lambda attrs, bound: True

    def check(attrs: Attrs, bound: Bindings) -> bool:
        for position, value in wanted:
            found = attrs[position]
            if isinstance(value, Attr):
                if bound.setdefault(value.name, found) != found:
                    return False
            elif value != found:
                return False
        return True

    return check


def _equals(found: Array | None, value: float) -> bool:
    if found is None:
        return False
    item: float = found.item()
    return item == value and (value != 0 or math.copysign(1.0, item) == math.copysign(1.0, value))


def _builder(pattern: Pattern) -> Build:
    match pattern:
        case Var(name) | Constant(name):
            return lambda graph, bound: bound[name]
        case Number():
            return lambda graph, bound: _number(graph, pattern, bound[pattern.like])
        case Apply():
            return _build_apply(pattern)


def _number(graph: Graph, pattern: Number, like: Node) -> Node:
    return full(graph, like.type.shape, pattern.dtype or like.type.dtype, pattern.value)


def _build_apply(pattern: Apply) -> Build:
    op: OpDef = OPS[pattern.op]
    sources = tuple(map(_builder, pattern.inputs))
    given = dict(pattern.attrs)
    attributes = tuple(given[name] for name in op.attrs)

    def build(graph: Graph, bound: Bindings) -> Node | None:
        inputs: list[Node] = []
        for source in sources:
            node = source(graph, bound)
            if node is None:
                return None
            inputs.append(node)
        return graph.add(op, tuple(inputs), tuple([_attribute(a, bound) for a in attributes]))

    return build


def _attribute(value: Any, bound: Bindings) -> Any:
    if isinstance(value, Attr):
        return bound[value.name]
    if isinstance(value, Compute):
        return value.function(*[bound[a.name] for a in value.arguments])
    return value
