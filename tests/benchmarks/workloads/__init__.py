"""The table of workloads."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

from tests.benchmarks.workloads import black_scholes, derivative10, layer_norm, matmul, mlp, softmax_xent
from tests.benchmarks.workloads.base import Workload

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for module in (mlp, matmul, softmax_xent, layer_norm, black_scholes, derivative10)
    for workload in module.WORKLOADS
}
