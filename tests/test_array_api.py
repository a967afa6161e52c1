# pyright: basic
"""The Python array API standard, version 2024.12: every name of its main namespace and every argument.

`STANDARD` holds the signatures of the standard. A function here may take more (names for what the standard passes by
position only, positions for what it passes by name only, further arguments); what it takes less stands in a table with
the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from symgrad.graph import Graph, Node

_UNARY = "x, /"
_BINARY = "x1, x2, /"
_OVER_AXES = "x, /, *, axis=None, keepdims=False"
_LIKE = "x, /, *, dtype=None, device=None"


def _named(names: str, signature: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), signature)


STANDARD: dict[str, str] = {
    # creation
    "arange": "start, /, stop=None, step=1, *, dtype=None, device=None",
    "asarray": "obj, /, *, dtype=None, device=None, copy=None",
    "empty": "shape, *, dtype=None, device=None",
    "empty_like": _LIKE,
    "eye": "n_rows, n_cols=None, /, *, k=0, dtype=None, device=None",
    "from_dlpack": "x, /, *, device=None, copy=None",
    "full": "shape, fill_value, *, dtype=None, device=None",
    "full_like": "x, /, fill_value, *, dtype=None, device=None",
    "linspace": "start, stop, /, num, *, dtype=None, device=None, endpoint=True",
    "meshgrid": "*arrays, indexing='xy'",
    "ones": "shape, *, dtype=None, device=None",
    "ones_like": _LIKE,
    "tril": "x, /, *, k=0",
    "triu": "x, /, *, k=0",
    "zeros": "shape, *, dtype=None, device=None",
    "zeros_like": _LIKE,
    # data types
    "astype": "x, dtype, /, *, copy=True, device=None",
    "broadcast_arrays": "*arrays",
    "broadcast_to": "x, /, shape",
    "can_cast": "from_, to, /",
    "finfo": "type, /",
    "iinfo": "type, /",
    "isdtype": "dtype, kind",
    "result_type": "*arrays_and_dtypes",
    # elementwise
    **_named(
        "abs acos acosh asin asinh atan atanh bitwise_invert ceil conj cos cosh exp expm1 floor imag isfinite isinf "
        "isnan log log1p log2 log10 logical_not negative positive real reciprocal round sign signbit sin sinh square "
        "sqrt tan tanh trunc",
        _UNARY,
    ),
    **_named(
        "add atan2 bitwise_and bitwise_left_shift bitwise_or bitwise_right_shift bitwise_xor copysign divide equal "
        "floor_divide greater greater_equal hypot less less_equal logaddexp logical_and logical_or logical_xor maximum "
        "minimum multiply nextafter not_equal pow remainder subtract",
        _BINARY,
    ),
    "clip": "x, /, min=None, max=None",
    # indexing
    "take": "x, indices, /, *, axis=None",
    "take_along_axis": "x, indices, /, *, axis=-1",
    # linear algebra
    "matmul": _BINARY,
    "matrix_transpose": _UNARY,
    "tensordot": "x1, x2, /, *, axes=2",
    "vecdot": "x1, x2, /, *, axis=-1",
    # manipulation
    "concat": "arrays, /, *, axis=0",
    "expand_dims": "x, /, *, axis=0",
    "flip": "x, /, *, axis=None",
    "moveaxis": "x, source, destination, /",
    "permute_dims": "x, /, axes",
    "repeat": "x, repeats, /, *, axis=None",
    "reshape": "x, /, shape, *, copy=None",
    "roll": "x, /, shift, *, axis=None",
    "squeeze": "x, /, axis",
    "stack": "arrays, /, *, axis=0",
    "tile": "x, repetitions, /",
    "unstack": "x, /, *, axis=0",
    # searching
    "argmax": _OVER_AXES,
    "argmin": _OVER_AXES,
    "count_nonzero": _OVER_AXES,
    "nonzero": _UNARY,
    "searchsorted": "x1, x2, /, *, side='left', sorter=None",
    "where": "condition, x1, x2, /",
    # sets
    "unique_all": _UNARY,
    "unique_counts": _UNARY,
    "unique_inverse": _UNARY,
    "unique_values": _UNARY,
    # sorting
    "argsort": "x, /, *, axis=-1, descending=False, stable=True",
    "sort": "x, /, *, axis=-1, descending=False, stable=True",
    # statistics
    "cumulative_prod": "x, /, *, axis=None, dtype=None, include_initial=False",
    "cumulative_sum": "x, /, *, axis=None, dtype=None, include_initial=False",
    "max": _OVER_AXES,
    "mean": _OVER_AXES,
    "min": _OVER_AXES,
    "prod": "x, /, *, axis=None, dtype=None, keepdims=False",
    "std": "x, /, *, axis=None, correction=0.0, keepdims=False",
    "sum": "x, /, *, axis=None, dtype=None, keepdims=False",
    "var": "x, /, *, axis=None, correction=0.0, keepdims=False",
    # utility
    "all": _OVER_AXES,
    "any": _OVER_AXES,
    "diff": "x, /, *, axis=-1, n=1, prepend=None, append=None",
}

CONSTANTS = {"e": np.e, "inf": np.inf, "nan": np.nan, "newaxis": None, "pi": np.pi}
DTYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64")
ATTRIBUTES = ("T", "dtype", "mT", "ndim", "shape", "size")

MISSING = {
    "asarray": "a node belongs to a graph: g.const",
    "conj": "there are no complex numbers",
    "from_dlpack": "a node belongs to a graph: g.const",
    "imag": "there are no complex numbers",
    "real": "there are no complex numbers",
}
WITHOUT = {
    "device": "a compiled function has a device, a node has none",
    "copy": "values never change, so nothing needs to be copied",
}
# Functions whose results have as many elements as the data decides: the shape must be known, so they take `size`.
SIZED = {"nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values"}
# Functions that take the graph first, because nothing else tells where the node belongs.
MAKING = {"arange", "empty", "eye", "full", "linspace", "ones", "zeros"}
# Data types are float32 unless said, as for the inputs of a graph; float64 is not the default anywhere.
OTHER_DEFAULTS = {(name, "dtype"): sg.float32 for name in MAKING - {"arange"}}


def test_names() -> None:
    assert {name for name in STANDARD if not hasattr(sg, name)} == set(MISSING)
    for name, value in CONSTANTS.items():
        assert getattr(sg, name) is value or np.array_equal(getattr(sg, name), value, equal_nan=True)
    for name in DTYPES:
        assert getattr(sg, name).name == name
    assert sg.bool_.name == "bool"  # `bool` alone would hide Python's
    node = Graph().input("x", (2, "n"))
    assert [name for name in ATTRIBUTES if not hasattr(node, name)] == []
    assert set(STANDARD) - set(MISSING) <= set(sg.__all__)


@pytest.mark.parametrize("name", sorted(set(STANDARD) - set(MISSING)))
def test_signatures(name: str) -> None:
    wanted = inspect.signature(eval(f"lambda {STANDARD[name]}: None")).parameters.values()
    own = list(inspect.signature(getattr(sg, name)).parameters.values())
    if name in MAKING:
        assert own.pop(0).name == "graph"
    by_name = {p.name: p for p in own}
    places = [p for p in own if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for place, parameter in enumerate(wanted):
        if parameter.name in WITHOUT:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            found = places[place]
        else:
            found = by_name[parameter.name]
            assert found.kind is not found.POSITIONAL_ONLY
        if parameter.kind is parameter.VAR_POSITIONAL:
            assert found.kind is parameter.kind
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            assert places[place] is found
        assert found.default == OTHER_DEFAULTS.get((name, parameter.name), parameter.default)
        by_name.pop(found.name)
    further = {p.name for p in by_name.values() if p.default is p.empty}
    assert further == ({"size"} if name in SIZED else set())


X = np.array([[-1.5, 0.0, 2.25], [4.0, -0.0, 3.5]])
COUNTS = np.array([3, 0, 2])

VALUES: dict[str, tuple[Callable[[Node], Any], Callable[[Any], Any]]] = {
    "clip": (lambda x: sg.clip(x, -1, 3), lambda x: np.clip(x, -1, 3)),
    "clip below": (lambda x: sg.clip(x, min=1.0), lambda x: np.clip(x, 1.0, None)),
    "clip above": (lambda x: sg.clip(x, max=1.0), lambda x: np.clip(x, None, 1.0)),
    "clip rows": (lambda x: sg.clip(x, x[0] - 1, np.ones(3)), lambda x: np.clip(x, x[0] - 1, np.ones(3))),
    "clip nothing": (sg.clip, lambda x: x),
    "count_nonzero": (lambda x: sg.count_nonzero(x, axis=0, keepdims=True), lambda x: (x != 0).sum(0, keepdims=True)),
    "cumulative_sum": (lambda x: sg.cumulative_sum(x, axis=-2), lambda x: np.cumsum(x, -2)),
    "diff": (lambda x: sg.diff(x, axis=0, prepend=x), lambda x: np.diff(x, axis=0, prepend=x)),
    "empty_like": (lambda x: sg.empty_like(x, dtype=sg.int8), lambda x: np.zeros(x.shape, np.int8)),
    "expand_dims": (lambda x: sg.expand_dims(x, axis=-1), lambda x: x[..., None]),
    "full_like": (lambda x: sg.full_like(x, fill_value=2), lambda x: np.full_like(x, 2)),
    "max": (lambda x: sg.max(x, axis=(0, -1)), np.max),
    "newaxis": (lambda x: x[:, sg.newaxis, 1:], lambda x: x[:, None, 1:]),
    "pow": (lambda x: sg.pow(2, x), lambda x: 2**x),
    "repeat": (lambda x: sg.repeat(x, 2), lambda x: np.repeat(x, 2)),
    "repeat each": (lambda x: sg.repeat(x, COUNTS, axis=1), lambda x: np.repeat(x, COUNTS, 1)),
    "repeat list": (lambda x: sg.repeat(x, [2, 1], axis=0), lambda x: np.repeat(x, [2, 1], 0)),
    "repeat all by one": (lambda x: sg.repeat(x, np.array([2]), axis=0), lambda x: np.repeat(x, 2, 0)),
    "repeat none": (lambda x: sg.repeat(x, 0, axis=1), lambda x: np.repeat(x, 0, 1)),
    "roll": (lambda x: sg.roll(x, (1, -1), axis=(0, 1)), lambda x: np.roll(x, (1, -1), (0, 1))),
    "signbit": (sg.signbit, np.signbit),
    "std": (lambda x: sg.std(x, axis=1, correction=1), lambda x: np.std(x, 1, ddof=1)),
    "tile": (lambda x: sg.tile(x, (2, 1, 2)), lambda x: np.tile(x, (2, 1, 2))),
    "tril": (lambda x: sg.tril(x, k=1), lambda x: np.tril(x, 1)),
    "unstack": (lambda x: sg.unstack(x, axis=1), lambda x: tuple(x.T)),
    "var": (lambda x: sg.var(x, axis=0, correction=0.5), lambda x: x.var(0) * 2 / 1.5),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    make, meant = VALUES[name]
    graph = Graph()
    x = graph.input("x", X.shape, sg.float64)
    got, wanted = sg.compile([x], make(x))(X), meant(X)
    assert type(got) is type(wanted) or isinstance(wanted, np.generic)
    for one, other in zip(*((v if isinstance(v, tuple) else (v,)) for v in (got, wanted)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-15, strict=True)


def test_repeat_of_each() -> None:
    graph = Graph()
    x, n = graph.input("x", (3,), sg.float64), graph.input("n", ("n",), sg.float64)
    slope = sg.grad(sg.sum(sg.square(sg.repeat(x, COUNTS))), x)
    np.testing.assert_array_equal(sg.compile([x], slope)(np.ones(3)), 2 * COUNTS)
    np.testing.assert_array_equal(sg.compile([n], sg.repeat(n, 2))(np.arange(2.0)), [0, 0, 1, 1])
    for wrong, text in (
        ([1, 2], "2 repeats for axis 0"),
        ([1, -1, 2], "at least 0"),
        ([0.5, 1, 2], "integers"),
        (-1, "at least 0"),
        (sg.astype(x, sg.int32), "would decide the shape"),
    ):
        with pytest.raises(sg.ShapeError, match=text):
            sg.repeat(x, wrong)  # pyright: ignore[reportArgumentType] what users must not do
    with pytest.raises(sg.ShapeError, match="not known"):
        sg.repeat(n, [1, 2])


def test_limits_of_data_types() -> None:
    for name in ("float32", "float64"):
        info, numpy = sg.finfo(name), np.finfo(name)
        assert (info.bits, info.dtype.name) == (numpy.bits, name)
        for limit in ("eps", "max", "min", "smallest_normal"):
            assert type(getattr(info, limit)) is float
            assert getattr(info, limit) == getattr(numpy, limit)
    for name in DTYPES[:8]:
        info, numpy = sg.iinfo(getattr(sg, name)), np.iinfo(name)
        assert (info.bits, info.min, info.max, info.dtype.name) == (numpy.bits, numpy.min, numpy.max, name)
    node = Graph().input("x", (2,), sg.int8)
    assert sg.iinfo(node).max == 127
    for call in (lambda: sg.finfo(node), lambda: sg.iinfo(sg.float32), lambda: sg.iinfo(sg.bool_), lambda: sg.finfo(3)):
        with pytest.raises(sg.DTypeError):
            call()


def test_kinds_of_data_types() -> None:
    for dtype in (sg.bool_, *(getattr(sg, name) for name in DTYPES)):
        for kind in ("bool", "signed integer", "unsigned integer", "integral", "real floating", "numeric"):
            assert sg.isdtype(dtype, kind) == np.isdtype(dtype.np, kind)
        assert not sg.isdtype(dtype, "complex floating")
    assert sg.isdtype(sg.int8, (sg.int16, "bool", sg.int8))
    assert not sg.isdtype(sg.int8, ("bool", sg.float32))
    with pytest.raises(sg.DTypeError, match="no kind"):
        sg.isdtype(sg.int8, "whole")


def test_promotion() -> None:
    graph = Graph()
    x, n, b = graph.input("x", ("n",)), graph.input("n", (), sg.int16), graph.input("b", (2,), sg.bool_)
    for operands in ((x, n), (x, b), (n, b), (n, 1), (n, 1.5), (b, 2), (b, True), (b, 2.0, n), (x, 1.0)):
        total = operands[0]
        for one in operands[1:]:
            total = total + one
        assert sg.result_type(*operands) is total.dtype
    assert sg.result_type(sg.int8, np.uint8(3), "int32") is sg.int32
    assert sg.result_type(sg.float32, np.zeros(2)) is sg.float64
    for operands in ((sg.int64, sg.uint64), (1, 2.0), ()):
        with pytest.raises(sg.DTypeError):
            sg.result_type(*operands)
    assert sg.can_cast(n, sg.int32)
    assert sg.can_cast(sg.bool_, sg.float32)
    assert not sg.can_cast(sg.int32, sg.int16)
    assert not sg.can_cast(x, sg.int64)
    assert not sg.can_cast(sg.uint64, sg.int64)


def test_size() -> None:
    graph = Graph()
    x = graph.input("x", (3, "n"))
    assert graph.input("y", (3, 4)).size == 12
    assert x.size == 3 * x.shape[1]
