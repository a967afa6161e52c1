"""The gradient conventions: what derivatives are where functions have corners, ties, poles or singular points.

One row per line of the table in `symgrad/docs/gradients.md`, which is generated from here, with the functions and
points that assert it. The derivative of order k is the gradient of the sum of the elements of order k - 1, in reverse
mode, and the same by forward mode over reverse and by reverse mode over forward.
"""

# pyright: basic
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from oracles import function, run_poisoned

import symgrad as sg
from symgrad.graph import Graph, Node
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.types import DType, float32

PAGE = Path(sg.__file__).parent / "docs" / "gradients.md"
_INF = np.inf


@dataclass(frozen=True, eq=False)
class Check:
    """A function at a point: one array per input, and the derivatives there, by order and input."""

    name: str
    build: Callable[..., Node]
    points: tuple[Any, ...]
    orders: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True, eq=False)
class Convention:
    """A line of the table, the operators whose rules it speaks of, and what asserts it."""

    at: str
    first: str
    higher: str
    ops: tuple[str, ...]
    checks: tuple[Check, ...]


def _one(name: str, build: Callable[[Node], Node], points: Sequence[float], *orders: Any) -> Check:
    """A function of one input; one number stands for equal derivatives of all elements."""
    return Check(name, build, (points,), tuple((o,) for o in orders))


def _prod_check(points: list[float], *orders: list[float]) -> Check:
    return _one(f"prod of {points}", sg.prod, points, *orders)


def _scatter_check(combine: str, points: tuple[Any, Any], *orders: tuple[Any, Any]) -> Check:
    """Updates 0 and 1 go to element 0, update 2 to element 2."""
    scatter = getattr(sg, f"scatter_{combine}")
    return Check(f"scatter_{combine}", lambda x, u: scatter(x, np.array([0, 0, 2]), u), points, orders)


