"""`sg.at`, the scatters and the segment reductions: values against NumPy, derivatives, maps, states, errors."""

# pyright: basic
from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive, differs

import symgrad as sg
from symgrad.graph import Graph, Node

RNG = np.random.default_rng(4)
X = RNG.integers(-9, 9, (2, 3, 4)).astype(np.float32)
ROW = np.array([1, 0, -1])
COLUMN = np.array([[1], [0]], np.int8)
ITEMS: tuple[Any, ...] = (
    0, -1, slice(None), slice(None, None, -2), slice(1, None), slice(1, 1), None, ..., ROW, COLUMN,
    np.zeros((0, 3), np.int32), np.array(1, np.uint8),
)  # fmt: skip
METHODS = {"set": None, "add": np.add, "multiply": np.multiply, "max": np.maximum, "min": np.minimum}


def assigned(x: np.ndarray, method: str, index: Any, values: Any) -> np.ndarray:
    """What NumPy makes of it."""
    out = x.copy()
    if METHODS[method] is None:
        out[index] = values
    else:
        with np.errstate(invalid="ignore"):
            METHODS[method].at(out, index, np.asarray(values, x.dtype))
    return out


def text(index: tuple[Any, ...]) -> str:
    return ", ".join(str(i).replace("\n", "") for i in index)


def test_every_form_of_index() -> None:
    g = Graph()
    known, named = g.input("x", X.shape), g.input("y", ("a", "b", "c"))
    outputs, expected, labels = [], [], []
    for length in (1, 2, 3):
        for index in itertools.product(ITEMS, repeat=length):
            if sum(item is ... for item in index) > 1:
                continue
            try:
                shape = X[index].shape
            except IndexError:
                continue
            k = len(outputs)
            method = list(METHODS)[k % 5]
            values = RNG.integers(-9, 9, shape[RNG.integers(0, len(shape) + 1) :]).astype(np.float32)
            if k % 7 == 0:
                values = values.reshape((1,) * (len(shape) + 1 - values.ndim) + values.shape)
                values = values if method == "set" else values[0]
            outputs.append(getattr(sg.at(named if k % 3 == 0 else known)[index], method)(values))
            expected.append(assigned(X, method, index, values))
            labels.append(f"[{text(index)}].{method} of {values.shape}")
            assert outputs[-1].shape == (named if k % 3 == 0 else known).shape
    found = sg.evaluate(outputs, {known: X, named: X})
    for got, want, label in zip(found, expected, labels, strict=True):
        assert differs(got, want) is None, label
    chosen = random.Random(2).sample(range(len(outputs)), 70)
    compiled = sg.compile([known, named], [outputs[k] for k in chosen])(X, X)
    for k, got in zip(chosen, compiled, strict=True):
        assert differs(got, expected[k]) is None, labels[k]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint32", "int64", "float32", "float64"])
def test_data_types(dtype: str) -> None:
    """Values take the data type of the array, as in an assignment."""
    x = RNG.integers(0, 2, (4, 3)).astype(dtype)
    g = Graph()
    node, i = g.input("x", x.shape, dtype), g.input("i", (3,), sg.uint8)
    place = np.array([3, 0, 3], np.uint8)
    methods = ["set", "max", "min"] if dtype == "bool" else list(METHODS)
    cases: list[tuple[Any, Any]] = [(i, place), (np.s_[1:, ::2], np.s_[1:, ::2]), ((i, [0, 1, 1]), (place, [0, 1, 1]))]
    outputs, expected = [], []
    for method, (ours, theirs) in itertools.product(methods, cases):
        for values in (True, np.float64(1.7), np.array([[1]], np.int8)):
            outputs.append(getattr(sg.at(node)[ours], method)(values))
            wanted = np.asarray(values).astype(dtype)
            wanted = wanted[0] if wanted.ndim and x[theirs].ndim < 2 else wanted
            expected.append(assigned(x, method, theirs, wanted))
    feeds = {node: x, i: place}
    for results in (sg.compile([node, i], outputs)(x, place), sg.evaluate(outputs, feeds)):
        for got, want in zip(results, expected, strict=True):
            assert differs(got, want) is None


