"""Derivative rules of the user's own, rewritten cotangents, and constants held: every mode, order and path."""

# pyright: basic
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive, precise_all
from precise import mp

import symgrad as sg
from symgrad.decode import decode
from symgrad.encode import Writer
from symgrad.graph import Graph, Node, ancestors
from symgrad.opdef import Kind
from symgrad.ops.build import apply
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.serialize import save_program

POINT = np.array([0.3, 0.7, 1.2])
ALONG = np.array([1.0, -2.0, 0.5])


def body(x: Node) -> Node:
    return sg.exp(sg.sin(x))


def slope_vjp(inputs: Any, output: Any, cotangent: Any) -> Any:
    return (cotangent * output * sg.cos(inputs[0]),)


def slope_jvp(inputs: Any, output: Any, tangents: Any) -> Any:
    return tangents[0] * output * sg.cos(inputs[0])


def as_pair(x: Node) -> Any:
    y = body(x)
    return y, lambda cotangent: cotangent * y * sg.cos(x)


# The rules are the right derivative, so that every derivative is known.
FORMS: dict[str, Callable[..., Any]] = {
    "vjp": sg.custom_gradient(body, vjp=slope_vjp),
    "jvp": sg.custom_gradient(body, jvp=slope_jvp),
    "both": sg.custom_gradient(body, vjp=slope_vjp, jvp=slope_jvp),
    "pair": sg.custom_gradient(as_pair),
    "decorator": sg.custom_gradient(vjp=slope_vjp)(body),
    "wrapped_twice": sg.custom_gradient(sg.custom_gradient(body, jvp=slope_jvp), vjp=slope_vjp),
}


def declared(*names: str, shape: Any = (3,)) -> tuple[Node, ...]:
    graph = Graph()
    return tuple(graph.input(name, shape, sg.float64) for name in names)


