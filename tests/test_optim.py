"""Optimizers against NumPy in float64, several steps each; schedules, clipping, states and errors."""

# pyright: basic
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from symgrad import functions as sg
from symgrad import optim
from symgrad.errors import GraphError, ShapeError
from symgrad.evaluate import evaluate
from symgrad.grad import grad
from symgrad.graph import Graph, Node

START = np.array([1.0, -2.0, 0.5, 3.0])
SCALE = np.array([1.0, 0.3, 4.0, 2.0])


def run(build: Callable[[list[Node], list[Node]], optim.Updates], dtype: str, steps: int) -> np.ndarray:
    """The param after some steps on sum(scale * p**2) / 2 + sum(p), whose gradient is scale * p + 1."""
    g = Graph()
    p = g.param("p", START.astype(dtype))
    loss = sg.sum(p * p * (SCALE / 2).astype(dtype)) + sg.sum(p)
    updates = build([p], [grad(loss, p)])
    assert len({old.id for old, _ in updates}) == len(updates)
    assert all(new.type == old.type for old, new in updates)
    for _ in range(steps):
        values = evaluate([new for _, new in updates], phase="train")
        for (old, _), value in zip(updates, values, strict=True):
            old.value = value
    return p.value


def reference(step: Callable[[np.ndarray, np.ndarray, dict[str, Any], int], np.ndarray], steps: int) -> np.ndarray:
    p, memory = START.copy(), {}
    for t in range(1, steps + 1):
        p = step(p, SCALE * p + 1, memory, t)
    return p


def momentum_step(p: Any, g: Any, s: dict[str, Any], *, nesterov: bool = False, decay: float = 0.0) -> Any:
    g = g + decay * p
    s["m"] = 0.9 * s.get("m", 0) + g
    return p - 0.05 * (g + 0.9 * s["m"] if nesterov else s["m"])


def adam_step(p: Any, g: Any, s: dict[str, Any], t: int, *, decay: float = 0.0, decoupled: bool = False) -> Any:
    if decoupled:
        p = p * (1 - 0.1 * decay)
    else:
        g = g + decay * p
    s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
    return p - 0.1 * (s["m"] / (1 - 0.9**t)) / (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)


def rmsprop_step(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    s["v"] = 0.99 * s.get("v", 0) + 0.01 * g * g
    return p - 0.01 * g / (np.sqrt(s["v"]) + 1e-8)


def adagrad_step(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    s["v"] = s.get("v", 0) + g * g
    return p - 0.1 * g / (np.sqrt(s["v"]) + 1e-10)


CASES: dict[str, tuple[Any, Any]] = {
    "sgd": (lambda p, g: optim.sgd(p, g, 0.05), lambda p, g, s, t: p - 0.05 * g),
    "sgd decay": (
        lambda p, g: optim.sgd(p, g, 0.05, weight_decay=0.1),
        lambda p, g, s, t: p - 0.05 * (g + 0.1 * p),
    ),
    "momentum": (lambda p, g: optim.momentum(p, g, 0.05), lambda p, g, s, t: momentum_step(p, g, s)),
    "nesterov": (
        lambda p, g: optim.nesterov(p, g, 0.05, weight_decay=0.2),
        lambda p, g, s, t: momentum_step(p, g, s, nesterov=True, decay=0.2),
    ),
    "adam": (lambda p, g: optim.adam(p, g, 0.1), adam_step),
    "adam decay": (
        lambda p, g: optim.adam(p, g, 0.1, weight_decay=0.15),
        lambda p, g, s, t: adam_step(p, g, s, t, decay=0.15),
    ),
    "adamw": (
        lambda p, g: optim.adamw(p, g, 0.1, weight_decay=0.2),
        lambda p, g, s, t: adam_step(p, g, s, t, decay=0.2, decoupled=True),
    ),
    "rmsprop": (optim.rmsprop, rmsprop_step),
    "adagrad": (lambda p, g: optim.adagrad(p, g, 0.1), adagrad_step),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
def test_steps_follow_the_formula(name: str, dtype: str, tolerance: float):
    build, step = CASES[name]
    got = run(build, dtype, 12)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, reference(step, 12), rtol=tolerance, atol=tolerance)


def test_a_schedule_advances_the_count():
    rates = [0.05 * min(1, (k + 1) / 4) for k in range(6)]

    def build(params: list[Node], grads: list[Node]) -> optim.Updates:
        step = optim.step_counter(params[0].graph)
        return optim.sgd(params, grads, optim.linear_warmup(step, 0.05, 4))

    expected = reference(lambda p, g, s, t: p - rates[t - 1] * g, 6)
    np.testing.assert_allclose(run(build, "float32", 6), expected, rtol=1e-5)
    np.testing.assert_allclose(run(build, "float64", 6), expected, rtol=1e-6)


def test_schedules():
    g = Graph()
    step = optim.step_counter(g)
    assert optim.step_counter(g) is step
    nodes = [
        optim.constant(step, 0.3),
        optim.exponential(step, 0.2, 0.5, 10),
        optim.cosine(step, 0.4, 20, 0.1),
        optim.linear_warmup(step, optim.constant(step, 0.6), 8),
    ]
    for k in (0, 1, 5, 10, 20, 30):
        step.value = np.array(k)
        done = min(k / 20, 1)
        expected = [0.3, 0.2 * 0.5 ** (k / 10), 0.1 + 0.15 * (1 + math.cos(math.pi * done)), 0.6 * min(1, (k + 1) / 8)]
        values = evaluate(nodes)
        assert all(v.dtype == np.float32 and v.shape == () for v in values)
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    for bad in (lambda: optim.cosine(step, 1.0, 0), lambda: optim.exponential(step, 1.0, -1.0)):
        with pytest.raises(ValueError):
            bad()


def test_clip_by_global_norm():
    g = Graph()
    a, b = g.const(np.array([3.0, 0.0], np.float32)), g.const(np.array([[4.0]], np.float32))
    clipped, norm = optim.clip_by_global_norm([a, b], 1.0)
    values = evaluate([*clipped, norm])
    np.testing.assert_allclose(values[0], [0.6, 0], rtol=1e-5)
    np.testing.assert_allclose(values[1], [[0.8]], rtol=1e-5)
    assert values[2] == 5
    assert all(v.dtype == np.float32 for v in values)
    kept, _ = optim.clip_by_global_norm([a, b], 100.0)
    np.testing.assert_array_equal(evaluate(kept[0]), [3, 0])
    with pytest.raises(GraphError):
        optim.clip_by_global_norm([], 1.0)


def test_states_are_named_after_the_param_and_shared():
    g = Graph()
    with g.scope("layer"):
        w = g.param("w", np.zeros((2, 3), np.float32))
        first = optim.momentum([w], [w * 2], 0.1)
    again = optim.momentum([w], [w * 2], 0.2)
    assert [s.name for s in g.states] == ["layer/w/momentum"]
    assert first[1] == again[1]
    assert optim.sgd([w], [None], 0.1) == []


def test_bad_arguments():
    g = Graph()
    w, x = g.param("w", np.zeros(3, np.float32)), g.input("x", (3,))
    with pytest.raises(ShapeError, match="2 params but 1"):
        optim.sgd([w, w], [w], 0.1)
    with pytest.raises(GraphError, match="'x'"):
        optim.sgd([x], [x], 0.1)
    with pytest.raises(ShapeError, match="type"):
        optim.sgd([w], [sg.sum(w)], 0.1)
    with pytest.raises(ShapeError, match="0-dimensional"):
        optim.sgd([w], [w], w)
    with pytest.raises(ValueError):
        optim.adam([w], [w], beta1=1.0)
