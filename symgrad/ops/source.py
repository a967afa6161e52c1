"""Operators without inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Kind, defop
from symgrad.storage import Literal
from symgrad.types import DType, Extent, Shape, Type, as_dtype, int64

if TYPE_CHECKING:
    from symgrad.types import Array


def _nothing(node: Node, cotangent: Node) -> tuple[Node | None, ...]:
    return ()


def _declared(name: str, shape: Shape, dtype: DType) -> Type:
    return Type(shape, dtype)


def _const(value: Literal) -> Type:
    dtype = as_dtype(value.array.dtype)
    if dtype is None:
        raise DTypeError(f"symgrad has no data type {value.array.dtype}")
    return Type(value.array.shape, dtype)


def _iota(extent: Extent, dtype: DType) -> Type:
    if isinstance(extent, int) and extent < 0:
        raise ShapeError(f"the extent {extent} is negative")
    if dtype.kind == "b":
        raise DTypeError("expected an integer or floating data type, got bool")
    return Type((extent,), dtype)


def _iota_value(extent: int, dtype: DType) -> Array:
    return np.arange(extent).astype(dtype.np)


def _const_value(value: Literal) -> Array:
    return value.array


def _dim_type(extent: Extent) -> Type:
    return Type((), int64)


def _dim_value(extent: int) -> Array:
    return np.asarray(extent, np.int64)


defop(
    "input",
    Kind.SOURCE,
    attrs=("name", "shape", "dtype"),
    infer=_declared,
    vjp=_nothing,
    doc="An array given at the call.",
)
defop(
    "param",
    Kind.SOURCE,
    attrs=("name", "shape", "dtype"),
    infer=_declared,
    vjp=_nothing,
    doc="A trainable array the graph stores.",
)
defop(
    "state",
    Kind.SOURCE,
    attrs=("name", "shape", "dtype"),
    infer=_declared,
    vjp=_nothing,
    doc="An array the graph stores between calls and does not train.",
)
defop(
    "const",
    Kind.SOURCE,
    attrs=("value",),
    infer=_const,
    vjp=_nothing,
    ref=_const_value,
    doc="A constant array.",
)
defop(
    "iota",
    Kind.SOURCE,
    attrs=("extent", "dtype"),
    infer=_iota,
    vjp=_nothing,
    ref=_iota_value,
    doc="0, 1, …, extent - 1.",
)
defop(
    "dim",
    Kind.SOURCE,
    attrs=("extent",),
    infer=_dim_type,
    vjp=_nothing,
    ref=_dim_value,
    doc="The value of an extent.",
)
