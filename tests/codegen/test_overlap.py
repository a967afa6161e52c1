"""Rows written while the next ones are read, and sums that one element makes up: the bits stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from kernel_cases import WIDE, Lowered, Native, kernels_of

import symgrad as sg
from codegen import jit
from codegen.interp import run
from codegen.loop import Accumulate, Kernel, Let, Load, statements_of
from codegen.loop_verify import verify
from codegen.overlap import Overlap, passes_beside
from codegen.schedule_cpu import FEWEST_UNITS
from codegen.single import Single, elements_apart, single_elements
from codegen.steps import Parallel, Split, Step, apply
from codegen.stream import STREAMED_BYTES
from symgrad.graph import Node
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace
from symgrad.storage import aligned_copy

ROWS, UNIT = 12, 4


def settled(x: Node) -> Node:
    """What the first pass computes and keeps is read by the last."""
    y = sg.exp(x)
    apart = y - sg.mean(y, axis=1, keepdims=True)
    return apart * sg.sqrt(sg.mean(apart * apart, axis=1, keepdims=True))


CASES: dict[str, Callable[[Node], Any]] = {
    "softmax": sg.nn.softmax,
    "layer_norm": sg.nn.layer_norm,
    "two_results": lambda x: (sg.nn.softmax(x), sg.sum(x, axis=1)),
    "settled": settled,
    "bools": lambda x: sg.where(sg.max(x, axis=1, keepdims=True) > 1, x, -x),
    "integers": lambda x: sg.where(sg.argmax(x, axis=1)[:, None] < 9, x, -x),
}


def lowered(make: Callable[[Node], Any], rows: int, columns: int) -> Lowered:
    g = sg.Graph()
    x = g.input("x", (rows, columns))
    made = make(x)
    outputs = made if isinstance(made, tuple) else (made,)
    low, *_ = kernels_of(optimize(Program(g, (x,), outputs, ()), "infer", {}), replace(WIDE, streams=True))
    return low


def cut(low: Lowered) -> Kernel:
    """The scheduled kernel of a group in units of rows."""
    steps = [s for s in low.scheduled[0].steps if not isinstance(s, Parallel)]
    return apply(low.naive, [*steps, Split("d0", UNIT)])


def results(kernel: Kernel, values: np.ndarray, *, native: bool) -> list[np.ndarray]:
    arrays = [values.copy() if not b.written else np.zeros(b.size, b.dtype.np) for b in kernel.params]
    if native:
        assert Native(kernel, jit.host_target()).run(arrays) == 0
    else:
        run(kernel, arrays)
    return arrays


@pytest.mark.parametrize("columns", [64, 70])
@pytest.mark.parametrize("name", CASES)
def test_the_last_pass_over_a_row_can_run_beside_each_pass_over_the_next(name: str, columns: int) -> None:
    low = lowered(CASES[name], ROWS, columns)
    plain = apply(cut(low), [Parallel("d0.0")])
    values = np.random.default_rng(3).standard_normal(ROWS * columns).astype(np.float32)
    passes = passes_beside(cut(low), "d0.1")
    assert passes
    for beside in passes:
        kernel = apply(cut(low), [Overlap("d0.1", beside), Parallel("d0.0")])
        verify(kernel)
        for native in (False, True):
            for mine, theirs in zip(
                results(kernel, values, native=native), results(plain, values, native=native), strict=True
            ):
                np.testing.assert_array_equal(mine, theirs)


def test_what_the_last_pass_reads_is_not_written_before_it() -> None:
    kernel = cut(lowered(settled, ROWS, 64))
    (first,) = passes_beside(kernel, "d0.1")
    with pytest.raises(ValueError, match="cannot run beside"):
        apply(kernel, [Overlap("d0.1", first.replace("0", "1", 1))])


@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_large_results_of_rows_are_written_beside_the_next_row(name: str) -> None:
    columns = 1024
    rows = STREAMED_BYTES // 4 // columns

    def steps(rows: int) -> tuple[Step, ...]:
        return lowered(CASES[name], rows, columns).scheduled[0].steps

    assert any(isinstance(step, Overlap) for step in steps(rows))
    assert not any(isinstance(step, Overlap) for step in steps(rows // 2))
    assert not any(isinstance(step, Overlap) for step in steps(rows + 1))


def picked(labels: str, extent: int = 40, value: Callable[[Node], Node] = lambda x: x) -> Lowered:
    """The value at a place of each row, as a sum."""
    g = sg.Graph()
    x, t = g.input("x", (ROWS, extent)), g.input("t", (ROWS,), labels)
    (low,) = kernels_of(
        optimize(Program(g, (x, t), (sg.nn.softmax_cross_entropy(value(x), t),), ()), "infer", {}), WIDE
    )
    return low


def test_a_sum_that_one_element_makes_up_is_that_element() -> None:
    low = picked("int32")
    (single,) = single_elements(low.naive)
    kernel = apply(low.naive, [single])
    verify(kernel)
    assert single in low.scheduled[0].steps
    assert sum(isinstance(s, Accumulate) for s in statements_of(kernel.body)) == 2
    assert any(isinstance(s, Load) and not s.index.factor(single.loop) for s in statements_of(kernel.body))
    rng = np.random.default_rng(4)
    values = rng.standard_normal(ROWS * 40).astype(np.float32)
    values[::7] = -0.0
    values[3 * 40] = np.inf
    values[5 * 40] = np.nan
    labels = rng.integers(-40, 40, ROWS).astype(np.int32)
    labels[:6] = 0
    given = {"float32": values, "int32": labels}
    mine, theirs = (
        [given[b.dtype.name].copy() if not b.written else np.zeros(b.size, np.float32) for b in k.params]
        for k in (kernel, low.naive)
    )
    run(kernel, mine)
    run(low.naive, theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


def gradient(labels: str, extent: int, finish: Callable[[Node], Node] = lambda d: d) -> Lowered:
    """The kernel with the gradient of a cross entropy with respect to logits."""
    g = sg.Graph()
    x, t = g.input("x", (ROWS, extent)), g.input("t", (ROWS,), labels)
    loss = sg.mean(sg.nn.softmax_cross_entropy(x, t))
    program = optimize(Program(g, (x, t), (finish(sg.grad(loss, x)),), ()), "infer", {})
    return next(low for low in kernels_of(program, WIDE) if low.group.anchor.value == "rows")


@pytest.mark.parametrize("finish", [lambda d: d, lambda d: -d * d], ids=["alone", "further"])
def test_an_element_that_is_chosen_by_its_place_is_computed_apart(finish: Callable[[Node], Node]) -> None:
    extent = 200
    low = gradient("int32", extent, finish)
    (apart,) = elements_apart(low.naive)
    assert apart in low.scheduled[0].steps
    kernel = apply(low.naive, [apart])
    verify(kernel)
    assert not any(isinstance(s, Let) and s.op in ("where", "equal") for s in statements_of(kernel.body))
    rng = np.random.default_rng(6)
    given = {
        "float32": rng.standard_normal(ROWS * extent).astype(np.float32) * 50,
        "int32": rng.integers(-extent, extent, ROWS).astype(np.int32),
    }
    mine, theirs = (
        [given[b.dtype.name].copy() if not b.written else np.zeros(b.size, np.float32) for b in k.params]
        for k in (kernel, low.naive)
    )
    run(kernel, mine)
    run(low.naive, theirs)
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a.view(np.int32), b.view(np.int32))


def test_elements_are_not_computed_apart_where_more_depends_on_them() -> None:
    assert not elements_apart(gradient("int32", 100).naive)
    assert not elements_apart(gradient("int8", 300).naive)
    # A sum over the row takes the element too.
    assert not elements_apart(gradient("int32", 200, lambda d: sg.sum(d * d, axis=1)).naive)


def test_one_choice_in_a_loop_is_made_apart() -> None:
    """Of two labels that may be one class: an average of two cross entropies."""
    extent = 200
    g = sg.Graph()
    x, t, u = g.input("x", (ROWS, extent)), g.input("t", (ROWS,), "int32"), g.input("u", (ROWS,), "int32")
    loss = sg.mean(sg.nn.softmax_cross_entropy(x, t) + sg.nn.softmax_cross_entropy(x, u))
    f = sg.compile([x, t, u], sg.grad(loss, x), threads=1)
    rng = np.random.default_rng(7)
    values = rng.standard_normal((ROWS, extent)).astype(np.float32)
    first, second = rng.integers(0, extent, (2, ROWS)).astype(np.int32)
    second[::2] = first[::2]
    exact = np.exp(values.astype(np.float64))
    wanted = 2 * exact / exact.sum(axis=1, keepdims=True)
    for labels in (first, second):
        wanted[np.arange(ROWS), labels] -= 1
    np.testing.assert_allclose(f(values, first, second), wanted / ROWS, rtol=1e-5, atol=1e-8)


def test_places_that_could_stand_for_two_elements_are_summed() -> None:
    assert not single_elements(picked("int8", 300).naive)
    with pytest.raises(ValueError, match="not one element"):
        apply(picked("int32").naive, [Single("r0_1", "a1")])


@pytest.mark.parametrize("shape", [(2, 512, 16), (64, 8, 48), (3, 1024, 16)])
def test_rows_within_other_loops(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codegen.stream.STREAMED_BYTES", 1 << 10)
    g = sg.Graph()
    x, w = g.input("x", shape), g.input("w", shape[1:])
    program = Program(g, (x, w), (sg.nn.softmax(x * w),), ())
    (low,) = kernels_of(optimize(program, "infer", {}), replace(WIDE, streams=True))
    kernel = low.scheduled[0].kernel
    assert any(isinstance(step, Overlap) for step in low.scheduled[0].steps)
    assert kernel.units >= FEWEST_UNITS
    verify(kernel)
    rng = np.random.default_rng(5)
    given = [rng.standard_normal(b.size).astype(np.float32) for b in kernel.params]
    mine, theirs = [a.copy() for a in given], [a.copy() for a in given]
    assert Native(kernel, jit.host_target()).run([aligned_copy(a) for a in mine]) == 0
    run(kernel, mine, backward=True)
    run(low.naive, theirs)
    np.testing.assert_allclose(mine[-1], theirs[-1], rtol=1e-5)
