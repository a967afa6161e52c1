"""Random numbers: the bits of an independent Philox, distributions, streams, steps and reproducibility."""

# pyright: basic
from __future__ import annotations

import math

import numpy as np
import pytest

from symgrad import random
from symgrad.errors import DTypeError, GraphError, ShapeError
from symgrad.evaluate import evaluate
from symgrad.graph import Graph, Node
from symgrad.types import Dim, float64

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Philox4x32-10 in Python integers, from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & 0xFFFFFFFF, (first >> 32) ^ c3 ^ k1, first & 0xFFFFFFFF
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def test_the_oracle_gives_the_published_vectors():
    assert philox((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert philox((ones, ones, ones, ones), (ones, ones)) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)


@pytest.mark.parametrize("count", [0, 1, 4, 7, 10])
def test_bits_are_philox_words(count: int):
    g = Graph(seed=0x1234567890ABCDEF)
    random.bits(g, (3,))
    node = random.bits(g, (count,))
    g.named("random_step").value = np.array(5, np.uint32)
    blocks = -(-count // 4)
    words = [philox((b, 0, 2, 5), (0x90ABCDEF, 0x12345678)) for b in range(blocks)]
    expected = [words[e % blocks][e // blocks] for e in range(count)]
    np.testing.assert_array_equal(evaluate(node), np.array(expected, np.uint32))


def test_call_sites_seeds_and_steps_differ():
    def draw(seed: int) -> tuple[Graph, Node, Node]:
        g = Graph(seed=seed)
        return g, random.uniform(g, (100,)), random.uniform(g, (100,))

    g, a, b = draw(1)
    first, second = evaluate([a, b])
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(evaluate(draw(1)[1]), first)
    assert not np.array_equal(evaluate(draw(2)[1]), first)
    np.testing.assert_array_equal(evaluate(a), first)
    ((step, advanced),) = random.random_updates(g)
    step.value = evaluate(advanced)
    assert not np.array_equal(evaluate(a), first)
    assert step.value == 1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.3


def test_the_step_is_one_state_without_scope():
    g = Graph()
    assert random.random_updates(g) == []
    with g.scope("block"):
        random.bits(g, (1,))
    random.bits(g, (1,))
    assert [s.name for s in g.states] == ["random_step"]
    taken = Graph()
    taken.param("random_step", np.zeros(3, np.float32))
    with pytest.raises(GraphError, match="random_step"):
        random.bits(taken, (1,))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_moments(dtype: str):
    g = Graph(seed=3)
    values = evaluate(random.uniform(g, (20_000,), -2.0, 4.0, dtype=dtype))
    assert values.dtype == dtype
    assert values.min() >= -2
    assert values.max() < 4
    assert abs(values.mean() - 1.0) < 0.05
    assert abs(values.std() - 6 / math.sqrt(12)) < 0.05
    counts = np.histogram(values, 20, (-2, 4))[0]
    assert ((counts - 1000.0) ** 2 / 1000).sum() < 50


def test_uniform_never_reaches_the_upper_bound():
    g = Graph()
    value = np.uint32(0xFFFFFFFF)
    node = random.uniform(g, (4,), 1.0, 2.0)
    words = [n for n in g.nodes if n.op.name == "philox"]
    highest = evaluate(node, {w: np.full(1, value) for w in words})
    assert (highest < 2).all()
    assert (highest > 1.99).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normal_moments(dtype: str):
    g = Graph(seed=4)
    values = evaluate(random.normal(g, (201, 100), 0.5, 2.0, dtype=dtype))
    standard = (values.astype(np.float64) - 0.5) / 2.0
    assert values.dtype == dtype
    assert np.isfinite(values).all()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert abs((standard**power).mean() - moment) < 0.12
    assert abs((np.abs(standard) < 1).mean() - 0.6827) < 0.02


def test_bernoulli():
    g = Graph(seed=5)
    mask = evaluate(random.bernoulli(g, 0.3, (50, 400)))
    assert mask.dtype == np.bool_
    assert abs(mask.mean() - 0.3) < 0.02
    assert not evaluate(random.bernoulli(g, 0.0, (1000,))).any()
    assert evaluate(random.bernoulli(g, 1.0, (1000,))).all()
    p = g.const(np.array([[0.1], [0.9]], np.float32))
    rows = evaluate(random.bernoulli(g, p, (2, 5000))).mean(axis=1)
    np.testing.assert_allclose(rows, [0.1, 0.9], atol=0.02)
    with pytest.raises(ShapeError):
        random.bernoulli(g, 1.5, (2,))


def test_categorical():
    g = Graph(seed=6)
    probabilities = np.array([[0.1, 0.2, 0.7], [0.5, 0.5, 0.0]], np.float32)
    with np.errstate(divide="ignore"):
        logits = g.const(np.log(probabilities))
    draws = evaluate(random.categorical(logits, shape=(5000,)))
    assert draws.shape == (5000, 2)
    assert draws.dtype == np.int64
    for row in range(2):
        shares = np.bincount(draws[:, row], minlength=3) / 5000
        np.testing.assert_allclose(shares, probabilities[row], atol=0.03)
    assert evaluate(random.categorical(logits, axis=0)).shape == (3,)
    with pytest.raises(ShapeError):
        random.categorical(logits, axis=2)
    with pytest.raises(DTypeError):
        random.categorical(g.const(np.arange(3)))


def test_symbolic_shapes():
    g = Graph()
    x = g.input("x", ("n", 3))
    node = random.normal(g, x.shape) + x
    data = np.zeros((5, 3), np.float32)
    fixed = Graph()
    np.testing.assert_array_equal(evaluate(node, {x: data}), evaluate(random.normal(fixed, (5, 3))))
    assert random.bits(g, (Dim.named("n"),)).shape == (Dim.named("n"),)


def test_bad_arguments():
    g = Graph()
    with pytest.raises(DTypeError):
        random.uniform(g, (2,), dtype="int32")
    with pytest.raises(ShapeError):
        random.uniform(g, (2,), 1.0, 1.0)
    with pytest.raises(ShapeError):
        random.uniform(g, (-1,))
    with pytest.raises(ShapeError):
        random.uniform(g, (2,), -3e38, 3e38)
    assert evaluate(random.uniform(g, (2,), -3e38, 3e38, dtype=float64)).shape == (2,)
