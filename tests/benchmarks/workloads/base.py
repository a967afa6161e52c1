"""What a workload is: seeded inputs, a reference in NumPy, and one build function per system."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, Any]
Inputs: TypeAlias = Mapping[str, Array]
Outputs: TypeAlias = Sequence[Any]
Step: TypeAlias = Callable[[], Outputs]
Build: TypeAlias = Callable[[Inputs, int], Step]

SEED = 20260


@dataclass(frozen=True, slots=True)
class Workload:
    """One piece of work that several systems do.

    `inputs(rng)` makes the same arrays in every process. `builds[system](inputs, threads)` prepares the work and
    returns a step: a function without arguments that runs one step to completion and returns its outputs, in the
    order of `outputs`, as anything `np.asarray` accepts. `reference(inputs)` gives the outputs of the first steps
    (one tuple per step) in float64. An output is right when its largest absolute error is at most `tolerance` times
    the largest magnitude in the reference.
    """

    name: str
    summary: str
    outputs: tuple[str, ...]
    tolerance: float
    inputs: Callable[[np.random.Generator], Inputs]
    reference: Callable[[Inputs], Sequence[tuple[Array, ...]]]
    builds: Mapping[str, Build]
    compared_steps: int = 1

    def make_inputs(self) -> Inputs:
        """The inputs, the same in every process."""
        return self.inputs(np.random.default_rng(SEED))


def torch_training_step(optimizer: Any, loss_of: Callable[[], Any]) -> Step:
    """A step of PyTorch without compilation that minimizes a loss and returns it."""

    def step() -> tuple[Any, ...]:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return (loss.detach(),)

    return step


def builds_in(module: Mapping[str, Any], **parameters: Any) -> dict[str, Build]:
    """The functions `build_SYSTEM` of a module by system, with these parameters set.

    An underscore stands for the dot in the name of a system.
    """
    prefix = "build_"
    named = {name.removeprefix(prefix): value for name, value in module.items() if name.startswith(prefix)}
    return {name.replace("_", "."): partial(build, **parameters) for name, build in named.items()}
