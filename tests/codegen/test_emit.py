"""The emitted text: nothing that changes rounding, nothing LLVM could miscompile, and an inner loop without spills."""

from __future__ import annotations

import re
from functools import cache

import pytest
from kernel_cases import CASES, NARROW, TYPED, WIDE, kernels_of, program_of

import symgrad as sg
from codegen import jit
from codegen.build import build
from codegen.emit import emit, module_text
from codegen.loop import Accumulate, Bind, Body, For, Kernel, Store, loops_of
from codegen.machine_code import KernelStore
from codegen.target import Target
from symgrad.errors import SymgradError
from symgrad.opdef import OPS, Kind
from symgrad.optimize import optimize
from symgrad.program import Program
from symgrad.types import DTYPES, DType, Type, bool_, float32, float64, int32, uint32

FAST_MATH = re.compile(r"\b(fast|nnan|ninf|nsz|arcp|contract|afn|reassoc|fpmath)\b")
POINTER_ARITHMETIC = re.compile(r"\b(ptrtoint|inttoptr)\b")
INTRINSIC = re.compile(r"@llvm\.([a-z.]+?)(?=\.(?:v\d+|p\d|[if]\d)|\()")
# Single instructions, or short exact sequences. Everything else LLVM would turn into a library call per lane.
ALLOWED = {
    "fma", "fabs", "copysign", "sqrt", "floor", "ceil", "trunc", "roundeven", "fptosi.sat", "fptoui.sat",
    "smax", "smin", "masked.load", "masked.store", "vector.reduce.or", "prefetch", "ctlz", "cttz", "fshl",
    "arithmetic.fence",
}  # fmt: skip


def single_op_programs() -> list[tuple[str, Program]]:
    """Every pointwise operator over every data type it takes."""
    found: list[tuple[str, Program]] = []
    for op in OPS.values():
        if op.kind is not Kind.POINTWISE:
            continue
        for dtype in (float32, float64, int32, uint32, DTYPES["int8"], bool_):
            for attrs in attrs_of(op.name):
                for arity in (1, 2, 3, 6):
                    kinds: list[DType] = [dtype] * arity
                    if op.name == "where":
                        kinds[0] = bool_
                    try:
                        op.infer(*(Type((37,), kind) for kind in kinds), **dict(zip(op.attrs, attrs, strict=True)))
                    except (SymgradError, TypeError):
                        continue
                    graph = sg.Graph()
                    inputs = tuple(graph.input(f"x{k}", (37,), kind) for k, kind in enumerate(kinds))
                    node = graph.add(op, inputs, attrs)
                    found.append((f"{op.name} {dtype} {attrs}", Program(graph, inputs, (node,))))
    return found


def attrs_of(name: str) -> list[tuple]:
    if name == "order_key":
        return [(False,), (True,)]
    if name == "astype":
        return [(d,) for d in DTYPES.values()]
    return [(k,) for k in range(4)] if name == "philox" else [(5,)] if name == "check_index" else [()]


@cache
def texts(target: Target) -> dict[str, str]:
    """The module text of every case and of every operator by itself."""
    programs = [
        (f"{name} {dtype}", program_of(name, dtype))
        for name in CASES
        for dtype in ((float32, float64) if name in TYPED else (float32,))
    ]
    programs += single_op_programs()
    out: dict[str, str] = {}
    for label, program in programs:
        emitted = [
            emit(part.kernel, f"k{k}{j}", target)
            for k, low in enumerate(kernels_of(program, target))
            for j, part in enumerate(low.scheduled)
        ]
        out[label] = module_text(emitted, target)
    return out


def test_every_operator_is_covered() -> None:
    covered = {label.partition(" ")[0] for label in texts(WIDE)}
    assert {op.name for op in OPS.values() if op.kind is Kind.POINTWISE} <= covered


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=lambda t: t.name)
def test_nothing_changes_rounding(target: Target) -> None:
    for label, text in texts(target).items():
        assert not FAST_MATH.findall(text), label


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=lambda t: t.name)
def test_addresses_are_never_numbers(target: Target) -> None:
    for label, text in texts(target).items():
        assert not POINTER_ARITHMETIC.findall(text), label


@pytest.mark.parametrize("target", [WIDE, NARROW], ids=lambda t: t.name)
def test_only_known_intrinsics_and_own_functions(target: Target) -> None:
    for label, text in texts(target).items():
        assert set(INTRINSIC.findall(text)) <= ALLOWED, label
        called = set(re.findall(r"call [^@]*@([\w.]+)", text)) - set(re.findall(r"define [^@]*@([\w.]+)", text))
        assert all(name.startswith("llvm.") for name in called), (label, called)


