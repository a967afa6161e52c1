"""Solve Burgers' equation with a network whose loss holds its own second derivatives, and compare with the solution.

    python examples/burgers.py [--adam 3000] [--lbfgs 3000] [--points 2048] [--seed 0] [--output burgers.png]

The equation is u_t + u u_x = (0.01 / π) u_xx for x from -1 to 1 and t from 0 to 1, with u(0, x) = -sin(πx) and
u(t, ±1) = 0: a wave that steepens to a front. A network u(x, t) is trained until it satisfies the equation at scattered
points; no value of the solution is given but those at the start and at the ends. Raissi, Perdikaris and Karniadakis,
"Physics-informed neural networks", Journal of Computational Physics 378 (2019), section 2.

The network learns by Adam on changing points and then, if SciPy is installed, by L-BFGS on fixed ones, which takes the
error from tenths to below a hundredth. The solution it is compared with is that of Cole and Hopf.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import symgrad as sg

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

VISCOSITY = 0.01 / np.pi
WIDTHS = (2, 32, 32, 32, 32, 1)
BORDER_POINTS = 256  # at the start, and at each end
GRID = (256, 100)  # points in x and in t where the network is compared with the solution
SLICES = (0.25, 0.5, 0.75)


def main() -> None:
    arguments = parse_arguments()
    random = np.random.default_rng(arguments.seed)

    # 1. The network, in float64: L-BFGS compares losses that differ in late digits.
    g = sg.Graph()
    x = g.input("x", ("points",), sg.float64)
    t = g.input("t", ("points",), sg.float64)
    params = make_params(g, arguments.seed)
    u = network(x, t, params)

    # 2. Its derivatives in x and t are nodes like any other: forward mode, along x, along t, and along x again.
    ones = sg.ones_like(x)
    (u_x,) = sg.jvp([u], [x], [ones])
    (u_t,) = sg.jvp([u], [t], [ones])
    (u_xx,) = sg.jvp([u_x], [x], [ones])
    residual = u_t + u * u_x - VISCOSITY * u_xx

    # 3. The loss: the equation at points inside, and what is known at the border. It is differentiated once more, with
    # respect to the params.
    border_x = g.input("border_x", ("border",), sg.float64)
    border_t = g.input("border_t", ("border",), sg.float64)
    border_u = g.input("border_u", ("border",), sg.float64)
    misfit = network(border_x, border_t, params) - border_u
    loss = sg.mean(sg.square(residual)) + sg.mean(sg.square(misfit))
    grads = sg.grad(loss, params)

    # 4. Three functions over one graph: a step of Adam, the loss with its gradient for L-BFGS, and the network alone.
    inputs = [x, t, border_x, border_t, border_u]
    rate = sg.optim.cosine(sg.optim.step_counter(g), 5e-3, steps=max(1, arguments.adam))
    train = sg.compile(inputs, loss, updates=sg.optim.adam(params, grads, lr=rate), name="train")
    loss_and_grads = sg.compile(inputs, [loss, *grads], name="loss_and_grads")
    solve = sg.compile([x, t], u, name="solve")

    # 5. Train. Adam sees new points at every step.
    start = time.perf_counter()
    for _ in progress(range(arguments.adam), "Adam"):
        train(*inner_points(random, arguments.points), *border_points(random))
    report("Adam", time.perf_counter() - start, relative_error(solve))
    if importlib.util.find_spec("scipy") is None:
        print("no L-BFGS: SciPy is not installed (it comes with the extra 'examples')")
    elif arguments.lbfgs:
        start = time.perf_counter()
        points = (*inner_points(random, 2 * arguments.points), *border_points(random))
        minimize(params, lambda: loss_and_grads(*points), arguments.lbfgs)
        report("L-BFGS", time.perf_counter() - start, relative_error(solve))

    if importlib.util.find_spec("matplotlib") is None:
        print("no drawing: matplotlib is not installed (it comes with the extra 'examples')")
    else:
        draw(solve, arguments.output)
        print(f"drew {arguments.output}")


def make_params(g: sg.Graph, seed: int) -> list[sg.Node]:
    """Weights and biases of all layers in turn."""
    params: list[sg.Node] = []
    for layer, (entering, leaving) in enumerate(pairwise(WIDTHS)):
        weights = sg.init.xavier_normal((entering, leaving), seed=seed + layer, dtype=sg.float64)
        params += [g.param(f"w{layer}", weights), g.param(f"b{layer}", np.zeros(leaving))]
    return params


def network(x: sg.Node, t: sg.Node, params: Sequence[sg.Node]) -> sg.Node:
    """u at points (x, t), both of shape (points,)."""
    h = sg.stack([x, t], axis=1)
    for w, b in zip(params[:-2:2], params[1:-2:2], strict=True):
        h = sg.tanh(h @ w + b)
    return (h @ params[-2] + params[-1])[:, 0]


def inner_points(random: np.random.Generator, count: int) -> tuple[Array, Array]:
    """x and t, uniform over the domain."""
    return random.uniform(-1, 1, count), random.uniform(0, 1, count)


def border_points(random: np.random.Generator) -> tuple[Array, Array, Array]:
    """x, t and u at the start and at both ends."""
    x = random.uniform(-1, 1, BORDER_POINTS)
    zero, one = np.zeros(BORDER_POINTS), np.ones(BORDER_POINTS)
    t = random.uniform(0, 1, 2 * BORDER_POINTS)
    return np.concatenate([x, -one, one]), np.concatenate([zero, t]), np.concatenate([-np.sin(np.pi * x), zero, zero])


def minimize(params: Sequence[sg.Node], loss_and_grads: Any, iterations: int) -> None:
    """Minimize with SciPy's L-BFGS over all params as one vector, and leave the best in them."""
    # Typed as Any because SciPy is an optional dependency of this example.
    optimize: Any = importlib.import_module("scipy.optimize")
    ends = np.cumsum([p.value.size for p in params])[:-1]

    def assign(vector: Array) -> None:
        for param, part in zip(params, np.split(vector, ends), strict=True):
            param.value = part.reshape(param.value.shape)

    def evaluate(vector: Array) -> tuple[float, Array]:
        assign(vector)
        loss, *grads = loss_and_grads()
        return float(loss), np.concatenate([grad.ravel() for grad in grads])

    steps = iter(progress(range(iterations), "L-BFGS"))
    found = optimize.minimize(
        evaluate,
        np.concatenate([p.value.ravel() for p in params]),
        method="L-BFGS-B",
        jac=True,
        callback=lambda _: next(steps, None),
        options={"maxiter": iterations, "maxfun": 2 * iterations, "maxcor": 50, "ftol": 0.0, "gtol": 1e-9},
    )
    next(steps, None)  # ends the bar
    assign(found.x)


