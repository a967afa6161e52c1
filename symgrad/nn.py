"""Layers and losses, as composites of array functions: no gradients and no lowering of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from symgrad import functions as sg
from symgrad import random
from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node, Operand, describe
from symgrad.operators import apply, as_node, broadcast_to, common, constant_like, reshape_to, source
from symgrad.types import Shape, int32, joint_shape

Axes = int | Sequence[int]


def relu(x: Node) -> Node:
    """max(x, 0), element by element; the gradient at 0 is 0."""
    return apply("maximum", x, constant_like(x, 0))


def leaky_relu(x: Node, slope: float = 0.01) -> Node:
    """x where it is positive, else slope * x; the gradient at 0 is slope."""
    _need_float("leaky_relu", x)
    return sg.where(x > 0, x, x * float(slope))


def elu(x: Node, alpha: float = 1.0) -> Node:
    """x where it is positive, else alpha * (exp(x) - 1); the gradient at 0 is alpha.

    Clevert, Unterthiner and Hochreiter, "Fast and Accurate Deep Network Learning by Exponential Linear Units" (2015).
    """
    _need_float("elu", x)
    positive = x > 0
    # exp of a large positive x would overflow in the branch that is not taken.
    below = sg.where(positive, constant_like(x, 0), x)
    return sg.where(positive, x, apply("expm1", below) * float(alpha))


def sigmoid(x: Node) -> Node:
    """1 / (1 + exp(-x)), without overflow."""
    _need_float("sigmoid", x)
    return apply("sigmoid", x)


def silu(x: Node) -> Node:
    """x * sigmoid(x). Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units" (2017)."""
    return x * sigmoid(x)


def softplus(x: Node) -> Node:
    """log(1 + exp(x)), without overflow and with full accuracy for every x; the gradient is sigmoid(x), also at 0."""
    _need_float("softplus", x)
    positive = x > 0
    # -|x|, written so that the derivative at 0 is one-sided: that of abs would be 0 there.
    folded = sg.where(positive, -x, x)
    return sg.where(positive, x, constant_like(x, 0)) + apply("log1p", apply("exp", folded))


def gelu(x: Node, approximate: Literal["none", "tanh"] = "none") -> Node:
    """x * Φ(x), with Φ the standard normal distribution function.

    `approximate="tanh"` takes 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))). Hendrycks and Gimpel, "Gaussian Error Linear
    Units" (2016).
    """
    _need_float("gelu", x)
    half = x * 0.5
    if approximate == "tanh":
        inner = (x + x * apply("square", x) * 0.044715) * math.sqrt(2 / math.pi)
        return half * (apply("tanh", inner) + 1.0)
    if approximate != "none":
        raise ValueError(f'nn.gelu: approximate is "none" or "tanh", got {approximate!r}')
    return half * (apply("erf", x * math.sqrt(0.5)) + 1.0)


def softmax(x: Node, axis: int = -1) -> Node:
    """exp(x) / sum(exp(x)) along an axis. Shifted by the largest element, so nothing overflows."""
    exponentials = apply("exp", _shifted("softmax", x, axis))
    return exponentials / sg.sum(exponentials, axis=axis, keepdims=True)


def log_softmax(x: Node, axis: int = -1) -> Node:
    """log(softmax(x)) along an axis, without the loss of accuracy of taking the logarithm of a small quotient."""
    shifted = _shifted("log_softmax", x, axis)
    return shifted - apply("log", sg.sum(apply("exp", shifted), axis=axis, keepdims=True))


def softmax_cross_entropy(logits: Node, labels: Operand, axis: int = -1) -> Node:
    """The cross entropy between labels and softmax(logits), for each example.

    `logits` are floating, with the classes along `axis`. `labels` are either integers of the shape of logits without
    that axis, each a class (negative ones count from the end; IndexError at the call when out of range), or floating
    weights of the shape of logits, such as probabilities. The result has the shape of logits without the axis and their
    data type; `sg.mean` of it is the usual loss. No finite logit overflows on the way.
    """
    axis = _one_axis("softmax_cross_entropy", logits, axis)
    labels = as_node(logits, labels)
    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    if labels.dtype.is_integer:
        _need_shape("softmax_cross_entropy", "integer labels", labels, shape)
        return _class_entropy(logits, labels, axis)
    if not labels.dtype.is_float:
        raise DTypeError(f"nn.softmax_cross_entropy: labels are integers or floating, got {describe(labels)}")
    _need_shape("softmax_cross_entropy", "floating labels", labels, logits.shape)
    return _weighted_entropy(logits, labels, axis)


