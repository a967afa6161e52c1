"""Operators on nodes: lifting of arrays and scalars, promotion and broadcasting happen here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np

import symgrad.ops  # noqa: F401  # pyright: ignore[reportUnusedImport] fills the operator table
from symgrad.arguments import Unfinished, checked, not_a_node
from symgrad.errors import DTypeError, GraphError, ShapeError, user_loc
from symgrad.graph import Graph, Node, Operand, describe
from symgrad.opdef import OPS
from symgrad.ops.build import (
    apply,
    broadcast_to,
    constant_like,
    filled,
    permute_to,
    reshape_to,
    restore_axes,
    scalar_const,
    source,
    uniform_value,
)
from symgrad.types import Dim, DType, Shape, bool_, float32, int64, joint_shape, promote

__all__ = [
    "apply",
    "as_node",
    "binary",
    "broadcast_to",
    "common",
    "constant_like",
    "filled",
    "graph_of",
    "is_scalar",
    "matmul",
    "permute_to",
    "power",
    "reshape_to",
    "restore_axes",
    "scalar_const",
    "source",
    "unary",
    "uniform_value",
]

Like: TypeAlias = "Graph | Node"


def is_scalar(value: object) -> TypeGuard[bool | int | float | Dim]:
    """Whether a value is a weak scalar: a Python number or a symbolic extent, but no NumPy scalar."""
    return isinstance(value, int | float | Dim) and not isinstance(value, np.generic)


def as_node(like: Like, value: Operand, dtype: DType | None = None) -> Node:
    """A node for a value that meets a node or graph.

    Nodes stay as they are; arrays and NumPy scalars keep their data type. Python numbers and extents become
    0-dimensional constants of the data type of `like`, or of `dtype`; a float that meets integers becomes float32, an
    integer that meets bool or a graph int64. DTypeError for an integer that does not fit.
    """
    graph = like if isinstance(like, Graph) else like.graph
    if isinstance(value, Node):
        if value.graph is not graph:
            raise GraphError(f"{describe(value)} belongs to {value.graph!r}, not to {graph!r}; build both in one graph")
        return value
    if not is_scalar(value):
        if not isinstance(value, np.ndarray | np.generic):
            if isinstance(value, Unfinished):
                raise not_a_node("an operand", value)
            raise TypeError(
                f"expected a node, array or number, got {type(value).__name__}; use np.asarray on sequences"
            )
        return graph.const(value)
    target = dtype if dtype is not None else like.dtype if isinstance(like, Node) else bool_
    return _weak_scalar(graph, value, target)


def _weak_scalar(graph: Graph, value: bool | float | Dim, target: DType) -> Node:
    if isinstance(value, Dim):
        extent = source(graph, "dim", extent=value)
        return extent if target in (int64, bool_) else apply("astype", extent, dtype=target)
    if isinstance(value, float):
        target = target if target.is_float else float32
        with np.errstate(over="ignore"):
            if np.isfinite(value) and not np.isfinite(np.asarray(value, target.np)):
                raise DTypeError(f"{value!r} does not fit {target}; use astype on the other operand")
    elif not isinstance(value, bool):
        target = int64 if target is bool_ else target
        limits = np.iinfo(target.np) if target.is_integer else np.finfo(target.np)
        # As a Python number of any size: a NumPy float would overflow in the comparison.
        if not int(limits.min) <= value <= int(limits.max):
            raise DTypeError(f"{value} does not fit {target}; use astype on the other operand")
    return scalar_const(graph, target, value)


def graph_of(name: str, *values: object) -> Node:
    """The first node among operands, which tells the graph and the data type of weak scalars."""
    for value in values:
        if isinstance(value, Node):
            return value
    raise TypeError(f"{name}: at least one operand must be a node; use g.const to put an array into a graph")


def common(name: str, *values: Operand, dtypes: bool = True) -> list[Node]:
    """Operands as nodes of one shape and, unless `dtypes` is false, of one data type.

    DTypeError where no data type holds both, ShapeError where shapes do not broadcast; both name the operands.
    """
    like = graph_of(name, *values)
    strong = [None if is_scalar(v) else as_node(like, v) for v in values]
    target = like.dtype
    if dtypes:
        for node in strong:
            if node is not None:
                target = _promoted(name, target, node, like)
    nodes = [n if n is not None else as_node(like, v, target) for n, v in zip(strong, values, strict=True)]
    if dtypes:
        for node in nodes:
            target = _promoted(name, target, node, like)
        nodes = [n if n.dtype is target else _cast(n, target) for n in nodes]
    shape = nodes[0].shape
    for node in nodes[1:]:
        joined = joint_shape(shape, node.shape)
        if joined is None:
            raise _no_broadcast(name, nodes)
        shape = joined
    return [broadcast_to(n, shape) for n in nodes]


def of_one_dtype(name: str, values: Sequence[Operand]) -> list[Node]:
    """Operands as nodes of one data type, their shapes as they are. DTypeError where no data type holds them."""
    like = graph_of(name, *values)
    nodes = [as_node(like, v) for v in values]
    target = nodes[0].dtype
    for node in nodes[1:]:
        target = _promoted(name, target, node, nodes[0])
    return [n if n.dtype is target else _cast(n, target) for n in nodes]


def _promoted(name: str, target: DType, node: Node, like: Node) -> DType:
    found = promote(target, node.dtype)
    if found is None:
        raise DTypeError(
            f"{name}: no data type holds both {describe(like)} and {describe(node)}; use astype on one{_here()}"
        )
    return found


def _cast(node: Node, dtype: DType) -> Node:
    return apply("astype", node, dtype=dtype)


def shape_text(shape: Shape) -> str:
    """A shape as Python writes a tuple."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def _no_broadcast(name: str, nodes: list[Node]) -> ShapeError:
    named = [f"{shape_text(n.shape)}" + (f" ({n.loc})" if n.loc is not None else "") for n in nodes]
    turned = len(nodes) == 2 and nodes[0].shape == nodes[1].shape[::-1]
    advice = "transpose one" if turned else "reshape one, or add an axis of extent 1 with expand_dims"
    return ShapeError(f"{name}: shapes {' and '.join(named)} do not broadcast; {advice}{_here()}")


