"""Multilayer perceptrons: a training step with momentum, and inference."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, torch_training_step

LEARNING_RATE = 0.1
BETA = 0.9
COMPARED_STEPS = 3


@dataclass(frozen=True, slots=True)
class Network:
    """The widths of the layers, input and output included, the activation between them and the batch."""

    widths: tuple[int, ...]
    activation: Literal["relu", "tanh"]
    batch: int


def make_inputs(rng: np.random.Generator, *, network: Network) -> Inputs:
    widths = network.widths
    inputs = {
        "x": rng.standard_normal((network.batch, widths[0]), dtype=np.float32),
        "t": rng.integers(0, widths[-1], network.batch).astype(np.int32),
    }
    for layer, (fan_in, fan_out) in enumerate(pairwise(widths)):
        scale = np.float32(1 / np.sqrt(fan_in))
        inputs[f"w{layer}"] = rng.standard_normal((fan_in, fan_out), dtype=np.float32) * scale
        inputs[f"b{layer}"] = np.zeros(fan_out, np.float32)
    return inputs


def _initial(inputs: Inputs) -> dict[str, Array]:
    return {name: value for name, value in inputs.items() if name not in ("x", "t")}


def _affine(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def _logits(activation: Any, x: Any, params: Sequence[Any], affine: Any = _affine) -> Any:
    """The output layer in terms of any system's operators; params are w0, b0, w1, b1, …"""
    h = x
    for layer in range(0, len(params) - 2, 2):
        h = activation(affine(h, params[layer], params[layer + 1]))
    return affine(h, params[-2], params[-1])


def reference_training(inputs: Inputs, *, network: Network) -> list[tuple[Array, ...]]:
    """Losses of the first steps, with the backward pass written out by hand."""
    x, t = inputs["x"].astype(np.float64), inputs["t"]
    params = [value.astype(np.float64) for value in _initial(inputs).values()]
    velocities = [np.zeros_like(p) for p in params]
    rows = np.arange(network.batch)
    losses: list[tuple[Array, ...]] = []
    for _ in range(COMPARED_STEPS):
        layers = [x]
        for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
            z = layers[-1] @ w + b
            layers.append(np.maximum(z, 0) if network.activation == "relu" else np.tanh(z))
        logits = layers[-1] @ params[-2] + params[-1]
        shifted = logits - logits.max(axis=1, keepdims=True)
        sums = np.exp(shifted).sum(axis=1, keepdims=True)
        losses.append((np.mean(np.log(sums[:, 0]) - shifted[rows, t]),))
        d = np.exp(shifted) / sums
        d[rows, t] -= 1
        d /= network.batch
        gradients: list[Array] = []
        for layer in reversed(range(len(layers))):
            h = layers[layer]
            gradients = [h.T @ d, d.sum(axis=0), *gradients]
            slope = (h > 0) if network.activation == "relu" else 1 - h * h
            d = (d @ params[2 * layer].T) * slope
        velocities = [BETA * v + g for v, g in zip(velocities, gradients, strict=True)]
        params = [p - LEARNING_RATE * v for p, v in zip(params, velocities, strict=True)]
    return losses


def reference_inference(inputs: Inputs, *, network: Network) -> list[tuple[Array, ...]]:
    params = [value.astype(np.float64) for value in _initial(inputs).values()]
    activation = np.tanh if network.activation == "tanh" else partial(np.maximum, 0)
    return [(_logits(activation, inputs["x"].astype(np.float64), params),)]


