"""`x[...]`, `take` and its relatives against NumPy: values, shapes, symbolic extents, derivatives, errors."""

# pyright: basic
from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive, differs

import symgrad as sg
from symgrad.api import make_executable
from symgrad.graph import Graph, Node
from symgrad.program import Program

RNG = np.random.default_rng(3)
X = RNG.normal(size=(2, 3, 4, 2)).astype(np.float32)
ROW = np.array([1, 0, -1])
COLUMN = np.array([[1], [0]], np.int8)
NOTHING = np.zeros((0, 3), np.int32)
ITEMS: tuple[Any, ...] = (
    0, -1, slice(None), slice(None, None, -2), slice(1, None), slice(1, 1), None, ..., ROW, COLUMN, NOTHING,
    np.array(1, np.uint8),
)  # fmt: skip


def tuples(longest: int) -> list[tuple[Any, ...]]:
    """Every tuple of items up to a length that NumPy takes for an index of X."""
    out = []
    for length in range(1, longest + 1):
        for index in itertools.product(ITEMS, repeat=length):
            if sum(item is ... for item in index) < 2:
                try:
                    X[index]
                except IndexError:
                    continue
                out.append(index)
    return out


def text(index: tuple[Any, ...]) -> str:
    return ", ".join(str(i).replace("\n", "") for i in index)


def test_every_form_of_index() -> None:
    g = Graph()
    known, named = g.input("x", X.shape), g.input("y", ("a", "b", "c", "d"))
    indices = tuples(3)
    some = random.Random(0).sample(list(itertools.product(ITEMS, repeat=4)), 600)
    for index in some:
        if sum(item is ... for item in index) < 2:
            try:
                X[index]
            except IndexError:
                continue
            indices.append(index)
    outputs = [(known if k % 3 else named)[index] for k, index in enumerate(indices)]
    for index, output in zip(indices, outputs, strict=True):
        if output.type.is_static:
            assert output.shape == X[index].shape, text(index)
    found = sg.evaluate(outputs, {known: X, named: X})
    for index, values in zip(indices, found, strict=True):
        assert differs(values, X[index]) is None, text(index)
    chosen = random.Random(1).sample(range(len(outputs)), 150)
    compiled = sg.compile([known, named], [outputs[k] for k in chosen])(X, X)
    for k, values in zip(chosen, compiled, strict=True):
        assert differs(values, X[indices[k]]) is None, text(indices[k])


@pytest.mark.long
def test_every_form_of_index_compiled() -> None:
    g = Graph()
    x = g.input("x", X.shape)
    indices = tuples(3)
    for start in range(0, len(indices), 200):
        some = indices[start : start + 200]
        for index, values in zip(some, sg.compile([x], [x[i] for i in some])(X), strict=True):
            assert differs(values, X[index]) is None, text(index)


def test_indices_that_are_nodes() -> None:
    """Indices given at the call, of every integer data type, on extents given at the call."""
    outputs, arrays, inputs, expected = [], [], [], []
    g = Graph()
    x = g.input("x", ("n", 4, "m"), sg.int16)
    values = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)
    inputs.append(x)
    arrays.append(values)
    for dtype in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"):
        low = 0 if dtype[0] == "u" else -3
        i = g.input(f"i_{dtype}", (2, "k"), dtype)
        given = RNG.integers(low, 3, (2, 3)).astype(dtype)
        inputs.append(i)
        arrays.append(given)
        outputs += [x[i], x[:, 1, i], x[i, :, i], x[i, i], x[..., i[0], None, i[:1]]]
        y = values
        expected += [y[given], y[:, 1, given], y[given, :, given], y[given, given], y[..., given[0], None, given[:1]]]
    for got, want in zip(sg.compile(inputs, outputs)(*arrays), expected, strict=True):
        assert differs(got, want) is None


