"""Layers, activations and losses against NumPy formulas, interpreted and compiled, and their derivatives."""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

import symgrad as sg
from tests.oracles import check_derivatives, derive

POINTS = np.array([-30.0, -4.0, -1.1, -0.3, -1e-6, 0.0, 1e-6, 0.3, 1.1, 4.0, 7.0, 30.0])

ACTIVATIONS: dict[str, tuple[Callable[[sg.Node], sg.Node], Callable[[Any], Any]]] = {
    "softsign": (sg.nn.softsign, lambda x: x / (1 + np.abs(x))),
    "relu6": (sg.nn.relu6, lambda x: np.clip(x, 0, 6)),
    "hard_tanh": (sg.nn.hard_tanh, lambda x: np.clip(x, -1, 1)),
    "hard_sigmoid": (sg.nn.hard_sigmoid, lambda x: np.clip(x / 6 + 0.5, 0, 1)),
    "hard_swish": (sg.nn.hard_swish, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "selu": (
        sg.nn.selu,
        lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    ),
    "mish": (sg.nn.mish, lambda x: x * np.tanh(np.logaddexp(x, 0))),
}


def both(outputs: Any, feeds: dict[sg.Node, np.ndarray], phase: str = "infer") -> list[np.ndarray]:
    """Values from the interpreter, after a look that compiled ones agree."""
    nodes = list(outputs) if isinstance(outputs, list | tuple) else [outputs]
    meant = sg.evaluate(nodes, feeds, phase=phase)  # pyright: ignore[reportArgumentType, reportCallIssue]
    made = sg.compile(list(feeds), tuple(nodes), phase=phase)  # pyright: ignore[reportArgumentType]
    for got, want in zip(made(*feeds.values()), meant, strict=True):
        tolerance = 1e-11 if got.dtype == np.float64 else 1e-5
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
    return meant


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 5e-6)])
def test_activations(name: str, dtype: str, tolerance: float) -> None:
    build, formula = ACTIVATIONS[name]
    g = sg.Graph()
    x = g.input("x", ("n",), dtype)
    data = POINTS.astype(dtype)
    (values,) = both(build(x), {x: data})
    assert values.dtype == dtype
    np.testing.assert_allclose(values, formula(data.astype(np.float64)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_of_activations(name: str) -> None:
    g = sg.Graph()
    data = POINTS[(np.abs(POINTS) > 1e-3) & (np.abs(POINTS) < 10)]
    x = g.input("x", data.shape, "float64")
    check_derivatives([derive([x], [data], ACTIVATIONS[name][0](x), 2)])


@pytest.mark.parametrize("axis", [0, -1])
def test_glu(axis: int) -> None:
    g = sg.Graph()
    x = g.input("x", (4, 6), "float64")
    data = np.random.default_rng(0).standard_normal((4, 6))
    a, b = np.split(data, 2, axis)
    np.testing.assert_allclose(both(sg.nn.glu(x, axis), {x: data})[0], a * special.expit(b), rtol=1e-13)
    check_derivatives([derive([x], [data], sg.nn.glu(x, axis), 2)])


def test_corners_have_the_gradients_of_the_table() -> None:
    g = sg.Graph()
    x = g.input("x", (2,), "float64")
    for make, ends in ((sg.nn.relu6, (0, 6)), (sg.nn.hard_tanh, (-1, 1)), (sg.nn.hard_sigmoid, (-3, 3))):
        slopes = sg.evaluate(sg.grad(sg.sum(make(x)), x), {x: np.array(ends, np.float64)})
        np.testing.assert_array_equal(slopes, [0, 0])


# Losses.


def test_nll_is_the_cross_entropy_of_log_softmax() -> None:
    rng = np.random.default_rng(1)
    g = sg.Graph()
    x, t = g.input("x", ("n", 5, 3), "float64"), g.input("t", ("n", 3), "int32")
    logits, labels = rng.standard_normal((4, 5, 3)), rng.integers(-5, 5, (4, 3)).astype(np.int32)
    loss = sg.nn.nll(sg.nn.log_softmax(x, 1), t, 1)
    slope = sg.grad(sg.sum(loss), x)
    wide = special.log_softmax(logits, 1)
    values, slopes = both([loss, slope], {x: logits, t: labels})
    np.testing.assert_allclose(values, -np.take_along_axis(wide, labels[:, None] % 5, 1)[:, 0], rtol=1e-12)
    hot = np.moveaxis(np.eye(5)[labels], -1, 1)
    np.testing.assert_allclose(slopes, np.exp(wide) - hot, rtol=1e-10, atol=1e-12)
    with pytest.raises(IndexError):
        sg.evaluate(loss, {x: logits, t: labels + 6})


def test_kl_div() -> None:
    rng = np.random.default_rng(2)
    g = sg.Graph()
    q, p = g.input("q", (3, 4), "float64"), g.input("p", (3, 4), "float64")
    weights = rng.dirichlet(np.ones(4), 3)
    weights[0, 1] = 0
    logs = np.log(rng.dirichlet(np.ones(4), 3))
    loss = sg.nn.kl_div(q, p)
    by_q, by_p = sg.grad(sg.sum(loss), [q, p])
    values, slope_q, slope_p = both([loss, by_q, by_p], {q: logs, p: weights})
    np.testing.assert_allclose(values, special.rel_entr(weights, np.exp(logs)), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(slope_q, -weights, rtol=1e-12)
    assert np.isfinite(slope_p).all()


def test_margins_and_distances() -> None:
    rng = np.random.default_rng(3)
    g = sg.Graph()
    s, t = g.input("s", (6,), "float64"), g.input("t", (6,), "float64")
    scores, targets = np.array([-2.0, -1, 0.3, 0.9, 1, 3]), np.array([1.0, -1, 1, -1, 1, -1])
    margin = np.maximum(0, 1 - scores * targets)
    far = np.abs(scores - targets)
    outs = [sg.nn.hinge(s, t), sg.nn.squared_hinge(s, t), sg.nn.l1(s, t), sg.nn.smooth_l1(s, t, 0.5)]
    got = both(outs, {s: scores, t: targets})
    want = [margin, margin**2, far.mean(), np.where(far < 0.5, far**2, far - 0.25)]
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)
    slope = sg.grad(sg.sum(outs[0]), s)
    np.testing.assert_array_equal(sg.evaluate(slope, {s: scores, t: targets}), [-1, 0, -1, 1, 0, 1])
    data = rng.standard_normal(6)
    for out in outs[1:]:
        check_derivatives([derive([s, t], [data, targets], out, 2)])


@pytest.mark.parametrize("axis", [0, -1])
def test_cosine_similarity(axis: int) -> None:
    rng = np.random.default_rng(4)
    g = sg.Graph()
    a, b = g.input("a", (3, 4), "float64"), g.input("b", (3, 4), "float64")
    one, two = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    y = sg.nn.cosine_similarity(a, b, axis)
    norms = np.linalg.norm(one, axis=axis) * np.linalg.norm(two, axis=axis)
    np.testing.assert_allclose(both(y, {a: one, b: two})[0], (one * two).sum(axis) / norms, rtol=1e-12)
    check_derivatives([derive([a, b], [one, two], y, 2)])
    np.testing.assert_allclose(both(y, {a: one * 1e200, b: two * 1e-6})[0], (one * two).sum(axis) / norms, rtol=1e-12)
    zero = np.zeros((3, 4))
    slope = sg.grad(sg.sum(y), a)
    values, slopes = both([y, slope], {a: zero, b: two})
    assert not values.any()
    assert np.isfinite(slopes).all()


# Normalization.


@pytest.mark.parametrize(("shape", "groups"), [((2, 6), 3), ((2, 4, 3, 5), 2), ((3, 4, 5), 4), ((2, 3, 2), 1)])
def test_group_norm(shape: tuple[int, ...], groups: int) -> None:
    rng = np.random.default_rng(5)
    data, gamma, beta = rng.standard_normal(shape) + 3, rng.standard_normal(shape[1]), rng.standard_normal(shape[1])
    parts = data.reshape(shape[0], groups, -1)
    normal = (parts - parts.mean(-1, keepdims=True)) / np.sqrt(parts.var(-1, keepdims=True) + 1e-5)
    spread = (1, -1, *(1,) * (len(shape) - 2))
    g = sg.Graph()
    x = g.input("x", ("n", *shape[1:]), "float64")
    c, b = g.input("gamma", (shape[1],), "float64"), g.input("beta", (shape[1],), "float64")
    y = sg.nn.group_norm(x, groups, c, b)
    want = normal.reshape(shape) * gamma.reshape(spread) + beta.reshape(spread)
    np.testing.assert_allclose(both(y, {x: data, c: gamma, b: beta})[0], want, rtol=1e-10, atol=1e-11)
    fixed = sg.Graph()
    x, c = fixed.input("x", shape, "float64"), fixed.input("gamma", (shape[1],), "float64")
    check_derivatives([derive([x, c], [data, gamma], sg.nn.group_norm(x, groups, c), 2)])


@pytest.mark.parametrize(("shape", "axis"), [((7, 3), 1), ((4, 3, 2, 5), 1), ((4, 2, 5, 3), -1)])
def test_batch_norm(shape: tuple[int, ...], axis: int) -> None:
    rng = np.random.default_rng(6)
    g = sg.Graph()
    x = g.input("x", ("n", *shape[1:]), "float64")
    mean, var = g.state("mean", np.array([1.0, 2, 3])), g.state("var", np.array([1.0, 2, 0.5]))
    gamma, beta = g.param("gamma", rng.standard_normal(3)), g.param("beta", rng.standard_normal(3))
    y, running = sg.nn.batch_norm(x, gamma, beta, mean, var, momentum=0.2, axis=axis)
    train = sg.compile([x], y, updates=running)
    infer = sg.compile([x], y)
    data = rng.standard_normal(shape) * 2 + 1
    over = tuple(k for k in range(len(shape)) if k != axis % len(shape))
    spread = tuple(3 if k == axis % len(shape) else 1 for k in range(len(shape)))

    def normal(m: np.ndarray, v: np.ndarray) -> np.ndarray:
        wide = [a.reshape(spread) for a in (m, v, gamma.value, beta.value)]
        return (data - wide[0]) / np.sqrt(wide[1] + 1e-5) * wide[2] + wide[3]

    np.testing.assert_allclose(infer(data), normal(mean.value, var.value), rtol=1e-11, atol=1e-11)
    wanted_mean = 0.8 * mean.value + 0.2 * data.mean(over)
    wanted_var = 0.8 * var.value + 0.2 * data.var(over, ddof=1)
    np.testing.assert_allclose(train(data), normal(data.mean(over), data.var(over)), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(mean.value, wanted_mean, rtol=1e-13)
    np.testing.assert_allclose(var.value, wanted_var, rtol=1e-13)
    np.testing.assert_allclose(infer(data), normal(wanted_mean, wanted_var), rtol=1e-11, atol=1e-11)
    # In training the gradient goes through the statistics of the batch, in inference through nothing but x.
    weights = g.input("weights", x.shape, "float64")
    slope = sg.grad(sg.sum(weights * y * y), x)
    along, factors, step = rng.standard_normal(shape), rng.standard_normal(shape), 1e-6

    def of_batch(d: np.ndarray) -> np.ndarray:
        return (d - d.mean(over, keepdims=True)) / np.sqrt(d.var(over, keepdims=True) + 1e-5)

    def of_known(d: np.ndarray) -> np.ndarray:
        return (d - mean.value.reshape(spread)) / np.sqrt(var.value.reshape(spread) + 1e-5)

    for phase, function in (("train", of_batch), ("infer", of_known)):
        (got,) = both(slope, {x: data, weights: factors}, phase)

        def scalar(d: np.ndarray, function: Any = function) -> float:
            return float(
                (factors * (function(d) * gamma.value.reshape(spread) + beta.value.reshape(spread)) ** 2).sum()
            )

        moved = (scalar(data + step * along) - scalar(data - step * along)) / (2 * step)
        np.testing.assert_allclose((got * along).sum(), moved, rtol=1e-6, atol=1e-6)


def test_pruned_batch_norm_has_no_batch_statistics() -> None:
    g = sg.Graph()
    x = g.input("x", ("n", 3))
    mean, var = g.state("mean", np.zeros(3, np.float32)), g.state("var", np.ones(3, np.float32))
    y, _ = sg.nn.batch_norm(x, None, None, mean, var)
    assert "sum" not in {n.op.name for n in sg.prune(y).nodes}


# Embedding and attention.


def test_embedding() -> None:
    rng = np.random.default_rng(7)
    g = sg.Graph()
    table, i = g.input("table", (5, 3), "float64"), g.input("i", ("n", 2), "int32")
    rows, index = rng.standard_normal((5, 3)), np.array([[0, 4], [-1, 0], [2, 0]], np.int32)
    y = sg.nn.embedding(table, i)
    slope = sg.grad(sg.sum(y), table)
    values, slopes = both([y, slope], {table: rows, i: index})
    np.testing.assert_array_equal(values, rows[index])
    np.testing.assert_array_equal(slopes[:, 0], [3, 0, 1, 0, 2])
    with pytest.raises(IndexError):
        sg.compile([table, i], y)(rows, index + 3)


def plain_attention(q: Any, k: Any, v: Any, allowed: Any, scale: float, added: Any = 0.0) -> np.ndarray:
    scores = q @ np.swapaxes(k, -1, -2) * scale + added
    weights = np.where(allowed, np.exp(scores - scores.max(initial=-700, where=allowed & np.isfinite(scores))), 0)
    total = weights.sum(-1, keepdims=True)
    return (weights / np.where(total == 0, 1, total)) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention(kind: str, causal: bool) -> None:
    rng = np.random.default_rng(8)
    g = sg.Graph()
    q, k = g.input("q", ("b", 2, "m", 4), "float64"), g.input("k", ("b", 2, "n", 4), "float64")
    v = g.input("v", ("b", 2, "n", 3), "float64")
    arrays = [rng.standard_normal(s) for s in ((2, 2, 5, 4), (2, 2, 6, 4), (2, 2, 6, 3))]
    allowed = rng.random((5, 6)) < 0.6
    allowed[1] = False
    allowed[3, 0] = True
    added = np.where(allowed, rng.standard_normal((5, 6)), -np.inf)
    mask = None if kind == "none" else g.input("mask", ("m", "n"), "bool" if kind == "bool" else "float64")
    y = sg.nn.attention(q, k, v, mask, causal=causal)
    slopes = sg.grad(sg.sum(y * y), [q, k, v])
    feeds: dict[Any, np.ndarray] = dict(zip((q, k, v), arrays, strict=True))
    if mask is not None:
        feeds[mask] = allowed if kind == "bool" else added
    seen = np.ones((5, 6), bool) if kind == "none" else allowed
    if causal:
        seen = seen & np.tri(5, 6, dtype=bool)
    got = both([y, *slopes], feeds)
    bias = np.where(allowed, added, 0.0) if kind == "float" else 0.0
    want = plain_attention(arrays[0], arrays[1], arrays[2], seen, 0.5, bias)
    np.testing.assert_allclose(got[0], want, rtol=1e-11, atol=1e-12)
    if kind != "none":
        assert not got[0][..., 1, :].any()
        assert not got[1][..., 1, :].any()
    step = 1e-6
    for place, slope in enumerate(got[1:]):
        along = rng.standard_normal(slope.shape)
        moved: list[float] = []
        for sign in (1, -1):
            near = [a + sign * step * along if n == place else a for n, a in enumerate(arrays)]
            moved.append(float((plain_attention(near[0], near[1], near[2], seen, 0.5, bias) ** 2).sum()))
        np.testing.assert_allclose((slope * along).sum(), (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-8)


def test_derivatives_of_attention() -> None:
    rng = np.random.default_rng(9)
    g = sg.Graph()
    q, k, v = (g.input(n, (2, 3, 2), "float64") for n in "qkv")
    y = sg.nn.attention(q, k, v, causal=True, scale=0.7)
    check_derivatives([derive([q, k, v], [rng.standard_normal((2, 3, 2)) for _ in range(3)], y, 2)])


def test_attention_does_not_overflow() -> None:
    g = sg.Graph()
    q = g.input("q", (2, 2))
    y = sg.nn.attention(q, q, q, scale=1.0)
    data = np.array([[1e18, 0], [0, 1e18]], np.float32)
    np.testing.assert_allclose(both(y, {q: data})[0], data)


# Cells.


def cell_arrays(gates: int) -> list[np.ndarray]:
    rng = np.random.default_rng(10)
    shapes = ((2, 3), (2, 4), (2, 4), (3, 4 * gates), (4, 4 * gates), (4 * gates,), (4 * gates,))
    return [rng.standard_normal(s) for s in shapes]


def cell_nodes(g: sg.Graph, arrays: list[np.ndarray]) -> list[sg.Node]:
    return [
        g.input(n, a.shape, "float64") for n, a in zip(("x", "h", "c", "w_x", "w_h", "b", "d"), arrays, strict=True)
    ]


def test_rnn_cell() -> None:
    g, arrays = sg.Graph(), cell_arrays(1)
    x, h, _, w, u, b, _ = nodes = cell_nodes(g, arrays)
    y = sg.nn.rnn_cell(x, h, w, u, b)
    feeds = dict(zip(nodes, arrays, strict=True))
    want = np.tanh(arrays[0] @ arrays[3] + arrays[1] @ arrays[4] + arrays[5])
    np.testing.assert_allclose(both(y, feeds)[0], want, rtol=1e-12)
    some = [n for n in nodes if n.name in ("x", "h", "w_x", "w_h", "b")]
    check_derivatives([derive(some, [feeds[n] for n in some], y, 2)])


def test_lstm_cell() -> None:
    g, arrays = sg.Graph(), cell_arrays(4)
    x, h, c, w, u, b, _ = nodes = cell_nodes(g, arrays)
    outs = sg.nn.lstm_cell(x, h, c, w, u, b)
    feeds = dict(zip(nodes, arrays, strict=True))
    i, f, cell, o = np.split(arrays[0] @ arrays[3] + arrays[1] @ arrays[4] + arrays[5], 4, -1)
    new = special.expit(f) * arrays[2] + special.expit(i) * np.tanh(cell)
    got = both(outs, feeds)
    np.testing.assert_allclose(got[0], special.expit(o) * np.tanh(new), rtol=1e-12)
    np.testing.assert_allclose(got[1], new, rtol=1e-12)
    some = [n for n in nodes if n.name != "d"]
    check_derivatives([derive(some, [feeds[n] for n in some], outs[0] * outs[1], 2)])


def test_gru_cell() -> None:
    g, arrays = sg.Graph(), cell_arrays(3)
    x, h, _, w, u, b, d = nodes = cell_nodes(g, arrays)
    y = sg.nn.gru_cell(x, h, w, u, b, d)
    feeds = dict(zip(nodes, arrays, strict=True))
    rx, zx, nx = np.split(arrays[0] @ arrays[3] + arrays[5], 3, -1)
    rh, zh, nh = np.split(arrays[1] @ arrays[4] + arrays[6], 3, -1)
    z = special.expit(zx + zh)
    want = (1 - z) * np.tanh(nx + special.expit(rx + rh) * nh) + z * arrays[1]
    np.testing.assert_allclose(both(y, feeds)[0], want, rtol=1e-12)
    some = [n for n in nodes if n.name != "c"]
    check_derivatives([derive(some, [feeds[n] for n in some], y, 2)])


def test_float32_stays_and_symbolic_shapes() -> None:
    g = sg.Graph()
    x, h = g.input("x", ("n", 4)), g.input("h", ("n", 2))
    w, u = np.ones((4, 8), np.float32), np.ones((2, 8), np.float32)
    mean, var = g.state("mean", np.zeros(4, np.float32)), g.state("var", np.ones(4, np.float32))
    y, running = sg.nn.batch_norm(x, None, None, mean, var)
    every = [f(x) for f, _ in ACTIVATIONS.values()]
    every += [y, *(new for _, new in running), sg.nn.glu(x), sg.nn.group_norm(x, 2), sg.nn.attention(x, x, x)]
    every += [*sg.nn.lstm_cell(x, h, h, w, u), sg.nn.gru_cell(x, h, w[:, :6], u[:, :6])]
    every.append(sg.nn.rnn_cell(x, h, w[:, :2], u[:, :2]))
    every += [sg.nn.kl_div(x, x), sg.nn.hinge(x, x), sg.nn.smooth_l1(x, x), sg.nn.cosine_similarity(x, x)]
    assert all(node.dtype.name == "float32" for node in every)


def test_errors_say_what_was_wrong() -> None:
    g = sg.Graph()
    x, n, h = g.input("x", (4, 3)), g.input("n", (4,), "int32"), g.input("h", (4, 2))
    s3 = g.state("s3", np.zeros(3, np.float32))
    ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (sg.DTypeError, "mish|softplus", lambda: sg.nn.mish(n)),
        (sg.ShapeError, "even extent", lambda: sg.nn.glu(x)),
        (ValueError, "low is less", lambda: sg.nn.hard_tanh(x, 1.0, 1.0)),
        (sg.DTypeError, "labels are integers", lambda: sg.nn.nll(x, ones(4))),
        (sg.ShapeError, "integer labels", lambda: sg.nn.nll(x, np.zeros(3, np.int32))),
        (sg.ShapeError, "nn.l1: targets", lambda: sg.nn.l1(x, ones(4, 1))),
        (sg.ShapeError, "nn.hinge: targets", lambda: sg.nn.hinge(x, ones(3))),
        (sg.ShapeError, "multiple of 2 groups", lambda: sg.nn.group_norm(x, 2)),
        (sg.ShapeError, "running_var", lambda: sg.nn.batch_norm(x, None, None, s3, h)),
        (sg.DTypeError, "mask is bool or floating", lambda: sg.nn.attention(x, x, x, n)),
        (sg.ShapeError, "at least 2 dimensions", lambda: sg.nn.attention(s3, x, x)),
        (sg.ShapeError, "lstm_cell: w_x", lambda: sg.nn.lstm_cell(x, h, h, ones(3, 6), ones(2, 8))),
        (sg.ShapeError, "gru_cell: w_h", lambda: sg.nn.gru_cell(x, h, ones(3, 6), ones(2, 8))),
        (sg.DTypeError, "embedding", lambda: sg.nn.embedding(n, n)),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
