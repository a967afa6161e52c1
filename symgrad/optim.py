"""Optimizers: from params and gradients to update nodes in the same graph.

Each optimizer gives a list of updates (param or state, new value) for the `updates` of `sg.compile`. What an optimizer
remembers is a state named after its param, such as `w1/momentum`, of the param's shape and data type; calling the same
optimizer twice for a param shares it. A gradient of None leaves its param alone. `lr` is a number or a 0-dimensional
node, such as a schedule; where it depends on the count of `step_counter`, the updates advance that count by one.

    step = sg.optim.step_counter(g)
    lr = sg.optim.cosine(step, 0.1, steps=1000)
    train = sg.compile([x, t], loss, updates=sg.optim.adam(g.params, grads, lr=lr))
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np

from symgrad import functions as sg
from symgrad.arguments import checked, node_list, not_a_node
from symgrad.errors import GraphError, ShapeError
from symgrad.graph import STATEFUL, Graph, Node, ancestors, describe
from symgrad.operators import apply, constant_like, scalar_const
from symgrad.states import graph_state
from symgrad.types import DType, float32

Updates: TypeAlias = list[tuple[Node, Node]]
Rate: TypeAlias = float | Node

_STEP = "step"


def sgd(params: Sequence[Node], grads: Sequence[Node | None], lr: Rate, *, weight_decay: float = 0.0) -> Updates:
    """p - lr * g, where g has weight_decay * p added."""
    updates: Updates = []
    for param, grad in _pairs("sgd", params, grads):
        updates.append((param, param - _rate(lr, param) * _decayed(param, grad, weight_decay)))
    return updates + _advanced(lr)


def momentum(
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate,
    beta: float = 0.9,
    *,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> Updates:
    """m = beta * m + g; p - lr * m, or with `nesterov` p - lr * (g + beta * m). m starts at 0.

    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep learning" (2013), in
    the form of PyTorch's SGD without dampening: the learning rate is outside the moment.
    """
    updates: Updates = []
    for param, plain in _pairs("momentum", params, grads):
        grad = _decayed(param, plain, weight_decay)
        old = _moment(param, "momentum")
        new = old * float(beta) + grad
        direction = grad + new * float(beta) if nesterov else new
        updates += [(param, param - _rate(lr, param) * direction), (old, new)]
    return updates + _advanced(lr)


def nesterov(
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate,
    beta: float = 0.9,
    *,
    weight_decay: float = 0.0,
) -> Updates:
    """Nesterov's momentum: `momentum` with nesterov=True."""
    return momentum(params, grads, lr, beta, weight_decay=weight_decay, nesterov=True)