def test_extents_of_zero() -> None:
    g = Graph()
    x = g.input("x", ("n", 3, "m"))
    none, some = g.input("none", (0,), sg.int64), g.input("some", (2,), sg.int64)
    reads = [x[none], x[none, :, none], x[:, some], x[none, 1:, 0], x[:, some, some - some]]
    f = sg.compile([x, none, some], reads[:4])
    no, two = np.zeros(0, np.int64), np.array([2, 0])
    for shape in ((2, 3, 1), (0, 3, 4)):
        a = np.ones(shape, np.float32)
        for got, want in zip(f(a, no, two), [a[no], a[no, :, no], a[:, two], a[no, 1:, 0]], strict=True):
            assert differs(got, want) is None
    for of, given in ((x[some], (0, 3, 2)), (reads[4], (2, 3, 0)), (sg.take(x, some, 2, mode="wrap"), (2, 3, 0))):
        with pytest.raises(IndexError):
            sg.compile([x, some], of)(np.zeros(given, np.float32), two)
        with pytest.raises(IndexError):
            sg.evaluate(of, {x: np.zeros(given, np.float32), some: two})


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_an_extent_need_not_fit_the_data_type_of_the_index(dtype: str) -> None:
    g = Graph()
    x, named = g.input("x", (300,)), g.input("y", ("n",))
    index = g.input("i", (3,), dtype)
    outputs = [sg.take(x, index), named[index], sg.at(x)[index].set(0)]
    array = np.arange(300, dtype=np.float32)
    values = np.array([127, 0, 5] if dtype == "uint8" else [-1, -128, 127], dtype)
    expected = array.copy()
    expected[values] = 0
    for found in (
        sg.compile([x, named, index], outputs)(array, array, values),
        sg.evaluate(outputs, {x: array, named: array, index: values}),
    ):
        for one, want in zip(found, (array[values], array[values], expected), strict=True):
            np.testing.assert_array_equal(one, want)


def test_an_ellipsis_of_no_axes_parts_arrays() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    two, column = np.array([0, 1]), np.array([[0], [2]])
    g = Graph()
    x = g.input("x", array.shape, sg.float64)
    for index in ((slice(None), two, ..., 1), (slice(None), column, ..., two), (slice(None), ..., two, 1)):
        found = sg.compile([x], x[index])(array)
        assert found.shape == array[index].shape
        np.testing.assert_array_equal(found, array[index])
        set_there = array.copy()
        set_there[index] = np.arange(array[index].size).reshape(array[index].shape)
        set_node = sg.at(x)[index].set(np.arange(array[index].size).reshape(array[index].shape))
        np.testing.assert_array_equal(sg.compile([x], set_node)(array), set_there)


@pytest.mark.parametrize(
    "build",
    [
        lambda x, i: sg.take(x, i, axis=0),
        lambda x, i: x[i, :, np.array([0])],
        lambda x, i: sg.sum(sg.take(x, i + 0, axis=0)),
        lambda x, i: sg.tensordot(sg.take(x, i, axis=0), np.zeros((0, 2, 3), np.float32), 2),
        lambda x, i: sg.sort(sg.take(x, i, axis=0), axis=0),
    ],
)
def test_indices_are_checked_where_there_are_no_elements(build: Any) -> None:
    g = Graph()
    x, i = g.input("x", (4, 0, 2)), g.input("i", (1,), sg.int64)
    count = g.state("count", np.zeros(1, np.float32))
    f = sg.compile([x, i], build(x, i), updates=[(count, count + 1)])
    nothing = np.zeros((4, 0, 2), np.float32)
    f(nothing, np.array([-4]))
    with pytest.raises(IndexError, match=r"check_index.*extent of 4"):
        f(nothing, np.array([4]))
    assert count.value == 1


@pytest.mark.parametrize("mode", ["raise", "clip", "wrap"])
def test_modes(mode: Any) -> None:
    g = Graph()
    x = g.input("x", (3, 5))
    a = RNG.normal(size=(3, 5)).astype(np.float32)
    inputs: list[Node] = [x]
    arrays: list[np.ndarray] = [a]
    outputs, expected = [], []
    for dtype in ("uint8", "int8", "uint64", "int64"):
        info = np.iinfo(dtype)
        wide = [0, 4, 1] if mode == "raise" else [0, 4, 5, 17, 127, info.max, info.min, info.min + 1]
        if dtype[0] == "i":
            wide += [-1, -5] + ([-6, -128] if mode != "raise" else [])
        given = np.array(wide, dtype)
        inputs.append(g.input(dtype, given.shape, dtype))
        arrays.append(given)
        outputs += [sg.take(x, inputs[-1], axis=1, mode=mode), sg.gather(x.T, inputs[-1], mode=mode)]
        exact = given.astype(object)
        place = {"raise": exact, "clip": np.clip(exact, 0, 4), "wrap": exact % 5}[mode].astype(np.int64)
        expected += [a[:, place], a.T[place]]
    for results in (sg.compile(inputs, outputs)(*arrays), sg.evaluate(outputs, dict(zip(inputs, arrays, strict=True)))):
        for got, want in zip(results, expected, strict=True):
            assert differs(got, np.ascontiguousarray(want)) is None


