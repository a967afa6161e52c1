"""Pruning: nothing of training is left, values stay, and the program says what went."""

# pyright: basic
from __future__ import annotations

import numpy as np
import pytest

from symgrad import functions as sg
from symgrad import nn, optim, random
from symgrad.errors import GraphError
from symgrad.evaluate import evaluate
from symgrad.grad import grad
from symgrad.graph import Graph, Node
from symgrad.ops.build import apply
from symgrad.program import Program
from symgrad.prune import prune
from symgrad.types import Dim, int32


class Model:
    def __init__(self) -> None:
        self.g = g = Graph(seed=3)
        self.x = g.input("x", ("batch", 6))
        self.t = g.input("t", ("batch",), int32)
        rng = np.random.default_rng(0)
        w1 = g.param("w1", rng.standard_normal((6, 8)).astype(np.float32))
        b1 = g.param("b1", np.zeros(8, np.float32))
        w2 = g.param("w2", rng.standard_normal((8, 3)).astype(np.float32))
        h = nn.linear(self.x, w1, b1)
        running = g.state("running", np.full(8, 0.25, np.float32))
        h = h - sg.phase(sg.mean(h, axis=0), running)
        h = nn.dropout(nn.relu(h), 0.5)
        self.logits = h @ w2
        self.loss = sg.mean(nn.softmax_cross_entropy(self.logits, self.t))
        self.grads = grad(self.loss, g.params)
        lr = optim.cosine(optim.step_counter(g), 0.1, 100)
        self.updates = optim.adam(g.params, self.grads, lr)
        self.probs = nn.softmax(self.logits)


def test_no_trace_of_training_is_left():
    m = Model()
    program = prune({"probs": m.probs}, [m.x])
    names = {n.op.name for n in program.graph.nodes}
    assert not names & {"phase", "stop_gradient", "call", "philox", "param", "state", "check_index", "log", "sqrt"}
    assert all(n.order == 0 and n.gradient_of is None for n in program.graph.nodes)
    assert program.updates == ()
    assert program.states == ()
    assert program.graph.nodes == program.nodes
    assert [n.name for n in program.inputs] == ["x"]
    data = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    np.testing.assert_array_equal(
        evaluate(program.outputs[0], {program.inputs[0]: data}), evaluate(m.probs, {m.x: data}, phase="infer")
    )


def test_the_program_says_what_went():
    m = Model()
    program = prune({"probs": m.probs}, [m.x])
    removed = dict(program.removed)
    kept_of_graph = len(m.g.nodes) - sum(removed.values())
    assert kept_of_graph > 0
    assert removed["gradient"] == sum(n.order > 0 for n in m.g.nodes)
    assert removed["update"] > 50
    assert removed["loss"] > 5
    assert removed["dropout"] > 10
    assert removed["batch statistics"] >= 2
    assert removed["phase"] == 2
    assert "unused" not in removed
    text = program.summary()
    for part in ("gradient", "update", "loss", "dropout", "batch statistics", "probs: float32[batch, 3]", "*batch"):
        assert part in text
    assert "weights: 88 values, 352 bytes" in text


def test_the_count_of_operations():
    g = Graph()
    x, w = g.input("x", (10, 20)), g.param("w", np.ones((20, 30), np.float32))
    program = Program(g, (x,), (sg.sum(nn.relu(x @ w)),))
    assert "operations: 12600 per call" in program.summary()


def test_train_phase_keeps_the_random_count():
    m = Model()
    program = prune(m.logits, phase="train")
    assert [s.name for s in program.states] == ["random_step"]
    ((step, new),) = program.updates
    data = np.random.default_rng(2).standard_normal((4, 6)).astype(np.float32)
    first = evaluate(program.outputs[0], {program.inputs[0]: data})
    np.testing.assert_array_equal(first, evaluate(m.logits, {m.x: data}, phase="train"))
    step.value = evaluate(new)
    assert not np.array_equal(first, evaluate(program.outputs[0], {program.inputs[0]: data}))
    assert m.g.named("random_step").value == 0


