"""Types of nodes: data types, symbolic extents and the pair of shape and data type."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from symgrad.record import record

if TYPE_CHECKING:
    from typing import Any

    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[Any]
    DTypeLike: TypeAlias = "DType | npt.DTypeLike"

NumericKind: TypeAlias = Literal["b", "i", "u", "f"]


@record(eq=False)
class DType:
    """A scalar data type. There is exactly one instance of each, so they compare by identity."""

    name: str
    kind: NumericKind
    bits: int

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory."""
        return max(1, self.bits // 8)

    @property
    def np(self) -> np.dtype[Any]:
        """The NumPy data type of the same meaning."""
        return np.dtype(self.name)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Callable[[str], DType], tuple[str]]:
        return dtype_named, (self.name,)


bool_ = DType("bool", "b", 1)
int8, int16, int32, int64 = (DType(f"int{n}", "i", n) for n in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (DType(f"uint{n}", "u", n) for n in (8, 16, 32, 64))
float32, float64 = (DType(f"float{n}", "f", n) for n in (32, 64))

DTYPES: dict[str, DType] = {
    d.name: d for d in (bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64)
}


def dtype_named(name: str) -> DType:
    """The data type with this name; KeyError when there is none."""
    return DTYPES[name]


def as_dtype(value: DTypeLike) -> DType | None:
    """The data type meant by a DType, a NumPy dtype, a scalar type or a name; None when symgrad has no such type."""
    if isinstance(value, DType) or value is None:  # pyright: ignore[reportUnnecessaryComparison] NumPy takes None as float64
        return value
    try:
        return DTYPES.get(np.dtype(value).name)
    except TypeError:
        return None


def promote(a: DType, b: DType) -> DType | None:
    """The data type that holds values of both (array API table); None where the table has none.

    An integer or boolean with a floating type gives that floating type, whatever the width of the integer.
    """
    if a is b:
        return a
    if a.kind == b.kind:
        return a if a.bits >= b.bits else b
    for one, other in ((a, b), (b, a)):
        if one.kind == "b" or (one.kind in "iu" and other.kind == "f"):
            return other
    signed, unsigned = (a, b) if a.kind == "i" else (b, a)
    if signed.bits > unsigned.bits:
        return signed
    return DTYPES.get(f"int{unsigned.bits * 2}")


Atom: TypeAlias = "str | Quotient | Joint"
Monomial: TypeAlias = "tuple[tuple[Atom, int], ...]"


@record
class Quotient:
    """An extent that is the floor of a quotient of two others."""

    numerator: Dim | int
    denominator: Dim | int

    def __str__(self) -> str:
        return f"({_operand_text(self.numerator)} // {_operand_text(self.denominator)})"


@record
class Joint:
    """The extent two unequal symbolic extents broadcast to; which one is 1 is decided at the call."""

    left: Dim
    right: Dim

    def __str__(self) -> str:
        return f"broadcast({self.left}, {self.right})"


class Dim:
    """A symbolic extent: an integer polynomial of named extents, floor quotients and joint extents.

    Arithmetic with integers and other extents gives an extent, or an int when every symbol cancels.
    Equality is equality of polynomials. Ordering and conversion to int fail: the value is not known
    while the graph is built.
    """

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]) -> None:
        self.terms = terms
        self._hash = hash(terms)

    @staticmethod
    def named(name: str) -> Dim:
        """The extent with this name."""
        return Dim(((((name, 1),), 1),))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Dim) and self.terms == other.terms)

    def __add__(self, other: Extent) -> Extent:
        if not isinstance(other, int | Dim):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            return NotImplemented
        total = dict(self.terms)
        for monomial, factor in _terms(other):
            total[monomial] = total.get(monomial, 0) + factor
        return _normal(total)

    def __mul__(self, other: Extent) -> Extent:
        if not isinstance(other, int | Dim):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            return NotImplemented
        total: dict[Monomial, int] = {}
        for left, a in self.terms:
            for right, b in _terms(other):
                monomial = _times(left, right)
                total[monomial] = total.get(monomial, 0) + a * b
        return _normal(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Extent:
        return self * -1

    def __sub__(self, other: Extent) -> Extent:
        if not isinstance(other, int | Dim):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            return NotImplemented
        return self + other * -1

    def __rsub__(self, other: Extent) -> Extent:
        return self * -1 + other

    def __floordiv__(self, other: Extent) -> Extent:
        if not isinstance(other, int | Dim):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            return NotImplemented
        return floor_quotient(self, other)

    def __rfloordiv__(self, other: int) -> Extent:
        return floor_quotient(other, self)

    def __mod__(self, other: Extent) -> Extent:
        return self - floor_quotient(self, other) * other

    def __rmod__(self, other: int) -> Extent:
        return other - floor_quotient(other, self) * self

    def __int__(self) -> int:
        raise TypeError(
            f"extent {self} is symbolic: its value is known only when a compiled function is called; "
            "use it in shapes and graph arithmetic, or declare the input with an integer extent"
        )

    __index__ = __int__

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return " + ".join(_monomial_text(m, f) for m, f in self.terms).replace("+ -", "- ")

    def atoms(self) -> Iterator[Atom]:
        """Every atom of the polynomial, nested ones included."""
        stack: list[Extent] = [self]
        while stack:
            extent = stack.pop()
            if isinstance(extent, int):
                continue
            for monomial, _ in extent.terms:
                for atom, _ in monomial:
                    yield atom
                    if isinstance(atom, Quotient):
                        stack += (atom.numerator, atom.denominator)
                    elif isinstance(atom, Joint):
                        stack += (atom.left, atom.right)

    def names(self) -> set[str]:
        """The names the extent depends on."""
        return {atom for atom in self.atoms() if isinstance(atom, str)}

    def bind(self, sizes: Mapping[str, int]) -> int:
        """The value under concrete sizes. KeyError for a missing name, ValueError for extents that do not broadcast."""
        total = 0
        for monomial, factor in self.terms:
            total += factor * math.prod(_bind_atom(atom, sizes) ** power for atom, power in monomial)
        return total


Extent: TypeAlias = int | Dim
Shape: TypeAlias = tuple[Extent, ...]


def _terms(extent: Extent) -> tuple[tuple[Monomial, int], ...]:
    return extent.terms if isinstance(extent, Dim) else (((), int(extent)),)


def _normal(total: dict[Monomial, int]) -> Extent:
    terms = [(m, f) for m, f in total.items() if f]
    if not terms:
        return 0
    if len(terms) == 1 and terms[0][0] == ():
        return terms[0][1]
    # The constant comes last, the rest in the order of their text: 2*n + 1.
    terms.sort(key=lambda term: (not term[0], _monomial_text(term[0], 1)))
    return Dim(tuple(terms))


def _times(left: Monomial, right: Monomial) -> Monomial:
    powers = dict(left)
    for atom, power in right:
        powers[atom] = powers.get(atom, 0) + power
    return tuple(sorted(powers.items(), key=lambda item: str(item[0])))


def _operand_text(extent: Extent) -> str:
    return f"({extent})" if isinstance(extent, Dim) and len(extent.terms) > 1 else str(extent)


def _monomial_text(monomial: Monomial, factor: int) -> str:
    parts = [str(atom) if power == 1 else f"{atom}**{power}" for atom, power in monomial]
    if factor == -1 and parts:
        return "-" + "*".join(parts)
    if factor != 1 or not parts:
        parts.insert(0, str(factor))
    return "*".join(parts)


def _bind_atom(atom: Atom, sizes: Mapping[str, int]) -> int:
    if isinstance(atom, str):
        return sizes[atom]
    if isinstance(atom, Quotient):
        return bind_extent(atom.numerator, sizes) // bind_extent(atom.denominator, sizes)
    left, right = atom.left.bind(sizes), atom.right.bind(sizes)
    if left != right and 1 not in (left, right):
        raise ValueError(f"extents {atom.left} = {left} and {atom.right} = {right} do not broadcast")
    return right if left == 1 else left


def floor_quotient(numerator: Extent, denominator: Extent) -> Extent:
    """The floor of a quotient of extents, exact where the denominator divides every term."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator // denominator
    if numerator == denominator:
        return 1
    if isinstance(denominator, int):
        if denominator == 1:
            return numerator
        if all(f % denominator == 0 for _, f in _terms(numerator)):
            return _normal({m: f // denominator for m, f in _terms(numerator)})
    elif len(denominator.terms) == 1:
        exact = _divide_monomials(numerator, denominator.terms[0])
        if exact is not None:
            return exact
    return Dim(((((Quotient(numerator, denominator), 1),), 1),))


def _divide_monomials(numerator: Extent, divisor: tuple[Monomial, int]) -> Extent | None:
    total: dict[Monomial, int] = {}
    for monomial, factor in _terms(numerator):
        powers = dict(monomial)
        for atom, power in divisor[0]:
            powers[atom] = powers.get(atom, 0) - power
        if factor % divisor[1] or min(powers.values(), default=0) < 0:
            return None
        rest = tuple((a, p) for a, p in monomial if powers[a]) and tuple(
            (a, powers[a]) for a, _ in monomial if powers[a]
        )
        total[rest] = total.get(rest, 0) + factor // divisor[1]
    return _normal(total)


def bind_extent(extent: Extent, sizes: Mapping[str, int]) -> int:
    """The value of an extent under concrete sizes."""
    return extent if isinstance(extent, int) else extent.bind(sizes)


def joint_extent(a: Extent, b: Extent) -> Extent | None:
    """What two extents broadcast to; None when they never do.

    A symbolic extent against an integer other than 1 gives the integer, because the symbol can then only be that
    integer or 1; the call checks it. Two unequal symbolic extents give a joint extent.
    """
    if b in (a, 1):
        return a
    if a == 1:
        return b
    if isinstance(a, int):
        return a if isinstance(b, Dim) else None
    if isinstance(b, int):
        return b
    left, right = sorted((a, b), key=repr)
    return Dim(((((Joint(left, right), 1),), 1),))


def joint_shape(a: Shape, b: Shape) -> Shape | None:
    """The NumPy broadcast of two shapes; None when they do not broadcast."""
    if a == b:
        return a
    if len(a) < len(b):
        a, b = b, a
    lead = len(a) - len(b)
    out = list(a[:lead])
    for x, y in zip(a[lead:], b, strict=True):
        extent = joint_extent(x, y)
        if extent is None:
            return None
        out.append(extent)
    return tuple(out)


@record
class Type:
    """The type of a node: its shape and data type."""

    shape: Shape
    dtype: DType

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_static(self) -> bool:
        """Whether every extent is an integer."""
        return all(isinstance(d, int) for d in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.name}[{', '.join(map(str, self.shape))}]"


def size_of(shape: Shape) -> Extent:
    """The number of elements, computed in unbounded integers."""
    return math.prod(shape, start=1)  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownVariableType] extents multiply like ints


def static_size(shape: Shape) -> int:
    """The number of elements of a shape of integers; TypeError when an extent is symbolic."""
    return math.prod(static_shape(shape))


def static_shape(shape: Shape) -> tuple[int, ...]:
    """The shape as integers; TypeError when an extent is symbolic."""
    return tuple([d if isinstance(d, int) else int(d) for d in shape])


class Bound(int):
    """The value of a symbolic extent that remembers the extent. What is computed from it with integers does so too."""

    extent: Dim

    def __add__(self, other: int) -> int:
        return _remembering(operator.add, self, other)

    def __radd__(self, other: int) -> int:
        return _remembering(operator.add, other, self)

    def __sub__(self, other: int) -> int:
        return _remembering(operator.sub, self, other)

    def __rsub__(self, other: int) -> int:
        return _remembering(operator.sub, other, self)

    def __mul__(self, other: int) -> int:
        return _remembering(operator.mul, self, other)

    def __rmul__(self, other: int) -> int:
        return _remembering(operator.mul, other, self)

    def __floordiv__(self, other: int) -> int:
        return _remembering(lambda a, b: a // b, self, other)

    def __rfloordiv__(self, other: int) -> int:
        return _remembering(lambda a, b: a // b, other, self)

    def __pow__(self, power: int, modulus: None = None) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        return math.prod([self] * power)

    def __neg__(self) -> int:
        return bound(-int(self), -self.extent)


def bound(value: int, extent: Extent) -> int:
    """A value that remembers the extent it is the value of."""
    if isinstance(extent, int):
        return value
    made = Bound(value)
    made.extent = extent
    return made


def unbound(value: int) -> Extent:
    """The extent that an integer remembers, or the integer itself."""
    return value.extent if isinstance(value, Bound) else value


def _remembering(operation: Callable[[Any, Any], Any], a: int, b: int) -> int:
    if not isinstance(a, int) or not isinstance(b, int):  # pyright: ignore[reportUnnecessaryIsInstance] floats come too
        return NotImplemented
    return bound(operation(int(a), int(b)), operation(unbound(a), unbound(b)))