CONVENTIONS = (
    Convention(
        "`maximum(a, b)`, `minimum(a, b)` where a = b",
        "all to b",
        "0",
        ("maximum", "minimum"),
        (
            Check("maximum", sg.maximum, ([1, 0, 2], [1, 0, 1]), (([0, 0, 1], [1, 1, 0]), (0, 0), (0, 0))),
            Check("minimum", sg.minimum, ([1, 0, 2], [1, 0, 3]), (([0, 0, 1], [1, 1, 0]), (0, 0), (0, 0))),
            _one("maximum of multiples", lambda x: sg.maximum(x * 3.0, x * 5.0), [0], 5, 0, 0),
            _one("minimum of multiples", lambda x: sg.minimum(x * 3.0, x * 5.0), [0], 5, 0, 0),
            _one("maximum with itself", lambda x: sg.maximum(x, x), [-2, 0, 3], 1, 0, 0),
        ),
    ),
    Convention(
        "`maximum(x, 0)`, `where(x > 0, x, 0)`, `relu`, `clip` at their corners",
        "0: they agree",
        "0",
        ("maximum", "minimum", "where"),
        (
            _one("maximum", lambda x: sg.maximum(x, 0.0), [-2, 0, 3], [0, 0, 1], 0, 0),
            _one("minimum", lambda x: sg.minimum(x, 1.0), [-2, 1, 3], [1, 0, 0], 0, 0),
            _one("where", lambda x: sg.where(x > 0.0, x, 0.0), [-2, 0, 3], [0, 0, 1], 0, 0),
            _one("relu", sg.nn.relu, [-2, 0, 3], [0, 0, 1], 0, 0),
            _one("clip", lambda x: sg.clip(x, -1.0, 1.0), [-2, -1, 0, 1, 2], [0, 0, 1, 0, 0], 0, 0),
        ),
    ),
    Convention(
        "`max`, `min` over equal elements",
        "shared equally",
        "0",
        ("max", "min"),
        (
            _one("max", sg.max, [1, 5, 5], [0, 0.5, 0.5], 0, 0),
            _one("min", sg.min, [1, 1, 1, 2], [1 / 3, 1 / 3, 1 / 3, 0], 0, 0),
        ),
    ),
    Convention(
        "`cumulative_max`, `cumulative_min` where an element equals the extreme value before it",
        "all to the earlier one",
        "0",
        ("cumulative_max", "cumulative_min"),
        (
            _one("max", sg.cumulative_max, [1, 1, 0, 3], [3, 0, 0, 1], 0, 0),
            _one("min", sg.cumulative_min, [1, 1, 2, 0], [3, 0, 0, 1], 0, 0),
        ),
    ),
    Convention(
        "`sort`, among them equal elements",
        "permuted, in the stable order",
        "0",
        ("sort",),
        (
            _one("sort", lambda x: sg.sort(x) * np.array([1.0, 2, 3, 4]), [2, 1, 2, 0], [3, 2, 4, 1], 0, 0),
            _one("squares", lambda x: sg.sort(x) ** 2 * np.array([1.0, 2]), [3, 1], [12, 2], [4, 2], 0),
        ),
    ),
    Convention(
        "`scatter_max`, `scatter_min` where an element and updates are equal",
        "shared equally",
        "0",
        ("scatter_max", "scatter_min"),
        (
            _scatter_check("max", ([1, 0, 2], [1, 1, 5]), ([1 / 3, 1, 0], [1 / 3, 1 / 3, 1]), (0, 0), (0, 0)),
            _scatter_check("min", ([1, 0, 2], [1, 1, 5]), ([1 / 3, 1, 1], [1 / 3, 1 / 3, 0]), (0, 0), (0, 0)),
        ),
    ),
    Convention(
        "`scatter_set` with an index that repeats",
        "all to the last update",
        "0",
        ("scatter_set",),
        (_scatter_check("set", ([1, 0, 2], [4, 5, 6]), ([0, 1, 0], [0, 1, 1]), (0, 0), (0, 0)),),
    ),
    Convention(
        "`abs` at 0; `copysign(a, b)` at a = 0",
        "0",
        "0",
        ("abs", "copysign"),
        (
            _one("abs", sg.abs, [-2, 0, 3], [-1, 0, 1], 0, 0),
            Check("copysign", sg.copysign, ([0, -2, 2], [1, 1, -1]), (([0, -1, -1], 0), (0, 0), (0, 0))),
        ),
    ),
    Convention(
        "`sign floor ceil round trunc floor_divide nextafter`, comparisons, casts to integers, `argmax`, everywhere",
        "0, not an error",
        "0",
        (),
        (
            *(
                _one(name, getattr(sg, name), [-2, -0.5, 0, 0.5, 3], 0, 0, 0)
                for name in ("sign", "floor", "ceil", "round", "trunc")
            ),
            _one("floor_divide", lambda x: sg.floor_divide(x, 0.5), [-1, 0, 0.7], 0, 0, 0),
            _one("nextafter", lambda x: sg.nextafter(x, 1.0), [0, 1], 0, 0, 0),
            _one("comparison", lambda x: sg.astype(x > 0.0, x.dtype) * x, [-1, 0, 2], [0, 0, 1], 0, 0),
            _one("cast", lambda x: sg.astype(sg.astype(x, sg.int32), x.dtype), [-2, 0, 2.5], 0, 0, 0),
            _one("argmax", lambda x: sg.astype(sg.argmax(x), x.dtype) * x, [1, 2, 2], 1, 0, 0),
        ),
    ),
    Convention(
        "`remainder(a, b)`",
        "1 to a, -⌊a / b⌋ to b, at jumps too",
        "0",
        ("remainder",),
        (Check("remainder", sg.remainder, ([0.75, 1, -0.5], [0.5, 0.5, 2]), ((1, [-1, -2, 1]), (0, 0), (0, 0))),),
    ),
    Convention(
        "`sqrt` at 0",
        "inf",
        "-inf, inf",
        ("sqrt",),
        (
            _one("sqrt", sg.sqrt, [0, 4], [_INF, 1 / 4], [-_INF, -1 / 32], [_INF, 3 / 256]),
            _one("power", lambda x: x**0.5, [0, 4], [_INF, 1 / 4], [-_INF, -1 / 32], [_INF, 3 / 256]),
        ),
    ),
    Convention(
        "`rsqrt log log2 log10 log1p reciprocal asin acos acosh atanh` at their poles",
        "±inf: the limit from inside the domain, at 0 from above",
        "likewise",
        ("rsqrt", "log", "log2", "log10", "log1p", "reciprocal", "asin", "acos", "acosh", "atanh"),
        (
            _one("rsqrt", sg.rsqrt, [0], -_INF, _INF, -_INF),
            *(_one(name, getattr(sg, name), [0], _INF, -_INF, _INF) for name in ("log", "log2", "log10")),
            _one("log1p", sg.log1p, [-1], _INF, -_INF, _INF),
            _one("reciprocal", sg.reciprocal, [0], -_INF, _INF, -_INF),
            _one("asin", sg.asin, [-1, 1], _INF, [-_INF, _INF], _INF),
            _one("acos", sg.acos, [-1, 1], -_INF, [_INF, -_INF], -_INF),
            _one("acosh", sg.acosh, [1], _INF, -_INF, _INF),
            _one("atanh", sg.atanh, [-1, 1], _INF, [-_INF, _INF], _INF),
        ),
    ),
    Convention("`cbrt` at 0", "inf", "not promised", ("cbrt",), (_one("cbrt", sg.cbrt, [0, 8], [_INF, 1 / 12]),)),
    Convention(
        "`linalg.vector_norm` at the zero vector, `hypot` and `atan2` at (0, 0)",
        "0",
        "0",
        ("hypot", "atan2"),
        (
            *(
                _one(f"norm of order {ord}", lambda x, ord=ord: sg.linalg.vector_norm(x, ord=ord), [0, 0, 0], 0, 0, 0)
                for ord in (1, 1.5, 2, 3, _INF)
            ),
            Check(
                "norm over an axis",
                lambda x: sg.linalg.vector_norm(x, axis=1),
                ([[0, 0], [3, 4]],),
                (
                    ([[0, 0], [0.6, 0.8]],),
                    ([[0, 0], [0.032, -0.024]],),
                    ([[0, 0], [-0.01888, 0.01216]],),
                ),
            ),
            Check("hypot", sg.hypot, ([0, 0], [0, 2]), (([0, 0], [0, 1]), ([0, 0.5], 0), ([0, -0.5], [0, -0.25]))),
            Check("atan2", sg.atan2, ([0, 0], [0, 2]), (([0, 0.5], 0), ([0, -0.25], [0, -0.25]), ([0, 0], [0, 0.5]))),
        ),
    ),
    Convention(
        "`x ** n` with a constant integer n",
        "exact for every x, negative ones and 0 too; 0 for n = 0",
        "exact",
        ("power", "square", "reciprocal"),
        (
            _one("zeroth", lambda x: x**0, [-2, 0, 3], 0, 0, 0),
            _one("first", lambda x: x**1, [-2, 0, 3], 1, 0, 0),
            _one("square", lambda x: x**2, [-2, 0, 3], [-4, 0, 6], 2, 0),
            _one("cube", lambda x: x**3, [-2, 0, 3], [12, 0, 27], [-12, 0, 18], 6),
            _one("fourth", lambda x: x**4, [-2, 0, 3], [-32, 0, 108], [48, 0, 108], [-48, 0, 72]),
            _one("fifth", lambda x: x**5, [-2, 0, 1], [80, 0, 5], [-160, 0, 20], [240, 0, 60]),
            _one("inverse", lambda x: x**-1, [-2, 0], [-0.25, -_INF], [-0.25, _INF], [-0.375, -_INF]),
            _one("inverse square", lambda x: x**-2, [-2, 0], [0.25, -_INF], [0.375, _INF], [0.75, -_INF]),
            _one("inverse cube", lambda x: x**-3, [-2, 0], [-0.1875, -_INF], [-0.375, _INF], [-0.9375, -_INF]),
            _one("linear", lambda x: 3.0 * x, [-2, 0, 3], 3, 0, 0),
        ),
    ),
    Convention(
        "`a ** b` at a = 0 with b > 0",
        "0 to b",
        "the limit, where it is finite",
        ("power",),
        (
            Check("power", lambda a, b: a**b, ([0, 0], [3, 4]), ((0, 0), (0, 0), ([6, 0], 0))),
            Check("power of 2", lambda a, b: a**b, ([0], [2]), ((0, 0), (2, 0))),
            _one("power of a constant", lambda x: 0.0**x, [0.5, 1, 2], 0, 0, 0),
            _one("power of a computed zero", lambda x: (x * 0.0) ** (x + 1.0), [1], 0),
        ),
    ),
    Convention(
        "`xlogy(a, b)`, a log(b), at a = 0",
        "log(b) to a, 0 to b; 0 to both where b ≤ 0 or b = inf",
        "likewise",
        (),
        (
            Check(
                "xlogy",
                sg.xlogy,
                ([0] * 5, [0, 1, -1, _INF, 3]),
                (
                    ([0, 0, 0, 0, np.log(3)], 0),
                    ([0, 1, 0, 0, 1 / 3], [0, 1, 0, 0, 1 / 3]),
                    ([0, -1, 0, 0, -1 / 9], [0, -2, 0, 0, -2 / 9]),
                ),
            ),
            _one("xlogy of one node", lambda x: sg.xlogy(x * 0.0, x), [0], 0, 0, 0),
        ),
    ),
    Convention(
        "`prod`, `cumulative_prod`, `scatter_multiply` with any number of zeros",
        "exact",
        "exact",
        ("prod", "cumulative_prod", "scatter_multiply"),
        (
            _prod_check([0, 2, 3], [6, 0, 0], [5, 3, 2], [2, 2, 2]),
            _prod_check([0, 0, 0], [0, 0, 0], [0, 0, 0], [2, 2, 2]),
            _prod_check([0, 0, 5, 7], [0, 0, 0, 0], [35, 35, 0, 0], [24, 24, 14, 10]),
            _one("cumulative", sg.cumulative_prod, [0, 2, 3], [9, 0, 0], [6, 4, 2], 2),
            _scatter_check(
                "multiply",
                ([0, 1, 2], [0, 3, 5]),
                ([0, 1, 5], [0, 0, 2]),
                ([3, 0, 1], [3, 0, 1]),
                ([2, 0, 0], [2, 2, 0]),
            ),
            _one("cumulative, two zeros", sg.cumulative_prod, [0, 0, 3], [1, 0, 0], [4, 4, 0], 2),
        ),
    ),
    Convention(
        "`sigmoid tanh softplus` far from 0",
        "0 or 1, never NaN",
        "0",
        ("sigmoid", "tanh"),
        (
            _one("sigmoid", sg.sigmoid, [-800, 0, 800], [0, 0.25, 0], 0, [0, -0.125, 0]),
            _one("tanh", sg.tanh, [-800, 0, 800], [0, 1, 0], 0, [0, -2, 0]),
            _one("softplus", sg.nn.softplus, [-800, 0, 800], [0, 0.5, 1], [0, 0.25, 0], 0),
        ),
    ),
    Convention(
        "the branch of `where` that is not taken",
        "no influence, whatever its value and derivatives are (NaN, infinite)",
        "no influence",
        ("where", "safe_multiply"),
        (
            _one(
                "logarithm",
                lambda x: sg.where(x > 0, sg.log(x), x * x),
                [-1, 0, 2],
                [-2, 0, 0.5],
                [2, 2, -0.25],
                [0, 0, 0.25],
            ),
            _one(
                "root",
                lambda x: sg.where(x > 0, sg.sqrt(x), x * x * x),
                [-1, 0, 4],
                [3, 0, 0.25],
                [-6, 0, -1 / 32],
                [6, 6, 3 / 256],
            ),
            _one(
                "quotient",
                lambda x: sg.where(sg.not_equal(x, 0), 1.0 / x, 0.0),
                [0, 2],
                [0, -0.25],
                [0, 0.25],
                [0, -0.375],
            ),
            _one("overflow", lambda x: sg.where(x < 80, sg.exp(x), 1.0), [0, 1000], [1, 0], [1, 0], [1, 0]),
        ),
    ),
    Convention(
        "`stop_gradient`",
        "0",
        "0",
        (),
        (_one("stop_gradient", lambda x: sg.stop_gradient(x) * x, [-2, 0, 3], [-2, 0, 3], 0, 0),),
    ),
)


