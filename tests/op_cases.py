"""One row per operator: the operands it is tried on, and how close compiled code must come to its meaning.

A case is one application of one operator to declared inputs. `CASES[name]` are the cases of an operator for values,
`SMOOTH[name]` those for derivatives; `FLAT` are the operators whose derivative is zero or not defined.
"""

# pyright: basic
from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from symgrad.graph import Graph, Node
from symgrad.opdef import OPS, Kind
from symgrad.operators import apply, broadcast_to
from symgrad.ops.build import source
from symgrad.program import Program
from symgrad.storage import Literal
from symgrad.types import DTYPES, DType, bool_, float32, float64, int8, int32, int64, joint_shape, uint8, uint32

Array: TypeAlias = np.ndarray
Domain: TypeAlias = str | tuple[float, float]


class Exactness(enum.Enum):
    """How compiled results compare with the meaning."""

    BITS = "every bit, the sign of zero included; any NaN for any NaN"
    ULP = "at most 2 units in the last place from the true value, specials as in the meaning"
    SUM = "a few units in the last place of the sum of magnitudes, times the logarithm of the count"
    PRODUCT = "as many units in the last place as there are factors"


@dataclass(frozen=True)
class Operand:
    """An input of a case: its type and the domain its values are drawn from."""

    shape: tuple[int, ...]
    dtype: DType
    domain: Domain = "any"


@dataclass(frozen=True)
class Case:
    """One application of an operator. `make` builds what attributes alone cannot describe."""

    op: str
    operands: tuple[Operand, ...]
    attrs: tuple[tuple[str, Any], ...] = ()
    exactness: Exactness = Exactness.BITS
    make: Callable[[Graph, Sequence[Node]], Node] | None = None

    @property
    def label(self) -> str:
        inputs = ", ".join(f"{o.dtype}{list(o.shape)} {o.domain}" for o in self.operands)
        return f"{self.op}({inputs}; {dict(self.attrs)})"

    def build(self, graph: Graph, nodes: Sequence[Node]) -> Node:
        """The node; operands of pointwise operators are broadcast against each other."""
        if self.make is not None:
            return self.make(graph, nodes)
        if OPS[self.op].kind is Kind.POINTWISE:
            shape: Any = ()
            for node in nodes:
                shape = joint_shape(shape, node.shape)
            nodes = [broadcast_to(n, shape) for n in nodes]
        return apply(self.op, *nodes, **dict(self.attrs))


# Values.

_HALVES = (0.5, -0.5, 1.5, -1.5, 2.5, -2.5, 0.49999997, 8388607.5, 4503599627370495.5)


def specials(dtype: DType) -> Array:
    """The values at which operators of a data type go wrong."""
    if dtype is bool_:
        return np.array([False, True])
    if dtype.is_integer:
        info = np.iinfo(dtype.np)
        values = (info.min, info.min + 1, -3, -2, -1, 0, 1, 2, 3, 7, info.max - 1, info.max)
        return np.array([v for v in values if info.min <= v <= info.max], dtype.np)
    info = np.finfo(dtype.np)
    sizes = (info.smallest_subnormal, info.tiny, info.eps, 1.0, 3.0, 1e10, info.max)
    values = [0.0, -0.0, np.inf, -np.inf, np.nan, *sizes, *(-s for s in sizes), *_HALVES]
    values += [127.9, -128.5, 255.5, 2.0**31, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63), 2.0**64]
    return np.array(values, dtype.np)


def _mixed(rng: np.random.Generator, count: int, dtype: DType) -> Array:
    if dtype is bool_:
        return rng.integers(0, 2, count).astype(np.bool_)
    if dtype.is_integer:
        drawn = np.frombuffer(rng.bytes(count * dtype.itemsize), dtype.np).copy()
        small = rng.integers(0, 5, count).astype(dtype.np)
        drawn = np.where(rng.random(count) < 0.5, small, drawn)
    else:
        scale = 10.0 ** rng.integers(-3, 3, count)
        drawn = (rng.normal(0, 1, count) * scale).astype(dtype.np)
    chosen = rng.choice(specials(dtype), count)
    return np.where(rng.random(count) < 0.3, chosen, drawn)


