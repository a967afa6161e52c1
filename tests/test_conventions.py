"""The gradient conventions: every line of the table, and the page that states them."""

# pyright: basic
from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from conventions import CONVENTIONS, PAGE, Convention, faults, with_table
from pages import run_blocks

import symgrad as sg
from symgrad.types import DType, float32, float64


@pytest.mark.parametrize("dtype", [float64, float32], ids=str)
@pytest.mark.parametrize("row", CONVENTIONS, ids=lambda row: row.at)
def test_conventions(row: Convention, dtype: DType) -> None:
    assert row.checks
    found = faults(row, dtype)
    assert not found, "\n".join(f"order {order}: {text}" for order, text in found)


def test_integers_have_no_gradient() -> None:
    graph = sg.Graph()
    x, k = graph.input("x", (3,)), graph.input("k", (3,), sg.int32)
    with pytest.raises(sg.GradientError, match="int32"):
        sg.grad(sg.sum(x * k), k)
    with pytest.raises(sg.GradientError, match="int64"):
        sg.grad(sg.sum(k), x)
    assert not sg.evaluate(sg.grad(sg.sum(sg.astype(x, sg.int32) * x), x), {x: np.full(3, 0.5, np.float32)}).any()


def test_page() -> None:
    text = PAGE.read_text(encoding="utf-8")
    if os.environ.get("SYMGRAD_UPDATE_GOLDEN") == "1":
        PAGE.write_text(text := with_table(text), encoding="utf-8")
    assert text == with_table(text), "run SYMGRAD_UPDATE_GOLDEN=1 python -m pytest tests/test_conventions.py -k page"
    names: dict[str, Any] = {}
    assert run_blocks(PAGE.name, text, names) == 3
