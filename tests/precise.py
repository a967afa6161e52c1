# pyright: basic
"""Evaluation of a graph in arithmetic of any precision: the oracle for rounding and for derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
import numpy as np

from symgrad.graph import Node, ancestors

mp: Any = mpmath


def _log(a: Any) -> Any:
    return mp.log(a) if a >= 0 or mp.isnan(a) else mp.nan


def _power(a: Any, b: Any) -> Any:
    if b == 0:
        return mp.mpf(1)
    if a == 0:
        return mp.mpf(0) if b > 0 else mp.inf
    return a ** int(b) if b == int(b) else a**b


def _quotient(a: Any, b: Any) -> Any:
    return a / b if b != 0 else mp.nan if a == 0 else mp.inf * mp.sign(a)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "safe_multiply": lambda a, b: mp.mpf(0) if a == 0 or b == 0 else a * b,
    "divide": _quotient,
    "reciprocal": lambda a: _quotient(mp.mpf(1), a),
    "power": _power,
    "negative": lambda a: -a,
    "square": lambda a: a * a,
    "abs": abs,
    "sign": mp.sign,
    "floor": mp.floor,
    "maximum": lambda a, b: a if a > b else b,
    "minimum": lambda a, b: a if a < b else b,
    "exp": mp.exp,
    "expm1": mp.expm1,
    "log": _log,
    "log1p": lambda a: _log(1 + a),
    "sigmoid": lambda a: 1 / (1 + mp.exp(-a)),
    "tanh": mp.tanh,
    "sin": mp.sin,
    "cos": mp.cos,
    "tan": mp.tan,
    "cbrt": lambda a: mp.sign(a) * mp.cbrt(abs(a)),
    "erf": mp.erf,
    "erfc": mp.erfc,
    "asin": mp.asin,
    "acos": mp.acos,
    "atan": mp.atan,
    "sinh": mp.sinh,
    "cosh": mp.cosh,
    "asinh": mp.asinh,
    "acosh": mp.acosh,
    "atanh": lambda a: mp.atanh(a) if abs(a) != 1 else mp.inf * a,
    "exp2": lambda a: mp.power(2, a),
    "log2": lambda a: _log(a) / mp.log(2),
    "log10": lambda a: _log(a) / mp.log(10),
    "atan2": mp.atan2,
    "hypot": mp.hypot,
    "copysign": lambda a, b: abs(a) if b >= 0 else -abs(a),
    "floor_divide": lambda a, b: mp.floor(a / b),
    "remainder": lambda a, b: a - b * mp.floor(a / b),
    "sqrt": lambda a: mp.sqrt(a) if a >= 0 or mp.isnan(a) else mp.nan,
    "rsqrt": lambda a: 1 / mp.sqrt(a),
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
    "logical_and": lambda a, b: a and b,
    "logical_or": lambda a, b: a or b,
    "logical_not": lambda a: not a,
    "isnan": lambda a: bool(mp.isnan(a)),
    "isfinite": lambda a: bool(mp.isfinite(a)),
    "where": lambda c, a, b: a if c else b,
}


def precise(node: Node, feeds: Mapping[Node, Any]) -> np.ndarray:
    """The value of a node in the working precision of mpmath, as an array of objects.

    Floating arrays become arrays of mpmath numbers; integer and boolean nodes keep NumPy's meaning. A phase takes its
    inference branch.
    """
    return precise_many([node], feeds)[0]


def precise_many(nodes: Sequence[Node], feeds: Mapping[Node, Any]) -> list[np.ndarray]:
    """The values of several nodes, with what they share evaluated once."""
    values: dict[int, Any] = {n.id: lift(a) for n, a in feeds.items()}
    for one in ancestors(nodes):
        if one.id not in values:
            values[one.id] = _value(one, [values[i.id] for i in one.inputs])
    return [np.asarray(values[n.id]) for n in nodes]


def lift(value: Any) -> np.ndarray:
    """Floating values as mpmath numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fO":
        return array
    return np.asarray(np.frompyfunc(mp.mpf, 1, 1)(array.astype(object)), object)


def as_objects(array: Any) -> np.ndarray:
    return np.asarray(array, object)


