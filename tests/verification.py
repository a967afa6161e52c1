"""How far the derivatives of an operator are verified: orders 1 to 3, three mixtures of modes, two data types.

The k-th derivative of a weighted sum of the output, once along each of k random directions, is built as a graph in
three ways: reverse over reverse, forward over reverse, reverse over forward. Evaluated in 50-digit arithmetic all
three must equal central differences of the weighted sum itself to 1e-20. The gradients, as arrays, and the three
derivatives are then compiled in float64 and float32 and must equal their 50-digit values. Points are numbers of
float32, so that one true value serves both data types.

Where a convention takes the place of a limit, differences say nothing: such points are the rows of `conventions`.
"""

# pyright: basic
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from conventions import CONVENTIONS, faults
from op_cases import SMOOTH, Case, values_of
from oracles import DIGITS, exact_constants, function, precise_all, run_poisoned
from precise import lift, mp, precise

import symgrad as sg
from symgrad.graph import Graph, Node
from symgrad.opdef import OPS, Kind
from symgrad.program import Program
from symgrad.record import replace
from symgrad.storage import Literal
from symgrad.types import DType, float32, float64

ORDERS = 3
DTYPES = (float64, float32)
# The graph in 50 digits against differences, relative to the magnitude of what is summed.
AGREEMENT = 1e-20
# Compiled against 50 digits: relative, with 1 in place of smaller values. The largest errors were below 1e-13 and 5e-6
# when this was written.
TOLERANCE = {float64: 1e-10, float32: 1e-5}
MODES = ("reverse over reverse", "forward over reverse", "reverse over forward")

# Central differences at a distance of 1e-25: the third divides rounding of 1e-150 by 1e-75 and leaves an error of
# 1e-50 of the fifth derivative.
_STEP, _WORKING_DIGITS = "1e-25", 150

# Points beside the random ones at which pointwise operators stay smooth though rules could fail: operands.
_ZERO = ((0.0,),)
EXTRA: dict[str, Sequence[tuple[float, ...]]] = {
    **dict.fromkeys(("negative", "square", "exp", "expm1", "exp2", "log1p", "sigmoid", "erf", "erfc"), _ZERO),
    **dict.fromkeys(("sin", "cos", "tan", "asin", "acos", "atan"), _ZERO),
    **dict.fromkeys(("sinh", "cosh", "tanh", "asinh", "atanh"), _ZERO),
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "cbrt"), ((1.0,),)),
    **dict.fromkeys(("add", "subtract", "multiply", "safe_multiply"), ((0.0, 0.0), (0.0, 1.5), (1.5, 0.0))),
    "divide": ((0.0, 0.5), (0.0, -2.0), (-1.0, 1.0)),
    "power": ((1.0, 0.0), (1.0, 2.0), (0.5, 1.0), (0.5, 0.0), (2.0, 3.0), (2.0, -1.0)),
    "hypot": ((0.0, 1.5), (1.5, 0.0), (-0.5, 0.0)),
    "atan2": ((0.0, 1.5), (1.5, 0.0), (-1.5, 0.0)),
}


@dataclass(frozen=True)
class Lines:
    """A case of an operator in one data type, moved along one direction per order."""

    inputs: list[Node]
    wrt: list[Node]
    weights: Node
    along: list[list[Node]]  # by order, then by node of `wrt`
    scalar: Node
    gradients: list[list[Node]]  # of each order, in reverse mode
    mixtures: dict[str, list[Node]]  # the derivative of each order, a scalar

    @property
    def declared(self) -> list[Node]:
        return [*self.inputs, self.weights, *itertools.chain(*self.along)]


@dataclass(frozen=True)
class Point:
    """Values for the declared nodes of `Lines`, the same for every data type but for rounding, which is exact."""

    operands: list[np.ndarray]
    weights: np.ndarray
    along: list[list[np.ndarray]]

    def feeds(self, lines: Lines) -> dict[Node, np.ndarray]:
        arrays = [*self.operands, self.weights, *itertools.chain(*self.along)]
        pairs = zip(lines.declared, arrays, strict=True)
        return {n: a.astype(n.dtype.np) if n.dtype.is_float else a for n, a in pairs}


@dataclass(frozen=True)
class Fault:
    """Something that does not hold: from this order on a data type (or all) is not verified."""

    order: int
    dtype: DType | None
    text: str


