"""Runs one scalar operation over arrays: the loop around it that the tests of spelling need."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np

import symgrad  # noqa: F401 # pyright: ignore[reportUnusedImport] the package that imports codegen comes first
from codegen import jit
from codegen.scalar import spell
from codegen.scalar_builder import ScalarBuilder, Value, memory_type
from codegen.target import Target
from symgrad.record import replace
from symgrad.types import DType, as_dtype, float32, float64

LANES = (1, 4, 8, 16)
FLOATS = (float32, float64)
HOST = Target("test", "", "", "", 64, 32, fma=True, masked=True, scalef=jit.host_target().scalef)
PLAIN = replace(HOST, scalef=False)
Spell = Callable[..., Value]


def text_of(
    name: str, spell: Spell, dtypes: Sequence[DType], lanes: int, target: Target = HOST
) -> tuple[str, ScalarBuilder, DType]:
    """A function that applies `spell(builder, *loaded)` to consecutive vectors of the arrays."""
    b = ScalarBuilder(lanes, target)
    head, loads = [], []
    for k, dtype in enumerate(dtypes):
        kind = memory_type(dtype, lanes)
        loads += [f"%q{k} = getelementptr {kind}, ptr %a{k}, i64 %i", f"%x{k} = load {kind}, ptr %q{k}, align 1"]
        head.append(f"ptr %a{k}")
    loaded = []
    for k, dtype in enumerate(dtypes):
        stored = dtype if dtype.kind != "b" else as_dtype("uint8")
        assert stored is not None
        loaded.append(b.from_memory(Value(f"%x{k}", stored, lanes), dtype))
    value = spell(b, *loaded)
    out = value.dtype
    if value.lanes != lanes:
        value = b.splat(value)
    value = b.to_memory(value)
    kind = memory_type(out, lanes)
    body = "\n  ".join([*loads, *b.lines, f"%q = getelementptr {kind}, ptr %out, i64 %i"])
    text = f"""
define void @{name}({", ".join([*head, "ptr %out", "i64 %n"])}) {{
entry:
  br label %loop.body
loop.body:
  %i = phi i64 [ 0, %entry ], [ %next, %loop.body ]
  {body}
  store {kind} {value.text}, ptr %q, align 1
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %n
  br i1 %more, label %loop.body, label %exit
exit:
  ret void
}}
"""
    return text, b, out


class Library:
    """Compiled operations: `library[name](*arrays)`."""

    def __init__(
        self, entries: Mapping[str, tuple[Spell, Sequence[DType], int]], cpu: str = "", features: str | None = None
    ) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        texts: list[str] = []
        needed: set[str] = set()
        self._outputs: dict[str, tuple[DType, int]] = {}
        for name, (operation_, dtypes, lanes) in entries.items():
            text, b, out = text_of(name, operation_, dtypes, lanes, HOST if features is None else PLAIN)
            texts.append(text)
            needed |= b.declarations | b.globals
            self._outputs[name] = (out, lanes)
        self.text = "\n".join([*sorted(needed), *texts])
        module = llvm.parse_assembly(self.text)
        module.verify()
        if features is None:
            features = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"
        self.machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=cpu or llvm.get_host_cpu_name(), features=features, opt=2, jit=True
        )
        self._jit: Any = llvm.create_lljit_compiler(self.machine)
        linker = llvm.JITLibraryBuilder().add_object_img(self.machine.emit_object(module)).add_current_process()
        for name in entries:
            linker = linker.export_symbol(name)
        self._linked = linker.link(self._jit, "test")

    def __getitem__(self, name: str) -> Callable[..., np.ndarray]:
        out, lanes = self._outputs[name]

        def call(*arrays: np.ndarray) -> np.ndarray:
            count = arrays[0].size
            padded = -(-count // lanes) * lanes
            given = [np.resize(np.ascontiguousarray(a), padded) for a in arrays]
            result = np.empty(padded, out.np)
            function = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * (len(given) + 1), ctypes.c_int64)(self._linked[name])
            function(*(a.ctypes.data for a in given), result.ctypes.data, padded // lanes)
            return result[:count]

        return call


def operation(name: str, **attrs: Any) -> Spell:
    return lambda b, *values: spell(b, name, *values, **attrs)


@cache
def samples(dtype: DType, count: int) -> np.ndarray:
    """Random bit patterns, ranges where functions bend, neighbors of multiples of pi/2, powers, special values."""
    rng = np.random.default_rng(5)
    patterns = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype.np)
    ends = 110.0 if dtype is float32 else 760.0
    parts: list[Any] = [rng.uniform(-r, r, count // 4) for r in (1.0, 5.0, ends, 1e6)]
    parts.append(rng.integers(-(10**9), 10**9, count // 4) * (np.pi / 2))
    parts.append(2.0 ** rng.uniform(-60, 60, count // 4) * rng.choice([-1.0, 1.0], count // 4))
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 6381956970095103.0 * 2.0**797]
    with np.errstate(over="ignore", under="ignore"):
        return np.concatenate([patterns, *(p.astype(dtype.np) for p in parts), np.array(special).astype(dtype.np)])
