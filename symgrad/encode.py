"""How programs become the text and the tensors of a file; see `symgrad.serialize` for the format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from symgrad.container import little_endian
from symgrad.errors import FileLoc, FormatError
from symgrad.graph import STATEFUL, Node, Place, ancestors
from symgrad.program import Program
from symgrad.storage import Literal
from symgrad.types import Atom, Dim, Extent, Quotient, Type

if TYPE_CHECKING:
    from symgrad.types import Array

Json: TypeAlias = Any

FORMAT = 1
INLINE_BYTES = 64
"""Constants up to this size stand in the text, larger ones are tensors."""

# Extents are small polynomials. These bounds keep hostile ones from growing when shapes are multiplied or printed.
MAX_DIM_ATOMS = 64
MAX_DIM_DEPTH = 16

ATTRS = {
    "name": "text",
    "shape": "extents",
    "dtype": "dtype",
    "value": "literal",
    "extent": "extent",
    "axis": "integer",
    "axes": "integers",
    "step": "integer",
    "steps": "integers",
    "sizes": "integers",
    "strides": "integers",
    "dilations": "integers",
    "extents": "extents",
    "starts": "extents",
    "stops": "extents",
    "low": "extents",
    "high": "extents",
    "left": "text",
    "right": "text",
    "out": "text",
    "word": "integer",
    "program": "program",
    "count": "integer",
    "wrt": "integers",
    "modes": "text",
    "side": "text",
    "descending": "flag",
}
"""How each attribute is stored, by its name, or by `operator.name` where operators differ."""


def attr_form(op: str, attr: str) -> str:
    """How an attribute of an operator is stored; FormatError when it cannot be."""
    form = ATTRS.get(f"{op}.{attr}") or ATTRS.get(attr)
    if form is None:
        raise FormatError(f"{op}: the attribute {attr} has no stored form; the program cannot be saved")
    return form


class Writer:
    """The tables of a file while it is written. Entries are in the order of first use, so equal programs agree."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self.dims: dict[Dim, int] = {}
        self.dim_records: list[Json] = []
        self.dim_costs: list[tuple[int, int]] = []
        self.types: dict[Type, int] = {}
        self.type_records: list[Json] = []
        self.literals: dict[Literal, int] = {}
        self.literal_records: list[Json] = []
        self.places: dict[tuple[str, int], int] = {}
        self.lines: dict[tuple[int, int], tuple[str, int]] = {}
        self.programs: list[Program] = []

    def document(self, program: Program) -> Json:
        self.programs = _callees_first(program)
        records = [self.program(p, index) for index, p in enumerate(self.programs)]
        return {
            "format": FORMAT,
            "dims": self.dim_records,
            "types": self.type_records,
            "literals": self.literal_records,
            "places": [list(place) for place in self.places],
            "programs": records,
        }

    def program(self, program: Program, index: int) -> Json:
        nodes = _stored_nodes(program)
        places = {node.id: k for k, node in enumerate(nodes)}
        prefix = "" if index == len(self.programs) - 1 else f"program{index}/"
        return {
            "name": program.name,
            "seed": program.graph.seed,
            "streams": program.graph._streams,  # pyright: ignore[reportPrivateUsage] kept with the graph
            "nodes": [self.node(node, places) for node in nodes],
            "inputs": [places[n.id] for n in program.inputs],
            "outputs": [places[n.id] for n in program.outputs],
            "output_names": None if program.output_names is None else list(program.output_names),
            "updates": [[places[old.id], places[new.id]] for old, new in program.updates],
            "removed": [list(pair) for pair in program.removed],
            "values": {n.attrs[0]: self.tensor(prefix + n.attrs[0], n.value) for n in nodes if n.op.name in STATEFUL},
        }

    def node(self, node: Node, places: dict[int, int]) -> Json:
        index = places[node.id]
        origin = places.get(node.gradient_of.id) if node.gradient_of is not None else None
        if origin is not None and (origin >= index or node.gradient_of.graph is not node.graph):  # pyright: ignore[reportOptionalMemberAccess] origin implies it
            origin = None
        return [
            node.op.name,
            [places[i.id] for i in node.inputs],
            [self.attr(attr_form(node.op.name, a), v) for a, v in zip(node.op.attrs, node.attrs, strict=True)],
            self.type(node.type),
            None if node.loc is None else self.place(node.loc),
            node.scope,
            origin,
            node.order,
        ]

    def attr(self, form: str, value: Any) -> Json:
        match form:
            case "text" | "integer" | "flag":
                return value
            case "integers":
                return list(value)
            case "dtype":
                return value.name
            case "extent":
                return self.extent(value)
            case "extents":
                return [self.extent(d) for d in value]
            case "literal":
                return self.literal(value)
            case "program":
                return self.callee(value)
            case _:
                raise FormatError(f"no attribute is stored as {form}")

    def callee(self, program: Program) -> int:
        return next(k for k, p in enumerate(self.programs) if p is program)

    def tensor(self, name: str, array: Array) -> str:
        while name in self.tensors or name == "__metadata__":
            name += "_"
        self.tensors[name] = array
        return name

    def literal(self, literal: Literal) -> int:
        if (found := self.literals.get(literal)) is not None:
            return found
        array = literal.array
        record: Json
        if array.nbytes <= INLINE_BYTES:
            record = [array.dtype.name, list(array.shape), little_endian(array).hex()]
        else:
            record = self.tensor(f"const{len(self.literals)}", array)
        self.literal_records.append(record)
        self.literals[literal] = len(self.literals)
        return len(self.literals) - 1

    def type(self, type: Type) -> int:
        if (found := self.types.get(type)) is not None:
            return found
        self.type_records.append([type.dtype.name, [self.extent(d) for d in type.shape]])
        self.types[type] = len(self.types)
        return len(self.types) - 1

    def place(self, place: Place) -> int:
        key = (place.file, place.line) if isinstance(place, FileLoc) else self.line(place)
        # The folders of the machine that wrote a file are nobody's business.
        return self.places.setdefault((os.path.basename(key[0]), key[1]), len(self.places))

    def line(self, place: Any) -> tuple[str, int]:
        key = (id(place.code), place.instruction)
        if key not in self.lines:
            self.lines[key] = (place.file, place.line)
        return self.lines[key]

    def extent(self, extent: Extent) -> Json:
        if isinstance(extent, int):
            return extent
        if (found := self.dims.get(extent)) is None:
            record = [[factor, [[self.atom(a), power] for a, power in m]] for m, factor in extent.terms]
            cost = dim_cost(record, self.dim_costs)
            found = self.dims[extent] = len(self.dim_records)
            self.dim_records.append(record)
            self.dim_costs.append(cost)
        return [found]

    def atom(self, atom: Atom) -> Json:
        if isinstance(atom, str):
            return atom
        if isinstance(atom, Quotient):
            return ["quotient", self.extent(atom.numerator), self.extent(atom.denominator)]
        return ["joint", self.extent(atom.left), self.extent(atom.right)]