def values_of(operand: Operand, rng: np.random.Generator) -> Array:
    """Values of the operand's type and domain, C-contiguous and writable."""
    count, dtype = int(np.prod(operand.shape, dtype=np.int64)), operand.dtype
    match operand.domain:
        case (low, high):
            flat = rng.uniform(low, high, count)
        case "any":
            flat = _mixed(rng, count, dtype)
        case "left" | "right":
            some = specials(dtype)
            pairs = np.array(list(itertools.product(some, some)), dtype.np)
            flat = np.resize(pairs[:, int(operand.domain == "right")], count)
        case "modest":  # nothing overflows, nothing is NaN
            flat = rng.normal(0, 2, count) if dtype.is_float else rng.integers(0, 9, count) - 4 * (dtype.kind == "i")
        case "near_one":
            flat = rng.uniform(0.8, 1.25, count) * rng.choice([-1, 1], count)
        case "not_finite":
            flat = rng.normal(0, 2, count)
            flat[rng.random(count) < 0.2] = rng.choice([np.inf, np.nan])
        case "ties":
            flat = rng.integers(0, 3, count) - 1 if dtype.kind in "if" else rng.integers(0, 2, count)
        case "ties_nan":
            flat = rng.integers(-1, 2, count).astype(np.float64)
            flat[rng.random(count) < 0.1] = np.nan
        case "zeros":
            flat = np.where(rng.random(count) < 0.4, 0.0, rng.uniform(0.5, 2, count))
        case "exponent":
            flat = rng.integers(0, 6, count) - 3 * (dtype.kind == "i")
        case str(name):
            kind, _, extent = name.partition(":")
            low = {"index": 0, "any_index": -int(extent)}[kind]
            flat = rng.integers(low, int(extent), count)
    return np.array(flat, dtype.np).reshape(operand.shape)


# Rows.

CASES: dict[str, list[Case]] = {}
SMOOTH: dict[str, list[Case]] = {}
FLAT: set[str] = set()

_KINDS = {"b": [bool_], "i": [d for d in DTYPES.values() if d.kind == "i"], "f": [float32, float64]}
_KINDS["u"] = [d for d in DTYPES.values() if d.kind == "u"]
_MAIN = (float32, int32, bool_)
_SHAPES = ((), (0,), (1,), (7,), (16,), (17,), (33,), (64,), (100,), (2, 3, 5), (4, 0, 3))
_FEW = ((), (0, 3), (33,))
_BROADCASTS = (((2, 3, 5), (5,)), ((3, 1), (1, 4)), ((1, 1, 7), (3, 2, 1)), ((0, 3), (1, 3)), ((), (17,)))


def _dtypes(kinds: str) -> list[DType]:
    return [d for kind in kinds for d in _KINDS[kind]]


def _pointwise(
    name: str,
    kinds: str,
    arity: int = 1,
    *,
    exactness: Exactness = Exactness.BITS,
    smooth: tuple[float, float] | None = None,
    domains: Sequence[Domain] | None = None,
    **attrs: Any,
) -> None:
    """A row of an operator of so many equal types; `smooth` is an interval where it has derivatives."""
    rows = CASES.setdefault(name, [])
    pairs = tuple(attrs.items())
    chosen = domains or ("any",) * arity
    for dtype in _dtypes(kinds):
        close = exactness if dtype.is_float else Exactness.BITS
        for shape in _SHAPES if dtype in _MAIN else _FEW:
            rows.append(Case(name, tuple(Operand(shape, dtype, d) for d in chosen), pairs, close))
        if arity == 1:
            rows.append(Case(name, (Operand((len(specials(dtype)),), dtype, "left"),), pairs, close))
        if arity == 2:
            count = len(specials(dtype)) ** 2
            sides = ("left", "right") if domains is None else domains
            rows.append(Case(name, tuple(Operand((count,), dtype, d) for d in sides), pairs, close))
        if arity == 2 and dtype in _MAIN:
            for shapes in _BROADCASTS:
                operands = tuple(Operand(s, dtype, d) for s, d in zip(shapes, chosen, strict=True))
                rows.append(Case(name, operands, pairs, close))
    if smooth is None:
        FLAT.add(name)
    else:
        SMOOTH.setdefault(name, []).append(Case(name, (Operand((2, 3), float64, smooth),) * arity, pairs, exactness))


for _name in ("add", "multiply"):
    _pointwise(_name, "biuf", 2, smooth=(-2, 2))
for _name in ("maximum", "minimum"):
    _pointwise(_name, "biuf", 2, smooth=(-2, 2))
_pointwise("subtract", "iuf", 2, smooth=(-2, 2))
_pointwise("divide", "f", 2, smooth=(0.5, 2))
_pointwise("safe_multiply", "f", 2, smooth=(-2, 2))
_pointwise("power", "f", 2, exactness=Exactness.ULP, smooth=(0.5, 2))
_pointwise("power", "iu", 2, domains=("any", "exponent"), smooth=(0.5, 2))
for _name in ("negative", "square", "abs"):
    _pointwise(_name, "iuf", smooth=(-2, 2))
