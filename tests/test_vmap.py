# pyright: basic
"""`sg.vmap`: every operator against a loop over slices, axes, nesting, derivatives, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from random_graphs import random_graph

import symgrad as sg
from symgrad.graph import Graph, Node, ancestors
from symgrad.opdef import OPS, Kind, OpDef
from symgrad.ops.build import apply
from symgrad.program import Program
from symgrad.vectorize import _RULES

RNG = np.random.default_rng(5)
COUNT = 4


def values(*shape: int) -> np.ndarray:
    return RNG.uniform(0.3, 1.7, shape)


def index(*shape: int) -> np.ndarray:
    return RNG.integers(0, 3, shape)


def add_rows(x: Node, i: Node, u: Node, axis: int) -> Node:
    return apply("scatter_add", x, i, u, axis=axis)


def called(x: Node, y: Node) -> Node:
    inner = Graph()
    a, b = inner.input("a", x.shape, x.dtype), inner.input("b", y.shape, y.dtype)
    program = Program(inner, (a, b), (sg.sum(sg.exp(a) * b),), name="inner")
    return x.graph.add(OPS["call"], (x, y), (program,))


# A function of slices, and arrays of slices. The function is applied with every set of its arguments mapped.
CASES: list[tuple[str, Callable[..., Node], list[np.ndarray]]] = [
    ("pointwise", lambda x, y: sg.sin(x) * y + sg.where(x > y, x, y * 2.0), [values(2, 3), values(2, 3)]),
    ("scalars", lambda x, y: x / y + sg.maximum(x, 1.0), [values(), values()]),
    ("broadcasting", lambda x, y: x * y, [values(2, 1), values(3)]),
    ("cast", lambda x: sg.astype(x * 3.0, "int32"), [values(2, 3)]),
    ("reshape", lambda x: sg.reshape(x, (3, 2)), [values(2, 3)]),
    ("permute", lambda x: sg.permute_dims(x, (2, 0, 1)), [values(2, 3, 4)]),
    ("broadcast", lambda x: sg.broadcast_to(x, (5, 2, 3)), [values(2, 1)]),
    ("broadcast of a scalar", lambda x: sg.broadcast_to(x, (2, 3)), [values()]),
    ("slice", lambda x: x[1:, ::2], [values(3, 5)]),
    ("flip", lambda x: sg.flip(x, axis=1), [values(2, 3)]),
    ("pad", lambda x: sg.pad(x, ((1, 0), (0, 2)), constant_values=7.0), [values(2, 3)]),
    ("concat", lambda x, y: sg.concat([x, y, x], axis=1), [values(2, 3), values(2, 1)]),
    ("sum", lambda x: sg.sum(x, axis=1), [values(2, 3)]),
    ("sum of all", sg.sum, [values(2, 3)]),
    ("prod max min", lambda x: sg.prod(x, axis=0) + sg.max(x, axis=0) - sg.min(x, axis=0), [values(2, 3)]),
    ("any all", lambda x: sg.logical_or(sg.any(x > 1.6, axis=0), sg.all(x > 0.5, axis=0)), [values(2, 3)]),
    ("argmax", lambda x: sg.argmax(x, axis=1) - sg.argmin(x, axis=1), [values(2, 3)]),
    ("sum_to", lambda x: apply("sum_to", x, shape=(1, 3)), [values(4, 2, 3)]),
    ("sum_to of all", lambda x: apply("sum_to", x, shape=()), [values(2, 3)]),
    ("dot", sg.vecdot, [values(3), values(3)]),
    ("matrix times vector", lambda x, y: x @ y, [values(2, 3), values(3)]),
    ("matrix product", lambda x, y: x @ y, [values(2, 3), values(3, 4)]),
    ("outer", lambda x, y: sg.einsum("i,j->ji", x, y), [values(2), values(3)]),
    ("batched product", lambda x, y: sg.einsum("bij,bjk->kbi", x, y), [values(2, 3, 4), values(2, 4, 5)]),
    ("take", lambda x, i: sg.take(x, i, axis=0), [values(3, 2), index(4)]),
    ("take along the last", lambda x, i: sg.take(x, i, axis=1), [values(2, 3), index(2)]),
    ("take in the middle", lambda x, i: apply("take", x, i, axis=1), [values(2, 3, 4), index(5, 2)]),
    ("take of one", lambda x, i: apply("take", x, i, axis=0), [values(3), index()]),
    ("take_along_axis", lambda x, i: sg.take_along_axis(x, i, axis=1), [values(2, 3), index(2, 2)]),
    ("scatter", lambda x, i, u: add_rows(x, i, u, 0), [values(3, 2), index(4), values(4, 2)]),
    ("scatter in the middle", lambda x, i, u: add_rows(x, i, u, 1), [values(2, 3, 4), index(5), values(2, 5, 4)]),
    ("narrow indices", sg.take, [values(3), index(70).astype(np.int8)]),
    ("sort", lambda x: sg.sort(x, axis=0, descending=True), [values(5, 3)]),
    ("argsort", sg.argsort, [values(5, 3)]),
    ("searchsorted", lambda x, y: sg.searchsorted(sg.sort(x), y, side="right"), [values(9), values(2, 4)]),
    ("top_k", lambda x: sg.top_k(x, 2)[0], [values(5, 3)]),
    ("masked_select", lambda x: sg.masked_select(x, x > 1.0, size=4), [values(5, 3)]),
    ("unique", lambda x: sg.unique_counts(sg.round(x * 3.0), size=4)[0], [values(7)]),
    ("stop_gradient", lambda x: sg.stop_gradient(x) * x, [values(3)]),
    ("phase", sg.phase, [values(3), values(3)]),
    ("call", called, [values(3), values(3)]),
    ("windows", lambda x: apply("window", x, sizes=(2,), strides=(1,), dilations=(2,)), [values(2, 5)]),
    ("fold", lambda x: apply("fold", x, extents=(5,), strides=(1,), dilations=(2,)), [values(2, 3, 2)]),
    ("composite", lambda x, y: sg.nn.softmax(x @ y) + sg.log_sum_exp(x), [values(3), values(3, 4)]),
    ("cumulative table", lambda x: sg.tril(x) + sg.var(x), [values(3, 3)]),
]


def slices(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "i":
        return RNG.integers(0, 3, (COUNT, *array.shape)).astype(array.dtype)
    return RNG.uniform(0.3, 1.7, (COUNT, *array.shape))


@pytest.mark.parametrize(("name", "function", "examples"), CASES, ids=[c[0] for c in CASES])
def test_against_a_loop(name: str, function: Callable[..., Node], examples: list[np.ndarray]) -> None:
    count = len(examples)
    for chosen in range(1, 2**count):
        mapped = [bool(chosen >> k & 1) for k in range(count)]
        arrays = [slices(a) if on else a for a, on in zip(examples, mapped, strict=True)]
        graph = Graph()
        inputs = [graph.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
        result = sg.vmap(function, tuple(0 if on else None for on in mapped))(*inputs)
        assert not any((n.name or "").startswith("(") for n in ancestors([result]))
        found = sg.evaluate(result, dict(zip(inputs, arrays, strict=True)))
        each = Graph()
        singles = [each.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(examples)]
        single = function(*singles)
        rows = [
            sg.evaluate(single, {s: a[k] if on else a for s, a, on in zip(singles, arrays, mapped, strict=True)})
            for k in range(COUNT)
        ]
        assert found.dtype == rows[0].dtype
        np.testing.assert_allclose(found, np.stack(rows), rtol=1e-14, err_msg=f"{name} {mapped}")
        if all(mapped):
            compiled = sg.compile(inputs, result)(*arrays)
            np.testing.assert_allclose(compiled, np.stack(rows), rtol=1e-13)


@pytest.mark.parametrize(("name", "function", "examples"), CASES, ids=[c[0] for c in CASES])
def test_symbolic_and_empty_batch(name: str, function: Callable[..., Node], examples: list[np.ndarray]) -> None:
    graph = Graph()
    inputs = [graph.input(f"x{k}", ("batch", *a.shape), a.dtype) for k, a in enumerate(examples)]
    result = sg.vmap(function)(*inputs)
    arrays = [slices(a) for a in examples]
    fixed = Graph()
    known = [fixed.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
    expected = sg.evaluate(sg.vmap(function)(*known), dict(zip(known, arrays, strict=True)))
    found = sg.evaluate(result, dict(zip(inputs, arrays, strict=True)))
    np.testing.assert_array_equal(found, expected)
    for size in (0, 1):
        parts = [a[:size] for a in arrays]
        part = sg.evaluate(result, dict(zip(inputs, parts, strict=True)))
        np.testing.assert_allclose(part, expected[:size], rtol=1e-14)


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs(seed: int) -> None:
    """Random composites over slices, against one evaluation for each slice."""
    r = random_graph(seed)
    leaves = [m for m in r.made if m.node.op.name in ("input", "state")]
    outputs = [m.node for m in r.made[len(leaves) :]][-6:]
    rng = np.random.default_rng(seed)
    rows = [slices_of(m.value, rng) if k == 0 or rng.random() < 0.7 else None for k, m in enumerate(leaves)]
    nodes = [m.node if v is None else r.graph.const(v) for m, v in zip(leaves, rows, strict=True)]

    def f(*given: Node) -> list[Node]:
        replaced = {m.node: p for m, p, v in zip(leaves, given, rows, strict=True) if v is not None}
        return r.graph.substitute(outputs, replaced)

    mapped = sg.vmap(f, [None if v is None else 0 for v in rows])(*nodes)
    values = {m.node: m.value for m in leaves}
    found = sg.evaluate(mapped, values)
    for k in range(2):
        slice_values = {m.node: m.value if v is None else v[k] for m, v in zip(leaves, rows, strict=True)}
        for got, want in zip(found, sg.evaluate(outputs, slice_values), strict=True):
            assert got.dtype == want.dtype
            tolerance = 1e-4 if want.dtype == np.float32 else 1e-10
            np.testing.assert_allclose(got[k].astype(float), want.astype(float), rtol=tolerance, atol=tolerance)


def slices_of(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The value and another of the same kind: moved a little, or its elements in another order."""
    if value.dtype.kind == "f":
        return np.stack([value, (value * 1.1).astype(value.dtype)])
    return np.stack([value, rng.permutation(value.ravel()).reshape(value.shape)])


