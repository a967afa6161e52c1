"""A small convolutional network: a training step with momentum."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in, torch_training_step

BATCH, SIDE, CLASSES = 64, 28, 10
CHANNELS = (1, 32, 64)
HIDDEN = 128
# Two poolings halve the side twice.
FLAT = CHANNELS[2] * (SIDE // 4) ** 2
LEARNING_RATE = 0.1
BETA = 0.9
COMPARED_STEPS = 3
SHAPES = {
    "w0": (CHANNELS[1], CHANNELS[0], 3, 3),
    "b0": (CHANNELS[1],),
    "w1": (CHANNELS[2], CHANNELS[1], 3, 3),
    "b1": (CHANNELS[2],),
    "w2": (FLAT, HIDDEN),
    "b2": (HIDDEN,),
    "w3": (HIDDEN, CLASSES),
    "b3": (CLASSES,),
}


def make_inputs(rng: np.random.Generator) -> Inputs:
    inputs = {
        "x": rng.standard_normal((BATCH, CHANNELS[0], SIDE, SIDE), dtype=np.float32),
        "t": rng.integers(0, CLASSES, BATCH).astype(np.int32),
    }
    for name, shape in SHAPES.items():
        fan_in = shape[0] if len(shape) == 2 else np.prod(shape[1:])
        is_bias = len(shape) == 1
        inputs[name] = (0 if is_bias else 1 / np.sqrt(fan_in)) * rng.standard_normal(shape)
        inputs[name] = inputs[name].astype(np.float32)
    return inputs


def _initial(inputs: Inputs) -> dict[str, Array]:
    return {name: inputs[name] for name in SHAPES}


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """Losses of the first steps, with the backward pass written out by hand."""
    x, t = inputs["x"].astype(np.float64), inputs["t"]
    params = [value.astype(np.float64) for value in _initial(inputs).values()]
    velocities = [np.zeros_like(p) for p in params]
    rows = np.arange(BATCH)
    losses: list[tuple[Array, ...]] = []
    for _ in range(COMPARED_STEPS):
        w0, b0, w1, b1, w2, b2, w3, b3 = params
        h0 = np.maximum(_convolved(x, w0) + b0[:, None, None], 0)
        p0, chosen0 = _pooled(h0)
        h1 = np.maximum(_convolved(p0, w1) + b1[:, None, None], 0)
        p1, chosen1 = _pooled(h1)
        flat = p1.reshape(BATCH, FLAT)
        h2 = np.maximum(flat @ w2 + b2, 0)
        logits = h2 @ w3 + b3
        shifted = logits - logits.max(axis=1, keepdims=True)
        sums = np.exp(shifted).sum(axis=1, keepdims=True)
        losses.append((np.mean(np.log(sums[:, 0]) - shifted[rows, t]),))
        d3 = np.exp(shifted) / sums
        d3[rows, t] -= 1
        d3 /= BATCH
        d2 = (d3 @ w3.T) * (h2 > 0)
        d1 = _unpooled((d2 @ w2.T).reshape(p1.shape), chosen1) * (h1 > 0)
        # The transpose of the convolution: with the window turned around and the channels swapped.
        d0 = _unpooled(_convolved(d1, w1[:, :, ::-1, ::-1].swapaxes(0, 1)), chosen0) * (h0 > 0)
        gradients = [
            *(_weight_gradient(x, d0), d0.sum(axis=(0, 2, 3)), _weight_gradient(p0, d1), d1.sum(axis=(0, 2, 3))),
            *(flat.T @ d2, d2.sum(axis=0), h2.T @ d3, d3.sum(axis=0)),
        ]
        velocities = [BETA * v + g for v, g in zip(velocities, gradients, strict=True)]
        params = [p - LEARNING_RATE * v for p, v in zip(params, velocities, strict=True)]
    return losses


def _windows(x: Array) -> Array:
    """Windows of 3 by 3 around every place, zeros outside: (n, c, height, width, 3, 3)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))


def _convolved(x: Array, w: Array) -> Array:
    return np.moveaxis(np.tensordot(_windows(x), w, axes=((1, 4, 5), (1, 2, 3))), -1, 1)


def _weight_gradient(x: Array, d: Array) -> Array:
    return np.tensordot(d, _windows(x), axes=((0, 2, 3), (0, 2, 3)))


