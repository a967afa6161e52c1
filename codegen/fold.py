"""Sums of windows back into place as the operators that kernels are made for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.storage import Literal
from symgrad.types import DType, Extent, static_shape

# A sum of more terms than this is folded as a whole: each term alone costs a pass over the result.
TERMS = 8


def is_products(node: Node) -> bool:
    """Whether a fold is a sum of contractions and nothing else: then no part of it but what is wanted is computed."""
    rank = len(node.attrs[0])
    return all(_factors(term, rank) is not None for term in _terms(node.inputs[0]))


def cut_fold(graph: Graph, cut: Node, copy_of: Mapping[int, Node]) -> Node:
    """A slice of a fold that `is_products`, without what lies outside of it."""
    fold = cut.inputs[0]
    rank = len(fold.attrs[0])
    starts, stops, steps = cut.attrs
    lead = fold.ndim - rank
    terms = _terms(fold.inputs[0])
    spans = tuple(zip(starts[lead:], stops[lead:], strict=True))
    whole = _sum(graph, [_contraction(graph, fold, term, copy_of, spans) for term in terms])
    starts = (*starts[:lead], *(0,) * rank)
    stops = (*stops[:lead], *static_shape(whole.shape)[lead:])
    if not any(starts) and stops == whole.shape and steps == (1,) * fold.ndim:
        return whole
    return graph.add(OPS["slice"], (whole,), (starts, stops, steps))


def fold_node(graph: Graph, node: Node, copy_of: Mapping[int, Node]) -> Node:
    """A fold in a new graph, from the copies of its operands.

    A contraction of an array over the places of windows with one over the places in a window, which is what the
    gradient of a convolution with respect to its input is, becomes a contraction over windows of the first with the
    second reversed: nothing of the size of all windows is stored. Terms of a sum are taken one by one. Everything else
    is summed axis by axis.
    """
    terms = _terms(node.inputs[0])
    rank = len(node.attrs[0])
    products = [t for t in terms if _factors(t, rank) is not None]
    if not products:
        return _by_axes(graph, node, copy_of[node.inputs[0].id])
    spans = tuple((0, int(extent)) for extent in node.attrs[0])
    parts = [_contraction(graph, node, t, copy_of, spans) for t in products]
    rest = [copy_of[t.id] for t in terms if _factors(t, rank) is None]
    if rest:
        parts.append(_by_axes(graph, node, _sum(graph, rest)))
    return _sum(graph, parts)


def _sum(graph: Graph, parts: Sequence[Node]) -> Node:
    total = parts[0]
    for part in parts[1:]:
        total = graph.add(OPS["add"], (total, part))
    return total


def _terms(node: Node) -> list[Node]:
    terms = [node]
    place = 0
    while place < len(terms):
        if terms[place].op.name == "add" and len(terms) < TERMS:
            terms[place : place + 1] = terms[place].inputs
        else:
            place += 1
    return terms


def _factors(term: Node, rank: int) -> tuple[int, int] | None:
    """Which operand of a contraction runs over the places of windows, and which over those in a window."""
    if term.op.name != "contract":
        return None
    out: str = term.attrs[2]
    places, inside = set(out[-2 * rank : -rank]), set(out[-rank:])
    for k in (0, 1):
        moving, kernel = set(term.attrs[k]), set(term.attrs[1 - k])
        if places <= moving and inside <= kernel and not inside & moving and not places & kernel:
            return k, 1 - k
    return None


def _contraction(
    graph: Graph, node: Node, term: Node, copy_of: Mapping[int, Node], spans: Sequence[tuple[int, int]]
) -> Node:
    """The part of a folded contraction that lies in the spans of its axes.

    With strides, places of one remainder meet elements of the kernel of one remainder: every such pair is a contraction
    without strides, and their results lie side by side. Nothing is multiplied with the zeros between spread elements.
    Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", chapter 4, has these without the zeros'
    being left out.
    """
    _, strides, dilations = node.attrs
    rank = len(strides)
    factors = _factors(term, rank)
    assert factors is not None
    moving_labels, kernel_labels = (str(term.attrs[k]) for k in factors)
    moving, kernel = (copy_of[term.inputs[k].id] for k in factors)
    out = str(term.attrs[2])
    places, inside = out[-2 * rank : -rank], out[-rank:]
    lead = [k for k, label in enumerate(moving_labels) if label not in places]
    order = (*lead, *(moving_labels.index(label) for label in places))
    moving = _permute(graph, moving, order)
    axes = tuple(kernel_labels.index(label) for label in inside)
    windows = "".join(moving_labels[k] for k in order) + inside
    labels = (windows, kernel_labels, out[:-rank])
    sizes = tuple(int(static_shape(kernel.shape)[axis]) for axis in axes)

    def together(taps: tuple[_Taps, ...]) -> Node | None:
        """What one sequence of taps for each axis makes, or with fewer of them what those of the other axes make."""
        axis = len(taps)
        if axis == rank:
            part = _correlation(graph, moving, kernel, axes, labels, taps)
            return part if strides == (1,) * rank else _apart(graph, part, rank)
        each = _taps_of_phases(spans[axis], sizes[axis], strides[axis], dilations[axis])
        parts = [together((*taps, one)) if one.length else None for one in each]
        return _beside(graph, parts, 2 * axis - 2 * rank + 1)

    whole = together(())
    if whole is None:
        shape = (*static_shape(term.shape)[: -2 * rank], *(stop - start for start, stop in spans))
        return graph.add(OPS["broadcast"], (_zero(graph, term.dtype),), (shape,))
    if strides == (1,) * rank:
        return whole
    shape = static_shape(whole.shape)
    first = len(shape) - 2 * rank
    joined = (*shape[:first], *(shape[k] * shape[k + 1] for k in range(first, len(shape), 2)))
    whole = graph.add(OPS["reshape"], (whole,), (joined,))
    for axis, (start, stop) in enumerate(spans, first):
        whole = cut_axis(graph, whole, axis, 0, stop - start)
    return whole


class _Taps(NamedTuple):
    """Elements `first`, `first + step`, ... of a kernel, `length` of them, and where what they make begins and ends.

    What element `first` makes begins at place `start` of the operand that moves, the next one `dilation` before.
    """

    first: int
    step: int
    length: int
    dilation: int
    start: int
    stop: int


def _taps_of_phases(span: tuple[int, int], size: int, stride: int, dilation: int) -> list[_Taps]:
    """For each remainder of places by the stride, from the first place of a span on, the taps that reach it."""
    start, stop = span
    step = stride // math.gcd(stride, dilation)
    places = -(-(stop - start) // stride)
    out: list[_Taps] = []
    for place in range(start, start + min(stride, stop - start)):
        first = next((k for k in range(min(step, size)) if (place - dilation * k) % stride == 0), size)
        begin = (place - dilation * first) // stride
        count = -(-(size - first) // step)
        out.append(_Taps(first, step, count, dilation * step // stride, begin, begin + places))
    return out


def _correlation(
    graph: Graph,
    moving: Node,
    kernel: Node,
    axes: Sequence[int],
    labels: tuple[str, str, str],
    taps: Sequence[_Taps],
) -> Node:
    """The contraction of windows of one operand with the taps of the other, which lie in its `axes`, reversed."""
    lead = moving.ndim - len(taps)
    low, high = [0] * moving.ndim, [0] * moving.ndim
    for axis, one in enumerate(taps, lead):
        extent = static_shape(moving.shape)[axis]
        reach = one.dilation * (one.length - 1)
        # A span can lie before or behind everything that windows reach; nothing is then left of the operand.
        begin = min(max(one.start - reach, 0), extent)
        end = max(begin, min(one.stop, extent))
        moving = cut_axis(graph, moving, axis, begin, end)
        wanted = one.stop - one.start + reach
        low[axis] = min(max(reach - one.start, 0), wanted - (end - begin))
        high[axis] = wanted - low[axis] - (end - begin)
    dilations = tuple(one.dilation for one in taps)
    sizes = tuple(one.length for one in taps)
    windows = graph.add(OPS["window"], (_pad(graph, moving, low, high),), (sizes, (1,) * len(taps), dilations))
    shape = static_shape(kernel.shape)
    starts, stops, steps = [0] * kernel.ndim, list(shape), [1] * kernel.ndim
    for axis, one in zip(axes, taps, strict=True):
        starts[axis], steps[axis] = one.first, one.step
        stops[axis] = one.first + one.step * (one.length - 1) + 1
    if any(one.step > 1 for one in taps):
        kernel = graph.add(OPS["slice"], (kernel,), (tuple(starts), tuple(stops), tuple(steps)))
    kernel = graph.add(OPS["flip"], (kernel,), (tuple(sorted(axes)),))
    return graph.add(OPS["contract"], (windows, kernel), labels)


def _apart(graph: Graph, x: Node, rank: int) -> Node:
    """An array with an axis of one element behind each of its last axes."""
    shape = static_shape(x.shape)
    lead = x.ndim - rank
    apart = (*shape[:lead], *(extent for axis in range(rank) for extent in (shape[lead + axis], 1)))
    return graph.add(OPS["reshape"], (x,), (apart,))


def _beside(graph: Graph, parts: Sequence[Node | None], axis: int) -> Node | None:
    """Arrays of one shape side by side along an axis, counted from the end, of which they have one element each.

    None stands for zeros.
    """
    found = [k for k, part in enumerate(parts) if part is not None]
    if not found or len(parts) == 1:
        return parts[0]
    known = parts[found[0]]
    assert known is not None
    if len(found) == 1:
        low, high = [0] * known.ndim, [0] * known.ndim
        low[axis], high[axis] = found[0], len(parts) - 1 - found[0]
        return _pad(graph, known, low, high)
    zeros = graph.add(OPS["broadcast"], (_zero(graph, known.dtype),), (known.shape,))
    return graph.add(OPS["concat"], tuple(zeros if part is None else part for part in parts), (known.ndim + axis,))


def _by_axes(graph: Graph, node: Node, x: Node) -> Node:
    """One axis of windows after the other: as many terms as the sum of the sizes, not as their product."""
    extents, strides, dilations = node.attrs
    rank = len(extents)
    if dilations == (1,) * rank and static_shape(x.shape)[x.ndim - rank :] == strides:
        return _side_by_side(graph, x, tuple(map(int, extents)))
    for k in reversed(range(rank)):
        # The axes of places 0 … k and of sizes 0 … k are left, and behind them the axes that are done.
        done = rank - 1 - k
        inside = x.ndim - done - 1
        x = _one_axis(graph, x, inside - k - 1, inside, int(extents[k]), strides[k], dilations[k])
        # The finished axis stands where the places were: behind the sizes that are left, before the finished ones.
        place = inside - k - 1
        order = [a for a in range(x.ndim) if a != place]
        order.insert(x.ndim - done - 1, place)
        x = _permute(graph, x, order)
    return x


def _side_by_side(graph: Graph, x: Node, extents: tuple[int, ...]) -> Node:
    """Windows without gaps and overlaps: their elements in the order of the axes, and zeros behind the last window."""
    rank = len(extents)
    lead = x.ndim - 2 * rank
    order = [*range(lead), *(axis for k in range(rank) for axis in (lead + k, lead + rank + k))]
    shape = static_shape(x.shape)
    covered = tuple(shape[lead + k] * shape[lead + rank + k] for k in range(rank))
    whole = graph.add(OPS["reshape"], (_permute(graph, x, order),), ((*shape[:lead], *covered),))
    return _pad(graph, whole, [0] * whole.ndim, [0] * lead + [e - c for e, c in zip(extents, covered, strict=True)])


def _one_axis(graph: Graph, x: Node, places: int, inside: int, extent: int, stride: int, dilation: int) -> Node:
    """The sum over one axis of windows; `inside` goes, `places` becomes the folded axis."""
    size = static_shape(x.shape)[inside]
    parts: list[Node] = []
    if dilation > 1 or stride == 1:
        for tap in range(size):
            part = _spread(graph, _tap(graph, x, inside, tap), places, stride)
            parts.append(_put(graph, part, places, dilation * tap, extent))
        return _sum(graph, parts)
    # Windows cut into blocks as long as the stride: blocks of one number lie side by side.
    x = _pad(graph, x, [0] * x.ndim, [-size % stride if a == inside else 0 for a in range(x.ndim)])
    for start in range(0, size, stride):
        block = cut_axis(graph, x, inside, start, start + stride)
        order = [a for a in range(x.ndim) if a != inside]
        order.insert(places + 1, inside)
        block = _permute(graph, block, order)
        shape = static_shape(block.shape)
        joined = (*shape[:places], shape[places] * stride, *shape[places + 2 :])
        parts.append(_put(graph, graph.add(OPS["reshape"], (block,), (joined,)), places, start, extent))
    return _sum(graph, parts)


def _put(graph: Graph, x: Node, axis: int, start: int, extent: int) -> Node:
    """The elements from a place on along an axis of this extent, with zeros around; what is beyond is zero and goes."""
    x = cut_axis(graph, x, axis, 0, min(static_shape(x.shape)[axis], extent - start))
    high = extent - start - static_shape(x.shape)[axis]
    return _pad(
        graph,
        x,
        [start if a == axis else 0 for a in range(x.ndim)],
        [high if a == axis else 0 for a in range(x.ndim)],
    )


def _tap(graph: Graph, x: Node, axis: int, place: int) -> Node:
    x = cut_axis(graph, x, axis, place, place + 1)
    return graph.add(OPS["reshape"], (x,), (x.shape[:axis] + x.shape[axis + 1 :],))


def _spread(graph: Graph, x: Node, axis: int, stride: int) -> Node:
    """The elements along an axis with stride - 1 zeros between neighbors."""
    shape = static_shape(x.shape)
    if stride == 1 or shape[axis] == 1:
        return x
    apart = graph.add(OPS["reshape"], (x,), ((*shape[: axis + 1], 1, *shape[axis + 1 :]),))
    apart = _pad(graph, apart, [0] * apart.ndim, [stride - 1 if a == axis + 1 else 0 for a in range(apart.ndim)])
    whole = graph.add(OPS["reshape"], (apart,), ((*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]),))
    return cut_axis(graph, whole, axis, 0, (shape[axis] - 1) * stride + 1)


def _permute(graph: Graph, x: Node, order: Sequence[int]) -> Node:
    return x if list(order) == list(range(x.ndim)) else graph.add(OPS["permute"], (x,), (tuple(order),))


def cut_axis(graph: Graph, x: Node, axis: int, start: int, stop: int) -> Node:
    """The elements of one axis from `start` up to `stop`; `x` itself where these are all."""
    shape = static_shape(x.shape)
    if (start, stop) == (0, shape[axis]):
        return x
    starts = tuple(start if a == axis else 0 for a in range(x.ndim))
    stops = tuple(stop if a == axis else d for a, d in enumerate(shape))
    return graph.add(OPS["slice"], (x,), (starts, stops, (1,) * x.ndim))


def _zero(graph: Graph, dtype: DType) -> Node:
    return graph.add(OPS["const"], (), (Literal(np.zeros((), dtype.np)),))


def _pad(graph: Graph, x: Node, low: Sequence[Extent], high: Sequence[Extent]) -> Node:
    if not any(low) and not any(high):
        return x
    return graph.add(OPS["pad"], (x,), (tuple(low), tuple(high), Literal(np.zeros((), x.dtype.np))))