@functools.cache
def faults(row: Convention, dtype: DType) -> list[tuple[int, str]]:
    """What does not hold of a line of the table in a data type: orders, and what they give instead.

    Interpreted and compiled, with rewriting while the graph is built and after it, and in float64 also without any.
    """
    found: list[tuple[int, str]] = []
    for rules in (True,) if dtype is float32 else (True, False):
        graph = Graph(rules=None if rules else {})
        inputs: list[Node] = []
        arrays: list[np.ndarray] = []
        outputs: list[Node] = []
        wanted: list[tuple[int, str, np.ndarray]] = []
        for number, check in enumerate(row.checks):
            points = [np.asarray(p, dtype.np) for p in check.points]
            nodes = [graph.input(f"x{number}_{k}", p.shape, dtype) for k, p in enumerate(points)]
            inputs += nodes
            arrays += points
            for mode, order, k, node in _derivatives(check.build(*nodes), nodes, len(check.orders)):
                outputs.append(node)
                truth = np.broadcast_to(np.asarray(check.orders[order - 1][k], np.float64), points[k].shape)
                wanted.append((order, f"{check.name}, input {k}, {mode}, order {order}", truth))
        program = Program(graph, tuple(inputs), tuple(outputs), name="conventions")
        better = optimize(program, "infer", rules=rules)
        results = {
            "interpreted": sg.evaluate(outputs, dict(zip(inputs, arrays, strict=True))),
            "interpreted, optimized": sg.evaluate(list(better.outputs), dict(zip(better.inputs, arrays, strict=True))),
            "compiled": run_poisoned(function(program, rules=rules), arrays),
        }
        tolerance = 1e-5 if dtype is float32 else 1e-13
        for way, values in results.items():
            for (order, text, truth), got in zip(wanted, values, strict=True):
                if got.dtype != dtype.np or not np.allclose(got, truth, rtol=tolerance, atol=tolerance * 1e-3):
                    found.append((order, f"{text}, {way}, rules {rules}: {got} is not {truth}"))
    return found


