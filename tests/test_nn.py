"""Layers and losses against float64 formulas, their gradients at corners and extremes, and their errors."""

# pyright: basic
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import special

from symgrad import functions as sg
from symgrad import nn, random
from symgrad.errors import DTypeError, ShapeError
from symgrad.evaluate import evaluate
from symgrad.grad import grad
from symgrad.graph import Graph, Node

POINTS = np.array([-30.0, -4.0, -1.0, -0.3, -1e-6, 0.0, 1e-6, 0.3, 1.0, 4.0, 30.0])

ACTIVATIONS: dict[str, tuple[Callable[[Node], Node], Callable[[Any], Any]]] = {
    "relu": (nn.relu, lambda x: np.maximum(x, 0)),
    "leaky_relu": (lambda x: nn.leaky_relu(x, 0.2), lambda x: np.where(x > 0, x, 0.2 * x)),
    "elu": (lambda x: nn.elu(x, 1.5), lambda x: np.where(x > 0, x, 1.5 * np.expm1(np.minimum(x, 0)))),
    "sigmoid": (nn.sigmoid, special.expit),
    "silu": (nn.silu, lambda x: x * special.expit(x)),
    "softplus": (nn.softplus, lambda x: np.logaddexp(x, 0)),
    "gelu": (nn.gelu, lambda x: x * special.ndtr(x)),
    "gelu tanh": (
        lambda x: nn.gelu(x, "tanh"),
        lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    ),
    "softmax": (nn.softmax, special.softmax),
    "log_softmax": (nn.log_softmax, special.log_softmax),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 5e-6)])
def test_activations(name: str, dtype: str, tolerance: float):
    build, formula = ACTIVATIONS[name]
    g = Graph()
    x = g.input("x", ("n",), dtype)
    values = evaluate(build(x), {x: POINTS.astype(dtype)})
    assert values.dtype == dtype
    np.testing.assert_allclose(values, formula(POINTS.astype(dtype).astype(np.float64)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if "softmax" not in n])
def test_gradients_of_activations(name: str):
    build, formula = ACTIVATIONS[name]
    g = Graph()
    x = g.input("x", ("n",), "float64")
    slope = evaluate(grad(sg.sum(build(x)), x), {x: POINTS})
    smooth = np.abs(POINTS) > 1e-3
    step = 1e-6
    expected = (formula(POINTS + step) - formula(POINTS - step)) / (2 * step)
    np.testing.assert_allclose(slope[smooth], expected[smooth], atol=1e-8)
    at_zero = {"relu": 0, "leaky_relu": 0.2, "elu": 1.5, "sigmoid": 0.25}.get(name, 0.5)
    assert slope[5] == pytest.approx(at_zero, abs=1e-15)


def test_softplus_is_stable_and_smooth_at_zero():
    g = Graph()
    x = g.input("x", ("n",))
    y = nn.softplus(x)
    first = grad(sg.sum(y), x)
    second = grad(sg.sum(first), x)
    data = np.array([-np.inf, -1e38, -50, 0, 50, 1e38, np.inf, np.nan], np.float32)
    values, slopes, curves = evaluate([y, first, second], {x: data})
    np.testing.assert_allclose(values, [0, 0, np.exp(-50.0), np.log(2), 50, 1e38, np.inf, np.nan], rtol=1e-6)
    np.testing.assert_allclose(slopes[1:6], [0, np.exp(-50.0), 0.5, 1, 1], rtol=1e-6)
    assert curves[3] == 0.25
    assert np.isfinite(curves[1:6]).all()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_axes(axis: int):
    g = Graph()
    x = g.input("x", (3, 4), "float64")
    data = np.random.default_rng(0).standard_normal((3, 4)) * 1000
    np.testing.assert_allclose(evaluate(nn.softmax(x, axis), {x: data}), special.softmax(data, axis=axis), rtol=1e-12)
    np.testing.assert_allclose(
        evaluate(nn.log_softmax(x, axis), {x: data}), special.log_softmax(data, axis=axis), rtol=1e-12
    )


