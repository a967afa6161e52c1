"""Symbolic extents: unified by name, decided at the call, with gradients in the shapes of the call."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph, Node


def ramp(*shape: int) -> np.ndarray:
    return np.linspace(-1, 2, int(np.prod(shape)), dtype=np.float32).reshape(shape)


def test_names_unify_across_inputs() -> None:
    graph = Graph()
    x, y = graph.input("x", ("n", 3)), graph.input("y", (3, "n"))
    assert x.shape[0] == y.shape[1]
    f = sg.compile([x, y], [x @ y, x + y.T])
    for n in (1, 4, 2):
        a, b = ramp(n, 3), ramp(3, n)
        np.testing.assert_allclose(f(a, b)[0], a @ b, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(f(a, b)[1], a + b.T)
    says = r"input 'y' .*\(test_specialization\.py:\d+\): dimension 1 must be n = 4 \(n = 4 from .* input 'x'\), got 5"
    with pytest.raises(sg.ShapeError, match=says):
        f(ramp(4, 3), ramp(3, 5))
    with pytest.raises(sg.ShapeError, match=r"input 'x' .*test_specialization.*dimension 1 must be 3, got 2"):
        f(ramp(4, 2), ramp(3, 4))
    with pytest.raises(sg.ShapeError, match=r"input 'x' .*expected shape \(n, 3\), got \(4\)"):
        f(ramp(4), ramp(3, 4))


def test_expressions_of_extents() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    (n,) = x.shape
    odd, half, square = graph.input("odd", (2 * n + 1,)), graph.input("half", (n // 2,)), graph.input("sq", (n * n,))
    f = sg.compile([x, odd, half, square], [sg.sum(odd[: 2 * n] * sg.concat([x, x])), sg.sum(half), sg.sum(square)])
    for size in (0, 1, 2, 5):
        given = [ramp(size), ramp(2 * size + 1), ramp(size // 2), ramp(size * size)]
        got = f(*given)
        np.testing.assert_allclose(got[0], (given[1][: 2 * size] * np.tile(given[0], 2)).sum(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[1:], [given[2].sum(), given[3].sum()], rtol=1e-5, atol=1e-6)
    for position, size, says in [
        (1, 8, r"'odd'.*dimension 0 must be 2\*n \+ 1 = 7 \(n = 3 from dimension 0 of input 'x'\), got 8"),
        (2, 2, r"'half'.*dimension 0 must be \(n // 2\) = 1 .*got 2"),
        (3, 8, r"'sq'.*must be n\*\*2 = 9 .*got 8"),
    ]:
        given = [ramp(3), ramp(7), ramp(1), ramp(9)]
        given[position] = ramp(size)
        with pytest.raises(sg.ShapeError, match=says):
            f(*given)
    alone = sg.compile([odd], sg.sum(odd))
    assert float(alone(np.ones(5, np.float32))) == 5
    with pytest.raises(sg.ShapeError, match=r"'odd'.*2\*n \+ 1, and no n of at least 0 makes that 4"):
        alone(np.ones(4, np.float32))
    with pytest.raises(sg.ShapeError, match=r"'half'.*does not tell n"):
        sg.compile([half], half)(np.ones(2, np.float32))


BINARY: dict[str, Callable[[Node, Node], Node]] = {
    "product": lambda x, y: x * y * y,
    "quotient": lambda x, y: x / (2.5 + y),
    "where": lambda x, y: sg.where(x > y, x * y, y),
    "maximum": lambda x, y: sg.maximum(x, y) * x,
    "tanh of sum": lambda x, y: sg.tanh(x + y),
}


@pytest.mark.parametrize("case", BINARY)
def test_unknown_extents_broadcast_at_the_call(case: str) -> None:
    graph = Graph()
    x, y = graph.input("x", ("n",)), graph.input("y", ("m",))
    out = BINARY[case](x, y)
    loss = sg.sum(out * out)
    f = sg.compile([x, y], [out, *sg.grad(loss, [x, y])])
    for n, m in ((3, 3), (1, 3), (3, 1), (1, 1), (0, 1), (1, 0), (0, 0)):
        a, b = ramp(n), ramp(m)[::-1] * 0.9
        got, dx, dy = f(a, b)
        want = sg.evaluate(out, {x: a, y: b})
        assert got.shape == np.broadcast_shapes((n,), (m,))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
        # The gradient with respect to a repeated operand is the sum of those of its copies.
        wide_x, wide_y = np.broadcast_to(a, got.shape), np.broadcast_to(b, got.shape)
        _, wide_dx, wide_dy = f(wide_x, wide_y) if got.size else (0, dx, dy)
        np.testing.assert_allclose(dx, wide_dx if n == got.size else wide_dx.sum(keepdims=True), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dy, wide_dy if m == got.size else wide_dy.sum(keepdims=True), rtol=1e-5, atol=1e-6)
    for n, m in ((2, 3), (0, 2)):
        with pytest.raises(sg.ShapeError, match=rf"test_specialization\.py:\d+.*(m = {m}|n = {n}).*do not broadcast"):
            f(ramp(n), ramp(m))


def test_unknown_extents_broadcast_in_two_dimensions() -> None:
    graph = Graph()
    x, y, z = graph.input("x", ("a", "b")), graph.input("y", ("c", "d")), graph.input("z", ("d",))
    loss = sg.sum(sg.tanh(x + y) * z)
    f = sg.compile([x, y, z], [loss, *sg.grad(loss, [x, y, z])])
    rng = np.random.default_rng(0)
    for shape_x, shape_y in (((3, 4), (3, 4)), ((1, 4), (3, 4)), ((3, 1), (1, 4)), ((3, 4), (1, 1)), ((1, 1), (5, 1))):
        a, b = (rng.standard_normal(s).astype(np.float32) for s in (shape_x, shape_y))
        c = rng.standard_normal(shape_y[1]).astype(np.float32)
        value, *grads = f(a, b, c)
        np.testing.assert_allclose(value, (np.tanh(a + b) * c).sum(), rtol=1e-5, atol=1e-5)
        slope = (1 - np.tanh(a + b) ** 2) * c
        wanted = [fold(slope, a.shape), fold(slope, b.shape), fold(np.tanh(a + b) * np.ones_like(c), c.shape)]
        for got, want in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def fold(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The sum over what broadcasting repeats."""
    array = array.sum(axis=tuple(range(array.ndim - len(shape))))
    return array.sum(axis=tuple(k for k, e in enumerate(shape) if e == 1), keepdims=True).reshape(shape)