def _derivatives(y: Node, wrt: list[Node], orders: int) -> list[tuple[str, int, int, Node]]:
    """The derivatives of each order by mode, order and input."""
    ones = [sg.ones_like(n) for n in wrt]
    found: list[tuple[str, int, int, Node]] = []
    reverse = forward = list[Node]()
    along = sg.sum(y)
    for order in range(1, orders + 1):
        if order == 1:
            reverse = forward = sg.grad(along, wrt)
        else:
            reverse = sg.grad(functools.reduce(lambda a, b: a + b, map(sg.sum, reverse)), wrt)
            forward = sg.jvp(forward, wrt, ones)
            along = sg.jvp([along], wrt, ones)[0]
        ways = {"reverse": reverse}
        if order > 1:
            ways |= {"forward over reverse": forward, "reverse over forward": sg.grad(along, wrt)}
        found += [(mode, order, k, node) for mode, nodes in ways.items() for k, node in enumerate(nodes)]
    return found


def with_table(page: str) -> str:
    """The page on gradients with the table as it is generated now."""
    lines = ["| at | gradient | orders 2 and 3 |", "|---|---|---|"]
    lines += [f"| {row.at} | {row.first} | {row.higher} |" for row in CONVENTIONS]
    before, _, rest = page.partition(lines[0])
    return before + "\n".join(lines) + "\n\n" + rest.partition("\n\n")[2]
