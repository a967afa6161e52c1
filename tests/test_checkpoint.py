# pyright: basic, reportAttributeAccessIssue=false
"""`sg.checkpoint`: the same values and derivatives, less memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import symgrad as sg
from symgrad.errors import GradientError
from symgrad.graph import Graph, Node, ancestors

LAYERS, WIDTH, ROWS = 8, 48, 64


def _block(w: Node, v: Node) -> Callable[[Node], Node]:
    return lambda h: h + sg.sin(sg.nn.gelu(h @ w)) @ v


def _network(keep: bool) -> tuple[Graph, Node, Node, list[Node]]:
    g = Graph()
    rng = np.random.default_rng(0)
    x = g.input("x", (ROWS, WIDTH))
    h = x
    for k in range(LAYERS):
        w, v = (g.param(f"{n}{k}", (rng.standard_normal((WIDTH, WIDTH)) / 8).astype(np.float32)) for n in ("w", "v"))
        block = _block(w, v)
        h = (block if keep else sg.checkpoint(block))(h)
    loss = sg.mean(h * h)
    return g, x, loss, sg.grad(loss, g.params)


def test_same_gradients_with_less_memory() -> None:
    """The gradients of captured params have the same bits; what is kept between the passes is not there."""
    results, bytes_, launches = [], [], []
    for keep in (True, False):
        _, x, loss, gradients = _network(keep)
        f = sg.compile([x], [loss, *gradients])
        results.append(f(np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)))
        (made,) = [binding.executable for binding in f._bindings.values()]
        bytes_.append(made.memory.bytes)
        launches.append(len(made.launches))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)
    assert bytes_[1] < 0.6 * bytes_[0]
    assert launches[1] > launches[0]


def test_nothing_is_left_in_the_forward_pass() -> None:
    _, x, loss, _ = _network(False)
    assert not any(n.op.name in ("fence", "custom") for n in sg.prune(loss, [x]).nodes)


@pytest.mark.parametrize("second", ["reverse", "forward"])
def test_higher_orders_and_modes(second: str) -> None:
    values = []
    for wrap in (lambda f: f, sg.checkpoint):
        g = Graph()
        x = g.input("x", (5,), sg.float64)
        w = g.param("w", np.linspace(0.5, 1.5, 5))
        y = sg.sum(wrap(lambda x, w=w: sg.exp(sg.sin(x) * w) * x)(x) ** 2)
        ones = sg.ones_like(x)
        first = sg.grad(y, [x, w])
        if second == "reverse":
            more = sg.grad(sg.sum(first[0] * first[1]), [x, w])
            third = sg.grad(sg.sum(more[0] * more[1]), [x, w])
        else:
            more = sg.jvp(first, [x], [ones])
            third = sg.jvp(more, [x], [ones])
        f = sg.compile([x], [y, *first, *more, *third, *sg.jvp([y], [x], [ones])])
        values.append(f(np.linspace(-1, 1, 5)))
    for one, other in zip(*values, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)


def test_vmap() -> None:
    values = []
    for wrap in (lambda f: f, sg.checkpoint):
        g = Graph()
        x, w = g.input("x", (4, 3), sg.float64), g.input("w", (3,), sg.float64)

        def slope(row: Node, w: Node = w, wrap: Callable = wrap) -> Node:
            return sg.grad(sg.sum(wrap(lambda r: sg.tanh(r * w) * r)(row)), row)

        values.append(sg.compile([x, w], sg.vmap(slope)(x))(np.arange(12.0).reshape(4, 3) / 7, np.arange(3.0)))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-14)


def test_several_outputs_and_integer_arguments() -> None:
    values = []
    for wrap in (lambda f: f, sg.checkpoint):
        g = Graph()
        x, i = g.input("x", (6,), sg.float64), g.input("i", (2,), sg.int32)
        a, b = wrap(lambda x, i: (sg.take(sg.exp(x), i), sg.sin(x)))(x, i)
        f = sg.compile([x, i], sg.grad(sg.sum(a) + sg.sum(b * b), x))
        values.append(f(np.linspace(0, 1, 6), np.array([4, 1], np.int32)))
    np.testing.assert_allclose(values[0], values[1], rtol=1e-14)


def test_as_a_decorator_over_training() -> None:
    """A checkpointed layer with dropout draws the same mask when it is computed again."""
    results = []
    for wrap in (lambda f: f, sg.checkpoint):
        g = Graph()
        x = g.input("x", (32, 8))
        w = g.param("w", np.linspace(-1, 1, 64, dtype=np.float32).reshape(8, 8))

        @wrap
        def layer(h: Node, w: Node = w) -> Node:
            return sg.nn.dropout(sg.nn.relu(h @ w), 0.5)

        loss = sg.mean(layer(x) ** 2)
        step = sg.compile([x], loss, updates=sg.optim.sgd(g.params, sg.grad(loss, g.params), lr=0.1))
        rows = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
        results.append([step(rows) for _ in range(3)])
    np.testing.assert_array_equal(results[0], results[1])


def test_saved_and_loaded(tmp_path) -> None:
    g = Graph()
    x = g.input("x", (4,))
    slope = sg.grad(sg.sum(sg.checkpoint(lambda x: sg.exp(sg.sin(x)))(x)), x)
    sg.export(tmp_path / "slope.safetensors", {"slope": slope}, [x])
    values = np.linspace(0, 1, 4, dtype=np.float32)
    again = sg.compile(sg.load(tmp_path / "slope.safetensors"))(x=values)["slope"]
    np.testing.assert_array_equal(again, sg.compile([x], slope)(values))


def test_the_forward_value_is_not_shared_with_the_backward_pass() -> None:
    g = Graph()
    x = g.input("x", (4,))
    slope = sg.grad(sg.sum(sg.checkpoint(lambda x: sg.sin(x * x))(x)), x)
    assert any(n.op.name == "fence" for n in ancestors([slope]))


def test_arguments_by_keyword() -> None:
    """They are handed on; a node among them is captured as any other that `f` reads."""
    g = Graph()
    x, scale = g.input("x", (3,), sg.float64), g.input("scale", (3,), sg.float64)

    def f(a: Node, *, power: int, factor: Node) -> Node:
        return sg.sin(a) ** power * factor

    kept = sg.grad(sg.sum(f(x, power=3, factor=scale)), [x, scale])
    again = sg.grad(sg.sum(sg.checkpoint(f)(x, power=3, factor=scale)), [x, scale])
    values = np.array([0.1, 2.0, -1.0]), np.array([3.0, -1.0, 0.5])
    for a, b in zip(sg.compile([x, scale], kept)(*values), sg.compile([x, scale], again)(*values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14)


def test_rules_for_reverse_mode_only_stay_so() -> None:
    g = Graph()
    x = g.input("x", (3,), sg.float64)

    def f(a: Node) -> Node:
        return sg.grad_clip(sg.sin(a), 1.0) * 3.0

    made = sg.checkpoint(f)(x)
    at = np.array([0.1, 2.0, -1.0])
    first = sg.grad(sg.sum(made), x)
    np.testing.assert_allclose(sg.compile([x], first)(at), np.cos(at))
    np.testing.assert_allclose(sg.compile([x], sg.grad(sg.sum(first), x))(at), -np.sin(at))
    with pytest.raises(GradientError, match="not linear in its cotangent"):
        sg.jvp([made], [x], [x])


def test_errors() -> None:
    g = Graph()
    x, i = g.input("x", (4,)), g.input("i", (4,), sg.int32)
    with pytest.raises(GradientError, match="checkpoint: the function returns a floating node"):
        sg.checkpoint(lambda x: 3)(x)
    with pytest.raises(GradientError, match="reads nothing that is floating"):
        sg.checkpoint(lambda i: sg.astype(i * 2, sg.float32))(i)
