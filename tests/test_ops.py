"""Every operator: types, compiled code against the interpreter, layouts of inputs, targets, zero gradients.

Derivatives are verified in `test_verified_derivatives.py`.
"""

# pyright: basic
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from op_cases import CASES, FLAT, SMOOTH, Case, Exactness, values_of
from oracles import (
    differs,
    first_of,
    function,
    run_poisoned,
    true_values,
)

import symgrad as sg
from codegen import jit
from symgrad.function import Function
from symgrad.graph import Graph, Node
from symgrad.opdef import OPS
from symgrad.program import Program
from symgrad.types import float64
from tests.ulp import steps_apart

Array = np.ndarray


# What inputs look like in memory.


def _transposed(a: Array) -> Array:
    return a.T.copy(order="C").T


def _every_other(a: Array) -> Array:
    wide = np.zeros([2 * e for e in a.shape], a.dtype)
    view = wide[(*(slice(0, 2 * e, 2) for e in a.shape), ...)]
    view[...] = a
    return view


def _reversed(a: Array) -> Array:
    every = tuple(slice(None, None, -1) for _ in a.shape)
    return a[every].copy(order="C")[every]


def _read_only(a: Array) -> Array:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _big_endian(a: Array) -> Array:
    return a.astype(a.dtype.newbyteorder(">"))


def _unaligned(a: Array) -> Array:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


LAYOUTS: dict[str, Callable[[Array], Array]] = {
    "contiguous": np.copy,
    "transposed": _transposed,
    "every_other": _every_other,
    "reversed": _reversed,
    "read_only": _read_only,
    "big_endian": _big_endian,
    "unaligned": _unaligned,
}


# Every case of an operator in one compiled function.


@dataclass(frozen=True)
class Bench:
    """The cases of one operator over one graph, with operands and the interpreter's results."""

    cases: tuple[Case, ...]
    program: Program
    operands: tuple[tuple[Array, ...], ...]
    expected: tuple[Array, ...]

    @property
    def arrays(self) -> list[Array]:
        return [a for operands in self.operands for a in operands]


@functools.cache
def bench(name: str) -> Bench:
    graph = Graph(rules={})
    rng = np.random.default_rng(len(name) + 1)
    inputs: list[Node] = []
    outputs: list[Node] = []
    operands: list[tuple[Array, ...]] = []
    for number, case in enumerate(CASES[name]):
        nodes = [graph.input(f"x{number}_{k}", o.shape, o.dtype) for k, o in enumerate(case.operands)]
        operands.append(tuple(values_of(o, rng) for o in case.operands))
        outputs.append(case.build(graph, nodes))
        inputs += nodes
    arrays = [a for some in operands for a in some]
    expected = sg.evaluate(outputs, dict(zip(inputs, arrays, strict=True)))
    program = Program(graph, tuple(inputs), tuple(outputs), name=name)
    return Bench(tuple(CASES[name]), program, tuple(operands), tuple(expected))


@functools.cache
def compiled(name: str) -> tuple[Function, tuple[Array, ...]]:
    one = bench(name)
    made = function(one.program)
    return made, run_poisoned(made, one.arrays)


def verdict(case: Case, operands: Sequence[Array], got: Array, expected: Array) -> str | None:
    """What is wrong with a result, as exact as the case promises."""
    if case.exactness is Exactness.BITS or got.dtype.kind != "f":
        # Of zeros of both signs, these may take either: the order of comparisons is not NumPy's.
        return differs(got, expected, zeros=case.op not in ("max", "min"))
    if got.dtype != expected.dtype or got.shape != expected.shape:
        return f"got {got.dtype}{list(got.shape)}, expected {expected.dtype}{list(expected.shape)}"
    if case.exactness is Exactness.ULP:
        return _ulp_verdict(case, operands, got, expected)
    return _rounding_verdict(case, operands, got, expected)


def _ulp_verdict(case: Case, operands: Sequence[Array], got: Array, expected: Array) -> str | None:
    operands = np.broadcast_arrays(*operands)
    truth = true_values(case.op, operands, got.dtype)
    number = ~np.isnan(truth)
    if (found := differs(got[~number], expected[~number])) is not None:
        places = np.argwhere(~number)
        return f"specials at {[tuple(p) for p in places[:3].tolist()]}…: {found}"
    wrong = np.zeros(got.shape, np.bool_)
    wrong[number] = ~(steps_apart(got[number], truth[number]) <= 2)
    # Zeros have the sign NumPy gives.
    wrong |= (got == 0) & (expected == 0) & (np.signbit(got) != np.signbit(expected))
    found = first_of(wrong, got, truth)
    if found is None:
        return None
    at = tuple(np.argwhere(wrong)[0])
    return f"{found} for {[o[at] for o in operands]!r}"


def _rounding_verdict(case: Case, operands: Sequence[Array], got: Array, expected: Array) -> str | None:
    ref = OPS[case.op].ref
    assert ref is not None
    wide = [o.astype(np.longdouble) if o.dtype.kind == "f" else o for o in operands]
    truth = np.asarray(ref(*wide, **dict(case.attrs)))
    sizes = ref(*(np.abs(w) if w.dtype.kind == "f" else w for w in wide), **dict(case.attrs))
    eps = float(np.finfo(got.dtype).eps)
    count = max(1, sum(o.size for o in operands) // max(1, got.size))
    units = count if case.exactness is Exactness.PRODUCT else 4 + 2 * math.log2(count)
    with np.errstate(all="ignore"):
        wrong = np.asarray(~(np.abs(got - truth) <= units * eps * sizes))
    special = ~np.isfinite(truth)
    wrong[special] = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))[special]
    return first_of(wrong, got, truth)


