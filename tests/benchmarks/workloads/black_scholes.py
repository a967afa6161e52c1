"""European call options under Black and Scholes: price and five Greeks by differentiation of the price."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

OPTIONS = 1_000_000
NAMES = ("spot", "strike", "years", "rate", "sigma")
OUTPUTS = ("price", "delta", "vega", "theta", "rho", "gamma")


def make_inputs(rng: np.random.Generator) -> Inputs:
    ranges = ((80, 120), (80, 120), (0.25, 2), (0.0, 0.05), (0.1, 0.5))
    return {
        name: rng.uniform(low, high, OPTIONS).astype(np.float32)
        for name, (low, high) in zip(NAMES, ranges, strict=True)
    }


def reference(inputs: Inputs) -> list[tuple[Array, ...]]:
    """Closed forms of the price and the Greeks in float64."""
    spot, strike, years, rate, sigma = (inputs[name].astype(np.float64) for name in NAMES)
    spread = sigma * np.sqrt(years)
    d1 = (np.log(spot / strike) + (rate + sigma * sigma / 2) * years) / spread
    d2 = d1 - spread
    cdf1, cdf2 = _cdf(d1), _cdf(d2)
    density = np.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi)
    discounted = strike * np.exp(-rate * years)
    return [
        (
            spot * cdf1 - discounted * cdf2,
            cdf1,
            spot * density * np.sqrt(years),
            -(spot * density * sigma) / (2 * np.sqrt(years)) - rate * discounted * cdf2,
            years * discounted * cdf2,
            density / (spot * spread),
        )
    ]


def _cdf(x: Array) -> Array:
    erf = np.fromiter(map(math.erf, (x / math.sqrt(2)).tolist()), np.float64, x.size)
    return (1 + erf) / 2


def _price(m: Any, erf: Any, *values: Any) -> Any:
    """The price of the values in NAMES, in terms of any system's exp, log, sqrt (attributes of m) and erf."""
    spot, strike, years, rate, sigma = values
    spread = sigma * m.sqrt(years)
    d1 = (m.log(spot / strike) + (rate + sigma * sigma * 0.5) * years) / spread
    d2 = d1 - spread
    root_half = math.sqrt(0.5)
    cdf1 = 0.5 + 0.5 * erf(d1 * root_half)
    cdf2 = 0.5 + 0.5 * erf(d2 * root_half)
    return spot * cdf1 - strike * m.exp(-rate * years) * cdf2


def build_symgrad(inputs: Inputs, threads: int) -> Step:
    import symgrad as sg

    g = sg.Graph()
    nodes = [g.input(name, (OPTIONS,)) for name in NAMES]
    spot, _, years, rate, sigma = nodes
    price = _price(sg, sg.erf, *nodes)
    delta, vega, d_years, rho = sg.grad(sg.sum(price), [spot, sigma, years, rate])
    gamma = sg.grad(sg.sum(delta), spot)
    function = sg.compile(nodes, (price, delta, vega, -d_years, rho, gamma), threads=threads)
    values = tuple(inputs[name] for name in NAMES)
    return lambda: function(*values)


def build_jax(inputs: Inputs, threads: int) -> Step:
    import jax
    import jax.numpy as jnp

    def price_of(*values: Any) -> Any:
        return _price(jnp, jax.scipy.special.erf, *values)

    def greeks_of(*values: Any) -> Any:
        price, pullback = jax.vjp(price_of, *values)
        return price, pullback(jnp.ones_like(price))

    @jax.jit
    def function(spot: Any, *rest: Any) -> Any:
        def first(spot: Any) -> Any:
            price, (delta, _, d_years, rho, vega) = greeks_of(spot, *rest)
            return delta, (price, vega, d_years, rho)

        delta, pullback, (price, vega, d_years, rho) = jax.vjp(first, spot, has_aux=True)
        (gamma,) = pullback(jnp.ones_like(delta))
        return price, delta, vega, -d_years, rho, gamma

    values = [jnp.asarray(inputs[name]) for name in NAMES]
    return lambda: jax.block_until_ready(function(*values))


def build_torch(inputs: Inputs, threads: int) -> Step:
    import torch

    values = [torch.from_numpy(inputs[name]) for name in NAMES]
    spot, _, years, rate, sigma = values
    for value in (spot, years, rate, sigma):
        value.requires_grad_()

    def step() -> tuple[Any, ...]:
        price = _price(torch, torch.erf, *values)
        ones = torch.ones_like(price)
        greeks = torch.autograd.grad(price, (spot, sigma, years, rate), ones, create_graph=True)
        delta, vega, d_years, rho = greeks
        (gamma,) = torch.autograd.grad(delta, spot, ones)
        return (*(v.detach() for v in (price, delta, vega, -d_years, rho)), gamma)

    return step


def build_torch_compile(inputs: Inputs, threads: int) -> Step:
    import torch

    values = [torch.from_numpy(inputs[name]) for name in NAMES]

    def price_of(*values: Any) -> Any:
        return _price(torch, torch.erf, *values)

    @torch.compile(fullgraph=True)
    def function(spot: Any, *rest: Any) -> Any:
        def first(spot: Any) -> Any:
            price, pullback = torch.func.vjp(price_of, spot, *rest)
            delta, _, d_years, rho, vega = pullback(torch.ones_like(price))
            return delta, (price, vega, d_years, rho)

        delta, pullback, (price, vega, d_years, rho) = torch.func.vjp(first, spot, has_aux=True)
        (gamma,) = pullback(torch.ones_like(delta))
        return price, delta, vega, -d_years, rho, gamma

    return lambda: function(*values)


def build_pytensor(inputs: Inputs, threads: int) -> Step:
    import pytensor
    import pytensor.tensor as pt

    nodes = [pt.fvector(name) for name in NAMES]
    spot, _, years, rate, sigma = nodes
    price = _price(pt, pt.erf, *nodes)
    delta, vega, d_years, rho = pytensor.grad(price.sum(), [spot, sigma, years, rate])
    gamma = pytensor.grad(delta.sum(), spot)
    function = pytensor.function(nodes, [price, delta, vega, -d_years, rho, gamma])
    function.trust_input = True
    values = tuple(inputs[name] for name in NAMES)
    return lambda: function(*values)


WORKLOADS = (
    Workload(
        name="black_scholes",
        summary=f"call price with delta, vega, theta, rho and gamma, {OPTIONS:,} options, float32",
        outputs=OUTPUTS,
        tolerance=2e-5,
        inputs=make_inputs,
        reference=reference,
        builds=builds_in(globals()),
    ),
)
