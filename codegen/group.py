"""Fusion as a partition: which nodes run in one kernel, and in which order the kernels run."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Sequence
from graphlib import TopologicalSorter
from typing import TypeAlias

from codegen.access import SCATTERS, is_leaf, reads_same_point, unreached
from codegen.costs import COSTS
from codegen.precedence import TopologicalOrder
from codegen.row_blocks import summed_in_blocks
from symgrad.graph import Attrs, Node
from symgrad.opdef import Kind
from symgrad.program import Program
from symgrad.record import record
from symgrad.types import size_of, static_shape


class Anchor(enum.Enum):
    """What the loops of a group are made for."""

    MAP = "map"  # every element by itself
    # Reductions over the same axes of one domain, with what happens before, between and after, and sums of blocks of
    # the rows themselves.
    ROWS = "rows"
    CONTRACT = "contract"  # one contraction and what happens to its result
    SCATTER = "scatter"  # updates of one array at indices from data
    SCAN = "scan"  # running values along one axis, from its start
    SCAN_BACK = "scan back"  # running values along one axis, from its end
    SORT = "sort"  # elements put in order along one axis


@record
class Group:
    """Nodes computed by one kernel over `domain`, of which `axes` are reduced or scanned. `outputs` are stored."""

    anchor: Anchor
    domain: tuple[int, ...]
    axes: tuple[int, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Node, ...]


Loops: TypeAlias = tuple[Anchor, tuple[int, ...], tuple[int, ...]]

SCANS = (Anchor.SCAN, Anchor.SCAN_BACK)
SORTS = ("argsort", "sort")

RECOMPUTE_LIMIT = 12
INLINE_LIMIT = 400
# Products of each element of an operand, from which a contraction reads it from a copy without gaps between elements.
CLOSING_REUSE = 64
# Cost per element of the largest kernel: code generation takes more than its share of time for larger ones.
GROUP_LIMIT = 1500


def point_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its unit axes: what decides whether nodes can share loops."""
    return tuple(d for d in shape if d != 1)


def group(program: Program, realized: Iterable[Node] = ()) -> tuple[Group, ...]:
    """Partition the computation of a static program into groups, in an order that respects dependence.

    `realized` are nodes that must be stored in addition to those that fusion decides to store, because lowering
    found that their readers cannot compute them in place.
    """
    return _Partition(program, realized).groups()


