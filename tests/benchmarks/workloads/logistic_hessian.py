"""The Hessian of the mean loss of a logistic regression with respect to its weights."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

ROWS, VARIABLES = 1000, 100


def make_inputs(rng: np.random.Generator) -> Inputs:
    return {
        "x": rng.standard_normal((ROWS, VARIABLES)),
        "t": rng.integers(0, 2, ROWS).astype(np.float64),
        "w": rng.standard_normal(VARIABLES) / np.sqrt(VARIABLES),
    }


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """The closed form: the second derivative of the loss in its logit is p (1 - p)."""
    x = inputs["x"]
    p = 1 / (1 + np.exp(-(x @ inputs["w"])))
    return [((x * (p * (1 - p))[:, None]).T @ x / ROWS,)]


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x, t, w = (g.input(name, value.shape, sg.float64) for name, value in inputs.items())
    loss = sg.mean(sg.nn.binary_cross_entropy(x @ w, t))
    function = sg.compile([x, t, w], sg.hessian(loss, w), threads=threads)
    values = tuple(inputs.values())
    return lambda: (function(*values),)


def build_jax(inputs: Inputs, threads: int) -> Step:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def mean_loss(w: Any, x: Any, t: Any) -> Any:
        logits = x @ w
        return jnp.mean(jax.nn.softplus(logits) - t * logits)

    function = jax.jit(jax.hessian(mean_loss))
    x, t, w = (jnp.asarray(value) for value in inputs.values())
    return lambda: (function(w, x, t).block_until_ready(),)


def _torch_loss(w: Any, x: Any, t: Any) -> Any:
    import torch

    return torch.nn.functional.binary_cross_entropy_with_logits(x @ w, t)


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    x, t, w = (torch.from_numpy(value) for value in inputs.values())
    function = torch.func.hessian(_torch_loss)
    return lambda: (function(w, x, t),)


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    x, t, w = (torch.from_numpy(value) for value in inputs.values())
    function = torch.compile(torch.func.hessian(_torch_loss), fullgraph=True)
    return lambda: (function(w, x, t),)


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    x, t, w = pt.dmatrix("x"), pt.dvector("t"), pt.dvector("w")
    logits = x @ w
    loss = pt.mean(pt.softplus(logits) - t * logits)
    function = pytensor.function([x, t, w], pytensor.gradient.hessian(loss, w))
    function.trust_input = True
    values = tuple(inputs.values())
    return lambda: (function(*values),)


WORKLOADS = (
    Workload(
        name="logistic_hessian",
        summary=f"Hessian of a logistic regression, {VARIABLES} variables, {ROWS:,} rows, float64",
        outputs=("hessian",),
        tolerance=1e-12,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
