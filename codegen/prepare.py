"""The last rewrites of a static program: operators in the shapes that kernels are made for."""

from __future__ import annotations

import functools
import itertools
import math
import string
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from codegen.access import is_leaf
from codegen.fold import cut_axis, cut_fold, fold_node, is_products
from codegen.row_blocks import sum_of_blocks, sums_rows
from symgrad.graph import Graph, Node, Origin
from symgrad.opdef import OPS, Kind
from symgrad.program import Program
from symgrad.types import size_of, static_shape, static_size

# A reduction with fewer results than this has too little to share among workers; with more elements than this per
# result its sum is a sum of sums, and so it is with half as many per result if it has so many altogether: a worker then
# reads what it has in its caches. All that depends on shapes alone, and so does the order of additions.
FEW_RESULTS = 64
LONG = 8192
MANY = 1 << 16
CHUNK = 2048
# Terms of the sums of a contraction from which parts of them are worth it; elements of the operands of one part, which
# are half as many where there are two parts.
DEEP = 4096
BLOCK = 1 << 17
# Elements of a matrix from which the product of one row with it is shared by its lines, so that each worker reads its
# part of memory in order; how many parts, the fewest lines of one, and the most results of all for which that pays.
ROW_BLOCK = 1 << 19
ROW_PARTS = 8
ROW_LINES = 128
ROW_RESULTS = 4096
# Combining partial results takes the same operator again: for two values, this pointwise one.
_PAIRWISE = {
    "sum": "add", "prod": "multiply", "max": "maximum", "min": "minimum", "any": "logical_or", "all": "logical_and",
}  # fmt: skip
# Makes a node in another form: of a graph, the node and its inputs in that graph.
Form: TypeAlias = Callable[..., Node]
# Elements of a window that are combined one by one, with neighboring windows in the lanes.
TAPS = 16


def prepare(program: Program) -> Program:
    """The program with long sums in stages or blocks, small windows tap by tap, products of vectors as reductions, and
    folds as contractions and sums of what lies side by side.

    Outputs that only give what is computed another shape are what is computed: their elements are the same. Programs
    that need nothing of this come back as they are.
    """
    windows = _window_ranks(program)
    if not any(node.op.name == "fold" or _form(node, windows) for node in program.nodes):
        return _without_last_reshapes(program)
    graph = Graph(rules={}, seed=program.graph.seed)
    copy_of: dict[int, Node] = {}
    cuts = _cuts(program)
    cut_away = {cut.inputs[0].id for cut in cuts.values()}
    for node in _with_inputs(program):
        if node.id in cut_away:
            continue
        graph.origin = Origin(node.loc, node.scope, None, node.order)
        if node.id in cuts or node.op.name == "fold":
            made = cut_fold(graph, node, copy_of) if node.id in cuts else fold_node(graph, node, copy_of)
            copy_of[node.id] = _made(graph, made, windows, made.inputs) if made.op.kind is Kind.CONTRACT else made
        else:
            copy_of[node.id] = _made(graph, node, windows, tuple(copy_of[i.id] for i in node.inputs))
        if node.name is not None:
            graph.adopt(node.name, copy_of[node.id], program.graph.storage.get(node.name))
    graph.origin = None
    graph.lock = program.graph.lock
    prepared = Program(
        graph,
        tuple(copy_of[n.id] for n in program.inputs),
        tuple(copy_of[n.id] for n in program.outputs),
        tuple((copy_of[old.id], copy_of[new.id]) for old, new in program.updates),
        program.output_names,
        program.name,
    )
    return _without_last_reshapes(prepared)


def _without_last_reshapes(program: Program) -> Program:
    """The program with outputs that no reshape follows, where what it reshapes is computed and no result itself."""
    taken = {n.id for n in program.roots}
    outputs: list[Node] = []
    for node in program.outputs:
        source = node
        while source.op.name == "reshape":
            source = source.inputs[0]
        again = sum(other is node for other in program.roots) > 1
        keeps = again or source.id in taken or is_leaf(source) or source.op.kind is Kind.SOURCE
        outputs.append(node if keeps else source)
        taken.add(outputs[-1].id)
    return program if tuple(outputs) == program.outputs else replace(program, outputs=tuple(outputs))


