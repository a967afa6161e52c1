"""Adaptive maxima against their definition: values, derivatives, ties, errors."""

# pyright: basic
from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive, differs

import symgrad as sg
from symgrad.graph import Graph

RNG = np.random.default_rng(6)
FUNCTIONS = (sg.nn.adaptive_max_pool1d, sg.nn.adaptive_max_pool2d, sg.nn.adaptive_max_pool3d)
SHAPES = (
    ((7,), (3,)),
    ((6,), (3,)),
    ((2,), (5,)),
    ((5, 7), (2, 3)),
    ((4, 6), (2, 3)),
    ((5, 4), (1, 4)),
    ((3, 5, 4), (2, 3, 2)),
)


def defined(x: np.ndarray, counts: tuple[int, ...]) -> np.ndarray:
    """The largest element of each part, one part after the other."""
    out = np.empty((*x.shape[:2], *counts), x.dtype)
    for part in itertools.product(*map(range, counts)):
        cut = tuple(slice(k * e // c, -(-(k + 1) * e // c)) for k, e, c in zip(part, x.shape[2:], counts, strict=True))
        out[(..., *part)] = x[(..., *cut)].max(axis=tuple(range(2, x.ndim)))
    return out


@pytest.mark.parametrize(("shape", "counts"), SHAPES, ids=str)
def test_values(shape: tuple[int, ...], counts: tuple[int, ...]) -> None:
    g = Graph()
    x = g.input("x", ("n", 3, *shape))
    pool = FUNCTIONS[len(shape) - 1]
    given = counts[0] if len(set(counts)) == 1 else counts
    a = RNG.normal(size=(2, 3, *shape)).astype(np.float32)
    a[0, 0].flat[0] = np.nan
    assert differs(sg.compile([x], pool(x, given))(a), defined(a, counts)) is None


def test_derivatives() -> None:
    g = Graph()
    derived = []
    for shape, counts in (((5,), (3,)), ((3, 4), (2, 2)), ((4, 3), (2, 2))):
        x = g.input(f"x{len(derived)}", (1, 2, *shape), sg.float64)
        out = sg.square(FUNCTIONS[len(shape) - 1](x, counts))
        derived.append(derive([x], [RNG.uniform(0.3, 1.7, (1, 2, *shape))], out, 2))
    check_derivatives(derived)


def test_ties_of_a_part_share_equally() -> None:
    g = Graph()
    x = g.input("x", (1, 1, 3, 3), sg.float64)
    slope = sg.grad(sg.sum(sg.nn.adaptive_max_pool2d(x, 2)), x)
    found = sg.compile([x], slope)(np.ones((1, 1, 3, 3)))
    # Four overlapping parts of four elements each.
    assert found[0, 0].tolist() == [[0.25, 0.5, 0.25], [0.5, 1, 0.5], [0.25, 0.5, 0.25]]


def test_errors() -> None:
    g = Graph()
    x, y = g.input("x", (1, 2, 5, 5)), g.input("y", (1, 2, "n"))
    whole = g.input("z", (1, 2, 5), sg.int32)
    raised: list[tuple[type[Exception], str, Any]] = [
        (sg.ShapeError, "2 axes of space", lambda: sg.nn.adaptive_max_pool2d(y, 2)),
        (sg.ShapeError, "known, positive extent", lambda: sg.nn.adaptive_max_pool1d(y, 2)),
        (ValueError, "size is one integer", lambda: sg.nn.adaptive_max_pool2d(x, (2, 0))),
        (ValueError, "size is one integer", lambda: sg.nn.adaptive_max_pool2d(x, (2, 2, 2))),
        (sg.DTypeError, "floating", lambda: sg.nn.adaptive_max_pool1d(whole, 2)),
    ]
    for kind, message, call in raised:
        with pytest.raises(kind, match=message):
            call()