def _here() -> str:
    place = user_loc(2)
    return f" (at {place})" if place is not None else ""


def unary(name: str, x: Node) -> Node:
    """An operator of one node."""
    return apply(name, x)


def binary(name: str, a: Operand, b: Operand) -> Node:
    """An operator of two operands, at least one a node: lifted, promoted and broadcast."""
    if isinstance(a, Node) and isinstance(b, Node) and a.type == b.type:
        return a.graph.add(OPS[name], (a, b))
    return apply(name, *common(name, a, b))


def divide(a: Operand, b: Operand) -> Node:
    """a / b; integers and bool become float32, or the floating data type of the other operand."""
    a, b = common("divide", a, b)
    if not a.dtype.is_float:
        a, b = _cast(a, float32), _cast(b, float32)
    return apply("divide", a, b)


def power(a: Operand, b: Operand) -> Node:
    """a ** b. Small integer powers of a node become products, which are exact for every base."""
    if isinstance(a, Node) and is_scalar(b) and not isinstance(b, bool | Dim):
        chain = _power_chain(a, b)
        if chain is not None:
            return chain
    return binary("power", a, b)


def _power_chain(a: Node, exponent: float) -> Node | None:
    if a.dtype.kind == "b" or (isinstance(exponent, float) and not a.dtype.is_float):
        return None
    if exponent < 0 and not a.dtype.is_float:
        return None
    match exponent:
        case 0:
            return constant_like(a, 1)
        case 1:
            return a
        case 2:
            return apply("square", a)
        case 3:
            return apply("multiply", apply("square", a), a)
        case 4:
            return apply("square", apply("square", a))
        case -1:
            return apply("reciprocal", a)
        case -2:
            # Not the reciprocal of the square: its derivatives at 0 would have a factor 0, though they are infinite.
            return apply("square", apply("reciprocal", a))
        case 0.5:
            return apply("sqrt", a)
        case _:
            return None


def matmul(a: Operand, b: Operand) -> Node:
    """The matrix product over the last axis of a and the last but one of b; leading axes broadcast.

    A 1-dimensional operand is a row on the left, a column on the right, and its axis is not in the result.
    ShapeError for 0-dimensional operands and extents that differ.
    """
    like = graph_of("matmul", a, b)
    a, b = as_node(like, a), as_node(like, b)
    if not a.ndim or not b.ndim:
        raise ShapeError(f"matmul: {describe(a)} and {describe(b)} must have at least 1 dimension; use * for scalars")
    target = _promoted("matmul", a.dtype, b, a)
    a, b = (n if n.dtype is target else _cast(n, target) for n in (a, b))
    inner = (a.shape[-1], b.shape[-2:][0])
    if all(isinstance(e, int) for e in inner) and inner[0] != inner[1]:
        advice = "transpose one" if inner[0] == b.shape[-1] or inner[1] == a.shape[0] else "reshape one"
        raise ShapeError(
            f"matmul: the last extent of {describe(a)} and the {'last but one' if b.ndim > 1 else 'only one'} of "
            f"{describe(b)} must be equal, got {inner[0]} and {inner[1]}; {advice}{_here()}"
        )
    batch = _batch_shape(a, b)
    letters = "abcdefghijkl"[: len(batch)]
    left, a = _operand_labels(a, letters, "mk" if a.ndim > 1 else "k", batch)
    right, b = _operand_labels(b, letters, "kn" if b.ndim > 1 else "k", batch)
    out = letters + "m" * (left[-2:-1] == "m") + "n" * (right[-1:] == "n")
    return apply("contract", a, b, left=left, right=right, out=out)


