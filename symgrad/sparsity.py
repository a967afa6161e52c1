"""Which elements of a node can depend on which elements of a seed, from the graph alone.

A linear node of a seed, as `jvp` and `vjp` build it, has zeros in its matrix wherever its element does not depend on
the element of the seed: what follows is the sparsity of a Jacobian. It never misses an entry. Elements that are zero
for every input, such as products with zeros of a constant, are no entries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from symgrad.errors import GradientError, ShapeError
from symgrad.evaluate import evaluate
from symgrad.graph import Node, ancestors, describe
from symgrad.opdef import OPS, Kind
from symgrad.ops.build import uniform_value
from symgrad.ops.control import readers
from symgrad.record import record
from symgrad.storage import Literal
from symgrad.types import Dim, static_shape, static_size

if TYPE_CHECKING:
    import numpy.typing as npt

    Indices = npt.NDArray[np.int64]

# Numbers of sets that are not stored: no element of the seed, and all of them.
EMPTY, FULL = -1, -2
MOST_ENTRIES = 1 << 26
"""The entries a pattern may hold, 512 MiB of them: beyond that nothing is gained by leaving out the others."""

_REDUCTIONS = frozenset(("sum", "prod", "max", "min", "any", "all"))
_SCATTERS = frozenset(("scatter_add", "scatter_set", "scatter_max", "scatter_min", "scatter_multiply"))
_PRODUCTS = frozenset(("multiply", "safe_multiply"))


@record(eq=False)
class Pattern:
    """For each element of a node, in row-major order, a set of elements of the seed.

    `sets` holds the number of a set for each element. Set k is `members[starts[k] : starts[k + 1]]`, in ascending
    order. Elements that depend on the same can share a set, so that moving and copying elements moves numbers only.
    """

    sets: Indices
    starts: Indices
    members: Indices
    extent: int

    def rows(self) -> tuple[Indices, Indices]:
        """Every set written out, one after the other in the order of the elements: where each starts, and members."""
        first, counts = np.zeros_like(self.sets), np.zeros_like(self.sets)
        stored, whole = self.sets >= 0, self.sets == FULL
        chosen = self.sets[stored]
        first[stored], counts[stored] = self.starts[chosen], np.diff(self.starts)[chosen]
        # The full set stands behind those that are stored.
        first[whole], counts[whole] = self.members.size, self.extent
        starts = _starts(counts)
        _check_entries(int(starts[-1]))
        members = np.concatenate([self.members, np.arange(self.extent if whole.any() else 0)])
        return starts, members[_runs(first, counts)]


def dependence(output: Node, seed: Node) -> Pattern:
    """The elements of the seed that each element of the output can depend on. All extents are numbers.

    Raises ShapeError for symbolic extents, and GradientError for more than 2**26 entries.
    """
    check_static(seed, output)
    extent = static_size(seed.shape)
    nothing = Pattern(np.full(static_size(output.shape), EMPTY), np.zeros(1, np.int64), _none(), extent)
    order = ancestors([output])
    constants = _Constants()
    found: dict[Node, Pattern] = {}
    last = {source: node for node in order for source in node.inputs}
    for node in order:
        constants.note(node)
        if node is seed:
            found[node] = Pattern(np.arange(extent), np.arange(extent + 1), np.arange(extent), extent)
            continue
        live = [found.get(i) for i in (node.inputs[:1] if node.op.name == "fence" else node.inputs)]
        if not any(p is not None for p in live):
            continue
        check_static(node, *node.inputs)
        found[node] = _rule(node, live, constants)
        for source in node.inputs:
            if last[source] is node:
                found.pop(source, None)
    return found.get(output, nothing)


def transposed(starts: Indices, members: Indices, extent: int) -> tuple[Indices, Indices]:
    """For each of `extent` members the rows it stands in, as where each list starts and the lists."""
    rows = np.repeat(np.arange(starts.size - 1), np.diff(starts))
    order = np.argsort(members, kind="stable")
    return _starts(np.bincount(members, minlength=extent)), rows[order]


class _Constants:
    """The values of nodes that depend on constants alone."""

    def __init__(self) -> None:
        self._fixed: set[Node] = set()

    def note(self, node: Node) -> None:
        """Remember whether a node has one value for every input; nodes come in topological order."""
        if node.op.kind is Kind.SOURCE:
            fixed = node.op.name in ("const", "iota", "dim") and not any(isinstance(a, Dim) for a in node.attrs)
        else:
            fixed = node.op.kind is not Kind.CONTROL and all(i in self._fixed for i in node.inputs)
        if fixed and node.type.is_static:
            self._fixed.add(node)

    def value(self, node: Node) -> npt.NDArray[Any] | None:
        """The value; None for a node that depends on more than constants."""
        return evaluate(node) if node in self._fixed else None

    def nonzero(self, node: Node) -> npt.NDArray[np.bool_] | None:
        """Where a constant is not zero; None for no constant, or one without zeros."""
        uniform = uniform_value(node)
        if node not in self._fixed or (uniform is not None and uniform != 0):
            return None
        mask = np.asarray(evaluate(node) != 0)
        return None if mask.all() else mask


# Rules: the pattern of a node from those of its inputs, None for an input that does not depend on the seed.


def _rule(node: Node, live: Sequence[Pattern | None], constants: _Constants) -> Pattern:
    name, kind = node.op.name, node.op.kind
    if name == "custom":
        live = [p if i in readers(node, 0) else None for i, p in zip(node.inputs, live, strict=True)]
    if kind is Kind.POINTWISE or name in ("stop_gradient", "phase", "custom", "fence"):
        return _pointwise(node, live, constants)
    if kind is Kind.VIEW:
        return _view(node, live)
    if name in _REDUCTIONS or name in ("sum_to", "fold", "argmax", "argmin"):
        return _reduced(node, live)
    if kind is Kind.CONTRACT:
        return _contracted(node, live, constants)
    if kind is Kind.SCAN:
        return _along(node, live, node.attrs[0])
    if name == "take" and live[1] is None:
        return _taken(node, live, constants)
    if name in _SCATTERS and live[1] is None:
        return _scattered(node, live, constants)
    # Whatever else there is depends at most on all its inputs.
    every = [(p, np.zeros(p.sets.size, np.int64), np.arange(p.sets.size)) for p in live if p is not None]
    size = static_size(node.shape)
    return _picked(_union(1, every, every[0][0].extent), np.zeros(size, np.int64))


def _pointwise(node: Node, live: Sequence[Pattern | None], constants: _Constants) -> Pattern:
    moving = [p for p in live if p is not None]
    size = static_size(node.shape)
    if node.op.name == "where" and live[0] is None and (condition := constants.value(node.inputs[0])) is not None:
        chosen = condition.reshape(-1)
        sides = [(p, np.flatnonzero(chosen == side)) for p, side in zip(live[1:], (True, False), strict=True)]
        return _union(size, [(p, at, at) for p, at in sides if p is not None], moving[0].extent)
    if node.op.name in _PRODUCTS and len(moving) == 1:
        mask = constants.nonzero(node.inputs[1 if live[0] is not None else 0])
        (pattern,) = moving
        return pattern if mask is None else _picked(pattern, np.where(mask.reshape(-1), np.arange(size), -1))
    first, rest = moving[0], [p for p in moving[1:] if p is not moving[0]]
    if all(_same(first, p) for p in rest):
        return first
    everywhere = np.arange(size)
    return _union(size, [(p, everywhere, everywhere) for p in (first, *rest)], first.extent)


def _view(node: Node, live: Sequence[Pattern | None]) -> Pattern:
    """A view of the numbers of the elements says where each element of the output comes from."""
    grids: list[Indices] = []
    start = 0
    for source, pattern in zip(node.inputs, live, strict=True):
        shape = static_shape(source.shape)
        if pattern is None:
            grids.append(np.full(shape, -1))
        else:
            grids.append(np.arange(start, start + pattern.sets.size).reshape(shape))
            start += pattern.sets.size
    attrs = dict(zip(node.op.attrs, node.attrs, strict=True))
    if "value" in attrs:
        attrs["value"] = Literal(np.asarray(-1))
    assert node.op.ref is not None
    origin = np.asarray(node.op.ref(*grids, **attrs)).reshape(-1)
    moving = [p for p in live if p is not None]
    return _picked(moving[0] if len(moving) == 1 else _behind(moving), origin)


def _reduced(node: Node, live: Sequence[Pattern | None]) -> Pattern:
    (pattern,) = live
    assert pattern is not None
    (x,) = node.inputs
    shape, out = static_shape(x.shape), static_shape(node.shape)
    numbers = np.arange(math.prod(out))
    if node.op.name == "sum_to":
        target = np.broadcast_to(numbers.reshape(out), shape)
    elif node.op.name == "fold":
        _, strides, dilations = node.attrs
        window = OPS["window"].ref
        assert window is not None
        sizes = shape[len(shape) - len(strides) :]
        target = window(numbers.reshape(out), sizes=sizes, strides=strides, dilations=dilations)
    else:
        axes = node.attrs[0] if node.op.attrs == ("axes",) else (node.attrs[0],)
        kept = tuple(1 if k in axes else e for k, e in enumerate(shape))
        target = np.broadcast_to(numbers.reshape(kept), shape)
    return _union(numbers.size, [(pattern, target.reshape(-1), np.arange(pattern.sets.size))], pattern.extent)


def _along(node: Node, live: Sequence[Pattern | None], axis: int) -> Pattern:
    """Every element depends on all that stand beside it along an axis."""
    shape = static_shape(node.shape)
    kept = (*shape[:axis], 1, *shape[axis + 1 :])
    line = np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape).reshape(-1)
    parts = [(p, line, np.arange(p.sets.size)) for p in live if p is not None]
    return _picked(_union(math.prod(kept), parts, parts[0][0].extent), line)


def _contracted(node: Node, live: Sequence[Pattern | None], constants: _Constants) -> Pattern:
    size = static_size(node.shape)
    everywhere = np.arange(size)
    found: list[Pattern] = []
    for k in (0, 1):
        pattern, other = live[k], node.inputs[1 - k]
        if pattern is None:
            continue
        mask = constants.nonzero(other) if live[1 - k] is None else None
        mine, theirs, out = node.attrs[k], node.attrs[1 - k], node.attrs[2]
        extents = dict(zip(mine + theirs, static_shape(node.inputs[k].shape + other.shape), strict=True))
        if mask is None:
            # Summed over what the output does not have, copied along what it has besides.
            kept = "".join(c for c in out if c in mine)
            places = {c: np.arange(extents[c]) for c in mine}
            summed = _union(
                math.prod(extents[c] for c in kept),
                [(pattern, _flat(kept, mine, extents, places), _flat(mine, mine, extents, places))],
                pattern.extent,
            )
            places = {c: np.arange(extents[c]) for c in out}
            found.append(_picked(summed, _flat(kept, out, extents, places)))
            continue
        # One pair of elements for each coefficient that is not zero, and each place the operand has besides.
        free = "".join(c for c in mine if c not in theirs)
        repeats = math.prod(extents[c] for c in free)
        coefficients = np.nonzero(mask)
        _check_entries(coefficients[0].size * repeats if coefficients else repeats)
        pairs = {c: np.repeat(at, repeats) for c, at in zip(theirs, coefficients, strict=True)}
        tiles = np.unravel_index(np.arange(repeats), [extents[c] for c in free]) if free else ()
        count = int(mask.sum())
        pairs |= {c: np.tile(at, count) for c, at in zip(free, tiles, strict=True)}
        ends = [_ravelled(labels, extents, pairs, count * repeats) for labels in (out, mine)]
        found.append(_union(size, [(pattern, ends[0], ends[1])], pattern.extent))
    return found[0] if len(found) == 1 else _union(size, [(p, everywhere, everywhere) for p in found], found[0].extent)


def _flat(labels: str, loops: str, extents: dict[str, int], places: dict[str, Indices]) -> Indices:
    """The row-major number of the element with these labels, at each step of the loops."""
    shape = tuple(extents[c] for c in loops)
    number = np.zeros(shape, np.int64)
    for label in labels:
        axes = [1] * len(loops)
        axes[loops.index(label)] = extents[label]
        number = number * extents[label] + places[label].reshape(axes)
    return number.reshape(-1)


def _ravelled(labels: str, extents: dict[str, int], places: dict[str, Indices], count: int) -> Indices:
    number = np.zeros(count, np.int64)
    for label in labels:
        number = number * extents[label] + places[label]
    return number


def _taken(node: Node, live: Sequence[Pattern | None], constants: _Constants) -> Pattern:
    pattern = live[0]
    assert pattern is not None
    axis, shape = node.attrs[0], static_shape(node.inputs[0].shape)
    index = constants.value(node.inputs[1])
    if index is not None:
        return _picked(pattern, np.take(np.arange(pattern.sets.size).reshape(shape), index, axis).reshape(-1))
    lines = _lines(shape, axis)
    whole = _union(int(lines.max(initial=-1)) + 1, [(pattern, lines, np.arange(lines.size))], pattern.extent)
    return _picked(whole, _lines(static_shape(node.shape), axis, node.inputs[1].ndim))


def _scattered(node: Node, live: Sequence[Pattern | None], constants: _Constants) -> Pattern:
    axis, shape = node.attrs[0], static_shape(node.shape)
    everywhere = np.arange(math.prod(shape))
    kept, _, given = live
    extent = next(p for p in live if p is not None).extent
    parts = [(kept, everywhere, everywhere)] if kept is not None else []
    if given is not None:
        index = constants.value(node.inputs[1])
        if index is not None:
            target = np.take(everywhere.reshape(shape), index, axis).reshape(-1)
            parts.append((given, target, np.arange(target.size)))
        else:
            lines = _lines(static_shape(node.inputs[2].shape), axis, node.inputs[1].ndim)
            ends = _lines(shape, axis)
            whole = _union(int(ends.max(initial=-1)) + 1, [(given, lines, np.arange(lines.size))], extent)
            parts.append((whole, everywhere, ends))
    return _union(everywhere.size, parts, extent)


def _lines(shape: tuple[int, ...], axis: int, count: int = 1) -> Indices:
    """For each element the number of the line it stands in along `count` axes: equal places along the others."""
    kept = tuple(1 if axis <= k < axis + count else e for k, e in enumerate(shape))
    return np.broadcast_to(np.arange(math.prod(kept)).reshape(kept), shape).reshape(-1)


# Sets.


def _union(size: int, parts: Sequence[tuple[Pattern, Indices, Indices]], extent: int) -> Pattern:
    """The union for each of `size` elements: each part says which elements take the sets of which of its own."""
    full = np.zeros(size, np.bool_)
    ends: list[Indices] = []
    numbers: list[Indices] = []
    pattern = _behind([p for p, _, _ in parts]) if len(parts) != 1 else parts[0][0]
    start = 0
    for part, out, into in parts:
        chosen = pattern.sets[into + start]
        full[out[chosen == FULL]] = True
        ends.append(out[chosen >= 0])
        numbers.append(chosen[chosen >= 0])
        start += part.sets.size
    total = max(1, pattern.starts.size - 1)
    keys = np.concatenate([*ends, _none()]) * total + np.concatenate([*numbers, _none()])
    end, number = np.divmod(distinct(keys), total)
    partial = ~full[end]
    end, number = end[partial], number[partial]
    counts = np.bincount(end, minlength=size)
    sets = np.where(full, FULL, EMPTY)
    # An element with one set keeps it; where there are more, they are merged.
    alone = counts[end] == 1
    sets[end[alone]] = number[alone]
    if alone.all():
        return Pattern(sets, pattern.starts, pattern.members, extent)
    used, renumbered = np.unique(number[alone], return_inverse=True)
    sets[end[alone]] = renumbered
    merged = np.flatnonzero(counts > 1)
    place = np.cumsum(counts > 1) - 1
    end, number = place[end[~alone]], number[~alone]
    lengths = np.diff(pattern.starts)
    _check_entries(int(lengths[number].sum()))
    owner = np.repeat(end, lengths[number])
    member = pattern.members[_runs(pattern.starts[number], lengths[number])]
    owner, member = np.divmod(distinct(owner * extent + member), extent)
    sizes = np.bincount(owner, minlength=merged.size)
    whole = sizes == extent
    sets[merged] = np.where(whole, FULL, used.size + np.cumsum(~whole) - 1)
    before = pattern.members[_runs(pattern.starts[used], lengths[used])]
    starts = _starts(np.concatenate([lengths[used], sizes[~whole]]))
    return Pattern(sets, starts, np.concatenate([before, member[~whole[owner]]]), extent)


def _picked(pattern: Pattern, origin: Indices) -> Pattern:
    """Elements in other places; -1 for one that depends on nothing."""
    sets = np.append(pattern.sets, EMPTY)[origin]
    return Pattern(sets, pattern.starts, pattern.members, pattern.extent)


def _behind(patterns: Sequence[Pattern]) -> Pattern:
    """The elements of all patterns, one after the other."""
    sets: list[Indices] = []
    starts, members = [np.zeros(1, np.int64)], [_none()]
    count, length = 0, 0
    for p in patterns:
        sets.append(np.where(p.sets >= 0, p.sets + count, p.sets))
        starts.append(p.starts[1:] + length)
        members.append(p.members)
        count += p.starts.size - 1
        length += p.members.size
    extent = patterns[0].extent if patterns else 0
    return Pattern(np.concatenate([*sets, _none()]), np.concatenate(starts), np.concatenate(members), extent)


def _same(a: Pattern, b: Pattern) -> bool:
    same_table = a.members is b.members or (np.array_equal(a.starts, b.starts) and np.array_equal(a.members, b.members))
    return same_table and np.array_equal(a.sets, b.sets)


def distinct(keys: Indices) -> Indices:
    """The different keys in ascending order; the array given is sorted. Faster than `np.unique` where few are equal."""
    keys.sort()
    return np.concatenate([keys[:1], keys[1:][keys[1:] != keys[:-1]]])


def _starts(counts: Indices) -> Indices:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _runs(first: Indices, counts: Indices) -> Indices:
    """The numbers first[k], …, first[k] + counts[k] - 1 for every k, one after the other."""
    starts = _starts(counts)
    return np.repeat(first - starts[:-1], counts) + np.arange(int(starts[-1]))


def _none() -> Indices:
    return np.zeros(0, np.int64)


# Errors.


def check_static(*nodes: Node) -> None:
    """Raise ShapeError unless all extents are numbers."""
    for node in nodes:
        if not node.type.is_static:
            raise ShapeError(
                f"the pattern of a sparse derivative needs extents that are numbers: {describe(node)}; declare the "
                "inputs with integers, or take the dense derivative"
            )


def _check_entries(count: int) -> None:
    if count > MOST_ENTRIES:
        raise GradientError(
            f"a sparse derivative of {count} entries or more, of at most {MOST_ENTRIES}: take sg.jacobian or "
            "sg.hessian without sparse, or products with sg.jvp, sg.vjp and sg.hvp"
        )