def _stored_nodes(program: Program) -> list[Node]:
    return ancestors((*program.roots, *program.inputs, *program.states))


def _callees_first(program: Program) -> list[Program]:
    """The program and every one it calls, each after those it calls itself."""
    done: dict[int, Program] = {}
    stack = [program]
    while stack:
        top = stack[-1]
        waiting = [c for c in _callees(top) if id(c) not in done]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        done.setdefault(id(top), top)
    return list(done.values())


def _callees(program: Program) -> list[Program]:
    return [value for node in _stored_nodes(program) for value in node.attrs if isinstance(value, Program)]


def dim_cost(terms: Json, costs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many atoms an extent has with its nested ones counted, and how deep they are nested."""
    atoms, depth = len(terms), 0
    for _, monomial in terms:
        for atom, _ in monomial:
            # A text is a name; a list names other extents after its kind, as integers or as [index].
            parts: list[Json] = [] if isinstance(atom, str) else atom[1:]
            nested = [costs[cast("list[int]", part)[0]] for part in parts if not isinstance(part, int)]
            atoms += 1 + sum(a for a, _ in nested)
            depth = max(depth, 1 + max((d for _, d in nested), default=0))
    if atoms > MAX_DIM_ATOMS or depth > MAX_DIM_DEPTH:
        raise FormatError(
            f"a symbolic extent of {atoms} atoms nested {depth} deep; "
            f"the format takes at most {MAX_DIM_ATOMS} atoms nested {MAX_DIM_DEPTH} deep"
        )
    return atoms, depth
