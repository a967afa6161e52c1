"""Errors of unary operators of floats in units in the last place: `python -m tests.accuracy --help`.

Every float32 number is tried, or as many as asked; float64 numbers are drawn. After every operator results go to
`symgrad/docs/accuracy.json`, so that a run that was stopped goes on where it stopped, and from there to the published
table, `symgrad/docs/accuracy.md`. float64 needs a NumPy whose longdouble has 64 bits of significand (Linux on x86).
"""

# pyright: basic
from __future__ import annotations

import argparse
import datetime
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special

import symgrad as sg
from symgrad.graph import Graph
from symgrad.opdef import OPS, Kind
from symgrad.operators import unary
from symgrad.types import Type
from tests.precise import FUNCTIONS
from tests.ulp import has_wide_floats, mp, true_units, units

Array = np.ndarray
DOCS = Path(__file__).resolve().parents[1] / "symgrad" / "docs"
DATA, TABLE = DOCS / "accuracy.json", DOCS / "accuracy.md"
CHUNK = 1 << 18
ALL = 1 << 32
# So many of the largest errors are computed again with mpmath, in so many bits: no argument is too small or too large.
SUSPECTS, BITS = 16, 2400
# Gives every 32-bit number once, in an order that is spread evenly.
STRIDE = 2654435769


@dataclass(frozen=True)
class Error:
    """What was measured: the largest error, where, and the number of inputs whose result is not the nearest number.

    `wrong` counts results that are NaN or a zero of one sign where the meaning is not.
    """

    ulp: float
    worst: str
    inputs: int
    not_nearest: int
    wrong: int
    date: str


def unary_operators() -> list[str]:
    """Every pointwise operator of one operand without attributes that takes floats, in the order of definition."""
    return [name for name, op in OPS.items() if op.kind is Kind.POINTWISE and not op.attrs and _takes_float(name)]


def _takes_float(name: str) -> bool:
    try:
        OPS[name].infer(Type((1,), sg.float32))
    except (sg.DTypeError, TypeError, ValueError):
        return False
    return True


# References with more digits than the results: float64 for float32, longdouble for float64.


