"""The graph itself: interning, keys, names, places, scopes, substitution, text and networkx form."""

from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import attr_key
from symgrad.opdef import OPS
from symgrad.storage import Literal


def graph() -> tuple[sg.Graph, sg.Node, sg.Node]:
    g = sg.Graph()
    return g, g.input("x", ("n", 3)), g.input("y", ("n", 3))


def test_equal_nodes_are_one():
    g, x, y = graph()
    assert sg.exp(x + y) is sg.exp(x + y)
    assert x + y is y + x, "commutative operators have one order"
    assert x - y is not y - x
    count = len(g.nodes)
    _ = sg.exp(y + x)
    assert len(g.nodes) == count


def test_a_repeated_operand_stands_last_whatever_its_age():
    g, x, y = graph()
    rate = sg.exp(g.input("rate", ()))
    first, second = sg.tanh(x) * rate, rate * sg.tanh(y)
    assert first.inputs[1] is second.inputs[1], "one repeated operand, younger than one tanh and older than the other"
    assert [n.inputs[0].op.name for n in (first, second)] == ["tanh", "tanh"]
    assert (first + 1.0).inputs[0] is first, "constants stand after all"


def test_ids_are_topological():
    g, x, y = graph()
    sg.grad(sg.sum(sg.tanh(x @ y.T)), [x, y])
    assert all(i.id < n.id for n in g.nodes for i in n.inputs)
    assert [n.id for n in g.nodes] == list(range(len(g.nodes)))


@pytest.mark.parametrize(
    ("a", "b"),
    [(1, 1.0), (1, True), (1.0, True), (0.0, -0.0), (0, False), ((1, 2), (1.0, 2)), ((1, (True,)), (1, (1,)))],
)
def test_keys_tell_values_apart(a, b):
    assert attr_key(a) != attr_key(b)
    assert attr_key(a) == attr_key(a)


def test_constants_are_equal_bit_by_bit():
    g = sg.Graph()
    quiet = np.array(0x7FC00000, np.uint32).view(np.float32)
    payload = np.array(0x7FC00001, np.uint32).view(np.float32)
    values = [np.float32(0.0), np.float32(-0.0), quiet, payload, np.float64(0.0), np.int32(0), np.bool_(False)]
    nodes = [g.const(v) for v in values]
    assert len({n.id for n in nodes}) == len(values)
    assert [g.const(v) for v in values] == nodes
    assert Literal(np.zeros(2)) != Literal(np.zeros((2, 1)))
    value = nodes[3].attrs[0].array
    assert value.view(np.uint32) == 0x7FC00001


def test_constants_are_copied():
    g = sg.Graph()
    array = np.zeros(3, np.float32)
    node = g.const(array)
    array[:] = 1
    np.testing.assert_array_equal(sg.evaluate(node), np.zeros(3))


def test_every_node_knows_its_line():
    g, x, y = graph()
    z = sg.tanh(x) * y  # this line
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    here = next(k for k, text in enumerate(lines, 1) if text.endswith("# this line"))
    assert str(z.loc) == f"test_graph.py:{here}"
    loss = sg.sum(sg.nn.softplus(z))
    d = sg.grad(sg.grad(loss, x)[0, 0], y)
    assert all(n.loc is not None and str(n.loc).startswith("test_graph.py:") for n in g.nodes)
    from symgrad.optimize import optimize

    program = optimize(sg.Program(g, (x, y), (d,)), "infer", {"n": 2})
    assert all(str(n.loc).startswith("test_graph.py:") for n in program.nodes)
    assert f"# test_graph.py:{here}" in str(program)


def test_derivatives_remember_what_they_are_of():
    g, x, _ = graph()
    z = sg.tanh(x)
    first = sg.grad(sg.sum(z), x)
    second = sg.grad(sg.sum(first), x)
    assert first.order == 1
    assert first.gradient_of is z or first.gradient_of is not None
    assert second.order == 2
    assert z.order == 0
    assert z.gradient_of is None


