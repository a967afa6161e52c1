"""One matrix product of several sizes, forms and types; both operands are inputs."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

Transposed: TypeAlias = Literal["neither", "left", "right"]
Dtype: TypeAlias = Literal["float32", "float64"]


@dataclass(frozen=True, slots=True)
class Product:
    """A product of m x k by k x n. The operand of which the transpose is taken lies the other way around."""

    m: int
    k: int
    n: int
    transposed: Transposed
    dtype: Dtype

    @property
    def shapes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        left = (self.k, self.m) if self.transposed == "left" else (self.m, self.k)
        right = (self.n, self.k) if self.transposed == "right" else (self.k, self.n)
        return left, right

    def of(self, a: Any, b: Any) -> Any:
        """The product in terms of any system's operators."""
        return (a.T if self.transposed == "left" else a) @ (b.T if self.transposed == "right" else b)

    def __str__(self) -> str:
        left, right = self.shapes
        text = (
            f"{left}{'.T' if self.transposed == 'left' else ''} @ {right}{'.T' if self.transposed == 'right' else ''}"
        )
        return f"{text}, {self.dtype}"


def make_inputs(rng: np.random.Generator, *, product: Product) -> Inputs:
    left, right = product.shapes
    kind = np.float32 if product.dtype == "float32" else np.float64
    return {"a": rng.standard_normal(left, dtype=kind), "b": rng.standard_normal(right, dtype=kind)}


def reference(inputs: Inputs, *, product: Product) -> list[tuple[Array, ...]]:
    return [(product.of(inputs["a"].astype(np.float64), inputs["b"].astype(np.float64)),)]


def build_symgrad(inputs: Inputs, threads: int, *, product: Product) -> Step:
    import symgrad as sg

    g = sg.Graph()
    dtype = sg.float32 if product.dtype == "float32" else sg.float64
    a = g.input("a", inputs["a"].shape, dtype)
    b = g.input("b", inputs["b"].shape, dtype)
    function = sg.compile([a, b], product.of(a, b), threads=threads)
    left, right = inputs["a"], inputs["b"]
    return lambda: (function(left, right),)


def build_jax(inputs: Inputs, threads: int, *, product: Product) -> Step:
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", product.dtype == "float64")
    function = jax.jit(product.of)
    a, b = jnp.asarray(inputs["a"]), jnp.asarray(inputs["b"])
    return lambda: (function(a, b).block_until_ready(),)


def build_torch(inputs: Inputs, threads: int, *, product: Product) -> Step:
    import torch

    a, b = torch.from_numpy(inputs["a"]), torch.from_numpy(inputs["b"])
    return lambda: (product.of(a, b),)


def build_torch_compile(inputs: Inputs, threads: int, *, product: Product) -> Step:
    import torch

    a, b = torch.from_numpy(inputs["a"]), torch.from_numpy(inputs["b"])
    function = torch.compile(product.of, fullgraph=True)
    return lambda: (function(a, b),)


def build_pytensor(inputs: Inputs, threads: int, *, product: Product) -> Step:
    import pytensor
    import pytensor.tensor as pt

    a, b = pt.matrix("a", dtype=product.dtype), pt.matrix("b", dtype=product.dtype)
    function = pytensor.function([a, b], product.of(a, b))
    function.trust_input = True
    left, right = inputs["a"], inputs["b"]
    return lambda: (function(left, right),)


def build_numpy(inputs: Inputs, threads: int, *, product: Product) -> Step:
    a, b = inputs["a"], inputs["b"]
    return lambda: (product.of(a, b),)


def _workload(name: str, product: Product) -> Workload:
    if product.transposed != "neither":
        name += f"_{product.transposed}_t"
    if product.dtype != "float32":
        name += f"_{product.dtype}"
    return Workload(
        name=f"matmul_{name}",
        summary=str(product),
        outputs=("product",),
        tolerance=2e-6 if product.dtype == "float32" else 1e-14,
        inputs=partial(make_inputs, product=product),
        reference=partial(reference, product=product),
        builds=builds_in(globals(), product=product),
    )


SIZES = {
    "64": (64, 64, 64),
    "256": (256, 256, 256),
    "512": (512, 512, 512),
    "1024": (1024, 1024, 1024),
    "2048": (2048, 2048, 2048),
    "1x1024x1024": (1, 1024, 1024),
    "32x768x3072": (32, 768, 3072),
    "129x257x65": (129, 257, 65),
}
FORMS: tuple[Transposed, ...] = ("neither", "left", "right")
DTYPES: tuple[Dtype, ...] = ("float32", "float64")
WORKLOADS = tuple(
    _workload(name, Product(*size, transposed, dtype))
    for dtype in DTYPES
    for transposed in FORMS
    for name, size in SIZES.items()
)
