"""The last rewrites of a static program: operators in the shapes that kernels are made for."""

from __future__ import annotations

from codegen.fold import fold_node
from symgrad.graph import Graph, Node, Origin
from symgrad.opdef import OPS, Kind
from symgrad.program import Program
from symgrad.types import size_of, static_shape

# A reduction with fewer results than this has too little to share among workers; with more elements than this per
# result its sum is a sum of sums. Both depend on shapes alone, and so does the order of additions.
FEW_RESULTS = 64
LONG = 8192
CHUNK = 2048
# Combining partial results takes the same operator again.
_SPLITS = frozenset(("sum", "prod", "max", "min", "any", "all"))


def prepare(program: Program) -> Program:
    """The program with long reductions in two stages and products of vectors as reductions.

    Programs that need neither come back as they are.
    """
    if not any(_needs(node) for node in program.nodes):
        return program
    graph = Graph(rules={}, seed=program.graph.seed)
    copy_of: dict[int, Node] = {}
    for node in _with_inputs(program):
        graph.origin = Origin(node.loc, node.scope, None, node.order)
        inputs = tuple(copy_of[i.id] for i in node.inputs)
        if node.op.name == "fold":
            made = fold_node(graph, node, copy_of)
            copy_of[node.id] = _make(graph, made, made.inputs) if made.op.kind is Kind.CONTRACT else made
        else:
            copy_of[node.id] = _make(graph, node, inputs)
        if node.name is not None:
            graph.adopt(node.name, copy_of[node.id], program.graph.storage.get(node.name))
    graph.origin = None
    graph.lock = program.graph.lock
    return Program(
        graph,
        tuple(copy_of[n.id] for n in program.inputs),
        tuple(copy_of[n.id] for n in program.outputs),
        tuple((copy_of[old.id], copy_of[new.id]) for old, new in program.updates),
        program.output_names,
        program.name,
    )


def _with_inputs(program: Program) -> list[Node]:
    found = {n.id: n for n in (*program.inputs, *(old for old, _ in program.updates), *program.nodes)}
    return [found[k] for k in sorted(found)]


def _needs(node: Node) -> bool:
    if node.op.kind is Kind.REDUCE:
        return node.op.name in ("sum_to", "fold") or (node.op.name in _SPLITS and _is_long(node))
    return node.op.kind is Kind.CONTRACT and _is_row_product(node)


