"""Losses, as composites of array functions; users see them as `sg.nn`."""

from __future__ import annotations

from symgrad import functions as sg
from symgrad.activations import relu, softplus
from symgrad.errors import DTypeError
from symgrad.graph import Node, Operand, describe
from symgrad.nn_checks import need_float, need_shape, one_axis, shifted
from symgrad.operators import apply, as_node, common, constant_like, reshape_to, source
from symgrad.types import int32


def softmax_cross_entropy(logits: Node, labels: Operand, axis: int = -1) -> Node:
    """The cross entropy between labels and softmax(logits), for each example.

    `logits` are floating, with the classes along `axis`. `labels` are either integers of the shape of logits without
    that axis, each a class (negative ones count from the end; IndexError at the call when out of range), or floating
    weights of the shape of logits, such as probabilities. The result has the shape of logits without the axis and their
    data type; `sg.mean` of it is the usual loss. No finite logit overflows on the way.
    """
    axis = one_axis("softmax_cross_entropy", logits, axis)
    labels = as_node(logits, labels)
    shape = logits.shape[:axis] + logits.shape[axis + 1 :]
    if labels.dtype.is_integer:
        need_shape("softmax_cross_entropy", "integer labels", labels, shape)
        return _class_entropy(logits, labels, axis)
    if not labels.dtype.is_float:
        raise DTypeError(f"nn.softmax_cross_entropy: labels are integers or floating, got {describe(labels)}")
    need_shape("softmax_cross_entropy", "floating labels", labels, logits.shape)
    return _weighted_entropy(logits, labels, axis)


def _class_entropy(logits: Node, labels: Node, axis: int) -> Node:
    chosen = _chosen("softmax_cross_entropy", logits, labels, axis)
    below = shifted("softmax_cross_entropy", logits, axis)
    total = sg.sum(apply("exp", below), axis=axis)
    return apply("log", total) - sg.sum(sg.where(chosen, below, constant_like(below, 0)), axis=axis)


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
    need_float("binary_cross_entropy", logits)
    x, t = common("binary_cross_entropy", logits, targets)
    return softplus(x) - t * x


def mse(predictions: Node, targets: Operand) -> Node:
    """The mean of (predictions - targets)² over all elements, 0-dimensional. The shapes must be equal."""
    need_float("mse", predictions)
    targets = as_node(predictions, targets)
    need_shape("mse", "targets", targets, predictions.shape)
    return sg.mean(apply("square", predictions - targets))


def huber(predictions: Node, targets: Operand, delta: float = 1.0) -> Node:
    """d² / 2 where |d| <= delta, else delta (|d| - delta / 2), with d = predictions - targets, element by element.

    The shapes must be equal. Huber, "Robust Estimation of a Location Parameter" (1964).
    """
    need_float("huber", predictions)
    if not delta > 0:
        raise ValueError(f"nn.huber: delta is positive, got {delta}")
    targets = as_node(predictions, targets)
    need_shape("huber", "targets", targets, predictions.shape)
    difference = predictions - targets
    bound = constant_like(difference, delta)
    clipped = apply("maximum", apply("minimum", difference, bound), -bound)
    # One formula for both sides: no square that is not used, which could overflow.
    return clipped * (difference - clipped * 0.5)


def nll(log_probabilities: Node, labels: Operand, axis: int = -1) -> Node:
    """-log_probabilities at the label of each example, for log_probabilities such as `log_softmax` gives.

    The labels are integers of the shape without the axis; negative ones count from the end, and one out of range is an
    IndexError at the call. `sg.mean` of it is nll_loss of PyTorch.
    """
    axis = one_axis("nll", log_probabilities, axis)
    x = log_probabilities
    labels = as_node(x, labels)
    if not labels.dtype.is_integer:
        raise DTypeError(f"nn.nll: labels are integers, got {describe(labels)}")
    need_shape("nll", "integer labels", labels, x.shape[:axis] + x.shape[axis + 1 :])
    return -sg.sum(sg.where(_chosen("nll", x, labels, axis), x, constant_like(x, 0)), axis=axis)


