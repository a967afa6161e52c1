# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
"""Loop programs: what the verifier refuses, and that naive kernel, schedule and machine code mean the same."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import CASES, EXACT, NARROW, TYPED, WIDE, Lowered, Native, kernels_of, program_of, sample

import symgrad as sg
from codegen import jit, schedule_contract, schedule_cpu
from codegen.affine import ZERO, Affine, tile_quotient, tile_remainder, variable
from codegen.ahead import Ahead, SumAhead
from codegen.executable import value_name
from codegen.frame import frame_of
from codegen.interp import fma, fresh_arrays, run
from codegen.loop import (
    Accumulate,
    Bind,
    Body,
    Buffer,
    Fetch,
    Finish,
    For,
    Index,
    Init,
    Kernel,
    Let,
    Load,
    Loop,
    Space,
    Store,
    Within,
    loops_of,
    statements_of,
)
from codegen.loop_print import kernel_text
from codegen.loop_verify import highest, verify
from codegen.steps import Split, Step, WriteOut, apply
from codegen.target import Target
from codegen.tiling import choice_by_rules
from symgrad.errors import CompileError
from symgrad.opdef import OPS, Kind
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.record import replace
from symgrad.storage import Literal
from symgrad.types import bool_, float32, float64, int32, int64

ROWS = [(name, dtype) for name in CASES for dtype in ((float32, float64) if name in TYPED else (float32,))]


def reduces(group) -> bool:
    return any(n.op.kind in (Kind.REDUCE, Kind.CONTRACT) for n in group.nodes)


def assert_close(got, wanted, exact: bool, label: str) -> None:
    if exact or got.dtype.kind != "f":
        np.testing.assert_array_equal(got, wanted, err_msg=label)
        return
    tolerance = 40 * np.finfo(got.dtype).eps
    np.testing.assert_allclose(
        got, wanted, rtol=tolerance, atol=tolerance * (1 + float(np.abs(wanted).max(initial=0))), err_msg=label
    )


def run_all(parts, arrays, execute) -> dict:
    """Run the scheduled kernels of a group over arrays by parameter name."""
    memory = dict(arrays)
    for part in parts:
        for buffer, fresh in zip(part.kernel.params, fresh_arrays(part.kernel.params), strict=True):
            memory.setdefault(buffer.name, fresh)
        execute(part.kernel, [memory[b.name] for b in part.kernel.params])
    return memory


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=lambda t: t.name)
@pytest.mark.parametrize(("name", "dtype"), ROWS, ids=str)
def test_schedules_keep_the_meaning(name: str, dtype, target) -> None:
    """Naive and scheduled kernels agree: bit by bit where nothing is reduced, whatever order the units run in."""
    generator = np.random.default_rng(7)
    program = program_of(name, dtype)
    values = {value_name(n): sample(n, generator).ravel() for n in program.inputs}
    values |= {value_name(n): program.graph.storage[n.attrs[0]].array.ravel() for n in program.states}
    values |= {value_name(n): n.attrs[0].array.ravel() for n in program.nodes if n.op.name == "const" and n.ndim}
    for low in kernels_of(program, target):
        verify(low.naive)
        names = [value_name(n) for n in low.params]
        fresh = fresh_arrays(low.naive.params)
        naive = [f if b.written else values[n].copy() for n, b, f in zip(names, low.naive.params, fresh, strict=True)]
        given_ = {b.name: a.copy() for b, a in zip(low.naive.params, naive, strict=True)}
        run(low.naive, naive)
        for part in low.scheduled:
            verify(part.kernel)
        forward = run_all(low.scheduled, {k: a.copy() for k, a in given_.items()}, run)
        backward = run_all(
            low.scheduled, {k: a.copy() for k, a in given_.items()}, lambda k, a: run(k, a, backward=True)
        )
        exact = not reduces(low.group) or dtype.kind != "f"
        for value, buffer, array in zip(names, low.naive.params, naive, strict=True):
            assert_close(forward[buffer.name], array, exact, value)
            np.testing.assert_array_equal(forward[buffer.name], backward[buffer.name], err_msg=value)
            values[value] = array
    wanted = [
        sg.evaluate(o, {i: values[value_name(i)].reshape([int(d) for d in i.shape]) for i in program.inputs})
        for o in program.outputs
    ]
    for output, reference in zip(program.outputs, wanted, strict=True):
        if value_name(output) in values:
            assert_close(values[value_name(output)].reshape(reference.shape), reference, name in EXACT, name)


def vector_widths() -> list[int]:
    widest = jit.host_target().vector_bytes
    return [w for w in (16, 32, 64) if w <= widest]


@pytest.mark.parametrize("width", vector_widths())
@pytest.mark.parametrize(("name", "dtype"), ROWS, ids=str)
def test_machine_code_agrees_with_the_interpreter(name: str, dtype, width: int) -> None:
    """Bit by bit where all operations are exact or fused multiply-adds, reductions included."""
    target = jit.host_target(width)
    generator = np.random.default_rng(3)
    program = program_of(name, dtype)
    values = {value_name(n): sample(n, generator).ravel() for n in program.inputs}
    values |= {value_name(n): program.graph.storage[n.attrs[0]].array.ravel() for n in program.states}
    values |= {value_name(n): n.attrs[0].array.ravel() for n in program.nodes if n.op.name == "const" and n.ndim}
    for low in kernels_of(program, target):
        fresh = fresh_arrays(low.naive.params)
        buffers = {b.name: value_name(n) for b, n in zip(low.naive.params, low.params, strict=True)}
        given_ = {
            b.name: f if b.written else values[buffers[b.name]] for b, f in zip(low.naive.params, fresh, strict=True)
        }
        wanted = run_all(low.scheduled, {k: a.copy() for k, a in given_.items()}, run)

        def execute(kernel: Kernel, arrays: list) -> None:
            assert Native(kernel, target).run(arrays) == 0

        got = run_all(low.scheduled, {k: a.copy() for k, a in given_.items()}, execute)
        exact = not approximates(part.kernel for part in low.scheduled)
        for buffer, array in wanted.items():
            assert_close(got[buffer], array, exact, f"{buffer} of {[n.op.name for n in low.group.nodes]}")
        values |= {buffers[b]: wanted[b] for b in buffers}


# Our own polynomials, within 2 units of the last place.
APPROXIMATE = frozenset(("exp", "log", "log1p", "expm1", "sin", "cos", "tan", "tanh", "sigmoid", "erf", "power"))


def approximates(kernels) -> bool:
    def any_in(body: Body) -> bool:
        return any(any_in(s.body) if isinstance(s, For) else isinstance(s, Let) and s.op in APPROXIMATE for s in body)

    return any(any_in(k.body) for k in kernels)


@pytest.mark.parametrize("name", ["softmax", "layer_norm"])
def test_fetching_ahead_changes_nothing(name: str) -> None:
    """All rows but the first are fetched while the one before is worked on, and one beyond the last."""
    target = jit.host_target()
    (low,) = kernels_of(program_of(name), target)
    kernel = low.scheduled[0].kernel
    passes = [f.loop.name for f in loops_of(kernel.body) if f.loop.bind is Bind.VECTOR]
    ahead = apply(kernel, [Ahead(passes[-1], "d0", least=0)])
    verify(ahead)
    row = program_of(name).outputs[0].shape[1]
    fetched = [line for line in kernel_text(ahead).splitlines() if "fetch p0" in line]
    assert fetched
    assert all(line.endswith(f" + {row}]") for line in fetched)
    generator = np.random.default_rng(5)
    arrays = [generator.standard_normal(b.size).astype(b.dtype.np) for b in kernel.params]
    expected, interpreted, native = ([a.copy() for a in arrays] for _ in range(3))
    run(kernel, expected)
    run(ahead, interpreted)
    assert Native(ahead, target).run(native) == 0
    for wanted, same, close in zip(expected, interpreted, native, strict=True):
        np.testing.assert_array_equal(same, wanted)
        assert_close(close, wanted, exact=False, label=name)


def test_what_is_fetched_ahead() -> None:
    """Rows that the processor does not foresee, of arrays that do not stay in its caches."""

    def steps(rows: int, columns: int) -> list[Step]:
        g = sg.Graph()
        program = Program(g, (x := g.input("x", (rows, columns)),), (sg.nn.softmax(x),))
        program = optimize(program, "infer", {})
        return [s for low in kernels_of(program, WIDE) for part in low.scheduled for s in part.steps]

    assert Ahead("r1_1.1", "d0", WIDE.l2) in steps(1000, 1024)
    assert not any(isinstance(s, Ahead) for s in steps(100_000, 100))


def accesses(body: Body, values: dict[str, int]) -> Iterator[tuple[Fetch | Load, int]]:
    """The fetches and loads that a body executes, in order, and where."""
    for stmt in body:
        if isinstance(stmt, For):
            for at in range(stmt.loop.start, stmt.loop.start + stmt.loop.extent):
                yield from accesses(stmt.body, {**values, stmt.loop.name: at})
        elif isinstance(stmt, Fetch | Load):
            yield stmt, stmt.index.const + sum(factor * values[name] for name, factor in stmt.index.terms)


def only(body: Body, buffer: str) -> Body:
    """What reads or fetches a buffer, with the loops around."""
    inner = (For(s.loop, only(s.body, buffer)) if isinstance(s, For) else s for s in body)
    return tuple(s for s in inner if (s.body if isinstance(s, For) else getattr(s, "buffer", "") == buffer))


def lines_read(kernel: Kernel, buffer: str, line: int = 16) -> tuple[set[int], set[int]]:
    """The lines, of so many elements, that a kernel reads of a buffer, and those that were not fetched before."""
    read: set[int] = set()
    unforeseen: set[int] = set()
    fetched: set[int] = set()
    for stmt, at in accesses(only(kernel.body, buffer), {}):
        if isinstance(stmt, Fetch):
            fetched.add(at // line)
        else:
            read.add(at // line)
            unforeseen |= {at // line} - fetched
    return read, unforeseen


def check_product(
    low: Lowered, target: Target, a: tuple[int, ...], b: tuple[int, ...], transposed: bool = False
) -> None:
    """The kernels of a product of arrays of these shapes, the first transposed or not, are right for whole numbers."""
    generator = np.random.default_rng(5)
    dtype = low.naive.params[0].dtype.np
    x, y = (generator.integers(-4, 5, shape).astype(dtype) for shape in (a, b))
    memory = run_all(
        low.scheduled,
        {"p0": x.ravel(), "p1": y.ravel()},
        lambda kernel, arrays: Native(kernel, target).run(arrays),
    )
    np.testing.assert_array_equal(memory["p2"], ((x.T if transposed else x) @ y).ravel())


@pytest.mark.parametrize("near", [False, True])
def test_the_next_lines_that_meet_one_row_are_fetched(near: bool) -> None:
    """Not where they are in a third cache that is near."""
    size = 64 * 2048
    target = replace(jit.host_target(), near=4 * size if near else 4 * size - 1)
    g = sg.Graph()
    x, y = g.input("x", (1, 64)), g.input("y", (64, 2048))
    (low,) = kernels_of(Program(g, (x, y), (x @ y,)), target)
    read, unforeseen = lines_read(low.scheduled[0].kernel, "p1")
    assert read == set(range(size // 16))
    assert unforeseen == (read if near else set(range(4 * 2048 // 16)))


@pytest.mark.parametrize("form", ["columns in panels", "rows shared", "long sums"])
def test_the_next_strip_of_rows_is_fetched(form: str) -> None:
    """Every line of every row but those of the first strip, before it is read; that changes no result."""
    target = replace(jit.host_target(), l2=1 << 12)
    rows, depth, columns = {"columns in panels": (40, 64, 600), "rows shared": (200, 64, 40)}.get(form, (40, 1024, 40))
    g = sg.Graph()
    x, y = g.input("x", (rows, depth)), g.input("y", (depth, columns))
    (low,) = kernels_of(Program(g, (x, y), (x @ y,)), target)
    kernel = low.scheduled[-1].kernel
    verify(kernel)
    read, unforeseen = lines_read(kernel, "p0")
    assert len(read) == rows * depth // 16
    strip = max(f.loop.extent for f in loops_of(kernel.body) if f.loop.name == "d0.1")
    assert unforeseen == set(range(strip * depth // 16))

    check_product(low, target, (rows, depth), (depth, columns))


def test_columns_that_are_read_where_they_are_are_fetched() -> None:
    """But for the first terms of a sum, what a tile reads is fetched a part of the sum before; no result changes."""
    target = replace(jit.host_target(), l2=1 << 16)
    batch, rows, depth, columns = 9, 48, 64, 320
    g = sg.Graph()
    x, y = g.input("x", (batch, rows, depth)), g.input("y", (batch, depth, columns))
    (low,) = kernels_of(Program(g, (x, y), (x @ y,)), target)
    assert len(low.scheduled) == 1, "nothing is packed"
    kernel = low.scheduled[-1].kernel
    verify(kernel)
    ahead = next(s for s in low.scheduled[-1].steps if isinstance(s, SumAhead))
    assert 1 < ahead.distance <= depth // 4
    seen: set[int] = set()
    unforeseen: set[int] = set()
    for stmt, at in accesses(only(kernel.body, kernel.params[1].name), {}):
        if isinstance(stmt, Load) and at // 16 not in seen:
            unforeseen.add(at)
        seen.add(at // 16)
    # What is fetched behind the end of a matrix are the first rows of the next one.
    assert sorted(unforeseen) == list(range(0, ahead.distance * columns, 16))

    check_product(low, target, (batch, rows, depth), (batch, depth, columns))


@pytest.mark.parametrize("dtype", [sg.float32, sg.float64], ids=str)
def test_packed_rows_are_fetched(dtype: sg.DType) -> None:
    """But for the first terms of the first tile, every line of packed rows is fetched before it is read."""
    target = replace(jit.host_target(), l2=1 << 12)
    rows, depth, columns = 288, 256, 400
    g = sg.Graph()
    x, y = g.input("x", (depth, rows), dtype), g.input("y", (depth, columns), dtype)
    (low,) = kernels_of(Program(g, (x, y), (x.T @ y,)), target)
    kernel = low.scheduled[-1].kernel
    verify(kernel)
    ahead = next(s for s in low.scheduled[-1].steps if isinstance(s, SumAhead) and s.array == "packed_rows")
    tile = max(f.loop.extent for f in loops_of(kernel.body) if f.loop.name == "d0.1")
    line = 64 // dtype.itemsize
    _, unforeseen = lines_read(kernel, "packed_rows", line)
    # Where the tile of columns is another one, the same rows come again: they are fetched by then.
    assert unforeseen
    assert max(unforeseen) <= ahead.distance * tile // line

    check_product(low, target, (depth, rows), (depth, columns), transposed=True)


def test_register_tiles_are_wide_where_that_spares_instructions() -> None:
    """Six rows of four vectors take 34 instructions for 24 multiply-adds, fourteen of two 44 for 28."""

    def tile(rows: int, depth: int, columns: int) -> tuple[int, int]:
        g = sg.Graph()
        x, y = g.input("x", (rows, depth)), g.input("y", (depth, columns))
        (low,) = kernels_of(Program(g, (x, y), (x @ y,)), WIDE)
        frame = frame_of(low.naive, WIDE)
        assert frame is not None
        choice = choice_by_rules(frame)
        return choice.row_tile, choice.vectors

    assert tile(1024, 1024, 1024) == (6, 4)
    assert tile(32, 768, 3072) == (8, 3)  # no strip is lower than the others
    assert tile(256, 256, 256) == (14, 2)  # four tiles of four vectors would not do for all workers
    assert tile(64, 64, 64) == (6, 4)  # which do not come for so little
    assert tile(2, 64, 256) == (2, 8)


@pytest.mark.parametrize("shape", [(30, 64, 70), (28, 77, 32), (5, 257, 48), (40, 1100, 33), (3, 6, 64)])
def test_the_same_bits_however_sums_are_written_out(shape: tuple[int, int, int], monkeypatch) -> None:
    """Terms are added in one order, whether counted one by one or not, and whether each vector reads them or not."""
    rows, depth, columns = shape
    target = jit.host_target()
    g = sg.Graph()
    x, y = g.input("x", (rows, depth)), g.input("y", (depth, columns))
    program = Program(g, (x, y), (x @ y,))
    generator = np.random.default_rng(6)
    a, b = (generator.standard_normal(n.shape, dtype=np.float32) for n in (x, y))

    def product(target: Target) -> tuple[bytes, int]:
        (low,) = kernels_of(program, target)
        memory = run_all(
            low.scheduled,
            {"p0": a.ravel(), "p1": b.ravel()},
            lambda kernel, arrays: Native(kernel, target).run(arrays),
        )
        return memory["p2"].tobytes(), sum(isinstance(step, WriteOut) for step in low.scheduled[-1].steps)

    bits, written_out = product(target)
    assert product(replace(target, spreads=False))[0] == bits
    monkeypatch.setattr(schedule_contract, "MOST_TERMS", 1)
    counted, left = product(target)
    assert counted == bits
    assert left < written_out or depth % 2


def test_what_is_packed() -> None:
    """Columns most vectors of which cross lines, and the more often rows are read across, the fewer of them."""
    target = replace(WIDE, l2=1 << 20)

    def packed(*outputs: sg.Node) -> tuple[bool, bool]:
        program = optimize(Program(g, tuple(g.inputs), outputs), "infer", {})
        (low,) = kernels_of(program, target)
        frame = frame_of(low.naive, target)
        assert frame is not None
        choice = choice_by_rules(frame)
        return choice.pack_rows, choice.pack_columns

    for width, columns in ((128, False), (100, True)):
        g = sg.Graph()
        assert packed(g.input("x", (512, 128)) @ g.input("y", (128, width))) == (False, columns)
    for rows, width, packs in ((512, 512, False), (520, 512, True), (512, 1024, True), (256, 1024, False)):
        g = sg.Graph()
        assert packed(g.input("x", (256, rows)).T @ g.input("y", (256, width)))[0] == packs


@pytest.mark.parametrize(("rows", "beside"), [(68, 4), (66, 3), (70, 2), (67, None)])
def test_rows_side_by_side(rows: int, beside: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as divide the rows, with the bits that each has alone."""
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((rows, 100)), rng.standard_normal(100)

    def results(beside: int | None) -> list[np.ndarray]:
        out: list[np.ndarray] = []
        for dtype in (sg.float32, sg.float64):
            g = sg.Graph()
            a, b = g.input("a", (rows, 100), dtype), g.input("b", (100,), dtype)
            for one in (a @ b, sg.sum(a, 1), sg.max(a, 1), sg.sum((a - b) ** 2, 1)):
                function = sg.compile([a, b], one)
                (low,) = kernels_of(function.program, WIDE)
                splits = [s.factor for s in low.scheduled[0].steps if isinstance(s, Split) and s.loop == "d0"]
                assert splits == ([beside] if beside else [])
                out.append(function(x.astype(dtype.np), y.astype(dtype.np)))
        return out

    mine = results(beside)
    monkeypatch.setattr(schedule_cpu, "ROWS_BESIDE", ())
    for one, alone in zip(mine, results(None), strict=True):
        np.testing.assert_array_equal(one, alone)