def solution(x: Array, t: Array) -> Array:
    """The solution of Cole and Hopf on the grid of x and t > 0: of shape (x, t).

    With f(y) = exp(-cos(πy) / (2πν)), u is the ratio of the integrals of -sin(π(x - s)) f(x - s) exp(-s² / (4νt)) and
    of f(x - s) exp(-s² / (4νt)) over all s; for s = z √(4νt) Gauss-Hermite quadrature has the right weight. Basdevant
    and others, "Spectral and finite difference solutions of the Burgers equation", Computers & Fluids 14 (1986).
    """
    nodes, weights = np.polynomial.hermite.hermgauss(200)
    y = np.pi * (x[:, None, None] - nodes * np.sqrt(4 * VISCOSITY * t)[:, None])
    # The largest value of f is taken out of both integrals; it would be e⁵⁰.
    f = weights * np.exp(-(np.cos(y) + 1) / (2 * np.pi * VISCOSITY))
    return -(np.sin(y) * f).sum(axis=-1) / f.sum(axis=-1)


def compared() -> tuple[Array, Array, Array]:
    """x and t of the grid, and the solution there, the start included."""
    x, t = np.linspace(-1, 1, GRID[0]), np.linspace(0, 1, GRID[1])
    return x, t, np.concatenate([-np.sin(np.pi * x)[:, None], solution(x, t[1:])], axis=1)