def _sigmoid(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _exp_of_square(x: Array) -> Array:
    """exp(-x²): the square of a longdouble has twice its digits, so it is taken apart."""
    high = x.astype(np.float32).astype(x.dtype)
    return np.exp(-high * high) * np.exp(-(x - high) * (x + high))


def _erf_series(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.6, whose terms have one sign."""
    term = total = np.ones_like(x)
    for k in range(1, 90):
        term = term * (2 * x * x) / (2 * k + 1)
        total = total + term
    return 2 / np.sqrt(_pi()) * x * _exp_of_square(x) * total


def _erfc_fraction(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.14, for x of at least 1."""
    rest = x
    for k in range(400, 0, -1):
        rest = x + k / (2 * rest)
    return _exp_of_square(x) / (np.sqrt(_pi()) * rest)


def _pi() -> Any:
    return 4 * np.arctan(np.longdouble(1))


def _by_size(x: Array, small: Callable[[Array], Array], large: Callable[[Array], Array], edge: float) -> Array:
    out = np.full(x.shape, np.nan, x.dtype)
    size = np.abs(x)
    out[size < edge] = small(x[size < edge])
    out[size >= edge] = large(x[size >= edge])
    return out


def _erf(x: Array) -> Array:
    return _by_size(x, _erf_series, lambda a: np.sign(a) * (1 - _erfc_fraction(np.minimum(np.abs(a), 110))), 2.0)


def _erfc(x: Array) -> Array:
    def large(a: Array) -> Array:
        tail = _erfc_fraction(np.minimum(np.abs(a), 110))
        return np.where(a > 0, tail, 2 - tail)

    return _by_size(x, lambda a: 1 - _erf_series(a), large, 1.0)


_WIDE: dict[str, Callable[[Array], Array]] = {
    "erf": scipy.special.erf,
    "erfc": scipy.special.erfc,
    "sigmoid": scipy.special.expit,
}
_WIDEST: dict[str, Callable[[Array], Array]] = {"erf": _erf, "erfc": _erfc, "sigmoid": _sigmoid}


def reference(name: str, x: Array) -> Array:
    """The operator on float32 numbers in float64, or on float64 numbers in longdouble; bool results stay."""
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    special = (_WIDE if x.dtype == np.float32 else _WIDEST).get(name)
    with np.errstate(all="ignore"):
        if special is not None:
            return special(wide)
        ref = OPS[name].ref
        assert ref is not None
        return np.asarray(ref(wide))


def true_error(name: str, x: Any, got: Any) -> float:
    """The error of one finite result of one finite argument."""
    with mp.workprec(BITS):
        return true_units(got, FUNCTIONS[name](mp.mpf(float(x))))


# Comparison.


def compare(x: Array, got: Array, true: Array) -> tuple[Array, Array, int]:
    """The places where a result is not the number nearest to the reference, their errors, and how many are wrong."""
    if got.dtype == np.bool_:
        return np.zeros(0, np.int64), np.zeros(0), int(np.count_nonzero(got != true))
    word = {4: np.uint32, 8: np.uint64}[got.itemsize]
    with np.errstate(all="ignore"):
        nearest = np.ascontiguousarray(true.astype(got.dtype))
    places = np.flatnonzero(got.view(word) != nearest.view(word))
    have, want = got[places], true[places]
    unlike = np.isnan(have) != np.isnan(want)
    unlike |= (have == 0) & (want == 0)  # the bits differ, so the signs do
    number = ~(np.isnan(have) | np.isnan(want) | (have == 0) & (want == 0))
    places, have, want = places[number], have[number], want[number]
    errors = units(have, want)
    # Half a unit to the reference's precision: rounding the reference decided, not the function.
    missed = errors > 0.5
    return places[missed], errors[missed], int(np.count_nonzero(unlike))


def measure(name: str, chunks: Iterator[Array], dtype: Any) -> Error:
    """The errors of compiled code over chunks of CHUNK inputs."""
    graph = Graph()
    x = graph.input("x", (CHUNK,), dtype)
    node = unary(name, x)
    run = sg.compile([x], node, threads=1)
    out = np.empty(CHUNK, node.dtype.np)
    inputs = missed = wrong = 0
    suspects: list[tuple[float, Any, Any]] = []
    for chunk in chunks:
        run(chunk, out=out)
        places, errors, unlike = compare(chunk, out, reference(name, chunk))
        inputs, missed, wrong = inputs + chunk.size, missed + places.size, wrong + unlike
        order = np.argsort(errors)[-SUSPECTS:]
        suspects += [(float(errors[k]), chunk[places[k]], out[places[k]]) for k in order]
        suspects = sorted(suspects, key=lambda s: -s[0])[:SUSPECTS]
    finite = [s for s in suspects if np.isfinite(s[1])]
    checked = [(true_error(name, a, got), a) for _, a, got in finite]
    ulp, worst = max(checked, default=(0.5, None), key=lambda c: c[0])
    wrong += len(suspects) - len(finite)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Error(ulp, "" if worst is None else float(worst).hex(), inputs, missed, wrong, today)


# Inputs.


def float32_chunks(count: int) -> Iterator[Array]:
    """`count` of all float32 numbers, each at most once, in chunks; count is rounded up to chunks."""
    for start in range(0, count, CHUNK):
        bits = np.arange(start, start + CHUNK, dtype=np.uint64)
        if count < ALL:
            bits = bits * np.uint64(STRIDE)
        yield bits.astype(np.uint32).view(np.float32)


# Where an operator is neither constant nor undefined, or changes its method.
_RANGES: dict[str, tuple[float, float]] = {
    "exp": (-746, 710),
    "expm1": (-40, 710),
    "exp2": (-1076, 1025),
    "log": (0.5, 2),
    "log2": (0.5, 2),
    "log10": (0.5, 2),
    "log1p": (-1, 2),
    "sin": (-1e6, 1e6),
    "cos": (-1e6, 1e6),
    "tan": (-1e6, 1e6),
    "asin": (-1, 1),
    "acos": (-1, 1),
    "atanh": (-1, 1),
    "acosh": (1, 3),
    "sinh": (-711, 711),
    "cosh": (-711, 711),
    "tanh": (-20, 20),
    "sigmoid": (-746, 40),
    "erf": (-6, 6),
    "erfc": (-6, 27.3),
}


def float64_chunks(name: str, count: int) -> Iterator[Array]:
    """`count` float64 numbers in chunks: any bits, those near 1, of any magnitude near 1, and the operator's range."""
    low, high = _RANGES.get(name, (-100.0, 100.0))
    for k in range(math.ceil(count / CHUNK)):
        rng = np.random.default_rng((len(name), *name.encode(), k))
        part = CHUNK // 4
        any_bits = rng.integers(0, 1 << 64, part, np.uint64).view(np.float64)
        sizes = rng.uniform(-3, 3, part) * 2.0 ** rng.integers(-30, 8, part)
        yield np.concatenate([any_bits, rng.uniform(-2, 2, part), sizes, rng.uniform(low, high, part)])


# Results.


def load() -> dict[str, dict[str, Error]]:
    """What has been measured: operator, data type, error."""
    if not DATA.exists():
        return {}
    return {op: {d: Error(**e) for d, e in row.items()} for op, row in json.loads(DATA.read_text()).items()}


def save(results: dict[str, dict[str, Error]]) -> None:
    """Write the numbers and the table, operators in the order of definition."""
    order = [name for name in unary_operators() if name in results]
    plain = {name: {d: asdict(results[name][d]) for d in sorted(results[name])} for name in order}
    DATA.write_text(json.dumps(plain, indent=1) + "\n")
    TABLE.write_text(table(results, order))


_INTRODUCTION = """\
# Accuracy of elementary functions

Measured errors of compiled code, in units in the last place (ULP): the distance from the true value, divided by the
distance between the two floating-point numbers around the true value. A correctly rounded result is within 0.5 ULP. The
machine code does the same operations for every vector width, so these are facts of the formulas, not of a machine.

float32 functions are compared with a float64 reference (NumPy, SciPy), float64 functions with an 80-bit one; the
sixteen largest errors of each are computed again with mpmath in 2,400 bits, and the largest of these is in the table.
`all` means all 2³² float32 numbers; float64 numbers are drawn: any bit pattern, small and large numbers, and the range
in which the function is interesting. "Not nearest" is the share of inputs whose result is not the number nearest to the
true value; "≤ 0.5" is a function that is correctly rounded on all of them. Results that are NaN, or a zero of the other
sign, where the meaning is different are counted too: there are none.

The table is written by `python -m tests.accuracy --float32 all`; `tests/test_accuracy.py` holds the functions to it.
"""


def table(results: dict[str, dict[str, Error]], order: list[str]) -> str:
    """The published page."""
    lines = [_INTRODUCTION]
    lines.append("| function | float32: ULP | at | inputs | not nearest | float64: ULP | at | inputs | not nearest |")
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for name in order:
        cells = [c for d in ("float32", "float64") for c in _cells(results[name].get(d))]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    dates = sorted({e.date for row in results.values() for e in row.values()})
    lines += ["", f"Measured {dates[0]} to {dates[-1]}." if dates[0] != dates[-1] else f"Measured {dates[0]}.", ""]
    return "\n".join(lines)


def _cells(error: Error | None) -> tuple[str, str, str, str]:
    if error is None:
        return "", "", "", ""
    count = "all" if error.inputs == ALL else f"{error.inputs:,}"
    if not error.not_nearest:
        return "≤ 0.5", "", count, "0"
    # Rounded up: a bound.
    ulp = f"{math.ceil(error.ulp * 1e3) / 1e3:.3f}"
    share = 100 * error.not_nearest / error.inputs
    return ulp, f"`{float.fromhex(error.worst):.9g}`", count, f"{share:.2g} %"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description=__doc__)
    parser.add_argument("--ops", help="comma-separated; all by default")
    parser.add_argument("--float32", default=str(1 << 24), help="how many numbers, or all")
    parser.add_argument("--float64", type=int, default=10_000_000, help="how many numbers; 0 for none")
    parser.add_argument("--again", action="store_true", help="measure again what has been measured")
    asked = parser.parse_args()
    count = ALL if asked.float32 == "all" else int(asked.float32)
    known = unary_operators()
    names = asked.ops.split(",") if asked.ops else known
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"not unary operators of floats: {', '.join(unknown)}")
    if asked.float64 and not has_wide_floats():
        parser.error("float64 needs a longdouble of 64 bits; give --float64 0")
    for name in names:
        for dtype, wanted in (("float32", count), ("float64", asked.float64)):
            have = load().get(name, {}).get(dtype)
            if not wanted or (have is not None and have.inputs >= wanted and not asked.again):
                continue
            chunks = float32_chunks(wanted) if dtype == "float32" else float64_chunks(name, wanted)
            found = measure(name, chunks, dtype)
            print(f"{name} {dtype}: {found.ulp:.4f} ULP of {found.inputs:,} inputs", flush=True)
            if found.wrong:
                # The page says that there are none.
                raise SystemExit(f"{name} {dtype}: {found.wrong} results are NaN or a zero of the wrong sign")
            results = load()
            results.setdefault(name, {})[dtype] = found
            save(results)
    save(load())


if __name__ == "__main__":
    main()