def train_symgrad(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x = g.input("x", inputs["x"].shape)
    t = g.input("t", inputs["t"].shape, sg.int32)
    params = [g.param(name, value) for name, value in _initial(inputs).items()]
    activation = sg.nn.relu if network.activation == "relu" else sg.tanh
    loss = sg.mean(sg.nn.softmax_cross_entropy(_logits(activation, x, params), t))
    updates = sg.optim.momentum(params, sg.grad(loss, params), lr=LEARNING_RATE, beta=BETA)
    train = sg.compile([x, t], loss, updates=updates, threads=threads)
    batch, labels = inputs["x"], inputs["t"]
    return lambda: (train(batch, labels),)


def infer_symgrad(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x = g.input("x", inputs["x"].shape)
    params = [g.param(name, value) for name, value in _initial(inputs).items()]
    activation = sg.nn.relu if network.activation == "relu" else sg.tanh
    predict = sg.compile([x], _logits(activation, x, params), threads=threads)
    batch = inputs["x"]
    return lambda: (predict(batch),)


def train_jax(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import jax
    import jax.numpy as jnp

    activation = jax.nn.relu if network.activation == "relu" else jnp.tanh

    def mean_loss(params: Any, x: Any, t: Any) -> Any:
        scores = jax.nn.log_softmax(_logits(activation, x, params))
        return -jnp.mean(jnp.take_along_axis(scores, t[:, None], axis=1))

    @partial(jax.jit, donate_argnums=0)
    def train(state: Any, x: Any, t: Any) -> Any:
        params, velocities = state
        loss, gradients = jax.value_and_grad(mean_loss)(params, x, t)
        velocities = [BETA * v + g for v, g in zip(velocities, gradients, strict=True)]
        params = [p - LEARNING_RATE * v for p, v in zip(params, velocities, strict=True)]
        return (params, velocities), loss

    params = [jnp.array(value) for value in _initial(inputs).values()]
    state = (params, [jnp.zeros_like(p) for p in params])
    x, t = jnp.asarray(inputs["x"]), jnp.asarray(inputs["t"])

    def step() -> tuple[Any, ...]:
        # The loss and the new state come from one execution: they are ready together.
        nonlocal state
        state, loss = train(state, x, t)
        return (loss.block_until_ready(),)

    return step


def infer_jax(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import jax
    import jax.numpy as jnp

    activation = jax.nn.relu if network.activation == "relu" else jnp.tanh
    params = [jnp.asarray(value) for value in _initial(inputs).values()]
    predict = jax.jit(lambda x: _logits(activation, x, params))
    x = jnp.asarray(inputs["x"])
    return lambda: (predict(x).block_until_ready(),)


def _addmm(x: Any, w: Any, b: Any) -> Any:
    import torch

    return torch.addmm(b, x, w)


def train_torch(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import torch

    params = [torch.from_numpy(value.copy()).requires_grad_() for value in _initial(inputs).values()]
    optimizer = torch.optim.SGD(params, lr=LEARNING_RATE, momentum=BETA, fused=True)
    x, t = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"].astype(np.int64))
    activation = torch.relu if network.activation == "relu" else torch.tanh

    def loss_of() -> Any:
        return torch.nn.functional.cross_entropy(_logits(activation, x, params, _addmm), t)

    return torch_training_step(optimizer, loss_of)


def train_torch_compile(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import torch

    params = [torch.from_numpy(value.copy()) for value in _initial(inputs).values()]
    velocities = [torch.zeros_like(p) for p in params]
    x, t = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"].astype(np.int64))
    activation = torch.relu if network.activation == "relu" else torch.tanh

    def mean_loss(params: Any, x: Any, t: Any) -> Any:
        return torch.nn.functional.cross_entropy(_logits(activation, x, params, _addmm), t)

    @torch.compile(fullgraph=True)
    def train(params: Any, velocities: Any, x: Any, t: Any) -> Any:
        gradients, loss = torch.func.grad_and_value(mean_loss)(params, x, t)
        for p, v, g in zip(params, velocities, gradients, strict=True):
            v.mul_(BETA).add_(g)
            p.sub_(v, alpha=LEARNING_RATE)
        return loss

    return lambda: (train(params, velocities, x, t),)


def infer_torch(inputs: Inputs, threads: int, *, network: Network, compiled: bool) -> Step:
    import torch

    params = [torch.from_numpy(value) for value in _initial(inputs).values()]
    activation = torch.relu if network.activation == "relu" else torch.tanh
    x = torch.from_numpy(inputs["x"])

    def predict(x: Any) -> Any:
        return _logits(activation, x, params, _addmm)

    function = torch.compile(predict, fullgraph=True) if compiled else predict

    def step() -> tuple[Any, ...]:
        with torch.inference_mode():
            return (function(x),)

    return step


def _pytensor_network(inputs: Inputs, network: Network) -> tuple[Any, list[Any], Any]:
    import pytensor
    import pytensor.tensor as pt

    x = pt.fmatrix("x")
    params = [pytensor.shared(value, name=name) for name, value in _initial(inputs).items()]
    activation = pt.tanh if network.activation == "tanh" else lambda h: pt.maximum(h, np.float32(0))
    return x, params, _logits(activation, x, params)


def train_pytensor(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import pytensor
    import pytensor.tensor as pt

    x, params, logits = _pytensor_network(inputs, network)
    t = pt.ivector("t")
    loss = -pt.mean(pt.special.log_softmax(logits, axis=1)[pt.arange(t.shape[0]), t])
    updates: list[Any] = []
    for param, gradient in zip(params, pytensor.grad(loss, params), strict=True):
        velocity = pytensor.shared(np.zeros_like(param.get_value()))
        new_velocity = np.float32(BETA) * velocity + gradient
        updates += [(velocity, new_velocity), (param, param - np.float32(LEARNING_RATE) * new_velocity)]
    train = pytensor.function([x, t], loss, updates=updates)
    train.trust_input = True
    batch, labels = inputs["x"], inputs["t"]
    return lambda: (train(batch, labels),)


def infer_pytensor(inputs: Inputs, threads: int, *, network: Network) -> Step:
    import pytensor

    x, _, logits = _pytensor_network(inputs, network)
    predict = pytensor.function([x], logits)
    predict.trust_input = True
    batch = inputs["x"]
    return lambda: (predict(batch),)


def _training(name: str, network: Network) -> Workload:
    return Workload(
        name=name,
        summary=f"training step, {_describe(network)}, softmax cross-entropy, momentum, float32",
        outputs=("loss",),
        tolerance=1e-5,
        inputs=partial(make_inputs, network=network),
        reference=partial(reference_training, network=network),
        builds={
            "symgrad": partial(train_symgrad, network=network),
            "jax": partial(train_jax, network=network),
            "torch": partial(train_torch, network=network),
            "torch.compile": partial(train_torch_compile, network=network),
            "pytensor": partial(train_pytensor, network=network),
        },
        compared_steps=COMPARED_STEPS,
    )


def _inference(name: str, network: Network) -> Workload:
    return Workload(
        name=name,
        summary=f"inference, {_describe(network)}, float32",
        outputs=("logits",),
        tolerance=1e-5,
        inputs=partial(make_inputs, network=network),
        reference=partial(reference_inference, network=network),
        builds={
            "symgrad": partial(infer_symgrad, network=network),
            "jax": partial(infer_jax, network=network),
            "torch": partial(infer_torch, network=network, compiled=False),
            "torch.compile": partial(infer_torch, network=network, compiled=True),
            "pytensor": partial(infer_pytensor, network=network),
        },
    )


def _describe(network: Network) -> str:
    return f"{'-'.join(map(str, network.widths))} ({network.activation}), batch {network.batch}"


WORKLOADS = (
    _training("mlp_large", Network((784, 512, 256, 10), "relu", 128)),
    _training("mlp_small", Network((4, 64, 64, 2), "tanh", 32)),
    _inference("mlp_small_infer", Network((4, 64, 64, 2), "tanh", 1)),
)
