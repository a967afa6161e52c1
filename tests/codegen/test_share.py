# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false
"""Parallel loops whose iterations are divided: units cover everything once, and divided kernels give the same bits."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from kernel_cases import CASES, NARROW, TYPED, WIDE, Native, kernels_of, program_of

import symgrad as sg
from codegen import jit, schedule_cpu
from codegen.interp import fresh_arrays, run
from codegen.loop import Bind, Kernel, Load, loops_of, parts_of, statements_of
from codegen.loop_verify import verify
from codegen.share import serial
from symgrad.types import float32, float64

HOST = jit.host_target()
ROWS = [(name, dtype) for name in CASES for dtype in ((float32, float64) if name in TYPED else (float32,))]
# What has units that can be divided at these small sizes.
DIVIDED = {
    WIDE: {"broadcast", "transpose", "turned", "middle_sum", "convolution", "turned_convolution"},
    NARROW: {"broadcast", "transpose", "dense", "matmul_transposed", "convolution"},
    HOST: set(),
}


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are divided as far as they can be, however short they are."""
    monkeypatch.setattr(schedule_cpu, "LONG_UNIT_NS", 0)
    monkeypatch.setattr(schedule_cpu, "FEW_UNITS", 1 << 40)


def divided(program, target=HOST) -> list[Kernel]:
    kernels = [s.kernel for low in kernels_of(program, target) for s in low.scheduled]
    return [k for k in kernels if any(f.loop.bind is Bind.SHARED for f in loops_of(k.body))]


def whole(kernel: Kernel) -> Kernel:
    """The kernel with every parallel iteration as one unit."""
    body = tuple(type(s)(s.loop, tuple(serial(t) for t in s.body)) for s in kernel.body)  # pyright: ignore
    return type(kernel)(kernel.params, kernel.locals, body)


