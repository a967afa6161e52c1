"""A soap film in a wire frame: Newton's method with an exact sparse Hessian against gradient descent.

    python examples/hessian.py [--points 50] [--steps 2000] [--out hessian.png]

Among all surfaces with a given boundary a soap film takes one of least area. The frame here is the boundary of
Scherk's surface z = log(cos y / cos x), one of the few minimal surfaces with a formula (H. F. Scherk, 1834), so the
result can be checked. The unknowns are heights at the points of a grid, and the area of the triangles between them is
what is minimized. A height meets six others, so of the millions of second derivatives all but seven in a row are zero,
and a few products with the Hessian hold the rest. The film is drawn if matplotlib is installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import symgrad as sg

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[np.float64]

REACH = 1.4  # the surface is steep near π / 2
TOLERANCE = 1e-10


@dataclass
class History:
    """What one method went through: an entry for each point, from the first on."""

    areas: list[float] = field(default_factory=list)
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description="Newton's method with a sparse Hessian against gradient descent.")
    parser.add_argument("--points", type=int, default=50, help="unknown heights in each direction (default 50)")
    parser.add_argument("--steps", type=int, default=2000, help="steps of gradient descent (default 2000)")
    parser.add_argument("--out", type=Path, default=Path("hessian.png"), help="the drawing (default hessian.png)")
    arguments = parser.parse_args()
    if arguments.points < 2 or arguments.steps < 1:
        parser.error("--points is at least 2 and --steps at least 1")
    if importlib.util.find_spec("scipy") is None:
        raise SystemExit("this example solves linear systems with SciPy: pip install -e '.[examples]'")
    points: int = arguments.points

    side = np.linspace(-REACH, REACH, points + 2)
    surface = np.log(np.cos(side)[None, :] / np.cos(side)[:, None])
    frame = surface.copy()
    frame[1:-1, 1:-1] = 0.0

    g = sg.Graph()
    z = g.input("z", (points, points), sg.float64)
    area = film_area(sg.pad(z, 1) + frame, float(side[1] - side[0]))
    gradient = sg.grad(area, z)
    start = time.perf_counter()
    hessian = sg.hessian(area, z, sparse=True)
    built = time.perf_counter()
    measure = sg.compile([z], [area, gradient], name="measure")
    curve = sg.compile([z], hessian, name="hessian").prepare()
    print(
        f"{points * points} unknown heights; the Hessian has {hessian.indices.size} entries, held by {hessian.colors}"
    )
    print(f"products with it (built in {built - start:.2f} s, compiled in {time.perf_counter() - built:.2f} s)")

    flat = np.zeros((points, points))
    check_products(
        curve, sg.compile([z, direction := g.input("d", z.shape, z.dtype)], sg.hvp(area, z, direction)), flat
    )
    film, newton = newton_method(measure, curve, flat)
    _, descent = gradient_descent(measure, flat, arguments.steps)
    error = float(np.abs(film - surface[1:-1, 1:-1]).max())
    print(f"largest distance from Scherk's surface, by the width of the triangles: {error:.1e}")
    if not error <= 8.0 / points**2:
        raise SystemExit("the film is not the minimal surface")
    if importlib.util.find_spec("matplotlib") is None:
        print("no drawing: matplotlib is not installed (it comes with the extra 'examples')")
    else:
        frame[1:-1, 1:-1] = film
        draw(side, frame, hessian, newton, descent, arguments.out)
        print(f"drew {arguments.out}")


def film_area(height: sg.Node, width: float) -> sg.Node:
    """The area of a surface over a square grid: each cell is cut into two triangles by a diagonal."""
    across = sg.diff(height, axis=0) / width
    along = sg.diff(height, axis=1) / width
    lower = sg.sqrt(1.0 + across[:, :-1] ** 2 + along[:-1] ** 2)
    upper = sg.sqrt(1.0 + across[:, 1:] ** 2 + along[1:] ** 2)
    return sg.sum(lower + upper) * (0.5 * width * width)


def check_products(curve: sg.Function, product: sg.Function, at: Array) -> None:
    """The entries of the Hessian against products with it that never form it."""
    rng = np.random.default_rng(0)
    point, direction = at + rng.normal(size=at.shape), rng.normal(size=at.shape)
    expected = product(point, direction).ravel()
    error = float(np.abs(curve(point) @ direction.ravel() - expected).max() / np.abs(expected).max())
    print(f"against products of sg.hvp: largest relative error {error:.1e}")
    if not error <= 1e-13:
        raise SystemExit("the entries of the Hessian are wrong")


def newton_method(measure: sg.Function, curve: sg.Function, start: Array) -> tuple[Array, History]:
    """Steps to the minimum of the quadratic model, halved until they descend. The area is convex, so they end there."""
    linalg: Any = importlib.import_module("scipy.sparse.linalg")
    point, history = start, History()
    before = time.perf_counter()
    area, gradient = measure(point)
    print("Newton's method\nstep        area   |gradient|   length")
    print(f"{0:4}  {area:10.6f}   {np.abs(gradient).max():10.2e}")
    history.areas.append(float(area))
    while np.abs(gradient).max() > TOLERANCE:
        if len(history.areas) > 50:
            raise SystemExit("Newton's method did not converge in 50 steps")
        step = -linalg.spsolve(curve(point).tocsc(), gradient.ravel()).reshape(point.shape)
        point, area, gradient, length = descended(measure, point, area, gradient, step, 1.0)
        print(f"{len(history.areas):4}  {area:10.6f}   {np.abs(gradient).max():10.2e}   {length:6.4f}")
        history.areas.append(float(area))
    history.seconds = time.perf_counter() - before
    print(f"{history.seconds:.3f} s")
    return point, history


def gradient_descent(measure: sg.Function, start: Array, steps: int) -> tuple[Array, History]:
    """Steps along the negative gradient, tried at twice the last length and halved until they descend."""
    point, history, length = start, History(), 1.0
    before = time.perf_counter()
    area, gradient = measure(point)
    history.areas.append(float(area))
    for _ in range(steps):
        point, area, gradient, length = descended(measure, point, area, gradient, -gradient, 2.0 * length)
        history.areas.append(float(area))
    history.seconds = time.perf_counter() - before
    print(f"gradient descent, {steps} steps: area {area:.6f}, |gradient| {np.abs(gradient).max():.2e}")
    print(f"{history.seconds:.3f} s")
    return point, history


def descended(
    measure: Callable[[Array], list[Any]], point: Array, area: float, gradient: Array, step: Array, length: float
) -> tuple[Array, float, Array, float]:
    """The first point along a step, its length halved again and again, that is enough lower (Armijo's condition).

    Differences of the area near the minimum are lost to rounding, so as many units of it count as none.
    """
    slope = float((gradient * step).sum())
    rounding = 1e-14 * abs(area)
    while True:
        candidate = point + length * step
        value, slopes = measure(candidate)
        if value <= area + 1e-4 * length * slope + rounding:
            return candidate, value, slopes, length
        length *= 0.5


def draw(side: Array, height: Array, hessian: sg.SparseMatrix, newton: History, descent: History, path: Path) -> None:
    """The film in its frame, the entries of the Hessian, and how the methods converge."""
    # Typed as Any because matplotlib is an optional dependency of this example.
    figures: Any = importlib.import_module("matplotlib.figure")
    figure = figures.Figure(figsize=(14, 4.8), dpi=130, layout="constrained")
    left, middle, right = figure.add_gridspec(1, 3, width_ratios=(1.15, 1, 1.1))

    film = figure.add_subplot(left, projection="3d")
    x, y = np.meshgrid(side, side, indexing="ij")
    film.plot_surface(x, y, height, cmap="viridis", rcount=60, ccount=60, linewidth=0.2, edgecolor=(1, 1, 1, 0.25))
    edge = [(x[k], y[k], height[k]) for k in (0, -1)] + [(x[:, k], y[:, k], height[:, k]) for k in (0, -1)]
    for line in edge:
        film.plot(*line, color="#c4421a", linewidth=2.2, zorder=10)
    film.set_title("a soap film in its frame", fontsize=10)
    film.view_init(24, -52)
    film.set_box_aspect((1, 1, 0.85), zoom=1.05)
    film.tick_params(labelsize=7)

    # A corner of the matrix: the whole would be thin lines.
    corner = min(hessian.shape[0], 3 * (len(side) - 2))
    panel = figure.add_subplot(middle)
    rows = np.repeat(np.arange(hessian.shape[0]), np.diff(hessian.indptr))
    inside = (rows < corner) & (hessian.indices < corner)
    panel.scatter(hessian.indices[inside], rows[inside], s=max(0.6, 900.0 / corner) / 4, marker="s", color="#1f5fa8")
    panel.set_xlim(-1, corner)
    panel.set_ylim(corner, -1)
    panel.set_aspect("equal")
    panel.tick_params(labelsize=7)
    entries, count = hessian.indices.size, hessian.shape[0]
    panel.set_xlabel(f"entries in all: {entries:,} of {count * count:,}, held by {hessian.colors} products", fontsize=9)
    panel.set_title(f"the first {corner} rows of the Hessian", fontsize=10)

    panel = figure.add_subplot(right)
    for history, color, label in ((descent, "#c4421a", "gradient descent"), (newton, "#1f5fa8", "Newton's method")):
        above = np.array(history.areas) - min(newton.areas)
        steps = np.flatnonzero(above > 0)
        marks = {"marker": "o", "markersize": 4} if len(steps) < 60 else {}
        name = f"{label}: {len(history.areas) - 1} steps, {history.seconds:.2f} s"
        panel.loglog(steps + 1, above[steps], color=color, linewidth=1.5, label=name, **marks)
    panel.set_xlabel("points visited", fontsize=9)
    panel.set_title("area above the least one", fontsize=10)
    panel.tick_params(labelsize=8)
    panel.legend(fontsize=8, frameon=False)
    for which in ("top", "right"):
        panel.spines[which].set_visible(False)
    figure.savefig(path)


if __name__ == "__main__":
    main()