def _with_inputs(program: Program) -> list[Node]:
    found = {n.id: n for n in (*program.inputs, *(old for old, _ in program.updates), *program.nodes)}
    return [found[k] for k in sorted(found)]


def _cuts(program: Program) -> dict[int, Node]:
    """The slices that are all that is read of a fold."""
    readers: dict[int, list[Node]] = {}
    for node in program.nodes:
        if node.op.name == "fold" and is_products(node):
            readers[node.id] = []
        for source in node.inputs:
            if source.id in readers:
                readers[source.id].append(node)
    roots = {n.id for n in program.roots}
    return {
        found[0].id: found[0]
        for fold, found in readers.items()
        if fold not in roots and len(found) == 1 and _is_plain_cut(found[0])
    }


def _is_plain_cut(node: Node) -> bool:
    """Whether a slice of a fold is not empty and leaves out no element between others along the folded axes."""
    if node.op.name != "slice":
        return False
    rank = len(node.inputs[0].attrs[0])
    return size_of(node.shape) != 0 and set(node.attrs[2][node.ndim - rank :]) == {1}


def _made(graph: Graph, node: Node, windows: Mapping[int, int], inputs: tuple[Node, ...]) -> Node:
    form = _form(node, windows)
    return graph.add(node.op, inputs, node.attrs) if form is None else form(graph, node, *inputs)


def _form(node: Node, windows: Mapping[int, int]) -> Form | None:
    """How a node is computed in another form, given the `_window_ranks`; None for one that stays as it is."""
    if node.op.kind is Kind.CONTRACT:
        if _is_row_product(node):
            return _product_and_sum
        blocks = _blocks(node)
        return functools.partial(_in_blocks, blocks=blocks) if blocks > 1 else None
    if node.op.name == "sum_to":
        return _sum_to
    if node.op.name not in _PAIRWISE:
        return None
    if _is_over_windows(node, windows):
        return _tap_by_tap
    if sums_rows(node):
        return _rows_in_blocks
    return _two_stages if _is_long(node) else None


def _is_long(node: Node) -> bool:
    results = size_of(node.shape)
    elements = size_of(node.inputs[0].shape)
    return (
        isinstance(results, int)
        and isinstance(elements, int)
        and 0 < results < FEW_RESULTS
        and elements // results >= (LONG // 2 if elements >= MANY else LONG)
    )


def _window_ranks(program: Program) -> dict[int, int]:
    """For nodes computed element by element from windows: how many of their last axes run over places in a window."""
    ranks: dict[int, int] = {}
    for node in program.nodes:
        rank = 0
        if node.op.name == "window":
            rank = len(node.attrs[0])
        elif node.op.kind is Kind.POINTWISE:
            rank = max((ranks.get(i.id, 0) for i in node.inputs), default=0)
        if rank:
            ranks[node.id] = rank
    return ranks


def _is_over_windows(node: Node, windows: Mapping[int, int]) -> bool:
    """Whether a reduction runs over the places in small windows, given the `_window_ranks`."""
    source = node.inputs[0]
    axes: tuple[int, ...] = node.attrs[0]
    shape = static_shape(source.shape)
    if 0 in shape or not 1 < math.prod(shape[axis] for axis in axes) <= TAPS:
        return False
    return min(axes) >= source.ndim - windows.get(source.id, 0)


def _tap_by_tap(graph: Graph, node: Node, source: Node) -> Node:
    axes: tuple[int, ...] = node.attrs[0]
    shape = static_shape(source.shape)
    combine = OPS[_PAIRWISE[node.op.name]]
    total: Node | None = None
    for place in itertools.product(*(range(shape[axis]) for axis in axes)):
        tap = source
        for axis, k in zip(axes, place, strict=True):
            tap = cut_axis(graph, tap, axis, k, k + 1)
        tap = graph.add(OPS["reshape"], (tap,), (node.shape,))
        total = tap if total is None else graph.add(combine, (total, tap))
    assert total is not None
    return total


