"""Data types of results, for all pairs of data types and all kinds of operands.

Within booleans and integers, and within floats, the array API's table holds, as `np.result_type` has it. An integer
with a float gives that float, which NumPy widens. Python numbers are weak: they take the data type they meet.
"""

# pyright: basic
from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph, Node
from symgrad.types import DTYPES, DType, bool_, float32, int64

Function = Callable[[Any, Any], Any]
PAIRS = list(itertools.product(DTYPES.values(), repeat=2))
INTEGERS = [d for d in DTYPES.values() if d.is_integer]
FLOATS = [d for d in DTYPES.values() if d.is_float]

# Arithmetic, its name in NumPy, and the kinds of data types it takes after promotion.
SAME: dict[str, tuple[Function, str]] = {
    "add": (operator.add, "biuf"),
    "subtract": (operator.sub, "iuf"),
    "multiply": (operator.mul, "biuf"),
    "floor_divide": (operator.floordiv, "iuf"),
    "remainder": (operator.mod, "iuf"),
    "power": (operator.pow, "iuf"),
    "left_shift": (operator.lshift, "iu"),
    "right_shift": (operator.rshift, "iu"),
    "bitwise_and": (operator.and_, "biu"),
    "bitwise_or": (operator.or_, "biu"),
    "bitwise_xor": (operator.xor, "biu"),
    "matmul": (operator.matmul, "iuf"),
}
COMPARISONS: dict[str, Function] = {
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
# Functions that have no operator.
NAMED: dict[str, tuple[Function, str]] = {
    "maximum": (sg.maximum, "biuf"),
    "minimum": (sg.minimum, "biuf"),
    "where": (lambda a, b: sg.where(np.array([True, False, True]), a, b), "biuf"),
    "concat": (lambda a, b: sg.concat([a, b]), "biuf"),
    "stack": (lambda a, b: sg.stack([a, b]), "biuf"),
    "atan2": (sg.atan2, "f"),
    "hypot": (sg.hypot, "f"),
    "copysign": (sg.copysign, "f"),
    "nextafter": (sg.nextafter, "f"),
    "logaddexp": (sg.logaddexp, "f"),
    "logical_and": (sg.logical_and, "b"),
    "logical_or": (sg.logical_or, "b"),
    "logical_xor": (sg.logical_xor, "b"),
}
BOOLEAN: dict[str, Function] = {"equal": sg.equal, "not_equal": sg.not_equal, "less": sg.less, "greater": sg.greater}


def joint(a: DType, b: DType) -> DType | None:
    """The data type of both, from NumPy's table within a kind; None for the pairs that only NumPy's float64 holds."""
    if a.is_float != b.is_float:
        return a if a.is_float else b
    found = np.result_type(a.np, b.np)
    if found.kind == "f" and not a.is_float:
        return None
    return DTYPES[found.name]


def node(dtype: DType, graph: Graph | None = None, name: str = "x") -> Node:
    return (graph or Graph()).input(name, (3,), dtype)


def array(dtype: DType) -> np.ndarray:
    return np.array([1, 0, 1], dtype.np)


def check(
    name: str, call: Callable[[], Node], expected: DType | None, taken: bool, result: DType | None = None
) -> None:
    """The data type of a result, or an error that names the operator and what to do."""
    if expected is not None and taken:
        assert call().dtype is (result or expected)
        return
    with pytest.raises(sg.DTypeError, match="astype") as caught:
        call()
    if expected is None:
        assert "no data type holds both" in str(caught.value)


def all_functions() -> list[tuple[str, Function, str, DType | None]]:
    """Name, function, kinds it takes, and the data type of its result if it is always the same."""
    same = [(name, function, kinds, None) for name, (function, kinds) in (SAME | NAMED).items()]
    truth = [(name, function, "biuf", bool_) for name, function in (COMPARISONS | BOOLEAN).items()]
    return [*same, *truth]


@pytest.mark.parametrize(
    ("name", "function", "kinds", "result"), all_functions(), ids=lambda v: v if isinstance(v, str) else ""
)
def test_nodes_of_all_pairs(name: str, function: Function, kinds: str, result: DType | None) -> None:
    for a, b in PAIRS:
        graph = Graph()
        x, y = node(a, graph, "x"), node(b, graph, "y")
        expected = joint(a, b)
        check(name, lambda x=x, y=y: function(x, y), expected, expected is not None and expected.kind in kinds, result)


def test_true_quotients() -> None:
    """Integers and bool become float32, floats stay."""
    for a, b in PAIRS:
        graph = Graph()
        x, y = node(a, graph, "x"), node(b, graph, "y")
        expected = joint(a, b)
        result = expected if expected is not None and expected.is_float else float32
        check("divide", lambda x=x, y=y: x / y, expected, True, result)
        check("divide", lambda x=x, y=y: sg.divide(x, y), expected, True, result)


@pytest.mark.parametrize(("name", "function"), [*((n, f) for n, (f, _) in SAME.items()), *COMPARISONS.items()])
def test_arrays_keep_their_data_type(name: str, function: Function) -> None:
    """An array, or a NumPy scalar, on either side of an operator is as good as a node."""
    kinds = SAME[name][1] if name in SAME else "biuf"
    result = bool_ if name in COMPARISONS else None
    for a, b in PAIRS:
        expected = joint(a, b)
        taken = expected is not None and expected.kind in kinds
        x = node(a)
        values = [array(b)] if name == "matmul" else [array(b), b.np.type(1)]
        for value in values:
            check(name, lambda x=x, v=value: function(x, v), expected, taken, result)
            check(name, lambda x=x, v=value: function(v, x), expected, taken, result)


def weak(dtype: DType, value: object) -> DType:
    """The data type of a node and a Python number that fits."""
    if isinstance(value, bool) or dtype.is_float:
        return dtype
    if isinstance(value, float):
        return float32
    return int64 if dtype is bool_ else dtype


@pytest.mark.parametrize(("name", "function"), [*((n, f) for n, (f, _) in SAME.items()), *COMPARISONS.items()])
@pytest.mark.parametrize("value", [True, 5, 5.5])
def test_python_numbers_are_weak(name: str, function: Function, value: float) -> None:
    if name == "matmul":
        for x in map(node, DTYPES.values()):
            with pytest.raises(sg.ShapeError, match="at least 1 dimension"):
                _ = x @ value
        return
    kinds = SAME[name][1] if name in SAME else "biuf"
    result = bool_ if name in COMPARISONS else None
    for dtype in DTYPES.values():
        expected = weak(dtype, value)
        x = node(dtype)
        check(name, lambda x=x: function(x, value), expected, expected.kind in kinds, result)
        check(name, lambda x=x: function(value, x), expected, expected.kind in kinds, result)


@pytest.mark.parametrize("name", ["maximum", "minimum", "where", "atan2", "hypot"])
def test_functions_take_python_numbers(name: str) -> None:
    function, kinds = NAMED[name]
    for dtype, value in itertools.product(DTYPES.values(), (True, 5, 5.5)):
        expected = weak(dtype, value)
        x = node(dtype)
        check(name, lambda x=x, v=value: function(x, v), expected, expected.kind in kinds)
        check(name, lambda x=x, v=value: function(v, x), expected, expected.kind in kinds)


def test_quotients_with_python_numbers() -> None:
    for dtype, value in itertools.product(DTYPES.values(), (True, 5, 5.5)):
        expected = dtype if dtype.is_float else float32
        assert (node(dtype) / value).dtype is expected
        assert (value / node(dtype)).dtype is expected


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers_fit_or_are_refused(dtype: DType) -> None:
    limits = np.iinfo(dtype.np)
    for value in (int(limits.min), int(limits.max), 0):
        for out in (node(dtype) * value, value * node(dtype), sg.maximum(node(dtype), value), node(dtype) < value):
            assert out.dtype in (dtype, bool_)
    x = node(dtype)
    doubled = sg.evaluate(x | int(limits.max), {x: array(dtype) * 0})
    assert doubled.tolist() == [int(limits.max)] * 3
    for value in (int(limits.min) - 1, int(limits.max) + 1, 10**400, -(10**400)):
        for call in (
            lambda v=value: x + v,
            lambda v=value: v - x,
            lambda v=value: x < v,
            lambda v=value: sg.maximum(x, v),
        ):
            with pytest.raises(sg.DTypeError, match=f"does not fit {dtype}; use astype"):
                call()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_numbers_fit_floats_or_are_refused(dtype: DType) -> None:
    largest = np.finfo(dtype.np).max
    for value in (float(largest), -float(largest), int(largest), -int(largest), 0, float("inf"), float("nan")):
        x = node(dtype)
        got = sg.evaluate(value * x, {x: np.ones(3, dtype.np)})
        assert got.dtype == dtype.np
        np.testing.assert_array_equal(got, np.full(3, value, dtype.np))
    too_large: list[float] = [2 * int(largest), -2 * int(largest), 10**400, -(10**400)]
    too_large += [1e39, -1e39] if dtype is float32 else []
    for value in too_large:
        for call in (lambda v=value: node(dtype) + v, lambda v=value: v / node(dtype), lambda v=value: node(dtype) < v):
            with pytest.raises(sg.DTypeError, match=f"does not fit {dtype}; use astype"):
                call()


def test_bool_meets_integers_that_int64_does_not_hold() -> None:
    assert (node(bool_) + (2**63 - 1)).dtype is int64
    with pytest.raises(sg.DTypeError, match="does not fit int64"):
        _ = node(bool_) + 2**63


@pytest.mark.parametrize("value", [1j, "text", None, object(), [1, 2, 3], (1, 2, 3), {1}])
def test_what_is_no_operand(value: Any) -> None:
    x = node(float32)
    for call in (lambda: x + value, lambda: value + x, lambda: x < value, lambda: value - x, lambda: x @ value):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize("dtype", ["float16", "complex64", "datetime64[s]", "U3", "O"])
def test_arrays_of_other_data_types(dtype: str) -> None:
    x, value = node(float32), np.zeros(3, dtype)
    for call in (lambda: x + value, lambda: value + x, lambda: x < value):
        with pytest.raises((sg.DTypeError, TypeError)):
            call()


def test_unary_operators_keep_the_data_type() -> None:
    for dtype in DTYPES.values():
        for name, function in {"negative": operator.neg, "absolute": operator.abs}.items():
            check(name, lambda f=function, d=dtype: f(node(d)), dtype, dtype is not bool_)
        check("invert", lambda d=dtype: ~node(d), dtype, not dtype.is_float)
        assert (+node(dtype)).dtype is dtype


def test_values_of_all_pairs_are_those_of_cast_operands() -> None:
    """Compiled: each operand is cast to the joint data type, and the result is computed there."""
    arrays = {d: np.array([3, 0, 1, 100, 127], np.float64).astype(d.np) for d in DTYPES.values()}
    functions = (operator.add, operator.mul, operator.lt, operator.truediv)
    for function in functions:
        graph = Graph()
        nodes = {d: graph.input(d.name, (5,), d) for d in DTYPES.values()}
        pairs = [(a, b) for a, b in PAIRS if joint(a, b) is not None]
        outputs = [function(nodes[a], nodes[b]) for a, b in pairs]
        run = sg.compile(list(nodes.values()), outputs, threads=1)
        with np.errstate(all="ignore"):
            for (a, b), got in zip(pairs, run(*arrays.values()), strict=True):
                common: Any = joint(a, b)
                if function is operator.truediv and not common.is_float:
                    common = float32
                expected = function(arrays[a].astype(common.np), arrays[b].astype(common.np))
                assert got.dtype == expected.dtype, (function, a, b)
                np.testing.assert_array_equal(got, expected, err_msg=f"{function} {a} {b}")
