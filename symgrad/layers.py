"""Layers without convolutions, as composites of array functions; users see them as `sg.nn`."""

from __future__ import annotations

import math

from symgrad import functions as sg
from symgrad import random
from symgrad.activations import sigmoid
from symgrad.arguments import checked
from symgrad.errors import DTypeError, ShapeError
from symgrad.graph import Node, Operand, describe
from symgrad.nn_checks import Axes, need_float, need_shape, normal_axes, one_axis
from symgrad.operators import apply, as_node, broadcast_to, constant_like, reshape_to, source
from symgrad.types import Shape, bool_, int32, size_of


def layer_norm(
    x: Node, gamma: Operand | None = None, beta: Operand | None = None, axis: Axes = -1, eps: float = 1e-5
) -> Node:
    """(x - mean) / √(variance + eps) * gamma + beta, with mean and variance over the axes.

    The variance is that of the elements themselves, divided by their number. `gamma` and `beta` have the shape of x
    over the axes. Ba, Kiros and Hinton, "Layer Normalization" (2016).
    """
    axes = normal_axes("layer_norm", x, axis)
    centered = x - sg.mean(x, axis=axes, keepdims=True)
    variance = sg.mean(apply("square", centered), axis=axes, keepdims=True)
    return _affine("layer_norm", centered * apply("rsqrt", variance + float(eps)), gamma, beta, axes)


def rms_norm(x: Node, gamma: Operand | None = None, axis: Axes = -1, eps: float = 1e-5) -> Node:
    """x / √(mean(x²) + eps) * gamma, with the mean over the axes and `gamma` of the shape of x over them.

    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).
    """
    axes = normal_axes("rms_norm", x, axis)
    square = sg.mean(apply("square", x), axis=axes, keepdims=True)
    return _affine("rms_norm", x * apply("rsqrt", square + float(eps)), gamma, None, axes)


def dropout(x: Node, rate: float) -> Node:
    """In training each element is 0 with probability rate, else divided by 1 - rate; in inference x itself.

    Each call draws bits of its own, and the derivative uses the same ones. Srivastava, Hinton, Krizhevsky, Sutskever
    and Salakhutdinov, "Dropout" (2014), with the scaling in training.
    """
    need_float("dropout", x)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:  # pyright: ignore[reportUnnecessaryIsInstance] users pass anything
        raise ValueError(f"nn.dropout: rate is a number from 0 to below 1, got {rate!r}")
    if rate == 0:
        return x
    kept = random.bernoulli(x.graph, 1.0 - rate, x.shape)
    return sg.phase(sg.where(kept, x * (1.0 / (1.0 - rate)), constant_like(x, 0)), x)


@checked
def linear(x: Node, w: Operand, b: Operand | None = None) -> Node:
    """x @ w + b, for x of shape (..., in), w (in, out) and b (out,)."""
    w = as_node(x, w)
    if w.ndim != 2:
        raise ShapeError(f"nn.linear: the weight has the shape (in, out), got {describe(w)}")
    if b is None:
        return x @ w
    b = as_node(x, b)
    need_shape("linear", "the bias", b, w.shape[1:])
    return x @ w + b


def _affine(name: str, x: Node, gamma: Operand | None, beta: Operand | None, axes: tuple[int, ...]) -> Node:
    over = tuple(x.shape[a] for a in axes)
    spread: Shape = tuple(e if k in axes else 1 for k, e in enumerate(x.shape))
    for what, value in (("gamma", gamma), ("beta", beta)):
        if value is None:
            continue
        node = as_node(x, value)
        need_shape(name, what, node, over)
        node = broadcast_to(reshape_to(node, spread), x.shape)
        x = x * node if what == "gamma" else x + node
    return x


