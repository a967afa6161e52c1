"""Rewrites of whole families of operators: constant folding, uniform values, reductions of nothing."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from symgrad.graph import Attrs, Graph, Node
from symgrad.opdef import OPS, Kind, OpDef
from symgrad.ops.build import apply, constant_like, reshape_to
from symgrad.rules import Computed, full, uniform_array
from symgrad.storage import Literal
from symgrad.types import Type, static_shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from symgrad.graph import Rewrite
    from symgrad.types import Array

# The largest constant folding makes where it is not smaller than what it replaces, in bytes.
_LARGEST = 64 << 10
# The most elements folding reads.
_MOST_READ = 1 << 20
_CONSTANTS = frozenset(("const", "broadcast"))
# The outer operator of what a unary pointwise operator moves inside of.
_OUTWARD = frozenset(("broadcast", "reshape"))
_REDUCTIONS = ("sum", "prod", "max", "min", "any", "all")


def _names(*kinds: Kind) -> tuple[str, ...]:
    return tuple(op.name for op in OPS.values() if op.kind in kinds and op.name != "check_index")


def _infer(op: OpDef, inputs: tuple[Node, ...], attrs: Attrs) -> Type:
    return op.infer(*[i.type for i in inputs], **dict(zip(op.attrs, attrs, strict=True)))


def _values(op: OpDef, arrays: list[Array], attrs: Attrs) -> Array | None:
    if op.ref is None:
        return None
    with np.errstate(all="ignore"):
        return np.asarray(op.ref(*arrays, **dict(zip(op.attrs, attrs, strict=True))))


def _of_scalars(name: str) -> Rewrite:
    """A pointwise operator of values that are each one scalar everywhere: computed once, then broadcast."""
    op = OPS[name]

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        scalars: list[Node] = []
        for node in inputs:
            scalar = node.inputs[0] if node.op.name == "broadcast" else node
            if scalar.type.shape or (scalar.op.name != "const" and node.id < graph.opaque):
                return None
            scalars.append(scalar)
        if inputs[0].type.shape:
            return apply("broadcast", graph.add(op, tuple(scalars), attrs), shape=inputs[0].type.shape)
        if any(s.op.name != "const" for s in scalars):
            return None
        array = _values(op, [s.attrs[0].array for s in scalars], attrs)
        if array is None:
            return None
        return full(graph, (), _infer(op, inputs, attrs).dtype, array)

    return rewrite


def _of_constants(name: str) -> Rewrite:
    """Any operator of constants, where the result is small enough to keep."""
    op = OPS[name]

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        arrays: list[Array] = []
        for node in inputs:
            source = node.inputs[0] if node.op.name == "broadcast" else node
            if source.op.name != "const" or not node.type.is_static:
                return None
            arrays.append(np.broadcast_to(source.attrs[0].array, static_shape(node.type.shape)))
        result = _infer(op, inputs, attrs)
        if not result.is_static or sum(a.size for a in arrays) > _MOST_READ:
            return None
        stored = sum(a.nbytes for a in arrays)
        if math.prod(map(int, result.shape)) * result.dtype.itemsize > max(_LARGEST, stored):
            return None
        array = _values(op, arrays, attrs)
        return None if array is None else _constant(graph, result, array)

    return rewrite


def _constant(graph: Graph, kind: Type, array: Array) -> Node:
    array = array.astype(kind.dtype.np, copy=False)
    if array.size and kind.shape:
        first = np.ascontiguousarray(array).reshape(-1)[:1]
        if np.ascontiguousarray(array).tobytes() == first.tobytes() * array.size:
            return full(graph, kind.shape, kind.dtype, first[0])
    return graph.add(OPS["const"], (), (Literal(array),))


def _of_view(name: str) -> Rewrite:
    """A unary pointwise operator of a reshape or broadcast: applied first, so stretched elements are computed once."""
    op = OPS[name]

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        node = inputs[0]
        if len(inputs) != 1 or node.id < graph.opaque:
            return None
        return graph.add(node.op, (graph.add(op, node.inputs, attrs),), node.attrs)

    return rewrite


def _view_of_uniform(name: str) -> Rewrite:
    """A rearrangement of one value everywhere is that value in the new shape."""
    op = OPS[name]

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        node = inputs[0]
        source = node.inputs[0]
        if source.type.shape or (source.op.name != "const" and node.id < graph.opaque):
            return None
        shape = _infer(op, inputs, attrs).shape
        return apply("broadcast", source, shape=shape) if shape else source

    return rewrite


def _reduction_of_one(name: str) -> Rewrite:
    """A reduction over axes of extent 1 combines nothing."""
    op = OPS[name]

    def rewrite(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
        (x,) = inputs
        axes: tuple[int, ...] = attrs[0]
        if any(x.type.shape[a] != 1 for a in axes):
            return None
        result = reshape_to(x, _infer(op, inputs, attrs).shape)
        return _plus_zero(result) if name == "sum" else result

    return rewrite


def _plus_zero(x: Node) -> Node:
    # A sum starts from 0, so the sum of -0.0 alone is 0.0.
    return apply("add", x, constant_like(x, 0)) if x.type.dtype.is_float else x


def _sum_to_known(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
    """A sum to a shape, where it is known which axes are summed."""
    (x,), shape = inputs, attrs[0]
    if x.type.shape == shape:
        return _plus_zero(x)
    lead = len(x.type.shape) - len(shape)
    axes = list(range(lead))
    for axis, (have, want) in enumerate(zip(x.type.shape[lead:], shape, strict=True), lead):
        if have == want:
            continue
        if want != 1:
            return None
        axes.append(axis)
    return reshape_to(apply("sum", x, axes=tuple(axes)), shape)


def _constant_condition(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
    condition = uniform_array(inputs[0])
    return None if condition is None else inputs[1 if condition.item() else 2]


def _concat_of_one(graph: Graph, inputs: tuple[Node, ...], attrs: Attrs) -> Node | None:
    """Empty parts add nothing, and one part alone is the result."""
    kept = tuple(i for i in inputs if i.type.shape[attrs[0]] != 0)
    if len(kept) == 1:
        return kept[0] if _infer(OPS["concat"], inputs, attrs) == kept[0].type else None
    return None if len(kept) in (0, len(inputs)) else graph.add(OPS["concat"], kept, attrs)


def _named(
    name: str, roots: tuple[str, ...], make: Callable[[str], Rewrite], every: frozenset[str] | None = None
) -> list[Computed]:
    return [Computed(name, (root,), make(root), every) for root in roots]


FAMILIES: tuple[Computed, ...] = (
    Computed("where_constant", ("where",), _constant_condition),
    *_named("pointwise_of_scalars", _names(Kind.POINTWISE), _of_scalars, _CONSTANTS),
    *_named("pointwise_of_view", _names(Kind.POINTWISE), _of_view, _OUTWARD),
    *_named("view_of_uniform", ("reshape", "permute", "slice", "flip"), _view_of_uniform, frozenset(("broadcast",))),
    *_named("reduction_of_one", _REDUCTIONS, _reduction_of_one),
    Computed("sum_to_known", ("sum_to",), _sum_to_known),
    Computed("concat_of_one", ("concat",), _concat_of_one),
)

_FOLDED = _names(Kind.POINTWISE, Kind.VIEW, Kind.REDUCE, Kind.SCAN, Kind.CONTRACT, Kind.INDEXED)
# A broadcast of a scalar constant is the form constants are kept in.
FOLDING: tuple[Computed, ...] = tuple(
    _named("constant_folding", tuple(n for n in _FOLDED if n != "broadcast"), _of_constants, _CONSTANTS)
)
