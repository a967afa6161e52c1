"""Elementary functions: units in the last place, special values, and the same bits for every width."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from scalar_runner import Library, operation

from symgrad.types import DType, float32, float64

LANES = (1, 4, 8, 16)
REFERENCES: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "tanh": np.tanh,
    "sigmoid": lambda x: np.where(x < 0, np.exp(-np.abs(x)), 1) / (1 + np.exp(-np.abs(x))),
    "erf": lambda x: np.array([float(mpmath.erf(v)) for v in x.tolist()]),
}
# Largest errors allowed, in units of the last place: what was measured, and a little more.
BOUNDS = {
    "float32": {
        "exp": 1.1,
        "log": 0.95,
        "log1p": 1.5,
        "expm1": 1.4,
        "sin": 1.65,
        "cos": 1.65,
        "tan": 0.51,
        "tanh": 1.25,
        "sigmoid": 1.85,
        "erf": 1.25,
    },
    "float64": {
        "exp": 1.1,
        "log": 0.9,
        "log1p": 1.4,
        "expm1": 1.4,
        "sin": 0.85,
        "cos": 0.85,
        "tan": 1.05,
        "tanh": 1.25,
        "sigmoid": 1.75,
        "erf": 1.05,
    },
}
FLOATS = (float32, float64)
# Extended precision must really be wider than float64 for the bounds to mean something.
needs_extended = pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="no extended precision here")


@cache
def library(lanes: int, cpu: str = "", features: str | None = None) -> Library:
    entries: dict[str, Any] = {f"{n}_{d}": (operation(n), [d], lanes) for n in REFERENCES for d in FLOATS}
    entries |= {f"power_{d}": (operation("power"), [d, d], lanes) for d in FLOATS}
    return Library(entries, cpu, features)


@cache
def samples(dtype: DType, count: int) -> np.ndarray:
    """Random bit patterns, ranges where functions bend, neighbors of multiples of pi/2, powers, special values."""
    rng = np.random.default_rng(5)
    patterns = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype.np)
    ends = 110.0 if dtype is float32 else 760.0
    parts: list[Any] = [rng.uniform(-r, r, count // 4) for r in (1.0, 5.0, ends, 1e6)]
    parts.append(rng.integers(-(10**9), 10**9, count // 4) * (np.pi / 2))
    parts.append(2.0 ** rng.uniform(-60, 60, count // 4) * rng.choice([-1.0, 1.0], count // 4))
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 6381956970095103.0 * 2.0**797]
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([patterns, *(p.astype(dtype.np) for p in parts), np.array(special).astype(dtype.np)])


def units(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of the rounded exact results; inf for a wrong special value."""
    info = np.finfo(got.dtype)
    with np.errstate(all="ignore"):
        rounded = exact.astype(got.dtype)
        bounded = np.where(np.isfinite(rounded), np.abs(rounded), info.max)
        unit = np.spacing(np.maximum(bounded, info.smallest_subnormal)).astype(exact.dtype)
        error = np.abs(got.astype(exact.dtype) - exact) / unit
    agree = (got == rounded) | (np.isnan(got) & np.isnan(rounded))
    return np.where(agree & ~np.isfinite(error), 0, np.where(np.isnan(error), np.inf, error)).astype(np.float64)


@needs_extended
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_error_in_units_of_the_last_place(name: str, dtype: DType) -> None:
    count = 1000 if name == "erf" else (1 << 19) if dtype is float32 else (1 << 16)
    x = samples(dtype, count)
    got = library(8)[f"{name}_{dtype}"](x)
    wide = np.float64 if dtype is float32 else np.longdouble
    error = units(got, REFERENCES[name](x.astype(wide)))
    worst = int(np.argmax(error))
    assert error[worst] <= BOUNDS[dtype.name][name], (x[worst], got[worst], error[worst])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("name", REFERENCES)
def test_error_against_forty_digits(name: str, dtype: DType) -> None:
    """An oracle that shares nothing with the C library: the sign, the size and the place of every digit."""
    x = samples(dtype, 200)
    x = x[np.isfinite(x)]
    if name in ("log", "log1p"):
        x = x[x > (0 if name == "log" else -1)]
    got = library(8)[f"{name}_{dtype}"](x)
    info = np.finfo(dtype.np)
    for v, y in zip(x.tolist(), got, strict=True):
        exact = _exact(name, v)
        if abs(exact) > float(info.max):
            assert np.isinf(y) or abs(y) == info.max, v
            continue
        unit = mpmath.mpf(float(np.spacing(max(dtype.np.type(abs(float(exact))), info.smallest_subnormal))))
        assert abs(mpmath.mpf(float(y)) - exact) <= 2 * unit, (v, y)