def failures(name: str, results: Sequence[Array]) -> list[str]:
    one = bench(name)
    found: list[str] = []
    for case, operands, got, expected in zip(one.cases, one.operands, results, one.expected, strict=True):
        if (wrong := verdict(case, operands, got, expected)) is not None:
            found.append(f"{case.label}: {wrong}")
    return found


def test_every_operator_has_rows():
    assert set(CASES) == set(OPS)
    assert set(SMOOTH) | FLAT == set(OPS)
    assert not set(SMOOTH) & FLAT


@pytest.mark.parametrize("name", OPS)
def test_inferred_type_is_the_type_of_the_reference(name: str):
    one = bench(name)
    ref = OPS[name].ref
    for node, operands, expected in zip(one.program.outputs, one.operands, one.expected, strict=True):
        assert (expected.shape, expected.dtype) == (node.shape, node.dtype.np)
        if ref is None or OPS[name].kind.name == "POINTWISE":
            continue
        value = np.asarray(ref(*operands, **dict(zip(node.op.attrs, node.attrs, strict=True))))
        assert (value.shape, value.dtype) == (node.shape, node.dtype.np)


@pytest.mark.parametrize("name", OPS)
def test_compiled_is_the_meaning(name: str):
    found = failures(name, compiled(name)[1])
    assert not found, "\n".join(found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPS)
def test_layouts_do_not_matter(name: str, layout: str):
    one = bench(name)
    if not one.arrays:
        pytest.skip("no inputs")
    made, results = compiled(name)
    arrays = [LAYOUTS[layout](a) for a in one.arrays]
    kept = [a.copy() for a in arrays]
    again = made(*arrays)
    found = [f"{c.label}: {w}" for c, g, e in zip(one.cases, again, results, strict=True) if (w := differs(g, e))]
    assert not found, "\n".join(found)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(arrays, kept, strict=True)), "an input was written"
    meant = sg.evaluate(one.program.outputs, dict(zip(one.program.inputs, arrays, strict=True)))
    for case, got, expected in zip(one.cases, meant, one.expected, strict=True):
        # NumPy's own sums and products take another order in another layout.
        bits = case.exactness is Exactness.BITS or got.dtype.kind != "f"
        wrong = differs(got, expected) if bits else None
        assert wrong is None, f"the interpreter: {case.label}: {wrong}"


VARIANTS: dict[str, dict[str, Any]] = {
    "no_rules": {"rules": False},
    "two_workers": {"workers": 2},
    "32_bytes": {"target": 32},
    "16_bytes": {"target": 16},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPS)
def test_variants_agree(name: str, variant: str):
    options = dict(VARIANTS[variant])
    width = options.get("target")
    if width is not None:
        if width > jit.host_target().vector_bytes:
            pytest.skip("the machine has no vectors that wide")
        options["target"] = jit.host_target(width)
    one, results = bench(name), compiled(name)[1]
    # Narrow targets compile everything anew: the data types in wide use tell enough.
    chosen = [k for k, c in enumerate(one.cases) if width is None or _is_common(c)]
    program = Program(one.program.graph, one.program.inputs, tuple(one.program.outputs[k] for k in chosen), name=name)
    again = run_poisoned(function(program, **options), one.arrays)
    # Without fused multiply-add, polynomials and products round otherwise.
    unlike = width == 16 and not jit.host_target(16).fma and not _is_machine_without_fused()
    found: list[str] = []
    for k, got in zip(chosen, again, strict=True):
        case = one.cases[k]
        if unlike and got.dtype.kind == "f" and (case.exactness is Exactness.ULP or case.op == "contract"):
            wrong = verdict(case, one.operands[k], got, one.expected[k])
        else:
            wrong = differs(got, results[k])
        if wrong is not None:
            found.append(f"{case.label}: {wrong}")
    assert not found, "\n".join(found)


def _is_machine_without_fused() -> bool:
    return not jit.host_target().fma


def _is_common(case: Case) -> bool:
    return all(o.dtype.name in ("float32", "float64", "int32", "int64", "bool", "uint32") for o in case.operands)


# Derivatives.


@pytest.mark.parametrize("name", sorted(n for n in FLAT if OPS[n].kind.name != "SOURCE"))
def test_flat_operators_have_zero_gradient(name: str):
    cases = [c for c in CASES[name] if any(o.dtype is float64 for o in c.operands)]
    for case in cases[:4]:
        graph = Graph()
        nodes = [graph.input(f"x{k}", o.shape, o.dtype) for k, o in enumerate(case.operands)]
        scalar = sg.sum(sg.astype(case.build(graph, nodes), float64))
        for node, gradient in zip(nodes, sg.grad(scalar, nodes), strict=True):
            assert gradient.type == node.type
            value = sg.evaluate(gradient, {n: np.zeros(n.shape, np.float64) for n in nodes})  # pyright: ignore[reportArgumentType]
            assert not value.any()
