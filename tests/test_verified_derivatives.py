"""Derivatives of every operator against 50-digit differences, and the record of how far they are verified.

The rows of `symgrad/docs/verified.json` are written by
SYMGRAD_UPDATE_GOLDEN=1 python -m pytest -m long tests/test_verified_derivatives.py
(with -k "all_points and name" for one operator), then the table that shows them by
SYMGRAD_UPDATE_GOLDEN=1 python -m pytest tests/test_operator_table.py
"""

# pyright: basic
from __future__ import annotations

import json
import os

import pytest
from op_cases import FLAT, SMOOTH
from operator_table import VERIFIED, verified
from verification import DTYPES, ORDERS, Fault, verified_order, verify

from symgrad.opdef import OPS
from symgrad.ops.build import apply, product
from symgrad.record import replace
from symgrad.types import float64

POINTS = 50


def texts(found: list[Fault]) -> str:
    return "\n".join(f"order {f.order}, {f.dtype or 'all data types'}: {f.text}" for f in found[:20])


@pytest.mark.parametrize("op", SMOOTH)
def test_some_points(op: str) -> None:
    found = verify(op, 2, every_case=False, dtypes=[float64])
    assert not found, texts(found)


@pytest.mark.long
@pytest.mark.parametrize("op", SMOOTH)
def test_all_points(op: str) -> None:
    found = verify(op, POINTS)
    orders = {d.name: verified_order(found, d) for d in DTYPES}
    if os.environ.get("SYMGRAD_UPDATE_GOLDEN") == "1":
        record(op, orders)
    assert not found, texts(found)
    assert verified()[op] == orders


def record(op: str, orders: dict[str, int]) -> None:
    """Enter the verified order of an operator, and drop operators that are gone."""
    rows = {name: of for name, of in {**verified(), op: orders}.items() if name in SMOOTH}
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(of)}" for name, of in sorted(rows.items()))
    VERIFIED.write_text(f'{{\n "verified_order": {{\n{lines}\n }}\n}}\n', encoding="utf-8")


def test_every_differentiable_operator_is_verified() -> None:
    orders = verified()
    assert set(SMOOTH) | FLAT == set(OPS)
    assert set(orders) == set(SMOOTH), (
        f"missing: {set(SMOOTH) - set(orders)}, gone: {set(orders) - set(SMOOTH)}\n{__doc__}"
    )
    assert {k for of in orders.values() for k in of.values()} == {ORDERS}
    assert all(set(of) == {d.name for d in DTYPES} for of in orders.values())


def test_wrong_rules_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor, a derivative that cannot be differentiated again, and two rules that disagree only when mixed."""
    rules = {
        "sin": (lambda n, g: (product(g, apply("cos", n.inputs[0])) * (1.0 + 1e-15),), 0),
        "cos": (lambda n, g: (product(g, -apply("stop_gradient", apply("sin", n.inputs[0]))),), 1),
        "multiply": (lambda n, g: (g * n.inputs[1], g * apply("stop_gradient", n.inputs[0])), 1),
    }
    for name, (vjp, order) in rules.items():
        with monkeypatch.context() as patch:
            patch.setitem(OPS, name, replace(OPS[name], vjp=vjp))
            found = verify(name, 5)
        assert [verified_order(found, d) for d in DTYPES] == [order, order], name
