"""Nodes and the append-only, interned graph that owns them."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from symgrad import types
from symgrad.errors import DTypeError, FileLoc, GraphError, Loc, ShapeError, SymgradError, user_loc
from symgrad.opdef import OPS, OpDef
from symgrad.printer import nodes_text
from symgrad.record import record
from symgrad.storage import Literal, Storage, graph_lock
from symgrad.types import DType, Extent, Shape, Type, as_dtype

if TYPE_CHECKING:
    import networkx as nx

    from symgrad.types import Array, DTypeLike

Attrs: TypeAlias = tuple[Any, ...]
Place: TypeAlias = Loc | FileLoc
Rewrite: TypeAlias = "Callable[[Graph, tuple[Node, ...], Attrs], Node | None]"


@record
class Origin:
    """What nodes made now descend from: a place, a scope, and for derivatives a node and an order."""

    loc: Place | None
    scope: str = ""
    gradient_of: Node | None = None
    order: int = 0


class Node:
    """One value of a graph: an operator applied to nodes. Immutable; operators and indexing make new nodes."""

    __slots__ = ("attrs", "gradient_of", "graph", "id", "inputs", "loc", "op", "order", "scope", "type")
    graph: Graph
    id: int
    op: OpDef
    inputs: tuple[Node, ...]
    attrs: Attrs
    type: Type
    loc: Place | None
    scope: str
    gradient_of: Node | None
    order: int

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        return len(self.type.shape)

    @property
    def size(self) -> Extent:
        """The number of elements: an int, or an extent where the shape has symbolic ones."""
        return types.size_of(self.type.shape)

    @property
    def name(self) -> str | None:
        """The name of an input, param or state; None for other nodes."""
        return self.attrs[0] if self.op.name in NAMED else None

    @property
    def value(self) -> Array:
        """A copy of the current value of a param or state."""
        return self._storage().read()

    @value.setter
    def value(self, value: Array) -> None:
        storage = self._storage()
        array = _array(f"{self.name}.value", value)
        if array.shape != self.shape:
            raise ShapeError(f"{describe(self)}: its value has shape {self.shape}, got {array.shape}")
        if as_dtype(array.dtype) is not self.dtype:
            raise DTypeError(
                f"{describe(self)}: its value is {self.dtype}, got {array.dtype}; "
                f"convert it with .astype({self.dtype.name!r})"
            )
        storage.write(array)

    def _storage(self) -> Storage:
        if self.op.name not in STATEFUL:
            raise GraphError(
                f"{describe(self)} has no value: only params and states hold one; "
                "compile a function with it as output, or use sg.evaluate"
            )
        return self.graph.storage[self.attrs[0]]

    def __repr__(self) -> str:
        label = self.name or f"%{self.id} {self.op.name}"
        return f"<Node {label}: {self.type}>"

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "value":
            raise AttributeError(f"{describe(self)}: nodes are immutable, {name} cannot be set; build another node")
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{describe(self)}: nodes are immutable, {name} cannot be deleted")

    def __eq__(self, other: object) -> bool:
        """Whether two nodes are the same. Comparing values is `sg.equal`; == with a value is a TypeError."""
        if isinstance(other, int | float | complex | np.ndarray | np.generic):
            raise TypeError(
                f"{describe(self)} is compared with a value by == or !=, which ask whether two nodes are the same; "
                "use sg.equal or sg.not_equal for a node of truth values"
            )
        return self is other

    __hash__ = object.__hash__

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"{describe(self)} cannot be copied or pickled: it is a part of its graph; "
            "use the node itself, g.substitute for a variant, or sg.export and sg.load to keep a program"
        )

    def __array__(self, *_args: Any, **_named: Any) -> Array:
        raise _unknown(self, "values", "compile a function that returns it, or use sg.evaluate(node, {...})")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *operands: Any, **named: Any) -> Node:
        # ndarray + node arrives here, and becomes the operator of the node.
        reflected = _REFLECTED.get(ufunc.__name__)
        if reflected and method == "__call__" and not named and operands[1] is self and operands[0] is not self:
            return getattr(self, reflected)(operands[0])
        call = f"np.{ufunc.__name__}" + ("" if method == "__call__" else f".{method}")
        raise _unknown(self, f"values that {call} needs", f"use the function of symgrad, such as sg.{ufunc.__name__}")

    def __bool__(self) -> bool:
        raise _unknown(self, "truth", "use sg.where, sg.logical_and or sg.logical_or")

    def __float__(self) -> float:
        raise _unknown(self, "number", "compile a function that returns it, or use sg.evaluate(node, {...})")

    __int__ = __float__  # pyright: ignore[reportAssignmentType] both only raise
    __index__ = __float__  # pyright: ignore[reportAssignmentType]

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{describe(self)} is 0-dimensional and has no length")
        extent = self.shape[0]
        if isinstance(extent, int):
            return extent
        raise _unknown(self, "length", "use node.shape[0], a symbolic extent that works in shapes and arithmetic")

    def __iter__(self) -> Iterator[Node]:
        raise _unknown(self, "elements", "use sg.unstack(node, axis=0), or whole-array operators")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            f"{describe(self)}: nodes are immutable, elements cannot be set; "
            "sg.at(node)[index].set(value) gives a node with new elements"
        )

    if TYPE_CHECKING:
        # Installed by symgrad.operators, which knows how operands are lifted, promoted and broadcast.
        T: Node
        mT: Node

        def __add__(self, other: Operand) -> Node: ...
        def __radd__(self, other: Operand) -> Node: ...
        def __sub__(self, other: Operand) -> Node: ...
        def __rsub__(self, other: Operand) -> Node: ...
        def __mul__(self, other: Operand) -> Node: ...
        def __rmul__(self, other: Operand) -> Node: ...
        def __truediv__(self, other: Operand) -> Node: ...
        def __rtruediv__(self, other: Operand) -> Node: ...
        def __floordiv__(self, other: Operand) -> Node: ...
        def __rfloordiv__(self, other: Operand) -> Node: ...
        def __mod__(self, other: Operand) -> Node: ...
        def __rmod__(self, other: Operand) -> Node: ...
        def __lshift__(self, other: Operand) -> Node: ...
        def __rlshift__(self, other: Operand) -> Node: ...
        def __rshift__(self, other: Operand) -> Node: ...
        def __rrshift__(self, other: Operand) -> Node: ...
        def __pow__(self, other: Operand) -> Node: ...
        def __rpow__(self, other: Operand) -> Node: ...
        def __matmul__(self, other: Operand) -> Node: ...
        def __rmatmul__(self, other: Operand) -> Node: ...
        def __and__(self, other: Operand) -> Node: ...
        def __rand__(self, other: Operand) -> Node: ...
        def __or__(self, other: Operand) -> Node: ...
        def __ror__(self, other: Operand) -> Node: ...
        def __xor__(self, other: Operand) -> Node: ...
        def __rxor__(self, other: Operand) -> Node: ...
        def __invert__(self) -> Node: ...
        def __neg__(self) -> Node: ...
        def __pos__(self) -> Node: ...
        def __abs__(self) -> Node: ...
        def __lt__(self, other: Operand) -> Node: ...
        def __le__(self, other: Operand) -> Node: ...
        def __gt__(self, other: Operand) -> Node: ...
        def __ge__(self, other: Operand) -> Node: ...
        def __getitem__(self, index: Any) -> Node: ...


Operand: TypeAlias = "Node | Array | np.generic | Extent | float"
_REFLECTED = {
    "add": "__radd__",
    "subtract": "__rsub__",
    "multiply": "__rmul__",
    "divide": "__rtruediv__",
    "true_divide": "__rtruediv__",
    "floor_divide": "__rfloordiv__",
    "remainder": "__rmod__",
    "left_shift": "__rlshift__",
    "right_shift": "__rrshift__",
    "power": "__rpow__",
    "matmul": "__rmatmul__",
    "bitwise_and": "__rand__",
    "bitwise_or": "__ror__",
    "bitwise_xor": "__rxor__",
    "less": "__gt__",
    "less_equal": "__ge__",
    "greater": "__lt__",
    "greater_equal": "__le__",
    "equal": "__eq__",
    "not_equal": "__eq__",
}


class _Draft(Node):
    """A node that is being built: its fields can still be set."""

    __slots__ = ()
    __setattr__ = object.__setattr__  # pyright: ignore[reportAssignmentType] the slot itself, for speed


NAMED = frozenset(("input", "param", "state"))
STATEFUL = frozenset(("param", "state"))


def describe(node: Node) -> str:
    """A node as error messages name it: what it is, its type and where the user made it."""
    label = f"{node.op.name} {node.name!r}" if node.name else node.op.name
    place = f" ({node.loc})" if node.loc is not None else ""
    return f"{label} {node.type}{place}"


def _unknown(node: Node, what: str, advice: str) -> TypeError:
    place = user_loc(2)
    where = f" (asked for at {place})" if place is not None else ""
    return TypeError(f"the {what} of {describe(node)} cannot be known while the graph is built; {advice}{where}")


def attr_key(value: Any) -> Any:
    """A dictionary key for an attribute that tells 1, 1.0 and True apart, and zeros and NaNs by their bits."""
    if isinstance(value, tuple):
        return tuple([attr_key(v) for v in value])  # pyright: ignore[reportUnknownVariableType] nested attributes
    if isinstance(value, bool):
        return (bool, value)
    if isinstance(value, float):
        return (float, struct.pack("<d", value))
    return value


class Graph:
    """An append-only graph of interned nodes.

    Adding an operator with equal inputs and attributes gives the node that stands already. The id of a node is its
    place in `nodes`, which is a topological order. `rules` are rewrites tried when a node is added, by operator name;
    None takes the exact ones symgrad applies by default, an empty mapping none. `seed` is the key of the graph's
    random streams. `opaque` is the first id rules may look through: an older node may be in the user's hands, and a
    rewrite that bypasses it would hide it from a later `grad` or `substitute`.

        g = sg.Graph()
        x = g.input("x", ("batch", 64))
    """

    def __init__(self, *, rules: Mapping[str, Sequence[Rewrite]] | None = None, seed: int = 0) -> None:
        self.nodes: list[Node] = []
        self.storage: dict[str, Storage] = {}
        self.lock = graph_lock()
        self.seed = seed
        self.origin: Origin | None = None
        self.opaque = sys.maxsize
        self.rules: Mapping[str, Sequence[Rewrite]] = DEFAULT_REWRITES if rules is None else rules
        self._table: dict[Any, Node] = {}
        self._names: dict[str, Node] = {}
        self._scope = ""
        self._streams = 0

    def __repr__(self) -> str:
        return f"<Graph: {len(self.nodes)} nodes, {len(self.inputs)} inputs, {len(self.params)} params>"

    def __str__(self) -> str:
        return nodes_text(self.nodes)

    @property
    def inputs(self) -> list[Node]:
        """The inputs in the order they were declared."""
        return [n for n in self._names.values() if n.op.name == "input"]

    @property
    def params(self) -> list[Node]:
        """The trainable params in the order they were declared."""
        return [n for n in self._names.values() if n.op.name == "param"]

    @property
    def states(self) -> list[Node]:
        """The states that are kept between calls but not trained, in the order they were declared."""
        return [n for n in self._names.values() if n.op.name == "state"]

    def named(self, name: str) -> Node:
        """The input, param or state with this name; GraphError when there is none."""
        node = self.find(name)
        if node is None:
            known = ", ".join(self._names) or "none"
            raise GraphError(f"no input, param or state is named {name!r}; the graph has: {known}")
        return node

    def find(self, name: str) -> Node | None:
        """The input, param or state with this name; None when there is none."""
        return self._names.get(name)

    def input(self, name: str, shape: Sequence[Extent | str] = (), dtype: DTypeLike = types.float32) -> Node:
        """Declare an input. A string in the shape is a symbolic extent, equal wherever the name occurs."""
        if isinstance(shape, str) or not isinstance(shape, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise ShapeError(f"{name}: a shape is a tuple of extents, got {shape!r}; write ({shape!r},)")
        extents = tuple(_extent(name, d) for d in shape)
        return self._declare("input", name, Type(extents, self._dtype(name, dtype)))

    def param(self, name: str, value: Any) -> Node:
        """Declare a trainable array with its initial value (copied)."""
        return self._stateful("param", name, value)

    def state(self, name: str, value: Any) -> Node:
        """Declare an array that is kept between calls but not trained (copied)."""
        return self._stateful("state", name, value)

    def const(self, value: Any, dtype: DTypeLike | None = None) -> Node:
        """A constant with the value of an array or scalar (copied)."""
        array = _array("const", value)
        target = self._dtype("const", array.dtype if dtype is None else dtype)
        return self.add(OPS["const"], (), (Literal(array.astype(target.np)),))

    def next_stream(self) -> int:
        """A number no earlier random operator of this graph uses."""
        self._streams += 1
        return self._streams

    @contextmanager
    def scope(self, name: str) -> Generator[None]:
        """Prefix the names declared inside with `name/`, and mark the nodes made inside with it."""
        outer = self._scope
        self._scope = f"{outer}{name}/"
        try:
            yield
        finally:
            self._scope = outer

    @contextmanager
    def derived_from(self, origin: Origin) -> Generator[None]:
        """Give the nodes made inside this origin instead of the caller's place."""
        outer, self.origin = self.origin, origin
        try:
            yield
        finally:
            self.origin = outer

    def add(self, op: OpDef, inputs: tuple[Node, ...] = (), attrs: Attrs = (), known: Type | None = None) -> Node:
        """The node `op(*inputs, **attrs)`: rewritten by the rules, the one that stands if it exists, else a new one.

        `known` is the type of the node, from a caller who has it from an equal one with inputs of equal types.
        """
        for node in inputs:
            if node.graph is not self:
                raise GraphError(
                    f"{op.name}: {describe(node)} belongs to {node.graph!r}, not to {self!r}; "
                    "build both sides in one graph"
                )
        if op.commutative and _order(inputs[0]) > _order(inputs[1]):
            inputs = (inputs[1], inputs[0])
        key = (op.name, tuple([i.id for i in inputs]), attr_key(attrs) if attrs else ())
        if (found := self._table.get(key)) is not None:
            return found
        for rewrite in self.rules.get(op.name, ()):
            if (better := rewrite(self, inputs, attrs)) is not None:
                if known is None:
                    _infer(op, inputs, attrs)  # what is ill-typed is an error even where a rule would not look
                return better
        node = _Draft()
        node.type = _infer(op, inputs, attrs) if known is None else known
        origin = self.origin
        if origin is None:
            node.loc, node.scope, node.gradient_of, node.order = user_loc(2), self._scope, None, 0
        else:
            node.loc, node.scope, node.gradient_of, node.order = (
                origin.loc,
                origin.scope,
                origin.gradient_of,
                origin.order,
            )
        node.graph, node.id, node.op, node.inputs, node.attrs = self, len(self.nodes), op, inputs, attrs
        node.__class__ = Node  # pyright: ignore[reportAttributeAccessIssue] same layout: the node is closed from here on
        self.nodes.append(node)
        self._table[key] = node
        return node

    def substitute(self, outputs: Sequence[Node], replacements: Mapping[Node, Node]) -> list[Node]:
        """The outputs with nodes replaced: every node that depends on an old one is rebuilt on the new one."""
        if isinstance(outputs, Node):
            raise GraphError(f"substitute: the outputs are a list of nodes, got {describe(outputs)}; write [node]")
        given = (*outputs, *replacements, *replacements.values())
        _expect_nodes("substitute", given)
        for node in given:
            if node.graph is not self:
                raise GraphError(f"substitute: {describe(node)} belongs to {node.graph!r}, not to {self!r}")
        for old, new in replacements.items():
            if old.type != new.type:
                raise ShapeError(f"substitute: {describe(old)} cannot become {describe(new)}: types differ")
        new_of = dict(replacements)
        for node in ancestors(outputs):
            if node in new_of or not any(i in new_of for i in node.inputs):
                continue
            with self.derived_from(Origin(node.loc, node.scope, node.gradient_of, node.order)):
                new_of[node] = self.add(node.op, tuple(new_of.get(i, i) for i in node.inputs), node.attrs)
        return [new_of.get(o, o) for o in outputs]

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"{self!r} cannot be copied or pickled; build the graph again with a function, "
            "or keep a program with sg.export and sg.load"
        )

    def to_networkx(self) -> nx.MultiDiGraph[int]:
        """A networkx graph of node ids, with the node as attribute `node` and the argument position on each edge."""
        import networkx as nx

        graph: nx.MultiDiGraph[int] = nx.MultiDiGraph()
        for node in self.nodes:
            graph.add_node(node.id, node=node, label=f"{node.op.name} {node.type}")
            for position, source in enumerate(node.inputs):
                graph.add_edge(source.id, node.id, position=position)
        return graph

    def adopt(self, name: str, node: Node, storage: Storage | None = None) -> None:
        """Enter a named node that was built by a pass or read from a file."""
        self._names[name] = node
        if storage is not None:
            self.storage[name] = storage

    def _dtype(self, name: str, dtype: DTypeLike) -> DType:
        found = as_dtype(dtype)
        if found is None:
            raise DTypeError(f"{name}: symgrad has no data type {dtype!r}; it has {', '.join(types.DTYPES)}")
        return found

    def _stateful(self, op: str, name: str, value: Any) -> Node:
        array = _array(f"{op} {name!r}", value)
        node = self._declare(op, name, Type(array.shape, self._dtype(name, array.dtype)))
        self.storage[node.attrs[0]] = Storage(array, self.lock)
        return node

    def _declare(self, op: str, name: str, kind: Type) -> Node:
        if not isinstance(name, str):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise GraphError(f"{op}: a name is text, got {name!r}")
        full = self._scope + name
        if not name or full in self._names:
            taken = f"already names {describe(self._names[full])}" if name else "is empty"
            raise GraphError(f"{op}: the name {full!r} {taken}; choose another, or use g.scope")
        node = self.add(OPS[op], (), (full, kind.shape, kind.dtype))
        self._names[full] = node
        return node