def test_what_is_not_named_keeps_its_bits() -> None:
    g = Graph()
    x, v = g.input("x", (6,)), g.input("v", (2,))
    a = np.array([-0.0, np.nan, -0.0, 0.0, np.inf, -0.0], np.float32)
    b = np.array([np.nan, -0.0], np.float32)
    outputs = [getattr(sg.at(x)[index], m)(v) for m in METHODS for index in (np.s_[1:3], np.s_[5:1:-2], np.s_[[0, 3]])]
    expected = [assigned(a, m, i, b) for m in METHODS for i in (np.s_[1:3], np.s_[5:1:-2], np.s_[[0, 3]])]
    for got, want in zip(sg.compile([x, v], outputs)(a, b), expected, strict=True):
        assert differs(got, want) is None


def test_masks() -> None:
    g = Graph()
    x, m = g.input("x", (3, "n")), g.input("m", (3, "n"), sg.bool_)
    rows = np.array([True, False, True])
    a, mask = RNG.normal(size=(3, 4)).astype(np.float32), RNG.random((3, 4)) < 0.5
    outputs = [getattr(sg.at(x)[m], method)(0.5) for method in METHODS]
    expected = [np.where(mask, f(a), a) for f in MASKED]
    outputs += [sg.at(x)[x > 0].set(-x), sg.at(x)[rows].add(sg.sum(x, axis=0)), sg.at(x)[[True, True, False]].set(1)]
    expected += [
        np.where(a > 0, -a, a),
        np.where(rows[:, None], a + a.sum(0), a),
        np.where([[True], [True], [False]], np.float32(1), a),
    ]
    for got, want in zip(sg.compile([x, m], outputs)(a, mask), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)
    slope = sg.compile([x, m], sg.grad(sg.sum(sg.at(x)[m].set(sg.sqrt(x)) * 2.0), x))(np.abs(a) * mask, mask)
    np.testing.assert_allclose(slope, np.where(mask, 1 / np.sqrt(np.where(mask, np.abs(a), 1)), 2), rtol=1e-5)


MASKED: list[Callable[[np.ndarray], Any]] = [
    lambda a: np.float32(0.5),
    lambda a: a + np.float32(0.5),
    lambda a: a * np.float32(0.5),
    lambda a: np.maximum(a, np.float32(0.5)),
    lambda a: np.minimum(a, np.float32(0.5)),
]


# Derivatives

REPEATED = np.array([[1, 0], [1, -1]])
SMOOTH: dict[str, tuple[Callable[..., Node], list[tuple[int, ...]]]] = {}
for _method in METHODS:
    SMOOTH[f"slice_{_method}"] = (lambda x, v, m=_method: getattr(sg.at(x)[1:, ::-2], m)(v), [(3, 3), (2, 2)])
    SMOOTH[f"integer_{_method}"] = (lambda x, v, m=_method: getattr(sg.at(x)[0, None, -1], m)(v * v), [(2, 2), ()])
    SMOOTH[f"array_{_method}"] = (lambda x, v, m=_method: getattr(sg.at(x)[REPEATED], m)(v), [(3, 2), (2, 2, 2)])
    SMOOTH[f"arrays_{_method}"] = (
        lambda x, v, m=_method: getattr(sg.at(x)[[0, 1, 0], :, [1, 0, 1]], m)(v), [(2, 2, 2), (3, 2)]
    )  # fmt: skip
    SMOOTH[f"mask_{_method}"] = (lambda x, v, m=_method: getattr(sg.at(x)[[True, False]], m)(v), [(2, 2), (2,)])
IDS = np.array([2, 0, 2, 2])
for _name in ("segment_sum", "segment_prod", "segment_max", "segment_min", "segment_mean"):
    # An empty segment would bring in infinities, whose square has no difference.
    SMOOTH[_name] = (lambda x, f=_name: getattr(sg, f)(x, IDS, 4)[np.array([0, 2])], [(4, 2)])


@pytest.mark.parametrize("some", range(3))
def test_derivatives(some: int) -> None:
    g = Graph()
    derived = []
    for name, (build, shapes) in list(SMOOTH.items())[some::3]:
        inputs = [g.input(f"{name}{k}", s, sg.float64) for k, s in enumerate(shapes)]
        arrays = [RNG.uniform(0.3, 1.7, s) for s in shapes]
        derived.append(derive(inputs, arrays, sg.square(build(*inputs)), 3))
    check_derivatives(derived)


