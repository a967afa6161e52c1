"""Sparse Jacobians and Hessians: by a coloring of the pattern, few products hold every entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from symgrad.coloring import color_columns, color_symmetric
from symgrad.grad import building, grad, jvp, vjp
from symgrad.graph import Graph, Node, ancestors
from symgrad.ops.build import apply, broadcast_to, filled, placeholder, reshape_to, source
from symgrad.record import record
from symgrad.rules import full
from symgrad.sparsity import check_static, dependence, distinct, transposed
from symgrad.types import int32, static_size
from symgrad.vectorize import batched

if TYPE_CHECKING:
    import numpy.typing as npt

    from symgrad.coloring import Indices, Lists
    from symgrad.types import Array

Mode: TypeAlias = Literal["forward", "reverse"]


@record(eq=False)
class SparseMatrix:
    """A matrix of derivatives in compressed rows: where the entries are is known, what they are is a node.

    `shape` is (elements of y, elements of x), both in row-major order. Row i has its entries in the columns
    `indices[indptr[i] : indptr[i + 1]]`, ascending; entry k has the value `data[k]`, where `data` is a node of shape
    (entries,) that can be used as any other. `colors` is the number of products with the derivative the entries take.

    As an output of `sg.compile` the matrix is a `scipy.sparse.csr_array` at each call.
    """

    data: Node
    indices: npt.NDArray[np.signedinteger[Any]]
    indptr: npt.NDArray[np.signedinteger[Any]]
    shape: tuple[int, int]
    colors: int

    def __repr__(self) -> str:
        rows, columns = self.shape
        return f"<SparseMatrix {rows} x {columns}: {self.indices.size} entries of {self.colors} products>"

    def to_scipy(self, values: Array) -> Any:
        """The `scipy.sparse.csr_array` with these values of `data`, which it holds; other arrays are copies.

        Raises ImportError without SciPy, ValueError for values of another shape than `data`.

            matrix = jacobian.to_scipy(sg.evaluate(jacobian.data, {x: at}))
        """
        values = np.asarray(values)
        if values.shape != self.indices.shape:
            raise ValueError(f"to_scipy: {self!r} takes values of shape {self.indices.shape}, got {values.shape}")
        parts = (values, self.indices.copy(), self.indptr.copy())
        matrix = scipy_sparse().csr_array(parts, shape=self.shape, copy=False)
        # Entries are in order and stand once: nothing need look again.
        matrix.has_canonical_format = True
        return matrix


def scipy_sparse() -> Any:
    """The module `scipy.sparse`; ImportError that says how to install it."""
    try:
        import scipy.sparse  # pyright: ignore[reportMissingTypeStubs] its types are not used
    except ImportError as error:
        raise ImportError(
            "a sparse matrix as a result is a scipy.sparse.csr_array, and SciPy is not installed: "
            "pip install 'symgrad[sparse]', or take the node .data of the matrix as output"
        ) from error
    return scipy.sparse  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def sparse_jacobian(y: Node, x: Node, mode: Mode | None) -> SparseMatrix:
    """The Jacobian of checked nodes; `mode` None takes the one of fewer products, forward where they are equal."""
    check_static(y, x)
    shape = (static_size(y.shape), static_size(x.shape))
    if mode == "reverse":
        columns = _entries(x, y, _reverse(y, x))
        rows = transposed(*columns, shape[0])
        return _by_rows(y, x, shape, rows, color_columns(columns, rows))
    rows = _entries(y, x, _forward(y, x))
    columns = transposed(*rows, shape[1])
    colors = color_columns(rows, columns)
    if mode is None:
        of_rows = color_columns(columns, rows)
        if of_rows.max(initial=-1) < colors.max(initial=-1):
            return _by_rows(y, x, shape, rows, of_rows)
    places = _owners(rows)
    return _compressed(y, x, _forward(y, x), shape, rows, colors, colors[rows[1]], places)


def sparse_hessian(y: Node, x: Node, mode: Mode) -> SparseMatrix:
    """The Hessian of a checked scalar: by symmetry where this takes fewer products."""
    check_static(x)
    gradient = grad(y, x)
    # A derivative rule of the user's own need not be that of any function, and then nothing is symmetric.
    if any(n.op.name in ("custom", "call") for n in ancestors([y])):
        return sparse_jacobian(gradient, x, mode)
    product = _forward(gradient, x) if mode == "forward" else _reverse(gradient, x)
    rows = _symmetric(_entries(gradient, x, product))
    count = rows[0].size - 1
    direct, star = color_columns(rows, rows), color_symmetric(rows)
    if direct.max(initial=-1) <= star.max(initial=-1):
        return _compressed(gradient, x, product, (count, count), rows, direct, direct[rows[1]], _owners(rows))
    # An entry is read in its row where its column is alone there among those of its color, else its mirror image.
    owners, members = _owners(rows), rows[1]
    groups = owners * (int(star.max()) + 1) + star[members]
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    alone = sizes[group] == 1
    mirrored = np.searchsorted(owners * count + members, members * count + owners)
    assert (alone | alone[mirrored]).all(), "a star coloring gives every entry or its mirror image"
    picked = np.where(alone, star[members], star[owners])
    places = np.where(alone, owners, members)
    return _compressed(gradient, x, product, (count, count), rows, star, picked, places)


# Products.

Product: TypeAlias = Callable[[Node], Node]


def _forward(y: Node, x: Node) -> Product:
    return lambda tangent: jvp([y], [x], [tangent])[0]


def _reverse(y: Node, x: Node) -> Product:
    return lambda cotangent: vjp([y], [x], [cotangent])[0]


def _seed(like: Node) -> Node:
    return placeholder(like.graph, f"(direction of %{like.id})", like.type)


def _entries(output: Node, like: Node, product: Product) -> Lists:
    seed = _seed(like)
    return dependence(product(seed), seed).rows()


def _by_rows(y: Node, x: Node, shape: tuple[int, int], rows: Lists, colors: Indices) -> SparseMatrix:
    return _compressed(x, y, _reverse(y, x), shape, rows, colors, colors[_owners(rows)], rows[1])


def _compressed(
    output: Node,
    like: Node,
    product: Product,
    shape: tuple[int, int],
    rows: Lists,
    colors: Indices,
    picked: Indices,
    places: Indices,
) -> SparseMatrix:
    """The matrix whose entry k is element `places[k]` of the product with the direction of color `picked[k]`.

    The direction of a color is one at the elements of that color and zero elsewhere.
    """
    graph = like.graph
    starts, members = rows
    count = int(colors.max(initial=-1)) + 1 if members.size else 0
    size = static_size(output.shape)
    with building(graph):
        if not count:
            data = full(graph, (0,), output.dtype, 0)
        else:
            flat = reshape_to(_products(graph, like, product, colors, count), (count * size,))
            index = picked * size + places
            if not np.array_equal(index, np.arange(count * size)):
                flat = apply("take", flat, graph.const(index), axis=0)
            data = flat
    width = np.int32 if max(*shape, members.size) <= np.iinfo(np.int32).max else np.int64
    indices, indptr = members.astype(width), starts.astype(width)
    indices.flags.writeable = indptr.flags.writeable = False
    return SparseMatrix(data, indices, indptr, shape, count)


def _products(graph: Graph, like: Node, product: Product, colors: Indices, count: int) -> Node:
    """The products with the directions of all colors, one behind the other."""
    if count == 1:
        return product(full(graph, like.shape, like.dtype, 1))
    seed = _seed(like)
    of_element = reshape_to(graph.const(colors.astype(np.int32)), like.shape)
    table = (count, *like.shape)
    color = reshape_to(source(graph, "iota", extent=count, dtype=int32), (count, *(1,) * like.ndim))
    same = apply("equal", broadcast_to(of_element, table), broadcast_to(color, table))
    one, zero = (filled(graph, table, like.dtype, v) for v in (1, 0))
    directions = apply("where", same, one, zero)
    (found,) = batched(graph, [product(seed)], {seed: directions}, count)
    assert found is not None
    return found


# Patterns.


def _owners(rows: Lists) -> Indices:
    """The row of each entry."""
    return np.repeat(np.arange(rows[0].size - 1), np.diff(rows[0]))


def _symmetric(rows: Lists) -> Lists:
    """The pattern with the mirror image of each entry."""
    count = rows[0].size - 1
    owners, members = _owners(rows), rows[1]
    keys = distinct(np.concatenate([owners * count + members, members * count + owners]))
    owners, members = np.divmod(keys, max(1, count))
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(owners, minlength=count))]), members