_pointwise("sign", "iuf")
_pointwise("reciprocal", "f", smooth=(0.5, 2))
_pointwise("sqrt", "f", smooth=(0.5, 2))
_pointwise("rsqrt", "f", smooth=(0.5, 2))
for _name in ("exp", "expm1", "sin", "cos", "tanh", "sigmoid", "erf"):
    _pointwise(_name, "f", exactness=Exactness.ULP, smooth=(-2, 2))
_pointwise("tan", "f", exactness=Exactness.ULP, smooth=(-1, 1))
_pointwise("log", "f", exactness=Exactness.ULP, smooth=(0.2, 3))
_pointwise("log1p", "f", exactness=Exactness.ULP, smooth=(-0.5, 3))
for _name in ("sinh", "cosh", "atan", "asinh", "exp2", "erfc"):
    _pointwise(_name, "f", exactness=Exactness.ULP, smooth=(-2, 2))
for _name in ("asin", "acos", "atanh"):
    _pointwise(_name, "f", exactness=Exactness.ULP, smooth=(-0.8, 0.8))
_pointwise("acosh", "f", exactness=Exactness.ULP, smooth=(1.2, 3))
for _name in ("log2", "log10", "cbrt"):
    _pointwise(_name, "f", exactness=Exactness.ULP, smooth=(0.2, 3))
for _name in ("atan2", "hypot"):
    _pointwise(_name, "f", 2, exactness=Exactness.ULP, smooth=(-2, 2))
_pointwise("copysign", "f", 2, smooth=(-2, 2))
_pointwise("nextafter", "f", 2)
_pointwise("floor_divide", "iuf", 2)
_pointwise("remainder", "iuf", 2, smooth=(0.5, 2))
for _name in ("bitwise_left_shift", "bitwise_right_shift"):
    _pointwise(_name, "iu", 2)
    _pointwise(_name, "iu", 2, domains=("any", "exponent"))
for _name in ("floor", "ceil", "round", "trunc"):
    _pointwise(_name, "f")
for _name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
    _pointwise(_name, "biuf", 2)
for _name in ("logical_and", "logical_or", "logical_xor"):
    _pointwise(_name, "b", 2)
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _pointwise(_name, "biu", 2)
_pointwise("logical_not", "b")
_pointwise("bitwise_invert", "biu")
for _name in ("isnan", "isfinite", "isinf"):
    _pointwise(_name, "iuf")
for _target in DTYPES.values():
    _pointwise("astype", "biuf", smooth=(-2, 2) if _target is float64 else None, dtype=_target)
FLAT.discard("astype")
for _word in range(4):
    CASES.setdefault("philox", []).extend(
        Case("philox", (Operand(shape, uint32),) * 6, (("word", _word),)) for shape in ((), (0,), (33,), (2, 3, 5))
    )
FLAT.add("philox")
for _dtype in _dtypes("iu"):
    _domain = "any_index:9" if _dtype.kind == "i" else "index:9"
    CASES.setdefault("check_index", []).extend(
        Case("check_index", (Operand(shape, _dtype, _domain),), (("extent", 9),))
        for shape in ((), (0,), (17,), (2, 3, 5))
    )
FLAT.add("check_index")
CASES["where"] = [
    Case("where", (Operand(shape, bool_), Operand(shape, dtype), Operand(shape, dtype)))
    for dtype in DTYPES.values()
    for shape in (_SHAPES if dtype in _MAIN else _FEW)
]
CASES["where"].append(Case("where", (Operand((3, 1), bool_), Operand((), float32), Operand((2, 1, 5), float32))))
SMOOTH["where"] = [Case("where", (Operand((2, 3), bool_), *(Operand((2, 3), float64, (-2, 2)),) * 2))]


def _row(name: str, *cases: tuple[Any, ...], kinds: str = "f", smooth: bool = True, **options: Any) -> None:
    """Cases (shape, domain, attrs) of an operator of one operand; the domain "smooth" is for derivatives only."""
    rows = CASES.setdefault(name, [])
    exactness = options.get("exactness", Exactness.BITS)
    for shape, domain, attrs in cases:
        pairs = tuple(attrs.items())
        for dtype in _dtypes(kinds):
            if domain in ("not_finite", "ties_nan") and not dtype.is_float:
                continue
            close = exactness if dtype.is_float else Exactness.BITS
            rows.append(Case(name, (Operand(shape, dtype, domain),), pairs, close))
        if smooth and domain not in ("not_finite", "ties_nan", "ties"):
            SMOOTH.setdefault(name, []).append(Case(name, (Operand(shape, float64, (0.3, 1.7)),), pairs, exactness))
    if not smooth:
        FLAT.add(name)


