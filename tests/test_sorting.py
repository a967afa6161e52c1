"""Sorting, searching and picking by values: against NumPy bit by bit, derivatives, symbolic extents, workers."""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest
from oracles import check_derivatives, derive, differs

import symgrad as sg
from codegen import lower_sort
from symgrad.types import DTYPES, float64

Array = np.ndarray
# Both sides of every change of method: none, one vector, several, ranked, by digits.
LENGTHS = (0, 1, 2, 15, 16, 17, 33, lower_sort.RANK_LENGTH, lower_sort.RANK_LENGTH + 1, 257)


def drawn(shape: Sequence[int], dtype: Any, seed: int = 0) -> Array:
    """Values with many ties, of all sizes, with what goes wrong among them."""
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return rng.random(shape) < 0.5
    small = rng.integers(0, 4, shape).astype(kind)
    bits = np.frombuffer(rng.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape)
    if kind.kind != "f":
        return np.where(rng.random(shape) < 0.5, small, bits)
    out = np.where(rng.random(shape) < 0.5, small - 2, rng.normal(size=shape) * 10.0 ** rng.integers(-9, 9, shape))
    for value in (-0.0, 0.0, np.nan, -np.nan, np.inf, -np.inf, np.finfo(kind).smallest_subnormal):
        out[rng.random(shape) < 0.05] = value
    return out.astype(kind)


def run(build: Callable[..., Any], *arrays: Array, **options: Any) -> Any:
    """What compiled code gives; the interpreter must give the same."""
    graph = sg.Graph()
    inputs = [graph.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
    outputs = build(*inputs)
    nodes = [outputs] if isinstance(outputs, sg.Node) else list(outputs)
    found = sg.compile(inputs, nodes, **options)(*arrays)
    meant = sg.evaluate(nodes, dict(zip(inputs, arrays, strict=True)))
    for got, expected in zip(found, meant, strict=True):
        assert differs(got, expected) is None
    return found[0] if isinstance(outputs, sg.Node) else found


def same(got: Array, expected: Array) -> None:
    assert (wrong := differs(got, expected)) is None, wrong


def reversed_order(x: Array, axis: int) -> Array:
    """The stable descending order, as NumPy gives it: the flipped order of the flipped array."""
    order = np.flip(np.argsort(np.flip(x, axis), axis, kind="stable"), axis)
    return x.shape[axis] - 1 - order


@pytest.mark.parametrize("dtype", DTYPES)
def test_sort_is_that_of_numpy(dtype: str) -> None:
    arrays = [drawn((n,), dtype, n) for n in LENGTHS]
    found = run(lambda *xs: [f(x) for x in xs for f in (sg.sort, sg.argsort)], *arrays)
    for k, array in enumerate(arrays):
        same(found[2 * k], np.sort(array, kind="stable"))
        same(found[2 * k + 1], np.argsort(array, kind="stable"))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint64"])
def test_descending_order_is_stable_too(dtype: str) -> None:
    arrays = [drawn((n,), dtype, n) for n in (1, 17, 257)]
    # Apart, because together they are one kernel.
    values = run(lambda *xs: [sg.sort(x, descending=True, stable=True) for x in xs], *arrays)
    places = run(lambda *xs: [sg.argsort(x, descending=True, stable=True) for x in xs], *arrays)
    for array, value, place in zip(arrays, values, places, strict=True):
        order = reversed_order(array, 0)
        same(value, array[order])
        same(place, order)


@pytest.mark.parametrize("shape", [(7, 33), (3, 140, 2), (0, 3), (3, 0), (1, 1, 5), (130, 1)])
def test_axes(shape: tuple[int, ...]) -> None:
    array = drawn(shape, "float32", 3)
    axes = range(-1, len(shape) - 1)
    found = run(lambda x: [f(x, axis=a) for a in axes for f in (sg.sort, sg.argsort)], array)
    for k, axis in enumerate(axes):
        same(found[2 * k], np.sort(array, axis, kind="stable"))
        same(found[2 * k + 1], np.argsort(array, axis, kind="stable"))


def test_equal_keys_keep_their_order_and_bits() -> None:
    array = np.array([0.0, -0.0, 1.0, -0.0, 0.0, np.nan, -1.0, np.nan] * 30, np.float32)
    for x in (array[:8], array):
        values, order, back = run(lambda x: [sg.sort(x), sg.argsort(x), sg.argsort(x, descending=True)], x)
        same(values, np.sort(x, kind="stable"))
        same(order, np.argsort(x, kind="stable"))
        assert np.isnan(x[back[: np.isnan(x).sum()]]).all()
        assert (np.diff(back[x[back] == 0]) > 0).all()


@pytest.mark.parametrize("length", [lower_sort.WIDE_DIGIT_LENGTH - 1, lower_sort.WIDE_DIGIT_LENGTH])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_long_rows(length: int, dtype: str) -> None:
    array = drawn((length,), dtype)
    graph = sg.Graph()
    x = graph.input("x", (length,), dtype)
    order = np.argsort(array, kind="stable")
    values, places = sg.compile([x], [sg.sort(x), sg.argsort(x)])(array)
    same(values, array[order])
    same(places, order)
    same(sg.compile([x], sg.sort(x))(array), array[order])
    same(sg.compile([x], sg.argsort(x))(array), order)


def test_producers_and_views_are_sorted_in_place_of_their_arrays() -> None:
    array = drawn((6, 40), "float32")
    build = lambda x: [sg.sort(x.T * 2.0), sg.sort(x[::-1, 3:35:2], axis=0), sg.sort(sg.reshape(x, (-1,)))]  # noqa: E731
    found = run(build, array)
    with np.errstate(all="ignore"):
        same(found[0], np.sort(array.T * np.float32(2.0), kind="stable"))
    same(found[1], np.sort(array[::-1, 3:35:2], 0, kind="stable"))
    same(found[2], np.sort(array.ravel(), kind="stable"))


def test_workers_do_not_matter() -> None:
    arrays = drawn((300, 40), "float32"), drawn((20, 200), "float32")
    build = lambda x, y: [sg.sort(x), sg.argsort(y), sg.searchsorted(sg.sort(y)[0], x), sg.sort(y, axis=0)]  # noqa: E731
    for one, two in zip(run(build, *arrays, threads=1), run(build, *arrays, threads=2), strict=True):
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("side", ["left", "right"])
def test_searchsorted(side: Any) -> None:
    edges = np.sort(drawn((33,), "float32"))
    values = np.concatenate([edges, drawn((28,), "float32", 1), [np.nan, np.inf, -np.inf]]).astype(np.float32)
    lengths = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 33)
    wanted = values.reshape(4, 16)
    # The end holds what is above every number.
    arrays = [edges[33 - n :] for n in lengths]
    found = run(lambda v, *rows: [sg.searchsorted(r, v, side=side) for r in rows], wanted, *arrays)
    for row, got in zip(arrays, found, strict=True):
        same(got, np.searchsorted(row, wanted, side))
    order = np.random.default_rng(2).permutation(33)
    shuffled, sorter = edges[order], np.argsort(order)
    same(
        run(lambda r, v, s: sg.searchsorted(r, v, side=side, sorter=s), shuffled, wanted, sorter),
        np.searchsorted(shuffled, wanted, side, sorter),
    )


