# pyright: basic
"""Jacobians and Hessians against closed forms, 50-digit differences and each other; the plan of a derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from precise import mp, precise

import symgrad as sg
from symgrad.graph import Graph, Node, ancestors
from symgrad.optimize import optimize
from symgrad.program import Program, operations
from symgrad.types import bind_extent

Function = Callable[[Node], Node]
POINT = np.array([[0.31, 0.72, 1.13], [1.57, 0.44, 0.95]])
WEIGHTS = np.linspace(-1, 1, 12).reshape(3, 4)


def views(x: Node) -> Node:
    y = sg.reshape(x * x, (3, 2)).T[:, ::2]
    return sg.exp(sg.concat([sg.flip(y, axis=1), sg.broadcast_to(sg.sum(x), (2, 1)) * 0.1], axis=1))


def network(x: Node) -> Node:
    return sg.nn.log_softmax(sg.tanh(x @ WEIGHTS), axis=-1)


# Functions of a (2, 3) node.
FUNCTIONS: list[tuple[str, Function]] = [
    ("elementwise", lambda x: sg.sin(x) * x + sg.exp(x) / (1.0 + x)),
    ("scalar", lambda x: sg.sum(x**3) * sg.log(x[0, 1])),
    ("one element", lambda x: sg.reshape(sg.prod(x), (1, 1))),
    ("product", lambda x: (x * x) @ WEIGHTS),
    ("gram", lambda x: x @ x.T),
    ("outer", lambda x: sg.einsum("ij,kl->ljki", sg.exp(x), WEIGHTS)),
    ("rows apart", lambda x: sg.einsum("bi,bij->bj", sg.sin(x), np.stack([WEIGHTS, WEIGHTS**2]))),
    ("left of a product", lambda x: sg.matmul(WEIGHTS.T, sg.tanh(x).T)),
    ("reshaped", lambda x: sg.reshape(x * x, (3, 2)) @ WEIGHTS[:2] + sg.sum(sg.sqrt(x))),
    ("views", views),
    ("reductions", lambda x: sg.prod(x, axis=0) * sg.max(x, axis=0) + sg.log_sum_exp(x, axis=0)),
    ("chosen", lambda x: sg.where(x > 0.8, sg.exp(x), x * x * x)),
    ("indexed", lambda x: sg.take(x * x, np.array([1, 0, 1, 1]), axis=1)),
    ("statistics", lambda x: sg.var(x, axis=0) + sg.mean(x * x, axis=0)),
    ("network", network),
    ("linear", lambda x: 3.0 * x[1] + x[0, 0]),
    ("cut", lambda x: sg.stop_gradient(x) * x),
    ("phase", lambda x: sg.phase(x, x * x)),
]


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
def test_forward_is_reverse(name: str, function: Function) -> None:
    g = Graph()
    x = g.input("x", (2, 3), sg.float64)
    y = function(x)
    found = {mode: sg.jacobian(y, x, mode=mode) for mode in ("forward", "reverse", None)}
    for node in found.values():
        assert node.type == sg.jacobian(y, x).type
        assert node.shape == y.shape + x.shape
        assert not any((n.name or "").startswith("(") for n in ancestors([node]))
    reverse = sg.evaluate(found["reverse"], {x: POINT})
    np.testing.assert_allclose(sg.evaluate(found["forward"], {x: POINT}), reverse, rtol=1e-12, atol=1e-14)
    f = sg.compile([x], [found["forward"], found["reverse"], found[None]])
    for value in f(POINT):
        np.testing.assert_allclose(value, reverse, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(("name", "function"), FUNCTIONS, ids=[f[0] for f in FUNCTIONS])
def test_jacobian_and_hessian_against_fifty_digits(name: str, function: Function) -> None:
    if name == "cut":
        return  # not the derivative of its value
    g = Graph()
    x = g.input("x", (2, 3), sg.float64)
    y = function(x)
    weights = np.linspace(0.5, 1.5, int(np.prod([int(e) for e in y.shape]))).reshape([int(e) for e in y.shape])
    scalar = sg.sum(y * weights)
    slope = sg.grad(scalar, x)
    hessians = [sg.hessian(scalar, x), sg.hessian(scalar, x, mode="reverse"), sg.jacobian(slope, x)]
    pairs: list[tuple[Node, Node]] = [(y, sg.jacobian(y, x, mode="forward")), (y, sg.jacobian(y, x, mode="reverse"))]
    pairs += [(slope, h) for h in hessians]
    with mp.workdps(60):
        step = mp.mpf(10) ** -15
        moved: dict[tuple[int, int, int], Any] = {}
        for value, derivative in pairs:
            exact = precise(derivative, {x: shifted((0, 0), mp.mpf(0))})
            for place in np.ndindex(2, 3):
                key = (value.id, *place)
                if key not in moved:
                    ahead, behind = (precise(value, {x: shifted(place, s * step)}) for s in (1, -1))
                    moved[key] = (ahead - behind) / (2 * step)
                gap = np.abs(exact[(..., *place)] - moved[key])
                assert np.all(gap <= mp.mpf(10) ** -20 * (1 + np.abs(moved[key]))), (name, place)
    values = sg.evaluate(hessians, {x: POINT})
    for value in (*values, *sg.compile([x], hessians)(POINT)):
        assert value.shape == (2, 3, 2, 3)
        np.testing.assert_allclose(value, values[0], rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(value, value.transpose(2, 3, 0, 1), rtol=1e-10, atol=1e-12)


def shifted(place: tuple[int, ...], step: Any) -> np.ndarray:
    moved = np.frompyfunc(mp.mpf, 1, 1)(POINT)
    moved[place] += step
    return moved


def test_closed_forms() -> None:
    g = Graph()
    x, a, w = g.input("x", ("n",), sg.float64), g.input("a", ("m", "n"), sg.float64), g.input("w", (3,), sg.float64)
    feeds = {x: np.array([0.2, -0.5, 1.1, 0.7]), a: np.linspace(-1, 2, 20).reshape(5, 4), w: np.ones(3)}
    h = np.tanh(feeds[a] @ feeds[x])
    rows: list[tuple[Node, np.ndarray]] = [
        (sg.jacobian(a @ x, x), feeds[a]),
        (sg.jacobian(sg.tanh(a @ x), x, mode="forward"), (1 - h * h)[:, None] * feeds[a]),
        (sg.jacobian(sg.tanh(a @ x), x, mode="reverse"), (1 - h * h)[:, None] * feeds[a]),
        (sg.jacobian(x * x, x), np.diag(2 * feeds[x])),
        (sg.hessian(sg.sum(a @ (x * x)), x), np.diag(2 * feeds[a].sum(0))),
        (sg.hessian(sg.sum(sg.square(a @ x)), x), 2 * feeds[a].T @ feeds[a]),
        (sg.jacobian(sg.sum(x), a), np.zeros((5, 4))),
        (sg.hessian(sg.sum(x), x), np.zeros((4, 4))),
        (sg.jacobian(sg.einsum("i,j->ij", x, w), w), np.einsum("i,jk->ijk", feeds[x], np.eye(3))),
    ]
    for node, expected in rows:
        found = sg.evaluate(node, feeds, sizes={"n": 4, "m": 5})
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-15)
    f = sg.compile([x, a, w], [node for node, _ in rows])
    for found, (_, expected) in zip(f(*feeds.values()), rows, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)


def test_linear_is_exact() -> None:
    """The Jacobian of a product is the matrix itself, whatever is in it, and takes no arithmetic."""
    g = Graph()
    x, a = g.input("x", (3,), sg.float64), g.input("a", (4, 3), sg.float64)
    value = np.array([[1.0, np.inf, 3.0], [np.nan, -0.0, 1e300], [1, 2, 3], [4, 5, 6]])
    for mode in ("forward", "reverse"):
        node = sg.jacobian(a @ x, x, mode=mode)
        np.testing.assert_array_equal(sg.evaluate(node, {a: value}), value)
        assert not [n for n in ancestors([node]) if n.op.name == "contract"]


def test_constant_and_cut_functions() -> None:
    g = Graph()
    x, z = g.input("x", (3,), sg.float64), g.input("z", (2,), sg.float64)
    constants = [sg.exp(z), sg.stop_gradient(sg.exp(x)), sg.floor(x), sg.astype(sg.astype(x, sg.int32), sg.float64)]
    for y in (*constants, g.const(np.ones(4)), g.const(2.0)):
        for mode in ("forward", "reverse", None):
            j = sg.jacobian(y, x, mode=mode)
            assert j.shape == (*y.shape, 3)
            np.testing.assert_array_equal(sg.evaluate(j, {x: np.ones(3), z: np.ones(2)}), np.zeros((*y.shape, 3)))
    for mode in ("forward", "reverse"):
        second = sg.hessian(sg.sum(3.0 * x), x, mode=mode)
        np.testing.assert_array_equal(sg.evaluate(second, {x: np.ones(3)}), np.zeros((3, 3)))


@pytest.mark.parametrize("shape", [(), (0,), (1,), (1, 1), (2, 0), (0, 1), (2, 1)])
def test_small_extents(shape: tuple[int, ...]) -> None:
    g = Graph()
    x = g.input("x", shape, sg.float64)
    s = g.input("s", ("n",) * len(shape), sg.float64)
    point = np.full(shape, 0.7)
    count = point.size
    for node in (x, s):
        feeds = {node: point}
        for mode in ("forward", "reverse", None):
            j = sg.jacobian(sg.sin(node) * 2.0, node, mode=mode)
            assert j.shape == node.shape * 2
            if node is s and len(set(shape)) > 1:
                continue  # one name, one extent
            expected = (np.eye(count) * 2 * np.cos(0.7)).reshape(shape + shape)
            np.testing.assert_allclose(sg.evaluate(j, feeds), expected, rtol=1e-14)
            np.testing.assert_allclose(sg.compile([node], j)(point), expected, rtol=1e-12)
        if node is s and len(set(shape)) > 1:
            continue
        for mode in ("forward", "reverse"):
            h = sg.hessian(sg.sum(sg.exp(node)), node, mode=mode)
            expected = (np.eye(count) * np.exp(0.7)).reshape(shape + shape)
            np.testing.assert_allclose(sg.compile([node], h)(point), expected, rtol=1e-12)


def test_lists_and_intermediate_nodes() -> None:
    g = Graph()
    x, b = g.input("x", (3,), sg.float64), g.input("b", (2,), sg.float64)
    h = sg.exp(x)
    y = sg.concat([h * x, b * b], axis=0)
    feeds = {x: np.array([0.1, 0.2, 0.3]), b: np.array([1.0, 2.0])}
    for mode in ("forward", "reverse", None):
        jh, jb, jx = sg.jacobian(y, [h, b, x], mode=mode)
        assert [j.shape for j in (jh, jb, jx)] == [(5, 3), (5, 2), (5, 3)]
        found = sg.evaluate([jh, jb, jx], feeds)
        np.testing.assert_allclose(found[0][:3], np.diag(feeds[x]), rtol=1e-14)
        np.testing.assert_allclose(found[1][3:], np.diag(2 * feeds[b]), rtol=1e-14)
        np.testing.assert_allclose(found[2][:3], np.diag((1 + feeds[x]) * np.exp(feeds[x])), rtol=1e-14)
    blocks = sg.hessian(sg.sum(x) * sg.sum(b * b), [x, b])
    assert [[k.shape for k in row] for row in blocks] == [[(3, 3), (3, 2)], [(2, 3), (2, 2)]]
    found = sg.evaluate([k for row in blocks for k in row], feeds)
    np.testing.assert_allclose(found[1], np.tile(2 * feeds[b], (3, 1)), rtol=1e-14)
    np.testing.assert_allclose(found[2], found[1].T, rtol=1e-14)
    np.testing.assert_allclose(found[3], 2 * feeds[x].sum() * np.eye(2), rtol=1e-14)


def test_higher_orders() -> None:
    """The derivative of a Hessian, and Jacobians within vmap."""
    g = Graph()
    x = g.input("x", (3,), sg.float64)
    point = np.array([0.3, 0.9, 1.4])
    third = sg.jacobian(sg.hessian(sg.sum(x) ** 3 + sg.sum(sg.sin(x)), x), x)
    expected = np.full((3, 3, 3), 6.0)
    expected[range(3), range(3), range(3)] -= np.cos(point)
    np.testing.assert_allclose(sg.compile([x], third)(point), expected, rtol=1e-12)
    rows = g.input("rows", ("n", 3), sg.float64)
    each = sg.vmap(lambda row: sg.hessian(sg.prod(row), row))(rows)
    found = sg.compile([rows], each)(np.stack([point, point * 2]))
    a, b, c = point
    single = np.array([[0, c, b], [c, 0, a], [b, a, 0]])
    np.testing.assert_allclose(found, np.stack([single, single * 2]), rtol=1e-12)
    slopes = sg.vmap(lambda row: sg.jacobian(sg.sin(row) * sg.sum(row), row))(rows)
    whole = sg.jacobian(sg.sin(x) * sg.sum(x), x)
    np.testing.assert_allclose(sg.evaluate(slopes, {rows: point[None]})[0], sg.evaluate(whole, {x: point}))


def test_logistic_regression() -> None:
    rng = np.random.default_rng(2)
    g = Graph()
    x, t = g.input("x", ("rows", 100), sg.float64), g.input("t", ("rows",), sg.float64)
    w = g.param("w", rng.standard_normal(100) * 0.1)
    z = x @ w
    loss = sg.sum(sg.nn.softplus(z) - t * z)
    a, labels = rng.standard_normal((1000, 100)), (rng.random(1000) > 0.5).astype(np.float64)
    p = 1 / (1 + np.exp(-a @ w.value))
    expected = a.T @ (a * (p * (1 - p))[:, None])
    second = sg.hessian(loss, w)
    np.testing.assert_allclose(sg.compile([x, t], second)(a, labels), expected, rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(sg.evaluate(second, {x: a, t: labels}), expected, rtol=1e-12, atol=1e-10)
    assert len([n for n in ancestors([second]) if n.op.name == "contract"]) <= 2
    slope = sg.compile([x, t], sg.jacobian(loss, w))(a, labels)
    np.testing.assert_allclose(slope, a.T @ (p - labels), rtol=1e-11, atol=1e-10)


def test_cheaper_mode_is_chosen() -> None:
    g = Graph()
    x, z, n = g.input("x", (3,), sg.float64), g.input("z", (50,), sg.float64), g.input("n", ("n", 20), sg.float64)
    narrow, wide = g.input("narrow", (20, 3), sg.float64), g.input("wide", (20, 50), sg.float64)
    plan = sg.plan_derivative(x, x)
    cases: list[tuple[Node, Node, Node, Any]] = [
        (wide.T, narrow, x, "forward"),
        (narrow.T, wide, z, "reverse"),
        (n, narrow, x, "forward"),
    ]
    for second, first, argument, choice in cases:
        y = sg.tanh(second @ sg.sin(first @ argument))
        plan = sg.plan_derivative(y, argument)
        assert plan.choice == choice
        by_name = {c.name: c for c in plan.costs}
        assert set(by_name) == {"jacobian, forward", "jacobian, reverse"}
        assert by_name[f"jacobian, {choice}"].estimate == min(c.estimate for c in plan.costs)
        assert sg.jacobian(y, argument) is sg.jacobian(y, argument, mode=choice)
        assert plan.hessian_choice is None
    best = plan.costs[1]
    assert best.size == 24 * n.shape[0]
    assert bind_extent(best.operations, {"n": 100}) == best.estimate
    assert "symbolic extents count as 100" in str(plan)


def test_diagonals_cost_no_products_with_zeros() -> None:
    """A one in a row of zeros is followed as a diagonal: no operation is counted for the zeros."""
    g = Graph()
    x, a = g.input("x", (100,), sg.float64), g.input("a", (1000, 100), sg.float64)
    y = sg.tanh(a @ sg.sin(x))
    for mode in ("forward", "reverse"):
        assert sum(int(operations(n)) for n in ancestors([sg.jacobian(y, x, mode=mode)])) < 1_000_000
    column = sg.jacobian(sg.sum(sg.sin(x) * x), x, mode="forward")
    assert sum(int(operations(n)) for n in ancestors([column])) <= 600
    chosen = sg.jacobian(sg.where(x > 0.0, sg.log(x), x), x, mode="reverse")
    point = np.linspace(-1, 1, 100)
    slope = np.where(point > 0, 1 / np.where(point > 0, point, 1), 1)
    np.testing.assert_array_equal(sg.evaluate(chosen, {x: point}), np.diag(slope))
    at_zero = sg.evaluate(sg.jacobian(sg.sqrt(x), x), {x: np.zeros(100)})
    np.testing.assert_array_equal(at_zero, np.where(np.eye(100) == 1, np.inf, 0))


def test_plan() -> None:
    g = Graph()
    x, a = g.input("x", (10,), sg.float64), g.input("a", (20, 10), sg.float64)
    loss = sg.sum(sg.log1p(sg.exp(a @ x)))
    plan = sg.plan_derivative(loss, x)
    before = len(g.nodes)
    assert sg.plan_derivative(loss, x) == plan
    assert sg.jacobian(loss, x).shape == (10,)
    assert sg.hessian(loss, x).shape == (10, 10)
    assert len(g.nodes) == before, "the nodes of the plan are those of the derivatives"
    assert plan.choice == "reverse"
    lines = str(plan).splitlines()
    assert lines[0].startswith("derivatives of sum float64[]")
    assert "input 'x' float64[10]" in lines[0]
    assert lines[1].split() == ["derivative", "operations", "nodes", "bytes"]
    assert len({len(line) for line in lines[1:6]}) == 1
    assert [line.split("  ")[1] for line in lines[2:6]] == [
        "jacobian, reverse",
        "jacobian, forward",
        "hessian, forward over reverse",
        "hessian, reverse over reverse",
    ]
    assert lines[6] == "  jacobian: reverse"
    assert lines[7] == f"  hessian: {plan.hessian_choice}"
    assert plan.costs[2].size == 800
    with pytest.raises(AttributeError):
        plan.choice = "forward"  # pyright: ignore[reportAttributeAccessIssue]


def test_data_types() -> None:
    g = Graph()
    x = g.input("x", (3,))
    y = sg.astype(x, sg.float64) * 2.0
    for mode in ("forward", "reverse"):
        j = sg.jacobian(y, x, mode=mode)
        np.testing.assert_array_equal(sg.evaluate(j, {x: np.ones(3, np.float32)}), 2 * np.eye(3))
    assert sg.hessian(sg.sum(x * x), x).dtype is sg.float32


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_optimizer_keeps_the_meaning(mode: Any) -> None:
    g = Graph()
    x = g.input("x", (2, 3), sg.float64)
    j = sg.jacobian(network(x), x, mode=mode)
    expected = sg.evaluate(j, {x: POINT})
    for rules in (True, False):
        better = optimize(Program(g, (x,), (j,)), "infer", rules=rules)
        found = sg.evaluate(better.outputs[0], {better.inputs[0]: POINT})
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)


def test_errors() -> None:
    g, other = Graph(), Graph()
    x, k = g.input("x", (3,)), g.input("k", (3,), sg.int32)
    z = other.input("z", (3,))
    y = x * x
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (sg.GradientError, "jacobian: no derivative with respect to input 'k'", lambda: sg.jacobian(y, k)),
        (sg.GradientError, "jacobian: input 'k'.*only floating nodes", lambda: sg.jacobian(k, x)),
        (sg.GradientError, "is a constant", lambda: sg.jacobian(y, g.const(1.0))),
        (sg.GradientError, "got ndarray", lambda: sg.jacobian(np.ones(3), x)),  # pyright: ignore[reportArgumentType, reportCallIssue]
        (sg.GradientError, "with respect to nodes", lambda: sg.jacobian(y, [1.0])),  # pyright: ignore[reportArgumentType, reportCallIssue]
        (sg.GradientError, "mode must be", lambda: sg.jacobian(y, x, mode="backward")),  # pyright: ignore[reportArgumentType, reportCallIssue]
        (sg.GradientError, "mode must be", lambda: sg.hessian(sg.sum(y), x, mode="both")),  # pyright: ignore[reportArgumentType, reportCallIssue]
        (sg.GraphError, "jacobian: input 'z'.*belongs to", lambda: sg.jacobian(y, z)),
        (sg.GradientError, "hessian: .* is not a scalar", lambda: sg.hessian(y, x)),
        (
            sg.GradientError,
            "plan_derivative: no derivative",
            lambda: sg.plan_derivative(y, k),
        ),
    ]
    for kind, text, call in cases:
        with pytest.raises(kind, match=text):
            call()
