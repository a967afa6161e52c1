"""What a user can look at: graphs, programs, summaries, reports, and the variables that show the stages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import symgrad as sg
from codegen import executable
from codegen.profile import Profile
from symgrad.graph import Graph
from symgrad.settings import read_settings

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import numpy as np
import symgrad as sg
g = sg.Graph()
x = g.input("x", ("n", 4))
w = g.param("w", np.ones((4, 3), np.float32))
loss = sg.mean(sg.tanh(x @ w) * 1.0)
f = sg.compile([x], loss, updates=[(w, w - sg.grad(loss, w))], name="demo/step")
print(float(f(np.ones((5, 4), np.float32))))
"""


def run_script(folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(SCRIPT)
    plain = {k: v for k, v in os.environ.items() if not k.startswith("SYMGRAD_")}
    environment = {**plain, "PYTHONPATH": str(ROOT), "SYMGRAD_CACHE": "off", **variables}
    return subprocess.run(
        [sys.executable, str(file)], capture_output=True, text=True, env=environment, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory):
    @lru_cache
    def level(debug: int) -> str:
        done = run_script(tmp_path_factory.mktemp("debug"), SYMGRAD_DEBUG=str(debug))
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(np.tanh(4), rel=1e-6)
        return done.stderr

    return level


def test_debug_0_is_silent(shown) -> None:
    assert shown(0) == ""


def test_debug_1_is_a_line_per_stage(shown) -> None:
    lines = shown(1).splitlines()
    for line in lines:
        assert re.fullmatch(r"symgrad: .*\d+\.\d\d ms.*(nodes|kernels|bytes).*", line), line
    for stage in ("select_phase", "specialize", "simplify", "final_forms", "lower", "plan", "compile"):
        assert sum(stage in line for line in lines) == 1


def test_debug_2_shows_programs_or_unchanged(shown) -> None:
    text = shown(2)
    assert "program demo/step(x: float32[5, 4])" in text
    assert "\nunchanged\n" in text
    assert re.search(r"%\d+ = tanh\(%\d+\): float32\[5, 3\]  # script\.py:7", text)
    assert re.search(r"^update w = %\d+$", text, re.MULTILINE)
    assert "axes (" not in text


def test_debug_3_shows_groups_and_steps(shown) -> None:
    text = shown(3)
    assert re.search(r"contract \(5, 3\) .*%\d+ contract, %\d+ tanh", text)
    assert "Vectorize(" in text
    assert "kernel(" not in text


def test_debug_4_shows_loops(shown) -> None:
    text = shown(4)
    assert re.search(r"kernel\(p0: float32\[\d+\].*\)\n.*  for ", text, re.DOTALL)
    assert "define void" not in text


def test_debug_5_shows_llvm_text(shown) -> None:
    text = shown(5)
    assert "define void @k" in text
    assert ".text" not in text
    for flag in (" fast ", " nnan ", " reassoc ", " contract float", " contract <"):
        assert flag not in text


def test_debug_6_shows_assembly(shown) -> None:
    assert re.search(r"^\s+\.(section|text)", shown(6), re.MULTILINE)


def test_dump(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "dump"
    done = run_script(tmp_path, SYMGRAD_DUMP=str(folder))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    names = sorted(p.name for p in folder.iterdir())
    assert [n for n in names if "simplify" in n] == ["demo_step.03.simplify.txt"]
    for kind, content in (("group", "contract"), ("loop", "kernel("), ("llvm", "define void")):
        assert content in (folder / f"demo_step.{kind}.txt").read_text()
    assert "update w" in (folder / "demo_step.04.final_forms.txt").read_text()


@pytest.mark.parametrize("name", ["SYMGRAD_DEBUG", "SYMGRAD_NUM_THREADS", "SYMGRAD_VERIFY"])
@pytest.mark.parametrize("value", ["x", "-1", "7.5", "²", "yes", "99999999999999999999x"])
def test_bad_values_name_the_variable(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*got {value!r}"):
        read_settings({name: value})


@pytest.mark.parametrize("value", ["0", "1"])
def test_the_cache_is_no_switch(value: str) -> None:
    """A folder of that name would appear wherever the process runs."""
    with pytest.raises(ValueError, match=f"SYMGRAD_CACHE must be a folder or 'off', got '{value}'"):
        read_settings({"SYMGRAD_CACHE": value})


def test_limits_of_the_variables() -> None:
    with pytest.raises(ValueError, match="SYMGRAD_DEBUG must be an integer from 0 to 6, got '7'"):
        read_settings({"SYMGRAD_DEBUG": "7"})
    with pytest.raises(ValueError, match="SYMGRAD_NUM_THREADS must be an integer of at least 1, got '0'"):
        read_settings({"SYMGRAD_NUM_THREADS": "0"})
    assert read_settings({}).threads is None
    assert read_settings({"SYMGRAD_NUM_THREADS": "3", "SYMGRAD_DEBUG": ""}).threads == 3


def test_bad_value_stops_the_program(tmp_path: Path) -> None:
    done = run_script(tmp_path, SYMGRAD_NUM_THREADS="two")
    assert done.returncode != 0
    assert "ValueError: SYMGRAD_NUM_THREADS must be an integer of at least 1, got 'two'" in done.stderr


def test_printed_graph() -> None:
    graph = Graph()
    x = graph.input("x", ("n", 4))
    with graph.scope("layer"):
        w = graph.param("w", np.ones((4, 3), np.float32))
    loss = sg.sum(sg.tanh(x @ w))
    sg.grad(loss, w)
    lines = str(graph).splitlines()
    assert len(lines) == len(graph.nodes)
    assert re.fullmatch(r"x = input\(\): float32\[n, 4\]  # test_inspection\.py:\d+", lines[0])
    assert lines[1].startswith("layer/w = param(): float32[4, 3]  # test_inspection.py:")
    assert lines[2].startswith("%2 = contract(x, layer/w, left=mk, right=kn, out=mn): float32[n, 3]  # ")
    assert any("order 1 derivative of %" in line for line in lines)
    assert repr(graph) == f"<Graph: {len(graph.nodes)} nodes, 1 inputs, 1 params>"
    assert repr(x) == "<Node x: float32[n, 4]>"
    assert "0x" not in str(graph)


def test_printing_goes_deep_without_recursion() -> None:
    graph = Graph()
    y = graph.input("x", ())
    for k in range(20_000):
        y = sg.sin(y) + float(k)
    assert len(str(graph).splitlines()) == len(graph.nodes)
    assert repr(y).startswith("<Node %")


def test_program_summary() -> None:
    graph = Graph()
    x, t = graph.input("x", ("n", 4)), graph.input("t", ("n",), sg.int32)
    w, b = graph.param("w", np.ones((4, 3), np.float32)), graph.param("b", np.zeros(3, np.float32))
    logits = sg.nn.dropout(x, 0.5) @ w + b
    loss = sg.mean(sg.nn.softmax_cross_entropy(logits, t))
    train = sg.compile([x, t], loss, updates=sg.optim.sgd([w, b], sg.grad(loss, [w, b]), lr=0.1), name="train")
    text = train.program.summary()
    assert text.startswith("program train\n  inputs: x: float32[n, 4], t: int32[n]\n")
    assert "updates: w, b" in text
    pruned = sg.prune({"probs": sg.nn.softmax(logits)}, [x])
    text = pruned.summary()
    assert "outputs: probs: float32[n, 3]" in text
    assert "weights: 15 values, 60 bytes" in text
    assert re.search(r"operations: \d+\*n.* per call", text)
    assert re.search(r"removed: .*dropout", text)
    printed = str(pruned)
    assert printed.startswith("program ")
    assert re.search(r"^return probs = %\d+$", printed, re.MULTILINE)


def test_report() -> None:
    graph = Graph()
    x = graph.input("x", ("n",))
    f = sg.compile([x], sg.sum(sg.tanh(x)), name="f")
    assert f.report() == "f: not compiled yet; it compiles at the first call"
    f(np.ones(4, np.float32))
    f.prepare(n=7)
    report = f.report()
    assert report.count("f for inputs") == 2
    assert re.search(
        r"\d+ kernels, \d+ distinct; \d+ operations; .* bytes touched; arena \d+ bytes; 1 worker$", report, re.MULTILINE
    )
    assert "test_inspection.py:" in report
    assert repr(f) == "<Function f: 1 inputs, compiled for 2 sizes>"


def test_to_networkx() -> None:
    networkx = pytest.importorskip("networkx")
    graph = Graph()
    x = graph.input("x", (2,))
    difference = sg.exp(x) - x
    square = difference * difference
    found = graph.to_networkx()
    assert sorted(found) == [n.id for n in graph.nodes]
    assert found.nodes[difference.id]["node"] is difference
    edges = {(a, b, d["position"]) for a, b, d in found.edges(data=True)}
    assert edges == {(i.id, n.id, k) for n in graph.nodes for k, i in enumerate(n.inputs)}
    assert networkx.is_directed_acyclic_graph(found)
    assert networkx.ancestors(found, square.id) == {n.id for n in sg.ancestors([square])} - {square.id}


def test_profile(tmp_path: Path) -> None:
    """Times of kernels beside the machine's peaks, and the same results as without."""
    code = (
        "import numpy as np, symgrad as sg\n"
        "g = sg.Graph(); x = g.input('x', (64, 64)); i = g.input('i', (2,), sg.int32)\n"
        "total = g.state('total', np.zeros(64, np.float32))\n"
        "rows = sg.take(sg.nn.softmax(x @ x), i, axis=0)\n"
        "f = sg.compile([x, i], rows, updates=[(total, total + sg.sum(x, axis=0))])\n"
        "a = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(64, 64)\n"
        "for _ in range(3): y = f(a, [1, 2])\n"
        "try: f(a, [1, 64])\n"
        "except IndexError: print('refused')\n"
        "print(y.sum(), total.value.sum())"
    )
    done = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "SYMGRAD_PROFILE": profile},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent.parent,
        )
        for profile in ("0", "1")
    ]
    assert done[0].stdout == done[1].stdout
    assert done[0].stdout.startswith("refused")
    assert not done[0].stderr
    assert "medians of 3 of 3 calls; peaks:" in done[1].stderr
    assert done[1].stderr.count(" us ") >= 4


def test_the_profile_leaves_out_what_waking_workers_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run wakes them: it says nothing of what a run of no kernel takes beside the others."""
    clock = 0
    ran: list[int] = []
    lengths = iter([90_000, 2_000, 5_000, 7_000])

    def run(_: int) -> int:
        nonlocal clock
        clock += next(lengths)
        return 0

    monkeypatch.setattr(executable.time, "perf_counter_ns", lambda: clock)
    context = SimpleNamespace(address=0, choose=lambda first, count: ran.append(count))
    profile = Profile(2)
    runner = SimpleNamespace(launches=[None, None], _run=run)
    executable.Executable._profiled(runner, context, profile)  # pyright: ignore[reportArgumentType, reportPrivateUsage]
    assert ran == [0, 0, 1, 1, 2]
    assert profile.medians() == [3e-6, 5e-6]