def test_scopes_prefix_names():
    g = sg.Graph()
    with g.scope("layer1"):
        w = g.param("w", np.zeros(2, np.float32))
        with g.scope("inner"):
            v = g.param("w", np.ones(2, np.float32))
    u = g.param("w", np.zeros(2, np.float32))
    assert [p.name for p in g.params] == ["layer1/w", "layer1/inner/w", "w"]
    assert g.named("layer1/inner/w") is v
    assert (w.scope, (u * 2.0).scope) == ("layer1/", "")


def test_declared_nodes_in_order():
    g = sg.Graph()
    a, w, s, b = g.input("a"), g.param("w", 1.0), g.state("s", np.int32(3)), g.input("b", (), sg.int64)
    assert (g.inputs, g.params, g.states) == ([a, b], [w], [s])
    assert (w.dtype, s.dtype, w.value, s.value) == (sg.float64, sg.int32, 1.0, 3)


def test_substitute_rebuilds_what_depends():
    g, x, y = graph()
    kept = sg.exp(y)
    out = sg.sum(sg.sin(x) * kept)
    (new,) = g.substitute([out], {x: y})
    feeds = {y: np.arange(6, dtype=np.float32).reshape(2, 3)}
    np.testing.assert_array_equal(sg.evaluate(new, feeds), sg.evaluate(sg.sum(sg.sin(y) * kept), feeds))
    assert g.substitute([kept], {x: y}) == [kept]
    assert new is sg.sum(sg.sin(y) * kept)


def test_ancestors_and_dependence():
    g, x, y = graph()
    z = sg.exp(x)
    assert sg.ancestors([z]) == [x, z]
    assert sg.depends_on(z, x)
    assert not sg.depends_on(z, y)
    assert sg.depends_on(z, z)
    assert not sg.depends_on(x, z)
    assert not sg.depends_on(z, sg.Graph().input("x"))


def test_text_form():
    g, x, _ = graph()
    z = sg.sum(x, axis=1)
    text = str(g)
    assert text.splitlines()[0].startswith("x = input(): float32[n, 3]  # test_graph.py:")
    assert f"%{z.id} = sum(x, axes=(1)): float32[n]  # test_graph.py:" in text


def test_networkx_form():
    g, x, y = graph()
    z = x - y
    other = g.to_networkx()
    assert other.number_of_nodes() == len(g.nodes)
    assert other.nodes[z.id]["node"] is z
    positions = {(a, b): data["position"] for a, b, data in other.edges(data=True)}
    assert positions[x.id, z.id] == 0
    assert positions[y.id, z.id] == 1


def test_programs_live_in_attributes():
    """A sub-program is an attribute like any other: interned, printed, evaluated, differentiated, compiled."""
    inner = sg.Graph()
    a = inner.input("a", (3,))
    program = sg.Program(inner, (a,), (sg.sin(a) * a,))
    g = sg.Graph()
    x = g.input("x", (3,))
    y = g.add(OPS["call"], (x,), (program,))
    assert g.add(OPS["call"], (x,), (program,)) is y
    d = sg.grad(sg.sum(y), x)
    value = np.array([0.5, 1.0, 2.0], np.float32)
    outputs = sg.compile([x], [y, d])(value)
    np.testing.assert_allclose(outputs[0], np.sin(value) * value, rtol=1e-6)
    np.testing.assert_allclose(outputs[1], np.cos(value) * value + np.sin(value), rtol=1e-6)


def test_rules_can_be_switched_off():
    g = sg.Graph(rules={})
    x = g.input("x", (3,))
    assert (x * 1.0) is not x
    h = sg.Graph()
    v = h.input("x", (3,))
    assert (v * 1.0) is v
    f = sg.compile([v], sg.log(sg.exp(v) + 1.0), without=["log_one_plus_exp", "log_one_plus", "log1p_exp"])
    assert np.isinf(f(np.full(3, 100, np.float32))).all()
    assert np.isfinite(sg.compile([v], sg.log(sg.exp(v) + 1.0))(np.full(3, 100, np.float32))).all()
    with pytest.raises(ValueError, match="no rule is named"):
        sg.compile([v], v, without=["no such rule"])