_row(
    "reshape",
    *(
        (old, "any", {"shape": new})
        for old, new in (((), (1, 1)), ((0, 3), (3, 0, 2)), ((6,), (2, 3)), ((4, 3, 5), (5, 12)), ((33,), (3, 1, 11)))
    ),
    ((1, 1), "any", {"shape": ()}),
    kinds="biuf",
)
_row(
    "permute",
    ((), "any", {"axes": ()}),
    ((3, 7), "any", {"axes": (1, 0)}),
    ((0, 3), "any", {"axes": (1, 0)}),
    ((2, 3, 5), "any", {"axes": (2, 0, 1)}),
    ((17, 33), "any", {"axes": (1, 0)}),
    ((2, 3, 2, 4), "any", {"axes": (3, 1, 0, 2)}),
    kinds="biuf",
)
_row(
    "broadcast",
    ((), "any", {"shape": ()}),
    ((), "any", {"shape": (0,)}),
    ((), "any", {"shape": (2, 17)}),
    ((1, 5), "any", {"shape": (3, 5)}),
    ((3, 1), "any", {"shape": (2, 3, 7)}),
    ((1, 3, 1), "any", {"shape": (4, 3, 0)}),
    kinds="biuf",
)
_row(
    "slice",
    ((7,), "any", {"starts": (0,), "stops": (7,), "steps": (1,)}),
    ((33,), "any", {"starts": (3,), "stops": (32,), "steps": (2,)}),
    ((33,), "any", {"starts": (5,), "stops": (5,), "steps": (1,)}),
    ((6, 20), "any", {"starts": (1, 2), "stops": (6, 19), "steps": (3, 4)}),
    ((2, 3, 18), "any", {"starts": (0, 2, 1), "stops": (2, 3, 18), "steps": (1, 1, 1)}),
    kinds="biuf",
)
for _dtype in (bool_, int8, int32, uint8, float32, float64):
    for _shape, _low, _high, _fill in (
        ((), (), (), 1),
        ((0,), (2,), (1,), 1),
        ((5,), (0,), (12,), 0),
        ((17,), (3,), (0,), 1),
        ((2, 3, 4), (1, 0, 2), (0, 2, 1), 1),
        ((2, 0), (1, 1), (0, 2), 1),
    ):
        _attrs = (("low", _low), ("high", _high), ("value", Literal(np.asarray(_fill, _dtype.np))))
        CASES.setdefault("pad", []).append(Case("pad", (Operand(_shape, _dtype),), _attrs))
        if _dtype is float64:
            SMOOTH.setdefault("pad", []).append(Case("pad", (Operand(_shape, _dtype, (0.3, 1.7)),), _attrs))
CASES["pad"].append(
    Case(
        "pad",
        (Operand((5,), float32),),
        (("low", (1,)), ("high", (2,)), ("value", Literal(np.array(-np.inf, np.float32)))),
    )
)
_row(
    "flip",
    ((), "any", {"axes": ()}),
    ((0,), "any", {"axes": (0,)}),
    ((33,), "any", {"axes": (0,)}),
    ((2, 3, 17), "any", {"axes": (0, 2)}),
    ((2, 3, 5), "any", {"axes": (1,)}),
    kinds="biuf",
)
_row(
    "window",
    ((1,), "any", {"sizes": (1,), "strides": (1,), "dilations": (1,)}),
    ((33,), "any", {"sizes": (3,), "strides": (2,), "dilations": (1,)}),
    ((9,), "any", {"sizes": (3,), "strides": (1,), "dilations": (4,)}),
    ((0, 5), "any", {"sizes": (2,), "strides": (3,), "dilations": (2,)}),
    ((2, 7, 18), "any", {"sizes": (3, 2), "strides": (2, 1), "dilations": (1, 3)}),
    ((5, 4, 6), "any", {"sizes": (2, 1, 3), "strides": (1, 2, 3), "dilations": (3, 1, 1)}),
    kinds="biuf",
)
_row(
    "fold",
    ((1, 1), "any", {"extents": (1,), "strides": (1,), "dilations": (1,)}),
    ((15, 4), "any", {"extents": (33,), "strides": (2,), "dilations": (1,)}),
    ((4, 2), "any", {"extents": (13,), "strides": (3,), "dilations": (1,)}),
    ((3, 3), "any", {"extents": (14,), "strides": (2,), "dilations": (4,)}),
    ((0, 2, 2), "any", {"extents": (5,), "strides": (2,), "dilations": (2,)}),
    kinds="iuf",
    exactness=Exactness.SUM,
)
_row(
    "fold",  # with loops inside of loops, which take long to compile
    ((2, 3, 15, 3, 2), "any", {"extents": (7, 18), "strides": (2, 1), "dilations": (1, 3)}),
    ((2, 2, 2, 2, 1, 3), "any", {"extents": (5, 4, 6), "strides": (1, 2, 3), "dilations": (3, 1, 1)}),
    exactness=Exactness.SUM,
)
for _dtype in DTYPES.values():
    for _shapes, _axis in (
        (((3,),), 0),
        (((3,), (0,), (17,)), 0),
        (((0,), (0,)), 0),
        (((0, 2), (0, 2)), 0),
        (((3, 0), (3, 0)), 0),
        (((2, 3), (2, 5), (2, 1)), 1),
        (((1, 4, 5), (3, 4, 5)), 0),
        (((2, 1, 3), (2, 2, 3)), 1),
    ):
        CASES.setdefault("concat", []).append(
            Case("concat", tuple(Operand(s, _dtype) for s in _shapes), (("axis", _axis),))
        )
        if _dtype is float64:
            SMOOTH.setdefault("concat", []).append(
                Case("concat", tuple(Operand(s, _dtype, (0.3, 1.7)) for s in _shapes), (("axis", _axis),))
            )

