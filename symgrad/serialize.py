"""Programs in files: one safetensors file with the graph as JSON text and the arrays as tensors.

The text stands in the header's metadata under `symgrad`. It is an object with

    format    1; a file of another format is refused
    dims      symbolic extents: [[factor, [[atom, power], ...]], ...], where an atom is a name,
              ["quotient", extent, extent] or ["joint", extent, extent]
    types     [data type, [extent, ...]], where an extent is an integer or [index into dims]
    literals  [data type, shape, hex of the bytes], or the name of a tensor
    places    [file, line] of the user's program
    programs  objects; each may call those before it, the last one is the program of the file

and a program is an object of name, seed, streams, inputs, outputs, output_names, updates, removed, values (the tensor
of each param and state) and nodes: [operator, inputs, attributes, type, place or null, scope, index of the node it is
the derivative of or null, order of the derivative]. Inputs are indexes of earlier nodes, so nothing can be cyclic.

Nothing in a file is code, and loading computes nothing but types: every node is inferred again and compared with what
the file says.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from symgrad import container
from symgrad.errors import FileLoc, FormatError, SymgradError
from symgrad.graph import DEFAULT_REWRITES, NAMED, STATEFUL, Graph, Literal, Node, Origin, Place, Storage, ancestors
from symgrad.opdef import OPS
from symgrad.program import Program
from symgrad.prune import Outputs, Phase, prune
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
Json: TypeAlias = Any

FORMAT = 1
_KEY = "symgrad"
_INLINE_BYTES = 64
_MAX_RANK = 64
_MAX_INTEGER = 2**63
# Extents are small polynomials. These bounds keep hostile ones from growing when shapes are multiplied or printed.
_MAX_DIM_ATOMS = 64
_MAX_DIM_DEPTH = 16
_MAX_POWER = 16
_MAX_SHAPE_TERMS = 4096
_MAX_INLINED_NODES = 100_000_000
# What a type rule may raise for attributes no array function would build.
_RULE_ERRORS = (SymgradError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError)


def export(
    path: container.Path,
    outputs: Outputs,
    inputs: Sequence[Node] | None = None,
    *,
    phase: Phase = "infer",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Prune to the outputs and write the result as one self-contained file.

    Outputs, inputs and phase are those of `prune`; `metadata` is text kept beside the program. An existing file is
    replaced at once or, when writing fails, left as it was. Equal programs give equal bytes. GraphError when an output
    needs an input that is not listed.
    """
    save_program(path, prune(outputs, inputs, phase), metadata=metadata)


def load(path: container.Path) -> Program:
    """The program in a file. FormatError says what is wrong with a file and where; no code in it is ever run."""
    return load_program(path)


