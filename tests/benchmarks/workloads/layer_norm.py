"""Layer normalization over the last axis, forward and backward."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

ROWS, FEATURES = 8192, 1024
EPSILON = 1e-5


def make_inputs(rng: np.random.Generator) -> Inputs:
    return {
        "x": rng.standard_normal((ROWS, FEATURES), dtype=np.float32) * np.float32(2) + np.float32(0.5),
        "gamma": rng.uniform(0.5, 1.5, FEATURES).astype(np.float32),
        "beta": rng.standard_normal(FEATURES, dtype=np.float32),
        "c": rng.standard_normal((ROWS, FEATURES), dtype=np.float32),
    }


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    x, gamma, beta, c = (inputs[name].astype(np.float64) for name in ("x", "gamma", "beta", "c"))
    centered = x - x.mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt((centered**2).mean(axis=1, keepdims=True) + EPSILON)
    normal = centered * scale
    d_normal = c * gamma
    d_x = scale * (
        d_normal - d_normal.mean(axis=1, keepdims=True) - normal * (d_normal * normal).mean(axis=1, keepdims=True)
    )
    return [(normal * gamma + beta, d_x, (c * normal).sum(axis=0), c.sum(axis=0))]


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x, gamma, beta, c = nodes = [g.input(name, value.shape) for name, value in inputs.items()]
    y = sg.nn.layer_norm(x, gamma, beta, eps=EPSILON)
    gradients = sg.grad(sg.sum(y * c), [x, gamma, beta])
    function = sg.compile(nodes, (y, *gradients), threads=threads)
    values = tuple(inputs.values())
    return lambda: function(*values)


def build_jax(inputs: Inputs, threads: int) -> Step:
    import jax
    import jax.numpy as jnp

    def layer_norm(x: Any, gamma: Any, beta: Any) -> Any:
        centered = x - jnp.mean(x, axis=1, keepdims=True)
        variance = jnp.mean(centered * centered, axis=1, keepdims=True)
        return centered * jax.lax.rsqrt(variance + EPSILON) * gamma + beta

    @jax.jit
    def function(x: Any, gamma: Any, beta: Any, c: Any) -> Any:
        y, pullback = jax.vjp(layer_norm, x, gamma, beta)
        return (y, *pullback(c))

    values = [jnp.asarray(value) for value in inputs.values()]
    return lambda: jax.block_until_ready(function(*values))


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    x, gamma, beta = (torch.from_numpy(inputs[name]).requires_grad_() for name in ("x", "gamma", "beta"))
    c = torch.from_numpy(inputs["c"])

    def step() -> tuple[Any, ...]:
        y = torch.nn.functional.layer_norm(x, (FEATURES,), gamma, beta, EPSILON)
        return (y.detach(), *torch.autograd.grad(y, (x, gamma, beta), c))

    return step


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    values = [torch.from_numpy(value) for value in inputs.values()]

    @torch.compile(fullgraph=True)
    def function(x: Any, gamma: Any, beta: Any, c: Any) -> Any:
        def forward(x: Any, gamma: Any, beta: Any) -> Any:
            return torch.nn.functional.layer_norm(x, (FEATURES,), gamma, beta, EPSILON)

        y, pullback = torch.func.vjp(forward, x, gamma, beta)
        return (y, *pullback(c))

    return lambda: function(*values)


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    x, c = pt.fmatrix("x"), pt.fmatrix("c")
    gamma, beta = pt.fvector("gamma"), pt.fvector("beta")
    centered = x - pt.mean(x, axis=1, keepdims=True)
    variance = pt.mean(centered * centered, axis=1, keepdims=True)
    y = centered / pt.sqrt(variance + np.float32(EPSILON)) * gamma + beta
    gradients = pytensor.grad(None, [x, gamma, beta], known_grads={y: c})
    function = pytensor.function([x, gamma, beta, c], [y, *gradients])
    function.trust_input = True
    values = tuple(inputs.values())
    return lambda: function(*values)


WORKLOADS = (
    Workload(
        name="layer_norm",
        summary=f"layer normalization forward and backward, ({ROWS}, {FEATURES}), float32",
        outputs=("y", "d_x", "d_gamma", "d_beta"),
        tolerance=1e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