def test_axes() -> None:
    g = Graph()
    x, y = g.input("x", (3, 4, 5), sg.float64), g.input("y", (5, 4), sg.float64)
    a, b = values(3, 4, 5), values(5, 4)
    result = sg.vmap(lambda p, q: (p @ q, sg.sum(p)), in_axes=(1, -1), out_axes=(-1, 0))(x, y)
    assert isinstance(result, tuple)
    assert [r.shape for r in result] == [(3, 4), (4,)]
    product, total = sg.evaluate(list(result), {x: a, y: b})
    np.testing.assert_allclose(product, np.einsum("ikj,jk->ik", a, b))
    np.testing.assert_allclose(total, a.sum((0, 2)))
    whole = sg.vmap(lambda p, q: {"p": p * q}, in_axes=(0, None), out_axes=2)(x, y.T)
    assert whole["p"].shape == (4, 5, 3)
    np.testing.assert_allclose(sg.evaluate(whole["p"], {x: a, y: b}), np.moveaxis(a * b.T, 0, 2))


def test_independent_nodes_stay() -> None:
    g = Graph()
    x, w = g.input("x", (4, 3), sg.float64), g.param("w", np.ones((3, 3)))
    costly = sg.exp(w)
    made: list[Node] = []

    def f(row: Node) -> list[Node]:
        made.append(sg.sin(costly))
        return [row @ made[0], made[0], sg.sum(w)]

    product, same, total = sg.vmap(f, out_axes=[0, None, 0])(x)
    assert same is made[0]
    assert same in ancestors([product])
    assert total.shape == (4,)
    np.testing.assert_array_equal(sg.evaluate(total), np.full(4, 9.0))


