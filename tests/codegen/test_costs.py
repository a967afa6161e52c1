# pyright: basic
"""Estimates that decide how many workers run a kernel."""

from __future__ import annotations

import pytest
from kernel_cases import kernels_of

import symgrad as sg
from codegen import jit
from codegen.costs import estimated_ns
from symgrad.program import Program


@pytest.mark.parametrize("products", [True, False])
def test_elements_of_eight_bytes_take_twice_as_long(products: bool) -> None:
    def estimate(dtype: sg.DType) -> float:
        g = sg.Graph()
        a, b = g.input("a", (64, 64), dtype), g.input("b", (64, 64), dtype)
        (low,) = kernels_of(Program(g, (a, b), (a @ b if products else sg.exp(a) * b,)), jit.host_target())
        return estimated_ns(low.naive)

    assert estimate(sg.float64) == pytest.approx(2 * estimate(sg.float32))