def slopes(build: Callable[..., Node], *arrays: np.ndarray) -> list[np.ndarray]:
    """The gradients of a sum with weights 1, 2, 3, …, compiled."""
    g = Graph()
    inputs = [g.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
    out = build(*inputs)
    weights = np.arange(1.0, 1 + np.prod([int(e) for e in out.shape])).reshape(out.shape)  # pyright: ignore[reportArgumentType]
    return list(sg.compile(inputs, sg.grad(sg.sum(out * weights), inputs))(*arrays))


def test_the_last_of_repeated_indices_wins() -> None:
    x, v = np.zeros(3), np.zeros(4)
    of_x, of_v = slopes(lambda a, b: sg.at(a)[[2, 0, 2, -1]].set(b), x, v)
    assert of_x.tolist() == [0, 2, 0]
    assert of_v.tolist() == [0, 1, 0, 3]
    of_x, of_v = slopes(lambda a, b: sg.at(a)[[1, 1]].set(b), np.zeros((2, 2)), np.zeros(2))
    assert of_x.tolist() == [[1, 2], [0, 0]]
    assert of_v.tolist() == [3, 4]


def test_ties_share_equally() -> None:
    one = np.ones(2)
    for method in ("max", "min"):
        for index in (np.s_[:1], np.s_[np.array([0])], np.array([True, False])):
            of_x, of_v = slopes(lambda a, b, i=index, m=method: getattr(sg.at(a)[i], m)(b), one, np.ones(()))
            assert (of_x.tolist(), of_v.tolist()) == ([0.5, 2], 0.5)
        of_x, of_v = slopes(lambda a, b, m=method: getattr(sg.at(a)[[1, 1, 0]], m)(b), one, np.ones(3))
        assert of_x.tolist() == [0.5, 2 / 3]
        assert of_v.tolist() == [2 / 3, 2 / 3, 0.5]
    (of_x,) = slopes(lambda a: sg.segment_max(a, np.array([0, 0, 2]), 3), np.array([-np.inf, -np.inf, 4.0]))
    assert of_x.tolist() == [0.5, 0.5, 3]


def test_products_with_zeros_are_exact() -> None:
    """Derivatives of any order of x[0] * u[0] * u[2] and x[1] * u[1], written out, where some are zero."""
    for zeros in itertools.product((0.0, 1.0), repeat=5):
        x = np.array([2.0, 3.0]) * zeros[:2]
        u = np.array([5.0, 7.0, 11.0]) * zeros[2:]
        g = Graph()
        a, b = g.input("a", (2,), sg.float64), g.input("b", (3,), sg.float64)
        outs = [sg.scatter_multiply(a, np.array([0, 1, 0]), b), sg.stack([a[0] * b[0] * b[2], a[1] * b[1]])]
        found = []
        for out in outs:
            total, every = sg.sum(out), [out]
            for _ in range(3):
                every += sg.grad(total, [a, b])
                total = sg.sum(every[-1] * np.array([1.0, 2.0, 3.0])) + sg.sum(every[-2] * np.array([1.0, 2.0]))
            found.append(sg.evaluate(every, {a: x, b: u}))
        for got, want in zip(*found, strict=True):
            np.testing.assert_array_equal(got, want)


# Maps

MAPS: dict[str, tuple[Callable[..., Node], list[np.ndarray]]] = {
    name: (
        (lambda x, i, v, f=f: f(x, i, v, 1)),
        [RNG.integers(0, 4, (2, 3)) * 1.0, RNG.integers(-3, 3, (2,)), RNG.integers(0, 4, (2, 2)) * 1.0],
    )
    for name, f in {n: getattr(sg, n) for n in dir(sg) if n.startswith("scatter_")}.items()
}
MAPS |= {
    "arrays": (
        lambda x, i, v: sg.at(x)[i, :, i].set(v),
        [RNG.normal(size=(3, 2, 3)), RNG.integers(-3, 3, 2), RNG.normal(size=(2, 2))],
    ),
    "slice": (lambda x, v: sg.at(x)[::-2, 1].max(v), [RNG.normal(size=(3, 2)), RNG.normal(size=2)]),
    "mask": (lambda x, v: sg.at(x)[x > 0].set(v), [RNG.normal(size=(3, 2)), RNG.normal(size=2)]),
    "segments": (lambda x, i: sg.segment_max(x, i, 4), [RNG.normal(size=(3, 2)), RNG.integers(0, 3, 3)]),
    "along": (
        lambda x, i, v: sg.put_along_axis(x, i, v, 0),
        [RNG.normal(size=(3, 2)), RNG.integers(-3, 3, (2, 2)), RNG.normal(size=(2, 2))],
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps(name: str) -> None:
    """Applied to slices as a loop over them, and so are gradients; with every set of arguments mapped."""
    build, examples = MAPS[name]
    wrt = [k for k, e in enumerate(examples) if e.dtype.kind == "f"]

    def both(*arguments: Node) -> tuple[Node, ...]:
        out = build(*arguments)
        return (out, *sg.grad(sg.sum(sg.square(out)), [arguments[k] for k in wrt]))

    for live in itertools.product((False, True), repeat=len(examples)):
        if not any(live):
            continue
        g = Graph()
        arrays = [
            np.stack([np.roll(e, k) for k in range(3)]) if on else e for e, on in zip(examples, live, strict=True)
        ]
        inputs = [g.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
        single = [g.input(f"y{k}", e.shape, e.dtype) for k, e in enumerate(examples)]
        mapped = sg.vmap(both, in_axes=tuple(0 if on else None for on in live))(*inputs)
        found = sg.evaluate(list(mapped), dict(zip(inputs, arrays, strict=True)))
        one = both(*single)
        for k in range(3):
            own = [a[k] if on else a for a, on in zip(arrays, live, strict=True)]
            for got, want in zip(found, sg.evaluate(list(one), dict(zip(single, own, strict=True))), strict=True):
                np.testing.assert_allclose(got[k], want, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_shared_by_workers(axis: int) -> None:
    g = Graph()
    x = g.input("x", (70, 60, 50))
    i = g.input("i", (3, 9), sg.int64)
    a = RNG.integers(-9, 9, (70, 60, 50)).astype(np.float32)
    place = RNG.integers(-50, 50, (3, 9))
    shape = (*a.shape[:axis], 3, 9, *a.shape[axis + 1 :])
    v = RNG.integers(-9, 9, shape).astype(np.float32)
    u = g.input("u", v.shape)
    outputs = [f(x, i, u, axis) for f in (sg.scatter_add, sg.scatter_set, sg.scatter_min)]
    index = (slice(None),) * axis + (place,)
    for got, method in zip(sg.compile([x, i, u], outputs, threads=3)(a, place, v), ("add", "set", "min"), strict=True):
        assert differs(got, assigned(a, method, index, v)) is None


# States


def test_states_are_written_in_place() -> None:
    """Only the elements that change are touched, and a failed call changes none."""
    for method in METHODS:
        g = Graph()
        table = g.state("table", RNG.normal(size=(50, 8)).astype(np.float32))
        i, v = g.input("i", (4,), sg.int64), g.input("v", (4, 8))
        f = sg.compile([i, v], table[i], updates=[(table, getattr(sg.at(table)[i], method)(v))])
        before, place = table.value, np.array([3, 49, 3, -50])
        values = RNG.normal(size=(4, 8)).astype(np.float32)
        old = f(place, values)
        assert differs(old, before[place]) is None
        after = assigned(before, method, place, values)
        assert differs(table.value, after) is None
        with pytest.raises(IndexError):
            f(np.array([0, 1, 2, 50]), values)
        assert differs(table.value, after) is None


def test_slices_of_states() -> None:
    g = Graph()
    cache, row = g.state("cache", np.zeros((4, 3), np.float32)), g.input("row", (3,))
    f = sg.compile([row], sg.sum(cache), updates=[(cache, sg.at(cache)[1].add(row))])
    f(np.array([1, 2, 3], np.float32))
    assert f(np.array([1, 1, 1], np.float32)) == 6
    assert cache.value.tolist() == [[0, 0, 0], [2, 3, 4], [0, 0, 0], [0, 0, 0]]


# Segments


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "uint16", "int64", "bool"])
def test_segments(dtype: str) -> None:
    g = Graph()
    data, ids = g.input("data", ("n", "k", 2), dtype), g.input("ids", ("n",), sg.int32)
    pairs = g.input("pairs", ("n", "k"), sg.uint8)
    a = RNG.integers(0, 2, (5, 3, 2)).astype(dtype)
    one, two = np.array([3, 0, 3, 3, 0], np.int32), RNG.integers(0, 5, (5, 3)).astype(np.uint8)
    floating = a.dtype.kind == "f"
    least = -np.inf if floating else False if dtype == "bool" else np.iinfo(dtype).min
    most = np.inf if floating else True if dtype == "bool" else np.iinfo(dtype).max
    table: dict[str, tuple[Any, Any]] = {"max": (np.maximum, least), "min": (np.minimum, most)}
    if dtype != "bool":
        table |= {"sum": (np.add, 0), "prod": (np.multiply, 1)}
    outputs, expected = [], []
    for name, (ufunc, empty) in table.items():
        for node, given in ((ids, one), (pairs, two)):
            outputs.append(getattr(sg, f"segment_{name}")(data, node, 5))
            want = np.full((5, *a.shape[given.ndim :]), empty, dtype)
            ufunc.at(want, given, a)
            expected.append(want)
    outputs.append(sg.segment_mean(data, ids, 5))
    wide = a.astype(a.dtype if floating else np.float32)
    zero = np.zeros((3, 2), wide.dtype)
    expected.append(np.stack([wide[one == k].mean(0) if (one == k).any() else zero for k in range(5)]))
    feeds = {data: a, ids: one, pairs: two}
    for results in (sg.compile(list(feeds), outputs)(*feeds.values()), sg.evaluate(outputs, feeds)):
        for got, want in zip(results, expected, strict=True):
            assert got.dtype == want.dtype
            np.testing.assert_allclose(got, want, rtol=1e-6)


def test_segment_ids_are_checked() -> None:
    g = Graph()
    data, ids = g.input("data", (3,)), g.input("ids", (3,), sg.int8)
    f = sg.compile([data, ids], sg.segment_sum(data, ids, 4))
    f(np.ones(3, np.float32), np.array([0, 3, 1], np.int8))
    for bad in (-1, 4, 127, -128):
        with pytest.raises(IndexError):
            f(np.ones(3, np.float32), np.array([0, bad, 1], np.int8))
    empty = sg.compile(
        [g.input("none", (0, 2)), g.input("no", (0,), sg.int64)], sg.segment_max(g.named("none"), g.named("no"), 2)
    )
    assert empty(np.zeros((0, 2), np.float32), np.zeros(0, np.int64)).tolist() == [[-np.inf] * 2] * 2


def test_errors() -> None:
    g = Graph()
    x, i = g.input("x", (4, 6)), g.input("i", (2,), sg.int64)
    flags = g.input("flags", (4, 6), sg.bool_)
    raised: list[tuple[type[Exception], str, Any]] = [
        (sg.ShapeError, "broadcast", lambda: sg.at(x)[1:3].set(np.zeros((3, 6)))),
        (sg.ShapeError, "broadcast", lambda: sg.at(x)[i, i].add(np.zeros((2, 1)))),
        (sg.ShapeError, "out of range", lambda: sg.at(x)[4].set(0)),
        (sg.ShapeError, "first axes", lambda: sg.at(x)[flags.T].set(0)),
        (sg.ShapeError, "boolean index", lambda: sg.at(x)[flags, 0].set(0)),
        (sg.GraphError, "got float32", lambda: sg.at(x)[x].set(0)),
        (sg.DTypeError, "bool", lambda: sg.at(flags)[i].multiply(True)),
        (sg.DTypeError, "integers", lambda: sg.segment_sum(x, x[:, 0], 3)),
        (sg.ShapeError, "first axes", lambda: sg.segment_sum(x, np.zeros(3, np.int64), 3)),
        (sg.ShapeError, "extent", lambda: sg.segment_sum(x, np.zeros(4, np.int64), -1)),
    ]
    for kind, message, call in raised:
        with pytest.raises(kind, match=message):
            call()
    with pytest.raises(TypeError, match=r"sg\.at"):
        x[0] = 1.0  # pyright: ignore[reportIndexIssue]
    f = sg.compile([x, i], sg.at(x)[i, 0].set(1.0))
    with pytest.raises(IndexError):
        f(np.zeros((4, 6), np.float32), np.array([0, 4]))
