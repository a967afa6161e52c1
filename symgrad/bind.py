"""Concrete values of symbolic extents, from the shapes of the arrays of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from symgrad.errors import ShapeError
from symgrad.graph import Node, describe
from symgrad.types import Dim, Shape, bind_extent

if TYPE_CHECKING:
    from symgrad.types import Array


def bind_sizes(
    inputs: Sequence[Node], arrays: Sequence[Array], known: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The sizes of named extents for which the shapes of inputs are those of the arrays.

    An extent that is an expression gives the one name in it that is not known, when the expression is linear in it;
    otherwise it is compared. ShapeError names the input, the dimension and both values.
    """
    sizes = dict(known or {})
    origin: dict[str, str] = dict.fromkeys(sizes, "the given sizes")
    pending: list[tuple[Node, int, Dim, int]] = []
    for node, array in zip(inputs, arrays, strict=True):
        if array.ndim != node.ndim:
            raise ShapeError(f"{describe(node)}: expected shape {_text(node.shape)}, got {_text(array.shape)}")
        for axis, (extent, value) in enumerate(zip(node.shape, array.shape, strict=True)):
            if isinstance(extent, Dim):
                pending.append((node, axis, extent, value))
            elif extent != value:
                raise ShapeError(
                    f"{describe(node)}: dimension {axis} must be {extent}, got {value} (shape {_text(array.shape)})"
                )
    # Plain names first, so that expressions of them are checks.
    pending.sort(key=lambda item: len(item[2].terms) != 1 or item[2] != Dim.named(str(item[2])))
    while pending:
        later: list[tuple[Node, int, Dim, int]] = []
        for node, axis, extent, value in pending:
            unknown = sorted(extent.names() - sizes.keys())
            if not unknown:
                if (expected := bind_dim(extent, sizes)) != value:
                    known_text = ", ".join(f"{n} = {sizes[n]} from {origin[n]}" for n in sorted(extent.names()))
                    raise ShapeError(
                        f"{describe(node)}: dimension {axis} must be {extent} = {expected} ({known_text}), got {value}"
                    )
            elif len(unknown) == 1 and (solved := _solve(extent, unknown[0], value, sizes)) is not None:
                if solved[1] != 1 or solved[0] < 0:
                    raise ShapeError(
                        f"{describe(node)}: dimension {axis} is {extent}, "
                        f"and no {unknown[0]} of at least 0 makes that {value}"
                    )
                sizes[unknown[0]] = solved[0]
                origin[unknown[0]] = f"dimension {axis} of input {node.name!r}"
            else:
                later.append((node, axis, extent, value))
        if len(later) == len(pending):
            node, axis, extent, _ = later[0]
            raise ShapeError(
                f"{describe(node)}: dimension {axis} is {extent}, which does not tell "
                f"{', '.join(sorted(extent.names() - sizes.keys()))}; give an input with that extent, or sizes="
            )
        pending = later
    return sizes


def _solve(extent: Dim, name: str, value: int, sizes: Mapping[str, int]) -> tuple[int, int] | None:
    """The size that gives the extent a value, with 1 if it is whole and 0 if not; None when it is not linear."""
    slope, offset = 0, 0
    for monomial, factor in extent.terms:
        powers = dict(monomial)
        if any(not isinstance(atom, str) and name in _names(atom) for atom in powers) or powers.get(name, 0) > 1:
            return None
        rest = Dim((((tuple((a, p) for a, p in monomial if a != name)), factor),)).bind(sizes)
        if name in powers:
            slope += rest
        else:
            offset += rest
    if slope == 0:
        return None
    return (value - offset) // slope, int((value - offset) % slope == 0)


def _names(atom: Any) -> set[str]:
    return Dim(((((atom, 1),), 1),)).names()


def bind_dim(extent: int | Dim, sizes: Mapping[str, int]) -> int:
    """The value of an extent; ShapeError for a size that is not known and for extents that do not broadcast."""
    try:
        return bind_extent(extent, sizes)
    except KeyError as error:
        raise ShapeError(
            f"the size {error.args[0]!r} in extent {extent} is not known: no input of the call has it; give sizes="
        ) from None
    except (ValueError, ZeroDivisionError) as error:
        raise ShapeError(f"extent {extent}: {error}") from None


def bind_attr(value: Any, sizes: Mapping[str, int]) -> Any:
    """An attribute with every symbolic extent in it, also in nested tuples, replaced by its value."""
    if isinstance(value, Dim):
        return bind_dim(value, sizes)
    if isinstance(value, tuple):
        return tuple([bind_attr(v, sizes) for v in value])  # pyright: ignore[reportUnknownVariableType] nested attributes
    return value


def bind_shape(shape: Shape, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """A shape under concrete sizes; ShapeError as for bind_dim."""
    return tuple([bind_dim(e, sizes) for e in shape])


def _text(shape: Iterable[object]) -> str:
    return f"({', '.join(map(str, shape))})"
