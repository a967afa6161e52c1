"""Sums of products: matmul, tensordot, vecdot, einsum."""

from __future__ import annotations

import string
from collections.abc import Sequence

from symgrad.errors import ShapeError
from symgrad.graph import Node, Operand, describe
from symgrad.indexing import diagonal_first
from symgrad.operators import apply, matmul, of_one_dtype, permute_to, reshape_to
from symgrad.ops.view import same_extent
from symgrad.shaping import normal_axis
from symgrad.types import Extent

__all__ = ["einsum", "matmul", "tensordot", "vecdot"]


def tensordot(a: Operand, b: Operand, axes: int | tuple[Sequence[int], Sequence[int]] = 2) -> Node:
    """The sum of products over the last axes of a and the first of b, or over pairs of axes."""
    a, b = of_one_dtype("tensordot", (a, b))
    if isinstance(axes, int):
        left, right = list(range(a.ndim - axes, a.ndim)), list(range(axes))
    else:
        left, right = list(axes[0]), list(axes[1])
    left, right = [normal_axis("tensordot", a, k) for k in left], [normal_axis("tensordot", b, k) for k in right]
    if len(left) != len(right):
        raise ShapeError(f"tensordot: {len(left)} axes of {describe(a)} and {len(right)} of {describe(b)}")
    if a.ndim + b.ndim > len(string.ascii_letters):
        raise ShapeError(f"tensordot: {describe(a)} and {describe(b)} have too many dimensions")
    labels = list(string.ascii_letters[: a.ndim + b.ndim])
    first, second = labels[: a.ndim], labels[a.ndim :]
    for k, j in zip(left, right, strict=True):
        second[j] = first[k]
    out = [x for k, x in enumerate(first) if k not in left] + [x for k, x in enumerate(second) if k not in right]
    return apply("contract", a, b, left="".join(first), right="".join(second), out="".join(out))


def vecdot(a: Operand, b: Operand, axis: int = -1) -> Node:
    """The sum of products along one axis of both, counted from the end; the other axes broadcast."""
    a, b = of_one_dtype("vecdot", (a, b))
    if axis >= 0:
        raise ShapeError(f"vecdot: the axis must be negative, because the other axes broadcast; got {axis}")
    spec = [f"...{_tail(-axis)}", f"...{_tail(-axis)}", f"...{_tail(-axis)[1:]}"]
    normal_axis("vecdot", a, axis)
    normal_axis("vecdot", b, axis)
    return einsum(f"{spec[0]},{spec[1]}->{spec[2]}", a, b)


def _tail(count: int) -> str:
    return string.ascii_lowercase[:count]


def einsum(subscripts: str, *operands: Operand) -> Node:
    """The sum of products that labels describe, as `numpy.einsum`: `einsum("bik,bkj->bij", x, y)`.

    Any number of operands, contracted in pairs from left to right; an ellipsis stands for axes that broadcast. A label
    that occurs twice in one operand takes its diagonal: `einsum("ii->", x)` is the trace. Without `->` the result has
    the labels that occur once, in alphabetical order. ShapeError for extents that differ.
    """
    nodes = of_one_dtype("einsum", operands)
    terms, out = _parse(subscripts, nodes)
    for k, (term, node) in enumerate(zip(terms, nodes, strict=True)):
        terms[k], nodes[k] = _diagonals(subscripts, term, node)
    extents = _extents(subscripts, terms, nodes)
    # An axis of extent 1 under a label that is longer elsewhere only broadcasts: drop it.
    for k, (term, node) in enumerate(zip(terms, nodes, strict=True)):
        kept = [j for j, label in enumerate(term) if node.shape[j] != 1 or extents[label] == 1]
        terms[k], nodes[k] = "".join(term[j] for j in kept), reshape_to(node, tuple(node.shape[j] for j in kept))
    term, node = terms[0], nodes[0]
    for k in range(1, len(nodes)):
        wanted = out + "".join(terms[k + 1 :])
        term, node = _sum_labels(term, node, terms[k] + wanted)
        other_term, other = _sum_labels(terms[k], nodes[k], term + wanted)
        joined = term + "".join(x for x in other_term if x not in term)
        kept_labels = out if k == len(nodes) - 1 else "".join(x for x in joined if x in wanted)
        node = apply("contract", node, other, left=term, right=other_term, out=kept_labels)
        term = kept_labels
    term, node = _sum_labels(term, node, out)
    return permute_to(node, [term.index(label) for label in out])


def _diagonals(subscripts: str, term: str, node: Node) -> tuple[str, Node]:
    """The term and operand with every label once."""
    for label in sorted({x for x in term if term.count(x) > 1}):
        axes = [k for k, x in enumerate(term) if x == label]
        extent = same_extent([node.shape[k] for k in axes])
        if extent is None:
            listed = ", ".join(str(node.shape[k]) for k in axes)
            raise ShapeError(f"einsum: label {label!r} of {subscripts!r} is {listed} in {describe(node)}")
        # Extents that turn out to differ are reported by the reshape.
        node = reshape_to(node, tuple(extent if k in axes else e for k, e in enumerate(node.shape)))
        node = diagonal_first(node, axes)
        term = label + term.replace(label, "")
    return term, node


def _sum_labels(term: str, node: Node, wanted: str) -> tuple[str, Node]:
    """The sum over the labels nobody wants."""
    axes = tuple(k for k, label in enumerate(term) if label not in wanted)
    if not axes:
        return term, node
    return "".join(label for label in term if label in wanted), apply("sum", node, axes=axes)


def _parse(subscripts: str, nodes: Sequence[Node]) -> tuple[list[str], str]:
    """One letter for each axis of each operand, and those of the result."""
    text = subscripts.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(nodes):
        raise ShapeError(f"einsum: {subscripts!r} has {len(terms)} terms for {len(nodes)} operands")
    free = [x for x in string.ascii_letters if x not in text]
    widest = ""
    for k, (term, node) in enumerate(zip(terms, nodes, strict=True)):
        head, dots, tail = term.partition("...")
        count = node.ndim - len(head) - len(tail)
        if count < 0 or (count and not dots) or count > len(free):
            raise ShapeError(f"einsum: term {term!r} of {subscripts!r} does not fit {describe(node)}")
        spread = "".join(free[:count])[::-1] if dots else ""
        widest = spread if len(spread) > len(widest) else widest
        terms[k] = head + spread + tail
    labels = "".join(terms)
    out = result.replace("...", widest)
    if not arrow:
        out = widest + "".join(sorted(x for x in set(labels) if labels.count(x) == 1 and x not in widest))
    if any(not x.isalpha() or not x.isascii() for x in labels + out):
        raise ShapeError(f"einsum: labels must be letters in {subscripts!r}")
    if len(set(out)) != len(out) or any(x not in labels for x in out):
        raise ShapeError(f"einsum: the result labels of {subscripts!r} must be distinct labels of the operands")
    return terms, out


def _extents(subscripts: str, terms: Sequence[str], nodes: Sequence[Node]) -> dict[str, Extent]:
    extents: dict[str, Extent] = {}
    for term, node in zip(terms, nodes, strict=True):
        for label, extent in zip(term, node.shape, strict=True):
            known = extents.get(label, 1)
            if extent not in (1, known) and known != 1 and isinstance(known, int) and isinstance(extent, int):
                raise ShapeError(
                    f"einsum: label {label!r} of {subscripts!r} is {known} and, in {describe(node)}, {extent}"
                )
            extents[label] = extent if known == 1 else known
    return extents
