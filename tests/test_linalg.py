"""Norms against NumPy, their derivatives and errors."""

# pyright: basic
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive

import symgrad as sg

_INF = np.inf


@pytest.mark.parametrize("ord", [0, 1, 2, 3, 2.5, 0.5, -1, -2, _INF, -_INF])
def test_vector_norm(ord: float) -> None:
    graph = sg.Graph()
    x = graph.input("x", (3, 4), sg.float64)
    a = np.random.default_rng(0).normal(size=(3, 4))
    places: list[Any] = [None, 0, 1, (0, 1)]
    nodes = [sg.linalg.vector_norm(x, axis=axis, ord=ord, keepdims=keep) for axis in places for keep in (False, True)]
    wanted = [_norm(a, axis, ord, keep) for axis in places for keep in (False, True)]
    for got, want in zip(sg.compile([x], nodes)(a), wanted, strict=True):
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-13)


def _norm(a: np.ndarray, axis: Any, ord: float, keep: bool) -> np.ndarray:
    if axis in (None, (0, 1)):
        out = np.linalg.norm(a.ravel(), ord)
        return np.full((1, 1), out) if keep else np.asarray(out)
    return np.linalg.norm(a, ord, axis, keepdims=keep)


@pytest.mark.parametrize("ord", [1, 2, 4, _INF])
def test_derivatives_of_vector_norm(ord: float) -> None:
    """Reciprocals of other orders are rounded, and differ from true ones. At the zero vector: `conventions`."""
    x = sg.Graph().input("x", (3, 4), sg.float64)
    data = np.random.default_rng(1).normal(size=(3, 4))
    check_derivatives([derive([x], [data], sg.linalg.vector_norm(x, axis=1, ord=ord), 2)])


def test_errors() -> None:
    graph = sg.Graph()
    with pytest.raises(sg.DTypeError, match="not floating"):
        sg.linalg.vector_norm(graph.input("k", (3,), sg.int32))
    with pytest.raises(ValueError, match="nan"):
        sg.linalg.vector_norm(graph.input("x", (3,)), ord=np.nan)
