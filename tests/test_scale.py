# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
"""Long chains: every phase works at the default recursion limit, in time that grows with the number of nodes."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import pytest

import symgrad as sg
from codegen import works
from codegen.group import group
from codegen.prepare import prepare
from symgrad import api
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace
from symgrad.settings import settings
from symgrad.verify import verify

DEFAULT_LIMIT = 1000
# Seconds for all phases together, with room for a slow and busy machine.
BUDGET = 120.0
# Nodes of a long chain, and seconds for all phases: time that grew with the square would not fit.
LENGTHS = ((20_000, 30.0), pytest.param(100_000, BUDGET, marks=pytest.mark.long))


@pytest.fixture(autouse=True)
def default_recursion_limit():
    """Test runners and libraries raise the limit; users do not."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(min(before, DEFAULT_LIMIT))
    yield
    sys.setrecursionlimit(before)


class Clock:
    """Seconds spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

    def __str__(self) -> str:
        return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())


def chain(x: sg.Node, length: int, step: Callable[[sg.Node, int], sg.Node]) -> sg.Node:
    for k in range(length):
        x = step(x, k)
    return x


def mixed(x: sg.Node, k: int) -> sg.Node:
    """A step that no rule shortens."""
    return sg.tanh(x) if k % 2 else x * 1.5


@pytest.mark.parametrize(("length", "budget"), LENGTHS)
def test_long_chain(tmp_path, record_property, length: int, budget: float) -> None:
    """Build, differentiate, print, optimize, save and load a chain of so many nodes."""
    clock = Clock()
    graph = sg.Graph()
    x = graph.input("x", (3,))
    with clock.phase("build"):
        y = sg.sum(chain(x, length, mixed))
    assert len(graph.nodes) > length
    with clock.phase("differentiate"):
        slope = sg.grad(y, x)
    # Each tanh adds a square, a difference and a product; each factor a product.
    assert len(graph.nodes) < 5 * length
    with clock.phase("print"):
        text = str(graph)
    assert text.count("\n") >= len(graph.nodes) - 2
    program = Program(graph, (x,), (y, slope))
    with clock.phase("verify"):
        verify(program)
    with clock.phase("optimize"):
        optimized = optimize(program, "infer", {})
    assert length < len(optimized.nodes) < 5 * length
    path = tmp_path / "chain.safetensors"
    with clock.phase("save"):
        sg.export(path, [y, slope], [x])
    with clock.phase("load"):
        loaded = sg.load(path)
    assert length < len(loaded.nodes) < 5 * length
    with clock.phase("evaluate"):
        value = sg.evaluate(loaded.outputs[0], {loaded.inputs[0]: np.float32([0.1, 0.2, 0.3])})
    assert np.isfinite(value)
    with clock.phase("drop"):
        del graph, x, y, slope, program, optimized, loaded
    record_property("seconds", str(clock))
    print(f"{length:,} nodes: {clock}")
    assert sum(clock.seconds.values()) < budget, str(clock)


def test_compile_long_chain() -> None:
    """3,000 dependent nodes, alone and with their derivative: the same values as the interpreter."""
    graph = sg.Graph()
    x = graph.input("x", (16,))
    y = chain(x, 3000, mixed)
    clock = Clock()
    value = np.linspace(-1, 1, 16, dtype=np.float32)
    with clock.phase("compile"):
        function = sg.compile([x], y)
        got = function(value)
    with clock.phase("compile the derivative"):
        slope = sg.grad(sg.sum(chain(x, 300, mixed)), x)
        got_slope = sg.compile([x], slope)(value)
    print(f"3,000 nodes: {clock}")
    np.testing.assert_allclose(got, sg.evaluate(y, {x: value}), rtol=1e-4)
    np.testing.assert_allclose(got_slope, sg.evaluate(slope, {x: value}), rtol=1e-3, atol=1e-6)
    assert sum(clock.seconds.values()) < BUDGET, str(clock)


def test_compile_long_chain_of_kernels() -> None:
    """A chain that fusion must cut at every other node: 600 products of matrices."""
    graph = sg.Graph()
    x, w = graph.input("x", (8, 8)), graph.param("w", np.eye(8, dtype=np.float32) * np.float32(0.99))
    y = chain(x, 600, lambda n, k: sg.maximum(n @ w, -1.0))
    clock = Clock()
    value = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
    with clock.phase("compile"):
        got = sg.compile([x], y)(value)
    print(f"600 products: {clock}")
    np.testing.assert_allclose(got, sg.evaluate(y, {x: value}), rtol=1e-4)
    assert clock.seconds["compile"] < BUDGET


def test_wide_sum() -> None:
    """One node with many readers, and a balanced tree over them."""
    graph = sg.Graph()
    x = graph.input("x", ())
    terms = [x * float(k) for k in range(1, 4001)]
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=True)] if len(terms) % 2 == 0 else [
            terms[0] + terms[1], *terms[2:]
        ]  # fmt: skip
    slope = sg.grad(terms[0], x)
    assert sg.evaluate(slope, {x: np.float32(1)}) == 4000 * 4001 / 2


def test_many_short_sums_of_one_chain() -> None:
    """Which reductions run over windows is found in one sweep, not by a walk back from each."""
    graph = sg.Graph()
    x = graph.input("x", (4, 8))
    sums: list[sg.Node] = []
    y = x
    for k in range(2000):
        y = mixed(y, k)
        sums.append(sg.sum(y, axis=1))
    clock = Clock()
    with clock.phase("prepare"):
        prepare(Program(graph, (x,), tuple(sums)))
    assert clock.seconds["prepare"] < 3, str(clock)


def test_views_that_read_each_other_twice() -> None:
    """Readers behind views are counted once each: there are 2 ** 40 paths to them."""
    graph = sg.Graph()
    x = graph.input("x", (64,))
    y = sg.exp(sg.sin(x))
    for _ in range(40):
        y = sg.concat([y[:32], sg.flip(y, axis=0)[:32]], axis=0)
    clock = Clock()
    with clock.phase("group"):
        group(Program(graph, (x,), (y,)))
    assert clock.seconds["group"] < 3, str(clock)


def identical_layers(count: int) -> tuple[sg.Function, int]:
    """A compiled training step of so many equal residual layers, and the nodes of its graph."""
    graph = sg.Graph()
    x, t = graph.input("x", (8, 16)), graph.input("t", (8,), sg.int32)
    h = x
    for k in range(count):
        with graph.scope(f"layer{k}"):
            w, b = graph.param("w", sg.init.he_normal((16, 16), seed=k)), graph.param("b", np.zeros(16, np.float32))
            scale, shift = graph.param("s", np.ones(16, np.float32)), graph.param("o", np.zeros(16, np.float32))
            h = h + sg.nn.gelu(sg.nn.layer_norm(h, scale, shift) @ w + b)
    loss = sg.mean(sg.nn.softmax_cross_entropy(h, t))
    grads = sg.grad(loss, graph.params)
    step = sg.compile([x, t], loss, updates=sg.optim.adam(graph.params, grads, lr=1e-3))
    step(np.ones((8, 16), np.float32), np.zeros(8, np.int32))
    return step, len(graph.nodes)


def test_equal_layers_share_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lowered, scheduled and compiled does not grow with the number of equal layers."""
    lowered: list[object] = []
    lower = works.lower
    monkeypatch.setattr(works, "lower", lambda one, stored: (lowered.append(one), lower(one, stored))[1])
    monkeypatch.setattr(api, "settings", lambda: replace(settings(), verify=False, cache="off"))
    counts: list[tuple[int, int]] = []
    for count in (4, 64):
        lowered.clear()
        step, nodes = identical_layers(count)
        assert nodes > 100 * count
        report = step.report()
        distinct = int(report.split(" distinct")[0].rsplit(" ", 1)[1])
        kernels = int(report.split(" kernels, ")[0].rsplit(" ", 1)[1])
        assert kernels > 6 * count
        counts.append((len(lowered), distinct))
    # Optimizer updates of several layers run in one kernel: how many there are in the last one differs.
    assert counts[1][0] <= counts[0][0] + 8
    assert counts[1][1] <= counts[0][1] + 8


def test_work_of_the_compiler_grows_with_the_number_of_nodes() -> None:
    """Calls of functions are counted, not seconds: four times the layers take little more than four times the calls."""
    totals: list[int] = []
    for layers in (8, 32):
        calls = itertools.count()

        def note(frame: object, event: str, argument: object, calls: itertools.count[int] = calls) -> None:
            if event == "call":
                next(calls)

        sys.setprofile(note)
        try:
            identical_layers(layers)
        finally:
            sys.setprofile(None)
        totals.append(next(calls))
    assert totals[1] < 4.4 * totals[0], totals
