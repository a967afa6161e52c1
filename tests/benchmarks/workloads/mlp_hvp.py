"""The product of the Hessian of a network's loss with a vector, with respect to all its params."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

WIDTHS = (784, 256, 10)
BATCH = 128
SHAPES = {"w0": WIDTHS[:2], "b0": WIDTHS[1:2], "w1": WIDTHS[1:], "b1": WIDTHS[2:]}
PARAMS = tuple(SHAPES)
VECTORS = tuple(f"v_{name}" for name in PARAMS)


def make_inputs(rng: np.random.Generator) -> Inputs:
    inputs = {
        "x": rng.standard_normal((BATCH, WIDTHS[0]), dtype=np.float32),
        "t": rng.integers(0, WIDTHS[2], BATCH).astype(np.int32),
    }
    for name, shape in SHAPES.items():
        scale = np.float32(1 / np.sqrt(shape[0]) if len(shape) == 2 else 0.1)
        inputs[name] = rng.standard_normal(shape, dtype=np.float32) * scale
    for name, shape in zip(VECTORS, SHAPES.values(), strict=True):
        inputs[name] = rng.standard_normal(shape, dtype=np.float32)
    return inputs


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """The backward pass and the change of every value in it along the vector (Pearlmutter 1994), by hand."""
    x, w0, b0, w1, b1, v0, c0, v1, c1 = (inputs[k].astype(np.float64) for k in ("x", *PARAMS, *VECTORS))
    h = np.tanh(x @ w0 + b0)
    slope = 1 - h * h
    h_moved = slope * (x @ v0 + c0)
    logits = h @ w1 + b1
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probs = exponentials / exponentials.sum(axis=1, keepdims=True)
    moved = h_moved @ w1 + h @ v1 + c1
    d1 = (probs - np.eye(WIDTHS[2])[inputs["t"]]) / BATCH
    d1_moved = probs * (moved - (probs * moved).sum(axis=1, keepdims=True)) / BATCH
    d0_moved = (d1_moved @ w1.T + d1 @ v1.T) * slope - 2 * (d1 @ w1.T) * h * h_moved
    product = (x.T @ d0_moved, d0_moved.sum(axis=0), h_moved.T @ d1 + h.T @ d1_moved, d1_moved.sum(axis=0))
    return [product]


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x = g.input("x", inputs["x"].shape)
    t = g.input("t", inputs["t"].shape, sg.int32)
    params = [g.input(name, shape) for name, shape in SHAPES.items()]
    vectors = [g.input(name, inputs[name].shape) for name in VECTORS]
    w0, b0, w1, b1 = params
    loss = sg.mean(sg.nn.softmax_cross_entropy(sg.tanh(x @ w0 + b0) @ w1 + b1, t))
    function = sg.compile([x, t, *params, *vectors], sg.hvp(loss, params, vectors), threads=threads)
    values = [inputs[name] for name in ("x", "t", *PARAMS, *VECTORS)]
    return lambda: function(*values)


def build_jax(inputs: Inputs, threads: int) -> Step:
    """Forward mode over reverse mode, as JAX's documentation recommends."""
    import jax
    import jax.numpy as jnp

    def mean_loss(params: Any, x: Any, t: Any) -> Any:
        w0, b0, w1, b1 = params
        scores = jax.nn.log_softmax(jnp.tanh(x @ w0 + b0) @ w1 + b1)
        return -jnp.mean(jnp.take_along_axis(scores, t[:, None], axis=1))

    @jax.jit
    def function(params: Any, vectors: Any, x: Any, t: Any) -> Any:
        return jax.jvp(lambda params: jax.grad(mean_loss)(params, x, t), (params,), (vectors,))[1]

    x, t = jnp.asarray(inputs["x"]), jnp.asarray(inputs["t"])
    params, vectors = ([jnp.asarray(inputs[name]) for name in names] for names in (PARAMS, VECTORS))
    return lambda: jax.block_until_ready(function(params, vectors, x, t))


def _torch_loss(params: Any, x: Any, t: Any) -> Any:
    import torch

    w0, b0, w1, b1 = params
    logits = torch.addmm(b1, torch.tanh(torch.addmm(b0, x, w0)), w1)
    return torch.nn.functional.cross_entropy(logits, t)


def _torch_inputs(inputs: Inputs) -> tuple[Any, Any, list[Any], list[Any]]:
    import torch

    x, t = torch.from_numpy(inputs["x"]), torch.from_numpy(inputs["t"].astype(np.int64))
    params, vectors = ([torch.from_numpy(inputs[name]) for name in names] for names in (PARAMS, VECTORS))
    return x, t, params, vectors


def build_torch(inputs: Inputs, threads: int) -> Step:
    """Reverse mode twice, the usual way in PyTorch."""
    import torch

    x, t, params, vectors = _torch_inputs(inputs)
    for param in params:
        param.requires_grad_()

    def step() -> tuple[Any, ...]:
        gradients = torch.autograd.grad(_torch_loss(params, x, t), params, create_graph=True)
        return torch.autograd.grad(gradients, params, vectors)

    return step


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    """Forward mode over reverse mode."""
    import torch

    x, t, params, vectors = _torch_inputs(inputs)

    @torch.compile(fullgraph=True)
    def function(params: Any, vectors: Any, x: Any, t: Any) -> Any:
        return torch.func.jvp(lambda params: torch.func.grad(_torch_loss)(params, x, t), (params,), (vectors,))[1]

    return lambda: function(params, vectors, x, t)


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    x, t = pt.fmatrix("x"), pt.ivector("t")
    params, vectors = (
        [pt.tensor(name, shape=inputs[name].shape, dtype="float32") for name in names] for names in (PARAMS, VECTORS)
    )
    w0, b0, w1, b1 = params
    scores = pt.special.log_softmax(pt.tanh(x @ w0 + b0) @ w1 + b1, axis=1)
    loss = -pt.mean(scores[pt.arange(t.shape[0]), t])
    gradients = pytensor.grad(loss, params)
    along = sum(pt.sum(g * v) for g, v in zip(gradients, vectors, strict=True))
    product = pytensor.grad(along, params)
    function = pytensor.function([x, t, *params, *vectors], product)
    function.trust_input = True
    values = [inputs[name] for name in ("x", "t", *PARAMS, *VECTORS)]
    return lambda: function(*values)


WORKLOADS = (
    Workload(
        name="mlp_hvp",
        summary=f"Hessian-vector product, {'-'.join(map(str, WIDTHS))} (tanh), softmax cross-entropy, "
        f"batch {BATCH}, all params, float32",
        outputs=tuple(f"h_{name}" for name in PARAMS),
        tolerance=1e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