_AXES: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((), ()),
    ((1,), (0,)),
    ((7,), (0,)),
    ((33,), (0,)),
    ((100,), (0,)),
    ((1000,), (0,)),
    ((0,), (0,)),
    ((0, 3), (0,)),
    ((3, 0), (0,)),
    ((5, 17), (0,)),
    ((5, 17), (1,)),
    ((17, 33), (0,)),
    ((17, 33), (0, 1)),
    ((3, 4, 5), (1,)),
    ((3, 4, 5), (0, 2)),
    ((2, 3, 64), (2,)),
    ((2, 64, 3), (0, 1)),
)
_SMALL_AXES = tuple((shape, axes) for shape, axes in _AXES if np.prod(shape, initial=1) <= 60)


def _reduction(name: str, kinds: str, domains: Sequence[str], *, empty: bool = True, **options: Any) -> None:
    nonempty = [(s, a) for s, a in _AXES if empty or not any(s[k] == 0 for k in a)]
    cases = [(shape, domain, {"axes": axes}) for shape, axes in nonempty for domain in domains]
    _row(name, *cases, kinds=kinds, smooth=False, **options)
    FLAT.discard(name)
    if options.get("differentiable", True):
        small = [(s, a) for s, a in nonempty if (s, a) in _SMALL_AXES]
        SMOOTH[name] = [
            Case(name, (Operand(s, float64, d),), (("axes", a),)) for s, a in small for d in options["points"]
        ]
    else:
        FLAT.add(name)


_reduction("sum", "iuf", ("modest", "not_finite"), exactness=Exactness.SUM, points=[(0.3, 1.7)])
_reduction("prod", "iuf", ("near_one", "not_finite"), exactness=Exactness.PRODUCT, points=[(0.3, 1.7), "zeros"])
_reduction("max", "biuf", ("any", "ties_nan"), empty=False, points=[(0.3, 1.7)])
_reduction("min", "biuf", ("any", "ties_nan"), empty=False, points=[(0.3, 1.7)])
_reduction("any", "b", ("any",), differentiable=False)
_reduction("all", "b", ("any",), differentiable=False)
for _name in ("argmax", "argmin"):
    _row(
        _name,
        *(
            (shape, domain, {"axis": axis})
            for shape, axis in (
                ((1,), 0),
                ((7,), 0),
                ((100,), 0),
                ((5, 17), 0),
                ((5, 17), 1),
                ((3, 4, 5), 1),
                ((2, 0, 3), 2),
                ((17, 33), 1),
            )
            for domain in ("any", "ties", "ties_nan")
        ),
        kinds="biuf",
        smooth=False,
    )
_row(
    "sum_to",
    *(
        (old, "modest", {"shape": new})
        for old, new in (
            ((), ()),
            ((17,), ()),
            ((5, 17), (17,)),
            ((5, 17), (5, 1)),
            ((5, 17), (1, 1)),
            ((3, 4, 5), (4, 1)),
            ((3, 4, 0), (4, 1)),
            ((2, 3, 4), (2, 3, 4)),
            ((2, 3, 64), (1, 3, 64)),
        )
    ),
    kinds="iuf",
    exactness=Exactness.SUM,
)