def on_grid(solve: sg.Function, x: Array, t: Array) -> Array:
    """The network on the grid of x and t: of shape (x, t)."""
    at_x, at_t = np.meshgrid(x, t, indexing="ij")
    return solve(at_x.ravel(), at_t.ravel()).reshape(at_x.shape)


def relative_error(solve: sg.Function) -> float:
    """The norm of the error on the grid over that of the solution."""
    x, t, exact = compared()
    return float(np.linalg.norm(on_grid(solve, x, t) - exact) / np.linalg.norm(exact))


def report(what: str, seconds: float, error: float) -> None:
    print(f"{what}: {seconds:.1f} s, relative L2 error {error:.1e}")


def draw(solve: sg.Function, path: Path) -> None:
    """The network's solution and its error over the domain, and both solutions at three times."""
    # Typed as Any because matplotlib is an optional dependency of this example.
    figures: Any = importlib.import_module("matplotlib.figure")
    x, t, exact = compared()
    found = on_grid(solve, x, t)
    figure = figures.Figure(figsize=(11, 7), dpi=130, layout="constrained")
    panels = figure.subplot_mosaic([["u"] * 3 + ["error"] * 3, ["0"] * 2 + ["1"] * 2 + ["2"] * 2])
    image = panels["u"].pcolormesh(t, x, found, cmap="RdBu_r", vmin=-1, vmax=1, shading="gouraud", rasterized=True)
    figure.colorbar(image, ax=panels["u"])
    panels["u"].set_title("network u(t, x)", fontsize=10)
    error = np.maximum(np.abs(found - exact), 1e-6)
    image = panels["error"].pcolormesh(t, x, error, cmap="viridis", norm="log", shading="gouraud", rasterized=True)
    figure.colorbar(image, ax=panels["error"])
    panels["error"].set_title("|network - solution|", fontsize=10)
    for name in ("u", "error"):
        panels[name].set_xlabel("t")
        panels[name].set_ylabel("x")
    for k, time_point in enumerate(SLICES):
        panel = panels[str(k)]
        at = np.array([time_point])
        panels["u"].axvline(time_point, color="0.3", linewidth=0.8, linestyle=":")
        panel.plot(x, solution(x, at)[:, 0], color="#1f5fa8", linewidth=2.4, label="solution")
        panel.plot(x, on_grid(solve, x, at)[:, 0], "--", color="#c4421a", linewidth=1.6, label="network")
        panel.set_title(f"t = {time_point}", fontsize=10)
        panel.set_xlabel("x")
        panel.set_ylim(-1.1, 1.1)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
    panels["0"].set_ylabel("u")
    panels["0"].legend(frameon=False, fontsize=9)
    whole = relative_error(solve)
    figure.suptitle(f"Burgers' equation by a physics-informed network: relative L2 error {whole:.1e}", fontsize=12)
    figure.savefig(path)


def progress(items: Iterable[int], label: str) -> Iterable[int]:
    """The items, with a progress bar on stderr."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise SystemExit(
            "this example shows its progress with tqdm, which is not installed; it comes with the extra "
            "'examples': pip install -e '.[examples]'"
        ) from None
    return tqdm(items, desc=label, unit="step", mininterval=0.2)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Solve Burgers' equation with a physics-informed network.")
    parser.add_argument("--adam", type=int, default=3000, help="steps of Adam (default 3000)")
    parser.add_argument("--lbfgs", type=int, default=3000, help="most iterations of L-BFGS (default 3000)")
    parser.add_argument(
        "--points", type=int, default=2048, help="points inside for Adam, twice as many for L-BFGS (default 2048)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and points (default 0)")
    parser.add_argument("--output", type=Path, default=Path("burgers.png"), help="the drawing (default burgers.png)")
    arguments = parser.parse_args()
    if min(arguments.adam, arguments.lbfgs, arguments.seed) < 0 or arguments.points < 1:
        parser.error("--adam, --lbfgs and --seed are at least 0 and --points at least 1")
    return arguments


if __name__ == "__main__":
    main()
