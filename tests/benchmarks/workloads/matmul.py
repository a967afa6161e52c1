"""One float32 matrix product of several sizes; both operands are inputs."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from functools import partial

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in


def make_inputs(rng: np.random.Generator, *, m: int, k: int, n: int) -> Inputs:
    return {
        "a": rng.standard_normal((m, k), dtype=np.float32),
        "b": rng.standard_normal((k, n), dtype=np.float32),
    }


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    return [(inputs["a"].astype(np.float64) @ inputs["b"].astype(np.float64),)]


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    a = g.input("a", inputs["a"].shape)
    b = g.input("b", inputs["b"].shape)
    product = sg.compile([a, b], a @ b, threads=threads)
    left, right = inputs["a"], inputs["b"]
    return lambda: (product(left, right),)


def build_jax(inputs: Inputs, threads: int) -> Step:
    import jax
    import jax.numpy as jnp

    product = jax.jit(jnp.matmul)
    a, b = jnp.asarray(inputs["a"]), jnp.asarray(inputs["b"])
    return lambda: (product(a, b).block_until_ready(),)


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    a, b = torch.from_numpy(inputs["a"]), torch.from_numpy(inputs["b"])
    return lambda: (torch.mm(a, b),)


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    a, b = torch.from_numpy(inputs["a"]), torch.from_numpy(inputs["b"])
    product = torch.compile(torch.mm)
    return lambda: (product(a, b),)


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    a, b = pt.fmatrix("a"), pt.fmatrix("b")
    product = pytensor.function([a, b], a @ b)
    product.trust_input = True
    left, right = inputs["a"], inputs["b"]
    return lambda: (product(left, right),)


def build_numpy(inputs: Inputs, threads: int) -> Step:
    a, b = inputs["a"], inputs["b"]
    return lambda: (a @ b,)


def _workload(name: str, m: int, k: int, n: int) -> Workload:
    return Workload(
        name=f"matmul_{name}",
        summary=f"({m}, {k}) @ ({k}, {n}), float32",
        outputs=("product",),
        tolerance=2e-6,
        inputs=partial(make_inputs, m=m, k=k, n=n),
        reference=reference,
        builds=builds_in(globals()),
    )


WORKLOADS = (
    _workload("64", 64, 64, 64),
    _workload("512", 512, 512, 512),
    _workload("2048", 2048, 2048, 2048),
    _workload("32x768x3072", 32, 768, 3072),
    _workload("129x257x65", 129, 257, 65),
)
