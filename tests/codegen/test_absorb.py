# pyright: basic
"""Arrays that are filled where they are read, and those that have to be stored."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_cases import Native

import symgrad as sg
from codegen import jit, works
from codegen.group import group
from codegen.interp import fresh_arrays, run
from codegen.loop_verify import verify
from codegen.plan import Work
from codegen.prepare import prepare
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace

BATCH = 9
TARGET = jit.host_target()


def images(g: sg.Graph) -> tuple[Any, Any]:
    return g.input("x", (BATCH, 3, 5, 6)), g.input("w", (4, 3, 3, 3))


def padded(g: sg.Graph) -> list[Any]:
    x, w = images(g)
    return [sg.nn.conv2d(x, w, padding=1)]


def padded_twice(g: sg.Graph) -> list[Any]:
    """Two kernels read what is filled at little cost."""
    x, w = images(g)
    return [sg.nn.conv2d(x, w, padding=1), sg.nn.conv2d(x, g.input("v", (5, 3, 3, 3)), padding=1)]


def both_factors(g: sg.Graph) -> list[Any]:
    a, b = g.input("a", (BATCH, 20, 7)), g.input("b", (BATCH, 7, 18))
    return [(sg.exp(a) * 2) @ (sg.tanh(b) + 1)]


def one_array(g: sg.Graph) -> list[Any]:
    """What is filled and what is multiplied with it are made of the same array."""
    a = g.input("a", (BATCH, 16, 16))
    return [(sg.exp(a) * 2) @ a]


def also_returned(g: sg.Graph) -> list[Any]:
    a, b = g.input("a", (BATCH, 20, 7)), g.input("b", (BATCH, 7, 18))
    e = sg.exp(a)
    return [e, e @ b]


def dear_twice(g: sg.Graph) -> list[Any]:
    a, b, c = g.input("a", (BATCH, 20, 7)), g.input("b", (BATCH, 7, 18)), g.input("c", (BATCH, 7, 18))
    e = sg.exp(a)
    return [e @ b, e @ c]


def not_in_slices(g: sg.Graph) -> list[Any]:
    a, b = g.input("a", (7, BATCH, 20)), g.input("b", (BATCH, 7, 18))
    return [sg.permute_dims(sg.exp(a), (1, 2, 0)) @ b]


def not_by_all(g: sg.Graph) -> list[Any]:
    """The gradient by the weights sums over all images."""
    x, w = images(g)
    y = sg.nn.conv2d(x, w, padding=1)
    return [y, sg.grad(y, w, cotangent=g.input("d", (BATCH, 4, 5, 6)))]


def also_summed(g: sg.Graph) -> list[Any]:
    a, b = g.input("a", (BATCH, 20, 7)), g.input("b", (BATCH, 7, 18))
    e = sg.exp(a)
    return [e @ b, sg.sum(e, 1)]


def strided(g: sg.Graph, channels: int = 64, side: int = 15) -> list[Any]:
    """Each element that is read meets 64 weights: worth a copy without the gaps."""
    x, w = g.input("x", (BATCH, 3, side, side + 1)), g.input("w", (channels, 3, 1, 1))
    return [sg.nn.conv2d(x, w, stride=2)]


def strided_twice(g: sg.Graph) -> list[Any]:
    """The gradient by the weights reads the copy, which is stored for it."""
    (y,) = strided(g, side=5)
    return [y, sg.grad(y, g.inputs[1], cotangent=g.input("d", y.shape))]


def strided_for_weights(g: sg.Graph) -> list[Any]:
    """Sums along the gaps need no copy."""
    (y,) = strided(g, side=5)
    return [sg.grad(y, g.inputs[1], cotangent=g.input("d", y.shape))]


def strided_values(g: sg.Graph) -> list[Any]:
    """Only what is read is computed."""
    return [g.input("w", (64, 5)) @ sg.exp(g.input("x", (BATCH, 5, 11)))[:, :, 1::3]]


def works_of(case: Callable[[sg.Graph], list[Any]]) -> list[Work]:
    g = sg.Graph()
    outputs = case(g)
    program = optimize(Program(g, tuple(g.inputs), tuple(outputs)), "infer", {})
    return works.works_of(prepare(program), TARGET, lambda _: None, None)


CASES: dict[Callable[[sg.Graph], list[Any]], list[str]] = {
    padded: ["contract"],
    padded_twice: ["contract", "contract"],
    both_factors: ["add+multiply+contract"],
    one_array: ["multiply+contract"],
    also_returned: ["exp", "contract"],
    dear_twice: ["exp", "contract", "contract"],
    not_in_slices: ["exp", "contract"],
    not_by_all: ["pad", "contract", "contract"],
    also_summed: ["exp", "contract", "sum"],
    strided: ["contract"],
    strided_twice: ["window", "contract", "contract"],
    strided_for_weights: ["contract"],
    strided_values: ["contract"],
}
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)


@cases
def test_what_is_stored(case: Callable[[sg.Graph], list[Any]]) -> None:
    labels = [w.label for w in works_of(case) if not w.label.startswith("pack")]
    assert [label.split(" ")[0] for label in labels] == CASES[case]


def test_gaps_are_closed_where_that_pays() -> None:
    for channels, kernels in ((64, 2), (63, 1)):
        g = sg.Graph()
        outputs = strided(g, channels)
        program = optimize(Program(g, tuple(g.inputs), tuple(outputs)), "infer", {})
        assert len(group(prepare(program))) == kernels


def test_what_two_second_caches_would_hold_is_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * 3 * (5 + 2) * (6 + 2)
    for l2, stored in ((size // 2, False), (size // 2 - 1, True)):
        monkeypatch.setattr(sys.modules[__name__], "TARGET", replace(TARGET, l2=l2))
        assert ("pad" in [w.label.split(" ")[0] for w in works_of(padded)]) == stored


@cases
def test_interpreted_and_native(case: Callable[[sg.Graph], list[Any]]) -> None:
    """The same, whatever order the units run in."""
    rng = np.random.default_rng(0)
    memory: dict[str, np.ndarray] = {}
    for work in works_of(case):
        verify(work.kernel)
        fresh = fresh_arrays(work.kernel.params)
        for value, buffer, array in zip(work.values, work.kernel.params, fresh, strict=True):
            given = array if buffer.written else rng.standard_normal(buffer.size, dtype=np.float32)
            memory.setdefault(value, given)
        copies = [[memory[v].copy() for v in work.values] for _ in range(2)]
        run(work.kernel, copies[0])
        run(work.kernel, copies[1], backward=True)
        native = [memory[v] for v in work.values]
        assert Native(work.kernel, TARGET).run(native) == 0
        for interpreted, backward, got in zip(*copies, native, strict=True):
            np.testing.assert_array_equal(interpreted, backward)
            np.testing.assert_allclose(got, interpreted, rtol=1e-5, atol=2e-5 * float(np.nanmax(np.abs(interpreted))))


@pytest.mark.parametrize("threads", [1, 2])
@cases
def test_compiled(case: Callable[[sg.Graph], list[Any]], threads: int) -> None:
    g = sg.Graph()
    outputs = case(g)
    rng = np.random.default_rng(1)
    arrays = [rng.standard_normal(n.shape, dtype=np.float32) for n in g.inputs]
    got = sg.compile(list(g.inputs), outputs, threads=threads)(*arrays)
    for output, one in zip(outputs, got, strict=True):
        wanted = sg.evaluate(output, dict(zip(g.inputs, arrays, strict=True)))
        np.testing.assert_allclose(one, wanted, rtol=2e-5, atol=2e-5 * float(np.abs(wanted).max()))