# Filled by symgrad.rules at import; see Graph.rules.
DEFAULT_REWRITES: dict[str, Sequence[Rewrite]] = {}


def _order(node: Node) -> tuple[int, int]:
    """Operands as they come, then repeated ones, then constants.

    One repeated operand serves many nodes, and is older than the other operand in all but the first of them: by age
    alone, nodes that compute alike would differ.
    """
    if node.op.name == "const":
        return 2, node.id
    if node.op.name == "broadcast":
        return (2 if node.inputs[0].op.name == "const" else 1), node.id
    return 0, node.id


def _extent(name: str, extent: Extent | str) -> Extent:
    if isinstance(extent, str):
        if not extent.isidentifier():
            raise ShapeError(
                f"{name}: the name of an extent is an identifier, got {extent!r}; "
                "expressions are written with extents of nodes, such as 2 * x.shape[0] + 1"
            )
        return types.Dim.named(extent)
    return checked_extent(name, extent)


def checked_extent(caller: str, extent: Any) -> Extent:
    """An extent as an int or Dim; ShapeError for anything but a symbolic extent or an integer of at least 0."""
    if isinstance(extent, types.Dim):
        return extent
    if isinstance(extent, bool) or not isinstance(extent, int | np.integer) or extent < 0:
        place = user_loc(2)
        at = f" at {place}" if place is not None else ""
        kinds = "a symbolic extent or an integer of at least 0"
        raise ShapeError(f"{caller}: an extent is {kinds}, got {extent!r}{at}")
    return int(extent)  # pyright: ignore[reportUnknownArgumentType] any integer