def verify(
    op: str, points: int, *, every_case: bool = True, dtypes: Sequence[DType] = (float64, float32)
) -> list[Fault]:
    """What is wrong with the derivatives of an operator, at so many points at least and where conventions rule.

    `float64` is one of the data types: the graph in it is also evaluated in 50 digits.
    """
    rng = np.random.default_rng(len(op))
    found: list[Fault] = []
    cases = _cases(op, points, every_case=every_case)
    if cases:
        graphs = {dtype: Graph() for dtype in dtypes}
        built = {d: [_lines(g, _in_dtype(c, d), str(k)) for k, c in enumerate(cases)] for d, g in graphs.items()}
        drawn = [_point(c, rng, one) for c, one in zip(cases, built[float64], strict=True)]
        truths = [
            _compare_differences(c, one, p, found) for c, one, p in zip(cases, built[float64], drawn, strict=True)
        ]
        for dtype in dtypes:
            _compare_compiled(op, dtype, cases, built[dtype], drawn, truths, found)
    for row in CONVENTIONS:
        if op in row.ops:
            for dtype in dtypes:
                found += [Fault(order, dtype, f"{row.at}: {text}") for order, text in faults(row, dtype)]
    return found


def verified_order(found: Sequence[Fault], dtype: DType) -> int:
    """The highest order up to which nothing is wrong in a data type."""
    wrong = [f.order for f in found if f.dtype in (None, dtype)]
    return min([ORDERS + 1, *wrong]) - 1


# Cases and points.