def _is_long(node: Node) -> bool:
    results = size_of(node.shape)
    elements = size_of(node.inputs[0].shape)
    return (
        isinstance(results, int)
        and isinstance(elements, int)
        and 0 < results < FEW_RESULTS
        and (elements // results >= LONG)
    )


def _make(graph: Graph, node: Node, inputs: tuple[Node, ...]) -> Node:
    if node.op.kind is Kind.REDUCE and node.op.name in _SPLITS and _is_long(node):
        return _two_stages(graph, node, inputs[0])
    if node.op.kind is Kind.CONTRACT and _is_row_product(node):
        return _product_and_sum(graph, node, inputs)
    if node.op.name == "sum_to":
        return _sum_to(graph, node, inputs[0])
    return graph.add(node.op, inputs, node.attrs)


def _sum_to(graph: Graph, node: Node, source: Node) -> Node:
    """The inverse of a broadcast as the sum it is."""
    shape, target = static_shape(source.shape), static_shape(node.shape)
    lead = len(shape) - len(target)
    axes = (*range(lead), *(lead + k for k, d in enumerate(target) if d == 1 and shape[lead + k] != 1))
    if axes:
        total = graph.add(OPS["sum"], (source,), (axes,))
        source = _two_stages(graph, total, source) if _is_long(total) else total
    return graph.add(OPS["reshape"], (source,), (target,)) if source.shape != target else source


def _two_stages(graph: Graph, node: Node, source: Node) -> Node:
    """Reduce chunks first, then their results.

    Several axes are reduced from the last one outward. One long axis is cut into chunks; what is left over is one
    more partial result.
    """
    (axes,) = node.attrs
    shape = static_shape(source.shape)
    reduced = [axis for axis in axes if shape[axis] > 1]
    if len(reduced) > 1:
        last = reduced[-1]
        partial = graph.add(node.op, (source,), ((last,),))
        rest = tuple(axis if axis < last else axis - 1 for axis in axes if axis != last)
        if _is_long_shape(static_shape(partial.shape), rest):
            return _two_stages_of(graph, node, partial, rest)
        return graph.add(node.op, (partial,), (rest,))
    return _two_stages_of(graph, node, source, axes)


def _two_stages_of(graph: Graph, node: Node, source: Node, axes: tuple[int, ...]) -> Node:
    shape = static_shape(source.shape)
    long = max(axes, key=lambda axis: shape[axis])
    extent = shape[long]
    whole = extent // CHUNK
    if whole < 2:
        return graph.add(node.op, (source,), (axes,))
    parts = [_chunks(graph, node, source, long, whole)]
    if extent % CHUNK:
        rest = _cut(graph, source, long, whole * CHUNK, extent)
        parts.append(_expanded(graph, graph.add(node.op, (rest,), ((long,),)), long))
    partial = parts[0] if len(parts) == 1 else graph.add(OPS["concat"], tuple(parts), (long,))
    return graph.add(node.op, (partial,), (axes,))


def _chunks(graph: Graph, node: Node, source: Node, axis: int, whole: int) -> Node:
    """One partial result per chunk, where the chunks were."""
    shape = static_shape(source.shape)
    head = _cut(graph, source, axis, 0, whole * CHUNK)
    cut = (*shape[:axis], whole, CHUNK, *shape[axis + 1 :])
    return graph.add(node.op, (graph.add(OPS["reshape"], (head,), (cut,)),), ((axis + 1,),))


def _cut(graph: Graph, source: Node, axis: int, start: int, stop: int) -> Node:
    shape = static_shape(source.shape)
    if (start, stop) == (0, shape[axis]):
        return source
    starts = tuple(start if k == axis else 0 for k in range(len(shape)))
    stops = tuple(stop if k == axis else d for k, d in enumerate(shape))
    return graph.add(OPS["slice"], (source,), (starts, stops, (1,) * len(shape)))


def _expanded(graph: Graph, node: Node, axis: int) -> Node:
    shape = static_shape(node.shape)
    return graph.add(OPS["reshape"], (node,), ((*shape[:axis], 1, *shape[axis:]),))


def _is_long_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> bool:
    return any(shape[axis] >= LONG for axis in axes)


def _is_row_product(node: Node) -> bool:
    """Whether a contraction is better read along its sum: one factor is a vector, or a matrix whose rows are summed.

    So is one without a sum, which only multiplies.
    """
    left, right, out = node.attrs
    a, b = static_shape(node.inputs[0].shape), static_shape(node.inputs[1].shape)
    sizes = dict(zip(left + right, a + b, strict=True))
    summed = [label for label in left if label not in out]
    if all(sizes[label] == 1 for label in summed):
        return True
    own_left = [c for c in left if c in out and c not in right and sizes[c] > 1]
    own_right = [c for c in right if c in out and c not in left and sizes[c] > 1]
    if own_left and own_right:
        return False
    matrix, own = (left, own_left) if own_left else (right, own_right)
    # A matrix whose own labels run last is read along the lanes as it lies.
    return not own or matrix.index(own[-1]) < max(matrix.index(label) for label in summed if sizes[label] != 1)


def _product_and_sum(graph: Graph, node: Node, inputs: tuple[Node, ...]) -> Node:
    left, right, out = node.attrs
    summed = "".join(label for label in left if label not in out)
    labels = out + summed
    a, b = static_shape(inputs[0].shape), static_shape(inputs[1].shape)
    sizes = dict(zip(left + right, a + b, strict=True))
    shape = tuple(sizes[label] for label in labels)
    product = graph.add(
        OPS["multiply"],
        (_spread(graph, inputs[0], left, labels, shape), _spread(graph, inputs[1], right, labels, shape)),
    )
    if not summed:
        return product
    total = graph.add(OPS["sum"], (product,), (tuple(range(len(out), len(labels))),))
    return total if not _is_long(total) else _two_stages(graph, total, product)


def _spread(graph: Graph, node: Node, own: str, labels: str, shape: tuple[int, ...]) -> Node:
    """An operand with its axes in the order of the labels, broadcast over those it lacks."""
    order = sorted(range(len(own)), key=lambda k: labels.index(own[k]))
    if order != list(range(len(own))):
        node = graph.add(OPS["permute"], (node,), (tuple(order),))
    sizes = dict(zip((own[k] for k in order), static_shape(node.shape), strict=True))
    kept = tuple(sizes.get(label, 1) for label in labels)
    if kept != node.shape:
        node = graph.add(OPS["reshape"], (node,), (kept,))
    return graph.add(OPS["broadcast"], (node,), (shape,)) if kept != shape else node