def _exact(name: str, value: float) -> Any:
    with mpmath.workprec(1400 if abs(value) > 1e9 and name in ("sin", "cos", "tan") else 140):
        x = mpmath.mpf(value)
        # Outside these bounds the results are the limits, and their exact values would take very many digits.
        if name in ("exp", "expm1", "sigmoid", "tanh", "erf"):
            x = max(min(x, mpmath.mpf(1000)), mpmath.mpf(-1000))
        if name == "sigmoid":
            return 1 / (1 + mpmath.exp(-x))
        return getattr(mpmath, name)(x)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_special_values(dtype: DType) -> None:
    inf, nan = np.inf, np.nan
    table: dict[str, list[tuple[float, float]]] = {
        "exp": [(inf, inf), (-inf, 0.0), (0.0, 1.0), (-0.0, 1.0), (1e4, inf), (-1e4, 0.0)],
        "log": [(inf, inf), (0.0, -inf), (-0.0, -inf), (-1.0, nan), (-inf, nan), (1.0, 0.0)],
        "log1p": [(inf, inf), (-1.0, -inf), (-2.0, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0)],
        "expm1": [(inf, inf), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e4, inf), (-1e4, -1.0)],
        "sin": [(inf, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0)],
        "cos": [(inf, nan), (-inf, nan), (0.0, 1.0), (-0.0, 1.0)],
        "tan": [(inf, nan), (-inf, nan), (0.0, 0.0), (-0.0, -0.0)],
        "tanh": [(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (50.0, 1.0), (-50.0, -1.0)],
        "sigmoid": [(inf, 1.0), (-inf, 0.0), (0.0, 0.5), (-0.0, 0.5), (1e4, 1.0), (-1e4, 0.0)],
        "erf": [(inf, 1.0), (-inf, -1.0), (0.0, 0.0), (-0.0, -0.0), (10.0, 1.0), (-10.0, -1.0)],
    }
    for name, rows in table.items():
        x = np.array([*(a for a, _ in rows), nan], dtype.np)
        expected = np.array([*(b for _, b in rows), nan], dtype.np)
        got = library(8)[f"{name}_{dtype}"](x)
        np.testing.assert_array_equal(got, expected, err_msg=name)
        numbers = ~np.isnan(expected)
        assert np.array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers]), name


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_odd_functions_are_odd_and_keep_subnormals(dtype: DType) -> None:
    x = np.abs(samples(dtype, 1 << 12))
    x = x[np.isfinite(x)]
    tiny = np.finfo(dtype.np).smallest_subnormal * np.arange(1, 100, dtype=dtype.np)
    for name in ("sin", "tan", "tanh", "erf"):
        function = library(8)[f"{name}_{dtype}"]
        assert np.array_equal(function(-x), -function(x)), name
    for name in ("sin", "tan", "tanh", "log1p", "expm1"):
        assert np.array_equal(library(8)[f"{name}_{dtype}"](tiny), tiny), name


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.all(((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_every_width_gives_the_same_bits(dtype: DType) -> None:
    x = samples(dtype, 1 << 13)
    y = np.roll(x, 17)
    for name in REFERENCES:
        one = library(1)[f"{name}_{dtype}"](x)
        for lanes in LANES[1:]:
            assert _same_bits(one, library(lanes)[f"{name}_{dtype}"](x)), (name, lanes)
    one = library(1)[f"power_{dtype}"](x, y)
    assert all(_same_bits(one, library(lanes)[f"power_{dtype}"](x, y)) for lanes in LANES[1:])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_machine_without_fused_multiply_add_gives_the_same_bits(dtype: DType) -> None:
    x = samples(dtype, 1 << 9)
    plain = library(4, "x86-64", "")
    for name in REFERENCES:
        assert _same_bits(plain[f"{name}_{dtype}"](x), library(4)[f"{name}_{dtype}"](x)), name
    y = np.roll(x, 17)
    assert _same_bits(plain[f"power_{dtype}"](x, y), library(4)[f"power_{dtype}"](x, y))


@needs_extended
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_power(dtype: DType) -> None:
    rng = np.random.default_rng(9)
    count = 1 << 15
    inf, nan = np.inf, np.nan
    ends = 126.0 if dtype is float32 else 1020.0
    special = [
        0.0,
        -0.0,
        1,
        -1,
        2,
        -2,
        0.5,
        -0.5,
        inf,
        -inf,
        nan,
        3,
        -3,
        1e-40,
        -1e-40,
        1e30,
        -1e30,
        9007199254740993.0,
    ]
    base = 2.0 ** rng.uniform(-ends, ends, count)
    columns = (
        (base, rng.uniform(-5, 5, count)),
        (base, rng.uniform(-ends, ends, count) / np.log2(base)),
        (np.exp(rng.uniform(-1e-3, 1e-3, count)), rng.uniform(-ends, ends, count) * 700),
        (rng.uniform(-3, 3, count), rng.integers(-40, 40, count)),
        (np.repeat(special, len(special)), np.tile(special, len(special))),
    )
    x = np.concatenate([a for a, _ in columns]).astype(dtype.np)
    y = np.concatenate([b for _, b in columns]).astype(dtype.np)
    exact = np.power(x.astype(np.longdouble), y.astype(np.longdouble))
    got = library(8)[f"power_{dtype}"](x, y)
    error = units(got, exact)
    worst = int(np.argmax(error))
    assert error[worst] <= (0.51 if dtype is float32 else 1.1), (x[worst], y[worst], got[worst], error[worst])
    numbers = ~np.isnan(got)
    assert np.array_equal(np.signbit(got)[numbers], np.signbit(exact)[numbers])