def test_maps_fetch_ahead_what_is_far() -> None:
    def fetched(rows: int) -> list[Fetch]:
        g = sg.Graph()
        program = Program(g, (x := g.input("x", (rows, 1024)),), (sg.exp(x),))
        (low,) = kernels_of(optimize(program, "infer", {}), WIDE)
        verify(low.scheduled[0].kernel)
        return [s for s in statements_of(low.scheduled[0].kernel.body) if isinstance(s, Fetch)]

    (fetch,) = fetched(1024)
    assert fetch.index.const == 1024
    assert not fetched(128)


# The verifier


def copy_kernel() -> Kernel:
    """Four lanes of a vector loop over eight elements, read, doubled and written."""
    params = (Buffer("p0", float32, 8, Space.GLOBAL), Buffer("p1", float32, 8, Space.GLOBAL, written=True))
    index = variable("d0") * 4 + variable("d1")
    body: Body = (Load("v1", "p0", index, float32), Let("v2", "add", ("v1", "v1"), float32), Store("p1", index, "v2"))
    lanes = For(Loop("d1", 4, 0, Bind.VECTOR, 4), body)
    return Kernel(params, (), (For(Loop("d0", 2, 0, Bind.PARALLEL), (lanes,)),))


def sum_kernel() -> Kernel:
    """A sum over the lanes of a vector loop."""
    params = (Buffer("p0", float32, 8, Space.GLOBAL), Buffer("p1", float32, 2, Space.GLOBAL, written=True))
    inner = For(
        Loop("r1", 4, 0, Bind.VECTOR, 4),
        (Load("v1", "p0", variable("d0") * 4 + variable("r1"), float32), Accumulate("a1", ZERO, "sum", ("v1",))),
    )
    body: Body = (
        Init("a1", ZERO, "sum"),
        inner,
        Finish("v2", "a1", ZERO, "sum", float32),
        Store("p1", variable("d0"), "v2"),
    )
    local = (Buffer("a1", float32, 1, Space.REG),)
    return Kernel(params, local, (For(Loop("d0", 2, 0, Bind.PARALLEL), body),))


