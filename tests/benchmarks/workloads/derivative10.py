"""The tenth derivative of sin(tanh(x * x)), element by element."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

ORDER = 10
POINTS = 1000


def make_inputs(rng: np.random.Generator) -> Inputs:
    return {"x": rng.uniform(-1.5, 1.5, POINTS)}


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """Power series arithmetic at every point; the coefficients follow from tanh' = (1 - tanh²) u' and sin, cos."""
    x = inputs["x"].astype(np.longdouble)
    zero = np.zeros_like(x)
    square = [x * x, 2 * x, np.ones_like(x), *[zero] * (ORDER - 2)]
    tanh, slope, sine, cosine = [np.tanh(square[0])], [], [], []
    for n in range(ORDER):
        slope.append((1 if n == 0 else 0) - sum(tanh[i] * tanh[n - i] for i in range(n + 1)))
        tanh.append(sum((k + 1) * square[k + 1] * slope[n - k] for k in range(n + 1)) / (n + 1))
    sine.append(np.sin(tanh[0]))
    cosine.append(np.cos(tanh[0]))
    for n in range(ORDER):
        sine.append(sum((k + 1) * tanh[k + 1] * cosine[n - k] for k in range(n + 1)) / (n + 1))
        cosine.append(-sum((k + 1) * tanh[k + 1] * sine[n - k] for k in range(n + 1)) / (n + 1))
    return [((sine[ORDER] * math.factorial(ORDER)).astype(np.float64),)]


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    x = g.input("x", (POINTS,), sg.float64)
    function = sg.compile([x], sg.derivative(sg.sin(sg.tanh(x * x)), x, ORDER), threads=threads)
    values = inputs["x"]
    return lambda: (function(values),)


def build_jax(inputs: Inputs, threads: int) -> Step:
    """Nested forward mode; nested `grad`, of sums or under `vmap`, gave no result in 100 s."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def derivative(f: Any) -> Any:
        return lambda x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    def nested(x: Any) -> Any:
        return jnp.sin(jnp.tanh(x * x))

    for _ in range(ORDER):
        nested = derivative(nested)
    function = jax.jit(nested)
    x = jnp.asarray(inputs["x"])
    return lambda: (function(x).block_until_ready(),)


def build_jax_jet(inputs: Inputs, threads: int) -> Step:
    """Taylor mode, an experimental part of JAX."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import jet

    jax.config.update("jax_enable_x64", True)

    @jax.jit
    def function(x: Any) -> Any:
        series = [jnp.ones_like(x), *[jnp.zeros_like(x)] * (ORDER - 1)]
        _, derivatives = jet.jet(lambda x: jnp.sin(jnp.tanh(x * x)), (x,), (series,))
        return derivatives[-1]

    x = jnp.asarray(inputs["x"])
    return lambda: (function(x).block_until_ready(),)


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    x = torch.from_numpy(inputs["x"]).requires_grad_()

    def step() -> tuple[Any, ...]:
        y = torch.sin(torch.tanh(x * x))
        for order in range(1, ORDER + 1):
            (y,) = torch.autograd.grad(y.sum(), x, create_graph=order < ORDER)
        return (y,)

    return step


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    """Nested reverse mode of sums: its tracer fails on forward mode nested three deep."""
    import torch

    def derivative(f: Any) -> Any:
        return torch.func.grad(lambda x: f(x).sum())

    def nested(x: Any) -> Any:
        return torch.sin(torch.tanh(x * x))

    for _ in range(ORDER):
        nested = derivative(nested)
    function = torch.compile(nested, fullgraph=True)
    x = torch.from_numpy(inputs["x"])
    return lambda: (function(x),)


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    x = pt.dvector("x")
    y = pt.sin(pt.tanh(x * x))
    for _ in range(ORDER):
        y = pytensor.grad(y.sum(), x)
    function = pytensor.function([x], y)
    function.trust_input = True
    values = inputs["x"]
    return lambda: (function(values),)


WORKLOADS = (
    Workload(
        name="derivative10",
        summary=f"tenth derivative of sin(tanh(x * x)) at {POINTS} points, float64",
        outputs=("derivative",),
        tolerance=1e-10,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
