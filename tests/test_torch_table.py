"""What users of define-by-run autograd look for: each row of the table in the README is a test named after it."""

# pyright: basic
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Node, ancestors

X = np.array([0.3, 0.7, 1.2])


def model() -> tuple[sg.Graph, Node, Node, Node]:
    graph = sg.Graph()
    x, w = graph.input("x", (3,), sg.float64), graph.param("w", np.array([2.0, -1.0, 0.5]))
    return graph, x, w, sg.sum(sg.sin(x * w))


def test_requires_grad_and_leaves() -> None:
    """Any node can be differentiated by, and no choice is made before."""
    _, x, w, z = model()
    expected = [w.value * np.cos(X * w.value), X * np.cos(X * w.value)]
    for got, want in zip(sg.compile([x], sg.grad(z, [x, w]))(X), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_backward() -> None:
    """The gradient is built once and runs at every call."""
    graph, x, w, z = model()
    f = sg.compile([x], sg.grad(z, graph.params))
    for scale in (1.0, 2.0):
        np.testing.assert_allclose(f(X * scale)[0], scale * X * np.cos(scale * X * w.value), rtol=1e-12)


def test_backward_with_gradient() -> None:
    _, x, w, _ = model()
    z = x * w
    with pytest.raises(sg.GradientError, match="not a scalar"):
        sg.grad(z, w)
    v = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(sg.evaluate(sg.grad(z, w, cotangent=v), {x: X}), v * X)


def test_gradients_accumulate_on_purpose() -> None:
    graph, x, w, z = model()
    total = graph.state("total", np.zeros(3))
    add = sg.compile([x], z, updates=[(total, total + sg.grad(z, w))])
    add(X)
    add(X)
    np.testing.assert_allclose(total.value, 2 * X * np.cos(X * w.value), rtol=1e-12)
    total.value = np.zeros(3)
    assert not total.value.any()


def test_retain_grad_and_hooks() -> None:
    """The gradient of an intermediate is a node like others; a hook that changes it is `on_gradient`."""
    graph, x, w, _ = model()
    hidden = x * w
    seen: list[Node] = []

    def hook(cotangent: Node) -> Node:
        seen.append(cotangent)
        return cotangent * 10.0

    z = sg.sum(sg.sin(sg.on_gradient(hidden, hook)))
    at, after = sg.grad(z, hidden), sg.grad(z, w)
    np.testing.assert_allclose(sg.evaluate(at, {x: X}), 10 * np.cos(X * w.value))
    np.testing.assert_allclose(sg.evaluate(after, {x: X}), 10 * X * np.cos(X * w.value))
    assert len(seen) == 1


def test_detach_and_frozen_params() -> None:
    graph, x, w, _ = model()
    head = graph.param("head", np.ones(3))
    features = sg.stop_gradient(sg.sin(x * w))
    loss = sg.sum(features * head)
    assert not sg.evaluate(sg.grad(loss, w), {x: X}).any()
    held = sg.grad(sg.sum(sg.sin(x * w) * head), [w, head], consider_constant=[w], disconnected="none")
    assert held[1] is not None
    # Left out of wrt, the base has no backward nodes at all.
    before = len(graph.nodes)
    sg.grad(sg.sum(sg.sin(x * w) * head), head)
    assert not [n for n in graph.nodes[before:] if n.op.name == "cos"]


def test_grad_fn() -> None:
    _, x, w, z = model()
    assert (z.op.name, z.inputs[0].op.name, x.inputs) == ("sum", "sin", ())
    slope = sg.grad(z, w)
    assert slope.gradient_of is not None
    assert any(n.gradient_of is z.inputs[0] for n in ancestors([slope]))
    assert "order 1 derivative of" in str(z.graph)


def test_create_graph() -> None:
    _, x, _, z = model()
    twice = sg.grad(sg.sum(sg.grad(z, x)), x)
    w = np.array([2.0, -1.0, 0.5])
    np.testing.assert_allclose(sg.evaluate(twice, {x: X}), -w * w * np.sin(X * w), rtol=1e-12)
    v = np.array([1.0, 2.0, 3.0])
    np.testing.assert_allclose(sg.evaluate(sg.hvp(z, x, v), {x: X}), -w * w * np.sin(X * w) * v, rtol=1e-12)


def test_function_with_a_backward() -> None:
    def forward(x: Node) -> Any:
        e = sg.exp(x)
        return sg.log(1.0 + e), lambda cotangent: cotangent * (1.0 - 1.0 / (1.0 + e))

    x = sg.Graph().input("x", (3,), sg.float64)
    y = sg.sum(sg.custom_gradient(forward)(x))
    s = 1 / (1 + np.exp(-X))
    first = sg.grad(y, x)
    np.testing.assert_allclose(sg.evaluate(first, {x: X}), s, rtol=1e-12)
    np.testing.assert_allclose(sg.evaluate(sg.grad(sg.sum(first), x), {x: X}), s * (1 - s), rtol=1e-12)


def test_index_select_gather_masked_select() -> None:
    x = sg.Graph().input("x", (2, 3), sg.float64)
    a = np.arange(6.0).reshape(2, 3)
    rows = np.array([[2], [0]])
    nodes = [sg.take(x, np.array([2, 0]), axis=1), sg.take_along_axis(x, rows, axis=1), sg.where(x > 2.0, x, 0.0)]
    expected = [a[:, [2, 0]], np.take_along_axis(a, rows, 1), np.where(a > 2, a, 0)]
    for got, want in zip(sg.compile([x], nodes)(a), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_views_and_operators_in_place() -> None:
    x = sg.Graph().input("x", (2, 3), sg.float64)
    a = np.arange(6.0).reshape(2, 3)
    f = sg.compile([x], sg.reshape(x, (3, 2)).T + 1.0)
    kept = a.copy()
    got = f(a)
    np.testing.assert_array_equal(got, a.reshape(3, 2).T + 1)
    got[...] = 0
    np.testing.assert_array_equal(a, kept)


def test_mm_bmm_broadcasting() -> None:
    graph = sg.Graph()
    a, b = graph.input("a", (4, 2, 3), sg.float64), graph.input("b", (3, 5), sg.float64)
    gradients = sg.grad(sg.sum(a @ b), [a, b])
    assert [g.shape for g in gradients] == [a.shape, b.shape]
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(4, 2, 3)), rng.normal(size=(3, 5))
    product, summed = sg.compile([a, b], [a @ b, sg.einsum("bij,jk->ik", a, b)])(u, v)
    np.testing.assert_allclose(product, u @ v, rtol=1e-12)
    np.testing.assert_allclose(summed, (u @ v).sum(0), rtol=1e-12)


def test_numpy_arrays_in_and_out() -> None:
    _, x, w, _ = model()
    got = sg.compile([x], x * w)(X)
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, X * w.value)


def test_optimizers() -> None:
    graph, x, w, z = model()
    step = sg.compile([x], z, updates=sg.optim.momentum(graph.params, sg.grad(z, graph.params), lr=0.1, beta=0.9))
    before = w.value
    slope = X * np.cos(X * before)
    step(X)
    np.testing.assert_allclose(w.value, before - 0.1 * slope, rtol=1e-12)


def test_training_nodes_are_stripped(tmp_path: Any) -> None:
    graph, x, w, _ = model()
    probs = sg.nn.softmax(sg.nn.dropout(x * w, 0.5))
    loss = -sg.log(probs[0])
    sg.compile([x], loss, updates=sg.optim.sgd(graph.params, sg.grad(loss, graph.params), lr=0.1))(X)
    sg.export(tmp_path / "model.safetensors", {"probs": probs}, [x])
    program = sg.load(tmp_path / "model.safetensors")
    assert {n.op.name for n in program.nodes}.isdisjoint(("phase", "philox", "param"))
    e = np.exp(X * w.value)
    np.testing.assert_allclose(sg.compile(program)(x=X)["probs"], e / e.sum(), rtol=1e-12)
