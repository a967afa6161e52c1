"""What stands between outputs and their derivatives, found on a copy before a derivative is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from symgrad.arguments import one_or_more
from symgrad.errors import GradientError
from symgrad.functions import sum as sum_of
from symgrad.grad import check_graph, check_targets, grad, plus
from symgrad.graph import Graph, Node, Origin, ancestors, describe
from symgrad.opdef import OPS
from symgrad.ops.build import placeholder
from symgrad.ops.control import carriers
from symgrad.record import record

_ORDERS = 3


@record
class Finding:
    """One thing found: the node it is about, as error messages name it, and what is so."""

    node: str
    why: str

    def __str__(self) -> str:
        return f"{self.node}: {self.why}"


@record
class LintReport:
    """What `sg.lint` found; printed, one line per finding.

    `blocked` are operators without a rule that a derivative would need, `disconnected` the nodes of `wrt` without a
    gradient, `casts` conversions to integers or bool that end a path, `dead` the inputs and params no output reads.
    `order` is the highest order of derivatives, up to 3, that can be built, `obstacle` the error of the next one, None
    where there is none. `growth` has the count of nodes for order 0, the outputs, and each order up to `order`.
    """

    blocked: tuple[Finding, ...]
    disconnected: tuple[Finding, ...]
    casts: tuple[Finding, ...]
    dead: tuple[Finding, ...]
    order: int
    obstacle: str | None
    growth: tuple[int, ...]

    def __str__(self) -> str:
        lines: list[str] = []
        for title, findings in (
            ("blocked", self.blocked),
            ("disconnected", self.disconnected),
            ("cast", self.casts),
            ("dead", self.dead),
        ):
            lines += [f"{title}: {finding}" for finding in findings]
        reached = f"at least {self.order}" if self.obstacle is None else str(self.order)
        lines.append(f"highest order available: {reached}")
        if self.obstacle is not None:
            lines.append(f"order {self.order + 1}: {self.obstacle}")
        lines.append("nodes: " + ", ".join(f"order {k}: {count}" for k, count in enumerate(self.growth)))
        return "\n".join(lines)


def lint(outputs: Node | Sequence[Node], wrt: Node | Sequence[Node]) -> LintReport:
    """Say what stands between outputs and their derivatives with respect to nodes.

    Derivatives of orders 1 to 3 are tried on a copy: order 1 is the gradient of the sum of the floating outputs, each
    further one the gradient of the product of the last with a vector, as in Hessian-vector products. The graph itself
    does not grow. Takes the time of building these derivatives.

    Raises GradientError for `wrt` that has no derivative at all, and GraphError for nodes of different graphs.

        print(sg.lint(loss, g.params))
    """
    targets = check_targets("lint", wrt)
    given = one_or_more(outputs)
    for node in given:
        if not isinstance(node, Node):
            raise GradientError(f"lint: outputs are nodes, got {type(node).__name__}")
    roots = cast("list[Node]", given)
    if not roots:
        raise GradientError("lint: there is no output")
    graph = roots[0].graph
    check_graph("lint", graph, [*roots, *targets])
    order = ancestors([*roots, *targets])
    reached = ancestors(roots)
    copy, copies = _copied(graph, order)
    edges = _Edges(copy, copies, order)
    moving = edges.moved_by(targets)
    useful = edges.reaching(roots)
    known = {n.id for n in reached}
    tried = _tried(copy, [copies[r.id] for r in roots if r.dtype.is_float], [copies[t.id] for t in targets])
    return LintReport(
        tuple(edges.blocked[n.id] for n in order if n.id in edges.blocked and n.id in moving and n.id in useful),
        tuple(f for t in targets if (f := edges.disconnection(t, roots, reached, useful)) is not None),
        tuple(_cast(n) for n in reached if n.id not in moving and _is_cast(n) and n.inputs[0].id in moving),
        tuple(Finding(describe(n), "no output reads it") for n in (*graph.inputs, *graph.params) if n.id not in known),
        *tried,
    )


def _copied(graph: Graph, nodes: Sequence[Node]) -> tuple[Graph, dict[int, Node]]:
    """A graph with copies of the nodes, by their ids. Params and states have no value there."""
    copy = Graph(rules=graph.rules, seed=graph.seed)
    copies: dict[int, Node] = {}
    for node in nodes:
        forward = copies.get(node.gradient_of.id) if node.gradient_of is not None else None
        with copy.derived_from(Origin(node.loc, node.scope, forward, node.order)):
            copies[node.id] = copy.add(node.op, tuple([copies[i.id] for i in node.inputs]), node.attrs)
    return copy, copies


class _Edges:
    """Which inputs of which nodes a derivative passes, asked of the rules of the first order on a copy."""

    def __init__(self, copy: Graph, copies: dict[int, Node], nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self.blocked: dict[int, Finding] = {}
        self.passing: dict[int, tuple[Node, ...]] = {}
        for node in nodes:
            self.passing[node.id] = self._passing(copy, copies[node.id], node)

    def _passing(self, copy: Graph, made: Node, node: Node) -> tuple[Node, ...]:
        floating = tuple(i for i in carriers(node) if i.dtype.is_float)
        if not node.dtype.is_float or not floating or node.op.name == "stop_gradient":
            return ()
        # The copy of a node can be one that rules made instead, with other inputs.
        if node.op.vjp is None:
            self.blocked[node.id] = Finding(describe(node), f"{node.op.name} has no derivative rule")
            return floating
        if made.op is not node.op or len(made.inputs) != len(node.inputs):
            return floating
        name = f"(cotangent of %{made.id})"
        try:
            parts = node.op.vjp(made, placeholder(copy, name, made.type))
        except GradientError as error:
            self.blocked[node.id] = Finding(describe(node), str(error))
            return floating
        flows = {i.id for i, part in zip(node.inputs, parts, strict=True) if part is not None}
        return tuple(i for i in floating if i.id in flows)

    def moved_by(self, sources: Sequence[Node]) -> set[int]:
        """The nodes a derivative with respect to one of the sources is carried to."""
        moving = {s.id for s in sources}
        for node in self.nodes:
            if node.id not in moving and any(i.id in moving for i in self.passing[node.id]):
                moving.add(node.id)
        return moving

    def reaching(self, roots: Sequence[Node]) -> set[int]:
        """The nodes from which a derivative is carried to one of the roots."""
        useful = {r.id for r in roots if r.dtype.is_float}
        for node in reversed(self.nodes):
            if node.id in useful:
                useful.update(i.id for i in self.passing[node.id])
        return useful

    def disconnection(
        self, target: Node, roots: Sequence[Node], reached: Sequence[Node], useful: set[int]
    ) -> Finding | None:
        """Why no derivative with respect to a node is carried to a root; None where one is."""
        if target.id in useful:
            return None
        depends = {target.id}
        for node in reached:
            if any(i.id in depends for i in node.inputs):
                depends.add(node.id)
        if not any(r.id in depends for r in roots):
            return Finding(describe(target), "no path to an output")
        moving = self.moved_by([target])
        ends = [
            _end(node, source)
            for node in reached
            for source in dict.fromkeys(node.inputs)
            if source.id in moving and source.id in depends and source not in self.passing[node.id]
        ]
        return Finding(describe(target), "every path ends: " + ", ".join(dict.fromkeys(ends)))


def _end(node: Node, source: Node) -> str:
    if node.op.name == "stop_gradient":
        return describe(node)
    if not node.dtype.is_float:
        return f"{describe(node)} is not floating"
    if node.op.name == "custom":
        return f"{describe(node)} has a rule that gives no gradient"
    return f"{describe(node)} has the derivative 0 with respect to {describe(source)}"


def _is_cast(node: Node) -> bool:
    return node.op.name == "astype" and node.inputs[0].dtype.is_float and not node.dtype.is_float


def _cast(node: Node) -> Finding:
    return Finding(describe(node), f"converts {describe(node.inputs[0])}, and no gradient passes integers or bool")


def _tried(graph: Graph, roots: Sequence[Node], targets: Sequence[Node]) -> tuple[int, str | None, tuple[int, ...]]:
    """The highest order that can be built, why not the next, and the count of nodes of each."""
    counts = [len(ancestors(roots))]
    total: Node | None = None
    for root in roots:
        total = plus(total, _in(sum_of(root), roots[0]))
    for order in range(1, _ORDERS + 1):
        if total is None:
            counts.append(0)
            continue
        try:
            found = grad(total, targets, disconnected="none")
        except GradientError as error:
            return order - 1, str(error), tuple(counts)
        slopes = [(g, t) for g, t in zip(found, targets, strict=True) if g is not None]
        counts.append(len(ancestors([g for g, _ in slopes])))
        total = None
        for k, (slope, target) in enumerate(slopes):
            along = placeholder(graph, f"(vector {order}.{k})", target.type)
            total = plus(total, _in(sum_of(slope * along), slopes[0][0]))
    return _ORDERS, None, tuple(counts)


def _in(node: Node, like: Node) -> Node:
    """The node in the data type of another one."""
    return node if node.dtype is like.dtype else node.graph.add(OPS["astype"], (node,), (like.dtype,))
