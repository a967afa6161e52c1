"""Params and states as shared memory: simultaneous updates, written in place only where nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph, Node

# Small, ragged, and large enough for several workers.
SIZES = (1, 3, 17, 96)


def float_array(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def check_step(
    values: dict[str, np.ndarray], build: Callable[..., tuple[list[Node], dict[str, Node]]], *, steps: int = 2
) -> None:
    """Outputs and new values of a few steps are those the interpreter computes from the old values."""
    graph = Graph()
    params = {name: graph.param(name, value) for name, value in values.items()}
    outputs, updates = build(graph, **params)
    step = sg.compile([], outputs, updates=[(params[name], new) for name, new in updates.items()])
    for _ in range(steps):
        wanted = sg.evaluate([*outputs, *updates.values()], phase="train")
        before = {name: p.value for name, p in params.items()}
        got = step()
        for one, other in zip(got, wanted, strict=False):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        after = dict(zip(updates, wanted[len(outputs) :], strict=True))
        for name, param in params.items():
            np.testing.assert_allclose(param.value, after.get(name, before[name]), rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("n", SIZES)
def test_swap(n: int) -> None:
    rng = np.random.default_rng(n)
    values = {"a": float_array(rng, n, n), "b": float_array(rng, n, n)}
    check_step(values, lambda g, a, b: ([], {"a": b, "b": a}))
    check_step(values, lambda g, a, b: ([a, b, a + b], {"a": b, "b": a}))


def test_rotation_of_four() -> None:
    rng = np.random.default_rng(0)
    names = "abcd"
    values = {name: float_array(rng, 5) for name in names}
    check_step(values, lambda g, **p: ([], {x: p[y] for x, y in pairwise([*names, "a"])}), steps=3)


ONE_PARAM: dict[str, Callable[[Graph, Node], tuple[list[Node], dict[str, Node]]]] = {
    "itself": lambda g, a: ([a], {"a": a}),
    "old value out": lambda g, a: ([a], {"a": a + 1}),
    "new value out": lambda g, a: ([a * 2], {"a": a * 2}),
    "both out": lambda g, a: ([a, a * 2, a + 3], {"a": a * 2}),
    "constant": lambda g, a: ([a], {"a": sg.full_like(a, 3)}),
    "array": lambda g, a: ([sg.sum(a)], {"a": g.const(np.ones((len(a), len(a)), np.float32) * 7)}),
    "product left": lambda g, a: ([], {"a": 0.1 * a @ sg.tanh(a)}),
    "product right": lambda g, a: ([a], {"a": sg.tanh(a) @ a * 0.5}),
    "product with itself": lambda g, a: ([], {"a": a @ a * 0.1}),
    "product with transpose": lambda g, a: ([], {"a": 0.1 * a @ a.T}),
    "product epilogue": lambda g, a: ([], {"a": a - 0.1 * (a.T @ a)}),
    "transpose": lambda g, a: ([], {"a": a.T}),
    "transpose plus": lambda g, a: ([a], {"a": a.T + a}),
    "reversed rows": lambda g, a: ([], {"a": a[::-1]}),
    "reversed columns": lambda g, a: ([], {"a": a[:, ::-1] * 2}),
    "reversed all": lambda g, a: ([], {"a": sg.flip(a) + a}),
    "roll": lambda g, a: ([], {"a": sg.roll(a, 1, 0)}),
    "shift": lambda g, a: ([], {"a": sg.concat([a[-1:], a[:-1]])}),
    "total": lambda g, a: ([], {"a": a - sg.sum(a)}),
    "total out": lambda g, a: ([sg.sum(a)], {"a": a + 1}),
    "row means": lambda g, a: ([], {"a": a - sg.mean(a, axis=1, keepdims=True)}),
    "column means": lambda g, a: ([], {"a": a - sg.mean(a, axis=0, keepdims=True)}),
    "broadcast row": lambda g, a: ([], {"a": sg.broadcast_to(a[:1], a.shape)}),
    "broadcast column": lambda g, a: ([], {"a": sg.broadcast_to(a[:, -1:], a.shape) + a}),
    "column sums": lambda g, a: ([], {"a": sg.broadcast_to(sg.sum(a, axis=0), a.shape) + 0}),
    "row sums across": lambda g, a: ([], {"a": sg.broadcast_to(sg.sum(a, axis=1), a.shape) * 0.5}),
    "softmax": lambda g, a: ([], {"a": sg.nn.softmax(a)}),
    "softmax rows down": lambda g, a: ([sg.max(a)], {"a": sg.nn.softmax(a, axis=0)}),
    "gather": lambda g, a: ([], {"a": sg.take(a, np.arange(len(a))[::-1].copy(), 0)}),
    "scatter": lambda g, a: ([a], {"a": sg.scatter_add(a, np.zeros(1, np.int64), a[:1])}),
    "reshape": lambda g, a: ([], {"a": sg.reshape(sg.reshape(a, (-1,))[::-1], a.shape)}),
    "gradient": lambda g, a: ([sg.sum(sg.tanh(a @ a))], {"a": a - 0.1 * sg.grad(sg.sum(sg.tanh(a @ a)), a)}),
    "later reader": lambda g, a: ([sg.sum(a * a), sg.max(a, axis=0), a.T], {"a": sg.exp(-a)}),
}  # fmt: skip


@pytest.mark.parametrize("case", ONE_PARAM)
@pytest.mark.parametrize("n", SIZES)
def test_update_that_reads_itself(case: str, n: int) -> None:
    check_step({"a": float_array(np.random.default_rng(n), n, n)}, ONE_PARAM[case])


def test_two_params_that_read_each_other() -> None:
    rng = np.random.default_rng(2)
    for n in SIZES:
        values = {"a": float_array(rng, n, n), "b": float_array(rng, n, n)}
        check_step(values, lambda g, a, b: ([], {"a": a + b, "b": a - b}))
        check_step(values, lambda g, a, b: ([a @ b], {"a": 0.1 * a @ b, "b": 0.1 * b @ a}))
        check_step(values, lambda g, a, b: ([], {"a": b.T, "b": a.T}))
        check_step(values, lambda g, a, b: ([], {"a": b + sg.sum(a), "b": a + sg.sum(b)}))
        check_step(values, lambda g, a, b: ([], {"a": a + b, "b": a + b}))
        check_step(values, lambda g, a, b: ([a + b], {"a": a + b, "b": a}))


_PIECES: tuple[Callable[[Node, Node], Node], ...] = (
    lambda a, b: a + b,
    lambda a, b: a * b - a,
    lambda a, b: sg.tanh(a),
    lambda a, b: a.T,
    lambda a, b: a[::-1],
    lambda a, b: a - sg.mean(a),
    lambda a, b: a / (1 + sg.max(sg.abs(a), axis=1, keepdims=True)),
    lambda a, b: sg.broadcast_to(sg.mean(a, axis=0), a.shape),
    lambda a, b: sg.tanh(a @ b),
    lambda a, b: sg.where(a > b * 0.5, a, b * 0.5),
    lambda a, b: sg.roll(a, 1, 1),
)


def test_old_value_read_after_the_new_one_is_known() -> None:
    values = {"a": np.ones(3, np.float32), "c": np.full(3, 5, np.float32)}
    check_step(values, lambda g, a, c: ([a * 3, (a + 1) * c], {"c": a + 1}))


def test_old_value_read_in_the_epilogue_of_the_new_one() -> None:
    values = {"a": np.eye(3, dtype=np.float32), "c": np.full((3, 3), 5, np.float32)}
    check_step(values, lambda g, a, c: ([c + sg.tanh(a @ a)], {"c": sg.tanh(a @ a)}))


@pytest.mark.parametrize("seed", range(24))
def test_random_updates(seed: int) -> None:
    """Random expressions over three params, some of them shared, all updated at once."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice((1, 4, 9, 33)))

    def build(g: Graph, **params: Node) -> tuple[list[Node], dict[str, Node]]:
        pool = list(params.values())
        for _ in range(9):
            piece = _PIECES[rng.integers(len(_PIECES))]
            pool.append(piece(pool[rng.integers(len(pool))], pool[rng.integers(len(pool))]))
        chosen = [pool[k] for k in rng.integers(len(pool), size=5)]
        return chosen[3:], dict(zip(params, chosen, strict=False))

    check_step({name: float_array(rng, n, n) for name in "abc"}, build)


