# pyright: basic
"""Every rule on both sides over special values, and the optimizer with and without rules."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from precise import mp, precise

import symgrad.functions as sg
import symgrad.nn as sg_nn
from symgrad.errors import GraphError, ShapeError
from symgrad.evaluate import evaluate
from symgrad.grad import grad
from symgrad.graph import DEFAULT_REWRITES, Graph, Node
from symgrad.opdef import OPS, Kind
from symgrad.ops.build import apply
from symgrad.optimize import optimize, select_phase, specialize
from symgrad.passes import run
from symgrad.program import Program
from symgrad.rulebook import ALL_RULES, CONSTRUCTION, OPTIMIZING, choose_rules, rule_names
from symgrad.rules import (
    AnyRule,
    Apply,
    Constant,
    Number,
    Pattern,
    Rule,
    Var,
    compile_rules,
    full,
    uniform_array,
)
from symgrad.settings import Settings, read_settings
from symgrad.simplify import simplify
from symgrad.stabilize import OPTIONAL, STABILIZING
from symgrad.storage import Literal
from symgrad.types import DTYPES, DType, as_dtype, dtype_named
from symgrad.verify import verify

SHOWN_DTYPES = ("float32", "float64", "int8", "int32", "uint8", "uint64", "bool")
FACTORS = (2.0, -0.5, 3.0, -1.0, 0.25, 1e30, float("inf"), float("nan"), 0.0, -0.0)


def special_values(dtype: DType) -> np.ndarray:
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.is_integer:
        limits = np.iinfo(dtype.np)
        values = [0, 1, 2, 3, 7, 100, limits.min, limits.min + 1, limits.max, limits.max - 1]
        return np.array([*values, *([-1, -2, -100] if dtype.kind == "i" else [])], dtype.np)
    limits = np.finfo(dtype.np)
    small = float(limits.smallest_subnormal)
    one_side = [0.0, small, float(limits.tiny), float(limits.max), np.inf, 1.0, 0.5, 1.5, 3.0, 88.0, 1e-9, 1e9]
    return np.array([*one_side, *(-v for v in one_side), np.nan], dtype.np)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    nan = np.isnan(a) & np.isnan(b)
    return bool(np.all(nan | ((a == b) & (np.signbit(a) == np.signbit(b)))))


def variables(pattern: Pattern) -> list[str]:
    match pattern:
        case Var(name):
            return [name]
        case Number() | Constant():
            return []
        case Apply():
            return list(dict.fromkeys(itertools.chain.from_iterable(map(variables, pattern.inputs))))


def has_attr(pattern: Pattern) -> bool:
    if not isinstance(pattern, Apply):
        return False
    return bool(OPS[pattern.op].attrs) or any(map(has_attr, pattern.inputs))


def uses_constant(pattern: Pattern) -> bool:
    return isinstance(pattern, Constant) or (isinstance(pattern, Apply) and any(map(uses_constant, pattern.inputs)))


def instance(graph: Graph, pattern: Pattern, nodes: dict[str, Node], like: Node, factor: float) -> Node:
    match pattern:
        case Var(name):
            return nodes[name]
        case Number(value):
            return full(graph, like.shape, like.dtype, value)
        case Constant():
            return full(graph, like.shape, like.dtype, factor)
        case Apply():
            inputs = [instance(graph, p, nodes, like, factor) for p in pattern.inputs]
            return graph.add(OPS[pattern.op], tuple(inputs), ())


def apply_rule(rule: AnyRule, node: Node) -> Node | None:
    """What the rule makes of a node that was built without rules."""
    rewrites = compile_rules([rule]).get(node.op.name, ())
    return next((new for r in rewrites if (new := r(node.graph, node.inputs, node.attrs)) is not None), None)


def open_graph() -> Graph:
    graph = Graph(rules={})
    graph.opaque = 0
    return graph


def cases(rule: Rule) -> list[tuple[Node, Node, dict[Node, Any]]]:
    """Left side, right side and inputs, for every dtype and constant the rule takes."""
    found: list[tuple[Node, Node, dict[Node, Any]]] = []
    names = variables(rule.lhs)
    for dtype in map(dtype_named, SHOWN_DTYPES):
        for factor in FACTORS if uses_constant(rule.lhs) else (1.0,):
            if dtype.kind not in rule.over:
                continue
            if dtype.kind != "f" and factor != int(factor if np.isfinite(factor) else 0.5):
                continue
            if dtype.kind == "u" and factor < 0:
                continue
            if dtype.is_integer and abs(factor) > 100:
                continue
            kinds = [dtype_named("bool") if name == "c" else dtype for name in names]
            grids = np.meshgrid(*map(special_values, kinds), indexing="ij")
            graph = open_graph()
            shape = (grids[0].size,)
            nodes = {n: graph.input(n, shape, k) for n, k in zip(names, kinds, strict=True)}
            like = next((node for n, node in nodes.items() if n != "c"), nodes[names[0]])
            try:
                left = instance(graph, rule.lhs, nodes, like, factor)
            except (TypeError, OverflowError):
                continue
            right = apply_rule(rule, left)
            if right is not None:
                feeds = {nodes[n]: grid.ravel() for n, grid in zip(names, grids, strict=True)}
                found.append((left, right, feeds))
    return found


# Left sides of rules whose patterns have attributes, as functions of a node of shape (2, 3, 4).
def _slice(x: Node, starts: tuple[int, ...], stops: tuple[int, ...], steps: tuple[int, ...] = (1, 1, 1)) -> Node:
    return apply("slice", x, starts=starts, stops=stops, steps=steps)


def _pad(x: Node, low: tuple[int, ...], high: tuple[int, ...], value: float = 1) -> Node:
    return apply("pad", x, low=low, high=high, value=Literal(np.asarray(value, x.dtype.np)))


def _cast(x: Node, *dtypes: str) -> Node:
    for dtype in dtypes:
        x = apply("astype", x, dtype=dtype_named(dtype))
    return x


EXAMPLES: dict[str, list[Callable[[Node], Node]]] = {
    "astype_same": [lambda x: _cast(x, x.dtype.name)],
    "astype_astype": [
        lambda x, one=one, two=two: _cast(x, one, two) for one in SHOWN_DTYPES for two in (*SHOWN_DTYPES, "int64")
    ],
    "reshape_same": [lambda x: apply("reshape", x, shape=(2, 3, 4))],
    "reshape_reshape": [lambda x: apply("reshape", apply("reshape", x, shape=(6, 4)), shape=(4, 6))],
    "permute_same": [lambda x: apply("permute", x, axes=(0, 1, 2))],
    "permute_permute": [
        lambda x, p=p, q=q: apply("permute", apply("permute", x, axes=p), axes=q)
        for p in itertools.permutations(range(3))
        for q in itertools.permutations(range(3))
    ],
    "broadcast_same": [lambda x: apply("broadcast", x, shape=(2, 3, 4))],
    "broadcast_broadcast": [
        lambda x: apply("broadcast", apply("broadcast", x, shape=(1, 2, 3, 4)), shape=(5, 2, 3, 4))
    ],
    "flip_nothing": [lambda x: apply("flip", x, axes=())],
    "flip_flip": [
        lambda x: apply("flip", apply("flip", x, axes=(0, 1)), axes=(1, 2)),
        lambda x: apply("flip", apply("flip", x, axes=(0,)), axes=(0,)),
    ],
    "slice_all": [lambda x: _slice(x, (0, 0, 0), (2, 3, 4))],
    "slice_slice": [
        lambda x: _slice(_slice(x, (1, 0, 1), (2, 3, 4)), (0, 1, 1), (1, 3, 2)),
        lambda x: _slice(_slice(x, (0, 0, 0), (2, 3, 4), (1, 2, 3)), (0, 1, 0), (1, 2, 2), (1, 1, 1)),
        lambda x: _slice(_slice(x, (0, 0, 1), (2, 3, 4), (1, 2, 1)), (1, 0, 0), (1, 2, 3), (1, 1, 2)),
    ],
    "slice_pad": [lambda x: _slice(_pad(x, (1, 0, 2), (0, 3, 1)), (1, 0, 2), (3, 3, 6))],
    "pad_nothing": [lambda x: _pad(x, (0, 0, 0), (0, 0, 0))],
    "pad_pad": [lambda x: _pad(_pad(x, (1, 0, 2), (0, 3, 1)), (0, 1, 1), (2, 0, 0))],
    "phase_same": [lambda x: apply("phase", x, x)],
    "stop_gradient_twice": [lambda x: apply("stop_gradient", apply("stop_gradient", x))],
    "stop_gradient_constant": [lambda x: apply("stop_gradient", full(x.graph, x.shape, x.dtype, 1))],
    "where_constant": [
        lambda x, taken=taken: apply("where", full(x.graph, x.shape, dtype_named("bool"), taken), x, _slice_flip(x))
        for taken in (False, True)
    ],
    "reduction_of_one": [
        lambda x, name=name: apply(name, apply("reshape", x, shape=(2, 1, 3, 4, 1)), axes=(1, 4))
        for name in ("sum", "prod", "max", "min", "any", "all")
    ],
    "sum_to_known": [
        lambda x: apply("sum_to", x, shape=(2, 3, 4)),
        lambda x: apply("sum_to", x, shape=(1, 4)),
        lambda x: apply("sum_to", x, shape=(2, 1, 4)),
    ],
    "concat_of_one": [
        lambda x: apply("concat", x, axis=1),
        lambda x: apply("concat", _slice(x, (0, 0, 0), (2, 0, 4)), x, axis=1),
    ],
    "view_of_uniform": [
        lambda x: apply("reshape", _scalar(x), shape=(24,)),
        lambda x: apply("permute", _scalar(x), axes=(2, 0, 1)),
        lambda x: apply("flip", _scalar(x), axes=(1,)),
        lambda x: _slice(_scalar(x), (0, 1, 0), (2, 2, 3)),
    ],
    "constant_folding": [
        lambda x: apply("add", _array(x), full(x.graph, x.shape, x.dtype, 1)),
        lambda x: apply("sum", _array(x), axes=(1,)),
        lambda x: apply("permute", _array(x), axes=(2, 1, 0)),
    ],
}


def _slice_flip(x: Node) -> Node:
    return apply("flip", x, axes=(1,))


def _scalar(x: Node) -> Node:
    first = apply("reshape", _slice(x, (1, 1, 1), (2, 2, 2)), shape=())
    return apply("broadcast", first, shape=(2, 3, 4))


def _array(x: Node) -> Node:
    values = np.resize(special_values(x.dtype), (2, 3, 4))
    return x.graph.const(values)


def _pointwise_examples(name: str, outer: Callable[[Node], Node]) -> list[Callable[[Node], Node]]:
    op = OPS[name]
    given: dict[str, Any] = {"dtype": dtype_named("float32"), "word": 2, "descending": True}
    attrs = {a: given[a] for a in op.attrs}

    def make(count: int) -> Callable[[Node], Node]:
        def build(x: Node) -> Node:
            sources = [outer(x), *(full(x.graph, x.shape, x.dtype, 1) for _ in range(count - 1))]
            if name == "where":
                sources[0] = full(x.graph, x.shape, dtype_named("bool"), 0)
            return apply(name, *sources, **attrs)

        return build

    return [make(count) for count in (1, 2, 3, 6)]


POINTWISE = [op.name for op in OPS.values() if op.kind is Kind.POINTWISE and op.name != "check_index"]
EXAMPLES["pointwise_of_scalars"] = [e for name in POINTWISE for e in _pointwise_examples(name, _scalar)]
EXAMPLES["pointwise_of_view"] = [
    e
    for name in POINTWISE
    for view in (
        lambda x: apply("reshape", x, shape=(6, 4)),
        lambda x: apply("broadcast", x, shape=(2, 2, 3, 4)),
    )
    for e in _pointwise_examples(name, view)[:1]
]

EXACT = [r for r in (*CONSTRUCTION, *OPTIMIZING) if r.exact]
PATTERNS = {r.name: r for r in EXACT if isinstance(r, Rule) and not has_attr(r.lhs) and variables(r.lhs)}
SHAPED = [r for r in EXACT if r.name not in PATTERNS]


@pytest.mark.parametrize("rule", PATTERNS.values(), ids=lambda r: r.name)
def test_exact_rule_keeps_every_bit(rule: Rule) -> None:
    found = cases(rule)
    assert found, "the rule never fires"
    for left, right, feeds in found:
        before, after = evaluate([left, right], feeds)
        assert right.type == left.type
        assert same_bits(before, after), (rule.name, left.dtype)


@pytest.mark.parametrize("name", dict.fromkeys(r.name for r in SHAPED))
def test_exact_rule_on_shapes_keeps_every_bit(name: str) -> None:
    rules = [r for r in SHAPED if r.name == name]
    fired: set[str] = set()
    for dtype in map(dtype_named, SHOWN_DTYPES):
        for example in EXAMPLES[name]:
            graph = open_graph()
            x = graph.input("x", (2, 3, 4), dtype)
            try:
                left = example(x)
            except (TypeError, ValueError, IndexError):
                continue
            right = next((new for r in rules if (new := apply_rule(r, left)) is not None), None)
            if right is None:
                continue
            fired.add(left.op.name)
            assert right.type == left.type
            for seed in range(3):
                values = np.random.default_rng(seed).choice(special_values(dtype), (2, 3, 4))
                before, after = evaluate([left, right], {x: values})
                assert same_bits(before, after), (name, left.op.name, dtype)
    assert fired
    if name == "pointwise_of_scalars":
        assert fired >= set(POINTWISE) - {"philox"}


# Rules that improve accuracy, against 50 digits.


def rows(x: Node) -> Node:
    return apply("broadcast", apply("reshape", x, shape=(6, 1)), shape=(6, 4))


def _exp_sum(x: Node) -> tuple[Node, Node]:
    e = apply("exp", x)
    return e, apply("sum", e, axes=(1,))


def _log_sum_exp_gradient(x: Node) -> Node:
    e, total = _exp_sum(x)
    return apply("multiply", rows(apply("reciprocal", total)), e)


def _weighted_gradient(x: Node) -> Node:
    e, total = _exp_sum(x)
    weight = apply("safe_multiply", apply("sum", x, axes=(1,)), apply("reciprocal", total))
    return apply("safe_multiply", rows(weight), e)


IMPROVED_SHAPES: dict[str, list[Callable[[Node], Node]]] = {
    "log_softmax": [lambda x: apply("log", apply("divide", apply("exp", x), rows(_exp_sum(x)[1])))],
    "softmax": [lambda x: apply("divide", apply("exp", x), rows(_exp_sum(x)[1]))],
    "log_sum_exp": [lambda x: apply("log", _exp_sum(x)[1])],
    "log_sum_exp_gradient": [_log_sum_exp_gradient, _weighted_gradient],
}
IMPROVING = [r for r in (*STABILIZING, *OPTIONAL) if r.improves]


def error(value: np.ndarray, exact: np.ndarray, scale: float = 0.0) -> np.ndarray:
    """The distance in units of the last place of the exact value, or of `scale` where that is larger."""
    limits = np.finfo(value.dtype)
    out = np.zeros(value.shape)
    for place, true in np.ndenumerate(exact):
        got = mp.mpf(float(value[place]))
        rounded = float(np.asarray(float(true), value.dtype)) if not mp.isnan(true) else np.nan
        if np.isnan(rounded) or np.isinf(rounded):
            out[place] = 0 if (np.isnan(rounded) and mp.isnan(got)) or got == rounded else np.inf
            continue
        unit = max(float(np.spacing(value.dtype.type(max(abs(rounded), scale)))), float(limits.smallest_subnormal))
        out[place] = np.inf if not mp.isfinite(got) else float(abs(got - true) / unit)
    return out


@pytest.mark.parametrize(
    "rule", [r for r in IMPROVING if isinstance(r, Rule) and not has_attr(r.lhs)], ids=lambda r: r.name
)
def test_improving_rule_is_not_less_accurate(rule: Rule) -> None:
    values = [0.0, -0.0, 1e-30, -1e-30, 1e-8, -1e-8, 1e-3, -1e-3, 0.4, -0.4, 0.99, 3.0, -3.0, 17.5, -17.5, 60, -60]
    values += [95.0, -95.0, 300.0, -300.0, 1e3, -1e3, np.inf, -np.inf, np.nan, -0.999, 2e-38, 1.5e-45]
    x_values = np.array(values, np.float32)
    graph = open_graph()
    names = variables(rule.lhs)
    nodes = {n: graph.input(n, x_values.shape) for n in names}
    feeds = {node: x_values if n == "x" else np.full_like(x_values, 0.75) for n, node in nodes.items()}
    left = instance(graph, rule.lhs, nodes, nodes["x"], 1.0)
    right = apply_rule(rule, left)
    assert right is not None
    assert right.type == left.type
    before, after = evaluate([left, right], feeds)
    with mp.workdps(500), np.errstate(all="ignore"):
        exact = precise(left, feeds)
        old, new = error(before, exact), error(after, exact)
    # Where the formula is NaN in exact arithmetic at an infinite input, the limit is as good.
    undefined = np.array([bool(mp.isnan(v)) for v in exact.ravel()]) | ("safe_multiply" in rule.name)
    limit = undefined & np.isinf(x_values) & ~np.isnan(after)
    worse = (new > old) & (new > 4.0) & ~limit
    assert not worse.any(), (x_values[worse], before[worse], after[worse], exact[worse])
    assert np.isnan(after[np.isnan(x_values)]).all()
    assert rule.name in ("sqrt_square",) or (new[~limit] <= old[~limit] + 4).all()


@pytest.mark.parametrize("name", IMPROVED_SHAPES)
def test_improving_rule_on_rows_is_not_less_accurate(name: str) -> None:
    rules = [r for r in IMPROVING if r.name == name]
    rng = np.random.default_rng(3)
    for example in IMPROVED_SHAPES[name]:
        for spread, center in ((1, 0), (30, 0), (3, 100), (3, -100), (300, 0), (1, 50), (1e30, 0)):
            graph = open_graph()
            x = graph.input("x", (6, 4))
            left = example(x)
            right = next((new for r in rules if (new := apply_rule(r, left)) is not None), None)
            assert right is not None
            feeds = {x: (rng.normal(size=(6, 4)) * spread + center).astype(np.float32)}
            before, after = evaluate([left, right], feeds)
            with mp.workdps(500), np.errstate(all="ignore"):
                exact = precise(left, feeds)
                scale = abs(center) + spread if name == "log_sum_exp" else 0.0
                old, new = error(before, exact, scale), error(after, exact, scale)
            # Differences to the maximum are rounded before the exponential, as its argument was.
            bound = np.maximum(old * 1.5, 8 + 2 * spread)
            assert (new <= bound).all(), (name, spread, center, new.max(), old.max())


def test_log_sum_exp_of_infinities() -> None:
    graph = open_graph()
    x = graph.input("x", (5, 2))
    left = apply("log", apply("sum", apply("exp", x), axes=(1,)))
    right = simplify(Program(graph, (x,), (left,)))
    assert any(n.op.name == "max" for n in right.nodes)
    inf, nan = np.inf, np.nan
    values = np.array([[-inf, -inf], [inf, 1], [-inf, 3], [nan, 1], [inf, -inf]], np.float32)
    got = evaluate(right.outputs[0], {right.inputs[0]: values})
    np.testing.assert_array_equal(got, np.array([-inf, inf, 3, nan, inf], np.float32))


def test_every_rule_has_a_test_and_states_what_it_changes() -> None:
    tested = {*PATTERNS, *(r.name for r in SHAPED if EXAMPLES[r.name]), *IMPROVED_SHAPES}
    tested |= {r.name for r in IMPROVING if isinstance(r, Rule) and not has_attr(r.lhs)}
    tested |= {r.name for r in OPTIONAL}
    assert tested == set(rule_names())
    for rule in ALL_RULES:
        assert rule.exact or rule.improves or rule.note


@pytest.mark.parametrize("rule", [r for r in OPTIONAL if not r.improves], ids=lambda r: r.name)
def test_rule_that_changes_nan_is_off_by_default(rule: Rule) -> None:
    graph = open_graph()
    x = graph.input("x", (4,))
    left = instance(graph, rule.lhs, {"x": x}, x, 1.0)
    program = Program(graph, (x,), (left,))
    values = np.array([-2.0, 0.5, 1.0, 9.0], np.float32)
    off, on = simplify(program), simplify(program, choose_rules(extra=[rule.name]))
    assert np.isnan(evaluate(off.outputs[0], {off.inputs[0]: values})[0])
    np.testing.assert_allclose(evaluate(on.outputs[0], {on.inputs[0]: values}), values, rtol=1e-6)


# Construction.


def test_rules_do_not_bypass_what_the_user_holds() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    h = -x
    y = sg.sum(-h)
    assert evaluate(grad(y, h), {}, sizes={}).tolist() == [-1, -1, -1]
    assert (-grad(sg.sum(x * x), x)) is not x


def test_constants_fold_at_construction() -> None:
    graph = Graph()
    two, three = graph.const(2.0, "float32"), graph.const(3.0, "float32")
    assert uniform_array(two + three) == np.float32(5)
    assert uniform_array(sg.equal(two, three)) == np.bool_(False)
    stretched = apply("broadcast", two, shape=(4, 5))
    root = sg.sqrt(stretched)
    assert root.op.name == "broadcast"
    assert uniform_array(root) == np.sqrt(np.float32(2))


def test_a_rewrite_leaves_the_source_key_free() -> None:
    graph = Graph()
    x = graph.input("x", ())
    graph.opaque = 0
    h = -x
    assert -h is x
    graph.opaque = len(graph.nodes)
    assert -h is not x


def test_construction_rules_are_the_defaults() -> None:
    assert set(DEFAULT_REWRITES) == set(compile_rules(CONSTRUCTION))


# The optimizer.


def network() -> tuple[Program, list[np.ndarray]]:
    graph = Graph()
    x = graph.input("x", ("batch", 4))
    unused = graph.input("unused", ())
    w = graph.param("w", np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32))
    b = graph.param("b", np.array([0.5, -0.5, 0.25], np.float32))
    h = sg.phase(sg.tanh(x @ w + b) * 2.0, sg.tanh(x @ w + b))
    probabilities = sg.exp(h) / sg.sum(sg.exp(h), axis=1, keepdims=True)
    loss = -sg.mean(sg.log(probabilities)) + 0.0 * sg.sum(sg.stop_gradient(h))
    slopes = grad(loss, [w, b])
    updates = tuple((p, p - 0.1 * g) for p, g in zip((w, b), slopes, strict=True))
    return Program(graph, (x, unused), (loss, probabilities), updates), [
        np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32),
        np.zeros((), np.float32),
    ]


def results(program: Program, arrays: list[np.ndarray], phase: Any) -> list[np.ndarray]:
    return evaluate(list(program.roots), dict(zip(program.inputs, arrays, strict=True)), phase=phase)


@pytest.mark.parametrize("phase", ["train", "infer"])
def test_optimized_program_means_the_same(phase: Any) -> None:
    program, arrays = network()
    expected = results(program, arrays, phase)
    checked = Settings(verify=True)
    choices: list[dict[str, Any]] = [
        {},
        {"rules": False},
        {"without": rule_names()},
        {"extra": ["one_minus_tanh_squared"]},
    ]
    for options in choices:
        better = optimize(program, phase, {"batch": 5}, settings=checked, **options)
        assert not any(n.op.kind is Kind.CONTROL for n in better.nodes)
        assert all(n.type.is_static for n in better.nodes)
        assert [i.name for i in better.inputs] == ["x", "unused"]
        for got, want in zip(results(better, arrays, phase), expected, strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
    exact_only = optimize(program, phase, {"batch": 5}, without=[r.name for r in STABILIZING])
    assert len(exact_only.nodes) < len(program.nodes)


def test_optimized_program_shares_storage_and_lets_go_of_the_source() -> None:
    program, _ = network()
    better = optimize(program, "train", {"batch": 5})
    assert better.graph.named("w").graph is better.graph
    assert better.graph.storage["w"] is program.graph.storage["w"]
    assert all(n.gradient_of is None or n.gradient_of.graph is better.graph for n in better.nodes)
    assert any(n.gradient_of is not None for n in better.nodes)
    places = {str(n.loc) for n in program.nodes}
    assert {str(n.loc) for n in better.nodes} <= places


def test_sizes_that_do_not_fit_name_the_line_of_the_user() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    y = graph.input("y", ("m",))
    program = Program(graph, (x, y), (x + y,))
    assert specialize(program, {"n": 3, "m": 1}).outputs[0].shape == (3,)
    with pytest.raises(ShapeError, match=r"test_rules\.py:\d+"):
        specialize(program, {"n": 3, "m": 2})
    with pytest.raises(ShapeError, match="'m'"):
        specialize(program, {"n": 3})


def test_passes_without_work_return_the_program() -> None:
    graph = Graph()
    x = graph.input("x", (2,))
    program = Program(graph, (x,), (x + 1.0,))
    assert specialize(program, {}) is program
    assert select_phase(program, "train") is program


def test_permutes_and_broadcasts_become_labels() -> None:
    graph = Graph()
    a, b = graph.input("a", (5, 2, 3)), graph.input("b", (4, 3))
    c = apply("permute", b, axes=(1, 0))
    stretched = apply("broadcast", c, shape=(5, 3, 4))
    product = apply("contract", a, stretched, left="bmk", right="bkn", out="bmn")
    program = Program(graph, (a, b), (apply("permute", product, axes=(2, 0, 1)),))
    better = optimize(program, "infer")
    assert [n.op.name for n in better.nodes] == ["input", "input", "contract"]
    assert better.outputs[0].attrs == ("bmk", "nk", "nbm")
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=s).astype(np.float32) for s in ((5, 2, 3), (4, 3))]
    np.testing.assert_allclose(*(results(p, arrays, "infer")[0] for p in (program, better)), rtol=1e-5)


def test_sums_over_one_element_are_no_sums() -> None:
    graph = Graph()
    column, row = graph.input("column", (3, 1)), graph.input("row", (1, 4))
    program = Program(graph, (column, row), (column @ row,))
    better = optimize(program, "infer")
    (product,) = (n for n in better.nodes if n.op.name == "contract")
    assert [i.shape for i in product.inputs] == [(3,), (4,)]
    arrays = [np.array([[1], [-2], [3]], np.float32), np.array([[0, 4, 5, -6]], np.float32)]
    one, other = (results(p, arrays, "infer")[0] for p in (program, better))
    np.testing.assert_array_equal(one, other)


def test_permute_of_a_shared_product_stays() -> None:
    graph = Graph()
    a, b = graph.input("a", (2, 3)), graph.input("b", (3, 4))
    product = a @ b
    program = Program(graph, (a, b), (product, product.T))
    assert [n.op.name for n in optimize(program, "infer").nodes].count("contract") == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_divides_once_for_a_row(dtype: str) -> None:
    """Softmax as `nn` has it, and as users write it: the same NaN and zeros, and one more rounding."""
    graph = Graph()
    x = graph.input("x", (8, 5), dtype_named(dtype))
    program = Program(graph, (x,), (sg_nn.softmax(x), sg.exp(x) / sg.sum(sg.exp(x), axis=1, keepdims=True)))
    better = optimize(program, "infer")
    names = [n.op.name for n in better.nodes]
    assert "divide" not in names
    assert names.count("reciprocal") == 2
    rows = np.random.default_rng(3).normal(size=(8, 5), scale=20).astype(dtype)
    rows[1, 2] = np.inf
    rows[2, 0] = np.nan
    rows[3] = -np.inf
    rows[4, 1] = -np.inf
    rows[5] = np.finfo(dtype).max
    rows[6, :2] = np.inf, np.nan
    rows[7] = np.finfo(dtype).min, 0, 1, -1, np.finfo(dtype).tiny
    largest = rows.max(axis=1, keepdims=True)
    finite, info = np.where(np.isfinite(largest), largest, 0), np.finfo(dtype)
    with np.errstate(all="ignore"):
        for got, shift in zip(results(better, [rows], "infer"), (largest, finite), strict=True):
            below = np.exp(rows - shift)
            wanted = below / below.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(got, wanted, rtol=4 * float(info.eps), atol=float(info.tiny))


def test_quotients_that_are_no_softmax_stay() -> None:
    """Without the shift that keeps a sum from being tiny, or with another's, a reciprocal might overflow."""
    graph = Graph()
    x, y = graph.input("x", (4, 5)), graph.input("y", (4, 5))
    rows = sg.max(x, axis=1, keepdims=True)
    own, other, overall = sg.exp(x - rows), sg.exp(y - rows), sg.exp(x - sg.max(x))
    quotients = {
        "other axis": own / sg.sum(own, axis=0, keepdims=True),
        "other's maximum": other / sg.sum(other, axis=1, keepdims=True),
        "all's maximum": overall / sg.sum(overall, axis=1, keepdims=True),
        "other sum": own / sg.sum(sg.exp(y), axis=1, keepdims=True),
        "no exponential": y / sg.sum(y, axis=1, keepdims=True),
    }
    for name, quotient in quotients.items():
        better = optimize(Program(graph, (x, y), (quotient,)), "infer")
        assert "divide" in [n.op.name for n in better.nodes], name


