"""Comparisons: with true values in 50-digit arithmetic, with bits, and with bounds on rounding."""

# pyright: basic
from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from precise import FUNCTIONS, lift, mp, precise_many

import symgrad as sg
from symgrad.api import make_executable
from symgrad.function import Function, Structure
from symgrad.graph import Node, ancestors
from symgrad.program import Program
from symgrad.types import static_shape

DIGITS = 50
# Central differences at this distance lose a third of the digits to rounding and a third to the third derivative.
STEP = "1e-15"


def exact_constants(nodes: Sequence[Node]) -> dict[Node, Any]:
    """The irrational numbers that stand in a graph rounded to float64, unrounded: derivative rules bring them in."""
    irrational = (2 / mp.sqrt(mp.pi), mp.sqrt(2 / mp.pi), mp.sqrt(0.5), 1 / mp.sqrt(2 * mp.pi), mp.log(2))
    irrational += (1 / mp.log(2), 1 / mp.log(10))
    known = {float(v): v for one in irrational for v in (one, -one)}
    found: dict[Node, Any] = {}
    for node in ancestors(nodes):
        if node.op.name == "const" and node.ndim == 0 and node.dtype.is_float:
            value = known.get(float(node.attrs[0].array))
            if value is not None:
                found[node] = np.asarray(value, object)
    return found


def precise_all(nodes: Sequence[Node], feeds: Mapping[Node, Any]) -> list[np.ndarray]:
    """The values of nodes in 50-digit arithmetic, as arrays of mpmath numbers."""
    with mp.workdps(DIGITS):
        fed = {**exact_constants(nodes), **{n: lift(a) for n, a in feeds.items()}}
        return precise_many(nodes, fed)


def directional(y: Node, wrt: Sequence[Node], feeds: Mapping[Node, Any], along: Sequence[np.ndarray]) -> Any:
    """The 50-digit central difference of a scalar when every node of `wrt` moves along its direction."""
    with mp.workdps(DIGITS):
        h = mp.mpf(STEP)
        ends = []
        for step in (h, -h):
            moved = {n: lift(feeds[n]) + step * lift(v) for n, v in zip(wrt, along, strict=True)}
            ends.append(precise_all([y], {**feeds, **moved})[0][()])
        return (ends[0] - ends[1]) / (2 * h)


def dot(gradients: Sequence[np.ndarray], along: Sequence[np.ndarray]) -> tuple[Any, Any]:
    """The sum of products in 50-digit arithmetic, and the sum of their magnitudes."""
    with mp.workdps(DIGITS):
        products = [
            a * b for g, v in zip(gradients, along, strict=True) for a, b in zip(g.flat, lift(v).flat, strict=True)
        ]
        return mp.fsum(products), mp.fsum(abs(p) for p in products)


def true_values(op: str, arrays: Sequence[np.ndarray], dtype: Any) -> np.ndarray:
    """A pointwise function in 50-digit arithmetic, rounded once; NaN where an operand is not finite."""
    out = np.full(arrays[0].shape, np.nan, dtype)
    flat = out.reshape(-1)
    with mp.workdps(DIGITS), np.errstate(all="ignore"):
        for k, operands in enumerate(zip(*(a.reshape(-1).tolist() for a in arrays), strict=True)):
            # These numbers have no negative zero, which tells the sign of an angle.
            if all(np.isfinite(operands)) and not (op == "atan2" and 0.0 in operands):
                flat[k] = _rounded(_TRUE[op](*map(mp.mpf, operands)), dtype)
    return out


# log(1 + x) would lose every digit of a small x.
_TRUE = {**FUNCTIONS, "log1p": lambda a: mp.log1p(a) if a > -1 else mp.nan}


def _rounded(value: Any, dtype: Any) -> Any:
    if not isinstance(value, mp.mpf) or not mp.isfinite(value):
        return np.nan
    # Rounding to float64 first and then to float32 would round twice; 50 digits to 24 bits by hand avoids it.
    if dtype == np.float64:
        return float(value)
    with mp.workprec(24):
        return np.float64(float(+value))


def function(program: Program, *, workers: int = 1, **options: Any) -> Function:
    make = functools.partial(make_executable, phase="infer", workers=workers, **options)
    return Function(program, Structure(tuple), make)