class _Partition:
    """One run of `group`: union of nodes into clusters, kept acyclic."""

    def __init__(self, program: Program, realized: Iterable[Node]) -> None:
        self.nodes = program.nodes
        self.readers: dict[int, list[Node]] = {n.id: [] for n in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                self.readers[source.id].append(node)
        self.roots = {n.id for n in program.roots if not is_leaf(n)}
        self.cost: dict[int, int] = {}
        self.stored = self._stored({n.id for n in realized})
        self.cluster: dict[int, int] = {}
        self.members: dict[int, list[Node]] = {}
        self.shape: dict[int, Loops] = {}
        self.sources: dict[int, tuple[Node, ...]] = {}
        self.order = TopologicalOrder()  # of clusters
        self.reading: dict[int, set[int]] = {}  # the clusters that read a value
        self.sorts: dict[tuple[tuple[Node, ...], Attrs], list[int]] = {}  # the clusters that sort the same in one way

    def _stored(self, forced: set[int]) -> set[int]:
        """The nodes that are values of a kernel: anchors, roots and what is too dear to compute in every reader."""
        stored = set(self.roots) | forced
        for node in self.nodes:
            if node.op.kind in (Kind.REDUCE, Kind.CONTRACT, Kind.SCAN) or node.op.name in SCATTERS:
                stored.add(node.id)
            if node.op.name in SORTS:
                stored.add(node.id)
            if node.op.name == "searchsorted" and not is_leaf(node.inputs[0]):
                stored.add(node.inputs[0].id)
            if node.op.kind is Kind.CONTRACT or node.op.name in SCATTERS:
                read = [_before_reshapes(i) if _closes_gaps(node, i) else _through_views(i) for i in node.inputs]
                stored |= {i.id for i in read if not _is_free(i)}
                stored |= {i.id for i in (unreached(i, stored) for i in node.inputs) if i is not None}
        weight: dict[int, int] = {}
        for node in self.nodes:
            if is_leaf(node):
                weight[node.id] = 1
                continue
            total = self.cost[node.id] = COSTS.get(node.op.name, 1) + sum(weight[i.id] for i in node.inputs)
            weight[node.id] = total if node.op.kind is Kind.POINTWISE else total - 1
            readers = {r.id for r in self.readers[node.id]}
            searches = node.op.name == "searchsorted"
            shared = len(readers) > 1 and total > RECOMPUTE_LIMIT and (node.op.kind is Kind.POINTWISE or searches)
            if shared or total > INLINE_LIMIT or self._spreads(node, total) or self._ends(node, readers, stored):
                stored.add(node.id)
            if node.id in stored:
                weight[node.id] = 1
        return stored

    def _ends(self, node: Node, readers: set[int], stored: set[int]) -> bool:
        """Whether what several readers would add to the result of a contraction is better added where that is made.

        Nothing else reads the result, which is not stored then; and each reader would read a further array as large.
        """
        if len(readers) < 2 or node.op.kind is not Kind.POINTWISE:
            return False
        sources, inside = self._evaluated(node, stored)
        plain = all(n.op.kind is Kind.POINTWISE or n.op.name in ("reshape", "broadcast") for n in inside)
        alone = any(s.op.kind is Kind.CONTRACT and len(self.readers[s.id]) == 1 for s in sources)
        return plain and alone and sum(size_of(s.shape) == size_of(node.shape) for s in sources) > 1

    def _spreads(self, node: Node, total: int) -> bool:
        """Whether a reader would evaluate a dear node several times per element, or one element at a time.

        The former broadcasts or indexes it, the latter scans the axis that neighbors lie along.
        """
        if total <= RECOMPUTE_LIMIT or node.op.kind is not Kind.POINTWISE:
            return False
        stack = list(self.readers[node.id])
        seen: set[int] = set()
        while stack:
            reader = stack.pop()
            if reader.id in seen:
                continue
            seen.add(reader.id)
            if reader.op.name in ("broadcast", "take") or _scans_neighbors(reader):
                return True
            if reader.op.kind is Kind.VIEW:
                stack += self.readers[reader.id]
        return False

    def groups(self) -> tuple[Group, ...]:
        late = self._late()
        for node in sorted(self.nodes, key=lambda n: n.id in late):
            if node.id in self.stored and not is_leaf(node):
                self._place(node)
        return self._ordered()

    def _late(self) -> set[int]:
        """The sums of blocks of rows, and what depends on them: kernels that pass the rows anyway come first."""
        late: set[int] = set()
        for node in self.nodes:
            if summed_in_blocks(node) is not None or any(i.id in late for i in node.inputs):
                late.add(node.id)
        return late

    def _place(self, node: Node) -> None:
        """Put a node into the cluster of a producer when the loops agree and no cycle arises, else into its own."""
        sources, _ = self._evaluated(node, self.stored)
        self.sources[node.id] = sources
        shape = _loops(node)
        own = node.id
        self.cluster[node.id], self.members[own], self.shape[own] = own, [node], shape
        producers = sorted({self.cluster[s.id] for s in sources if s.id in self.cluster}, reverse=True)
        for other in producers:
            joint = self._joint_loops(node, other)
            if joint is not None and self._merge(other, own, producers):
                self.shape[other] = joint
                return
        if shape[0] in (Anchor.MAP, Anchor.ROWS, *SCANS) and self._join_sibling(own, sources, producers):
            return
        if shape[0] is Anchor.SORT and self._join_same_order(node, producers):
            return
        self.order.append(own, producers)
        self._note(own, sources)

    def _join_same_order(self, node: Node, producers: Sequence[int]) -> bool:
        """Put the order of elements and the elements in that order into one cluster."""
        alike = self.sorts.setdefault((node.inputs, node.attrs), [])
        if any(self._merge(other, node.id, producers, limited=False) for other in alike):
            return True
        alike.append(node.id)
        return False

    def _join_sibling(self, own: int, sources: tuple[Node, ...], producers: Sequence[int]) -> bool:
        """Share loops with a cluster of the same shape that reads the same stored values and computes none of them."""
        candidates = {key for s in sources for key in self.reading.get(s.id, ()) if self.shape[key] == self.shape[own]}
        return any(
            self._merge(other, own, producers) for other in sorted(candidates.difference(producers), reverse=True)
        )

    def _merge(self, keep: int, own: int, producers: Sequence[int], *, limited: bool = True) -> bool:
        """Put a node that nothing reads yet into a cluster, unless what it reads depends on that.

        A cluster is of a size that still compiles in proportion to it.
        """
        if limited and self.cost[keep] + self.cost[own] > GROUP_LIMIT:
            return False
        if not self.order.constrain([key for key in producers if key != keep], keep):
            return False
        (node,) = self.members.pop(own)
        self.cluster[own] = keep
        self.cost[keep] += self.cost[own]
        self.members[keep].append(node)
        del self.shape[own]
        self._note(keep, self.sources[own])
        return True

    def _note(self, key: int, sources: tuple[Node, ...]) -> None:
        for source in sources:
            self.reading.setdefault(source.id, set()).add(key)

    def _evaluated(self, node: Node, stored: set[int]) -> tuple[tuple[Node, ...], list[Node]]:
        """The stored nodes and leaves that the evaluation of a node reads, and the nodes it evaluates on the way."""
        found: dict[int, Node] = {}
        inside: list[Node] = []
        stack = list(node.inputs)
        seen: set[int] = set()
        while stack:
            source = stack.pop()
            if source.id in seen:
                continue
            seen.add(source.id)
            if source.id in stored or is_leaf(source):
                found[source.id] = source
            else:
                inside.append(source)
                stack.extend(source.inputs)
        return tuple(found[k] for k in sorted(found)), inside

    def _joint_loops(self, node: Node, other: int) -> Loops | None:
        """The loops in which a node can run together with a cluster that computes some of its sources."""
        loops = self.shape[other]
        anchor, domain, axes = loops
        own_anchor, own_domain, own_axes = _loops(node)
        inside = {m.id for m in self.members[other]}
        if own_anchor is Anchor.ROWS:
            fits = own_domain == domain and _is_trailing(own_axes, own_domain)
            if not fits or not (anchor is Anchor.MAP or (anchor is Anchor.ROWS and axes == own_axes)):
                return None
            joint = (Anchor.ROWS, own_domain, own_axes)
            return joint if self._same_point(node, inside, own_domain, own_axes) else None
        if own_anchor in SCANS:
            fits = own_domain == domain and (anchor is Anchor.MAP or loops == _loops(node))
            if not fits or (anchor is Anchor.MAP and self._is_slow(self.cost[other], node)):
                return None
            return _loops(node) if self._same_point(node, inside, own_domain, ()) else None
        if own_anchor is not Anchor.MAP or anchor in (Anchor.SCATTER, Anchor.SORT):
            return None
        if anchor in SCANS:
            scan = next(m for m in self.members[other] if m.op.kind is Kind.SCAN)
            if point_shape(own_domain) != point_shape(domain) or self._is_slow(self.cost[node.id], scan):
                return None
            return loops if self._same_point(node, inside, domain, ()) else None
        shape = point_shape(own_domain)
        rows = point_shape([d for k, d in enumerate(domain) if k not in axes])
        if anchor is not Anchor.ROWS:
            fits = shape == point_shape(domain)
        elif _is_trailing(axes, domain):
            fits = own_domain == domain or shape == rows
        else:
            fits = shape == rows
        return loops if fits and self._same_point(node, inside, domain, axes) else None

    def _is_slow(self, cost: int, scan: Node) -> bool:
        """Whether work is too much to be done one element at a time in the loop of a scan."""
        return cost > RECOMPUTE_LIMIT and _scans_neighbors(scan)

    def _same_point(
        self,
        node: Node,
        inside: set[int],
        domain: tuple[int, ...],
        axes: tuple[int, ...],
    ) -> bool:
        """Whether every value a node takes from inside a cluster is the one of the same iteration."""
        return reads_same_point(node, inside, self.stored, domain, axes)

    def _ordered(self) -> tuple[Group, ...]:
        """The clusters as groups, each after those it reads."""
        waits: dict[int, set[int]] = {key: set() for key in self.members}
        read: set[int] = set()  # by a cluster other than their own
        for key, members in self.members.items():
            for source in (s for m in members for s in self.sources[m.id]):
                if self.cluster.get(source.id, key) != key:
                    waits[key].add(self.cluster[source.id])
                    read.add(source.id)
        sorter = TopologicalSorter(waits)
        sorter.prepare()
        out: list[Group] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=lambda k: max(m.id for m in self.members[k]))
            out += [self._group(key, read) for key in ready]
            sorter.done(*ready)
        return tuple(out)

    def _group(self, key: int, read: set[int]) -> Group:
        members = sorted(self.members[key], key=lambda n: n.id)
        outputs = tuple(m for m in members if m.id in self.roots or m.id in read)
        anchor, domain, axes = self.shape[key]
        return Group(anchor, domain, axes, tuple(members), outputs)