def every_mode(y: Node, x: Node, v: Node) -> list[Node]:
    """A scalar of y and its derivatives of orders 1 to 3, reverse and forward over each other."""
    s = sg.sum(y * y)
    first = sg.grad(s, x)
    second = sg.grad(sg.sum(first * v), x)
    forward = sg.jvp([s], [x], [v])[0]
    over = sg.hvp(s, x, v)
    return [
        y,
        first,
        second,
        forward,
        over,
        sg.grad(forward, x),
        sg.jvp([forward], [x], [v])[0],
        sg.grad(sg.sum(second * v), x),
        sg.jvp([over], [x], [v])[0],
        sg.grad(sg.jvp([forward], [x], [v])[0], x),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_mode_and_order(form: str) -> None:
    x, v = declared("x", "v")
    feeds = {x: POINT, v: ALONG}
    found, plain = every_mode(FORMS[form](x), x, v), every_mode(body(x), x, v)
    for got, want in zip(precise_all(found, feeds), precise_all(plain, feeds), strict=True):
        assert np.all(abs(got - want) <= mp.mpf("1e-40") * (1 + abs(want)))
    expected = sg.evaluate(plain, feeds)
    for results in (sg.evaluate(found, feeds), sg.compile([x, v], found)(POINT, ALONG)):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_against_fifty_digit_differences(form: str) -> None:
    (x,) = declared("x")
    check_derivatives([derive([x], [POINT], FORMS[form](x * x) * x, 3)])


def test_the_rule_is_what_counts() -> None:
    """A straight-through estimator: a derivative the function does not have."""
    through = sg.custom_gradient(sg.round, vjp=lambda inputs, output, cotangent: (cotangent,))
    x, v = declared("x", "v")
    y = sg.sum(sg.square(through(x)))
    nodes = [sg.grad(y, x), sg.hvp(y, x, v), sg.jvp([y], [x], [v])[0]]
    expected = [2 * np.round(POINT), 2 * ALONG, 2 * np.sum(np.round(POINT) * ALONG)]
    for results in (sg.evaluate(nodes, {x: POINT, v: ALONG}), sg.compile([x, v], nodes)(POINT, ALONG)):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("form", FORMS)
def test_high_orders(form: str) -> None:
    """Elementwise derivatives, where the rule keeps elements apart."""
    (x,) = declared("x")
    found = [sg.derivative(FORMS[form](x) * x, x, k) for k in range(1, 6)]
    plain = [sg.derivative(body(x) * x, x, k) for k in range(1, 6)]
    expected = precise_all(plain, {x: POINT})
    for got, want in zip(precise_all(found, {x: POINT}), expected, strict=True):
        assert np.all(abs(got - want) <= mp.mpf("1e-35") * (1 + abs(want)))
    for got, want in zip(sg.compile([x], found)(POINT), expected, strict=True):
        np.testing.assert_allclose(got, want.astype(float), rtol=1e-10)


def test_high_orders_need_elements_apart() -> None:
    (x,) = declared("x")
    # The body mixes elements, but its derivative is what the rule says.
    own = sg.custom_gradient(lambda a: a - sg.mean(a) + sg.mean(a), vjp=lambda i, o, c: c)
    np.testing.assert_allclose(sg.evaluate(sg.derivative(own(x) ** 3, x, 2), {x: POINT}), 6 * POINT)
    mixed = sg.custom_gradient(lambda a: a * 1.0, vjp=lambda i, o, c: sg.broadcast_to(sg.sum(c), c.shape))
    with pytest.raises(sg.GradientError, match="custom mixes elements"):
        sg.derivative(mixed(x), x, 1)


def test_stable_rule_of_a_composite() -> None:
    """log(1 + exp(x)) with the derivative that does not overflow."""
    soft = sg.custom_gradient(
        lambda x: sg.log(1.0 + sg.exp(x)), vjp=lambda inputs, output, cotangent: cotangent * sg.sigmoid(inputs[0])
    )
    x = Graph().input("x", (), sg.float64)
    first = sg.grad(soft(x), x)
    with np.errstate(over="ignore"):
        assert sg.evaluate(first, {x: np.float64(1000.0)}) == 1
    np.testing.assert_allclose(sg.evaluate(sg.grad(first, x), {x: np.float64(0.0)}), 0.25)


@pytest.mark.parametrize("given", ["vjp", "jvp", "both"])
def test_several_inputs(given: str) -> None:
    rules: dict[str, Any] = {}
    if given != "jvp":
        rules["vjp"] = lambda i, o, c: (sg.einsum("ij,kj->ik", c, i[1]), sg.einsum("ij,ik->jk", i[0], c), None)
    if given != "vjp":
        rules["jvp"] = lambda i, o, t: t[0] @ i[1] + i[0] @ t[1]
    product = sg.custom_gradient(lambda a, b, k: (a @ b) * sg.astype(k, sg.float64), **rules)
    graph = Graph()
    a, b = graph.input("a", (2, 3), sg.float64), graph.input("b", (3, 4), sg.float64)
    k = graph.input("k", (), sg.int32)
    rng = np.random.default_rng(3)
    feeds = {a: rng.normal(size=(2, 3)), b: rng.normal(size=(3, 4)), k: np.int32(1)}
    u, v = rng.normal(size=(2, 3)), rng.normal(size=(3, 4))

    def derived(y: Node) -> list[Node]:
        s = sg.sum(sg.tanh(y))
        return [*sg.grad(s, [a, b]), *sg.hvp(s, [a, b], [u, v]), *sg.jvp([y], [b], [v])]

    found, plain = derived(product(a, b, k)), derived(a @ b)
    expected = sg.evaluate(plain, feeds)
    compiled = sg.compile([a, b, k], found)(*feeds.values())
    for results in (sg.evaluate(found, feeds), compiled):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("given", ["vjp", "jvp"])
@pytest.mark.parametrize("extent", [3, "n"])
def test_several_outputs(given: str, extent: Any) -> None:
    def polar(x: Node, y: Node) -> tuple[Node, Node]:
        return sg.sum(x * x + y * y), x * y

    if given == "vjp":
        rules: dict[str, Any] = {
            "vjp": lambda i, o, c: (2.0 * i[0] * c[0] + i[1] * c[1], 2.0 * i[1] * c[0] + i[0] * c[1])
        }
    else:
        rules = {"jvp": lambda i, o, t: (2.0 * sg.sum(i[0] * t[0] + i[1] * t[1]), t[0] * i[1] + i[0] * t[1])}
    own = sg.custom_gradient(polar, **rules)
    x, y, v = declared("x", "y", "v", shape=(extent,))

    def derived(f: Any) -> list[Node]:
        r, p = f(x, y)
        s = sg.sin(r) * sg.sum(p * p * p)
        return [r, p, *sg.grad(s, [x, y]), *sg.hvp(s, [x, y], [v, x]), *sg.jvp([p, r], [x], [v])]

    feeds = {x: POINT, y: POINT[::-1].copy(), v: ALONG}
    found, expected = derived(own), sg.evaluate(derived(polar), feeds)
    compiled = sg.compile([x, y, v], found)(*feeds.values())
    for results in (sg.evaluate(found, feeds), compiled):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_same_node_twice_and_numbers() -> None:
    own = sg.custom_gradient(lambda a, b: a * b, vjp=lambda i, o, c: (c * i[1], 3.0 * c * i[0]))
    (x,) = declared("x")
    np.testing.assert_allclose(sg.evaluate(sg.grad(sg.sum(own(x, x)), x), {x: POINT}), 4 * POINT)
    scaled = sg.custom_gradient(lambda a, b: a * b, vjp=lambda i, o, c: (c * i[1], None))
    np.testing.assert_allclose(sg.evaluate(sg.grad(sg.sum(scaled(x, 2.5)), x), {x: POINT}), [2.5] * 3)


def test_rules_read_other_nodes_and_can_be_substituted_into() -> None:
    x, w, z = declared("x", "w", "z")
    hidden = sg.exp(w)
    y = sg.custom_gradient(sg.sin, vjp=lambda i, o, c: (c * sg.cos(i[0]) * hidden,))(x)
    s = sg.sum(y)
    first = sg.grad(s, x)
    crossed = sg.grad(sg.sum(first), w)
    np.testing.assert_allclose(sg.evaluate([first, crossed], {x: POINT, w: ALONG}), [np.cos(POINT) * np.exp(ALONG)] * 2)
    assert not sg.evaluate(sg.grad(s, w), {}).any()
    # The rule moves with the node: nothing of it holds the old operands.
    moved = x.graph.substitute([s], {x: z * 2.0, w: z})[0]
    slope = sg.grad(moved, z)
    np.testing.assert_allclose(sg.evaluate(slope, {z: POINT}), 2 * np.cos(2 * POINT) * np.exp(POINT), rtol=1e-12)
    assert not set(ancestors([slope])) & {x, w}


def test_inside_a_called_program() -> None:
    inner = Graph()
    a = inner.input("a", (3,), sg.float64)
    program = Program(inner, (a,), (FORMS["jvp"](a) * a,))
    x, v = declared("x", "v")
    found = every_mode(apply("call", x, program=program), x, v)
    expected = sg.evaluate(every_mode(body(x) * x, x, v), {x: POINT, v: ALONG})
    for got, want in zip(sg.compile([x, v], found)(POINT, ALONG), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11)


def test_symbolic_extents() -> None:
    x, v = declared("x", "v", shape=("n",))
    own = sg.custom_gradient(
        lambda a: sg.sum(a * a), vjp=lambda i, o, c: (2.0 * i[0] * sg.broadcast_to(c, i[0].shape),)
    )
    found = [sg.grad(sg.sin(own(x)), x), sg.hvp(sg.sin(own(x)), x, v)]
    plain = [sg.grad(sg.sin(sg.sum(x * x)), x), sg.hvp(sg.sin(sg.sum(x * x)), x, v)]
    made = sg.compile([x, v], found)
    for n in (0, 1, 5):
        arrays = np.linspace(0.1, 1.0, n), np.linspace(-1.0, 2.0, n)
        for got, want in zip(made(*arrays), sg.evaluate(plain, dict(zip((x, v), arrays, strict=True))), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


def test_nothing_is_left_in_compiled_and_exported_programs(tmp_path: Any) -> None:
    graph = Graph()
    x, t = graph.input("x", (3,), sg.float64), graph.input("t", (3,), sg.float64)
    y = FORMS["vjp"](x)
    y = sg.on_gradient(y, lambda c: c * t)
    program = sg.prune({"y": y})
    # What only a rule reads is no input of a program that does not differentiate.
    assert [i.name for i in program.inputs] == ["x"]
    assert not [n for n in program.nodes if n.op.kind is Kind.CONTROL]
    assert dict(program.removed)["custom"] == 2
    sg.export(tmp_path / "model.safetensors", {"y": y}, [x])
    loaded = sg.compile(sg.load(tmp_path / "model.safetensors"))
    np.testing.assert_allclose(loaded(x=POINT)["y"], np.exp(np.sin(POINT)), rtol=1e-12)
    np.testing.assert_allclose(sg.compile([x], y)(POINT), np.exp(np.sin(POINT)), rtol=1e-12)
    slope = sg.grad(sg.sum(y), x)
    with pytest.raises(sg.GraphError, match="need input 't'"):
        sg.compile([x], slope)
    static = optimize(Program(graph, (x, t), (slope,)), "train")
    assert not [n for n in static.nodes if n.op.kind is Kind.CONTROL]


@pytest.mark.parametrize("form", FORMS)
def test_rules_are_saved_with_programs_that_are_not_pruned(form: str, tmp_path: Any) -> None:
    x, v = declared("x", "v")
    program = Program(x.graph, (x, v), (sg.on_gradient(FORMS[form](x), lambda c: c * v),))
    save_program(tmp_path / "program", program)
    loaded = sg.load(tmp_path / "program")
    feeds = dict(zip(loaded.inputs, (POINT, ALONG), strict=True))
    slope = sg.grad(sg.sum(loaded.outputs[0]), loaded.inputs[0])
    np.testing.assert_allclose(sg.evaluate(slope, feeds), ALONG * np.exp(np.sin(POINT)) * np.cos(POINT), rtol=1e-12)


@pytest.mark.parametrize(
    "attrs",
    [
        [0, 0, [0], "vjp"],
        [0, 2, [0], "vjp"],
        [0, 1, [1], "vjp"],
        [0, 1, [], "vjp"],
        [0, 1, [0], "jvp"],
        [0, 1, [0], "both"],
        [0, 1, [0], "?"],
        [7, 1, [0], "vjp"],
    ],
)
def test_malformed_rules_are_refused(attrs: Any) -> None:
    (x,) = declared("x")
    document = Writer().document(Program(x.graph, (x,), (FORMS["vjp"](x),)))
    own = next(record for record in document["programs"][-1]["nodes"] if record[0] == "custom")
    assert own[2] == [0, 1, [0], "vjp"]
    decode(json.dumps(document), {})
    own[2] = attrs
    with pytest.raises(sg.FormatError):
        decode(json.dumps(document), {})


@pytest.mark.parametrize("form", FORMS)
def test_mapped_over_a_batch(form: str) -> None:
    graph = Graph()
    x = graph.input("x", (2, 3), sg.float64)

    def derived(f: Callable[..., Any]) -> list[Node]:
        def one(row: Node) -> Any:
            s = sg.sum(f(row) * row)
            return sg.grad(s, row), sg.hvp(s, row, row)

        y = sg.vmap(f)(x)
        return [*sg.vmap(one)(x), sg.grad(sg.sum(y * y), x), sg.hvp(sg.sum(y * y), x, x)]

    feeds = {x: np.stack([POINT, ALONG])}
    found, plain = derived(FORMS[form]), derived(body)
    for results in (sg.evaluate(found, feeds), sg.compile([x], found)(feeds[x])):
        for got, want in zip(results, sg.evaluate(plain, feeds), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10)


def test_orders_and_places_of_derivatives() -> None:
    (x,) = declared("x")
    y = FORMS["vjp"](x)
    first = sg.grad(sg.sum(y), x)
    assert first.order == 1
    made = [n for n in ancestors([first]) if n.gradient_of is y]
    assert made
    assert all("test_custom_gradient.py" in str(n.loc) for n in made)


def _one(i: Any, o: Any, c: Any) -> Any:
    return c


def test_mistakes() -> None:
    graph = Graph()
    x, w = graph.input("x", (3,), sg.float64), graph.param("w", np.ones(3))
    k = graph.input("k", (3,), sg.int32)
    other = Graph().input("x", (3,), sg.float64)

    def fails(match: str, f: Any, *arguments: Any, **rules: Any) -> None:
        with pytest.raises(sg.GradientError, match=match):
            sg.custom_gradient(f, **rules)(*arguments)

    fails("give vjp= or jvp=", lambda a: a, x)
    fails(r"param 'w'.*not one of its arguments", lambda a: a * sg.exp(w), x, vjp=_one)
    fails("gives 2 cotangents, expected 1", lambda a: a, x, vjp=lambda i, o, c: (c, c))
    fails("expected 2", lambda a, b: a * b, x, w, vjp=_one)
    fails(r"float64\[\].*expected float64\[3\]", lambda a: a, x, vjp=lambda i, o, c: sg.sum(c))
    fails("not floating", lambda a, b: a, x, k, vjp=lambda i, o, c: (c, c))
    fails("expected float64", lambda a: a, x, vjp=lambda i, o, c: sg.astype(c, sg.float32))
    fails("gives str", lambda a: a, x, vjp=lambda i, o, c: "c")
    fails("another graph", lambda a: a, x, vjp=lambda i, o, c: other)
    fails("returns a floating node", sg.argmax, x, vjp=_one)
    fails("one dtype", lambda a: (a, sg.astype(a, sg.float32)), x, vjp=_one)
    fails("no input is floating", lambda a: sg.astype(a, sg.float64), k, vjp=_one)
    held = sg.custom_gradient(lambda a: a * sg.stop_gradient(sg.exp(w)), vjp=_one)(x)
    assert sg.evaluate(sg.grad(sg.sum(held), x), {}).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="at least one operand"):
        sg.custom_gradient(lambda a: a, vjp=_one)(POINT)


def test_rules_that_are_not_linear_have_one_mode() -> None:
    x, v = declared("x", "v")
    bent = sg.custom_gradient(sg.sin, vjp=lambda i, o, c: (sg.sin(c),))
    y = sg.sum(bent(x))
    assert np.allclose(sg.evaluate(sg.grad(y, x), {}), np.sin(1.0))
    with pytest.raises(sg.GradientError, match=r"vjp rule .*test_custom_gradient.py.* not linear in its cotangent"):
        sg.jvp([y], [x], [v])
    bent = sg.custom_gradient(sg.sin, jvp=lambda i, o, t: t[0] * t[0])
    y = sg.sum(bent(x))
    np.testing.assert_allclose(sg.evaluate(sg.jvp([y], [x], [v])[0], {v: ALONG}), np.sum(ALONG**2))
    with pytest.raises(sg.GradientError, match=r"jvp rule .* not linear in its tangents"):
        sg.grad(y, x)


def test_nothing_flows_where_a_rule_says_none() -> None:
    x, v = declared("x", "v")
    for rules in ({"vjp": lambda i, o, c: None}, {"jvp": lambda i, o, t: None}):
        y = sg.sum(sg.custom_gradient(sg.exp, **rules)(x))
        assert not sg.evaluate(sg.grad(y, x), {}).any()
        assert not sg.evaluate(sg.jvp([y], [x], [v])[0], {v: ALONG}).any()


# Cotangents rewritten on the way.


def test_scaled_cotangents() -> None:
    x, s = declared("x", "s")
    loss = sg.sum(sg.sin(sg.grad_scale(x, -0.5) * 2.0))
    first = sg.grad(loss, x)
    nodes = [first, sg.grad(sg.sum(first * ALONG), x), sg.hvp(loss, x, ALONG), sg.jvp([loss], [x], [ALONG])[0]]
    a, b = -np.cos(2 * POINT), -np.sin(2 * POINT)
    # Each path through the node is scaled once per differentiation.
    expected = [a, b * ALONG, b * ALONG, np.sum(a * ALONG)]
    for results in (sg.evaluate(nodes, {x: POINT}), sg.compile([x], nodes)(POINT)):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)
    by_node = sg.grad(sg.sum(sg.grad_scale(x, s) ** 2), x)
    np.testing.assert_allclose(sg.evaluate(by_node, {x: POINT, s: ALONG}), 2 * POINT * ALONG)
    np.testing.assert_allclose(sg.evaluate(sg.grad(sg.sum(by_node), s), {x: POINT, s: ALONG}), 2 * POINT)