def _class_entropy(logits: Node, labels: Node, axis: int) -> Node:
    classes = logits.shape[axis]
    index = apply("astype", apply("check_index", labels, extent=classes), dtype=int32)
    numbers = source(logits.graph, "iota", extent=classes, dtype=int32)
    numbers = reshape_to(numbers, (classes, *(1,) * (logits.ndim - 1 - axis)))
    # A comparison with every class instead of a gather: it joins the kernel of the reductions.
    chosen = apply("equal", *common("softmax_cross_entropy", sg.expand_dims(index, axis=axis), numbers))
    shifted = _shifted("softmax_cross_entropy", logits, axis)
    total = sg.sum(apply("exp", shifted), axis=axis)
    return apply("log", total) - sg.sum(sg.where(chosen, shifted, constant_like(shifted, 0)), axis=axis)


def _weighted_entropy(logits: Node, weights: Node, axis: int) -> Node:
    weights = apply("astype", weights, dtype=logits.dtype) if weights.dtype is not logits.dtype else weights
    # Halves, because the difference of two finite logits need not be finite.
    half = logits * 0.5
    half = half - sg.stop_gradient(sg.max(half, axis=axis, keepdims=True))
    log_total = apply("log", sg.sum(apply("exp", half * 2.0), axis=axis))
    # A class of weight 0 does not count, even where its logit is -inf.
    counted = sg.where(apply("equal", weights, constant_like(weights, 0)), constant_like(half, 0), half)
    return sg.sum(weights, axis=axis) * log_total - sg.sum(weights * counted, axis=axis) * 2.0


def binary_cross_entropy(logits: Node, targets: Operand) -> Node:
    """-t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)) for logits x and targets t in [0, 1], element by element.

    Computed as softplus(x) - t x, which does not overflow. Shapes broadcast.
    """
    _need_float("binary_cross_entropy", logits)
    x, t = common("binary_cross_entropy", logits, targets)
    return softplus(x) - t * x


def mse(predictions: Node, targets: Operand) -> Node:
    """The mean of (predictions - targets)² over all elements, 0-dimensional. The shapes must be equal."""
    _need_float("mse", predictions)
    targets = as_node(predictions, targets)
    _need_shape("mse", "targets", targets, predictions.shape)
    return sg.mean(apply("square", predictions - targets))


def huber(predictions: Node, targets: Operand, delta: float = 1.0) -> Node:
    """d² / 2 where |d| <= delta, else delta (|d| - delta / 2), with d = predictions - targets, element by element.

    The shapes must be equal. Huber, "Robust Estimation of a Location Parameter" (1964).
    """
    _need_float("huber", predictions)
    if not delta > 0:
        raise ValueError(f"nn.huber: delta is positive, got {delta}")
    targets = as_node(predictions, targets)
    _need_shape("huber", "targets", targets, predictions.shape)
    difference = predictions - targets
    bound = constant_like(difference, delta)
    clipped = apply("maximum", apply("minimum", difference, bound), -bound)
    # One formula for both sides: no square that is not used, which could overflow.
    return clipped * (difference - clipped * 0.5)


def layer_norm(
    x: Node, gamma: Operand | None = None, beta: Operand | None = None, axis: Axes = -1, eps: float = 1e-5
) -> Node:
    """(x - mean) / √(variance + eps) * gamma + beta, with mean and variance over the axes.

    The variance is that of the elements themselves, divided by their number. `gamma` and `beta` have the shape of x
    over the axes. Ba, Kiros and Hinton, "Layer Normalization" (2016).
    """
    axes = _axes("layer_norm", x, axis)
    centered = x - sg.mean(x, axis=axes, keepdims=True)
    variance = sg.mean(apply("square", centered), axis=axes, keepdims=True)
    return _affine("layer_norm", centered * apply("rsqrt", variance + float(eps)), gamma, beta, axes)


