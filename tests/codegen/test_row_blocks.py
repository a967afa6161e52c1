"""Sums over rows in blocks: in the kernel that passes the rows for other reasons, with the same bits every time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from kernel_cases import NARROW, WIDE, Native, kernels_of

import symgrad as sg
from codegen import jit, row_blocks
from codegen.executable import value_name
from codegen.group import Anchor
from codegen.interp import fresh_arrays, run
from codegen.loop_verify import verify
from codegen.prepare import prepare
from codegen.row_blocks import rows_of_blocks, summed_in_blocks
from symgrad.optimize import optimize
from symgrad.program import Program


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays of the size of tests are cut too."""
    for name, value in {
        "BLOCKED_ELEMENTS": 64, "FEWEST_ROWS": 2, "MOST_ROWS": 4, "FEWEST_BLOCKS": 1, "FEWEST_COLUMNS": 8,
    }.items():  # fmt: skip
        monkeypatch.setattr(row_blocks, name, value)


def norm_gradients(x: sg.Node) -> Sequence[sg.Node]:
    g = x.graph
    features = x.shape[-1:]
    gamma, beta, c = g.input("gamma", features), g.input("beta", features), g.input("c", x.shape)
    y = sg.nn.layer_norm(x, gamma, beta)
    return y, *sg.grad(sg.sum(y * c), [x, gamma, beta])


def softmax_and_sums(x: sg.Node) -> Sequence[sg.Node]:
    y = sg.nn.softmax(x)
    axes = tuple(range(x.ndim - 1))
    return (
        y,
        sg.sum(y, axis=axes),
        sg.sum(x, axis=axes),
        sg.argmax(x, axis=-1),
        sg.mean(x * x, axis=axes, keepdims=True),
    )


def mapped(x: sg.Node) -> Sequence[sg.Node]:
    y = sg.exp(x) * 2
    return y, sg.sum(y, axis=tuple(range(x.ndim - 1))) + 1


CASES: dict[str, tuple[Callable[[sg.Node], Sequence[sg.Node]], tuple[int, ...]]] = {
    "norm": (norm_gradients, (12, 40)),
    "norm of batches": (norm_gradients, (3, 8, 19)),
    "softmax": (softmax_and_sums, (8, 70)),
    "map": (mapped, (6, 33)),
    "sum": (lambda x: [sg.sum(x, axis=0)], (12, 64)),
}


def program_of(name: str) -> Program:
    make, shape = CASES[name]
    g = sg.Graph()
    x = g.input("x", shape)
    outputs = tuple(make(x))
    return optimize(Program(g, tuple(g.inputs), outputs), "infer", {})


def values_of(program: Program) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(5)
    return {
        value_name(n): generator.standard_normal([int(d) for d in n.shape]).astype("f").ravel() for n in program.inputs
    }


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", CASES)
def test_rows_are_passed_once(name: str) -> None:
    program = program_of(name)
    x = value_name(program.inputs[0])
    (low,) = [low for low in kernels_of(program, WIDE) if x in map(value_name, low.params)]
    assert low.group.anchor is Anchor.ROWS
    assert any(summed_in_blocks(n) is not None for n in low.group.nodes)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("target", [WIDE, NARROW, None], ids=["wide", "narrow", "host"])
@pytest.mark.parametrize("name", CASES)
def test_sums_are_right(name: str, target) -> None:
    """Naive and scheduled kernels run backward and forward, and machine code, against the meaning of the program."""
    program = program_of(name)
    values = values_of(program)
    inputs = {n: values[value_name(n)].reshape([int(d) for d in n.shape]) for n in program.inputs}
    for low in kernels_of(program, target or jit.host_target()):
        names = [value_name(n) for n in low.params]
        fresh = fresh_arrays(low.naive.params)
        arrays = [f if b.written else values[n] for n, b, f in zip(names, low.naive.params, fresh, strict=True)]
        verify(low.naive)
        (part,) = low.scheduled
        verify(part.kernel)
        naive, forward, backward = ([a.copy() for a in arrays] for _ in range(3))
        run(low.naive, naive)
        if target is None:
            assert Native(part.kernel, jit.host_target()).run(forward) == 0
        else:
            run(part.kernel, forward)
        run(part.kernel, backward, backward=True)
        for one, wanted, other in zip(forward, naive, backward, strict=True):
            np.testing.assert_allclose(one, wanted, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(other, wanted, rtol=1e-5, atol=1e-5)
        values |= dict(zip(names, forward, strict=True))
    prepared = prepare(program)
    for output, made in zip(program.outputs, prepared.outputs, strict=True):
        wanted = sg.evaluate(output, inputs)
        np.testing.assert_allclose(values[value_name(made)].reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4)


def test_the_number_of_threads_changes_no_bit() -> None:
    g = sg.Graph()
    x = g.input("x", (2048, 512))
    outputs = norm_gradients(x)
    generator = np.random.default_rng(2)
    arrays = [generator.standard_normal([int(d) for d in n.shape]).astype("f") for n in g.inputs]
    one, two = (sg.compile(list(g.inputs), list(outputs), threads=threads)(*arrays) for threads in (1, 2))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(one[3], arrays[3].astype("d").sum(axis=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((8192, 1024), 128),
        ((64, 128, 512), 64),
        ((1 << 20,), 1),
        ((1024, 1024), 32),
        ((64, 1 << 15), 1),
        ((1009, 2048), 1),
    ],
)
def test_blocks_follow_from_shapes(shape: tuple[int, ...], rows: int) -> None:
    """As many rows as divide the array into at least 32 blocks; none where that leaves too little in each."""
    assert rows_of_blocks(shape) == rows