def _pooled(x: Array) -> tuple[Array, Array]:
    """The largest of each block of 2 by 2, and where it is."""
    n, c, height, width = x.shape
    blocks = x.reshape(n, c, height // 2, 2, width // 2, 2)
    top = blocks.max(axis=(3, 5), keepdims=True)
    return top[:, :, :, 0, :, 0], blocks == top


def _unpooled(d: Array, chosen: Array) -> Array:
    # Equal elements of a block are zeros of the relu, which lets no gradient through.
    n, c, height, _, width, _ = chosen.shape
    return (d[:, :, :, None, :, None] * chosen).reshape(n, c, 2 * height, 2 * width)


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x = g.input("x", inputs["x"].shape)
    t = g.input("t", inputs["t"].shape, sg.int32)
    params = [g.param(name, value) for name, value in _initial(inputs).items()]
    w0, b0, w1, b1, w2, b2, w3, b3 = params
    h = sg.nn.max_pool2d(sg.nn.relu(sg.nn.conv2d(x, w0, b0, padding=1)), 2)
    h = sg.nn.max_pool2d(sg.nn.relu(sg.nn.conv2d(h, w1, b1, padding=1)), 2)
    h = sg.nn.relu(sg.reshape(h, (BATCH, FLAT)) @ w2 + b2)
    loss = sg.mean(sg.nn.softmax_cross_entropy(h @ w3 + b3, t))
    updates = sg.optim.momentum(params, sg.grad(loss, params), lr=LEARNING_RATE, beta=BETA)
    train = sg.compile([x, t], loss, updates=updates, threads=threads)
    batch, labels = inputs["x"], inputs["t"]
    return lambda: (train(batch, labels),)


def build_jax(inputs: Inputs, threads: int) -> Step:
    """Channels last and pooling as a maximum over reshaped axes: the fastest on the CPU of the ways tried."""
    import jax
    import jax.numpy as jnp

    def convolved(x: Any, w: Any, b: Any) -> Any:
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b

    def pooled(x: Any) -> Any:
        n, height, width, c = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, c).max(axis=(2, 4))

    def mean_loss(params: Any, x: Any, t: Any) -> Any:
        w0, b0, w1, b1, w2, b2, w3, b3 = params
        h = pooled(jax.nn.relu(convolved(x, w0, b0)))
        h = pooled(jax.nn.relu(convolved(h, w1, b1)))
        h = jax.nn.relu(h.reshape(BATCH, FLAT) @ w2 + b2)
        scores = jax.nn.log_softmax(h @ w3 + b3)
        return -jnp.mean(jnp.take_along_axis(scores, t[:, None], axis=1))

    @partial(jax.jit, donate_argnums=0)
    def train(state: Any, x: Any, t: Any) -> Any:
        params, velocities = state
        loss, gradients = jax.value_and_grad(mean_loss)(params, x, t)
        velocities = [BETA * v + g for v, g in zip(velocities, gradients, strict=True)]
        params = [p - LEARNING_RATE * v for p, v in zip(params, velocities, strict=True)]
        return (params, velocities), loss

    values = _initial(inputs)
    side = SIDE // 4
    values["w0"], values["w1"] = values["w0"].transpose(2, 3, 1, 0), values["w1"].transpose(2, 3, 1, 0)
    values["w2"] = values["w2"].reshape(CHANNELS[2], side, side, HIDDEN).transpose(1, 2, 0, 3).reshape(FLAT, HIDDEN)
    params = [jnp.array(value) for value in values.values()]
    state = (params, [jnp.zeros_like(p) for p in params])
    x, t = jnp.asarray(inputs["x"].transpose(0, 2, 3, 1)), jnp.asarray(inputs["t"])

    def step() -> tuple[Any, ...]:
        # The loss and the new state come from one execution: they are ready together.
        nonlocal state
        state, loss = train(state, x, t)
        return (loss.block_until_ready(),)

    return step


def _torch_loss(params: Any, x: Any, t: Any) -> Any:
    import torch
    from torch.nn import functional

    w0, b0, w1, b1, w2, b2, w3, b3 = params
    h = functional.max_pool2d(torch.relu(functional.conv2d(x, w0, b0, padding=1)), 2)
    h = functional.max_pool2d(torch.relu(functional.conv2d(h, w1, b1, padding=1)), 2)
    h = torch.relu(torch.addmm(b2, h.reshape(BATCH, FLAT), w2))
    return functional.cross_entropy(torch.addmm(b3, h, w3), t)


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    params = [torch.from_numpy(value.copy()).requires_grad_() for value in _initial(inputs).values()]
    optimizer = torch.optim.SGD(params, lr=LEARNING_RATE, momentum=BETA, fused=True)
    x, t = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"].astype(np.int64))
    return torch_training_step(optimizer, lambda: _torch_loss(params, x, t))


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    params = [torch.from_numpy(value.copy()) for value in _initial(inputs).values()]
    velocities = [torch.zeros_like(p) for p in params]
    x, t = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"].astype(np.int64))

    @torch.compile(fullgraph=True)
    def train(params: Any, velocities: Any, x: Any, t: Any) -> Any:
        gradients, loss = torch.func.grad_and_value(_torch_loss)(params, x, t)
        for p, v, g in zip(params, velocities, gradients, strict=True):
            v.mul_(BETA).add_(g)
            p.sub_(v, alpha=LEARNING_RATE)
        return loss

    return lambda: (train(params, velocities, x, t),)


WORKLOADS = (
    Workload(
        name="cnn",
        summary=f"training step, two 3x3 convolutions ({CHANNELS[1]}, {CHANNELS[2]} channels, relu, 2x2 max pooling), "
        f"{FLAT}-{HIDDEN}-{CLASSES}, batch {BATCH} of {SIDE}x{SIDE}, momentum, float32",
        outputs=("loss",),
        tolerance=1e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
        compared_steps=COMPARED_STEPS,
    ),
)