def arrays_of(kernel: Kernel, seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    out = fresh_arrays(kernel.params)
    for buffer, array in zip(kernel.params, out, strict=True):
        if not buffer.written:
            array[...] = generator.integers(0, 8, array.shape)
    return out


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", DIVIDED, ids=["wide", "narrow", "host"])
@pytest.mark.parametrize(("name", "dtype"), ROWS, ids=str)
def test_divided_units_keep_the_bits(name: str, dtype, target) -> None:
    """In the interpreter every unit stands alone; as machine code they run in ranges that begin anywhere."""
    kernels = divided(program_of(name, dtype), target)
    assert kernels or name not in DIVIDED[target]
    for kernel in kernels:
        verify(kernel)
        undivided = whole(kernel)
        assert kernel.units > undivided.units
        wanted = arrays_of(kernel, 3)
        run(undivided, wanted)
        for backward in (False, True):
            got = arrays_of(kernel, 3)
            run(kernel, got, backward=backward)
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_array_equal(a, b)
        if target is not HOST:
            continue
        native = Native(kernel, HOST)
        expected = arrays_of(kernel, 3)
        Native(undivided, HOST).run(expected)
        for seed in range(3):
            inner = np.random.default_rng(seed).integers(0, kernel.units, min(kernel.units, 5 * seed))
            cuts = sorted({0, kernel.units, *inner.tolist()})
            ranges = list(itertools.pairwise(cuts))
            np.random.default_rng(seed).shuffle(ranges)
            got = arrays_of(kernel, 3)
            native.run_units(got, [(int(a), int(b)) for a, b in ranges], native.scratch())
            for a, b in zip(got, expected, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.usefixtures("always")
def test_two_levels_are_divided() -> None:
    kernel = divided(program_of("turned_convolution"), WIDE)[-1]
    shared = [f for f in loops_of(kernel.body) if f.loop.bind is Bind.SHARED]
    assert any(parts_of(f) > 1 for f in shared)
    assert kernel.units == sum(f.loop.extent for f in shared if parts_of(f) == 1) * kernel.body[0].loop.extent


@pytest.mark.usefixtures("always")
def test_a_panel_is_packed_once_for_the_pieces_of_a_worker() -> None:
    """What was packed for an iteration is used by the next call that comes to it, and by no other run."""
    g = sg.Graph()
    a, b = g.input("a", (600, 96)), g.input("b", (96, 512))
    function = sg.compile([a, b], a @ b)
    low = kernels_of(function.program, HOST)[0]
    kernel = low.scheduled[-1].kernel
    assert any(f.loop.bind is Bind.SHARED for f in loops_of(kernel.body))
    per_panel = parts_of(kernel.body[0])
    native = Native(kernel, HOST)
    generator = np.random.default_rng(1)
    left, right = (generator.standard_normal(s.size).astype(np.float32) for s in kernel.params[:2])
    wanted, got = (np.zeros((600, 512), np.float32) for _ in range(2))
    native.run([left, right, wanted])
    scratch, half = native.scratch(), per_panel // 2
    native.run_units([left, right, got], [(0, half)], scratch)
    native.run_units([left, np.full_like(right, np.nan), got], [(half, per_panel)], scratch)
    columns = np.any(got != 0, 0)
    assert 0 < columns.sum() < 512
    np.testing.assert_array_equal(got[:, columns], wanted[:, columns])
    native.run_units([left, np.full_like(right, np.nan), got], [(half, per_panel)], native.scratch())
    assert np.isnan(got).any()


def test_few_columns_are_packed_by_every_worker() -> None:
    """In a panel of their own, and the rows are shared; more of them are packed once for all."""
    for columns, kernels in ((64, 1), (160, 2)):
        low = kernels_of(product(256, 256, columns, "nt", 1).program, HOST)
        assert [len(one.scheduled) for one in low] == [kernels]
        kernel = low[0].scheduled[-1].kernel
        assert any(b.name == "panel" for b in kernel.locals) == (kernels == 1)
        assert kernel.units >= 8


def product(m: int, k: int, n: int, form: str, threads: int) -> Any:
    g = sg.Graph()
    a = g.input("a", (m, k) if form[0] == "n" else (k, m))
    b = g.input("b", (k, n) if form[1] == "n" else (n, k))
    left, right = a if form[0] == "n" else a.T, b if form[1] == "n" else b.T
    return sg.compile([a, b], left @ right, threads=threads)


def check_products(m: int, k: int, n: int, form: str) -> None:
    """The product is right, and has the same bits whatever workers share."""
    generator = np.random.default_rng(2)
    left, right = (generator.standard_normal(shape, dtype=np.float32) for shape in ((m, k), (k, n)))
    given = [np.ascontiguousarray(x if f == "n" else x.T) for x, f in zip((left, right), form, strict=True)]
    functions = [product(m, k, n, form, threads) for threads in (1, 2, 3)]
    assert divided(functions[0].program)
    first = functions[0](*given)
    np.testing.assert_allclose(first, left.astype(np.float64) @ right, atol=1e-6 * k)
    for function in functions:
        for _ in range(10):
            np.testing.assert_array_equal(function(*given), first)


def test_long_units_are_divided() -> None:
    """Products large enough to be worth it are."""
    check_products(330, 256, 600, "nn")


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("shape", [(64, 128, 3136, "nt"), (200, 64, 520, "nn"), (130, 300, 515, "tn")], ids=str)
def test_blocks_that_are_left_over_are_divided(shape: tuple[int, int, int, str]) -> None:
    """Of what is left at the ends of rows and columns, loops may have one iteration only."""
    check_products(*shape)


def test_parts_of_long_sums_are_shared() -> None:
    """A worker sums over the rows that it passes elsewhere, not over all rows for a part of the results."""
    g = sg.Graph()
    h, d = g.input("h", (4096, 32)), g.input("d", (4096, 32))
    function = sg.compile([h, d], [h.T @ d, sg.sum(d, axis=0), h.T @ d[:, :1]])
    long = [low.scheduled[-1].kernel for low in kernels_of(function.program, WIDE) if low.naive.params[0].size >= 4096]
    assert len(long) == 3
    for kernel in long:
        (outermost,) = kernel.body
        assert outermost.loop.extent == 2
        read = {
            s.buffer: s.index.factor(outermost.loop.name) for s in statements_of(kernel.body) if isinstance(s, Load)
        }
        assert all(2 * read[b.name] == b.size for b in kernel.params if not b.written)