def adam(
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Updates:
    """p - lr * (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + eps), with the moments m and v.

    m = β₁ m + (1 - β₁) g and v = β₂ v + (1 - β₂) g², from 0. Kingma and Ba, "Adam: A Method for Stochastic
    Optimization" (2015), algorithm 1. `weight_decay` adds weight_decay * p to g, as in PyTorch. t counts the calls of
    the updates of these params, in a state of its own.
    """
    rates = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return _adam("adam", params, grads, lr, decoupled=False, **rates)


def adamw(
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate = 1e-3,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Updates:
    """`adam`, with lr * weight_decay * p taken from p instead of added to the gradient.

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), with the decay scaled by lr as in PyTorch.
    """
    rates = {"beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
    return _adam("adamw", params, grads, lr, decoupled=True, **rates)


def rmsprop(
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    *,
    weight_decay: float = 0.0,
) -> Updates:
    """v = α v + (1 - α) g²; p - lr * g / (√v + eps).

    Hinton, lecture 6e of "Neural Networks for Machine Learning" (2012), with eps outside the root as in PyTorch.
    """
    updates: Updates = []
    for param, plain in _pairs("rmsprop", params, grads):
        grad = _decayed(param, plain, weight_decay)
        old = _moment(param, "square")
        new = old * float(alpha) + apply("square", grad) * (1.0 - alpha)
        updates += [(param, param - _rate(lr, param) * (grad / (apply("sqrt", new) + float(eps)))), (old, new)]
    return updates + _advanced(lr)


def adagrad(
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate = 1e-2,
    eps: float = 1e-10,
    *,
    weight_decay: float = 0.0,
) -> Updates:
    """v = v + g²; p - lr * g / (√v + eps). Duchi, Hazan and Singer, "Adaptive Subgradient Methods" (2011)."""
    updates: Updates = []
    for param, plain in _pairs("adagrad", params, grads):
        grad = _decayed(param, plain, weight_decay)
        old = _moment(param, "square_sum")
        new = old + apply("square", grad)
        updates += [(param, param - _rate(lr, param) * (grad / (apply("sqrt", new) + float(eps)))), (old, new)]
    return updates + _advanced(lr)


def clip_by_global_norm(grads: Sequence[Node], max_norm: Rate) -> tuple[list[Node], Node]:
    """The gradients scaled so that their common norm is at most max_norm, and the norm before.

    The norm is that of all elements together; the scale is min(1, max_norm / (norm + 1e-6)), as in PyTorch. Pascanu,
    Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (2013).
    """
    grads = node_list("optim.clip_by_global_norm", grads)
    if not grads:
        raise GraphError("optim.clip_by_global_norm: there is no gradient")
    total = sg.sum(apply("square", grads[0]))
    for grad in grads[1:]:
        total = total + sg.sum(apply("square", grad))
    norm = apply("sqrt", total)
    limit = max_norm if isinstance(max_norm, Node) else constant_like(norm, max_norm)
    scale = sg.minimum(limit / (norm + 1e-6), constant_like(norm, 1))
    return [grad * _cast(scale, grad.dtype) for grad in grads], norm


@checked
def step_counter(graph: Graph) -> Node:
    """The int64 state `step` that schedules read: how many updates were made. Made at 0 when the graph has none."""
    return graph_state(graph, _STEP, np.zeros((), np.int64))


@checked
def constant(step: Node, lr: float) -> Node:
    """The same rate at every step, float32."""
    return scalar_const(step.graph, float32, lr)


@checked
def exponential(step: Node, lr: float, rate: float, steps: float = 1.0) -> Node:
    """lr * rate ** (step / steps), float32."""
    if not rate > 0 or not steps > 0:
        raise ValueError(f"optim.exponential: rate and steps are positive, got {rate} and {steps}")
    return apply("exp", _count(step) * (math.log(rate) / steps)) * float(lr)


@checked
def cosine(step: Node, lr: float, steps: int, end: float = 0.0) -> Node:
    """From lr at step 0 along half a cosine to `end` at `steps`, then `end`; float32.

    Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (2017), equation 5, without restarts.
    """
    done = sg.minimum(_count(step), _at_least_one("cosine", steps, step)) * (math.pi / steps)
    return (apply("cos", done) + 1.0) * (0.5 * (lr - end)) + float(end)


@checked
def linear_warmup(step: Node, lr: Rate, steps: int) -> Node:
    """lr * min(1, (step + 1) / steps), float32. `lr` may be another schedule, which it then scales."""
    scale = sg.minimum(_count(step) + 1.0, _at_least_one("linear_warmup", steps, step)) * (1.0 / steps)
    return scale * lr


def _adam(
    name: str,
    params: Sequence[Node],
    grads: Sequence[Node | None],
    lr: Rate,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> Updates:
    pairs = _pairs(name, params, grads)
    if not pairs:
        return []
    first = pairs[0][0]
    old_count = graph_state(first.graph, f"{first.name}/{name}_count", np.zeros((), np.int64))
    new_count = old_count + 1
    updates: Updates = [(old_count, new_count)]
    for param, plain in pairs:
        rate, count = _rate(lr, param), _cast(new_count, param.dtype)
        grad = plain if decoupled else _decayed(param, plain, weight_decay)
        kept = param - rate * float(weight_decay) * param if decoupled and weight_decay else param
        old_mean, old_square = _moment(param, "mean"), _moment(param, "square")
        mean = old_mean * float(beta1) + grad * (1.0 - beta1)
        square = old_square * float(beta2) + apply("square", grad) * (1.0 - beta2)
        # 1 - βᵗ from expm1: the plain difference has few digits while βᵗ is near 1.
        mean_bias, square_bias = (_bias(count, beta) for beta in (beta1, beta2))
        denominator = apply("sqrt", square) / apply("sqrt", square_bias) + float(eps)
        updates += [(param, kept - rate / mean_bias * (mean / denominator)), (old_mean, mean), (old_square, square)]
    return updates + _advanced(lr)


def _bias(count: Node, beta: float) -> Node:
    if not 0 <= beta < 1:
        raise ValueError(f"optim: a decay rate is from 0 to below 1, got {beta}")
    if beta == 0:
        return constant_like(count, 1)
    return -apply("expm1", count * math.log(beta))


def _pairs(name: str, params: Sequence[Node], grads: Sequence[Node | None]) -> list[tuple[Node, Node]]:
    params = node_list(f"optim.{name}", params)
    grads = list(grads) if isinstance(grads, Iterable) else node_list(f"optim.{name}", grads)  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
    if len(params) != len(grads):
        raise ShapeError(f"optim.{name}: {len(params)} params but {len(grads)} gradients; pass one for each, in order")
    pairs: list[tuple[Node, Node]] = []
    for param, grad in zip(params, grads, strict=True):
        if param.op.name not in STATEFUL or not param.dtype.is_float:
            raise GraphError(f"optim.{name}: {describe(param)} is no floating param or state and cannot be updated")
        if grad is None:
            continue
        if not isinstance(grad, Node):  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
            raise not_a_node(f"optim.{name}", grad)
        if grad.type != param.type:
            raise ShapeError(f"optim.{name}: the gradient {describe(grad)} does not have the type of {describe(param)}")
        pairs.append((param, grad))
    return pairs


def _moment(param: Node, name: str) -> Node:
    shape = tuple(int(d) for d in param.shape)
    return graph_state(param.graph, f"{param.name}/{name}", np.zeros(shape, param.dtype.np))


def _rate(lr: Rate, param: Node) -> Rate:
    if not isinstance(lr, Node):
        return float(lr)
    if lr.shape:
        raise ShapeError(f"optim: a learning rate is 0-dimensional, got {describe(lr)}")
    return _cast(lr, param.dtype)


def _decayed(param: Node, grad: Node, weight_decay: float) -> Node:
    return grad + param * float(weight_decay) if weight_decay else grad


def _advanced(lr: Rate) -> Updates:
    """The advance of the count, where the rate reads it."""
    if not isinstance(lr, Node):
        return []
    return [(n, n + 1) for n in ancestors([lr]) if n.op.name == "state" and n.name == _STEP]


def _cast(node: Node, dtype: DType) -> Node:
    return node if node.dtype is dtype else apply("astype", node, dtype=dtype)


def _count(step: Node) -> Node:
    return _cast(step, float32)


def _at_least_one(name: str, steps: int, step: Node) -> Node:
    if not steps >= 1:
        raise ValueError(f"optim.{name}: steps is at least 1, got {steps}")
    return scalar_const(step.graph, float32, steps)
