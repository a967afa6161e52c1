"""Convolutions and pooling: windows, and contractions or reductions over them. Users see them as `sg.nn`.

Arrays are (batch, channels, *space), weights (out channels, in channels / groups, *sizes), as in PyTorch. What is
called a convolution is a correlation: the weights are not reversed. A stride, dilation or padding is one integer for
all axes of space or one for each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from symgrad import functions as sg
from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node, Operand, describe
from symgrad.nn_checks import need_float, need_shape
from symgrad.operators import apply, as_node, reshape_to
from symgrad.ops.build import filled, scalar_literal
from symgrad.types import Extent, Shape

Steps: TypeAlias = "int | Sequence[int]"
Padding: TypeAlias = "int | Sequence[int] | Sequence[tuple[int, int]] | str"
Pairs: TypeAlias = "tuple[tuple[int, int], ...]"

_SPACE, _INSIDE = "xyz", "uvw"


def conv1d(
    x: Node,
    w: Operand,
    b: Operand | None = None,
    *,
    stride: Steps = 1,
    padding: Padding = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> Node:
    """The convolution of x (n, channels, length) with w (out, channels / groups, size), plus b (out,).

    Element [n, o, i] is the sum over c and u of x[n, c, stride i + dilation u] w[o, c, u], after zeros around x:
    `padding` of them at each end, given by pairs for different ends, none for "valid", and for "same" as many as keep
    the length, the odd one behind, with a stride of 1 only. With groups, each group of output channels sees its own
    group of input channels.
    """
    return _convolve("conv1d", 1, x, w, b, stride, padding, dilation, groups)


def conv2d(
    x: Node,
    w: Operand,
    b: Operand | None = None,
    *,
    stride: Steps = 1,
    padding: Padding = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> Node:
    """The convolution of x (n, channels, height, width) with w (out, channels / groups, *sizes); see `conv1d`."""
    return _convolve("conv2d", 2, x, w, b, stride, padding, dilation, groups)


def conv3d(
    x: Node,
    w: Operand,
    b: Operand | None = None,
    *,
    stride: Steps = 1,
    padding: Padding = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> Node:
    """The convolution of x (n, channels, depth, height, width) with w (out, channels / groups, *sizes), as `conv1d`."""
    return _convolve("conv3d", 3, x, w, b, stride, padding, dilation, groups)


def conv_transpose2d(
    x: Node,
    w: Operand,
    b: Operand | None = None,
    *,
    stride: Steps = 1,
    padding: Steps = 0,
    output_padding: Steps = 0,
    dilation: Steps = 1,
    groups: int = 1,
) -> Node:
    """The transpose of `conv2d` as a linear map, for x (n, in, height, width) and w (in, out / groups, *sizes).

    An axis has the extent stride (extent - 1) + dilation (size - 1) + 1 + output_padding - 2 padding. Zeiler, Krishnan,
    Taylor and Fergus, "Deconvolutional Networks" (2010); the conventions are those of ConvTranspose2d of PyTorch.
    """
    name = "conv_transpose2d"
    w, sizes = _weights(name, 2, x, w)
    strides, dilations = _steps(name, "stride", 2, stride), _steps(name, "dilation", 2, dilation)
    cut = _steps(name, "padding", 2, padding, least=0)
    more = _steps(name, "output_padding", 2, output_padding, least=0)
    channels, out = w.shape[:2]
    _need_channels(name, x, channels)
    if any(m >= max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        raise ShapeError(f"nn.{name}: output_padding {more} must be smaller than the stride or the dilation")
    # A stride more would be one more window: what the output padding adds beyond that is zeros behind the fold.
    inside = tuple(min(m, s - 1) for m, s in zip(more, strides, strict=True))
    full: Shape = tuple(
        (e - 1) * s + d * (k - 1) + 1 + m
        for e, k, s, d, m in zip(x.shape[2:], sizes, strides, dilations, inside, strict=True)
    )
    if groups == 1:
        parts = apply("contract", x, w, left="ncxy", right="couv", out="noxyuv")
    else:
        each = _group_size(name, "input channels", channels, groups)
        x = reshape_to(x, (x.shape[0], groups, each, *x.shape[2:]))
        parts = apply(
            "contract", x, reshape_to(w, (groups, each, *w.shape[1:])), left="ngcxy", right="gcouv", out="ngoxyuv"
        )
    y = apply("fold", parts, extents=full, strides=strides, dilations=dilations)
    total = out * groups
    y = reshape_to(y, (y.shape[0], total, *full))
    y = _padded(y, tuple((0, m - i) for m, i in zip(more, inside, strict=True)), 0.0)
    full = y.shape[2:]
    starts: Shape = (0, 0, *cut)
    stops: Shape = (y.shape[0], total, *(e - c for e, c in zip(full, cut, strict=True)))
    if any(cut):
        y = apply("slice", y, starts=starts, stops=stops, steps=(1,) * 4)
    return _with_bias(name, y, b, total)


def max_pool1d(x: Node, size: Steps, stride: Steps | None = None, padding: Steps = 0) -> Node:
    """`max_pool2d` along one axis, for x (n, channels, length)."""
    return _max_pool("max_pool1d", 1, x, size, stride, padding)


def max_pool2d(x: Node, size: Steps, stride: Steps | None = None, padding: Steps = 0) -> Node:
    """The largest element of each window of x (n, channels, height, width); the stride is the size unless given.

    The padding, at most half of the size, never wins. Ties share the gradient equally, as in `sg.max`; in PyTorch the
    first one takes it. Windows that reach beyond the end are left out.
    """
    return _max_pool("max_pool2d", 2, x, size, stride, padding)


def avg_pool1d(
    x: Node, size: Steps, stride: Steps | None = None, padding: Steps = 0, *, count_padding: bool = True
) -> Node:
    """`avg_pool2d` along one axis, for x (n, channels, length)."""
    return _avg_pool("avg_pool1d", 1, x, size, stride, padding, count_padding)


def avg_pool2d(
    x: Node, size: Steps, stride: Steps | None = None, padding: Steps = 0, *, count_padding: bool = True
) -> Node:
    """The mean of each window of x (n, channels, height, width); the stride is the size unless given.

    Zeros of the padding count as elements unless `count_padding` is False. Windows that reach beyond the end are left
    out.
    """
    return _avg_pool("avg_pool2d", 2, x, size, stride, padding, count_padding)


def adaptive_avg_pool2d(x: Node, size: Steps) -> Node:
    """The means of x (n, channels, height, width) over so many parts of each axis, whose extents must be known.

    Part i reaches from floor(i extent / size) up to ceil((i + 1) extent / size), as in PyTorch.
    """
    name = "adaptive_avg_pool2d"
    _need_space(name, 2, x)
    for axis, count in enumerate(_steps(name, "size", 2, size), 2):
        extent = x.shape[axis]
        if not isinstance(extent, int) or extent < 1:
            raise ShapeError(f"nn.{name}: axis {axis} of {describe(x)} must have a known, positive extent")
        shares = np.zeros((count, extent), x.dtype.np)
        for part in range(count):
            start, stop = part * extent // count, -(-(part + 1) * extent // count)
            shares[part, start:stop] = 1.0 / (stop - start)
        out = "nc" + ("ty" if axis == 2 else "xt")
        x = apply("contract", x, as_node(x, shares), left="ncxy", right="tx" if axis == 2 else "ty", out=out)
    return x


def _convolve(
    name: str,
    rank: int,
    x: Node,
    w: Operand,
    b: Operand | None,
    stride: Steps,
    padding: Padding,
    dilation: Steps,
    groups: int,
) -> Node:
    w, sizes = _weights(name, rank, x, w)
    strides, dilations = _steps(name, "stride", rank, stride), _steps(name, "dilation", rank, dilation)
    pairs = _pairs(name, rank, padding, sizes, strides, dilations)
    out, each = w.shape[:2]
    _need_channels(name, x, each * groups)
    space, inside = _SPACE[:rank], _INSIDE[:rank]
    x = _padded(x, pairs, 0.0)
    if groups == 1:
        windows = _windows(name, x, sizes, strides, dilations)
        labels = {"left": f"nc{space}{inside}", "right": f"oc{inside}", "out": f"no{space}"}
        return _with_bias(name, apply("contract", windows, w, **labels), b, out)
    some = _group_size(name, "output channels", out, groups)
    x = reshape_to(x, (x.shape[0], groups, each, *x.shape[2:]))
    windows = _windows(name, x, sizes, strides, dilations)
    w = reshape_to(w, (groups, some, *w.shape[1:]))
    labels = {"left": f"ngc{space}{inside}", "right": f"goc{inside}", "out": f"ngo{space}"}
    y = apply("contract", windows, w, **labels)
    return _with_bias(name, reshape_to(y, (y.shape[0], out, *y.shape[3:])), b, out)


def _max_pool(name: str, rank: int, x: Node, size: Steps, stride: Steps | None, padding: Steps) -> Node:
    _need_space(name, rank, x)
    sizes, strides, pairs = _pooling(name, rank, size, stride, padding)
    windows = _windows(name, _padded(x, pairs, -math.inf), sizes, strides, (1,) * rank)
    return sg.max(windows, axis=tuple(range(-rank, 0)))


def _avg_pool(
    name: str, rank: int, x: Node, size: Steps, stride: Steps | None, padding: Steps, count_padding: bool
) -> Node:
    _need_space(name, rank, x)
    sizes, strides, pairs = _pooling(name, rank, size, stride, padding)
    axes = tuple(range(-rank, 0))
    total = sg.sum(_windows(name, _padded(x, pairs, 0.0), sizes, strides, (1,) * rank), axis=axes)
    if count_padding or pairs == ((0, 0),) * rank:
        return total * (1.0 / math.prod(sizes))
    ones = filled(x.graph, (1, 1, *x.shape[2:]), x.dtype, 1.0)
    return total / sg.sum(_windows(name, _padded(ones, pairs, 0.0), sizes, strides, (1,) * rank), axis=axes)


def _pooling(
    name: str, rank: int, size: Steps, stride: Steps | None, padding: Steps
) -> tuple[tuple[int, ...], tuple[int, ...], Pairs]:
    sizes = _steps(name, "size", rank, size)
    strides = sizes if stride is None else _steps(name, "stride", rank, stride)
    widths = _steps(name, "padding", rank, padding, least=0)
    if any(2 * width > extent for width, extent in zip(widths, sizes, strict=True)):
        raise ShapeError(f"nn.{name}: the padding {widths} is at most half of the size {sizes}")
    return sizes, strides, tuple((width, width) for width in widths)


def _windows(name: str, x: Node, sizes: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]) -> Node:
    try:
        return apply("window", x, sizes=sizes, strides=strides, dilations=dilations)
    except ShapeError as error:
        raise ShapeError(f"nn.{name}: {error}") from None


def _weights(name: str, rank: int, x: Node, w: Operand) -> tuple[Node, tuple[int, ...]]:
    _need_space(name, rank, x)
    w = as_node(x, w)
    sizes = tuple(e for e in w.shape[2:] if isinstance(e, int) and e > 0)
    if w.ndim != rank + 2 or len(sizes) != rank:
        raise ShapeError(f"nn.{name}: the weight has {rank + 2} dimensions, the last {rank} known, got {describe(w)}")
    if w.dtype is not x.dtype:
        raise DTypeError(f"nn.{name}: the data types of {describe(x)} and {describe(w)} differ; use sg.astype")
    return w, sizes


def _need_space(name: str, rank: int, x: Node) -> None:
    need_float(name, x)
    if x.ndim != rank + 2:
        raise ShapeError(f"nn.{name}: expected (batch, channels) and {rank} axes of space, got {describe(x)}")


def _need_channels(name: str, x: Node, channels: Extent) -> None:
    have = x.shape[1]
    if isinstance(have, int) and isinstance(channels, int) and have != channels:
        raise ShapeError(f"nn.{name}: the weight and groups want {channels} channels, got {describe(x)}")


def _group_size(name: str, what: str, extent: Extent, groups: int) -> int:
    if not isinstance(extent, int) or groups < 1 or extent % groups:
        raise ShapeError(f"nn.{name}: the {extent} {what} are no known multiple of {groups} groups")
    return extent // groups


def _steps(name: str, what: str, rank: int, given: Steps, least: int = 1) -> tuple[int, ...]:
    steps = tuple(given) if isinstance(given, Sequence) else (given,) * rank
    if len(steps) != rank or any(isinstance(s, bool) or not isinstance(s, int) or s < least for s in steps):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise ValueError(f"nn.{name}: {what} is one integer of at least {least} or {rank} of them, got {given!r}")
    return steps


def _pairs(
    name: str,
    rank: int,
    padding: Padding,
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
) -> Pairs:
    if isinstance(padding, str):
        if padding == "valid":
            return ((0, 0),) * rank
        if padding != "same":
            raise ValueError(f'nn.{name}: padding is "same", "valid" or integers, got {padding!r}')
        if any(s != 1 for s in strides):
            raise ValueError(f'nn.{name}: padding="same" needs a stride of 1, got {strides}; give the padding')
        spans = [d * (k - 1) for k, d in zip(sizes, dilations, strict=True)]
        return tuple((span // 2, span - span // 2) for span in spans)
    if isinstance(padding, Sequence) and len(padding) == rank and all(isinstance(p, Sequence) for p in padding):
        both = [_steps(name, "padding", 2, p, least=0) for p in padding]
        return tuple((pair[0], pair[1]) for pair in both)
    widths = _steps(name, "padding", rank, padding, least=0)  # pyright: ignore[reportArgumentType] checked there
    return tuple((width, width) for width in widths)


def _padded(x: Node, pairs: Pairs, fill: float) -> Node:
    if all(pair == (0, 0) for pair in pairs):
        return x
    low, high = (0, 0, *(p[0] for p in pairs)), (0, 0, *(p[1] for p in pairs))
    return apply("pad", x, low=low, high=high, value=scalar_literal(x.dtype, fill))


def _with_bias(name: str, y: Node, b: Operand | None, channels: Extent) -> Node:
    if b is None:
        return y
    b = as_node(y, b)
    need_shape(name, "the bias", b, (channels,))
    return y + reshape_to(b, (channels, *(1,) * (y.ndim - 2)))
