"""Plans on disk: the next process decides nothing again, and never runs the plan of another program."""

# pyright: basic
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from codegen import build as building
from codegen import jit
from codegen.build import build
from codegen.cache import MAGIC, ObjectCache
from codegen.executable import Executable
from codegen.machine_code import Compiled, KernelStore
from codegen.recall import decoded, encoded, plan_key
from codegen.threads import serial_entry
from codegen.tiling import Choice
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace

ROOT = Path(__file__).parent.parent.parent
TARGET = jit.host_target()
serial_entry()  # the driver is made now, and is in no cache of these tests

Make = Callable[[sg.Graph], sg.Node]


def program(make: Make, *, names: tuple[str, ...] = ("x", "y"), shape: tuple[int, ...] = (6, 8)) -> Program:
    graph = sg.Graph()
    for name in names:
        graph.input(name, shape)
    return optimize(Program(graph, tuple(graph.inputs), (make(graph),), name="kept"), "infer", {})


def layers(g: sg.Graph) -> sg.Node:
    """Several kernels, with values between them and a constant with dimensions."""
    x, y = g.inputs
    h = sg.nn.softmax(x @ y.T + g.const(np.arange(6, dtype=np.float32)))
    return sg.sum(sg.tanh(h) @ x, axis=0) * 2.0


def made(one: Program, cache: ObjectCache | None, **options) -> Executable:
    """Build in a store of its own, as a new process would."""
    executable = build(one, KernelStore(), cache=cache, **options)
    if cache is not None:
        cache.settle()
    return executable


def results(executable: Executable) -> list[bytes]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(n.shape).astype(n.dtype.np) for n in executable.program.inputs]
    outputs = [np.zeros(n.shape, n.dtype.np) for n in executable.outputs]
    assert executable.run([*arrays, *outputs]) == 0
    return [a.tobytes() for a in outputs]


