"""The loss of a physics-informed network for Burgers' equation, with its gradient with respect to the weights.

The loss is the mean square of u_t + u u_x - nu u_xx at scattered points: second derivatives of the network in its
inputs are inside of what is differentiated. Raissi, Perdikaris and Karniadakis (2019).
"""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

POINTS = 4096
WIDTHS = (2, 32, 32, 32, 32, 1)
LAYERS = len(WIDTHS) - 1
VISCOSITY = 0.01 / np.pi
PARAMS = tuple(f"{kind}{layer}" for layer in range(LAYERS) for kind in "wb")


def make_inputs(rng: np.random.Generator) -> Inputs:
    points = np.stack([rng.uniform(-1, 1, POINTS), rng.uniform(0, 1, POINTS)], axis=1)
    inputs = {"points": points.astype(np.float32)}
    for layer, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        scale = np.float32(np.sqrt(2 / (fan_in + fan_out)))
        inputs[f"w{layer}"] = rng.standard_normal((fan_in, fan_out), dtype=np.float32) * scale
        inputs[f"b{layer}"] = rng.standard_normal(fan_out, dtype=np.float32) * np.float32(0.1)
    return inputs


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """The network carries u, u_x, u_t and u_xx from layer to layer; the backward pass is that of all four, by hand."""
    points = inputs["points"].astype(np.float64)
    params = [inputs[name].astype(np.float64) for name in PARAMS]
    weights, biases = params[::2], params[1::2]
    zero = np.zeros_like(points)
    h = [points, zero + np.array([1, 0]), zero + np.array([0, 1]), zero]
    entering: list[list[Array]] = []
    moves: list[list[Array]] = []
    for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
        entering.append(h)
        h = [part @ w for part in h]
        h[0] = h[0] + b
        if layer == LAYERS - 1:
            break
        a = np.tanh(h[0])
        s = 1 - a * a
        moves.append([a, *h[1:]])
        h = [a, s * h[1], s * h[2], s * h[3] - 2 * a * s * h[1] ** 2]
    u, u_x, u_t, u_xx = h
    residual = u_t + u * u_x - VISCOSITY * u_xx
    d = 2 / POINTS * residual
    d = [d * u_x, d * u, d, -VISCOSITY * d]
    gradients: list[Array] = []
    for layer in reversed(range(LAYERS)):
        d_w = np.concatenate(entering[layer]).T @ np.concatenate(d)
        gradients = [d_w, d[0].sum(axis=0), *gradients]
        if layer == 0:
            break
        d = [part @ weights[layer].T for part in d]
        a, z_x, z_t, z_xx = moves[layer - 1]
        s = 1 - a * a
        inner = -2 * a * (d[1] * z_x + d[2] * z_t + d[3] * z_xx) - 2 * (1 - 3 * a * a) * z_x**2 * d[3]
        d = [s * (d[0] + inner), s * d[1] - 4 * a * s * z_x * d[3], s * d[2], s * d[3]]
    return [(np.mean(residual**2), *gradients)]


def _network(tanh: Callable[[Any], Any], points: Any, params: Sequence[Any]) -> Any:
    """The network in terms of any system's operators: of shape (points, 1)."""
    h = points
    for layer in range(0, len(params) - 2, 2):
        h = tanh(h @ params[layer] + params[layer + 1])
    return h @ params[-2] + params[-1]


def _directions() -> tuple[Array, Array]:
    """The tangents of all points in the direction of x and of t."""
    zero = np.zeros((POINTS, 2), np.float32)
    return zero + np.array([1, 0], np.float32), zero + np.array([0, 1], np.float32)


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    points = g.input("points", (POINTS, 2))
    params = [g.param(name, inputs[name]) for name in PARAMS]
    along_x, along_t = _directions()
    u = _network(sg.tanh, points, params)
    (u_x,) = sg.jvp([u], [points], [along_x])
    (u_t,) = sg.jvp([u], [points], [along_t])
    (u_xx,) = sg.jvp([u_x], [points], [along_x])
    loss = sg.mean(sg.square(u_t + u * u_x - VISCOSITY * u_xx))
    function = sg.compile([points], [loss, *sg.grad(loss, params)], threads=threads)
    values = inputs["points"]
    return lambda: function(values)


