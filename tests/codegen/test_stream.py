"""Results written past the caches: only large ones, in whole aligned vectors, and never over what is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from kernel_cases import WIDE, Native, kernels_of

import symgrad as sg
from codegen import jit
from codegen.affine import variable
from codegen.interp import run
from codegen.loop import Bind, Buffer, Fetch, For, Kernel, Load, Loop, Space, Store, loops_of, statements_of
from codegen.loop_verify import verify
from codegen.steps import apply
from codegen.stream import STREAMED_BYTES, Gather, Stream, without_gathering
from codegen.target import Target
from symgrad.errors import CompileError
from symgrad.graph import Node
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace
from symgrad.storage import aligned_copy
from symgrad.types import float32

ROWS, COLUMNS = 6, 320


def scheduled(name: str, target: Target, rows: int = ROWS, columns: int = COLUMNS) -> Kernel:
    g = sg.Graph()
    x = g.input("x", (rows, columns))
    value = {"map": lambda: sg.exp(x) + 1, "rows": lambda: sg.nn.softmax(x), "turned": lambda: x.T + 1}[name]()
    (low,) = kernels_of(optimize(Program(g, (x,), (value,)), "infer", {}), target)
    return low.scheduled[0].kernel


def streamed(kernel: Kernel) -> list[Store]:
    return [s for s in statements_of(kernel.body) if isinstance(s, Store) and s.past_caches]


@pytest.mark.parametrize("name", ["map", "rows", "turned"])
def test_large_results_go_past_the_caches(name: str) -> None:
    columns = 1024
    rows = STREAMED_BYTES // 4 // columns
    able = replace(WIDE, streams=True)
    assert streamed(scheduled(name, able, rows, columns))
    assert not streamed(scheduled(name, able, rows - 1, columns))
    assert not streamed(scheduled(name, WIDE, rows, columns))


def test_the_next_row_is_fetched_where_nothing_goes_past_the_caches() -> None:
    g = sg.Graph()
    x, c = g.input("x", (1 << 13, 1 << 10)), g.input("c", (1 << 13, 1 << 10))
    y = sg.nn.softmax(x)
    (low,) = kernels_of(
        optimize(Program(g, (x, c), (y, y + sg.tanh(x * c)), ()), "infer", {}), replace(WIDE, streams=True)
    )
    kernel = low.scheduled[0].kernel
    passes = [f.body for f in loops_of(kernel.body) if f.loop.bind is Bind.VECTOR]
    fetching = [body for body in passes if any(isinstance(s, Fetch) for s in body)]
    assert streamed(kernel)
    # The first row of a unit alone; beside the next rows their results are written.
    assert [any(isinstance(s, Store) and s.past_caches for s in body) for body in fetching] == [False, True]


@pytest.mark.parametrize("overlaps", [True, False])
def test_rows_are_written_beside_the_next_where_a_core_computes_meanwhile(overlaps: bool) -> None:
    able = replace(WIDE, streams=True, overlaps=overlaps)
    kernel = scheduled("rows", able, STREAMED_BYTES // 4 // 1024, 1024)
    assert streamed(kernel)
    assert any(b.name.endswith("_kept") for b in kernel.locals) == overlaps


def test_what_takes_long_is_gathered_where_a_core_does_not_compute_meanwhile() -> None:
    g = sg.Graph()
    x = g.input("x", (STREAMED_BYTES // 4,))
    gathered: list[bool] = []
    for value, overlaps in itertools.product((sg.exp(x), x * 2, sg.tan(sg.sinh(sg.erfc(x)))), (True, False)):
        program = optimize(Program(g, (x,), (value,)), "infer", {})
        (low,) = kernels_of(program, replace(WIDE, streams=True, overlaps=overlaps))
        kernel = low.scheduled[0].kernel
        gathered.append(bool(kernel.locals))
        # What takes so long that reading the lines is hidden stays in the caches.
        assert bool(streamed(kernel)) == (overlaps or value.op.name != "tan")
    assert gathered == [False, True, False, False, False, False]


@pytest.mark.parametrize("shape", [(7, 1024), (3, 1000), (5, 1536), (4, 64)])
@pytest.mark.parametrize("results", [1, 3])
def test_gathered_results_are_the_same(shape: tuple[int, int], results: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows that begin lines and of rows that do not, of runs that fill whole pages and of others, of several types.

    At the start of a line, elsewhere, and over what is read.
    """
    monkeypatch.setattr("codegen.stream.STREAMED_BYTES", 1 << 10)
    monkeypatch.setattr("codegen.schedule_cpu.GATHERED_BYTES", 1 << 11)
    g = sg.Graph()
    x, y = g.input("x", shape), g.input("y", (shape[0], 1))
    values = (sg.exp(x) * y, sg.tanh(x) > y, sg.astype(sg.exp(x), "float64"))[:results]
    program = optimize(Program(g, (x, y), values), "infer", {})
    (low,) = kernels_of(program, replace(WIDE, streams=True, overlaps=False))
    kernel = low.scheduled[0].kernel
    verify(kernel)
    whole = shape[1] % 64 == 0 and shape[1] * (4 if results == 1 else 1) >= 1 << 10
    assert bool(streamed(kernel)) == bool(kernel.locals) == whole
    rng = np.random.default_rng(3)
    given = [
        np.zeros(b.size, b.dtype.np) if b.written else rng.standard_normal(b.size).astype(b.dtype.np)
        for b in kernel.params
    ]
    wanted = [a.copy() for a in given]
    run(low.naive, wanted)
    found = [a.copy() for a in given]
    run(kernel, found)
    written = [k for k, b in enumerate(kernel.params) if b.written]
    for k in written:
        np.testing.assert_array_equal(found[k], wanted[k])
    plain = replace(kernel, body=tuple(without_gathering(s) for s in kernel.body if isinstance(s, For)))
    assert not {s.buffer for s in statements_of(plain.body) if isinstance(s, Load | Store)} & {
        b.name for b in kernel.locals
    }
    verify(plain)
    at_once = [a.copy() for a in given]
    run(plain, at_once)
    for k in written:
        np.testing.assert_array_equal(at_once[k], wanted[k])
    host = jit.host_target()
    if not host.streams or host.vector_bytes < WIDE.vector_bytes:
        return
    (other,) = kernels_of(program, replace(host, overlaps=True))
    (low,) = kernels_of(program, replace(host, overlaps=False))
    code, reference = (Native(one.scheduled[0].kernel, host) for one in (low, other))
    for offset in (0, 16):
        mine, theirs = (
            [aligned_copy(np.concatenate([np.zeros(offset, np.uint8), a.view(np.uint8)]))[offset:] for a in given]
            for _ in range(2)
        )
        assert code.run(mine) == reference.run(theirs) == 0
        for k in written:
            np.testing.assert_array_equal(mine[k], theirs[k])
        if results == 1:
            over = next(k for k, b in enumerate(kernel.params) if not b.written and b.size == shape[0] * shape[1])
            mine[written[0]] = mine[over]
            assert code.run(mine) == 0
            np.testing.assert_array_equal(mine[over], theirs[written[0]])