def test_along_an_axis() -> None:
    g = Graph()
    a = RNG.normal(size=(3, 4, 5))
    known, named = g.input("x", a.shape, sg.float64), g.input("y", ("a", "b", "c"), sg.float64)
    thin = g.input("z", (1, 4, 1), sg.float64)
    outputs, expected, names = [], [], []
    for axis, x in itertools.product((0, 1, 2, -1), (known, named)):
        for shape in ((3, 4, 5), (1, 4, 1), (3, 1, 5), (1, 1, 1)):
            own = list(shape)
            own[axis] = 2
            index = RNG.integers(-3, 3, own)
            outputs.append(sg.take_along_axis(x, index, axis))
            expected.append(np.take_along_axis(a, index, axis))
            values = RNG.normal(size=own)
            changed = a.copy()
            np.put_along_axis(changed, index, values, axis)
            outputs.append(sg.put_along_axis(x, index, values, axis))
            expected.append(changed)
            names += [f"take {axis} {shape}", f"put {axis} {shape}"]
    index = RNG.integers(0, 4, (3, 2, 5))
    outputs.append(sg.take_along_axis(thin, index, 1))
    expected.append(np.take_along_axis(a[:1, :, :1], index, 1))
    # Repeated indices, which add up.
    twice = np.array([[[0], [0], [1]]])
    total = a.copy()
    for k in (0, 0, 1):
        total[:, k, :] += 2.0
    outputs.append(sg.put_along_axis(known, twice, 2.0, 1, combine="add"))
    expected.append(total)
    arrays = [a, a, np.ascontiguousarray(a[:1, :, :1])]
    for results in (
        sg.compile([known, named, thin], outputs)(*arrays),
        sg.evaluate(outputs, dict(zip((known, named, thin), arrays, strict=True))),
    ):
        for got, want, name in zip(results, expected, [*names, "thin", "add"], strict=True):
            assert differs(got, want) is None, name


EINSUMS = (
    ("ii->i", (4, 4)), ("ii->", (4, 4)), ("ii", (4, 4)), ("iij,jk->ik", (4, 4, 3), (3, 2)), ("iji->ij", (4, 3, 4)),
    ("iji->ji", (4, 3, 4)), ("iii->i", (3, 3, 3)), ("ijij->ij", (2, 3, 2, 3)), ("ijij", (2, 3, 2, 3)),
    ("...ii->...i", (2, 3, 3)), ("i...i", (3, 2, 3)), ("...ii,...i->...", (2, 3, 3), (5, 2, 3)), ("ji", (2, 3)),
    ("ij,jk", (2, 3), (3, 4)), ("b...,b->...b", (2, 3, 4), (2,)), ("ii,ii->i", (3, 3), (3, 3)), ("ii", (0, 0)),
    ("i,i,i", (3,), (3,), (3,)),
)  # fmt: skip