def _cases(op: str, points: int, *, every_case: bool) -> list[Case]:
    """The smooth cases of an operator: pointwise ones with so many elements, others until there are so many."""
    cases = [c for c in SMOOTH[op] if any(o.dtype is float64 for o in c.operands)]
    if OPS[op].kind is Kind.POINTWISE:
        count = points + len(EXTRA.get(op, ()))
        return [replace(c, operands=tuple(replace(o, shape=(count,)) for o in c.operands)) for c in cases]
    cases = [c for c in cases if _elements(c)]
    if not every_case:
        # The smallest one with several elements and the one with most axes: they differ in most ways.
        several = sorted((c for c in cases if _elements(c) > 1), key=_elements)
        ranks = sorted(several, key=lambda c: (-max(len(o.shape) for o in c.operands), _elements(c)))
        return list(dict.fromkeys([*several[:1], *ranks[:1]])) or cases[:1]
    total = sum(map(_elements, cases))
    return cases * -(-points // total)


def _elements(case: Case) -> int:
    return sum(int(np.prod(o.shape)) for o in case.operands if o.dtype.is_float)


def _in_dtype(case: Case, dtype: DType) -> Case:
    """The case with this data type in the place of float64."""
    operands = tuple(replace(o, dtype=dtype) if o.dtype is float64 else o for o in case.operands)
    attrs = tuple((name, _literal_in(value, dtype)) for name, value in case.attrs)
    return replace(case, operands=operands, attrs=attrs)


def _literal_in(value: Any, dtype: DType) -> Any:
    if isinstance(value, Literal) and value.array.dtype == np.float64:
        return Literal(value.array.astype(dtype.np))
    return value


def _point(case: Case, rng: np.random.Generator, lines: Lines) -> Point:
    def single(values: Any) -> np.ndarray:
        return np.asarray(np.float32(values), np.float64)

    extra = EXTRA.get(case.op, ()) if OPS[case.op].kind is Kind.POINTWISE else ()
    operands: list[np.ndarray] = []
    for k, operand in enumerate(case.operands):
        values = values_of(operand, rng)
        if operand.dtype.is_float:
            values = single(values)
            if extra:
                values[-len(extra) :] = [row[k] for row in extra]
        operands.append(values)
    shapes = [v.shape for o, v in zip(case.operands, operands, strict=True) if o.dtype.is_float]
    weights = single(rng.uniform(0.5, 1.5, tuple(map(int, lines.weights.shape))))  # pyright: ignore[reportArgumentType]
    return Point(operands, weights, [[single(rng.uniform(-1, 1, s)) for s in shapes] for _ in range(ORDERS)])


# Graphs.


def _lines(graph: Graph, case: Case, tag: str) -> Lines:
    inputs = [graph.input(f"x{tag}_{k}", o.shape, o.dtype) for k, o in enumerate(case.operands)]
    out = case.build(graph, inputs)
    wrt = [n for n in inputs if n.dtype.is_float]
    # Inputs, because products of constants would be rounded to float64 while the graph is built.
    weights = graph.input(f"weights{tag}", out.shape, out.dtype)
    along = [
        [graph.input(f"along{tag}_{order}_{k}", n.shape, n.dtype) for k, n in enumerate(wrt)] for order in range(ORDERS)
    ]
    scalar = sg.sum(out * weights)
    gradients: list[list[Node]] = []
    mixtures: dict[str, list[Node]] = {mode: [] for mode in MODES}
    for mode in MODES:
        current = scalar
        for order, direction in enumerate(along):
            outer, inner = mode.split(" over ")
            if (inner if order == 0 else outer) == "forward":
                current = sg.jvp([current], wrt, direction)[0]
            else:
                slopes = sg.grad(current, wrt)
                if mode == MODES[0]:
                    gradients.append(slopes)
                parts = [sg.sum(s * v) for s, v in zip(slopes, direction, strict=True)]
                current = sg.astype(sum(parts[1:], parts[0]), scalar.dtype)
            mixtures[mode].append(current)
    return Lines(inputs, wrt, weights, along, scalar, gradients, mixtures)


# Comparisons.


@dataclass(frozen=True)
class Truth:
    """50-digit values: gradients of each order, the derivatives along the directions, and how much they add up."""

    gradients: list[list[np.ndarray]]
    slopes: list[Any]
    sizes: list[Any]


def _compare_differences(case: Case, lines: Lines, point: Point, found: list[Fault]) -> Truth:
    """The graphs of derivatives in 50 digits against differences of what they derive."""
    feeds = point.feeds(lines)
    nodes = [*itertools.chain(*lines.gradients), *itertools.chain(*lines.mixtures.values())]
    values = iter(precise_all(nodes, feeds))
    gradients = [[next(values) for _ in some] for some in lines.gradients]
    derivatives = {mode: [next(values)[()] for _ in some] for mode, some in lines.mixtures.items()}
    truth = Truth(gradients, [], [])
    with mp.workdps(DIGITS):
        for order in range(1, ORDERS + 1):
            difference = _difference(lines, point, order)
            pairs = zip(gradients[order - 1], point.along[order - 1], strict=True)
            size = mp.fsum(abs(a * b) for g, v in pairs for a, b in zip(g.flat, lift(v).flat, strict=True))
            truth.slopes.append(difference)
            truth.sizes.append(max(size, abs(difference), 1))
            for mode, some in derivatives.items():
                if not abs(some[order - 1] - difference) <= AGREEMENT * truth.sizes[-1]:
                    text = f"{case.label}, {mode}: {some[order - 1]}, differences give {difference}"
                    found.append(Fault(order, None, text))
    return truth


def _difference(lines: Lines, point: Point, order: int) -> Any:
    """The central difference of the weighted sum, once along each of the first so many directions."""
    constants = exact_constants([lines.scalar])
    feeds = point.feeds(lines)
    total = mp.mpf(0)
    with mp.workdps(_WORKING_DIGITS):
        step = mp.mpf(_STEP)
        for signs in itertools.product((1, -1), repeat=order):
            moved: dict[Node, Any] = {}
            for k, node in enumerate(lines.wrt):
                shift = sum((s * lift(point.along[j][k]) for j, s in enumerate(signs)), mp.mpf(0))
                moved[node] = lift(feeds[node]) + step * shift
            total += int(np.prod(signs)) * precise(lines.scalar, {**constants, **feeds, **moved})[()]
        return total / (2 * step) ** order


def _compare_compiled(
    op: str,
    dtype: DType,
    cases: Sequence[Case],
    built: Sequence[Lines],
    points: Sequence[Point],
    truths: Sequence[Truth],
    found: list[Fault],
) -> None:
    inputs = [n for one in built for n in one.declared]
    arrays = [one for lines, p in zip(built, points, strict=True) for one in p.feeds(lines).values()]
    outputs = [n for one in built for n in (*itertools.chain(*one.gradients), *itertools.chain(*one.mixtures.values()))]
    made = function(Program(inputs[0].graph, tuple(inputs), tuple(outputs), name=f"derivatives_{op}"))
    results = iter(run_poisoned(made, arrays))
    for case, lines, truth in zip(cases, built, truths, strict=True):
        for order, some in enumerate(truth.gradients, 1):
            for exact in some:
                got, expected = next(results), exact.astype(np.float64)
                # Elements of sums lose digits to each other; pointwise results stand alone.
                size = np.abs(expected) if OPS[op].kind is Kind.POINTWISE else np.max(np.abs(expected), initial=1)
                wrong = ~(np.abs(got - expected) <= TOLERANCE[dtype] * np.maximum(size, 1))
                if wrong.any():
                    text = f"{case.label}, compiled gradient: {got[wrong][0]} is not {expected[wrong][0]}"
                    found.append(Fault(order, dtype, text))
        for mode in lines.mixtures:
            for order, (slope, size) in enumerate(zip(truth.slopes, truth.sizes, strict=True), 1):
                got = float(next(results))
                if not abs(got - float(slope)) <= TOLERANCE[dtype] * float(size):
                    found.append(Fault(order, dtype, f"{case.label}, compiled {mode}: {got} is not {float(slope)}"))
