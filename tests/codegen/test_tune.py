"""Measured schedules: the same bits whatever is chosen; measured once, kept, and never trusted when damaged."""

# pyright: basic
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg
from codegen import jit, tune
from codegen.build import build
from codegen.cache import MAGIC, ObjectCache
from codegen.machine_code import KernelStore
from codegen.prepare import prepare
from codegen.schedule_cpu import contraction_choices
from codegen.tiling import Choice
from codegen.works import contractions_of, lowered_groups
from symgrad.errors import CompileError
from symgrad.optimize import optimize
from symgrad.program import Program

MOST_CHOICES = 12


@pytest.fixture(autouse=True)
def _short_kernels_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "WORTH_NS", 0)
    monkeypatch.setattr(tune, "BUDGET", 1e-4)


def _product(g: sg.Graph) -> Any:
    return g.input("x", (37, 70)) @ g.input("w", (70, 150))


def _turned(g: sg.Graph) -> Any:
    return g.input("x", (70, 37)).T @ g.input("w", (150, 70)).T


def _batches(g: sg.Graph) -> Any:
    y = g.input("x", (3, 20, 40)) @ g.input("w", (3, 40, 50))
    return sg.nn.gelu(y + g.input("b", (50,))) * 2.0


def _long_sum(g: sg.Graph) -> Any:
    return g.input("x", (16, 1100)) @ g.input("w", (1100, 33))


def _one_row(g: sg.Graph) -> Any:
    return g.input("x", (1, 70)) @ g.input("w", (70, 300))


def _double(g: sg.Graph) -> Any:
    return sg.tanh(g.input("x", (9, 30), sg.float64) @ g.input("w", (30, 200), sg.float64))


def _convolution(g: sg.Graph) -> Any:
    return sg.nn.relu(sg.nn.conv2d(g.input("x", (2, 5, 14, 14)), g.input("w", (20, 5, 3, 3)), padding=1))


def _convolution_gradients(g: sg.Graph) -> Any:
    x, w = g.input("x", (2, 5, 14, 14)), g.input("w", (20, 5, 3, 3))
    return sg.grad(sg.sum(sg.nn.conv2d(x, w, padding=1) ** 2), [x, w])


def _mlp_step(g: sg.Graph) -> Any:
    x, w, v = g.input("x", (40, 70)), g.input("w", (70, 48)), g.input("v", (48, 10))
    loss = sg.mean((sg.tanh(x @ w) @ v) ** 2)
    return [loss, *(p - 0.1 * d for p, d in zip((w, v), sg.grad(loss, [w, v]), strict=True))]


CASES = [
    _product, _turned, _batches, _long_sum, _one_row, _double, _convolution, _convolution_gradients, _mlp_step,
]  # fmt: skip


def _program(case: Callable[[sg.Graph], Any]) -> Program:
    graph = sg.Graph()
    made = case(graph)
    outputs = tuple(made) if isinstance(made, list | tuple) else (made,)
    inputs = tuple(n for n in graph.nodes if n.op.name == "input")
    return optimize(Program(graph, inputs, outputs, name="tuned"), "infer", {})


def _run(program: Program, **options: Any) -> tuple[bytes, str]:
    """The bits of the outputs, and the report."""
    executable = build(program, KernelStore(), verify=True, **options)
    if "cache" in options:
        options["cache"].settle()
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(n.shape).astype(n.dtype.np) for n in program.inputs]
    outputs = [np.empty(n.shape, n.dtype.np) for n in executable.outputs]
    assert executable.run(arrays + outputs) == 0
    return b"".join(a.tobytes() for a in outputs), executable.report()


