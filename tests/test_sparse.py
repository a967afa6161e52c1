# pyright: basic
"""Sparse Jacobians and Hessians: no entry is missed, few are zeros, few products hold all, values as of dense ones."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import networkx as nx
import numpy as np
import op_cases
import pytest
import scipy.sparse
from random_graphs import RandomGraph

import symgrad as sg
from symgrad import sparsity
from symgrad.coloring import color_columns, color_symmetric
from symgrad.graph import Graph, Node
from symgrad.ops.build import apply
from symgrad.sparse import SparseMatrix
from symgrad.sparsity import transposed
from symgrad.types import static_size

Array = np.ndarray
RNG = np.random.default_rng(20)
BAND = np.diag(np.full(6, 2.0)) - np.diag(np.ones(5), 1) - np.diag(np.ones(5), -1)


def matrix(rows: int, *entries: tuple[int, int]) -> Array:
    """Ones in these places of a pattern of so many rows."""
    found = np.zeros((rows, rows))
    for i, j in entries:
        found[i, j] = 1
    return found


def dense(found: SparseMatrix, feeds: dict[Node, Array]) -> Array:
    return found.to_scipy(sg.evaluate(found.data, feeds)).toarray()


def pattern(found: SparseMatrix) -> Array:
    return found.to_scipy(np.ones(found.indices.size)).toarray() != 0


def check(found: SparseMatrix, expected: Node, feeds: dict[Node, Array], *, tight: bool = False) -> None:
    """Compare with the dense derivative."""
    with np.errstate(all="ignore"):
        wanted = sg.evaluate(expected, feeds).reshape(found.shape)
        values = dense(found, feeds)
    assert found.indptr[0] == 0
    assert found.indptr[-1] == found.indices.size
    assert found.colors <= max(1, *found.shape)
    entries = pattern(found)
    assert not np.any((wanted != 0) & ~entries), "an entry is missing"
    tolerance = 1e-11 if wanted.dtype == values.dtype == np.float64 else 1e-4
    np.testing.assert_allclose(values, wanted, rtol=tolerance, atol=tolerance)
    if tight:
        assert not np.any((wanted == 0) & entries), "an entry is zero"


# Patterns.

# Functions of a node of shape (6,) whose entries are all different from zero.
TIGHT: list[tuple[str, Callable[[Node], Node], int]] = [
    ("elementwise", lambda x: sg.exp(x) * sg.sin(x) + x / (1 + x * x), 1),
    ("differences", lambda x: x[1:] - x[:-1], 2),
    ("second differences", lambda x: x[2:] - 2.0 * x[1:-1] + x[:-2] * x[1:-1], 3),
    ("every other", lambda x: x[::2] * x[1::2], 1),
    ("chain", lambda x: sg.concat([10.0 * (x[1:] - x[:-1] ** 2), 1.0 - x[:-1]]), 2),
    ("padded", lambda x: sg.pad(x * x, ((1, 2),))[1:] + sg.pad(x, ((0, 2),)), 1),
    ("rolled", lambda x: x * sg.roll(x, 1) + sg.roll(x, -1), 3),
    ("flipped", lambda x: sg.flip(x, axis=0) * 2.0 + sg.exp(x), 2),
    ("stencil by a matrix", lambda x: sg.sin(x) @ BAND, 3),
    ("matrix on the left", lambda x: sg.matmul(BAND, sg.sin(x)), 3),
    ("rows of a table", lambda x: sg.reshape(x, (2, 3)) @ RNG.uniform(1, 2, (3, 2)), 2),
    ("residuals", lambda x: sg.take(x, np.array([0, 3, 5, 3])) - sg.take(x, np.array([1, 4, 0, 2])) ** 2, 2),
    ("negative indices", lambda x: sg.take(sg.exp(x), np.array([-1, 2, -6])), 1),
    ("sums of rows", lambda x: sg.sum(sg.reshape(x * x, (3, 2)), axis=1), 1),
    ("softmax of rows", lambda x: sg.nn.softmax(sg.reshape(x, (2, 3)), axis=1), 3),
    ("products of rows", lambda x: sg.prod(sg.reshape(x, (3, 2)), axis=1), 1),
    ("chosen by a constant", lambda x: sg.where(np.array([True, False] * 3), x * x, sg.flip(x, axis=0)), 1),
    ("masked", lambda x: x * sg.flip(x, axis=0) * np.array([0.0, 1, 1, 1, 1, 0]), 2),
    ("lower triangle", lambda x: sg.tril(sg.reshape(x, (2, 3)) * 2.0), 1),
    ("windows", lambda x: sg.sum(apply("window", sg.exp(x), sizes=(2,), strides=(2,), dilations=(1,)), axis=1), 1),
    ("scattered", lambda x: sg.scatter_add(x * 1.0, np.array([0, 2]), sg.exp(x[4:])), 2),
    ("steps", lambda x: sg.floor(x) * 3.0 + sg.sign(x) + sg.astype(x > 1, sg.float64) * x[::-1], 1),
    ("nothing", lambda x: sg.floor(x) + 2.0, 0),
    ("cut", lambda x: x * sg.stop_gradient(sg.flip(x, axis=0)), 1),
    ("one value", sg.log_sum_exp, 1),
    ("grid", lambda x: sg.diff(sg.reshape(x * x, (3, 2)), axis=0), 2),
]


@pytest.mark.parametrize(("name", "function", "products"), TIGHT, ids=[t[0] for t in TIGHT])
def test_patterns_are_tight(name: str, function: Callable[[Node], Node], products: int) -> None:
    g = Graph()
    x = g.input("x", (6,), sg.float64)
    y = function(x)
    feeds = {x: np.array([0.31, 1.72, 1.13, 1.57, 0.44, 1.95])}
    # Comparisons in a step at this point are true in some places: no zeros but those of the structure.
    tight = name != "steps"
    check(sg.jacobian(y, x, sparse=True), sg.jacobian(y, x), feeds, tight=tight)
    check(sg.jacobian(y, x, sparse=True, mode="reverse"), sg.jacobian(y, x), feeds, tight=tight)
    assert sg.jacobian(y, x, sparse=True).colors == products


@pytest.mark.parametrize("name", sorted(op_cases.SMOOTH))
def test_every_operator(name: str) -> None:
    """Of each operator the Jacobian, and the Hessian of a sum in which it meets itself."""
    rng = np.random.default_rng(3)
    for case in op_cases.SMOOTH[name]:
        g = Graph()
        nodes = [g.input(f"x{k}", o.shape, o.dtype) for k, o in enumerate(case.operands)]
        feeds = {n: op_cases.values_of(o, rng) for n, o in zip(nodes, case.operands, strict=True)}
        y = case.build(g, nodes)
        if not y.dtype.is_float or max(static_size(n.shape) for n in (y, *nodes)) > 40:
            continue
        for x in nodes:
            if not x.dtype.is_float:
                continue
            for mode in ("forward", "reverse"):
                check(sg.jacobian(y, x, sparse=True, mode=mode), sg.jacobian(y, x, mode=mode), feeds)
            total = sg.sum(sg.sin(y))
            check(sg.hessian(total, x, sparse=True), sg.hessian(total, x), feeds)


def test_random_graphs() -> None:
    """Small graphs of every kind of step: the sparse derivatives are the dense ones."""
    tried = 0
    for seed in range(25):
        made = RandomGraph(seed, small=True, raw=False)
        for _ in range(3):
            made.declare()
        for _ in range(12):
            made.grow()
        inputs = [m for m in made.made if m.node.name and m.node.dtype.is_float and np.isfinite(m.value).all()]
        feeds = {m.node: m.value for m in made.made if m.node.name}
        for m in made.made[-2:]:
            if not m.node.dtype.is_float or m.node.name:
                continue
            for x in inputs:
                wanted = sg.jacobian(m.node, x.node, mode="forward")
                with np.errstate(all="ignore"):
                    if not np.isfinite(sg.evaluate(wanted, feeds)).all():
                        continue
                check(sg.jacobian(m.node, x.node, sparse=True), wanted, feeds)
                tried += 1
    assert tried > 25


def test_indices_of_the_call_reach_everything() -> None:
    g = Graph()
    x, i = g.input("x", (5, 2), sg.float64), g.input("i", (3,), sg.int64)
    taken = sg.jacobian(sg.take(x, i, axis=0), x, sparse=True)
    np.testing.assert_array_equal(pattern(taken), np.kron(np.ones((3, 5)), np.eye(2)) != 0)
    feeds = {x: RNG.uniform(size=(5, 2)), i: np.array([4, 0, 4])}
    check(taken, sg.jacobian(sg.take(x, i, axis=0), x), feeds)
    added = sg.scatter_add(sg.zeros_like(x), i, x[:3] ** 2)
    check(sg.jacobian(added, x, sparse=True), sg.jacobian(added, x), feeds)


def test_any_rank_and_many_nodes() -> None:
    g = Graph()
    x, w = g.input("x", (2, 3), sg.float64), g.param("w", np.array([0.5, 2.0, 1.5]))
    y = sg.tanh(x * w)
    feeds = {x: RNG.uniform(size=(2, 3))}
    found = sg.jacobian(y, [x, w], sparse=True)
    assert [m.shape for m in found] == [(6, 6), (6, 3)]
    assert [m.colors for m in found] == [1, 1]
    for m, wanted in zip(found, sg.jacobian(y, [x, w]), strict=True):
        check(m, wanted, feeds, tight=True)
    loss = sg.sum(y * y)
    blocks, wanted = sg.hessian(loss, [x, w], sparse=True), sg.hessian(loss, [x, w])
    for row, others in zip(blocks, wanted, strict=True):
        for m, other in zip(row, others, strict=True):
            check(m, other, feeds, tight=True)
    assert blocks[0][1].shape == (6, 3)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,), ()])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    g = Graph()
    x = g.input("x", shape, sg.float64)
    feeds = {x: np.full(shape, 0.5)}
    check(sg.jacobian(x * x, x, sparse=True), sg.jacobian(x * x, x), feeds, tight=True)
    y = sg.sum(x * x * x)
    check(sg.hessian(y, x, sparse=True), sg.hessian(y, x), feeds, tight=True)
    check(sg.jacobian(y, x, sparse=True), sg.jacobian(y, x), feeds, tight=True)


# Hessians.


def chained_rosenbrock(x: Node) -> Node:
    return sg.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2)


def two_apart(x: Node) -> Node:
    return sg.sum(sg.exp(0.1 * x[2:] * x[:-2])) + sg.sum(sg.sin(x[:-1] * x[1:]))


@pytest.mark.parametrize(("function", "products"), [(chained_rosenbrock, 3), (two_apart, 5)])
def test_a_band_takes_a_handful_of_products(function: Callable[[Node], Node], products: int) -> None:
    g = Graph()
    x = g.input("x", (1000,), sg.float64)
    y = function(x)
    h = sg.hessian(y, x, sparse=True)
    assert h.colors == products
    assert h.shape == (1000, 1000)
    reach = products // 2
    assert h.indices.size == sum(1000 - abs(k) for k in range(-reach, reach + 1))
    point = RNG.uniform(-1, 1, 1000)
    sparse, whole = sg.compile([x], [h, sg.hessian(y, x)])(point)
    np.testing.assert_allclose(sparse.toarray(), whole, rtol=1e-13, atol=1e-13)


def test_an_arrow_takes_two_products() -> None:
    """No two columns of an arrow are apart; a star coloring uses that it is symmetric."""
    g = Graph()
    x = g.input("x", (50,), sg.float64)
    y = sg.sum(x[0] * x[1:] ** 2) + sg.exp(x[0])
    h = sg.hessian(y, x, sparse=True)
    assert h.colors == 2
    check(h, sg.hessian(y, x), {x: RNG.uniform(size=50)}, tight=True)
    assert sg.jacobian(sg.grad(y, x), x, sparse=True).colors == 50


def test_grids_take_as_many_products_as_a_row_has_entries() -> None:
    g = Graph()
    x = g.input("x", (20, 20), sg.float64)
    down, right = x[1:, :-1] - x[:-1, :-1], x[:-1, 1:] - x[:-1, :-1]
    y = sg.sum(sg.sqrt(1.0 + down * down + right * right))
    h = sg.hessian(y, x, sparse=True)
    assert h.colors == np.diff(h.indptr).max() == 7
    stencil = x[2:, 1:-1] + x[:-2, 1:-1] + x[1:-1, 2:] + x[1:-1, :-2] - 4.0 * x[1:-1, 1:-1]
    assert sg.jacobian(sg.exp(stencil), x, sparse=True).colors == 5


def test_linear_terms_have_no_entries() -> None:
    g = Graph()
    x = g.input("x", (8,), sg.float64)
    y = 3.0 * sg.sum(x) + sg.sum(x[:3] * x[5:]) + sg.sum(sg.floor(x) * x)
    h = sg.hessian(y, x, sparse=True)
    entries = [(i, i + 5) for i in range(3)] + [(i + 5, i) for i in range(3)]
    np.testing.assert_array_equal(pattern(h), matrix(8, *entries) != 0)
    assert h.colors == 1
    nothing = sg.hessian(sg.sum(x), x, sparse=True)
    assert (nothing.colors, nothing.indices.size) == (0, 0)
    assert sg.compile([x], nothing)(np.zeros(8)).nnz == 0


def test_a_rule_of_ones_own_need_not_be_symmetric() -> None:
    g = Graph()
    x = g.input("x", (4,), sg.float64)
    odd = sg.custom_gradient(sg.exp, vjp=lambda inputs, out, c: (c * sg.roll(inputs[0], 1),))
    y = sg.sum(odd(x))
    h = sg.hessian(y, x, sparse=True)
    check(h, sg.hessian(y, x), {x: RNG.uniform(size=4)}, tight=True)
    assert not np.array_equal(pattern(h), pattern(h).T)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_modes_of_a_hessian(mode: Any) -> None:
    g = Graph()
    x = g.input("x", (4, 3), sg.float64)
    y = sg.sum(sg.sqrt(1.0 + (x[1:] - x[:-1])[:, :-1] ** 2 + (x[:, 1:] - x[:, :-1])[:-1] ** 2))
    h = sg.hessian(y, x, sparse=True, mode=mode)
    check(h, sg.hessian(y, x), {x: RNG.uniform(size=(4, 3))}, tight=True)


# Coloring.


def lists(mask: Array) -> tuple[Array, Array]:
    rows, columns = np.nonzero(mask)
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=mask.shape[0]))]), columns


@pytest.mark.parametrize("seed", range(20))
def test_columns_of_a_color_share_no_row(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 25, 2))
    mask = rng.random(shape) < rng.choice([0.05, 0.2, 0.6])
    rows = lists(mask)
    columns = transposed(*rows, shape[1])
    np.testing.assert_array_equal(np.concatenate(columns), np.concatenate(lists(mask.T)))
    colors = color_columns(rows, columns)
    intersections: Any = nx.Graph()
    intersections.add_nodes_from(range(shape[1]))
    intersections.add_edges_from(np.argwhere(np.triu(mask.T.astype(int) @ mask, 1)).tolist())
    assert all(colors[i] != colors[j] for i, j in intersections.edges)
    known = [max(nx.greedy_color(intersections, s).values()) for s in ("largest_first", "smallest_last")]
    assert colors.max() <= max(known) + 1


@pytest.mark.parametrize("seed", range(20))
def test_two_colors_are_stars(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 25))
    mask = rng.random((n, n)) < rng.choice([0.05, 0.1, 0.3])
    mask |= mask.T
    colors = color_symmetric(lists(mask))
    graph: Any = nx.from_numpy_array(mask & ~np.eye(n, dtype=bool))
    assert all(colors[i] != colors[j] for i, j in graph.edges)
    for a in range(colors.max() + 1):
        for b in range(a):
            part = graph.subgraph(np.flatnonzero((colors == a) | (colors == b)).tolist())
            for nodes in nx.connected_components(part):
                degrees = sorted(d for _, d in part.subgraph(nodes).degree)
                assert len(nodes) == 1 or degrees == [*[1] * (len(nodes) - 1), len(nodes) - 1]


def test_work_grows_with_the_entries() -> None:
    """Memory for a band of 10,000 variables: a table of all pairs would be 800 MB."""
    g = Graph()
    x = g.input("x", (10000,), sg.float64)
    y = chained_rosenbrock(x)
    tracemalloc.start()
    try:
        h = sg.hessian(y, x, sparse=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert h.colors == 3
    assert peak < 25e6


def test_too_many_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsity, "MOST_ENTRIES", 100)
    g = Graph()
    x = g.input("x", (11,), sg.float64)
    with pytest.raises(sg.GradientError, match="121 entries or more, of at most 100"):
        sg.jacobian(sg.nn.softmax(x), x, sparse=True)
    # The full rows between are never written out.
    assert sg.jacobian(sg.sum(sg.nn.softmax(x) * x), x, sparse=True).shape == (1, 11)


# Results.


def test_matrices_as_outputs() -> None:
    g = Graph()
    x = g.input("x", (5,), sg.float64)
    y = x[1:] - x[:-1] ** 2
    j = sg.jacobian(y, x, sparse=True)
    assert repr(j) == "<SparseMatrix 4 x 5: 8 entries of 2 products>"
    point = np.arange(5.0)
    whole = np.diff(np.eye(5), axis=0) * [1, 1, 1, 1, 1]
    whole[range(4), range(4)] = -2 * point[:4]
    alone = sg.compile([x], j)(point)
    assert isinstance(alone, scipy.sparse.csr_array)
    np.testing.assert_array_equal(alone.toarray(), whole)
    assert alone.has_canonical_format
    together = sg.compile([x], {"y": y, "j": j, "entries": j.data})(point)
    np.testing.assert_array_equal(together["j"].toarray(), whole)
    np.testing.assert_array_equal(together["j"].data, together["entries"])
    np.testing.assert_array_equal(together["y"], point[1:] - point[:-1] ** 2)
    f = sg.compile([x], [j, y])
    entries = np.empty(8)
    first, _ = f(point, out=[entries, np.empty(4)])
    assert np.shares_memory(first.data, entries)
    # A result is the caller's own: changing one changes no other.
    first.indices[:] = 0
    np.testing.assert_array_equal(f(point)[0].toarray(), whole)
    with pytest.raises(ValueError, match="takes values of shape"):
        j.to_scipy(np.zeros(7))
    with pytest.raises(ValueError, match="read-only"):
        j.indices[0] = 1


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Graph()
    x = g.input("x", (5,))
    j = sg.jacobian(x * x, x, sparse=True)
    monkeypatch.setitem(sys.modules, "scipy.sparse", None)
    for use in (lambda: j.to_scipy(np.zeros(5)), lambda: sg.compile([x], j), lambda: sg.compile([x], [j])):
        with pytest.raises(ImportError, match=r"pip install 'symgrad\[sparse\]'"):
            use()
    np.testing.assert_array_equal(sg.compile([x], j.data)(np.ones(5, np.float32)), np.full(5, 2))


def test_what_has_no_derivative() -> None:
    g = Graph()
    x, i = g.input("x", (5,)), g.input("i", (5,), sg.int32)
    b = g.input("b", (5,), sg.bool_)
    for y, wrt in ((x, i), (x, b), (i, x), (x > 0, x)):
        with pytest.raises(sg.GradientError):
            sg.jacobian(y, wrt, sparse=True)
    with pytest.raises(sg.GradientError, match="is not a scalar"):
        sg.hessian(x, x, sparse=True)
    with pytest.raises(sg.GradientError, match="mode must be"):
        sg.jacobian(x, x, sparse=True, mode="sideways")  # pyright: ignore[reportArgumentType, reportCallIssue]


def test_symbolic_extents() -> None:
    g = Graph()
    x, a = g.input("x", ("n",)), g.input("a", (3,))
    for make in (lambda: sg.jacobian(x * x, x, sparse=True), lambda: sg.hessian(sg.sum(x**3), x, sparse=True)):
        with pytest.raises(sg.ShapeError, match="extents that are numbers"):
            make()
    with pytest.raises(sg.ShapeError, match=r"extents that are numbers.*test_sparse.py"):
        sg.jacobian(sg.sum(sg.reshape(a, (3, 1)) * x, axis=1), a, sparse=True)


def test_plan() -> None:
    g = Graph()
    x = g.input("x", (100,), sg.float64)
    plan = sg.plan_derivative(chained_rosenbrock(x), x, sparse=True)
    by_name = {c.name: c for c in plan.costs}
    assert by_name["hessian, sparse: 3 products"].estimate < by_name["hessian, forward over reverse"].estimate / 10
    assert by_name["hessian, sparse: 3 products"].size == 298 * 8
    assert "jacobian, sparse: 1 product " in str(plan)
