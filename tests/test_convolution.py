"""Convolutions and pooling against loops over every element, and their derivatives against differences."""

# pyright: basic
from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen import jit, schedule_contract
from codegen.build import build
from codegen.machine_code import KernelStore
from symgrad.operators import apply
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.types import static_shape
from tests.oracles import check_derivatives, derive, differs, function, run_poisoned

CONV = {1: sg.nn.conv1d, 2: sg.nn.conv2d, 3: sg.nn.conv3d}


def looped_convolution(x: np.ndarray, w: np.ndarray, stride: Any, pairs: Any, dilation: Any, groups: int) -> np.ndarray:
    """The definition, one product after the other over places and taps."""
    x = np.pad(x, ((0, 0), (0, 0), *pairs))
    out, each, *sizes = w.shape
    counts = [(e - d * (k - 1) - 1) // s + 1 for e, k, s, d in zip(x.shape[2:], sizes, stride, dilation, strict=True)]
    y = np.zeros((x.shape[0], out, *counts), x.dtype)
    for o in range(out):
        first = o // (out // groups) * each
        for place in np.ndindex(*counts):
            for tap in np.ndindex(*sizes):
                at = tuple(p * s + t * d for p, s, t, d in zip(place, stride, tap, dilation, strict=True))
                seen = x[(slice(None), slice(first, first + each), *at)]
                y[(slice(None), o, *place)] += (seen * w[(o, slice(None), *tap)]).sum(1)
    return y


def scattered_transpose(
    x: np.ndarray, w: np.ndarray, stride: Any, padding: Any, more: Any, dilation: Any, groups: int
) -> np.ndarray:
    """Every element of the input spreads its products over the output."""
    n, channels, *space = x.shape
    each, sizes = w.shape[1], w.shape[2:]
    full = [
        (e - 1) * s + d * (k - 1) + 1 + m for e, s, d, k, m in zip(space, stride, dilation, sizes, more, strict=True)
    ]
    y = np.zeros((n, each * groups, *full), x.dtype)
    for c in range(channels):
        first = c // (channels // groups) * each
        for place in np.ndindex(*space):
            for tap in np.ndindex(*sizes):
                at = tuple(p * s + t * d for p, s, t, d in zip(place, stride, tap, dilation, strict=True))
                one = x[(slice(None), c, *place)]
                y[(slice(None), slice(first, first + each), *at)] += one[:, None] * w[(c, slice(None), *tap)]
    return y[(..., *(slice(p, f - p) for p, f in zip(padding, full, strict=True)))]


# x, w, stride, padding, dilation, groups.
SHAPES: list[tuple[Any, ...]] = [
    ((3, 2, 9), (4, 2, 3), (1,), (0,), (1,), 1),
    ((2, 4, 20), (6, 2, 4), (3,), (2,), (2,), 2),
    ((1, 1, 5), (1, 1, 5), (2,), (0,), (1,), 1),
    ((2, 3, 8, 9), (5, 3, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    ((2, 3, 8, 9), (5, 3, 3, 2), (2, 3), (1, 0), (1, 2), 1),
    ((2, 3, 7, 7), (5, 3, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    ((2, 3, 7, 7), (5, 3, 1, 1), (2, 2), (0, 0), (1, 1), 1),
    ((2, 4, 6, 7), (8, 1, 3, 3), (1, 1), (1, 1), (1, 1), 4),
    ((2, 4, 9, 8), (6, 2, 3, 2), (2, 1), (2, 1), (2, 3), 2),
    ((2, 1, 6, 6), (1, 1, 2, 2), (2, 2), (0, 0), (1, 1), 1),
    ((1, 2, 4, 5, 6), (3, 2, 2, 3, 2), (1, 2, 1), (1, 0, 1), (2, 1, 1), 1),
    ((2, 2, 3, 4, 5), (2, 1, 2, 2, 3), (1, 1, 2), (0, 1, 0), (1, 1, 2), 2),
    ((2, 8, 17, 33), (16, 8, 3, 3), (1, 1), (1, 1), (1, 1), 1),
]
NAMES = [f"{s[0]}*{s[1]} stride{s[2]} padding{s[3]} dilation{s[4]} groups{s[5]}" for s in SHAPES]


def built(case: tuple[Any, ...], batch: Any, dtype: str = "float64") -> tuple[sg.Node, sg.Node, sg.Node]:
    shape, weights, stride, padding, dilation, groups = case
    g = sg.Graph()
    x, w = g.input("x", (batch, *shape[1:]), dtype), g.input("w", weights, dtype)
    conv = CONV[len(shape) - 2]
    return x, w, conv(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)


@pytest.mark.parametrize("case", SHAPES, ids=NAMES)
def test_values_are_those_of_loops(case: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(0)
    x, w, y = built(case, "n")
    data, weights = rng.standard_normal(case[0]), rng.standard_normal(case[1])
    expected = looped_convolution(data, weights, case[2], [(p, p) for p in case[3]], case[4], case[5])
    np.testing.assert_allclose(sg.evaluate(y, {x: data, w: weights}), expected, rtol=1e-11, atol=1e-12)
    made = sg.compile([x, w], y)
    np.testing.assert_allclose(made(data, weights), expected, rtol=1e-11, atol=1e-12)
    twice = np.concatenate([data, data[::-1]])
    np.testing.assert_allclose(made(twice, weights), np.concatenate([expected, expected[::-1]]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", [s for s in SHAPES if np.prod(s[0]) < 500], ids=lambda s: f"{s[0]}*{s[1]}")
def test_derivatives_by_input_and_weights(case: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(1)
    shape, weights = case[0], case[1]
    x, w, y = built(case, shape[0])
    # A square, because a convolution is linear in each operand alone.
    check_derivatives([derive([x, w], [rng.standard_normal(shape), rng.standard_normal(weights)], y * y, 2)])


@pytest.mark.parametrize("case", SHAPES, ids=NAMES)
def test_compiled_gradients_are_the_transposed_map(case: tuple[Any, ...]) -> None:
    """<u, conv(v, w)> is linear in each of the three: its gradients are sums that loops can compute."""
    rng = np.random.default_rng(2)
    x, w, y = built(case, "n")
    u = x.graph.input("u", y.shape, "float64")
    by_x, by_w = sg.grad(sg.sum(u * y), [x, w])
    made = sg.compile([x, w, u], (y, by_x, by_w))
    data, weights = rng.standard_normal(case[0]), rng.standard_normal(case[1])
    values = looped_convolution(data, weights, case[2], [(p, p) for p in case[3]], case[4], case[5])
    cotangent = rng.standard_normal(values.shape)
    got, slope_x, slope_w = made(data, weights, cotangent)
    np.testing.assert_allclose(got, values, rtol=1e-11, atol=1e-12)
    pairs = [(p, p) for p in case[3]]
    for _ in range(3):
        v = rng.standard_normal(data.shape)
        moved = (looped_convolution(v, weights, case[2], pairs, case[4], case[5]) * cotangent).sum()
        np.testing.assert_allclose((slope_x * v).sum(), moved, rtol=1e-10, atol=1e-9)
        v = rng.standard_normal(weights.shape)
        moved = (looped_convolution(data, v, case[2], pairs, case[4], case[5]) * cotangent).sum()
        np.testing.assert_allclose((slope_w * v).sum(), moved, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("channels", "out"), [(8, 8), (16, 8), (3, 16)])
def test_no_gradient_stores_windows(channels: int, out: int, stride: int) -> None:
    """Neither the convolution nor its gradients need memory of the size of all windows."""
    g = sg.Graph()
    x, w = g.input("x", (4, channels, 32, 32)), g.input("w", (out, channels, 5, 5))
    y = sg.nn.conv2d(x, w, padding=2, stride=stride)
    # The larger side counts: gradients hold zeros between the places of a strided result.
    windows = 4 * max(channels, out) * (32 // stride) ** 2 * 25 * 4
    for result in (y, *sg.grad(sg.sum(y * y), [x, w])):
        made = sg.compile([x, w], result)
        made.prepare()
        found = re.search(r"arena ([\d,]+) bytes", made.report())
        assert found is not None
        assert 0 < int(found[1].replace(",", "")) < windows


def test_bits_do_not_depend_on_workers_and_vectors() -> None:
    rng = np.random.default_rng(12)
    g = sg.Graph()
    x, w = g.input("x", (3, 5, 11, 13)), g.input("w", (12, 5, 3, 3))
    y = sg.nn.conv2d(x, w, padding=1, stride=(1, 2))
    u = g.input("u", y.shape)
    outputs = (y, *sg.grad(sg.sum(y * u), [x, w]))
    program = Program(g, (x, w, u), outputs, name="convolution")
    arrays = [rng.standard_normal(n.shape).astype(np.float32) for n in (x, w, u)]  # pyright: ignore[reportArgumentType]
    results = run_poisoned(function(program), arrays)
    widths = [b for b in (32, 16) if b < jit.host_target().vector_bytes and jit.host_target(b).fma]
    variants = [{"workers": 2}, *({"target": jit.host_target(b)} for b in widths)]
    for options in variants:
        again = run_poisoned(function(program, **options), arrays)
        assert [differs(a, b) for a, b in zip(again, results, strict=True)] == [None] * 3


def test_gradients_with_symbolic_space() -> None:
    rng = np.random.default_rng(11)
    g = sg.Graph()
    x, w = g.input("x", ("n", 2, "h", "w"), "float64"), g.input("k", (3, 2, 3, 2), "float64")
    y = sg.nn.conv2d(sg.nn.max_pool2d(x, 2, 1), w, stride=(2, 3), padding=1)
    made = sg.compile([x, w], sg.grad(sg.sum(y * y), [x, w]))
    weights = rng.standard_normal((3, 2, 3, 2))
    for shape in ((1, 2, 7, 9), (3, 2, 4, 5), (2, 2, 3, 2)):
        data = rng.standard_normal(shape)
        fixed = sg.Graph()
        a, b = fixed.input("x", shape, "float64"), fixed.input("k", weights.shape, "float64")
        z = sg.nn.conv2d(sg.nn.max_pool2d(a, 2, 1), b, stride=(2, 3), padding=1)
        wanted = sg.evaluate(sg.grad(sg.sum(z * z), [a, b]), {a: data, b: weights})
        for got, want in zip(made(data, weights), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("sizes", "dilation"), [((3, 3), (1, 1)), ((2, 4), (1, 1)), ((2, 3), (3, 2))])
def test_same_and_valid(sizes: tuple[int, int], dilation: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    g = sg.Graph()
    x, w = g.input("x", ("n", 2, "h", "w"), "float64"), g.input("k", (3, 2, *sizes), "float64")
    b = g.input("b", (3,), "float64")
    data, weights, bias = rng.standard_normal((2, 2, 9, 8)), rng.standard_normal((3, 2, *sizes)), rng.standard_normal(3)
    spans = [d * (k - 1) for d, k in zip(dilation, sizes, strict=True)]
    same, valid = [(s // 2, s - s // 2) for s in spans], [(0, 0), (0, 0)]
    given = [(2, 1), (0, 3)]
    for padding, pairs in (("same", same), ("valid", valid), (given, given)):
        y = sg.nn.conv2d(x, w, b, padding=padding, dilation=dilation)  # pyright: ignore[reportArgumentType]
        expected = looped_convolution(data, weights, (1, 1), pairs, dilation, 1) + bias[:, None, None]
        np.testing.assert_allclose(sg.compile([x, w, b], y)(data, weights, bias), expected, rtol=1e-11, atol=1e-12)
        if padding == "same":
            assert y.shape[2:] == x.shape[2:]


TRANSPOSES = [
    ((2, 3, 4, 5), (3, 2, 3, 3), (1, 1), (0, 0), (0, 0), (1, 1), 1),
    ((2, 3, 4, 5), (3, 2, 3, 2), (2, 3), (1, 0), (1, 2), (1, 2), 1),
    ((1, 4, 3, 3), (4, 2, 2, 2), (2, 2), (0, 0), (0, 0), (1, 1), 2),
    ((1, 2, 3, 4), (2, 1, 4, 4), (2, 2), (1, 1), (0, 0), (1, 1), 1),
    # An output padding as large as the stride, behind a dilated window, holds zeros only.
    ((1, 2, 3, 4), (2, 2, 2, 3), (1, 2), (0, 1), (2, 2), (3, 3), 1),
]


@pytest.mark.parametrize("case", TRANSPOSES)
def test_transposed_convolution(case: tuple[Any, ...]) -> None:
    shape, weights, stride, padding, more, dilation, groups = case
    rng = np.random.default_rng(4)
    g = sg.Graph()
    x, w = g.input("x", ("n", *shape[1:]), "float64"), g.input("w", weights, "float64")
    b = g.input("b", (weights[1] * groups,), "float64")
    y = sg.nn.conv_transpose2d(
        x, w, b, stride=stride, padding=padding, output_padding=more, dilation=dilation, groups=groups
    )
    data, values, bias = rng.standard_normal(shape), rng.standard_normal(weights), rng.standard_normal(b.shape)  # pyright: ignore[reportArgumentType]
    expected = scattered_transpose(data, values, stride, padding, more, dilation, groups) + bias[:, None, None]
    np.testing.assert_allclose(sg.evaluate(y, {x: data, w: values, b: bias}), expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(sg.compile([x, w, b], y)(data, values, bias), expected, rtol=1e-11, atol=1e-12)
    fixed = sg.Graph()
    x, w = fixed.input("x", shape, "float64"), fixed.input("w", weights, "float64")
    y = sg.nn.conv_transpose2d(
        x, w, stride=stride, padding=padding, output_padding=more, dilation=dilation, groups=groups
    )
    check_derivatives([derive([x, w], [data, values], y * y, 2)])


@pytest.mark.parametrize(
    "place", [(slice(-1, None), slice(None)), (slice(7, 9), slice(10, 14)), (slice(2, 4), slice(11, 12))]
)
def test_a_slice_behind_what_windows_reach(place: tuple[slice, slice]) -> None:
    """The compiler cuts a fold to the slice that is read of it, also where no window reaches it."""
    rng = np.random.default_rng(8)
    g = sg.Graph()
    x, w = g.input("x", (1, 2, 3, 4), "float64"), g.input("w", (2, 3, 1, 2), "float64")
    y = sg.nn.conv_transpose2d(x, w, stride=(4, 5), output_padding=(3, 4))[:, :, *place]
    feeds = {x: rng.integers(-3, 4, x.shape).astype(np.float64), w: rng.integers(-3, 4, w.shape).astype(np.float64)}  # pyright: ignore[reportArgumentType]
    np.testing.assert_array_equal(sg.compile([x, w], y)(*feeds.values()), sg.evaluate(y, feeds))


# x, w, stride, padding, dilation, groups: remainders that no tap reaches, or several with the same taps.
STRIDED: list[tuple[Any, ...]] = [
    ((2, 3, 13), (4, 3, 2), (4,), (1,), (1,), 1),
    ((2, 3, 5), (4, 3, 2), (4,), (4,), (1,), 1),
    ((2, 3, 8), (4, 3, 1), (3,), (1,), (1,), 1),
    ((2, 3, 17), (4, 3, 3), (2,), (2,), (2,), 1),
    ((2, 3, 17), (4, 3, 4), (4,), (3,), (2,), 1),
    ((2, 4, 19), (6, 2, 5), (3,), (1,), (2,), 2),
    ((2, 5, 14, 15), (7, 5, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    ((1, 2, 9, 8), (3, 2, 1, 4), (2, 3), (0, 2), (1, 1), 1),
    ((2, 3, 1, 7), (2, 3, 3, 1), (3, 4), (1, 0), (1, 3), 1),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 1), (2, 3, 2), (1, 0, 0), (1, 2, 1), 1),
]


@pytest.mark.parametrize("case", STRIDED, ids=lambda s: f"{s[0]}*{s[1]} stride{s[2]}")
def test_gradients_of_strided_convolutions(case: tuple[Any, ...]) -> None:
    """By the input they are the transposed convolution of the cotangent; this one has a derivative in turn."""
    shape, weights, stride, padding, dilation, groups = case
    rng = np.random.default_rng(13)
    x, w, y = built(case, shape[0])
    u = x.graph.input("u", y.shape, "float64")
    slope = sg.grad(y, x, cotangent=u)
    again = sg.grad(slope, [w, u], cotangent=x)
    data, taps, cotangent = (rng.standard_normal(n.shape) for n in (x, w, u))  # pyright: ignore[reportArgumentType]
    made = sg.compile([x, w, u], (slope, *again))
    got, by_w, by_u = made(data, taps, cotangent)
    sizes = zip(shape[2:], weights[2:], cotangent.shape[2:], stride, padding, dilation, strict=True)
    more = [e + 2 * p - (c - 1) * s - d * (k - 1) - 1 for e, k, c, s, p, d in sizes]
    wanted = scattered_transpose(cotangent, taps, stride, padding, more, dilation, groups)
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)
    pairs = [(p, p) for p in padding]
    values = looped_convolution(data, taps, stride, pairs, dilation, groups)
    np.testing.assert_allclose(by_u, values, rtol=1e-11, atol=1e-12)
    v = rng.standard_normal(taps.shape)
    moved = (looped_convolution(data, v, stride, pairs, dilation, groups) * cotangent).sum()
    np.testing.assert_allclose((by_w * v).sum(), moved, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize(("stride", "dilation", "size"), [(2, 1, 3), (3, 1, 3), (4, 1, 3), (4, 2, 3), (3, 2, 2)])
def test_strided_gradients_multiply_no_zeros_between_places(stride: int, dilation: int, size: int) -> None:
    """Every tap meets as many places as lie a stride apart, not all of the input."""
    g = sg.Graph()
    x, w = g.input("x", (2, 16, 20, 24)), g.input("w", (16, 16, size, size))
    y = sg.nn.conv2d(x, w, stride=stride, dilation=dilation, padding=1)
    u = g.input("u", y.shape)
    report = sg.compile([w, u], sg.grad(y, x, cotangent=u)).prepare().report()
    counts = [int(found.replace(",", "")) for found in re.findall(r"([\d,]+) +[\d,]+  contract", report)]
    places = -(-20 // stride) * -(-24 // stride)
    assert 0 < sum(counts) <= 1.1 * 2 * 2 * 16 * 16 * size**2 * places


def random_case(rng: np.random.Generator) -> tuple[Any, ...]:
    """x, w, stride, pairs of padding, dilation and groups of a convolution with some results, not too many."""
    while True:
        rank = int(rng.integers(1, 4))
        space, sizes = rng.integers(1, 16, rank), rng.integers(1, 6, rank)
        stride, dilation = rng.integers(1, 5, rank), rng.integers(1, 4, rank)
        pairs = rng.integers(0, 4, (rank, 2))
        counts = (space + pairs.sum(1) - dilation * (sizes - 1) - 1) // stride + 1
        groups, each, some = (int(rng.choice(k)) for k in ([1, 1, 2], [1, 3, 8, 17], [1, 8, 20, 40]))
        n = int(rng.integers(1, 5))
        if counts.min() > 0 and groups * some * counts.prod() * sizes.prod() < 2e4:  # steps of loops in Python
            shapes = (n, groups * each, *space.tolist()), (groups * some, each, *sizes.tolist())
            return *shapes, tuple(stride.tolist()), pairs.tolist(), tuple(dilation.tolist()), groups


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100))
def test_random_convolutions(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and slopes are those of loops; bits do not depend on what is left out; zeros meet infinite weights."""
    rng = np.random.default_rng(seed)
    shape, weights, stride, pairs, dilation, groups = random_case(rng)
    dtype = str(rng.choice(["float32", "float64"]))
    g = sg.Graph()
    x, w = g.input("x", shape, dtype), g.input("w", weights, dtype)
    y = CONV[len(shape) - 2](x, w, stride=stride, padding=pairs, dilation=dilation, groups=groups)
    u = g.input("u", y.shape, dtype)
    program = Program(g, (x, w, u), (y, *sg.grad(y, [x, w], cotangent=u)), name="convolution")
    widths = [b for b in (None, 32, 16) if b is None or b < jit.host_target().vector_bytes]
    options = {"workers": int(rng.integers(1, 4)), "target": jit.host_target(widths[int(rng.integers(len(widths)))])}
    arrays = [rng.integers(-9, 10, n.shape).astype(dtype) for n in (x, w, u)]  # pyright: ignore[reportArgumentType]
    made = function(program, **options)
    got = run_poisoned(made, arrays)
    spoiled = [a.copy() for a in arrays]
    spoiled[1].flat[rng.integers(spoiled[1].size)] = rng.choice([np.inf, -np.inf, np.nan])
    worse = run_poisoned(made, spoiled)
    monkeypatch.setattr(schedule_contract, "_leaving", lambda *_: None)
    whole = function(program, **options)
    for one, other in zip((*got, *worse), (*run_poisoned(whole, arrays), *run_poisoned(whole, spoiled)), strict=True):
        assert differs(one, other) is None
    # Sums of small integers are exact.
    value, by_x, by_w = (a.astype(np.float64) for a in got)
    data, taps, cotangent = (a.astype(np.float64) for a in arrays)
    np.testing.assert_array_equal(value, looped_convolution(data, taps, stride, pairs, dilation, groups))
    assert (by_w * taps).sum() == (by_x * data).sum() == (value * cotangent).sum()
    with np.errstate(invalid="ignore"):
        wanted = looped_convolution(spoiled[0], spoiled[1], stride, pairs, dilation, groups)
    np.testing.assert_array_equal(np.isnan(worse[0]), np.isnan(wanted))
    v = rng.integers(-9, 10, shape).astype(np.float64)
    assert (by_x * v).sum() == (looped_convolution(v, taps, stride, pairs, dilation, groups) * cotangent).sum()
    v = rng.integers(-9, 10, weights).astype(np.float64)
    assert (by_w * v).sum() == (looped_convolution(data, v, stride, pairs, dilation, groups) * cotangent).sum()


@pytest.mark.parametrize(
    "seed", [seed if seed in (35, 68, 90) else pytest.param(seed, marks=pytest.mark.long) for seed in range(100)]
)
def test_random_convolutions_with_long_epilogues(seed: int) -> None:
    """What follows a sum, and what comes before a product, is what it would be in a function of its own."""
    rng = np.random.default_rng(seed)
    shape, weights, stride, pairs, dilation, groups = random_case(rng)
    g = sg.Graph()
    x, w = g.input("x", shape), g.input("w", weights)
    y = CONV[len(shape) - 2](x, w, stride=stride, padding=pairs, dilation=dilation, groups=groups)
    u = g.input("u", y.shape)
    widths = [b for b in (None, 32, 16) if b is None or b < jit.host_target().vector_bytes]
    options = {"workers": int(rng.integers(1, 4)), "target": jit.host_target(widths[int(rng.integers(len(widths)))])}

    def values(inputs: list[Any], outputs: list[Any], *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        return run_poisoned(function(Program(g, tuple(inputs), tuple(outputs), name="f"), **options), list(arrays))

    given = [rng.standard_normal(n, dtype=np.float32) for n in (shape, weights)]
    (plain,) = values([x, w], [y], *given)
    (wanted,) = values([u], [sg.cos(u) - u * sg.sin(u)], plain)
    (got,) = values([x, w], [sg.cos(y) - y * sg.sin(y)], *given)
    assert differs(got, wanted) is None
    apart = values([x, w, u], list(sg.grad(y, [x, w], cotangent=u)), *given, wanted)
    for one, other in zip(values([x, w], list(sg.grad(sg.sum(y * sg.cos(y)), [x, w])), *given), apart, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


# size, stride, padding.
POOLS = [((2, 2), None, (0, 0)), ((3, 2), (2, 2), (1, 1)), ((3, 3), (1, 2), (0, 1)), ((2, 3), (3, 4), (1, 0))]


def pooled(x: np.ndarray, size: Any, stride: Any, padding: Any, fill: float, reduce: Callable[..., Any]) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), *((p, p) for p in padding)), constant_values=fill)
    counts = [(e - k) // s + 1 for e, k, s in zip(x.shape[2:], size, stride, strict=True)]
    y = np.zeros((*x.shape[:2], *counts), x.dtype)
    for i, j in itertools.product(*map(range, counts)):
        top, left = i * stride[0], j * stride[1]
        y[:, :, i, j] = reduce(x[:, :, top : top + size[0], left : left + size[1]], axis=(2, 3))
    return y


@pytest.mark.parametrize(("size", "stride", "padding"), POOLS)
def test_pooling(size: Any, stride: Any, padding: Any) -> None:
    rng = np.random.default_rng(5)
    g = sg.Graph()
    x = g.input("x", ("n", 3, 8, 7), "float64")
    data = rng.standard_normal((2, 3, 8, 7)) - 5
    step = stride or size
    outs = (
        sg.nn.max_pool2d(x, size, stride, padding),
        sg.nn.avg_pool2d(x, size, stride, padding),
        sg.nn.avg_pool2d(x, size, stride, padding, count_padding=False),
    )
    expected = (
        pooled(data, size, step, padding, -np.inf, np.max),
        pooled(data, size, step, padding, 0.0, np.mean),
        pooled(data, size, step, padding, np.nan, np.nanmean),
    )
    for got, numpy, want in zip(sg.compile([x], outs)(data), sg.evaluate(outs, {x: data}), expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-13)
        np.testing.assert_allclose(numpy, want, rtol=1e-13)
    fixed = sg.Graph()
    x = fixed.input("x", data.shape, "float64")
    for make in (sg.nn.max_pool2d, sg.nn.avg_pool2d):
        y = make(x, size, stride, padding)
        check_derivatives([derive([x], [data], y * y, 2)])


def test_pooling_along_one_axis_and_ties() -> None:
    g = sg.Graph()
    x = g.input("x", (1, 1, 6), "float64")
    data = np.array([[[1.0, 1, 2, 3, 3, 3]]])
    high, mean = sg.nn.max_pool1d(x, 3), sg.nn.avg_pool1d(x, 2, 1)
    slope = sg.grad(sg.sum(high), x)
    got = sg.compile([x], (high, mean, slope))(data)
    np.testing.assert_array_equal(got[0], [[[2, 3]]])
    np.testing.assert_array_equal(got[1], [[[1, 1.5, 2.5, 3, 3]]])
    np.testing.assert_allclose(got[2], [[[0, 0, 1, 1 / 3, 1 / 3, 1 / 3]]], rtol=1e-15)


@pytest.mark.parametrize("size", [1, (2, 3), (5, 7), (8, 3)])
def test_adaptive_pooling(size: Any) -> None:
    rng = np.random.default_rng(6)
    g = sg.Graph()
    x = g.input("x", ("n", 2, 8, 7), "float64")
    data = rng.standard_normal((3, 2, 8, 7))
    rows, columns = size if isinstance(size, tuple) else (size, size)
    want = np.zeros((3, 2, rows, columns))
    for i, j in itertools.product(range(rows), range(columns)):
        down = slice(i * 8 // rows, -(-(i + 1) * 8 // rows))
        want[:, :, i, j] = data[:, :, down, j * 7 // columns : -(-(j + 1) * 7 // columns)].mean((2, 3))
    y = sg.nn.adaptive_avg_pool2d(x, size)
    np.testing.assert_allclose(sg.compile([x], y)(data), want, rtol=1e-12, atol=1e-14)
    slope = sg.compile([x], sg.grad(sg.sum(y), x))(data)
    np.testing.assert_allclose(slope.sum(), rows * columns * 6, rtol=1e-12)


@pytest.mark.parametrize("width", [64, 32, 16])
@pytest.mark.parametrize(
    "shapes", [((3, 3, 6, 7), (33, 3, 2, 2)), ((8, 1, 28, 28), (32, 1, 5, 5)), ((4, 6, 5, 9), (17, 6, 1, 3))]
)
def test_long_epilogues_of_tiles_of_several_loops(shapes: tuple[tuple[int, ...], ...], width: int) -> None:
    """Sums that wait in scratch memory for what follows have a place of their own for each loop of a tile."""
    if jit.host_target().vector_bytes < width:
        pytest.skip("for machines with vectors this wide")
    g = sg.Graph()
    x, w = g.input("x", shapes[0]), g.input("w", shapes[1])
    y = sg.nn.conv2d(x, w, padding=1)
    outputs = [sg.cos(y) - y * sg.sin(y), *sg.grad(sg.sum(y * sg.cos(y)), [x, w])]
    rng = np.random.default_rng(0)
    feeds = {node: rng.standard_normal(node.shape, dtype=np.float32) for node in (x, w)}
    program = optimize(Program(g, (x, w), tuple(outputs)), "infer", {})
    executable = build(program, KernelStore(), target=jit.host_target(width), verify=True)
    made = [np.empty(static_shape(out.shape), np.float32) for out in outputs]
    assert executable.run([*feeds.values(), *made]) == 0
    for got, out in zip(made, outputs, strict=True):
        wanted = sg.evaluate(out, feeds)
        np.testing.assert_allclose(got, wanted, atol=2e-5 * np.abs(wanted).max())


def test_gradients_by_weights_whose_windows_overlap_along_one_axis_only() -> None:
    """The loop that shifts stands inside of one that does not."""
    g = sg.Graph()
    x, w = g.input("x", (2, 16, 9, 33)), g.input("w", (33, 16, 4, 3))
    y = sg.nn.conv2d(x, w, stride=3)
    slope = sg.grad(sg.sum(y * y), w)
    rng = np.random.default_rng(1)
    feeds = {node: rng.standard_normal(node.shape, dtype=np.float32) for node in (x, w)}
    wanted = sg.evaluate(slope, feeds)
    np.testing.assert_allclose(sg.compile([x, w], slope)(*feeds.values()), wanted, atol=1e-5 * np.abs(wanted).max())


def test_windows_of_the_same_array_share_a_gradient() -> None:
    """A sum of two contractions over the same windows folds term by term."""
    rng = np.random.default_rng(7)
    g = sg.Graph()
    x, v, w = g.input("x", (2, 2, 6), "float64"), g.input("v", (3, 2, 3), "float64"), g.input("w", (3, 2, 3), "float64")
    y = sg.nn.conv1d(x, v) * sg.nn.conv1d(x, w) + sg.nn.avg_pool1d(x[:, :1], 3, 1)
    arrays = [rng.standard_normal(s) for s in ((2, 2, 6), (3, 2, 3), (3, 2, 3))]
    check_derivatives([derive([x, v, w], arrays, y, 2)])


def test_a_symbolic_size_that_is_too_small_fails_at_the_call() -> None:
    g = sg.Graph()
    x = g.input("x", (1, 1, "n"))
    f = sg.compile([x], sg.nn.conv1d(x, np.ones((1, 1, 3), np.float32)))
    np.testing.assert_array_equal(f(np.ones((1, 1, 3), np.float32)), [[[3]]])
    with pytest.raises(sg.ShapeError, match="window of 3"):
        f(np.ones((1, 1, 2), np.float32))


def test_export_keeps_windows(tmp_path: Any) -> None:
    g = sg.Graph()
    x = g.input("x", ("n", 1, 6, 6))
    w = g.param("w", np.random.default_rng(8).standard_normal((2, 1, 3, 3)).astype(np.float32))
    y = sg.nn.max_pool2d(sg.nn.conv2d(x, w, padding=1), 2)
    slope = sg.grad(sg.sum(y), x)
    path = tmp_path / "windows.safetensors"
    sg.export(path, {"y": y, "slope": slope}, [x])
    data = np.random.default_rng(9).standard_normal((2, 1, 6, 6)).astype(np.float32)
    got, want = sg.compile(sg.load(path))(x=data), sg.compile([x], {"y": y, "slope": slope})(data)
    for name in ("y", "slope"):
        np.testing.assert_array_equal(got[name], want[name])


def test_errors_say_what_was_wrong() -> None:
    g = sg.Graph()
    x, w, n = g.input("x", (2, 4, 8, 8)), g.input("w", (6, 4, 3, 3)), g.input("n", (2, 4, 8, 8), "int32")
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (sg.ShapeError, "nn.conv1d: expected .batch, channels. and 1 axes", lambda: sg.nn.conv1d(x, w)),
        (sg.ShapeError, "nn.conv2d: the weight has 4", lambda: sg.nn.conv2d(x, np.ones((6, 4, 3), np.float32))),
        (sg.ShapeError, "want 8 channels", lambda: sg.nn.conv2d(x, w, groups=2)),
        (sg.ShapeError, "3 groups", lambda: sg.nn.conv_transpose2d(x, w[:4], groups=3)),
        (sg.ShapeError, "window of 9", lambda: sg.nn.conv2d(x, w, dilation=4)),
        (sg.ShapeError, "the bias", lambda: sg.nn.conv2d(x, w, np.ones(5, np.float32))),
        (sg.DTypeError, "conv2d", lambda: sg.nn.conv2d(n, w)),
        (ValueError, "stride", lambda: sg.nn.conv2d(x, w, stride=0)),
        (ValueError, "padding is", lambda: sg.nn.conv2d(x, w, padding="full")),
        (ValueError, "stride of 1", lambda: sg.nn.conv2d(x, w, padding="same", stride=2)),
        (ValueError, "dilation", lambda: sg.nn.conv2d(x, w, dilation=(1, 1, 1))),
        (sg.ShapeError, "at most half", lambda: sg.nn.max_pool2d(x, 2, padding=2)),
        (sg.ShapeError, "output_padding", lambda: sg.nn.conv_transpose2d(x, w[:4], output_padding=1)),
        (sg.ShapeError, "window of 9", lambda: apply("window", x, sizes=(3,), strides=(1,), dilations=(4,))),
    ]
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