@pytest.fixture
def decisions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A line for every program that is decided upon instead of recalled."""
    seen: list[str] = []
    works_of = building.works_of

    def noted(one: Program, *more, **options):
        seen.append(one.name)
        return works_of(one, *more, **options)

    monkeypatch.setattr(building, "works_of", noted)
    return seen


def plan_file(folder: Path) -> Path:
    """The one file that holds a plan."""
    (found,) = (p for p in folder.iterdir() if b'"barriers"' in p.read_bytes())
    return found


def test_nothing_is_decided_twice(tmp_path: Path, decisions: list[str]) -> None:
    first = made(program(layers), ObjectCache(tmp_path))
    second = made(program(layers), ObjectCache(tmp_path))
    assert decisions == ["kept"]
    assert [one.task for one in first.launches] == [one.task for one in second.launches]
    assert [one.barrier for one in first.launches] == [one.barrier for one in second.launches]
    assert first.memory == second.memory
    assert results(first) == results(second) == results(made(program(layers), None))
    assert first.report() == second.report()


def test_a_plan_survives_its_text() -> None:
    executable = made(program(layers), None)
    tasks = [one.task for one in executable.launches]
    code = [one.code for one in executable.launches if isinstance(one.code, Compiled)]
    assert len(code) == len(tasks)
    back = decoded(encoded(tasks, code, executable.memory))
    assert list(back.tasks) == tasks
    assert back.memory == executable.memory
    assert [name for name, _ in back.code] == [one.name for one in code]
    assert [scratch for _, scratch in back.code] == [one.scratch_bytes for one in code]


OTHERS: dict[str, Program] = {
    "factor": program(lambda g: layers(g) * 3.0),
    "shape": program(layers, shape=(6, 9)),
    "names": program(layers, names=("x", "z")),
    "order": program(lambda g: layers(g) + sg.sum(g.inputs[0] - g.inputs[1])),
    "other order": program(lambda g: layers(g) + sg.sum(g.inputs[1] - g.inputs[0])),
    "axis": program(lambda g: sg.sum(g.inputs[0], axis=0)),
    "other axis": program(lambda g: sg.sum(g.inputs[0], axis=1)),
    "zero": program(lambda g: sg.copysign(g.inputs[0], 0.0)),
    "negative zero": program(lambda g: sg.copysign(g.inputs[0], -0.0)),
    "true": program(lambda g: sg.logical_and(g.inputs[0] > 0, g.const(np.ones((8,), bool)))),
    "bytes": program(lambda g: sg.logical_and(g.inputs[0] > 0, sg.not_equal(g.const(np.ones((8,), np.uint8)), 0))),
}


def test_the_key_has_everything_in_it() -> None:
    one = program(layers)
    keys = {name: plan_key(other, TARGET, None, {}) for name, other in OTHERS.items()}
    keys["itself"] = plan_key(one, TARGET, None, {})
    keys["output first"] = plan_key(replace(one, outputs=one.outputs * 2), TARGET, None, {})
    keys["inputs turned"] = plan_key(replace(one, inputs=one.inputs[::-1]), TARGET, None, {})
    keys["limit"] = plan_key(one, TARGET, 1000, {})
    keys["other limit"] = plan_key(one, TARGET, 1001, {})
    keys["target"] = plan_key(one, replace(TARGET, l2=TARGET.l2 * 2), None, {})
    keys["cpu"] = plan_key(one, replace(TARGET, cpu="another"), None, {})
    keys["schedule"] = plan_key(one, TARGET, None, {"kernel": Choice(1, 1, 1, True, True)})
    keys["other schedule"] = plan_key(one, TARGET, None, {"kernel": Choice(2, 1, 1, True, True)})
    assert len(set(keys.values())) == len(keys)


def test_updates_are_in_the_key() -> None:
    graph = sg.Graph()
    a, b = graph.state("a", np.ones(3, np.float32)), graph.state("b", np.ones(3, np.float32))
    pairs = [((a, a + b), (b, b)), ((a, b), (b, a + b)), ((a, a + b),)]
    assert len({plan_key(Program(graph, (), (), updates), TARGET, None, {}) for updates in pairs}) == 3


def test_lines_and_elements_are_not_in_the_key(tmp_path: Path, decisions: list[str]) -> None:
    """The same program from other lines, with other weights: one plan, and each computes with its own."""

    def weighted(value: float) -> Program:
        return program(lambda g: sg.tanh(g.inputs[0] @ g.const(np.full((8, 3), value, np.float32))))

    def again(value: float) -> Program:
        return program(lambda g: sg.tanh(g.inputs[0] @ g.const(np.full((8, 3), value, np.float32))))

    cache = ObjectCache(tmp_path)
    first, second = made(weighted(0.5), cache), made(again(0.25), cache)
    assert decisions == ["kept"]
    assert results(second) == results(made(again(0.25), None)) != results(first)
    lines = [one.report().split("test_recall.py:")[1].split()[0] for one in (first, second)]
    assert lines[0] != lines[1]


def test_one_kernel_that_is_gone_is_made_again(tmp_path: Path, decisions: list[str]) -> None:
    want = results(made(program(layers), ObjectCache(tmp_path)))
    plan = plan_file(tmp_path)
    objects = sorted(p for p in tmp_path.iterdir() if p != plan)
    assert len(objects) > 2
    objects[0].unlink()
    objects[1].write_bytes(objects[1].read_bytes()[:-1])
    assert results(made(program(layers), ObjectCache(tmp_path))) == want
    assert decisions == ["kept"] * 2
    assert results(made(program(layers), ObjectCache(tmp_path))) == want
    assert decisions == ["kept"] * 2


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "number": lambda data: data.replace(b'"bytes":', b'"bytes":9', 1),
    "short": lambda data: data[:-20],
    "header": lambda data: b"?" + data[1:],
    "empty": lambda data: MAGIC,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_plans_are_made_again(tmp_path: Path, decisions: list[str], damage: str) -> None:
    want = results(made(program(layers), ObjectCache(tmp_path)))
    plan = plan_file(tmp_path)
    whole = plan.read_bytes()
    plan.write_bytes(DAMAGES[damage](whole))
    assert plan.read_bytes() != whole
    assert results(made(program(layers), ObjectCache(tmp_path))) == want
    assert decisions == ["kept"] * 2
    assert plan.read_bytes() == whole


def test_checked_builds_decide_themselves(tmp_path: Path, decisions: list[str]) -> None:
    for _ in range(2):
        made(program(layers), ObjectCache(tmp_path), verify=True)
    assert decisions == ["kept"] * 2


def test_limits_of_the_arena_are_kept_apart(tmp_path: Path, decisions: list[str]) -> None:
    free = made(program(layers), ObjectCache(tmp_path))
    for limit in (free.memory.bytes, free.memory.bytes, None):
        limited = made(program(layers), ObjectCache(tmp_path), max_bytes=limit)
        assert limited.memory == free.memory
    assert decisions == ["kept"] * 2


def test_many_processes_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np, symgrad as sg\n"
        "g = sg.Graph(); x = g.input('x', ('n', 7)); w = g.param('w', np.ones((7, 3), np.float32))\n"
        "loss = sg.sum(sg.nn.softmax(sg.tanh(x) @ w) ** 2)\n"
        "f = sg.compile([x], loss, updates=sg.optim.adam([w], sg.grad(loss, [w])))\n"
        "for n in (3, 4, 5):\n"
        "    loss = f(np.linspace(-1, 1, 7 * n, dtype=np.float32).reshape(n, 7))\n"
        "sys.stdout.write(loss.tobytes().hex() + w.value.tobytes().hex())"
    )
    environment = {**os.environ, "SYMGRAD_CACHE": str(tmp_path), "SYMGRAD_VERIFY": "0"}
    command = [sys.executable, "-c", code]
    for _ in range(2):
        running = [subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
        texts = {process.communicate()[0] for process in running}
        assert len(texts) == 1
        assert texts != {b""}
        assert [process.returncode for process in running] == [0] * 3