def test_nested() -> None:
    g = Graph()
    x, y = g.input("x", ("n", 3), sg.float64), g.input("y", ("m", 3), sg.float64)
    table = sg.vmap(lambda p: sg.vmap(lambda q: sg.sum(sg.square(p - q)))(y))(x)
    a, b = values(4, 3), values(5, 3)
    expected = ((a[:, None] - b[None]) ** 2).sum(-1)
    np.testing.assert_allclose(sg.evaluate(table, {x: a, y: b}), expected)
    np.testing.assert_allclose(sg.compile([x, y], table)(a, b), expected)
    twice = sg.vmap(sg.vmap(lambda p, q: p * q, in_axes=(0, None)), in_axes=(0, 0))(x, y[:, 0])
    np.testing.assert_allclose(sg.evaluate(twice, {x: a, y: b[:4]}), a * b[:4, :1])


def test_arrays_and_other_arguments() -> None:
    g = Graph()
    x = g.input("x", (3,), sg.float64)
    a = values(4, 3)
    result = sg.vmap(lambda p, q, k, scale: p * q * k * scale, in_axes=(0, None, None))(a, x, 2.0, scale=3.0)
    np.testing.assert_allclose(sg.evaluate(result, {x: np.ones(3)}), a * 6.0)


def loss(row: Node, target: Node, w: Node) -> Node:
    return sg.square(sg.tanh(row @ w) - target)