def test_params_are_frozen_at_pruning():
    g = Graph()
    x, w = g.input("x", (2,)), g.param("w", np.ones(2, np.float32))
    program = prune(x * w, [x])
    w.value = np.zeros(2, np.float32)
    np.testing.assert_array_equal(evaluate(program.outputs[0], {program.inputs[0]: np.ones(2, np.float32)}), [1, 1])


def test_constants_are_folded_where_that_saves_memory():
    g = Graph()
    x = g.input("x", (50, 50))
    w = g.param("w", np.arange(2500, dtype=np.float32).reshape(50, 50))
    small = sg.exp(w) * 2.0 + w.T
    program = prune(x + small, [x])
    assert [n.op.name for n in program.nodes] == ["input", "const", "add"]
    np.testing.assert_array_equal(program.nodes[1].attrs[0].array, evaluate(small))
    assert dict(program.removed)["folded into constants"] >= 3
    # An outer product of vectors would take more memory than what makes it.
    v = g.param("v", np.ones(50_000, np.float32))
    large = prune(sg.sum(sg.reshape(v, (-1, 1)) * v), [])
    assert max(n.attrs[0].array.nbytes for n in large.nodes if n.op.name == "const") <= 200_000


def test_inputs_default_to_those_reached_in_order():
    g = Graph()
    a, b, c = (g.input(name, (2,)) for name in "abc")
    assert [n.name for n in prune([c + a]).inputs] == ["a", "c"]
    assert [n.name for n in prune([c + a], [c, b, a]).inputs] == ["c", "b", "a"]


def test_an_extent_needs_an_input_that_tells_it():
    g = Graph()
    x, y = g.input("x", ("n",)), g.input("y", (3,))
    z = sg.broadcast_to(sg.sum(y), (Dim.named("n"),))
    assert [n.name for n in prune(z).inputs] == ["x", "y"]
    with pytest.raises(GraphError, match=r"'n'.*'x'"):
        prune(z, [y])
    assert prune(z, [y, x]).outputs[0].shape == (Dim.named("n"),)


def test_sub_programs_are_put_in_place():
    inner = Graph()
    a = inner.input("a", (3,))
    body = Program(inner, (a,), (sg.phase(sg.exp(a), a * 3.0),))
    middle = Graph()
    c = middle.input("c", (3,))
    twice = Program(middle, (c,), (apply("call", apply("call", c, program=body), program=body),))
    g = Graph()
    x = g.input("x", (3,))
    program = prune(apply("call", x, program=twice) + 1.0, [x])
    assert not {n.op.name for n in program.nodes} & {"call", "phase", "exp"}
    np.testing.assert_array_equal(evaluate(program.outputs[0], {program.inputs[0]: np.ones(3, np.float32)}), [10] * 3)


def test_outputs_of_every_structure():
    g = Graph()
    x = g.input("x", (2,))
    y = x * 2.0
    assert prune(y).output_names is None
    assert len(prune((x, y)).outputs) == 2
    assert prune({"b": y, "a": x}).output_names == ("b", "a")
    twice = prune([y, y])
    assert twice.outputs[0] is twice.outputs[1]


def test_random_draws_in_inference_stay_random():
    g = Graph()
    logits = g.param("logits", np.zeros(4, np.float32))
    program = prune(random.categorical(logits, shape=(100,)), [])
    assert [old.name for old, _ in program.updates] == ["random_step"]


def test_a_long_chain():
    g = Graph(rules={})
    x: Node = g.input("x", (2,))
    y = x
    for _ in range(20_000):
        y = apply("stop_gradient", apply("negative", y))
    assert len(prune(y, [x]).nodes) == 20_001


def test_errors():
    g, other = Graph(), Graph()
    x, y = g.input("x", (2,)), g.input("y", (2,))
    z = other.input("z", (2,))
    with pytest.raises(GraphError, match=r"'y'.*not listed"):
        prune(x + y, [x])
    with pytest.raises(GraphError, match="belongs to"):
        prune([x, z])
    with pytest.raises(GraphError, match="no output"):
        prune([])
    with pytest.raises(GraphError, match="phase"):
        prune(x, phase="test")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match="not an input"):
        prune(x + y, [x + y])
    with pytest.raises(GraphError, match="a node"):
        prune([1.0])  # type: ignore[list-item]
