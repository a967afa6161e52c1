"""Blocks turned in registers: where each element goes, followed through the shuffles; rows joined by elements."""

from __future__ import annotations

import re

import numpy as np
import pytest

import symgrad as sg
from codegen import jit
from codegen.build import build
from codegen.machine_code import KernelStore
from codegen.scalar_builder import ScalarBuilder, Value
from codegen.shuffles import transposed
from codegen.target import Target
from symgrad.optimize import optimize
from symgrad.program import Program
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


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "bool"])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_side_by_side(parts: int, dtype: str) -> None:
    """Rows whose elements lie between each other are stored together, whole vectors and what is left of a row."""
    generator = np.random.default_rng(parts)
    for extent in (1, 5, 14, 16, 17, 33, 64):
        arrays = [generator.integers(0, 2, (3, extent)).astype(dtype) for _ in range(parts)]
        g = sg.Graph()
        nodes = [g.input(f"x{k}", (3, extent), dtype) for k in range(parts)]
        together = sg.compile(nodes, sg.stack(nodes, axis=-1))
        np.testing.assert_array_equal(together(*arrays), np.stack(arrays, axis=-1))


@pytest.mark.parametrize("target", ["host", "narrow"])
@pytest.mark.parametrize("size", [2, 4])
def test_windows_side_by_side(size: int, target: str) -> None:
    """What is computed window by window and stored row by row: the gradient of pooling."""
    generator = np.random.default_rng(size)
    for rows, columns in ((1, 3), (4, 14), (3, 21)):
        x = generator.standard_normal((2, rows * size, columns * size)).astype(np.float32)
        g = sg.Graph()
        node = g.input("x", x.shape)
        pooled = sg.max(sg.reshape(node, (2, rows, size, columns, size)), axis=(2, 4))
        program = optimize(Program(g, (node,), (sg.grad(sg.sum(pooled * pooled), node),)), "infer", {})
        wide = jit.host_target() if target == "host" else jit.host_target(16)
        executable = build(program, KernelStore(), target=wide)
        made = np.empty(x.shape, np.float32)
        assert executable.run([x, made]) == 0
        blocks = x.reshape(2, rows, size, columns, size)
        most = blocks.max(axis=(2, 4), keepdims=True)
        np.testing.assert_array_equal(made, np.where(blocks == most, 2 * most, 0).reshape(x.shape))