def checked_shape(caller: str, shape: Any) -> Shape:
    """A shape given as one extent or as a sequence of them; ShapeError as for `checked_extent`."""
    given = cast("Iterable[Any]", shape)
    many = isinstance(given, Iterable) and not isinstance(given, str | Node)  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
    return tuple([checked_extent(caller, e) for e in (given if many else (shape,))])


def _array(caller: str, value: Any) -> Array:
    if isinstance(value, Node):
        raise GraphError(f"{caller}: expected an array, got {describe(value)}; nodes have no values yet")
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{caller}: {error}") from None


def _infer(op: OpDef, inputs: tuple[Node, ...], attrs: Attrs) -> Type:
    try:
        return op.infer(*[i.type for i in inputs], **dict(zip(op.attrs, attrs, strict=True)))
    except SymgradError as error:
        raise _located(error, op, inputs) from None


def _located(error: SymgradError, op: OpDef, inputs: tuple[Node, ...]) -> SymgradError:
    got = f" (got {', '.join(describe(i) for i in inputs)})" if inputs else ""
    place = user_loc(4)
    return type(error)(f"{op.name}: {error}{got}" + (f" at {place}" if place is not None else ""))


def ancestors(outputs: Iterable[Node]) -> list[Node]:
    """Every node the outputs reach, themselves included, in topological order."""
    stack: list[Node] = list(outputs) if isinstance(outputs, Iterable) else [outputs]  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
    _expect_nodes("ancestors", stack)
    seen = {n.id: n for n in stack}
    while stack:
        for source in stack.pop().inputs:
            if source.id not in seen:
                seen[source.id] = source
                stack.append(source)
    return [seen[k] for k in sorted(seen)]


def depends_on(node: Node, source: Node) -> bool:
    """Whether the value of a node can depend on another one, or is that one."""
    _expect_nodes("depends_on", (node, source))
    return node.graph is source.graph and source in ancestors([node])


def _expect_nodes(name: str, values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, Node):
            raise GraphError(f"{name}: expected nodes, got {type(value).__name__}; lift values with g.const")
