# pyright: reportIndexIssue=false, reportArgumentType=false, reportCallIssue=false
"""Programs that together reach every kind of kernel, and ways to run one kernel by itself."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import symgrad as sg
from codegen import jit
from codegen import works as working
from codegen.emit import emit, module_text
from codegen.group import Group
from codegen.loop import Kernel
from codegen.prepare import prepare
from codegen.schedule_cpu import Scheduled, schedule
from codegen.target import Target
from symgrad.graph import Node
from symgrad.optimize import optimize
from symgrad.program import Program

# Written down, so that texts do not depend on the machine.
WIDE = Target("wide", "x86_64-unknown-linux-gnu", "skylake-avx512", "", 64, 32, fma=True, masked=True)
NARROW = Target("narrow", "x86_64-unknown-linux-gnu", "x86-64", "", 16, 16, fma=False, masked=False)

Case = Callable[[sg.Graph], Any]
CASES: dict[str, Case] = {}
# Cases whose results are exact: no rounding that depends on the order, no approximated function.
EXACT = {
    "broadcast",
    "transpose",
    "turned",
    "turned_bytes",
    "concat_pad",
    "take",
    "flip_slice",
    "strided",
    "integers",
    "compare",
    "random",
    "casts",
    "reshape",
    "ordered",
    "ordered_long",
    "searched",
}


def case(make: Case) -> Case:
    CASES[make.__name__] = make
    return make


def program_of(name: str, dtype: sg.DType = sg.float32) -> Program:
    """The optimized program of a case."""
    graph = sg.Graph()
    made = CASES[name](graph, dtype) if name in TYPED else CASES[name](graph)
    outputs, updates = made if isinstance(made, tuple) else (made, [])
    outputs = outputs if isinstance(outputs, list) else [outputs]
    program = Program(graph, tuple(graph.inputs), tuple(outputs), tuple(updates), name=name)
    return optimize(program, "train" if updates else "infer", {})


@dataclass(frozen=True)
class Lowered:
    """A group, its naive kernel, the nodes of the parameters, and the scheduled kernels that do the same in order."""

    group: Group
    naive: Kernel
    params: tuple[Node, ...]
    scheduled: tuple[Scheduled, ...]


def kernels_of(program: Program, target: Target) -> list[Lowered]:
    """What code generation makes of each group of a program."""
    return [
        Lowered(
            one, naive.kernel, tuple(like.nodes[k] for k in naive.places), schedule(naive.kernel, one.anchor, target)
        )
        for one, like, naive in working.lowered_groups(prepare(program), verify=True)
    ]


class Native:
    """One scheduled kernel as machine code."""

    def __init__(self, kernel: Kernel, target: Target) -> None:
        emitted = emit(kernel, "kernel", target)
        self.text = module_text([emitted], target)
        self.library = jit.link([jit.compile_object(self.text, target)], ["kernel"])
        self.kernel = kernel
        self.scratch_bytes = emitted.scratch_bytes
        self.call = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 2, *[ctypes.c_void_p] * 2)(
            self.library.address("kernel")
        )

    def run(self, arrays: list[Any]) -> int:
        """Run over all units; the status is 0 if no index check failed."""
        return self.run_units(arrays, [(0, self.kernel.units)], self.scratch())

    def scratch(self) -> Any:
        """Scratch memory of one worker at the start of a run."""
        scratch = np.full(self.scratch_bytes + 64, 0xFF, np.uint8)
        start = -scratch.ctypes.data % 64
        return scratch[start : start + self.scratch_bytes]

    def run_units(self, arrays: list[Any], units: list[tuple[int, int]], scratch: Any) -> int:
        """Run over ranges of units in turn, as one worker with this scratch memory does in one run."""
        slots = np.array([a.ctypes.data for a in arrays], np.int64)
        args = np.array([(k, 0) for k in range(len(arrays))], np.int64)
        status = np.zeros(8, np.int64)
        for begin, end in units:
            self.call(slots.ctypes.data, args.ctypes.data, begin, end, scratch.ctypes.data, status.ctypes.data)
        return int(status[0])


TYPED: set[str] = set()


def typed(make: Callable[[sg.Graph, sg.DType], Any]) -> Callable[[sg.Graph, sg.DType], Any]:
    """A case that runs in float32 and in float64."""
    TYPED.add(make.__name__)
    CASES[make.__name__] = make  # type: ignore[assignment]
    return make


@typed
def broadcast(g: sg.Graph, dtype: sg.DType) -> Any:
    x, row, column = g.input("x", (7, 37), dtype), g.input("row", (37,), dtype), g.input("column", (7, 1), dtype)
    return sg.maximum(x * row + column, 0.0) / (sg.abs(column) + 1.0)


@typed
def transpose(g: sg.Graph, dtype: sg.DType) -> Any:
    return g.input("x", (19, 33), dtype).T * 2.0


@typed
def turned(g: sg.Graph, dtype: sg.DType) -> Any:
    """Blocks turned in registers: two arrays in one kernel, whole and short blocks, an axis before them."""
    x, y, z = g.input("x", (3, 37, 21), dtype), g.input("y", (3, 37, 21), dtype), g.input("z", (3, 21, 37), dtype)
    return x.mT * y.mT + z


@case
def turned_bytes(g: sg.Graph) -> Any:
    x = g.input("x", (2, 9, 70), sg.int8)
    return [x.mT + 1, sg.permute_dims(x > 0, (2, 0, 1))]


@typed
def softmax(g: sg.Graph, dtype: sg.DType) -> Any:
    return sg.nn.softmax(g.input("x", (9, 70), dtype))


@typed
def layer_norm(g: sg.Graph, dtype: sg.DType) -> Any:
    x, scale, shift = g.input("x", (5, 48), dtype), g.input("scale", (48,), dtype), g.input("shift", (48,), dtype)
    centered = x - sg.mean(x, axis=-1, keepdims=True)
    variance = sg.mean(centered * centered, axis=-1, keepdims=True)
    return centered / sg.sqrt(variance + 1e-5) * scale + shift


@typed
def column_sum(g: sg.Graph, dtype: sg.DType) -> Any:
    return sg.sum(g.input("x", (23, 150), dtype), axis=0)


@typed
def middle_sum(g: sg.Graph, dtype: sg.DType) -> Any:
    return sg.max(g.input("x", (3, 11, 40), dtype), axis=1)


@typed
def total(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (13, 21), dtype)
    return [sg.sum(x), sg.prod(x), sg.min(x), sg.max(x, axis=1)]


@typed
def dense(g: sg.Graph, dtype: sg.DType) -> Any:
    x, w, b = g.input("x", (21, 30), dtype), g.input("w", (30, 45), dtype), g.input("b", (45,), dtype)
    return sg.nn.relu(x @ w + b)


@typed
def matmul_transposed(g: sg.Graph, dtype: sg.DType) -> Any:
    a, b = g.input("a", (12, 17), dtype), g.input("b", (18, 12), dtype)
    return a.T @ b.T


@typed
def batched(g: sg.Graph, dtype: sg.DType) -> Any:
    return g.input("a", (3, 9, 14), dtype) @ g.input("b", (3, 14, 20), dtype)


@typed
def long_row(g: sg.Graph, dtype: sg.DType) -> Any:
    x, w, b = g.input("x", (1, 21), dtype), g.input("w", (21, 270), dtype), g.input("b", (270,), dtype)
    return sg.nn.relu(x @ w + b)


@typed
def vector_products(g: sg.Graph, dtype: sg.DType) -> Any:
    a, v = g.input("a", (15, 40), dtype), g.input("v", (40,), dtype)
    return [a @ v, v @ v]


@typed
def argument_of_extreme(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (6, 75), dtype)
    return [sg.argmax(x, axis=1), sg.argmin(x, axis=0)]


@typed
def concat_pad(g: sg.Graph, dtype: sg.DType) -> Any:
    x, y = g.input("x", (4, 9), dtype), g.input("y", (4, 13), dtype)
    return sg.pad(sg.concat([x, y * 3.0], axis=1), ((1, 2), (2, 3)))


@typed
def ordered(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (3, 37), dtype)
    return [sg.sort(x * 2.0), sg.argsort(sg.round(x), axis=0, descending=True)]


@typed
def ordered_long(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (140, 2), dtype)
    return [sg.sort(x, axis=0, descending=True), sg.argsort(sg.round(x), axis=0)]


@typed
def searched(g: sg.Graph, dtype: sg.DType) -> Any:
    edges, x = g.input("edges", (37,), dtype), g.input("x", (5, 21), dtype)
    edges = sg.sort(edges)
    return [sg.searchsorted(edges, x * 2.0), sg.searchsorted(edges, x, side="right") * 3]


@typed
def reshape(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (6, 20), dtype)
    return sg.reshape(sg.reshape(x, (4, 30)).T + 1.0, (15, 8))


@typed
def convolution(g: sg.Graph, dtype: sg.DType) -> Any:
    x, w = g.input("x", (1, 2, 3, 14), dtype), g.input("w", (7, 2, 3, 3), dtype)
    y = sg.nn.conv2d(x, w, padding=1)
    return [y, *sg.grad(sg.sum(y * y), [x, w])]


@typed
def turned_convolution(g: sg.Graph, dtype: sg.DType) -> Any:
    """Columns that neither factor has neighbors along: tiles are turned, of a last row and a last column too."""
    x, w = g.input("x", (1, 2, 9, 41), dtype), g.input("w", (19, 2, 3, 3), dtype)
    y = sg.nn.conv2d(x, w, g.input("b", (19,), dtype), stride=2)
    return [sg.nn.relu(y) + g.input("c", (1, 19, 4, 20), dtype)]


@typed
def pooling(g: sg.Graph, dtype: sg.DType) -> Any:
    y = sg.nn.max_pool2d(g.input("x", (3, 4, 12, 34), dtype), 2)
    return [y, sg.grad(sg.sum(y * y), g.inputs[0])]


@typed
def strided(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (3, 160), dtype)
    return [x[:, ::2] * 2.0, x[:, ::3] * 2.0, x[:, 3::4] * 2.0, x[:, ::5] * 2.0, x[:, ::-1] * 2.0, x[:, :27:2] * 2.0]


@typed
def flip_slice(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (10, 41), dtype)
    return sg.flip(x, axis=1)[1::2, 3:38:2] - x[:5, :18]


@typed
def take(g: sg.Graph, dtype: sg.DType) -> Any:
    table, rows = g.input("table", (11, 24), dtype), g.input("rows", (8,), sg.int32)
    return sg.take(table, rows, axis=0) * 2.0


@typed
def scatter_add(g: sg.Graph, dtype: sg.DType) -> Any:
    table, rows = g.input("table", (11, 24), dtype), g.input("rows", (8,), sg.int32)
    return sg.grad(sg.sum(sg.square(sg.take(table, rows, axis=0))), table)


@typed
def momentum(g: sg.Graph, dtype: sg.DType) -> Any:
    x, t = g.input("x", (16, 20), dtype), g.input("t", (16, 24), dtype)
    w = g.param("w", np.linspace(-1, 1, 20 * 24).reshape(20, 24).astype(dtype.np))
    loss = sg.mean(sg.square(x @ w - t))
    (slope,) = sg.grad(loss, [w])
    return loss, sg.optim.momentum([w], [slope], lr=0.1, beta=0.9)


@typed
def transcendental(g: sg.Graph, dtype: sg.DType) -> Any:
    x = g.input("x", (50,), dtype)
    return sg.exp(sg.sin(x)) + sg.log(sg.square(x) + 1.0) * sg.tanh(x)


@case
def integers(g: sg.Graph) -> Any:
    a, b = g.input("a", (5, 21), sg.int32), g.input("b", (5, 21), sg.int32)
    return [(a * b + 3) ^ a, sg.sum(a, axis=1), sg.max(b, axis=0), a @ b.T]


@case
def compare(g: sg.Graph) -> Any:
    a, b = g.input("a", (5, 21)), g.input("b", (5, 21))
    return [sg.where(a > b, a, b), sg.any(a > b, axis=1), sg.all(a > -9.0), sg.isnan(a)]


@case
def casts(g: sg.Graph) -> Any:
    x = g.input("x", (4, 35), sg.float64)
    return [sg.astype(x, sg.float32), sg.astype(x * 1e3, sg.int8), sg.astype(x, sg.bool_), sg.arange(g, 35) + 1]


@case
def random(g: sg.Graph) -> Any:
    return sg.nn.dropout(g.input("x", (3, 40)), 0.5)


def sample(node: Node, generator: np.random.Generator) -> Any:
    """A value for an input: small integers may serve as indices, halves make sums exact."""
    shape = tuple(int(d) for d in node.shape)
    if node.dtype.kind == "f":
        return (generator.integers(-16, 17, shape) / 8).astype(node.dtype.np)
    if node.dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(bool)
    return generator.integers(0, 8, shape).astype(node.dtype.np)
