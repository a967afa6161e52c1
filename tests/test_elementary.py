"""Functions made of elementary operators, and the Python operators `//`, `%`, `<<` and `>>`."""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg

Array = np.ndarray


def run(function: Callable[..., sg.Node], *arrays: Array) -> Array:
    """Compiled, after a comparison with the interpreter."""
    graph = sg.Graph()
    nodes = [graph.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
    out = function(*nodes)
    got = sg.compile(nodes, out)(*arrays)
    np.testing.assert_allclose(got, sg.evaluate(out, dict(zip(nodes, arrays, strict=True))), rtol=1e-14)
    assert got.dtype == out.dtype.np
    return got


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint16, np.float32, np.float64])
def test_quotients_as_python_has_them(dtype: type) -> None:
    x = np.array([7, 8, 9, 100, 0], dtype)
    y = np.array([2, 3, 5, 7, 9], dtype)
    for a, b in ((x, y),) if np.issubdtype(dtype, np.unsignedinteger) else ((x, y), (-x, y), (x, -y), (-x, -y)):
        assert run(lambda p, q: p // q, a, b).tolist() == [u // v for u, v in zip(a.tolist(), b.tolist(), strict=True)]
        assert run(lambda p, q: p % q, a, b).tolist() == [u % v for u, v in zip(a.tolist(), b.tolist(), strict=True)]
    assert run(lambda p: 100 // (p + 1), x).tolist() == [100 // (v + 1) for v in x.tolist()]
    assert run(lambda p: p % 4, x).tolist() == [v % 4 for v in x.tolist()]
    assert run(lambda p: y % (p + 1), x).tolist() == [v % (u + 1) for u, v in zip(x.tolist(), y.tolist(), strict=True)]


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_quotients_that_instructions_do_not_have(dtype: type) -> None:
    least = np.iinfo(dtype).min
    x, y = np.array([least, least, 5, 0], dtype), np.array([-1, 0, 0, 0], dtype)
    assert run(sg.floor_divide, x, y).tolist() == [least, 0, 0, 0]
    assert run(sg.remainder, x, y).tolist() == [0, 0, 0, 0]


def test_shifts() -> None:
    x = np.array([1, -1, -128, 127, 5, -5, 3, -3], np.int8)
    count = np.array([7, 7, 8, 8, -1, -1, 1, 1], np.int8)
    assert run(lambda a, b: a << b, x, count).tolist() == [-128, -128, 0, 0, 0, 0, 6, -6]
    assert run(lambda a, b: a >> b, x, count).tolist() == [0, -1, -1, 0, 0, -1, 1, -2]
    assert run(lambda a: a << 2, x).tolist() == np.left_shift(x, 2).tolist()
    with pytest.raises(sg.DTypeError):
        _ = sg.Graph().input("x", (3,)) << 1


def test_bool_has_no_quotients() -> None:
    flag = sg.Graph().input("x", (3,), sg.bool_)
    for function in (sg.floor_divide, sg.remainder, sg.bitwise_left_shift):
        with pytest.raises(sg.DTypeError):
            function(flag, flag)


def test_logarithm_with_a_factor() -> None:
    a = np.array([0.0, 0.0, 0.0, 2.0, 0.0, -1.0])
    b = np.array([0.0, np.inf, -1.0, 3.0, np.nan, 0.0])
    expected = np.array([0.0, 0.0, 0.0, 2 * np.log(3.0), np.nan, np.inf])
    np.testing.assert_allclose(run(sg.xlogy, a, b), expected)
    graph = sg.Graph()
    p, q = graph.input("p", (6,), sg.float64), graph.input("q", (6,), sg.float64)
    _, slope = sg.grad(sg.sum(sg.xlogy(p, q)), [p, q])
    assert sg.evaluate(slope, {p: a, q: np.zeros(6)})[:3].tolist() == [0, 0, 0]


def test_logit_inverts_sigmoid() -> None:
    x = np.array([0.0, 1e-300, 1e-5, 0.25, 0.5, 0.5 + 2.0**-50, 0.75, 0.999, 1.0, 1.5])
    with np.errstate(all="ignore"):
        expected = np.log(x) - np.log1p(-x)
    expected[5] = 2.0**-48
    np.testing.assert_allclose(run(sg.logit, x), expected, rtol=1e-15)


def test_signs_and_counts() -> None:
    x = np.array([[0.0, -0.0, 1.5], [-2.0, np.inf, -np.inf]])
    assert np.array_equal(run(sg.signbit, x), np.signbit(x))
    assert run(sg.count_nonzero, x).tolist() == 4
    assert run(lambda n: sg.count_nonzero(n, axis=1, keepdims=True), x).tolist() == [[1], [3]]


def test_differences() -> None:
    x = np.arange(12.0).reshape(3, 4) ** 2
    for axis in (0, 1, -1):
        for n in (0, 1, 2):
            got = run(lambda a, axis=axis, n=n: sg.diff(a, axis=axis, n=n), x)
            assert np.array_equal(got, np.diff(x, n, axis))
    ends = np.diff(x, axis=1, prepend=1.0, append=x[:, :2])
    assert np.array_equal(run(lambda a: sg.diff(a, prepend=1.0, append=x[:, :2]), x), ends)
    flags = np.array([True, True, False, True])
    assert np.array_equal(run(sg.diff, flags), np.diff(flags))
    assert run(sg.diff, np.zeros((3, 1))).shape == (3, 0)
    with pytest.raises(sg.ShapeError):
        sg.diff(sg.Graph().input("x", (3, 0)))


@pytest.mark.parametrize("indexing", ["xy", "ij"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_grids(indexing: Any, count: int) -> None:
    arrays = [np.arange(k + 2.0) for k in range(count)]
    for k, expected in enumerate(np.meshgrid(*arrays, indexing=indexing)):
        assert np.array_equal(run(lambda *n, k=k: sg.meshgrid(*n, indexing=indexing)[k], *arrays), expected)
    assert sg.meshgrid() == []
    with pytest.raises(ValueError, match="indexing"):
        sg.meshgrid(indexing="yx")