def _rows_as_columns() -> list[tuple[str, Callable[[Node], Node]]]:
    """Sums of rows of a square matrix, and largest elements of rows, where those of columns belong."""

    def quotient(x: Node) -> Node:
        return sg.exp(x) / sg.sum(sg.exp(x), axis=1)

    def shifted(x: Node) -> Node:
        e = sg.exp(x - sg.max(x, axis=1))
        return e / sg.sum(e, axis=1, keepdims=True)

    def stretched(x: Node) -> Node:
        sums = apply("broadcast", apply("reshape", sg.sum(sg.exp(x), axis=(0, 2)), shape=(1, 3, 1)), shape=(3, 3, 3))
        return sg.exp(x) / apply("permute", sums, axes=(1, 0, 2))

    return [
        ("quotient", quotient),
        ("logarithm", lambda x: sg.log(quotient(x))),
        ("reciprocal", lambda x: sg.reciprocal(sg.sum(sg.exp(x), axis=1)) * sg.exp(x)),
        ("weighted", lambda x: (sg.sum(x, axis=0) * sg.reciprocal(sg.sum(sg.exp(x), axis=1))) * sg.exp(x)),
        ("shift", shifted),
        ("cube", lambda x: quotient(apply("broadcast", x, shape=(3, 3, 3)))),
        ("stretched", lambda x: stretched(apply("broadcast", x, shape=(3, 3, 3)))),
    ]