def test_per_example_gradients() -> None:
    g = Graph()
    x, t, w = g.input("x", ("n", 3), sg.float64), g.input("t", ("n",), sg.float64), g.input("w", (3,), sg.float64)
    each = sg.vmap(lambda row, target: sg.grad(loss(row, target, w), w))(x, t)
    total = sg.grad(sg.sum(sg.vmap(lambda row, target: loss(row, target, w))(x, t)), w)
    feeds = {x: values(5, 3), t: values(5), w: values(3)}
    h = np.tanh(feeds[x] @ feeds[w])
    expected = (2 * (h - feeds[t]) * (1 - h * h))[:, None] * feeds[x]
    np.testing.assert_allclose(sg.evaluate(each, feeds), expected, rtol=1e-12)
    np.testing.assert_allclose(sg.evaluate(total, feeds), expected.sum(0), rtol=1e-12)
    f = sg.compile([x, t, w], {"each": each, "total": total})
    found = f(*feeds.values())
    np.testing.assert_allclose(found["each"], expected, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["total"], expected.sum(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "function", "examples"), CASES, ids=[c[0] for c in CASES])
def test_gradients_pass_through(name: str, function: Callable[..., Node], examples: list[np.ndarray]) -> None:
    """The gradient of the sum of the map is the map of the gradient."""
    g = Graph()
    arrays = [slices(a) for a in examples]
    inputs = [g.input(f"x{k}", a.shape, a.dtype) for k, a in enumerate(arrays)]
    result = sg.vmap(function)(*inputs)
    if not result.dtype.is_float:
        return
    wrt = [k for k, i in enumerate(inputs) if i.dtype.is_float]

    def slopes(*rows: Node) -> list[Node]:
        return sg.grad(sg.sum(sg.square(function(*rows))), [rows[k] for k in wrt])

    outer = sg.grad(sg.sum(sg.square(result)), [inputs[k] for k in wrt])
    inner = sg.vmap(slopes)(*inputs)
    feeds = dict(zip(inputs, arrays, strict=True))
    for a, b in zip(outer, inner, strict=True):
        assert a.type == b.type
        np.testing.assert_allclose(sg.evaluate(a, feeds), sg.evaluate(b, feeds), rtol=1e-11, atol=1e-13, err_msg=name)


def test_random_numbers_are_shared() -> None:
    g = Graph(seed=3)
    x = g.input("x", ("n", 4), sg.float64)
    result = sg.vmap(lambda row: row + sg.random.normal(g, (4,), dtype=sg.float64))(x)
    found = sg.compile([x], result)(np.zeros((3, 4)))
    assert (found[0] == found[1]).all()
    assert len(set(found[0])) == 4


def test_provenance() -> None:
    """Rebuilt nodes keep the place and the derivative order of what they come from."""
    g = Graph()
    x = g.input("x", (4, 3))
    result = sg.vmap(lambda row: sg.grad(sg.sum(sg.sin(row)), row))(x)
    assert result.order == 1
    assert result.gradient_of is not None
    assert "test_vmap.py" in str(result.loc)