_SCANS: tuple[tuple[tuple[int, ...], int, int], ...] = (
    ((1,), 0, 1),
    ((7,), 0, -1),
    ((100,), 0, 1),
    ((0,), 0, 1),
    ((3, 0), 0, -1),
    ((0, 3), 0, -1),
    ((5, 17), 0, -1),
    ((17, 33), 0, 1),
    ((17, 33), 1, -1),
    ((3, 4, 5), 1, -1),
    ((2, 1, 5, 1), 2, 1),
    ((2, 3, 64), 2, 1),
    ((6, 1, 1), 1, 1),
)
_SMALL_SCANS = tuple((shape, axis, step) for shape, axis, step in _SCANS if 0 < np.prod(shape) <= 60)
for _name, _kinds, _domains in (
    ("cumulative_sum", "iuf", ("any", "not_finite")),
    ("cumulative_prod", "iuf", ("any", "zeros")),
    ("cumulative_max", "biuf", ("any", "ties_nan")),
    ("cumulative_min", "biuf", ("any", "ties_nan")),
):
    _row(
        _name,
        *(
            (shape, d, {"axis": axis, "step": step})
            for shape, axis, step in _SCANS
            for d in _domains[: 1 + (axis == 0)]
        ),
        kinds=_kinds,
        smooth=False,
    )
    FLAT.discard(_name)
    SMOOTH[_name] = [
        Case(_name, (Operand(shape, float64, domain),), (("axis", axis), ("step", step)))
        for shape, axis, step in _SMALL_SCANS
        for domain in ((0.3, 1.7), *(("zeros",) if _name == "cumulative_prod" else ()))
    ]
for _shape, _axis, _step in _SCANS:
    _attrs = (("axis", _axis), ("step", _step))
    for _dtype in (float32, float64):
        for _domains in (("any", "any"), ("zeros", "not_finite")):
            _operands = tuple(Operand(_shape, _dtype, d) for d in _domains)
            CASES.setdefault("linear_recurrence", []).append(Case("linear_recurrence", _operands, _attrs))
    if (_shape, _axis, _step) in _SMALL_SCANS:
        SMOOTH.setdefault("linear_recurrence", []).append(
            Case("linear_recurrence", (Operand(_shape, float64, "zeros"), Operand(_shape, float64, (0.3, 1.7))), _attrs)
        )

_SORTS: tuple[tuple[tuple[int, ...], int, bool], ...] = (
    ((1,), 0, False),
    ((7,), 0, True),
    ((0, 3), 0, False),
    ((3, 0), 0, True),
    ((5, 17), 0, False),
    ((2, 33, 3), 1, True),
    ((3, 140), 1, False),
    ((140, 2), 0, True),
)
for _name in ("argsort", "sort"):
    _row(
        _name,
        *(
            (shape, domain, {"axis": axis, "descending": descending})
            for shape, axis, descending in _SORTS
            for domain in ("any", "ties", "ties_nan")
        ),
        kinds="biuf",
        smooth=False,
    )
FLAT.discard("sort")
SMOOTH["sort"] = [
    Case("sort", (Operand(shape, float64, (0.3, 1.7)),), (("axis", axis), ("descending", descending)))
    for shape, axis, descending in (((1,), 0, True), ((7,), 0, False), ((3, 4), 0, True), ((2, 5, 3), 1, False))
]
for _domain in ("any", "ties_nan", "not_finite"):
    for _descending in (False, True):
        _row(
            "order_key",
            *((shape, _domain, {"descending": _descending}) for shape in ((), (33,))),
            kinds="biuf",
            smooth=False,
        )


def _searched(side: str) -> Callable[[Graph, Sequence[Node]], Node]:
    def make(graph: Graph, nodes: Sequence[Node]) -> Node:
        row = apply("sort", nodes[0], axis=nodes[0].ndim - 1, descending=False)
        return apply("searchsorted", row, nodes[1], side=side)

    return make


_SEARCHED: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((0,), (5,)), ((1,), (3, 2)), ((6,), ()), ((33,), (40,)), ((3, 10), (3, 5)), ((2, 7), (2,)),
)  # fmt: skip
for _sorted, _wanted in _SEARCHED:
    for _dtype in _dtypes("biuf"):
        for _side, _domain in (("left", "any"), ("right", "any"), ("left", "ties_nan"), ("right", "ties_nan")):
            if _dtype.is_float or _domain == "any":
                _operands = (Operand(_sorted, _dtype, _domain), Operand(_wanted, _dtype, _domain))
                _case = Case("searchsorted", _operands, (("side", _side),), make=_searched(_side))
                CASES.setdefault("searchsorted", []).append(_case)