def turned_kernel(*, fill: int = 4, along: int = 4, write: int = 4, read: int = 4, bind: Bind = Bind.UNROLL) -> Kernel:
    """Blocks of 4 by 4 elements turned in registers."""
    params = (Buffer("p0", float32, 32, Space.GLOBAL), Buffer("p1", float32, 32, Space.GLOBAL, written=True))
    place = variable("d0") * 16 + variable("d1") * 4 + variable("d2")
    store = Store("t", variable("d1") * write + variable("d2") * (5 - write), "v1")
    rows = For(Loop("d2", along, 0, Bind.VECTOR, 4), (Load("v1", "p0", place, float32), store))
    place = variable("d0") * 16 + variable("d3") * 4 + variable("d4")
    load = Load("v2", "t", variable("d4") * read + variable("d3") * (5 - read), float32)
    columns = For(Loop("d4", 4, 0, Bind.VECTOR, 4), (load, Store("p1", place, "v2")))
    body = (For(Loop("d1", fill, 0, Bind.UNROLL), (rows,)), For(Loop("d3", 4, 0, bind), (columns,)))
    return Kernel(params, (Buffer("t", float32, 16, Space.TILE),), (For(Loop("d0", 2, 0, Bind.PARALLEL), body),))


def with_body(kernel: Kernel, *body) -> Kernel:
    """The kernel with another body of its innermost loop."""
    outer = kernel.body[0]
    assert isinstance(outer, For)
    inner = outer.body[0]
    if isinstance(inner, For):
        return replace(kernel, body=(For(outer.loop, (For(inner.loop, tuple(body)),)),))
    return replace(kernel, body=(For(outer.loop, tuple(body)),))