def test_errors() -> None:
    g, other = Graph(), Graph()
    x, y = g.input("x", (4, 3)), g.input("y", (5, 3))
    s = g.input("s", ())
    z = other.input("z", (4, 3))
    cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
        (sg.ShapeError, "extents 4, 5", lambda: sg.vmap(lambda a, b: a + b)(x, y)),
        (sg.ShapeError, "argument 0 has no axis 0", lambda: sg.vmap(sg.sin)(s)),
        (sg.ShapeError, "no axis 2", lambda: sg.vmap(sg.sin, in_axes=2)(x)),
        (sg.ShapeError, "out_axes 5", lambda: sg.vmap(sg.sin, out_axes=5)(x)),
        (sg.GraphError, "in_axes has 2 axes for 1 argument", lambda: sg.vmap(sg.sin, in_axes=(0, 0))(x)),
        (sg.GraphError, "out_axes has 2 axes", lambda: sg.vmap(sg.sin, out_axes=(0, 0))(x)),
        (sg.GraphError, "integers and None", lambda: sg.vmap(sg.sin, in_axes="0")(x)),  # pyright: ignore[reportArgumentType]
        (sg.GraphError, "no argument is mapped", lambda: sg.vmap(sg.sin, in_axes=None)(x)),
        (sg.GraphError, "no argument is a node", lambda: sg.vmap(sg.sin)(np.zeros(3))),
        (sg.GraphError, "got list", lambda: sg.vmap(lambda a, b: b)([x, x], x)),
        (sg.GraphError, "must give nodes", lambda: sg.vmap(lambda a: 3.0)(x)),
        (sg.GraphError, "which depends on a mapped", lambda: sg.vmap(sg.sin, out_axes=None)(x)),
        (sg.GraphError, "belongs to", lambda: sg.vmap(lambda a, b: a)(x, z)),
    ]
    for kind, text, call in cases:
        with pytest.raises(kind, match=text):
            call()


def test_every_operator_has_a_rule() -> None:
    plain = {Kind.SOURCE, Kind.POINTWISE, Kind.SCAN}
    axes = [("axes",), ("axis",)]
    missing = [op.name for op in OPS.values() if op.kind not in plain and op.name not in _RULES]
    assert [name for name in missing if OPS[name].kind is not Kind.REDUCE or OPS[name].attrs not in axes] == []


def test_operator_without_a_rule() -> None:
    odd = OpDef("odd", Kind.INDEXED, (), lambda t: t, None, None)
    g = Graph()
    x = g.input("x", (4, 3))
    with pytest.raises(sg.GraphError, match=r"odd has no batching rule.*test_vmap\.py"):
        sg.vmap(lambda row: g.add(odd, (row,)))(x)


@pytest.mark.parametrize("rules", ["vjp", "jvp", "both"])
def test_custom_gradient(rules: str) -> None:
    """A rule of the user's own serves slices, and the derivative of the whole."""

    def reverse(inputs: Any, _output: Node, c: Node) -> tuple[Node, Node]:
        row, factor = inputs
        return c * 3.0 * sg.cos(row) * factor, sg.sum(c * sg.sin(row))

    def forward(inputs: Any, _output: Node, tangents: Any) -> Node:
        row, factor = inputs
        return 3.0 * sg.cos(row) * factor * tangents[0] + sg.sin(row) * tangents[1]

    vjp, jvp = (None if rules == "jvp" else reverse), (None if rules == "vjp" else forward)
    f = sg.custom_gradient(lambda x, w: sg.sin(x) * w, vjp=vjp, jvp=jvp)
    g = Graph()
    x, w = g.input("x", (4, 3), sg.float64), g.input("w", (), sg.float64)
    feeds = {x: values(4, 3), w: values()}
    result = sg.vmap(lambda row: f(row, w))(x)
    np.testing.assert_allclose(sg.evaluate(result, feeds), np.sin(feeds[x]) * feeds[w])
    slope = 3 * np.cos(feeds[x]) * feeds[w]
    outer = sg.grad(sg.sum(result), [x, w])
    inner = sg.vmap(lambda row: sg.grad(sg.sum(f(row, w)), row))(x)
    moved = sg.jvp([result], [x], [g.const(np.ones((4, 3)))])[0]
    whole = sg.jacobian(result, x)
    for node in (outer[0], inner, moved):
        np.testing.assert_allclose(sg.evaluate(node, feeds), slope, rtol=1e-13)
    np.testing.assert_allclose(sg.evaluate(outer[1], feeds), np.sin(feeds[x]).sum(), rtol=1e-13)
    np.testing.assert_allclose(sg.evaluate(whole, feeds).reshape(12, 12), np.diag(slope.ravel()), rtol=1e-13)
    compiled = sg.compile([x, w], [outer[0], inner, moved])(*feeds.values())
    for found in compiled:
        np.testing.assert_allclose(found, slope, rtol=1e-12)
