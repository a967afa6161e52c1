"""The operators and array functions against NumPy: values, indexing, promotion, symbolic shapes, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from symgrad import functions as sg
from symgrad import types
from symgrad.bind import bind_attr, bind_sizes
from symgrad.composites import log_sum_exp, logaddexp
from symgrad.errors import DTypeError, GraphError, ShapeError
from symgrad.evaluate import evaluate
from symgrad.grad import grad
from symgrad.graph import Graph, Node
from symgrad.opdef import OPS, Kind
from symgrad.operators import as_node, common, uniform_value
from symgrad.ops.build import apply
from symgrad.program import Program
from symgrad.types import Dim

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.5, 1e30, -1e30, np.inf, -np.inf, np.nan], np.float32)
RNG = np.random.default_rng(0)


def run(function, *arrays, symbolic=False):
    graph = Graph()
    nodes = [
        graph.input(f"x{k}", tuple(f"d{k}_{j}" for j in range(a.ndim)) if symbolic else a.shape, a.dtype)
        for k, a in enumerate(arrays)
    ]
    return evaluate(function(*nodes), dict(zip(nodes, arrays, strict=True)))


def same(result, expected):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    np.testing.assert_array_equal(result, expected)
    if result.dtype.kind == "f":
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(result[number]), np.signbit(expected[number]))


def pairs(values):
    a, b = zip(*itertools.product(values, values), strict=True)
    return np.array(a, values.dtype), np.array(b, values.dtype)


UNARY = (
    "negative abs sign sqrt square reciprocal exp log log1p expm1 sin cos tan tanh floor ceil trunc "
    "isnan isfinite isinf"
)
BINARY = "add subtract multiply divide power maximum minimum equal not_equal less less_equal greater greater_equal"


@pytest.mark.parametrize("name", UNARY.split())
def test_unary_is_numpy(name):
    with np.errstate(all="ignore"):
        same(run(getattr(sg, name), SPECIAL), getattr(np, name)(SPECIAL))


@pytest.mark.parametrize("name", BINARY.split())
def test_binary_is_numpy(name):
    a, b = pairs(SPECIAL)
    with np.errstate(all="ignore"):
        same(run(getattr(sg, name), a, b), getattr(np, name)(a, b))


def test_other_unary():
    x = np.array([-3.5, -2.5, -0.5, 0.5, 1.5, 2.5, 700.0, -700.0], np.float64)
    same(run(sg.round, x), np.rint(x))
    np.testing.assert_allclose(run(sg.sigmoid, x), 1 / (1 + np.exp(-x)), rtol=1e-15)
    np.testing.assert_allclose(run(sg.erf, x), [math.erf(v) for v in x], rtol=1e-15)
    with np.errstate(all="ignore"):
        same(run(sg.rsqrt, SPECIAL), 1 / np.sqrt(SPECIAL))
    assert run(sg.floor, np.array([1, 2])).dtype == np.int64
    np.testing.assert_allclose(run(sg.sinh, x[:6]), np.sinh(x[:6]), rtol=1e-15)


def test_integer_arithmetic_wraps():
    a, b = pairs(np.array([-128, -3, -1, 0, 1, 2, 5, 127], np.int8))
    with np.errstate(all="ignore"):
        for name in ["add", "subtract", "multiply", "maximum", "bitwise_and", "bitwise_or", "bitwise_xor"]:
            same(run(getattr(sg, name), a, b), getattr(np, name)(a, b))
        result = run(sg.pow, a, b)
    for base, exponent, value in zip(a.tolist(), b.tolist(), result.tolist(), strict=True):
        if exponent < 0:
            expected = int(1 / base) if base in (1, -1) else 0
            expected = expected if exponent % 2 else abs(expected)
        else:
            expected = (base**exponent + 128) % 256 - 128
        assert value == expected


def test_booleans():
    a, b = pairs(np.array([False, True]))
    same(run(lambda x, y: x + y, a, b), a | b)
    same(run(lambda x, y: x * y, a, b), a & b)
    same(run(lambda x, y: (x & y) ^ ~(x | y), a, b), (a & b) ^ ~(a | b))
    with pytest.raises(DTypeError, match="use astype"):
        run(lambda x, y: x - y, a, b)


def test_casts_saturate():
    x = np.array([np.nan, np.inf, -np.inf, 1.9, -1.9, 300.0, -300.0, 1e20, -1e20, 127.9, -128.9], np.float32)
    same(
        run(lambda n: sg.astype(n, types.int8), x),
        np.array([0, 127, -128, 1, -1, 127, -128, 127, -128, 127, -128], np.int8),
    )
    same(run(lambda n: sg.astype(n, "uint8"), x), np.array([0, 255, 0, 1, 0, 255, 0, 255, 0, 127, 0], np.uint8))
    wide = run(lambda n: sg.astype(n, "int64"), np.array([2.0**63, -(2.0**63), 2.0**62, np.nan]))
    assert wide.tolist() == [2**63 - 1, -(2**63), 2**62, 0]
    same(run(lambda n: sg.astype(n, "bool"), x), np.array([True] * len(x)))
    same(run(lambda n: sg.astype(n, "int8"), np.array([300, -1])), np.array([44, -1], np.int8))


def test_philox_known_answers():
    graph = Graph()
    zero = [graph.const(np.zeros((), np.uint32)) for _ in range(6)]
    ones = [graph.const(np.array(0xFFFFFFFF, np.uint32)) for _ in range(6)]
    words = [apply("philox", *zero, word=k) for k in range(4)] + [apply("philox", *ones, word=k) for k in range(4)]
    assert [f"{int(v):08x}" for v in evaluate(words)] == [
        "6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8", "408f276d", "41c83b0e", "a20bc7c6", "6d5451fd",
    ]  # fmt: skip


def test_reductions():
    x = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    for axis in (None, 0, -1, (0, 2), ()):
        for keep in (False, True):
            for name in ["sum", "prod", "max", "min", "mean", "var", "std"]:
                got = run(lambda n: getattr(sg, name)(n, axis, keepdims=keep), x)  # noqa: B023
                expected = np.asarray(getattr(np, name)(x, axis=axis, keepdims=keep))
                assert got.dtype == expected.dtype
                np.testing.assert_allclose(got, expected, rtol=2e-5)
    same(run(sg.sum, np.ones(300, bool)), np.asarray(300))
    same(run(sg.sum, np.full(300, 255, np.uint8)), np.asarray(300 * 255, np.uint64))
    same(run(lambda n: sg.sum(n, dtype="int32"), np.ones(3, bool)), np.asarray(3, np.int32))
    same(run(lambda n: sg.argmax(n, 1), x), np.argmax(x, 1))
    same(run(lambda n: sg.argmin(n, keepdims=True), x), np.argmin(x, keepdims=True))
    same(run(lambda n: sg.any(n > 2, 1), x), np.any(x > 2, 1))
    same(run(lambda n: sg.all(n < 2), x), np.all(x < 2))
    with pytest.raises(ShapeError, match="empty"):
        run(sg.max, np.zeros((0,), np.float32))


def test_log_sum_exp():
    x = np.array([[1000.0, 1000.0], [-np.inf, -np.inf], [-np.inf, 3.0], [np.inf, 1.0]])
    np.testing.assert_allclose(run(lambda n: log_sum_exp(n, 1), x), [1000 + math.log(2), -np.inf, 3.0, np.inf])
    np.testing.assert_allclose(
        run(lambda n: logaddexp(n[:, 0], n[:, 1]), x), [1000 + math.log(2), -np.inf, 3.0, np.inf]
    )
    np.testing.assert_allclose(run(lambda n: logaddexp(n, 0.0), np.array([-40.0])), np.logaddexp(-40.0, 0), rtol=1e-15)


INDICES: list[Any] = [
    np.s_[1],
    np.s_[-1, 2],
    np.s_[1:3],
    np.s_[::-1],
    np.s_[::-2],
    np.s_[-1::-3],
    np.s_[3:0:-2],
    np.s_[:, 1::2],
    np.s_[None, ..., 0],
    np.s_[..., None],
    np.s_[:-1, 1:-1],
    np.s_[1:1],
    np.s_[:, [0, 3, -1]],
    np.s_[np.array([[0, 1], [2, 3]]), 1:],
    np.s_[1, np.array([2, 3], np.int8)],
    np.s_[-3:],
]


@pytest.mark.parametrize("index", INDICES, ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_indexing(index, symbolic):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    same(run(lambda n: n[index], x, symbolic=symbolic), x[index])


@pytest.mark.parametrize("index", [np.s_[5:2], np.s_[2:5:-1], np.s_[:100], np.s_[-100:2]], ids=str)
def test_slices_clip_where_the_extent_is_known(index):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    same(run(lambda n: n[index], x), x[index])


def test_symbolic_slice_is_checked_at_the_call():
    x = np.zeros(3, np.float32)
    with pytest.raises(ShapeError, match=r"slice 0:5:1 does not lie within axis 0 of extent 3"):
        run(lambda n: n[:5], x, symbolic=True)


def test_index_errors():
    x = Graph().input("x", (4, 6))
    with pytest.raises(ShapeError, match="7 is out of range for axis 0 of extent 4"):
        x[7]
    with pytest.raises(ShapeError, match=r"sg\.where"):
        x[x > 0]
    with pytest.raises(ShapeError, match=r"index: shapes \(2,\) .* and \(3,\) .* do not broadcast"):
        x[[0, 1], [0, 1, 2]]
    with pytest.raises(ShapeError, match="3 indices for 2 dimensions"):
        x[0, 0, 0]
    with pytest.raises(GraphError, match="got float"):
        x[1.5]
    with pytest.raises(IndexError, match="index 4 is out of range for an axis of extent 4"):
        evaluate(x[[0, 4]], {x: np.zeros((4, 6), np.float32)})


SHAPING = {
    "reshape": (lambda n: sg.reshape(n, (-1, 6)), lambda x: x.reshape(-1, 6)),
    "permute_dims": (lambda n: sg.permute_dims(n, (2, 0, 1)), lambda x: x.transpose(2, 0, 1)),
    "mT": (lambda n: n.mT, lambda x: x.swapaxes(1, 2)),
    "moveaxis": (lambda n: sg.moveaxis(n, 0, -1), lambda x: np.moveaxis(x, 0, -1)),
    "expand_dims": (lambda n: sg.expand_dims(n, (0, -1)), lambda x: np.expand_dims(x, (0, -1))),
    "flip": (lambda n: sg.flip(n, (0, -1)), lambda x: np.flip(x, (0, -1))),
    "concat": (lambda n: sg.concat([n, n[:1]], 0), lambda x: np.concatenate([x, x[:1]], 0)),
    "stack": (lambda n: sg.stack([n, n], -1), lambda x: np.stack([x, x], -1)),
    "pad": (
        lambda n: sg.pad(n, ((1, 0), (0, 2), (0, 0)), 7),
        lambda x: np.pad(x, ((1, 0), (0, 2), (0, 0)), constant_values=7),
    ),
    "tile": (lambda n: sg.tile(n, (2, 1, 2, 3)), lambda x: np.tile(x, (2, 1, 2, 3))),
    "repeat": (lambda n: sg.repeat(n, 3, 1), lambda x: np.repeat(x, 3, 1)),
    "roll": (lambda n: sg.roll(n, (1, -1), (0, 2)), lambda x: np.roll(x, (1, -1), (0, 2))),
    "roll flat": (lambda n: sg.roll(n, 5), lambda x: np.roll(x, 5)),
    "tril": (lambda n: sg.tril(n, 1), lambda x: np.tril(x, 1)),
    "triu": (lambda n: sg.triu(n, -1), lambda x: np.triu(x, -1)),
    "broadcast_to": (lambda n: sg.broadcast_to(n, (2, *n.shape)), lambda x: np.broadcast_to(x, (2, *x.shape))),
    "squeeze": (lambda n: sg.squeeze(n[:, :1], 1), lambda x: x[:, 0]),
}


@pytest.mark.parametrize("name", SHAPING)
@pytest.mark.parametrize("symbolic", [False, True])
def test_shaping(name, symbolic):
    x = np.arange(36, dtype=np.int32).reshape(2, 6, 3)
    ours, theirs = SHAPING[name]
    same(run(ours, x, symbolic=symbolic), np.ascontiguousarray(theirs(x)))


def test_split_and_unstack():
    x = np.arange(12.0).reshape(2, 6)
    for got, expected in zip(run_list(lambda n: sg.split(n, 3, 1), x), np.split(x, 3, 1), strict=True):
        same(got, expected)
    for got, expected in zip(run_list(lambda n: sg.split(n, [1, 4], 1), x), np.split(x, [1, 4], 1), strict=True):
        same(got, expected)
    for got, expected in zip(run_list(lambda n: sg.unstack(n, 1), x), x.T, strict=True):
        same(got, np.ascontiguousarray(expected))


def run_list(function, x):
    node = Graph().input("x", x.shape, x.dtype)
    return evaluate(function(node), {node: x})


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)),
    ("ij,jk", (2, 3), (3, 4)),
    ("bij,bjk->bik", (5, 2, 3), (5, 3, 4)),
    ("...ij,jk->...ik", (5, 2, 3), (3, 4)),
    ("...ij,...jk->...ik", (5, 1, 2, 3), (6, 3, 4)),
    ("ij->ji", (2, 3)),
    ("ij->", (2, 3)),
    ("i,j->ij", (2,), (3,)),
    ("ij,k->i", (2, 3), (4,)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)),
    ("i,i,i->", (3,), (3,), (3,)),
    ("ij,ij->j", (2, 3), (1, 3)),
]


@pytest.mark.parametrize("case", EINSUMS, ids=lambda c: c[0])
def test_einsum(case):
    spec, *shapes = case
    arrays = [RNG.normal(size=s) for s in shapes]
    np.testing.assert_allclose(run(lambda *n: sg.einsum(spec, *n), *arrays), np.einsum(spec, *arrays), rtol=1e-12)


@pytest.mark.parametrize(
    "shapes",
    [((2, 3), (3, 4)), ((3,), (3,)), ((3,), (3, 4)), ((2, 3), (3,)), ((5, 1, 2, 3), (6, 3, 4)), ((3,), (5, 3, 4))],
    ids=str,
)
def test_matmul(shapes):
    a, b = (RNG.normal(size=s) for s in shapes)
    np.testing.assert_allclose(run(lambda x, y: x @ y, a, b), a @ b, rtol=1e-12)


def test_tensordot_and_vecdot():
    a, b = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(3, 4, 5))
    np.testing.assert_allclose(run(sg.tensordot, a, b), np.tensordot(a, b), rtol=1e-12)
    np.testing.assert_allclose(
        run(lambda x, y: sg.tensordot(x, y, ((2,), (1,))), a, b), np.tensordot(a, b, ((2,), (1,))), rtol=1e-12
    )
    c = RNG.normal(size=(2, 1, 4))
    np.testing.assert_allclose(run(sg.vecdot, a, c), (a * c).sum(-1), rtol=1e-12)


def test_contraction_errors():
    graph = Graph()
    x, y = graph.input("x", (2, 3)), graph.input("y", (4, 5))
    with pytest.raises(ShapeError, match=r"matmul: .*input 'x' float32\[2, 3\] \(test_ops_basic.* got 3 and 4"):
        _ = x @ y
    with pytest.raises(ShapeError, match="label 'i' of 'ii->i' is 2, 3"):
        sg.einsum("ii->i", x)


def test_take_and_scatter():
    x = np.arange(12.0).reshape(3, 4)
    i = np.array([[0, -1], [2, 0]])
    same(run(lambda n: sg.take(n, i, 1), x), np.take(x, i, 1))
    j = np.array([[0, -1], [2, 2], [1, 1]])
    same(run(lambda n: sg.take_along_axis(n, j, 1), x), np.take_along_axis(x, j, 1))
    expected = x.copy()
    np.add.at(expected.T, np.array([0, 0, -1]), 1.0)
    same(run(lambda n: sg.scatter_add(n, np.array([0, 0, -1]), 1.0, axis=1), x), expected)
    same(run(lambda n: sg.one_hot(n, 3), np.array([2, 0, 5])), np.array([[0, 0, 1], [1, 0, 0], [0, 0, 0]], np.float32))


def test_creation():
    graph = Graph()
    n = Dim.named("n")
    x = graph.input("x", ("n",))
    feeds = {x: np.zeros(4, np.float32)}
    same(evaluate(sg.arange(graph, n), feeds), np.arange(4))
    same(evaluate(sg.arange(graph, 2, n), feeds), np.arange(2, 4))
    same(evaluate(sg.arange(graph, 1.0, 2.0, 0.25), feeds), np.arange(1, 2, 0.25, dtype=np.float32))
    same(evaluate(sg.eye(graph, n, k=1), feeds), np.eye(4, k=1, dtype=np.float32))
    same(evaluate(sg.zeros(graph, (n, 2)), feeds), np.zeros((4, 2), np.float32))
    same(evaluate(sg.ones_like(x, "int8"), feeds), np.ones(4, np.int8))
    same(evaluate(sg.linspace(graph, 0, 1, 5)), np.linspace(0, 1, 5, dtype=np.float32))


def test_promotion():
    graph = Graph()
    f, d, i, b = (graph.input(name, (2,), name) for name in ("float32", "float64", "int32", "bool"))
    u = graph.input("u8", (2,), types.uint8)
    wanted = {
        "float32": [f + 1, f * 2.0, i + f, 2.5 * i, i / i, b / b, i / 2, f + np.int64(1), -f, f**2, 2**f, b * 1.5],
        "float64": [d + 1, f + d, f + np.zeros(2), f * np.float64(1)],
        "int32": [i + 1, i + u, i + True, i**3],
        "int64": [b + 1, i + np.arange(2), f.graph.const(3) + 1],
        "uint8": [u + 255, u + b],
        "bool": [f > 1, i < 2.5, b & True, ~b],
    }
    for name, nodes in wanted.items():
        assert [n.dtype.name for n in nodes] == [name] * len(nodes)
    for bad in (lambda: u + 256, lambda: u + -1, lambda: f + 1e300, lambda: graph.const(np.uint64(1)) + graph.const(1)):
        with pytest.raises(DTypeError, match="astype"):
            bad()
    with pytest.raises(TypeError):
        _ = f + {"a": 1}  # pyright: ignore[reportOperatorIssue]


def test_lifting_and_broadcasting():
    graph = Graph()
    x = graph.input("x", (3, 4))
    assert (x + x).inputs == (x, x)
    assert uniform_value(common("add", x, 2)[1]) == 2
    assert uniform_value(graph.const(np.array([0.0, -0.0]))) is None
    assert as_node(x, 3).dtype is types.float32
    y = np.ones(4, np.float32) + x
    assert isinstance(y, Node)
    assert y.shape == (3, 4)
    with pytest.raises(GraphError, match="belongs to"):
        _ = x + Graph().input("y", (3, 4))
    z = graph.input("z", (4, 3))
    with pytest.raises(
        ShapeError,
        match=r"add: shapes \(3, 4\) \(test_ops_basic.py:\d+\) and \(4, 3\) \(test_ops_basic.py:\d+\) "
        "do not broadcast; transpose one",
    ):
        _ = x + z


def test_where_lifts():
    graph = Graph()
    x = graph.input("x", (3,))
    assert sg.where(x > 0, 1.0, 0.0).dtype is types.float32
    assert sg.where(x > 0, 1, 0).dtype is types.int64
    assert sg.where(x > 0, x, 0).dtype is types.float32
    assert sg.where(sg.expand_dims(x > 0, 1), np.zeros(4), 1).shape == (3, 4)
    with pytest.raises(DTypeError, match="must be bool"):
        sg.where(x, x, x)


def test_symbolic_shapes():
    graph = Graph()
    x, y = graph.input("x", ("n", 3)), graph.input("y", ("m", 3))
    total = sg.mean(x + y, 0) + x.shape[0]
    a, b = RNG.normal(size=(4, 3)).astype(np.float32), RNG.normal(size=(1, 3)).astype(np.float32)
    np.testing.assert_allclose(evaluate(total, {x: a, y: b}), (a + b).mean(0) + 4, rtol=1e-5)
    with pytest.raises(ShapeError, match=r"m = 2 and n = 4 do not broadcast"):
        evaluate(total, {x: a, y: np.zeros((2, 3), np.float32)})


def test_binding():
    graph = Graph()
    n = Dim.named("n")
    x, y = graph.input("x", ("n",)), graph.input("y", (2 * n + 1,))
    assert bind_sizes([x, y], [np.zeros(3), np.zeros(7)]) == {"n": 3}
    assert bind_sizes([y], [np.zeros(7)]) == {"n": 3}
    assert bind_attr((n, (n + 1, "s"), 2), {"n": 3}) == (3, (4, "s"), 2)
    with pytest.raises(
        ShapeError,
        match=r"input 'y' .*: dimension 0 must be 2\*n \+ 1 = 7 \(n = 3 from dimension 0 of input 'x'\), got 8",
    ):
        bind_sizes([x, y], [np.zeros(3), np.zeros(8)])
    with pytest.raises(ShapeError, match=r"no n of at least 0 makes that 8"):
        bind_sizes([y], [np.zeros(8)])
    with pytest.raises(ShapeError, match=r"expected shape \(n\), got \(3, 3\)"):
        bind_sizes([x], [np.zeros((3, 3))])


def test_feeds():
    graph = Graph()
    x = graph.input("x", (2,))
    w = graph.param("w", np.ones(2, np.float32))
    out = x * w
    with pytest.raises(GraphError, match=r"'x'.* has no value"):
        evaluate(out)
    with pytest.raises(DTypeError, match="was given float64"):
        evaluate(out, {x: np.zeros(2)})
    with pytest.raises(ShapeError, match=r"input 'x' float32\[2\] \(test_ops_basic.*: dimension 0 must be 2, got 3"):
        evaluate(out, {x: np.zeros(3, np.float32)})
    same(evaluate(out, {x: [1.0, 2.0]}), np.array([1, 2], np.float32))
    same(evaluate(out + 1, {out: np.array([5.0, 6.0], np.float32)}), np.array([6, 7], np.float32))
    result = evaluate(w)
    result[:] = 9
    assert w.value.tolist() == [1, 1]


def test_program_attributes_print_on_one_line():
    inner = Graph()
    a = inner.input("a", (3,))
    called = apply("call", Graph().input("x", (3,)), program=Program(inner, (a,), (a + 1,), name="step"))
    assert str(called.graph).splitlines()[1].startswith("%1 = call(x, program=step): float32[3]")
    assert str((Dim.named("n") + 1) // 2) == "((n + 1) // 2)"


def test_phase_and_call():
    graph = Graph()
    x = graph.input("x", (3,), types.float64)
    out = sg.phase(x * 2, x)
    value = np.array([1.0, 2.0, 3.0])
    assert evaluate(out, {x: value}, phase="train").tolist() == [2, 4, 6]
    assert evaluate(out, {x: value}).tolist() == [1, 2, 3]
    inner = Graph()
    a, b = inner.input("a", (3,), types.float64), inner.input("b", (3,), types.float64)
    program = Program(inner, (a, b), (a * sg.sin(b),))
    called = apply("call", x, x * x, program=program)
    np.testing.assert_allclose(evaluate(called, {x: value}), value * np.sin(value**2))
    slope = evaluate(grad(sg.sum(called), x), {x: value})
    np.testing.assert_allclose(slope, np.sin(value**2) + 2 * value**2 * np.cos(value**2))
    weighted = Program(inner, (a,), (a * inner.param("w", np.ones(3)),))
    with pytest.raises(GraphError, match="not one of its inputs"):
        apply("call", x, program=weighted)


def derivative(function, values, order):
    x = Graph().input("x", values.shape, types.float64)
    y = function(x)
    for _ in range(order):
        y = grad(sg.sum(y), x)
    return evaluate(y, {x: values})


BRANCHES = {
    "sqrt": (sg.sqrt, [lambda u: 0.5 * u**-0.5, lambda u: -0.25 * u**-1.5, lambda u: 0.375 * u**-2.5]),
    "log": (sg.log, [lambda u: 1 / u, lambda u: -1 / u**2, lambda u: 2 / u**3]),
    "log sqrt": (lambda x: sg.log(sg.sqrt(x)), [lambda u: 0.5 / u, lambda u: -0.5 / u**2, lambda u: 1 / u**3]),
    "x log x": (lambda x: x * sg.log(x), [lambda u: np.log(u) + 1, lambda u: 1 / u, lambda u: -1 / u**2]),
    "reciprocal": (lambda x: 1 / x, [lambda u: -1 / u**2, lambda u: 2 / u**3, lambda u: -6 / u**4]),
    "power": (lambda x: x**2.5, [lambda u: 2.5 * u**1.5, lambda u: 3.75 * u**0.5, lambda u: 1.875 * u**-0.5]),
}


@pytest.mark.parametrize("name", BRANCHES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_branch_not_taken_never_mixes_in(name, order):
    function, derivatives = BRANCHES[name]
    x = np.array([-np.inf, -1.0, 0.0, np.nan, 2.0])
    got = derivative(lambda n: sg.where(n > 0, function(n), 0.0), x, order)
    np.testing.assert_allclose(got, [0, 0, 0, 0, derivatives[order - 1](2.0)], rtol=1e-12)


def test_zero_factor_keeps_mixed_derivatives():
    graph = Graph()
    x, y = graph.input("x", (), types.float64), graph.input("y", (), types.float64)
    assert evaluate(grad(grad(x * y, x), y), {x: 0.0, y: 0.0}) == 1
    assert evaluate(grad(grad(sg.sqrt(x) * y, x), y), {x: 4.0, y: 0.0}) == 0.25
    assert evaluate(grad(x**y, y), {x: 0.0, y: 2.0}) == 0
    assert evaluate(grad(sg.sqrt(x), x), {x: 0.0}) == np.inf
    assert derivative(lambda n: sg.sqrt(sg.sum(sg.square(n))), np.zeros(3), 1).tolist() == [0, 0, 0]


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("zeros", [0, 1, 2, 3])
def test_product_gradient_is_exact(zeros, symbolic):
    v = np.array([2.0, 3.0, 4.0, 5.0, 7.0])
    v[1 : 1 + zeros] = 0
    x = Graph().input("x", ("n",) if symbolic else (5,), types.float64)
    first = grad(sg.prod(x), x)
    np.testing.assert_array_equal(evaluate(first, {x: v}), [np.prod(np.delete(v, k)) for k in range(5)])
    second = evaluate(grad(first[1], x), {x: v})
    np.testing.assert_array_equal(second, [0 if k == 1 else np.prod(np.delete(v, [1, k])) for k in range(5)])


def test_table_is_complete():
    here = [op for op in OPS.values() if op.kind is not Kind.CONTROL or op.name in ("stop_gradient", "phase", "call")]
    assert len(here) >= 78
    for op in here:
        assert op.doc, op
        assert op.ref is not None or op.name in ("input", "param", "state", "phase"), op


def test_long_chains_evaluate_without_recursion():
    x = Graph().input("x", (), types.float64)
    y = x
    for _ in range(20_000):
        y = sg.sin(y)
    assert 0 < evaluate(y, {x: 1.0}) < 0.1
