"""Sums of products of two operands."""

from __future__ import annotations

import string

from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node
from symgrad.opdef import Kind, defop
from symgrad.ops.build import apply, reshape_to
from symgrad.ops.references import arithmetic, contracted_values
from symgrad.ops.view import same_extent
from symgrad.types import Extent, Type


def _contract_type(a: Type, b: Type, left: str, right: str, out: str) -> Type:
    if a.dtype is not b.dtype:
        raise DTypeError(f"data types {a.dtype} and {b.dtype} differ; use astype")
    if a.dtype.kind == "b":
        raise DTypeError("not defined for bool; use astype")
    extents: dict[str, Extent] = {}
    for labels, operand in ((left, a), (right, b)):
        if len(labels) != operand.ndim or len(set(labels)) != len(labels):
            raise ShapeError(f"labels {labels!r} must be distinct, one for each dimension of {operand.shape}")
        for label, extent in zip(labels, operand.shape, strict=True):
            joined = same_extent((extents.get(label, extent), extent))
            if joined is None:
                raise ShapeError(
                    f"shapes {a.shape} and {b.shape} do not contract: "
                    f"{label!r} is {extents[label]} in {left!r} and {extent} in {right!r}"
                )
            extents[label] = joined
    shared = set(left) & set(right)
    if len(set(out)) != len(out) or any(label not in extents for label in out):
        raise ShapeError(f"output labels {out!r} must be distinct labels of {left!r} or {right!r}")
    if any(label not in shared and label not in out for label in extents):
        raise ShapeError(f"a label that is summed must be in both operands: {left},{right}->{out}")
    if any(label not in string.ascii_letters for label in extents):
        raise ShapeError(f"labels must be letters: {left},{right}->{out}")
    return Type(tuple(extents[label] for label in out), a.dtype)


def _contract_vjp(n: Node, g: Node) -> tuple[Node | None, ...]:
    a, b = n.inputs
    left, right, out = n.attrs
    # An extent that one operand knows as a number may have a name in the other.
    return (
        reshape_to(apply("contract", g, b, left=out, right=right, out=left), a.shape),
        reshape_to(apply("contract", a, g, left=left, right=out, out=right), b.shape),
    )


defop(
    "contract",
    Kind.CONTRACT,
    attrs=("left", "right", "out"),
    infer=_contract_type,
    vjp=_contract_vjp,
    ref=arithmetic(contracted_values),
    doc="The sum over labels that are not in `out` of the products of elements with equal labels.",
)
