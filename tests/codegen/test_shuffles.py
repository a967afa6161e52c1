"""Blocks turned in registers: where each element goes, followed through the shuffles."""

from __future__ import annotations

import re

import pytest

from codegen.scalar_builder import ScalarBuilder, Value
from codegen.shuffles import transposed
from codegen.target import Target
from symgrad.types import DType, float32, float64, int8, int16

SIZES = (2, 4, 8, 16, 32, 64)
SHUFFLE = re.compile(r"shufflevector <(\d+) x \w+> (\S+), <\d+ x \w+> (\S+), <\d+ x i32> <(.*)>")
FENCE = re.compile(r"call <[^>]+> @llvm\.arithmetic\.fence\.v\d+f\d+\(<[^>]+> (%\w+)\)$")
EXTRACT = re.compile(r"extractelement <\d+ x \w+> (\S+), i64 (\d+)")
Place = tuple[int, int] | None


def followed(lines: list[str], known: dict[str, list[Place]]) -> dict[str, list[Place]]:
    """The row and column that each lane of every register comes from."""
    for line in lines:
        name, instruction = line.split(" = ")
        if (found := SHUFFLE.match(instruction)) is not None:
            none: list[Place] = [None] * int(found[1])
            both = known.get(found[2], none) + known.get(found[3], none)
            known[name] = [both[int(place.removeprefix("i32 "))] for place in found[4].split(", ")]
        elif found := FENCE.match(instruction):
            known[name] = known[found[1]]
        else:
            found = EXTRACT.match(instruction)
            assert found is not None, line
            known[name] = [known[found[1]][int(found[2])]]
    return known


@pytest.mark.parametrize("width", SIZES)
@pytest.mark.parametrize("dtype", [float32, float64, int16, int8], ids=str)
def test_transposed(dtype: DType, width: int) -> None:
    for count in SIZES:
        for given in {1, count // 2 + 1, count}:
            b = ScalarBuilder(1, Target("any", "", "", "", 64, 32, fma=True, masked=True))
            rows = [Value(f"%r{k}", dtype, width) for k in range(given)]
            columns = transposed(b, [*rows, *[None] * (count - given)], count, whole=given == count)
            known: dict[str, list[Place]] = {r.text: [(k, c) for c in range(width)] for k, r in enumerate(rows)}
            places = followed(b.lines, known)
            assert len(columns) == width
            for number, column in enumerate(columns):
                assert column.lanes == count
                assert places[column.text][:given] == [(k, number) for k in range(given)]


def test_a_square_takes_the_least_shuffles() -> None:
    """Two registers in and one out, so each of 16 columns needs 4 steps."""
    b = ScalarBuilder(1, Target("any", "", "", "", 64, 32, fma=True, masked=True))
    transposed(b, [Value(f"%r{k}", float32, 16) for k in range(16)], 16, whole=True)
    assert sum("shufflevector" in line for line in b.lines) == 64