@pytest.mark.parametrize("dtype", [d for d in DTYPES if d != "float32"])
def test_searchsorted_of_every_data_type(dtype: str) -> None:
    row, values = np.sort(drawn((40,), dtype)), drawn((50,), dtype, 1)
    same(run(sg.searchsorted, row, values), np.searchsorted(row, values))


def test_searchsorted_promotes_and_lifts() -> None:
    row = np.array([1, 3, 3, 7], np.int32)
    same(run(lambda x: sg.searchsorted(x, 3), row), np.asarray(np.searchsorted(row, 3)))
    same(run(lambda x: sg.searchsorted(x, np.array([0.5, 3.5], np.float32)), row), np.array([0, 3]))
    same(run(lambda v: sg.searchsorted(row, v, side="right"), np.array([3], np.int64)), np.array([3]))


@pytest.mark.parametrize("mode", ["largest", "smallest"])
def test_top_k(mode: str) -> None:
    array = drawn((5, 30, 3), "float32")
    for axis in (0, 1, -1):
        for k in (0, 1, array.shape[axis]):
            values, indices = run(lambda x, a=axis, k=k: sg.top_k(x, k, axis=a, mode=mode), array)
            order = reversed_order(array, axis) if mode == "largest" else np.argsort(array, axis, kind="stable")
            expected = np.take(order, range(k), axis)
            same(indices, expected)
            same(values, np.take_along_axis(array, expected, axis))


SIZES = (0, 1, 5, 12, 200)


def filled(found: Array, size: int, fill: Any) -> Array:
    out = np.full(size, fill, found.dtype)
    out[: min(size, len(found))] = found[:size]
    return out