def test_clipped_cotangents() -> None:
    x, limit = declared("x", "limit")
    y = sg.grad_clip(x, 1.0)
    loss = sg.sum(y * y * y)
    first = sg.grad(loss, x)
    second = sg.grad(sg.sum(first), x)
    slope = 3 * POINT**2
    # Where it is clipped the rewritten cotangent is constant; elsewhere the node rewrites the second one again.
    expected = [np.clip(slope, -1, 1), np.where(slope < 1, np.clip(6 * POINT, -1, 1), 0)]
    for results in (sg.evaluate([first, second], {x: POINT}), sg.compile([x], [first, second])(POINT)):
        for got, want in zip(results, expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)
    wide = sg.grad(sg.sum(sg.grad_clip(x, limit) ** 2), x)
    np.testing.assert_array_equal(sg.evaluate(wide, {x: POINT, limit: np.full(3, 0.75)}), [0.6, 0.75, 0.75])
    assert np.isnan(sg.evaluate(sg.grad(sg.sum(y * np.nan), x), {})).all()
    with pytest.raises(sg.GradientError, match="not linear"):
        sg.hvp(loss, x, ALONG)
    with pytest.raises(sg.GradientError, match="at least 0"):
        sg.grad_clip(x, -1.0)


def test_rewritten_cotangents() -> None:
    x, v = declared("x", "v")
    hidden = sg.sin(x)
    unit = sg.on_gradient(hidden, lambda c: c / sg.sqrt(sg.sum(c * c)))
    loss = sg.sum(unit * unit)
    first = sg.grad(loss, x)
    second = sg.grad(sg.sum(first * v), x)
    feeds = {x: POINT, v: ALONG}
    s = np.sin(POINT)
    np.testing.assert_allclose(sg.evaluate(first, feeds), s / np.linalg.norm(s) * np.cos(POINT), rtol=1e-12)
    np.testing.assert_allclose(sg.compile([x, v], second)(*feeds.values()), sg.evaluate(second, feeds), rtol=1e-12)
    stopped = sg.on_gradient(x, lambda c: None)
    assert sg.grad(sg.sum(stopped * x), x, disconnected="none") is not None
    assert sg.grad(sg.sum(stopped), x, disconnected="none") is None
    with pytest.raises(sg.GradientError, match=r"on_gradient: .* expected float64\[3\]"):
        sg.on_gradient(x, sg.sum)


def test_constants_held_with_rules_of_ones_own() -> None:
    x, w = declared("x", "w")
    own = sg.custom_gradient(lambda a, b: a * b, vjp=lambda i, o, c: (c * i[1] * 10.0, c * i[0] * 100.0))
    hidden = own(x, w)
    loss = sg.sum(hidden * x + sg.grad_scale(w, 7.0))
    feeds = {x: POINT, w: ALONG}
    both = sg.grad(loss, [x, w], consider_constant=[hidden])
    np.testing.assert_allclose(sg.evaluate(both, feeds), [POINT * ALONG, np.full(3, 7.0)])
    one = sg.grad(loss, x, consider_constant=[w])
    np.testing.assert_allclose(sg.evaluate(one, feeds), 11 * POINT * ALONG)
    assert sg.grad(sg.sum(hidden), w, consider_constant=[hidden], disconnected="none") is None
    held = sg.sum(own(sg.stop_gradient(x), w))
    assert sg.grad(held, x, disconnected="none") is None
    np.testing.assert_allclose(sg.evaluate(sg.grad(held, w), feeds), 100 * POINT)
