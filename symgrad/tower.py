"""Derivatives of high order along one axis of differentiation: towers of elementwise derivatives."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TypeAlias

from symgrad.errors import GradientError, GraphError
from symgrad.grad import building, check_output, is_linear, plus, push, zeros_like
from symgrad.graph import Graph, Node, Origin, ancestors, describe
from symgrad.opdef import OPS, Kind
from symgrad.ops.build import product, uniform_value
from symgrad.ops.control import carriers, is_elementwise
from symgrad.rules import full

Request: TypeAlias = tuple[Node, int]
Steps: TypeAlias = "Generator[Request, Node | None, Node | None]"


def derivative(y: Node, x: Node, order: int, budget: int | None = None) -> Node:
    """The order-th derivative of every element of `y` with respect to the same element of `x`.

    Both are floating and have one shape; `y` must depend on `x` through pointwise operators alone. Order 0 is `y`;
    where `y` does not depend on `x`, the derivative is zeros. The nodes reached grow with the square of the order for
    sums, products and quotients of functions whose derivative is made of themselves, because derivatives of every
    order are shared: products and quotients follow Leibniz' rule, everything else its own rule of the first order.
    `budget` bounds the pointwise nodes a derivative may reach: an order that needs more raises GradientError, which
    lists the count of each order, before anything is compiled.
    """
    _check(y, x, order)
    graph = x.graph
    tower = _Tower(graph, x)
    result = y
    counts: list[int] = []
    with building(graph):
        for k in range(1, order + 1):
            found = tower.find(y, k)
            if found is None:
                return zeros_like(y)
            result = found
            if budget is None:
                continue
            counts.append(operation_count(result))
            if counts[-1] > budget:
                listed = ", ".join(f"order {j}: {c}" for j, c in enumerate(counts, 1))
                raise GradientError(
                    f"derivative: order {k} of {describe(y)} needs {counts[-1]} operations, over the budget of "
                    f"{budget} ({listed}); lower the order or raise the budget"
                )
    return result


def operation_count(node: Node) -> int:
    """How many pointwise operations computing a node takes."""
    return sum(n.op.kind is Kind.POINTWISE for n in ancestors([node]))


def _check(y: Node, x: Node, order: int) -> None:
    check_output("derivative", y)
    check_output("derivative", x)
    if y.graph is not x.graph:
        raise GraphError(f"derivative: {describe(y)} and {describe(x)} belong to different graphs")
    if isinstance(order, bool) or not isinstance(order, int) or order < 0:  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise GradientError(f"derivative: the order must be an integer of at least 0, got {order!r}")
    if uniform_value(x) is not None:
        raise GradientError(f"derivative: {describe(x)} is a constant; make it an input or a param")
    if y.shape != x.shape:
        raise GradientError(
            f"derivative: shapes {y.shape} and {x.shape} differ, so elements do not correspond; use sg.grad or sg.jvp"
        )
    moving = {x.id}
    for node in _carried(y):
        if node.id in moving or not any(i.id in moving for i in carriers(node)):
            continue
        if not node.dtype.is_float or node.op.name == "stop_gradient":
            continue
        elementwise = is_elementwise(node) if node.op.name == "custom" else node.op.name == "phase"
        if node.op.kind is not Kind.POINTWISE and not elementwise:
            raise GradientError(
                f"derivative: {describe(node)} lies between, and {node.op.name} mixes elements; "
                "use sg.grad, sg.jvp or sg.hvp"
            )
        moving.add(node.id)


def _carried(y: Node) -> list[Node]:
    """The nodes a derivative can pass on its way to a node, in topological order."""
    stack = [y]
    seen = {y.id: y}
    while stack:
        for source in carriers(stack.pop()):
            if source.id not in seen:
                seen[source.id] = source
                stack.append(source)
    return [seen[k] for k in sorted(seen)]


class _Tower:
    """Derivatives of nodes, by node and order; None stands for zero."""

    def __init__(self, graph: Graph, x: Node) -> None:
        self.graph = graph
        self.x = x
        self.found: dict[tuple[int, int], Node | None] = {}
        # A node made as the derivative of another is differentiated as that other one, so both share their tower.
        self.alias: dict[int, Request] = {}
        self.results: set[int] = set()
        self.active: set[tuple[int, int]] = set()
        self.moves = bytearray()

    def find(self, node: Node, order: int) -> Node | None:
        """The derivative, with a stack of its own instead of the interpreter's."""
        stack = [((node.id, order), self._steps(node, order))]
        self.active.add((node.id, order))
        value: Node | None = None
        while stack:
            key, steps = stack[-1]
            try:
                wanted, k = steps.send(value)
            except StopIteration as done:
                value = self.found[key] = done.value
                if value is not None:
                    self.results.add(value.id)
                self.active.discard(key)
                stack.pop()
                continue
            value = self.found.get((wanted.id, k))
            if value is None and (wanted.id, k) not in self.found:
                stack.append(((wanted.id, k), self._steps(wanted, k)))
                self.active.add((wanted.id, k))
        return value

    def _depends(self, node: Node) -> bool:
        low = self.x.id
        while low + len(self.moves) <= node.id:
            one = self.graph.nodes[low + len(self.moves)]
            still = not one.type.dtype.is_float or one.op.name == "stop_gradient"
            moves = one is self.x or (not still and any(i.id >= low and self.moves[i.id - low] for i in carriers(one)))
            self.moves.append(moves)
        return node.id >= low and bool(self.moves[node.id - low])

    def _steps(self, node: Node, k: int) -> Steps:
        if k == 0:
            return node
        if not self._depends(node):
            return None
        if node is self.x:
            return full(self.graph, node.type.shape, node.type.dtype, 1) if k == 1 else None
        base, order = self.alias.get(node.id, (node, 0))
        # A derivative that is being computed cannot be asked for on the way to it.
        if base is not node and (base.id, order + k) not in self.active:
            return (yield base, order + k)
        rule = _LEIBNIZ.get(node.op.name)
        if rule is None and not is_linear(node.op):
            return (yield from self._chain(node, k))
        start = len(self.graph.nodes)
        if rule is not None:
            result = yield from rule(self, node, k)
        else:
            result = yield from self._linear(node, k)
        if result is not None and result.id >= start and result.id not in self.results:
            self.alias.setdefault(result.id, (node, k))
        return result

    def _chain(self, node: Node, k: int) -> Steps:
        tangents: list[Node | None] = []
        carried = {i.id for i in carriers(node)}
        for source in node.inputs:
            tangents.append((yield source, 1) if source.id in carried else None)
        self._mark(node)
        first = push("derivative", node, tangents)
        if first is None or k == 1:
            return first
        return (yield first, k - 1)

    def _linear(self, node: Node, k: int) -> Steps:
        tangents: list[Node | None] = []
        for source in node.inputs:
            tangents.append((yield source, k))
        self._mark(node)
        return push("derivative", node, tangents)

    def _mark(self, node: Node) -> None:
        self.graph.origin = Origin(node.loc, node.scope, node, node.order + 1)

    def _product(self, node: Node, k: int) -> Steps:
        """The sum over i of binomial(k, i) * a[i] * b[k - i]."""
        a, b = node.inputs
        if a is b:
            return (yield from self._square(node, k))
        total: Node | None = None
        for i in range(k + 1):
            left = yield a, i
            right = yield b, k - i
            total = self._plus_product(node, total, math.comb(k, i), left, right)
        return total

    def _square(self, node: Node, k: int) -> Steps:
        """Twice the sum over i < k / 2 of binomial(k, i) * a[i] * a[k - i], and half of that for i = k / 2."""
        a = node.inputs[0]
        total: Node | None = None
        for i in range(k // 2 + 1):
            left = yield a, i
            right = yield a, k - i
            weight = math.comb(k, i) if 2 * i < k else math.comb(k, i) // 2
            total = self._plus_product(node, total, weight, left, right)
        if total is None:
            return None
        return self.graph.add(OPS["multiply"], (total, full(self.graph, node.shape, node.dtype, 2)))

    def _quotient(self, node: Node, k: int) -> Steps:
        """From node * b = a: (a[k] - sum over i < k of binomial(k, i) * node[i] * b[k - i]) / b."""
        a, b = node.inputs
        total: Node | None = None
        for i in range(k):
            slope = yield b, k - i
            if slope is None:
                continue
            earlier = yield node, i
            total = self._plus_product(node, total, math.comb(k, i), earlier, slope)
        top = yield a, k
        self._mark(node)
        if total is not None:
            total = self.graph.add(OPS["negative"], (total,)) if top is None else self._minus(top, total)
        else:
            total = top
        return None if total is None else self.graph.add(OPS["divide"], (total, b))

    def _minus(self, a: Node, b: Node) -> Node:
        return self.graph.add(OPS["subtract"], (a, b))

    def _plus_product(
        self, node: Node, total: Node | None, weight: int, left: Node | None, right: Node | None
    ) -> Node | None:
        if left is None or right is None:
            return total
        self._mark(node)
        left, weight = self._without_sign(left, weight)
        right, weight = self._without_sign(right, weight)
        term = product(left, right)
        if weight == -1 and total is not None:
            return self._minus(total, term)
        if weight == -1:
            return self.graph.add(OPS["negative"], (term,))
        if weight != 1:
            term = self.graph.add(OPS["multiply"], (term, full(self.graph, node.shape, node.dtype, weight)))
        return plus(total, term)

    def _without_sign(self, node: Node, weight: int) -> tuple[Node, int]:
        if node.op.name != "negative" or node.id < self.graph.opaque:
            return node, weight
        return node.inputs[0], -weight


_LEIBNIZ = {
    "multiply": _Tower._product,  # pyright: ignore[reportPrivateUsage] the table stands beside its class
    "safe_multiply": _Tower._product,  # pyright: ignore[reportPrivateUsage]
    "square": _Tower._square,  # pyright: ignore[reportPrivateUsage]
    "divide": _Tower._quotient,  # pyright: ignore[reportPrivateUsage]
}