@pytest.mark.parametrize("shape", [(17,), (5, 6), (150,), (3, 0, 2), (2, 3, 40)])
def test_nonzero_and_masked_select(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    values = np.where(rng.random(shape) < 0.4, 0, rng.normal(size=shape)).astype(np.float32)
    values[rng.random(shape) < 0.1] = np.nan
    fills = list(range(7, 7 + len(shape)))

    def build(x: sg.Node) -> list[sg.Node]:
        found: list[sg.Node] = []
        for size in SIZES:
            found += sg.nonzero(x, size=size, fill_value=fills)
            found.append(sg.masked_select(x, sg.not_equal(x, 0), size=size, fill_value=2.5))
            found.append(sg.argwhere(x, size=size, fill_value=-1))
        return found

    results = iter(run(build, values))
    places = np.nonzero(values)
    for size in SIZES:
        for axis, fill in enumerate(fills):
            same(next(results), filled(places[axis], size, fill))
        same(next(results), filled(values[values != 0], size, 2.5))
        same(next(results), np.stack([filled(p, size, -1) for p in places], 1))


def test_masked_select_broadcasts() -> None:
    x, mask = np.arange(12.0).reshape(3, 4), np.array([True, False, True, True])
    same(run(lambda x, m: sg.masked_select(x, m, size=10), x, mask), filled(x[:, mask].ravel(), 10, 0))


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "uint8"])
@pytest.mark.parametrize("shape", [(50,), (6, 30), (0,), (1,)])
def test_unique(dtype: str, shape: tuple[int, ...]) -> None:
    array = drawn(shape, dtype)
    values, places, inverse, counts = np.unique_all(array)
    found = iter(run(lambda x: [n for size in SIZES for n in sg.unique_all(x, size=size)], array))
    for size in SIZES:
        kept = min(size, len(values))
        got_values, got_places, got_inverse, got_counts = (next(found) for _ in range(4))
        # NumPy may take -0.0 for 0.0; what the first occurrence is, the indices say.
        np.testing.assert_array_equal(got_values[:kept], values[:kept])
        np.testing.assert_array_equal(array.ravel()[got_places[:kept]], values[:kept])
        np.testing.assert_array_equal(got_counts, filled(counts, size, 0))
        np.testing.assert_array_equal(got_inverse, np.minimum(inverse.reshape(shape), size))
        if not np.isnan(values.astype(float)).any():
            np.testing.assert_array_equal(got_places[:kept], places[:kept])
        if array.size:
            assert (got_values[kept:] == values[0]).all()


def test_parts_of_unique_agree() -> None:
    array = drawn((60,), "float32")
    size = 40
    build = lambda x: [  # noqa: E731
        sg.unique_values(x, size=size, fill_value=-7),
        *sg.unique_counts(x, size=size, fill_value=-7),
        *sg.unique_inverse(x, size=size, fill_value=-7),
        *sg.unique_all(x, size=size, fill_value=-7),
    ]
    values, with_counts, counts, with_inverse, inverse, all_values, _, all_inverse, all_counts = run(build, array)
    for other in (with_counts, with_inverse, all_values):
        same(values, other)
    same(counts, all_counts)
    same(inverse, all_inverse)
    assert (values[np.count_nonzero(counts) :] == -7).all()


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (2, 1)])
def test_median_and_quantile(axis: Any, keepdims: bool) -> None:
    rng = np.random.default_rng(6)
    plain = rng.normal(size=(3, 4, 5))
    holed = plain.copy()
    holed[1, 2, 3] = np.nan
    for array in (plain, holed):
        build = lambda x: [  # noqa: E731
            sg.median(x, axis, keepdims=keepdims),
            sg.quantile(x, 0.3, axis, keepdims=keepdims),
            sg.quantile(x, (0.0, 0.25, 0.9, 1.0), axis, keepdims=keepdims),
        ]
        found = run(build, array)
        same(found[0], np.asarray(np.median(array, axis, keepdims=keepdims)))
        for got, q in zip(found[1:], (0.3, (0.0, 0.25, 0.9, 1.0)), strict=True):
            expected = np.quantile(array, q, axis, keepdims=keepdims)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, rtol=1e-15, atol=1e-15)