def rms_norm(x: Node, gamma: Operand | None = None, axis: Axes = -1, eps: float = 1e-5) -> Node:
    """x / √(mean(x²) + eps) * gamma, with the mean over the axes and `gamma` of the shape of x over them.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    axes = _axes("rms_norm", x, axis)
    square = sg.mean(apply("square", x), axis=axes, keepdims=True)
    return _affine("rms_norm", x * apply("rsqrt", square + float(eps)), gamma, None, axes)


def dropout(x: Node, rate: float) -> Node:
    """In training each element is 0 with probability rate, else divided by 1 - rate; in inference x itself.

    Each call draws bits of its own, and the derivative uses the same ones. Srivastava, Hinton, Krizhevsky, Sutskever
    and Salakhutdinov, "Dropout" (2014), with the scaling in training.
    """
    _need_float("dropout", x)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise ValueError(f"nn.dropout: rate is a number from 0 to below 1, got {rate!r}")
    if rate == 0:
        return x
    kept = random.bernoulli(x.graph, 1.0 - rate, x.shape)
    return sg.phase(sg.where(kept, x * (1.0 / (1.0 - rate)), constant_like(x, 0)), x)


def linear(x: Node, w: Operand, b: Operand | None = None) -> Node:
    """x @ w + b, for x of shape (..., in), w (in, out) and b (out,)."""
    w = as_node(x, w)
    if w.ndim != 2:
        raise ShapeError(f"nn.linear: the weight has the shape (in, out), got {describe(w)}")
    if b is None:
        return x @ w
    b = as_node(x, b)
    _need_shape("linear", "the bias", b, w.shape[1:])
    return x @ w + b


def _shifted(name: str, x: Node, axis: int) -> Node:
    """x less its largest element along an axis, which to derivatives is a constant: the shift cancels."""
    _one_axis(name, x, axis)
    return x - sg.stop_gradient(sg.max(x, axis=axis, keepdims=True))


def _affine(name: str, x: Node, gamma: Operand | None, beta: Operand | None, axes: tuple[int, ...]) -> Node:
    over = tuple(x.shape[a] for a in axes)
    spread: Shape = tuple(e if k in axes else 1 for k, e in enumerate(x.shape))
    for what, value in (("gamma", gamma), ("beta", beta)):
        if value is None:
            continue
        node = as_node(x, value)
        _need_shape(name, what, node, over)
        node = broadcast_to(reshape_to(node, spread), x.shape)
        x = x * node if what == "gamma" else x + node
    return x


def _axes(name: str, x: Node, axis: Axes) -> tuple[int, ...]:
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted(_one_axis(name, x, a) for a in given))
    if not axes or len(set(axes)) != len(axes):
        raise ShapeError(f"nn.{name}: axes are different and at least one, got {axis}")
    return axes


def _one_axis(name: str, x: Node, axis: int) -> int:
    _need_float(name, x)
    if not -x.ndim <= axis < x.ndim:
        raise ShapeError(f"nn.{name}: axis {axis} is out of range for {describe(x)}")
    return axis % x.ndim


def _need_float(name: str, x: Node) -> None:
    if not isinstance(x, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise TypeError(f"nn.{name}: expected a node, got {type(x).__name__}; make one with g.input or g.const")
    if not x.dtype.is_float:
        raise DTypeError(f"nn.{name}: expected a floating data type, got {describe(x)}; use sg.astype")


def _need_shape(name: str, what: str, node: Node, shape: Shape) -> None:
    if len(node.shape) == len(shape) and joint_shape(node.shape, shape) is not None:
        fits = all(have == want or not (have == 1 or want == 1) for have, want in zip(node.shape, shape, strict=True))
        if fits:
            return
    text = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
    raise ShapeError(f"nn.{name}: {what} must have the shape ({text}), got {describe(node)}")
