"""Mistakes users make: the named error, the user's line, what was got and what to do; and nothing changed."""

# Wrong arguments are the subject here.
# pyright: basic, reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import copy
import inspect
import math
import operator
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph

HERE = r"test_errors\.py:\d+"


class Scene:
    """A graph with something of everything, and a second graph."""

    def __init__(self) -> None:
        self.g, self.h = Graph(), Graph()
        self.x = self.g.input("x", (3,))
        self.b = self.g.input("b", ("n", 3))
        self.i = self.g.input("i", ("n",), sg.int32)
        self.w = self.g.param("w", np.arange(3, dtype=np.float32))
        self.y = self.x * self.w
        self.hx = self.h.input("hx", (3,))
        self.hw = self.h.param("hw", np.ones(3, np.float32))


@pytest.fixture
def s() -> Scene:
    return Scene()


def raises(error: type[BaseException], says: str, action: Callable[[], Any], *, place: bool = True) -> None:
    with pytest.raises(error) as caught:
        action()
    assert type(caught.value) is error, f"{type(caught.value)}: {caught.value}"
    assert re.search(says, str(caught.value), re.DOTALL), str(caught.value)
    if place:
        assert re.search(HERE, str(caught.value)), str(caught.value)


# --- nodes are not values ------------------------------------------------------------------------------------------


NOT_VALUES: list[tuple[Callable[[Any], Any], str]] = [
    (bool, "truth .*sg.where"),
    (lambda n: 1 if n > 0 else 2, "truth of .*greater|less"),
    (lambda n: n and n, "truth"),
    (lambda n: not n, "truth"),
    (lambda n: 0 < n < 1, "truth"),
    (lambda n: max(n, n * 2), "truth"),
    (float, "number .*compile a function"),
    (int, "number"),
    (complex, "number"),
    (math.sin, "number"),
    (lambda n: [1, 2][n], "number"),
    (lambda n: "abc" * n, "number"),
    (range, "number"),
    (list, "elements .*sg.unstack"),
    (dict.fromkeys, "elements"),
    (lambda n: operator.itemgetter(0)(list(n)), "elements"),
    (np.sin, r"np\.sin needs .*sg\.sin"),
    (np.sum, r"np\.add\.reduce"),
    (np.mean, "values"),
    (np.asarray, "values .*sg.evaluate"),
    (lambda n: np.array([n]), "values"),
    (lambda n: np.array([[n, n]]), "values"),
    (lambda n: np.concatenate([n, n]), "values"),
    (lambda n: np.where(n, 1, 0), "values"),
    (lambda n: np.dot(n, n), "values"),
    (lambda n: np.add(n, n), r"np\.add needs"),
    (lambda n: np.ones(3, np.float32).__iadd__(n), r"np\.add needs"),
    (lambda n: n == 0, r"sg\.equal"),
    (lambda n: n != 0.5, r"sg\.not_equal"),
    (lambda n: n == np.zeros(3, np.float32), r"sg\.equal"),
    (lambda n: np.zeros(3, np.float32) == n, r"sg\.equal"),
    (lambda n: np.float32(1) != n, r"sg\.equal"),
    (lambda n: 3 in [n], r"sg\.equal"),
]


@pytest.mark.parametrize("case", range(len(NOT_VALUES)))
def test_nodes_are_not_values(s: Scene, case: int) -> None:
    action, says = NOT_VALUES[case]
    raises(TypeError, says, lambda: action(s.y))


def test_length(s: Scene) -> None:
    assert len(s.x) == 3
    raises(TypeError, r"length of input 'b'.*shape\[0\]", lambda: len(s.b))
    raises(TypeError, "0-dimensional", lambda: len(sg.sum(s.x)))


