# pyright: basic
"""Derivatives against 50-digit differences, errors, forward and high orders."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import exact_constants
from precise import mp, precise

import symgrad.functions as sg
import symgrad.rulebook  # noqa: F401
from symgrad.composites import log_sum_exp
from symgrad.contraction import einsum
from symgrad.errors import GradientError, GraphError
from symgrad.evaluate import evaluate
from symgrad.grad import grad, hvp, jvp, vjp
from symgrad.graph import Graph, Node, ancestors
from symgrad.opdef import Kind, OpDef
from symgrad.ops.build import apply, filled
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.rules import uniform_array
from symgrad.tower import derivative, operation_count

Function = Callable[[Node], Node]


def scalar(y: Node) -> Node:
    """A weighted sum, so that every element counts differently."""
    count = math.prod(int(e) for e in y.shape)
    weights = np.linspace(0.5, 1.5, count).reshape([int(e) for e in y.shape])
    return sg.sum(y * weights.astype(y.dtype.np))


def views(x: Node) -> Node:
    y = apply("permute", apply("reshape", x * x, shape=(3, 2)), axes=(1, 0))
    y = apply("flip", apply("slice", y, starts=(0, 0), stops=(2, 3), steps=(1, 2)), axes=(1,))
    y = apply("concat", y, apply("broadcast", apply("sum_to", x, shape=(1, 1)), shape=(2, 1)), axis=1)
    return sg.exp(sg.phase(y, y * 2.0) * 0.1)


# One row per function: name, function of a (2, 3) node, whether values must be positive.
SMOOTH: list[tuple[str, Function]] = [
    ("arithmetic", lambda x: (x + 2.0) * x - x / (x + 1.0) + (1.0 - x)),
    ("power", lambda x: x**3 + x**-2 + x**0.5),
    ("power_of_node", lambda x: x**x),
    ("roots", lambda x: sg.sqrt(x) * apply("rsqrt", x + 1.0) + sg.square(x) + sg.reciprocal(x)),
    ("exponentials", lambda x: sg.exp(x) + sg.expm1(x * x) * sg.log(x) + sg.log1p(x)),
    ("circular", lambda x: sg.sin(x) * sg.cos(x) + sg.tan(x)),
    ("arcs", lambda x: sg.asin(x - 0.9) * sg.acos(x - 0.9) + sg.atan(x) * sg.atan2(x, x * x)),
    ("hyperbolic", lambda x: sg.sinh(x) * sg.cosh(x) + sg.asinh(x) * sg.acosh(x + 1.0) + sg.atanh(x - 0.9)),
    ("bases", lambda x: sg.exp2(x) * sg.log2(x) + sg.log10(x) * sg.erfc(x) + sg.hypot(x, x * x) * sg.cbrt(x)),
    ("quotients", lambda x: sg.copysign(x, 0.5 - x) + sg.remainder(x * x, 0.7) * sg.floor_divide(x, 0.4)),
    ("bounded", lambda x: sg.tanh(x) * apply("sigmoid", x)),
    ("chosen", lambda x: sg.where(x > 0.8, sg.exp(x), x * x * x) + sg.maximum(x, 0.9) * sg.minimum(x, x * x)),
    ("cast", lambda x: sg.astype(-x, "float64") * sg.astype(sg.floor(x * 3.0), "int32") * x),
    ("absolute", lambda x: sg.abs(x - 0.85) ** 3 * sg.sign(x - 0.85)),
    ("views", views),
    ("reductions", lambda x: sg.sum(x, axis=0) * sg.prod(x, axis=0) + sg.max(x, axis=0) * sg.min(x, axis=0)),
    ("statistics", lambda x: sg.var(x, axis=1) + sg.mean(x * x, axis=1) + log_sum_exp(x, axis=1)),
    ("contraction", lambda x: einsum("ij,kj->ik", x * x, sg.exp(x))),
    ("indexed", lambda x: sg.take(x, np.array([1, 0, 1, 1]), axis=1) ** 2),
]


POINT = np.array([[0.31, 0.72, 1.13], [1.57, 0.44, 0.95]])


@pytest.mark.parametrize(("name", "function"), SMOOTH, ids=[n for n, _ in SMOOTH])
def test_gradient_against_fifty_digit_differences(name: str, function: Function) -> None:
    graph = Graph()
    x = graph.input("x", (2, 3), "float64")
    directions = [np.array([[0.3, -0.7, 0.2], [0.5, 0.1, -0.4]]), np.array([[1.0, 0.2, -0.3], [0.1, -0.6, 0.8]])]
    y = scalar(function(x))
    with mp.workdps(60):
        step = mp.mpf(10) ** -15
        for order in (1, 2, 3):
            slope = grad(y, x)
            direction = directions[order % 2]
            along = sg.sum(slope * direction)
            moved = [_precise(y, x, _shift(direction, s * step)) for s in (1, -1)]
            difference = (moved[0] - moved[1]) / (2 * step)
            found = _precise(along, x, _shift(direction, mp.mpf(0)))
            assert abs(found - difference) <= mp.mpf(10) ** -20 * (1 + abs(difference)), (name, order)
            y = along


def _precise(y: Node, x: Node, point: np.ndarray) -> Any:
    return precise(y, {**exact_constants([y]), x: point}).item()


def _shift(direction: np.ndarray, step: Any) -> np.ndarray:
    return np.frompyfunc(lambda p, d: mp.mpf(p) + mp.mpf(d) * step, 2, 1)(POINT, direction)


@pytest.mark.parametrize(("name", "function"), SMOOTH, ids=[n for n, _ in SMOOTH])
def test_forward_mode_agrees_with_reverse_mode(name: str, function: Function) -> None:
    graph = Graph()
    x, t = graph.input("x", (2, 3), "float64"), graph.input("t", (2, 3), "float64")
    y = scalar(function(x))
    for _ in (1, 2):
        forward = jvp([y], [x], [t])[0]
        reverse = sg.sum(grad(y, x) * t)
        assert forward.type == y.type
        values = {x: POINT, t: np.array([[0.3, -0.7, 0.2], [0.5, 0.1, -0.4]])}
        np.testing.assert_allclose(*evaluate([forward, reverse], values), rtol=1e-12, atol=1e-13, err_msg=name)
        y = reverse


@pytest.mark.parametrize(("name", "function"), SMOOTH, ids=[n for n, _ in SMOOTH])
def test_optimized_gradients_agree(name: str, function: Function) -> None:
    graph = Graph()
    x = graph.input("x", (2, 3), "float64")
    first = grad(scalar(function(x)), x)
    second = grad(sg.sum(first * first), x)
    program = Program(graph, (x,), (first, second))
    expected = evaluate([first, second], {x: POINT})
    for rules in (True, False):
        better = optimize(program, "infer", rules=rules)
        found = evaluate(list(better.outputs), {better.inputs[0]: POINT})
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-12, err_msg=name)


# What grad takes and gives.


def test_structure_types_and_intermediates() -> None:
    graph = Graph()
    x = graph.input("x", ("n", 3))
    w = graph.param("w", np.ones((3, 2), np.float32))
    h = sg.tanh(x @ w)
    loss = sg.sum(h * h)
    one = grad(loss, w)
    assert isinstance(one, Node)
    several = grad(loss, [w, h, x, w])
    assert [g.type for g in several] == [w.type, h.type, x.type, w.type]
    assert several[0] is one is several[3]
    assert grad(loss, loss).type == loss.type
    assert uniform_array(grad(loss, loss)) == 1
    assert grad(loss, []) == []
    assert all(n.gradient_of is not None and n.order == 1 for n in ancestors([one]) if n.id > loss.id and n.inputs[:1])


def test_derivatives_know_what_they_derive_from() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    y = sg.sum(sg.exp(x * x))
    with graph.scope("inner"):
        first = grad(y, x)
    second = grad(sg.sum(first), x)
    assert first.gradient_of is not None
    assert first.order == 1
    assert second.order == 2
    assert str(first.loc) == str(first.gradient_of.loc)
    assert "order 1 derivative of" in str(graph)


def test_cotangent() -> None:
    graph = Graph()
    x = graph.input("x", (3,), "float64")
    y = x * x
    values = np.array([1.0, 2.0, 3.0])
    found = grad(y, x, cotangent=np.array([1.0, 10.0, 100.0]))
    assert evaluate(found, {x: values}).tolist() == [2, 40, 600]
    assert evaluate(grad(sg.sum(y), x, cotangent=2.0), {x: values}).tolist() == [4, 8, 12]
    with pytest.raises(GradientError, match=r"must have shape \(3,\) and dtype float64"):
        grad(y, x, cotangent=np.ones(4))
    with pytest.raises(GradientError, match="dtype float64"):
        grad(y, x, cotangent=np.ones(3, np.float32))


def test_disconnected() -> None:
    graph = Graph()
    x, z = graph.input("x", (3,)), graph.input("z", (2, 2))
    y = sg.sum(x)
    zero = grad(y, z)
    assert zero.type == z.type
    assert uniform_array(zero) == 0
    assert grad(y, z, disconnected="none") is None
    assert grad(y, [x, z], disconnected="none")[1] is None
    with pytest.raises(GradientError, match="does not depend on input 'z'"):
        grad(y, z, disconnected="raise")
    with pytest.raises(GradientError, match="disconnected must be"):
        grad(y, z, disconnected="other")  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_blocked_paths() -> None:
    graph = Graph()
    x = graph.input("x", (), "float64")
    h = x * x
    y = h * x + sg.stop_gradient(x) * x
    values = {x: np.float64(3)}
    assert evaluate(grad(y, x), values) == 27 + 3
    assert evaluate(grad(y, x, consider_constant=[h]), values) == 9 + 3
    assert evaluate(grad(y, h, consider_constant=[h]), values) == 3


def test_errors() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    k = graph.input("k", (3,), "int32")
    with pytest.raises(GradientError, match=r"not a scalar, its shape is \(3,\).*sg\.sum or sg\.mean.*cotangent="):
        grad(x * x, x)
    with pytest.raises(GradientError, match=r"int32 is not a floating type"):
        grad(sg.sum(x), k)
    with pytest.raises(GradientError, match="dtype int64; only floating"):
        grad(sg.sum(k), x)
    with pytest.raises(GradientError, match="bool"):
        grad(sg.sum(x), x > 0.0)
    with pytest.raises(GradientError, match="is a constant"):
        grad(sg.sum(x), graph.const(1.0))
    with pytest.raises(GradientError, match="nodes, got ndarray"):
        grad(sg.sum(x), [np.ones(3)])  # pyright: ignore[reportCallIssue, reportArgumentType]
    other = Graph().input("other", ())
    with pytest.raises(GraphError, match="belongs to"):
        grad(sg.sum(x), other)
    with pytest.raises(GradientError, match="1 outputs but 0 cotangents"):
        vjp([x], [x], [])


def test_operator_without_rule() -> None:
    opaque = OpDef("opaque", Kind.POINTWISE, (), lambda x: x, None, None)
    graph = Graph()
    x = graph.input("x", ())
    y = graph.add(opaque, (x,))
    with pytest.raises(GradientError, match=r"opaque has no derivative rule.*argument 0.*order 1.*test_grad\.py"):
        grad(y * 2.0, x)
    assert uniform_array(grad(sg.stop_gradient(y) + x, x)) == 1


def test_products() -> None:
    graph = Graph()
    a, b = graph.input("a", (3,), "float64"), graph.input("b", (3,), "float64")
    u, v = a * b, sg.sum(sg.exp(a))
    va, vb = np.array([0.1, 0.2, 0.3]), np.array([1.0, 2.0, 3.0])
    feeds = {a: va, b: vb}
    ga, gb = evaluate(vjp([u, v], [a, b], [np.array([1.0, 0.0, 2.0]), 3.0]), feeds)
    np.testing.assert_allclose(ga, [1, 0, 2] * vb + 3 * np.exp(va))
    np.testing.assert_allclose(gb, [1, 0, 2] * va)
    tu, tv = evaluate(jvp([u, v], [a], [np.array([1.0, 0.0, 2.0])]), feeds)
    np.testing.assert_allclose(tu, [1, 0, 2] * vb)
    np.testing.assert_allclose(tv, np.sum(np.exp(va) * [1, 0, 2]))
    assert uniform_array(jvp([v], [b], [vb])[0]) == 0
    y = sg.sum(a * a * a * b)
    np.testing.assert_allclose(evaluate(hvp(y, a, vb), feeds), 6 * va * vb * vb)
    ha, hb = evaluate(hvp(y, [a, b], [vb, va]), feeds)
    np.testing.assert_allclose(ha, 6 * va * vb * vb + 3 * va**2 * va)
    np.testing.assert_allclose(hb, 3 * va**2 * vb)


# Towers.

COUNTS = (12, 19, 33, 55, 90, 140, 209, 300, 417, 563, 742, 957)


def test_high_orders_stay_small() -> None:
    for order, most in enumerate(COUNTS, 1):
        graph = Graph()
        x = graph.input("x", (5,), "float64")
        assert operation_count(derivative(sg.tanh(x * sg.sin(x)), x, order)) <= most


TOWERS: list[tuple[str, Function, Callable[[Any], Any]]] = [
    ("product", lambda x: sg.tanh(x * sg.sin(x)), lambda v: mp.tanh(v * mp.sin(v))),
    ("exponential", lambda x: sg.sin(sg.exp(x * 2.0) + 3.0), lambda v: mp.sin(mp.exp(2 * v) + 3)),
    ("shifted", lambda x: (sg.exp(x) + 1.0) * (sg.exp(x) + 2.0), lambda v: (mp.exp(v) + 1) * (mp.exp(v) + 2)),
    ("quotient", lambda x: sg.sin(x) / (sg.exp(x) + x), lambda v: mp.sin(v) / (mp.exp(v) + v)),
    ("constant top", lambda x: 2.0 / (x * x + 1.0), lambda v: 2 / (v * v + 1)),
    ("roots", lambda x: sg.sqrt(sg.log(x + 2.0)), lambda v: mp.sqrt(mp.log(v + 2))),
    ("power", lambda x: x**2.5 * x**3, lambda v: v ** mp.mpf(2.5) * v**3),
    ("chosen", lambda x: sg.where(x > 0.5, sg.exp(x), x**4), lambda v: mp.exp(v) if v > 0.5 else v**4),
]


@pytest.mark.parametrize(("function", "exact"), [t[1:] for t in TOWERS], ids=[t[0] for t in TOWERS])
def test_high_orders_are_right(function: Function, exact: Callable[[Any], Any]) -> None:
    graph = Graph()
    x = graph.input("x", (3,), "float64")
    y = function(x)
    values = np.array([0.3, 0.7, 1.3])
    for order in range(7):
        found = evaluate(derivative(y, x, order), {x: values})
        want = [float(mp.diff(exact, mp.mpf(v), order)) for v in values]
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-9)


def test_towers_of_intermediates_and_nothing() -> None:
    graph = Graph()
    x = graph.input("x", (3,), "float64")
    h = sg.sin(x)
    y = h * h * h
    assert derivative(y, h, 0) is y
    np.testing.assert_allclose(evaluate(derivative(y, h, 2), {x: np.full(3, 0.5)}), 6 * np.sin([0.5] * 3))
    assert uniform_array(derivative(x * 3.0, x, 2)) == 0
    assert uniform_array(derivative(x * 3.0, x, 1)) == 3
    assert uniform_array(derivative(y, graph.input("z", (3,), "float64"), 1)) == 0


def test_errors_of_towers() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    with pytest.raises(GradientError, match=r"sum mixes elements"):
        derivative(x * sg.sum(x), x, 1)
    with pytest.raises(GradientError, match="differ"):
        derivative(sg.sum(x), x, 1)
    with pytest.raises(GradientError, match="order must be"):
        derivative(x, x, -1)
    with pytest.raises(GradientError, match=r"order 4 .* over the budget of 40 \(order 1: \d+, order 2: \d+"):
        derivative(sg.tanh(x * sg.sin(x)), x, 9, budget=40)


# Size.


def test_long_chain_at_the_default_recursion_limit() -> None:
    assert sys.getrecursionlimit() <= 10_000
    graph = Graph()
    x = graph.input("x", (2,), "float64")
    h = x
    for _ in range(8_000):
        h = apply("multiply", apply("sin", h), x)
    before = len(graph.nodes)
    assert before >= 16_000
    slope = grad(sg.sum(h), x)
    assert len(graph.nodes) - before < 8 * before
    assert slope.type == x.type
    assert jvp([h], [x], [filled(graph, (2,), x.dtype, 1)])[0].type == x.type


def test_gradients_are_deterministic() -> None:
    def build() -> str:
        graph = Graph()
        x = graph.input("x", (2, 3), "float64")
        ys = [scalar(f(x)) for _, f in SMOOTH]
        total = ys[0]
        for y in ys[1:]:
            total = total + y
        return "\n".join(f"{n.op.name} {[i.id for i in n.inputs]} {n.type}" for n in ancestors([grad(total, x)]))

    assert build() == build()


def test_calls_in_every_mode() -> None:
    inner = Graph()
    a, b = inner.input("a", (3,), "float64"), inner.input("b", (3,), "float64")
    program = Program(inner, (a, b), (sg.sin(a) * b * b,))
    graph = Graph()
    x = graph.input("x", (3,), "float64")
    y = sg.sum(apply("call", x, sg.exp(x), program=program) * x)
    plain = sg.sum(sg.sin(x) * sg.exp(x * 2.0) * x)
    v = np.array([1.0, -2.0, 0.5])
    values = np.array([0.3, 0.5, 0.9])
    found = [grad(y, x), jvp([y], [x], [v])[0], hvp(y, x, v)]
    expected = [grad(plain, x), jvp([plain], [x], [v])[0], hvp(plain, x, v)]
    for got, want in zip(*(evaluate(n, {x: values}) for n in (found, expected)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    better = optimize(Program(graph, (x,), tuple(found)), "infer")
    assert all(n.op.kind is not Kind.CONTROL for n in better.nodes)
    for got, want in zip(evaluate(list(better.outputs), {better.inputs[0]: values}), found, strict=True):
        np.testing.assert_allclose(got, evaluate(want, {x: values}), rtol=1e-12)


def test_symbolic_extents() -> None:
    graph = Graph()
    x = graph.input("x", ("n", 4), "float64")
    w = graph.param("w", np.linspace(-1, 1, 8).reshape(4, 2))
    b = graph.param("b", np.array([0.1, -0.2]))
    y = sg.sum(sg.max(sg.tanh(x @ w + b), axis=1) * sg.prod(x, axis=1))
    nodes = [*grad(y, [w, b, x]), *hvp(y, [w, b], [w, b])]
    assert [n.type for n in nodes] == [w.type, b.type, x.type, w.type, b.type]
    values = np.random.default_rng(0).normal(size=(3, 4))
    expected = evaluate(nodes, {x: values})
    for rules in (True, False):
        better = optimize(Program(graph, (x,), tuple(nodes)), "train", {"n": 3}, rules=rules)
        for got, want in zip(evaluate(list(better.outputs), {better.inputs[0]: values}), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
