"""The examples and the README, run as a new user would."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import symgrad as sg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = ROOT / "examples"


def run(folder: Path, script: str, *arguments: str, first: str = "") -> subprocess.CompletedProcess[str]:
    """The example in a process of its own in an empty folder; `first` is code that runs before it."""
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    if first:
        lines = f"import runpy, sys\n{first}\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        command[1:1] = ["-c", lines]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_digits(tmp_path: Path) -> None:
    done = run(tmp_path, "digits.py")
    assert done.returncode == 0, done.stderr
    accuracy = re.search(r"test accuracy: ([\d.]+)% of 360 images", done.stdout)
    assert accuracy is not None
    assert float(accuracy[1]) >= 97
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