def entropy_parts(shape: tuple[Any, ...], axis: int, floating: bool) -> tuple[Graph, Node, Node, Node, Node]:
    g = Graph()
    x = g.input("x", shape)
    rest = list(shape)
    del rest[axis]
    t = g.input("t", shape if floating else tuple(rest), "float32" if floating else "int32")
    loss = nn.softmax_cross_entropy(x, t, axis)
    return g, x, t, loss, grad(sg.sum(loss), x)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_cross_entropy_of_classes(axis: int):
    rng = np.random.default_rng(1)
    shape = (4, 5, 6)
    _, x, t, loss, slope = entropy_parts(shape, axis, False)
    data = rng.standard_normal(shape).astype(np.float32)
    classes = shape[axis]
    rest = tuple(np.delete(shape, axis))
    labels = rng.integers(0, classes, rest).astype(np.int32)
    wide = special.log_softmax(data.astype(np.float64), axis=axis)
    expected = -np.take_along_axis(wide, np.expand_dims(labels, axis), axis).squeeze(axis)
    values, slopes = evaluate([loss, slope], {x: data, t: labels})
    assert values.dtype == np.float32
    assert values.shape == rest
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)
    hot = np.moveaxis(np.eye(classes)[labels], -1, axis)
    np.testing.assert_allclose(slopes, np.exp(wide) - hot, rtol=1e-5, atol=1e-6)
    # Negative labels count from the end.
    np.testing.assert_array_equal(evaluate(loss, {x: data, t: labels - classes}), values)
    with pytest.raises(IndexError):
        evaluate(loss, {x: data, t: labels + classes})


def test_cross_entropy_of_probabilities():
    rng = np.random.default_rng(2)
    _, x, t, loss, slope = entropy_parts(("n", 5), -1, True)
    data = rng.standard_normal((7, 5)).astype(np.float32)
    p = rng.dirichlet(np.ones(5), 7).astype(np.float32)
    wide = special.log_softmax(data.astype(np.float64), axis=-1)
    values, slopes = evaluate([loss, slope], {x: data, t: p})
    np.testing.assert_allclose(values, -(p * wide).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(slopes, np.exp(wide) * p.sum(-1, keepdims=True) - p, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("floating", [False, True])
def test_cross_entropy_at_the_largest_logits(floating: bool):
    top = float(np.finfo(np.float32).max)
    _, x, t, loss, slope = entropy_parts((4, 3), -1, floating)
    data = np.array([[top, -top, 0], [-top, -top, -top], [top, top, top], [top / 2, -top / 2, 0]], np.float32)
    labels = np.array([0, 1, 2, 1], np.int32)
    target = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]], np.float32) if floating else labels
    values, slopes = evaluate([loss, slope], {x: data, t: target})
    np.testing.assert_allclose(values, [0, np.log(3), np.log(3), top / 2 if floating else top], rtol=1e-6)
    assert np.isfinite(slopes).all()
    np.testing.assert_allclose(slopes[0], [0, 0, 0], atol=1e-7)


def test_cross_entropy_ignores_a_class_of_weight_zero():
    _g, x, t, loss, slope = entropy_parts((3,), -1, True)
    data = np.array([0.0, -np.inf, 1.0], np.float32)
    by_weight = grad(loss, t)
    values = evaluate([loss, slope, by_weight], {x: data, t: np.array([0.5, 0, 0.5], np.float32)})
    assert all(np.isfinite(v).all() for v in values)


def test_cross_entropy_of_uneven_logits_keeps_its_digits():
    _, x, t, loss, _ = entropy_parts(("n", 2), -1, False)
    gaps = np.linspace(0, 80, 1000).astype(np.float32)
    data = np.stack([np.full_like(gaps, 1e4), np.full_like(gaps, 1e4) - gaps], axis=-1)
    values = evaluate(loss, {x: data, t: np.ones(1000, np.int32)})
    exact = np.logaddexp(0, (data[:, 0] - data[:, 1]).astype(np.float64))
    np.testing.assert_allclose(values, exact, rtol=3e-7)


def test_binary_cross_entropy():
    g = Graph()
    x, t = g.input("x", ("n",)), g.input("t", ("n",))
    loss = nn.binary_cross_entropy(x, t)
    slope = grad(sg.sum(loss), x)
    data = np.array([-1e38, -5, 0, 0, 5, 1e38], np.float32)
    target = np.array([0, 0.2, 0, 1, 0.7, 1], np.float32)
    values, slopes = evaluate([loss, slope], {x: data, t: target})
    wide = data.astype(np.float64)
    np.testing.assert_allclose(values, np.logaddexp(0, wide) - target * wide, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes, special.expit(wide) - target, rtol=1e-5, atol=1e-7)


def test_regression_losses():
    g = Graph()
    p, t = g.input("p", (4,)), g.input("t", (4,))
    data, target = np.array([0.0, 3, -1, 1e30], np.float32), np.array([0.5, 0, 0, 0], np.float32)
    loss = nn.huber(p, t, 1.0)
    slope = grad(sg.sum(loss), p)
    values, slopes = evaluate([loss, slope], {p: data, t: target})
    np.testing.assert_allclose(values, [0.125, 2.5, 0.5, 1e30], rtol=1e-6)
    np.testing.assert_array_equal(slopes, [-0.5, 1, -1, 1])
    small = evaluate(nn.mse(p, t), {p: target + 2, t: target})
    assert small.shape == ()
    assert small == 4