def test_the_patterns_find_what_they_look_for() -> None:
    assert FAST_MATH.search("%v1 = fadd nnan contract float %a, %b")
    assert POINTER_ARITHMETIC.search("%v1 = ptrtoint ptr %p to i64")
    text = "call <8 x float> @llvm.exp.v8f32(<8 x float> %a) call i1 @llvm.vector.reduce.or.v8i1( @llvm.sin.f32("
    assert INTRINSIC.findall(text) == ["exp", "vector.reduce.or", "sin"]


def test_every_text_is_accepted_by_llvm() -> None:
    """One module per case, for this machine: parsed, verified and compiled."""
    target = jit.host_target()
    for name in ("softmax", "concat_pad", "scatter_add", "argument_of_extreme", "momentum"):
        reported: list[str] = []
        build(
            program_of(name),
            KernelStore(),
            target=target,
            verify=True,
            report=lambda stage, text: reported.append(text) if stage == "llvm" else None,  # noqa: B023 called at once
        )
        assert reported
        for text in reported:
            assert not FAST_MATH.findall(text)
            assert jit.assembly(text, target)


# The inner loop of a matrix product


def tile_size(body: Body) -> int:
    """The multiply-adds of one pass through a body, its written-out loops counted."""
    count = 0
    for stmt in body:
        if isinstance(stmt, Accumulate) and stmt.combine == "fma":
            count += 1
        elif isinstance(stmt, For) and (stmt.loop.bind is not Bind.SERIAL or stmt.loop.extent == 1):
            times = stmt.loop.extent if stmt.loop.bind is Bind.UNROLL else 1
            count += times * tile_size(stmt.body)
    return count


def innermost_size(kernels: list[Kernel]) -> int:
    """The most multiply-adds in the body of one loop that is counted at run time."""
    loops = [f for k in kernels for f in loops_of(k.body) if f.loop.bind is Bind.SERIAL and f.loop.extent > 1]
    return max(tile_size(f.body) for f in loops)


def basic_blocks(assembly: str) -> list[list[str]]:
    """The instructions between labels and jumps."""
    blocks: list[list[str]] = [[]]
    for raw in assembly.splitlines():
        line = raw.partition("#")[0].strip()
        if not line or (line.startswith(".") and not line.endswith(":")):
            continue
        if line.endswith(":"):
            blocks.append([])
            continue
        blocks[-1].append(line)
        if line.startswith("j"):
            blocks.append([])
    return blocks


def sums_of(program: Program, target: Target) -> tuple[list[str], list[str]]:
    """The block with most products that are added to sums, and those of its instructions that use the stack."""
    found: list[str] = []
    build(
        program,
        KernelStore(),
        target=target,
        report=lambda stage, text: found.append(text) if stage == "llvm" else None,
    )
    assembly = "\n".join(jit.assembly(text, target) for text in found)
    loop = max(basic_blocks(assembly), key=lambda block: sum("vfmadd231" in line for line in block))
    framed = re.search(r"movq\s+%rsp, %rbp", assembly) is not None
    return loop, [line for line in loop if "(%rsp" in line or (framed and "(%rbp" in line)]


@pytest.mark.parametrize("dtype", [float32, float64], ids=str)
@pytest.mark.parametrize("width", [64, 32])
def test_matrix_product_keeps_its_tile_in_registers(width: int, dtype: DType) -> None:
    target = jit.host_target()
    if not target.triple.startswith("x86_64") or target.vector_bytes < width:
        pytest.skip("for x86 with vectors this wide")
    target = jit.host_target(width)
    graph = sg.Graph()
    a, b = graph.input("a", (512, 512), dtype), graph.input("b", (512, 512), dtype)
    program = optimize(Program(graph, (a, b), (a @ b,)), "infer", {})
    kernels = [part.kernel for low in kernels_of(program, target) for part in low.scheduled]
    loop, stack = sums_of(program, target)
    assert not stack
    assert sum("vfmadd" in line for line in loop) == innermost_size(kernels) >= target.registers // 2 - 4
    assert loop[-1].startswith("j")
    register = "%zmm" if width == 64 else "%ymm"
    assert all(register in line for line in loop if "vfmadd" in line)
    assert not [line for line in loop if line.startswith("call")]


