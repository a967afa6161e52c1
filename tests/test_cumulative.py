# pyright: basic
"""Running values along an axis: NumPy's bits, conventions at ties and zeros, derivatives to order 3."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive, differs

import symgrad as sg
from symgrad.graph import Graph, Node

Array = np.ndarray
FUNCTIONS: dict[str, np.ufunc] = {
    "cumulative_sum": np.add,
    "cumulative_prod": np.multiply,
    "cumulative_max": np.maximum,
    "cumulative_min": np.minimum,
    "cumulative_logsumexp": np.logaddexp,
}
EXACT = ("cumulative_sum", "cumulative_prod", "cumulative_max", "cumulative_min")


def run(make: Callable[[Node], Node], value: Array, **options: Any) -> Array:
    """The compiled result, which the interpreter must agree with where it is exact."""
    graph = Graph()
    x = graph.input("x", value.shape, value.dtype)
    return sg.compile([x], make(x), **options)(value)


def accumulated(name: str, value: Array, axis: int, reverse: bool) -> Array:
    ordered = np.flip(value, axis) if reverse else value
    out = FUNCTIONS[name].accumulate(ordered, axis)
    return np.flip(out, axis) if reverse else out


@pytest.mark.parametrize("name", EXACT)
def test_bits_are_those_of_numpy(name: str) -> None:
    rng = np.random.default_rng(3)
    for dtype in (np.float32, np.float64):
        for shape, axis in (((1000,), 0), ((33, 70), 0), ((33, 70), 1), ((3, 20, 5), 1), ((2, 1, 9), -1)):
            for reverse in (False, True):
                value = rng.normal(0, 1, shape).astype(dtype)
                value[rng.random(shape) < 0.05] = -0.0
                value[rng.random(shape) < 0.002] = np.nan
                got = run(lambda x, a=axis, r=reverse: getattr(sg, name)(x, axis=a, reverse=r), value)
                assert differs(got, accumulated(name, value, axis, reverse)) is None


@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_prod"])
def test_data_types(name: str) -> None:
    """Integers and bool add up in 64 bits, or in the type that is asked for, and wrap."""
    rng = np.random.default_rng(4)
    numpy = {"cumulative_sum": np.cumsum, "cumulative_prod": np.cumprod}[name]
    for dtype in (np.int8, np.uint8, np.int32, np.uint32, np.int64, np.bool_):
        value = rng.integers(0, 2 if dtype is np.bool_ else 100, 40).astype(dtype)
        with np.errstate(all="ignore"):
            wanted = numpy(value, dtype=np.uint64 if np.dtype(dtype).kind == "u" else np.int64)
            narrow = numpy(value, dtype=np.int16)
            single = numpy(value.astype(np.float32))
        assert differs(run(getattr(sg, name), value), wanted) is None
        assert differs(run(lambda x: getattr(sg, name)(x, dtype=sg.int16), value), narrow) is None
        assert differs(run(lambda x: getattr(sg, name)(x, dtype=sg.float32), value), single) is None
    for extreme in ("cumulative_max", "cumulative_min"):
        for dtype in (np.int8, np.uint64, np.bool_):
            value = rng.integers(0, 2, (5, 9)).astype(dtype)
            got = run(lambda x, f=extreme: getattr(sg, f)(x, axis=0), value)
            assert differs(got, FUNCTIONS[extreme].accumulate(value, 0)) is None


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["cumulative_sum", "cumulative_prod"])
def test_initial_value(name: str, reverse: bool) -> None:
    numpy = {"cumulative_sum": np.cumulative_sum, "cumulative_prod": np.cumulative_prod}[name]
    value = np.array([[-0.0, 1, 2, 3], [4, 5, 6, 7]], np.float32)
    for axis in (0, 1):
        ordered = np.flip(value, axis) if reverse else value
        wanted = numpy(ordered, axis=axis, include_initial=True)
        wanted = np.flip(wanted, axis) if reverse else wanted
        got = run(lambda x, a=axis: getattr(sg, name)(x, axis=a, include_initial=True, reverse=reverse), value)
        assert differs(got, wanted) is None
    empty = run(lambda x: getattr(sg, name)(x, include_initial=True), np.zeros(0))
    assert differs(empty, numpy(np.zeros(0), include_initial=True)) is None


@pytest.mark.parametrize("axis", [0, 1])
def test_logsumexp(axis: int) -> None:
    rng = np.random.default_rng(5)
    for scale in (1.0, 100.0, 1e4):
        for reverse in (False, True):
            value = rng.normal(0, scale, (40, 50))
            got = run(lambda x, r=reverse: sg.cumulative_logsumexp(x, axis=axis, reverse=r), value)
            wanted = accumulated("cumulative_logsumexp", value, axis, reverse)
            np.testing.assert_allclose(got, wanted, rtol=1e-14, atol=1e-14)
    single = run(lambda x: sg.cumulative_logsumexp(x, axis=axis), np.arange(40).reshape(4, 10))
    assert single.dtype == np.float32


def test_logsumexp_of_specials() -> None:
    inf, nan = np.inf, np.nan
    rows = np.array(
        [
            [-inf, -inf, -700, -inf, 3],
            [1, inf, 2, -inf, 0],
            [-inf, 800, nan, 1, inf],
            [1e308, -1e308, 1e308, 0, 0],
        ]
    )
    with np.errstate(all="ignore"):
        wanted = np.logaddexp.accumulate(rows, 1)
    for axis, value in ((1, rows), (0, rows.T)):
        got = run(lambda x, a=axis: sg.cumulative_logsumexp(x, axis=a), value)
        np.testing.assert_allclose(got if axis else got.T, wanted, rtol=1e-15)
    graph = Graph()
    x = graph.input("x", (5,), sg.float64)
    slope = sg.compile([x], sg.grad(sg.cumulative_logsumexp(x)[-1], x))(rows[0])
    np.testing.assert_allclose(slope, [0, 0, np.exp(-703), 0, 1])
    first = sg.compile([x], sg.grad(sg.cumulative_logsumexp(x)[0], x))(rows[0])
    np.testing.assert_array_equal(first, np.zeros(5))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_to_order_3(name: str) -> None:
    graph = Graph()
    rng = np.random.default_rng(6)
    derived = []
    for shape, axis, reverse in (((4,), 0, False), ((3, 2), 0, True), ((2, 3), 1, False)):
        x = graph.input(f"x{len(graph.nodes)}", shape, sg.float64)
        out = getattr(sg, name)(x, axis=axis, reverse=reverse)
        value = rng.uniform(0.3, 1.7, shape)
        if name == "cumulative_prod":
            value[tuple(k // 2 for k in shape)] = 0
        derived.append(derive([x], [value], out * out, 3))
    if name == "cumulative_prod":
        x = graph.input("zeros", (4,), sg.float64)
        derived.append(derive([x], [np.array([0, 2.0, 0, 3.0])], sg.cumulative_prod(x), 3))
    check_derivatives(derived)


def test_gradient_of_extremes_goes_to_the_first_of_equals() -> None:
    graph = Graph()
    x = graph.input("x", (7,), sg.float64)
    weights = graph.input("w", (7,), sg.float64)
    value, w = np.array([2.0, 2, 1, 3, 3, np.nan, 9]), 2.0 ** np.arange(7)
    for name, sign, wanted in (
        ("cumulative_max", 1, [1 + 2 + 4, 0, 0, 8 + 16, 0, 32 + 64, 0]),
        ("cumulative_min", -1, [1 + 2 + 4, 0, 0, 8 + 16, 0, 32 + 64, 0]),
    ):
        slope = sg.grad(sg.sum(getattr(sg, name)(x) * weights), x)
        np.testing.assert_array_equal(sg.compile([x, weights], slope)(sign * value, w), wanted)
        backward = sg.grad(sg.sum(getattr(sg, name)(x, reverse=True) * weights), x)
        np.testing.assert_array_equal(sg.compile([x, weights], backward)(sign * value[::-1], w[::-1]), wanted[::-1])


def test_jvp_is_that_of_the_gradient() -> None:
    graph = Graph()
    x, v = graph.input("x", (3, 4), sg.float64), graph.input("v", (3, 4), sg.float64)
    rng = np.random.default_rng(8)
    feeds = [rng.uniform(0.5, 2, (3, 4)), rng.normal(0, 1, (3, 4))]
    for name in FUNCTIONS:
        y = getattr(sg, name)(x, axis=1)
        forward = sg.jvp([y], [x], [v])[0]
        jacobian = sg.jacobian(y, x)
        got, matrix = sg.compile([x, v], [forward, jacobian])(*feeds)
        np.testing.assert_allclose(got, np.einsum("abcd,cd->ab", matrix, feeds[1]), rtol=1e-12)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(name: str) -> None:
    graph = Graph()
    x = graph.input("x", (3, 4, 5), sg.float64)
    value = np.random.default_rng(9).uniform(0.5, 2, (3, 4, 5))
    f = getattr(sg, name)
    mapped = sg.vmap(lambda row: f(row, axis=-1), in_axes=1)(x)
    slopes = sg.vmap(lambda row: sg.grad(sg.sum(sg.square(f(row, axis=0))), row))(x)
    one = graph.input("one", (4, 5), sg.float64)
    alone = sg.grad(sg.sum(sg.square(f(one, axis=0))), one)
    got, gradients = sg.compile([x], [mapped, slopes])(value)
    np.testing.assert_allclose(got, accumulated(name, np.moveaxis(value, 1, 0), 2, False), rtol=1e-13)
    for k in range(3):
        np.testing.assert_allclose(gradients[k], sg.evaluate(alone, {one: value[k]}), rtol=1e-12)


def test_symbolic_sizes() -> None:
    graph = Graph()
    x = graph.input("x", ("m", "n"), sg.float64)
    outputs = []
    for name in FUNCTIONS:
        for axis in (0, 1):
            y = getattr(sg, name)(x, axis=axis)
            outputs += [y, sg.grad(sg.sum(y), x)]
    outputs.append(sg.cumulative_sum(x, axis=0, include_initial=True))
    f = sg.compile([x], outputs)
    for shape in ((3, 17), (1, 1), (0, 4), (4, 0)):
        value = np.random.default_rng(1).uniform(0.5, 2, shape)
        results = f(value)
        for k, name in enumerate(FUNCTIONS):
            for axis in (0, 1):
                np.testing.assert_allclose(results[4 * k + 2 * axis], accumulated(name, value, axis, False), rtol=1e-13)
        for got, meant in zip(results, sg.evaluate(outputs, {x: value}), strict=True):
            np.testing.assert_allclose(got, meant, rtol=1e-12)


@pytest.mark.parametrize("shape", [(40000,), (300, 70), (70, 300), (5, 40, 40)])
def test_bits_do_not_depend_on_threads(shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(2).normal(0, 1, shape).astype(np.float32)
    for axis in range(len(shape)):
        for name in FUNCTIONS:
            one, two = (run(lambda x, n=name, a=axis: getattr(sg, n)(x, axis=a), value, threads=t) for t in (1, 2))
            assert differs(one, two) is None


def test_what_runs_together() -> None:
    """Cheap work before and behind joins the loop of a scan; where lanes are columns, dear work does too."""

    def kernels(make: Callable[[Node], Any]) -> int:
        graph = Graph()
        x = graph.input("x", (64, 100))
        f = sg.compile([x], make(x))
        f(np.ones((64, 100), np.float32))
        found = re.search(r"(\d+) kernels?,", f.report())
        assert found is not None
        return int(found[1])

    assert kernels(lambda x: sg.cumulative_sum(x * 2.0 + 1.0, axis=1) - x) == 1
    assert kernels(lambda x: sg.log(sg.cumulative_sum(sg.exp(x), axis=0))) == 1
    assert kernels(lambda x: [sg.cumulative_sum(x, axis=0), sg.cumulative_max(x, axis=0)]) == 1
    assert kernels(lambda x: sg.cumulative_max(sg.cumulative_sum(x, axis=1), axis=1)) == 1


def test_model_files_keep_it(tmp_path: Path) -> None:
    graph = Graph()
    x = graph.input("x", (3, 4))
    sg.export(tmp_path / "model.safetensors", {"y": sg.cumulative_sum(x, axis=1, reverse=True)}, [x])
    value = np.ones((3, 4), np.float32)
    got = sg.compile(sg.load(tmp_path / "model.safetensors"))(x=value)["y"]
    assert got.tolist() == [[4, 3, 2, 1]] * 3


def test_errors() -> None:
    graph = Graph()
    scalar, table = graph.input("s", ()), graph.input("t", (2, 3))
    for name in FUNCTIONS:
        f = getattr(sg, name)
        with pytest.raises(sg.ShapeError, match=r"test_cumulative.*has no axis"):
            f(scalar)
        with pytest.raises(sg.ShapeError, match="say which axis"):
            f(table)
        with pytest.raises(sg.ShapeError, match="out of range"):
            f(table, axis=2)
    with pytest.raises(sg.DTypeError):
        sg.cumulative_sum(table, axis=0, dtype="complex64")
