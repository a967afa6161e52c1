"""The table of all operators: `symgrad/docs/operators.md`, made from the operators, their cases and the record of
verified derivatives."""

# pyright: basic
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from op_cases import CASES, FLAT

import symgrad as sg
from symgrad.graph import Graph, Node
from symgrad.opdef import OPS, Kind, OpDef
from symgrad.storage import Literal
from symgrad.types import DTYPES, DType, Type

DOCS = Path(sg.__file__).parent / "docs"
PAGE = DOCS / "operators.md"
VERIFIED = DOCS / "verified.json"

_INTRODUCTION = """\
# Operators

Every node of a graph is one of these operators on other nodes. This page is generated from their definitions in
`symgrad/ops/` and from the cases they are tested on
(`SYMGRAD_UPDATE_GOLDEN=1 python -m pytest tests/test_operator_table.py`).

- **Data types** of operands and result: a letter stands for any of the types behind it, equal letters for equal types;
  `int` and `uint` are those of 8 to 64 bits, `float` is `float32` and `float64`.
- **Derivative**: `rule` has a reverse rule made of operators, `linear` is linear besides, so that forward mode applies
  the operator itself to tangents; of `zero` the gradient is 0.
- **Verified order** in `float64` and `float32`: up to this order derivatives at 50 random points and at all points of
  the [conventions](gradients.md) are right. The graph in 50-digit arithmetic agrees with 50-digit differences to 1e-20,
  by reverse mode over reverse mode, forward over reverse and reverse over forward. Compiled, it agrees with the
  50-digit value to 1e-10 in `float64` and 1e-5 in `float32`, relative, with 1 in place of smaller values.
"""


def verified() -> dict[str, dict[str, int]]:
    """The verified order of each operator in each data type, as it is recorded."""
    return json.loads(VERIFIED.read_text(encoding="utf-8"))["verified_order"]


def page() -> str:
    """The page as it is generated now."""
    orders = verified()
    lines = ["| operator | kind | data types | attributes | derivative | verified order | meaning |", "|" + "---|" * 7]
    for op in sorted(OPS.values(), key=lambda op: op.name):
        of = orders.get(op.name)
        shown = f"{of['float64']}, {of['float32']}" if of else ""
        attrs = ", ".join(f"`{a}`" for a in op.attrs)
        cells = (f"`{op.name}`", op.kind.value, _types(op), attrs, _derivative(op), shown, op.doc)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return _INTRODUCTION + "\n" + "\n".join(lines) + "\n"


def _derivative(op: OpDef) -> str:
    if op.vjp is None or op.kind is Kind.SOURCE:
        return ""
    if op.name in FLAT:
        return "zero"
    return "linear" if op.linear else "rule"


def _types(op: OpDef) -> str:
    """The data types an operator takes and gives, those that are always equal under one letter."""
    nodes = _applications(op)
    results = tuple(n.dtype for n in nodes)
    if op.kind is Kind.SOURCE:
        return f"→ {_named(_accepted(nodes[0], ()) | set(results))}"
    if len({len(n.inputs) for n in nodes}) > 1:
        assert all(i.dtype is n.dtype for n in nodes for i in n.inputs), op.name
        return f"T … → T; T: {_named(set(results))}"
    columns = list(zip(*([i.dtype for i in n.inputs] for n in nodes), strict=True))
    letters: dict[tuple[int, tuple[DType, ...]], str] = {}
    words: list[str] = []
    explained: list[str] = []
    for k, column in enumerate(columns):
        # Columns that are always equal are one; one that never changes stands for itself.
        key = (k if len(set(column)) == 1 else -1, column)
        accepted = _accepted(nodes[0], [j for j, other in enumerate(columns) if other == column and key[0] in (-1, j)])
        accepted |= set(column)
        if len(accepted) == 1:
            words.append(column[0].name)
            continue
        if key not in letters:
            letters[key] = "TIUV"[len(letters)]
            explained.append(f"{letters[key]}: {_named(accepted)}")
        words.append(letters[key])
    result = letters.get((-1, results)) or ("dtype" if "dtype" in op.attrs else _named(set(results)))
    return "; ".join([f"{' '.join(words)} → {result}", *explained])


def _applications(op: OpDef) -> list[Node]:
    """An application of the operator for each combination of data types of its cases."""
    found: dict[tuple[DType, ...], Node] = {}
    for case in CASES[op.name]:
        graph = Graph(rules={})
        node = case.build(graph, [graph.input(f"x{k}", o.shape, o.dtype) for k, o in enumerate(case.operands)])
        assert node.op is op
        found.setdefault((*(i.dtype for i in node.inputs), node.dtype), node)
    return list(found.values())


def _accepted(node: Node, places: Sequence[int]) -> set[DType]:
    """The data types the type rule accepts for these inputs at once, or gives to a node without inputs."""
    old = node.inputs[places[0]].dtype if places else node.dtype
    found: set[DType] = set()
    for dtype in DTYPES.values():
        types = [Type(i.shape, dtype) if k in places else i.type for k, i in enumerate(node.inputs)]
        attrs = [_with_dtype(value, old, dtype) for value in node.attrs]
        try:
            result = node.op.infer(*types, **dict(zip(node.op.attrs, attrs, strict=True)))
        except sg.SymgradError:
            continue
        found.add(dtype if places else result.dtype)
    return found


def _with_dtype(value: object, old: DType, new: DType) -> object:
    if value is old:
        return new
    if isinstance(value, Literal) and value.array.dtype == old.np:
        return Literal(value.array.astype(new.np))
    return value


def _named(dtypes: set[DType]) -> str:
    """The data types in words: whole classes by their name."""
    words: list[str] = []
    for kind, word in (("b", "bool"), ("i", "int"), ("u", "uint"), ("f", "float")):
        members = [d for d in DTYPES.values() if d.kind == kind]
        inside = [d.name for d in members if d in dtypes]
        words += [word] if len(inside) == len(members) else inside
    return " ".join(words)