def test_median_of_extremes() -> None:
    large = np.finfo(np.float64).max
    same(run(sg.median, np.array([large, large])), np.asarray(large))
    same(run(lambda x: sg.quantile(x, 0.5), np.array([np.inf, np.inf, -np.inf])), np.asarray(np.inf))
    same(run(sg.median, np.array([3, 1, 2, 2], np.int32)), np.array(2, np.float32))
    many = np.arange(300).astype(np.uint8)
    same(run(lambda x: sg.quantile(x, 0.5), many), np.asarray(np.quantile(many.astype(np.float32), 0.5)))


def test_symbolic_extents() -> None:
    graph = sg.Graph()
    x = graph.input("x", ("rows", "n"))
    flat = sg.reshape(x, (-1,))
    outputs = [
        sg.sort(x),
        sg.argsort(x, axis=0, descending=True),
        sg.top_k(x, 2)[0],
        sg.searchsorted(sg.sort(flat), x),
        *sg.nonzero(x > 0, size=7, fill_value=-1),
        sg.masked_select(x, x > 0, size=6),
        *sg.unique_all(x, size=9),
        sg.median(x, axis=1),
        sg.quantile(x, (0.1, 0.5), axis=0),
        sg.grad(sg.sum(sg.sort(x) * sg.arange(graph, x.shape[1])), x),
    ]
    made = sg.compile([x], outputs)
    for shape in ((1, 2), (3, 4), (4, 3), (2, 140)):
        array = drawn(shape, "float32", shape[1])
        found = made(array)
        for got, expected in zip(found, sg.evaluate(outputs, {x: array}), strict=True):
            same(got, expected)
        same(found[0], np.sort(array, kind="stable"))
        ranks = np.argsort(np.argsort(array, kind="stable"), kind="stable")
        same(found[-1], ranks.astype(np.float32))


def test_size_can_be_symbolic() -> None:
    graph = sg.Graph()
    x = graph.input("x", ("n",))
    made = sg.compile([x], [sg.masked_select(x, x > 0, size=x.shape[0]), sg.unique_counts(x, size=x.shape[0])[1]])
    for n in (0, 1, 9):
        array = np.round(np.random.default_rng(n).normal(size=n)).astype(np.float32)
        selected, counts = made(array)
        same(selected, filled(array[array > 0], n, 0))
        np.testing.assert_array_equal(counts, filled(np.unique_counts(array).counts, n, 0))