def test_einsum_of_repeated_labels() -> None:
    g = Graph()
    inputs, arrays, outputs, expected = [], [], [], []
    for k, (labels, *shapes) in enumerate(EINSUMS):
        for symbolic in (False, True):
            own = [RNG.normal(size=s) for s in shapes]
            extents = [tuple(f"d{k}_{e}" if e > 2 else e for e in s) if symbolic else s for s in shapes]
            nodes = [g.input(f"x{len(inputs) + j}", s, sg.float64) for j, s in enumerate(extents)]
            inputs += nodes
            arrays += own
            outputs.append(sg.einsum(labels, *nodes))
            expected.append(np.einsum(labels, *own))
    for got, want, k in zip(sg.compile(inputs, outputs)(*arrays), expected, range(len(outputs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13, err_msg=str(EINSUMS[k // 2]))
        assert got.shape == want.shape


SMOOTH: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "pairs": (lambda x: x[[0, 1, 1], [2, 0, 0]] * x[1, 1], [(2, 3)]),
    "apart": (lambda x: x[[0, 1], :, [2, 0]] * x[0, 1, [0, 1, 1]], [(2, 3, 3)]),
    "stepped": (lambda x: x[::-2, [0, 2, 2], None, [[1], [0]]], [(3, 3, 2)]),
    "along": (lambda x: sg.take_along_axis(x, np.array([[0, 0], [1, -1]]), 1) ** 2, [(2, 3)]),
    "along_wide": (lambda x: sg.take_along_axis(x, np.array([[0, 0], [1, -1]]), 0) ** 2, [(2, 1)]),
    "put": (lambda x, v: sg.put_along_axis(x, np.array([[0, 0], [1, -1]]), v, 1) ** 2, [(2, 3), (2, 2)]),
    "clip": (lambda x: sg.take(x, np.array([-1, 9, 1]), 0, mode="clip") ** 2, [(3,)]),
    "wrap": (lambda x: sg.take(x, np.array([-1, 9, 1]), 0, mode="wrap") ** 2, [(3,)]),
    "diagonal": (lambda x: sg.einsum("iij,ij->i", x, x[0] * x[1]), [(2, 2, 2)]),
}


def test_derivatives() -> None:
    g = Graph()
    derived = []
    for name, (build, shapes) in SMOOTH.items():
        inputs = [g.input(f"{name}{k}", s, sg.float64) for k, s in enumerate(shapes)]
        derived.append(derive(inputs, [RNG.uniform(0.3, 1.7, s) for s in shapes], build(*inputs), 2))
    check_derivatives(derived)


def test_map_over_arrays_of_indices() -> None:
    g = Graph()
    x, i, j = g.input("x", (4, 3, 2, 3)), g.input("i", (4, 2), sg.int64), g.input("j", (4, 2), sg.int32)
    a = RNG.normal(size=(4, 3, 2, 3)).astype(np.float32)
    first, second = RNG.integers(-3, 3, (4, 2)), RNG.integers(0, 3, (4, 2)).astype(np.int32)
    for index in (lambda p, q: np.s_[p, :, q], lambda p, q: np.s_[p, 0, q], lambda p, q: np.s_[..., p[0], q]):
        if index(first, second)[0] is ...:
            function: Any = lambda r, p, q: r[:, :, p, None][q, 1]  # noqa: E731
        else:
            function = lambda r, p, q, index=index: r[index(p, q)]  # noqa: E731
        got = sg.compile([x, i, j], sg.vmap(function)(x, i, j))(a, first, second)
        want = np.stack([function(a[k], first[k], second[k]) for k in range(4)])
        assert differs(got, want) is None


def test_nothing_is_copied() -> None:
    """Several arrays read a stored operand where it lies: no kernel moves all of it first."""
    for index in (lambda i: (i, ..., i), lambda i: (i, 2, i), lambda i: (slice(None), i, i), lambda i: (1, i, 0)):
        g = Graph()
        x, i = g.input("x", (64, 5, 64)), g.input("i", (7,), sg.int64)
        for out in (x[index(i)], sg.take_along_axis(x, i[:, None, None], 0)):
            made: Any = make_executable(Program(g, (x, i), (out,)), {}, phase="infer", workers=1)
            assert made.memory.bytes <= 64, made.report()  # an index or two


def test_errors() -> None:
    g = Graph()
    x, i = g.input("x", (4, 6)), g.input("i", (2,), sg.int64)
    raised: list[tuple[type[Exception], str, Any]] = [
        (sg.ShapeError, "do not broadcast", lambda: x[[0, 1], [0, 1, 2]]),
        (sg.ShapeError, "do not broadcast", lambda: x[i, np.zeros(3, np.int64)]),
        (sg.ShapeError, "3 indices for 2", lambda: x[i, i, i]),
        (sg.ShapeError, "more than one ellipsis", lambda: x[..., i, ...]),
        (sg.GraphError, "got float32", lambda: x[i, x]),
        (sg.ShapeError, r"sg\.where", lambda: x[x > 0, i]),
        (ValueError, "mode", lambda: sg.take(x, i, 0, mode="drop")),
        (ValueError, "combine", lambda: sg.put_along_axis(x, x[:, :1] > 0, 1.0, combine="or")),
        (sg.ShapeError, "equally many dimensions", lambda: sg.take_along_axis(x, i)),
        (sg.ShapeError, "do not broadcast", lambda: sg.take_along_axis(x, np.zeros((3, 1), np.int64))),
        (sg.DTypeError, "integer", lambda: sg.take(x, x, 0)),
        (sg.ShapeError, "'i' of 'ii' is 4, 6", lambda: sg.einsum("ii", x)),
    ]
    for kind, message, call in raised:
        with pytest.raises(kind, match=message):
            call()
    f = sg.compile([x, i], [x[i, 1 - i], x[:, i]])
    a = np.zeros((4, 6), np.float32)
    f(a, np.array([3, -4]))
    for bad in ([4, 0], [-5, 0]):
        with pytest.raises(IndexError):
            f(a, np.array(bad))
        with pytest.raises(IndexError):
            sg.evaluate(x[i, i], {x: a, i: np.array(bad)})