def test_arrays_meet_nodes(s: Scene) -> None:
    array = np.arange(3, dtype=np.float32)
    given = np.array([3, 1, 2], np.float32)
    for apply in (operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul,
                  operator.lt, operator.le, operator.gt, operator.ge):  # fmt: skip
        want = apply(array, given)
        node = apply(array, s.x)
        assert isinstance(node, sg.Node)
        np.testing.assert_allclose(sg.evaluate(node, {s.x: given}), want, rtol=1e-6)
        scalar = apply(np.float32(2), s.x) if apply is not operator.matmul else node
        assert isinstance(scalar, sg.Node)
    matrix = np.ones((2, 3), np.float32)
    assert (matrix @ s.x).shape == (2,)
    for apply in (operator.and_, operator.or_, operator.xor):
        assert isinstance(apply(np.array([1, 2], np.int32), s.i[:2]), sg.Node)
    assert (s.x * 2.0).dtype is sg.float32
    assert (np.float64(2) * s.x).dtype is sg.float64
    for apply in (operator.add, operator.mul, operator.matmul, operator.lt):
        for sequence in ([1, 2, 3], (1, 2, 3)):
            raises(TypeError, "np.asarray", lambda a=apply, v=sequence: a(s.x, v))
    for wrong in (None, "a", 1j, object()):
        for apply in (operator.add, operator.mul, operator.matmul, operator.lt):
            raises(TypeError, "not supported|unsupported|number", lambda a=apply, v=wrong: a(s.x, v), place=False)
            raises(
                TypeError,
                "not supported|unsupported|concatenate|number",
                lambda a=apply, v=wrong: a(v, s.x),
                place=False,
            )


def test_equality_is_identity_and_hash_agrees(s: Scene) -> None:
    again = s.x * s.w
    assert again is s.y
    assert s.y == again
    assert s.y != s.x
    assert hash(s.y) == hash(again)
    assert {s.y: 1}[again] == 1
    assert s.y in [s.x, s.y]
    assert [s.x, s.y].index(s.y) == 1
    assert s.x != "x"
    assert s.x is not None
    assert (s.x == None) is False  # noqa: E711


def test_nodes_are_immutable(s: Scene) -> None:
    held = (s.y.id, s.y.type, s.y.inputs, s.y.op, s.y.attrs)
    for name in ("id", "type", "inputs", "op", "attrs", "graph", "loc", "shape", "dtype", "name", "T", "foo"):
        raises(AttributeError, f"immutable.*{name}", lambda name=name: setattr(s.y, name, 1))
        raises(AttributeError, f"immutable.*{name}", lambda name=name: delattr(s.y, name))
    with pytest.raises(TypeError, match=r"sg\.at\(node\)"):
        s.y[0] = 1  # type: ignore[index]
    assert held == (s.y.id, s.y.type, s.y.inputs, s.y.op, s.y.attrs)
    z = s.y
    z += 1
    assert z is not s.y


def test_nodes_and_graphs_are_not_copied(s: Scene) -> None:
    f = sg.compile([s.x], s.y)
    deep = s.x
    for _ in range(5000):
        deep = sg.sin(deep)
    for action in (copy.copy, copy.deepcopy, pickle.dumps):
        raises(TypeError, "cannot be copied or pickled.*sg.export", lambda a=action: a(s.y))
        raises(TypeError, "cannot be copied or pickled", lambda a=action: a(deep))
        raises(TypeError, "cannot be copied or pickled.*sg.export", lambda a=action: a(s.g), place=False)
        if action is not copy.copy:
            raises(TypeError, "cannot be copied or pickled", lambda a=action: a({"net": [s.y]}))
            raises(TypeError, "cannot be copied or pickled", lambda a=action: a(f.program), place=False)
            with pytest.raises(TypeError):
                action(f)
    for plain in (sg.float32, s.x.op, s.b.shape, s.b.type):
        assert pickle.loads(pickle.dumps(plain)) == plain
        assert copy.deepcopy(plain) == plain


# --- declaring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extent", [-1, 1.5, True, float("nan"), float("inf"), None, (2,), 3.0, np.float32(2), b"n"])
def test_bad_extents(s: Scene, extent: Any) -> None:
    count = len(s.g.nodes)
    got = re.escape(repr(extent))
    raises(sg.ShapeError, f"q: .*got {got}", lambda: s.g.input("q", (extent,)))
    raises(sg.ShapeError, f"got {got}", lambda: sg.zeros(s.g, (2, extent)))
    raises(sg.ShapeError, f"got {got}", lambda: sg.broadcast_to(s.x, (extent, 3)))
    if extent != -1:
        raises(sg.ShapeError, f"got {got}", lambda: sg.reshape(s.x, (extent, 3)))
    assert len(s.g.nodes) == count
    assert s.g.input("q", (np.int64(2), 3)).shape == (2, 3)  # the name is still free