FLAT.add("searchsorted")

_CONTRACTIONS = (
    ("mk", "kn", "mn", {"m": 3, "k": 4, "n": 5}),
    ("mk", "kn", "mn", {"m": 17, "k": 33, "n": 31}),
    ("mk", "kn", "mn", {"m": 64, "k": 64, "n": 64}),
    ("mk", "kn", "mn", {"m": 1, "k": 100, "n": 1}),
    ("mk", "kn", "mn", {"m": 3, "k": 0, "n": 2}),
    ("mk", "kn", "mn", {"m": 0, "k": 3, "n": 2}),
    ("mk", "nk", "mn", {"m": 7, "k": 33, "n": 16}),
    ("km", "kn", "nm", {"m": 7, "k": 33, "n": 16}),
    ("km", "nk", "mn", {"m": 20, "k": 18, "n": 35}),
    ("k", "k", "", {"k": 100}),
    ("k", "k", "", {"k": 0}),
    ("k", "kn", "n", {"k": 17, "n": 33}),
    ("mk", "k", "m", {"m": 33, "k": 17}),
    ("m", "n", "mn", {"m": 7, "n": 33}),
    ("m", "n", "nm", {"m": 7, "n": 33}),
    ("", "", "", {}),
    ("", "ab", "ba", {"a": 3, "b": 4}),
    ("a", "a", "a", {"a": 17}),
    ("bmk", "bkn", "bmn", {"b": 3, "m": 5, "k": 7, "n": 9}),
    ("bmk", "kn", "bmn", {"b": 3, "m": 5, "k": 17, "n": 16}),
    ("mbk", "nbk", "mnb", {"b": 2, "m": 3, "k": 4, "n": 5}),
    ("abkl", "lkcb", "cba", {"a": 2, "b": 3, "c": 4, "k": 5, "l": 6}),
    ("bhqd", "bhkd", "bhqk", {"b": 2, "h": 2, "q": 5, "k": 6, "d": 8}),
    ("ab", "ab", "", {"a": 5, "b": 17}),
)
for _left, _right, _out, _extents in _CONTRACTIONS:
    _shapes = [tuple(_extents[c] for c in labels) for labels in (_left, _right)]
    _attrs = (("left", _left), ("right", _right), ("out", _out))
    for _dtype in (float32, float64, int32, int8, uint8, int64):
        _close = Exactness.SUM if _dtype.is_float else Exactness.BITS
        CASES.setdefault("contract", []).append(
            Case("contract", tuple(Operand(s, _dtype, "modest") for s in _shapes), _attrs, _close)
        )
    if max(map(np.prod, _shapes)) <= 200:
        SMOOTH.setdefault("contract", []).append(
            Case("contract", tuple(Operand(s, float64, (0.3, 1.7)) for s in _shapes), _attrs)
        )

_TAKES = (
    ((9,), (), 0),
    ((9,), (17,), 0),
    ((9,), (0,), 0),
    ((9, 5), (4,), 0),
    ((5, 9), (2, 3), 1),
    ((2, 9, 3), (4,), 1),
    ((2, 9, 0), (4,), 1),
    ((9, 33), (20,), 0),
)
for _shape, _index, _axis in _TAKES:
    _result = _shape[:_axis] + _index + _shape[_axis + 1 :]
    for _dtype in (float32, float64, int32, uint8, bool_):
        for _kind in (int64, int32, uint8) if _dtype is float32 else (int64,):
            _operands = (Operand(_shape, _dtype), Operand(_index, _kind, "index:9"))
            CASES.setdefault("take", []).append(Case("take", _operands, (("axis", _axis),)))
            for _name in ("scatter_set", "scatter_max", "scatter_min", "scatter_multiply"):
                if _dtype is bool_ and _name == "scatter_multiply":
                    continue
                _values: Domain = "ties_nan" if _dtype.is_float and _name != "scatter_multiply" else "ties"
                _written = Operand(_shape, _dtype, _values), _operands[1], Operand(_result, _dtype, _values)
                CASES.setdefault(_name, []).append(Case(_name, _written, (("axis", _axis),)))
            if _dtype is bool_:
                continue
            _operands = (
                Operand(_shape, _dtype, "modest"),
                Operand(_index, _kind, "index:9"),
                Operand(_result, _dtype, "modest"),
            )
            _close = Exactness.SUM if _dtype.is_float else Exactness.BITS
            CASES.setdefault("scatter_add", []).append(Case("scatter_add", _operands, (("axis", _axis),), _close))
    _smooth = Operand(_shape, float64, (0.3, 1.7)), Operand(_index, int64, "index:9")
    SMOOTH.setdefault("take", []).append(Case("take", _smooth, (("axis", _axis),)))
    _smooth = (*_smooth, Operand(_result, float64, (0.3, 1.7)))
    for _name in ("scatter_add", "scatter_set", "scatter_max", "scatter_min", "scatter_multiply"):
        SMOOTH.setdefault(_name, []).append(Case(_name, _smooth, (("axis", _axis),)))