def save_program(path: container.Path, program: Program, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a program with the current values of its params and states; see `export`."""
    texts = dict(metadata or {})
    if _KEY in texts:
        raise FormatError(f"the metadata key {_KEY!r} is taken by the program itself; choose another")
    writer = _Writer()
    text = writer.document(program)
    texts[_KEY] = container.canonical_json(text).decode("ascii")
    container.write(path, writer.tensors, texts)


def load_program(path: container.Path) -> Program:
    """The program in a file; see `load`."""
    contents = container.read(path)
    try:
        return _read(contents)
    except FormatError as error:
        raise FormatError(f"{os.fspath(path)}: {error}") from None


def read_metadata(path: container.Path) -> dict[str, str]:
    """The text that was stored beside the program of a file."""
    return {name: text for name, text in container.read(path).metadata.items() if name != _KEY}


@dataclass(frozen=True, slots=True)
class _Codec:
    """How the values of one attribute are written and read."""

    encode: Callable[[_Writer, Any], Json]
    decode: Callable[[_Reader, Json], Any]


_TEXT = _Codec(lambda writer, value: value, lambda reader, value: _text(value))
_INT = _Codec(lambda writer, value: value, lambda reader, value: _integer(value))
_INTS = _Codec(lambda writer, value: list(value), lambda reader, value: tuple([_integer(v) for v in _list(value)]))
_DTYPE = _Codec(lambda writer, value: value.name, lambda reader, value: _dtype(value))
_EXTENT = _Codec(lambda writer, value: writer.extent(value), lambda reader, value: reader.extent(value, 0))
_SHAPE = _Codec(lambda writer, value: [writer.extent(d) for d in value], lambda reader, value: reader.shape(value))
_LITERAL = _Codec(lambda writer, value: writer.literal(value), lambda reader, value: reader.entry("literals", value))
_PROGRAM = _Codec(lambda writer, value: writer.callee(value), lambda reader, value: reader.entry("programs", value))

ATTRS: dict[str, _Codec] = {
    "name": _TEXT,
    "shape": _SHAPE,
    "dtype": _DTYPE,
    "value": _LITERAL,
    "extent": _EXTENT,
    "axis": _INT,
    "axes": _INTS,
    "steps": _INTS,
    "starts": _SHAPE,
    "stops": _SHAPE,
    "low": _SHAPE,
    "high": _SHAPE,
    "left": _TEXT,
    "right": _TEXT,
    "out": _TEXT,
    "word": _INT,
    "program": _PROGRAM,
}
"""How each attribute is stored, by its name, or by `operator.name` where operators differ."""


def _codec(op: str, attr: str) -> _Codec:
    codec = ATTRS.get(f"{op}.{attr}") or ATTRS.get(attr)
    if codec is None:
        raise FormatError(f"{op}: the attribute {attr} has no stored form; the program cannot be saved")
    return codec


class _Writer:
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
            [_codec(node.op.name, a).encode(self, v) for a, v in zip(node.op.attrs, node.attrs, strict=True)],
            self.type(node.type),
            None if node.loc is None else self.place(node.loc),
            node.scope,
            origin,
            node.order,
        ]

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
        if array.nbytes <= _INLINE_BYTES:
            record = [array.dtype.name, list(array.shape), container.little_endian(array).hex()]
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
            cost = _dim_cost(record, self.dim_costs)
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


def _dim_cost(terms: Json, costs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """How many atoms an extent has with its nested ones counted, and how deep they are nested."""
    atoms, depth = len(terms), 0
    for _, monomial in terms:
        for atom, _ in monomial:
            # A text is a name; a list names other extents after its kind, as integers or as [index].
            parts: list[Json] = [] if isinstance(atom, str) else atom[1:]
            nested = [costs[cast("list[int]", part)[0]] for part in parts if not isinstance(part, int)]
            atoms += 1 + sum(a for a, _ in nested)
            depth = max(depth, 1 + max((d for _, d in nested), default=0))
    if atoms > _MAX_DIM_ATOMS or depth > _MAX_DIM_DEPTH:
        raise FormatError(
            f"a symbolic extent of {atoms} atoms nested {depth} deep; "
            f"the format takes at most {_MAX_DIM_ATOMS} atoms nested {_MAX_DIM_DEPTH} deep"
        )
    return atoms, depth


def _read(contents: container.Contents) -> Program:
    text = contents.metadata.get(_KEY)
    if text is None:
        raise FormatError(f"the header's metadata has no {_KEY!r}: a file of tensors, but not a symgrad program")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise FormatError("program: a lone surrogate is not text") from None
    document = container.parse_json(encoded, "program")
    # The version first: another one may have other fields.
    version = cast("dict[str, Any]", document).get("format") if isinstance(document, dict) else None
    if type(version) is not int or version != FORMAT:
        raise FormatError(f"program, format: this symgrad reads format {FORMAT}, the file has {version!r}")
    fields = _object(document, ("format", "dims", "types", "literals", "places", "programs"))
    reader = _Reader(contents.tensors)
    for table in ("dims", "types", "literals", "places", "programs"):
        read = cast("Callable[[Json], Any]", getattr(reader, f"read_{table}"[:-1]))
        for index, record in enumerate(_at(table, _list, fields[table])):
            reader.tables[table].append(_at(f"{table}[{index}]", read, record))
    if not reader.tables["programs"]:
        raise FormatError("programs: the file has no program")
    if unused := [name for name in contents.tensors if name not in reader.used]:
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
        cost = _dim_cost(record, self.costs)
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
        return Literal(container.from_little_endian(data, _dtype(dtype), sizes))

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
        values: list[Any] = []
        for attr, value in zip(op.attrs, _list(attrs, len(op.attrs)), strict=True):
            codec = _codec(op.name, attr)
            values.append(_at(f"{op.name}, {attr}", lambda v: codec.decode(self, v), value))  # noqa: B023 called at once
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