def test_bad_shapes_names_and_types(s: Scene) -> None:
    g = s.g
    for shape in ("batch", 3, None):
        raises(sg.ShapeError, "a shape is a tuple", lambda v=shape: g.input("q", v), place=False)
    for name in ("", "2*n", "n-1", "a b", "3"):
        raises(sg.ShapeError, "identifier.*shape", lambda v=name: g.input("q", (v,)), place=False)
    for name in (5, None, s.x):
        raises(sg.GraphError, "a name is text", lambda v=name: g.input(v, ()), place=False)
    for declare in (lambda n: g.input(n, ()), lambda n: g.param(n, 1.0), lambda n: g.state(n, 1.0)):
        raises(sg.GraphError, "'x' already names input 'x'.*g.scope", lambda d=declare: d("x"))
        raises(sg.GraphError, "empty", lambda d=declare: d(""), place=False)
    for dtype in ("float16", "float128", complex, "nonsense", None, object):
        raises(sg.DTypeError, "no data type .*float32", lambda d=dtype: g.input("q", (), d), place=False)
    for value in ("text", object(), np.zeros(2, complex), np.array(["a"]), np.datetime64("now")):
        raises(sg.DTypeError, "no data type", lambda v=value: g.param("q", v), place=False)
    raises(sg.ShapeError, "inhomogeneous", lambda: g.param("q", [[1], [1, 2]]), place=False)
    raises(sg.GraphError, "expected an array", lambda: g.param("q", s.y))
    raises(sg.GraphError, "expected an array", lambda: g.const(s.y))
    raises(sg.GraphError, "'nope'.*x, b, i, w", lambda: g.named("nope"), place=False)
    assert [n.name for n in g.inputs] == ["x", "b", "i"]
    assert [n.name for n in g.params] == ["w"]


def test_shapes_that_do_not_fit(s: Scene) -> None:
    four = s.g.input("four", (4,))
    count = len(s.g.nodes)
    for action, says in [
        (lambda: s.x + four, r"add: shapes \(3,\) \(test_errors.*\(4,\) \(test_errors.*expand_dims"),
        (lambda: s.x @ four, "matmul: .*3 and 4"),
        (lambda: s.b @ four, "matmul: .*3 and 4"),
        (lambda: sg.reshape(s.x, (2, 2)), r"reshape.*3 elements.*4 elements"),
        (lambda: sg.reshape(s.x, (2, -1)), "reshape.*3 elements, which 2 does not divide"),
        (lambda: sg.sum(s.x, axis=1), "sum: axis 1 is out of range"),
        (lambda: sg.concat([s.x, s.b]), "concat"),
        (lambda: s.x[3], "3 is out of range for axis 0 of extent 3"),
        (lambda: s.x[0, 0], "2 indices for 1 dimensions"),
        (lambda: s.x[s.x > 0], "boolean index.*sg.where"),
        (lambda: s.x.T, r"\.T: .*permute_dims"),
    ]:
        raises(sg.ShapeError, says, action)
    raises(sg.GraphError, "an index is an integer", lambda: s.x[1.5])
    raises(sg.DTypeError, "must be bool", lambda: sg.where(s.x, s.x, s.x))
    assert all(n.op.name in ("const", "greater", "broadcast") for n in s.g.nodes[count:])  # of s.x > 0
    mixed = s.g.input("u", (3,), sg.uint64)
    raises(sg.DTypeError, "no data type holds both.*astype", lambda: mixed + s.g.input("j", (3,), sg.int64))


# --- what is no node -----------------------------------------------------------------------------------------------


WRONG: dict[str, tuple[Callable[[Scene], Any], str]] = {
    "array": (lambda s: np.ones((2, 3), np.float32), "got ndarray .*g.const"),
    "list": (lambda s: [s.x, s.x], "got list .*sg.stack"),
    "None": (lambda s: None, "got None .*g.input"),
    "text": (lambda s: "x", "got str .*g.input"),
    "at": (lambda s: sg.at(s.x), r"got At .*set\(values\)"),
    "place": (lambda s: sg.at(s.x)[0], r"got Place .*set.* x\[index\] reads it"),
}


