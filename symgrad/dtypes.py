"""What data types hold and how they promote: the data type functions of the Python array API standard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from symgrad.errors import DTypeError
from symgrad.graph import Node
from symgrad.operators import is_scalar
from symgrad.record import record
from symgrad.types import DTYPES, DType, as_dtype, bool_, float32, int64, promote

if TYPE_CHECKING:
    from symgrad.graph import Operand
    from symgrad.types import DTypeLike

__all__ = ["can_cast", "finfo", "iinfo", "isdtype", "result_type"]

_KINDS: dict[str, str] = {
    "bool": "b",
    "signed integer": "i",
    "unsigned integer": "u",
    "integral": "iu",
    "real floating": "f",
    "complex floating": "",
    "numeric": "iuf",
}


@record
class FloatInfo:
    """The limits of a floating data type. `eps` is the distance from 1 to the next larger number."""

    bits: int
    eps: float
    max: float
    min: float
    smallest_normal: float
    dtype: DType


@record
class IntegerInfo:
    """The limits of an integer data type."""

    bits: int
    max: int
    min: int
    dtype: DType


def finfo(type: DTypeLike | Operand, /) -> FloatInfo:
    """The limits of a floating data type, or of that of a node or array. DTypeError for others."""
    dtype = _dtype_of("finfo", type)
    if not dtype.is_float:
        raise DTypeError(f"finfo: {dtype} is not floating; use iinfo for integers")
    info = np.finfo(dtype.np)
    return FloatInfo(dtype.bits, float(info.eps), float(info.max), float(info.min), float(info.smallest_normal), dtype)


def iinfo(type: DTypeLike | Operand, /) -> IntegerInfo:
    """The limits of an integer data type, or of that of a node or array. DTypeError for others."""
    dtype = _dtype_of("iinfo", type)
    if not dtype.is_integer:
        raise DTypeError(f"iinfo: {dtype} is no integer data type; use finfo for floating ones")
    info = np.iinfo(dtype.np)
    return IntegerInfo(dtype.bits, int(info.max), int(info.min), dtype)


def isdtype(dtype: DTypeLike, kind: DTypeLike | str | tuple[DTypeLike | str, ...]) -> bool:
    """Whether a data type is of a kind, or of one of several.

    A kind is a data type or one of "bool", "signed integer", "unsigned integer", "integral", "real floating",
    "complex floating" (there are none here) and "numeric". DTypeError for any other text.
    """
    own = _dtype_of("isdtype", dtype)
    return any(_is_kind(own, one) for one in (kind if isinstance(kind, tuple) else (kind,)))


def _is_kind(own: DType, kind: DTypeLike | str) -> bool:
    if not isinstance(kind, str):
        return own is _dtype_of("isdtype", kind)
    if kind not in _KINDS:
        raise DTypeError(f"isdtype: no kind {kind!r}; there are {', '.join(_KINDS)}")
    return own.kind in _KINDS[kind]


def can_cast(from_: DTypeLike | Operand, to: DTypeLike, /) -> bool:
    """Whether promotion takes the first data type, or that of a node or array, to the second.

    An integer promotes to every floating data type here, so `can_cast(int64, float32)` holds.
    """
    target = _dtype_of("can_cast", to)
    return promote(_dtype_of("can_cast", from_), target) is target


def result_type(*arrays_and_dtypes: DTypeLike | Operand) -> DType:
    """The data type in which an operator computes with these nodes, arrays, data types and Python numbers.

    Python numbers are weak: they matter only where the rest is of a lower kind. DTypeError where no data type holds
    all, and where there are Python numbers only.
    """
    strong = [_dtype_of("result_type", v) for v in arrays_and_dtypes if not is_scalar(v)]
    if not strong:
        raise DTypeError("result_type: at least one node, array or data type is needed")
    target = strong[0]
    for dtype in strong[1:]:
        found = promote(target, dtype)
        if found is None:
            raise DTypeError(f"result_type: no data type holds both {target} and {dtype}; use astype")
        target = found
    for value in arrays_and_dtypes:
        if isinstance(value, float) and not isinstance(value, np.generic) and not target.is_float:
            target = float32
        elif is_scalar(value) and not isinstance(value, bool | float) and target is bool_:
            target = int64
    return target


def _dtype_of(name: str, value: Any) -> DType:
    holds_values = isinstance(value, Node | np.ndarray | np.generic)
    given: Any = cast("Any", value).dtype if holds_values else value
    found = as_dtype(given)
    if found is None:
        raise DTypeError(f"{name}: symgrad has no data type {given!r}; it has {', '.join(DTYPES)}")
    return found
