"""Jacobians and Hessians as nodes: one product with a Jacobian, vectorized over the rows of an identity matrix.

Sparse ones are vectorized over fewer directions, see `symgrad.sparse`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from symgrad.diagonals import for_every_element
from symgrad.errors import GradientError
from symgrad.grad import check_graph, check_output, check_targets, grad, jvp, vjp
from symgrad.graph import Node, ancestors, describe
from symgrad.ops.build import permute_to, placeholder, reshape_to
from symgrad.program import operations
from symgrad.record import record
from symgrad.rules import full
from symgrad.sparse import Mode, SparseMatrix, sparse_hessian, sparse_jacobian
from symgrad.types import Dim, Extent, Joint, Quotient, Shape, size_of

ASSUMED_EXTENT = 100
"""What a symbolic extent counts as where the operations of two derivatives are compared."""


@overload
def jacobian(y: Node, x: Node, *, mode: Mode | None = None, sparse: Literal[False] = False) -> Node: ...
@overload
def jacobian(y: Node, x: Sequence[Node], *, mode: Mode | None = None, sparse: Literal[False] = False) -> list[Node]: ...
@overload
def jacobian(y: Node, x: Node, *, mode: Mode | None = None, sparse: Literal[True]) -> SparseMatrix: ...
@overload
def jacobian(y: Node, x: Sequence[Node], *, mode: Mode | None = None, sparse: Literal[True]) -> list[SparseMatrix]: ...


def jacobian(
    y: Node, x: Node | Sequence[Node], *, mode: Mode | None = None, sparse: bool = False
) -> Node | list[Node] | SparseMatrix | list[SparseMatrix]:
    """The derivative of every element of `y` with respect to every element of `x`: of shape y.shape + x.shape.

    `x` is a node or a list of nodes; a list gives a list. Reverse mode is one product of cotangents with the Jacobian,
    vectorized over the elements of `y`; forward mode one product with tangents, vectorized over the elements of `x`.
    `mode` None builds both and gives the one of fewer operations, symbolic extents counted as 100; equal counts give
    reverse. What `y` does not depend on has zeros.

    `sparse` gives a `SparseMatrix` instead, with one row for each element of `y` and one column for each of `x`: just
    the entries that the graph does not show to be zero. They take one product for each color of a coloring of the
    columns (forward mode) or rows (reverse mode); `mode` None takes the one of fewer colors. All extents must be
    numbers. An index that is not constant counts as any, so entries may be zeros.

    Raises GradientError (no derivative defined, or too many entries), GraphError (nodes of different graphs, or an
    operator that cannot be vectorized) and, for a sparse one, ShapeError (an extent is symbolic).

        j = sg.jacobian(sg.tanh(w @ x), x)    # of shape (rows, columns) for w of this shape
        j = sg.jacobian(x[1:] - x[:-1] ** 2, x, sparse=True)    # two products, for x of any length
    """
    targets = _checked("jacobian", y, x)
    _check_mode("jacobian", mode)
    if sparse:
        matrices = [sparse_jacobian(y, t, mode) for t in targets]
        return matrices[0] if isinstance(x, Node) else matrices
    if mode is None:
        found = min((_rows(y, targets), _columns(y, targets)), key=_estimated_operations)
    else:
        found = _rows(y, targets) if mode == "reverse" else _columns(y, targets)
    return found[0] if isinstance(x, Node) else found


@overload
def hessian(y: Node, x: Node, *, mode: Mode = "forward", sparse: Literal[False] = False) -> Node: ...
@overload
def hessian(
    y: Node, x: Sequence[Node], *, mode: Mode = "forward", sparse: Literal[False] = False
) -> list[list[Node]]: ...
@overload
def hessian(y: Node, x: Node, *, mode: Mode = "forward", sparse: Literal[True]) -> SparseMatrix: ...
@overload
def hessian(
    y: Node, x: Sequence[Node], *, mode: Mode = "forward", sparse: Literal[True]
) -> list[list[SparseMatrix]]: ...


def hessian(
    y: Node, x: Node | Sequence[Node], *, mode: Mode = "forward", sparse: bool = False
) -> Node | list[list[Node]] | SparseMatrix | list[list[SparseMatrix]]:
    """The second derivatives of a scalar with respect to every pair of elements of `x`: of shape x.shape + x.shape.

    A list gives blocks: `hessian(y, [a, b])[0][1]` has shape a.shape + b.shape. By default forward mode over the
    gradient, vectorized over the elements of `x`; `mode="reverse"` is reverse mode over the gradient. Raises as
    `jacobian`.

    `sparse` gives a `SparseMatrix` instead, with a row and a column for each element of `x`, whose entries take few
    products: by symmetry often fewer than the entries of one row. It has both of two mirrored entries.

        h = sg.hessian(sg.sum((x[1:] - x[:-1] ** 2) ** 2), x, sparse=True)    # tridiagonal: three products
    """
    targets = _checked("hessian", y, x)
    _check_scalar("hessian", y)
    _check_mode("hessian", mode)
    if sparse and isinstance(x, Node):
        return sparse_hessian(y, x, mode)
    if sparse:
        pairs = list(zip(targets, grad(y, targets), strict=True))
        return [
            [sparse_hessian(y, t, mode) if t is one else sparse_jacobian(gradient, t, mode) for t in targets]
            for one, gradient in pairs
        ]
    blocks = _blocks(y, targets, mode)
    return blocks[0][0] if isinstance(x, Node) else blocks


@record
class DerivativeCost:
    """What one way to compute a derivative takes.

    `operations` and `nodes` count what the result reaches, the value included; `estimate` is the operations with
    symbolic extents as 100; `size` is the bytes of the result.
    """

    name: str
    operations: Extent
    estimate: int
    nodes: int
    size: Extent


@record
class DerivativePlan:
    """The ways to compute a Jacobian, and for a scalar a Hessian, with their costs; printed as a table.

    `choice` is the mode `jacobian` takes; `hessian_choice` the way to the Hessian of fewer operations, None where there
    is no Hessian.
    """

    y: str
    x: tuple[str, ...]
    costs: tuple[DerivativeCost, ...]
    choice: Mode
    hessian_choice: str | None

    def __str__(self) -> str:
        head = ("derivative", "operations", "nodes", "bytes")
        rows = [head, *((c.name, str(c.operations), str(c.nodes), str(c.size)) for c in self.costs)]
        widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
        lines = [f"derivatives of {self.y} with respect to {', '.join(self.x)}"]
        for name, *numbers in rows:
            cells = [n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join(["", name.ljust(widths[0]), *cells]))
        if any(isinstance(c.operations, Dim) for c in self.costs):
            lines.append(f"  symbolic extents count as {ASSUMED_EXTENT} where operations are compared")
        lines.append(f"  jacobian: {self.choice}")
        if self.hessian_choice is not None:
            lines.append(f"  hessian: {self.hessian_choice}")
        return "\n".join(lines)


def plan_derivative(y: Node, x: Node | Sequence[Node], *, sparse: bool = False) -> DerivativePlan:
    """The operations, nodes and bytes of every way to the Jacobian of `y`, and of a scalar to its Hessian.

    Nothing is computed; the ways are built in the graph, where `jacobian` and `hessian` find them. `sparse` shows
    sparse ones too, with their numbers of products; the choices are between dense ones. Raises as `jacobian`.

        print(sg.plan_derivative(loss, w))
    """
    targets = _checked("plan_derivative", y, x)
    reverse, forward = _rows(y, targets), _columns(y, targets)
    costs = [_cost("jacobian, reverse", reverse), _cost("jacobian, forward", forward)]
    choice: Mode = "forward" if costs[1].estimate < costs[0].estimate else "reverse"
    second: list[DerivativeCost] = []
    if y.shape == ():
        modes: tuple[Mode, ...] = ("forward", "reverse")
        for mode in modes:
            blocks = _blocks(y, targets, mode)
            second.append(_cost(f"hessian, {mode} over reverse", [block for row in blocks for block in row]))
    best = min(second, key=lambda c: c.estimate).name.removeprefix("hessian, ") if second else None
    if sparse:
        costs.append(_sparse_cost("jacobian", jacobian(y, targets, sparse=True)))
        if y.shape == ():
            rows = hessian(y, targets, sparse=True)
            second.append(_sparse_cost("hessian", [matrix for row in rows for matrix in row]))
    return DerivativePlan(describe(y), tuple(map(describe, targets)), (*costs, *second), choice, best)


# Rows and columns.


def _rows(y: Node, targets: Sequence[Node]) -> list[Node]:
    """The Jacobians of one output by reverse mode."""
    graph, extent = y.graph, size_of(y.shape)
    shapes = [(*y.shape, *t.shape) for t in targets]
    if extent == 0:
        return [full(graph, s, t.dtype, 0) for s, t in zip(shapes, targets, strict=True)]
    if extent == 1:
        found = vjp([y], targets, [full(graph, y.shape, y.dtype, 1)])
        return [reshape_to(g, s) for g, s in zip(found, shapes, strict=True)]
    seed = placeholder(graph, f"(cotangent of %{y.id})", y.type)
    rows = for_every_element(vjp([y], targets, [seed]), seed)
    return [reshape_to(r, s) for r, s in zip(rows, shapes, strict=True)]


def _columns(y: Node, targets: Sequence[Node]) -> list[Node]:
    """The Jacobians of one output by forward mode."""
    return [_columns_of([y], target)[0] for target in targets]


def _columns_of(outputs: Sequence[Node], target: Node) -> list[Node]:
    """The Jacobians of many outputs with respect to one node by forward mode."""
    graph, extent = target.graph, size_of(target.shape)
    shapes: list[Shape] = [(*o.shape, *target.shape) for o in outputs]
    if extent == 0:
        return [full(graph, s, o.dtype, 0) for s, o in zip(shapes, outputs, strict=True)]
    if extent == 1:
        moved = jvp(outputs, [target], [full(graph, target.shape, target.dtype, 1)])
        return [reshape_to(m, s) for m, s in zip(moved, shapes, strict=True)]
    seed = placeholder(graph, f"(tangent of %{target.id})", target.type)
    columns = for_every_element(jvp(outputs, [target], [seed]), seed)
    return [reshape_to(permute_to(c, (*range(1, c.ndim), 0)), s) for c, s in zip(columns, shapes, strict=True)]


def _blocks(y: Node, targets: Sequence[Node], mode: Mode) -> list[list[Node]]:
    """The blocks of the Hessian of a scalar: a row for each target."""
    gradients = grad(y, targets)
    if mode == "reverse":
        return [_rows(g, targets) for g in gradients]
    columns = [_columns_of(gradients, target) for target in targets]
    return [list(row) for row in zip(*columns, strict=True)]


# Counting.


def _cost(name: str, results: Sequence[Node]) -> DerivativeCost:
    size: Extent = 0
    for result in results:
        size = size + size_of(result.shape) * result.dtype.itemsize
    reached = ancestors(results)
    return DerivativeCost(name, _operations(reached), _estimated_operations(results), len(reached), size)


def _sparse_cost(what: str, matrices: Sequence[SparseMatrix]) -> DerivativeCost:
    products = sum(matrix.colors for matrix in matrices)
    return _cost(f"{what}, sparse: {products} product{'s' * (products != 1)}", [matrix.data for matrix in matrices])


def _operations(nodes: Sequence[Node]) -> Extent:
    total: Extent = 0
    for node in nodes:
        total = total + operations(node)
    return total


def _estimated_operations(results: Sequence[Node]) -> int:
    return sum(_assumed(operations(node)) for node in ancestors(results))


def _assumed(extent: Extent) -> int:
    """The value of an extent with every symbol as the assumed one; joint extents as the larger side."""
    if isinstance(extent, int):
        return extent
    total = 0
    for monomial, factor in extent.terms:
        value = factor
        for atom, power in monomial:
            if isinstance(atom, Quotient):
                base = _assumed(atom.numerator) // max(1, _assumed(atom.denominator))
            elif isinstance(atom, Joint):
                base = max(_assumed(atom.left), _assumed(atom.right))
            else:
                base = ASSUMED_EXTENT
            value *= base**power
        total += value
    return total


# What callers pass.


def _checked(caller: str, y: Node, x: Node | Sequence[Node]) -> list[Node]:
    targets = check_targets(caller, x)
    check_output(caller, y)
    check_graph(caller, y.graph, targets)
    return targets


def _check_mode(caller: str, mode: Mode | None) -> None:
    if mode not in (None, "forward", "reverse"):
        raise GradientError(f"{caller}: mode must be 'forward' or 'reverse', got {mode!r}")


def _check_scalar(caller: str, y: Node) -> None:
    if y.shape != ():
        raise GradientError(
            f"{caller}: {describe(y)} is not a scalar, its shape is {y.shape}; reduce it with sg.sum or sg.mean, "
            "or take sg.jacobian of sg.jacobian"
        )