def _batch_shape(a: Node, b: Node) -> Shape:
    batch = joint_shape(a.shape[:-2], b.shape[:-2])
    if batch is None:
        raise ShapeError(
            f"matmul: leading axes of {describe(a)} and {describe(b)} do not broadcast; reshape one{_here()}"
        )
    if len(batch) > 12:
        raise ShapeError(f"matmul: {describe(a)} and {describe(b)} have more than 14 dimensions")
    return batch


def _operand_labels(node: Node, letters: str, matrix: str, batch: Shape) -> tuple[str, Node]:
    """The labels of an operand; leading axes that are missing stay missing, those of extent 1 are dropped."""
    lead = node.shape[: -len(matrix)]
    skip = len(batch) - len(lead)
    if any(have not in (want, 1) for have, want in zip(lead, batch[skip:], strict=True)):
        node = broadcast_to(node, (*batch, *node.shape[len(lead) :]))
        return letters + matrix, node
    kept = [k for k, (have, want) in enumerate(zip(lead, batch[skip:], strict=True)) if have == want]
    if len(kept) != len(lead):
        node = reshape_to(node, tuple(lead[k] for k in kept) + node.shape[len(lead) :])
    return "".join(letters[skip + k] for k in kept) + matrix, node


def bits(name: str, a: Operand, b: Operand) -> Node:
    """and, or, xor: of booleans, or bit by bit of integers."""
    nodes = common(f"bitwise_{name}", a, b)
    return apply(f"logical_{name}" if nodes[0].dtype is bool_ else f"bitwise_{name}", *nodes)


def invert(x: Node) -> Node:
    """not: of booleans, or bit by bit of integers."""
    return apply("logical_not" if x.dtype is bool_ else "bitwise_invert", x)


def _index(x: Node, index: Any) -> Node:
    from symgrad.indexing import index_node

    return index_node(x, index)


def _transpose(x: Node) -> Node:
    if x.ndim != 2:
        raise ShapeError(
            f".T: {describe(x)} does not have 2 dimensions; use .mT for matrices in batches, or permute_dims"
        )
    return permute_to(x, (1, 0))


@checked
def matrix_transpose(x: Node) -> Node:
    """The last two axes exchanged."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: {describe(x)} has fewer than 2 dimensions")
    return permute_to(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def _accepts(value: object) -> bool:
    return isinstance(value, Node | np.ndarray | np.generic | int | float | Dim)


def _method(function: Callable[[Any, Any], Node], *, reflected: bool = False) -> Callable[[Node, Any], Node]:
    def method(self: Node, other: Any) -> Node:
        if not _accepts(other):
            if isinstance(other, list | tuple):
                kind = "list" if isinstance(other, list) else "tuple"
                raise TypeError(f"{describe(self)} meets a {kind}; use np.asarray on sequences{_here()}")
            return NotImplemented
        return function(other, self) if reflected else function(self, other)

    return method


def _named(name: str) -> Callable[[Any, Any], Node]:
    return lambda a, b: binary(name, a, b)


def _bitwise(name: str) -> Callable[[Any, Any], Node]:
    return lambda a, b: bits(name, a, b)


def _install() -> None:
    arithmetic: dict[str, Callable[[Any, Any], Node]] = {
        "add": _named("add"),
        "sub": _named("subtract"),
        "mul": _named("multiply"),
        "truediv": divide,
        "floordiv": _named("floor_divide"),
        "mod": _named("remainder"),
        "lshift": _named("bitwise_left_shift"),
        "rshift": _named("bitwise_right_shift"),
        "pow": power,
        "matmul": matmul,
        "and": _bitwise("and"),
        "or": _bitwise("or"),
        "xor": _bitwise("xor"),
    }
    for name, function in arithmetic.items():
        setattr(Node, f"__{name}__", _method(function))
        setattr(Node, f"__r{name}__", _method(function, reflected=True))
    comparisons = {"lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
    for name, op in comparisons.items():
        setattr(Node, f"__{name}__", _method(_named(op)))
    methods: dict[str, Any] = {
        "__neg__": lambda self: unary("negative", self),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        "__pos__": lambda self: self,  # pyright: ignore[reportUnknownLambdaType]
        "__abs__": lambda self: unary("abs", self),  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
        "__invert__": invert,
        "__getitem__": _index,
        "T": property(_transpose),
        "mT": property(matrix_transpose),
    }
    for name, value in methods.items():
        setattr(Node, name, value)


_install()