@pytest.mark.parametrize("axis", [-1, 1, (1, 2), (0, -1)])
def test_layer_norm(axis: Any):
    rng = np.random.default_rng(3)
    data = rng.standard_normal((2, 3, 4)) + 5
    axes = tuple(sorted(a % 3 for a in ((axis,) if isinstance(axis, int) else axis)))
    over = tuple(data.shape[a] for a in axes)
    spread = tuple(n if k in axes else 1 for k, n in enumerate(data.shape))
    gamma, beta = rng.standard_normal(over), rng.standard_normal(over)
    g = Graph()
    x = g.input("x", ("n", 3, 4) if 0 not in axes else (2, 3, 4), "float64")
    normal = (data - data.mean(axes, keepdims=True)) / np.sqrt(data.var(axes, keepdims=True) + 1e-5)
    got = evaluate(nn.layer_norm(x, gamma, beta, axis), {x: data})
    np.testing.assert_allclose(got, normal * gamma.reshape(spread) + beta.reshape(spread), rtol=1e-11)
    np.testing.assert_allclose(evaluate(nn.layer_norm(x, axis=axis), {x: data}), normal, rtol=1e-11)
    rms = data / np.sqrt((data**2).mean(axes, keepdims=True) + 1e-5) * gamma.reshape(spread)
    np.testing.assert_allclose(evaluate(nn.rms_norm(x, gamma, axis), {x: data}), rms, rtol=1e-11)


def test_dropout():
    g = Graph(seed=1)
    x = g.input("x", (200, 100))
    a, b = nn.dropout(x, 0.25), nn.dropout(x, 0.25)
    slope = grad(sg.sum(a), x)
    data = np.ones((200, 100), np.float32)
    first, second, slopes = evaluate([a, b, slope], {x: data}, phase="train")
    assert set(np.unique(first)) == {0, np.float32(1 / 0.75)}
    assert abs((first == 0).mean() - 0.25) < 0.02
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(slopes, first)
    infer, slopes = evaluate([a, slope], {x: data}, phase="infer")
    np.testing.assert_array_equal(infer, data)
    np.testing.assert_array_equal(slopes, data)
    assert nn.dropout(x, 0) is x
    assert len(random.random_updates(g)) == 1
    for rate in (1.0, -0.1, math.nan, True, "half"):
        with pytest.raises(ValueError, match="rate"):
            nn.dropout(x, rate)  # type: ignore[arg-type]


def test_linear_and_float32_stays():
    g = Graph()
    x, w = g.input("x", ("n", 3)), g.param("w", np.ones((3, 2), np.float32))
    b = g.param("b", np.ones(2, np.float32))
    assert nn.linear(x, w).shape == (x.shape[0], 2)
    every = [nn.linear(x, w, b), nn.gelu(x), nn.softmax(x), nn.layer_norm(x), nn.rms_norm(x), nn.dropout(x, 0.5)]
    every += [nn.elu(x), nn.leaky_relu(x), nn.softplus(x), nn.silu(x), nn.huber(x, x * 2.0), nn.mse(x, x * 2.0)]
    assert all(node.dtype.name == "float32" for node in every)
    wide = g.input("wide", (2,), "float64")
    assert nn.gelu(wide).dtype.name == "float64"


def test_errors_say_what_was_wrong():
    g = Graph()
    x, n = g.input("x", (4, 3)), g.input("n", (4,), "int32")
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (DTypeError, "gelu", lambda: nn.gelu(n)),
        (DTypeError, "softmax", lambda: nn.softmax(n)),
        (ShapeError, "axis 2", lambda: nn.softmax(x, 2)),
        (ShapeError, "integer labels", lambda: nn.softmax_cross_entropy(x, g.input("bad", (3,), "int32"))),
        (ShapeError, "floating labels", lambda: nn.softmax_cross_entropy(x, g.input("low", (4,)))),
        (DTypeError, "labels", lambda: nn.softmax_cross_entropy(x, x > 0)),
        (ShapeError, "gamma", lambda: nn.layer_norm(x, np.ones(4, np.float32))),
        (ShapeError, "axes", lambda: nn.layer_norm(x, axis=(1, -1))),
        (ShapeError, "targets", lambda: nn.mse(x, np.ones((4, 1), np.float32))),
        (ShapeError, "targets", lambda: nn.huber(x, np.ones(3, np.float32))),
        (ShapeError, "weight", lambda: nn.linear(x, np.ones(3, np.float32))),
        (ShapeError, "bias", lambda: nn.linear(x, np.ones((3, 2), np.float32), np.ones((2, 1), np.float32))),
        (ValueError, "approximate", lambda: nn.gelu(x, "exact")),  # type: ignore[arg-type]
        (ValueError, "delta", lambda: nn.huber(x, x, 0.0)),
        (TypeError, "node", lambda: nn.softmax(np.ones(3))),  # type: ignore[arg-type]
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
