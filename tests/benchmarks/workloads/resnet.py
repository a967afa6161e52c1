"""Convolutions as in residual networks: forward, and the gradients with respect to input and weights."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from tests.benchmarks.workloads.base import Array, Inputs, Step, Workload, builds_in

BATCH = 8
# The output, or its gradient with respect to input or weights.
Wanted: TypeAlias = Literal["y", "d_x", "d_w"]
WANTED: tuple[Wanted, ...] = ("y", "d_x", "d_w")


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution with odd square windows over square images, and what is computed of it.

    It keeps the size of images, or with stride 2 halves an even one.
    """

    window: int
    entering: int
    leaving: int
    side: int
    stride: int
    wanted: Wanted

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "x": (BATCH, self.entering, self.side, self.side),
            "w": (self.leaving, self.entering, self.window, self.window),
            "d": (BATCH, self.leaving, self.side // self.stride, self.side // self.stride),
        }

    @property
    def operands(self) -> tuple[str, str]:
        """The inputs of what is computed; d is the cotangent of the output."""
        return {"y": ("x", "w"), "d_x": ("d", "w"), "d_w": ("x", "d")}[self.wanted]

    @property
    def padding(self) -> int:
        return self.window // 2


def make_inputs(rng: np.random.Generator, *, layer: Layer) -> Inputs:
    return {name: rng.standard_normal(layer.shapes[name], dtype=np.float32) for name in layer.operands}


def reference(inputs: Inputs, *, layer: Layer) -> list[tuple[Array, ...]]:
    left, right = (inputs[name].astype(np.float64) for name in layer.operands)
    if layer.wanted == "d_w":
        return [(np.tensordot(right, _windows(left, layer), axes=((0, 2, 3), (0, 2, 3))),)]
    if layer.wanted == "d_x":
        # The transpose of a convolution: every place of the output goes to all that its window holds.
        edge, side, step = layer.padding, left.shape[-1], layer.stride
        padded = np.zeros((BATCH, layer.entering, layer.side + 2 * edge, layer.side + 2 * edge))
        for i, j in np.ndindex(layer.window, layer.window):
            rows, columns = (slice(k, k + step * side, step) for k in (i, j))
            padded[:, :, rows, columns] += np.einsum("nohw,oc->nchw", left, right[:, :, i, j], optimize=True)
        return [(padded[:, :, edge : edge + layer.side, edge : edge + layer.side],)]
    return [(np.moveaxis(np.tensordot(_windows(left, layer), right, axes=((1, 4, 5), (1, 2, 3))), -1, 1),)]


def _windows(x: Array, layer: Layer) -> Array:
    """Windows around every place, zeros outside: (n, c, height, width, window, window)."""
    edge = (layer.padding, layer.padding)
    padded = np.pad(x, ((0, 0), (0, 0), edge, edge))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (layer.window, layer.window), axis=(2, 3))
    return windows[:, :, :: layer.stride, :: layer.stride]


def build_symgrad(inputs: Inputs, threads: int, *, layer: Layer) -> Step:
    import symgrad as sg

    g = sg.Graph()
    nodes = {name: g.input(name, shape) for name, shape in layer.shapes.items()}
    made = sg.nn.conv2d(nodes["x"], nodes["w"], padding=layer.padding, stride=layer.stride)
    if layer.wanted != "y":
        made = sg.grad(made, nodes[layer.wanted.removeprefix("d_")], cotangent=nodes["d"])
    function = sg.compile([nodes[name] for name in layer.operands], made, threads=threads)
    left, right = (inputs[name] for name in layer.operands)
    return lambda: (function(left, right),)


def build_jax(inputs: Inputs, threads: int, *, layer: Layer) -> Step:
    """Channels last, as in the workload `cnn`."""
    import jax
    import jax.numpy as jnp

    def convolved(x: Any, w: Any) -> Any:
        strides, edge = (layer.stride, layer.stride), (layer.padding, layer.padding)
        return jax.lax.conv_general_dilated(x, w, strides, (edge, edge), dimension_numbers=("NHWC", "HWIO", "NHWC"))

    shapes = {name: tuple(shape[k] for k in _LAST[name]) for name, shape in layer.shapes.items()}
    x, w = (jax.ShapeDtypeStruct(shapes[name], jnp.float32) for name in ("x", "w"))
    # A convolution is linear in each operand: its gradient by one depends on the other and the cotangent alone.
    if layer.wanted == "y":
        function = jax.jit(convolved)
    elif layer.wanted == "d_x":
        function = jax.jit(lambda d, w: jax.linear_transpose(lambda x: convolved(x, w), x)(d)[0])
    else:
        function = jax.jit(lambda x, d: jax.linear_transpose(lambda w: convolved(x, w), w)(d)[0])
    left, right = (jnp.asarray(inputs[name].transpose(_LAST[name])) for name in layer.operands)
    order = (3, 2, 0, 1) if layer.wanted == "d_w" else (0, 3, 1, 2)
    return lambda: (np.asarray(function(left, right)).transpose(order),)


_LAST = {"x": (0, 2, 3, 1), "w": (2, 3, 1, 0), "d": (0, 2, 3, 1)}


def build_torch(inputs: Inputs, threads: int, *, layer: Layer) -> Step:
    """Channels last in memory: faster than the default in each of these workloads."""
    import torch

    steps = {"padding": layer.padding, "stride": layer.stride}

    def function(left: Any, right: Any) -> Any:
        if layer.wanted == "y":
            return torch.nn.functional.conv2d(left, right, **steps)
        if layer.wanted == "d_x":
            return torch.nn.grad.conv2d_input(layer.shapes["x"], right, left, **steps)
        return torch.nn.grad.conv2d_weight(left, layer.shapes["w"], right, **steps)

    arrays = (torch.from_numpy(inputs[name]) for name in layer.operands)
    left, right = (array.contiguous(memory_format=torch.channels_last) for array in arrays)
    return lambda: (function(left, right),)


def _workload(name: str, layer: Layer) -> Workload:
    convolution = f"{layer.window}x{layer.window} convolution, {layer.entering} to {layer.leaving} channels"
    what = {"y": "", "d_x": "gradient by the input of a ", "d_w": "gradient by the weights of a "}[layer.wanted]
    return Workload(
        name=name,
        summary=f"{what}{convolution}, stride {layer.stride}, batch {BATCH} of {layer.side}x{layer.side}, float32",
        outputs=(layer.wanted,),
        tolerance=1e-5,
        inputs=partial(make_inputs, layer=layer),
        reference=partial(reference, layer=layer),
        builds=builds_in(globals(), layer=layer),
    )


WORKLOADS = tuple(
    _workload(
        f"conv_{window}x{window}_{side}"
        + ("_stride_2" if stride == 2 else "")
        + ("" if wanted == "y" else f"_{wanted}"),
        Layer(window, entering, leaving, side, stride, wanted),
    )
    for window, entering, leaving, side, stride in (
        (3, 64, 64, 56, 1),
        (1, 256, 64, 56, 1),
        (3, 128, 128, 28, 1),
        (3, 256, 256, 14, 1),
        (1, 1024, 256, 14, 1),
        (3, 512, 512, 7, 1),
        (3, 128, 128, 56, 2),
        (1, 256, 512, 56, 2),
    )
    for wanted in WANTED
)