@pytest.mark.parametrize("what", WRONG)
def test_no_node(s: Scene, what: str) -> None:
    value, says = WRONG[what][0](s), WRONG[what][1]
    for name, action in [
        ("sum", lambda: sg.sum(value)),
        ("mean", lambda: sg.mean(x=value)),
        ("astype", lambda: sg.astype(value, sg.float64)),
        ("reshape", lambda: sg.reshape(value, (3,))),
        ("argmax", lambda: sg.argmax(value, axis=0)),
        ("cumulative_sum", lambda: sg.cumulative_sum(value)),
        ("zeros_like", lambda: sg.zeros_like(value)),
        ("relu", lambda: sg.nn.relu(value)),
        ("categorical", lambda: sg.random.categorical(value)),
        ("cosine", lambda: sg.optim.cosine(value, 0.1, 10)),
    ]:
        raises(TypeError, f"{name}: expected a node, {says}", action)


def test_places_are_no_nodes(s: Scene) -> None:
    place = sg.at(s.x)[0]
    raises(TypeError, "got Place .*set", lambda: sg.add(s.x, place))
    raises(AttributeError, "Place is no node and has no 'shape'; .*set", lambda: place.shape, place=False)
    raises(AttributeError, r"At is no node and has no 'dtype'; .*set\(values\)", lambda: sg.at(s.x).dtype, place=False)


def test_no_graph(s: Scene) -> None:
    for name, action in [
        ("zeros", lambda: sg.zeros(s.x, (3,))),
        ("linspace", lambda: sg.linspace(s.x, 0.0, 1.0, 3)),
        ("uniform", lambda: sg.random.uniform(s.x, (3,))),
        ("step_counter", lambda: sg.optim.step_counter(s.x)),
    ]:
        raises(TypeError, f"{name}: expected a graph, got Node .*pass node.graph", action)
    raises(TypeError, r"ones: expected a graph, got tuple .*sg.Graph\(\)", lambda: sg.ones((3, 4), sg.float32))


# Wrong values of the other parameters are not the subject: numbers, shapes and functions.
TAKES_NODES = ("Node", "Graph", "Operand", "Sequence[Node]", "Iterable[Node]", "Node | Sequence[Node]")
MODULES = {"": sg, "nn.": sg.nn, "linalg.": sg.linalg, "optim.": sg.optim, "random.": sg.random}


def is_public(module: Any, name: str, value: object) -> bool:
    if not inspect.isfunction(value):
        return False
    listed = getattr(module, "__all__", None)
    return name in listed if listed else value.__module__ == module.__name__ and not name.startswith("_")


FUNCTIONS = {
    prefix + name: f
    for prefix, module in MODULES.items()
    for name, f in vars(module).items()
    if is_public(module, name, f)
}


@pytest.mark.parametrize("what", ["array", "list", "None", "text", "place"])
def test_every_function_says_what_is_no_node(s: Scene, what: str) -> None:
    """No function of nodes ends in an AttributeError or KeyError of its inside."""
    wrong = WRONG[what][0](s)
    bare: list[str] = []
    for name, f in FUNCTIONS.items():
        parameters = [p for p in inspect.signature(f).parameters.values() if p.default is p.empty]
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        annotations = [p.annotation for p in parameters]
        named = {p.name: 1 for p in parameters if p.kind is p.KEYWORD_ONLY}
        for k in range(len(names)):
            if annotations[k] not in TAKES_NODES:
                continue
            given = [wrong if j == k else s.g if p.annotation == "Graph" else s.x for j, p in enumerate(parameters)]
            try:
                f(*given[: len(names)], **named)
            except (AttributeError, KeyError) as error:
                bare.append(f"{name}({names[k]}): {error!r}")
            except (TypeError, ValueError):
                pass
    assert not bare


# --- two graphs ----------------------------------------------------------------------------------------------------


