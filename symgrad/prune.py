"""Pruning: from a graph that trains to the program that computes some outputs and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import numpy as np

from symgrad.arguments import one_or_more
from symgrad.errors import GraphError
from symgrad.graph import NAMED, STATEFUL, Graph, Node, Origin, ancestors, describe
from symgrad.opdef import OPS, Kind
from symgrad.ops.control import inline, readers
from symgrad.program import Program
from symgrad.random import RANDOM_STEP, random_updates
from symgrad.storage import Literal as Values
from symgrad.storage import Storage
from symgrad.types import Dim, Type

if TYPE_CHECKING:
    from symgrad.types import Array

Outputs: TypeAlias = "Node | Sequence[Node] | Mapping[str, Node]"
Phase: TypeAlias = Literal["train", "infer"]

_PHASES = ("train", "infer")
# Kept nodes that stand for one of their inputs, which takes their place.
_CHOICES = frozenset(("phase", "stop_gradient", "custom"))
_FOLDED_BYTES = 1024


def prune(outputs: Outputs, inputs: Sequence[Node] | None = None, phase: Phase = "infer") -> Program:
    """The program that computes the outputs: what they reach in this phase, with the current params as constants.

    Outputs are a node, a list, a tuple or a dict of nodes. `inputs` are the nodes given at a call, in order; None
    takes those the outputs need, in the order they were declared. `phase` is "infer" or "train". Params and states
    are frozen, calls of sub-programs put in place, and what depends on constants alone is computed, where that does
    not take more memory. A program that draws random numbers keeps the count of its calls as its one state.

    The program has a graph of its own, so later changes of params do not reach it. Its `removed` counts the nodes of
    the graph that went, by what they were for. GraphError names an input that is needed and not listed.
    """
    nodes, names = _flatten(outputs)
    if phase not in _PHASES:
        raise GraphError(f'prune: the phase is "infer" or "train", got {phase!r}')
    graph = nodes[0].graph
    for node in (*nodes, *(inputs or ())):
        if node.graph is not graph:
            raise GraphError(f"prune: {describe(node)} belongs to {node.graph!r}, not to {graph!r}")
    kept = _reached(nodes, phase)
    given = _signature(graph, kept, inputs)
    removed = _removed(graph, kept, phase)
    program = _frozen(Program(graph, given, tuple(nodes), (), names), phase)
    while any(n.op.kind is Kind.CONTROL for n in program.nodes):
        program = _frozen(program, phase)
    program, folded = _fold(program)
    if folded:
        removed["folded into constants"] = folded
    updates = tuple(random_updates(program.graph)) if program.states else ()
    return Program(program.graph, program.inputs, program.outputs, updates, names, program.name, tuple(removed.items()))


def _flatten(outputs: Outputs) -> tuple[list[Node], tuple[str, ...] | None]:
    if isinstance(outputs, Node):
        return [outputs], None
    if isinstance(outputs, Mapping):
        nodes, names = list(outputs.values()), tuple(outputs)
    else:
        nodes, names = one_or_more(outputs), None
    if not nodes:
        raise GraphError("prune: there is no output")
    for node in nodes:
        if not isinstance(node, Node):
            raise GraphError(f"prune: an output is a node, got {node!r}")
    if names is not None and not all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise GraphError(f"prune: the name of an output is text, got {names!r}")
    return cast("list[Node]", nodes), names


def _reached(outputs: Iterable[Node], phase: Phase) -> dict[int, Node]:
    """What the outputs reach when a phase takes only its own branch, by id and in topological order."""
    stack = list(outputs)
    seen = {n.id: n for n in stack}
    while stack:
        node = stack.pop()
        for source in readers(node, _PHASES.index(phase)):
            if source.id not in seen:
                seen[source.id] = source
                stack.append(source)
    return {k: seen[k] for k in sorted(seen)}


def _signature(graph: Graph, kept: dict[int, Node], inputs: Sequence[Node] | None) -> tuple[Node, ...]:
    needed = [n for n in kept.values() if n.op.name == "input"]
    if inputs is None:
        given = needed
    else:
        given = list(inputs)
        for node in given:
            if node.op.name != "input":
                raise GraphError(f"prune: {describe(node)} is not an input; substitute an input for it first")
        if missing := [n for n in needed if n not in given]:
            raise GraphError(
                f"prune: the outputs need {describe(missing[0])}, which is not listed; "
                "add it to the inputs, or choose outputs that do without it"
            )
    # An extent can be needed where the input that tells it is not.
    extents: set[str] = set()
    for node in kept.values():
        for extent in _extents(node):
            extents |= extent.names()
    known = {name for node in given for name in _told(node)}
    for name in sorted(extents - known):
        if name in known:
            continue
        teller = next((n for n in graph.inputs if name in _told(n)), None)
        if teller is None or inputs is not None:
            advice = "list an input that has it" if teller is None else f"list {describe(teller)}"
            raise GraphError(f"prune: the outputs need the extent {name!r}, which no listed input tells; {advice}")
        given.append(teller)
        known |= _told(teller)
    if inputs is None:
        given.sort(key=lambda n: n.id)
    return tuple(given)


def _extents(node: Node) -> list[Dim]:
    values: list[object] = [*node.shape]
    for attr in node.attrs:
        values += cast("tuple[object, ...]", attr) if isinstance(attr, tuple) else (attr,)
    return [v for v in values if isinstance(v, Dim)]


def _told(node: Node) -> set[str]:
    """The names whose values the shape of an input gives."""
    return {name for d in node.shape if isinstance(d, Dim) for name in d.names() if d == Dim.named(name)}


def _frozen(program: Program, phase: Phase) -> Program:
    """A copy in a graph of its own, with params frozen, phases chosen and one level of calls in place."""
    old = program.graph
    graph = Graph(rules=old.rules, seed=old.seed)
    graph._streams = old._streams  # pyright: ignore[reportPrivateUsage] new random operators must not repeat old ones
    copy_of: dict[int, Node] = {}
    for node in (*program.inputs, *_reached(program.outputs, phase).values()):
        if node.id in copy_of:
            continue
        # What a node is the derivative of is gone or has another id; the order still tells that it is one.
        with graph.derived_from(Origin(node.loc, node.scope, None, node.order)):
            copy_of[node.id] = _copy(node, graph, copy_of, phase)
    pick = [copy_of[n.id] for n in program.inputs], [copy_of[n.id] for n in program.outputs]
    return Program(graph, tuple(pick[0]), tuple(pick[1]), (), program.output_names, program.name)


def _copy(node: Node, graph: Graph, copy_of: dict[int, Node], phase: Phase) -> Node:
    if node.op.name in _CHOICES:
        return copy_of[readers(node, _PHASES.index(phase))[0].id]
    if node.op.name in STATEFUL and node.name != RANDOM_STEP:
        return graph.add(OPS["const"], (), (Values(node.value),))
    sources = tuple([copy_of[i.id] for i in node.inputs])
    if node.op.name == "call":
        body: Program = node.attrs[0]
        return inline(graph, body.inputs, body.outputs, sources)[0]
    copy = graph.add(node.op, sources, node.attrs)
    if node.op.name in NAMED:
        storage = Storage(node.value, graph.lock) if node.op.name in STATEFUL else None
        graph.adopt(node.attrs[0], copy, storage)
    return copy


def _fold(program: Program) -> tuple[Program, int]:
    """The program with nodes that depend on constants alone computed, and how many were."""
    graph = program.graph
    known: dict[int, tuple[Array, int]] = {}
    replaced: dict[Node, Node] = {}
    for node in program.nodes:
        if node.op.name == "const":
            array: Array = node.attrs[0].array
            known[node.id] = (array, array.nbytes)
            continue
        if not node.inputs or not node.type.is_static or not all(i.id in known for i in node.inputs):
            continue
        shape = cast("tuple[int, ...]", node.shape)
        held = sum(known[i.id][1] for i in node.inputs)
        if node.op.name == "broadcast":
            # Stays symbolic: a view of its input, which only its readers look through.
            known[node.id] = (np.broadcast_to(known[node.inputs[0].id][0], shape), held)
            continue
        if node.op.ref is None or _bytes(node) > max(_FOLDED_BYTES, held) or any(_extents(node)):
            continue
        attrs = dict(zip(node.op.attrs, node.attrs, strict=True))
        value = np.asarray(node.op.ref(*[known[i.id][0] for i in node.inputs], **attrs))
        with graph.derived_from(Origin(node.loc, node.scope, None, node.order)):
            replaced[node] = graph.add(OPS["const"], (), (Values(value),))
        known[node.id] = (value, value.nbytes)
    if not replaced:
        return program, 0
    outputs = tuple(graph.substitute(program.outputs, replaced))
    rebuilt = Program(graph, program.inputs, outputs, (), program.output_names, program.name)
    # Substitution appends; a last copy leaves the dead nodes behind.
    return _frozen(rebuilt, "infer"), len(replaced)


def _bytes(node: Node) -> int:
    total = node.dtype.itemsize
    for extent in cast("tuple[int, ...]", node.shape):
        total *= extent
    return total


def _removed(graph: Graph, kept: dict[int, Node], phase: Phase) -> Counter[str]:
    """How many nodes of the graph are not kept, by what they were for: told by facts of the graph, not by names."""
    nodes = graph.nodes
    group: dict[int, str] = {n.id: "phase" for n in kept.values() if n.op.name == "phase"}
    group |= {n.id: n.op.name for n in kept.values() if n.op.name in ("stop_gradient", "custom")}
    gone = [n for n in nodes if n.id not in kept]
    differentiated = [n.gradient_of for n in nodes if n.gradient_of is not None and n.gradient_of.graph is graph]
    advances = _state_values(nodes) - {n.id for n in differentiated}
    for node in gone:
        if node.order > 0:
            group[node.id] = "gradient"
        elif node.id in advances or any(group.get(i.id) in ("gradient", "update") for i in node.inputs):
            group[node.id] = "update"
    other = 1 - _PHASES.index(phase)
    branches = [n.inputs[other] for n in kept.values() if n.op.name == "phase"]
    random = [b for b in branches if any(n.op.name == "philox" for n in _reached([b], phase).values())]
    rest = "batch statistics" if phase == "infer" else "inference values"
    for sources, name in ((random, "dropout"), (branches, rest)):
        for key in _reached(sources, phase):
            if key not in kept:
                group.setdefault(key, name)
    # What only updates read serves them: moments, learning rates, counters.
    readers: dict[int, set[str]] = {}
    for node in reversed(gone):
        if node.id not in group and readers.get(node.id) == {"update"}:
            group[node.id] = "update"
        for source in node.inputs:
            readers.setdefault(source.id, set()).add(group.get(node.id, ""))
    for node in ancestors(n for n in differentiated if n.id not in kept):
        group.setdefault(node.id, "loss")
    for node in gone:
        group.setdefault(node.id, "random" if node.op.name == "philox" else "unused")
    order = ("gradient", "update", "loss", "dropout", rest, "phase", "stop_gradient", "custom", "random", "unused")
    counts = Counter(group[n.id] for n in nodes if n.id not in kept or group.get(n.id) in _CHOICES)
    return Counter({name: counts[name] for name in order if counts[name]})


def _state_values(nodes: Sequence[Node]) -> set[int]:
    """The nodes that no other reads and that have the type of a state they are computed from: its new values."""
    none: frozenset[Type] = frozenset()
    states: dict[int, frozenset[Type]] = {}
    read: set[int] = set()
    for node in nodes:
        read.update(i.id for i in node.inputs)
        states[node.id] = none.union(*(states[i.id] for i in node.inputs))
        if node.op.name == "state":
            states[node.id] = frozenset((node.type,))
    return {n.id for n in nodes if n.id not in read and n.op.name != "state" and n.type in states[n.id]}
