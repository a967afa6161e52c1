"""The examples and the README, run as a new user would."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import symgrad as sg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples"


def run(
    folder: Path, script: str, *arguments: str, first: str = "", timeout: int = 300
) -> subprocess.CompletedProcess[str]:
    """The example in a process of its own in an empty folder; `first` is code that runs before it."""
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    if first:
        lines = f"import runpy, sys\n{first}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        command[1:1] = ["-c", lines]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_digits(tmp_path: Path) -> None:
    done = run(tmp_path, "digits.py")
    assert done.returncode == 0, done.stderr
    assert _test_accuracy(done.stdout) >= 97
    assert "gradient" in done.stdout.partition("removed:")[2].splitlines()[0]
    assert done.stdout.splitlines()[-1].startswith("a fresh process predicts the same bits")
    assert [p.name for p in tmp_path.iterdir()] == ["digits.safetensors"]
    program = sg.load(tmp_path / "digits.safetensors")
    assert [i.name for i in program.inputs] == ["x"]
    assert not program.updates
    assert {n.op.name for n in program.nodes}.isdisjoint(("phase", "philox", "param", "state", "stop_gradient"))


def test_digits_with_options(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    done = run(tmp_path, "digits.py", "--epochs", "2", "--seed", "3", "--out", str(model))
    assert done.returncode == 0, done.stderr
    again = run(tmp_path, "digits.py", "--predict", str(model))
    assert again.returncode == 0, again.stderr
    accuracy = next(line for line in done.stdout.splitlines() if line.startswith("test accuracy"))
    assert again.stdout.splitlines()[0] == accuracy
    assert run(tmp_path, "digits.py", "--epochs", "0").returncode == 2


def test_digits_checks_what_the_file_predicts(tmp_path: Path) -> None:
    """The fresh process really answers for the file: one that answers otherwise is noticed."""
    done = run(tmp_path, "digits.py", "--epochs", "1", first="import hashlib; hashlib.sha256 = hashlib.sha512")
    assert done.returncode == 1
    assert "the fresh process predicts otherwise" in done.stderr


def test_digits_without_tqdm(tmp_path: Path) -> None:
    done = run(tmp_path, "digits.py", "--epochs", "1", first="sys.modules['tqdm'] = None")
    assert done.returncode == 1
    assert "pip install -e '.[examples]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_higher_order(tmp_path: Path) -> None:
    drawn = tmp_path / "drawing.png"
    done = run(tmp_path, "higher_order.py", "--points", "101", "--out", str(drawn))
    assert done.returncode == 0, done.stderr
    assert "against 20 reference values" in done.stdout
    assert "against 50-digit derivatives" in done.stdout
    nodes = [int(line.split()[1]) for line in done.stdout.splitlines()[2:12]]
    assert nodes == sorted(nodes)
    assert nodes[-1] < 1000  # shared, not 2 to the power of the order
    if importlib.util.find_spec("matplotlib") is None:
        assert "matplotlib is not installed" in done.stdout
    else:
        assert drawn.read_bytes().startswith(b"\x89PNG")


def test_convnet(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    done = run(tmp_path, "convnet.py", "--epochs", "3", "--out", str(model))
    assert done.returncode == 0, done.stderr
    assert _test_accuracy(done.stdout) >= 90
    assert "batch statistics" in done.stdout.partition("removed:")[2].splitlines()[0]
    assert done.stdout.splitlines()[-1].startswith("a fresh process predicts the same bits")
    program = sg.load(model)
    assert [i.name for i in program.inputs] == ["x"]
    assert not program.states
    assert run(tmp_path, "convnet.py", "--seed", "-1").returncode == 2


@pytest.mark.long
def test_convnet_accuracy(tmp_path: Path) -> None:
    done = run(tmp_path, "convnet.py")
    assert done.returncode == 0, done.stderr
    assert _test_accuracy(done.stdout) >= 98.5


def _test_accuracy(printed: str) -> float:
    found = re.search(r"test accuracy: ([\d.]+)% of 360 images", printed)
    assert found is not None
    return float(found[1])


def test_burgers(tmp_path: Path) -> None:
    drawn = tmp_path / "drawing.png"
    options = ("--adam", "100", "--lbfgs", "20", "--points", "256", "--output", str(drawn))
    done = run(tmp_path, "burgers.py", *options)
    assert done.returncode == 0, done.stderr
    errors = [float(e) for e in re.findall(r"relative L2 error ([\d.e+-]+)", done.stdout)]
    assert errors[-1] < 0.8  # that of u = 0 is 1
    if importlib.util.find_spec("scipy") is None:
        assert "SciPy is not installed" in done.stdout
    else:
        assert errors[1] < errors[0]
    if importlib.util.find_spec("matplotlib") is None:
        assert "matplotlib is not installed" in done.stdout
    else:
        assert drawn.read_bytes().startswith(b"\x89PNG")
    assert run(tmp_path, "burgers.py", "--points", "0").returncode == 2


def test_burgers_reference() -> None:
    """The steepest slope of the solution and its time are those of Basdevant and others (1986)."""
    source = importlib.util.spec_from_file_location("burgers", EXAMPLES / "burgers.py")
    assert source is not None
    assert source.loader is not None
    burgers = importlib.util.module_from_spec(source)
    source.loader.exec_module(burgers)
    step = 1e-5
    below, above = burgers.solution(np.array([-step, step]), np.array([1.6037 / np.pi]))[:, 0]
    assert (below - above) / (2 * step) == pytest.approx(152.00516, rel=1e-5)


@pytest.mark.long
def test_burgers_error(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    done = run(tmp_path, "burgers.py", timeout=900)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"relative L2 error ([\d.e+-]+)", done.stdout)[-1]) < 2e-2


def test_hessian(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    drawn = tmp_path / "drawing.png"
    done = run(tmp_path, "hessian.py", "--points", "20", "--steps", "50", "--out", str(drawn))
    assert done.returncode == 0, done.stderr
    found = re.search(r"400 unknown heights; the Hessian has (\d+) entries, held by (\d+)", done.stdout)
    assert found is not None
    assert int(found[1]) < 7 * 400
    assert 7 <= int(found[2]) <= 9
    steps = [line.split() for line in done.stdout.splitlines() if re.match(r" +\d", line)]
    assert 4 <= len(steps) <= 15
    assert float(steps[-1][2]) <= 1e-10
    descent = re.search(r"gradient descent, 50 steps: area ([\d.]+)", done.stdout)
    assert descent is not None
    assert float(descent[1]) > float(steps[-1][1])
    if importlib.util.find_spec("matplotlib") is None:
        assert "matplotlib is not installed" in done.stdout
    else:
        assert drawn.read_bytes().startswith(b"\x89PNG")


def test_hessian_without_scipy(tmp_path: Path) -> None:
    first = "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n == 'scipy' else find(n)"
    done = run(tmp_path, "hessian.py", first=first)
    assert done.returncode == 1
    assert "pip install -e '.[examples]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_readme_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every Python block of the README runs, one after the other."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    printed: list[str] = []
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
        printed.append(capsys.readouterr().out)
    losses = [float(line) for line in printed[0].split()]
    assert len(losses) == len(names["batches"])
    assert (tmp_path / "digits.safetensors").exists()
    assert (names["sg"].compile(names["model"])(x=names["xb"])["probs"] == names["predict"](names["xb"])).all()
    errors = next(text for block, text in zip(blocks, printed, strict=True) if "except sg.ShapeError" in block)
    assert "(README.md:" in errors, "the error names the user's line"


def test_readme_names_every_module() -> None:
    """The table of modules is complete and names nothing that is gone."""
    table = README.partition("| module | what it does |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([^`]+)`", line.split("|")[1]) for line in table.splitlines() if line.count("|") > 2]
    named: set[str] = set()
    for row in rows:
        folder = ""
        for name in row:
            folder = name.rpartition("/")[0] or folder
            named.add(name if "/" in name else f"{folder}/{name}")
    found = {p.relative_to(ROOT).as_posix() for k in ("symgrad", "codegen") for p in (ROOT / k).glob("*.py")}
    found = {name for name in found if not name.endswith("__init__.py")} | {"symgrad/ops/"}
    assert named == found


def test_readme_names_every_variable() -> None:
    source = (ROOT / "symgrad" / "settings.py").read_text(encoding="utf-8")
    assert set(re.findall(r"SYMGRAD_[A-Z_]+", README)) == set(re.findall(r"SYMGRAD_[A-Z_]+", source))