def test_nodes_of_two_graphs(s: Scene) -> None:
    g, h = (len(graph.nodes) for graph in (s.g, s.h))
    loss = sg.sum(s.y)
    both = "belongs to <Graph: .*not to <Graph: "
    for action in [
        lambda: s.w + s.hx,
        lambda: s.hx @ s.w,
        lambda: sg.concat([s.w, s.hx]),
        lambda: sg.where(s.w > 0, s.hx, s.w),
        lambda: sg.maximum(s.x, s.hx),
        lambda: sg.grad(loss, s.hw),
        lambda: sg.grad(s.y, s.x, cotangent=s.hx),
        lambda: sg.compile([s.x], s.hx),
        lambda: sg.compile([s.hx], s.y),
        lambda: sg.compile([s.x], [s.y, s.hx]),
        lambda: sg.compile([s.x], s.y, updates=[(s.hw, s.w)]),
        lambda: sg.compile([s.x], s.y, updates=[(s.w, s.hw)]),
        lambda: s.g.substitute([s.y], {s.w: s.hw}),
        lambda: s.g.substitute([s.y], {s.hw: s.w}),
        lambda: s.g.substitute([s.hx], {s.w: s.x}),
    ]:
        raises(sg.GraphError, both, action)
    assert len(s.h.nodes) == h
    assert all(n.op.name in ("const", "greater", "broadcast", "sum") for n in s.g.nodes[g:])  # of s.w > 0 and the loss


def test_substitute(s: Scene) -> None:
    raises(sg.GraphError, "list of nodes", lambda: s.g.substitute(s.y, {s.w: s.x}))  # type: ignore[arg-type]
    raises(sg.GraphError, "g.const", lambda: s.g.substitute([s.y], {s.w: np.ones(3)}), place=False)  # type: ignore[dict-item]
    raises(sg.ShapeError, "types differ", lambda: s.g.substitute([s.y], {s.w: s.b}))
    (new,) = s.g.substitute([s.y], {s.w: s.x})
    assert new is s.x * s.x


# --- gradients -----------------------------------------------------------------------------------------------------


def test_gradients_that_do_not_exist(s: Scene) -> None:
    count = s.g.param("count", np.int64(3))
    loss = sg.sum(s.y)
    for action, says in [
        (lambda: sg.grad(loss, s.i), "input 'i'.*int32 is not a floating type.*astype"),
        (lambda: sg.grad(loss, [s.x, count]), "param 'count'.*int64"),
        (lambda: sg.grad(sg.sum(s.i), s.x), "dtype int64; only floating nodes"),
        (lambda: sg.grad(s.y, s.x), r"not a scalar, its shape is \(3\).*sg.sum.*cotangent="),
        (lambda: sg.grad(s.y, s.x, cotangent=np.ones(4, np.float32)), r"shape \(3\).*got .*float32\[4\]"),
    ]:
        raises(sg.GradientError, says.replace(r"\(3\)", r"\(3,?\)"), action)
    for action, says in [
        (lambda: sg.grad(np.ones(3), s.x), "only nodes have derivatives, got ndarray"),
        (lambda: sg.grad(loss, "x"), "got str"),
        (lambda: sg.grad(loss, s.x, disconnected="maybe"), "'maybe'"),
    ]:
        raises(sg.GradientError, says, action, place=False)


# --- compiling -----------------------------------------------------------------------------------------------------