def _is_trailing(axes: tuple[int, ...], domain: tuple[int, ...]) -> bool:
    return axes == tuple(range(len(domain) - len(axes), len(domain)))


def _loops(node: Node) -> Loops:
    """The loops a node needs when it stands alone."""
    shape = static_shape(node.shape)
    if node.op.name in SCATTERS:
        return Anchor.SCATTER, shape, ()
    if node.op.name in SORTS:
        return Anchor.SORT, shape, ()
    if node.op.kind is Kind.CONTRACT:
        return Anchor.CONTRACT, shape, ()
    if node.op.kind is Kind.SCAN:
        axis, step = node.attrs
        return (Anchor.SCAN if step == 1 else Anchor.SCAN_BACK), shape, (axis,)
    if node.op.kind is not Kind.REDUCE:
        return Anchor.MAP, shape, ()
    if (whole := summed_in_blocks(node)) is not None:
        return Anchor.ROWS, whole, (len(whole) - 1,)
    reduced: tuple[int, ...] | int = node.attrs[0]
    axes = (reduced,) if isinstance(reduced, int) else reduced
    return Anchor.ROWS, static_shape(node.inputs[0].shape), axes


def _scans_neighbors(node: Node) -> bool:
    """Whether a node scans the axis that neighbors in memory lie along, so that no lanes can run side by side."""
    return node.op.kind is Kind.SCAN and all(d == 1 for d in node.shape[node.attrs[0] + 1 :])