@pytest.mark.parametrize("shape", [(512, 512, 512), (256, 256, 256), (32, 768, 3072)])
def test_sums_take_few_instructions_beside_products(shape: tuple[int, int, int]) -> None:
    """Counting is shared by several terms; rows of two or three vectors are partly read by the products themselves.

    Columns that are read from far away take one more for each line that is fetched ahead.
    """
    target = jit.host_target()
    if not target.spreads:
        pytest.skip("for machines whose products take one element from memory for all lanes")
    rows, depth, columns = shape
    graph = sg.Graph()
    a, b = graph.input("a", (rows, depth)), graph.input("b", (depth, columns))
    program = optimize(Program(graph, (a, b), (a @ b,)), "infer", {})
    loop, stack = sums_of(program, target)
    assert not stack
    products = [line for line in loop if "vfmadd" in line]
    fetches = [line for line in loop if "prefetch" in line]
    assert len(fetches) == (len(products) // 8 if shape == (32, 768, 3072) else 0)
    assert len(loop) - len(fetches) < 1.6 * len(products)
    assert any("{1to16}" in line for line in products) == (shape != (512, 512, 512))


@pytest.mark.parametrize("width", [64, 32])
def test_constants_of_an_epilogue_take_no_registers_of_sums(width: int) -> None:
    target = jit.host_target()
    if not target.triple.startswith("x86_64") or target.vector_bytes < width:
        pytest.skip("for x86 with vectors this wide")
    target = jit.host_target(width)
    graph = sg.Graph()
    a, b = graph.input("a", (64, 64)), graph.input("b", (64, 64))
    program = optimize(Program(graph, (a, b), (sg.nn.gelu(a @ b),)), "infer", {})
    (kernel,) = [part.kernel for low in kernels_of(program, target) for part in low.scheduled]
    assert [b for b in kernel.locals if b.name == "tile"], "the epilogue is not in loops"
    loop, stack = sums_of(program, target)
    assert sum("vfmadd" in line for line in loop) == innermost_size([kernel])
    assert not stack


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("window", [3, 5])
@pytest.mark.parametrize("width", [64, 32])
def test_neighbors_in_windows_take_no_registers_of_sums(width: int, window: int, padding: int) -> None:
    """Several terms of a sum read the same elements: to keep these would put sums on the stack."""
    target = jit.host_target()
    if not target.triple.startswith("x86_64") or target.vector_bytes < width:
        pytest.skip("for x86 with vectors this wide")
    graph = sg.Graph()
    x, w = graph.input("x", (2, 64, 30, 30)), graph.input("w", (64, 64, window, window))
    program = Program(graph, (x, w), (sg.nn.conv2d(x, w, padding=padding),))
    loop, stack = sums_of(optimize(program, "infer", {}), jit.host_target(width))
    assert sum("vfmadd" in line for line in loop) >= target.registers // 2 - 4
    assert not [line for line in stack if "mm" in line]


@pytest.mark.parametrize("channels", [128, 64])
def test_lanes_that_lie_apart_are_stored_in_loops(channels: int) -> None:
    """Gradients of weights lie apart by channels: written out for every accumulator, stores were half of the code."""
    graph = sg.Graph()
    x, w = graph.input("x", (1, channels, 12, 12)), graph.input("w", (channels, channels, 3, 3))
    dy = graph.input("dy", (1, channels, 12, 12))
    gradient = sg.grad(sg.sum(sg.nn.conv2d(x, w, padding=1) * dy), w)
    program = optimize(Program(graph, (x, dy), (gradient,)), "infer", {})
    kernel = kernels_of(program, WIDE)[-1].scheduled[-1].kernel
    result = next(b.name for b in kernel.params if b.written)
    assert stores_in(kernel.body, result)
    for binds in stores_in(kernel.body, result):
        assert Bind.VECTOR in binds
        assert Bind.UNROLL not in binds


def stores_in(body: Body, buffer: str, binds: tuple[Bind, ...] = ()) -> list[tuple[Bind, ...]]:
    """How the loops are bound around each store to a buffer."""
    found = [binds for s in body if isinstance(s, Store) and s.buffer == buffer]
    for stmt in body:
        if isinstance(stmt, For):
            found += stores_in(stmt.body, buffer, (*binds, stmt.loop.bind))
    return found


def test_wider_results_leave_the_vectors_of_sums_whole() -> None:
    graph = sg.Graph()
    a, b = graph.input("a", (64, 64)), graph.input("b", (64, 64))
    program = optimize(Program(graph, (a, b), (sg.astype(a @ b, float64),)), "infer", {})
    (low,) = kernels_of(program, WIDE)
    assert {f.loop.lanes for f in loops_of(low.scheduled[-1].kernel.body) if f.loop.bind is Bind.VECTOR} == {16}