SMOOTH: dict[str, Callable[[sg.Node], sg.Node]] = {
    "sort": lambda x: sg.sort(x * x * x, axis=0),
    "descending": lambda x: sg.sort(x, descending=True) ** 4,
    "top_k": lambda x: sg.top_k(sg.exp(x), 2)[0] * sg.top_k(x, 2, mode="smallest")[0],
    "masked_select": lambda x: sg.masked_select(x**3, x > 1.0, size=9),
    "unique_values": lambda x: sg.unique_values(x, size=5) ** 3,
    "median": lambda x: sg.median(x * x, axis=1) ** 2,
    "quantile": lambda x: sg.quantile(x * x, (0.2, 0.7), axis=1) ** 2,
    "searchsorted": lambda x: sg.sin(x) * sg.searchsorted(sg.sort(x[0]), x),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_to_order_three(name: str) -> None:
    graph = sg.Graph()
    x = graph.input("x", (3, 4), float64)
    array = np.random.default_rng(9).uniform(0.3, 1.7, (3, 4))
    check_derivatives([derive([x], [array], SMOOTH[name](x), 3)])


def test_gradient_follows_the_permutation() -> None:
    array = drawn((4, 150), "float32")
    weights = np.random.default_rng(1).normal(size=array.shape).astype(np.float32)
    gradient = run(lambda x, w: sg.grad(sg.sum(sg.sort(x, axis=1) * w), x), array, weights)
    expected = np.empty_like(weights)
    np.put_along_axis(expected, np.argsort(array, 1, kind="stable"), weights, 1)
    same(gradient, expected)
    tangent = run(lambda x, w: sg.jvp([sg.sort(x, axis=1)], [x], [w])[0], array, weights)
    same(tangent, np.take_along_axis(weights, np.argsort(array, 1, kind="stable"), 1))


def test_programs_are_stored(tmp_path: Any) -> None:
    graph = sg.Graph()
    x = graph.input("x", (3, 20))
    outputs = {
        "sorted": sg.sort(x, descending=True),
        "places": sg.argsort(x, axis=0),
        "bins": sg.searchsorted(sg.sort(x[0]), x, side="right"),
    }
    sg.export(str(tmp_path / "m.safetensors"), outputs, [x])
    array = drawn((3, 20), "float32")
    again = sg.compile(sg.load(str(tmp_path / "m.safetensors")))(array)
    for name, expected in sg.compile([x], outputs)(array).items():
        same(again[name], expected)


def test_errors() -> None:
    graph = sg.Graph()
    scalar, x = graph.input("scalar", ()), graph.input("x", (3, 4))
    ints, half = sg.astype(x, sg.int32), cast("Any", 0.5)
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (sg.ShapeError, "sort: axis -1 is out of range", lambda: sg.sort(scalar)),
        (sg.ShapeError, "argsort: axis 2 is out of range", lambda: sg.argsort(x, axis=2)),
        (sg.ShapeError, "4 elements along axis 1, not 5", lambda: sg.top_k(x, 5)),
        (ValueError, "mode is 'largest' or 'smallest'", lambda: sg.top_k(x, 1, mode="best")),
        (ValueError, "side is 'left' or 'right'", lambda: sg.searchsorted(x[0], x, side="up")),
        (sg.ShapeError, "x1 must have 1 dimension", lambda: sg.searchsorted(x, x)),
        (sg.ShapeError, "nonzero: .* has no axes", lambda: sg.nonzero(scalar, size=1)),
        (sg.ShapeError, "nonzero: an extent is .* at least 0, got -1", lambda: sg.nonzero(x, size=-1)),
        (sg.ShapeError, "unique_values: an extent is .*, got 2.5", lambda: sg.unique_values(x, size=2.5)),  # type: ignore
        (sg.ShapeError, "top_k: an extent is .*, got 2.0", lambda: sg.top_k(x, 2.0)),  # type: ignore
        (
            sg.DTypeError,
            "nonzero: the fill value 0.5 does not fit int64",
            lambda: sg.nonzero(x, size=1, fill_value=half),
        ),  # type: ignore
        (
            sg.DTypeError,
            "fill value nan does not fit int32",
            lambda: sg.masked_select(ints, x > 0, size=1, fill_value=np.nan),
        ),
        (sg.DTypeError, "fill value nan does not fit int32", lambda: sg.unique_values(ints, size=1, fill_value=np.nan)),
        (sg.ShapeError, "the sorter .* must have the shape", lambda: sg.searchsorted(x[0], x, sorter=np.arange(3))),
        (TypeError, "sort: an axis is an integer, got 'a'", lambda: sg.sort(x, axis="a")),  # type: ignore
        (TypeError, "sort: expected a node, got list", lambda: sg.sort([2, 1])),  # type: ignore
        (sg.ShapeError, "3 fill values for the 2 dimensions", lambda: sg.nonzero(x, size=1, fill_value=(1, 2, 3))),
        (sg.DTypeError, "the mask must be bool", lambda: sg.masked_select(x, x, size=1)),
        (sg.ShapeError, "q is a number in", lambda: sg.quantile(x, 1.5)),
        (sg.ShapeError, "no elements over axes", lambda: sg.median(graph.input("none", (0, 3)), axis=0)),
    ]
    for kind, text, call in cases:
        with pytest.raises(kind, match=text):
            call()


def test_picked_elements_keep_their_data_type() -> None:
    array = np.array([False, True, True])
    (found,) = run(lambda x: [sg.masked_select(x, x, size=4)], array)
    same(found, np.array([True, True, False, False]))
    (found,) = run(lambda x: [sg.unique_values(x, size=3, fill_value=1)], array)
    same(found, np.array([False, True, True]))


def test_sizes_of_numpy() -> None:
    three: Any = np.int64(3)
    array = np.array([3.0, 0.0, 1.0, 2.0])
    same(run(lambda x: [sg.top_k(x, three)[0]], array)[0], np.array([3.0, 2.0, 1.0]))
    same(run(lambda x: [sg.nonzero(x, size=three)[0]], array)[0], np.array([0, 2, 3]))
    same(run(lambda x: [sg.segment_sum(x, np.arange(4) % 3, three)], array)[0], np.array([5.0, 0.0, 1.0]))


@pytest.mark.parametrize("shape", [(1,), (3, 1), (9,), (4, 9), (200,)])
def test_a_state_can_be_sorted_in_its_own_place(shape: tuple[int, ...]) -> None:
    array = drawn(shape, "float32")
    graph = sg.Graph()
    state = graph.state("state", array)
    step = sg.compile([], sg.argsort(state), updates=[(state, sg.sort(state))])
    same(step(), np.argsort(array, kind="stable"))
    same(state.value, np.sort(array, kind="stable"))
