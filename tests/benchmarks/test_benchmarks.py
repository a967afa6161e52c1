"""The benchmarks themselves: they measure, check what was computed and give up on a system that takes too long."""

# pyright: basic

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import chart

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "tests/benchmarks/results/products.md")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks", "--workloads", "matmul_64", "--systems", "numpy", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_results_are_measured_and_right(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    done = run("--rounds", "2", "--seconds", "0.01", "--starts", "2", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "numpy*" in done.stdout
    (measured,) = json.loads(file.read_text())["measured"]
    (result,) = measured["results"]
    assert result["is_right"]
    assert len(result["blocks"]) == 2
    assert len(result["firsts"]) == 2
    assert result["peak_bytes"] > 1e6


def test_system_over_the_limit_is_reported() -> None:
    done = run("--limit", "0.001")
    assert done.returncode == 0, done.stderr
    assert "no result in 0.001 s" in done.stdout


def results_of(page: str) -> list[Path]:
    """The files of results that a page names."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [ROOT / name for name in re.findall(r"`(tests/benchmarks/results/[^`]+\.json)`", text)]


@pytest.mark.parametrize("name", PAGES)
def test_page_has_the_table_of_its_results(name: str) -> None:
    page = (ROOT / name).read_text(encoding="utf-8")
    text = chart.table(chart.load(results_of(name)))
    assert text in page
    assert chart.with_table(page, text) == page
    with pytest.raises(ValueError, match="has no table"):
        chart.with_table("a page", text)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    measured = chart.load(results_of("README.md"))
    light, dark = chart.draw(measured, tmp_path)
    for drawn in (light, dark):
        text = drawn.read_text(encoding="utf-8")
        assert all(f">{label}</text>" in text for label in ("symgrad", "torch.compile", "derivative10"))
    assert chart.draw(measured, tmp_path)[0].read_bytes() == light.read_bytes()
