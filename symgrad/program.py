"""What crosses from building to compiling: a graph with the inputs, outputs and updates of one function."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from symgrad.graph import STATEFUL, Graph, Node, ancestors
from symgrad.opdef import Kind
from symgrad.printer import nodes_text
from symgrad.types import Extent, size_of


@dataclass(frozen=True, slots=True)
class Program:
    """One function over a graph.

    `inputs` are the nodes given at a call, in order. `outputs` are what it returns, named for a dict and unnamed
    otherwise. `updates` are pairs (param or state, new value); all new values are computed from the old ones.
    `removed` says what pruning took away: pairs (what, how many).
    """

    graph: Graph
    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    updates: tuple[tuple[Node, Node], ...] = ()
    output_names: tuple[str, ...] | None = None
    name: str = "program"
    removed: tuple[tuple[str, int], ...] = ()
    _reached: tuple[Node, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def roots(self) -> tuple[Node, ...]:
        """Every node that must be computed."""
        return self.outputs + tuple(new for _, new in self.updates)

    @property
    def nodes(self) -> list[Node]:
        """Every node the roots reach, in topological order."""
        if self._reached is None:
            # A program is frozen and its graph only grows: what the roots reach stays the same.
            object.__setattr__(self, "_reached", tuple(ancestors(self.roots)))
        return list(self._reached or ())

    @property
    def inputs_read(self) -> list[Node]:
        """The inputs that values depend on in some phase; what only derivative rules read is left out."""
        stack = list(self.roots)
        seen = {n.id: n for n in stack}
        while stack:
            node = stack.pop()
            for source in node.inputs[:1] if node.op.name == "custom" else node.inputs:
                if source.id not in seen:
                    seen[source.id] = source
                    stack.append(source)
        return [seen[k] for k in sorted(seen) if seen[k].op.name == "input"]

    @property
    def states(self) -> tuple[Node, ...]:
        """The params and states that are read or updated."""
        found = {n.id: n for n in self.nodes if n.op.name in STATEFUL}
        found.update({old.id: old for old, _ in self.updates})
        return tuple(found[k] for k in sorted(found))

    def summary(self) -> str:
        """What the program takes, gives, holds and costs, and what pruning took away.

        Weights are params, states and constants with dimensions. Operations are counted per call: one for each element
        of a pointwise result, each element a reduction or scan reads, two for each product of a contraction; calls of
        sub-programs are not counted.
        """
        nodes = self.nodes
        counts = Counter(n.op.name for n in nodes)
        weights = [n for n in nodes if n.shape and (n.op.name in STATEFUL or n.op.name == "const")]
        values = sum(int(size_of(n.shape)) for n in weights)
        held = sum(int(size_of(n.shape)) * n.dtype.itemsize for n in weights)
        work: Extent = 0
        for node in nodes:
            work = work + operations(node)
        lines = [f"program {self.name}", f"  inputs: {', '.join(f'{i.name}: {i.type}' for i in self.inputs) or 'none'}"]
        names = self.output_names or tuple(str(k) for k in range(len(self.outputs)))
        lines.append("  outputs: " + ", ".join(f"{n}: {o.type}" for n, o in zip(names, self.outputs, strict=True)))
        if self.updates:
            lines.append("  updates: " + ", ".join(str(old.name) for old, _ in self.updates))
        lines.append(f"  nodes: {len(nodes)} ({', '.join(f'{name} {count}' for name, count in counts.most_common())})")
        lines.append(f"  weights: {values} values, {held} bytes")
        lines.append(f"  operations: {work} per call")
        if self.removed:
            lines.append("  removed: " + ", ".join(f"{name} {count}" for name, count in self.removed))
        return "\n".join(lines)

    def __str__(self) -> str:
        head = ", ".join(f"{i.name}: {i.type}" for i in self.inputs)
        names = self.output_names or tuple(str(k) for k in range(len(self.outputs)))
        lines = [f"program {self.name}({head})", nodes_text(self.nodes)]
        lines += [f"return {name} = {_ref(node)}" for name, node in zip(names, self.outputs, strict=True)]
        lines += [f"update {old.name} = {_ref(new)}" for old, new in self.updates]
        return "\n".join(line for line in lines if line)


def operations(node: Node) -> Extent:
    """The arithmetic operations of one node, as `Program.summary` counts them."""
    match node.op.kind:
        case Kind.POINTWISE:
            return size_of(node.shape)
        case Kind.REDUCE | Kind.SCAN:
            return size_of(node.inputs[0].shape)
        case Kind.CONTRACT:
            left, right, _ = node.attrs
            extents = dict(zip(left + right, node.inputs[0].shape + node.inputs[1].shape, strict=True))
            return size_of(tuple(extents.values())) * 2
        case Kind.INDEXED:
            return 0 if node.op.name in ("take", "scatter_set") else size_of(node.inputs[-1].shape)
        case Kind.SOURCE | Kind.VIEW | Kind.CONTROL:
            return 0


def _ref(node: Node) -> str:
    return node.name or f"%{node.id}"
