"""One record per operator: its name, attributes, type rule, derivative rule and reference meaning."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from symgrad.record import record
from symgrad.types import Type

if TYPE_CHECKING:
    from symgrad.graph import Node

Infer: TypeAlias = Callable[..., Type]
Vjp: TypeAlias = "Callable[[Node, Node], tuple[Node | None, ...]]"
Reference: TypeAlias = Callable[..., Any]


class Kind(enum.Enum):
    """How an operator is lowered."""

    SOURCE = "source"  # no inputs
    POINTWISE = "pointwise"  # one output element from the input elements at the same index
    VIEW = "view"  # output elements are input elements, or a fill, at an index that depends on the output index alone
    REDUCE = "reduce"  # output elements combine the input elements along axes
    CONTRACT = "contract"  # sums of products
    SCAN = "scan"  # output elements combine the input elements up to their place along an axis
    INDEXED = "indexed"  # the index depends on the data
    CONTROL = "control"  # sub-programs, phases, gradient control; gone before code generation


@record(eq=False)
class OpDef:
    """An operator.

    `infer(*types, **attrs)` gives the output type or raises. `vjp(node, cotangent)` gives one cotangent or None per
    input, written in graph operators; `None` instead of the rule means that the operator has no derivative, and an
    error is raised when one is asked for. `ref(*arrays, **attrs)` is the meaning, in NumPy. `linear` says that the
    output is jointly linear in the floating inputs, so that forward mode applies the operator to tangents.
    `commutative` lets construction put the two inputs in canonical order.
    """

    name: str
    kind: Kind
    attrs: tuple[str, ...]
    infer: Infer
    vjp: Vjp | None
    ref: Reference | None
    linear: bool = False
    commutative: bool = False
    doc: str = ""

    def __repr__(self) -> str:
        return f"<op {self.name}>"

    def __reduce__(self) -> tuple[Callable[[str], OpDef], tuple[str]]:
        return op_named, (self.name,)


OPS: dict[str, OpDef] = {}


def op_named(name: str) -> OpDef:
    """The operator with this name; KeyError when there is none."""
    return OPS[name]


def defop(
    name: str,
    kind: Kind,
    *,
    infer: Infer,
    vjp: Vjp | None = None,
    ref: Reference | None = None,
    attrs: tuple[str, ...] = (),
    linear: bool = False,
    commutative: bool = False,
    doc: str = "",
) -> OpDef:
    """Define an operator and enter it in the table. Called at import only."""
    if name in OPS:
        raise ValueError(f"operator {name} is defined twice")
    OPS[name] = op = OpDef(name, kind, attrs, infer, vjp, ref, linear, commutative, doc)
    return op
