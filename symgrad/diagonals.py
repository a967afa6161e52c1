"""Linear nodes for every row of an identity matrix, without arithmetic on its zeros."""

from __future__ import annotations

from collections.abc import Sequence

from symgrad.grad import building
from symgrad.graph import Node
from symgrad.ops.build import (
    apply,
    broadcast_to,
    constant_like,
    filled,
    permute_to,
    reshape_to,
    source,
    uniform_value,
)
from symgrad.types import int64, size_of
from symgrad.vectorize import again, batched


def for_every_element(outputs: Sequence[Node], seed: Node) -> list[Node]:
    """The outputs for a seed with a one at each of its elements and zeros elsewhere.

    The elements, in row-major order, are a leading axis of each result.
    """
    with building(seed.graph):
        diagonals = Diagonals(seed)
        identity = diagonals.matrix(seed)
        found = batched(seed.graph, outputs, {seed: identity}, diagonals.extent, diagonals.rebuilt)
        return [
            broadcast_to(o, (diagonals.extent, *o.shape)) if r is None else r
            for o, r in zip(outputs, found, strict=True)
        ]


class Diagonals:
    """Nodes computed from a seed element by element, zero where it is, where the seed takes every row of the identity.

    Such a node is a diagonal matrix, and is kept as its diagonal: the node for a seed of ones. Sums over all its
    elements, and contractions of all its axes, read the diagonal and never the zeros.
    """

    def __init__(self, seed: Node) -> None:
        graph = seed.graph
        self.extent = size_of(seed.shape)
        self.of: dict[Node, Node] = {seed: filled(graph, seed.shape, seed.dtype, 1)}
        index = source(graph, "iota", extent=self.extent, dtype=int64)
        table = (self.extent, self.extent)
        column = broadcast_to(reshape_to(index, (self.extent, 1)), table)
        self.mask = apply("equal", column, broadcast_to(index, table))

    def matrix(self, node: Node) -> Node:
        """A kept node with the leading axis written out."""
        shape = (self.extent, *node.shape)
        diagonal = broadcast_to(self.of[node], shape)
        return apply("where", reshape_to(self.mask, shape), diagonal, constant_like(diagonal, 0))

    def rebuilt(self, node: Node, live: Sequence[bool]) -> Node | None:
        """The node with the leading axis, by way of the diagonals of its inputs; None where there is no such way."""
        moving = [i for i, on in zip(node.inputs, live, strict=True) if on]
        if any(i not in self.of for i in moving):
            return None
        if _keeps_zeros(node, live):
            self.of[node] = _scaled(node, [self.of.get(i, i) for i in node.inputs], live)
            return self.matrix(node)
        whole = node.op.name == "sum" and len(node.attrs[0]) == node.inputs[0].ndim
        if whole or (node.op.name == "sum_to" and size_of(node.shape) == 1):
            return reshape_to(self.of[moving[0]], (self.extent, *node.shape))
        return self._contracted(node, live) if node.op.name == "contract" and len(moving) == 1 else None

    def _contracted(self, node: Node, live: Sequence[bool]) -> Node:
        """Row k of a product with a diagonal matrix: summed labels pick from the other operand, others from the row."""
        k = 0 if live[0] else 1
        diagonal, other = self.of[node.inputs[k]], node.inputs[1 - k]
        mine, theirs, out = node.attrs[k], node.attrs[1 - k], node.attrs[2]
        kept = [c for c in mine if c in out]
        order = [c for c in mine if c not in out] + [c for c in out if c in theirs]
        # The axes of the diagonal, then those of the output that the other operand has.
        extents = tuple(e if c in theirs else 1 for c, e in zip(out, node.shape, strict=True))
        thin = (*diagonal.shape, *extents)
        picked = (*(1 if c in kept else e for c, e in zip(mine, diagonal.shape, strict=True)), *extents)
        # An extent that one operand knows as a number may have a name in the other.
        rows = reshape_to(permute_to(other, [theirs.index(c) for c in order]), picked)
        rows = broadcast_to(rows, thin)
        if uniform_value(diagonal) != 1:
            factor = reshape_to(diagonal, (*diagonal.shape, *(1,) * node.ndim))
            rows = apply("multiply", rows, broadcast_to(factor, thin))
        if kept:
            full = (*diagonal.shape, *node.shape)
            rows = broadcast_to(rows, full)
            mask = self._equal_places(diagonal, mine, node, kept)
            rows = apply("where", broadcast_to(mask, full), rows, constant_like(rows, 0))
        return reshape_to(rows, (self.extent, *node.shape))

    def _equal_places(self, diagonal: Node, mine: str, node: Node, kept: Sequence[str]) -> Node:
        """Whether the axes of the diagonal and of the output with these labels are at the same place."""
        mask: Node | None = None
        extents = diagonal.shape + node.shape
        pairs = [(mine.index(c), diagonal.ndim + node.attrs[2].index(c)) for c in kept]
        axes = {axis for pair in pairs for axis in pair}
        thin = tuple(e if axis in axes else 1 for axis, e in enumerate(extents))
        for pair in pairs:
            places = [source(node.graph, "iota", extent=extents[axis], dtype=int64) for axis in pair]
            first, second = (
                broadcast_to(reshape_to(p, tuple(extents[axis] if k == axis else 1 for k in range(len(extents)))), thin)
                for p, axis in zip(places, pair, strict=True)
            )
            equal = apply("equal", first, second)
            mask = equal if mask is None else apply("logical_and", mask, equal)
        assert mask is not None
        return mask


def _keeps_zeros(node: Node, live: Sequence[bool]) -> bool:
    """Whether the output is zero, element by element in row-major order, where the inputs that are live are."""
    still = [i for i, on in zip(node.inputs, live, strict=True) if not on]
    match node.op.name:
        case "multiply" | "safe_multiply" | "negative" | "astype" | "reshape":
            return True
        case "add" | "subtract" | "phase":
            return all(uniform_value(i) == 0 for i in still)
        case "where":
            return not live[0] and all(uniform_value(i) == 0 for i in still[1:])
        case "divide":
            return not live[1]
        case _:
            return False


def _scaled(node: Node, operands: Sequence[Node], live: Sequence[bool]) -> Node:
    """A node on diagonals; a factor times a diagonal of ones is the factor."""
    if node.op.name in ("multiply", "safe_multiply") and not all(live):
        k = 0 if live[0] else 1
        if uniform_value(operands[k]) == 1:
            return operands[1 - k]
    return again(node, operands)