def _forced(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Choose by number, as far as there are so many, and measure nothing."""
    monkeypatch.setattr(tune, "_fastest", lambda kernel, choices, *_: choices[min(number, len(choices) - 1)])


@pytest.mark.parametrize("case", CASES)
def test_every_choice_gives_the_same_bits(case: Callable[[sg.Graph], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    program, target = _program(case), jit.host_target()
    most = max(len(contraction_choices(k, target)) for k in contractions_of(lowered_groups(prepare(program)))[0])
    assert most <= MOST_CHOICES
    assert most > 1 or case is _one_row
    expected, _ = _run(program)
    for number in range(most):
        _forced(monkeypatch, number)
        assert _run(program, tuned=True)[0] == expected, number


def test_narrow_targets_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    program, target = _program(_batches), jit.host_target(16)
    expected, _ = _run(program, target=target)
    for number in range(MOST_CHOICES):
        _forced(monkeypatch, number)
        assert _run(program, target=target, tuned=True)[0] == expected, number


@pytest.mark.parametrize("workers", [1, 2])
def test_measured(workers: int) -> None:
    program = _program(_mlp_step)
    bits, report = _run(program, tuned=True, workers=workers)
    assert bits == _run(program)[0]
    assert "distinct contractions run another schedule than the default" in report
    assert "tuned" not in _run(program)[1]


def test_the_first_stays_unless_another_is_clearly_faster() -> None:
    class Candidate:
        def __init__(self, *times: float) -> None:
            self.times = list(times)

        def seconds(self) -> float:
            return self.times.pop(0) if len(self.times) > 1 else self.times[0]

    slow, faster, hardly, lucky = Candidate(1.0), Candidate(0.8), Candidate(0.96), Candidate(0.5, 1.0)
    assert tune.race([slow, faster, hardly]) == 1  # pyright: ignore[reportArgumentType]
    assert tune.race([slow, hardly]) == 0  # pyright: ignore[reportArgumentType]
    assert tune.race([slow, lucky]) == 0  # pyright: ignore[reportArgumentType]


class _Counted:
    """Chooses the last and counts how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        monkeypatch.setattr(tune, "_fastest", self.fastest)

    def fastest(self, kernel: object, choices: tuple[Choice, ...], *_: object) -> Choice:
        self.count += 1
        return choices[-1]


def _entry(folder: Path) -> Path:
    (found,) = [p for p in folder.iterdir() if b"Choice(" in p.read_bytes()]
    return found


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, program = _Counted(monkeypatch), _program(_product)
    first, report = _run(program, tuned=True, cache=ObjectCache(tmp_path))
    assert "1 of 1 distinct contractions" in report
    assert counted.count == 1
    second, report = _run(program, tuned=True, cache=ObjectCache(tmp_path))
    assert counted.count == 1
    assert "1 of 1 distinct contractions" in report
    assert "0 were measured now" in report
    assert first == second
    # Without a folder, the store of the process knows it.
    store = KernelStore()
    for _ in range(2):
        build(program, store, tuned=True)
    assert counted.count == 2


@pytest.mark.parametrize("damage", ["checksum", "unknown", "empty"])
def test_damaged_entries_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    counted, program = _Counted(monkeypatch), _program(_product)
    _run(program, tuned=True, cache=ObjectCache(tmp_path))
    entry = _entry(tmp_path)
    whole = entry.read_bytes()
    if damage == "checksum":
        entry.write_bytes(whole.replace(b"row_tile=", b"row_tile=1"))
    elif damage == "unknown":
        cache = ObjectCache(tmp_path)
        cache.keep(entry.name, repr(Choice(1000, 9, 1, True, True)).encode())
        cache.settle()
    else:
        entry.write_bytes(MAGIC)
    _run(program, tuned=True, cache=ObjectCache(tmp_path))
    assert counted.count == 2
    assert entry.read_bytes() == whole


def test_workers_are_measured_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, cache = _Counted(monkeypatch), ObjectCache(tmp_path)
    program = _program(lambda g: g.input("x", (128, 256)) @ g.input("w", (256, 256)))
    for workers in (1, 2, 2):
        _run(program, tuned=True, cache=cache, workers=workers)
    assert counted.count == 2


def test_computed_places_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(monkeypatch)
    graph = sg.Graph()
    x, i, w = graph.input("x", (20, 30)), graph.input("i", (20,), sg.int64), graph.input("w", (30, 40))
    table = graph.input("table", (50, 40))
    program = Program(graph, (x, i, w, table), ((x @ w) * sg.take(table, i, axis=0),), name="taken")
    build(optimize(program, "infer", {}), KernelStore(), tuned=True)
    assert counted.count == 0


def test_symbolic_sizes() -> None:
    rng = np.random.default_rng(2)
    graph = sg.Graph()
    x, w = graph.input("x", ("n", 70)), graph.input("w", (70, 90))
    plain, tuned = (sg.compile([x, w], sg.tanh(x @ w), tune=flag) for flag in (False, True))
    for n in (5, 40):
        arrays = [rng.standard_normal(s).astype(np.float32) for s in ((n, 70), (70, 90))]
        assert np.array_equal(plain(*arrays), tuned(*arrays))
    assert tuned.report().count("tuned: ") == 2
    assert "tuned: " not in plain.report()


def test_only_a_truth_value() -> None:
    graph = sg.Graph()
    x = graph.input("x", (2,))
    with pytest.raises(CompileError, match="tune must be True or False, got 'all'"):
        sg.compile([x], x, tune="all")  # pyright: ignore[reportArgumentType]