def group_norm(
    x: Node, groups: int, gamma: Operand | None = None, beta: Operand | None = None, eps: float = 1e-5
) -> Node:
    """x of shape (n, channels, ...) normalized over each of so many groups of channels, then * gamma + beta by channel.

    With as many groups as channels this is instance normalization. Wu and He, "Group Normalization" (2018).
    """
    one_axis("group_norm", x, 1)
    channels = x.shape[1]
    if not isinstance(channels, int) or groups < 1 or channels % groups:
        raise ShapeError(f"nn.group_norm: the channels of {describe(x)} must be a known multiple of {groups} groups")
    parts = reshape_to(x, (x.shape[0], groups, channels // groups, *x.shape[2:]))
    axes = tuple(range(2, parts.ndim))
    centered = parts - sg.mean(parts, axis=axes, keepdims=True)
    variance = sg.mean(apply("square", centered), axis=axes, keepdims=True)
    normal = reshape_to(centered * apply("rsqrt", variance + float(eps)), x.shape)
    return _affine("group_norm", normal, gamma, beta, (1,))


@checked
def batch_norm(
    x: Node,
    gamma: Operand | None,
    beta: Operand | None,
    running_mean: Node,
    running_var: Node,
    momentum: float = 0.1,
    eps: float = 1e-5,
    axis: int = 1,
) -> tuple[Node, list[tuple[Node, Node]]]:
    """x normalized for each channel along the axis, then * gamma + beta, and the updates of the running statistics.

    In training mean and variance are those of the batch, in inference the running ones: one `sg.phase`. The second
    result belongs into the updates of the training function, beside those of the optimizer:

        mean, var = g.state("mean", np.zeros(8, np.float32)), g.state("var", np.ones(8, np.float32))
        h, running = sg.nn.batch_norm(x, gamma, beta, mean, var)
        train = sg.compile([x], loss, updates=[*sg.optim.sgd(g.params, grads, 0.1), *running])

    The conventions are PyTorch's: new = (1 - momentum) * old + momentum * batch, where the batch's variance is divided
    by the count less one for the running value and by the count for normalizing. Ioffe and Szegedy, "Batch
    Normalization" (2015).
    """
    axis = one_axis("batch_norm", x, axis)
    for what, state in (("running_mean", running_mean), ("running_var", running_var)):
        need_shape("batch_norm", what, state, (x.shape[axis],))
    over = tuple(k for k in range(x.ndim) if k != axis)
    if not over:
        raise ShapeError(f"nn.batch_norm: no axis is left to normalize over in {describe(x)}")
    spread: Shape = tuple(e if k == axis else 1 for k, e in enumerate(x.shape))
    mean = sg.mean(x, axis=over, keepdims=True)
    centered = x - mean
    squares = sg.sum(apply("square", centered), axis=over, keepdims=True)
    count = size_of(tuple(x.shape[k] for k in over))
    batch = centered * apply("rsqrt", squares / count + float(eps))
    known = x - reshape_to(running_mean, spread)
    known = known * apply("rsqrt", reshape_to(running_var, spread) + float(eps))
    fewer = max(count - 1, 1) if isinstance(count, int) else sg.maximum(as_node(x, count - 1), 1.0)
    rate = float(momentum)
    new_mean = running_mean * (1.0 - rate) + reshape_to(mean, running_mean.shape) * rate
    new_var = running_var * (1.0 - rate) + reshape_to(squares / fewer, running_var.shape) * rate
    y = _affine("batch_norm", sg.phase(batch, known), gamma, beta, (axis,))
    return y, [(running_mean, new_mean), (running_var, new_var)]


def embedding(table: Node, indices: Operand) -> Node:
    """The rows of a table (count, ...) at integer indices: shape of the indices, then that of a row.

    Negative indices count from the end; IndexError at the call for one out of range. The gradient adds up where an
    index repeats.
    """
    need_float("embedding", table)
    return sg.take(table, indices, axis=0)


def attention(
    q: Node, k: Node, v: Node, mask: Operand | None = None, *, causal: bool = False, scale: float | None = None
) -> Node:
    """softmax(q kᵀ scale) v for q (..., m, d), k (..., n, d) and v (..., n, e); leading axes broadcast.

    `scale` is 1 / √d unless given. A bool `mask` that broadcasts to (..., m, n) says who is attended to, a floating one
    is added to the scores; `causal` lets row i attend to columns up to i. A row that attends to nothing is 0, with
    gradients of 0. Vaswani and others, "Attention Is All You Need" (2017); the conventions of
    scaled_dot_product_attention of PyTorch but for such rows, which are NaN there for floating masks.
    """
    for node in (q, k, v):
        need_float("attention", node)
    if min(q.ndim, k.ndim, v.ndim) < 2:
        raise ShapeError(f"nn.attention: q, k and v have at least 2 dimensions, got {q.shape}, {k.shape}, {v.shape}")
    width = q.shape[-1]
    if scale is None:
        if not isinstance(width, int) or width < 1:
            raise ShapeError(
                f"nn.attention: the last extent of {describe(q)} must be known and positive; or give scale="
            )
        scale = 1.0 / math.sqrt(width)
    scores = (q * float(scale)) @ sg.matrix_transpose(k)
    if mask is not None:
        given = as_node(q, mask)
        if given.dtype is bool_:
            scores = sg.where(given, scores, -math.inf)
        elif given.dtype.is_float:
            scores = scores + given
        else:
            raise DTypeError(f"nn.attention: the mask is bool or floating, got {describe(given)}")
    if causal:
        rows = source(q.graph, "iota", extent=scores.shape[-2], dtype=int32)
        columns = source(q.graph, "iota", extent=scores.shape[-1], dtype=int32)
        scores = sg.where(columns <= sg.expand_dims(rows, 1), scores, -math.inf)
    top = sg.stop_gradient(sg.max(scores, axis=-1, keepdims=True))
    exponentials = apply("exp", scores - sg.where(top > -math.inf, top, constant_like(top, 0)))
    total = sg.sum(exponentials, axis=-1, keepdims=True)
    # Divided after the product with v: there are fewer elements.
    return (exponentials @ v) / sg.where(total > 0, total, constant_like(total, 1))


def rnn_cell(x: Node, h: Node, w_x: Operand, w_h: Operand, b: Operand | None = None) -> Node:
    """One step of a recurrent layer: tanh(x @ w_x + h @ w_h + b), for x (..., in) and h (..., hidden).

    The weights lie as those of `linear`: w_x (in, hidden), w_h (hidden, hidden), which are PyTorch's transposed; b is
    the sum of its two biases. Elman, "Finding Structure in Time" (1990).
    """
    return apply("tanh", _gates("rnn_cell", x, h, w_x, w_h, b, 1)[0])


def lstm_cell(x: Node, h: Node, c: Node, w_x: Operand, w_h: Operand, b: Operand | None = None) -> tuple[Node, Node]:
    """One step of a long short-term memory: the new h and c, for x (..., in), h and c (..., hidden).

    w_x (in, 4 hidden), w_h (hidden, 4 hidden) and b (4 hidden,) hold the input, forget, cell and output gates in
    PyTorch's order; its weights are these transposed, b is the sum of its two biases. Hochreiter and Schmidhuber, "Long
    Short-Term Memory" (1997), with the forget gate of Gers, Schmidhuber and Cummins (2000).
    """
    total = _gates("lstm_cell", x, h, w_x, w_h, b, 4)[0]
    need_shape("lstm_cell", "c", c, h.shape)
    enter, forget, cell, leave = sg.split(total, 4, -1)
    c = sigmoid(forget) * c + sigmoid(enter) * apply("tanh", cell)
    return sigmoid(leave) * apply("tanh", c), c


def gru_cell(
    x: Node, h: Node, w_x: Operand, w_h: Operand, b_x: Operand | None = None, b_h: Operand | None = None
) -> Node:
    """One step of a gated recurrent unit: the new h, for x (..., in) and h (..., hidden).

    w_x (in, 3 hidden), w_h (hidden, 3 hidden) and the biases (3 hidden,) hold the reset, update and new gates in
    PyTorch's order; its weights are these transposed. The reset gate applies to h @ w_h + b_h. Cho and others,
    "Learning Phrase Representations using RNN Encoder-Decoder" (2014), in PyTorch's form.
    """
    total, from_h = _gates("gru_cell", x, h, w_x, w_h, b_x, 3, apart=True)
    if b_h is not None:
        bias = as_node(h, b_h)
        need_shape("gru_cell", "b_h", bias, from_h.shape[-1:])
        from_h = from_h + bias
    reset_x, update_x, new_x = sg.split(total, 3, -1)
    reset_h, update_h, new_h = sg.split(from_h, 3, -1)
    update = sigmoid(update_x + update_h)
    new = apply("tanh", new_x + sigmoid(reset_x + reset_h) * new_h)
    return new + update * (h - new)


def _gates(
    name: str,
    x: Node,
    h: Node,
    w_x: Operand,
    w_h: Operand,
    b: Operand | None,
    gates: int,
    *,
    apart: bool = False,
) -> tuple[Node, Node]:
    """x @ w_x + b and h @ w_h, the second added to the first unless apart."""
    need_float(name, x)
    need_float(name, h)
    w_x, w_h = as_node(x, w_x), as_node(h, w_h)
    hidden = h.shape[-1] if h.ndim else 0
    if not x.ndim or not isinstance(hidden, int) or hidden < 1:
        raise ShapeError(f"nn.{name}: h has a last axis of known extent, got {describe(h)} for {describe(x)}")
    need_shape(name, "w_x", w_x, (x.shape[-1], gates * hidden))
    need_shape(name, "w_h", w_h, (hidden, gates * hidden))
    from_x, from_h = linear(x, w_x, b), h @ w_h
    return (from_x, from_h) if apart else (from_x + from_h, from_h)
