"""Mean softmax cross-entropy of a batch of logits, with its gradient with respect to the logits."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

ROWS, CLASSES = 4096, 4096


def make_inputs(rng: np.random.Generator) -> Inputs:
    logits = rng.standard_normal((ROWS, CLASSES), dtype=np.float32) * np.float32(3)
    return {"logits": logits, "labels": rng.integers(0, CLASSES, ROWS).astype(np.int32)}


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    logits = inputs["logits"].astype(np.float64)
    rows = np.arange(ROWS)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    loss = np.mean(np.log(sums[:, 0]) - shifted[rows, inputs["labels"]])
    gradient = exponentials / sums
    gradient[rows, inputs["labels"]] -= 1
    return [(loss, gradient / ROWS)]


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    logits = g.input("logits", (ROWS, CLASSES))
    labels = g.input("labels", (ROWS,), sg.int32)
    loss = sg.mean(sg.nn.softmax_cross_entropy(logits, labels))
    function = sg.compile([logits, labels], (loss, sg.grad(loss, logits)), threads=threads)
    x, t = inputs["logits"], inputs["labels"]
    return lambda: function(x, t)


def build_jax(inputs: Inputs, threads: int) -> Step:
    import jax
    import jax.numpy as jnp

    def mean_loss(logits: Any, labels: Any) -> Any:
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)
        return -jnp.mean(chosen)

    function = jax.jit(jax.value_and_grad(mean_loss))
    x, t = jnp.asarray(inputs["logits"]), jnp.asarray(inputs["labels"])
    return lambda: jax.block_until_ready(function(x, t))


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    x = torch.from_numpy(inputs["logits"]).requires_grad_()
    t = torch.from_numpy(inputs["labels"].astype(np.int64))

    def step() -> tuple[Any, ...]:
        loss = torch.nn.functional.cross_entropy(x, t)
        (gradient,) = torch.autograd.grad(loss, x)
        return loss.detach(), gradient

    return step


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    x = torch.from_numpy(inputs["logits"])
    t = torch.from_numpy(inputs["labels"].astype(np.int64))

    @torch.compile(fullgraph=True)
    def function(x: Any, t: Any) -> Any:
        return torch.func.grad_and_value(torch.nn.functional.cross_entropy)(x, t)

    def step() -> tuple[Any, ...]:
        gradient, loss = function(x, t)
        return loss, gradient

    return step


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    logits, labels = pt.fmatrix("logits"), pt.ivector("labels")
    chosen = pt.special.log_softmax(logits, axis=1)[pt.arange(labels.shape[0]), labels]
    loss = -pt.mean(chosen)
    function = pytensor.function([logits, labels], [loss, pytensor.grad(loss, logits)])
    function.trust_input = True
    x, t = inputs["logits"], inputs["labels"]
    return lambda: function(x, t)


WORKLOADS = (
    Workload(
        name="softmax_xent",
        summary=f"mean softmax cross-entropy and its gradient, ({ROWS}, {CLASSES}), float32",
        outputs=("loss", "d_logits"),
        tolerance=1e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
