"""Activations of layers, as composites of array functions; users see them as `sg.nn`."""

from __future__ import annotations

import math
from typing import Literal

from symgrad import functions as sg
from symgrad.arguments import checked
from symgrad.errors import ShapeError
from symgrad.graph import Node, describe
from symgrad.nn_checks import need_float, one_axis, shifted
from symgrad.operators import apply, constant_like


@checked
def relu(x: Node) -> Node:
    """max(x, 0), element by element; the gradient at 0 is 0."""
    return apply("maximum", x, constant_like(x, 0))


def leaky_relu(x: Node, slope: float = 0.01) -> Node:
    """x where it is positive, else slope * x; the gradient at 0 is slope."""
    need_float("leaky_relu", x)
    return sg.where(x > 0, x, x * float(slope))


def elu(x: Node, alpha: float = 1.0) -> Node:
    """x where it is positive, else alpha * (exp(x) - 1); the gradient at 0 is alpha.

    Clevert, Unterthiner and Hochreiter, "Fast and Accurate Deep Network Learning by Exponential Linear Units" (2015).
    """
    need_float("elu", x)
    positive = x > 0
    # exp of a large positive x would overflow in the branch that is not taken.
    below = sg.where(positive, constant_like(x, 0), x)
    return sg.where(positive, x, apply("expm1", below) * float(alpha))


def sigmoid(x: Node) -> Node:
    """1 / (1 + exp(-x)), without overflow."""
    need_float("sigmoid", x)
    return apply("sigmoid", x)


def silu(x: Node) -> Node:
    """x * sigmoid(x). Elfwing, Uchibe and Doya, "Sigmoid-Weighted Linear Units" (2017)."""
    return x * sigmoid(x)


def softplus(x: Node) -> Node:
    """log(1 + exp(x)), without overflow and with full accuracy for every x; the gradient is sigmoid(x), also at 0."""
    need_float("softplus", x)
    positive = x > 0
    # -|x|, written so that the derivative at 0 is one-sided: that of abs would be 0 there.
    folded = sg.where(positive, -x, x)
    return sg.where(positive, x, constant_like(x, 0)) + apply("log1p", apply("exp", folded))


def gelu(x: Node, approximate: Literal["none", "tanh"] = "none") -> Node:
    """x * Φ(x), with Φ the standard normal distribution function.

    `approximate="tanh"` takes 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³))). Hendrycks and Gimpel, "Gaussian Error Linear
    Units" (2016).
    """
    need_float("gelu", x)
    half = x * 0.5
    if approximate == "tanh":
        inner = (x + x * apply("square", x) * 0.044715) * math.sqrt(2 / math.pi)
        return half * (apply("tanh", inner) + 1.0)
    if approximate != "none":
        raise ValueError(f'nn.gelu: approximate is "none" or "tanh", got {approximate!r}')
    return half * (apply("erf", x * math.sqrt(0.5)) + 1.0)


def softmax(x: Node, axis: int = -1) -> Node:
    """exp(x) / sum(exp(x)) along an axis. Shifted by the largest element, so nothing overflows."""
    exponentials = apply("exp", shifted("softmax", x, axis))
    return exponentials / sg.sum(exponentials, axis=axis, keepdims=True)


def log_softmax(x: Node, axis: int = -1) -> Node:
    """log(softmax(x)) along an axis, without the loss of accuracy of taking the logarithm of a small quotient."""
    below = shifted("log_softmax", x, axis)
    return below - apply("log", sg.sum(apply("exp", below), axis=axis, keepdims=True))


def softsign(x: Node) -> Node:
    """x / (1 + |x|)."""
    need_float("softsign", x)
    return x / (sg.abs(x) + 1.0)


def relu6(x: Node) -> Node:
    """min(max(x, 0), 6); the gradient at both ends is 0. Krizhevsky, "Convolutional Deep Belief Networks" (2010)."""
    return _between("relu6", x, 0.0, 6.0)


def hard_tanh(x: Node, low: float = -1.0, high: float = 1.0) -> Node:
    """x held between low and high; the gradient at both ends is 0."""
    if not low < high:
        raise ValueError(f"nn.hard_tanh: low is less than high, got {low} and {high}")
    return _between("hard_tanh", x, low, high)


def hard_sigmoid(x: Node) -> Node:
    """min(max(x + 3, 0), 6) / 6: piecewise linear, as in PyTorch."""
    need_float("hard_sigmoid", x)
    return _between("hard_sigmoid", x + 3.0, 0.0, 6.0) * (1.0 / 6.0)


def hard_swish(x: Node) -> Node:
    """x * hard_sigmoid(x). Howard and others, "Searching for MobileNetV3" (2019)."""
    return x * hard_sigmoid(x)


def selu(x: Node) -> Node:
    """scale * elu(x, alpha), with the constants for which layers normalize themselves.

    Klambauer, Unterthiner, Mayr and Hochreiter, "Self-Normalizing Neural Networks" (2017).
    """
    return elu(x, 1.6732632423543772848170429916717) * 1.0507009873554804934193349852946


def mish(x: Node) -> Node:
    """x * tanh(softplus(x)). Misra, "Mish: A Self Regularized Non-Monotonic Activation Function" (2019)."""
    return x * apply("tanh", softplus(x))


def glu(x: Node, axis: int = -1) -> Node:
    """a * sigmoid(b), with a and b the first and the second half of x along an axis of even extent.

    Dauphin, Fan, Auli and Grangier, "Language Modeling with Gated Convolutional Networks" (2016).
    """
    axis = one_axis("glu", x, axis)
    extent = x.shape[axis]
    if not isinstance(extent, int) or extent % 2:
        raise ShapeError(f"nn.glu: axis {axis} of {describe(x)} must have an even extent that is known")
    a, b = sg.split(x, 2, axis)
    return a * sigmoid(b)


def _between(name: str, x: Node, low: float, high: float) -> Node:
    need_float(name, x)
    return apply("minimum", apply("maximum", x, constant_like(x, low)), constant_like(x, high))