def test_unknown_against_a_number() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    out = x + np.arange(4, dtype=np.float32)
    f = sg.compile([x], [out, sg.grad(sg.sum(out * out), x)])
    np.testing.assert_array_equal(f(np.ones(4, np.float32))[0], [1, 2, 3, 4])
    value, slope = f(np.ones(1, np.float32))
    np.testing.assert_array_equal(value, [1, 2, 3, 4])
    np.testing.assert_array_equal(slope, [20])
    with pytest.raises(sg.ShapeError, match=r"test_specialization\.py:\d+.*n = 3.*does not broadcast to \(4"):
        f(np.ones(3, np.float32))


def test_shapes_as_arguments() -> None:
    graph = Graph()
    x = graph.input("x", ("n", 6))
    (n, m) = x.shape
    cases: list[tuple[Node, Callable[[np.ndarray], np.ndarray]]] = [
        (sg.reshape(x, (n * 2, 3)), lambda a: a.reshape(-1, 3)),
        (sg.reshape(x, (n * m,)), lambda a: a.reshape(-1)),
        (sg.reshape(x, (-1, n)), lambda a: a.reshape(6, -1) if a.size else a.reshape(6, 0)),
        (sg.reshape(x, (n, 2, -1)), lambda a: a.reshape(len(a), 2, 3)),
        (sg.arange(graph, n), lambda a: np.arange(len(a))),
        (sg.expand_dims(sg.arange(graph, n), 1) * x, lambda a: np.arange(len(a), dtype=np.float32)[:, None] * a),
        (sg.zeros(graph, (2 * n + 1, n)), lambda a: np.zeros((2 * len(a) + 1, len(a)), np.float32)),
        (sg.eye(graph, n), lambda a: np.eye(len(a), dtype=np.float32)),
        (sg.ones_like(x), np.ones_like),
        (x * n, lambda a: a * np.float32(len(a))),
        (sg.sum(x) / (n * m), lambda a: a.sum() / np.float32(a.size)),
        (sg.concat([x, x[::-1]]), lambda a: np.concatenate([a, a[::-1]])),
        (x[: n // 2], lambda a: a[: len(a) // 2]),
        (x[::2], lambda a: a[::2]),
        (x.T @ x, lambda a: a.T @ a),
    ]  # fmt: skip
    f = sg.compile([x], [node for node, _ in cases])
    for size in (1, 2, 5):
        given = ramp(size, 6)
        for got, (_, want) in zip(f(given), cases, strict=True):
            np.testing.assert_allclose(got, want(given), rtol=1e-5, atol=1e-5)
            assert got.dtype == want(given).dtype


@pytest.mark.parametrize("axis", [0, 1, None, (0, 1)])
def test_mean_over_symbolic_axes(axis: int | tuple[int, ...] | None) -> None:
    graph = Graph()
    x = graph.input("x", ("n", "m"))
    mean, spread = sg.mean(x, axis=axis), sg.var(x, axis=axis)
    f = sg.compile([x], [mean, spread, sg.grad(sg.sum(mean * mean), x)])
    for shape in ((3, 4), (1, 5), (4, 1)):
        a = ramp(*shape)
        got = f(a)
        np.testing.assert_allclose(got[0], a.mean(axis=axis), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got[1], a.var(axis=axis), rtol=1e-4, atol=1e-6)
        full = a.mean(axis=axis, keepdims=True)
        np.testing.assert_allclose(got[2], np.broadcast_to(2 * full * full.size / a.size, shape), rtol=1e-4, atol=1e-6)


def test_sizes_that_do_not_fit_name_the_line() -> None:
    graph = Graph()
    x, y = graph.input("x", ("n",)), graph.input("y", ("m",))
    given = (np.ones(3, np.float32), np.ones(2, np.float32))
    for node, says in [
        (x @ y, "3.*2"),
        (sg.stack([x, y]), "differ: 3, 2"),
        (sg.reshape(x, (2, x.shape[0] // 2)), "7|3 elements"),
        (x[:5], "0:5:1"),
        (x[4], "3"),
        (sg.roll(x, 1) + y, "broadcast"),
    ]:
        line = node.loc.line if node.loc is not None else 0
        with pytest.raises(sg.ShapeError, match=rf"test_specialization\.py:{line}.*n = 3") as caught:
            sg.compile([x, y], node)(*given)
        assert re.search(says, str(caught.value))
        # The function is still good for sizes that fit.
    fits = sg.compile([x, y], x @ y)
    with pytest.raises(sg.ShapeError):
        fits(*given)
    assert fits(np.ones(2, np.float32), np.ones(2, np.float32)) == 2


def test_extents_say_what_they_are() -> None:
    graph = Graph()
    (n,) = graph.input("x", ("n",)).shape
    for ask in (int, float, range, np.zeros, lambda d: [1, 2][d], lambda d: d / 2, lambda d: d < 3):
        with pytest.raises(TypeError):
            ask(n)
    with pytest.raises(TypeError, match="extent n is symbolic"):
        int(n)
    assert (n + n, str(2 * n + 1), n - n, (2 * n) // 2 == n) == (2 * n, "2*n + 1", 0, True)


def test_extent_no_input_tells() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    f = sg.compile([], sg.zeros(graph, x.shape))
    with pytest.raises(sg.ShapeError, match=r"test_specialization\.py:\d+.*'n'.*not known"):
        f()


def test_large_symbolic_batches_in_parallel() -> None:
    graph = Graph()
    x, w = graph.input("x", ("n", 32)), graph.param("w", ramp(32, 8))
    loss = sg.mean(sg.tanh(x @ w))
    step = sg.compile([x], [loss, sg.grad(loss, w)], threads=2)
    alone = sg.compile([x], [loss, sg.grad(loss, w)], threads=1)
    for n in (1, 1000, 4097):
        a = np.random.default_rng(n).standard_normal((n, 32)).astype(np.float32)
        for one, other in zip(step(a), alone(a), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(step(a)[0], np.tanh(a @ w.value).mean(), rtol=1e-4, atol=1e-6)
