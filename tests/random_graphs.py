"""Random graphs that are well conditioned: what the tests of values, derivatives and rewrites run on."""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rounding import NOISE

import symgrad as sg
from symgrad.graph import Graph, Node
from symgrad.types import promote, static_size

Array = np.ndarray
# Elements of a node, and of a node of a small graph.
LARGEST, SMALL = 5000, 64


@dataclass
class Made:
    """A node with its value, the value under imitated rounding errors, and whether every bit of it is promised."""

    node: Node
    value: Array
    noisy: Array
    exact: bool


@dataclass
class RandomGraph:
    """A graph that grows by nodes whose values stay bounded and do not hang on rounding.

    A small one is small enough for arithmetic of many digits; a raw one is built without rewriting, so that the rules
    find in the optimizer what they otherwise find while the graph is built.
    """

    seed: int
    small: bool
    raw: bool
    rng: np.random.Generator = field(init=False)
    graph: Graph = field(init=False)
    made: list[Made] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.graph = Graph(rules={} if self.raw else None)

    @property
    def largest(self) -> int:
        return SMALL if self.small else LARGEST

    # Choices.

    def pick(self, kinds: str = "biuf", where: Callable[[Made], bool] = lambda m: True) -> Made | None:
        """One of the latest nodes of these kinds, more likely a late one."""
        fitting = [m for m in self.made if m.node.dtype.kind in kinds and where(m)]
        if not fitting:
            return None
        late = self.rng.random() < 0.6
        return fitting[int(self.rng.integers(max(0, len(fitting) - 4) if late else 0, len(fitting)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def choose(self, *options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    # Growth.

    def declare(self) -> None:
        rank = self.choose(0, 1, 1, 2, 2, 2) if self.small else self.choose(0, 1, 1, 2, 2, 2, 3)
        extents = (1, 2, 3, 4) if self.small else (1, 2, 3, 4, 5, 7, 16, 17, 33, 65)
        shape = tuple(self.choose(*extents) for _ in range(rank))
        if rank and self.chance(0.02):
            shape = (*shape[:-1], 0)
        if np.prod(shape, initial=1) > self.largest:
            shape = shape[:2]
        dtype = self.choose("float32", "float32", "float32", "float64", "float64", "int32", "int64", "uint8", "bool")
        if dtype.startswith("float"):
            value = np.asarray(self.rng.uniform(-2, 2, shape)).astype(dtype)
            if self.chance(0.3):  # ties and zeros
                value = np.round(value)
            if self.chance(0.1):
                special = self.rng.choice([np.inf, -np.inf, np.nan, -0.0, 0.0], shape)
                value = np.where(self.rng.random(shape) < 0.2, special, value).astype(dtype)
        else:
            value = np.asarray(self.rng.integers(0, {"bool": 2}.get(dtype, 20), shape)).astype(dtype)
        name = f"x{len(self.made)}"
        node = self.graph.state(name, value) if self.chance(0.2) else self.graph.input(name, shape, dtype)
        self.made.append(Made(node, value, value, True))

    def grow(self) -> None:
        name = list(STEPS)[self.integer(0, len(STEPS))]
        step, exact = STEPS[name]
        before = len(self.made)
        found = step(self)
        if found is None:
            return
        node, *sources = found
        if any(m.node is node for m in self.made[:before]) or static_size(node.shape) > self.largest:
            return
        exact = (exact or not node.dtype.is_float) and all(s.exact for s in sources)
        value = sg.evaluate(node, {m.node: m.value for m in self.made})
        noisy = value
        if not exact:
            moved = {m.node: m.noisy for m in self.made}
            moved |= {s.node: self.shaken(s.noisy) for s in sources}
            noisy = self.shaken(sg.evaluate(node, moved))
            if not node.dtype.is_float or name in STEPWISE:
                near = {m.node: m.value for m in self.made}
                for _ in range(6):
                    trial = sg.evaluate(node, near | {s.node: self.shaken(s.value) for s in sources})
                    if np.any(np.abs(trial.astype(np.float64) - value) > 0.1):
                        return
        if not node.dtype.is_float and not np.array_equal(noisy, value):
            return
        if exact:
            if node.dtype.is_float and np.max(np.abs(np.where(np.isfinite(value), value, 0)), initial=0) > 1e3:
                return
        elif node.dtype.is_float:
            if not np.all(np.isfinite(value)) or np.max(np.abs(value), initial=0) > 1e3:
                return
            if np.max(np.abs(value - noisy), initial=0) > 1e-2 * max(1.0, float(np.max(np.abs(value), initial=0))):
                return
        self.made.append(Made(node, value, noisy, exact))

    def shaken(self, value: Array) -> Array:
        if value.dtype.kind != "f":
            return value
        drawn = self.rng.uniform(-1, 1, value.shape).astype(value.dtype)
        return value * (1 + NOISE * np.finfo(value.dtype).eps * drawn)


Found = tuple[Any, ...] | None
Step = Callable[[RandomGraph], Found]


def _unary(function: Callable[[Node], Node], kinds: str, low: float = -np.inf, high: float = np.inf) -> Step:
    def step(r: RandomGraph) -> Found:
        inside = r.pick(kinds, lambda m: not m.value.size or (m.value.min() >= low and m.value.max() <= high))
        return None if inside is None else (function(inside.node), inside)

    return step


def _binary(function: Callable[[Node, Node], Node], kinds: str) -> Step:
    def step(r: RandomGraph) -> Found:
        a = r.pick(kinds)
        if a is None:
            return None

        def fits(m: Made) -> bool:
            try:
                np.broadcast_shapes(m.value.shape, a.value.shape)
            except ValueError:
                return False
            return promote(m.node.dtype, a.node.dtype) is not None

        b = r.pick(kinds, fits)
        if b is None:
            return None
        if r.chance(0.15) and a.node.dtype.is_float:
            return function(a.node, r.graph.const(np.round(r.rng.uniform(-2, 2), 1), a.node.dtype)), a
        return function(a.node, b.node), a, b

    return step


def _divide(r: RandomGraph) -> Found:
    a = r.pick("f")
    if a is None:
        return None
    b = r.pick("f", lambda m: m.value.shape == a.value.shape and bool(np.all(np.abs(m.value) > 0.2)))
    return None if b is None else (a.node / b.node, a, b)


def _power(r: RandomGraph) -> Found:
    a = r.pick("f", lambda m: bool(np.all(m.value > 0.2)))
    if a is None:
        return None
    return a.node ** r.choose(2, 3, -1, 0.5, 1.7, -0.3), a


def _where(r: RandomGraph) -> Found:
    a = r.pick("iuf")
    if a is None:
        return None
    b = r.pick("iuf", lambda m: m.node.type == a.node.type)
    c = r.pick("b", lambda m: m.value.shape in (a.value.shape, (), a.value.shape[-1:], (1,) * a.value.ndim))
    return None if b is None or c is None else (sg.where(c.node, a.node, b.node), a, b, c)


def _reshape(r: RandomGraph) -> Found:
    a = r.pick()
    if a is None or a.value.size == 0:
        return None
    rest, shape = a.value.size, []
    while rest > 1 and len(shape) < 3:
        factors = [f for f in range(2, rest + 1) if rest % f == 0]
        shape.append(factors[r.integer(0, len(factors))])
        rest //= shape[-1]
    shape.append(rest)
    return sg.reshape(a.node, tuple(shape)), a


def _permute(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 1)
    return None if a is None else (sg.permute_dims(a.node, tuple(map(int, r.rng.permutation(a.value.ndim)))), a)


def _slice(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0 and m.value.size > 0)
    if a is None:
        return None
    items: list[Any] = []
    for extent in a.value.shape:
        start, stop = sorted((r.integer(0, extent + 1), r.integer(0, extent + 1)))
        whole = slice(None, None, r.choose(1, -1, 2, -3))
        items.append(r.choose(whole, slice(start, max(stop, start + 1)), whole, min(start, extent - 1)))
    return a.node[tuple(items)], a


def _pad(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0)
    if a is None:
        return None
    widths = [(r.integer(0, 3), r.integer(0, 3)) for _ in a.value.shape]
    return sg.pad(a.node, widths, constant_values=r.choose(0, 1)), a


def _flip(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0)
    return None if a is None else (sg.flip(a.node, r.integer(0, a.value.ndim)), a)


def _roll(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0 and 0 not in m.value.shape)
    return None if a is None else (sg.roll(a.node, r.integer(-3, 4), r.integer(0, a.value.ndim)), a)


def _tile(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0)
    return None if a is None else (sg.tile(a.node, tuple(r.integer(1, 3) for _ in a.value.shape)), a)


def _repeat(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0)
    return None if a is None else (sg.repeat(a.node, r.integer(1, 4), axis=r.integer(0, a.value.ndim)), a)


def _triangle(r: RandomGraph) -> Found:
    a = r.pick("f", lambda m: m.value.ndim > 1)
    return None if a is None else (r.choose(sg.tril, sg.triu)(a.node, r.integer(-1, 2)), a)


def _concat(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0)
    if a is None:
        return None
    axis = r.integer(0, a.value.ndim)

    def fits(m: Made) -> bool:
        if m.value.ndim != a.value.ndim or m.node.dtype is not a.node.dtype:
            return False
        return all(x == y or k == axis for k, (x, y) in enumerate(zip(m.value.shape, a.value.shape, strict=True)))

    b, c = r.pick(where=fits), r.pick(where=fits)
    assert b is not None
    assert c is not None
    parts = [a, b, c] if r.chance(0.3) else [a, b]
    return sg.concat([p.node for p in parts], axis=axis), *parts


def _stack(r: RandomGraph) -> Found:
    a = r.pick()
    assert a is not None
    b = r.pick(where=lambda m: m.node.type == a.node.type)
    assert b is not None
    return sg.stack([a.node, b.node], axis=r.integer(0, a.value.ndim + 1)), a, b


def _broadcast(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.size < 200)
    return None if a is None else (sg.broadcast_to(a.node, (r.integer(1, 6), *a.value.shape)), a)


def _reduce(function: Callable[..., Node], kinds: str, count: int = LARGEST) -> Step:
    def step(r: RandomGraph) -> Found:
        a = r.pick(kinds, lambda m: m.value.ndim > 0 and 0 < m.value.size <= count)
        if a is None:
            return None
        axes = tuple(k for k in range(a.value.ndim) if r.chance(0.6)) or (r.integer(0, a.value.ndim),)
        if len(axes) == a.value.ndim and r.chance(0.5):
            axes = axes[:1]
        return function(a.node, axis=axes, keepdims=r.chance(0.4)), a

    return step


def _along(function: Callable[..., Node], kinds: str) -> Step:
    def step(r: RandomGraph) -> Found:
        a = r.pick(kinds, lambda m: m.value.ndim > 0 and m.value.size > 0)
        return None if a is None else (function(a.node, axis=r.integer(0, a.value.ndim)), a)

    return step


def _matmul(r: RandomGraph) -> Found:
    a = r.pick("iuf", lambda m: m.value.ndim > 1)
    if a is None:
        return None

    def fits(m: Made) -> bool:
        return m.value.ndim == 2 and a.value.shape[-1] in m.value.shape and m.node.dtype is a.node.dtype

    b = r.pick("iuf", fits)
    if b is None:
        return (sg.einsum("...ij,...kj->...ik", a.node, a.node), a)
    return (a.node @ b.node if b.value.shape[0] == a.value.shape[-1] else a.node @ b.node.T), a, b


def _outer(r: RandomGraph) -> Found:
    a, b = (r.pick("f", lambda m: m.value.ndim == 1) for _ in range(2))
    if a is None or b is None or a.node.dtype is not b.node.dtype:
        return None
    return sg.einsum("i,j->ij", a.node, b.node), a, b


def _inner(r: RandomGraph) -> Found:
    a = r.pick("iuf", lambda m: m.value.ndim > 0)
    b = None if a is None else r.pick("iuf", lambda m: m.node.type == a.node.type)
    return None if a is None or b is None else (sg.vecdot(a.node, b.node), a, b)


def _indices(r: RandomGraph, extent: int, shape: tuple[int, ...]) -> tuple[Any, list[Made]]:
    """Indices into an extent: constant, or computed from integers of the graph."""
    computed = r.pick("i", lambda m: m.value.ndim < 2 and m.value.size < 20)
    if computed is None or r.chance(0.5):
        return r.rng.integers(-extent, extent, shape), []
    inside = sg.minimum(sg.maximum(computed.node, 0), extent - 1)
    return inside, [computed]


def _take(r: RandomGraph) -> Found:
    a = r.pick(where=lambda m: m.value.ndim > 0 and 0 not in m.value.shape)
    if a is None:
        return None
    axis = r.integer(0, a.value.ndim)
    index, sources = _indices(r, a.value.shape[axis], r.choose((), (3,), (2, 2), (17,)))
    return sg.take(a.node, index, axis=axis), a, *sources


def _scatter(r: RandomGraph) -> Found:
    a = r.pick("iuf", lambda m: m.value.ndim > 0 and 0 not in m.value.shape)
    if a is None:
        return None
    index, sources = _indices(r, a.value.shape[0], (5,))
    b = r.pick("iuf", lambda m: m.node.dtype is a.node.dtype and m.value.shape in (a.value.shape[1:], ()))
    return None if b is None else (sg.scatter_add(a.node, index, b.node), a, b, *sources)


def _astype(r: RandomGraph) -> Found:
    a = r.pick()
    assert a is not None
    return sg.astype(a.node, r.choose("float32", "float32", "float64", "int32", "int8", "uint8", "int64", "bool")), a


def _cross_entropy(r: RandomGraph) -> Found:
    a = r.pick("f", lambda m: m.value.ndim == 2 and m.value.shape[1] > 0)
    if a is None:
        return None
    labels = r.rng.integers(0, a.value.shape[1], a.value.shape[0])
    return sg.nn.softmax_cross_entropy(a.node, labels), a


# Each step with whether its floating results are promised bit by bit.
STEPS: dict[str, tuple[Step, bool]] = {
    "add": (_binary(sg.add, "iuf"), True),
    "subtract": (_binary(sg.subtract, "iuf"), True),
    "multiply": (_binary(sg.multiply, "iuf"), True),
    "add_again": (_binary(lambda a, b: a + b * 0.5, "f"), True),
    "gate": (_binary(lambda a, b: a * sg.sigmoid(b), "f"), False),
    "divide": (_divide, True),
    "power": (_power, False),
    "maximum": (_binary(sg.maximum, "biuf"), True),
    "minimum": (_binary(sg.minimum, "biuf"), True),
    "less": (_binary(sg.less, "biuf"), True),
    "greater_equal": (_binary(sg.greater_equal, "biuf"), True),
    "equal": (_binary(sg.equal, "biuf"), True),
    "and": (_binary(sg.bitwise_and, "biu"), True),
    "xor": (_binary(sg.bitwise_xor, "biu"), True),
    "not": (_unary(sg.bitwise_invert, "biu"), True),
    "where": (_where, True),
    "where_again": (_where, True),
    "negative": (_unary(sg.negative, "iuf"), True),
    "abs": (_unary(sg.abs, "iuf"), True),
    "square": (_unary(sg.square, "iuf"), True),
    "sign": (_unary(sg.sign, "iuf"), True),
    "sqrt": (_unary(sg.sqrt, "f", 0.1), True),
    "reciprocal": (_unary(sg.reciprocal, "f", 0.2), True),
    "floor": (_unary(sg.floor, "f"), True),
    "round": (_unary(sg.round, "f"), True),
    "exp": (_unary(sg.exp, "f", -9, 5), False),
    "expm1": (_unary(sg.expm1, "f", -9, 5), False),
    "log": (_unary(sg.log, "f", 0.2), False),
    "log1p": (_unary(sg.log1p, "f", -0.5), False),
    "sin": (_unary(sg.sin, "f"), False),
    "cos": (_unary(sg.cos, "f"), False),
    "tanh": (_unary(sg.tanh, "f"), False),
    "sigmoid": (_unary(sg.sigmoid, "f"), False),
    "erf": (_unary(sg.erf, "f"), False),
    "sinh": (_unary(sg.sinh, "f", -9, 5), False),
    "asinh": (_unary(sg.asinh, "f"), False),
    "atan": (_unary(sg.atan, "f"), False),
    "atan2": (_binary(sg.atan2, "f"), False),
    "hypot": (_binary(sg.hypot, "f"), False),
    "log2": (_unary(sg.log2, "f", 0.2), False),
    "erfc": (_unary(sg.erfc, "f"), False),
    "shift": (_binary(sg.bitwise_right_shift, "iu"), True),
    "integer_quotient": (_binary(lambda a, b: a // b + a % b, "iu"), True),
    "relu": (_unary(sg.nn.relu, "f"), True),
    "gelu": (_unary(sg.nn.gelu, "f"), False),
    "softplus": (_unary(sg.nn.softplus, "f"), False),
    "silu": (_unary(sg.nn.silu, "f"), False),
    "astype": (_astype, True),
    "reshape": (_reshape, True),
    "permute": (_permute, True),
    "slice": (_slice, True),
    "pad": (_pad, True),
    "flip": (_flip, True),
    "roll": (_roll, True),
    "tile": (_tile, True),
    "repeat": (_repeat, True),
    "triangle": (_triangle, True),
    "concat": (_concat, True),
    "stack": (_stack, True),
    "broadcast": (_broadcast, True),
    "sum": (_reduce(sg.sum, "biuf"), False),
    "mean": (_reduce(sg.mean, "f"), False),
    "var": (_reduce(sg.var, "f"), False),
    "prod": (_reduce(sg.prod, "iuf", 12), False),
    "max": (_reduce(sg.max, "biuf"), True),
    "min": (_reduce(sg.min, "biuf"), True),
    "cumulative_sum": (_along(sg.cumulative_sum, "iuf"), False),
    "cumulative_max": (_along(sg.cumulative_max, "iuf"), True),
    "any": (_reduce(sg.any, "b"), True),
    "all": (_reduce(sg.all, "b"), True),
    "argmax": (_along(sg.argmax, "biuf"), True),
    "argmin": (_along(sg.argmin, "biuf"), True),
    "log_sum_exp": (_along(sg.log_sum_exp, "f"), False),
    "softmax": (_along(sg.nn.softmax, "f"), False),
    "log_softmax": (_along(sg.nn.log_softmax, "f"), False),
    "layer_norm": (_along(lambda x, axis: sg.nn.layer_norm(x, axis=axis), "f"), False),
    "cross_entropy": (_cross_entropy, False),
    "matmul": (_matmul, False),
    "matmul_again": (_matmul, False),
    "outer": (_outer, True),
    "inner": (_inner, False),
    "take": (_take, True),
    "scatter_add": (_scatter, False),
}


# Steps whose floating results jump: they are taken only where rounding does not decide.
STEPWISE = frozenset(("floor", "round", "sign"))


def random_graph(seed: int) -> RandomGraph:
    """The graph of a seed: eight of nine are small, half are raw."""
    r = RandomGraph(seed, small=seed % 9 != 0, raw=seed % 2 == 1)
    for _ in range(r.integer(1, 4) if r.small else r.integer(2, 6)):
        r.declare()
    inputs, wanted = len(r.made), r.integer(3, 9) if r.small else r.integer(5, 26)
    for _ in range(20 * wanted):
        if len(r.made) >= inputs + wanted:
            break
        r.grow()
    return r
