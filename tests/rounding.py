"""How far rounding errors can move the values of a graph: Monte Carlo arithmetic.

Every floating operation is followed by a random relative error many times larger than the true one; what that moves is
a bound on errors that knows the condition of every element (D. S. Parker, "Monte Carlo arithmetic", 1997).
"""

# pyright: basic
from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from symgrad.bind import bind_attr
from symgrad.graph import Node
from symgrad.opdef import Kind
from symgrad.ops.control import readers

Array = np.ndarray
Values = dict[int, Array]
# Imitated errors, in units of the spacing of floating numbers at 1.
NOISE = 64
# Samples taken before anything is compared, and those that a difference must exceed to be reported.
FEW, MANY = 2, 32
# What a result may miss without imitated errors: two roundings of the same number.
FLOOR = 4

# Floating results that no rounding enters. Everything else of floats rounds.
_EXACT = frozenset(("negative", "abs", "sign", "floor", "ceil", "round", "trunc", "copysign"))
_EXACT |= frozenset(("maximum", "minimum", "max", "min", "where", "stop_gradient", "sort", "cumulative_max"))
# Results that sum or multiply many numbers: errors enter before cancellation, so the operands are moved too.
_MANY = frozenset(("sum", "prod", "sum_to", "contract", "fold", "scatter_add", "cumulative_sum", "cumulative_prod"))
_INFER = 1


def inference_order(nodes: Sequence[Node], known: Collection[int]) -> list[Node]:
    """What must be computed for nodes in inference, operands first, nothing behind a node whose id is known."""
    stack, seen = list(nodes), {n.id: n for n in nodes}
    while stack:
        node = stack.pop()
        for source in () if node.id in known else readers(node, _INFER):
            if source.id not in seen:
                seen[source.id] = source
                stack.append(source)
    return [seen[k] for k in sorted(seen)]


def _moved(rng: np.random.Generator, value: Array) -> Array:
    if value.dtype.kind != "f" or not value.size:
        return value
    drawn = rng.uniform(-1, 1, value.shape).astype(value.dtype)
    return value * (1 + NOISE * np.finfo(value.dtype).eps * drawn)


def _any_zeros(rng: np.random.Generator, value: Array) -> Array:
    """The value with zeros of random sign: that of a sum depends on where the sum begins."""
    if value.dtype.kind != "f" or np.all(value):
        return value
    signs = rng.choice(np.array([-1.0, 1.0]), value.shape).astype(value.dtype)
    return np.where(value == 0, np.copysign(np.zeros_like(value), signs), value)


def _rounds(node: Node) -> bool:
    if not node.dtype.is_float or node.op.kind in (Kind.VIEW, Kind.SOURCE) or node.op.name in _EXACT:
        return False
    if node.op.name == "astype":
        return node.inputs[0].dtype.bits > node.dtype.bits or node.inputs[0].dtype.is_integer
    return node.op.name not in ("take", "phase", "custom")


@dataclass
class Rounding:
    """The values of nodes of a graph of known extents, and how far rounding errors may move them.

    `spared` are the ids of nodes whose results are promised bit by bit: nothing moves them.
    """

    nodes: Sequence[Node]
    feeds: Mapping[Node, Array]
    spared: Collection[int] = ()
    seed: int = 0
    values: Values = field(init=False)
    bounds: list[Array] = field(init=False)
    # Whether an imitated error changed an integer or a truth value: the graph jumps there.
    jumps: bool = False
    _samples: int = 0

    def __post_init__(self) -> None:
        self._order = inference_order(self.nodes, {n.id for n in self.feeds})
        self._rng = np.random.default_rng(self.seed)
        self.values = self._run(None)
        self.bounds = [self._floor(self.values[n.id]) for n in self.nodes]

    def sample(self, wanted: int) -> None:
        """Widen the bounds to those of so many samples."""
        for _ in range(self._samples, wanted):
            moved = self._run(self._rng)
            for k, node in enumerate(self.nodes):
                with np.errstate(all="ignore"):
                    distance = np.abs(moved[node.id].astype(np.float64) - self.values[node.id].astype(np.float64))
                self.bounds[k] = np.fmax(self.bounds[k], distance)
        self._samples = max(self._samples, wanted)

    def _floor(self, value: Array) -> Array:
        if value.dtype.kind != "f":
            return np.zeros(value.shape)
        info = np.finfo(value.dtype)
        with np.errstate(all="ignore"):
            return FLOOR * (np.abs(value.astype(np.float64)) * float(info.eps) + float(info.smallest_normal))

    def _run(self, rng: np.random.Generator | None) -> Values:
        found: Values = {n.id: np.asarray(a) for n, a in self.feeds.items()}
        with np.errstate(all="ignore"):
            for node in self._order:
                if node.id in found:
                    continue
                sources = [found[s.id] for s in readers(node, _INFER)]
                moves = rng is not None and node.id not in self.spared and _rounds(node)
                if rng is not None and moves and node.op.name in _MANY:
                    sources = [_moved(rng, a) for a in sources]
                value = _value(node, sources)
                if rng is not None and moves and node.op.name in _MANY:
                    value = _any_zeros(rng, value)
                found[node.id] = _moved(rng, value) if rng is not None and moves else value
                if rng is not None and value.dtype.kind != "f" and not np.array_equal(value, self.values[node.id]):
                    self.jumps = True
        return found


def _value(node: Node, sources: list[Array]) -> Array:
    if node.op.name in ("phase", "custom"):
        return sources[0]
    if node.op.name in ("param", "state"):
        return node.value
    assert node.op.ref is not None, node
    attrs = dict(zip(node.op.attrs, bind_attr(node.attrs, {}), strict=True))
    return np.asarray(node.op.ref(*sources, **attrs))
