"""How the text and the tensors of a file become a program again, every field checked.

The checks are all there is between a hostile file and the graph: nothing is trusted that is not looked at here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

import symgrad.ops  # noqa: F401  # pyright: ignore[reportUnusedImport] fills the operator table
from symgrad.container import from_little_endian, parse_json
from symgrad.encode import FORMAT, MAX_DIM_ATOMS, Json, attr_form, dim_cost
from symgrad.errors import FileLoc, FormatError, SymgradError
from symgrad.graph import DEFAULT_REWRITES, NAMED, STATEFUL, Graph, Node, Origin
from symgrad.opdef import OPS
from symgrad.program import Program
from symgrad.storage import Literal, Storage
from symgrad.types import (
    DTYPES,
    Atom,
    Dim,
    DType,
    Extent,
    Joint,
    Monomial,
    Quotient,
    Shape,
    Type,
    floor_quotient,
    joint_extent,
)

if TYPE_CHECKING:
    from symgrad.types import Array

T = TypeVar("T")

_MAX_RANK = 64
_MAX_INTEGER = 2**63
_MAX_POWER = 16
_MAX_SHAPE_TERMS = 4096
_MAX_INLINED_NODES = 100_000_000
# What a type rule may raise for attributes no array function would build.
_RULE_ERRORS = (SymgradError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def decode(text: str, tensors: Mapping[str, Array]) -> Program:
    """The program of a text and the tensors beside it. FormatError says what is wrong and where."""
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("program: a lone surrogate is not text") from None
    document = parse_json(encoded, "program")
    # The version first: another one may have other fields.
    version = cast("dict[str, Any]", document).get("format") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT:
        raise FormatError(f"program, format: this symgrad reads format {FORMAT}, the file has {version!r}")
    fields = _object(document, ("format", "dims", "types", "literals", "places", "programs"))
    reader = _Reader(tensors)
    for table in ("dims", "types", "literals", "places", "programs"):
        read = cast("Callable[[Json], Any]", getattr(reader, f"read_{table}"[:-1]))
        for index, record in enumerate(_at(table, _list, fields[table])):
            reader.tables[table].append(_at(f"{table}[{index}]", read, record))
    if not reader.tables["programs"]:
        raise FormatError("programs: the file has no program")
    if unused := [name for name in tensors if name not in reader.used]:
        raise FormatError(f"tensor {unused[0]!r} is not used by the program")
    return reader.tables["programs"][-1]


def _at(where: str, read: Callable[[Json], T], value: Json) -> T:
    try:
        return read(value)
    except FormatError as error:
        raise FormatError(f"{where}: {error}") from None


@dataclass(slots=True)
class _Reader:
    """The tables of a file while it is read. Every method raises FormatError for what it does not accept."""

    tensors: Mapping[str, Array]
    used: dict[str, None] = field(default_factory=dict[str, None])
    tables: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in ("dims", "types", "literals", "places", "programs")}
    )
    costs: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    inlined: dict[int, int] = field(default_factory=dict[int, int])

    def entry(self, table: str, value: Json) -> Any:
        return _entry(self.tables[table], value, table)

    def attr(self, form: str, value: Json) -> Any:
        match form:
            case "text":
                return _text(value)
            case "integer":
                return _integer(value)
            case "flag":
                return _flag(value)
            case "integers":
                return tuple([_integer(v) for v in _list(value)])
            case "dtype":
                return _dtype(value)
            case "extent":
                return self.extent(value, 0)
            case "extents":
                return self.shape(value)
            case "literal":
                return self.entry("literals", value)
            case "program":
                return self.entry("programs", value)
            case _:
                raise FormatError(f"no attribute is stored as {form}")

    def take_tensor(self, value: Json) -> Array:
        name = _text(value)
        if name not in self.tensors:
            raise FormatError(f"tensor {name!r} is missing")
        # Each once: a file cannot make many copies of one tensor.
        if name in self.used:
            raise FormatError(f"tensor {name!r} is used twice")
        self.used[name] = None
        return self.tensors[name]

    def extent(self, value: Json, low: int = -_MAX_INTEGER) -> Extent:
        if not isinstance(value, list):
            return _integer(value, low)
        return self.entry("dims", _list(value, 1)[0])

    def shape(self, value: Json) -> Shape:
        shape = tuple([self.extent(v, 0) for v in _list(value)])
        if len(shape) > _MAX_RANK:
            raise FormatError(f"{len(shape)} extents, more than {_MAX_RANK}")
        if math.prod(len(d.terms) for d in shape if isinstance(d, Dim)) > _MAX_SHAPE_TERMS:
            raise FormatError(f"the size of a shape has more than {_MAX_SHAPE_TERMS} terms")
        return shape

    def read_dim(self, record: Json) -> Dim:
        terms: list[tuple[Monomial, int]] = []
        for term in _list(record):
            factor, atoms = _list(term, 2)
            pairs = [_list(pair, 2) for pair in _list(atoms)]
            monomial = tuple([(self.atom(atom), _integer(power, 1, _MAX_POWER)) for atom, power in pairs])
            terms.append((monomial, _integer(factor)))
        cost = dim_cost(record, self.costs)
        dim = Dim(tuple(terms))
        if _canonical(terms) != dim:
            raise FormatError("the extent is not in canonical form")
        self.costs.append(cost)
        return dim

    def atom(self, value: Json) -> Atom:
        if isinstance(value, str):
            return _text(value)
        kind, first, second = _list(value, 3)
        left, right = self.extent(first), self.extent(second)
        atom: Atom | None = None
        if kind == "quotient" and right != 0:
            atom = Quotient(left, right)
        elif kind == "joint" and isinstance(left, Dim) and isinstance(right, Dim):
            atom = Joint(left, right)
        # One that arithmetic would have simplified was not written by symgrad.
        if atom is None or _atom_extent(atom) != Dim(((((atom, 1),), 1),)):
            raise FormatError(f"{_brief(value)} is no part of an extent")
        return atom

    def read_type(self, record: Json) -> Type:
        dtype, shape = _list(record, 2)
        return Type(self.shape(shape), _dtype(dtype))

    def read_literal(self, record: Json) -> Literal:
        if isinstance(record, str):
            return Literal(self.take_tensor(record))
        dtype, shape, text = _list(record, 3)
        sizes = [_integer(d, 0) for d in _list(shape)]
        try:
            data = bytes.fromhex(_text(text))
        except ValueError:
            raise FormatError(f"{_brief(text)} is not hexadecimal") from None
        return Literal(from_little_endian(data, _dtype(dtype), sizes))

    def read_place(self, record: Json) -> FileLoc:
        file, line = _list(record, 2)
        return FileLoc(_text(file), _integer(line, 0))

    def read_program(self, record: Json) -> Program:
        fields = _object(
            record,
            ("name", "seed", "streams", "nodes", "inputs", "outputs", "output_names", "updates", "removed", "values"),
        )
        # No rules: a node must come out as it is written.
        graph = Graph(rules={}, seed=_integer(fields["seed"], -_MAX_INTEGER, 2 * _MAX_INTEGER))
        graph._streams = _integer(fields["streams"], 0)  # pyright: ignore[reportPrivateUsage] kept with the graph
        inlined = 0
        names: set[str] = set()
        for index, node in enumerate(_list(fields["nodes"])):
            inlined += _at(f"nodes[{index}]", lambda value: self.read_node(graph, value, names), node)
            if inlined > _MAX_INLINED_NODES:
                raise FormatError(f"nodes[{index}]: the calls amount to more than {_MAX_INLINED_NODES} nodes")
        graph.rules = DEFAULT_REWRITES
        graph.origin = None
        values = _object(fields["values"], [n.attrs[0] for n in graph.nodes if n.op.name in STATEFUL])
        for name, tensor in values.items():
            _at(f"values, {name!r}", lambda value: self.read_value(graph, graph.named(name), value), tensor)  # noqa: B023 called at once
        program = Program(
            graph,
            tuple(
                _at("inputs", lambda value: [_entry(graph.nodes, v, "nodes") for v in _list(value)], fields["inputs"])
            ),
            tuple(_at("outputs", lambda v: [_entry(graph.nodes, k, "nodes") for k in _list(v)], fields["outputs"])),
            tuple(_at("updates", lambda v: [_update(graph, pair) for pair in _list(v)], fields["updates"])),
            _at("output_names", _names, fields["output_names"]),
            _text(fields["name"]),
            tuple(_at("removed", lambda v: [_removed(pair) for pair in _list(v)], fields["removed"])),
        )
        _check_program(program)
        self.inlined[id(program)] = inlined
        return program

    def read_node(self, graph: Graph, record: Json, names: set[str]) -> int:
        """Add the node a record describes, and give how many nodes it stands for when calls are put in place."""
        name, inputs, attrs, type_index, place, scope, derived, order = _list(record, 8)
        op = OPS.get(name) if isinstance(name, str) else None
        if op is None:
            raise FormatError(f"no operator is named {_brief(name)}")
        sources = tuple([_entry(graph.nodes, i, "earlier nodes") for i in _list(inputs)])
        # A sum of that many has no stored form, and finding it would take long.
        if len({d for i in sources for d in i.shape if isinstance(d, Dim)}) > MAX_DIM_ATOMS:
            raise FormatError(f"{op.name} has inputs of more than {MAX_DIM_ATOMS} different symbolic extents")
        values: list[Any] = []
        for attr, value in zip(op.attrs, _list(attrs, len(op.attrs)), strict=True):
            form = attr_form(op.name, attr)
            values.append(_at(f"{op.name}, {attr}", lambda v: self.attr(form, v), value))  # noqa: B023 called at once
        graph.origin = Origin(
            None if place is None else self.entry("places", place),
            _text(scope),
            None if derived is None else _entry(graph.nodes, derived, "earlier nodes"),
            _integer(order, 0),
        )
        before = len(graph.nodes)
        try:
            node = graph.add(op, sources, tuple(values))
        except _RULE_ERRORS as error:
            raise FormatError(f"{op.name} does not take these inputs and attributes: {error}") from None
        if len(graph.nodes) == before:
            raise FormatError(f"{op.name} repeats nodes[{node.id}]")
        expected = self.entry("types", type_index)
        if node.type != expected:
            raise FormatError(f"{op.name} gives {node.type}, but the file says {expected}")
        if op.name in NAMED:
            _declare(graph, node, names)
        return 1 + sum(self.inlined[id(v)] for v in values if isinstance(v, Program))

    def read_value(self, graph: Graph, node: Node, value: Json) -> None:
        array = self.take_tensor(value)
        if array.shape != node.shape or array.dtype != node.dtype.np:
            raise FormatError(f"tensor {value!r} is {array.dtype}{list(array.shape)}, but the node is {node.type}")
        graph.adopt(node.attrs[0], node, Storage(array, graph.lock))


def _declare(graph: Graph, node: Node, names: set[str]) -> None:
    name = node.attrs[0]
    if not name or name in names:
        raise FormatError(f"{node.op.name}: the name {name!r} " + ("occurs twice" if name else "is empty"))
    names.add(name)
    graph.adopt(name, node)


def _check_program(program: Program) -> None:
    listed = {n.id for n in program.inputs}
    if len(listed) != len(program.inputs) or any(n.op.name != "input" for n in program.inputs):
        raise FormatError("inputs: expected different nodes, each an input")
    if missing := [n for n in program.nodes if n.op.name == "input" and n.id not in listed]:
        raise FormatError(f"inputs: the program reads {missing[0].name!r}, which is not listed")
    if program.output_names is not None and len(program.output_names) != len(program.outputs):
        raise FormatError(f"output_names: {len(program.output_names)} names for {len(program.outputs)} outputs")
    if len({old.id for old, _ in program.updates}) != len(program.updates):
        raise FormatError("updates: a param or state is updated twice")


def _update(graph: Graph, value: Json) -> tuple[Node, Node]:
    old, new = [_entry(graph.nodes, v, "nodes") for v in _list(value, 2)]
    if old.op.name not in STATEFUL or old.type != new.type:
        raise FormatError(f"{old.op.name} {old.type} cannot be updated with {new.type}")
    return old, new


def _names(value: Json) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple([_text(v) for v in _list(value)])
    if len(set(names)) != len(names):
        raise FormatError("a name occurs twice")
    return names


def _removed(value: Json) -> tuple[str, int]:
    name, count = _list(value, 2)
    return _text(name), _integer(count, 0)


def _canonical(terms: Sequence[tuple[Monomial, int]]) -> Extent:
    total: Extent = 0
    for monomial, factor in terms:
        product: Extent = factor
        for atom, power in monomial:
            for _ in range(power):
                product = product * _atom_extent(atom)
        total = total + product
    return total


def _atom_extent(atom: Atom) -> Extent:
    if isinstance(atom, Quotient):
        return floor_quotient(atom.numerator, atom.denominator)
    if isinstance(atom, Joint):
        # None only for unequal integers, and both sides are symbolic.
        return cast("Extent", joint_extent(atom.left, atom.right))
    return Dim.named(atom)


def _entry(table: Sequence[T], value: Json, what: str) -> T:
    if type(value) is not int or not 0 <= value < len(table):
        raise FormatError(f"{_brief(value)} is no index into the {len(table)} {what}")
    return table[value]


def _object(value: Json, keys: Sequence[str]) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise FormatError(f"expected an object, got {_brief(value)}")
    found = cast("dict[str, Any]", value)
    if wrong := sorted(set(found) ^ set(keys)):
        raise FormatError(f"the key {wrong[0]!r} is {'unknown' if wrong[0] in found else 'missing'}")
    return found


def _list(value: Json, length: int | None = None) -> list[Json]:
    if not isinstance(value, list) or (length is not None and len(cast("list[Any]", value)) != length):
        raise FormatError(f"expected a list{'' if length is None else f' of {length}'}, got {_brief(value)}")
    return cast("list[Any]", value)


def _flag(value: Json) -> bool:
    if not isinstance(value, bool):
        raise FormatError(f"{_brief(value)} is not true or false")
    return value


def _integer(value: Json, low: int = -_MAX_INTEGER, high: int = _MAX_INTEGER) -> int:
    if type(value) is not int or not low <= value <= high:
        raise FormatError(f"expected an integer from {low} to {high}, got {_brief(value)}")
    return value


def _text(value: Json) -> str:
    if not isinstance(value, str) or any("\ud800" <= c <= "\udfff" for c in value):
        raise FormatError(f"expected text, got {_brief(value)}")
    return value


def _dtype(value: Json) -> DType:
    found = DTYPES.get(value) if isinstance(value, str) else None
    if found is None:
        raise FormatError(f"no data type is named {_brief(value)}")
    return found


def _brief(value: Json) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