def test_bad_arguments_of_compile(s: Scene) -> None:
    x, y, w = s.x, s.y, s.w
    f = sg.compile([x], y)
    for action, says in [
        (lambda: sg.compile(x, y), "inputs are a list of nodes, got input 'x'"),
        (lambda: sg.compile([w], y), "param 'w'.*is not an input"),
        (lambda: sg.compile([], y), "need input 'x'.*add it to the inputs"),
        (lambda: sg.compile([x], y, updates=[(x, x)]), "input 'x'.*cannot be updated"),
        (lambda: sg.compile([x], y, updates=[(y, y)]), "cannot be updated"),
        (lambda: sg.compile([x], y, updates=[(w, w), (w, x)]), "param 'w'.*updated twice"),
    ]:
        raises(sg.GraphError, says, action)
    for action, says in [
        (lambda: sg.compile(["x"], y), "inputs are nodes, got 'x'.*g.named"),
        (lambda: sg.compile(None, y), "list of nodes"),
        (lambda: sg.compile([x, x], y), "listed twice"),
        (lambda: sg.compile([x], [[y]]), "got list; outputs do not nest"),
        (lambda: sg.compile([x], {"a": {"b": y}}), "got dict; outputs do not nest"),
        (lambda: sg.compile([x], (y, (y,))), "got tuple; outputs do not nest"),
        (lambda: sg.compile([x], [np.ones(3)]), "got ndarray; lift values with g.const"),
        (lambda: sg.compile([x], "y"), "got str"),
        (lambda: sg.compile([x], {1: y}), "text, got 1"),
        (lambda: sg.compile([x], y, updates={w: w}), "list of pairs.*items"),
        (lambda: sg.compile([x], y, updates=(w, w)), "pairs"),
        (lambda: sg.compile([x], y, updates=[w]), "pairs"),
        (lambda: sg.compile([x], y, updates=[("w", w)]), "sets a param or state, got str"),
        (lambda: sg.compile([x], y, name=3), "text, got 3"),
        (lambda: sg.compile(f.program, y), "has its outputs"),
        (lambda: sg.compile(f.program, updates=[(w, w)]), "has its outputs"),
    ]:
        raises(sg.GraphError, says, action, place=False)
    raises(sg.ShapeError, "update of param 'w'.*another type", lambda: sg.compile([s.b], s.b, updates=[(w, s.b)]))
    raises(sg.DTypeError, "update of param 'w'", lambda: sg.compile([x], y, updates=[(w, sg.astype(w, "float64"))]))
    for options, says in [
        ({"threads": 0}, "at least 1, got 0"),
        ({"threads": "4"}, "got '4'"),
        ({"threads": 2.5}, "got 2.5"),
        ({"threads": True}, "got True"),
        ({"device": "gpu"}, "'gpu' is not supported"),
        ({"phase": "test"}, "'train' or 'infer', got 'test'"),
    ]:
        raises(sg.CompileError, says, lambda o=options: sg.compile([x], y, **o), place=False)
    raises(sg.CompileError, "no outputs and no updates", lambda: sg.compile([x], []), place=False)
    raises(sg.CompileError, "no outputs and no updates", lambda: sg.compile([], None), place=False)


# --- calling -------------------------------------------------------------------------------------------------------


def test_bad_calls_change_nothing(s: Scene) -> None:
    total = sg.sum(s.b * s.w)
    f = sg.compile([s.b, s.i], total, updates=[(s.w, s.w + sg.sum(s.b, axis=0))], name="f")
    b, i = np.ones((2, 3), np.float32), np.zeros(2, np.int32)
    for args, named, error, says in [
        ((), {}, sg.GraphError, "f: missing b, i"),
        ((b,), {}, sg.GraphError, "f: missing i; it takes b, i"),
        ((b, i, b), {}, sg.GraphError, r"f takes 2 inputs \(b, i\), got 3"),
        ((b, i), {"z": b}, sg.GraphError, "f has no input 'z'; it takes b, i"),
        ((b, i), {"b": b}, sg.GraphError, "'b' is given twice"),
        ((b[:, :2], i), {}, sg.ShapeError, rf"input 'b' .*{HERE}.*dimension 1 must be 3, got 2"),
        ((b, i[:1]), {}, sg.ShapeError, rf"input 'i' .*{HERE}.*dimension 0 must be n = 2 .*input 'b'\), got 1"),
        ((b[0], i), {}, sg.ShapeError, rf"input 'b' .*{HERE}.*expected shape \(n, 3\), got \(3\)"),
        ((b.astype(float), i), {}, sg.DTypeError, rf"input 'b' .*{HERE}.*float64.*astype\('float32'\)"),
        ((b, i.astype(np.int64)), {}, sg.DTypeError, rf"input 'i' .*{HERE}.*int64.*astype\('int32'\)"),
        ((b > 0, i), {}, sg.DTypeError, "got bool"),
        ((b, [0.5, 1.0]), {}, sg.DTypeError, "input 'i'.*float64 values"),
        ((b, [2**31, 0]), {}, sg.DTypeError, "do not fit int32"),
        ((b * 1j, i), {}, sg.DTypeError, "complex"),
        ((s.b, i), {}, sg.GraphError, rf"input 'b' .*{HERE}.*got a node.*takes arrays"),
        (([s.x, s.x], i), {}, sg.DTypeError, rf"input 'b' .*{HERE}"),
        ((None, i), {}, sg.DTypeError, "object"),
        (("text", i), {}, sg.DTypeError, "input 'b'"),
        (([[1, 2], [1]], i), {}, sg.ShapeError, "input 'b'.*inhomogeneous"),
    ]:  # fmt: skip
        raises(error, says, lambda a=args, n=named: f(*a, **n), place=False)
        np.testing.assert_array_equal(s.w.value, [0, 1, 2])
    assert f(b, i) == 6
    np.testing.assert_array_equal(s.w.value, [2, 3, 4])


