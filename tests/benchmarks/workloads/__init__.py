"""The table of workloads."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from tests.benchmarks.workloads import (
    black_scholes,
    burgers,
    cnn,
    derivative10,
    gpt,
    layer_norm,
    logistic_hessian,
    matmul,
    mlp,
    mlp_hvp,
    resnet,
    softmax_xent,
)
from tests.benchmarks.workloads.base import Workload

MODULES = (
    *(mlp, cnn, gpt, burgers, mlp_hvp, logistic_hessian),
    *(matmul, resnet, softmax_xent, layer_norm, black_scholes, derivative10),
)
WORKLOADS: dict[str, Workload] = {workload.name: workload for module in MODULES for workload in module.WORKLOADS}
