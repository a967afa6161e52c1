"""Arrays large enough for several workers, blocks and stages: values, and the same bits for any number of workers."""

# pyright: basic
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import differs, function, run_poisoned

import symgrad as sg
from codegen import jit
from symgrad.graph import Graph, Node
from symgrad.operators import apply
from symgrad.program import Program

Shapes = list[tuple[int, ...]]


def _contract(left: str, right: str, out: str) -> Callable[[Node, Node], Node]:
    return lambda a, b: apply("contract", a, b, left=left, right=right, out=out)


# Name, function of floating operands, their shapes.
LARGE: dict[str, tuple[Callable[..., Any], Shapes]] = {
    "map": (lambda x, y: sg.exp(x) * y + sg.tanh(x), [(300, 701), (701,)]),
    "map_rank_3": (lambda x, y: sg.where(x > y, x - y, x * y), [(61, 33, 101), (33, 1)]),
    "transpose": (lambda x: sg.permute_dims(x, (1, 0)), [(703, 501)]),
    "transpose_add": (lambda x: x + sg.permute_dims(x, (1, 0)), [(511, 511)]),
    "permute_3": (lambda x: sg.permute_dims(x, (2, 0, 1)) * 2.0, [(40, 50, 103)]),
    "reversed": (lambda x: x[::-1, ::2] * 3.0, [(600, 901)]),
    "concat": (lambda x, y: sg.concat([x, y, x], axis=1), [(500, 200), (500, 333)]),
    "pad": (lambda x: sg.pad(x, ((3, 5), (7, 0)), constant_values=1.0), [(500, 700)]),
    "roll": (lambda x: sg.roll(x, 3, axis=0) - x, [(500, 700)]),
    "sum": (sg.sum, [(200_003,)]),
    "sum_of_squares": (lambda x: sg.sum(x * x), [(501, 701)]),
    "sum_rows": (lambda x: sg.sum(x, axis=1), [(401, 903)]),
    "sum_columns": (lambda x: sg.sum(x, axis=0), [(903, 401)]),
    "sum_few_long_rows": (lambda x: sg.sum(sg.exp(x), axis=1), [(3, 70_001)]),
    "sum_few_long_columns": (lambda x: sg.sum(x, axis=0), [(70_001, 3)]),
    "sum_middle": (lambda x: sg.sum(x, axis=1), [(7, 5001, 11)]),
    "sum_outer": (lambda x: sg.sum(x, axis=(0, 2)), [(70, 9, 601)]),
    "max": (sg.max, [(200_003,)]),
    "min_columns": (lambda x: sg.min(x, axis=0), [(9001, 31)]),
    "argmax": (lambda x: sg.argmax(x, axis=1), [(3, 70_001)]),
    "argmin_columns": (lambda x: sg.argmin(sg.round(x * 9.0), axis=0), [(9001, 31)]),
    "prod": (lambda x: sg.prod(1.0 + x * 0.01), [(30_001,)]),
    "any": (lambda x: sg.any(x > 1.0, axis=0), [(9001, 17)]),
    "mean_and_var": (lambda x: [sg.mean(x, axis=1), sg.var(x, axis=1)], [(301, 1201)]),
    "softmax": (sg.nn.softmax, [(301, 1201)]),
    "softmax_columns": (lambda x: sg.nn.softmax(x, axis=0), [(1201, 301)]),
    "softmax_long": (sg.nn.softmax, [(2, 50_001)]),
    "layer_norm": (sg.nn.layer_norm, [(401, 769), (769,), (769,)]),
    "log_sum_exp": (sg.log_sum_exp, [(150_001,)]),
    "take": (lambda x: sg.take(x, np.arange(50_000) * 7 % 1000, axis=0), [(1000, 8)]),
    "scatter_add": (
        lambda x, u: sg.scatter_add(x, np.arange(60_000) * 7 % 501, u),
        [(501, 4), (60_000, 4)],
    ),
    "matmul": (_contract("mk", "kn", "mn"), [(257, 130), (130, 301)]),
    "matmul_square": (_contract("mk", "kn", "mn"), [(256, 256), (256, 256)]),
    "matmul_long": (_contract("mk", "kn", "mn"), [(33, 2100), (2100, 65)]),
    "matmul_tall": (_contract("mk", "kn", "mn"), [(3001, 17), (17, 9)]),
    "matmul_wide": (_contract("mk", "kn", "mn"), [(5, 300), (300, 2001)]),
    "matmul_left": (_contract("km", "kn", "mn"), [(401, 130), (401, 67)]),
    "matmul_right": (_contract("mk", "nk", "mn"), [(130, 401), (67, 401)]),
    "matmul_both": (_contract("km", "nk", "mn"), [(401, 130), (67, 401)]),
    "matmul_out": (_contract("mk", "kn", "nm"), [(130, 401), (401, 67)]),
    "matmul_batch": (_contract("bmk", "bkn", "bmn"), [(7, 65, 130), (7, 130, 33)]),
    "matmul_heads": (_contract("bqhd", "bkhd", "bhqk"), [(2, 65, 4, 32), (2, 70, 4, 32)]),
    "matmul_vector": (_contract("mk", "k", "m"), [(701, 903), (903,)]),
    "vector_matmul": (_contract("k", "kn", "n"), [(903,), (903, 701)]),
    "dot": (_contract("k", "k", ""), [(150_001,), (150_001,)]),
    "outer": (_contract("m", "n", "mn"), [(501,), (701,)]),
    "layer": (lambda x, w, b: sg.nn.relu(x @ w + b), [(129, 257), (257, 131), (131,)]),
    "prologue": (lambda x, w: sg.tanh(x) @ sg.sin(w), [(129, 257), (257, 131)]),
    "residual": (lambda x, w: x + sg.nn.gelu(x @ w), [(200, 200), (200, 200)]),
    "matmul_softmax": (lambda x, w: sg.nn.softmax(x @ w), [(201, 133), (133, 97)]),
    "attention": (
        lambda q, k, v: sg.nn.softmax((q @ k.mT) * 0.125) @ v,
        [(3, 130, 64), (3, 140, 64), (3, 140, 32)],
    ),
    "perceptron": (
        lambda x, w, b, v: sg.grad(
            sg.sum(sg.nn.softmax_cross_entropy(sg.nn.relu(x @ w + b) @ v, np.arange(130) % 10)), [w, b, v]
        ),
        [(130, 200), (200, 150), (150,), (150, 10)],
    ),
    "convolution": (
        lambda x, w: [(y := sg.nn.conv2d(x, w, padding=1)), *sg.grad(sg.sum(y * y), [x, w])],
        [(5, 6, 21, 19), (20, 6, 3, 3)],
    ),
    "convolution_long": (
        lambda x, w: sg.grad(sg.sum(sg.nn.conv2d(x, w, padding=1) ** 2), w),
        [(24, 1, 60, 60), (9, 1, 3, 3)],
    ),
    "convolution_wide": (lambda x, w: sg.nn.conv2d(x, w, stride=2), [(2, 40, 31, 37), (80, 40, 3, 3)]),
    "max_pool": (
        lambda x: [(y := sg.nn.max_pool2d(sg.nn.relu(x), 2)), sg.grad(sg.sum(y * y), x)],
        [(3, 11, 28, 34)],
    ),
    "max_pool_overlapping": (lambda x: sg.nn.max_pool2d(x, 3, 2, 1), [(3, 11, 29, 34)]),
    "matmul_few": (_contract("mk", "kn", "mn"), [(12, 20_160), (20_160, 10)]),
    "every_third": (lambda x: [x[:, ::2] + x[:, 1::2], x[:, ::3], x[::2, ::-1], x[:, ::-4], x[:, ::5]], [(31, 240)]),
    "norm_gradient": (
        lambda x, s, b: sg.grad(sg.sum(sg.nn.layer_norm(x, s, b) ** 3), [x, s, b]),
        [(130, 257), (257,), (257,)],
    ),
}