def test_update_to_inputs_and_numbers() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    w, step = graph.param("w", np.zeros(3, np.float32)), graph.state("step", np.int64(0))
    keep = sg.compile([x], w, updates=[(w, x), (step, step + 1)])
    given = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(keep(given), [0, 0, 0])
    given[:] = 7  # the param holds a copy
    np.testing.assert_array_equal(w.value, [1, 2, 3])
    assert step.value == 1
    reset = sg.compile([], None, updates=[(w, np.ones(3, np.float32)), (step, 0)])
    assert reset() == ()
    np.testing.assert_array_equal(w.value, [1, 1, 1])
    assert step.value == 0


def test_output_is_the_new_value_and_does_not_alias_the_param() -> None:
    graph = Graph()
    w = graph.param("w", np.arange(3, dtype=np.float32))
    step = sg.compile([], [w, w + 1, w], updates=[(w, w + 1)])
    old, new, again = step()
    np.testing.assert_array_equal(old, [0, 1, 2])
    np.testing.assert_array_equal(new, [1, 2, 3])
    old[:], new[:] = 50, 60
    np.testing.assert_array_equal(again, [0, 1, 2])
    np.testing.assert_array_equal(w.value, [1, 2, 3])


def test_functions_share_params() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    w = graph.param("w", np.float32(1))
    total = sg.sum(w * x)
    train = sg.compile([x], total, updates=[(w, w + 1)])
    predict = sg.compile([x], total)
    ones = np.ones(4, np.float32)
    assert [float(train(ones)), float(predict(ones)), float(train(ones)), float(predict(ones))] == [4, 8, 8, 12]
    w.value = np.asarray(10, np.float32)
    assert float(predict(ones)) == 40
    copy = w.value
    copy[...] = 0
    assert w.value == 10