# Sources and control.


def _as_stored(kind: str) -> Callable[[Graph, Sequence[Node]], Node]:
    def make(graph: Graph, nodes: Sequence[Node]) -> Node:
        value = values_of(Operand((3, 5), float32), np.random.default_rng(5))
        return getattr(graph, kind)(f"{kind}{len(graph.nodes)}", value)

    return make


def _called(graph: Graph, nodes: Sequence[Node]) -> Node:
    inner = Graph()
    x, y = (inner.input(name, n.shape, n.dtype) for name, n in zip("xy", nodes, strict=True))
    program = Program(inner, (x, y), (apply("subtract", apply("square", x), y),), name="inner")
    return apply("call", *nodes, program=program)


def _ruled(graph: Graph, nodes: Sequence[Node]) -> Node:
    """A product with a reverse rule of its own, which is the right one."""
    value, operand = nodes
    inner = Graph()
    names = ("input", "output", "cotangent")
    inputs = [inner.input(name, n.shape, n.dtype) for name, n in zip(names, (operand, value, value), strict=True)]
    program = Program(inner, tuple(inputs), (apply("multiply", inputs[2], inputs[0]),), name="inner")
    return apply("custom", value, operand, program=program, count=1, wrt=(0,), modes="vjp")


def _own_square(graph: Graph, nodes: Sequence[Node]) -> Node:
    return _ruled(graph, [nodes[0] * nodes[0] * 0.5, nodes[0]])


CASES["input"] = [
    Case("input", (Operand(shape, dtype),), make=lambda graph, nodes: nodes[0])
    for dtype in DTYPES.values()
    for shape in _FEW
]
for _name in ("param", "state"):
    CASES[_name] = [Case(_name, (), make=_as_stored(_name))]
CASES["const"] = [
    Case("const", (), make=lambda graph, nodes, o=Operand(shape, dtype): graph.const(values_of(o, _fixed())))
    for dtype in DTYPES.values()
    for shape in _FEW
]
CASES["iota"] = [
    Case("iota", (), make=lambda graph, nodes, e=extent, d=dtype: source(graph, "iota", extent=e, dtype=d))
    for dtype in _dtypes("iuf")
    for extent in (0, 1, 17, 100, 300)
]
CASES["dim"] = [Case("dim", (), make=lambda graph, nodes: source(graph, "dim", extent=5))]
CASES["fence"] = [Case("fence", (Operand(s, d), Operand((2,), float32))) for d in DTYPES.values() for s in _FEW]
SMOOTH["fence"] = [Case("fence", (Operand((2, 3), float64, (0.3, 1.7)), Operand((2,), float64, (0.3, 1.7))))]
CASES["stop_gradient"] = [Case("stop_gradient", (Operand(s, d),)) for d in DTYPES.values() for s in _FEW]
CASES["phase"] = [Case("phase", (Operand(s, d), Operand(s, d))) for d in DTYPES.values() for s in _FEW]
CASES["call"] = [Case("call", (Operand(s, d), Operand(s, d)), make=_called) for d in _dtypes("iuf") for s in _FEW]
CASES["custom"] = [Case("custom", (Operand(s, d), Operand(s, d)), make=_ruled) for d in _dtypes("f") for s in _FEW]
SMOOTH["custom"] = [Case("custom", (Operand((2, 3), float64, (0.3, 1.7)),), make=_own_square)]
SMOOTH["phase"] = [Case("phase", (Operand((2, 3), float64, (0.3, 1.7)),) * 2)]
SMOOTH["call"] = [Case("call", (Operand((2, 3), float64, (0.3, 1.7)),) * 2, make=_called)]
FLAT.update(("stop_gradient", "input", "param", "state", "const", "iota", "dim"))


def _fixed() -> np.random.Generator:
    return np.random.default_rng(5)
