"""The report on what stands between outputs and their derivatives."""

# pyright: basic
from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph, Node, ancestors
from symgrad.opdef import OPS, Kind, OpDef

HERE = r"test_lint.py:\d+"
# An operator without a rule, and one whose rule leads to it at order 2. They are in no table.
OPAQUE = OpDef("opaque", Kind.POINTWISE, (), lambda x: x, None, np.tanh, doc="Without a rule.")
ONCE = OpDef(
    "once",
    Kind.POINTWISE,
    (),
    lambda x: x,
    lambda n, g: (g * n.graph.add(OPAQUE, (n.inputs[0],)),),
    np.tanh,
    doc="Once.",
)


def graph_of_params(**values: float) -> tuple[Graph, list[Node]]:
    graph = Graph()
    return graph, [graph.param(name, np.full(3, float(value))) for name, value in values.items()]


def test_a_sound_graph() -> None:
    graph, (w, b) = graph_of_params(w=0.5, b=0.1)
    x = graph.input("x", (3,), sg.float64)
    loss = sg.sum(sg.tanh(x * w + b))
    before = str(graph)
    report = sg.lint(loss, [w, b])
    assert str(graph) == before
    assert (report.blocked, report.disconnected, report.casts, report.dead) == ((), (), (), ())
    assert (report.order, report.obstacle) == (3, None)
    assert report.growth[0] == len(ancestors([loss]))
    assert report.growth == tuple(sorted(set(report.growth)))
    assert str(report).startswith("highest order available: at least 3\nnodes: order 0: ")
    # The count of the first order is that of the gradient itself.
    assert report.growth[1] == len(ancestors(sg.grad(loss, [w, b])))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.order = 1  # pyright: ignore[reportAttributeAccessIssue]


def test_why_nothing_arrives() -> None:
    graph, (w, stopped, cast, flat, compared, chosen, apart) = graph_of_params(
        w=1, stopped=1, cast=1, flat=1, compared=1, chosen=1, apart=1
    )
    unused = graph.input("unused", (2,))
    h = sg.exp(w) + sg.stop_gradient(sg.sin(stopped)) + sg.floor(flat)
    h = h + sg.astype(sg.astype(cast * 3.0, sg.int32), sg.float64) + sg.where(compared > 0.5, w, 0.0)
    h = h + sg.custom_gradient(sg.exp, vjp=lambda inputs, output, cotangent: None)(chosen)
    wrt = [w, stopped, cast, flat, compared, chosen, apart]
    report = sg.lint(h, wrt)
    found = {f.node.split("'")[1]: f.why for f in report.disconnected}
    assert list(found) == ["stopped", "cast", "flat", "compared", "chosen", "apart"]
    for name, word in (
        ("stopped", "every path ends: stop_gradient float64[3] (test_lint.py:"),
        ("cast", "every path ends: astype int32[3] (test_lint.py:"),
        ("flat", "every path ends: floor float64[3] (test_lint.py:"),
        ("compared", "bool[3] (test_lint.py:"),
        ("chosen", "has a rule that gives no gradient"),
        ("apart", "no path to an output"),
    ):
        assert word in found[name], found[name]
    assert [f.node.split(" (")[0] for f in report.casts] == ["astype int32[3]"]
    assert [f.node.split(" (")[0] for f in report.dead] == [
        f"input 'unused' {unused.type}",
        f"param 'apart' {apart.type}",
    ]
    # The report agrees with what grad finds.
    gradients = sg.grad(sg.sum(h), wrt, disconnected="none")
    assert [g is None for g in gradients] == [n.name in found for n in wrt]
    text = str(report)
    assert text.count("disconnected: ") == 6
    assert "cast: astype int32[3]" in text
    assert "dead: input 'unused'" in text


def test_one_path_is_enough() -> None:
    graph, (w,) = graph_of_params(w=1)
    assert sg.lint(sg.sum(sg.stop_gradient(w) * w), w).disconnected == ()
    # A cast that nothing differentiated passes is none of the reader's business.
    k = sg.astype(sg.astype(graph.input("x", (3,)), sg.int32), sg.float64)
    assert sg.lint(sg.sum(w * k), w).casts == ()


def test_operators_without_rules() -> None:
    graph, (w,) = graph_of_params(w=1)
    y = graph.add(OPAQUE, (sg.exp(w),))
    report = sg.lint(sg.sum(y), w)
    assert report.order == 0
    assert [f.why for f in report.blocked] == ["opaque has no derivative rule"]
    assert "(test_lint.py:" in report.blocked[0].node
    assert report.obstacle is not None
    assert "order 1" in report.obstacle
    with pytest.raises(sg.GradientError) as error:
        sg.grad(sg.sum(y), w)
    assert str(error.value) == report.obstacle
    # Off the path it blocks nothing.
    assert sg.lint(sg.sum(w * sg.stop_gradient(y)), w).blocked == ()
    assert sg.lint(sg.sum(w * sg.stop_gradient(y)), w).order == 3


def test_the_highest_order() -> None:
    graph, (w,) = graph_of_params(w=1)
    y = sg.sum(graph.add(ONCE, (w,)))
    count = len(graph.nodes)
    report = sg.lint(y, w)
    assert (report.order, report.blocked, len(report.growth)) == (1, (), 2)
    assert "order 2: grad: opaque has no derivative rule" in str(report)
    assert len(graph.nodes) == count
    assert {"opaque", "once"}.isdisjoint(OPS)


def test_derivatives_that_vanish_and_several_outputs() -> None:
    graph, (w, v) = graph_of_params(w=1, v=2)
    report = sg.lint(sg.sum(w * 3.0), w)
    assert (report.order, report.obstacle, report.growth[2:]) == (3, None, (0, 0))
    several = sg.lint([w * w, sg.astype(v, sg.float32), sg.argmax(w)], [w, v])
    assert (several.order, several.disconnected) == (3, ())
    assert next(f.why for f in sg.lint(sg.argmax(w), w).disconnected).startswith("every path ends: argmax")
    vector = sg.lint(graph.input("x", ("n",)) * 2.0, v)
    assert [f.why for f in vector.disconnected] == ["no path to an output"]


def test_rules_of_ones_own() -> None:
    graph, (w,) = graph_of_params(w=1)
    y = sg.sum(sg.grad_clip(sg.custom_gradient(sg.exp, jvp=lambda i, o, t: t[0] * o)(w), 1.0))
    before = len(graph.nodes)
    assert sg.lint(y, w).order == 3
    assert len(graph.nodes) == before
    bent = sg.sum(sg.custom_gradient(sg.sin, jvp=lambda i, o, t: t[0] * t[0])(w))
    report = sg.lint(bent, w)
    assert report.order == 0
    assert "not linear" in report.blocked[0].why


def test_mistakes() -> None:
    graph, (w,) = graph_of_params(w=1)
    other = Graph().input("x", ())
    with pytest.raises(sg.GraphError):
        sg.lint(other, w)
    with pytest.raises(sg.GradientError, match="not a floating type"):
        sg.lint(w, graph.input("k", (), sg.int32))
    with pytest.raises(sg.GradientError, match="no output"):
        sg.lint([], w)
    with pytest.raises(sg.GradientError, match="outputs are nodes"):
        sg.lint([1.0], w)  # pyright: ignore[reportArgumentType]