def test_phase_defaults() -> None:
    graph = Graph()
    x = graph.input("x", (1000,))
    w = graph.param("w", np.float32(1))
    dropped = sg.nn.dropout(x * w, 0.5)
    ones = np.ones(1000, np.float32)
    assert (sg.compile([x], dropped)(ones) == 1).all()
    assert (sg.compile([x], dropped, phase="train")(ones) == 0).any()
    assert (sg.compile([x], dropped, updates=[(w, w)])(ones) == 0).any()
    assert (sg.compile([x], dropped, updates=[(w, w)], phase="infer")(ones) == 1).all()


def test_updates_with_empty_params() -> None:
    graph = Graph()
    a, b = graph.param("a", np.zeros((0, 3), np.float32)), graph.param("b", np.ones(3, np.float32))
    step = sg.compile([], sg.sum(a), updates=[(a, a * 2), (b, b + sg.sum(a, axis=0))])
    assert step() == 0
    np.testing.assert_array_equal(b.value, [1, 1, 1])


def test_failed_call_leaves_states_unchanged() -> None:
    graph = Graph()
    index = graph.input("index", ("n",), sg.int32)
    table, count = graph.param("table", np.arange(5, dtype=np.float32)), graph.state("count", np.int32(0))
    rows = sg.take(table, index)
    step = sg.compile([index], sg.sum(rows), updates=[(count, count + 1), (table, table * 2 + sg.sum(rows))])
    assert float(step(np.array([0, 4], np.int32))) == 4
    before = table.value
    for wrong in ([5], [0, -6], [1, 2, 3, 2**31 - 1]):
        with pytest.raises(IndexError, match=r"check_index.*test_updates\.py:\d+.*extent of 5"):
            step(np.array(wrong, np.int32))
        np.testing.assert_array_equal(table.value, before)
        assert count.value == 1
    assert float(step(np.array([-1], np.int32))) == before[4]
    assert count.value == 2


def test_failed_call_inside_a_large_program() -> None:
    graph = Graph()
    labels = graph.input("labels", ("n",), sg.int32)
    w = graph.param("w", np.zeros((64, 300), np.float32))
    x = graph.input("x", ("n", 64))
    loss = sg.mean(sg.nn.softmax_cross_entropy(x @ w, labels))
    (gradient,) = sg.grad(loss, [w])
    train = sg.compile([x, labels], loss, updates=sg.optim.momentum([w], [gradient], lr=0.1, beta=0.9))
    rng = np.random.default_rng(0)
    batch, right = float_array(rng, 256, 64), rng.integers(300, size=256).astype(np.int32)
    first = float(train(batch, right))
    assert first == pytest.approx(np.log(300), rel=1e-5)
    held = [n.value for n in (w, *graph.states)]
    wrong = right.copy()
    wrong[200] = 300
    with pytest.raises(IndexError, match=r"test_updates\.py:\d+"):
        train(batch, wrong)
    for node, value in zip((w, *graph.states), held, strict=True):
        np.testing.assert_array_equal(node.value, value)
    assert float(train(batch, right)) < first


@pytest.mark.parametrize("threads", [1, 2])
def test_failed_checks_leave_states_alone(threads):
    """An index out of range is noticed before anything is overwritten, wherever in the program it stands."""
    g = sg.Graph()
    i = g.input("i", (4,), sg.int32)
    a, b = g.param("a", np.arange(4, dtype=np.float32)), g.param("b", np.ones(4, np.float32))
    far = sg.take(sg.tanh(b * 3.0) + 1.0, i)
    f = sg.compile([i], [sg.sum(a), far], updates=[(a, sg.take(a, i) * 2.0), (b, b + a)], threads=threads)
    before = a.value, b.value
    with pytest.raises(IndexError):
        f(np.array([0, 1, 2, 9], np.int32))
    np.testing.assert_array_equal(a.value, before[0])
    np.testing.assert_array_equal(b.value, before[1])
    f(np.array([3, 2, 1, 0], np.int32))
    np.testing.assert_array_equal(a.value, before[0][::-1] * 2)
    np.testing.assert_array_equal(b.value, before[0] + before[1])