INDEXED: dict[str, Callable[[Scene, sg.Node], sg.Node]] = {
    "take": lambda s, w: sg.take(w, s.i),
    "index": lambda s, w: w[s.i],
    "cross entropy": lambda s, w: sg.nn.softmax_cross_entropy(s.b + w, s.i),
    "scatter_add": lambda s, w: sg.scatter_add(w, s.i, 1.0),
    "take_along_axis": lambda s, w: sg.take_along_axis(s.b + w, sg.expand_dims(s.i, 1), 1),
}


@pytest.mark.parametrize("case", INDEXED)
def test_index_out_of_range_at_the_call(s: Scene, case: str) -> None:
    found = INDEXED[case](s, s.w)
    count = s.g.state("count", np.int64(0))
    loss = sg.sum(found)
    f = sg.compile(
        [s.b, s.i], [found, loss], updates=[(s.w, s.w - sg.grad(loss, s.w)), (count, count + 1)], name="f"
    )  # fmt: skip
    b = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    want = sg.evaluate(found, {s.b: b, s.i: np.array([2, 0], np.int32)})
    for wrong in ([0, 3], [-4, 0], [2**31 - 1, 0], [0, -(2**31)]):
        says = rf"f: an index is out of range in check_index .*{HERE}.*extent of 3.*unchanged"
        raises(IndexError, says, lambda i=wrong: f(b, np.array(i, np.int32)))
        np.testing.assert_array_equal(s.w.value, [0, 1, 2])
        assert count.value == 0
    np.testing.assert_allclose(f(b, np.array([2, 0], np.int32))[0], want, rtol=1e-5, atol=1e-6)
    assert count.value == 1


def test_evaluate(s: Scene) -> None:
    raises(sg.GraphError, "input 'x'.*has no value; give it in the feeds", lambda: sg.evaluate(s.y))
    raises(sg.DTypeError, "float64.*astype", lambda: sg.evaluate(s.y, {s.x: np.zeros(3)}))
    raises(sg.ShapeError, "must be 3, got 4", lambda: sg.evaluate(s.y, {s.x: np.zeros(4, np.float32)}))
    raises(IndexError, "3", lambda: sg.evaluate(sg.take(s.w, s.i), {s.i: np.array([3], np.int32)}), place=False)


# --- files ---------------------------------------------------------------------------------------------------------


def test_load_of_unknown_operators_and_versions(s: Scene, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    sg.export(file, {"y": sg.tanh(s.y)}, [s.x])
    data = file.read_bytes()
    assert b"tanh" in data
    unknown = tmp_path / "unknown.safetensors"
    unknown.write_bytes(data.replace(b"tanh", b"tanj"))
    raises(sg.FormatError, r"unknown\.safetensors.*no operator is named .*tanj", lambda: sg.load(unknown), place=False)
    version = re.search(rb'\\"format\\": ?(\d+)', data)
    assert version is not None
    later = tmp_path / "later.safetensors"
    later.write_bytes(data.replace(version[0], version[0][:-1] + b"9"))
    raises(sg.FormatError, r"later\.safetensors.*reads format .*the file has 9", lambda: sg.load(later), place=False)
    (tmp_path / "text").write_text("no model")
    raises(sg.FormatError, "text", lambda: sg.load(tmp_path / "text"), place=False)
    np.testing.assert_array_equal(sg.compile(sg.load(file))(x=np.zeros(3, np.float32))["y"], [0, 0, 0])
