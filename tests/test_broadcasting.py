"""Gradients through broadcasting, for all pairs of shapes up to rank 3 with extents 0 to 2."""

# pyright: basic
from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph, Node

Array = np.ndarray
Shape = tuple[int, ...]
SHAPES: list[Shape] = [s for rank in range(4) for s in itertools.product((0, 1, 2), repeat=rank)]


def joint(a: Shape, b: Shape) -> Shape | None:
    try:
        return np.broadcast_shapes(a, b)
    except ValueError:
        return None


PAIRS = [(a, b, out) for a, b in itertools.product(SHAPES, repeat=2) if (out := joint(a, b)) is not None]
# Gradients of this many pairs are compiled at once.
BUNDLE = 30


def sum_to(array: Array, shape: Shape) -> Array:
    """The sum over the axes that broadcasting added or repeated."""
    lead = array.ndim - len(shape)
    repeated = [lead + k for k, extent in enumerate(shape) if extent == 1 and array.shape[lead + k] != 1]
    return array.sum(axis=(*range(lead), *repeated)).reshape(shape)


@dataclass
class Broadcast:
    """a b + 2 a, weighted by w: its value, both gradients and the mixed second derivative, with what NumPy gives."""

    nodes: list[Node]
    arrays: list[Array]
    outputs: list[Node]
    expected: list[Array]


def broadcast(graph: Graph, a: Shape, b: Shape, out: Shape, place: int) -> Broadcast:
    rng = np.random.default_rng(place)
    # Small integers: every sum is exact.
    p, q, w, u = (rng.integers(-4, 5, shape).astype(np.float64) for shape in (a, b, out, a))
    nodes = [graph.input(f"{name}{place}", v.shape, v.dtype) for name, v in zip("abwu", (p, q, w, u), strict=True)]
    x, y, weight, along = nodes
    value = x * y + 2 * x
    by_x, by_y = sg.grad(sg.sum(value * weight), [x, y])
    mixed = sg.grad(sg.sum(by_x * along), y)
    expected = [p * q + 2 * p, sum_to(w * (q + 2), a), sum_to(w * p, b), sum_to(w * u, b)]
    expected[0] = np.broadcast_to(expected[0], out)
    return Broadcast(nodes, [p, q, w, u], [value, by_x, by_y, mixed], expected)


def check(one: Broadcast, results: list[Array]) -> None:
    for node, got, expected in zip(one.outputs, results, one.expected, strict=True):
        assert got.shape == expected.shape == node.shape
        np.testing.assert_array_equal(got, expected, err_msg=str([n.shape for n in one.nodes]))


def test_all_pairs_are_tried() -> None:
    assert len(SHAPES) == 40
    assert len(PAIRS) == 940


@pytest.mark.parametrize("first", SHAPES, ids=str)
def test_interpreted(first: Shape) -> None:
    for k, (a, b, out) in enumerate(PAIRS):
        if a == first:
            one = broadcast(Graph(), a, b, out, k)
            check(one, sg.evaluate(one.outputs, dict(zip(one.nodes, one.arrays, strict=True))))


def test_shapes_that_do_not_broadcast() -> None:
    for a, b in itertools.product(SHAPES, repeat=2):
        if joint(a, b) is None:
            graph = Graph()
            with pytest.raises(sg.ShapeError, match="do not broadcast"):
                _ = graph.input("a", a) * graph.input("b", b)


def check_compiled(places: range) -> None:
    graph = Graph()
    some = [broadcast(graph, *PAIRS[k], k) for k in places]
    run = sg.compile([n for one in some for n in one.nodes], [n for one in some for n in one.outputs], threads=1)
    results = iter(run(*(v for one in some for v in one.arrays)))
    for one in some:
        check(one, [next(results) for _ in one.outputs])


def test_compiled() -> None:
    """Some of the pairs, with different shapes first and second."""
    check_compiled(range(0, len(PAIRS), 13))


@pytest.mark.long
@pytest.mark.parametrize("start", range(0, len(PAIRS), BUNDLE))
def test_all_compiled(start: int) -> None:
    check_compiled(range(start, min(start + BUNDLE, len(PAIRS))))
