"""NumPy's own validation sets for elementary functions, run through compiled code."""

# pyright: basic
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import symgrad as sg
from tests.ulp import steps_apart

DATA = Path(np.__file__).parent / "_core" / "tests" / "data"
FILES = sorted(DATA.glob("umath-validation-set-*.csv"))
# NumPy's names of functions that have another one here.
NAMES = {f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")}
# Units in the last place that are promised here, where a file allows more.
PROMISED = 2


def _name(path: Path) -> str:
    return path.stem.removeprefix("umath-validation-set-")


def _rows(path: Path, dtype: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Arguments, expected values and the tolerance of one data type, from bit patterns in hexadecimal."""
    lines = [line for line in path.read_text().splitlines()[1:] if line and line[0] not in "#$"]
    rows = [fields for line in lines if (fields := line.split(","))[0] == f"np.{dtype}"]
    word = np.dtype(dtype).str.replace("f", "u")
    columns = [np.array([int(row[k], 16) for row in rows], word).view(dtype) for k in (1, 2)]
    return columns[0], columns[1], max((int(row[3]) for row in rows), default=0)


@pytest.mark.skipif(not FILES, reason="this NumPy comes without its validation sets")
def test_the_sets_are_covered() -> None:
    assert not {_name(path) for path in FILES if not hasattr(sg, NAMES.get(_name(path), _name(path)))}


@pytest.mark.skipif(not FILES, reason="this NumPy comes without its validation sets")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("path", FILES, ids=_name)
def test_validation_set(path: Path, dtype: str) -> None:
    function = getattr(sg, NAMES.get(_name(path), _name(path)))
    arguments, expected, tolerance = _rows(path, dtype)
    if not arguments.size:
        pytest.skip("no rows of this data type")
    graph = sg.Graph()
    x = graph.input("x", arguments.shape, dtype)
    got = sg.compile([x], function(x))(arguments)
    numbers = ~np.isnan(expected)
    assert np.array_equal(np.isnan(got), ~numbers)
    steps = steps_apart(got[numbers], expected[numbers])
    worst = int(np.argmax(steps))
    assert steps[worst] <= min(tolerance, PROMISED), (arguments[numbers][worst], got[numbers][worst])