I, K = variable("d0") * 4 + variable("d1"), copy_kernel()
LOAD, STORE = Load("v1", "p0", I, float32), Store("p1", I, "v1")
PARALLEL, LANES = Loop("d0", 2, 0, Bind.PARALLEL), Loop("d1", 4, 0, Bind.VECTOR, 4)
SHARED, LOAD2, STORE2 = Loop("d1", 4, 0, Bind.SHARED), Load("v2", "p0", ZERO, float32), Store("p1", ZERO, "v2")
SUM = sum_kernel()
_outer = SUM.body[0]
assert isinstance(_outer, For)
INIT, INNER, FINISH, SUM_STORE = _outer.body

BROKEN = {
    "name not defined": (with_body(K, Store("p1", I, "v9")), "v9 is not defined here"),
    "name used before": (with_body(K, Let("v2", "add", ("v1", "v1"), float32), LOAD, STORE), "v1 is not defined"),
    "name out of scope": (
        replace(K, body=(For(PARALLEL, (For(LANES, (LOAD,)), For(replace(LANES, name="d2"), (STORE,)))),)),
        "v1 is not defined here",
    ),
    "name defined twice": (with_body(K, LOAD, LOAD, STORE), "v1 is defined already"),
    "unknown buffer": (with_body(K, Load("v1", "p7", I, float32), STORE), "there is no buffer p7"),
    "unknown operator": (with_body(K, LOAD, Let("v2", "frobnicate", ("v1",), float32), STORE), "no pointwise operator"),
    "operand types": (
        with_body(K, LOAD, Index("v2", I, int64), Let("v3", "add", ("v1", "v2"), float32), STORE),
        "data types float32 and int64 differ",
    ),
    "result type": (with_body(K, LOAD, Let("v2", "less", ("v1", "v1"), float32), STORE), "the result is bool"),
    "load type": (with_body(K, Load("v1", "p0", I, float64), STORE), "p0 holds float32"),
    "store type": (with_body(K, Index("v1", I, int32), STORE), "p1 holds float32, v1 is int32"),
    "constant type": (
        with_body(K, Let("v1", "const", (), float32, (("value", Literal(np.array(1.0))),)), STORE),
        "const",
    ),
    "write to an input": (with_body(K, LOAD, STORE, Store("p0", I, "v1")), "p0 is only read"),
    "nothing written": (with_body(K, LOAD), "nothing is stored"),
    "read beyond": (with_body(K, Load("v1", "p0", I + 1, float32), STORE), "runs from 1 to 8, and p0 has 8"),
    "read before": (with_body(K, Load("v1", "p0", I + -1, float32), STORE), "runs from -1 to 6"),
    "guard too loose": (with_body(K, Load("v1", "p0", I + -2, float32, (I + -1,)), STORE), "runs from -1 to 5"),
    "write beyond": (with_body(K, LOAD, Store("p1", I * 2, "v1")), "runs from 0 to 14"),
    "indirect by a float": (with_body(K, LOAD, Load("v2", "p0", variable("v1"), float32), STORE), "must be an integer"),
    "value per lane at one place": (with_body(K, LOAD, Store("p1", variable("d0"), "v1")), "a value per lane"),
    "vector in vector": (
        with_body(K, For(Loop("d2", 1, 0, Bind.VECTOR, 4), (LOAD, STORE))),
        "inside the vector loop d1",
    ),
    "parallel inside": (
        replace(K, body=(For(PARALLEL, (For(Loop("d1", 4, 0, Bind.PARALLEL), (LOAD, STORE)),)),)),
        "must be outermost",
    ),
    "shared elsewhere": (
        replace(K, body=(For(PARALLEL, (For(Loop("d2", 1), (For(SHARED, (LOAD, STORE)),)),)),)),
        "a shared loop must stand directly in a parallel or shared one",
    ),
    "beside shared loops": (
        replace(K, body=(For(PARALLEL, (For(SHARED, (LOAD, STORE)), For(Loop("d2", 1), ()))),)),
        "only loops can stand beside shared ones, and only before them",
    ),
    "values before shared loops": (
        replace(K, body=(For(PARALLEL, (Index("v2", ZERO, int64), For(SHARED, (LOAD, STORE)))),)),
        "only loops can stand beside shared ones, and only before them",
    ),
    "stored before shared loops": (
        replace(
            K,
            body=(
                For(PARALLEL, (For(Loop("d2", 1), (LOAD2, STORE2)), For(SHARED, (LOAD, STORE)))),
            ),
        ),
        "it may store to their own memory only",
    ),
    "shared loops with a gap": (
        replace(K, body=(For(PARALLEL, (For(replace(SHARED, extent=3, start=1), (LOAD, STORE)),)),)),
        "shared loops must run on where the one before ends",
    ),
    "scratch of another unit": (
        replace(
            K,
            locals=(Buffer("s1", float32, 4, Space.SCRATCH),),
            body=(
                For(
                    PARALLEL,
                    (
                        For(replace(SHARED, extent=2), (LOAD, Store("s1", ZERO, "v1"))),
                        For(replace(SHARED, extent=2, start=2), (Load("v1", "s1", ZERO, float32), STORE)),
                    ),
                ),
            ),
        ),
        "nothing was stored to s1",
    ),
    "not parallel": (replace(K, body=(*K.body, For(Loop("d2", 1), ()))), "must be parallel loops"),
    "few lanes": (
        replace(K, body=(For(PARALLEL, (For(replace(LANES, lanes=2), (LOAD, STORE)),)),)),
        "2 lanes for 4 values",
    ),
    "odd lanes": (
        replace(K, body=(For(PARALLEL, (For(replace(LANES, lanes=6), (LOAD, STORE)),)),)),
        "6 lanes for 4 values",
    ),
    "lanes of a serial loop": (
        replace(K, body=(For(PARALLEL, (For(replace(LANES, bind=Bind.SERIAL), (LOAD, STORE)),)),)),
        "only a vector loop",
    ),
    "one name for two loops": (
        replace(K, body=(For(PARALLEL, (For(replace(LANES, name="d0"), (LOAD, STORE)),)),)),
        "something outside",
    ),
    "tile left": (with_body(K, Load("v1", "p0", tile_quotient("d1", 2), float32), STORE), "tile variable d1//2"),
    "tile place left": (with_body(K, Load("v1", "p0", tile_remainder("d1", 2), float32), STORE), "tile variable d1%2"),
    "no guard": (with_body(K, LOAD, Within("v2", ()), STORE), "there is no guard"),
    "scratch unwritten": (
        replace(
            with_body(K, Load("v1", "s1", variable("d1"), float32), STORE),
            locals=(Buffer("s1", float32, 4, Space.SCRATCH),),
        ),
        "nothing was stored to s1",
    ),
    "tile not filled": (turned_kernel(fill=2), "not all of column 0 was stored to t"),
    "tile column unfilled": (turned_kernel(along=3), "not all of column 3 was stored to t"),
    "tile read along rows": (turned_kernel(read=1), "the columns of t run along the lanes"),
    "tile filled along columns": (turned_kernel(write=1), "the rows of t run along the lanes"),
    "tile in a loop": (turned_kernel(bind=Bind.SERIAL), "d3 is not written out"),
    "tile never filled": (turned_kernel(fill=0), "t was not stored in the loops around this"),
    "fetch of an accumulator": (with_body(SUM, INIT, INNER, Fetch("a1", ZERO), FINISH, SUM_STORE), "not in memory"),
    "fetch of nothing": (with_body(K, LOAD, Fetch("p7", I), STORE), "there is no buffer p7"),
    "no init": (with_body(SUM, INNER, FINISH, SUM_STORE), "not open"),
    "accumulate after finish": (
        with_body(SUM, INIT, INNER, FINISH, For(replace(LANES, name="r2"), (
            Load("v3", "p0", variable("r2"), float32), Accumulate("a1", ZERO, "sum", ("v3",)))), SUM_STORE),
        "not open",
    ),
    "finish twice": (
        with_body(SUM, INIT, INNER, FINISH, Finish("v3", "a1", ZERO, "sum", float32), SUM_STORE),
        "not open",
    ),
    "init twice": (with_body(SUM, INIT, INIT, INNER, FINISH, SUM_STORE), "open already"),
    "finish missing": (with_body(SUM, INIT, INNER, Let("v2", "const", (), float32, (
        ("value", Literal(np.array(1, np.float32))),)), SUM_STORE), "opens or finishes a1"),
    "finish in a loop": (
        with_body(SUM, INIT, INNER, For(Loop("e", 2), (FINISH, SUM_STORE))),
        "opens or finishes a1",
    ),
    "accumulator in memory": (with_body(SUM, Init("p1", ZERO, "sum")), "not an accumulator"),
    "load of an accumulator": (with_body(SUM, INIT, Load("v8", "a1", ZERO, float32)), "a1 is an accumulator"),
    "accumulator beyond": (with_body(SUM, Init("a1", Affine(1), "sum")), "a1 has 1 elements"),
    "accumulator not a register": (
        replace(
            with_body(SUM, For(Loop("e", 2), (Init("a1", variable("e"), "sum"),))),
            locals=(Buffer("a1", float32, 2, Space.REG),),
        ),
        "e is not written out",
    ),
    "unknown combination": (with_body(SUM, Init("a1", ZERO, "average")), "no combination average"),
    "few factors": (
        with_body(SUM, INIT, For(LANES, (Load("v1", "p0", variable("d1"), float32),
                                         Accumulate("a1", ZERO, "fma", ("v1",)))), FINISH, SUM_STORE),
        "fma takes 2 values",
    ),
    "place of an extreme": (
        with_body(SUM, INIT, For(LANES, (Load("v1", "p0", variable("d1"), float32),
                                         Accumulate("a1", ZERO, "argmax", ("v1", "v1")))), FINISH, SUM_STORE),
        "v1 is float32, wanted int64",
    ),
    "accumulated type": (
        with_body(SUM, INIT, For(LANES, (Index("v1", variable("d1"), int32),
                                         Accumulate("a1", ZERO, "sum", ("v1",)))), FINISH, SUM_STORE),
        "v1 is int32, wanted float32",
    ),
    "finished type": (
        with_body(SUM, INIT, INNER, Finish("v2", "a1", ZERO, "sum", bool_), SUM_STORE),
        "the result is float32",
    ),
    "gathered outside of lanes": (
        with_body(SUM, INIT, INNER, Load("v8", "p0", ZERO, float32), Accumulate("a1", ZERO, "sum", ("v8",)),
                  FINISH, SUM_STORE),
        "gathers over the lanes",
    ),
    "two buffers of one name": (replace(K, locals=(Buffer("p0", float32, 1, Space.REG),)), "two buffers"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_verify_refuses(what: str) -> None:
    kernel, message = BROKEN[what]
    with pytest.raises(CompileError, match="loop program") as caught:
        verify(kernel)
    assert message in str(caught.value)


def test_verify_accepts() -> None:
    verify(K)
    verify(SUM)
    verify(turned_kernel())
    naive = replace(K, body=(For(Loop("d0", 8), (Load("v1", "p0", tile_quotient("d0", 2) * 2 + tile_remainder("d0", 2),
                                                      float32), Store("p1", variable("d0"), "v1"))),))  # fmt: skip
    verify(naive)
    out = [np.zeros(8, np.float32), np.zeros(8, np.float32)]
    out[0][:] = range(8)
    run(naive, out)
    np.testing.assert_array_equal(out[1], out[0])


def test_verify_follows_guards() -> None:
    """Reading outside is well where the guards say that it does not happen, whatever loops they are split into."""
    index = I + -2
    verify(with_body(K, Load("v1", "p0", index, float32, (index,)), STORE))
    verify(with_body(K, Load("v1", "p0", I + 3, float32, (I * -1 + 4,)), STORE))


@given(st.data())
def test_guarded_bound_is_a_bound(data) -> None:
    names = ["a", "b", "c"]
    sizes = {n: data.draw(st.integers(1, 5)) for n in names}

    def affine() -> Affine:
        total = Affine(data.draw(st.integers(-6, 6)))
        for n in names:
            total = total + variable(n) * data.draw(st.integers(-4, 4))
        return total

    index, guards = affine(), [affine() for _ in range(data.draw(st.integers(0, 3)))]
    bound = highest(index, guards, {n: (0, d - 1) for n, d in sizes.items()})
    assert bound is not None
    for point in np.ndindex(*sizes.values()):
        at = {n: Affine(int(v)) for n, v in zip(names, point, strict=True)}
        if all(g.substitute(at).const >= 0 for g in guards):
            assert index.substitute(at).const <= bound


# The interpreter


def test_run_refuses_arrays_that_do_not_fit() -> None:
    with pytest.raises(CompileError, match=r"p0 is float32\[8\], got float64\[8\]"):
        run(K, [np.zeros(8), np.zeros(8, np.float32)])


def test_run_refuses_elements_outside() -> None:
    kernel, _ = BROKEN["read beyond"]
    with pytest.raises(IndexError, match="v1"):
        run(kernel, fresh_arrays(kernel.params))


def test_guarded_loads_show_when_used() -> None:
    kernel = with_body(K, Load("v1", "p0", I + -2, float32, (I + -2,)), STORE)
    arrays = [np.arange(8, dtype=np.float32), np.zeros(8, np.float32)]
    run(kernel, arrays)
    assert np.isnan(arrays[1][:2]).all()
    np.testing.assert_array_equal(arrays[1][2:], arrays[0][:6])


def test_lanes_fold_in_halves() -> None:
    """((x0 + x4) + (x2 + x6)) + ((x1 + x5) + (x3 + x7)): a sum in any other order has other bits."""
    params = (Buffer("p0", float32, 8, Space.GLOBAL), Buffer("p1", float32, 1, Space.GLOBAL, written=True))
    inner = (Load("v1", "p0", variable("r"), float32), Accumulate("a", ZERO, "sum", ("v1",)))
    body = (Init("a", ZERO, "sum"), For(Loop("r", 8, 0, Bind.VECTOR, 8), inner),
            Finish("v2", "a", ZERO, "sum", float32), Store("p1", ZERO, "v2"))  # fmt: skip
    kernel = Kernel(params, (Buffer("a", float32, 1, Space.REG),), (For(Loop("u", 1, 0, Bind.PARALLEL), body),))
    x = np.float32([1e8, 1, -1e8, 1, 3, -7, 1e8, 5e-3])
    out = np.zeros(1, np.float32)
    verify(kernel)
    run(kernel, [x, out])
    assert out[0] == ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True)


def exact_fma(a: float, b: float, c: float, dtype) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if dtype is np.float64:
        return float(exact)
    low = np.float32(float(exact))
    candidates = [low, np.nextafter(low, np.float32(np.inf)), np.nextafter(low, np.float32(-np.inf))]
    finite = [v for v in candidates if np.isfinite(v)]
    return min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))


@settings(max_examples=300)
@given(FLOATS, FLOATS, FLOATS)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    with np.errstate(all="ignore"):
        got = fma(*(np.float32([v]) for v in (a, b, c)))[0]
        wide = fma(*(np.float64([v]) for v in (a, b, c)))[0]
        plain = np.float64(a) * np.float64(b) + np.float64(c)
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        np.testing.assert_equal(float(wide), float(plain))
        np.testing.assert_equal(float(got), float(plain))
        return
    assert float(wide) == exact_fma(a, b, c, np.float64)
    if abs(plain) < 3e38:
        assert got == exact_fma(a, b, c, np.float32)


def test_fma_keeps_the_sign_of_zero() -> None:
    tiny, one = 5e-324, 1.0
    cases = [(0.0, one, -0.0), (-0.0, one, -0.0), (one, -one, one), (-tiny, 0.25, 0.0), (tiny, 0.25, -0.0)]
    signs = [math.copysign(1, v) for v in fma(*(np.float64(list(v)) for v in zip(*cases, strict=True)))]
    assert signs == [1, -1, 1, -1, 1]


def test_pointwise_names_have_a_reference() -> None:
    assert not [op.name for op in OPS.values() if op.kind is Kind.POINTWISE and op.ref is None]