def _value(node: Node, sources: list[Any]) -> Any:
    op = node.op
    attrs = dict(zip(op.attrs, node.attrs, strict=True))
    if op.ref is not None and sources and not any(n.dtype.is_float for n in (node, *node.inputs)):
        # Integers and booleans keep NumPy's meaning.
        return op.ref(*map(np.asarray, sources), **attrs)
    if op.name in FUNCTIONS:
        result = np.asarray(np.frompyfunc(FUNCTIONS[op.name], len(sources), 1)(*map(as_objects, sources)))
        return result.astype(bool) if node.dtype.kind == "b" else result
    match op.name:
        case "const":
            return lift(attrs["value"].array)
        case "astype":
            if node.inputs[0].dtype.is_float and node.dtype.is_float:
                return sources[0]
            return lift(np.asarray(sources[0]).astype(node.dtype.np))
        case "sum":
            return np.asarray(np.sum(sources[0], axis=attrs["axes"]), object)
        case "prod":
            return np.asarray(np.prod(sources[0], axis=attrs["axes"]), object)
        case "max":
            return np.asarray(np.max(sources[0], axis=attrs["axes"]), object)
        case "min":
            return np.asarray(np.min(sources[0], axis=attrs["axes"]), object)
        case "cumulative_sum" | "cumulative_prod" | "cumulative_max" | "cumulative_min" | "linear_recurrence":
            return _scan(_STEPS[op.name], sources, **attrs)
        case "contract":
            return np.einsum(f"{attrs['left']},{attrs['right']}->{attrs['out']}", *sources)
        case "pad":
            pairs = list(zip(attrs["low"], attrs["high"], strict=True))
            return np.pad(sources[0], pairs, constant_values=mp.mpf(attrs["value"].array.item()))
        case "stop_gradient" | "custom":
            return sources[0]
        case "call":
            program = attrs["program"]
            return precise(program.outputs[0], dict(zip(program.inputs, sources, strict=True)))
        case "phase":
            return sources[1]
        case "argsort":
            return _order(sources[0], **attrs)
        case "searchsorted":
            return _searched(np.asarray(sources[0]), np.asarray(sources[1]), attrs["side"])
        case "sort":
            return np.take_along_axis(np.asarray(sources[0]), _order(sources[0], **attrs), attrs["axis"])
        case "fence":
            return sources[0]
        case "sum_to":
            return _sum_to(sources[0], attrs["shape"])
        case name if name in _MOVING:
            assert op.ref is not None
            return op.ref(*map(np.asarray, sources), **attrs)
        case name:
            raise NotImplementedError(f"no precise meaning of {name}")


_MOVING = frozenset(
    (
        "iota",
        "dim",
        "reshape",
        "permute",
        "broadcast",
        "slice",
        "flip",
        "concat",
        "take",
        "scatter_add",
        "scatter_set",
        "scatter_max",
        "scatter_min",
        "scatter_multiply",
        "check_index",
        "window",
        "fold",
    )
)


_STEPS: dict[str, Callable[..., Any]] = {
    "cumulative_sum": lambda old, x: x if old is None else old + x,
    "cumulative_prod": lambda old, x: x if old is None else old * x,
    "cumulative_max": lambda old, x: x if old is None or x > old else old,
    "cumulative_min": lambda old, x: x if old is None or x < old else old,
    "linear_recurrence": lambda old, a, b: b if old is None else FUNCTIONS["safe_multiply"](a, old) + b,
}


def _scan(function: Callable[..., Any], sources: list[Any], axis: int, step: int) -> np.ndarray:
    arrays = [np.moveaxis(as_objects(s), axis, -1)[..., ::step] for s in sources]
    out = np.empty_like(arrays[0])
    for row in np.ndindex(*out.shape[:-1]):
        value: Any = None
        for k in range(arrays[0].shape[-1]):
            out[(*row, k)] = value = function(value, *(a[(*row, k)] for a in arrays))
    return np.moveaxis(out[..., ::step], -1, axis)


def _order(array: Any, axis: int, descending: bool) -> np.ndarray:
    return np.argsort(-array if descending else array, axis, kind="stable")


def _searched(rows: np.ndarray, values: np.ndarray, side: Any) -> np.ndarray:
    out = np.empty(values.shape, np.int64)
    for row in np.ndindex(rows.shape[:-1]):
        out[row] = np.searchsorted(rows[row], values[row], side)
    return out


def _sum_to(array: Any, shape: tuple[int, ...]) -> Any:
    lead = np.ndim(array) - len(shape)
    axes = (*range(lead), *(lead + k for k, extent in enumerate(shape) if extent == 1))
    return np.reshape(np.asarray(np.sum(array, axis=axes), object), shape)