@pytest.mark.parametrize(("name", "form"), _rows_as_columns(), ids=lambda one: one if isinstance(one, str) else "")
def test_sums_beside_other_elements_are_no_softmax(name: str, form: Callable[[Node], Node]) -> None:
    graph = Graph()
    x = graph.input("x", (3, 3))
    program = Program(graph, (x,), (form(x),))
    rows = np.random.default_rng(4).normal(size=(3, 3), scale=3).astype(np.float32)
    got, wanted = (results(p, [rows], "infer")[0] for p in (optimize(program, "infer"), program))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, err_msg=name)


def test_unknown_rule_names_are_an_error() -> None:
    with pytest.raises(ValueError, match="no rule is named nothing_like_it"):
        choose_rules(without=["nothing_like_it"])


def test_switching_a_rule_off() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    program = Program(graph, (x,), (sg.log(x + 1.0),))
    assert [n.op.name for n in simplify(program).nodes] == ["input", "log1p"]
    without = simplify(program, choose_rules(without=["log_one_plus"]))
    assert "log1p" not in [n.op.name for n in without.nodes]


def test_verify_finds_faults() -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    y = graph.input("y", ())
    total = x + y
    verify(Program(graph, (x, y), (total,)))
    with pytest.raises(GraphError, match="not among the inputs"):
        verify(Program(graph, (x,), (total,)))
    with pytest.raises(GraphError, match="neither param nor state"):
        verify(Program(graph, (x, y), (), ((x, total),)))
    with pytest.raises(GraphError, match="not a node of the program's graph"):
        verify(Program(Graph(), (), (total,)))
    object.__setattr__(total, "type", y.type)
    with pytest.raises(GraphError, match="should have type"):
        verify(Program(graph, (x, y), (total,)), after="something")