def _sum_to(graph: Graph, node: Node, source: Node) -> Node:
    """The inverse of a broadcast as the sum it is."""
    shape, target = static_shape(source.shape), static_shape(node.shape)
    lead = len(shape) - len(target)
    axes = (*range(lead), *(lead + k for k, d in enumerate(target) if d == 1 and shape[lead + k] != 1))
    if axes:
        total = graph.add(OPS["sum"], (source,), (axes,))
        if sums_rows(total):
            source = sum_of_blocks(graph, source)
        else:
            source = _two_stages(graph, total, source) if _is_long(total) else total
    return graph.add(OPS["reshape"], (source,), (target,)) if source.shape != target else source


def _rows_in_blocks(graph: Graph, _: Node, source: Node) -> Node:
    return sum_of_blocks(graph, source)


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
        rest = cut_axis(graph, source, long, whole * CHUNK, extent)
        parts.append(_expanded(graph, graph.add(node.op, (rest,), ((long,),)), long))
    partial = parts[0] if len(parts) == 1 else graph.add(OPS["concat"], tuple(parts), (long,))
    return graph.add(node.op, (partial,), (axes,))


def _chunks(graph: Graph, node: Node, source: Node, axis: int, whole: int) -> Node:
    """One partial result per chunk, where the chunks were."""
    shape = static_shape(source.shape)
    head = cut_axis(graph, source, axis, 0, whole * CHUNK)
    cut = (*shape[:axis], whole, CHUNK, *shape[axis + 1 :])
    return graph.add(node.op, (graph.add(OPS["reshape"], (head,), (cut,)),), ((axis + 1,),))


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


def _blocks(node: Node) -> int:
    """Into how many parts of its first label the sum of a contraction is cut: so many that the operands fit a cache.

    Only where the sum is long and the result small: each part has a result of its own. The sum of a row's product with
    a matrix is cut where the matrix is large.
    """
    left, _, out = node.attrs
    summed = [label for label in left if label not in out]
    if not summed or size_of(node.shape) == 0:
        return 1
    sizes = dict(zip(left, static_shape(node.inputs[0].shape), strict=True))
    elements = sum(static_size(_base(i).shape) for i in node.inputs)
    extent = sizes[summed[0]]
    if elements < BLOCK or math.prod(sizes[label] for label in summed) < DEEP:
        return _row_blocks(node, extent) if elements >= ROW_BLOCK else 1
    blocks = next((b for b in range(2, extent + 1) if extent % b == 0 and elements <= b * BLOCK), extent)
    return blocks if 4 * blocks * static_size(node.shape) <= elements else 1


def _row_blocks(node: Node, extent: int) -> int:
    """Into how many parts the lines of a matrix that one row meets are cut, if that is what a contraction is."""
    left, right, out = node.attrs
    shapes = [static_shape(i.shape) for i in node.inputs]
    own = [
        [label for label, size in zip(labels, shape, strict=True) if label in out and size > 1]
        for labels, shape in zip((left, right), shapes, strict=True)
    ]
    if all(own) or static_size(node.shape) > ROW_RESULTS:
        return 1
    return next((b for b in range(min(ROW_PARTS, extent // ROW_LINES), 1, -1) if extent % b == 0), 1)


def _base(node: Node) -> Node:
    """What a view looks at, when that is smaller."""
    while node.op.kind is Kind.VIEW and len(node.inputs) == 1:
        node = node.inputs[0]
    return node


def _in_blocks(graph: Graph, node: Node, *inputs: Node, blocks: int) -> Node:
    """Partial sums over blocks of the first label, and their sum."""
    left, right, out = (str(labels) for labels in node.attrs)
    cut = next(label for label in left if label not in out)
    block = next(c for c in string.ascii_letters if c not in left + right)
    parts: list[Node] = []
    for operand, labels in zip(inputs, (left, right), strict=True):
        shape, axis = static_shape(operand.shape), labels.index(cut)
        split = (*shape[:axis], blocks, shape[axis] // blocks, *shape[axis + 1 :])
        parts.append(graph.add(OPS["reshape"], (operand,), (split,)))
    attrs = (left.replace(cut, block + cut), right.replace(cut, block + cut), block + out)
    return graph.add(OPS["sum"], (graph.add(node.op, tuple(parts), attrs),), ((0,),))


def _product_and_sum(graph: Graph, node: Node, *inputs: Node) -> Node:
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