def build_jax(inputs: Inputs, threads: int) -> Step:
    """Forward mode, nested for u_xx, and reverse mode over it."""
    import jax
    import jax.numpy as jnp

    along_x, along_t = (jnp.asarray(v) for v in _directions())

    def mean_loss(params: Any, points: Any) -> Any:
        def u_of(points: Any) -> Any:
            return _network(jnp.tanh, points, params)

        def first(points: Any) -> Any:
            return jax.jvp(u_of, (points,), (along_x,))

        (u, u_x), (_, u_xx) = jax.jvp(first, (points,), (along_x,))
        _, u_t = jax.jvp(u_of, (points,), (along_t,))
        return jnp.mean(jnp.square(u_t + u * u_x - VISCOSITY * u_xx))

    function = jax.jit(jax.value_and_grad(mean_loss))
    params, points = [jnp.asarray(inputs[name]) for name in PARAMS], jnp.asarray(inputs["points"])

    def step() -> tuple[Any, ...]:
        loss, gradients = jax.block_until_ready(function(params, points))
        return loss, *gradients

    return step


def build_torch(inputs: Inputs, threads: int) -> Step:
    """Reverse mode throughout, the usual way in PyTorch."""
    import torch

    points = torch.from_numpy(inputs["points"]).requires_grad_()
    params = [torch.from_numpy(inputs[name]).requires_grad_() for name in PARAMS]

    def step() -> tuple[Any, ...]:
        u = _network(torch.tanh, points, params)
        (slopes,) = torch.autograd.grad(u.sum(), points, create_graph=True)
        u_x, u_t = slopes[:, :1], slopes[:, 1:]
        (bends,) = torch.autograd.grad(u_x.sum(), points, create_graph=True)
        loss = torch.mean(torch.square(u_t + u * u_x - VISCOSITY * bends[:, :1]))
        return loss.detach(), *torch.autograd.grad(loss, params)

    return step


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    """Reverse mode of sums, nested: its tracer fails on reverse mode over forward mode."""
    import torch

    def mean_loss(params: Any, points: Any) -> Any:
        def slopes_of(points: Any) -> Any:
            return torch.func.grad(lambda p: _network(torch.tanh, p, params).sum())(points)

        def first(points: Any) -> Any:
            slopes = slopes_of(points)
            return slopes[:, :1].sum(), slopes

        bends, slopes = torch.func.grad(first, has_aux=True)(points)
        u, u_x, u_t = _network(torch.tanh, points, params), slopes[:, :1], slopes[:, 1:]
        return torch.mean(torch.square(u_t + u * u_x - VISCOSITY * bends[:, :1]))

    @torch.compile(fullgraph=True)
    def function(params: Any, points: Any) -> Any:
        return torch.func.grad_and_value(mean_loss)(params, points)

    params, points = [torch.from_numpy(inputs[name]) for name in PARAMS], torch.from_numpy(inputs["points"])

    def step() -> tuple[Any, ...]:
        gradients, loss = function(params, points)
        return loss, *gradients

    return step


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    points = pt.fmatrix("points")
    params = [pytensor.shared(inputs[name], name=name) for name in PARAMS]
    u = _network(pt.tanh, points, params)
    slopes = pytensor.grad(u.sum(), points)
    u_x, u_t = slopes[:, :1], slopes[:, 1:]
    u_xx = pytensor.grad(u_x.sum(), points)[:, :1]
    loss = pt.mean(pt.square(u_t + u * u_x - np.float32(VISCOSITY) * u_xx))
    function = pytensor.function([points], [loss, *pytensor.grad(loss, params)])
    function.trust_input = True
    values = inputs["points"]
    return lambda: function(values)


WORKLOADS = (
    Workload(
        name="burgers",
        summary=f"loss of a physics-informed network {'-'.join(map(str, WIDTHS))} (tanh) for Burgers' equation and its "
        f"gradient, {POINTS:,} points, float32",
        outputs=("loss", *(f"d_{name}" for name in PARAMS)),
        tolerance=1e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
