"""Random numbers as a pure function of the graph's seed, the call site, the step and the element.

The bits are those of Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3",
2011). The key is the seed of the graph, its low word first. The counter of block b is (b, 0, stream, step): each call
of a function here takes a stream of its own, and the step is the graph's state `random_step`, which a compiled
function that reaches it advances by one, so that every call draws anew. n elements of one word each come from
q = ceil(n / 4) blocks: element e is word e // q of block e % q. Evaluating a graph without compiling does not advance
the step. After 2**32 steps the numbers repeat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from symgrad import types
from symgrad.arguments import checked
from symgrad.errors import DTypeError, GraphError, ShapeError
from symgrad.graph import Graph, Node, describe
from symgrad.ops.build import apply, broadcast_to, constant_like, filled, reshape_to, slice_axis, source
from symgrad.states import graph_state
from symgrad.types import Dim, DType, Extent, Shape, as_dtype, size_of, uint32

if TYPE_CHECKING:
    from symgrad.types import DTypeLike

RANDOM_STEP = "random_step"
"""The name of the state that counts the calls of functions with random operators."""

_WORD = 0xFFFFFFFF


@checked
def bits(graph: Graph, shape: Sequence[Extent]) -> Node:
    """Uniform uint32 words of this shape: all 32 bits of each are random."""
    extents, count = _checked("bits", shape)
    return reshape_to(_planes(_words(graph, _blocks(count, 4)), count), extents)


@checked
def uniform(
    graph: Graph,
    shape: Sequence[Extent],
    low: float = 0.0,
    high: float = 1.0,
    dtype: DTypeLike = types.float32,
) -> Node:
    """Uniform values in [low, high), from 24 random bits for float32 and 53 for float64."""
    target = _float("uniform", dtype)
    extents, count = _checked("uniform", shape)
    if not abs(low) + abs(high) <= float(np.finfo(target.np).max) or not target.np.type(low) < target.np.type(high):
        raise ShapeError(f"random.uniform: needs finite low < high in {target}, got {low} and {high}")
    bottom, top = target.np.type(low), target.np.type(high)
    unit = reshape_to(_unit(graph, count, target), extents)
    if low == 0.0 and high == 1.0:
        return unit
    values = apply("multiply", unit, constant_like(unit, float(top) - float(bottom)))
    values = apply("add", values, constant_like(values, float(bottom)))
    # Rounding may reach high, which is outside.
    return apply("minimum", values, constant_like(values, float(np.nextafter(top, bottom))))


@checked
def normal(
    graph: Graph,
    shape: Sequence[Extent],
    mean: float = 0.0,
    deviation: float = 1.0,
    dtype: DTypeLike = types.float32,
) -> Node:
    """Normal values with this mean and standard deviation.

    Box and Muller, "A Note on the Generation of Random Normal Deviates" (1958): a radius √(-2 ln u) and a uniform
    angle give two independent values. u is in (0, 1] with 24 bits for float32, so no value is beyond 5.77 deviations
    (8.57 for float64).
    """
    target = _float("normal", dtype)
    extents, count = _checked("normal", shape)
    pairs = _blocks(count, 2)
    draws = _unit(graph, pairs * 2, target)
    radius_draw, angle_draw = slice_axis(draws, 0, 0, pairs), slice_axis(draws, 0, pairs, pairs * 2)
    # 1 - u is exact and never 0, so its logarithm is finite.
    u = apply("subtract", constant_like(radius_draw, 1), radius_draw)
    radius = apply("sqrt", apply("multiply", apply("log", u), constant_like(u, -2)))
    angle = apply("multiply", angle_draw, constant_like(angle_draw, 2 * math.pi))
    sides = [apply("multiply", radius, apply(name, angle)) for name in ("cos", "sin")]
    values = reshape_to(_planes(sides, count), extents)
    if deviation != 1.0:
        values = apply("multiply", values, constant_like(values, deviation))
    return values if mean == 0.0 else apply("add", values, constant_like(values, mean))


@checked
def bernoulli(graph: Graph, p: float | Node, shape: Sequence[Extent]) -> Node:
    """Booleans of this shape, true with probability p.

    A number p is exact to 2**-32. A floating node p broadcasts to the shape and is compared with 24 or 53 random bits;
    no gradient flows to it.
    """
    extents, _ = _checked("bernoulli", shape)
    if isinstance(p, Node):
        if not p.dtype.is_float:
            raise DTypeError(f"random.bernoulli: p must be floating, got {describe(p)}")
        return apply("less", uniform(graph, extents, dtype=p.dtype), broadcast_to(p, extents))
    if not 0.0 <= p <= 1.0:
        raise ShapeError(f"random.bernoulli: p is a probability from 0 to 1, got {p}")
    threshold = round(p * 2**32)
    if threshold > _WORD:
        return filled(graph, extents, types.bool_, True)
    words = bits(graph, extents)
    return apply("less", words, constant_like(words, threshold))


@checked
def categorical(logits: Node, axis: int = -1, shape: Sequence[Extent] | None = None) -> Node:
    """Samples of the classes along an axis with probabilities softmax(logits): int64, of shape logits without the axis.

    `shape` draws that many for each: it stands before the shape of one draw. Adding a Gumbel variable -ln(-ln u) to
    each logit makes the largest a sample: Gumbel, "Statistical Theory of Extreme Values" (1954); Maddison, Tarlow and
    Minka, "A* Sampling" (2014). Logits of -inf are never drawn where another is finite.
    """
    if not logits.dtype.is_float:
        raise DTypeError(f"random.categorical: logits must be floating, got {describe(logits)}")
    if not -logits.ndim <= axis < logits.ndim:
        raise ShapeError(f"random.categorical: axis {axis} is out of range for {describe(logits)}")
    axis %= logits.ndim
    lead = _checked("categorical", shape or ())[0]
    full = lead + logits.shape
    u = uniform(logits.graph, full, dtype=logits.dtype)
    gumbel = apply("negative", apply("log", apply("negative", apply("log", u))))
    return apply("argmax", apply("add", broadcast_to(logits, full), gumbel), axis=len(lead) + axis)


@checked
def random_updates(graph: Graph) -> list[tuple[Node, Node]]:
    """The update that a function which reaches the step needs: (step, step + 1); nothing when the graph has none."""
    step = graph.find(RANDOM_STEP)
    if step is None or step.op.name != "state":
        return []
    return [(step, apply("add", step, constant_like(step, 1)))]


def _words(graph: Graph, blocks: Extent) -> list[Node]:
    """The four words of blocks 0, 1, … of a new stream, each as a vector."""
    if isinstance(blocks, int) and blocks > _WORD:
        raise ShapeError(f"random: {blocks} blocks of one stream, more than {_WORD}; draw parts and concatenate them")
    step = graph_state(graph, RANDOM_STEP, np.zeros((), np.uint32))
    stream = graph.next_stream()
    seed = graph.seed
    if not -(2**63) <= seed < 2**64:
        raise GraphError(f"random: the seed of a graph has 64 bits, got {seed}")
    block = source(graph, "iota", extent=blocks, dtype=uint32)
    zero, site = constant_like(block, 0), constant_like(block, stream & _WORD)
    key = constant_like(block, seed & _WORD), constant_like(block, seed >> 32 & _WORD)
    counter = (block, zero, site, broadcast_to(step, block.shape))
    return [apply("philox", *counter, *key, word=word) for word in range(4)]


def _unit(graph: Graph, count: Extent, dtype: DType) -> Node:
    """Uniform values in [0, 1), as a vector."""
    if dtype is types.float32:
        # The upper 24 bits: what float32 holds exactly.
        return _scaled(_masked(_planes(_words(graph, _blocks(count, 4)), count), 0xFFFFFF00), dtype, 2.0**-32)
    words = _words(graph, _blocks(count, 2))
    high, low = _planes(words[:2], count), _planes(words[2:], count)
    return apply("add", _scaled(high, dtype, 2.0**-32), _scaled(_masked(low, 0xFFFFF800), dtype, 2.0**-64))


def _masked(words: Node, mask: int) -> Node:
    return apply("bitwise_and", words, constant_like(words, mask))


def _scaled(words: Node, dtype: DType, factor: float) -> Node:
    values = apply("astype", words, dtype=dtype)
    return apply("multiply", values, constant_like(values, factor))


def _planes(parts: Sequence[Node], count: Extent) -> Node:
    return slice_axis(apply("concat", *parts, axis=0), 0, 0, count)


def _blocks(count: Extent, each: int) -> Extent:
    return (count + (each - 1)) // each


def _checked(what: str, shape: Sequence[Extent]) -> tuple[Shape, Extent]:
    for extent in shape:
        if isinstance(extent, Dim):
            continue
        if isinstance(extent, bool) or not isinstance(extent, int | np.integer) or extent < 0:  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise ShapeError(f"random.{what}: an extent is an integer of at least 0 or symbolic, got {extent!r}")
    extents: Shape = tuple(d if isinstance(d, Dim) else int(d) for d in shape)
    return extents, size_of(extents)


def _float(what: str, dtype: DTypeLike) -> DType:
    found = as_dtype(dtype)
    if found is None or not found.is_float:
        raise DTypeError(f"random.{what}: the data type is float32 or float64, got {dtype!r}")
    return found