def test_what_is_read_is_not_gathered() -> None:
    index = variable("d0")
    load, store = Load("v1", "p0", index, float32), Store("p0", index, "v1")
    params = (Buffer("p0", float32, 64, Space.GLOBAL, written=True),)
    for body in ((load, store), (store, store)):
        kernel = Kernel(params, (), (For(Loop("d0", 64), body),))
        with pytest.raises(ValueError, match="gather d0"):
            apply(kernel, [Gather("d0", ("p0",))])


def test_two_lines_go_past_the_caches_at_once() -> None:
    """Of functions that take some time: what takes none, or stays in the caches, has lanes as ever."""
    g = sg.Graph()
    able = replace(WIDE, streams=True)

    def lanes(make: Callable[[Node], Node], count: int) -> int:
        x = g.input(f"x{count}{len(g.nodes)}", (count,))
        (low,) = kernels_of(optimize(Program(g, (x,), (make(x),), ()), "infer", {}), able)
        return next(f.loop.lanes for f in loops_of(low.scheduled[0].kernel.body) if f.loop.bind is Bind.VECTOR)

    large = STREAMED_BYTES // 4
    assert [lanes(sg.exp, large), lanes(sg.exp, large // 2), lanes(sg.negative, large)] == [32, 16, 16]


def test_rows_that_do_not_start_with_lines_do_not() -> None:
    able = replace(WIDE, streams=True)
    assert not streamed(scheduled("rows", able, STREAMED_BYTES // 4 // 1000, 1001))


@pytest.mark.parametrize("width", [64, 32, 16])
@pytest.mark.parametrize("name", ["map", "rows"])
def test_results_are_the_same_wherever_they_stand(name: str, width: int) -> None:
    """At the start of a line, elsewhere, and over what is read."""
    if not jit.host_target().streams or width > jit.host_target().vector_bytes:
        pytest.skip("for machines with such stores and vectors this wide")
    target = jit.host_target(width)
    plain = scheduled(name, target)
    kernel = apply(plain, [Stream("p1")])
    assert streamed(kernel)
    verify(kernel)
    code = Native(kernel, target)
    values = np.random.default_rng(1).standard_normal(ROWS * COLUMNS).astype(np.float32)
    wanted = np.zeros_like(values)
    assert Native(plain, target).run([values, wanted]) == 0
    interpreted = np.zeros_like(values)
    run(kernel, [values.copy(), interpreted])
    np.testing.assert_allclose(interpreted, wanted, rtol=1e-6)
    for offset in (0, 4, 16, 64):
        memory = aligned_copy(np.zeros(values.nbytes + 64, np.uint8))[offset:]
        result = memory[: values.nbytes].view(np.float32)
        assert code.run([values, result]) == 0
        np.testing.assert_array_equal(result, wanted)
    if name == "map":
        both = aligned_copy(values)
        assert code.run([both, both]) == 0
        np.testing.assert_array_equal(both, wanted)


def test_outputs_start_with_lines() -> None:
    g = sg.Graph()
    x = g.input("x", (1 << 10, 1 << 10))
    f = sg.compile([x], sg.exp(x), threads=1)
    value = np.ones((1 << 10, 1 << 10), np.float32)
    held = [f(value) for _ in range(4)]
    assert {array.ctypes.data % 64 for array in held} == {0}


def test_stores_of_single_elements_are_refused() -> None:
    index = variable("d0")
    store = Store("p1", index, "v1", past_caches=True)
    params = (Buffer("p0", float32, 64, Space.GLOBAL), Buffer("p1", float32, 64, Space.GLOBAL, written=True))
    loop = Loop("d0", 64, 0, Bind.PARALLEL)
    with pytest.raises(CompileError, match="whole aligned vectors"):
        verify(Kernel(params, (), (For(loop, (Load("v1", "p0", index, float32), store)),)))


@pytest.mark.parametrize("name", ["alone", "beside", "kept"])
def test_what_is_turned_from_memory_to_memory_is_read_along_its_rows(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codegen.stream.STREAMED_BYTES", 1 << 10)
    g = sg.Graph()
    x, y = g.input("x", (144, 37)), g.input("y", (37, 144))
    value = {"alone": x.T + 1, "beside": x.T * 2 + y, "kept": (x.T * y + x.T - y) * (y - x.T) + y * y}[name]
    able = replace(WIDE, streams=True, l2=1 << 10)
    (low,) = kernels_of(optimize(Program(g, (x, y), (value,), ()), "infer", {}), able)
    kernel = low.scheduled[0].kernel
    verify(kernel)
    assert streamed(kernel)
    fetched = {s.buffer for s in statements_of(kernel.body) if isinstance(s, Fetch)}
    assert len(fetched) == (1 if name == "alone" else 2)
    loops = [f.loop.name for f in loops_of(kernel.body)]
    assert loops.index("d1.0") < loops.index("d0.0")
    rng = np.random.default_rng(2)
    given = [
        np.zeros(b.size, np.float32) if b.written else rng.standard_normal(b.size).astype(np.float32)
        for b in kernel.params
    ]
    wanted = [a.copy() for a in given]
    run(low.naive, wanted)
    found = [a.copy() for a in given]
    run(kernel, found)
    np.testing.assert_array_equal(found[-1], wanted[-1])
    if jit.host_target().vector_bytes == able.vector_bytes:
        native = [aligned_copy(a) for a in given]
        assert Native(kernel, jit.host_target()).run(native) == 0
        np.testing.assert_array_equal(native[-1], wanted[-1])


def test_long_padded_rows_are_gathered_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are written out where a whole row has few, not where few pages of many vectors make up a row."""
    monkeypatch.setattr("codegen.stream.STREAMED_BYTES", 1 << 10)
    g = sg.Graph()
    x = g.input("x", (70, 3000))
    program = optimize(Program(g, (x,), (sg.exp(sg.pad(x, ((0, 0), (0, 72)))),)), "infer", {})
    (low,) = kernels_of(program, replace(WIDE, streams=True, overlaps=False))
    kernel = low.scheduled[0].kernel
    assert kernel.locals
    assert not [f for f in loops_of(kernel.body) if f.loop.bind is Bind.UNROLL]