@functools.cache
def _made(name: str) -> tuple[Program, list[np.ndarray], list[np.ndarray]]:
    build, shapes = LARGE[name]
    graph = Graph()
    nodes = [graph.input(f"x{k}", shape) for k, shape in enumerate(shapes)]
    rng = np.random.default_rng(len(name))
    arrays = [rng.normal(0, 1, shape).astype(np.float32) for shape in shapes]
    built = build(*nodes)
    outputs = [built] if isinstance(built, Node) else list(built)
    meant = sg.evaluate(outputs, dict(zip(nodes, arrays, strict=True)))
    return Program(graph, tuple(nodes), tuple(outputs), name=name), arrays, meant


@functools.cache
def _first(name: str) -> tuple[np.ndarray, ...]:
    program, arrays, _ = _made(name)
    return run_poisoned(function(program), arrays)


@pytest.mark.parametrize("name", LARGE)
def test_compiled_is_the_meaning(name: str):
    meant = _made(name)[2]
    for got, expected in zip(_first(name), meant, strict=True):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        if got.dtype.kind != "f":
            assert differs(got, expected) is None
            continue
        scale = float(np.max(np.abs(expected)))
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("name", LARGE)
def test_bits_do_not_depend_on_workers(name: str, workers: int):
    program, arrays, _ = _made(name)
    made = function(program, workers=workers)
    for _ in range(3):
        for got, expected in zip(run_poisoned(made, arrays), _first(name), strict=True):
            assert differs(got, expected) is None


@pytest.mark.parametrize("width", [32, 16])
@pytest.mark.parametrize("name", LARGE)
def test_narrow_targets(name: str, width: int):
    if width > jit.host_target().vector_bytes:
        pytest.skip("the machine has no vectors that wide")
    program, arrays, meant = _made(name)
    for got, expected in zip(
        run_poisoned(function(program, target=jit.host_target(width)), arrays), meant, strict=True
    ):
        if got.dtype.kind != "f":
            assert differs(got, expected) is None
            continue
        scale = float(np.max(np.abs(expected)))
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5 * scale)


def test_no_numbers_at_the_end_of_long_reductions():
    graph = Graph()
    x = graph.input("x", (100_003,))
    outputs = [sg.max(x), sg.min(x), sg.sum(x), sg.argmax(x), sg.argmin(x), sg.log_sum_exp(x)]
    array = np.arange(100_003, dtype=np.float32)
    array[-1] = np.nan
    for workers in (1, 2):
        got = run_poisoned(function(Program(graph, (x,), tuple(outputs)), workers=workers), [array])
        assert all(np.isnan(got[k]) for k in (0, 1, 2, 5))
        assert [int(g) for g in got[3:5]] == [100_002, 100_002]


def test_short_rows_of_saturated_integers_stay_in_their_row():
    """The last, short block of a row writes nothing into the next row, also when it narrows integers."""
    g = sg.Graph()
    x = g.input("x", (4, 65), sg.int64)
    y = g.input("y", (4, 65), sg.int64)
    f = sg.compile([x, y], [sg.astype(x, sg.int32), sg.bitwise_xor(x, y)[:, ::-1]])
    value = np.arange(260).reshape(4, 65)
    np.testing.assert_array_equal(f(value, value * 3)[0], value)