def kl_div(log_q: Node, p: Operand) -> Node:
    """p (log p - log_q), element by element, 0 where p is 0: its sum is the divergence of q from p.

    The shapes must be equal. Kullback and Leibler, "On Information and Sufficiency" (1951).
    """
    need_float("kl_div", log_q)
    p = as_node(log_q, p)
    need_shape("kl_div", "p", p, log_q.shape)
    present = p > 0
    safe = sg.where(present, p, constant_like(p, 1))
    return sg.where(present, p * (apply("log", safe) - log_q), constant_like(p, 0))


def hinge(scores: Node, targets: Operand) -> Node:
    """max(0, 1 - targets * scores), for targets -1 and 1, element by element; the gradient at the corner is 0."""
    return relu(1.0 - _signed("hinge", scores, targets))


def squared_hinge(scores: Node, targets: Operand) -> Node:
    """The square of `hinge`, which has no corner."""
    return apply("square", relu(1.0 - _signed("squared_hinge", scores, targets)))


def l1(predictions: Node, targets: Operand) -> Node:
    """The mean of |predictions - targets| over all elements, 0-dimensional. The shapes must be equal."""
    need_float("l1", predictions)
    targets = as_node(predictions, targets)
    need_shape("l1", "targets", targets, predictions.shape)
    return sg.mean(sg.abs(predictions - targets))


def smooth_l1(predictions: Node, targets: Operand, beta: float = 1.0) -> Node:
    """d² / (2 beta) where |d| <= beta, else |d| - beta / 2, element by element: `huber` divided by its delta.

    Girshick, "Fast R-CNN" (2015).
    """
    return huber(predictions, targets, beta) * (1.0 / float(beta))


def cosine_similarity(a: Node, b: Operand, axis: int = -1, eps: float = 1e-8) -> Node:
    """a · b / (max(|a|, eps) max(|b|, eps)) along an axis; shapes broadcast. The gradient at 0 is finite."""
    need_float("cosine_similarity", a)
    a, other = common("cosine_similarity", a, b)
    axis = one_axis("cosine_similarity", a, axis)
    floor = float(eps)
    dot = sg.sum(a * other, axis=axis)
    return dot * _inverse_norm(a, axis, floor) * _inverse_norm(other, axis, floor)


def _inverse_norm(x: Node, axis: int, floor: float) -> Node:
    # Scaled by the largest element, so that squares neither overflow nor vanish.
    size = sg.stop_gradient(sg.max(sg.abs(x), axis=axis, keepdims=True))
    size = apply("maximum", size, constant_like(size, floor))
    scaled = sg.sum(apply("square", x / size), axis=axis)
    size = sg.squeeze(size, axis)
    # Ties go to the bound: at 0 the norm is a constant, and its derivative is not the infinite one of a root.
    smallest = floor / size
    return apply("rsqrt", apply("maximum", scaled, apply("square", smallest))) / size


def _signed(name: str, scores: Node, targets: Operand) -> Node:
    need_float(name, scores)
    targets = as_node(scores, targets)
    need_shape(name, "targets", targets, scores.shape)
    return scores * targets


def _chosen(name: str, x: Node, labels: Node, axis: int) -> Node:
    """Where along the axis the label of each example is."""
    classes = x.shape[axis]
    index = apply("astype", apply("check_index", labels, extent=classes), dtype=int32)
    numbers = source(x.graph, "iota", extent=classes, dtype=int32)
    numbers = reshape_to(numbers, (classes, *(1,) * (x.ndim - 1 - axis)))
    # A comparison with every class instead of a gather: it joins the kernel of the reductions.
    return apply("equal", *common(name, sg.expand_dims(index, axis=axis), numbers))
