"""Functions made of operators: compiled against the interpreter, and first derivatives."""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from oracles import check_derivatives, derive, differs, function, run_poisoned

import symgrad as sg
from symgrad.graph import Graph, Node
from symgrad.operators import apply
from symgrad.program import Program

Build = Callable[..., Node]
_ROWS = np.array([2, -1, 0, 2], np.int64)
_LABELS = np.array([0, 4, 2], np.int32)

# Name, function, shapes of its floating operands. Values lie in [0.3, 1.7], centered where the function has a corner.
COMPOSITES: dict[str, tuple[Build, list[tuple[int, ...]]]] = {
    "softmax": (sg.nn.softmax, [(3, 5)]),
    "softmax_first": (lambda x: sg.nn.softmax(x, axis=0), [(17, 3)]),
    "softmax_one": (sg.nn.softmax, [(4, 1)]),
    "softmax_33": (sg.nn.softmax, [(7, 33)]),
    "log_softmax": (sg.nn.log_softmax, [(3, 5)]),
    "log_softmax_middle": (lambda x: sg.nn.log_softmax(x, axis=1), [(2, 5, 3)]),
    "softmax_cross_entropy": (lambda x: sg.nn.softmax_cross_entropy(x, _LABELS), [(3, 5)]),
    "softmax_cross_entropy_weights": (sg.nn.softmax_cross_entropy, [(3, 5), (3, 5)]),
    "binary_cross_entropy": (sg.nn.binary_cross_entropy, [(3, 5), (3, 5)]),
    "mse": (sg.nn.mse, [(3, 5), (3, 5)]),
    "huber": (sg.nn.huber, [(3, 5), (3, 5)]),
    "layer_norm": (sg.nn.layer_norm, [(3, 17), (17,), (17,)]),
    "layer_norm_two_axes": (lambda x: sg.nn.layer_norm(x, axis=(1, 2)), [(2, 3, 5)]),
    "rms_norm": (sg.nn.rms_norm, [(3, 17), (17,)]),
    "gelu": (sg.nn.gelu, [(33,)]),
    "gelu_tanh": (lambda x: sg.nn.gelu(x, "tanh"), [(33,)]),
    "silu": (sg.nn.silu, [(33,)]),
    "elu": (lambda x: sg.nn.elu(x - 1.0), [(33,)]),
    "relu": (lambda x: sg.nn.relu(x - 1.0), [(33,)]),
    "leaky_relu": (lambda x: sg.nn.leaky_relu(x - 1.0), [(33,)]),
    "softplus": (lambda x: sg.nn.softplus((x - 1.0) * 30.0), [(33,)]),
    "linear": (sg.nn.linear, [(3, 5), (5, 4), (4,)]),
    "dropout": (lambda x: sg.nn.dropout(x, 0.5), [(33,)]),
    "mean": (sg.mean, [(3, 5)]),
    "mean_axis": (lambda x: sg.mean(x, axis=0, keepdims=True), [(3, 17)]),
    "var": (lambda x: sg.var(x, axis=-1), [(3, 17)]),
    "std": (sg.std, [(3, 5)]),
    "log_sum_exp": (lambda x: sg.log_sum_exp(x, axis=1), [(3, 17)]),
    "log_sum_exp_all": (sg.log_sum_exp, [(3, 5)]),
    "logaddexp": (sg.logaddexp, [(3, 5), (5,)]),
    "sinh": (sg.sinh, [(17,)]),
    "cosh": (sg.cosh, [(17,)]),
    "erfc": (sg.erfc, [(17,)]),
    "log2": (sg.log2, [(17,)]),
    "log10": (sg.log10, [(17,)]),
    "clip": (lambda x: sg.clip(x, 0.7, 1.3), [(33,)]),
    "xlogy": (sg.xlogy, [(17,), (17,)]),
    "logit": (lambda x: sg.logit(x * 0.5), [(33,)]),
    "diff": (lambda x: sg.diff(x, axis=0, n=2, append=1.0), [(5, 3)]),
    "meshgrid": (lambda x, y: sg.meshgrid(x, y)[0] * sg.meshgrid(x, y)[1], [(3,), (4,)]),
    "floor_divide": (lambda x, y: x % y + x // y, [(17,), (17,)]),
    "power_3": (lambda x: (x - 1.0) ** 3, [(17,)]),
    "power_-1.5": (lambda x: x**-1.5, [(17,)]),
    "power_of_two": (lambda x: 2.0**x, [(17,)]),
    "power_of_node": (lambda x, y: x**y, [(17,), (17,)]),
    "prod": (lambda x: sg.prod(x, axis=1), [(3, 5)]),
    "matmul": (lambda x, y: x @ y, [(5, 7), (7, 3)]),
    "matmul_vector": (lambda x, y: x @ y, [(5, 7), (7,)]),
    "matmul_row": (lambda x, y: x @ y, [(7,), (7, 5)]),
    "matmul_batch": (lambda x, y: x @ y, [(2, 5, 7), (7, 3)]),
    "matmul_broadcast": (lambda x, y: x @ y, [(2, 1, 3, 4), (3, 4, 2)]),
    "matmul_transposed": (lambda x, y: x.mT @ y.T, [(7, 5), (3, 7)]),
    "matmul_fused": (lambda x, w, b: sg.tanh(sg.sin(x) @ w + b) * 2.0, [(5, 7), (7, 17), (17,)]),
    "matmul_twice": (lambda x, y: (x @ y) @ (x @ y).T, [(5, 7), (7, 3)]),
    "matmul_square": (lambda x: x @ x + x.T @ x, [(5, 5)]),
    "einsum_sum": (lambda x: sg.einsum("abc->b", x), [(2, 3, 4)]),
    "einsum_bilinear": (lambda x, w, y: sg.einsum("bi,ijo,bj->bo", x, w, y), [(3, 4), (4, 2, 5), (3, 2)]),
    "einsum_attention": (lambda q, k: sg.einsum("bqhd,bkhd->bhqk", q, k), [(2, 3, 2, 4), (2, 5, 2, 4)]),
    "einsum_hadamard": (lambda x, y: sg.einsum("ij,ij->ij", x, y), [(3, 5), (3, 5)]),
    "einsum_ellipsis": (lambda x, y: sg.einsum("...ij,jk->...ik", x, y), [(2, 3, 4, 5), (5, 2)]),
    "tensordot": (lambda x, y: sg.tensordot(x, y, axes=2), [(2, 3, 4), (3, 4, 5)]),
    "vecdot": (sg.vecdot, [(3, 17), (17,)]),
    "take": (lambda x: sg.take(x, _ROWS, axis=0), [(3, 5)]),
    "take_last": (lambda x: sg.take(x, _ROWS, axis=-1), [(3, 5)]),
    "take_square": (lambda x: sg.take(x * x, _ROWS.reshape(2, 2), axis=1), [(2, 3, 4)]),
    "take_along_axis": (lambda x: sg.take_along_axis(x, np.array([[1], [0], [-1]]), axis=1), [(3, 5)]),
    "scatter_add": (lambda x, u: sg.scatter_add(x, _ROWS, u), [(3, 5), (4, 5)]),
    "index_array": (lambda x: x[_ROWS], [(3, 5)]),
    "slice_step": (lambda x: x[1::2], [(17,)]),
    "slice_back": (lambda x: x[::-1], [(17,)]),
    "slice_back_step": (lambda x: x[15:2:-3], [(17,)]),
    "slice_mixed": (lambda x: x[::-2, None, 1, ..., 3:1:-1], [(5, 3, 2, 5)]),
    "slice_empty": (lambda x: sg.concat([x[3:3], x[:1]]), [(5,)]),
    "slice_twice": (lambda x: x[1:, ::2][::-1, 1:], [(5, 9)]),
    "pad": (lambda x: sg.pad(x * x, ((1, 2), (0, 3)), constant_values=2.0), [(3, 5)]),
    "pad_slice": (lambda x: sg.pad(x, 2)[1:-1, ::-1], [(3, 5)]),
    "concat": (lambda x, y: sg.concat([x, y * y, x], axis=1), [(3, 5), (3, 1)]),
    "concat_sum": (lambda x, y: sg.sum(sg.concat([x, y], axis=0), axis=0), [(3, 5), (4, 5)]),
    "concat_matmul": (lambda x, y: sg.concat([x, y], axis=1) @ x, [(5, 3), (5, 2)]),
    "stack": (lambda x, y: sg.stack([x, y], axis=1), [(3, 5), (3, 5)]),
    "split": (lambda x: sg.split(x, 3, axis=1)[1] * sg.split(x, 3, axis=1)[2], [(2, 9)]),
    "unstack": (lambda x: sg.unstack(x)[0] - sg.unstack(x)[2], [(3, 5)]),
    "flip": (lambda x: sg.flip(x) * x, [(3, 5)]),
    "roll": (lambda x: sg.roll(x, 2, axis=1) * x, [(3, 5)]),
    "tile": (lambda x: sg.tile(x, (2, 3)), [(3, 5)]),
    "repeat": (lambda x: sg.repeat(x, 3, axis=1), [(3, 5)]),
    "tril": (lambda x: sg.tril(x, -1), [(5, 5)]),
    "triu": (lambda x: sg.triu(x, 1), [(3, 7)]),
    "transpose_sum": (lambda x: sg.sum(sg.permute_dims(x, (2, 0, 1)) * 2.0, axis=1), [(2, 3, 5)]),
    "reshape_softmax": (lambda x: sg.nn.softmax(sg.reshape(x, (5, 6)).T), [(2, 3, 5)]),
    "max_minus": (lambda x: x - sg.max(x, axis=0), [(5, 7)]),
    "normalized": (lambda x: x / sg.sum(x, axis=1, keepdims=True), [(5, 7)]),
    "attention": (
        lambda q, k, v: sg.nn.softmax((q @ k.mT) * 0.5) @ v,
        [(2, 5, 4), (2, 7, 4), (2, 7, 3)],
    ),
    "outer_of_sums": (lambda x: sg.sum(x, axis=1, keepdims=True) * sg.sum(x, axis=0, keepdims=True), [(5, 7)]),
    "scalars": (lambda x, y: sg.exp(x) * y + sg.where(x > y, x, y), [(), ()]),
}


def _arrays(shapes: list[tuple[int, ...]], dtype: Any) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [np.asarray(rng.uniform(0.3, 1.7, shape)).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("name", COMPOSITES)
def test_compiled_is_the_meaning(name: str):
    build, shapes = COMPOSITES[name]
    graph = Graph()
    inputs: list[Node] = []
    outputs: list[Node] = []
    for dtype in ("float32", "float64"):
        nodes = [graph.input(f"{dtype}_{k}", shape, dtype) for k, shape in enumerate(shapes)]
        outputs.append(build(*nodes))
        inputs += nodes
        assert outputs[-1].dtype.name == dtype
    arrays = _arrays(shapes, np.float32) + _arrays(shapes, np.float64)
    meant = sg.evaluate(outputs, dict(zip(inputs, arrays, strict=True)))
    program = Program(graph, tuple(inputs), tuple(outputs), name=name)
    for rules in (True, False):
        for got, expected in zip(run_poisoned(function(program, rules=rules), arrays), meant, strict=True):
            assert got.dtype == expected.dtype
            tolerance = 100 * float(np.finfo(got.dtype).eps)
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance, err_msg=f"rules={rules}")


@pytest.mark.parametrize("name", [n for n in COMPOSITES if n != "dropout"])
def test_first_derivative(name: str):
    build, shapes = COMPOSITES[name]
    graph = Graph()
    nodes = [graph.input(f"x{k}", shape, "float64") for k, shape in enumerate(shapes)]
    check_derivatives([derive(nodes, _arrays(shapes, np.float64), build(*nodes), 1)])


@pytest.mark.parametrize("name", [n for n in COMPOSITES if n not in ("split", "unstack")])
def test_symbolic_extents(name: str):
    build, shapes = COMPOSITES[name]
    arrays = _arrays(shapes, np.float64)
    results: list[list[np.ndarray]] = []
    for symbolic in (True, False):
        graph = Graph()
        names = [tuple(f"d{e}" if symbolic and e > 1 else e for e in shape) for shape in shapes]
        nodes = [graph.input(f"x{k}", shape, "float64") for k, shape in enumerate(names)]
        out = build(*nodes)
        outputs = [out, *sg.grad(sg.sum(out), nodes)]
        if symbolic:
            results.append(sg.compile(nodes, outputs)(*arrays))
        results.append(sg.evaluate(outputs, dict(zip(nodes, arrays, strict=True))))
    for compiled, named, meant in zip(*results, strict=True):
        np.testing.assert_allclose(named, meant, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(compiled, meant, rtol=1e-12, atol=1e-12)


MIXED: dict[str, tuple[Build, list[tuple[int | str, ...]]]] = {
    "matmul": (lambda x, w: sg.tanh(x) @ w, [("n", "k"), (4, 3)]),
    "vecdot": (lambda x, y: sg.vecdot(sg.exp(x), y), [("n",), (3,)]),
    "concat": (lambda x, y: sg.concat([sg.exp(x), y], axis=1), [("n", "k"), (3, "m")]),
    "concat_matmul": (lambda x, y: sg.concat([x, y], axis=1) @ sg.exp(x), [("k", "n"), ("k", "m")]),
    "broadcast": (lambda x, y: sg.exp(x) * y, [("n", "k"), (1, 4)]),
    "joint": (lambda x, y: sg.exp(x) * y, [("n",), ("m",)]),
}
_SIZES = {"n": 3, "k": 4, "m": 1}


@pytest.mark.parametrize("name", MIXED)
def test_a_name_meets_a_number(name: str):
    build, shapes = MIXED[name]
    graph = Graph()
    nodes = [graph.input(f"x{k}", shape, "float64") for k, shape in enumerate(shapes)]
    out = build(*nodes)
    outputs = [out, *sg.grad(sg.sum(out), nodes)]
    assert [o.type for o in outputs[1:]] == [n.type for n in nodes]
    arrays = _arrays([tuple(_SIZES.get(e, e) for e in shape) for shape in shapes], np.float64)  # pyright: ignore[reportArgumentType, reportCallIssue]
    for got, meant in zip(
        sg.compile(nodes, outputs)(*arrays), sg.evaluate(outputs, dict(zip(nodes, arrays, strict=True))), strict=True
    ):
        np.testing.assert_allclose(got, meant, rtol=1e-12, atol=1e-12)


def _product(left: str, right: str, out: str, a: Node, b: Node) -> Node:
    return apply("contract", a, b, left=left, right=right, out=out)


def _outer(x: Node) -> Node:
    return _product("mk", "nk", "mn", x, x)


def _reversed_flags(x: Node, c: Node, w: Node) -> Node:
    bound = sg.broadcast_to(c, (8,))
    flags = sg.astype(sg.astype(sg.flip(sg.concat([x, x])), sg.float32) < bound, sg.float32)
    return sg.sum(sg.where(sg.minimum(flags, bound) < bound, w, 0.7))


F4, F8, I8, U1 = "float32", "float64", "int64", "uint8"
# Small programs whose kernels once were refused or wrong, most by axes of extent 1 or 0: function, types of inputs.
FUSIONS: dict[str, tuple[Callable[..., Any], list[tuple[tuple[int, ...], str]]]] = {
    "log_of_unit_row": (lambda x: sg.log(sg.sum(sg.exp(x - sg.max(x, axis=1, keepdims=True)), axis=1)), [((1, 2), F4)]),
    "sum_of_constant_plus_product": (
        lambda x, y: sg.sum(sg.broadcast_to(y, (4, 1, 2)), axis=0) + _product("b", "ba", "ba", sg.exp(x[:, 0]), x),
        [((1, 2), F8), ((), F8)],
    ),
    "product_over_product": (
        lambda x: _product("ba", "ba", "b", sg.triu(x) + _product("ba", "ba", "b", sg.round(x), x), sg.triu(x)),
        [((3, 3), F8)],
    ),
    "log_of_unit_product": (lambda x, y: sg.log(_product("mk", "nk", "mn", x, y)), [((1, 5), F4), ((1, 5), F4)]),
    "permuted_unit_product": (
        lambda x, y: sg.permute_dims(_product("mk", "mn", "kn", x, y), (1, 0)),
        [((16, 1), F4), ((16, 16), F4)],
    ),
    "shown_product_below_max": (lambda x: [sg.max(((x @ x.T) * (x * x)) & x), (x @ x.T) * (x * x)], [((16, 1), U1)]),
    "scatter_at_argmin": (
        lambda x, v, u: sg.scatter_add(u, sg.minimum(sg.maximum(sg.argmin(x, axis=0), 0), 0), v),
        [((1,), F8), ((), F8), ((1,), F8)],
    ),
    "take_of_shown_product": (
        lambda a, b, i: [
            sg.square(_product("amk", "nk", "amn", a, b)),
            sg.take(sg.sign(sg.square(_product("amk", "nk", "amn", a, b))), i, axis=1),
        ],
        [((5, 3, 1), F4), ((3, 1), F4), ((), I8)],
    ),
    "inverted_argmin": (lambda x: sg.bitwise_invert(sg.argmin(x, axis=1)), [((4, 1), U1)]),
    "outer_plus": (lambda x, c: _outer(x) + c, [((7, 1), F4), ((7, 7), F4)]),
    "outer_in_where": (lambda x, c, b: sg.where(c > 1, _outer(x), b), [((4, 1), F8), ((4, 4), F8), ((4, 4), F8)]),
    "unit_row_plus": (
        lambda x, m, c: _product("i", "ij", "j", x, m) + c,
        [((1,), F8), ((1, 1), F8), ((1,), F8)],
    ),
    "scalar_beside_dot": (
        lambda x, y, z: [sg.reshape(z >= sg.expm1(x), ()), _product("a", "a", "", sg.expm1(x), y)],
        [((1,), F8)] * 3,
    ),
    "reversed_flags": (_reversed_flags, [((4,), U1), ((), F4), ((8,), F4)]),
    "sum_of_reshaped_transpose": (
        lambda x: apply("sum", sg.reshape(sg.permute_dims(x, (1, 0)) + 0.5, (2, 2, 1, 2)), axes=(0,)),
        [((2, 4), F4)],
    ),
    "tanh_of_thin_product": (lambda x, y: sg.tanh(_product("mk", "nk", "mn", x, y)), [((17, 3), F4), ((17, 3), F4)]),
    "product_of_column": (lambda x: sg.prod(sg.round(x)[:, 4:5], axis=0), [((3, 5), F8)]),
    "max_of_flipped_columns": (
        lambda x: [sg.max(sg.broadcast_to(sg.flip(sg.tanh(x), axis=1), (1, 16, 2)), axis=1), sg.tanh(x)],
        [((16, 2), F8)],
    ),
    "product_over_nothing": (
        lambda x: [_product("aij", "akj", "aik", x[:, :, 1:], x[:, :, 1:]), x[:, :, 1:]],
        [((1, 1, 1), F4)],
    ),
    "sum_over_nothing": (
        lambda x, c: sg.sum(sg.broadcast_to(sg.tanh(x), (4, 0)) * c, axis=1),
        [((0,), F8), ((4, 0), F8)],
    ),
    "pad_of_nothing": (
        lambda x: [sg.log(x), sg.pad(sg.sign(sg.log(x)), ((2, 0), (1, 1)))],
        [((10, 0), F4)],
    ),
    "sum_of_nothing_repeated": (
        lambda x: sg.sum(sg.reshape(sg.broadcast_to(sg.reshape(x, (5, 0, 1)), (5, 0, 3)), (5, 0)), axis=1),
        [((5, 0), F4)],
    ),
    "softplus_of_square": (lambda x: sg.log1p(sg.exp(x * x)) + sg.nn.softplus(-x * x), [((7,), F8)]),
    "minus_a_relative": (lambda x: sg.concat([x - sg.max(x), x[::-1]]) * sg.sum(x), [((1,), F4)]),
}


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("rules", [True, False])
def test_fusions(name: str, rules: bool):
    build, types = FUSIONS[name]
    graph = Graph(rules=None if rules else {})
    inputs = [graph.input(f"x{k}", shape, dtype) for k, (shape, dtype) in enumerate(types)]
    rng = np.random.default_rng(0)
    arrays = [
        np.asarray(rng.uniform(0.5, 2, shape) if dtype[0] == "f" else rng.integers(0, 2, shape)).astype(dtype)
        for shape, dtype in types
    ]
    built = build(*inputs)
    outputs = [built] if isinstance(built, Node) else list(built)
    meant = sg.evaluate(outputs, dict(zip(inputs, arrays, strict=True)))
    program = Program(graph, tuple(inputs), tuple(outputs), name=name)
    for got, expected in zip(run_poisoned(function(program, rules=rules), arrays), meant, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_cross_entropy_of_huge_logits_is_finite():
    graph = Graph()
    x = graph.input("x", (2, 3))
    loss = sg.sum(sg.nn.softmax_cross_entropy(x, np.array([0, 1])))
    largest = float(np.finfo(np.float32).max)
    array = np.array([[largest, -largest, 0], [0, 1e30, -1e30]], np.float32)
    value, slope = run_poisoned(function(Program(graph, (x,), (loss, sg.grad(loss, x)))), [array])
    assert value == 0
    assert differs(slope, np.zeros((2, 3), np.float32), zeros=False) is None
