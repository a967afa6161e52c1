"""Random graphs: what is built, rewritten and compiled has the interpreter's values and derivatives.

Every graph is made from a seed. Values, gradients and products with Hessians of compiled code, with the optimizer and
without, are compared with the interpreter within what rounding can explain (`rounding`), those of small graphs with 50
digits too; and the optimizer without one of the rules that fired must give the same. A graph that fails is made small
by hypothesis, which replaces nodes by inputs, before it is shown.
"""

# pyright: basic
from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from oracles import DIGITS, STEP, differs, function, precise_all, run_poisoned
from precise import lift, mp
from random_graphs import Made, RandomGraph, random_graph
from rounding import FEW, MANY, Rounding, inference_order

import symgrad as sg
from symgrad.graph import Node, Rewrite, ancestors
from symgrad.optimize import optimize, pipeline
from symgrad.passes import run
from symgrad.program import Program
from symgrad.rulebook import OPTIMIZING
from symgrad.rules import compile_rules
from symgrad.settings import Settings
from symgrad.simplify import Rules
from symgrad.types import static_shape

Array = np.ndarray
# What a wrong compiler raises; the errors of symgrad are among these.
FAILURES = (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# What 50 digits do not say: operators without a precise meaning, casts that saturate.
UNKNOWN = (NotImplementedError, OverflowError)
# Seconds that are spent on making a failing graph small.
PATIENCE = 20
# A bound is sharp if it is at most this share of the value, or of 1.
SHARP = 1e-3
# Derivative rules bring constants in that are rounded to float32, such as 1 / ln 2.
AGREEMENT = 1e-6


@dataclass
class Case:
    """What is compiled of a graph: leaves, outputs, and new values of states."""

    name: str
    inputs: list[Made]
    states: list[Made]
    shown: list[Made]
    renewed: list[Made]
    exact: set[int]
    rng: np.random.Generator


@dataclass
class Tally:
    """What was tried, so that a test can tell that it tried something."""

    elements: int = 0
    sharp: int = 0
    small: int = 0
    decided: int = 0
    derived: int = 0
    slopes: int = 0
    rules: set[str] = field(default_factory=set)


def case_of(r: RandomGraph) -> Case:
    """The last node and some others as outputs; states take values of their types."""
    inputs = [m for m in r.made if m.node.op.name == "input"]
    states = [m for m in r.made if m.node.op.name == "state"]
    # Every output costs a kernel, whose compilation costs more than all else.
    shown = [r.made[-1], *(m for m in r.made[:-1] if r.chance(0.05 if r.small else 0.25))]
    renewed = [r.pick(where=lambda m, old=old: m.node.type == old.node.type) or old for old in states]
    return Case(f"seed{r.seed}", inputs, states, shown, renewed, _ids(m for m in r.made if m.exact), r.rng)


def _ids(made: Iterable[Made]) -> set[int]:
    return {n.id for n in ancestors([m.node for m in made])}


@dataclass
class Derived:
    """The gradient of a weighted sum of the outputs, and the product of its Hessian over one leaf with a direction."""

    loss: Node
    leaf: Node
    along: Array
    gradients: list[Node]
    product: Node


def derive(case: Case) -> Derived | None:
    """None if there is no float to derive or to derive with respect to."""
    weights = [case.rng.uniform(0.5, 1.5) for _ in case.shown]
    floats = [(m.node, w) for m, w in zip(case.shown, weights, strict=True) if m.node.dtype.is_float]
    leaves = [m.node for m in (*case.inputs, *case.states) if m.node.dtype.is_float]
    if not floats or not leaves:
        return None
    leaves = [leaves[int(k)] for k in case.rng.permutation(len(leaves))[:2]]
    loss = functools.reduce(lambda a, b: a + b, [sg.astype(sg.sum(n * w), "float64") for n, w in floats])
    leaf = leaves[0]
    along = case.rng.normal(0, 1, static_shape(leaf.shape)).astype(leaf.dtype.np)
    return Derived(loss, leaf, along, sg.grad(loss, leaves), sg.hvp(loss, leaf, along))


def examine(case: Case, tally: Tally, *, small: bool, thorough: bool) -> None:
    """Compare every way to compute a case. AssertionError says what differs."""
    leaves = [*case.inputs, *case.states]
    slopes = derive(case)
    derived = [] if slopes is None else [*slopes.gradients, slopes.product]
    outputs = [*(m.node for m in case.shown), *derived]
    pairs = [(old.node, new.node) for old, new in zip(case.states, case.renewed, strict=True)]
    program = Program(
        case.shown[0].node.graph, tuple(m.node for m in case.inputs), tuple(outputs), tuple(pairs), name=case.name
    )
    nodes = [*outputs, *(new for _, new in pairs)]
    feeds = {m.node: m.value for m in leaves}
    exact = [m.exact for m in case.shown] + [False] * len(derived) + [m.exact for m in case.renewed]
    meant = sg.evaluate(nodes, feeds)
    near = Rounding(nodes, feeds, case.exact)
    near.sample(FEW)

    def judge(way: str, results: Sequence[Array]) -> None:
        for k, got in enumerate(results):
            # Of zeros of both signs, max and min may take either.
            wrong = differs(got, meant[k], zeros=False) if exact[k] else beyond(got, meant[k], near, k)
            assert wrong is None, f"{case.name}, {way}, {_role(k, case, nodes)}: {wrong}\n{program}"

    ways = {"optimized": True, "not optimized": False}
    results = {way: compiled(program, case, rules) for way, rules in ways.items()}
    for way, arrays in results.items():
        judge(way, arrays)
    fired = sorted(fired_rules(program))
    if fired:
        chosen = fired[int(case.rng.integers(len(fired)))]
        tally.rules.add(chosen)
        judge(f"without {chosen}", interpreted(optimize(program, "infer", without=(chosen,)), case))
        if thorough:
            judge(f"compiled without {chosen}", compiled(program, case, True, (chosen,)))
    for k, value in enumerate(meant):
        if value.dtype.kind == "f" and not exact[k]:
            tally.elements += value.size
            tally.sharp += int(np.count_nonzero(near.bounds[k] <= SHARP * np.maximum(1, np.abs(value))))
    tally.slopes += sum(bool(np.any(a)) for a in meant[len(case.shown) : len(outputs)])
    if small:
        tally.small += 1
        tally.decided += has_true_values(case, nodes, feeds, {**results, "interpreted": meant})
        tally.derived += slopes is not None and has_true_slopes(case, slopes, feeds, program)


def compiled(program: Program, case: Case, rules: bool, without: tuple[str, ...] = ()) -> list[Array]:
    """Outputs and new values of states, of native code. States are set back before."""
    _restore(case)
    outputs = run_poisoned(function(program, rules=rules, without=without), [m.value for m in case.inputs])
    return [*outputs, *(old.node.value for old in case.states)]


def interpreted(static: Program, case: Case) -> list[Array]:
    """The same of an optimized program, by the interpreter."""
    _restore(case)
    feeds = dict(zip(static.inputs, [m.value for m in case.inputs], strict=True))
    return sg.evaluate([*static.outputs, *(new for _, new in static.updates)], feeds)


def _restore(case: Case) -> None:
    for old in case.states:
        old.node.value = old.value


def _role(k: int, case: Case, nodes: Sequence[Node]) -> str:
    last = len(nodes) - len(case.renewed)
    if k < len(case.shown):
        return f"output {nodes[k]!r}"
    return (
        f"new value {nodes[k]!r}" if k >= last else f"Hessian {nodes[k]!r}" if k == last - 1 else f"slope {nodes[k]!r}"
    )


def beyond(got: Array, meant: Array, near: Rounding, k: int) -> str | None:
    """What differs by more than rounding can explain; None if nothing does."""
    if got.dtype != meant.dtype or got.shape != meant.shape:
        return f"got {got.dtype}{list(got.shape)}, expected {meant.dtype}{list(meant.shape)}"
    if got.dtype.kind != "f":
        return differs(got, meant)
    same = (np.isnan(got) == np.isnan(meant)) & (np.isfinite(got) == np.isfinite(meant))
    if not np.all(same):
        return f"not finite at other places: {got} for {meant}"
    finite = np.isfinite(meant)
    error = np.abs(np.where(finite, got, 0).astype(np.float64) - np.where(finite, meant, 0))
    return exceeds(error, near, k, lambda: f"got {got}, expected {meant}")


def exceeds(error: Array, near: Rounding, k: int, what: Callable[[], str]) -> str | None:
    """Whether an error is larger than imitated ones. Few of those are tried first, and many before it is believed."""
    for samples in (FEW, MANY):
        near.sample(samples)
        excess = error - near.bounds[k]
        if not np.any(excess > 0):
            return None
    at = np.unravel_index(np.argmax(excess), error.shape)
    return f"error {error[at]:.3g} at {tuple(map(int, at))}, allowed {near.bounds[k][at]:.3g}: {what()}"


# 50 digits.


def has_true_values(case: Case, nodes: Sequence[Node], feeds: Mapping[Node, Array], results: Mapping[str, Any]) -> bool:
    """Compare results with 50 digits. False if nothing can be said: not finite, or a rounding error decides."""
    if not all(np.all(np.isfinite(m.value)) for m in (*case.inputs, *case.states)):
        return False
    deciding = [n for n in inference_order(nodes, {n.id for n in feeds}) if not n.dtype.is_float]
    try:
        truths = precise_all([*nodes, *deciding], feeds)
    except UNKNOWN:
        return False
    near = Rounding(nodes, feeds, seed=1)
    if any(
        np.any(near.values[i.id] == 0) for n in inference_order(nodes, ()) if n.op.name == "atan2" for i in n.inputs
    ):
        # These numbers have no negative zero, which tells the sign of an angle.
        return False
    for node, truth in zip(deciding, truths[len(nodes) :], strict=True):
        if not np.array_equal(truth, near.values[node.id]):
            return False
    for k in range(len(nodes)):
        truth = np.asarray(truths[k].astype(np.float64) if nodes[k].dtype.is_float else truths[k])
        if not np.all(np.isfinite(truth)):
            return False
        for way, arrays in results.items():
            got = np.asarray(arrays[k])
            error = np.abs(got.astype(np.float64) - truth)
            wrong = exceeds(error, near, k, functools.partial("got {}, true {}".format, got, truth))
            if near.jumps:
                return False
            assert wrong is None, f"{case.name}, {way} against 50 digits, {_role(k, case, nodes)}: {wrong}"
    return True


def has_true_slopes(case: Case, slopes: Derived, feeds: dict[Node, Array], program: Program) -> bool:
    """Compare derivatives with central differences in 50 digits. False if nothing can be said, as at a kink."""
    if not all(np.all(np.isfinite(m.value)) for m in (*case.inputs, *case.states)):
        return False
    nodes = [slopes.loss, slopes.gradients[0], slopes.product]
    # Where a comparison is of equal numbers, the convention counts, and differences know none.
    deciding = [n for n in inference_order(nodes, {n.id for n in feeds}) if not n.dtype.is_float or n.op.name == "sign"]
    with mp.workdps(DIGITS):
        step, along = mp.mpf(STEP), lift(slopes.along)
        feed = lift(feeds[slopes.leaf])
        try:
            left, middle, right = (
                precise_all([*nodes, *deciding], {**feeds, slopes.leaf: feed + k * step * along}) for k in (-1, 0, 1)
            )
        except UNKNOWN:
            return False
        for moved in (left, right):
            if not all(map(np.array_equal, moved[len(nodes) :], middle[len(nodes) :])):
                return False
        slope = np.asarray(np.sum(middle[1] * along), object)
        size = 1 + _largest(middle[: len(nodes)]) * (1 + _largest([along])) * along.size
        for order, claimed in ((0, slope), (1, middle[2])):
            before, after = (
                np.asarray((b[order] - a[order]) / step, object) for a, b in ((left, middle), (middle, right))
            )
            if any(not mp.isfinite(v) or abs(v) > size / AGREEMENT for v in (*before.flat, *after.flat)):
                return False  # a jump
            if np.any(np.abs(before - after) > AGREEMENT * size):
                return False  # a kink
            found = np.asarray((before + after) / 2, object)
            wrong = bool(np.any(np.abs(found - claimed) > AGREEMENT * size))
            what = "gradient along a direction" if order == 0 else "Hessian times a direction"
            assert not wrong, f"{case.name}, {what}: {_plain(claimed)}, differences give {_plain(found)}\n{program}"
    return True


def _largest(arrays: Sequence[Array]) -> Any:
    return max((abs(v) for a in arrays for v in a.flat), default=0)


def _plain(values: Array) -> Array:
    return np.asarray(values).astype(np.float64)


# Rules.


def fired_rules(program: Program) -> set[str]:
    """The names of the rules that the optimizer applies to a program."""
    fired: set[str] = set()
    run(program, pipeline("infer", {}, _recorded(fired)), Settings())
    return fired


@functools.cache
def _apart() -> list[tuple[str, str, Rewrite]]:
    return [(rule.name, op, one) for rule in OPTIMIZING for op, some in compile_rules([rule]).items() for one in some]


def _recorded(fired: set[str]) -> Rules:
    def recorded(name: str, rewrite: Rewrite) -> Rewrite:
        def wrapped(graph: Any, inputs: Any, attrs: Any) -> Node | None:
            better = rewrite(graph, inputs, attrs)
            if better is not None:
                fired.add(name)
            return better

        return wrapped

    found: dict[str, list[Rewrite]] = {}
    for name, op, rewrite in _apart():
        found.setdefault(op, []).append(recorded(name, rewrite))
    return found


# Shrinking.


def cut(seed: int, keep: Sequence[bool], chosen: int) -> Case:
    """The case of a seed with inputs in the place of nodes not kept, and one output, or all for -1."""
    r = random_graph(seed)
    case = case_of(r)
    grown = [m for m in r.made if m.node.op.name not in ("input", "state")]
    cuts: dict[Node, Node] = {}
    for k, (m, kept) in enumerate(zip(grown, keep, strict=False)):
        if not kept:
            cuts[m.node] = r.graph.input(f"cut{k}", m.node.shape, m.node.dtype)
    shown = [grown[chosen]] if 0 <= chosen < len(grown) else case.shown
    # What is shown is computed, not given.
    for m in shown:
        cuts.pop(m.node, None)
    rebuilt = r.graph.substitute([m.node for m in shown], cuts)
    outputs = [Made(n, m.value, m.noisy, m.exact) for n, m in zip(rebuilt, shown, strict=True)]
    given = [Made(cuts[m.node], m.value, m.value, True) for m in grown if m.node in cuts]
    reached = set(ancestors(rebuilt))
    inputs = [m for m in (*case.inputs, *given) if m.node in reached] or case.inputs[:1]
    states = [m for m in case.states if m.node in reached]
    exact = _ids(m for m in outputs if m.exact)
    return Case(f"seed{seed} cut", inputs, states, outputs, states, exact, np.random.default_rng(seed))


def shrunk(seed: int, fails: Callable[[int, Sequence[bool], int], bool]) -> tuple[list[bool], int] | None:
    """The smallest cut of a seed's graph hypothesis finds in a while that still fails; None if it finds none."""
    count = sum(m.node.op.name not in ("input", "state") for m in random_graph(seed).made)
    # Nine of ten nodes are kept at first; none is simplest.
    kept = st.lists(st.integers(0, 9).map(bool), min_size=count, max_size=count)
    tried: dict[tuple[bool | int, ...], bool] = {}
    end = time.perf_counter() + PATIENCE

    def wrong(drawn: tuple[list[bool], int]) -> bool:
        keep, chosen = drawn
        key = (*keep, chosen)
        if key not in tried:
            tried[key] = time.perf_counter() < end and fails(seed, keep, chosen)
        return tried[key]

    settings = hypothesis.settings(
        max_examples=200,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    try:
        return hypothesis.find(st.tuples(kept, st.integers(-1, count - 1)), wrong, settings=settings)
    except NoSuchExample:
        return None


def failure(seed: int, keep: Sequence[bool], chosen: int) -> str | None:
    """What is wrong with a cut; None if nothing is, or if it cannot be built."""
    try:
        case = cut(seed, keep, chosen)
    except FAILURES:
        return None
    try:
        examine(case, Tally(), small=random_graph(seed).small, thorough=False)
    except FAILURES as error:
        return f"{type(error).__name__}: {error}"
    return None


def check(seed: int, tally: Tally, *, thorough: bool = False) -> str | None:
    """What is wrong with the graph of a seed, and its smallest part with which something is wrong."""
    r = random_graph(seed)
    try:
        examine(case_of(r), tally, small=r.small, thorough=thorough)
    except FAILURES as error:
        least = shrunk(seed, lambda *drawn: failure(*drawn) is not None)
        reduced = "nothing smaller was found" if least is None else f"smallest: {failure(seed, *least)}"
        return f"{type(error).__name__}: {error}\n{reduced}"
    return None


def check_block(seeds: Sequence[int], *, thorough: bool) -> None:
    """Check graphs; the failures of all are told at once. What was compared must not have been vacuous."""
    tally = Tally()
    failed = [wrong for seed in seeds if (wrong := check(seed, tally, thorough=thorough)) is not None]
    assert not failed, "\n\n".join(failed)
    assert tally.sharp >= 0.9 * tally.elements, tally
    assert tally.decided >= 0.4 * tally.small, tally
    assert tally.derived >= 0.3 * tally.small, tally
    assert tally.slopes >= len(seeds) / 2, tally
    assert tally.rules, tally


BLOCK = 20


@pytest.mark.parametrize("start", range(0, 300, BLOCK))
def test_random_graphs(start: int) -> None:
    check_block(range(start, start + BLOCK), thorough=False)


@pytest.mark.long
@pytest.mark.parametrize("start", range(1000, 11000, 100))
def test_many_random_graphs(start: int, capsys: pytest.CaptureFixture[str]) -> None:
    began = time.perf_counter()
    check_block(range(start, start + 100), thorough=True)
    with capsys.disabled():
        print(f"seeds {start} to {start + 99}: {time.perf_counter() - began:.0f} s", flush=True)
