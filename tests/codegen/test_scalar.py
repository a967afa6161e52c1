"""Exact operations against NumPy: every dtype, every width, special values."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from scalar_runner import HOST, LANES, Library, operation, text_of

from codegen.scalar import OPERATIONS, spell
from codegen.scalar_builder import ScalarBuilder, Value, llvm_type, memory_type
from symgrad.errors import DTypeError
from symgrad.types import DTYPES, DType, bool_, float32, float64, int8, int32, uint32
from tests.oracles import differs

FLOATS = [d for d in DTYPES.values() if d.is_float]
INTEGERS = [d for d in DTYPES.values() if d.is_integer]
NUMBERS = [*INTEGERS, *FLOATS]
ALL = [bool_, *NUMBERS]


def _as(result: Any, dtype: DType) -> np.ndarray:
    return np.asarray(result).astype(dtype.np)


def _in_dtype(f: Callable[..., Any]) -> Callable[..., Any]:
    """In the dtype of the first argument."""
    return lambda *a: np.asarray(f(*a)).astype(a[0].dtype)


UNARY: dict[str, tuple[Callable[..., Any], list[DType]]] = {
    "negative": (np.negative, NUMBERS),
    "abs": (np.abs, ALL),
    "sign": (np.sign, NUMBERS),
    "sqrt": (np.sqrt, FLOATS),
    "rsqrt": (_in_dtype(lambda x: 1 / np.sqrt(x)), FLOATS),
    "square": (lambda x: x * x, ALL),
    "reciprocal": (np.reciprocal, FLOATS),
    "floor": (np.floor, NUMBERS),
    "ceil": (np.ceil, NUMBERS),
    "round": (np.rint, FLOATS),
    "trunc": (np.trunc, NUMBERS),
    "logical_not": (np.logical_not, ALL),
    "bitwise_invert": (np.invert, [bool_, *INTEGERS]),
    "isnan": (np.isnan, ALL),
    "isfinite": (np.isfinite, ALL),
    "isinf": (np.isinf, ALL),
}
BINARY: dict[str, tuple[Callable[..., Any], list[DType]]] = {
    "add": (np.add, ALL),
    "subtract": (np.subtract, NUMBERS),
    "multiply": (np.multiply, ALL),
    "divide": (np.divide, FLOATS),
    "safe_multiply": (lambda x, y: np.where((x == 0) | (y == 0), np.zeros((), x.dtype), x * y), FLOATS),
    "maximum": (np.maximum, ALL),
    "minimum": (np.minimum, ALL),
    "equal": (np.equal, ALL),
    "not_equal": (np.not_equal, ALL),
    "less": (np.less, ALL),
    "less_equal": (np.less_equal, ALL),
    "greater": (np.greater, ALL),
    "greater_equal": (np.greater_equal, ALL),
    "logical_and": (np.logical_and, ALL),
    "logical_or": (np.logical_or, ALL),
    "logical_xor": (np.logical_xor, ALL),
    "bitwise_and": (np.bitwise_and, [bool_, *INTEGERS]),
    "bitwise_or": (np.bitwise_or, [bool_, *INTEGERS]),
    "bitwise_xor": (np.bitwise_xor, [bool_, *INTEGERS]),
    "bitwise_left_shift": (np.left_shift, INTEGERS),
    "bitwise_right_shift": (np.right_shift, INTEGERS),
    "floor_divide": (np.floor_divide, NUMBERS),
    "remainder": (np.remainder, NUMBERS),
    "copysign": (np.copysign, FLOATS),
    "nextafter": (np.nextafter, FLOATS),
}


@cache
def values(dtype: DType) -> np.ndarray:
    """Special values and random bit patterns, 64 in all."""
    rng = np.random.default_rng(3)
    if dtype.kind == "b":
        return rng.integers(0, 2, 64).astype(np.bool_)
    if dtype.is_integer:
        info = np.iinfo(dtype.np)
        special = [info.min, info.min + 1, -3, -2, -1, 0, 1, 2, 3, 7, info.max - 1, info.max]
        special = [s for s in special if info.min <= s <= info.max]
        random = np.frombuffer(rng.bytes((64 - len(special)) * dtype.itemsize), dtype.np)
        return np.concatenate([np.array(special, dtype.np), random])
    info = np.finfo(dtype.np)
    halves = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997, 1e9 + 0.5, 2.0**31, -(2.0**31), 2.0**63, 2.0**64, 1e30]
    special = [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, info.tiny, info.smallest_subnormal, info.max, info.min]
    special += [*halves, 127.9, 128, -128.9, 255.5, 256, -0.9, 3e-40]
    random = rng.normal(0, 100, 64 - len(special))
    with np.errstate(all="ignore"):
        return np.concatenate([special, random]).astype(dtype.np)


def pairs(dtype: DType) -> tuple[np.ndarray, np.ndarray]:
    v = values(dtype)
    grid = np.array(list(itertools.product(range(len(v)), repeat=2)))
    return v[grid[:, 0]], v[grid[:, 1]]


@cache
def exact_library(lanes: int, cpu: str = "", features: str | None = None) -> Library:
    entries: dict[str, Any] = {}
    for table, arity in ((UNARY, 1), (BINARY, 2)):
        for name, (_, dtypes) in table.items():
            for d in dtypes:
                entries[f"{name}_{d}"] = (operation(name), [d] * arity, lanes)
    for d in ALL:
        entries[f"where_{d}"] = (operation("where"), [bool_, d, d], lanes)
        for to in ALL:
            entries[f"astype_{d}_{to}"] = (operation("astype", dtype=to), [d], lanes)
    for d in FLOATS:
        entries[f"fma_{d}"] = (operation("fma"), [d, d, d], lanes)
    for d in INTEGERS:
        entries[f"power_{d}"] = (operation("power"), [d, d], lanes)
    for word in range(4):
        entries[f"philox_{word}"] = (operation("philox", word=word), [uint32] * 6, lanes)
    return Library(entries, cpu, features)


def saturated(x: np.ndarray, to: DType) -> np.ndarray:
    """Truncation toward zero that saturates, NaN to 0."""
    info = np.iinfo(to.np)
    whole = [
        0 if math.isnan(v) else info.max if v == np.inf else info.min if v == -np.inf else int(v) for v in x.tolist()
    ]
    return np.array([min(max(w, info.min), info.max) for w in whole], to.np)


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_arithmetic_equals_numpy(lanes: int) -> None:
    library = exact_library(lanes)
    for name, (reference, dtypes) in UNARY.items():
        for d in dtypes:
            x = values(d)
            assert not differs(library[f"{name}_{d}"](x), np.asarray(reference(x))), (name, d)
    for name, (reference, dtypes) in BINARY.items():
        for d in dtypes:
            x, y = pairs(d)
            assert not differs(library[f"{name}_{d}"](x, y), np.asarray(reference(x, y))), (name, d)
    for d in ALL:
        x, y = pairs(d)
        condition = np.resize(values(bool_), x.shape)
        assert not differs(library[f"where_{d}"](condition, x, y), np.where(condition, x, y)), d


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversions(lanes: int) -> None:
    library = exact_library(lanes)
    for source, to in itertools.product(ALL, ALL):
        x = values(source)
        expected = saturated(x, to) if source.is_float and to.is_integer else x.astype(to.np)
        assert not differs(library[f"astype_{source}_{to}"](x), expected), (source, to)


@pytest.mark.parametrize("lanes", LANES)
def test_integer_to_float_rounds_to_nearest(lanes: int) -> None:
    rng = np.random.default_rng(0)
    for source, to in itertools.product(INTEGERS, FLOATS):
        x = np.frombuffer(rng.bytes(4096 * source.itemsize), source.np)
        assert not differs(exact_library(lanes)[f"astype_{source}_{to}"](x), x.astype(to.np)), (source, to)


@pytest.mark.parametrize("lanes", LANES)
def test_equal_zeros_give_the_second(lanes: int) -> None:
    for d, name in itertools.product(FLOATS, ("maximum", "minimum")):
        x, y = np.array([0.0, -0.0], d.np), np.array([-0.0, 0.0], d.np)
        assert not differs(exact_library(lanes)[f"{name}_{d}"](x, y), y)


def wrapped_power(x: int, y: int, dtype: DType) -> int:
    if y < 0:
        return {1: 1, -1: -1 if y % 2 else 1}.get(x, 0)
    result = pow(x, y, 1 << dtype.bits)
    return result - (1 << dtype.bits) if dtype.kind == "i" and result >> (dtype.bits - 1) else result


@pytest.mark.parametrize("lanes", LANES)
def test_integer_power(lanes: int) -> None:
    for d in INTEGERS:
        x, y = pairs(d)
        expected = [wrapped_power(a, b, d) for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        assert not differs(exact_library(lanes)[f"power_{d}"](x, y), np.array(expected, d.np)), d


def test_integer_power_of_a_literal_exponent() -> None:
    exponents = (-3, -2, -1, 0, 1, 2, 3, 7, 31)

    def power(exponent: int) -> Callable[..., Value]:
        return lambda b, x: spell(b, "power", x, b.const(int32, exponent))

    library = Library({f"p{k}": (power(e), [int32], 8) for k, e in enumerate(exponents)})
    x = values(int32)
    for k, e in enumerate(exponents):
        assert not differs(library[f"p{k}"](x), np.array([wrapped_power(v, e, int32) for v in x.tolist()], np.int32)), e


@pytest.mark.parametrize("lanes", LANES)
def test_fma_rounds_once(lanes: int) -> None:
    from fractions import Fraction

    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=512).astype(np.float64) for _ in range(2))
    c = -(a * b) * (1 + rng.integers(-2, 3, 512) * 2.0**-52)
    exact = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert not differs(exact_library(lanes)["fma_float64"](a, b, c), np.array(exact), zeros=False)


# The vectors published with Random123 for philox4x32-10: counter, key, result.
KNOWN = (
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
)


@pytest.mark.parametrize("lanes", LANES)
def test_philox_known_answers(lanes: int) -> None:
    inputs = [np.array(column, np.uint32) for column in zip(*(c + k for c, k, _ in KNOWN), strict=True)]
    for word in range(4):
        expected = np.array([result[word] for *_, result in KNOWN], np.uint32)
        assert not differs(exact_library(lanes)[f"philox_{word}"](*inputs), expected)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_machine_without_wide_vectors_gives_the_same_bits() -> None:
    wide, plain = exact_library(8), exact_library(8, "x86-64", "")
    for name, (_, dtypes) in itertools.chain(UNARY.items(), BINARY.items()):
        for d in dtypes:
            arguments = pairs(d) if name in BINARY else (values(d),)
            assert not differs(wide[f"{name}_{d}"](*arguments), plain[f"{name}_{d}"](*arguments)), (name, d)
    for source, to in itertools.product(ALL, ALL):
        x = values(source)
        assert not differs(wide[f"astype_{source}_{to}"](x), plain[f"astype_{source}_{to}"](x)), (source, to)


def test_literals_keep_every_bit() -> None:
    b = ScalarBuilder(4, HOST)
    patterns32 = (0, 1 << 31, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00001, 0x00800000, 0x3F800001, 0x807FFFFF)
    patterns64 = (0, 1 << 63, 1, 0x7FF << 52, 0xFFF << 52, 0x7FF8 << 48, 0x3FF0000000000001)
    for dtype, integer, patterns in ((float32, "uint32", patterns32), (float64, "uint64", patterns64)):
        entries = {
            f"c{k}": ((lambda b, x, p=p, d=dtype: b.splat(b.const_bits(d, p))), [int8], 4)
            for k, p in enumerate(patterns)
        }
        library = Library(entries)
        for k, pattern in enumerate(patterns):
            assert library[f"c{k}"](np.zeros(4, np.int8)).view(integer).tolist() == [pattern] * 4, hex(pattern)
    assert b.const(float32, 0.1).text == f"0x{struct.unpack('<Q', struct.pack('<d', float(np.float32(0.1))))[0]:016X}"
    assert b.const(int8, 255).text == "-1"
    assert b.const(uint32, -1).text == "4294967295"
    assert not b.lines


def test_uniform_values_stay_scalar_and_literals_splat_without_instructions() -> None:
    b = ScalarBuilder(8, HOST)
    one = b.const(float32, 1.0)
    total = spell(b, "add", Value("%a", float32, 1), one)
    assert total.lanes == 1
    assert b.lines == [f"{total.text} = fadd float %a, 0x3FF0000000000000"]
    b.lines.clear()
    result = spell(b, "multiply", Value("%x", float32, 8), one)
    assert b.lines == [f"{result.text} = fmul <8 x float> %x, splat (float 0x3FF0000000000000)"]


def test_types_of_registers_and_memory() -> None:
    assert [llvm_type(bool_, 1), llvm_type(bool_, 4), memory_type(bool_, 4)] == ["i1", "<4 x i1>", "<4 x i8>"]
    assert [llvm_type(float64, 8), memory_type(uint32, 1)] == ["<8 x double>", "i32"]


def test_meaningless_operations_are_refused() -> None:
    b = ScalarBuilder(4, HOST)
    i, flag, x = (Value("%a", d, 4) for d in (int32, bool_, float32))
    for name, arguments in (
        ("divide", (i, i)),
        ("exp", (i,)),
        ("subtract", (flag, flag)),
        ("bitwise_and", (x, x)),
        ("add", (i, x)),
        ("where", (i, x, x)),
    ):
        with pytest.raises(DTypeError):
            spell(b, name, *arguments)
    with pytest.raises(KeyError):
        spell(b, "no_such_operation", x)


def _all_texts(lanes: int) -> Iterable[tuple[str, str]]:
    arity = {"where": 3, "fma": 3, "philox": 6, "astype": 1, "atan2": 2, "hypot": 2}
    attrs: dict[str, dict[str, Any]] = {
        "philox": {"word": 3},
        "astype": {"dtype": int8},
        "order_key": {"descending": True},
    }
    for name in OPERATIONS:
        count = arity.get(name, 2 if name in BINARY or name == "power" else 1)
        for d in ALL:
            dtypes = [bool_, d, d] if name == "where" else [uint32] * 6 if name == "philox" else [d] * count
            try:
                text, b, _ = text_of("f", operation(name, **attrs.get(name, {})), dtypes, lanes)
            except DTypeError:
                continue
            yield f"{name} {d}", "\n".join([*sorted(b.declarations), *sorted(b.globals), text])


@pytest.mark.parametrize("lanes", [1, 16])
def test_nothing_relaxes_rounding_and_no_library_function_is_called(lanes: int) -> None:
    words = ("fast", "contract", "reassoc", "nnan", "ninf", "nsz", "arcp", "afn", "ptrtoint", "inttoptr")
    words += tuple(f"llvm.{f}." for f in ("exp", "exp2", "log", "log2", "log10", "sin", "cos", "tan", "tanh", "pow"))
    for name, text in _all_texts(lanes):
        assert not [w for w in words if w in text.replace("symgrad_", "")], name


def test_every_operation_lowers_for_a_gpu() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple("nvptx64-nvidia-cuda")
    except RuntimeError:
        pytest.skip("this LLVM has no GPU target")
    machine = target.create_target_machine(cpu="sm_80", opt=2)
    for name, text in _all_texts(1):
        assembly = machine.emit_assembly(llvm.parse_assembly(text))
        assert ".func" in assembly, name
        assert "approx" not in assembly, name