def _through_views(node: Node) -> Node:
    """What a chain of single-input views looks at."""
    while node.op.kind is Kind.VIEW and len(node.inputs) == 1 and node.op.name != "pad":
        node = node.inputs[0]
    return node


def _closes_gaps(reader: Node, operand: Node) -> bool:
    """Whether a contraction often reads an operand along elements with gaps between them, and is faster without.

    Not where sums run along these, or windows overlap.
    """
    if reader.op.kind is not Kind.CONTRACT or not _skips(_before_reshapes(operand)):
        return False
    left, right, out = reader.attrs
    own = left if operand is reader.inputs[0] else right
    along = [label for label, d in zip(own, static_shape(operand.shape), strict=True) if d != 1]
    others = [d for label, d in zip(out, static_shape(reader.shape), strict=True) if label not in own]
    return bool(along) and along[-1] in out and math.prod(others) >= CLOSING_REUSE


def _before_reshapes(node: Node) -> Node:
    """What a chain of reshapes looks at."""
    while node.op.name == "reshape":
        node = node.inputs[0]
    return node


def _skips(view: Node) -> bool:
    """Whether a view looks at only some elements along the last axis, and at no more than there are."""
    if view.op.name == "slice":
        return view.attrs[2][-1] > 1
    if view.op.name != "window":
        return False
    sizes, strides, _ = view.attrs
    return sizes[-1] == 1 < strides[-1] and math.prod(sizes) <= math.prod(strides)


def _is_free(node: Node) -> bool:
    return is_leaf(node) or (node.op.kind is Kind.SOURCE)