def run_poisoned(made: Function, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
    """The outputs of a compiled function of a tuple, written over garbage: an element nothing writes shows."""
    shapes = [(static_shape(n.shape), n.dtype) for n in made.program.outputs]
    outputs = [np.full(int(np.prod(s, initial=1)) * d.itemsize, 0xA5, np.uint8) for s, d in shapes]
    out = tuple(o.view(d.np).reshape(s) for o, (s, d) in zip(outputs, shapes, strict=True))
    return made(*arrays, out=out)


def differs(got: np.ndarray, expected: np.ndarray, *, zeros: bool = True) -> str | None:
    """What is wrong with an array that should equal another bit by bit, any NaN for any NaN; None if nothing is."""
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"got {got.dtype}{list(got.shape)}, expected {expected.dtype}{list(expected.shape)}"
    if got.dtype.kind != "f":
        return first_of(got != expected, got, expected)
    wrong = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
    if zeros:
        wrong |= (got == 0) & (expected == 0) & (np.signbit(got) != np.signbit(expected))
    return first_of(wrong, got, expected)


def first_of(wrong: np.ndarray, got: np.ndarray, expected: np.ndarray) -> str | None:
    """The first element that is wrong, in words; None if none is."""
    places = np.argwhere(wrong)
    if not len(places):
        return None
    at = tuple(int(k) for k in places[0])
    return f"{len(places)} of {got.size} wrong, first at {at}: got {got[at]!r}, expected {expected[at]!r}"


# Derivatives.


@dataclass(frozen=True)
class Derived:
    """A weighted sum of the output of a smooth case, and its derivatives of order 1 and 2; weights are inputs too."""

    wrt: list[Node]
    feeds: dict[Node, np.ndarray]
    scalars: list[Node]
    gradients: list[list[Node]]
    along: list[np.ndarray]


def derive(inputs: list[Node], arrays: list[np.ndarray], out: Node, orders: int) -> Derived:
    """Each order differentiates a weighted sum of the order before, so that every element counts differently."""
    rng = np.random.default_rng(11)
    feeds = dict(zip(inputs, arrays, strict=True))
    wrt = [n for n in inputs if n.dtype.is_float]
    along = [rng.normal(0, 1, feeds[n].shape) for n in wrt]

    def weighted(node: Node) -> Node:
        # An input, because the products of constants would be rounded to float64 while the graph is built.
        weights = node.graph.input(f"weights{len(node.graph.nodes)}", node.shape, node.dtype)
        feeds[weights] = np.asarray(rng.uniform(0.5, 1.5, tuple(map(int, node.shape))))  # pyright: ignore[reportArgumentType]
        return sg.sum(node * weights)

    scalar = weighted(out)
    scalars: list[Node] = []
    gradients: list[list[Node]] = []
    for _ in range(orders):
        scalars.append(scalar)
        gradients.append(sg.grad(scalar, wrt))
        scalar = functools.reduce(lambda a, b: a + b, map(weighted, gradients[-1]))
    return Derived(wrt, feeds, scalars, gradients, along)


def check_derivatives(derived: Sequence[Derived], *, agreement: float = 1e-20) -> None:
    """Gradient graphs in 50 digits against differences of what they derive, compiled against 50 digits."""
    for one in derived:
        for order, (scalar, gradients) in enumerate(zip(one.scalars, one.gradients, strict=True), 1):
            slope, size = dot(precise_all(gradients, one.feeds), one.along)
            truth = directional(scalar, one.wrt, one.feeds, one.along)
            assert abs(slope - truth) <= agreement * max(size, abs(truth), 1), (
                f"order {order}: the graph gives {slope}, differences give {truth}"
            )
    graph = derived[0].scalars[0].graph
    inputs = [n for one in derived for n in one.feeds]
    outputs = [g for one in derived for some in one.gradients for g in some]
    arrays = [a for one in derived for a in one.feeds.values()]
    made = function(Program(graph, tuple(inputs), tuple(outputs), name="derivatives"))
    results = iter(run_poisoned(made, arrays))
    for one in derived:
        for order, gradients in enumerate(one.gradients, 1):
            meant = sg.evaluate(gradients, one.feeds)
            for node, numpy in zip(gradients, meant, strict=True):
                got, truth = next(results), precise_all([node], one.feeds)[0].astype(np.float64)
                scale = np.max(np.abs(truth), initial=1.0)
                assert got.dtype == numpy.dtype
                assert np.all(np.abs(got - truth) <= 1e-10 * scale), f"compiled, order {order}: {got} is not {truth}"
                assert np.all(np.abs(numpy - truth) <= 1e-10 * scale), f"NumPy, order {order}: {numpy} is not {truth}"
