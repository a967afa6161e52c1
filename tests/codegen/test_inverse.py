"""Inverse and hyperbolic functions, other bases, erfc, lengths and remainders: special values, and the same bits for
every width.

Errors of functions of one argument are measured and held to in `test_accuracy.py`.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from scalar_runner import FLOATS, LANES, Library, operation, samples

from symgrad.types import DType, float32, float64
from tests.oracles import differs
from tests.ulp import has_wide_floats, units

inf, nan = np.inf, np.nan
UNARY = (
    *("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"),
    *("cbrt", "exp2", "log2", "log10", "erfc"),
)
BINARY = ("atan2", "hypot", "nextafter", "copysign", "floor_divide", "remainder")


@cache
def library(lanes: int, cpu: str = "", features: str | None = None) -> Library:
    entries: dict[str, Any] = {f"{n}_{d}": (operation(n), [d], lanes) for n in UNARY for d in FLOATS}
    entries |= {f"{n}_{d}": (operation(n), [d, d], lanes) for n in BINARY for d in FLOATS}
    return Library(entries, cpu, features)


@cache
def arguments(dtype: DType, count: int) -> np.ndarray:
    """The samples of the other functions, with more of them inside of [-1, 1], near its ends and above."""
    rng = np.random.default_rng(6)
    near = rng.choice([-1.0, 1.0], count) * (1 - 2.0 ** rng.uniform(-30, 0, count))
    parts = [
        near,
        2 - np.abs(near),
        rng.uniform(-3, 3, count),
        rng.uniform(0, 30, count),
        2.0 ** rng.uniform(-4, 4, count),
    ]
    parts += [rng.uniform(-1.1, 1.1, count) * (750 if dtype is float64 else 95)]
    return np.concatenate([samples(dtype, count), *(p.astype(dtype.np) for p in parts)])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values(dtype: DType) -> None:
    """Those of C99; NaN gives NaN."""
    pi = math.pi
    table: dict[str, list[tuple[float, float]]] = {
        "asin": [(0.0, 0.0), (-0.0, -0.0), (1.0, pi / 2), (-1.0, -pi / 2), (1.5, nan), (-inf, nan), (inf, nan)],
        "acos": [(1.0, 0.0), (-1.0, pi), (0.0, pi / 2), (-0.0, pi / 2), (1.5, nan), (-inf, nan), (inf, nan)],
        "atan": [(0.0, 0.0), (-0.0, -0.0), (inf, pi / 2), (-inf, -pi / 2), (1.0, pi / 4), (1e30, pi / 2)],
        "sinh": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-inf, -inf), (1e4, inf), (-1e4, -inf)],
        "cosh": [(0.0, 1.0), (-0.0, 1.0), (inf, inf), (-inf, inf), (1e4, inf), (-1e4, inf)],
        "asinh": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-inf, -inf)],
        "acosh": [(1.0, 0.0), (inf, inf), (0.5, nan), (0.0, nan), (-2.0, nan), (-1e30, nan), (-inf, nan)],
        "atanh": [(0.0, 0.0), (-0.0, -0.0), (1.0, inf), (-1.0, -inf), (1.5, nan), (-2.0, nan), (inf, nan)],
        "cbrt": [(0.0, 0.0), (-0.0, -0.0), (inf, inf), (-inf, -inf), (27.0, 3.0), (-8.0, -2.0)],
        "exp2": [(0.0, 1.0), (-0.0, 1.0), (inf, inf), (-inf, 0.0), (1e5, inf), (-1e5, 0.0), (10.0, 1024.0)],
        "log2": [(0.0, -inf), (-0.0, -inf), (1.0, 0.0), (-1.0, nan), (inf, inf), (-inf, nan), (1024.0, 10.0)],
        "log10": [(0.0, -inf), (-0.0, -inf), (1.0, 0.0), (-1.0, nan), (inf, inf), (-inf, nan), (1000.0, 3.0)],
        "erfc": [(0.0, 1.0), (-0.0, 1.0), (inf, 0.0), (-inf, 2.0), (50.0, 0.0), (-50.0, 2.0)],
    }
    assert table.keys() == set(UNARY)
    for name, rows in table.items():
        x = np.array([*(a for a, _ in rows), nan], dtype.np)
        expected = np.array([*(b for _, b in rows), nan], dtype.np)
        got = library(8)[f"{name}_{dtype}"](x)
        np.testing.assert_array_equal(got, expected, err_msg=name)
        numbers = ~np.isnan(expected)
        assert np.array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers]), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_whole_powers_are_exact(dtype: DType) -> None:
    info = np.finfo(dtype.np)
    whole = np.arange(int(info.minexp) - int(info.nmant), int(info.maxexp)).astype(dtype.np)
    powers = np.ldexp(dtype.np.type(1), whole.astype(np.int32))
    assert np.array_equal(library(8)[f"exp2_{dtype}"](whole), powers)
    assert np.array_equal(library(8)[f"log2_{dtype}"](powers), whole)
    tens = np.array([float(10**k) for k in range(11 if dtype is float32 else 23)], dtype.np)
    assert np.array_equal(library(8)[f"log10_{dtype}"](tens), np.arange(len(tens), dtype=dtype.np))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_odd_functions_are_odd_and_keep_subnormals(dtype: DType) -> None:
    x = np.abs(arguments(dtype, 1 << 11))
    tiny = np.finfo(dtype.np).smallest_subnormal * np.arange(1, 100, dtype=dtype.np)
    for name in ("asin", "atan", "sinh", "asinh", "atanh", "cbrt"):
        function = library(8)[f"{name}_{dtype}"]
        assert not differs(function(-x), -function(x)), name
        assert name == "cbrt" or np.array_equal(function(tiny), tiny), name


@pytest.mark.skipif(not has_wide_floats(), reason="no extended precision here")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_angles_and_lengths(dtype: DType) -> None:
    rng = np.random.default_rng(9)
    special = np.array([0.0, -0.0, 1, -1, inf, -inf, nan, 1e30, -1e-30])
    extreme = np.array([np.finfo(dtype.np).max, np.finfo(dtype.np).tiny, np.finfo(dtype.np).smallest_subnormal])
    corners = np.concatenate([special, extreme, -extreme]).astype(dtype.np)
    a = (rng.normal(size=1 << 15) * 10.0 ** rng.integers(-18, 18, 1 << 15)).astype(dtype.np)
    close = (a * rng.uniform(0.2, 5, a.size)).astype(dtype.np)
    x = np.concatenate([a, a, samples(dtype, 1 << 12), np.repeat(corners, len(corners))])
    y = np.concatenate([close, np.roll(a, 7), np.roll(samples(dtype, 1 << 12), 7), np.tile(corners, len(corners))])
    wide = np.float64 if dtype is float32 else np.longdouble
    for name, reference, bound in (("atan2", np.arctan2, 1.65), ("hypot", np.hypot, 1.05)):
        got, exact = library(8)[f"{name}_{dtype}"](x, y), reference(x.astype(wide), y.astype(wide))
        error = units(got, exact)
        worst = int(np.argmax(error))
        assert error[worst] <= bound, (name, x[worst], y[worst], got[worst], error[worst])
        numbers = ~np.isnan(got)
        assert np.array_equal(np.signbit(got)[numbers], np.signbit(exact)[numbers]), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_remainders_are_exact(dtype: DType) -> None:
    """Quotients of every size, those that take many steps too, with the bits of NumPy."""
    x, y = samples(dtype, 1 << 12), np.roll(samples(dtype, 1 << 12), 1234)
    for name in ("floor_divide", "remainder", "nextafter", "copysign"):
        got, expected = library(8)[f"{name}_{dtype}"](x, y), getattr(np, name)(x, y)
        assert not differs(got, expected), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_width_and_machine_gives_the_same_bits(dtype: DType) -> None:
    x = arguments(dtype, 1 << 8)
    y = np.roll(x, 17)
    plain = library(4, "x86-64", "")
    for name in (*UNARY, *BINARY):
        operands = (x,) if name in UNARY else (x, y)
        one = library(1)[f"{name}_{dtype}"](*operands)
        for lanes in LANES[1:]:
            assert not differs(library(lanes)[f"{name}_{dtype}"](*operands), one), (name, lanes)
        assert not differs(plain[f"{name}_{dtype}"](*operands), one), name