def test_debug_output_and_dump(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph()
    x = graph.input("x", (3,))
    program = Program(graph, (x,), (sg.log(x + 1.0),))

    def unchanged(one: Program) -> Program:
        return one

    run(program, [simplify, unchanged], Settings(debug=2, dump=str(tmp_path)))
    text = capsys.readouterr().err
    assert "symgrad: simplify:" in text
    assert "log1p" in text
    assert "unchanged" in text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["program.00.simplify.txt", "program.01.unchanged.txt"]


def test_settings() -> None:
    assert read_settings({}) == Settings()
    asked = read_settings({"SYMGRAD_DEBUG": "3", "SYMGRAD_NUM_THREADS": "2"})
    assert (asked.debug, asked.threads) == (3, 2)
    with pytest.raises(ValueError, match="SYMGRAD_NUM_THREADS"):
        read_settings({"SYMGRAD_NUM_THREADS": "0"})
    with pytest.raises(ValueError, match="SYMGRAD_VERIFY"):
        read_settings({"SYMGRAD_VERIFY": "yes"})


def test_dtypes_shown_cover_every_kind() -> None:
    assert {dtype_named(n).kind for n in SHOWN_DTYPES} == {d.kind for d in DTYPES.values()}
    assert as_dtype(np.float32) is dtype_named("float32")


# Whole graphs.


def random_program(seed: int) -> tuple[Program, dict[str, np.ndarray]]:
    """Random pointwise operators, views and reductions over special values, with the patterns rules look for."""
    rng = np.random.default_rng(seed)
    graph = Graph(rules={})
    dtype = dtype_named(str(rng.choice(["float32", "float64", "int32", "uint8"])))
    values = {n: rng.choice(special_values(dtype), (2, 3)) for n in ("x", "y")}
    pool = [graph.input(n, (2, 3), dtype) for n in values]
    pool += [full(graph, (2, 3), dtype, c) for c in (0, 1, 2)]
    masks = [full(graph, (2, 3), dtype_named("bool"), 1)]
    floats = ["divide", "sqrt", "floor", "round", "safe_multiply"] if dtype.is_float else ["bitwise_and", "bitwise_xor"]
    names = ["add", "subtract", "multiply", "maximum", "minimum", "negative", "abs", "square", "sign", *floats]
    for _ in range(40):
        a, b = (pool[int(k)] for k in rng.integers(len(pool), size=2))
        mask, other = (masks[int(k)] for k in rng.integers(len(masks), size=2))
        match int(rng.integers(8)):
            case 0:
                pool.append(apply("where", mask, a, b))
            case 1:
                masks.append(apply(str(rng.choice(["less", "equal", "not_equal", "less_equal"])), a, b))
            case 2:
                masks.append(apply(str(rng.choice(["logical_and", "logical_or", "logical_xor"])), mask, other))
            case 3:
                masks.append(apply("logical_not", mask))
            case 4:
                moved = apply("permute", apply("reshape", a, shape=(3, 2)), axes=(1, 0))
                pool.append(apply("flip", moved, axes=(int(rng.integers(2)),)))
            case 5:
                ends = apply("sum_to", a, shape=(1, 3)) if rng.integers(2) else apply("max", a, axes=(0,))
                pool.append(apply("broadcast", ends, shape=(2, 3)))
            case _:
                name = str(rng.choice(names))
                pool.append(apply(name, *([a, b] if len(_arguments(name)) == 2 else [a])))
    return Program(graph, (pool[0], pool[1]), (*pool[-6:], *masks[-3:])), values


def _arguments(name: str) -> str:
    return "x" if name in ("negative", "abs", "square", "sign", "sqrt", "floor", "round") else "xy"


@pytest.mark.parametrize("seeds", [range(k, k + 25) for k in range(0, 200, 25)], ids=lambda r: f"from {r[0]}")
def test_exact_rules_keep_every_bit_of_random_programs(seeds: range) -> None:
    exact = choose_rules(without=[r.name for r in STABILIZING])
    fewer = 0
    for seed in seeds:
        program, values = random_program(seed)
        better = simplify(program, exact)
        verify(better)
        fewer += len(better.nodes) < len(program.nodes)
        assert len(better.nodes) <= len(program.nodes) + 4
        before = evaluate(list(program.outputs), dict(zip(program.inputs, values.values(), strict=True)))
        after = evaluate(list(better.outputs), dict(zip(better.inputs, values.values(), strict=True)))
        for k, (a, b) in enumerate(zip(before, after, strict=True)):
            assert same_bits(a, b), (seed, k)
    assert fewer > len(seeds) // 2
